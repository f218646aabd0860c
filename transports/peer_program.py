"""A program in the shape in which peer_run.py runs it: tables to look things up in, made once."""

from __future__ import annotations

from typing import NamedTuple

from transports.memory import Memory
from transports.program import COLUMNS, Kind, Program

__all__ = ["OPERANDS", "Compiled", "compiled"]

_LEAST_SEGMENT_BYTES, _MOST_SEGMENT_BYTES = 256 << 10, 1 << 20

OPERANDS = tuple(COLUMNS.index(name) for name in ("a_buffer", "b_buffer", "out_buffer"))


class Queue(NamedTuple):
    """Steps that happen in order: those to, or from, one peer on one lane; a local step is alone in its queue."""

    kind: int  # SEND, RECV (also for RECV_REDUCE), or COPY for a local step
    peer: int
    lane: int
    steps: tuple[int, ...]


class Compiled(NamedTuple):
    """A program in the shape in which it is run."""

    program: Program
    memory: Memory  # that its buffers are in
    rows: list[list[int]]
    needs: list[list[list[int]]]  # of each step: (step, their first byte, my first byte, bytes)
    queues: tuple[Queue, ...]
    queue_of: list[int]
    headed: list[bool]  # of each step, whether a header goes before it
    wakes: list[tuple[int, ...]]  # the queues in which steps wait for this one
    segments: list[int]  # bytes
    extents: list[int]  # of each buffer, as far as steps touch it


def compiled(program: Program, memory: Memory) -> Compiled:
    """The tables that a run looks things up in."""
    rows: list[list[int]] = program.steps.tolist()
    table: list[list[int]] = program.dependencies.tolist()
    needs = [table[row[13] : row[14]] for row in rows]
    grouped: dict[tuple[int, int, int], list[int]] = {}
    for i, row in enumerate(rows):
        kind = Kind.COPY if row[0] > Kind.RECV_REDUCE else Kind.SEND if row[0] == Kind.SEND else Kind.RECV
        grouped.setdefault((kind, i, 0) if kind == Kind.COPY else (kind, row[1], row[2]), []).append(i)
    queues = tuple(Queue(*key, tuple(steps)) for key, steps in grouped.items())
    queue_of, headed = [0] * len(rows), [row[12] == 0 for row in rows]
    for number, queue in enumerate(queues):
        headed[queue.steps[0]] = True
        for step in queue.steps:
            queue_of[step] = number
    wakes: list[set[int]] = [set() for _ in rows]
    for i, waits in enumerate(needs):
        for other, *_ in waits:
            wakes[other].add(queue_of[i])
    extents = [0] * program.buffers
    for row in rows:
        for column in OPERANDS:
            extents[row[column]] = max(extents[row[column]], row[column + 1] + row[12])
    segments = [_segment_bytes(row[12]) for row in rows]
    return Compiled(
        program, memory, rows, needs, queues, queue_of, headed, [tuple(w) for w in wakes], segments, extents
    )


def _segment_bytes(nbytes: int) -> int:
    """A quarter of the message, so that it streams, within limits; the same at both ends."""
    quarter = 1 << max((nbytes // 4).bit_length(), 1)
    return max(_LEAST_SEGMENT_BYTES, min(quarter, _MOST_SEGMENT_BYTES))
