"""Hierarchical: other algorithms composed, level by level, so that each byte crosses between groups as rarely as
possible.

With C the size of the smallest host, rank c of every host (c < C) is on rail c, and a C-th of the data
crosses between hosts on each rail. Any algorithms do what is to do inside of the hosts and on the rails:

    host 0   0   1   2        inside:  every rank gives rail c its part c      (collect)
             |   |            across:  rail by rail, here {0, 3} and {1, 4}
    host 1   3   4            inside:  every rail gives its part to all        (spread)

Hosts may differ in size: here C = 2, and rank 2 is on no rail. Where hosts are grouped in turn (racks, sites), a
rail does the same with one level less: it collects inside of each rack, and so on up (levels.py has a drawing).

"hierarchical(direct, two_tree)" names the algorithm of each level, that inside of hosts first; the last name
repeats. A level below the top takes what has a reduce-scatter and an all-gather, or a reduce and a broadcast, as
far as the collective needs them ("halving_doubling" means halving and doubling).

Source: the multi-leader designs of Kandalla et al. (CAC 2009) and BlueConnect of Cho et al. (MLSys 2019), which is
a reduce-scatter on each level up and an all-gather on each level down.
"""

from __future__ import annotations

from functools import partial

from collectives.algorithms.inner import (
    COLLECT,
    SPREAD,
    at_once,
    by_level,
    check_levels,
    check_names,
    chunks,
    exchange,
    lanes,
    pieces,
    without,
)
from collectives.compose import Blocks, Run, placed
from collectives.plan import Levels, Recv, Send, Step, algorithm, plan

_DEFAULTS = {
    "all_reduce": ("direct", "halving_doubling", "halving_doubling"),
    "reduce_scatter": ("direct", "halving", "halving"),
    "all_gather": ("direct", "doubling", "doubling"),
    "broadcast": ("direct", "doubling", "two_tree"),
    "reduce": ("direct", "halving", "two_tree"),
}
"""The algorithms of the lowest level, of those between, and of the top."""


def _names(collective: str, arguments: tuple[str, ...], levels: Levels) -> tuple[str, ...]:
    return by_level(arguments, _DEFAULTS[collective], levels)


def _chunks(collective: str):
    def count(levels: Levels, arguments: tuple[str, ...]) -> int:
        check_levels(collective, arguments, levels)
        cut = pieces if collective in (COLLECT, SPREAD) else chunks
        return cut(collective, levels, _names(collective, arguments, levels))

    return count


def _lanes(collective: str):
    def count(levels: Levels, arguments: tuple[str, ...]) -> int:
        return lanes(collective, levels, _names(collective, arguments, levels))

    return count


def _registered(collective: str):
    """Registers under the name "hierarchical", and under that with the names of inner algorithms."""
    return algorithm(
        collective,
        "hierarchical",
        chunks=_chunks(collective),
        lanes=_lanes(collective),
        arguments=partial(check_names, collective),
    )


@_registered("all_reduce")
def all_reduce(rank: int, size: int, levels: Levels, arguments: tuple[str, ...]) -> list[Step]:
    """Collect inside the hosts, all-reduce on the rails (by halving and doubling), spread inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 4*ceil(log2(H))
    sent: (C-1)/C + 2*(H-1)/(H*C) + (W-1)/C
    Wins when hosts are far apart: 2*(H-1)/H of the array crosses between hosts, on C rails at once. With
    groups of equal size the total is 2*(n-1)/n on any number of levels, the least possible.
    """
    names = _names("all_reduce", arguments, levels)
    data = chunks("all_reduce", levels, names)
    return _all_reduce(rank, levels, names, Run(0, data), data)


def _all_reduce(rank: int, levels: Levels, names: tuple[str, ...], part: Run, data: int) -> list[Step]:
    group, i = levels.home(rank)
    if at_once("all_reduce", names[0], levels):
        return placed(plan("all_reduce", names[0], len(group)), i, group, part, data)
    parts = part.cut(levels.width)
    steps = exchange(COLLECT, names[0], levels, rank, parts, data)
    if i < len(levels.rails):
        steps += _all_reduce(rank, levels.rails[i], names[1:], parts.only(i), data)
    return steps + exchange(SPREAD, names[0], levels, rank, parts, data)


@_registered("reduce_scatter")
def reduce_scatter(rank: int, size: int, levels: Levels, arguments: tuple[str, ...]) -> list[Step]:
    """Collect inside the hosts, reduce-scatter on the rails (by halving), hand over to ranks that are on none.

    The drawing is at the head of this file. A block travels on the rail of its owner, or if it has none, on
    that of a rank on its host. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 2*H*ceil(W/C)
    sent <= (n + H*ceil(W/C) - H - 1)/n
    Wins when hosts are far apart: only the blocks of other hosts cross, already added up inside the host.
    """
    names = _names("reduce_scatter", arguments, levels)
    return _reduce_scatter(rank, levels, names, pieces("reduce_scatter", levels, names), size)


def _reduce_scatter(rank: int, levels: Levels, names: tuple[str, ...], cut: int, size: int) -> list[Step]:
    steps = exchange(COLLECT, names[0], levels, rank, Blocks(levels.parts, cut), size * cut)
    if levels.top:
        return steps
    _, i = levels.home(rank)
    if i < levels.width:
        steps += _reduce_scatter(rank, levels.rails[i], names[1:], cut, size)
    return steps + _hand_over(rank, levels, cut, to_rails=False)


@_registered("all_gather")
def all_gather(rank: int, size: int, levels: Levels, arguments: tuple[str, ...]) -> list[Step]:
    """Hand over by ranks on no rail, all-gather on the rails (by doubling), spread inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= 2*H*ceil(W/C) + 1
    sent <= ((H*W - 1)*ceil(W/C) + (W > C))/n
    Wins when hosts are far apart: every block crosses to every other host once, on C rails at once.
    """
    names = _names("all_gather", arguments, levels)
    return _all_gather(rank, levels, names, pieces("all_gather", levels, names), size)


def _all_gather(rank: int, levels: Levels, names: tuple[str, ...], cut: int, size: int) -> list[Step]:
    steps: list[Step] = []
    if not levels.top:
        _, i = levels.home(rank)
        steps += _hand_over(rank, levels, cut, to_rails=True)
        if i < levels.width:
            steps += _all_gather(rank, levels.rails[i], names[1:], cut, size)
    return steps + exchange(SPREAD, names[0], levels, rank, Blocks(levels.parts, cut), size * cut)


@_registered("broadcast")
def broadcast(rank: int, size: int, root: int, levels: Levels, arguments: tuple[str, ...]) -> list[Step]:
    """The root gives each rail of its host a part, broadcast on the rails (two trees), spread inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= ceil(log2(H)) + 2
    sent <= 1 + (W-1)/C
    Wins when hosts are far apart: the array crosses to every other host once, on C rails at once.
    """
    names = _names("broadcast", arguments, levels)
    data = chunks("broadcast", levels, names)
    return _broadcast(rank, root, levels, names, Run(0, data), data)


def _broadcast(rank: int, root: int, levels: Levels, names: tuple[str, ...], part: Run, data: int) -> list[Step]:
    group, i = levels.home(rank)
    from_group, r = levels.home(root)
    if at_once("broadcast", names[0], levels):
        return placed(plan("broadcast", names[0], len(group), r), i, group, part, data)
    parts = part.cut(levels.width)
    steps = placed(plan("scatter", "direct", len(group), r), i, group, parts, data) if group is from_group else []
    if i < len(levels.rails):
        steps += _broadcast(rank, from_group[i], levels.rails[i], names[1:], parts.only(i), data)
    spread = exchange(SPREAD, names[0], levels, rank, parts, data)
    return steps + (without(root, rank, spread) if group is from_group else spread)


@_registered("reduce")
def reduce(rank: int, size: int, root: int, levels: Levels, arguments: tuple[str, ...]) -> list[Step]:
    """Collect inside the hosts, reduce on the rails (two trees), each rail of the root's host gives the root its part.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 2*ceil(log2(H))
    sent <= 1
    Wins when hosts are far apart: every other host sends the array once, on C rails at once.
    """
    names = _names("reduce", arguments, levels)
    data = chunks("reduce", levels, names)
    return _reduce(rank, root, levels, names, Run(0, data), data)


def _reduce(rank: int, root: int, levels: Levels, names: tuple[str, ...], part: Run, data: int) -> list[Step]:
    group, i = levels.home(rank)
    to_group, r = levels.home(root)
    if at_once("reduce", names[0], levels):
        return placed(plan("reduce", names[0], len(group), r), i, group, part, data)
    parts = part.cut(levels.width)
    steps = exchange(COLLECT, names[0], levels, rank, parts, data)
    if i < len(levels.rails):
        steps += _reduce(rank, to_group[i], levels.rails[i], names[1:], parts.only(i), data)
    if group is to_group:
        steps += placed(plan("gather", "direct", len(group), r), i, group, parts, data)
    return steps


def _hand_over(rank: int, levels: Levels, cut: int, *, to_rails: bool) -> list[Step]:
    """Ranks on no rail give what they stand for to one of their group that is on one, or get it from there."""
    group, i = levels.home(rank)
    steps: list[Step] = []
    for j in range(i if i >= levels.width else i + levels.width, len(group), levels.width):
        owner, partner = group[j], group[j % levels.width]
        if rank in (owner, partner):
            kind = Send if rank == (owner if to_rails else partner) else Recv
            peer = partner if rank == owner else owner
            steps += [kind(peer, *stretch) for stretch in Blocks((levels.blocks[owner],), cut).stretches(0, 1, 1)]
    return steps
