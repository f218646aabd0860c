"""The algorithms: one idea a file, pure generators of one rank's steps, registered by name when imported.

They import `collectives.plan` and each other, and know nothing of arrays, transports or time. Every docstring
states the rounds and the bytes that the proof must find (n ranks, L = ceil(log2 n)); a test holds them to it.
"""

from collectives.algorithms import direct, ring, two_tree

__all__ = ["direct", "ring", "two_tree"]
