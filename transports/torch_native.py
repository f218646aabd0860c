"""torch.distributed's own collectives on byte ranges: what `algorithm="native"` means on the `torch` transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from transports.program import DTYPE_NAMES, OP_NAMES, Native, Place, Program
from transports.torch_layer import TORCH_TYPES, CudaLayer, GlooLayer, tensor_at

__all__ = ["NATIVES", "NativeCall", "refusal"]

NATIVES = frozenset({
    "all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter", "all_to_all", "barrier",
})  # fmt: skip
_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter"})
_EVEN = frozenset({"reduce_scatter", "all_gather", "gather", "scatter"})
_TYPES = frozenset({"float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64"})
_OPS = {"sum": "SUM", "prod": "PRODUCT", "min": "MIN", "max": "MAX"}


def refusal(native: Native) -> str:
    """Why torch.distributed has no such call, on Gloo and NCCL alike; empty when it has."""
    name, dtype, op = native.collective, DTYPE_NAMES[native.dtype], OP_NAMES[native.op]
    if name not in NATIVES:
        return f"torch.distributed has no {name} of its own"
    if name in _EVEN and len(set(native.blocks)) > 1:
        return f"the process groups of torch.distributed have no uneven {name}"
    if name in _REDUCING and dtype not in _TYPES:
        return f"torch.distributed has no arithmetic for {dtype} on Gloo and on NCCL"
    if name in _REDUCING and op not in _OPS:
        return f"torch.distributed has no {op!r} on NCCL"
    return ""


class NativeCall:
    """A program whose work is that of a process group."""

    def __init__(self, torch: Any, program: Program, rank: int, size: int) -> None:
        self.torch, self.program, self.rank, self.size = torch, program, rank, size

    def run(self, layer: GlooLayer | CudaLayer, addresses: Sequence[int]) -> None:
        """Makes one call for each array. On Gloo it returns when they have ended, on NCCL they are on the stream."""
        for native in self.program.native:
            _Array(self, layer, native, addresses).run()


class _Array:
    """One array of a call. `input` and `output` are its elements, None where this rank gives or gets nothing."""

    def __init__(
        self, call: NativeCall, layer: GlooLayer | CudaLayer, native: Native, addresses: Sequence[int]
    ) -> None:
        self.torch, self.native, self.layer = call.torch, native, layer
        self.group, self.rank, self.size, self.divisor = layer.group, call.rank, call.size, call.program.divisor
        self.addresses = addresses
        gives, gets = native.elements(self.rank, self.size)
        self.input, self.output = self._elements(native.input, gives), self._elements(native.output, gets)

    def run(self) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": self._all_reduce, "reduce": self._reduce, "reduce_scatter": self._reduce_scatter,
            "all_gather": self._all_gather, "broadcast": self._broadcast, "gather": self._gather,
            "scatter": self._scatter, "all_to_all": self._all_to_all, "barrier": self._barrier,
        }  # fmt: skip
        work = calls[self.native.collective]()
        if self.layer.device.kind == "cpu":
            work.wait(timedelta(seconds=self.layer.timeout_s))
        else:
            work.wait()  # the stream waits, not the host; a time limit would make the host wait
        if self.native.mean and self.output is not None:
            at, nbytes = self.output.data_ptr(), self.output.numel() * self.native.item_bytes
            self.layer.divide(self.native.dtype, at, at, nbytes, self.divisor)

    def _all_reduce(self) -> Any:
        return self.group.allreduce([self._in_place()], self._op())

    def _reduce(self) -> Any:
        mine = self._in_place() if self.output is not None else self.input.clone()  # Gloo uses it as scratch
        return self.group.reduce(mine, self.native.root, self._op())

    def _reduce_scatter(self) -> Any:
        options = self._distributed().ReduceScatterOptions()
        options.reduceOp = self._op()
        return self.group._reduce_scatter_base(self.output, self._apart(), options)

    def _all_gather(self) -> Any:
        return self.group._allgather_base(self.output, self._apart())

    def _broadcast(self) -> Any:
        return self.group.broadcast(self._in_place(), self.native.root)

    def _gather(self) -> Any:
        to = [] if self.output is None else [list(self.output.chunk(self.size))]
        options = self._distributed().GatherOptions()
        options.rootRank = self.native.root
        return self.group.gather(to, [self._apart()], options)

    def _scatter(self) -> Any:
        of = [] if self.input is None else [list(self._apart().chunk(self.size))]
        options = self._distributed().ScatterOptions()
        options.rootRank = self.native.root
        return self.group.scatter([self.output], of, options)

    def _all_to_all(self) -> Any:
        unit = self.input.numel() // max(sum(self.native.blocks[: self.size]), 1) or 1
        counts = [n * unit for n in self.native.blocks]
        return self.group.alltoall_base(self.output, self._apart(), counts[self.size :], counts[: self.size])

    def _barrier(self) -> Any:
        return self.group.barrier()

    def _in_place(self) -> Any:
        """The result's memory, with what this rank gives in it."""
        if self.output is None:
            return self.input
        if self.input is not None and self.input.data_ptr() != self.output.data_ptr():
            self.output.copy_(self._apart())
        return self.output

    def _apart(self) -> Any:
        """What this rank gives; a copy where the result lies over it."""
        if self.input is None or self.output is None:
            return self.input
        (a, a_end), (b, b_end) = _span(self.input), _span(self.output)
        return self.input.clone() if a < b_end and b < a_end else self.input

    def _op(self) -> Any:
        return getattr(self._distributed().ReduceOp, _OPS[OP_NAMES[self.native.op]])

    def _distributed(self) -> Any:
        return self.torch.distributed

    def _elements(self, place: Place | None, elements: int) -> Any:
        if place is None:
            return None
        nbytes = elements * self.native.item_bytes
        moves = self.native.collective not in _REDUCING
        kind = self.torch.uint8 if moves else getattr(self.torch, TORCH_TYPES[self.native.dtype])
        at = self.addresses[place.buffer] + place.offset_bytes
        return tensor_at(self.torch, self.layer.device, at, nbytes).view(kind)


def _span(tensor: Any) -> tuple[int, int]:
    begin = int(tensor.data_ptr())
    return begin, begin + tensor.numel() * tensor.element_size()
