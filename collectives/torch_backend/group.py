# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""One call of a process group: what all of its methods (reductions.py, moves.py) have in common.

A blocking call (`opts.asyncOp` is False) runs on the caller's thread, by the communicator's quickest way; any other
runs on the engine's progress thread and returns a Work. `opts.timeout` is how long nothing may move.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from collectives.communicator import Communicator
from collectives.torch_backend.errors import torch_errors
from collectives.torch_backend.layout import Finish
from collectives.torch_backend.work import DONE, Completer, Work

__all__ = ["UNSET", "Group"]

UNSET: timedelta = dist.AllreduceOptions().timeout


class Group(dist.ProcessGroup):
    """What makes calls of a communicator."""

    _events_of = "treering"  # what events in a profile begin with

    def __init__(self, rank: int, size: int, communicator: Communicator) -> None:
        super().__init__(rank, size)
        self.communicator = communicator
        self._completer = Completer(communicator, f"treering-futures-{rank}")
        self._events: deque[Any] = deque(maxlen=1024)
        self._sequence = 0

    def _run(
        self, call: str, opts: Any, x: Any, out: Any, outputs: Sequence[torch.Tensor], finish: Finish = None,
        **arguments: Any,
    ) -> Any:  # fmt: skip
        return self._make(call, opts, outputs, finish, x, out=out, **arguments)

    def _make(
        self, call: str, opts: Any, outputs: Sequence[torch.Tensor], finish: Finish, *operands: Any, **arguments: Any
    ) -> Any:
        """Makes a call of the communicator with these operands and arguments."""
        self._sequence += 1
        comm = self.communicator
        if opts is not None and opts.timeout != UNSET:
            arguments["timeout_s"] = max(opts.timeout.total_seconds(), 1e-3)
        with torch_errors():
            if opts is not None and not opts.asyncOp:
                getattr(comm, call)(*operands, **arguments)
                if finish is not None:
                    finish()
                return DONE
            pending = getattr(comm, f"{call}_async")(*operands, **arguments)
        return Work(pending, outputs, self._completer, finish)

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
