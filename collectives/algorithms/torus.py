"""Torus: a ring along each dimension, all dimensions and both directions at the same time.

Rank (x, y, z) of an X x Y x Z torus is (x * Y + y) * Z + z, and has a neighbour each way in every dimension. The
array is cut into parts, one for each dimension and direction; part i begins with dimension i, and then takes the
others in turn, so that at any time the parts are on different links. On 3 x 3 ranks, part 0 of four:

    along x, to higher ranks:      every column (the same y) reduce-scatters: each rank has a third, summed over x
    along y:                       every row reduce-scatters its third: each rank has a ninth of the whole sum
    then back: all-gather along y, along x            parts 1, 2, 3: y first; x and y first, to lower ranks

"torus(4x4x4)" gives the sides; "torus" takes the three whose sum is the least for the number of ranks. With one side
it is the ring.

Source: the multi-port bucket algorithms of Jain and Sabharwal, Optimal bucket algorithms for large MPI collectives
on torus interconnects (ICS 2010), and Sack and Gropp, Collective algorithms for multiported torus networks (ACM
TOPC 1(2), 2015). The machines meant are those of Jouppi et al., TPU v4 (ISCA 2023).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

from collectives.compose import Blocks, Parts, Run, placed
from collectives.plan import Step, Steps, algorithm, plan


class _Part(NamedTuple):
    """One part of the array: which it is, its dimensions in turn, and which way round."""

    number: int
    turns: tuple[int, ...]
    up: bool


def _check(arguments: tuple[str, ...]) -> None:
    if len(arguments) != 1 or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", arguments[0]):
        raise ValueError(f"torus({', '.join(arguments)}) needs its sides, as in torus(4x4x4) or torus(8x2)")


@lru_cache(maxsize=256)
def sides(size: int, arguments: tuple[str, ...]) -> tuple[int, ...]:
    """The sides that are given, or the three with the least sum. Raises ValueError when they do not hold `size`."""
    if arguments:
        given = tuple(int(side) for side in arguments[0].split("x"))
        if prod(given) != size:
            best = "x".join(map(str, sides(size, ())))
            raise ValueError(f"torus({arguments[0]}) is for {prod(given)} ranks, not {size}; torus({best}) would do")
        return given
    boxes = [
        (size // (b * c), b, c)
        for c in range(1, round(size ** (1 / 3)) + 2)
        if size % c == 0
        for b in range(c, size // c + 1)
        if size // c % b == 0 and b * b * c <= size
    ]
    return min(boxes, key=sum)


def _parts(size: int, arguments: tuple[str, ...]) -> list[_Part]:
    long = [dimension for dimension, side in enumerate(sides(size, arguments)) if side > 1]
    starts = [(up, i) for up in (True, False) for i in range(len(long))]
    return [_Part(number, (*long[i:], *long[:i]), up) for number, (up, i) in enumerate(starts)]


def _count(size: int, arguments: tuple[str, ...]) -> int:
    return max(len(_parts(size, arguments)), 1)


def _chunks(size: int, arguments: tuple[str, ...]) -> int:
    return size * _count(size, arguments)


@algorithm("all_reduce", "torus", chunks=_chunks, lanes=_count, arguments=_check)
def all_reduce(rank: int, size: int, arguments: tuple[str, ...]) -> Steps:
    """Every part is reduce-scattered along one dimension after the other, and gathered on the way back.

    The drawing is at the head of this file. S is the sum of the sides, each less one.

    rounds: 2*S
    sent: 2*(n-1)/n
    Wins for large arrays on a torus: the least bytes, to neighbours only, and all links busy: on a cube of d
    dimensions each carries (n-1)/(d*n) of the array, where a ring leaves all but two of a rank's 2*d idle.
    Source: Jain and Sabharwal (2010), Sack and Gropp (2015).
    """
    data = size * _count(size, arguments)
    for part in _parts(size, arguments):
        whole = Run(part.number * size, (part.number + 1) * size)
        lines = list(_lines(rank, sides(size, arguments), part, whole))
        for line in lines:
            yield from line.steps("reduce_scatter", part, data)
        for line in reversed(lines):
            yield from line.steps("all_gather", part, data)


@algorithm("reduce_scatter", "torus", chunks=_count, lanes=_count, arguments=_check)
def reduce_scatter(rank: int, size: int, arguments: tuple[str, ...]) -> Steps:
    """Every part of the blocks is reduce-scattered along one dimension after the other.

    The drawing is at the head of this file. As many exchanges as the sides less one each, of a message for every
    stretch of blocks that follow one another.

    rounds <= n-1
    sent: (n-1)/n
    Wins for large arrays on a torus: the least bytes, to neighbours only, and all links busy.
    Source: Jain and Sabharwal (2010), Sack and Gropp (2015).
    """
    data = size * _count(size, arguments)
    for part in _parts(size, arguments):
        for line in _lines(rank, sides(size, arguments), part, None):
            yield from line.steps("reduce_scatter", part, data)


@algorithm("all_gather", "torus", chunks=_count, lanes=_count, arguments=_check)
def all_gather(rank: int, size: int, arguments: tuple[str, ...]) -> Steps:
    """Every part of the blocks is gathered along one dimension after the other.

    The drawing is at the head of this file, of which this is the second half. As many exchanges as the sides less
    one each, of a message for every stretch of blocks that follow one another.

    rounds <= n-1
    sent: (n-1)/n
    Wins for large arrays on a torus: the least bytes, to neighbours only, and all links busy.
    Source: Jain and Sabharwal (2010), Sack and Gropp (2015).
    """
    data = size * _count(size, arguments)
    for part in _parts(size, arguments):
        for line in reversed(list(_lines(rank, sides(size, arguments), part, None))):
            yield from line.steps("all_gather", part, data)


class _Line(NamedTuple):
    """The ranks along one dimension, in the direction of a part, this one's place, and what each is to have."""

    ranks: list[int]
    place: int
    chunks: Parts

    def steps(self, collective: str, part: _Part, data: int) -> list[Step]:
        ring = plan(collective, "ring", len(self.ranks))
        return placed(ring, self.place, self.ranks, self.chunks, data, lane=part.number)


def _lines(rank: int, sides: tuple[int, ...], part: _Part, whole: Run | None) -> Iterator[_Line]:
    """The lines that a rank is on, dimension by dimension in turn.

    What they work on is `whole`, to be cut as they are, or None: that piece of every rank's block that the part is.
    """
    pieces = 2 * len(part.turns)
    blocks = list(range(prod(sides)))
    for dimension in part.turns:
        side, stride = sides[dimension], prod(sides[dimension + 1 :])
        here = rank // stride % side
        places = range(side) if part.up else range(side)[::-1]
        ranks = [rank + (place - here) * stride for place in places]
        mine = places.index(here)
        if whole is not None:
            chunks: Parts = whole.cut(side)
            whole = whole.cut(side).only(mine)
        else:
            chunks = Blocks([[b * pieces + part.number for b in blocks if b // stride % side == p] for p in places])
            blocks = [b for b in blocks if b // stride % side == here]
        yield _Line(ranks, mine, chunks)
