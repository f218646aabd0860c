"""Circulant exchanges: halving and doubling for any number of ranks, with no rank treated apart.

Partners stand at a fixed distance round the ring of ranks: n halved and rounded up, again and again. For
seven ranks the distances are 4, 2, 1. Before an exchange a rank holds (partial sums of) the `held` blocks
that follow its own; after it, the first `distance` of them:

    reduce-scatter, rank r:   r  r+1 r+2 r+3 | r+4 r+5 r+6      held 7, distance 4: send three blocks to rank
    r+4, r  r+1 | r+2 r+3                  held 4, distance 2: two to rank r+2, r | r+1
    held 2, distance 1: one to rank r+1

The all-gather is the same run backwards. Blocks that wrap round the end of the array make a second message.

Source: Bruck, Ho, Kipnis, Upfal and Weathersby (IEEE TPDS 8(11), 1997) for the all-gather; Träff, Optimal,
non-pipelined reduce-scatter and allreduce algorithms (arXiv 2410.14234, 2024) for the halved distances.
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.plan import Recv, RecvReduce, Send, Steps


def reduce_scatter(rank: int, size: int) -> Steps:
    """Block `rank` ends with the sum over all ranks."""
    for held, distance in _distances(size):
        after, before = (rank + distance) % size, (rank - distance) % size
        for block, count in _blocks(rank + distance, held - distance, size):
            yield Send(after, block, count)
        for block, count in _blocks(rank, held - distance, size):
            yield RecvReduce(before, block, count, local_first=rank < before)


def all_gather(rank: int, size: int) -> Steps:
    """Every block ends at every rank."""
    for held, distance in reversed(list(_distances(size))):
        after, before = (rank + distance) % size, (rank - distance) % size
        for block, count in _blocks(rank, held - distance, size):
            yield Send(before, block, count)
        for block, count in _blocks(rank + distance, held - distance, size):
            yield Recv(after, block, count)


def _distances(size: int) -> Iterator[tuple[int, int]]:
    held = size
    while held > 1:
        distance = (held + 1) // 2
        yield held, distance
        held = distance


def _blocks(first: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    first %= size
    yield first, min(count, size - first)
    if first + count > size:
        yield 0, first + count - size
