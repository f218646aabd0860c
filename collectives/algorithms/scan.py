"""Scans: rank r gets the combination of ranks 0 to r, or to r - 1 (exscan), lower ranks always on the left.

Two trees (see two_tree.py), half of the array in each. First every rank hands the total of its subtree up, but
for those with nobody to the right of it; then the combination of everything to the left comes down:

    up, tree 0 of 6 ranks:    3 <-- 1, 1 <-- 0, 1 <-- 2        totals 0-2, 0, 2: what lies left of somebody
    down:                     3 --> 5, 5 --> 4, 1 --> 2        what lies left of the subtree: 0-3, 0-3, 0-1

Subtrees are intervals of ranks in both trees, as the second is the first read from the other end. With an odd
number of ranks, rank 0 stays outside both and hands its own data to the tops, as what lies left of everybody.

Source: Sanders, Speck and Träff, Two-tree algorithms for full bandwidth broadcast, reduction and scan (Parallel
Computing 35(12), 2009); rank 0 outside for odd numbers is ours.
"""

from __future__ import annotations

from typing import NamedTuple

from collectives.algorithms.two_tree import TREES, neighbours, top
from collectives.plan import Copy, Recv, RecvReduce, Reduce, Send, Steps, algorithm


@algorithm("scan", "two_tree", chunks=2, lanes=2)
def scan(rank: int, size: int) -> Steps:
    """Totals go up both trees and prefixes down; the drawing is at the head of this file.

    rounds <= 3*L
    sent <= 2
    Wins for large arrays and many ranks: nobody sends more than two arrays.
    Source: Sanders, Speck and Träff (2009), section on scan.
    """
    for tree in TREES:
        yield from _scan(rank, size, tree)


@algorithm("exscan", "two_tree", chunks=2, lanes=2)
def exscan(rank: int, size: int) -> Steps:
    """As the scan, but that a rank keeps what lies left of it apart from its own data.

    rounds <= 3*L
    sent <= 2
    Wins for large arrays and many ranks: nobody sends more than two arrays.
    Source: Sanders, Speck and Träff (2009), section on scan.
    """
    for tree in TREES:
        yield from _exscan(rank, size, tree)


@algorithm("scan", "recursive_doubling")
def doubling_scan(rank: int, size: int) -> Steps:
    """In exchange k every rank hands what it has to the one 2**k further, which puts it on the left of its own.

        0 --> 1 --> 2 --> 3        distance 1: rank r has r-1 and r
        0 --> 2, 1 --> 3, ...      distance 2: rank r has r-3 to r, and so on

    rounds: L
    sent: L
    Wins for small arrays: the fewest exchanges. The order is canonical. What is sent is copied first, so that
    rank r need not wait for rank r + 2**k to take it.
    Source: Hillis and Steele, Data parallel algorithms (CACM 29(12), 1986).
    """
    yield from _double(rank, first=0, size=size)


@algorithm("exscan", "recursive_doubling")
def doubling_exscan(rank: int, size: int) -> Steps:
    """Every rank hands its data to the next, then all but rank 0 scan what they got.

        0 --> 1 --> 2 --> 3        to the next
        1 --> 2 --> 3, 1 --> 3     the scan; rank r has 0 to r-1

    rounds: 1 + log2(n-1) if n > 1 else 0
    sent: 1 + log2(n-1) if n > 1 else 0
    Wins for small arrays: the fewest exchanges. The order is canonical.
    Source: Hillis and Steele (CACM 29(12), 1986).
    """
    chunk, copy = 0, 1
    if rank + 1 < size:
        yield Copy(chunk, copy)
        yield Send(rank + 1, copy)
    if rank > 0:
        yield Recv(rank - 1, chunk)
        yield from _double(rank, first=1, size=size)


def _double(rank: int, first: int, size: int) -> Steps:
    """The scan of ranks first .. size - 1."""
    chunk, copy = 0, 1
    distance = 1
    while first + distance < size:
        takes = rank - distance >= first
        if rank + distance < size:
            if takes:
                yield Copy(chunk, copy)
            yield Send(rank + distance, copy if takes else chunk)
        if takes:
            yield RecvReduce(rank - distance, chunk, local_first=False)
        distance *= 2


def _scan(rank: int, size: int, tree: int) -> Steps:
    """`mine` holds this rank's data, then that and what lies left of it in the subtree, then all to the left too."""
    mine, total, before = (tree + spare * len(TREES) for spare in range(3))
    parent, left, right, has_before, has_after = _place(rank, size, tree)
    if left is not None:
        yield RecvReduce(left, mine, lane=tree, local_first=False)
    if has_after:
        if right is not None:
            yield Copy(mine, total)
            yield RecvReduce(right, total, lane=tree)
        yield Send(parent, mine if right is None else total, lane=tree)
    if left is None:
        if has_before:
            yield RecvReduce(parent, mine, lane=tree, local_first=False)
    elif has_before:
        yield Recv(parent, before, lane=tree)
        yield Send(left, before, lane=tree)
        yield Reduce(before, mine, target_first=False)
    if right is not None:
        yield Send(right, mine, lane=tree)


def _exscan(rank: int, size: int, tree: int) -> Steps:
    """`mine` holds what `_scan` calls so; `result` holds this rank's data, then what lies left of it."""
    result, total, before, mine = (tree + spare * len(TREES) for spare in range(4))
    parent, left, right, has_before, has_after = _place(rank, size, tree)
    wanted = has_after or right is not None  # by others
    if left is None and right is None:
        mine = result
    elif wanted:
        yield Copy(result, mine)
    if left is not None:
        yield Recv(left, result, lane=tree)
        if wanted:
            yield Reduce(result, mine, target_first=False)
    if has_after:
        if right is not None:
            yield Copy(mine, total)
            yield RecvReduce(right, total, lane=tree)
        yield Send(parent, mine if right is None else total, lane=tree)
    if left is None:
        if has_before:
            yield Recv(parent, result, lane=tree)
            before = result
    elif has_before:
        yield Recv(parent, before, lane=tree)
        yield Send(left, before, lane=tree)
        yield Reduce(before, result, target_first=False)
    if right is not None:
        if has_before:
            yield Reduce(before, mine, target_first=False)
        yield Send(right, mine, lane=tree)


class _Place(NamedTuple):
    """Where a rank stands in a tree: its parent, the top of the subtree on either side, and whether there are ranks to
    the left and to the right of its own subtree."""

    parent: int
    left: int | None
    right: int | None
    has_before: bool
    has_after: bool


def _place(rank: int, size: int, tree: int) -> _Place:
    outside = 0 if size % 2 else None
    if outside is not None and rank == outside:
        return _Place(-1, None, top(size - 1, tree, outside) if size > 1 else None, False, False)
    parent, left, right = _family(rank, size, tree, outside)
    first = last = rank
    while (further := _family(first, size, tree, outside)[1]) is not None:
        first = further
    while (further := _family(last, size, tree, outside)[2]) is not None:
        last = further
    return _Place(parent, left, right, first > 0, last < size - 1)


def _family(rank: int, size: int, tree: int, outside: int | None) -> tuple[int, int | None, int | None]:
    """Parent (-1 for the top), left and right child."""
    parent, children = neighbours(rank, size, tree, outside)
    left = next((child for child in children if child < rank), None)
    right = next((child for child in children if child > rank), None)
    return -1 if parent is None else parent, left, right
