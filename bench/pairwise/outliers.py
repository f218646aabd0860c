"""Which links are slow: robust statistics within each class of pairs, which a few slow ones do not move.

A pair stands out when it is slower than the median of its class by a factor of 1.5 at least, and by five times the
scaled median absolute deviation (MAD, times 1.4826 the standard deviation of normal noise; Hampel, 1974).
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["FACTOR", "Outlier", "find_outliers", "slow_ranks"]

FACTOR = 1.5
DEVIATIONS, NORMAL = 5.0, 1.4826
FEWEST = 3  # pairs of a class: of two nobody can tell which is the odd one
SLOW_RANK = 0.75  # of a rank's pairs


class Outlier(NamedTuple):
    """A slow pair, from one rank to another."""

    source: int
    target: int
    what: str  # "latency" in us, or "bandwidth" in GB/s
    value: float
    typical: float  # the median of its class
    level: str

    @property
    def factor(self) -> float:
        """How many times slower than typical."""
        return self.value / self.typical if self.what == "latency" else self.typical / self.value


def find_outliers(
    what: str, matrix: Sequence[Sequence[float | None]], levels: Sequence[Sequence[str]]
) -> list[Outlier]:
    """The slow ones of a matrix [from][to], the slowest first; `levels` says the class of each pair."""
    classes: defaultdict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for a, row in enumerate(matrix):
        for b, value in enumerate(row):
            if value is not None:
                classes[levels[a][b]].append((a, b, value))
    found: list[Outlier] = []
    for level, pairs in classes.items():
        if len({frozenset(pair[:2]) for pair in pairs}) < FEWEST:
            continue
        typical = statistics.median(value for _, _, value in pairs)
        spread = NORMAL * statistics.median(abs(value - typical) for _, _, value in pairs)
        for a, b, value in pairs:
            outlier = Outlier(a, b, what, value, typical, level)
            if outlier.factor >= FACTOR and abs(value - typical) > DEVIATIONS * spread:
                found.append(outlier)
    return sorted(found, key=lambda outlier: -outlier.factor)


def slow_ranks(outliers: Sequence[Outlier], levels: Sequence[Sequence[str]]) -> list[tuple[int, str, int, int]]:
    """Ranks most of whose pairs of one class stand out: (rank, level, slow pairs, pairs). It is they, not their links.

    Not where one slow rank explains what is slow about the others.
    """
    slow: Counter[tuple[int, str]] = Counter()
    for a, b, level in {(min(o.source, o.target), max(o.source, o.target), o.level) for o in outliers}:
        slow[a, level] += 1
        slow[b, level] += 1
    found: list[tuple[int, str, int, int]] = []
    for (rank, level), count in sorted(slow.items()):
        pairs = sum(name == level for peer, name in enumerate(levels[rank]) if peer != rank)
        if pairs >= FEWEST and count >= SLOW_RANK * pairs:
            found.append((rank, level, count, pairs))
    return found
