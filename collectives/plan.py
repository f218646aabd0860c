"""What a collective is, what a step is, and the plan: every rank's steps, on chunk numbers, never on bytes.

[Note: chunks] A collective works on one array, made of `blocks` (table `COLLECTIVES`); a plan cuts every
block into `chunks` equal pieces. Piece j of block b is chunk b * chunks + j, so with D = blocks * chunks the
data chunks are 0 .. D-1. Chunk p * D + c with p >= 1 is spare memory of the size of chunk c, empty when the
plan begins.

[Note: streaming] A step works byte by byte. Steps of one rank that touch the same chunk happen in the order
they were yielded, each byte as soon as the step before has finished that byte (two that only read may
overlap); other steps may overlap freely. Messages from one rank to another on one lane arrive in the order
they were sent. So a chain of `Recv`, `Send` pipelines by itself, and a plan is a handful of steps whatever
the size of the message.
"""

# A step's `count` hides tuple.count, which nobody calls on a step.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

__all__ = [
    "COLLECTIVES",
    "Algorithm",
    "Collective",
    "Copy",
    "Hosts",
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
    "unregister",
]


class Send(NamedTuple):
    """Stream chunks [chunk, chunk + count) to the peer."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0


class Recv(NamedTuple):
    """Overwrite chunks [chunk, chunk + count) with what the peer streams."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0


class RecvReduce(NamedTuple):
    """chunk = chunk op incoming; with `local_first=False`, incoming op chunk. The order fixes the bits."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0
    local_first: bool = True


class Copy(NamedTuple):
    """target = source, on this rank."""

    source: int
    target: int
    count: int = 1


class Reduce(NamedTuple):
    """target = target op source, on this rank; with `target_first=False`, target = source op target."""

    source: int
    target: int
    count: int = 1
    target_first: bool = True


Step = Send | Recv | RecvReduce | Copy | Reduce
Steps = Iterator[Step]
Hosts = tuple[tuple[int, ...], ...]
"""The ranks of every host: a partition of range(size)."""


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
    )
}


@dataclass(frozen=True)
class Algorithm:
    """A registered generator of steps: `generate(rank, size)`, and `root` and `hosts` where it takes them."""

    collective: str
    name: str
    generate: Callable[..., Iterable[Step]]
    chunks: int | Callable[..., int]
    lanes: int | Callable[..., int]
    takes: frozenset[str]

    @property
    def builtin(self) -> bool:
        """True for the library's own, which its tests prove; a user's plan is proved before it runs."""
        return self.generate.__module__.startswith("collectives.algorithms.")


_registry: dict[tuple[str, str], Algorithm] = {}
_Generator = TypeVar("_Generator", bound=Callable[..., Iterable[Step]])


def algorithm(
    collective: str, name: str, *, chunks: int | Callable[..., int] = 1, lanes: int | Callable[..., int] = 1
) -> Callable[[_Generator], _Generator]:
    """Registers a generator of one rank's steps under a name: a decorator, or `algorithm(...)(function)`.

    The function is called as `function(rank, size)`, and is given `root` and `hosts` when it declares
    parameters of these names. `chunks` is the number of pieces each block is cut into, `lanes` the number of
    lanes its steps use; both may be functions of any of `size`, `root` and `hosts`, taken by name. Raises
    ValueError for an unknown collective, a name already taken, or parameters that nobody provides.
    """
    _known(collective)
    if (collective, name) in _registry:
        raise ValueError(f"{collective} already has an algorithm {name!r}; unregister it first or choose another name")

    def register(generate: _Generator) -> _Generator:
        takes = _parameters(generate, ("rank", "size", "root", "hosts"))
        if not takes >= {"rank", "size"}:
            raise ValueError(f"{generate.__name__} must take (rank, size), and may take root and hosts")
        for count in (chunks, lanes):
            if callable(count):
                _parameters(count, ("size", "root", "hosts"))
        _registry[collective, name] = Algorithm(collective, name, generate, chunks, lanes, takes)
        return generate

    return register


def unregister(collective: str, name: str) -> None:
    """Forgets an algorithm. Raises ValueError when there is none of that name."""
    find(collective, name)
    del _registry[collective, name]
    plan.cache_clear()


def algorithms(collective: str) -> tuple[str, ...]:
    """The names of the algorithms of a collective, in the order of registration."""
    _known(collective)
    return tuple(name for owner, name in _registry if owner == collective)


def find(collective: str, name: str) -> Algorithm:
    """The registered algorithm; ValueError with the known names when there is none."""
    _known(collective)
    try:
        return _registry[collective, name]
    except KeyError:
        known = ", ".join(algorithms(collective)) or "none"
        raise ValueError(f"{collective} has no algorithm {name!r}; there are: {known}") from None


class Plan:
    """The steps of every rank for one collective, generated rank by rank when asked for.

    `hosts` is a partition of range(size), or None for all ranks on one host; it is kept only when the
    algorithm looks at it. Raises ValueError when the collective, the algorithm, the root or the hosts do not
    make sense.
    """

    __slots__ = (
        "_algorithm",
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

    def __init__(self, collective: str, algorithm: str, size: int, root: int = 0, hosts: Hosts | None = None) -> None:
        what, how = _known(collective), find(collective, algorithm)
        if size < 1:
            raise ValueError(f"a plan needs at least one rank, not {size}")
        if not 0 <= root < size:
            raise ValueError(f"root {root} is not a rank of {size}")
        if root and not what.rooted:
            raise ValueError(f"{collective} has no root, but root={root} was given")
        if hosts is not None and (not all(hosts) or sorted(r for host in hosts for r in host) != [*range(size)]):
            raise ValueError(f"hosts {hosts} do not hold each rank of range({size}) exactly once")
        self.collective, self.algorithm, self.size, self.root = collective, algorithm, size, root
        self.hosts = hosts if "hosts" in how.takes else None
        self.blocks = what.blocks(size)
        self._algorithm = how
        self._steps: dict[int, tuple[Step, ...]] = {}
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
        how = self._algorithm
        return how.generate(rank, self.size, **self._given(how.takes & {"root", "hosts"}))

    @property
    def builtin(self) -> bool:
        """True when the algorithm is the library's own."""
        return self._algorithm.builtin

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
        given: dict[str, Any] = {"size": self.size, "root": self.root}
        if "hosts" in names:
            given["hosts"] = self.hosts or (tuple(range(self.size)),)
        return {name: given[name] for name in names}

    def _count(self, what: str, count: int | Callable[..., int]) -> int:
        if callable(count):
            count = count(**self._given(_parameters(count, ("size", "root", "hosts"))))
        if count < 1:
            raise ValueError(f"{self.collective} {self.algorithm} asks for {count} {what}; at least 1 is needed")
        return count


@lru_cache(maxsize=1024)
def plan(collective: str, algorithm: str, size: int, root: int = 0, hosts: Hosts | None = None) -> Plan:
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
