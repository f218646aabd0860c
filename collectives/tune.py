"""Measuring algorithms where they will run: all candidates, in alternation, at each of several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from collectives.choose import Chooser
from collectives.plan import COLLECTIVES
from collectives.tuning import Tuning

if TYPE_CHECKING:
    from collectives.communicator import Communicator

__all__ = ["KIND", "TUNED", "TUNED_SIZES", "tune"]

KIND = "tuning"
TUNED = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")
TUNED_SIZES = tuple(256 << 2 * i for i in range(9))  # 256 B to 16 MiB
_ROUNDS = 5
_SAMPLE_S, _MOST_CALLS = 0.01, 100


def tune(
    comm: Communicator,
    chooser: Chooser,
    collectives: Sequence[str],
    sizes: Sequence[int],
    budget_s: float,
    reproducible: bool,
) -> Tuning:
    """See `Communicator.tune`."""
    for collective in collectives:
        if collective not in TUNED:
            raise ValueError(f"{collective!r} cannot be tuned; these can: {', '.join(TUNED)}")
    if not budget_s > 0 or not all(nbytes >= 1 for nbytes in sizes):
        raise ValueError(f"budget_s={budget_s} must be above 0 seconds, and sizes={sizes} at least 1 byte")
    begin_s = time.monotonic()
    table: dict[str, dict[str, dict[int, float]]] = {}
    for nbytes in sorted({int(nbytes) for nbytes in sizes}):
        for collective in collectives:
            names = chooser.worth_measuring(collective, nbytes, reproducible)
            whole, calls = _calls(comm, collective, nbytes, names)
            for name, seconds in zip(calls, _times_s(comm, [*calls.values()]), strict=True):
                table.setdefault(collective, {}).setdefault(name, {})[whole] = seconds
            if _agreed(comm, [time.monotonic() - begin_s])[0] > budget_s:
                return Tuning(table)
    return Tuning(table)


def _calls(
    comm: Communicator, collective: str, nbytes: int, names: Sequence[str]
) -> tuple[int, dict[str, Callable[[], object]]]:
    """A prepared call for each algorithm, on float32 arrays of about `nbytes` in all; and how many they are really."""
    blocks = COLLECTIVES[collective].blocks(comm.size)
    elements = max(1, nbytes // 4 // blocks)
    here = elements * (blocks if collective == "reduce_scatter" else 1)
    x = np.ones(here, np.float32)
    out = np.empty(elements * (blocks if collective == "all_gather" else 1), np.float32)
    return elements * blocks * 4, {
        name: getattr(comm.prepare, collective)(x, out=out, algorithm=name) for name in names
    }


def _times_s(comm: Communicator, calls: Sequence[Callable[[], object]]) -> list[float]:
    """The time of each call on the slowest rank: the best of several rounds in which all take turns."""
    first = _agreed(comm, [_timed_s(comm, call, 1) for call in calls for _ in range(2)][1::2])  # the first connects
    counts = [min(_MOST_CALLS, max(1, int(_SAMPLE_S / seconds))) for seconds in first]
    rounds = _ROUNDS if sum(first) * _ROUNDS < 1 else 2
    samples = [[_timed_s(comm, call, n) for call, n in zip(calls, counts, strict=True)] for _ in range(rounds)]
    return _agreed(comm, [min(times) for times in zip(*samples, strict=True)])


def _timed_s(comm: Communicator, call: Callable[[], object], count: int) -> float:
    comm.barrier()
    begin_s = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin_s) / count


def _agreed(comm: Communicator, values: Sequence[float]) -> list[float]:
    """The largest of all ranks' values, on every rank: what is decided by them is decided alike."""
    return comm.all_reduce(np.array(values), op="max", algorithm="recursive_doubling").tolist()
