"""Tests, grouped by what they need: pure/ nothing, inproc/ threads, processes/ local ranks, mpi/ an MPI, slow/ time.

references.py says what collectives must return, cases.py makes calls and compares.
"""
