"""Ranks in nested groups: a message climbs from its rank to the smallest group that holds both ends, and down again.

           core                    links: each rank's port (out, in), each group's way to its parent (up, down),
     up ╱        ╲ down            and what the pairs that meet inside a group share (inside)
   host 0        host 1
out ╱  ╲        ╱    ╲ in
   0    1      2      3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from topology.cluster import Groups, IntArray, Link, Routes, compress

__all__ = ["Level", "Tree", "check_groups", "plain"]


class Level(NamedTuple):
    """The groups of one level, such as all hosts. Latencies and bandwidths are those of one way up or down.

    `latency_s`, `bandwidth_bytes_per_s` and `inside_bytes_per_s` are one number, or one for each group of the level in
    the order of the groups. With several `nics` a group has that many ways up and down, each of this bandwidth; its
    ranks take them in turn by their place in the group.
    """

    name: str
    latency_s: float | Sequence[float]
    bandwidth_bytes_per_s: float | Sequence[float]
    inside_bytes_per_s: float | Sequence[float] = math.inf
    nics: int = 1


class Tree:
    """The links and routes of nested groups."""

    def __init__(self, groups: Groups, levels: Sequence[Level], latency_s: float, bandwidth_bytes_per_s: float) -> None:
        size, by_level = check_groups(groups, len(levels))
        self.links: list[Link] = []
        for rank in range(size):
            self.links.append(Link(f"rank {rank}.out", latency_s, bandwidth_bytes_per_s))
            self.links.append(Link(f"rank {rank}.in", latency_s, bandwidth_bytes_per_s))
        # For each level, for each rank: its group, the way up (the way down is the next link), and what is inside.
        self._group: list[NDArray[np.int32]] = []
        self._up: list[NDArray[np.int32]] = []
        self._inside: list[NDArray[np.int32]] = []
        for level, members in zip(levels, by_level, strict=True):
            self._add(level, members, size)

    def _add(self, level: Level, members: list[list[int]], size: int) -> None:
        group, up, inside = (np.full(size, -1, np.int32) for _ in range(3))
        latencies_s = _each(level, "latency_s", level.latency_s, len(members))
        bandwidths = _each(level, "bandwidth_bytes_per_s", level.bandwidth_bytes_per_s, len(members))
        insides = _each(level, "inside_bytes_per_s", level.inside_bytes_per_s, len(members))
        if level.nics < 1:
            raise ValueError(f"level {level.name!r}: nics={level.nics} must be at least 1")
        for number, ranks in enumerate(members):
            group[ranks] = number
            up[ranks] = len(self.links) + 2 * (np.arange(len(ranks)) % level.nics)
            for nic in range(min(level.nics, len(ranks))):
                way = f"{level.name}{number}" + (f".nic{nic}" if level.nics > 1 else "")
                self.links.append(Link(f"{way}.up", latencies_s[number], bandwidths[number]))
                self.links.append(Link(f"{way}.down", latencies_s[number], bandwidths[number]))
            if insides[number] < math.inf:
                inside[ranks] = len(self.links)
                self.links.append(Link(f"{level.name}{number}.inside", 0.0, insides[number]))
        self._group.append(group)
        self._up.append(up)
        self._inside.append(inside)

    def route(self, sources: IntArray, targets: IntArray) -> Routes:
        depth = len(self._group)
        steps = np.full((len(sources), 2 + 3 * depth), -1, np.int32)
        apart = sources != targets
        steps[:, 0] = np.where(apart, 2 * sources, -1)
        steps[:, -1] = np.where(apart, 2 * targets + 1, -1)
        for level in reversed(range(depth)):  # from the hosts out: apart is whether the level below differs
            group, up = self._group[level], self._up[level]
            crosses = group[sources] != group[targets]
            steps[:, depth - level] = np.where(crosses, up[sources], -1)
            steps[:, depth + 1 + level] = np.where(apart & ~crosses, self._inside[level][sources], -1)
            steps[:, 2 * depth + 1 + level] = np.where(crosses, up[targets] + 1, -1)
            apart = crosses
        return compress(steps)


def check_groups(groups: Groups, levels: int) -> tuple[int, list[list[list[int]]]]:
    """The number of ranks, and for each level, outermost first, the ranks of each group.

    Raises ValueError unless ranks 0 to size - 1 each stand once, `levels` deep, and no group is empty.
    """
    by_level: list[list[list[int]]] = [[] for _ in range(levels)]

    def walk(group: object, depth: int, where: str) -> list[int]:
        if isinstance(group, int) and not isinstance(group, bool):
            if depth <= levels:
                raise ValueError(f"{where} is rank {group}, but {levels} levels are named: expected a group there")
            return [group]
        if not isinstance(group, (tuple, list)):
            raise ValueError(f"{where} is {group!r}: expected a rank or a group of ranks")
        members = cast("Sequence[object]", group)
        if depth > levels:
            raise ValueError(f"{where} is a group, but {levels} levels are named: expected a rank there")
        if not members:
            raise ValueError(f"{where} is empty: a group holds at least one rank")
        ranks = [rank for place, member in enumerate(members) for rank in walk(member, depth + 1, f"{where}[{place}]")]
        if depth:
            by_level[depth - 1].append(ranks)
        return ranks

    ranks = walk(groups, 0, "groups")
    seen = set[int]()
    for rank in ranks:
        if rank in seen:
            raise ValueError(f"rank {rank} stands twice in the groups")
        seen.add(rank)
    if seen != set(range(len(ranks))):
        lost, last = min(set(range(len(ranks))) - seen), len(ranks) - 1
        raise ValueError(f"rank {lost} is missing in the groups: {len(ranks)} ranks are numbered 0 to {last}")
    return len(ranks), by_level


def plain(value: Any) -> Any:
    """An argument as JSON has it: lists for tuples, an object for a Level, Python's own numbers for numpy's."""
    if isinstance(value, Level):
        unsaid = Level._field_defaults
        return {n: plain(v) for n, v in value._asdict().items() if n not in unsaid or v != unsaid[n]}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in cast("Sequence[Any]", value)]
    return cast("np.generic[Any]", value).item() if isinstance(value, np.generic) else value


def _each(level: Level, name: str, given: float | Sequence[float], groups: int) -> list[float]:
    try:
        numbers = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = None
    if numbers is None or numbers.ndim > 1:
        raise ValueError(f"level {level.name!r}: {name}={given!r} must be a number, or one for each group")
    values: list[float] = numbers.tolist() if numbers.ndim else [float(numbers)] * groups
    if len(values) != groups:
        raise ValueError(f"level {level.name!r}: {len(values)} values of {name} for {groups} groups")
    for value in values:
        if name == "latency_s" and not 0 <= value < math.inf:
            raise ValueError(f"level {level.name!r}: {name}={value} must be 0 seconds or more")
        if name != "latency_s" and not value > 0:
            raise ValueError(f"level {level.name!r}: {name}={value} must be more than 0 bytes per second")
    return values
