"""A program: what one rank does in one call, as steps on byte ranges of buffers. Plain arrays that any transport runs.

A step is a row of `Program.steps` with the columns of `COLUMNS`. Its operands `a` (local input), `b` (second local
input) and `out` are a buffer number and a byte offset each. What the kinds do, on `bytes` bytes:

    SEND         stream a to the peer                       COPY     out = a
    RECV         out = what the peer streams                REDUCE   out = a op b   (b op a unless local_first)
    RECV_REDUCE  out = a op incoming   (incoming op a unless local_first)       DIVIDE   out = a / divisor

Steps that send to, or receive from, one peer on one lane happen in order; each transfer step is one message. Beyond
that a step waits only for bytes: a row (step, their_begin, my_begin, bytes) of `Program.dependencies` says that byte
my_begin + k of this step may be touched once byte their_begin + k of that step is done. `build` derives these rows from
the byte ranges: whoever reads what was written waits for the writer, whoever overwrites waits for the readers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "COLUMNS",
    "DTYPES",
    "DTYPE_NAMES",
    "ITEM_BYTES",
    "OPS",
    "OP_NAMES",
    "Action",
    "Call",
    "Kind",
    "Native",
    "Place",
    "Program",
    "build",
]

# Numbers of the wire format; engine/kernels.hpp has the same.
DTYPES: dict[str, tuple[int, int]] = {  # name: (number, bytes of an element)
    "float16": (0, 2),
    "bfloat16": (1, 2),
    "float32": (2, 4),
    "float64": (3, 8),
    "int8": (4, 1),
    "int16": (5, 2),
    "int32": (6, 4),
    "int64": (7, 8),
    "uint8": (8, 1),
    "uint16": (9, 2),
    "uint32": (10, 4),
    "uint64": (11, 8),
    "bool": (12, 1),
    "complex64": (13, 8),
    "complex128": (14, 16),
    "bytes": (15, 1),  # anything that is only moved
}
OPS: dict[str, int] = {"sum": 0, "prod": 1, "min": 2, "max": 3, "and": 4, "or": 5, "xor": 6}

DTYPE_NAMES = {number: name for name, (number, _) in DTYPES.items()}
ITEM_BYTES = dict(DTYPES.values())
OP_NAMES = {number: name for name, number in OPS.items()}


class Kind:
    """The kinds of steps, as numbers in `Program.steps`."""

    SEND, RECV, RECV_REDUCE, COPY, REDUCE, DIVIDE = range(6)
    NAMES = ("Send", "Recv", "RecvReduce", "Copy", "Reduce", "Divide")


COLUMNS = (
    "kind", "peer", "lane", "dtype", "op", "local_first",
    "a_buffer", "a_offset", "b_buffer", "b_offset", "out_buffer", "out_offset",
    "bytes", "dependencies_begin", "dependencies_end",
)  # fmt: skip


class Place(NamedTuple):
    """Where an operand begins."""

    buffer: int
    offset_bytes: int


NOWHERE = Place(0, 0)


class Action(NamedTuple):
    """A step before its dependencies are known."""

    kind: int
    nbytes: int
    peer: int = -1
    lane: int = 0
    dtype: int = 15
    op: int = 0
    local_first: bool = True
    a: Place = NOWHERE
    b: Place = NOWHERE
    out: Place = NOWHERE
    group: int = -1  # of the first segment, and the bytes of a segment, in a grouped program
    segment_bytes: int = 0

    def reads(self) -> tuple[Place, ...]:
        """The operands that it reads."""
        return {Kind.RECV: (), Kind.REDUCE: (self.a, self.b)}.get(self.kind, (self.a,))

    def writes(self) -> tuple[Place, ...]:
        """The operand that it writes, if any."""
        return () if self.kind == Kind.SEND else (self.out,)


class Call(NamedTuple):
    """What all ranks must agree on in one call: the fingerprint in front of every message."""

    collective: int
    dtype: int
    op: int
    root: int
    elements: int  # of the whole array
    algorithm: int  # CRC-32 of its name
    extra: int = 0  # CRC-32 of what else must agree


class Native(NamedTuple):
    """A call that is handed to the layer below as a whole: MPI_Allreduce, ncclAllReduce and their like.

    `blocks` are the elements of each block of the collective, as in a plan: one for an array that all ranks have
    whole, one a rank where it is split, and for an all-to-all those that this rank gives, then those that it gets.
    `input` or `output` is None where this rank gives or gets nothing; both may be the same bytes, or overlap where
    the collective works in place.
    """

    collective: str
    dtype: int
    item_bytes: int
    op: int  # of OPS; a mean is a sum, and a division at the end by Program.divisor
    mean: bool
    root: int
    blocks: tuple[int, ...]
    input: Place | None
    output: Place | None
    device_kind: str = "cpu"  # where the arrays are

    def elements(self, rank: int, size: int) -> tuple[int, int]:
        """How many elements a rank gives and gets, where it gives or gets something."""
        whole, one = sum(self.blocks[:size]), self.blocks[min(rank, len(self.blocks) - 1)]
        gives = one if self.collective in ("all_gather", "gather") else whole
        gets = one if self.collective in ("reduce_scatter", "scatter") else whole
        return gives, sum(self.blocks[size:]) if self.collective == "all_to_all" else gets


@dataclass(frozen=True)
class Program:
    """The steps of one rank. `buffers` arrays are given to a run, the last of them scratch memory of the call.

    native    in place of steps: what the layer below is to do
    groups    for each step the group of its first segment, -1 for a local step, and the bytes of a segment; where the
              transport asked for them (base.py)
    """

    call: Call
    steps: npt.NDArray[np.int64]
    dependencies: npt.NDArray[np.int64]
    buffers: int
    scratch_bytes: int
    divisor: int = 1
    native: tuple[Native, ...] = ()
    groups: npt.NDArray[np.int64] | None = None

    def channels(self) -> set[tuple[int, int]]:
        """The (peer, lane) pairs it needs."""
        moves = self.steps[self.steps[:, 0] <= Kind.RECV_REDUCE]
        return {(int(peer), int(lane)) for peer, lane in moves[:, 1:3]}

    def describe(self, step: int) -> str:
        """One step in words, for messages."""
        if not 0 <= step < len(self.steps):
            return "no step"
        row = self.steps[step]
        way = " to" if row[0] == Kind.SEND else " from"
        with_whom = f"{way} rank {row[1]}" if row[0] <= Kind.RECV_REDUCE else ""
        return f"step {step} of {len(self.steps)} ({Kind.NAMES[row[0]]}{with_whom}, {row[12]} bytes)"


def build(actions: Sequence[Action], call: Call, *, buffers: int, scratch_bytes: int = 0, divisor: int = 1) -> Program:
    """The program of these actions, with the dependencies that their byte ranges imply."""
    cuts = _cuts(actions, buffers)
    last_writer: list[list[int]] = [[-1] * len(c) for c in cuts]
    readers: list[list[list[int]]] = [[[] for _ in c] for c in cuts]
    steps = np.zeros((len(actions), len(COLUMNS)), np.int64)
    dependencies: list[tuple[int, int, int, int]] = []

    for index, action in enumerate(actions):
        begin = len(dependencies)
        waits: list[tuple[int, int, int, int]] = []
        for place in action.reads():
            for piece, low, high in _pieces(cuts, place, action.nbytes):
                if (writer := last_writer[place.buffer][piece]) >= 0:
                    waits += _overlaps(actions[writer], writer, place, low, high)
        for place in action.writes():
            for piece, low, high in _pieces(cuts, place, action.nbytes):
                before = readers[place.buffer][piece] or [last_writer[place.buffer][piece]]
                for i in before:
                    if i >= 0:
                        waits += _overlaps(actions[i], i, place, low, high)
        for place in action.reads():
            for piece, _, _ in _pieces(cuts, place, action.nbytes):
                readers[place.buffer][piece].append(index)
        for place in action.writes():
            for piece, _, _ in _pieces(cuts, place, action.nbytes):
                last_writer[place.buffer][piece] = index
                readers[place.buffer][piece] = []
        dependencies += _joined(wait for wait in waits if wait[0] != index)
        steps[index] = (
            action.kind, action.peer, action.lane, action.dtype, action.op, action.local_first,
            *action.a, *action.b, *action.out, action.nbytes, begin, len(dependencies),
        )  # fmt: skip
    table = np.zeros((len(dependencies), 4), np.int64)
    table[:] = dependencies or np.zeros((0, 4), np.int64)
    grouped = any(action.segment_bytes for action in actions)
    groups = np.array([(a.group, a.segment_bytes) for a in actions], np.int64) if grouped else None
    return Program(call, steps, table, buffers, scratch_bytes, divisor, groups=groups)


def _cuts(actions: Iterable[Action], buffers: int) -> list[list[int]]:
    """Per buffer the sorted offsets at which some operand begins or ends."""
    found: list[set[int]] = [set() for _ in range(buffers)]
    for action in actions:
        for place in (*action.reads(), *action.writes()):
            found[place.buffer] |= {place.offset_bytes, place.offset_bytes + action.nbytes}
    return [sorted(offsets) for offsets in found]


def _pieces(cuts: list[list[int]], place: Place, nbytes: int) -> Iterable[tuple[int, int, int]]:
    """The pieces between cuts that an operand covers: (number, first byte, end)."""
    offsets = cuts[place.buffer]
    piece = bisect_left(offsets, place.offset_bytes)
    end = place.offset_bytes + nbytes
    while offsets[piece] < end:
        yield piece, offsets[piece], offsets[piece + 1]
        piece += 1


def _overlaps(other: Action, index: int, mine: Place, low: int, high: int) -> Iterable[tuple[int, int, int, int]]:
    """The dependency rows: bytes [low, high) of a buffer, as counted by the other step and by mine. There are several
    where two operands of the other step have these bytes at different offsets."""
    for theirs in (*other.writes(), *other.reads()):
        if theirs.buffer == mine.buffer and theirs.offset_bytes <= low < theirs.offset_bytes + other.nbytes:
            yield index, low - theirs.offset_bytes, low - mine.offset_bytes, high - low


def _joined(waits: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """The same rows, each once, with adjacent ones of a step made one."""
    joined: list[tuple[int, int, int, int]] = []
    for step, theirs, mine, nbytes in sorted(set(waits)):
        if joined:
            s, t, m, n = joined[-1]
            if s == step and t + n == theirs and m + n == mine:
                joined[-1] = (s, t, m, n + nbytes)
                continue
        joined.append((step, theirs, mine, nbytes))
    return joined
