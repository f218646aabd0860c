"""What a collective is, and the plan: every rank's steps, on chunk numbers, never on bytes.

The steps are in steps.py, with what they mean [Note: chunks, streaming].
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from collectives.compose import Blocks, Run, placed
from collectives.levels import Groups, Hosts, Levels, checked, every_host
from collectives.steps import Copy, Recv, RecvReduce, Reduce, Send, Step, Steps

__all__ = [
    "COLLECTIVES",
    "NATIVE",
    "Algorithm",
    "Collective",
    "Copy",
    "Groups",
    "Hosts",
    "Levels",
    "Plan",
    "Recv",
    "RecvReduce",
    "Reduce",
    "Send",
    "Step",
    "Steps",
    "algorithm",
    "algorithms",
    "find",
    "plan",
    "registered",
    "unregister",
]


@dataclass(frozen=True)
class Collective:
    """What a collective starts from and what it promises, in blocks.

    `inputs` and `outputs` give the blocks that hold the caller's data before and the result after, on one
    rank. `promise(rank, block, size, root)` gives what an output block must hold: the ranks that contribute,
    as a bit mask, and the input block of theirs that it is made of.
    """

    name: str
    rooted: bool
    blocks: Callable[[int], int]
    inputs: Callable[[int, int, int], range]
    outputs: Callable[[int, int, int], range]
    promise: Callable[[int, int, int, int], tuple[int, int]]


def _one(size: int) -> int:
    return 1


def _each(size: int) -> int:
    return size


def _whole(rank: int, size: int, root: int) -> range:
    return range(1)


def _whole_at_root(rank: int, size: int, root: int) -> range:
    return range(1 if rank == root else 0)


def _all(rank: int, size: int, root: int) -> range:
    return range(size)


def _all_at_root(rank: int, size: int, root: int) -> range:
    return range(size if rank == root else 0)


def _own(rank: int, size: int, root: int) -> range:
    return range(rank, rank + 1)


def _sum(rank: int, block: int, size: int, root: int) -> tuple[int, int]:
    return (1 << size) - 1, block


def _from_root(rank: int, block: int, size: int, root: int) -> tuple[int, int]:
    return 1 << root, block


def _from_owner(rank: int, block: int, size: int, root: int) -> tuple[int, int]:
    return 1 << block, block


COLLECTIVES: dict[str, Collective] = {
    c.name: c
    for c in (
        Collective("all_reduce", False, _one, _whole, _whole, _sum),
        Collective("reduce_scatter", False, _each, _all, _own, _sum),
        Collective("all_gather", False, _each, _own, _all, _from_owner),
        Collective("broadcast", True, _one, _whole_at_root, _whole, _from_root),
        Collective("reduce", True, _one, _whole, _whole_at_root, _sum),
        Collective("gather", True, _each, _own, _all_at_root, _from_owner),
        Collective("scatter", True, _each, _all_at_root, _own, _from_root),
        # Blocks 0..n-1 are what a rank gives, j to rank j; blocks n..2n-1 what it gets, n + j from rank j.
        Collective(
            "all_to_all",
            False,
            lambda size: 2 * size,
            _all,
            lambda rank, size, root: range(size, 2 * size),
            lambda rank, block, size, root: (1 << (block - size), rank),
        ),
        # One byte whose value is of no interest: only that every rank has heard of every rank.
        Collective("barrier", False, _one, _whole, _whole, _sum),
        Collective("scan", False, _one, _whole, _whole, lambda rank, block, size, root: ((2 << rank) - 1, block)),
        # Rank 0 has nobody before it, and gets nothing.
        Collective(
            "exscan",
            False,
            _one,
            _whole,
            lambda rank, size, root: range(1 if rank else 0),
            lambda rank, block, size, root: ((1 << rank) - 1, block),
        ),
    )
}


@dataclass(frozen=True)
class Algorithm:
    """A registered generator of steps: `generate(rank, size)`, and what else it takes of what a plan provides."""

    collective: str
    name: str
    generate: Callable[..., Iterable[Step]]
    chunks: int | Callable[..., int]
    lanes: int | Callable[..., int]
    takes: frozenset[str]
    near: bool
    check: Callable[[tuple[str, ...]], object] | None
    arguments: tuple[str, ...] = ()

    @property
    def builtin(self) -> bool:
        """True for the library's own, which its tests prove; a user's plan is proved before it runs."""
        named = {argument.partition("(")[0] for argument in self.arguments}
        return _is_ours(self.generate) and all(_is_ours(a.generate) for a in _registry.values() if a.name in named)


NATIVE = "native"
"""The algorithm that hands a call to the transport's own collective (MPI_Allreduce, ncclAllReduce): no plan."""

_PROVIDED = ("size", "root", "hosts", "levels", "arguments")
_registry: dict[tuple[str, str], Algorithm] = {}
_Generator = TypeVar("_Generator", bound=Callable[..., Iterable[Step]])


def algorithm(
    collective: str,
    name: str,
    *,
    chunks: int | Callable[..., int] = 1,
    lanes: int | Callable[..., int] = 1,
    near: bool = False,
    arguments: Callable[[tuple[str, ...]], object] | None = None,
) -> Callable[[_Generator], _Generator]:
    """Registers a generator of one rank's steps under a name: a decorator, or `algorithm(...)(function)`.

    The function is called as `function(rank, size)`, and is given what else it declares parameters for: `root`,
    `hosts`, `levels` (hosts as `Levels`), `arguments`. `chunks` is the number of pieces each block is cut into,
    `lanes` the number of lanes its steps use; both may be functions of any of these but `rank`, taken by name.

    near         ranks with neighbouring numbers should be near each other: where the ranks of hosts do not follow
                 one another, the function numbers them host by host
    arguments    allows names like "name(a, b)", whose ("a", "b") it checks, with a ValueError if they are wrong

    Raises ValueError for an unknown collective, a name already taken, or parameters that nobody provides.
    """
    _known(collective)
    if name == NATIVE:
        raise ValueError("'native' is what a transport's own collective is called; choose another name")
    if (collective, name) in _registry:
        raise ValueError(f"{collective} already has an algorithm {name!r}; unregister it first or choose another name")

    def register(generate: _Generator) -> _Generator:
        takes = _parameters(generate, ("rank", *_PROVIDED))
        if not takes >= {"rank", "size"}:
            raise ValueError(f"{generate.__name__} must take (rank, size), and may take root, hosts, levels, arguments")
        for count in (chunks, lanes):
            if callable(count):
                _parameters(count, _PROVIDED)
        _registry[collective, name] = Algorithm(collective, name, generate, chunks, lanes, takes, near, arguments)
        return generate

    return register


def unregister(collective: str, name: str) -> None:
    """Forgets an algorithm. Raises ValueError when there is none of that name."""
    find(collective, name)
    del _registry[collective, name]
    plan.cache_clear()
    _with_arguments.cache_clear()


def algorithms(collective: str) -> tuple[str, ...]:
    """The names of the algorithms of a collective, in the order of registration."""
    _known(collective)
    return tuple(name for owner, name in _registry if owner == collective)


def registered(collective: str, name: str) -> bool:
    """Whether a collective has an algorithm of that name, whose arguments, if any, are left aside."""
    return (collective, name) in _registry or (collective, name.partition("(")[0]) in _registry


def find(collective: str, name: str) -> Algorithm:
    """The registered algorithm, for a name like "ring" or, where it takes arguments, "hierarchical(direct, ring)".

    Raises ValueError with the known names when there is none, and when the arguments are wrong.
    """
    _known(collective)
    if (collective, name) in _registry:
        return _registry[collective, name]
    spelled = re.fullmatch(r"(\w+)\((.*)\)", name.strip())
    if spelled is None or (collective, spelled[1]) not in _registry:
        known = ", ".join(algorithms(collective)) or "none"
        raise ValueError(f"{collective} has no algorithm {name!r}; there are: {known}")
    return _with_arguments(collective, spelled[1], _arguments(spelled[2]))


@lru_cache(maxsize=256)
def _with_arguments(collective: str, name: str, arguments: tuple[str, ...]) -> Algorithm:
    base = _registry[collective, name]
    if base.check is None:
        raise ValueError(f"{collective} {name} takes no arguments, but {', '.join(arguments) or 'none'!r} was given")
    base.check(arguments)
    return replace(base, name=f"{name}({', '.join(arguments)})", arguments=arguments)


def _arguments(text: str) -> tuple[str, ...]:
    """What stands between the commas, those inside of brackets left alone."""
    return tuple(part.strip() for part in re.split(r",(?![^(]*\))", text))


def _is_ours(generate: Callable[..., object]) -> bool:
    return (generate.__module__ or "").startswith("collectives.algorithms.")


class Plan:
    """The steps of every rank for one collective, generated rank by rank when asked for.

    `hosts` is a partition of range(size) into hosts, or into groups of hosts to any depth (levels.py), or None
    for all ranks on one host; it is kept only when the algorithm looks at it. Raises ValueError when the
    collective, the algorithm, the root or the hosts do not make sense.
    """

    __slots__ = (
        "_algorithm",
        "_levels",
        "_near",
        "_steps",
        "algorithm",
        "blocks",
        "chunks",
        "collective",
        "hosts",
        "lanes",
        "root",
        "size",
    )

    def __init__(self, collective: str, algorithm: str, size: int, root: int = 0, hosts: Groups | None = None) -> None:
        what, how = _known(collective), find(collective, algorithm)
        if size < 1:
            raise ValueError(f"a plan needs at least one rank, not {size}")
        if not 0 <= root < size:
            raise ValueError(f"root {root} is not a rank of {size}")
        if root and not what.rooted:
            raise ValueError(f"{collective} has no root, but root={root} was given")
        hosts = None if hosts is None else checked(hosts, size)
        self.collective, self.algorithm, self.size, self.root = collective, how.name, size, root
        self.blocks = what.blocks(size)
        self._algorithm = how
        self._steps: dict[int, tuple[Step, ...]] = {}
        self._near = _host_by_host(self, hosts) if how.near and hosts is not None else None
        self.hosts = hosts if how.takes & {"hosts", "levels"} or self._near is not None else None
        self._levels: Levels | None = None
        self.chunks = self._count("chunks", how.chunks)
        self.lanes = self._count("lanes", how.lanes)

    def steps(self, rank: int) -> tuple[Step, ...]:
        """The steps of one rank, in order; the others are not generated."""
        if rank not in self._steps:
            if not 0 <= rank < self.size:
                raise ValueError(f"rank {rank} is not one of {self.size}")
            self._steps[rank] = tuple(self.generate(rank))
        return self._steps[rank]

    def generate(self, rank: int) -> Iterable[Step]:
        """What `steps` keeps, made anew: for who looks at the steps of ten thousand ranks once."""
        if self._near is not None:
            numbered, order, place = self._near
            of_blocks = Blocks([(r,) for r in order], self.chunks)
            parts = of_blocks if self.blocks > 1 else Run(0, self.chunks)
            return placed(numbered, place[rank], order, parts, self.blocks * self.chunks)
        how = self._algorithm
        return how.generate(rank, self.size, **self._given(how.takes - {"rank", "size"}))

    @property
    def builtin(self) -> bool:
        """True when the algorithm is the library's own."""
        return self._algorithm.builtin

    @property
    def data_chunks(self) -> int:
        """The chunks that the collective's array is cut into: half of an all-to-all's blocks are what comes back."""
        return self.blocks * self.chunks // (2 if self.collective == "all_to_all" else 1)

    def input_chunks(self, rank: int) -> range:
        """The chunks that hold the caller's data at the start."""
        return self._pieces(COLLECTIVES[self.collective].inputs(rank, self.size, self.root))

    def output_chunks(self, rank: int) -> range:
        """The chunks that hold the result at the end."""
        return self._pieces(COLLECTIVES[self.collective].outputs(rank, self.size, self.root))

    def draw(self, format: Literal["text", "svg"] = "text") -> str:
        """Who sends what to whom, when: ranks side by side, time downward. A broken plan raises PlanError."""
        from collectives import draw

        if format not in ("text", "svg"):
            raise ValueError(f"a plan is drawn as 'text' or 'svg', not {format!r}")
        return draw.text(self) if format == "text" else draw.svg(self)

    def __repr__(self) -> str:
        root = f", root={self.root}" if COLLECTIVES[self.collective].rooted else ""
        hosts = f", hosts={self.hosts}" if self.hosts else ""
        return f"Plan({self.collective}, {self.algorithm}, size={self.size}{root}{hosts})"

    def _pieces(self, blocks: range) -> range:
        return range(blocks.start * self.chunks, blocks.stop * self.chunks)

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        everything: dict[str, Any] = {"size": self.size, "root": self.root, "arguments": self._algorithm.arguments}
        if "hosts" in names or "levels" in names:
            hosts = everything["hosts"] = self.hosts or (tuple(range(self.size)),)
            self._levels = everything["levels"] = self._levels or Levels(hosts)
        return {name: everything[name] for name in names}

    def _count(self, what: str, count: int | Callable[..., int]) -> int:
        if callable(count):
            count = count(**self._given(_parameters(count, _PROVIDED)))
        if count < 1:
            raise ValueError(f"{self.collective} {self.algorithm} asks for {count} {what}; at least 1 is needed")
        return count


def _host_by_host(plan: Plan, hosts: Groups) -> tuple[Plan, tuple[int, ...], dict[int, int]] | None:
    """The plan for ranks numbered host by host, the ranks in that order and the place of each; None if they are."""
    order = tuple(rank for host in every_host(hosts) for rank in host)
    if order == tuple(range(plan.size)):
        return None
    place = {rank: i for i, rank in enumerate(order)}
    root = place[plan.root] if COLLECTIVES[plan.collective].rooted else 0
    return Plan(plan.collective, plan.algorithm, plan.size, root), order, place


@lru_cache(maxsize=1024)
def plan(collective: str, algorithm: str, size: int, root: int = 0, hosts: Groups | None = None) -> Plan:
    """The plan of a registered algorithm, cached. An unknown name raises ValueError with the known ones."""
    return Plan(collective, algorithm, size, root, hosts)


def _known(collective: str) -> Collective:
    if collective not in COLLECTIVES:
        raise ValueError(f"there is no collective {collective!r}; there are: {', '.join(COLLECTIVES)}")
    return COLLECTIVES[collective]


def _parameters(function: Callable[..., object], allowed: tuple[str, ...]) -> frozenset[str]:
    names = frozenset(inspect.signature(function).parameters)
    if not names <= set(allowed):
        raise ValueError(f"parameters {sorted(names - set(allowed))} are not among those provided: {allowed}")
    return names
