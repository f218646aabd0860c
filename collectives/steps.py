"""What a rank does in a plan: the five steps, on chunk numbers, never on bytes.

[Note: chunks] A collective works on one array, made of `blocks` (table `COLLECTIVES` in plan.py); a plan cuts every
block into `chunks` equal pieces. Piece j of block b is chunk b * chunks + j, so with D = blocks * chunks the
data chunks are 0 .. D-1. Chunk p * D + c with p >= 1 is spare memory of the size of chunk c, empty when the
plan begins.

[Note: streaming] A step works byte by byte. Steps of one rank that touch the same chunk happen in the order
they were yielded, each byte as soon as the step before has finished that byte (two that only read may
overlap); other steps may overlap freely. Messages from one rank to another on one lane arrive in the order
they were sent. So a chain of `Recv`, `Send` pipelines by itself, and a plan is a handful of steps whatever
the size of the message.
"""

# A step's `count` hides tuple.count, which nobody calls on a step.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Copy", "Recv", "RecvReduce", "Reduce", "Send", "Step", "Steps"]


class Send(NamedTuple):
    """Stream chunks [chunk, chunk + count) to the peer."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0


class Recv(NamedTuple):
    """Overwrite chunks [chunk, chunk + count) with what the peer streams."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0


class RecvReduce(NamedTuple):
    """chunk = chunk op incoming; with `local_first=False`, incoming op chunk. The order fixes the bits."""

    peer: int
    chunk: int
    count: int = 1
    lane: int = 0
    local_first: bool = True


class Copy(NamedTuple):
    """target = source, on this rank."""

    source: int
    target: int
    count: int = 1


class Reduce(NamedTuple):
    """target = target op source, on this rank; with `target_first=False`, target = source op target."""

    source: int
    target: int
    count: int = 1
    target_first: bool = True


Step = Send | Recv | RecvReduce | Copy | Reduce
Steps = Iterator[Step]
