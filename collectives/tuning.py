"""What algorithms took on the machines at hand: the table that `Communicator.tune` makes."""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from collectives.plan import COLLECTIVES

__all__ = ["Tuning"]


@dataclass(frozen=True)
class Tuning:
    """Measured seconds by collective, algorithm, and bytes of the whole array; the same on every rank."""

    times_s: Mapping[str, Mapping[str, Mapping[int, float]]]

    def sizes(self, collective: str) -> list[int]:
        """The sizes at which anything was measured."""
        return sorted({nbytes for times in self.times_s.get(collective, {}).values() for nbytes in times})

    def measured_s(self, collective: str, algorithm: str, nbytes: float) -> float | None:
        """What was measured at that size; between two measured sizes, the time on the line through both on logarithmic
        axes. None where no measured size is as small, or none as large.
        """
        times = self.times_s.get(collective, {}).get(algorithm, {})
        sizes = sorted(times)
        at = bisect_left(sizes, nbytes)
        if at == len(sizes):
            return None
        if sizes[at] == nbytes:
            return times[sizes[at]]
        if at == 0:
            return None
        low, high = sizes[at - 1], sizes[at]
        share = math.log(nbytes / low) / math.log(high / low)
        return times[low] ** (1 - share) * times[high] ** share

    def nearest(self, collective: str, algorithm: str, nbytes: float) -> tuple[int, float] | None:
        """The measured size that is nearest on a logarithmic axis, and its time; None where there is none."""
        times = self.times_s.get(collective, {}).get(algorithm, {})
        if not times:
            return None
        size = min(times, key=lambda measured: abs(math.log(measured / max(nbytes, 1))))
        return size, times[size]

    def merged(self, other: Tuning) -> Tuning:
        """Both tables in one; where both have a time, the other's."""
        merged = {c: {a: dict(times) for a, times in by.items()} for c, by in self.times_s.items()}
        for collective, by in other.times_s.items():
            for algorithm, times in by.items():
                merged.setdefault(collective, {}).setdefault(algorithm, {}).update(times)
        return Tuning(merged)

    def to_json(self) -> str:
        """As one JSON object, which `from_json` reads back equal."""
        return json.dumps(
            {c: {a: [*map(list, sorted(t.items()))] for a, t in by.items()} for c, by in self.times_s.items()}
        )

    @staticmethod
    def from_json(text: str) -> Tuning:
        """What `to_json` wrote. Raises ValueError that names what is wrong."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a tuning table is a JSON object: {error}") from None
        table: dict[str, dict[str, dict[int, float]]] = {}
        for collective, by in _object(given, "a tuning table").items():
            if collective not in COLLECTIVES:
                raise ValueError(f"there is no collective {collective!r}; there are: {', '.join(COLLECTIVES)}")
            table[collective] = {}
            for algorithm, times in _object(by, collective).items():
                where = f"{collective} {algorithm}"
                table[collective][algorithm] = dict(_pair(entry, where) for entry in _list(times, where))
        return Tuning(table)


def _object(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be an object, not {given!r:.60}")
    return cast("dict[str, Any]", given)


def _list(given: object, where: str) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"{where} must be a list of [bytes, seconds], not {given!r:.60}")
    return cast("list[Any]", given)


def _pair(given: object, where: str) -> tuple[int, float]:
    if isinstance(given, list) and len(cast("list[Any]", given)) == 2:
        nbytes, seconds = cast("list[Any]", given)
        times = isinstance(seconds, (int, float)) and 0 < seconds <= sys.float_info.max
        if isinstance(nbytes, int) and nbytes >= 1 and times:
            return nbytes, float(seconds)
    raise ValueError(f"{where}: {given!r:.60} is not [bytes, seconds]")
