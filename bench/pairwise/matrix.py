"""Every pair measured, one after the other, so that none disturbs another; each a few times, and what stands out then a
few times more."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from collectives.exchange import gather_json
from collectives.pairs import common_level, rank_groups
from collectives.probe import PING_PONG, STREAM, Probe
from transports.machine import machine_facts

from .outliers import find_outliers

if TYPE_CHECKING:
    from collectives import Communicator

REPEATS, AGAIN = 3, 4  # samples of every pair; and more of those that stand out
SMALL_BYTES = 8

Matrix = tuple[tuple[float | None, ...], ...]
"""Rows are the ranks that send, columns those that receive; None on the diagonal."""


class Pairwise(NamedTuple):
    """What was measured; equal on every rank."""

    hosts: tuple[str, ...]  # names, by rank
    levels: tuple[tuple[str, ...], ...]  # of every pair: "host", "numa", "cluster"
    latency_us: Matrix  # of a step inside a collective; the same both ways, as a ping-pong cannot tell them apart
    bandwidth_gb_per_s: Matrix  # of one message of size_bytes
    size_bytes: int


def measure_pairs(comm: Communicator, size_bytes: int, tell: Callable[[str], None]) -> Pairwise:
    """Every rank calls it. Of each pair the best of some samples counts: other work only ever adds to one."""
    machines = gather_json(comm, [socket.gethostname(), machine_facts()["numa_node"]])
    groups, names = rank_groups(comm.hosts, [node for _, node in machines])
    meter, size = comm.meter(), comm.size
    latency_us: list[list[float | None]] = [[None] * size for _ in range(size)]
    bandwidth: list[list[float | None]] = [[None] * size for _ in range(size)]
    levels = tuple(tuple("" if a == b else common_level(groups, names, a, b) for b in range(size)) for a in range(size))
    everyone = list(itertools.combinations(range(size), 2))

    def slow() -> list[tuple[int, int]]:
        """Pairs that stand out so far; the same on every rank, as what they heard is."""
        found = find_outliers("latency", latency_us, levels) + find_outliers("bandwidth", bandwidth, levels)
        return sorted({(min(o.source, o.target), max(o.source, o.target)) for o in found})

    for repeat in range(REPEATS + AGAIN):
        for a, b in everyone if repeat < REPEATS else slow():
            tell(f"round {repeat + 1} of {REPEATS}: ranks {a} and {b} of {size}" if repeat < REPEATS else "once more")
            latency_s = meter.sample(Probe(PING_PONG, ((a, b),), SMALL_BYTES)) / 2
            latency_us[a][b] = latency_us[b][a] = min(latency_s * 1e6, latency_us[a][b] or latency_s * 1e6)
            for source, target in ((a, b), (b, a)):
                taken_s = meter.sample(Probe(STREAM, ((source, target),), size_bytes))
                moved_s = max(taken_s - latency_s, taken_s / 2)  # less the one byte that says it is there
                bandwidth[source][target] = max(size_bytes / moved_s / 1e9, bandwidth[source][target] or 0.0)
    return Pairwise(
        tuple(host for host, _ in machines), levels, _frozen(latency_us), _frozen(bandwidth), size_bytes
    )  # fmt: skip


def _frozen(rows: list[list[float | None]]) -> Matrix:
    return tuple(map(tuple, rows))
