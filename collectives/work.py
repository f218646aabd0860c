"""A call in progress."""

from __future__ import annotations

import time
from typing import Any

from transports.base import Started
from transports.errors import DeadlineExceeded

__all__ = ["Work"]


class Work:
    """What an asynchronous call returns. The arrays of the call belong to it until `wait` has returned.

    Dropping a Work does not stop the call; the communicator keeps its arrays alive until it has ended.
    """

    def __init__(self, started: Started, result: Any, description: str) -> None:
        self._started, self._result, self._description = started, result, description
        self._ended = False

    def done(self) -> bool:
        """Whether the call has ended. Raises what it failed with."""
        self._ended = self._ended or self._started.wait(0.0)
        return self._ended

    def wait(self, timeout_s: float | None = None) -> Any:
        """The result, once the call has ended. Raises what it failed with.

        After `timeout_s` seconds it raises DeadlineExceeded; the call itself goes on, and may be waited for again.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ended:
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            self._ended = self._started.wait(max(left, 0.0))
            if not self._ended and left <= 0:
                raise DeadlineExceeded(f"{self._description} has not ended after {timeout_s} s; it goes on")
        return self._result

    def __repr__(self) -> str:
        return f"<Work of {self._description}, {'done' if self._ended else 'not known to be done'}>"
