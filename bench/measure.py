"""One row of the table: a collective timed and checked, out of place and in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .cases import COLLECTIVES, Case, What, bandwidths, whole_elems
from .check import storage_dtype
from .contenders.worker import time_calls
from .record import Recorder
from .sizes import spell
from .table import Measured, Row

if TYPE_CHECKING:
    from collectives import Communicator


def measure_row(
    comm: Communicator,
    what: What,
    size_bytes: int,
    *,
    iterations: int,
    warmup: int,
    checks: int,
    recorder: Recorder | None = None,
) -> Row:
    """Collective: every rank calls it with the same arguments and gets the same row.

    A `recorder` gets one more call, in place where the collective has such a form.
    """
    elems = whole_elems(what.collective, size_bytes, what.dtype, comm.size)
    traits = COLLECTIVES[what.collective]
    bytes_in_all = elems * storage_dtype(what.dtype).itemsize
    halves: list[Measured | None] = [None, None]
    for number, in_place in enumerate((False, True)):
        if in_place and not traits.in_place:
            continue
        case = Case(comm, what, elems, in_place)
        timing = time_calls(case.call, comm.barrier, warmup, iterations)
        time_us = _sum(comm, timing.mean_us) / comm.size
        wrong = 0
        for seed in range(checks):
            case.fill(seed)
            case.call()
            wrong += case.wrong(seed)
        algbw, busbw = bandwidths(what.collective, bytes_in_all, time_us, comm.size)
        if recorder and in_place == traits.in_place:
            recorder.record(f"{what.collective} {spell(bytes_in_all)}B {what.algorithm}", case.call)
        halves[number] = Measured(time_us, algbw, busbw, round(_sum(comm, wrong)) if checks else None)
    out_of_place, in_place_half = halves
    assert out_of_place is not None
    return Row(
        size_bytes=bytes_in_all,
        elems=elems // comm.size if traits.blocks else elems,
        dtype=what.dtype,
        op=what.op,
        root=what.root,
        out_of_place=out_of_place,
        in_place=in_place_half,
        algorithm=what.algorithm,
        iterations=iterations,
    )


def _sum(comm: Communicator, value: float) -> float:
    return float(comm.all_reduce(np.array([value], np.float64))[0])
