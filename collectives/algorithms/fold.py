"""The fold: how any number of ranks becomes a power of two, and the canonical order that follows from it.

    seven ranks:   0 1   2 3   4 5   6        the first 2 * (n - q) ranks, q the largest power of two <= n,
                   \\ /   \\ /   \\ /   |        pair up with their neighbours; each pair then acts as one
                    0     1     2    3        position among q, and so does every rank that is left

Combining neighbours among the positions, then neighbours among the results, gives the canonical order: the
same tree for every algorithm that uses the fold, in rank order, ceil(log2 n) deep.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Union

Tree = Union[int, "tuple[Tree, Tree]"]
"""A rank, or two subtrees, the left operand first."""


def positions(size: int) -> int:
    """q, the largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)


def position(rank: int, size: int) -> int:
    """The position at which a rank, or the pair it belongs to, acts."""
    paired = 2 * (size - positions(size))
    return rank // 2 if rank < paired else rank - paired // 2


def at(position: int, size: int) -> range:
    """The ranks at a position: one or two."""
    pairs = size - positions(size)
    return range(2 * position, 2 * position + 2) if position < pairs else range(position + pairs, position + pairs + 1)


@lru_cache(maxsize=64)
def canonical_tree(size: int) -> Tree:
    """The canonical order in which ranks are combined."""
    level: list[Tree] = []
    for p in range(positions(size)):
        ranks = at(p, size)
        level.append(ranks[0] if len(ranks) == 1 else (ranks[0], ranks[1]))
    while len(level) > 1:
        level = list(zip(level[::2], level[1::2], strict=True))
    return level[0]


def members(tree: Tree) -> range:
    """The ranks of a subtree; they are neighbours."""
    first = last = tree
    while not isinstance(first, int):
        first = first[0]
    while not isinstance(last, int):
        last = last[1]
    return range(first, last + 1)
