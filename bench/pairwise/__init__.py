"""`python -m bench pairwise`: latency and bandwidth of every pair of ranks, and which links are slow.

command.py has the flags and prints; matrix.py measures; outliers.py says what stands out; picture.py draws.
"""
