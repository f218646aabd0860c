"""A cluster: ranks, directed links with latency and bandwidth, the path from each rank to each other, and groups.

    rank 0 ──out──┐                                  ┌──in──▶ rank 2
                  ├──▶ host0.up ──────▶ host1.down ──┤
    rank 1 ──out──┘                                  └──in──▶ rank 3

What paths have in common is shared: here the NIC of host 0 carries what ranks 0 and 1 send to the other host. Links are
full duplex: one Link for each direction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Union, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cluster", "Device", "FloatArray", "Groups", "IntArray", "Link", "Route", "Routes"]

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]
Groups = tuple[Union[int, "Groups"], ...]
"""Nested tuples of ranks: a flat tuple is one host, ((0, 1), (2, 3)) are two, and deeper ones racks and sites."""

Routes = tuple[NDArray[np.int64], NDArray[np.int32]]
"""Many paths, one after another: path i is link_numbers[offsets[i]:offsets[i + 1]]."""
Route = Callable[[IntArray, IntArray], Routes]


class Link(NamedTuple):
    """One direction of a connection."""

    name: str
    latency_s: float
    bandwidth_bytes_per_s: float


class Device(NamedTuple):
    """Something on the machines that is not a rank: a host, a NUMA node, a NIC, a GPU.

    `about` says what was found out about it. `near` says how it is connected to each rank, in the words of the matrix
    (matrix.py), for what has a row there; otherwise it is empty.
    """

    name: str
    about: str
    near: tuple[str, ...] = ()


class Cluster:
    """Ranks 0 to size - 1 and how they are connected; made by `presets`, from a file, or by `discover`. Never changes.

    name                  what it is, as a person would say it: "hosts(4, 8)"
    size                  the number of ranks
    links                 every directed link; its place here is its number
    groups, levels        nested groups of ranks, and the names of the levels, outermost first: ("rack", "host")
    hosts                 the ranks of each group of the level "host"; of the innermost, where none is called that
    combine_bytes_per_s   how fast a rank combines two operands; inf where that is of no interest
    overhead_s            the time a rank spends on a message to or from another host; 0 where nothing is said of it
    shape                 of a torus: the ranks along each dimension, the last one counting fastest; otherwise None
    devices               what was found on the machines, for people to read
    kinds                 what each link is made of, such as "NV18" or "PCI"; empty where that has no meaning
    spec                  what `to_json` writes, and what two equal clusters have in common
    """

    def __init__(
        self,
        *,
        name: str,
        links: Sequence[Link],
        groups: Groups,
        levels: Sequence[str],
        route: Route,
        spec: Mapping[str, Any],
        combine_bytes_per_s: float = math.inf,
        shape: tuple[int, ...] | None = None,
        kinds: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.links = tuple(links)
        self.groups, self.levels = groups, tuple(levels)
        self.hosts = _hosts(groups, self.levels)
        self.size = sum(map(len, self.hosts))
        self.combine_bytes_per_s = combine_bytes_per_s
        self.overhead_s = 0.0
        self.shape = shape
        self.devices: tuple[Device, ...] = ()
        self.kinds = tuple(kinds)
        self.spec = dict(spec)
        self._route = route

    def path(self, source: int, target: int) -> tuple[int, ...]:
        """The numbers of the links from source to target, in order; none from a rank to itself.

        Raises ValueError when there is no such rank.
        """
        return tuple(self.routes(np.array([source]), np.array([target]))[1].tolist())

    def routes(self, sources: IntArray, targets: IntArray) -> Routes:
        """Many paths at once: `offsets` of n + 1 int64 and `link_numbers` of int32, for arrays of n ranks.

        Path i is link_numbers[offsets[i]:offsets[i + 1]]. Raises ValueError when there is no such rank.
        """
        for ranks in (sources, targets):
            if ranks.size and not (ranks.min() >= 0 and ranks.max() < self.size):
                wrong = ranks.min() if ranks.min() < 0 else ranks.max()
                raise ValueError(f"there is no rank {wrong} in {self.name}: ranks are 0 to {self.size - 1}")
        if sources.shape != targets.shape or sources.ndim != 1:
            raise ValueError(f"sources and targets must be of one length, not {sources.shape} and {targets.shape}")
        return self._route(sources, targets)

    def latency_s(self, source: int, target: int) -> float:
        """The sum of the latencies on the path, in seconds."""
        return float(sum(self.links[number].latency_s for number in self.path(source, target)))

    def bandwidth_bytes_per_s(self, source: int, target: int) -> float:
        """The smallest bandwidth on the path; inf from a rank to itself."""
        return min((self.links[number].bandwidth_bytes_per_s for number in self.path(source, target)), default=math.inf)

    @cached_property
    def link_latencies_s(self) -> FloatArray:
        """The latency of each link, by number."""
        return np.array([link.latency_s for link in self.links], np.float64)

    @cached_property
    def link_bandwidths_bytes_per_s(self) -> FloatArray:
        """The bandwidth of each link, by number."""
        return np.array([link.bandwidth_bytes_per_s for link in self.links], np.float64)

    @cached_property
    def group_numbers(self) -> tuple[NDArray[np.int64], ...]:
        """For each level, outermost first, the number of the group that each rank is in."""
        numbers = [np.zeros(self.size, np.int64) for _ in self.levels]

        def walk(groups: Groups, depth: int) -> list[int]:
            if depth == len(numbers):
                return list(cast("tuple[int, ...]", groups))
            ranks: list[int] = []
            for group in cast("tuple[Groups, ...]", groups):
                inside = walk(group, depth + 1)
                numbers[depth][inside] = count[depth]
                count[depth] += 1
                ranks += inside
            return ranks

        count = [0] * len(numbers)
        walk(self.groups, 0)
        return tuple(numbers)

    def described(self, name: str, devices: Sequence[Device] = ()) -> Cluster:
        """The same cluster under another name, and what it is made of; files keep both."""
        other = copy.copy(self)
        other.name, other.devices = name, tuple(devices)
        listed = [{"name": d.name, "about": d.about, **({"near": list(d.near)} if d.near else {})} for d in devices]
        other.spec = {"name": name, **self.spec, **({"devices": listed} if devices else {})}
        return other

    def part(self, members: Sequence[int]) -> Cluster:
        """The same links with some of the ranks: rank i of the part is `members[i]`.

        Groups are kept in their order, those without a member left out. A part has no file of its own.
        """
        there = np.array(members)
        place = {rank: i for i, rank in enumerate(members)}

        def kept(group: Groups) -> Groups:
            inner = [place.get(m) if isinstance(m, int) else kept(m) or None for m in group]
            return tuple(m for m in inner if m is not None)

        made = Cluster(
            name=f"{len(place)} of {self.name}",
            links=self.links,
            groups=kept(self.groups),
            levels=self.levels,
            route=lambda sources, targets: self.routes(there[sources], there[targets]),
            spec={**self.spec, "part": list(members)},
            combine_bytes_per_s=self.combine_bytes_per_s,
        )
        made.overhead_s = self.overhead_s
        return made

    def to_json(self) -> str:
        """The cluster as a file that a person can read and `from_json` makes an equal one of."""
        from topology.files import to_json

        return to_json(self.spec)

    @staticmethod
    def from_json(text: str, name: str = "JSON") -> Cluster:
        """The cluster that a file describes. Raises ValueError with `name`, the line, and what was expected there."""
        from topology.files import from_json

        return from_json(text, name)

    def save(self, path: str | Path) -> None:
        """Writes `to_json` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Cluster:
        """Reads a file that `save` or a person wrote. Raises ValueError as `from_json` does, and OSError."""
        return Cluster.from_json(Path(path).read_text(encoding="utf-8"), str(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cluster) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        hosts = "1 host" if len(self.hosts) == 1 else f"{len(self.hosts)} hosts"
        ranks = "1 rank" if self.size == 1 else f"{self.size} ranks"
        return f"<Cluster {self.name}: {ranks} on {hosts}, {len(self.links)} links>"


def innermost(groups: Groups) -> tuple[tuple[int, ...], ...]:
    """The innermost of nested groups: the ranks of each host."""
    flat = tuple(member for member in groups if isinstance(member, int))
    if flat:
        return (flat,)
    return tuple(host for member in groups if isinstance(member, tuple) for host in innermost(member))


def _hosts(groups: Groups, levels: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The ranks of each host, whose NUMA nodes may be groups of their own."""
    if "host" not in levels:
        return innermost(groups)
    found: Sequence[Groups] = [groups]
    for _ in levels[: levels.index("host") + 1]:
        found = [cast("Groups", inner) for group in found for inner in group]
    return tuple(tuple(rank for inside in innermost(host) for rank in inside) for host in found)


def compress(steps: NDArray[np.int32]) -> Routes:
    """Routes from a matrix with a row for each path, in which -1 is no link."""
    there = steps >= 0
    offsets = np.zeros(len(steps) + 1, np.int64)
    np.cumsum(there.sum(axis=1), out=offsets[1:])
    return offsets, steps[there]
