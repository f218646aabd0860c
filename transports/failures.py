"""From a failure as an engine records it to the exception that a caller sees: who, what, where, since when."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from transports.errors import (
    CollectiveError,
    CommunicatorBroken,
    DeadlineExceeded,
    MismatchError,
    PeerLostError,
    UnsupportedError,
    WireError,
)
from transports.program import DTYPE_NAMES, OP_NAMES

__all__ = ["FailureKind", "Names", "Reason", "exception"]


class FailureKind:
    """Why a communicator failed; engine/wire.hpp has the same numbers."""

    NONE, LOST, LEFT, DEADLINE, MISMATCH, WIRE, INTERRUPTED, CLOSED, FORKED, CONNECT = range(10)


class Reason:
    """What is known of the rank that was waited for; engine/wire.hpp has the same numbers."""

    UNKNOWN, NOT_CALLED, SILENT = range(3)


_OP_NAMES = {**OP_NAMES, len(OP_NAMES): "mean"}
_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter", "scan", "exscan"})
_ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})


class Names:
    """Words for the numbers of a fingerprint: collectives by number, algorithms by CRC-32 as they are used."""

    def __init__(self, collectives: tuple[str, ...] = (), algorithms: Iterable[str] = ()) -> None:
        self.collectives = collectives
        self._algorithms: dict[int, str] = {}
        for name in algorithms:
            self.algorithm(name)

    def algorithm(self, name: str) -> int:
        """The number of an algorithm's name, which is remembered."""
        number = zlib.crc32(name.encode())
        self._algorithms[number] = name
        return number

    def call(self, call: dict[str, Any]) -> str:
        """A call in words: all_reduce(float32, 4096 elements, op=sum, algorithm=ring) as call 17."""
        number = int(call["seq"])
        if call["point_to_point"]:
            dtype = DTYPE_NAMES.get(call["dtype"], "?")
            return f"message {number} ({dtype}, {call['elements']} elements)"
        if number == 0:
            return "no call yet"
        collective = int(call["collective"])
        known = collective < len(self.collectives)
        name = self.collectives[collective] if known else f"collective {collective}"
        words = [DTYPE_NAMES.get(call["dtype"], "?"), f"{call['elements']} elements"]
        if name in _REDUCING:
            words.append(f"op={_OP_NAMES.get(call['op'], '?')}")
        if name in _ROOTED:
            words.append(f"root={call['root']}")
        words.append(f"algorithm={self._algorithms.get(call['algorithm'], 'another')}")
        if name == "barrier":
            words = words[-1:]
        return f"{name}({', '.join(words)}) as call {number}"


def exception(
    failure: dict[str, Any], names: Names, rank: int, *, doing: str, step: str, who: str = ""
) -> CollectiveError:
    """The exception for a failure record, as seen by `rank` in the middle of `doing` at `step`.

    `who` describes the culprit (process, host). `failure` is the first cause, which may come from another rank.
    """
    culprit, detector = failure["culprit"], failure["detector"]
    kind = failure["kind"]
    here = f"rank {rank} was in {doing}, {step}" if step else f"rank {rank} was in {doing}"
    noticed = "" if detector in (rank, -1) else f"; rank {detector} noticed it in {names.call(failure['mine'])}"
    name = f"rank {culprit}{who}"
    if kind == FailureKind.LOST:
        return PeerLostError(f"lost {name}: its connection ended without a goodbye{noticed}; {here}")
    if kind == FailureKind.LEFT:
        return PeerLostError(f"{name} closed the communicator while it was still needed{noticed}; {here}")
    if kind == FailureKind.INTERRUPTED:
        return PeerLostError(f"{name} was interrupted (Ctrl-C){noticed}; {here}")
    if kind == FailureKind.CONNECT:
        return PeerLostError(f"{name} could not connect to a peer, and says itself why{noticed}; {here}")
    if kind == FailureKind.DEADLINE:
        last = int(failure["theirs"]["seq"])
        why = {
            Reason.NOT_CALLED: f"it has not made this call ({f'its last was call {last}' if last else 'nor any'})",
            Reason.SILENT: "it does not answer: stopped, or its host cannot be reached",
        }.get(failure["reason"], "nothing came from it, or it took nothing")
        waited = f"no progress for {failure['waited_s']:.1f} s"
        return DeadlineExceeded(f"{waited}, waiting for {name}: {why}{noticed}; {here}")
    if kind == FailureKind.MISMATCH:
        mine, theirs = names.call(failure["mine"]), names.call(failure["theirs"])
        if mine == theirs:
            mine, theirs = f"{mine} with other sizes or hosts", theirs
        at = f"; {here}" if detector != rank else ""
        return MismatchError(f"rank {detector} called {mine}, but rank {culprit} called {theirs}{at}")
    if kind == FailureKind.WIRE:
        return WireError(f"what came from {name} is not of this protocol, version or communicator{noticed}; {here}")
    if kind == FailureKind.FORKED:
        return UnsupportedError(
            "this process was forked after connect(): a communicator belongs to the process that made it; "
            "fork first, or start processes with the 'spawn' method"
        )
    return CommunicatorBroken(f"the communicator was closed; {here}")
