"""Tori: every rank has a link each way along each dimension, and a message takes a shortest way, x first, then y, z.

A torus is the integer grid in which points that differ by a vector of a lattice are one rank. For the plain torus the
lattice is made by (x, 0, 0), (0, y, 0), (0, 0, z). A twisted one comes back shifted when it goes round a short
dimension, which makes all dimensions alike in length: n x n x 2n with (n, 0, n), (0, n, n), (0, 0, 2n), and
n x 2n x 2n with (n, n, n), (0, 2n, 0), (0, 0, 2n). These are the face- and the body-centered cubic lattice (Camarero,
Martinez and Beivide, "Lattice graphs for high-scale interconnection topologies", IEEE TPDS 2015). TPU v4 is wired so
(Jouppi et al., "TPU v4", ISCA 2023, section 2.8).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topology.cluster import IntArray, Link, Routes

__all__ = ["Torus", "twist"]

_AXES = "xyz"


def twist(shape: Sequence[int]) -> list[list[int]]:
    """The lattice of a twisted torus. Raises ValueError unless the shape is n, n, 2n or n, 2n, 2n in any order."""
    short, long = min(shape), max(shape)
    if long != 2 * short or not set(shape) <= {short, long}:
        raise ValueError(f"a twisted torus is n x n x 2n or n x 2n x 2n in any order, not {tuple(shape)}")
    rows = np.diag(shape)
    for axis, length in enumerate(shape):
        if length == short:  # going round it moves half way round each long dimension
            rows[axis] += [short * (other == long) for other in shape]
    return rows.tolist()


class Torus:
    """The links and routes of a torus, plain or twisted."""

    def __init__(
        self, shape: Sequence[int], lattice: Sequence[Sequence[int]], latency_s: float, bandwidth_bytes_per_s: float
    ) -> None:
        self._shape = np.array(shape)
        self._lattice = np.array(lattice)
        self._strides = np.array([int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))])
        # Reducing goes through the short dimensions first: their lattice vectors also shift the long ones.
        self._order = sorted(range(len(shape)), key=lambda axis: shape[axis])
        points = self._points(np.arange(int(np.prod(shape))))
        units: list[NDArray[np.int64]] = []
        names: list[str] = []
        self._slots: list[tuple[int, int]] = []  # of each axis: which of a rank's links goes forward, and which back
        for axis, length in enumerate(shape):
            unit = np.eye(len(shape), dtype=np.int64)[axis]
            both = bool(self._ranks(2 * unit[None, :]).any())  # of two ranks alone, forward and back are one link
            self._slots.append((len(units), len(units) + both))
            if length > 1:
                units += [unit, -unit][: 1 + both]
                names += [f"{_AXES[axis]}{sign}" for sign in "+-"[: 1 + both]]
        self._next = np.stack([self._ranks(points + unit) for unit in units], axis=1) if units else points
        self.links = [
            Link(f"{name} of {_where(point)}", latency_s, bandwidth_bytes_per_s)
            for point in points.tolist()
            for name in names
        ]
        self._first, self._count, self._ways = self._shortest()

    def route(self, sources: IntArray, targets: IntArray) -> Routes:
        start, end = self._points(sources), self._points(targets)
        apart = self._ranks(end - start)
        # Where several ways are equally short, neighbours take different ones, so that no direction is favoured.
        way = self._ways[self._first[apart] + start.sum(axis=1) % self._count[apart]]
        hops = np.abs(way)
        offsets = np.zeros(len(sources) + 1, np.int64)
        np.cumsum(hops.sum(axis=1), out=offsets[1:])
        numbers = np.empty(offsets[-1], np.int32)
        at, rank = offsets[:-1].copy(), np.array(sources)
        for axis, (forward, back) in enumerate(self._slots):
            slot = np.where(way[:, axis] > 0, forward, back)
            left = hops[:, axis].copy()
            going = np.flatnonzero(left)
            while going.size:
                numbers[at[going]] = rank[going] * self._next.shape[1] + slot[going]
                rank[going] = self._next[rank[going], slot[going]]
                at[going] += 1
                left[going] -= 1
                going = going[left[going] > 0]
        return offsets, numbers

    def _points(self, ranks: IntArray) -> NDArray[np.int64]:
        return np.stack(np.unravel_index(ranks, self._shape), axis=1).astype(np.int64)

    def _ranks(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rank at each point of the integer grid."""
        points = points.copy()
        for axis in self._order:
            points -= (points[:, axis] // self._shape[axis])[:, None] * self._lattice[axis]
        return points @ self._strides

    def _shortest(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All shortest ways from rank 0 to each rank: where they begin in the list, how many there are, the list.

        The ways to a point are the point less every lattice vector; only the nearest vectors can give a shortest one.
        """
        size = int(np.prod(self._shape))
        points = self._points(np.arange(size))
        near = [range(-1, 2) if length > 1 else range(1) for length in self._shape]
        away = np.array(list(itertools.product(*near))) @ self._lattice
        lengths = np.stack([np.abs(points - vector).sum(axis=1) for vector in away], axis=1)
        rank, which = np.nonzero(lengths == lengths.min(axis=1)[:, None])
        count = np.bincount(rank, minlength=size)
        return np.cumsum(count) - count, count, points[rank] - away[which]


def _where(point: Sequence[int]) -> str:
    return f"({', '.join(map(str, point))})" if len(point) > 1 else f"rank {point[0]}"
