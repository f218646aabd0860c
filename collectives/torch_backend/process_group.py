# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""The process group that torch calls: each method checks its tensors, and makes one call of the communicator.

A blocking call (`opts.asyncOp` is False) runs on the caller's thread, by the communicator's quickest way; any other
runs on the engine's progress thread and returns a Work. `opts.timeout` is how long nothing may move. Names and
signatures are those of torch 2.13; the older names are the same functions.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from collectives.communicator import Communicator
from collectives.torch_backend.errors import BackendError, raise_as_torch, torch_errors
from collectives.torch_backend.layout import Finish, check_dense, gathered_into, joined, writable
from collectives.torch_backend.messages import Messages
from collectives.torch_backend.sparse import sum_sparse
from collectives.torch_backend.work import DONE, Completer, Work
from transports.errors import CollectiveError

__all__ = ["ProcessGroup"]

_UNSET = dist.AllreduceOptions().timeout
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


class ProcessGroup(dist.ProcessGroup):
    """One rank's part of a group. `communicator` is what it runs on, for whatever torch has no word for."""

    _events_of = "treering"  # what events in a profile begin with

    def __init__(self, rank: int, size: int, communicator: Communicator, store: Any) -> None:
        super().__init__(rank, size)
        self.communicator = communicator
        self._store = store
        self._completer = Completer(f"treering-futures-{rank}")
        self._messages = Messages(communicator)
        self._events: deque[Any] = deque(maxlen=1024)
        self._name = self._desc = "undefined"
        self._monitored = self._sequence = 0
        self._coalesced: list[Any] | None = None
        self._closing = threading.Lock()
        self._closed = False

    # ---------------------------------------------------------------- what it is called

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "treering"

    name = getBackendName

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._desc = desc

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._desc

    def get_group_store(self) -> Any:
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _set_sequence_number_for_group(self) -> None:
        pass

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def set_timeout(self, timeout: timedelta) -> None:
        """How long nothing may move, for calls that do not say."""
        self.communicator.timeout_s = timeout.total_seconds()

    def __repr__(self) -> str:
        return f"<treering process group {self._name}: {self.communicator!r}>"

    # ---------------------------------------------------------------- one call

    def _run(
        self, call: str, opts: Any, x: Any, out: Any, outputs: Sequence[torch.Tensor], finish: Finish = None,
        **arguments: Any,
    ) -> Any:  # fmt: skip
        self._sequence += 1
        comm = self.communicator
        if opts is not None and opts.timeout != _UNSET:
            arguments["timeout_s"] = max(opts.timeout.total_seconds(), 1e-3)
        with torch_errors():
            if opts is not None and not opts.asyncOp:
                getattr(comm, call)(x, out=out, **arguments)
                if finish is not None:
                    finish()
                return DONE
            pending = getattr(comm, f"{call}_async")(x, out=out, **arguments)
        return Work(pending, outputs, self._completer, finish)

    def _op(self, op: Any, x: torch.Tensor) -> tuple[str, torch.Tensor]:
        """The communicator's word for an operation, and the tensor to combine with it."""
        number = hash(op)
        word = _OPS.get(number)
        if word is not None:
            return word, x
        if number == _PREMUL_SUM:
            return "sum", (x * op.factor).to(x.dtype)
        raise ValueError(f"treering has no {op}")

    # ---------------------------------------------------------------- reductions

    def allreduce(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Any:
        opts = opts or dist.AllreduceOptions()
        if len(tensors) != 1:
            raise ValueError(f"all_reduce takes one tensor, not {len(tensors)}")
        tensor = tensors[0]
        word = _OPS.get(hash(opts.reduceOp))
        plain = tensor.layout == torch.strided and tensor.is_contiguous() and not torch.autograd._profiler_enabled()
        if plain and word is not None and not opts.asyncOp and opts.timeout == _UNSET:  # the quickest way
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
        op, x = self._op(opts.reduceOp, target)
        return self._run("all_reduce", opts, x, target, [tensor], finish, op=op)

    def _all_reduce_sparse(self, tensor: torch.Tensor, word: str | None, opts: Any) -> Any:
        if word != "sum" or tensor.layout != torch.sparse_coo or tensor.device.type != "cpu":
            raise TypeError("all_reduce of sparse tensors sums COO tensors in CPU memory, nothing else")
        self._sequence += 1
        with torch_errors():
            sum_sparse(self.communicator, tensor)
        return DONE if not opts.asyncOp else _ended(tensor)

    def allreduce_coalesced(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Any:
        opts = opts or dist.AllreduceCoalescedOptions()
        check_dense("all_reduce_coalesced", tensors)
        targets, finishes = _several(tensors, keep=True)
        pairs = [self._op(opts.reduceOp, target) for target in targets]
        xs = [x for _, x in pairs]
        call = lambda: self._run("all_reduce", opts, xs, targets, tensors, finishes, op=pairs[0][0])  # noqa: E731
        return self._profiled("all_reduce", tensors, call, opts)

    def reduce(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        [tensor] = tensors
        check_dense("reduce", tensors)
        target, finish = writable(tensor)
        op, x = self._op(opts.reduceOp, target)
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
        op, x = self._op(opts.reduceOp, joined(parts))
        sizes = [t.numel() for t in parts]
        even = {"sizes": sizes} if len(set(sizes)) > 1 else {}
        call = lambda: self._run("reduce_scatter", opts, x, target.view(-1), [output], finish, op=op, **even)  # noqa: E731
        return self._profiled("reduce_scatter", [output], call, opts)

    def reduce_scatter_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any = None) -> Any:
        opts = opts or dist.ReduceScatterOptions()
        check_dense("reduce_scatter_single", [output, x])
        self._check_sizes("reduce_scatter_single", x, output)
        target, finish = writable(output, keep=False)
        op, source = self._op(opts.reduceOp, x)
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
        targets, finish = _several(outputs, keep=False)
        pairs = [self._op(opts.reduceOp, x) for x in inputs]
        xs = [x.reshape(-1) for _, x in pairs]
        return self._run("reduce_scatter", opts, xs, [t.view(-1) for t in targets], outputs, finish, op=pairs[0][0])

    # ---------------------------------------------------------------- moves

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
        targets, finish = _several(outputs, keep=False)
        xs = [x.reshape(-1) for x in inputs]
        return self._run("all_gather", opts, xs, [t.view(-1) for t in targets], outputs, finish)

    def allgather_coalesced(
        self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Any:
        opts = opts or dist.AllgatherOptions()
        lists = [[row[j] for row in outputs] for j in range(len(inputs))]  # torch has them by rank, then by tensor
        pairs = [gathered_into(parts) for parts in lists]
        finishes = [finish for _, finish in pairs if finish is not None]
        flat = [t for parts in lists for t in parts]
        xs = [x.reshape(-1) for x in inputs]
        call = lambda: self._run(  # noqa: E731
            "all_gather", opts, xs, [t for t, _ in pairs], flat, lambda: _each(finishes)
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

    def barrier(self, opts: Any = None) -> Any:
        self._sequence += 1
        arguments: dict[str, Any] = {}
        if opts is not None and opts.timeout != _UNSET:
            arguments["timeout_s"] = opts.timeout.total_seconds()
        with torch_errors():
            if opts is not None and not opts.asyncOp:
                self.communicator.barrier(**arguments)
                return DONE
            return Work(self.communicator.barrier_async(**arguments), [], self._completer)

    # ---------------------------------------------------------------- messages

    def send(self, tensors: Sequence[torch.Tensor], peer: int, tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("send", tensors)
        with torch_errors():
            return self._profiled("send", tensors, lambda: self._message(True, tensor, peer, tag))

    def recv(self, tensors: Sequence[torch.Tensor], peer: int, tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("recv", tensors)
        with torch_errors():
            return self._profiled("recv", tensors, lambda: self._message(False, tensor, peer, tag))

    def recv_anysource(self, tensors: Sequence[torch.Tensor], tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("recv", tensors)
        with torch_errors():
            return self._profiled("recvAnySource", tensors, lambda: self._message(False, tensor, -1, tag))

    def _message(self, sends: bool, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        return self._messages.post(sends, tensor, peer, tag, self.communicator.timeout_s)

    # ---------------------------------------------------------------- coalescing

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> Any:
        self._coalesced = None
        return DONE

    # ---------------------------------------------------------------- checks

    def _check_parts(self, call: str, parts: Sequence[torch.Tensor], mine: torch.Tensor) -> None:
        size, rank = self.communicator.size, self.communicator.rank
        if len(parts) != size:
            raise ValueError(f"{call} of {size} ranks takes a list of {size} tensors, not {len(parts)}")
        if parts[rank].numel() != mine.numel():
            raise ValueError(
                f"{call}: tensor {rank} of the list has {parts[rank].numel()} elements, this rank's own {mine.numel()}"
            )

    def _check_sizes(self, call: str, whole: torch.Tensor, part: torch.Tensor) -> None:
        if whole.numel() != part.numel() * self.communicator.size:
            raise ValueError(
                f"{call} of {self.communicator.size} ranks: {whole.numel()} elements are not "
                f"{self.communicator.size} times {part.numel()}"
            )

    def _profiled(self, call: str, tensors: Sequence[torch.Tensor], make: Callable[[], Any], opts: Any = None) -> Any:
        """Makes a call; while torch's profiler runs, as an event from its begin to its end on the engine's thread."""
        if not torch.autograd._profiler_enabled():
            return make()
        blocks = False
        if opts is not None and not opts.asyncOp:
            blocks = opts.asyncOp = True
        event = torch._C._profiler._RecordFunctionFast(f"{self._events_of}:{call}", list(tensors))
        event.__enter__()
        self._events.append(event)  # one that is gone before the profile is read is taken to have ended on its thread
        work = make()
        work.record(event)
        if not blocks:
            return work
        work.wait()
        return DONE

    # ---------------------------------------------------------------- the end

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """A barrier on which rank 0 names the ranks that do not come in time. It goes through the group's store."""
        rank, size = self.communicator.rank, self.communicator.size
        self._monitored += 1
        prefix = f"treering-monitored/{self._monitored}"
        limit_s = self.communicator.timeout_s if timeout is None else timeout.total_seconds()
        if rank:
            self._store.set(f"{prefix}/{rank}", "here")
            text = self._hear(f"{prefix}/verdict", limit_s * 1.5 + 1)
            if text != "ok":
                raise BackendError(
                    f"Rank {rank} successfully reached monitoredBarrier, but received errors while waiting for "
                    f"send/recv from rank 0. Please check rank 0 logs for faulty rank. ({text})"
                )
            return
        deadline = time.monotonic() + limit_s
        if limit_s <= 0:
            self._store.set(f"{prefix}/verdict", "Rank 0 timed out")
            raise BackendError("Rank 0 timed out in monitoredBarrier: its timeout leaves no time to wait")
        late = [r for r in range(1, size) if self._hear(f"{prefix}/{r}", deadline - time.monotonic()) is None]
        if late and not wait_all_ranks:
            late = late[:1]
        names = ", ".join(map(str, late))
        text = f"Rank{'s' if len(late) > 1 else ''} {names} failed to pass monitoredBarrier in {limit_s * 1e3:.0f} ms"
        self._store.set(f"{prefix}/verdict", text if late else "ok")
        if late:
            raise BackendError(text)

    def _hear(self, key: str, limit_s: float) -> str | None:
        deadline, pause_s = time.monotonic() + limit_s, 0.0005
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return None
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.02)
        return self._store.get(key).decode()

    def shutdown(self) -> None:
        """Says goodbye and gives everything back; destroy_process_group calls it. Idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._messages.close()
        self.communicator.close()
        self._completer.close()

    abort = shutdown

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.shutdown()

    # the names of torch before 2.13
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


def _each(finishes: Sequence[Callable[[], None]]) -> None:
    for finish in finishes:
        finish()


def _several(tensors: Sequence[torch.Tensor], *, keep: bool) -> tuple[list[torch.Tensor], Callable[[], None]]:
    pairs = [writable(tensor, keep=keep) for tensor in tensors]
    finishes = [finish for _, finish in pairs if finish is not None]

    return [target for target, _ in pairs], lambda: _each(finishes)


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


class _Ended:
    """A call that has ended already, for a Work."""

    def wait(self, timeout_s: float | None = None) -> None:
        return None

    def done(self) -> bool:
        return True


def _ended(tensor: torch.Tensor) -> Work:
    return Work(_Ended(), [tensor], Completer("treering-ended", once=True))
