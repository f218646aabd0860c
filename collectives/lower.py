"""From a plan to a program: chunks become byte ranges of the caller's arrays.

A chunk has a value, and the value a place, which this module follows step by step. At the start it is where the caller
put it (the input). The first step that writes the chunk puts the value at the chunk's home: the output if the chunk is
part of the result, scratch memory otherwise. So inputs are never modified (unless they are also the output), nothing is
copied that a transfer or a combination can move, and what is still not at home in the end is copied there. The mean is
a sum whose last copy divides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from collectives.plan import Copy, Plan, Recv, RecvReduce, Reduce, Send, Step
from collectives.rounds import schedule
from transports.program import Action, Kind, Place

__all__ = ["ArrayLayout", "lower"]

_ALIGN_BYTES = 64
_STRIPE_BYTES = 128 << 10  # a message is worth a second lane from twice this size


class ArrayLayout(NamedTuple):
    """One array of a call.

    `blocks` are the sizes of the plan's blocks in elements. `input` and `output` say where the first input and output
    block begins: (buffer, byte); the same buffer when the call is in place. `scratch` is where its scratch may begin.
    """

    blocks: tuple[int, ...]
    item_bytes: int
    dtype: int
    op: int
    mean: bool
    input: Place
    output: Place
    scratch: Place


class _Chunks:
    """Sizes and places of a plan's chunks on one rank."""

    def __init__(self, plan: Plan, rank: int, layout: ArrayLayout) -> None:
        self.layout = layout
        self.begin = _boundaries(layout.blocks, plan.chunks, layout.item_bytes)
        self.data = len(self.begin) - 1
        self.inputs, self.outputs = plan.input_chunks(rank), plan.output_chunks(rank)
        self.at: dict[int, Place] = {c: self._from(layout.input, self.inputs, c) for c in self.inputs}
        self.scratch_planes: dict[int, tuple[int, int]] = {}  # plane: (first chunk used, byte in scratch)
        self.scratch_bytes = 0
        self._plan_scratch(plan, rank)

    def nbytes(self, chunk: int, count: int = 1) -> int:
        first = chunk % self.data
        return self.begin[first + count] - self.begin[first]

    def home(self, chunk: int) -> Place:
        if chunk in self.outputs and chunk not in self.detoured:
            return self._from(self.layout.output, self.outputs, chunk)
        first, offset = self.scratch_planes[chunk // self.data]
        scratch = self.layout.scratch
        inside = self.begin[chunk % self.data] - self.begin[first]
        return Place(scratch.buffer, scratch.offset_bytes + offset + inside)

    def output(self, chunk: int) -> Place:
        return self._from(self.layout.output, self.outputs, chunk)

    def together(self, chunk: int, count: int) -> bool:
        """Whether the values of these chunks lie one after the other."""
        first = self.at[chunk]
        base = self.begin[chunk % self.data]
        return all(
            self.at[c] == (first.buffer, first.offset_bytes + self.begin[c % self.data] - base)
            for c in range(chunk, chunk + count)
        )

    def _from(self, start: Place, chunks: range, chunk: int) -> Place:
        return Place(start.buffer, start.offset_bytes + self.begin[chunk] - self.begin[chunks.start])

    def _plan_scratch(self, plan: Plan, rank: int) -> None:
        """Finds the chunks that need scratch, and output chunks that must take the way through it because one step
        wants them together with chunks that are not output. A plane's scratch is contiguous, as its chunks are."""
        groups = [range(chunk, chunk + count) for chunk, count in self._brought_together(plan.steps(rank))]
        self.detoured: set[int] = set()
        known = -1
        while known < len(self.detoured):  # what is detoured takes its companions in other steps along
            known = len(self.detoured)
            for group in groups:
                if self._through_scratch(group):
                    self.detoured.update(c for c in group if c in self.outputs)
        needed: dict[int, list[int]] = {}
        for group in groups:
            if self._through_scratch(group):
                first = group.start % self.data
                needed.setdefault(group.start // self.data, []).extend((first, first + len(group)))
        for plane, ends in needed.items():
            first, last = min(ends), max(ends)
            self.scratch_planes[plane] = (first, self.scratch_bytes)
            self.scratch_bytes += -(-(self.begin[last] - self.begin[first]) // _ALIGN_BYTES) * _ALIGN_BYTES

    def _through_scratch(self, group: range) -> bool:
        return any(c not in self.outputs or c in self.detoured for c in group)

    def _brought_together(self, steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
        """The chunks whose values a step puts at their homes, side by side: those that it writes, and those that it
        reads at once while some are still where the caller put them and others are not."""
        settled: set[int] = set()
        for step in steps:
            reads, writes = _operands(step)
            for chunk, count in reads:
                moved = settled.intersection(range(chunk, chunk + count))
                if count > 1 and moved:
                    yield chunk, count
                    settled.update(range(chunk, chunk + count))
            for chunk, count in writes:
                yield chunk, count
                settled.update(range(chunk, chunk + count))


def lower(
    plan: Plan, rank: int, layout: ArrayLayout, *, stripes: int = 1, first_lane: int = 0, grouped: bool = False
) -> tuple[list[Action], int]:
    """The actions of one rank on one array, in order, and the bytes of scratch they need.

    Every large message is cut into `stripes` pieces, each on a lane of its own. Empty messages are left out.
    `grouped`: the transfers say in which group they are (rounds.py), and are not cut into stripes.
    """
    chunks = _Chunks(plan, rank, layout)
    segment_bytes, groups = 0, (-1,) * len(plan.steps(rank))
    if grouped:
        stripes = 1
        segment_bytes, of_ranks = schedule(plan, tuple(chunks.begin))
        groups = of_ranks[rank]
    dtype, op = layout.dtype, layout.op
    actions: list[Action] = []

    def local(
        kind: int, chunk: int, count: int, out: Place, a: Place, b: Place | None = None, a_first: bool = True
    ) -> None:
        nbytes = chunks.nbytes(chunk, count)
        if nbytes and (kind != Kind.COPY or a != out):
            actions.append(Action(kind, nbytes, -1, 0, dtype, op, a_first, a, b or a, out))

    def gather(chunk: int, count: int) -> Place:
        """Where the chunks' values begin, after bringing them together."""
        if not chunks.together(chunk, count):
            for c in range(chunk, chunk + count):
                local(Kind.COPY, c, 1, chunks.home(c), chunks.at[c])
                chunks.at[c] = chunks.home(c)
        return chunks.at[chunk]

    def settle(chunk: int, count: int) -> Place:
        for c in range(chunk, chunk + count):
            chunks.at[c] = chunks.home(c)
        return chunks.at[chunk]

    for step, group in zip(plan.steps(rank), groups, strict=True):
        if isinstance(step, Copy):
            source = gather(step.source, step.count)
            local(Kind.COPY, step.target, step.count, settle(step.target, step.count), source)
        elif isinstance(step, Reduce):
            source, target = gather(step.source, step.count), gather(step.target, step.count)
            out = settle(step.target, step.count)
            local(Kind.REDUCE, step.target, step.count, out, target, source, step.target_first)
        else:
            nbytes = chunks.nbytes(step.chunk, step.count)
            a = out = Place(layout.scratch.buffer, 0)
            if not isinstance(step, Recv):
                a = gather(step.chunk, step.count)
            if not isinstance(step, Send):
                out = settle(step.chunk, step.count)
            if not nbytes:
                continue
            kind = _KINDS[type(step)]
            first = step.local_first if isinstance(step, RecvReduce) else True
            for stripe, low, high in _stripes(nbytes, stripes):
                lane = first_lane + step.lane * stripes + stripe
                a_part, out_part = Place(a.buffer, a.offset_bytes + low), Place(out.buffer, out.offset_bytes + low)
                ends = (a_part, a_part, out_part)
                actions.append(Action(kind, high - low, step.peer, lane, dtype, op, first, *ends, group, segment_bytes))
    for c in chunks.outputs:
        local(Kind.DIVIDE if layout.mean else Kind.COPY, c, 1, chunks.output(c), chunks.at[c])
    return actions, chunks.scratch_bytes


_KINDS = {Send: Kind.SEND, Recv: Kind.RECV, RecvReduce: Kind.RECV_REDUCE}


def _operands(step: Step) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The chunks that a step reads, and those that it writes, as (first, count)."""
    if isinstance(step, (Copy, Reduce)):
        source, target = (step.source, step.count), (step.target, step.count)
        return ([source] if isinstance(step, Copy) else [source, target]), [target]
    own = (step.chunk, step.count)
    return ([] if isinstance(step, Recv) else [own]), ([] if isinstance(step, Send) else [own])


def _boundaries(blocks: Sequence[int], pieces: int, item_bytes: int) -> list[int]:
    """The byte at which each chunk begins, and the end. Chunks of large blocks begin at multiples of a cache line."""
    align = max(_ALIGN_BYTES // item_bytes, 1)
    boundaries, start = [0], 0
    for block in blocks:
        unit = align if block >= 4 * align * pieces else 1
        for i in range(1, pieces + 1):
            boundaries.append((start + min(block, -(-(block * i // pieces) // unit) * unit)) * item_bytes)
        start += block
    return boundaries


def _stripes(nbytes: int, stripes: int) -> Iterator[tuple[int, int, int]]:
    if stripes == 1 or nbytes < 2 * _STRIPE_BYTES:
        yield 0, 0, nbytes
        return
    stripes = min(stripes, nbytes // _STRIPE_BYTES)
    ends = [nbytes * (i + 1) // stripes // _ALIGN_BYTES * _ALIGN_BYTES for i in range(stripes - 1)] + [nbytes]
    for i, end in enumerate(ends):
        yield i, ends[i - 1] if i else 0, end
