"""What ranks tell one another beside the data, where there are only messages: that they leave, why the communicator
broke, and, when asked, what they are doing.

A rank reads these frames while it is in a call, and at the beginning of one; a rank that computes does not answer.
Frames are JSON in messages of one size.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from transports.failures import FailureKind, Reason
from transports.peers import CONTROL_LANE, PeerGone, Peers
from transports.portable import NO_CALL, record
from transports.program import Call

__all__ = ["Control"]

_FRAME_BYTES = 1024
_HISTORY = 256


class _Incoming(NamedTuple):
    peer: int
    memory: bytearray


class Control:
    """The control lane of one rank. `failure` is the first cause, once there is one."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.failure: dict[str, Any] | None = None
        self.departed: dict[int, float] = {}  # when the goodbye of a rank was read
        self._incoming: list[_Incoming] = []
        self._requests: list[Any] = []
        self._sending: list[tuple[Any, bytes]] = []
        self._history: dict[int, Call] = {}
        self._inside: tuple[int, Call, bool] | None = None  # the call in progress: number, call, whether a message
        self._blames, self._reason, self._last_of_blamed = -1, Reason.UNKNOWN, 0
        for peer in range(peers.size):
            if peer != peers.rank:
                self._listen(peer)

    # ---------------------------------------------------------------- calls of this rank

    def enter(self, seq: int, call: Call, message: bool) -> None:
        """This rank begins a call."""
        self._inside = (seq, call, message)
        if not message:
            self._history[seq] = call
            self._history.pop(seq - _HISTORY, None)
        self._blames, self._reason = -1, Reason.UNKNOWN

    def leave(self) -> None:
        """The call has ended."""
        self._inside = None

    def ask(self, peer: int) -> None:
        """Asks a rank that this one has been waiting for what it is doing."""
        if self._blames < 0:
            self._blames = peer
        assert self._inside is not None
        seq, _, message = self._inside
        self._send(peer, {"kind": "query", "seq": 0 if message else seq})

    def blame(self, peer: int) -> tuple[int, dict[str, Any]]:
        """Whom the waiting for `peer` is due to in the end, as far as answers came, and what is known of it."""
        if self._blames < 0:
            return peer, {}
        return self._blames, {"reason": self._reason, "theirs": record(self._last_of_blamed, NO_CALL)}

    # ---------------------------------------------------------------- frames

    def poll(self) -> None:
        """Reads what has come, and answers."""
        self._sending = self._unfinished(self._sending)
        if not self._requests:
            return
        ended = sorted(self._peers.test(self._requests), reverse=True)
        arrived = [(self._requests.pop(i), self._incoming.pop(i))[1] for i in ended]
        for peer, memory in reversed(arrived):
            self._handle(peer, json.loads(bytes(memory)))
            if peer not in self.departed:
                self._listen(peer)

    def fail(self, kind: int, culprit: int, mine: dict[str, Any], **more: Any) -> None:
        """Puts a failure on record, if it is the first, and tells all other ranks."""
        if self.failure is not None:
            return
        nothing = record(0, NO_CALL)
        self.failure = {
            "kind": kind, "culprit": culprit, "detector": self._peers.rank, "mine": mine,
            "reason": 0, "theirs": nothing, "step": 0, "waited_s": 0.0, **more,
        }  # fmt: skip
        if kind not in (FailureKind.CLOSED, FailureKind.FORKED):
            self._tell_all({"kind": "revoke", "failure": self.failure})

    def close(self) -> None:
        """Says goodbye to all. The frames are on their way when this returns, as far as the layer below has taken
        them."""
        if self.failure is None:
            self._tell_all({"kind": "goodbye"})
        self._sending = self._unfinished(self._sending)
        self._peers.cancel(self._requests)
        self._requests, self._incoming = [], []

    def _tell_all(self, frame: dict[str, Any]) -> None:
        for peer in range(self._peers.size):
            if peer != self._peers.rank and peer not in self.departed:
                self._send(peer, frame)

    def _send(self, peer: int, frame: dict[str, Any]) -> None:
        data = json.dumps(frame).encode().ljust(_FRAME_BYTES)
        assert len(data) == _FRAME_BYTES, "a control frame is too long"
        self._sending.append((self._peers.isend(peer, CONTROL_LANE, memoryview(data)), data))

    def _unfinished(self, sending: list[tuple[Any, bytes]]) -> list[tuple[Any, bytes]]:
        if not sending:
            return sending
        try:
            ended = set(self._peers.test([request for request, _ in sending]))
        except PeerGone:
            return sending  # what it said before it went is read first, and tells more
        return [entry for i, entry in enumerate(sending) if i not in ended]

    def _listen(self, peer: int) -> None:
        memory = bytearray(_FRAME_BYTES)
        self._incoming.append(_Incoming(peer, memory))
        self._requests.append(self._peers.irecv(peer, CONTROL_LANE, memoryview(memory)))

    def _handle(self, peer: int, frame: dict[str, Any]) -> None:
        kind = frame["kind"]
        if kind == "goodbye":
            self.departed[peer] = time.monotonic()
        elif kind == "revoke":
            if self.failure is None:
                self.failure = frame["failure"]
        elif kind == "query":
            self._answer(peer, int(frame["seq"]))
        elif kind == "state":
            self._learn(peer, frame)

    def _answer(self, peer: int, seq: int) -> None:
        called = self._history.get(seq)
        state = {
            "kind": "state", "seq": seq, "last": max(self._history, default=0), "blames": self._blames,
            "reason": self._reason, "inside": self._inside is not None, "last_of_blamed": self._last_of_blamed,
            "call": None if called is None else record(seq, called),
        }  # fmt: skip
        self._send(peer, state)

    def _learn(self, peer: int, state: dict[str, Any]) -> None:
        """From a rank's answer: whether it made another call than this rank did, or whom it waits for itself."""
        if self._inside is None:
            return
        seq, call, message = self._inside
        theirs = state["call"]
        if theirs is not None and not message and state["seq"] == seq and theirs != record(seq, call):
            self.fail(FailureKind.MISMATCH, peer, record(seq, call), theirs=theirs)
        elif state["inside"] and state["blames"] not in (-1, self._peers.rank):
            self._blames, self._reason = state["blames"], state["reason"]
            self._last_of_blamed = state["last_of_blamed"]
        elif not message and state["last"] < seq:
            self._blames, self._reason, self._last_of_blamed = peer, Reason.NOT_CALLED, state["last"]
