"""Measuring the machines in a few seconds: some pairs of each class, small and large messages, alone and all at once.

What is timed are programs of a few steps (probe.py), run as those of collectives are: the latency is that of a step
inside a collective, without Python, with whatever it costs that this transport's ranks wait and wake. A sample is the
median of many runs; other work on the machine only ever adds to it, so of each pair the best sample counts, and of the
pairs of a class the median. Every rank hears of every time, by an all_gather after each, so all of them go on, and
stop, alike; rank 0 fits, and tells the others.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from collectives import cache
from collectives.calls import COLLECTIVE_NUMBERS
from collectives.exchange import broadcast_json, gather_json
from collectives.measurement import Measurement, PairClass, fit
from collectives.pairs import Near, near_and_far, rank_groups
from collectives.probe import COMBINE, PING_PONG, REDUCE, SHIFT, STREAM, Pair, Probe, actions, memory_bytes
from topology.cluster import Groups
from transports.machine import machine_facts
from transports.program import DTYPES, Call, build

if TYPE_CHECKING:
    from collectives.communicator import Communicator
    from transports.base import Transport
    from transports.failures import Names

__all__ = ["KIND", "Meter", "measure", "recall"]

KIND = "measurement"
_log = logging.getLogger("treering")
_SMALL_BYTES = 8
_SIZES = tuple(4 << 10 << 2 * step for step in range(6))  # 4 KiB to 4 MiB
_FITTED = 16  # sizes up to this many times smaller than the largest say what the bandwidth is
_COMBINED_BYTES, _COMBINES = 4 << 20, 3
_PAIRS, _REPEATS = 6, 10
_RUN_S, _SAMPLE_S = 50e-6, 4e-3  # what one run of a program should take, and all runs of a sample
_SLOW_S = 20e-3  # a round that takes longer is run once a sample, and that the ranks do not begin together is no matter
_MOST_ROUNDS, _MOST_RUNS = 64, 128
_LARGEST_SHARE = 1 / 16  # of the time for a class that one message of the largest size may take


def measure(comm: Communicator, *, budget_s: float, groups: Groups | None, levels: Sequence[str] | None) -> Measurement:
    """See `Communicator.measure`."""
    if not 0 < budget_s < math.inf:
        raise ValueError(f"budget_s={budget_s} must be more than 0 seconds")
    if (groups is None) != (levels is None):
        raise ValueError("groups and levels are given together, or neither")
    if groups is None or levels is None:
        numa_nodes = [machine["numa_node"] for machine in gather_json(comm, machine_facts())]
        groups, levels = rank_groups(comm.hosts, numa_nodes)
    classes = near_and_far(groups, levels, comm.size, _PAIRS)
    meter = comm.meter()
    combine_bytes_per_s = _combine(meter)
    found: list[PairClass] = []
    recv_reduce: float | None = None
    for number, near in enumerate(classes):
        share_s = 0.9 * max(budget_s - meter.elapsed_s, 0.0) / (len(classes) - number)
        measured, sizes = _measure_class(meter, near, share_s)
        found.append(measured)
        if number == 0:
            streams = {
                n: [min(meter.sample(Probe(COMBINE, near.alone[:1], n)) for _ in range(_COMBINES))] for n in sizes
            }
            recv_reduce = fit([measured.latency_s], streams)[1]
    took_s = meter.elapsed_s
    result = Measurement(groups, tuple(levels), tuple(found), combine_bytes_per_s, recv_reduce, comm.transport, took_s)
    result = Measurement.from_json(broadcast_json(comm, result.to_json()))
    key = cache.key_of(comm)
    if comm.rank == 0:
        cache.store(key, KIND, json.loads(result.to_json()))
    return result


def recall(comm: Communicator) -> Measurement | None:
    """The measurement kept for this communicator's hosts, or None when none is, or none that can be used.

    Every rank calls it and gets the same. The log ("treering") says why one that is there is not used.
    """
    value = cache.recall(comm, KIND)
    if value is None:
        return None
    try:
        return Measurement.from_json(json.dumps(value))
    except ValueError as error:
        _log.warning("the measurement in the cache is ignored, it is broken: %s", error)
        return None


def _measure_class(meter: Meter, near: Near, share_s: float) -> tuple[PairClass, list[int]]:
    """One class in about `share_s` seconds, and the sizes that said what its bandwidth is."""
    began_s = meter.elapsed_s
    best: dict[Probe, float] = {}

    def sample(kind: str, pairs: tuple[Pair, ...], nbytes: int) -> float:
        probe = Probe(kind, pairs, nbytes)
        best[probe] = min(meter.sample(probe), best.get(probe, math.inf))
        return best[probe]

    def left(part: float) -> bool:
        return meter.elapsed_s - began_s < share_s * part

    def fitted(small: str, large: str) -> tuple[float, float]:
        streams: dict[int, list[float]] = {}
        for probe, taken_s in best.items():
            if probe.kind == large and probe.nbytes in sizes:
                streams.setdefault(probe.nbytes, []).append(taken_s)
        halves = 2 if small == PING_PONG else 1  # a ping-pong is two messages, a round of a shift one
        latencies = [taken_s for (kind, _, nbytes), taken_s in best.items() if (kind, nbytes) == (small, _SMALL_BYTES)]
        return fit([taken_s / halves for taken_s in latencies], streams)

    first, sizes = near.alone[:1], list[int]()
    sample(PING_PONG, first, _SMALL_BYTES)
    for nbytes in _SIZES:
        sizes.append(nbytes)
        if 4 * sample(STREAM, first, nbytes) > share_s * _LARGEST_SHARE:
            break
    sizes = [nbytes for nbytes in sizes if nbytes * _FITTED >= sizes[-1]]
    for repeat in range(_REPEATS):
        for a, b in near.alone:
            pair = ((a, b) if repeat % 2 == 0 else (b, a),)
            if left(0.6):
                sample(PING_PONG, pair, _SMALL_BYTES)
            for nbytes in reversed(sizes):
                if left(0.6):
                    sample(STREAM, pair, nbytes)
    latency_s, bandwidth = fitted(PING_PONG, STREAM)
    best.clear()
    small, large = (SHIFT, SHIFT) if near.of_ranks else (PING_PONG, STREAM)
    for repeat in range(_REPEATS):
        for kind, nbytes in ((small, _SMALL_BYTES), *((large, nbytes) for nbytes in sizes)):
            if repeat == 0 or left(1.0):
                sample(kind, near.busy, nbytes)
    busy_latency_s, busy_bandwidth = fitted(small, large)
    together = busy_bandwidth * near.senders
    return PairClass(near.level, len(near.alone), latency_s, bandwidth, busy_latency_s, together), sizes


def _combine(meter: Meter) -> float:
    everyone = tuple((rank, rank) for rank in range(meter.size))
    return _COMBINED_BYTES / min(meter.sample(Probe(REDUCE, everyone, _COMBINED_BYTES)) for _ in range(_COMBINES))


class _Known(NamedTuple):
    """How a probe is sampled, now that it is known how long it takes."""

    rounds: int  # in the program
    runs: int
    program: Any
    slow: bool


class Meter:
    """Runs probes. Every rank makes the same calls and hears the same times; `Communicator.meter` makes one.

    elapsed_s   since it was made, by the slowest rank's clock, at the last sample; the same on every rank
    """

    def __init__(self, comm: Communicator, transport: Transport, names: Names) -> None:
        self.size, self.elapsed_s = comm.size, 0.0
        self._comm, self._transport = comm, transport
        self._algorithm = names.algorithm("measure")
        self._began_s = time.perf_counter()
        self._memory: np.ndarray[Any, Any] = np.zeros(0, np.uint8)
        self._known: dict[Probe, _Known] = {}
        self._agree(0.0)

    def sample(self, probe: Probe) -> float:
        """Seconds for one round: the median of some runs, on the rank where it is longest."""
        if self._memory.nbytes < memory_bytes(probe.nbytes):
            self._memory = np.zeros(memory_bytes(probe.nbytes), np.uint8)  # zeros: sums of them stay numbers
            self._memory.fill(0)  # written: a page that nobody has written costs more to read the first time
        if probe not in self._known:
            once, taken_s = self._compile(probe, 1), 0.0
            for _ in range(2):  # the first run touches memory and opens windows
                taken_s = self._agree(self._timed(probe, [self._run(once)]))
                if taken_s > _SLOW_S:
                    self._known[probe] = _Known(1, 1, once, slow=True)
                    return taken_s
            self._plan(probe, taken_s)
        rounds, runs, program, slow = self._known[probe]
        if not slow:
            self._run(program)  # so that the ranks begin together
        taken_s = self._agree(self._timed(probe, [self._run(program) for _ in range(runs)]) / rounds)
        self._plan(probe, taken_s)
        return taken_s

    def _timed(self, probe: Probe, runs_s: list[float]) -> float:
        return statistics.median(runs_s) if probe.times(self._comm.rank) else 0.0

    def _plan(self, probe: Probe, round_s: float) -> None:
        """Settles how often a probe is repeated, now that it is known how long it takes."""
        rounds = 1
        while rounds < _MOST_ROUNDS and rounds * round_s < _RUN_S:
            rounds *= 4
        runs = int(min(max(_SAMPLE_S / (rounds * round_s), 1), _MOST_RUNS)) if round_s > 0 else _MOST_RUNS
        known = self._known.get(probe)
        program = known.program if known is not None and known.rounds == rounds else self._compile(probe, rounds)
        self._known[probe] = _Known(rounds, runs, program, slow=round_s > _SLOW_S)

    def _compile(self, probe: Probe, rounds: int) -> Any:
        call = Call(COLLECTIVE_NUMBERS["all_to_all"], DTYPES["bytes"][0], 0, -1, probe.nbytes, self._algorithm)
        program = build(actions(probe, self._comm.rank, rounds), call, buffers=1)
        return self._transport.compile(program, self._comm.timeout_s)

    def _run(self, program: Any) -> float:
        began_s = time.perf_counter()
        self._transport.run(program, self._comm.timeout_s, self._memory.ctypes.data)
        return time.perf_counter() - began_s

    def _agree(self, taken_s: float) -> float:
        """The longest of all ranks' times, on all of them; and how long it has been."""
        mine = np.array([[taken_s, time.perf_counter() - self._began_s]])
        taken_s, self.elapsed_s = self._comm.all_gather(mine).max(axis=0).tolist()
        return taken_s
