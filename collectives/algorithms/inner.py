"""Inner algorithms: what the groups of one level of a hierarchy do, by the name of any other algorithm.

A group *collects* when it adds up part c of the array at its c-th rank, for each of its rails (levels.py), and
*spreads* when the c-th rank gives part c to all. These are a reduce-scatter and an all-gather in which the ranks
on no rail have empty blocks; an algorithm that has neither (a tree) runs once for each part, as a reduce to the
c-th rank and a broadcast from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

from collectives.compose import Parts, placed
from collectives.plan import COLLECTIVES, Levels, Plan, Recv, Send, Step, algorithms, find, plan, registered

COLLECT, SPREAD = "reduce_scatter", "all_gather"
_PART_BY_PART = {COLLECT: "reduce", SPREAD: "broadcast"}
_HALVES = {(COLLECT, "halving_doubling"): "halving", (SPREAD, "halving_doubling"): "doubling"}
"""At the top too: for any number of ranks the two send less than the all-reduce, whose order is canonical."""
_INSIDE = {
    "all_reduce": (COLLECT, SPREAD),
    "reduce_scatter": (COLLECT,),
    "all_gather": (SPREAD,),
    "broadcast": (SPREAD,),
    "reduce": (COLLECT,),
}
"""What groups do for a collective, on all levels but the top, and there too if the algorithm cannot do it at once."""


def exchange(what: str, name: str, levels: Levels, rank: int, parts: Parts, data: int) -> list[Step]:
    """The rank's group collects or spreads these parts, one for each rail, or at the top for each rank."""
    group, i = levels.home(rank)
    own = _HALVES.get((what, name), name)
    if registered(what, own):
        return placed(plan(what, own, len(group)), i, group, parts, data)
    trees = (plan(_PART_BY_PART[what], name, len(group), c) for c in range(levels.width))
    return [step for c, tree in enumerate(trees) for step in placed(tree, i, group, parts.only(c), data)]


def without(receiver: int, rank: int, steps: list[Step]) -> list[Step]:
    """The steps when one rank has everything already, so that nothing is sent to it."""
    if rank == receiver:
        return [step for step in steps if not isinstance(step, Recv)]
    return [step for step in steps if not isinstance(step, Send) or step.peer != receiver]


def at_once(collective: str, name: str, levels: Levels) -> bool:
    """Whether this level is the top, and the algorithm does there all that the collective wants."""
    return levels.top and registered(collective, name) and (COLLECT, name) not in _HALVES


def by_level(arguments: tuple[str, ...], default: tuple[str, str, str], levels: Levels) -> tuple[str, ...]:
    """The name of each level's algorithm, the lowest first: the last one given repeats.

    `default` is for the lowest level, those between, and the top.
    """
    if not arguments:
        return (default[0], *default[1:2] * (levels.depth - 2), default[2])
    return arguments + arguments[-1:] * (levels.depth - len(arguments))


def chunks(collective: str, levels: Levels, names: tuple[str, ...]) -> int:
    """Into how many chunks the array is cut, so that each level can cut its part as its plans do."""
    need = lcm(*(p.chunks for p in _plans(collective, names[0], levels)))
    if not levels.top:
        need = lcm(need, chunks(collective, levels.rails[0], names[1:]))
    return need if at_once(collective, names[0], levels) else need * levels.width


def pieces(collective: str, levels: Levels, names: tuple[str, ...]) -> int:
    """The same for a collective with a block for each rank: into how many each of them is cut."""
    need = lcm(*(p.chunks for p in _plans(collective, names[0], levels)))
    return need if levels.top else lcm(need, pieces(collective, levels.rails[0], names[1:]))


def lanes(collective: str, levels: Levels, names: tuple[str, ...]) -> int:
    """The most lanes that any level's plans use."""
    need = max(p.lanes for p in _plans(collective, names[0], levels))
    return need if levels.top else max(need, lanes(collective, levels.rails[0], names[1:]))


def _plans(collective: str, name: str, levels: Levels) -> Iterator[Plan]:
    """A plan of each kind that this level's groups carry out."""
    for size in levels.sizes:
        if at_once(collective, name, levels):
            yield plan(collective, name, size)
            continue
        for what in _INSIDE[collective]:
            own = _HALVES.get((what, name), name)
            yield plan(what, own, size) if registered(what, own) else plan(_PART_BY_PART[what], name, size)


def check_names(collective: str, arguments: tuple[str, ...]) -> None:
    """Raises ValueError, listing those that could, when an algorithm cannot work on the level it is named for."""
    for name in arguments[:-1]:
        _check(collective, name, top=False)
    _check(collective, arguments[-1], top=True)


def check_levels(collective: str, arguments: tuple[str, ...], levels: Levels) -> None:
    """Raises ValueError when more algorithms are named than there are levels, or the last cannot repeat."""
    if len(arguments) > levels.depth:
        raise ValueError(
            f"{collective} hierarchical({', '.join(arguments)}) names {len(arguments)} algorithms, but these hosts "
            f"have {levels.depth} levels: give at most {levels.depth} names, the first for the ranks of a host"
        )
    if arguments and len(arguments) < levels.depth:
        _check(collective, arguments[-1], top=False)


def _check(collective: str, name: str, *, top: bool) -> None:
    if _works(collective, name, top):
        return
    names = dict.fromkeys(n for c in COLLECTIVES for n in algorithms(c))
    known = ", ".join(n for n in names if _works(collective, n, top))
    where = "the top" if top else "a level below the top"
    raise ValueError(f"{collective} hierarchical(...) cannot use {name!r} on {where}; there are: {known}")


def _works(collective: str, name: str, top: bool) -> bool:
    if top and _flat(collective, name):
        return True
    return all(
        _flat(what, _HALVES.get((what, name), name)) or _flat(_PART_BY_PART[what], name) for what in _INSIDE[collective]
    )


def _flat(collective: str, name: str) -> bool:
    """Whether there is such an algorithm, and it does not look at hosts itself."""
    return registered(collective, name) and not find(collective, name).takes & {"hosts", "levels"}
