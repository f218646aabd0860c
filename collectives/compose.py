"""Composition: a small plan carried out by some of the ranks on some of the chunks of a larger one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

from collectives.steps import Copy, Reduce, Step

__all__ = ["Blocks", "Parts", "Run", "Small", "placed"]

Stretch = tuple[int, int]
"""First chunk and number of chunks."""


class Parts(Protocol):
    """What the blocks of a small plan are in the large one. Every member must be given the same, so that both ends
    cut a message alike: one message for every stretch. Blocks may be empty; then nothing is sent."""

    def stretches(self, chunk: int, count: int, pieces: int) -> Iterable[Stretch]:
        """The large plan's chunks that make up some of the small plan's, which cuts every block into `pieces`."""
        ...

    def only(self, part: int) -> Parts:
        """One of the parts, as the only block of a small plan."""
        ...


class Run(NamedTuple):
    """Chunks [start, stop), cut into `width` equal parts: blocks 0 to width - 1; the blocks after these are empty."""

    start: int
    stop: int
    width: int = 1

    def stretches(self, chunk: int, count: int, pieces: int) -> tuple[Stretch, ...]:
        start, stop, width = self
        each = (stop - start) // (width * pieces)
        first, last = start + chunk * each, min(start + (chunk + count) * each, stop)
        return ((first, last - first),) if first < last else ()

    def cut(self, width: int) -> Run:
        """The same chunks in that many parts."""
        return Run(self.start, self.stop, width)

    def only(self, part: int) -> Run:
        each = (self.stop - self.start) // self.width
        return Run(self.start + part * each, self.start + (part + 1) * each)


class Blocks(NamedTuple):
    """Part i is made of the large plan's blocks `parts[i]`, which it cuts into `chunks` pieces each."""

    parts: Sequence[Sequence[int]]
    chunks: int = 1

    def stretches(self, chunk: int, count: int, pieces: int) -> Iterator[Stretch]:
        each = self.chunks // pieces
        wanted = range(chunk, min(chunk + count, len(self.parts) * pieces))
        starts = (b * self.chunks + small % pieces * each for small in wanted for b in self.parts[small // pieces])
        return _joined(starts, each)

    def only(self, part: int) -> Blocks:
        return Blocks(self.parts[part : part + 1], self.chunks)


class Small(Protocol):
    """A plan, or what has as much of one."""

    @property
    def blocks(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    def steps(self, rank: int) -> Sequence[Step]: ...


def placed(plan: Small, member: int, ranks: Sequence[int], parts: Parts, data: int, *, lane: int = 0) -> list[Step]:
    """The steps of one member of a small plan, whose rank i is played by `ranks[i]` on these parts.

    `data` is the number of data chunks of the large plan: spare chunks keep their plane [Note: chunks]. `lane` is
    where the small plan's lanes begin.
    """
    cut = _remembered if isinstance(parts, Run) else _cut
    return [
        step if peer < 0 else _step(type(step), (ranks[peer], *rest))
        for step, peer, rest in cut(plan, member, parts, data, lane)
    ]


_Cut = tuple[Step, int, tuple[int, ...]]
"""A local step, or one with a peer of the small plan and what follows it."""
# Plans for simulation have millions of steps: this is quicker than calling their class.
_step = cast("Callable[[type[Step], tuple[int, ...]], Step]", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]


def _cut(plan: Small, member: int, parts: Parts, data: int, first_lane: int) -> list[_Cut]:
    """The steps of one member on the chunks of the large plan."""
    pieces, small = plan.chunks, plan.blocks * plan.chunks
    cut: list[_Cut] = []
    for step in plan.steps(member):
        if isinstance(step, (Copy, Reduce)):
            source, target, count, *rest = step
            assert source % small == target % small, step
            a, b = source // small * data, target // small * data
            for first, n in parts.stretches(source % small, count, pieces):
                cut.append((type(step)._make((a + first, b + first, n, *rest)), -1, ()))
        else:
            peer, chunk, count, lane, *rest = step
            plane = chunk // small * data
            for first, n in parts.stretches(chunk % small, count, pieces):
                cut.append((step, peer, (plane + first, n, first_lane + lane, *rest)))
    return cut


_remembered = lru_cache(maxsize=1024)(_cut)  # all hosts of one size do the same inside


def _joined(starts: Iterable[int], each: int) -> Iterator[Stretch]:
    """Runs of chunks that follow one another, from the first chunks of pieces of `each`."""
    first = end = -1
    for start in starts:
        if start != end:
            if first >= 0:
                yield first, end - first
            first = start
        end = start + each
    if first >= 0:
        yield first, end - first
