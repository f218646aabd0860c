"""Calls that follow one another in the background: each begins once the one before it has ended.

[Note: the order of chained calls]  When a call ends differs from rank to rank, but the ranks must make the same calls
of a communicator in the same order. So the i-th calls of all chains are on a communicator where no chain has another,
and a chain does not begin its i-th call before the chain that was started before it has.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

__all__ = ["Chain", "Chains"]


class Chains:
    """Those that have not ended, in the order in which they were started."""

    def __init__(self) -> None:
        self._open: deque[Chain] = deque()

    def start(self, calls: Iterator[Any]) -> Chain:
        """`calls` yields one Work after the other, and is gone on with when that has ended."""
        chain = Chain(self, calls)
        self._open.append(chain)
        return chain

    def advance(self) -> None:
        """Begins all calls that may begin; waits for none. See [Note: the order of chained calls]."""
        ahead = math.inf
        for chain in self._open:
            while not chain.ended and chain.begun < ahead and chain.work.done():
                chain.go_on()
            ahead = math.inf if chain.ended else chain.begun
        self._open = deque(chain for chain in self._open if not chain.ended)

    def end(self, chain: Chain) -> None:
        """Returns when this one has ended."""
        while True:
            self.advance()
            if chain.ended:
                return
            self._open[0].work.wait()


class Chain:
    """One of them: like a Work."""

    def __init__(self, chains: Chains, calls: Iterator[Any]) -> None:
        self._chains, self._calls = chains, calls
        self.begun = 0  # how many calls
        self.ended = False
        self.work: Any = None  # the last of them
        self.go_on()

    def go_on(self) -> None:
        """Begins the next call, or ends."""
        self.work = next(self._calls, None)
        self.begun += 1
        self.ended = self.work is None

    def wait(self) -> None:
        """Returns when the last call has ended, and what follows it is done."""
        self._chains.end(self)
