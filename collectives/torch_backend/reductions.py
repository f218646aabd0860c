# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""The calls that combine tensors: all_reduce, reduce, reduce_scatter, and their coalesced forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from collectives.torch_backend.errors import raise_as_torch, torch_errors
from collectives.torch_backend.group import UNSET, Group
from collectives.torch_backend.layout import all_writable, check_dense, joined, writable
from collectives.torch_backend.sparse import sum_sparse
from collectives.torch_backend.work import DONE, Ended
from transports.errors import CollectiveError

__all__ = ["Reductions", "operation"]

# torch's operations by their hash, which is their number: comparing them costs more than a small call.
_OPS = {
    hash(dist.ReduceOp.SUM): "sum",
    hash(dist.ReduceOp.AVG): "mean",
    hash(dist.ReduceOp.PRODUCT): "prod",
    hash(dist.ReduceOp.MIN): "min",
    hash(dist.ReduceOp.MAX): "max",
    hash(dist.ReduceOp.BAND): "and",
    hash(dist.ReduceOp.BOR): "or",
    hash(dist.ReduceOp.BXOR): "xor",
}
_PREMUL_SUM = hash(dist.ReduceOp.PREMUL_SUM)


def operation(op: Any, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The communicator's word for an operation of torch's, and the tensor to combine with it."""
    number = hash(op)
    word = _OPS.get(number)
    if word is not None:
        return word, x
    if number == _PREMUL_SUM:
        return "sum", (x * op.factor).to(x.dtype)
    raise ValueError(f"treering has no {op}")


class Reductions(Group):
    """Names and signatures are torch's."""

    def allreduce(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Any:
        opts = opts or dist.AllreduceOptions()
        if len(tensors) != 1:
            raise ValueError(f"all_reduce takes one tensor, not {len(tensors)}")
        tensor = tensors[0]
        word = _OPS.get(hash(opts.reduceOp))
        plain = tensor.layout == torch.strided and tensor.is_contiguous() and not torch.autograd._profiler_enabled()
        if plain and word is not None and not opts.asyncOp and opts.timeout == UNSET:  # the quickest way
            self._sequence += 1
            try:
                self.communicator.all_reduce(tensor, op=word, out=tensor)
            except CollectiveError as error:
                raise_as_torch(error)
            return DONE
        if tensor.layout != torch.strided:
            return self._all_reduce_sparse(tensor, word, opts)
        return self._profiled("all_reduce", [tensor], lambda: self._all_reduce(tensor, opts), opts)

    def _all_reduce(self, tensor: torch.Tensor, opts: Any) -> Any:
        check_dense("all_reduce", [tensor])
        target, finish = writable(tensor)
        op, x = operation(opts.reduceOp, target)
        return self._run("all_reduce", opts, x, target, [tensor], finish, op=op)

    def _all_reduce_sparse(self, tensor: torch.Tensor, word: str | None, opts: Any) -> Any:
        if word != "sum" or tensor.layout != torch.sparse_coo or tensor.device.type != "cpu":
            raise TypeError("all_reduce of sparse tensors sums COO tensors in CPU memory, nothing else")
        self._sequence += 1
        with torch_errors():
            sum_sparse(self.communicator, tensor)
        return DONE if not opts.asyncOp else Ended([tensor])

    def allreduce_coalesced(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Any:
        opts = opts or dist.AllreduceCoalescedOptions()
        check_dense("all_reduce_coalesced", tensors)
        targets, finishes = all_writable(tensors, keep=True)
        pairs = [operation(opts.reduceOp, target) for target in targets]
        xs = [x for _, x in pairs]
        call = lambda: self._run("all_reduce", opts, xs, targets, tensors, finishes, op=pairs[0][0])  # noqa: E731
        return self._profiled("all_reduce", tensors, call, opts)

    def reduce(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        [tensor] = tensors
        check_dense("reduce", tensors)
        target, finish = writable(tensor)
        op, x = operation(opts.reduceOp, target)
        mine = opts.rootRank == self.communicator.rank
        out = target if mine else None
        call = lambda: self._run("reduce", opts, x, out, [tensor], finish if mine else None, op=op, root=opts.rootRank)  # noqa: E731
        return self._profiled("reduce", tensors, call, opts)

    def reduce_scatter(self, outputs: Sequence[torch.Tensor], inputs: Sequence[Any], opts: Any = None) -> Any:
        opts = opts or dist.ReduceScatterOptions()
        [output], [parts] = outputs, inputs
        check_dense("reduce_scatter", [output, *parts])
        self._check_parts("reduce_scatter", parts, output)
        target, finish = writable(output, keep=False)
        op, x = operation(opts.reduceOp, joined(parts))
        sizes = [t.numel() for t in parts]
        even = {"sizes": sizes} if len(set(sizes)) > 1 else {}
        call = lambda: self._run("reduce_scatter", opts, x, target.view(-1), [output], finish, op=op, **even)  # noqa: E731
        return self._profiled("reduce_scatter", [output], call, opts)

    def reduce_scatter_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any = None) -> Any:
        opts = opts or dist.ReduceScatterOptions()
        check_dense("reduce_scatter_single", [output, x])
        self._check_sizes("reduce_scatter_single", x, output)
        target, finish = writable(output, keep=False)
        op, source = operation(opts.reduceOp, x)
        flat = source.reshape(-1)
        call = lambda: self._run("reduce_scatter", opts, flat, target.view(-1), [output], finish, op=op)  # noqa: E731
        return self._profiled("_reduce_scatter_base", [x], call, opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Any:
        opts = opts or dist.ReduceScatterOptions()
        check_dense("reduce_scatter_single_coalesced", [*outputs, *inputs])
        for output, x in zip(outputs, inputs, strict=True):
            self._check_sizes("reduce_scatter_single_coalesced", x, output)
        targets, finish = all_writable(outputs, keep=False)
        pairs = [operation(opts.reduceOp, x) for x in inputs]
        xs = [x.reshape(-1) for _, x in pairs]
        return self._run("reduce_scatter", opts, xs, [t.view(-1) for t in targets], outputs, finish, op=pairs[0][0])
