"""Every collective on arrays of a made-up GPU (fake_cupy.py), whatever the transport."""

from __future__ import annotations

from typing import Any

import numpy as np

import collectives as cc
from tests.fake_cupy import FakeCupy
from tests.references import expected

COLLECTIVES = (
    "broadcast", "all_gather", "gather", "scatter", "all_to_all", "all_reduce", "reduce", "reduce_scatter", "scan",
    "exscan",
)  # fmt: skip


def inputs(size: int, dtype: Any = np.float32) -> list[Any]:
    """Of each rank."""
    return [np.random.default_rng(rank).integers(0, 50, (4 * size, 5)).astype(dtype) for rank in range(size)]


def every_algorithm(comm: cc.Communicator, cupy: FakeCupy, name: str, *, native: bool) -> None:
    """One collective by all its algorithms, each on a stream of its own: the producer is not waited for by the caller,
    and the input is written again by what follows the call on the stream."""
    size, whole = comm.size, 20 * comm.size
    table = {
        "all_gather": ((whole,) * size,), "gather": ((whole,) * size,), "scatter": ((20,) * size,),
        "reduce_scatter": ((20,) * size,), "all_to_all": ((20,) * size,) * size,
    }.get(name, ((whole,),))  # fmt: skip
    given = inputs(size)
    options = {"root": 1} if name in ("broadcast", "reduce", "gather", "scatter") else {}
    algorithms = [*cc.algorithms(name), *(["native"] if native else [])]
    wanted = expected(name, [a.reshape(-1) for a in given], comm.rank, op="sum", root=1, rows=table)
    done = 0
    for algorithm in algorithms:
        with cupy.cuda.Stream():
            x = cupy.array(given[comm.rank])
            out = cupy.empty((4, 5), np.float32) if name == "scatter" and comm.rank != 1 else None
            call = getattr(comm, name)
            try:
                result = call(None if out is not None else x, out=out, algorithm=algorithm, **options)
            except ValueError:
                continue  # not for this number of ranks
            done += 1
            x.set(np.full((4 * size, 5), -1, np.float32))
            if wanted is None or (name == "exscan" and comm.rank == 0):
                assert result is None or not result.get().any()
            else:
                np.testing.assert_array_equal(result.get().reshape(-1), wanted, err_msg=algorithm)
    assert done
