"""Groups of ranks that are near one another, such as those of one host, and who has whose place in them.

          place 0   1
group 0         0   1       rank 2:   within 2, 3     its group
group 1         2   3                 beyond 0, 2     the ranks with its place in every group
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collectives.algorithms.fold import Tree, canonical_tree
from collectives.communicator import Communicator
from collectives.exchange import gather_json

__all__ = ["Groups", "Hierarchy", "groups_of", "keep_the_order"]

Groups = tuple[tuple[int, ...], ...]
"""The ranks of every group: each rank is in one, and they are of one size."""


def groups_of(comm: Any, asked: Any, argument: str) -> Groups:
    """What "host", a number of consecutive ranks, or a Communicator of this rank's group comes to.

    All ranks call it. Raises ValueError, on every rank alike, when the groups are not of one size, and TypeError for
    anything else than these three; `argument` is the name under which it was asked for.
    """
    if isinstance(asked, Communicator):
        mine = np.array([comm.rank], np.int64)
        told = gather_json(comm, asked.all_gather(mine).tolist() if asked.size > 1 else mine.tolist())
        groups = tuple(sorted({tuple(members) for members in told}))
        if sorted(rank for group in groups for rank in group) != [*range(comm.size)]:
            raise ValueError(f"{argument}: the communicators' ranks, {groups}, do not cover each rank once")
    elif asked == "host":
        groups = comm.hosts
    elif isinstance(asked, int) and not isinstance(asked, bool):
        if asked < 1 or comm.size % asked:
            raise ValueError(f"{argument}={asked} does not divide the {comm.size} ranks into groups of that size")
        groups = tuple(tuple(range(first, first + asked)) for first in range(0, comm.size, asked))
    else:
        raise TypeError(f"{argument}={asked!r} must be 'host', a number of ranks, or a Communicator")
    if len({len(group) for group in groups}) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        raise ValueError(f"{argument}: all groups must have the same number of ranks, and these have {sizes}")
    return groups


def keep_the_order(groups: Groups) -> bool:
    """Whether summing within the groups, then beyond, both in the canonical order, is the canonical order of all.

    So it is when groups are runs of ranks and their size is a power of two.
    """

    def expanded(tree: Tree, leaves: Sequence[Tree]) -> Tree:
        return leaves[tree] if isinstance(tree, int) else (expanded(tree[0], leaves), expanded(tree[1], leaves))

    sums = [expanded(canonical_tree(len(group)), group) for group in groups]
    return expanded(canonical_tree(len(groups)), sums) == canonical_tree(sum(map(len, groups)))


class Hierarchy:
    """The two communicators of groups, made from one of all ranks; all ranks make it."""

    def __init__(self, comm: Any, groups: Groups) -> None:
        self.groups = groups
        self.number = next(i for i, group in enumerate(groups) if comm.rank in group)
        self.place = groups[self.number].index(comm.rank)
        self.within: Any = comm.split(color=self.number, key=self.place)
        self.beyond: Any = comm.split(color=self.place, key=self.number)

    def close(self) -> None:
        """Closes both."""
        self.within.close()
        self.beyond.close()
