"""MPI through mpi4py's buffer calls; which MPI depends on the environment and the mpiexec that starts it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .worker import Call, Settings

OPS = {"sum": "SUM", "prod": "PROD", "min": "MIN", "max": "MAX", "and": "BAND", "or": "BOR", "xor": "BXOR"}
DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "complex64", "complex128")  # fmt: skip
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter",
               "all_to_all", "barrier")  # fmt: skip


class MpiPeer:
    def __init__(self, settings: Settings) -> None:
        self.mpi: Any = importlib.import_module("mpi4py.MPI")
        self.world: Any = self.mpi.COMM_WORLD
        self.settings = settings
        self.rank: int = self.world.Get_rank()
        if self.world.Get_size() != settings.size:
            raise RuntimeError(f"mpiexec started {self.world.Get_size()} ranks in one world, not {settings.size}")

    def barrier(self) -> None:
        self.world.Barrier()

    def operation(self, elems: int) -> Call:
        collective, dtype, op_name, root, _, size, _ = self.settings
        world, at_root, in_place = self.world, self.rank == root, self.mpi.IN_PLACE
        full = np.empty(elems, dtype)
        full.fill(0)  # np.zeros would leave all pages of a buffer that is only read on one page of zeros
        each = elems // size
        mine = full[self.rank * each : (self.rank + 1) * each]
        op = getattr(self.mpi, OPS.get(op_name, "SUM"))
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: world.Allreduce(in_place, full, op),
            "reduce_scatter": lambda: world.Reduce_scatter_block(in_place, full, op),
            "all_gather": lambda: world.Allgather(in_place, full),
            "broadcast": lambda: world.Bcast(full, root),
            "reduce": lambda: world.Reduce(in_place if at_root else full, full if at_root else None, op, root),
            "gather": lambda: world.Gather(in_place if at_root else mine, full if at_root else None, root),
            "scatter": lambda: world.Scatter(full if at_root else None, in_place if at_root else mine, root),
            "barrier": world.Barrier,
        }
        if collective == "all_to_all":  # ours and Gloo's have no form in place: the same work for all
            arrived = np.zeros_like(full)
            return lambda: world.Alltoall(full, arrived)
        return calls[collective]

    def close(self) -> None:
        self.mpi.Finalize()


def join(settings: Settings) -> MpiPeer:
    return MpiPeer(settings)
