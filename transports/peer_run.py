"""One run of a program on messages: posts what is ready, tests, combines, and posts again.

What goes to one peer on one lane begins with a header (the fingerprint of the call, as on the engine's wire). Steps
follow in segments of a size that both ends know from the step's bytes; a step of no bytes is a header, too. Segments
are received where they belong, or beside it where they are combined.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from transports.base import Buffer
from transports.failures import FailureKind
from transports.memory import bytes_at
from transports.peer_program import OPERANDS, Compiled
from transports.peers import PeerGone
from transports.portable import Failed, address_of, record
from transports.program import ITEM_BYTES, Call, Kind
from transports.tracing import TracedCall, TracedStep

if TYPE_CHECKING:
    from transports.peer import PeerTransport

__all__ = ["Run"]

_HEADER = struct.Struct("<4sIQQIiBBBBIQHxx")  # magic, communicator, then the call, then bytes and lane of the step
_MAGIC = b"TRP1"
_LOCAL_BYTES = 256 << 10  # a local step is done in pieces, so that sends can begin in between
_RECEIVES_AHEAD = 3  # segments of one step
_YIELDS_BEFORE_SLEEP = 2000
_NAP_S = 0.0001
_LOOK_EVERY_S = 0.001
_ASK_EVERY_S = 0.25  # or a fifth of the deadline, whatever is shorter
_LAST_WORDS_S = 0.2  # from a goodbye to the verdict that what is missing will not come


class _Segment:
    """A piece of a step that is under way."""

    __slots__ = ("begin", "ended", "nbytes", "scratch", "step")

    def __init__(self, step: int, begin: int, nbytes: int, scratch: memoryview | None = None) -> None:
        self.step, self.begin, self.nbytes, self.scratch = step, begin, nbytes, scratch
        self.ended = False


class Run:
    """One execution. `message` is 0, or the number of a message of `send` or `recv`."""

    def __init__(
        self, owner: PeerTransport, what: Compiled, seq: int, timeout_s: float, buffers: Sequence[Buffer], message: int
    ) -> None:
        self.owner, self.peers, self.control = owner, owner.peers, owner.control
        self.what, self.rows, self.needs, self.memory = what, what.rows, what.needs, what.memory
        self.timeout_s, self.message = timeout_s, message
        self.seq, self.call = message or seq, what.program.call
        self.addresses = [address_of(buffer) for buffer in buffers]
        self.memories = [bytes_at(a, n) for a, n in zip(self.addresses, what.extents, strict=True)]
        count = len(self.rows)
        self.done, self.posted = [0] * count, [0] * count
        self.begun = [False] * count
        self.at = [0] * len(what.queues)  # the step of each queue that is being posted
        self.flights: list[deque[_Segment]] = [deque() for _ in what.queues]
        self.open = count  # steps that have not ended
        self.ready = deque(range(len(what.queues)))
        self.waiting = [True] * len(what.queues)  # whether the queue stands in `ready`
        self.requests: list[Any] = []
        self.of_requests: list[_Segment | int | None] = []  # a segment, the step whose header it is, or a header sent
        self.headers: dict[int, bytearray] = {}
        self.began_s, self.ended_s = [0.0] * count, [0.0] * count
        self.called_s = time.monotonic()

    def execute(self) -> None:
        """To the end. Raises Failed once a failure is on record; nothing is under way in the buffers then."""
        self.control.enter(self.seq, self.call, bool(self.message))
        try:
            self.look()
            self.memory.ready()
            self._loop()
            for row in self.rows:
                if row[0] == Kind.SEND:
                    self.owner.bytes_to[row[1]] += row[12]
        except PeerGone as gone:
            with contextlib.suppress(PeerGone):
                self.control.poll()  # its last words, and those of others about it
            kind = FailureKind.LEFT if gone.peer in self.control.departed else FailureKind.LOST
            self.control.fail(kind, gone.peer, self._mine())
            raise Failed(self._head()) from None
        finally:
            self._abandon()
            self.control.leave()

    def traced(self) -> TracedCall:
        """What was done when."""
        steps = (
            TracedStep(row[0], row[1], row[2], row[12], began_s, ended_s)
            for row, began_s, ended_s in zip(self.rows, self.began_s, self.ended_s, strict=True)
        )
        return TracedCall(self.seq, self.called_s, time.monotonic(), tuple(steps))

    def _abandon(self) -> None:
        """Gives up what is still under way, after a failure."""
        pairs = list(zip(self.requests, self.of_requests, strict=True))
        receives = [request for request, what in pairs if self._receives(what)]
        if receives:
            self.peers.cancel(receives)
        self.owner.abandoned += [request for request, what in pairs if not self._receives(what)]

    def _receives(self, what: _Segment | int | None) -> bool:
        return isinstance(what, int) or (what is not None and self.rows[what.step][0] != Kind.SEND)

    def _loop(self) -> None:
        since = looked = asked = time.monotonic()
        idle = 0
        while True:
            moved = False
            while self.ready:
                moved = True
                queue = self.ready.popleft()
                self.waiting[queue] = False
                self._push(queue)
            if not self.open and not self.requests:
                return
            ended = self.peers.test(self.requests) if self.requests else ()
            if ended:
                self._end(ended)
            elif not moved:
                idle += 1
                now = time.monotonic()
                if now - looked > _LOOK_EVERY_S:
                    looked = now
                    self.look()
                    self._judge(now - since)
                    if now - max(since, asked) > min(_ASK_EVERY_S, self.timeout_s / 5):
                        asked = now
                        for peer in self._waited_for():
                            self.control.ask(peer)
                if idle > _YIELDS_BEFORE_SLEEP:
                    time.sleep(_NAP_S)
                else:
                    os.sched_yield()
                continue
            idle, since = 0, time.monotonic()
            if since - looked > _LOOK_EVERY_S:
                looked = since
                self.look()

    def look(self) -> None:
        """Reads what the others say; ends the run when the communicator is broken or closed."""
        self.control.poll()
        if self.control.failure is not None or self.owner.closed:
            raise Failed(self._head())

    # ---------------------------------------------------------------- waiting too long

    def _judge(self, waited_s: float) -> None:
        if self.open == 0:
            return
        peers = self._waited_for()
        departed, now = self.control.departed, time.monotonic()
        gone = [peer for peer in self._missing() if now - max(departed.get(peer, now), now - waited_s) > _LAST_WORDS_S]
        if gone:
            self.control.fail(FailureKind.LEFT, gone[0], self._mine())
        elif waited_s >= self.timeout_s:
            culprit, known = self.control.blame(peers[0] if peers else self.owner.rank)
            self.control.fail(FailureKind.DEADLINE, culprit, self._mine(), waited_s=waited_s, **known)
        else:
            return
        raise Failed(self._head())

    def _waited_for(self) -> list[int]:
        """The peers that keep something from moving; where none does, those of the steps that are next."""
        return self._missing() or self._peers_of(
            number for number, queue in enumerate(self.what.queues) if self.at[number] < len(queue.steps)
        )

    def _missing(self) -> list[int]:
        """The peers to or from which something is under way."""
        return self._peers_of(
            number
            for number, queue in enumerate(self.what.queues)
            if self.flights[number] or any(step in self.headers for step in queue.steps[self.at[number] :][:1])
        )

    def _peers_of(self, queues: Iterable[int]) -> list[int]:
        """Of these queues, receives first: a send may only wait for its receiver to get there."""
        heads = [
            (q.kind != Kind.RECV, q.peer) for q in map(self.what.queues.__getitem__, queues) if q.kind != Kind.COPY
        ]
        return list(dict.fromkeys(peer for _, peer in sorted(heads)))

    def _head(self) -> int:
        return min((i for i, row in enumerate(self.rows) if self.done[i] < row[12] or not self.begun[i]), default=0)

    def _mine(self) -> dict[str, Any]:
        return record(self.seq, self.call, bool(self.message))

    # ---------------------------------------------------------------- moving

    def _push(self, number: int) -> None:
        """Posts what is ready of the next steps of a queue."""
        queue = self.what.queues[number]
        if queue.kind == Kind.COPY:
            self._local(number, queue.steps[0])
            return
        self._drain(number)
        while self.at[number] < len(queue.steps):
            step = queue.steps[self.at[number]]
            if queue.kind == Kind.SEND:
                if not self._send(number, step):
                    return
            elif not self._receive(number, step):
                return
            self.at[number] += 1
            if self.rows[step][12] == 0:
                self._finish(step)

    def _send(self, number: int, step: int) -> bool:
        """Whether all of the step is posted."""
        row, segment = self.rows[step], self.what.segments[step]
        nbytes, ready = row[12], self._limit(step)
        if not self.begun[step]:
            if ready < min(segment, nbytes):
                return False
            self._begin(step)
            if self.what.headed[step]:
                self._post(self.peers.isend(row[1], row[2], memoryview(self._header(nbytes, row[2]))), None)
        while (begin := self.posted[step]) < nbytes:
            size = min(segment, nbytes - begin)
            if begin + size > ready:
                return False
            low = row[7] + begin
            sending = self.peers.isend(row[1], row[2], self.memories[row[6]][low : low + size])
            self._fly(number, _Segment(step, begin, size), sending)
        return True

    def _receive(self, number: int, step: int) -> bool:
        row = self.rows[step]
        if not self.begun[step] and self.what.headed[step]:
            if step not in self.headers:
                self.headers[step] = memory = bytearray(_HEADER.size)
                self._post(self.peers.irecv(row[1], row[2], memoryview(memory)), step)
            return False  # goes on when the header has come
        segment, nbytes = self.what.segments[step], row[12]
        combines = row[0] == Kind.RECV_REDUCE
        ready = nbytes if combines else self._limit(step)
        flight = self.flights[number]
        while (begin := self.posted[step]) < nbytes:
            size = min(segment, nbytes - begin)
            if begin + size > ready or len(flight) >= _RECEIVES_AHEAD:
                return False
            if combines:
                beside = self.memory.borrow(segment)
                into = beside[:size]
            else:
                beside, into = None, self.memories[row[10]][row[11] + begin : row[11] + begin + size]
            self._fly(number, _Segment(step, begin, size, beside), self.peers.irecv(row[1], row[2], into))
        return True

    def _fly(self, number: int, piece: _Segment, request: Any) -> None:
        self.posted[piece.step] += piece.nbytes
        self.flights[number].append(piece)
        self._post(request, piece)

    def _post(self, request: Any, what: _Segment | int | None) -> None:
        self.requests.append(request)
        self.of_requests.append(what)

    def _end(self, ended: Sequence[int]) -> None:
        """Takes note of requests that have ended."""
        for i in sorted(ended, reverse=True):
            last = self.requests.pop()
            what = self.of_requests[i]
            mark = self.of_requests.pop()
            if i < len(self.requests):
                self.requests[i], self.of_requests[i] = last, mark
            if isinstance(what, _Segment):
                what.ended = True
                self._wake(self.what.queue_of[what.step])
            elif what is not None:
                self._check(what, self.headers.pop(what))
                self._begin(what)
                self._wake(self.what.queue_of[what])

    def _drain(self, number: int) -> None:
        """Counts the segments that have ended, in order, and combines those that wait for it."""
        flight = self.flights[number]
        while flight and flight[0].ended:
            piece = flight[0]
            step, row = piece.step, self.rows[piece.step]
            if not self.begun[step]:
                self._begin(step)
            if piece.scratch is not None:
                if self._limit(step) < piece.begin + piece.nbytes:
                    return
                self._combine(row, piece)
                self.memory.give_back(piece.scratch)
            flight.popleft()
            self._advance(step, piece.nbytes)

    def _combine(self, row: list[int], piece: _Segment) -> None:
        assert piece.scratch is not None
        local = self.addresses[row[6]] + row[7] + piece.begin
        out = self.addresses[row[10]] + row[11] + piece.begin
        theirs = ctypes.addressof(ctypes.c_char.from_buffer(piece.scratch))
        first, second = (local, theirs) if row[5] else (theirs, local)
        self.memory.combine(row[3], row[4], first, second, out, piece.nbytes)

    def _local(self, number: int, step: int) -> None:
        """Does a piece of a local step."""
        row, done = self.rows[step], self.done[step]
        item = 1 if row[0] == Kind.COPY else ITEM_BYTES[row[3]]
        size = min(self._limit(step) - done, _LOCAL_BYTES)
        size -= size % item
        if size <= 0:
            if row[12] == 0 and not self.begun[step]:
                self._begin(step)
                self._finish(step)
            return
        if not self.begun[step]:
            self._begin(step)
        a, b, out = (self.addresses[row[column]] + row[column + 1] + done for column in OPERANDS)
        if row[0] == Kind.COPY:
            self.memory.copy(a, out, size)
        elif row[0] == Kind.DIVIDE:
            self.memory.divide(row[3], a, out, size, self.what.program.divisor)
        else:
            first, second = (a, b) if row[5] else (b, a)
            self.memory.combine(row[3], row[4], first, second, out, size)
        self._advance(step, size)
        if self.done[step] < row[12]:
            self._wake(number)

    def _begin(self, step: int) -> None:
        self.begun[step] = True
        self.began_s[step] = time.monotonic()

    def _advance(self, step: int, nbytes: int) -> None:
        self.done[step] += nbytes
        for queue in self.what.wakes[step]:
            self._wake(queue)
        if self.done[step] == self.rows[step][12]:
            self._finish(step)

    def _finish(self, step: int) -> None:
        self.open -= 1
        self.ended_s[step] = time.monotonic()

    def _wake(self, queue: int) -> None:
        if not self.waiting[queue]:
            self.waiting[queue] = True
            self.ready.append(queue)

    def _limit(self, step: int) -> int:
        """Up to which byte the steps before it have done what this one needs."""
        limit = self.rows[step][12]
        for other, theirs, mine, nbytes in self.needs[step]:
            done = self.done[other]
            if done < theirs + nbytes:
                limit = min(limit, mine + max(done - theirs, 0))
        return limit

    # ---------------------------------------------------------------- headers

    def _header(self, nbytes: int, lane: int) -> bytes:
        c = self.call
        return _HEADER.pack(
            _MAGIC, self.owner.number, self.seq, c.elements, c.algorithm, c.root, c.collective, c.dtype, c.op,
            bool(self.message), c.extra, nbytes, lane,
        )  # fmt: skip

    def _check(self, step: int, header: bytearray) -> None:
        row = self.rows[step]
        if bytes(header) == self._header(row[12], row[2]):
            return
        magic, number, seq, elements, algorithm, root, collective, dtype, op, message, extra, _, lane = _HEADER.unpack(
            header
        )
        ours = magic == _MAGIC and number == self.owner.number and lane == row[2]
        theirs = record(seq, Call(collective, dtype, op, root, elements, algorithm, extra), bool(message))
        self.control.fail(FailureKind.MISMATCH if ours else FailureKind.WIRE, row[1], self._mine(), theirs=theirs)
        raise Failed(step)
