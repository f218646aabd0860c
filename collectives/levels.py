"""Levels: which ranks are near one another. Hosts hold ranks, racks hold hosts, sites hold racks, to any depth.

    hosts:  ((0, 1), (2, 3))                            two hosts
            (((0, 1), (2, 3)), ((4, 5), (6, 7)))        two racks of two hosts

A plan that works level by level goes up on rails. Inside the lowest groups, whose smallest has C ranks, rank c
of every group (c < C) is on rail c; what remains to do on a rail is the same problem with one level less:

    rack 0    host 0   0  1                 rail 0   rack 0   0  2            rail 0 of rail 0    0  4
              host 1   2  3      rails               rack 1   4  6    rails
    rack 1    host 2   4  5       -->       rail 1   rack 0   1  3     -->    rail 1 of rail 0    2  6
              host 3   6  7                          rack 1   5  7            ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import cast

from topology.cluster import Groups

__all__ = ["Groups", "Hosts", "Levels", "checked", "every_host", "narrowed"]

Hosts = tuple[tuple[int, ...], ...]
"""The ranks of every host: a partition of range(size)."""
Group = int | Groups
"""A rank, or ranks or groups that are near one another."""


def checked(hosts: Groups, size: int) -> Groups:
    """The same groups, all at the same depth: a host beside racks is a rack of one host, one rack alone is
    its hosts, and ranks alone are one host.

    Raises ValueError when they do not hold each rank of range(size) exactly once, or a group holds both ranks
    and groups.
    """
    ranks: list[int] = []
    depth = _survey(hosts, ranks)
    if sorted(ranks) != [*range(size)]:
        raise ValueError(f"hosts {hosts} must hold each rank of range({size}) exactly once")
    if depth == 1:
        return (hosts,)
    hosts = cast("Groups", _padded(hosts, depth))
    while depth > 2 and len(hosts) == 1:
        hosts, depth = cast("Groups", hosts[0]), depth - 1
    return hosts


def every_host(hosts: Groups) -> Iterator[tuple[int, ...]]:
    """The lowest groups, in order."""
    for group in hosts:
        assert not isinstance(group, int)
        if isinstance(group[0], int):
            yield cast("tuple[int, ...]", group)
        else:
            yield from every_host(group)


def narrowed(hosts: Groups, members: Sequence[int]) -> Groups:
    """The hosts of a smaller communicator: its rank i is `members[i]`. Groups are in the order of their first rank."""
    place = {rank: i for i, rank in enumerate(members)}
    return checked(cast("Groups", _narrowed(hosts, place)), len(place))


def _survey(group: Group, ranks: list[int]) -> int:
    """Collects the ranks; returns how deep the groups are nested, 0 for a rank."""
    if isinstance(group, int):
        ranks.append(group)
        return 0
    if not isinstance(group, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"hosts are nested tuples of ranks, and {group!r} is neither a rank nor a tuple")
    if not group:
        raise ValueError("a group of hosts is empty: leave it out")
    depths = {_survey(member, ranks) for member in group}
    if 0 in depths and len(depths) > 1:
        raise ValueError(f"the group {group} of hosts holds ranks and groups: a host holds ranks, all above it groups")
    return 1 + max(depths)


def _padded(group: Group, depth: int) -> Group:
    if isinstance(group, int) or depth == 1:
        return group
    if _depth(group) < depth:
        return (_padded(group, depth - 1),)
    return tuple(_padded(member, depth - 1) for member in group)


def _depth(group: Group) -> int:
    return 0 if isinstance(group, int) else 1 + max(map(_depth, group))


def _narrowed(group: Group, place: dict[int, int]) -> Group | None:
    if isinstance(group, int):
        return place.get(group)
    kept = [member for member in (_narrowed(member, place) for member in group) if member is not None]
    if not kept:
        return None
    return tuple(kept if isinstance(kept[0], int) else sorted(kept, key=_first))


def _first(group: Group) -> int:
    return group if isinstance(group, int) else min(map(_first, group))


class Levels:
    """The lowest groups, and the rails on which the levels above are reached; the top is one group without rails.

    groups    the lowest groups
    width     C, the number of rails: the size of the smallest group
    blocks    for each rank here, the ranks that it stands for: its own, and those that are on no rail below
    """

    def __init__(self, hosts: Groups, blocks: dict[int, tuple[int, ...]] | None = None) -> None:
        self.top = isinstance(hosts[0], int)
        self.groups = (cast("tuple[int, ...]", hosts),) if self.top else tuple(every_host(hosts))
        self.sizes = frozenset(map(len, self.groups))
        self.width = min(self.sizes)
        self._hosts = hosts
        self._home = {rank: (group, i) for group in self.groups for i, rank in enumerate(group)}
        self.blocks = {rank: (rank,) for rank in self._home} if blocks is None else blocks

    def home(self, rank: int) -> tuple[tuple[int, ...], int]:
        """A rank's group, and its place in it."""
        return self._home[rank]

    @cached_property
    def depth(self) -> int:
        """How many levels there are: 2 for hosts."""
        return 1 if self.top else 1 + self.rails[0].depth

    @cached_property
    def rails(self) -> tuple[Levels, ...]:
        """What remains on each rail."""
        return () if self.top else tuple(self._rail(c) for c in range(self.width))

    @cached_property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """The blocks that each rail stands for; at the top, those of each rank."""
        if self.top:
            return tuple(self.blocks[rank] for rank in self.groups[0])
        return tuple(tuple(sorted(_chained(rail.blocks.values()))) for rail in self.rails)

    def _rail(self, c: int) -> Levels:
        blocks = {
            group[c]: tuple(sorted(_chained(self.blocks[rank] for rank in group[c :: self.width])))
            for group in self.groups
        }
        return Levels(cast("Groups", _on_rail(self._hosts, c)), blocks)


def _on_rail(group: Group, c: int) -> Group:
    assert not isinstance(group, int)
    return group[c] if isinstance(group[0], int) else tuple(_on_rail(member, c) for member in group)


def _chained(blocks: Iterable[tuple[int, ...]]) -> Iterator[int]:
    return (block for some in blocks for block in some)
