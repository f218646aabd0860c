"""The algorithms: one idea a file, pure generators of one rank's steps, registered by name when imported.

They import `collectives.plan` and each other, and know nothing of arrays, transports or time. Every docstring
states the rounds and the bytes that the proof must find (n ranks, L = ceil(log2 n)); a test holds them to it.
"""

# The order is that of registration, and so of `algorithms(collective)`.
from collectives.algorithms import (  # noqa: I001
    direct,
    ring,
    recursive_doubling,
    halving_doubling,
    binomial,
    two_tree,
    scatter_all_gather,
    circulant_graph,
    torus,
    hierarchical,
    barrier,
    scan,
)

__all__ = [
    "barrier",
    "binomial",
    "circulant_graph",
    "direct",
    "halving_doubling",
    "hierarchical",
    "recursive_doubling",
    "ring",
    "scan",
    "scatter_all_gather",
    "torus",
    "two_tree",
]
