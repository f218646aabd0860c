# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""What an asynchronous call returns: torch's Work and Future, over a call that a thread of the engine works on."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, Protocol

import torch
import torch.distributed as dist

from collectives.communicator import Communicator
from collectives.torch_backend.errors import raise_as_torch
from transports.errors import CollectiveError, DeadlineExceeded

__all__ = ["DONE", "Completer", "Ended", "Pending", "Work"]


class Pending(Protocol):
    """A call in progress, as collectives.Work and messages know it."""

    def wait(self, timeout_s: float | None = None) -> Any:
        """Returns once the call has ended, or raises what it failed with; DeadlineExceeded after `timeout_s`."""
        ...

    def done(self) -> bool:
        """Whether the call has ended. Raises what it failed with."""
        ...


class Work(dist.Work):
    """One call in progress.

    pending    the call
    outputs    the tensors it writes, which are the value of the future
    finish     what remains to be done with the result, such as putting it where it belongs; whoever first learns that
               the call has ended does it, once
    completer  completes futures
    """

    def __init__(
        self,
        pending: Pending,
        outputs: Sequence[torch.Tensor],
        completer: Completer,
        finish: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._pending, self._outputs, self._completer = pending, list(outputs), completer
        self._finish = finish
        self._lock = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None
        self._future: Any = None
        self._recorded: threading.Event | None = None

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """True once the call has ended. Raises what it failed with; after a timeout that is not 0, the call goes on."""
        if not self._ended:
            limit_s = timeout.total_seconds() or None
            try:
                self._pending.wait(limit_s)
            except DeadlineExceeded as error:
                if limit_s is not None and not self._has_ended():
                    raise_as_torch(error)
                self._settle(error)
            except Exception as error:
                self._settle(error)
            else:
                self._settle(None)
        if self._recorded is not None and not self._completer.works_here():
            self._recorded.wait()
        if self._error is not None:
            raise self._error
        return True

    def record(self, event: Any) -> None:
        """Ends an event of torch's profiler, which has begun, when the call has ended; `wait` waits for that."""
        self._recorded = threading.Event()
        self._completer.add(self, _EventEnd(event, self._recorded))

    def is_completed(self) -> bool:
        """Whether the call has ended, well or not."""
        return self._has_ended()

    def is_success(self) -> bool:
        """Whether the call has ended well."""
        return self._has_ended() and self._error is None

    def exception(self) -> BaseException | None:
        """What the call failed with, if it did."""
        return self._error if self._has_ended() else None

    def result(self) -> list[torch.Tensor]:
        """The tensors that the call writes."""
        return self._outputs

    def synchronize(self) -> None:
        """The same as wait: there are no streams on a CPU."""
        self.wait()

    def get_future(self) -> Any:
        """A torch.futures.Future of the output tensors, completed in the background."""
        with self._lock:
            if self._future is None:
                ended: Any = torch.futures.Future()  # pyright: ignore[reportUnknownVariableType]
                # An exception raised in `then` is one for C++ as well, which set_exception's is not.
                self._future = ended.then(lambda _: self._value())
                self._completer.add(self, ended)
            return self._future

    def _value(self) -> list[torch.Tensor]:
        if self._error is not None:
            raise self._error
        return self._outputs

    def _has_ended(self) -> bool:
        if not self._ended:
            try:
                if not self._pending.done():
                    return False
            except CollectiveError as error:
                self._settle(error)
            else:
                self._settle(None)
        return True

    def _settle(self, error: Exception | None) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                if isinstance(error, CollectiveError):
                    raise_as_torch(error)
                if error is not None:
                    raise error
                if self._finish is not None:
                    self._finish()
            except Exception as failure:
                self._error = failure
            self._finish = None
            self._ended = True


class _EventEnd:
    """What a Completer takes for a future: ends an event of the profiler on its thread, which is not the caller's."""

    def __init__(self, event: Any, recorded: threading.Event) -> None:
        self._event, self._recorded = event, recorded

    def set_result(self, _: Any) -> None:
        self._event.__exit__(None, None, None)
        self._recorded.set()


class Ended(dist.Work):
    """A call that ended well before it returned."""

    def __init__(self, outputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._outputs = list(outputs)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> list[torch.Tensor]:
        return self._outputs

    def synchronize(self) -> None:
        pass

    def get_future(self) -> Any:
        future: Any = torch.futures.Future()  # pyright: ignore[reportUnknownVariableType]
        future.set_result(self._outputs)
        return future


DONE = Ended([])
"""What blocking calls return: torch drops it, and making one costs as much as moving a kilobyte."""


class Completer:
    """Completes the futures of a communicator's calls, on a thread of Python's.

    in_order    the calls end in the order in which they are added: one thread does for all. Otherwise each has its own.

    A thread that needs the GIL while Python ends is ended itself, and in the middle of C++ that aborts the process. So
    `close` ends the threads, at the latest at Python's exit.
    """

    def __init__(self, communicator: Communicator, name: str, *, in_order: bool = True) -> None:
        self._close_communicator = weakref.WeakMethod(communicator.close)
        self._name, self._in_order = name, in_order
        self._queue: SimpleQueue[tuple[Work, Any] | None] = SimpleQueue()
        weakref.finalize(communicator, self._queue.put, None)
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        _open.add(self)

    def add(self, work: Work, future: Any) -> None:
        """Completes `future` once `work` has ended."""
        with self._lock:
            if self._in_order:
                self._queue.put((work, future))
                if not self._threads:
                    self._start(self._complete_all)
            else:
                self._start(self._complete, work, future)

    def works_here(self) -> bool:
        """Whether the caller is a thread of this completer."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """Closes the communicator, which ends whatever is under way, and then the threads. Idempotent."""
        if close := self._close_communicator():
            close()
        _open.discard(self)
        self._queue.put(None)
        with self._lock:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join()
        with self._lock:
            self._threads = self._threads - threads

    def _start(self, body: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=body, args=arguments, name=self._name, daemon=True)
        self._threads = {other for other in self._threads if other.is_alive()} | {thread}  # before it asks works_here
        thread.start()

    def _complete_all(self) -> None:
        while (item := self._queue.get()) is not None:
            self._complete(*item)
            del item  # nothing of a call that has ended is held until the next one

    def _complete(self, work: Work, future: Any) -> None:
        with contextlib.suppress(Exception):  # the future tells it
            work.wait()
        future.set_result(None)


_open: weakref.WeakSet[Completer] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for completer in list(_open):
        completer.close()
