"""Binomial tree: every rank that has the data passes it on, so that their number doubles each time.

root 0 of 8:     0 --> 4                      The farthest first. Ranks beyond a power of two are the last
to 0 --> 2, 4 --> 6             get it, from the neighbour that they are paired with (see fold.py); 0 -->
1, 2 --> 3, 4 --> 5,   a root in such a pair takes the lead in it. 6 --> 7
"""

from __future__ import annotations

from collections.abc import Iterator

from collectives.algorithms.fold import at, position, positions
from collectives.plan import Recv, RecvReduce, Send, Steps, algorithm


@algorithm("all_reduce", "binomial", chunks=2, lanes=2)
def all_reduce(rank: int, size: int) -> Steps:
    """Up a tree and down again, one half of the array by way of the first rank, the other by way of the last.

        half 0, lane 0:   0 <-- 1, 2 <-- 3, then 0 <-- 2; and back
        half 1, lane 1:   1 <-- 0, 3 <-- 2, then 3 <-- 1; and back

    rounds: 2*L
    sent <= (L+2)/2
    Wins for large arrays and few ranks on shared memory where the order must be canonical: the data streams,
    and no spare memory is needed.
    Source: the classic tree; two of them at once after Sanders, Speck and Träff (Parallel Computing 35(12),
    2009).
    """
    roots = (0, size - 1)
    for half, root in enumerate(roots):
        for step in reduce(rank, size, root):
            yield step._replace(chunk=half, lane=half)
    for half, root in enumerate(roots):
        for step in broadcast(rank, size, root):
            yield step._replace(chunk=half, lane=half)


@algorithm("reduce_scatter", "binomial")
def reduce_scatter(rank: int, size: int) -> Steps:
    """Block b goes up a tree to rank b; every rank is the top of one tree, and inside others.

        block 0:   0 <-- 1, 2 <-- 3, then 0 <-- 2
        block 3:   3 <-- 2, 1 <-- 0, then 3 <-- 1, and so on

    rounds <= n + L
    sent: (n-1)/n
    Wins for large arrays and few ranks on shared memory where the order must be canonical: sums are made in
    one pass over what arrives.
    Source: the classic tree; analysed by Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    for block in range(size):
        for step in reduce(rank, size, block):
            yield step._replace(chunk=block)


@algorithm("broadcast", "binomial", near=True)
def broadcast(rank: int, size: int, root: int) -> Iterator[Send | Recv]:
    """Down the tree; the drawing is at the head of this file.

    rounds <= L
    sent <= L
    Wins for small arrays: the fewest exchanges. Every byte leaves the root up to L times, so it loses for
    large ones.
    Source: the classic; analysed by Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    parent, children = neighbours(rank, size, root)
    if parent is not None:
        yield Recv(parent, 0)
    for child in reversed(children):
        yield Send(child, 0)


@algorithm("reduce", "binomial")
def reduce(rank: int, size: int, root: int) -> Iterator[Send | RecvReduce]:
    """Up the tree: neighbours are combined first, in rank order, so the order is canonical for every root.

    rounds: L
    sent: min(1, n-1)
    Wins for small arrays: the fewest exchanges.
    Source: the classic; analysed by Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    parent, children = neighbours(rank, size, root)
    for child in children:
        yield RecvReduce(child, 0, local_first=rank < child)
    if parent is not None:
        yield Send(parent, 0)


def neighbours(rank: int, size: int, root: int) -> tuple[int | None, list[int]]:
    """Parent and children, the nearest child first."""

    def leader(place: int) -> int:
        return root if place == top else at(place, size)[0]

    top, here = position(root, size), position(rank, size)
    if rank != leader(here):
        return leader(here), []
    children = [mate for mate in at(here, size) if mate != rank]
    distance = 1
    while distance < positions(size) and not (here ^ top) & distance:
        children.append(leader(here ^ distance))
        distance *= 2
    return (None if here == top else leader(here ^ distance)), children
