"""What transports written in Python have in common: calls take turns, some of them on a thread in the background; a
failure is raised with its first cause once, and as CommunicatorBroken from then on; traces are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from transports.background import Background, Job
from transports.base import CPU, Buffer, Device
from transports.errors import CollectiveError, CommunicatorBroken
from transports.failures import FailureKind, Names, exception
from transports.program import Call, Kind, Native, Program
from transports.tracing import TracedCall

__all__ = ["MESSAGE_LANE", "NO_CALL", "Failed", "PortableTransport", "address_of", "record"]

MESSAGE_LANE = 31
"""The lane of `send` and `recv`; plans have those below."""
NO_CALL = Call(0, 0, 0, -1, 0, 0)


class Failed(Exception):
    """What `_execute` raises once the failure is on record: the step at which this rank noticed."""

    def __init__(self, step: int) -> None:
        self.step = step


def record(seq: int, call: Call, message: bool = False) -> dict[str, Any]:
    """A call as failures.py has it."""
    return {**call._asdict(), "seq": seq, "point_to_point": int(message)}


def address_of(buffer: Buffer) -> int:
    """Where a buffer begins. Raises ValueError for an array that is not C-contiguous."""
    if isinstance(buffer, int):
        return buffer
    if isinstance(buffer, np.ndarray) and buffer.flags.c_contiguous:  # whatever its dtype
        return buffer.ctypes.data
    view = memoryview(buffer)  # pyright: ignore[reportUnknownArgumentType, reportArgumentType]
    if not view.c_contiguous:
        raise ValueError("a buffer must be C-contiguous")
    return np.frombuffer(view.cast("B"), np.uint8).ctypes.data if view.nbytes else 0


class PortableTransport:
    """The part of transports/base.py that does not depend on how bytes move. A subclass gives `compile`, `split`,
    `describe` and:

    _execute    runs a program to its end, or raises Failed once a failure is on record
    _fail       puts a failure on record, if it is the first, and sees to it that the other ranks hear of it
    failure     the first failure on record
    """

    shared_memory = True
    devices = frozenset({"cpu"})
    grouped = False
    natives: frozenset[str] = frozenset()

    def __init__(self, rank: int, size: int, hosts: tuple[tuple[int, ...], ...], names: Names) -> None:
        self.rank, self.size, self.hosts, self._names = rank, size, hosts, names
        self.seq = 0  # of the last call that has begun
        self.bytes_to = [0] * size  # payload sent so far, by rank
        self._turn = threading.Lock()
        self._background = Background("treering")
        self._messages: dict[tuple[bool, int], int] = {}
        self._closed = False
        self._cause: CollectiveError | None = None  # of the failure, once it has been raised
        self._trace: list[TracedCall] | None = None  # while somebody traces

    @property
    def bytes_sent(self) -> int:
        """Payload bytes this rank has sent so far."""
        return sum(self.bytes_to)

    # ---------------------------------------------------------------- what a subclass says

    @property
    def failure(self) -> dict[str, Any] | None:
        """What broke this communicator, as transports/failures.py reads it."""
        raise NotImplementedError

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Any:
        raise NotImplementedError

    def refuses(self, native: Native) -> str:
        return "" if native.collective in self.natives else f"there is no {native.collective} below this transport"

    def _execute(self, compiled: Any, timeout_s: float, buffers: Sequence[Buffer], message: int) -> TracedCall | None:
        """Runs what `compile` made. `message` is 0, or its number among the messages to, or from, that peer. While
        somebody traces (`_trace` is a list) it returns when the steps began and ended."""
        raise NotImplementedError

    def _fail(self, kind: int, culprit: int, mine: dict[str, Any]) -> None:
        raise NotImplementedError

    def _program(self, compiled: Any) -> Program:
        """The program that something was compiled from."""
        return compiled

    def _who(self, rank: int) -> str:
        """What else is known of a rank, as it stands in messages: " (process 12 on node3)"."""
        return ""

    # ---------------------------------------------------------------- calls

    def run(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> None:
        if self._background.busy:
            self.start(compiled, timeout_s, *buffers).wait(float("inf"))
        else:
            self._take_turn(compiled, timeout_s, buffers)

    def start(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> Job:
        if self._closed:
            raise CommunicatorBroken("the communicator was closed before this call")
        return self._background.start(partial(self._take_turn, compiled, timeout_s, buffers))

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: Buffer) -> Callable[[], Any]:
        def call() -> Any:
            self.run(compiled, timeout_s, *buffers)
            return (result, keep)[0]

        return call

    def quick_calls(self) -> None:
        return None

    def message(
        self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: Buffer,
        device: Device = CPU,
    ) -> None:  # fmt: skip
        kind = Kind.SEND if sends else Kind.RECV
        row = (kind, peer, MESSAGE_LANE, dtype, 0, 1, 0, 0, 0, 0, 0, 0, nbytes, 0, 0)
        none = np.empty((0, 4), np.int64)
        program = Program(Call(0, dtype, 0, -1, count, 0), np.array([row], np.int64), none, 1, 0)
        number = self._messages[sends, peer] = self._messages.get((sends, peer), 0) + 1
        self._take_turn(self.compile(program, timeout_s, device), timeout_s, (data,), number)

    def start_trace(self) -> None:
        with self._turn:
            self._trace = []

    def stop_trace(self) -> list[TracedCall]:
        with self._turn:
            taken, self._trace = self._trace or [], None
            return taken

    def empty(self, nbytes: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def _take_turn(self, compiled: Any, timeout_s: float, buffers: Sequence[Buffer], message: int = 0) -> None:
        with self._turn:
            if not message:
                self.seq += 1
            try:
                traced = self._execute(compiled, timeout_s, buffers, message)
                if self._trace is not None and traced is not None:
                    self._trace.append(traced)
            except Failed as failed:
                self._raise(self._program(compiled), failed.step, message)
            except BaseException as error:
                mine = record(message or self.seq, self._program(compiled).call, bool(message))
                self._fail(FailureKind.INTERRUPTED, self.rank, mine)
                self._cause = self._cause or CommunicatorBroken(f"a call was ended by {type(error).__name__} {error}")
                raise

    def _raise(self, program: Program, step: int, message: int) -> None:
        if self._closed or self.failure is None:
            raise CommunicatorBroken("the communicator was closed before this call") from None
        culprit = int(self.failure["culprit"])
        doing = self._names.call(record(message or self.seq, program.call, bool(message)))
        cause = exception(
            self.failure, self._names, self.rank, doing=doing, step=program.describe(step), who=self._who(culprit)
        )
        if self._cause is not None:
            raise CommunicatorBroken(
                f"the communicator is broken since an earlier call: {self._cause}"
            ) from self._cause
        self._cause = type(cause)(str(cause))  # without the traceback, which would keep the caller's arrays alive
        raise cause from None
