"""Composition: a small plan carried out by some of the ranks on some of the chunks of a larger one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collectives.plan import Copy, Reduce, Steps


def placed(steps: Steps, ranks: Sequence[int], chunks: Sequence[Sequence[int]]) -> Steps:
    """The steps, with rank i of the small plan played by `ranks[i]`, and its chunk c made of `chunks[c]`.

    All members must be given the same `chunks`, so that both ends cut a message alike: one message for every
    stretch of consecutive chunks. Small plans that use local steps or spare chunks cannot be placed.
    """
    for step in steps:
        assert not isinstance(step, (Copy, Reduce)), step
        for chunk, count in _stretches([c for i in range(step.count) for c in chunks[step.chunk + i]]):
            yield step._replace(peer=ranks[step.peer], chunk=chunk, count=count)


def _stretches(chunks: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for i in range(1, len(chunks) + 1):
        if i == len(chunks) or chunks[i] != chunks[i - 1] + 1:
            yield chunks[start], i - start
            start = i
