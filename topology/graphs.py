"""Any graph: named vertices, some of them ranks, and links between them; messages take the path of least latency."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from topology.cluster import Cluster, Groups, IntArray, Link, Routes, compress
from topology.trees import check_groups, plain

__all__ = ["Wire", "graph"]


class Wire(NamedTuple):
    """A connection between two vertices: a link each way, unless it is `one_way`. `kind` is what it is made of."""

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float
    one_way: bool = False
    kind: str = ""


def graph(
    ranks: Sequence[str],
    wires: Sequence[Wire],
    *,
    groups: Groups | None = None,
    levels: Sequence[str] = (),
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """A cluster from its wires: `ranks` are the vertices of rank 0, 1 and so on; the others are switches.

    A message takes the path of least latency; of equal ones the path of fewest links, then the widest. Ranks pass on
    what is for others, like switches. Raises ValueError when there is no path between two ranks, when two wires join
    the same vertices in the same direction, or when groups do not hold each rank once.
    """
    if not ranks:
        raise ValueError("a graph needs at least one rank")
    if len(set(ranks)) != len(ranks):
        twice = next(name for place, name in enumerate(ranks) if name in ranks[:place])
        raise ValueError(f"vertex {twice!r} is two ranks")
    groups = tuple(range(len(ranks))) if groups is None else groups
    if check_groups(groups, len(levels))[0] != len(ranks):
        raise ValueError(f"the groups hold {check_groups(groups, len(levels))[0]} ranks, but there are {len(ranks)}")
    made = _Graph(ranks, wires)
    spec: dict[str, Any] = {"ranks": list(ranks), "links": [_to_spec(wire) for wire in wires]}
    if levels:
        spec |= {"groups": plain(groups), "levels": list(levels)}
    if combine_bytes_per_s < math.inf:
        spec["combine_bytes_per_s"] = combine_bytes_per_s
    return Cluster(
        name=f"graph of {len(ranks)} ranks",
        links=made.links,
        groups=groups,
        levels=levels,
        route=made.route,
        spec=spec,
        combine_bytes_per_s=combine_bytes_per_s,
        kinds=made.kinds if any(made.kinds) else (),
    )


def _to_spec(wire: Wire) -> Mapping[str, Any]:
    spec: dict[str, Any] = {"from": wire.source, "to": wire.target, "latency_s": float(wire.latency_s)}
    spec["bandwidth_bytes_per_s"] = float(wire.bandwidth_bytes_per_s)
    return spec | ({"one_way": True} if wire.one_way else {}) | ({"kind": wire.kind} if wire.kind else {})


class _Graph:
    def __init__(self, ranks: Sequence[str], wires: Sequence[Wire]) -> None:
        numbers = {name: number for number, name in enumerate(ranks)}
        self.links: list[Link] = []
        self.kinds: list[str] = []
        self._tails: list[int] = []
        self._leaving: dict[int, list[tuple[int, int]]] = {}  # of a vertex: (link, vertex at its end)
        seen = set[tuple[str, str]]()
        for wire in wires:
            if not (0 <= wire.latency_s < math.inf and wire.bandwidth_bytes_per_s > 0):
                raise ValueError(
                    f"the link from {wire.source} to {wire.target} needs a latency of 0 seconds or more "
                    f"and a bandwidth above 0"
                )
            ways = [(wire.source, wire.target), (wire.target, wire.source)]
            for source, target in ways[: 1 if wire.one_way else 2]:
                if source == target or (source, target) in seen:
                    what = "leads nowhere" if source == target else "is there twice: give one with the sum"
                    raise ValueError(f"the link from {source} to {target} {what}")
                seen.add((source, target))
                tail, head = (numbers.setdefault(name, len(numbers)) for name in (source, target))
                self._leaving.setdefault(tail, []).append((len(self.links), head))
                self.kinds.append(wire.kind)
                self._tails.append(tail)
                self.links.append(Link(f"{source} to {target}", wire.latency_s, wire.bandwidth_bytes_per_s))
        self._vertices = len(numbers)
        self._last: dict[int, NDArray[np.int32]] = {}  # of a rank: the last link of its path to each vertex
        from_first = self._last_links(0)
        for rank in range(1, len(ranks)):
            if from_first[rank] < 0:
                raise ValueError(f"there is no path from {ranks[0]} to {ranks[rank]}")
        back = self._reaching(0)
        for rank in range(1, len(ranks)):
            if rank not in back:
                raise ValueError(f"there is no path from {ranks[rank]} to {ranks[0]}")

    def route(self, sources: IntArray, targets: IntArray) -> Routes:
        unique, which = np.unique(sources, return_inverse=True)
        for source in unique.tolist():
            if source not in self._last:
                self._last[source] = self._last_links(source)
        last = np.stack([self._last[source] for source in unique.tolist()]) if unique.size else np.zeros((0, 1))
        tails = np.array(self._tails, np.int64)
        at = targets.astype(np.int64)
        columns: list[NDArray[np.int32]] = []
        while (at != sources).any():  # from the targets back
            link = np.where(at != sources, last[which, at], -1).astype(np.int32)
            columns.append(link)
            at = np.where(link >= 0, tails[link], at)
        steps = np.stack(columns[::-1], axis=1) if columns else np.zeros((len(sources), 0), np.int32)
        return compress(steps)

    def _last_links(self, source: int) -> NDArray[np.int32]:
        last = np.full(self._vertices, -1, np.int32)
        best = {source: (0.0, 0, -math.inf)}  # latency, links, less bandwidth
        queue = [(*best[source], source)]
        done = set[int]()
        while queue:
            latency_s, hops, narrow, vertex = heapq.heappop(queue)
            if vertex in done:
                continue
            done.add(vertex)
            for number, head in self._leaving.get(vertex, ()):
                link = self.links[number]
                cost = (latency_s + link.latency_s, hops + 1, max(narrow, -link.bandwidth_bytes_per_s))
                if head not in done and (head not in best or cost < best[head]):
                    best[head] = cost
                    last[head] = number
                    heapq.heappush(queue, (*cost, head))
        return last

    def _reaching(self, target: int) -> set[int]:
        """The vertices from which there is a path to the target."""
        entering: dict[int, list[int]] = {}
        for tail, links in self._leaving.items():
            for _, head in links:
                entering.setdefault(head, []).append(tail)
        found, queue = {target}, [target]
        while queue:
            for tail in entering.get(queue.pop(), ()):
                if tail not in found:
                    found.add(tail)
                    queue.append(tail)
        return found
