"""What a trace tells of a call: when each of its steps began and ended, on one rank.

Times are seconds of CLOCK_MONOTONIC (`time.monotonic`), which all processes of one host share; hosts each have their
own. A step begins when its first byte moves and ends when its last byte has: a send when the lane has taken it (or,
where the peer reads it in place, the peer), a receive when it lies where it belongs.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TracedCall", "TracedStep"]


class TracedStep(NamedTuple):
    """A step of the call's program, as in transports/program.py; `peer` and `lane` of a local step mean nothing."""

    kind: int  # of program.Kind
    peer: int
    lane: int
    nbytes: int
    began_s: float
    ended_s: float


class TracedCall(NamedTuple):
    """One call; `steps` in the order of the program. Calls with the same `seq` on several ranks are the same call."""

    seq: int
    began_s: float
    ended_s: float
    steps: tuple[TracedStep, ...]
