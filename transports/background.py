"""Work that happens in the background, piece after piece, on one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Background", "Job"]


class Background:
    """A thread of this name that does what `start` is given, in order; it begins with the first of it, and `close`
    ends it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Job | None = None

    @property
    def busy(self) -> bool:
        """Whether something that was started has not ended."""
        return self._last is not None and not self._last.has_ended()

    def start(self, work: Callable[[], None]) -> Job:
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        self._last = job = Job(work)
        self._jobs.put(job)
        return job

    def settle(self) -> None:
        """Returns once all that was started has ended, well or not."""
        if self._last is not None:
            self._last.ended.wait()
            self._last = None

    def close(self) -> None:
        """Waits for what was started, and ends the thread."""
        self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


class Job:
    """Something that was started; see `Started` in transports/base.py."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def do(self) -> None:
        """Does it, on the thread of the background."""
        assert self._work is not None
        try:
            self._work()
        except BaseException as error:
            self.error = error
        self._work = None  # which holds arrays
        self.ended.set()

    def wait(self, wait_s: float) -> bool:
        if not self.ended.wait(None if wait_s == float("inf") else wait_s):
            return False
        if self.error is not None:
            raise self.error
        return True

    def has_ended(self) -> bool:
        return self.ended.is_set()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.do()
        del job  # and with it the arrays of a call that ended
