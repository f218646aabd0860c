"""Two trees: two binary trees over the same ranks, half of the array in each.

A rank that passes data on in one tree is a leaf of the other, so over both it sends at most two halves to
children, and the full bandwidth is used where a single tree would idle at its leaves. Trees over positions
1..q, in rank order; the second is the first read from the other end (q even) or shifted by one (q odd). Eight
ranks, written as ranks:

    tree 0, lane 0:      7             tree 1, lane 1:   0
                         |                               |
                         3                               4
                      /     \\                         /     \\
                    1         5                     2         6
                   / \\       / \\                   / \\       / \\
                  0   2     4   6                 1   3     5   7

Source: Sanders, Speck and Träff, Two-tree algorithms for full bandwidth broadcast, reduction and scan
(Parallel Computing 35(12), 2009).
"""

from __future__ import annotations

from collectives.plan import Recv, RecvReduce, Send, Steps, algorithm

TREES = (0, 1)
"""A tree's number is also that of its chunk and of its lane."""


@algorithm("all_reduce", "two_tree", chunks=2, lanes=2, near=True)
def all_reduce(rank: int, size: int) -> Steps:
    """Sums flow up both trees and the results down again, as a stream, byte by byte.

    The drawing is at the head of this file.

    rounds <= 3*L
    sent <= 2
    Wins for medium arrays and many ranks: at most four neighbours, logarithmic depth, near the least bytes.
    Source: Sanders, Speck and Träff (2009); all ranks are in both trees, as in NCCL.
    """
    if size == 1:
        return
    for tree in TREES:
        yield from _up(rank, size, tree, outside=None)
    for tree in TREES:
        yield from _down(rank, size, tree, outside=None)


@algorithm("broadcast", "two_tree", chunks=2, lanes=2, near=True)
def broadcast(rank: int, size: int, root: int) -> Steps:
    """The root stays outside both trees and feeds a half to the top of each.

        root --half 0--> top of tree 0 over the others
             --half 1--> top of tree 1 over the others

    rounds: L
    sent: min(1, n-1)
    Wins for medium and large arrays and many ranks: nobody sends more than the array once.
    Source: Sanders, Speck and Träff (2009), with the root outside so that it too sends each byte once.
    """
    for tree in TREES:
        if rank != root:
            yield from _down(rank, size, tree, root)
        elif size > 1:
            yield Send(top(size - 1, tree, root), tree, lane=tree)


@algorithm("reduce", "two_tree", chunks=2, lanes=2, near=True)
def reduce(rank: int, size: int, root: int) -> Steps:
    """The broadcast run backwards: sums flow up both trees, and each top hands its half to the root outside.

        root <--half 0-- top of tree 0 over the others
             <--half 1-- top of tree 1 over the others

    rounds <= 2*L
    sent: min(1, n-1)
    Wins for medium and large arrays and many ranks.
    Source: Sanders, Speck and Träff (2009).
    """
    for tree in TREES:
        if rank != root:
            yield from _up(rank, size, tree, root)
        elif size > 1:
            child = top(size - 1, tree, root)
            yield RecvReduce(child, tree, lane=tree, local_first=rank < child)


def _up(rank: int, size: int, tree: int, outside: int | None) -> Steps:
    parent, children = neighbours(rank, size, tree, outside)
    for child in reversed(children):  # the right subtree is the shallower one and is ready first
        yield RecvReduce(child, tree, lane=tree, local_first=rank < child)
    if parent is not None:
        yield Send(parent, tree, lane=tree)


def _down(rank: int, size: int, tree: int, outside: int | None) -> Steps:
    parent, children = neighbours(rank, size, tree, outside)
    if parent is not None:
        yield Recv(parent, tree, lane=tree)
    for child in children:
        yield Send(child, tree, lane=tree)


def neighbours(rank: int, size: int, tree: int, outside: int | None) -> tuple[int | None, list[int]]:
    """Parent and children of a rank in a tree over all ranks but `outside`, which is the parent of the top.

    The positions of an in-order binary tree are 1..q: odd ones are leaves, and one with h trailing zero bits
    stands 2**(h-1) away from its children. Where a position beyond q is missing, its left child takes its
    place.
    """
    q = size if outside is None else size - 1
    i = _position(rank if outside is None or rank < outside else rank - 1, q, tree)
    bit = i & -i
    up = i - bit if i & (bit << 1) or i + bit > q else i + bit
    below = bit >> 1
    down = [i - below] if below else []
    while below and i + below > q:
        below >>= 1
    if below:
        down.append(i + below)
    parent = _rank(up, q, tree, outside) if up else outside
    return parent, [_rank(child, q, tree, outside) for child in down]


def top(q: int, tree: int, outside: int) -> int:
    """The rank at the top of a tree over q others."""
    return _rank(1 << (q.bit_length() - 1), q, tree, outside)


def _position(index: int, q: int, tree: int) -> int:
    if tree == 0:
        return index + 1
    return q - index if q % 2 == 0 else (index - 1) % q + 1


def _rank(i: int, q: int, tree: int, outside: int | None) -> int:
    index = i - 1 if tree == 0 else q - i if q % 2 == 0 else i % q
    return index if outside is None or index < outside else index + 1
