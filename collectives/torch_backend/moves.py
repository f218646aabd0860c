# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""The calls that move tensors as they are: broadcast, all_gather, gather, scatter, all_to_all, in all their forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from collectives.torch_backend.group import Group
from collectives.torch_backend.layout import all_writable, check_dense, gathered_into, joined, together, writable

__all__ = ["Moves"]


class Moves(Group):
    """Names and signatures are torch's."""

    def broadcast(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        [tensor] = tensors
        check_dense("broadcast", tensors)
        target, finish = writable(tensor)
        call = lambda: self._run("broadcast", opts, target, target, [tensor], finish, root=opts.rootRank)  # noqa: E731
        return self._profiled("broadcast", tensors, call, opts)

    def allgather(
        self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Any:
        opts = opts or dist.AllgatherOptions()
        [parts], [x] = outputs, inputs
        check_dense("all_gather", [x, *parts])
        self._check_parts("all_gather", parts, x)
        target, finish = gathered_into(parts)
        sizes = [t.numel() for t in parts]
        even = {"sizes": sizes} if len(set(sizes)) > 1 else {}
        call = lambda: self._run("all_gather", opts, x.reshape(-1), target, parts, finish, **even)  # noqa: E731
        return self._profiled("all_gather", inputs, call, opts)

    def all_gather_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any = None) -> Any:
        opts = opts or dist.AllgatherOptions()
        check_dense("all_gather_single", [output, x])
        self._check_sizes("all_gather_single", output, x)
        target, finish = writable(output, keep=False)
        call = lambda: self._run("all_gather", opts, x.reshape(-1), target.view(-1), [output], finish)  # noqa: E731
        return self._profiled("_all_gather_base", [x], call, opts)

    def all_gather_single_coalesced(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Any:
        opts = opts or dist.AllgatherOptions()
        for output, x in zip(outputs, inputs, strict=True):
            check_dense("all_gather_single_coalesced", [output, x])
            self._check_sizes("all_gather_single_coalesced", output, x)
        targets, finish = all_writable(outputs, keep=False)
        xs = [x.reshape(-1) for x in inputs]
        return self._run("all_gather", opts, xs, [t.view(-1) for t in targets], outputs, finish)

    def allgather_coalesced(
        self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Any:
        opts = opts or dist.AllgatherOptions()
        lists = [[row[j] for row in outputs] for j in range(len(inputs))]  # torch has them by rank, then by tensor
        pairs = [gathered_into(parts) for parts in lists]
        flat = [t for parts in lists for t in parts]
        xs = [x.reshape(-1) for x in inputs]
        call = lambda: self._run(  # noqa: E731
            "all_gather", opts, xs, [t for t, _ in pairs], flat, together([finish for _, finish in pairs])
        )
        return self._profiled("all_gather", inputs, call, opts)

    def gather(self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor], opts: Any) -> Any:
        [x] = inputs
        target, finish, parts = None, None, []
        if opts.rootRank == self.communicator.rank:
            [parts] = outputs
            self._check_parts("gather", parts, x)
            check_dense("gather", [x, *parts])
            target, finish = gathered_into(parts)
        check_dense("gather", [x])
        call = lambda: self._run("gather", opts, x.reshape(-1), target, parts, finish, root=opts.rootRank)  # noqa: E731
        return self._profiled("gather", inputs, call, opts)

    def scatter(self, outputs: Sequence[torch.Tensor], inputs: Sequence[Sequence[torch.Tensor]], opts: Any) -> Any:
        [output] = outputs
        x = None
        if opts.rootRank == self.communicator.rank:
            [parts] = inputs
            self._check_parts("scatter", parts, output)
            check_dense("scatter", [output, *parts])
            x = joined(parts)
        check_dense("scatter", [output])
        target, finish = writable(output, keep=False)
        call = lambda: self._run("scatter", opts, x, target.view(-1), [output], finish, root=opts.rootRank)  # noqa: E731
        return self._profiled("scatter", outputs, call, opts)

    def all_to_all_single(
        self, output: torch.Tensor, x: torch.Tensor, output_splits: Sequence[int], input_splits: Sequence[int],
        opts: Any = None,
    ) -> Any:  # fmt: skip
        opts = opts or dist.AllToAllOptions()
        check_dense("all_to_all_single", [output, x])
        size = self.communicator.size
        sends, recvs = _splits("input", x, input_splits, size), _splits("output", output, output_splits, size)
        target, finish = writable(output, keep=False)
        call = lambda: self._run(  # noqa: E731
            "all_to_all", opts, x.reshape(-1), target.view(-1), [output], finish, send_sizes=sends, recv_sizes=recvs
        )
        return self._profiled("all_to_all", [x], call, opts)

    def alltoall(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], opts: Any = None) -> Any:
        opts = opts or dist.AllToAllOptions()
        check_dense("all_to_all", [*outputs, *inputs])
        size = self.communicator.size
        if len(outputs) != size or len(inputs) != size:
            raise ValueError(f"all_to_all of {size} ranks takes {size} tensors, not {len(inputs)} and {len(outputs)}")
        target, finish = gathered_into(outputs)
        sends, recvs = [t.numel() for t in inputs], [t.numel() for t in outputs]
        call = lambda: self._run(  # noqa: E731
            "all_to_all", opts, joined(inputs), target, outputs, finish, send_sizes=sends, recv_sizes=recvs
        )
        return self._profiled("all_to_all", inputs, call, opts)


def _splits(which: str, tensor: torch.Tensor, splits: Sequence[int], size: int) -> list[int]:
    """Elements of each part, from rows."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not splits:
        if rows % size:
            raise ValueError(f"all_to_all_single cannot split the {rows} rows of its {which} evenly over {size} ranks")
        splits = [rows // size] * size
    if len(splits) != size or min(splits) < 0 or sum(splits) != rows:
        raise ValueError(f"{which}_split_sizes={list(splits)} must be {size} sizes that add up to {rows} rows")
    row = tensor.numel() // rows if rows else 0
    return [n * row for n in splits]
