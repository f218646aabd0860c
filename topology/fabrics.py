"""Networks of switches: the fat tree and the dragonfly, with hosts of several ranks at their edge.

Links are numbered in blocks; a block for each kind of link, its up or there before its down or back.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from topology.cluster import IntArray, Link, Routes, compress

__all__ = ["Dragonfly", "FatTree"]


class _Fabric:
    """The ranks' ports and the hosts' links, which all fabrics begin with."""

    def __init__(self, hosts: int, ranks_per_host: int, port: tuple[float, float], wire: tuple[float, float]) -> None:
        self.ranks_per_host = ranks_per_host
        self.links: list[Link] = []
        self._wire = wire
        ranks = range(hosts * ranks_per_host)
        self._ports = self._block((f"rank {rank}.{way}" for rank in ranks for way in ("out", "in")), port)
        self._nics = self._block(f"host{host}.{way}" for host in range(hosts) for way in ("up", "down"))

    def _block(self, names: Iterable[str], of: tuple[float, float] | None = None) -> int:
        """Adds links and returns the number of the first."""
        first = len(self.links)
        self.links += [Link(name, *(of or self._wire)) for name in names]
        return first

    def _ends(self, sources: IntArray, targets: IntArray, between: int) -> NDArray[np.int32]:
        """A matrix for `compress` with the first and last two links filled in, and columns between them."""
        steps = np.full((len(sources), between + 4), -1, np.int32)
        apart = sources != targets
        crosses = sources // self.ranks_per_host != targets // self.ranks_per_host
        steps[:, 0] = np.where(apart, self._ports + 2 * sources, -1)
        steps[:, 1] = np.where(crosses, self._nics + 2 * (sources // self.ranks_per_host), -1)
        steps[:, -2] = np.where(crosses, self._nics + 2 * (targets // self.ranks_per_host) + 1, -1)
        steps[:, -1] = np.where(apart, self._ports + 2 * targets + 1, -1)
        return steps


class FatTree(_Fabric):
    """The three-level fat tree of switches with `radix` ports, half of them up (Al-Fares et al., SIGCOMM 2008).

                 core            (radix / 2)^2 switches
           ╱  ╱        ╲  ╲
         aggregation  aggregation    radix pods, each of radix / 2 aggregation and radix / 2 edge switches
          │╲  ╱│       │╲  ╱│
         edge edge    edge edge      radix / 2 hosts below each edge switch

    Which switches a message climbs to depends on its target only, digit by digit, as OpenSM's fat-tree routing does: no
    two messages of a shift permutation meet (Zahavi, "D-Mod-K routing", 2010).
    """

    def __init__(self, radix: int, ranks_per_host: int, port: tuple[float, float], wire: tuple[float, float]) -> None:
        self._half = half = radix // 2
        super().__init__(radix * half * half, ranks_per_host, port, wire)
        up_and_down = ("up", "down")
        self._edges = self._block(
            f"pod{pod}.edge{edge}.aggregation{above}.{way}"
            for pod in range(radix)
            for edge in range(half)
            for above in range(half)
            for way in up_and_down
        )
        self._cores = self._block(
            f"pod{pod}.aggregation{above}.core{core}.{way}"
            for pod in range(radix)
            for above in range(half)
            for core in range(half)
            for way in up_and_down
        )

    def route(self, sources: IntArray, targets: IntArray) -> Routes:
        half = self._half
        from_host, to_host = sources // self.ranks_per_host, targets // self.ranks_per_host
        from_edge, to_edge = from_host // half, to_host // half
        from_pod, to_pod = from_edge // half, to_edge // half
        above, core = to_host % half, to_edge % half
        steps = self._ends(sources, targets, 4)
        edges, pods = from_edge != to_edge, from_pod != to_pod
        steps[:, 2] = np.where(edges, self._edges + 2 * (from_edge * half + above), -1)
        steps[:, 3] = np.where(pods, self._cores + 2 * ((from_pod * half + above) * half + core), -1)
        steps[:, 4] = np.where(pods, self._cores + 2 * ((to_pod * half + above) * half + core) + 1, -1)
        steps[:, 5] = np.where(edges, self._edges + 2 * (to_edge * half + above) + 1, -1)
        return compress(steps)


class Dragonfly(_Fabric):
    """Groups of routers, all-to-all inside, one global link between each two groups (Kim et al., ISCA 2008).

    Messages take the shortest way: to the router of their group that has the link to the target's group, over it, and
    to the target's router. Global links are dealt to a group's routers in turn, group g's first to group g + 1.
    """

    def __init__(
        self,
        groups: int,
        routers: int,
        hosts: int,
        ranks_per_host: int,
        port: tuple[float, float],
        wire: tuple[float, float],
        long_wire: tuple[float, float],
    ) -> None:
        super().__init__(groups * routers * hosts, ranks_per_host, port, wire)
        self._groups, self._routers, self._hosts = groups, routers, hosts
        self._each = -(-(groups - 1) // routers)  # global links of a router
        inside = range(routers)
        self._locals = self._block(
            f"group{group}.router{a} to router{b}" for group in range(groups) for a in inside for b in inside if a != b
        )
        self._globals = self._block(
            (f"group{a} to group{b}" for a in range(groups) for b in range(groups) if a != b), long_wire
        )

    def route(self, sources: IntArray, targets: IntArray) -> Routes:
        per_router = self.ranks_per_host * self._hosts
        from_router, to_router = sources // per_router % self._routers, targets // per_router % self._routers
        from_group = sources // (per_router * self._routers)
        to_group = targets // (per_router * self._routers)
        far = from_group != to_group
        leaves = np.where(far, self._gateway(from_group, to_group), to_router)
        enters = np.where(far, self._gateway(to_group, from_group), to_router)
        steps = self._ends(sources, targets, 3)
        steps[:, 2] = self._local(from_group, from_router, leaves)
        between = from_group * (self._groups - 1) + to_group - (to_group > from_group)
        steps[:, 3] = np.where(far, self._globals + between, -1)
        steps[:, 4] = self._local(to_group, enters, to_router)
        return compress(steps)

    def _gateway(self, group: IntArray, other: IntArray) -> IntArray:
        """The router of a group that has the link to another one."""
        return (other - group - 1) % self._groups // max(self._each, 1)

    def _local(self, group: IntArray, router: IntArray, other: IntArray) -> IntArray:
        number = (group * self._routers + router) * (self._routers - 1) + other - (other > router)
        return np.where(router != other, self._locals + number, -1)
