"""In which group each transfer of a script goes, for transports whose programs must say so (Program.groups)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from transports.conformance.scripts import Script
from transports.program import Action, Call, Kind, Program, build

__all__ = ["SEGMENT_BYTES", "StuckError", "in_groups"]

SEGMENT_BYTES = 1 << 20
_CALL = Call(0, 0, 0, -1, 0, 0)

_Step = tuple[int, int]
"""A rank, and a step of it."""


class StuckError(Exception):
    """The steps of a script wait for each other in a circle, and only their bytes do not: no groups are right."""


def in_groups(script: Script, size: int, buffers: int) -> Script:
    """The script, with the earliest group for every transfer. It is the same on all ranks."""
    groups = _groups(script, size, buffers)

    def grouped(rank: int) -> list[Action]:
        return [
            action._replace(group=groups.get((rank, i), -1), segment_bytes=SEGMENT_BYTES)
            for i, action in enumerate(script(rank))
        ]

    return grouped


class _Need(NamedTuple):
    """A row of Program.dependencies, with the rank."""

    step: _Step
    theirs: int
    mine: int
    nbytes: int


@lru_cache(maxsize=8)
def _groups(script: Script, size: int, buffers: int) -> dict[_Step, int]:
    programs = [build(script(rank), _CALL, buffers=buffers) for rank in range(size)]
    left = [*_pairs(programs), *_local_steps(programs)]
    first: dict[_Step, int] = {}  # of transfers: the group of the first segment
    last: dict[_Step, int] = {}  # of all steps: the group after which all is done
    while left:
        waiting: list[tuple[_Step, ...]] = []
        for node in left:
            needs = [need for end in node for need in _needs(programs, end)]
            if any(need.step not in last for need in needs):
                waiting.append(node)
            elif len(node) == 1:
                last[node[0]] = max((last[need.step] for need in needs), default=-1)
            else:
                group = max([0, *(_earliest(need, first, last) for need in needs)])
                nbytes = int(programs[node[0][0]].steps[node[0][1], 12])
                for end in node:
                    first[end] = group
                    last[end] = group + max(-(-nbytes // SEGMENT_BYTES), 1) - 1
        if len(waiting) == len(left):
            raise StuckError
        left = waiting
    return first


def _pairs(programs: list[Program]) -> list[tuple[_Step, ...]]:
    """Both ends of every transfer: the k-th that is sent on a lane is the k-th that is received there."""
    sent: dict[tuple[int, int, int], list[_Step]] = {}
    received: dict[tuple[int, int, int], list[_Step]] = {}
    for rank, program in enumerate(programs):
        for i, (kind, peer, lane) in enumerate(program.steps[:, :3].tolist()):
            if kind == Kind.SEND:
                sent.setdefault((rank, peer, lane), []).append((rank, i))
            elif kind <= Kind.RECV_REDUCE:
                received.setdefault((peer, rank, lane), []).append((rank, i))
    return [pair for lane, ends in sent.items() for pair in zip(ends, received[lane], strict=True)]


def _local_steps(programs: list[Program]) -> list[tuple[_Step, ...]]:
    return [
        ((rank, i),)
        for rank, program in enumerate(programs)
        for i, kind in enumerate(program.steps[:, 0].tolist())
        if kind > Kind.RECV_REDUCE
    ]


def _needs(programs: list[Program], end: _Step) -> list[_Need]:
    rank, i = end
    begin, stop = programs[rank].steps[i, 13:15].tolist()
    return [_Need((rank, row[0]), *row[1:]) for row in programs[rank].dependencies[begin:stop].tolist()]


def _earliest(need: _Need, first: dict[_Step, int], last: dict[_Step, int]) -> int:
    """The first group in which a transfer may begin, each segment of which needs a later group than its bytes had."""
    if need.step not in first:  # a local step, which is done at the end of a group
        return last[need.step] + 1
    lag = need.theirs // SEGMENT_BYTES - need.mine // SEGMENT_BYTES
    cut = -need.theirs % SEGMENT_BYTES  # the first byte that begins a segment of theirs
    if 0 < cut < need.nbytes:
        lag = max(lag, (need.theirs + cut) // SEGMENT_BYTES - (need.mine + cut) // SEGMENT_BYTES)
    return first[need.step] + 1 + lag
