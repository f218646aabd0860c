"""Which pairs of ranks are measured, by the smallest group that both are in: on one NUMA node, one host, one rack...

Pairs of one class differ little where machines are alike, so a few of each stand for all, instead of all p x p. The
choice is a plain function of the groups: the same on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, cast

from collectives.probe import Pair
from topology.cluster import Groups
from topology.trees import check_groups

__all__ = ["WHOLE", "Near", "common_level", "near_and_far", "rank_groups"]

WHOLE = "cluster"
"""The class of pairs that share no group but the whole communicator."""


class Near(NamedTuple):
    """The pairs whose smallest common group is of one level.

    alone   a few of them, spread over the groups, to be measured one at a time
    busy    as many as can talk at once: all ranks of a group in a ring where its members are ranks, otherwise all
            ranks of every other member group to those of the next
    """

    level: str
    depth: int  # of the group: 0 is all ranks
    alone: tuple[Pair, ...]
    busy: tuple[Pair, ...]
    senders: int  # the most ranks of one group (of one member group, where the members are groups) that send in `busy`
    of_ranks: bool  # the groups' members are ranks


def rank_groups(hosts: Sequence[Sequence[int]], numa_nodes: Sequence[int | None]) -> tuple[Groups, tuple[str, ...]]:
    """Groups and levels by host; and by NUMA node inside of them, where ranks are bound to different ones."""
    if not any(len({numa_nodes[rank] for rank in host} - {None}) > 1 for host in hosts):
        return tuple(tuple(host) for host in hosts), ("host",)
    nested: list[Groups] = []
    for host in hosts:
        nodes: dict[int | None, list[int]] = {}
        for rank in host:
            nodes.setdefault(numa_nodes[rank], []).append(rank)
        nested.append(tuple(tuple(ranks) for ranks in nodes.values()))
    return tuple(nested), ("host", "numa")


def near_and_far(groups: Groups, levels: Sequence[str], size: int, most: int) -> list[Near]:
    """The classes that have pairs, nearest first, with at most `most` pairs each to be measured alone.

    Raises ValueError unless every rank stands once in the groups, one tuple deeper than there are levels.
    """
    _check(groups, levels, size)
    found: list[Near] = []
    for depth, level in enumerate((WHOLE, *levels)):
        alone: list[Pair] = []
        busy: list[Pair] = []
        senders = 0
        for group in _at(groups, depth):
            members = [_ranks(member) for member in group]
            if len(members) < 2:
                continue
            alone += [
                (one[i % len(one)], other[i % len(other)]) for i, (one, other) in enumerate(itertools.pairwise(members))
            ]
            if depth == len(levels):
                ring = [ranks[0] for ranks in members]
                busy += zip(ring, ring[1:] + ring[:1], strict=True)
                senders = max(senders, len(ring))
            else:
                for one, other in zip(members[::2], members[1::2], strict=False):
                    busy += zip(one, other, strict=False)
                    senders = max(senders, min(len(one), len(other)))
        if alone:
            found.append(Near(level, depth, _spread(alone, most), tuple(busy), senders, depth == len(levels)))
    return found[::-1]


def common_level(groups: Groups, levels: Sequence[str], a: int, b: int) -> str:
    """The level of the smallest group that holds both ranks."""
    level, deeper = WHOLE, list(levels)
    while deeper:
        inner = next(member for member in cast("tuple[Groups, ...]", groups) if a in _ranks(member))
        if b not in _ranks(inner):
            break
        groups, level = inner, deeper.pop(0)
    return level


def _check(groups: Groups, levels: Sequence[str], size: int) -> None:
    found, _ = check_groups(groups, len(levels))
    if found != size:
        raise ValueError(f"groups={groups} hold {found} ranks, but there are {size}")
    if len(set(levels) | {WHOLE}) != len(levels) + 1:
        raise ValueError(f"levels={tuple(levels)} must be different names, and none of them {WHOLE!r}")


def _at(groups: Groups, depth: int) -> list[Groups]:
    if depth == 0:
        return [groups]
    return [inner for member in groups for inner in _at(cast("Groups", member), depth - 1)]


def _ranks(group: int | Groups) -> list[int]:
    return [group] if isinstance(group, int) else [rank for member in group for rank in _ranks(member)]


def _spread(pairs: list[Pair], most: int) -> tuple[Pair, ...]:
    """At most that many, evenly from first to last."""
    count = min(most, len(pairs))
    return tuple(pairs[i * len(pairs) // count] for i in range(count))
