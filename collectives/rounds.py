"""In which group each transfer of a plan goes, for layers below that have no order but that of a stream (NCCL).

There everything happens in the order in which it was handed over, group after group, so both ends of every transfer
must put it in the same group, and no group may hold two transfers of which one waits for the other. A message is cut
into segments; segment s of a message whose first segment is in group g goes into group g + s. So g must be late enough
that every segment finds the bytes it needs done in an earlier group, also where the steps before it touched these bytes
at other offsets of theirs.

    chain of 3 ranks, 3 segments      group 0     1     2     3
    rank 0 sends to rank 1                  s0    s1    s2
    rank 1 sends to rank 2                        s0    s1    s2

It is worked out on the plan of all ranks, from what all of them know: not where a rank has its arrays. Local steps
happen at the end of the group in which the bytes that they need are done, byte by byte, and so cost no group. An
all-to-all has blocks whose sizes only two ranks know; its messages are not cut.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple, cast

from collectives.graph import End, Graph, build
from collectives.plan import Copy, Plan, Recv, Send

__all__ = ["LOCAL", "WHOLE", "Schedule", "schedule"]

LOCAL = -1
"""The group of a step that is no transfer."""
WHOLE = 1 << 62
"""Bytes of a segment where messages are not cut."""
_GROUP_BYTES = 512 << 10  # what could be moved in the time that one more group costs, about
_MOST_SEGMENTS = 16
_ALIGN_BYTES = 64

_Done = dict[int, int]
"""When the bytes of a chunk were last touched: {d: g} says that byte x was in group g + (x + d) // segment_bytes."""


class Schedule(NamedTuple):
    """`groups[rank][step]` is the group of the first segment of a transfer, or LOCAL."""

    segment_bytes: int
    groups: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=256)
def schedule(plan: Plan, begins: tuple[int, ...], segment_bytes: int | None = None) -> Schedule:
    """The groups of a plan whose data chunks begin at these bytes (and the end of the last); the same on every rank.

    Without `segment_bytes`, messages are cut as far as it shortens the way of the last byte. Raises PlanError for a
    plan that would go wrong.
    """
    graph = build(plan)
    if plan.collective == "all_to_all":
        groups = [[LOCAL] * len(plan.steps(rank)) for rank in range(plan.size)]
        for (giver, taker), round_ in zip(graph.ends, graph.rounds, strict=True):
            if taker is not None:
                groups[giver[0]][giver[1]] = groups[taker[0]][taker[1]] = round_ - 1
        return Schedule(WHOLE, tuple(map(tuple, groups)))
    if segment_bytes is None:
        segment_bytes = _segment_bytes(graph, begins)
    return Schedule(segment_bytes, _groups(graph, begins, segment_bytes))


def _groups(graph: Graph, begins: tuple[int, ...], segment_bytes: int) -> tuple[tuple[int, ...], ...]:
    size, data = graph.plan.size, len(begins) - 1
    groups = [[LOCAL] * len(graph.plan.steps(rank)) for rank in range(size)]
    written: list[defaultdict[int, _Done]] = [defaultdict(dict) for _ in range(size)]
    read: list[defaultdict[int, _Done]] = [defaultdict(dict) for _ in range(size)]

    def earliest(end: End) -> int:
        """The first group in which this end of a transfer may begin."""
        rank, _, step = end
        assert not isinstance(step, Copy)
        first, count = step[1], step[2]
        group = 0
        for chunk in range(first, first + count):
            low, high = begins[chunk % data], begins[chunk % data + 1]
            mine = low - begins[first % data]
            touched = [written[rank][chunk]] if isinstance(step, Send) else [written[rank][chunk], read[rank][chunk]]
            for done in touched:
                for theirs, since in done.items():
                    group = max(group, since + 1 + _lag(theirs, mine, high - low, segment_bytes))
        return group

    for node in graph.order:
        giver, taker = graph.ends[node]
        if taker is None:
            rank, _, step = giver
            source, target, count = cast("Copy", step)[:3]
            for a, b in zip(range(source, source + count), range(target, target + count), strict=True):
                done = _latest(written[rank][a], written[rank][b], read[rank][b])
                written[rank][b], read[rank][b] = done, {}
                read[rank][a] = _latest(read[rank][a], done)
            continue
        group = max(earliest(giver), earliest(taker))
        for rank, index, step in (giver, taker):
            groups[rank][index] = group
            first, count = step[1], step[2]
            for chunk in range(first, first + count):
                done = {begins[chunk % data] - begins[first % data]: group}
                if isinstance(step, Send):
                    read[rank][chunk] = _latest(read[rank][chunk], done)
                else:
                    written[rank][chunk], read[rank][chunk] = done, {}
    return tuple(map(tuple, groups))


def _latest(*all_done: _Done) -> _Done:
    latest: _Done = {}
    for done in all_done:
        for offset, group in done.items():
            latest[offset] = max(group, latest.get(offset, group))
    return latest


def _lag(theirs: int, mine: int, nbytes: int, segment_bytes: int) -> int:
    """The most by which the segment of a byte counted from `theirs` is later than counted from `mine`."""
    if not nbytes:
        return -WHOLE
    at_first = theirs // segment_bytes - mine // segment_bytes
    cut = -theirs % segment_bytes  # the first byte that begins a segment of theirs
    if not 0 < cut < nbytes:
        return at_first
    return max(at_first, (theirs + cut) // segment_bytes - (mine + cut) // segment_bytes)


def _segment_bytes(graph: Graph, begins: tuple[int, ...]) -> int:
    """Cutting every message into k shortens the way of the last byte to busiest + (path - busiest) / k, where `path`
    counts one message after the other and `busiest` what one rank moves in all; each cut costs one more group."""
    data, size = len(begins) - 1, graph.plan.size
    of_round: dict[int, int] = {}
    sent, received = [0] * size, [0] * size
    for (giver, taker), round_ in zip(graph.ends, graph.rounds, strict=True):
        if taker is not None:
            step = cast("Recv", taker[2])
            first = step.chunk % data
            nbytes = begins[first + step.count] - begins[first]
            of_round[round_] = max(of_round.get(round_, 0), nbytes)
            sent[giver[0]] += nbytes
            received[taker[0]] += nbytes
    spared = sum(of_round.values()) - max(*sent, *received)
    pieces = min(max(round(math.sqrt(max(spared, 0) / _GROUP_BYTES)), 1), _MOST_SEGMENTS)
    longest = max(of_round.values(), default=0)
    return max(-(-longest // (pieces * _ALIGN_BYTES)) * _ALIGN_BYTES, _ALIGN_BYTES)
