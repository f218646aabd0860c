"""A plan in virtual time, on a model of a cluster: how long it would take, and which link is the bottleneck.

[Note: virtual time] The very steps that the engine would run, for all ranks. A message moves in segments. A segment may
start when the one before it on its lane has gone through, when the steps that its sending depends on have finished
those bytes, and when its sender's port is free. It then takes every link on its path for its bytes over the link's
bandwidth: links are full duplex and carry one segment at a time, in the order of arrival, so what meets on a link
shares it segment by segment. It arrives after the path's latency, and waits there, in order, until the receiving step
may use it: there is room for what arrives. Two ways to count latency:

    overlapped   a port is busy for the bytes only; segments follow one another through the network, as on real ones
    one_port     both ports are busy for the latency too: a message of b bytes costs alpha + beta * b at either end, and
                 a port does one at a time: the model of Sanders, Speck and Träff (2009) and of most papers
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from collectives._simulator import Simulator
from collectives.plan import Plan, Step
from collectives.sheet import LOCAL, Sheet, sheet
from topology import Cluster

__all__ = ["SEGMENT_BYTES", "Moved", "Ports", "Simulation", "simulate"]

SEGMENT_BYTES = 64 << 10
"""What the engine moves at a time."""

Ports = Literal["overlapped", "one_port"]
_KEPT_RANKS = 256  # the tables of smaller plans are kept
_MOST_SEGMENTS = 1 << 31  # the event loop counts those of a step in 32 bits


class Moved(NamedTuple):
    """A segment's way: the steps at both ends (rank and step), the second None for a local step; times in seconds."""

    source: tuple[int, Step]
    target: tuple[int, Step] | None
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Simulation:
    """What came out: `time_s` until the last rank has finished, and the bytes that crossed each of the links."""

    plan: Plan
    cluster: Cluster
    nbytes: int
    segment_bytes: float
    ports: Ports
    time_s: float
    link_bytes: npt.NDArray[np.float64]
    _moved: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]] | None

    @cached_property
    def busiest(self) -> tuple[str, float]:
        """The link that was busy for the longest time, and the bytes it carried."""
        if not len(self.link_bytes):
            return "none", 0.0
        busy = self.link_bytes / self.cluster.link_bandwidths_bytes_per_s
        link = int(np.argmax(busy))
        return self.cluster.links[link].name, float(self.link_bytes[link])

    def segments(self) -> Iterator[Moved]:
        """Every segment's way, in the order in which they began. Needs `simulate(..., trace=True)`."""
        if self._moved is None:
            raise ValueError("the segments were not kept: simulate(..., trace=True)")
        steps, times, offsets = self._moved

        def step(index: int) -> tuple[int, Step]:
            rank = int(np.searchsorted(offsets, index, side="right")) - 1
            return rank, self.plan.steps(rank)[index - int(offsets[rank])]

        pairs, spans = steps.reshape(-1, 2).tolist(), times.reshape(-1, 2).tolist()
        for (giver, taker), (begin_s, end_s) in zip(pairs, spans, strict=True):
            yield Moved(step(giver), None if taker < 0 else step(taker), begin_s, end_s)


def simulate(
    plan: Plan,
    cluster: Cluster,
    nbytes: int,
    *,
    segment_bytes: float = SEGMENT_BYTES,
    ports: Ports = "overlapped",
    overhead_s: float = 0.0,
    network_overhead_s: float | None = None,
    trace: bool = False,
) -> Simulation:
    """Runs a plan on an array of `nbytes` (the collective's whole array, as algbw counts it) in virtual time.

    `overhead_s` is the time that a rank spends on each message it sends, and on each it receives (the o of LogP);
    `network_overhead_s` is that of messages between hosts, where it differs. 65,536 ranks of two trees take seconds,
    4,096 of a ring half a minute; the segments kept for `trace` are many. The plan is not proved here: one that is
    wrong raises ValueError at best. ValueError also when the sizes of plan and cluster differ, or a number makes no
    sense.
    """
    if plan.size != cluster.size:
        raise ValueError(f"{plan!r} is for {plan.size} ranks, but {cluster.name} has {cluster.size}")
    far_overhead_s = overhead_s if network_overhead_s is None else network_overhead_s
    if not (nbytes >= 0 and overhead_s >= 0 and far_overhead_s >= 0 and segment_bytes > 0):
        raise ValueError(
            f"nbytes={nbytes}, overhead_s={overhead_s} and network_overhead_s={network_overhead_s} must not be below "
            f"0, segment_bytes={segment_bytes} above 0"
        )
    if nbytes / segment_bytes > _MOST_SEGMENTS:
        raise ValueError(f"segment_bytes={segment_bytes} cuts {nbytes} bytes into too many segments")
    if ports not in ("overlapped", "one_port"):
        raise ValueError(f"ports={ports!r} must be 'overlapped' or 'one_port'")
    table = _kept_sheet(plan) if plan.size <= _KEPT_RANKS else sheet(plan)
    if not plan.builtin:
        _check(plan, table)
    simulator = Simulator(plan.size, table.offsets, table.kind, table.lane, table.other, table.chunk, table.count)
    routes = cluster.routes(simulator.sources, simulator.targets)
    host = _host_of(cluster)
    near = host[simulator.sources] == host[simulator.targets]
    time_s = simulator.run(
        *routes,
        cluster.link_latencies_s,
        1 / cluster.link_bandwidths_bytes_per_s,
        1 / cluster.combine_bytes_per_s,
        np.where(near, overhead_s, far_overhead_s),
        nbytes / plan.data_chunks,
        min(segment_bytes, 2.0 * nbytes + 1),  # no step moves more; and infinity is no number to count with
        ports == "one_port",
        trace,
    )
    moved = (simulator.trace_steps, simulator.trace_times, table.offsets) if trace else None
    return Simulation(plan, cluster, nbytes, segment_bytes, ports, time_s, simulator.link_bytes, moved)


def _check(plan: Plan, table: Sheet) -> None:
    """Raises ValueError for steps with ranks or chunks that cannot be; the event loop takes them for indices."""
    ranks = np.repeat(np.arange(plan.size), np.diff(table.offsets))
    talks = table.kind < LOCAL
    nobody = talks & ((table.other >= plan.size) | (table.other == ranks))
    wrong = nobody | (table.other < 0) | (table.chunk < 0) | (table.count < 1)
    if wrong.any():
        at = int(np.argmax(wrong))
        rank = int(ranks[at])
        step = plan.steps(rank)[at - int(table.offsets[rank])]
        raise ValueError(f"rank {rank} of {plan!r}: {step} is about no other rank, or about no chunk")


def _host_of(cluster: Cluster) -> npt.NDArray[np.int64]:
    """The number of each rank's host."""
    found = np.empty(cluster.size, np.int64)
    for number, host in enumerate(cluster.hosts):
        found[list(host)] = number
    return found


_kept_sheet = lru_cache(maxsize=128)(sheet)
