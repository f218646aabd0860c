"""A transport on messages: `PeerTransport(peers, names)` runs programs on a `Peers` (peers.py).

It is event-driven, as the engine is: every step begins as soon as its bytes are there. Who writes a `Peers` of some
80 lines has a transport; README.md has an example. What differs from the engine: a rank answers the others only while
it is in a call, so at a deadline a rank that computes cannot be told from one that has stopped; and calls in the
background need the interpreter's lock now and then.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any

from transports.base import CPU, Buffer, Device
from transports.failures import FailureKind, Names
from transports.memory import HostMemory, Memory
from transports.peer_control import Control
from transports.peer_program import Compiled, compiled
from transports.peer_run import Run
from transports.peers import PeerGone, Peers
from transports.portable import NO_CALL, Failed, PortableTransport, record
from transports.program import Program
from transports.tracing import TracedCall

__all__ = ["PeerTransport"]


class PeerTransport(PortableTransport):
    """One rank of a communicator on `peers`. See transports/base.py for the contract.

    names    words for the numbers of calls, for messages
    name     of the communicator, equal on all ranks
    """

    def __init__(self, peers: Peers, names: Names, *, name: str = "world") -> None:
        super().__init__(peers.rank, peers.size, peers.hosts, names)
        self.peers, self.control = peers, Control(peers)
        self.number = zlib.crc32(name.encode())
        self._name, self._forked = name, False
        self.abandoned: list[Any] = []  # sends under way when the communicator broke; they hold what they send
        self._memory = HostMemory()

    @property
    def failure(self) -> dict[str, Any] | None:
        return self.control.failure

    @property
    def closed(self) -> bool:
        """Whether `close` was called: a run in another thread ends then."""
        return self._closed

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Any:
        return compiled(program, self.memory_of(device))

    def memory_of(self, device: Device) -> Memory:
        """What is done with arrays on a device of a kind in `devices`."""
        assert device == CPU
        return self._memory

    def split(self, name: str, members: Sequence[int], rank: int) -> PeerTransport:
        return PeerTransport(self.peers.split(name, members, rank), self._names, name=f"{self._name}/{name}")

    def describe(self) -> str:
        return self.peers.describe()

    def forked(self) -> None:
        self.control.fail(FailureKind.FORKED, self.rank, record(0, NO_CALL))
        self._forked = True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._forked:
            return  # all that is below is the parent's
        self._background.close()  # calls there have been told to end
        with self._turn, contextlib.suppress(PeerGone):  # whoever runs a call in another thread ends it first
            self.control.close()
        self.peers.close()

    def _program(self, compiled: Any) -> Program:
        return compiled.program

    def _who(self, rank: int) -> str:
        return self.peers.who(rank)

    def _fail(self, kind: int, culprit: int, mine: dict[str, Any]) -> None:
        with contextlib.suppress(PeerGone):
            self.control.fail(kind, culprit, mine)

    def _execute(
        self, compiled: Compiled, timeout_s: float, buffers: Sequence[Buffer], message: int
    ) -> TracedCall | None:
        if self.failure is not None:
            raise Failed(0)
        run = Run(self, compiled, self.seq, timeout_s, buffers, message)
        run.execute()
        return run.traced() if self._trace is not None else None
