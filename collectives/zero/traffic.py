# pyright: basic, reportMissingImports=false
"""What training moves, as it was counted: bytes on the wire, and time that was waited for them."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from collectives.zero.groups import Hierarchy

__all__ = ["Traffic"]


class Traffic:
    """Counters of one optimizer, over `comm` and the communicators of a hierarchy.

    Bytes are those of the communicators, so of all that is sent with them. `near` are the ranks of `comm` in this one's
    group; what goes to them stays within the group.
    """

    def __init__(self, comm: Any, near: Collection[int]) -> None:
        self._comms = [(comm, np.isin(np.arange(comm.size), [*near]))]
        self._headers = self._start = np.zeros(2, np.int64)
        self.waited_s = 0.0

    def count(self, hierarchy: Hierarchy) -> None:
        """Counts in what is sent within groups, and beyond."""
        for comm, near in ((hierarchy.within, True), (hierarchy.beyond, False)):
            self._comms.append((comm, np.full(comm.size, near)))

    def begin(self) -> None:
        """Counts from here on."""
        self._start = self._sent()

    @contextmanager
    def header(self) -> Generator[None]:
        """What is sent within, by blocking calls while none runs in the background, is no gradient or parameter."""
        before = self._sent()
        with self.exposed():
            yield
        self._headers = self._headers + self._sent() - before

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
        """By this rank: payload (gradients and parameters), and of it what went within the group, and beyond; besides,
        headers (agreement and norms)."""
        within, beyond = map(int, self._sent() - self._start - self._headers)
        headers = int(self._headers.sum())
        return {"payload": within + beyond, "headers": headers, "within": within, "beyond": beyond}

    @contextmanager
    def measure(self) -> Generator[dict[str, float]]:
        """Fills in a dict at the end of the block; see ZeroOptimizer.measure."""
        found: dict[str, float] = {}
        sent, waited, began = self.sent_bytes(), self.waited_s, time.perf_counter()
        with ExitStack() as traces:
            traced = [traces.enter_context(comm.trace()) for comm, _ in self._comms]
            yield found
        calls = [call for of_one in traced for call in of_one]
        busy = sum(call.ended_s - call.began_s for call in calls)
        exposed = min(self.waited_s - waited, busy)
        found.update(
            wall_s=time.perf_counter() - began, communication_s=busy, exposed_s=exposed, hidden_s=busy - exposed,
            sent_bytes=self.sent_bytes()["payload"] - sent["payload"], calls=len(calls),
        )  # fmt: skip

    def _sent(self) -> Any:
        """Bytes within the group and beyond it, so far."""
        total = np.zeros(2, np.int64)
        for comm, near in self._comms:
            to = np.array(getattr(comm._transport, "bytes_to", np.zeros(comm.size)), np.int64)
            total += (to[near].sum(), to[~near].sum())
        return total
