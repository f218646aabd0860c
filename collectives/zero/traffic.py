# pyright: basic, reportMissingImports=false
"""What training moves, as it was counted: bytes on the wire, and time that was waited for them."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

__all__ = ["Traffic"]


class Traffic:
    """Counters of one optimizer. Bytes are those of the communicator, so of all that is sent with it."""

    def __init__(self, comm: Any) -> None:
        self._comm, self._headers, self._start = comm, 0, 0
        self.waited_s = 0.0

    def begin(self) -> None:
        """Counts from here on."""
        self._start = self._sent()

    @contextmanager
    def header(self) -> Generator[None]:
        """What is sent within, by blocking calls while none runs in the background, is no gradient or parameter."""
        before = self._sent()
        with self.exposed():
            yield
        self._headers += self._sent() - before

    def wait(self, work: Any) -> None:
        """Waits for a call in the background."""
        with self.exposed():
            work.wait()

    @contextmanager
    def exposed(self) -> Generator[None]:
        """The time within is time in which this rank stands still for others."""
        began = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - began

    def sent_bytes(self) -> dict[str, int]:
        """By this rank: payload (gradients and parameters) and headers (agreement and norms)."""
        return {"payload": self._sent() - self._start - self._headers, "headers": self._headers}

    @contextmanager
    def measure(self) -> Generator[dict[str, float]]:
        """Fills in a dict at the end of the block; see ZeroOptimizer.measure."""
        found: dict[str, float] = {}
        sent, waited, began = self.sent_bytes(), self.waited_s, time.perf_counter()
        with self._comm.trace() as calls:
            yield found
        busy = sum(call.ended_s - call.began_s for call in calls)
        exposed = min(self.waited_s - waited, busy)
        found.update(
            wall_s=time.perf_counter() - began, communication_s=busy, exposed_s=exposed, hidden_s=busy - exposed,
            sent_bytes=self.sent_bytes()["payload"] - sent["payload"], calls=len(calls),
        )  # fmt: skip

    def _sent(self) -> int:
        return int(getattr(self._comm._transport, "bytes_sent", 0))
