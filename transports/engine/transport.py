"""The engine as a transport: programs compiled and connected once, failures turned into exceptions."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from transports.base import CPU, Buffer, Device
from transports.endpoint import Endpoint
from transports.engine import _engine
from transports.engine.links import Links
from transports.errors import (
    CollectiveError,
    CommunicatorBroken,
    DeadlineExceeded,
    PeerLostError,
    TransportError,
)
from transports.failures import FailureKind, Names, Reason, exception
from transports.handshake import Closed
from transports.program import Native, Program
from transports.tracing import TracedCall, TracedStep

__all__ = ["EngineTransport", "Posted"]

_MESSAGE_LANE = 31
# Idle polls before a waiting rank lets others run. Hardly any where ranks outnumber cores: who polls is in the way.
_SPINS, _SPINS_SHARED = 20, 4
_LAST_WORDS_S = 0.1


class EngineTransport:
    """One communicator of the engine. See transports/base.py for the contract.

    transport    "auto": shared memory within a host, TCP between hosts; "shm", "tcp": that one only
    ring_bytes   size of one direction of a shared-memory lane, a power of two
    """

    devices = frozenset({"cpu"})
    grouped = False
    natives: frozenset[str] = frozenset()

    def __init__(
        self,
        endpoint: Endpoint,
        members: Sequence[int],
        rank: int,
        names: Names,
        *,
        name: str = "world",
        transport: str = "auto",
        ring_bytes: int = 256 << 10,
        epoch: int = 0,
    ) -> None:
        self.rank, self.size = rank, len(members)
        self.shared_memory = transport != "tcp"
        self._endpoint, self._members, self._names, self._name = endpoint, tuple(members), names, name
        self._options: dict[str, Any] = {
            "transport": transport, "ring_bytes": ring_bytes, "epoch": epoch,
        }  # fmt: skip
        of_world = {world: i for i, world in enumerate(members)}
        local = [tuple(of_world[w] for w in host if w in of_world) for host in endpoint.hosts]
        self.hosts = tuple(sorted(host for host in local if host))
        on_this_host = sum(endpoint.same_host(w) for w in range(endpoint.size))
        spins = _SPINS if on_this_host <= len(os.sched_getaffinity(0)) else _SPINS_SHARED
        self._engine = _engine.Engine(self.rank, self.size, zlib.crc32(name.encode()), epoch, spins)
        self._links = Links(self._engine, endpoint, name, members, rank, transport=transport, ring_bytes=ring_bytes)
        self._messages: dict[tuple[bool, int, int, int, int], Any] = {}
        self._cause: CollectiveError | None = None  # of the failure, once it has been raised
        self._closed = False
        self._mailbox: _engine.Mailbox | None = None
        self._posting = threading.Lock()

    # ---------------------------------------------------------------- running

    def refuses(self, native: Native) -> str:
        return "the engine has no collectives but plans"

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> _Compiled:
        native = _engine.make_program(
            program.steps, program.dependencies, list(program.call), program.buffers, program.divisor
        )
        compiled = _Compiled(program, native)
        self._connect(program.channels(), timeout_s, native, program)
        return compiled

    def run(self, compiled: _Compiled, timeout_s: float, *buffers: Buffer) -> None:
        if self._engine.run(compiled.native, timeout_s, *buffers):
            self.raise_failure(compiled.program)

    def start(self, compiled: _Compiled, timeout_s: float, *buffers: Buffer) -> _Started:
        if self.failed:
            self.raise_failure(compiled.program, at=(self._engine.seq + 1, 0))
        return _Started(self, compiled.program, self._engine.start(compiled.native, timeout_s, *buffers))

    def prepare(
        self, compiled: _Compiled, timeout_s: float, result: Any, keep: Any, *buffers: Buffer
    ) -> Callable[[], Any]:
        def on_failure(kind: int) -> None:
            self.raise_failure(compiled.program)

        return self._engine.prepare(compiled.native, timeout_s, result, keep, on_failure, *buffers)

    def quick_calls(self) -> _QuickCalls:
        return _QuickCalls(self, self._engine)

    def start_trace(self) -> None:
        self._engine.start_trace()

    def stop_trace(self) -> list[TracedCall]:
        return [
            TracedCall(seq, began_s, ended_s, tuple(TracedStep(*step) for step in steps))
            for seq, began_s, ended_s, steps in self._engine.stop_trace()
        ]

    def message(
        self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: Buffer,
        device: Device = CPU,
    ) -> None:  # fmt: skip
        key = (sends, peer, dtype, count, nbytes)
        doing = f"{'send to' if sends else 'recv from'} rank {peer}"
        program = self._messages.get(key)
        if program is None:
            program = _engine.make_message(sends, peer, dtype, count, nbytes)
            self._connect({(peer, _MESSAGE_LANE)}, timeout_s, program, None, doing)
            self._messages[key] = program
        if self._engine.run(program, timeout_s, data):
            self.raise_failure(None, doing)

    def post(
        self, sends: bool, peer: int, tag: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: int
    ) -> Posted:
        """Begins to send a message, or to receive one (from any rank: peer -1); many may be under way (mailbox.hpp).

        A transport that posts messages must be used for nothing else: the mailbox owns its lanes.
        """
        doing = f"{'send to' if sends else 'recv from'} {f'rank {peer}' if peer >= 0 else 'any rank'}, tag {tag}"
        with self._posting:
            if self._mailbox is None:
                self._mailbox = _engine.Mailbox(self._engine)
            if self.failed:
                self.raise_failure(None, doing)
            peers = [peer] if peer >= 0 else [p for p in range(self.size) if p != self.rank]
            channels = {(p, _MESSAGE_LANE) for p in peers}
            if not all(self._engine.has_lane(*channel) for channel in channels):
                program = _engine.make_message(sends, peers[0], dtype, count, nbytes)
                self._connect(channels, timeout_s, program, None, doing)
        letter = self._mailbox.post(sends, peer, tag, dtype, count, nbytes, timeout_s, data)
        return Posted(self, letter, doing)

    def empty(self, nbytes: int) -> memoryview:
        if self.failed:
            self.raise_failure(None, "empty")
        fd = os.memfd_create("treering-buffer", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, max(nbytes, 1))
            memory = _RegisteredMemory(fd, max(nbytes, 1))
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise TransportError(f"no {nbytes} bytes of memory to share: {error.strerror}") from error
            raise
        memory.register(self._engine, fd)
        return memoryview(memory)[:nbytes]

    def _connect(
        self, channels: set[tuple[int, int]], timeout_s: float, native: _engine.Program, program: Program | None,
        doing: str = "",
    ) -> None:  # fmt: skip
        if self.failed:
            return  # and the run says so
        try:
            self._links.ensure(channels, timeout_s)
        except BaseException as error:
            # The others must not wait for us: they hear why, also those that are not connected yet.
            seq = self._engine.seq + 1
            kind, culprit = _blame(error, self.rank, self._links.connecting_to)
            if kind in (FailureKind.LOST, FailureKind.LEFT):
                self._await_failure()
                if self._engine.departed(culprit):
                    kind = FailureKind.LEFT
            self._engine.fail(kind, culprit, Reason.SILENT, timeout_s, native, seq)
            if culprit != self.rank:
                self.raise_failure(program, doing, at=(seq, 0))
            self._cause = cause = _as_cause(error)
            self._links.spread(self.rank)
            if isinstance(error, OSError) and not isinstance(error, CollectiveError):
                raise cause from error
            raise

    def _await_failure(self) -> None:
        """Waits a moment for what a peer may have said before it went: it may have gone because of a third one."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while not self.failed and time.monotonic() < deadline:
            time.sleep(0.001)

    # ---------------------------------------------------------------- failing

    def raise_failure(self, program: Program | None, doing: str = "", at: tuple[int, int] | None = None) -> None:
        """Raises what broke the communicator: the cause itself the first time, CommunicatorBroken from then on.

        `at` is the number of the call and of the step, by default those of the call that ran last.
        """
        failure = self._engine.failure()
        if failure is None:  # a message ends before the engine does
            assert self._closed
            raise CommunicatorBroken("the communicator was closed before this call")
        culprit = int(failure["culprit"])
        who = ""
        if 0 <= culprit < self.size:
            world = self._members[culprit]
            card = self._endpoint.cards[world]
            numbered = "" if world == culprit else f"rank {world} of the job, "
            who = f" ({numbered}process {card['pid']} on {card['host']})"
        step = ""
        if program is not None:
            seq, index = at or (self._engine.seq, self._engine.failed_step)
            doing = self._names.call({**program.call._asdict(), "seq": seq, "point_to_point": 0})
            step = program.describe(index)
        cause = exception(failure, self._names, self.rank, doing=doing, step=step, who=who)
        if failure["kind"] == FailureKind.FORKED:
            raise cause
        if self._closed:
            raise CommunicatorBroken("the communicator was closed before this call")
        if self._cause is not None:
            raise CommunicatorBroken(
                f"the communicator is broken since an earlier call: {self._cause}"
            ) from self._cause
        self._cause = type(cause)(str(cause))  # without the traceback, which would keep the caller's arrays alive
        if failure["detector"] == self.rank and failure["kind"] != FailureKind.CLOSED:
            self._links.spread(culprit)
        raise cause

    def fail(self, kind: int, culprit: int, waited_s: float, compiled: _Compiled) -> None:
        """Puts a failure of the call that ran last on record, if it is the first, and tells the other ranks."""
        self._engine.fail(kind, culprit, Reason.UNKNOWN, waited_s, compiled.native, self._engine.seq)

    @property
    def failed(self) -> bool:
        """Whether the communicator is broken or closed."""
        return self._engine.failure() is not None

    # ---------------------------------------------------------------- life

    @property
    def bytes_sent(self) -> int:
        """Payload bytes this rank has sent so far, and of these `bytes_direct` were read in place by the peer."""
        return self._engine.bytes_sent

    @property
    def bytes_direct(self) -> int:
        """See `bytes_sent`."""
        return self._engine.bytes_direct

    @property
    def bytes_to(self) -> list[int]:
        """`bytes_sent`, by the rank they went to."""
        return self._engine.bytes_to

    def split(self, name: str, members: Sequence[int], rank: int) -> EngineTransport:
        world = [self._members[member] for member in members]
        return EngineTransport(self._endpoint, world, rank, self._names, name=f"{self._name}/{name}", **self._options)

    def describe(self) -> str:
        if self.size == 1:
            return "alone"
        used = {"shared memory" if self._links.shared_memory(p) else "TCP" for p in range(self.size) if p != self.rank}
        return " and ".join(sorted(used, reverse=True))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._links.close()
            if self._mailbox is not None:
                self._mailbox.close()
            self._engine.close()

    def forked(self) -> None:
        """In a forked child: drops the descriptors, so that peers do not take the child for its parent."""
        self._engine.forked()


class _Compiled(NamedTuple):
    program: Program
    native: Any


class _QuickCalls:
    """See transports/base.py; `call` is the engine's own function."""

    def __init__(self, owner: EngineTransport, engine: _engine.Engine) -> None:
        raise_failure = weakref.WeakMethod(owner.raise_failure)

        def on_failure(compiled: _Compiled) -> None:
            fail = raise_failure()
            assert fail is not None
            fail(compiled.program)

        self._table = _engine.QuickCalls(engine, on_failure)
        self.call, self.clear, self.set_scratch = self._table.call, self._table.clear, self._table.set_scratch

    def add(
        self, collective: int, x: Any, out: Any, op: str, root: int, algorithm: str, compiled: _Compiled,
        timeout_s: float, make: Callable[[], Any] | None, shape: Sequence[int], gets: bool,
    ) -> None:  # fmt: skip
        torch = sys.modules.get("torch")
        if torch is not None:
            self._table.set_tensor_type(torch.Tensor)
        self._table.add(
            collective, x, out, op, root, algorithm, compiled.native, compiled, timeout_s, make, list(shape), gets
        )


class _Started:
    """A call on the progress thread."""

    def __init__(self, owner: EngineTransport, program: Program, call: Any) -> None:
        self._owner, self._program, self._call = owner, program, call

    def wait(self, wait_s: float) -> bool:
        if not self._call.wait(wait_s):
            return False
        if self._call.result:
            self._owner.raise_failure(self._program, at=(self._call.seq, self._call.step))
        return True

    def has_ended(self) -> bool:
        return self._call.wait(0.0)


class Posted:
    """A message under way."""

    def __init__(self, owner: EngineTransport, letter: Any, doing: str) -> None:
        self._owner, self._letter, self._doing = owner, letter, doing

    def wait(self, wait_s: float) -> bool:
        """True once it has been sent or received; False when it has not after `wait_s` seconds. Raises its failure."""
        if not self._letter.wait(wait_s):
            return False
        if self._letter.result:
            self._owner.raise_failure(None, self._doing)
        return True

    def has_ended(self) -> bool:
        """Whether it has ended, well or with a failure."""
        return self._letter.wait(0.0)

    @property
    def source(self) -> int:
        """The rank that a message was received from, -1 before that is known."""
        return self._letter.source


def _as_cause(error: BaseException) -> CollectiveError:
    """What later calls are told when connecting failed by no fault of a peer."""
    if isinstance(error, CollectiveError):
        return type(error)(str(error))
    if isinstance(error, OSError):
        how = "; raise the limit (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        return TransportError(f"the system refused what a connection to a peer needs: {error.strerror}{how}")
    return CommunicatorBroken(f"connecting was ended by {type(error).__name__} {error}".rstrip())


def _blame(error: BaseException, rank: int, peer: int) -> tuple[int, int]:
    """The kind of a failure to connect to the peer, and the rank that is to blame for it."""
    if isinstance(error, DeadlineExceeded):
        return FailureKind.DEADLINE, peer
    if isinstance(error, PeerLostError):
        return FailureKind.LOST, peer
    if isinstance(error, Closed):
        return FailureKind.LEFT, peer
    return FailureKind.INTERRUPTED if isinstance(error, KeyboardInterrupt) else FailureKind.CONNECT, rank


class _RegisteredMemory(mmap.mmap):
    """Memory that the engine forgets before it is unmapped; a weak reference would hear of it only afterwards, when
    something else may lie there."""

    _engine: weakref.ref[_engine.Engine] | None = None
    _region = 0

    def register(self, engine: _engine.Engine, fd: int) -> None:
        """Tells the engine, which owns the descriptor from now on."""
        address = np.frombuffer(self, np.uint8).ctypes.data
        self._region = engine.add_region(address, len(self), fd)
        self._engine = weakref.ref(engine)

    def __del__(self) -> None:
        engine = self._engine() if self._engine is not None else None
        if engine is not None:
            engine.drop_region(self._region)
