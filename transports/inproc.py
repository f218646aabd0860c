"""Ranks as threads of one process, on an executor in plain Python: the reference that the engine is compared with.

It runs the same programs with the same meaning: steps stream in segments, a step waits for bytes, messages carry the
fingerprint of their call. What the engine asks of the peers over control connections is simply looked up here.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from transports import arithmetic
from transports.base import CPU, Buffer, Device
from transports.failures import FailureKind, Names, Reason
from transports.portable import NO_CALL, Failed, PortableTransport, address_of, record
from transports.program import Call, Kind, Program
from transports.tracing import TracedCall, TracedStep

__all__ = ["InprocTransport", "connect_threads"]

_Bytes = npt.NDArray[np.uint8]
_SEGMENT_BYTES = 64 << 10
_SEGMENTS_IN_FLIGHT = 4


class _Segment(NamedTuple):
    seq: int
    call: Call
    message_bytes: int
    data: _Bytes


class _Hub:
    """What the ranks of one communicator share. `changed` guards everything, and is notified of every change."""

    def __init__(self, size: int, hosts: tuple[tuple[int, ...], ...], names: Names) -> None:
        self.size, self.hosts, self.names = size, hosts, names
        self.changed = threading.Condition()
        self.version = 0
        self.channels: dict[tuple[int, int, int], deque[_Segment]] = {}
        self.calls: list[list[Call]] = [[] for _ in range(size)]  # of each rank, in order
        self.waits_for: list[int] = [-1] * size
        self.departed: set[int] = set()
        self.failure: dict[str, Any] | None = None
        self.children: dict[str, _Hub] = {}

    def fail(self, kind: int, culprit: int, detector: int, mine: dict[str, Any], **more: Any) -> None:
        """Records the first cause, and wakes all."""
        with self.changed:
            if self.failure is None:
                nothing = record(0, NO_CALL)
                self.failure = {
                    "kind": kind, "culprit": culprit, "detector": detector, "mine": mine,
                    "reason": 0, "theirs": nothing, "step": 0, "waited_s": 0.0, **more,
                }  # fmt: skip
            self.touch()

    def touch(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()


def connect_threads(size: int, names: Names, hosts: tuple[tuple[int, ...], ...] | None = None) -> list[InprocTransport]:
    """One transport for each of `size` ranks, to be used by a thread each. `hosts` pretends they are on several."""
    hub = _Hub(size, hosts or (tuple(range(size)),), names)
    return [InprocTransport(hub, rank) for rank in range(size)]


class InprocTransport(PortableTransport):
    """One rank. See transports/base.py for the contract; `run` may be interrupted by Ctrl-C on the main thread."""

    def __init__(self, hub: _Hub, rank: int) -> None:
        super().__init__(rank, hub.size, hub.hosts, hub.names)
        self._hub = hub

    @property
    def failure(self) -> dict[str, Any] | None:
        return self._hub.failure

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Program:
        return program

    def split(self, name: str, members: Sequence[int], rank: int) -> InprocTransport:
        with self._hub.changed:
            if name not in self._hub.children:
                place = {member: i for i, member in enumerate(members)}
                local = [tuple(place[m] for m in host if m in place) for host in self.hosts]
                hosts = tuple(sorted(host for host in local if host))
                self._hub.children[name] = _Hub(len(members), hosts, self._hub.names)
            return InprocTransport(self._hub.children[name], rank)

    def describe(self) -> str:
        return "threads of one process"

    def forked(self) -> None:
        self._hub.fail(FailureKind.FORKED, self.rank, self.rank, record(0, NO_CALL))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._hub.changed:
            self._hub.departed.add(self.rank)
        self._hub.touch()
        self._background.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called: a run in another thread ends then."""
        return self._closed

    def _fail(self, kind: int, culprit: int, mine: dict[str, Any]) -> None:
        self._hub.fail(kind, culprit, self.rank, mine)

    def _execute(
        self, compiled: Program, timeout_s: float, buffers: Sequence[Buffer], message: int
    ) -> TracedCall | None:
        run = _Run(self, self._hub, compiled, timeout_s, buffers, message)
        run.execute()
        return run.traced() if self._trace is not None else None

    def _who(self, rank: int) -> str:
        return " (a thread)"


class _Run:
    """One execution of a program."""

    def __init__(
        self,
        owner: InprocTransport,
        hub: _Hub,
        program: Program,
        timeout_s: float,
        buffers: Sequence[Buffer],
        message: int,
    ) -> None:
        self.owner, self.hub, self.program, self.timeout_s = owner, hub, program, timeout_s
        self.rank = owner.rank
        self.addresses = [address_of(buffer) for buffer in buffers]
        self.rows: list[list[int]] = program.steps.tolist()
        self.needs: list[list[int]] = program.dependencies.tolist()
        self.done = [0] * len(self.rows)
        self.queues: dict[Any, deque[int]] = {}
        for i, row in enumerate(self.rows):
            lane = (row[0] == Kind.SEND, row[1], row[2]) if row[0] <= Kind.RECV_REDUCE else i
            self.queues.setdefault(lane, deque()).append(i)
        self.begun: set[int] = set()
        self.message = message
        self.seq = message
        self.began_s, self.ended_s = [0.0] * len(self.rows), [0.0] * len(self.rows)  # each step
        self.called_s = 0.0

    def traced(self) -> TracedCall:
        """What was done when, of a run that just ended."""
        steps = (
            TracedStep(row[0], row[1], row[2], row[12], began_s, ended_s)
            for row, began_s, ended_s in zip(self.rows, self.began_s, self.ended_s, strict=True)
        )
        return TracedCall(self.seq, self.called_s, time.monotonic(), tuple(steps))

    def execute(self) -> None:
        self.called_s = time.monotonic()
        self._begin()
        since = time.monotonic()
        while self.queues:
            version = self.hub.version
            if self.hub.failure is not None or self.owner.closed:
                raise Failed(self._head())
            progress = False
            for lane, steps in list(self.queues.items()):
                while steps and self._advance_timed(steps[0]):
                    progress = True
                    if self.done[steps[0]] == self.rows[steps[0]][12]:
                        steps.popleft()
                if not steps:
                    del self.queues[lane]
            if progress:
                since = time.monotonic()
            else:
                self._wait(version, since)

    def _begin(self) -> None:
        """Takes the call's number, and compares the call with what other ranks called under it."""
        if self.message:
            return
        with self.hub.changed:
            mine = self.hub.calls[self.rank]
            mine.append(self.program.call)
            self.seq = len(mine)
            for other, calls in enumerate(self.hub.calls):
                if len(calls) >= self.seq and calls[self.seq - 1] != self.program.call:
                    theirs = record(self.seq, calls[self.seq - 1])
                    self.hub.fail(FailureKind.MISMATCH, other, self.rank, self._call(), theirs=theirs)

    def _call(self) -> dict[str, Any]:
        return record(self.seq, self.program.call, bool(self.message))

    def _head(self) -> int:
        return min((steps[0] for steps in self.queues.values() if steps), default=0)

    def _limit(self, index: int) -> int:
        row = self.rows[index]
        limit = row[12]
        for step, theirs, mine, nbytes in self.needs[row[13] : row[14]]:
            if self.done[step] < theirs + nbytes:
                limit = min(limit, mine + max(self.done[step] - theirs, 0))
        return limit

    def _memory(self, index: int, operand: int, nbytes: int) -> _Bytes:
        """The next bytes of an operand: the one whose columns begin at `operand`."""
        row = self.rows[index]
        address = self.addresses[row[operand]] + row[operand + 1] + self.done[index]
        return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)).cast("B"), np.uint8)

    def _advance_timed(self, index: int) -> bool:
        began_s = time.monotonic()
        if not self._advance(index):
            return False
        self.began_s[index] = self.began_s[index] or began_s
        self.ended_s[index] = time.monotonic()
        return True

    def _advance(self, index: int) -> bool:
        """Moves one segment of a step; False if it must wait. A step whose bytes are all done is finished."""
        row = self.rows[index]
        kind, peer, lane, dtype, op, local_first = row[:6]
        ready = min(self._limit(index) - self.done[index], _SEGMENT_BYTES)
        if ready <= 0 and (row[12] > 0 or (kind <= Kind.RECV_REDUCE and index in self.begun)):
            return False
        if kind == Kind.SEND:
            return self._send(index, (self.rank, peer, lane), ready)
        if kind in (Kind.RECV, Kind.RECV_REDUCE):
            return self._receive(index, (peer, self.rank, lane), ready)
        a, out = self._memory(index, 6, ready), self._memory(index, 10, ready)
        if kind == Kind.COPY:
            out[:] = a
        elif kind == Kind.DIVIDE:
            out[:] = arithmetic.divide(dtype, a, self.program.divisor)
        else:
            b = self._memory(index, 8, ready)
            out[:] = arithmetic.combine(dtype, op, *((a, b) if local_first else (b, a)))
        self.done[index] += ready
        return True

    def _send(self, index: int, channel: tuple[int, int, int], ready: int) -> bool:
        data = self._memory(index, 6, ready).copy()
        with self.hub.changed:
            line = self.hub.channels.setdefault(channel, deque())
            if len(line) >= _SEGMENTS_IN_FLIGHT:
                return False
            line.append(_Segment(self.seq, self.program.call, self.rows[index][12], data))
            self.hub.touch()
        self.begun.add(index)
        self.done[index] += ready
        self.owner.bytes_to[channel[1]] += ready
        return True

    def _receive(self, index: int, channel: tuple[int, int, int], ready: int) -> bool:
        row = self.rows[index]
        with self.hub.changed:
            line = self.hub.channels.get(channel)
            if not line:
                return False
            segment = line[0]
            expected = (self.seq, self.program.call, row[12])
            if (segment.seq, segment.call, segment.message_bytes) != expected:
                theirs = record(segment.seq, segment.call, bool(self.message))
                self.hub.fail(FailureKind.MISMATCH, row[1], self.rank, self._call(), theirs=theirs)
                return False
            if len(segment.data) > ready:
                return False
            line.popleft()
            self.hub.touch()
        nbytes = len(segment.data)
        out = self._memory(index, 10, nbytes)
        if row[0] == Kind.RECV:
            out[:] = segment.data
        else:
            a = self._memory(index, 6, nbytes)
            out[:] = arithmetic.combine(row[3], row[4], *((a, segment.data) if row[5] else (segment.data, a)))
        self.begun.add(index)
        self.done[index] += nbytes
        return True

    def _wait(self, version: int, since: float) -> None:
        """Sleeps until something changes; judges departed peers and the deadline."""
        heads = [steps[0] for steps in self.queues.values() if self.rows[steps[0]][1] >= 0]
        with self.hub.changed:
            # What a peer sent before it left waits here until the steps before it are done.
            peers = [self.rows[i][1] for i in heads if self._waits_for_peer(i)]
            self.hub.waits_for[self.rank] = peers[0] if peers else -1
            for peer in peers:
                if peer in self.hub.departed and self.hub.version == version:
                    self.hub.fail(FailureKind.LEFT, peer, self.rank, self._call())
            left = self.timeout_s - (time.monotonic() - since)
            if left <= 0:
                self._judge_deadline(peers)
            elif self.hub.version == version:
                self.hub.changed.wait(min(left, 0.05))
            self.hub.waits_for[self.rank] = -1

    def _waits_for_peer(self, index: int) -> bool:
        """Whether it is the peer that keeps a transfer from moving, and not other steps of this rank."""
        kind, peer, lane = self.rows[index][:3]
        if kind == Kind.SEND:
            return self._limit(index) > self.done[index]
        return not self.hub.channels.get((peer, self.rank, lane))

    def _judge_deadline(self, peers: list[int]) -> None:
        """Follows who waits for whom to its end: the rank that has not made the call."""
        culprit, seen = peers[0] if peers else self.rank, {self.rank}
        while self.hub.waits_for[culprit] >= 0 and culprit not in seen:
            seen.add(culprit)
            culprit = self.hub.waits_for[culprit]
        last = len(self.hub.calls[culprit])
        reason = Reason.NOT_CALLED if last < self.seq or self.message else Reason.UNKNOWN
        self.hub.fail(
            FailureKind.DEADLINE, culprit, self.rank, self._call(),
            reason=reason, theirs=record(last, NO_CALL), waited_s=self.timeout_s,
        )  # fmt: skip
