"""Gloo through torch.distributed, the way a PyTorch program uses it on CPU tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import Call, Settings

OPS = {"sum": "SUM", "prod": "PRODUCT", "min": "MIN", "max": "MAX", "and": "BAND", "or": "BOR", "xor": "BXOR"}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "uint8")
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter",
               "all_to_all", "barrier")  # fmt: skip


class GlooPeer:
    def __init__(self, settings: Settings) -> None:
        # Imported by name because torch is optional, and its distributed package is not typed.
        self.torch: Any = importlib.import_module("torch")
        self.dist: Any = importlib.import_module("torch.distributed")
        self.torch.set_num_threads(1)  # as torchrun does: the ranks share the cores
        self.settings = settings
        self.rank = settings.rank
        self.dist.init_process_group(
            "gloo", init_method=f"file://{settings.store}", rank=settings.rank, world_size=settings.size
        )

    def barrier(self) -> None:
        self.dist.barrier()

    def operation(self, elems: int) -> Call:
        collective, dtype, op_name, root, rank, size, _ = self.settings
        dist = self.dist
        full = self.torch.empty(elems, dtype=getattr(self.torch, dtype)).zero_()
        each = elems // size
        blocks = [full[b * each : (b + 1) * each] for b in range(size)]
        mine = blocks[rank]
        op = getattr(dist.ReduceOp, OPS.get(op_name, "SUM"))
        # torch 2.13 renamed two functions and deprecates the old names.
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: dist.all_reduce(full, op=op),
            "reduce_scatter": lambda: reduce_scatter(mine, full, op=op),
            "all_gather": lambda: all_gather(full, mine),
            "broadcast": lambda: dist.broadcast(full, src=root),
            "reduce": lambda: dist.reduce(full, dst=root, op=op),
            "gather": lambda: dist.gather(mine, blocks if rank == root else None, dst=root),
            "scatter": lambda: dist.scatter(mine, blocks if rank == root else None, src=root),
            "barrier": dist.barrier,
        }
        if collective == "all_to_all":  # has no form in place
            arrived = self.torch.zeros_like(full)
            return lambda: dist.all_to_all_single(arrived, full)
        return calls[collective]

    def close(self) -> None:
        self.dist.destroy_process_group()


def join(settings: Settings) -> GlooPeer:
    return GlooPeer(settings)
