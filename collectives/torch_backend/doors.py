# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""Two ways into torch that need no backend: FSDP2's own communication objects, and a DDP communication hook.

    model.set_custom_all_gather(AllGather(comm))              on a module after fully_shard
    model.set_custom_reduce_scatter(ReduceScatter(comm))
    ddp.register_comm_hook(comm, ddp_hook)                     on a DistributedDataParallel

(Annotations are objects here, not text: DDP looks at those of a hook.)

`comm` is a collectives.Communicator of the same ranks, in the same order, as the mesh or the process group.
"""

import weakref
from typing import Any

import torch
import torch.distributed as dist

from collectives.communicator import Communicator
from collectives.torch_backend.errors import torch_errors
from collectives.torch_backend.reductions import operation
from collectives.torch_backend.work import DONE, Completer, Work

__all__ = ["AllGather", "ReduceScatter", "ddp_hook"]


class _Door:
    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._completer = Completer(comm, "treering-futures")

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A buffer for one collective."""
        return torch.empty(size, dtype=dtype, device=device)


class AllGather(_Door):
    """FSDP2's all-gather, by a communicator."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        x, out = input_tensor.view(-1), output_tensor.view(-1)
        with torch_errors():
            if async_op:
                return Work(self._comm.all_gather_async(x, out=out), [output_tensor], self._completer)
            self._comm.all_gather(x, out=out)
        return DONE


class ReduceScatter(_Door):
    """FSDP2's reduce-scatter, by a communicator."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        x, out = input_tensor.view(-1), output_tensor.view(-1)
        word, x = operation(op, x)
        if word not in ("sum", "mean"):
            raise ValueError(f"a reduce-scatter of gradients sums or averages, not {op}")
        with torch_errors():
            if async_op:
                return Work(self._comm.reduce_scatter_async(x, op=word, out=out), [output_tensor], self._completer)
            self._comm.reduce_scatter(x, op=word, out=out)
        return DONE


_completers: weakref.WeakKeyDictionary[Communicator, Completer] = weakref.WeakKeyDictionary()


def ddp_hook(comm: Communicator, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Averages a bucket of gradients in the background; for `ddp.register_comm_hook(comm, ddp_hook)`."""
    gradients = bucket.buffer()
    with torch_errors():
        pending = comm.all_reduce_async(gradients, op="mean", out=gradients)
    completer = _completers.get(comm)
    if completer is None:
        completer = _completers[comm] = Completer(comm, "treering-futures")
    return Work(pending, [gradients], completer).get_future().then(lambda done: done.value()[0])
