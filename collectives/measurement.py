"""What a measurement of the machines gives: latency and bandwidth by pair class, and how fast operands are combined."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from collectives.pairs import WHOLE, near_and_far
from topology.cluster import Cluster, Groups
from topology.presets import Level, tree

__all__ = ["Measurement", "PairClass", "fit"]


@dataclass(frozen=True)
class PairClass:
    """The pairs whose smallest common group is of one level. A message of n bytes takes latency_s + n / bandwidth.

    level                       "host": on one host; "cluster": no group in common; or the names that were given
    pairs                       how many of them were measured, one at a time
    latency_s                   of one step inside a collective, between two ranks while the others sleep
    bandwidth_bytes_per_s       of one large message between two ranks while the others sleep
    busy_latency_s              of one step when all ranks take part: what it costs that ranks share cores
    busy_bandwidth_bytes_per_s  of a whole group when all its ranks send at once: what its ranks share (the memory of a
                                host), or, of groups of groups, what leaves one member group (its network cards)
    """

    level: str
    pairs: int
    latency_s: float
    bandwidth_bytes_per_s: float
    busy_latency_s: float
    busy_bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class Measurement:
    """The machines of one communicator, as `Communicator.measure` found them; the same on every rank.

    groups, levels             nested tuples of ranks, and the names of the levels, outermost first
    classes                    by level, nearest first; only levels that have pairs
    combine_bytes_per_s        of adding two float32 operands in memory, bytes of the result, on every rank at once
    recv_reduce_bytes_per_s    of a stream that the receiver adds to what it has, in the nearest class; None of one rank
    transport                  how bytes moved
    took_s                     the time it took
    """

    groups: Groups
    levels: tuple[str, ...]
    classes: tuple[PairClass, ...]
    combine_bytes_per_s: float
    recv_reduce_bytes_per_s: float | None
    transport: str
    took_s: float

    def __getitem__(self, level: str) -> PairClass:
        """The class of that level; KeyError when it has no pairs."""
        for found in self.classes:
            if found.level == level:
                return found
        raise KeyError(f"no pairs of level {level!r}; there are: {', '.join(c.level for c in self.classes) or 'none'}")

    def __str__(self) -> str:
        """A table for people."""
        lines = [f"{'pairs':<10}{'latency':>12}{'busy':>12}{'bandwidth':>15}{'busy group':>15}"]
        for c in self.classes:
            times = f"{c.latency_s * 1e6:>9.2f} us{c.busy_latency_s * 1e6:>9.2f} us"
            rates = f"{c.bandwidth_bytes_per_s / 1e9:>#10.3g} GB/s{c.busy_bandwidth_bytes_per_s / 1e9:>#10.3g} GB/s"
            lines.append(f"{c.level:<10}{times}{rates}")
        lines.append(f"combining {self.combine_bytes_per_s / 1e9:#.3g} GB/s, {self.transport}, {self.took_s:.1f} s")
        return "\n".join(lines)

    def cluster(self) -> Cluster:
        """The machines as a cluster of nested groups, to price and simulate on.

        Latencies are the busy ones, as all ranks take part in a collective: half of the nearest class's is at each
        rank's port, and each level adds half of what its class takes longer. A rank's port has the bandwidth of the
        fastest class; what leaves a group, and what stays inside of a group of ranks, share what was measured with
        all of its ranks at once. What has no pairs costs nothing.
        """
        by_level = {c.level: c for c in self.classes}
        reached_s = port_s = self.classes[0].busy_latency_s if self.classes else 0.0
        levels: list[Level] = []
        for depth in range(len(self.levels), 0, -1):
            name, around = self.levels[depth - 1], (WHOLE, *self.levels)[depth - 1]
            extra_s, leaves, inside = 0.0, math.inf, math.inf
            if around in by_level:  # the pairs that leave a group of this level
                crossing = by_level[around]
                extra_s = max(crossing.busy_latency_s - reached_s, 0.0)
                leaves = max(crossing.busy_bandwidth_bytes_per_s, crossing.bandwidth_bytes_per_s)
            if depth == len(self.levels) and name in by_level:
                inside = by_level[name].busy_bandwidth_bytes_per_s
            levels.insert(0, Level(name, extra_s / 2, leaves, inside))
            reached_s += extra_s
        return tree(
            self.groups,
            levels,
            latency_s=port_s / 2,
            bandwidth_bytes_per_s=max((c.bandwidth_bytes_per_s for c in self.classes), default=math.inf),
            combine_bytes_per_s=self.combine_bytes_per_s,
        )

    def to_json(self) -> str:
        """As one JSON object, which `from_json` reads back equal."""
        return json.dumps(asdict(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Measurement:
        """What `to_json` wrote. Raises ValueError that names the key that is missing, unknown or wrong."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a measurement is a JSON object: {error}") from None
        known = _object(given, Measurement, "measurement")
        levels = _list(known["levels"], "levels")
        if not all(isinstance(level, str) for level in levels):
            raise ValueError(f"levels={levels} must be names")
        groups = _groups(known["groups"])
        near_and_far(groups, levels, _count(groups), 1)
        classes: list[PairClass] = []
        for i, entry in enumerate(_list(known["classes"], "classes")):
            where = f"classes[{i}]."
            c = _object(entry, PairClass, where[:-1])
            numbers = {name: _positive(c[name], where + name) for name in PairClass.__annotations__ if "_" in name}
            if not isinstance(c["pairs"], int) or c["pairs"] < 1:
                raise ValueError(f"{where}pairs={c['pairs']!r} must be a whole number of at least 1")
            classes.append(PairClass(level=_text(c["level"], where + "level"), pairs=c["pairs"], **numbers))
        rate = known["recv_reduce_bytes_per_s"]
        return Measurement(
            groups,
            tuple(levels),
            tuple(classes),
            _positive(known["combine_bytes_per_s"], "combine_bytes_per_s"),
            None if rate is None else _positive(rate, "recv_reduce_bytes_per_s"),
            _text(known["transport"], "transport"),
            _positive(known["took_s"], "took_s"),
        )


def fit(latencies_s: Sequence[float], streams_s: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) from noisy times: of a small message, and of messages of several sizes.

    The latency is the median of the small ones. The bandwidth is that of the median slope between the median times of
    the sizes (Theil, 1950; Sen, 1968), which a constant added to all times does not change and a disturbed size does
    not spoil. Where noise hides the slope, or there is one size only, it is that of the largest size, less the latency.
    """
    if not latencies_s or not streams_s:
        raise ValueError("there must be a time of a small message, and one of a large one")
    latency_s = statistics.median(latencies_s)
    times = sorted((nbytes, statistics.median(taken)) for nbytes, taken in streams_s.items())
    slopes = [(t2 - t1) / (n2 - n1) for i, (n1, t1) in enumerate(times) for n2, t2 in times[i + 1 :]]
    slope = statistics.median(slopes) if slopes else 0.0
    if slope <= 0:
        nbytes, taken_s = times[-1]
        slope = max(taken_s - latency_s, taken_s / 2) / nbytes
    return latency_s, 1 / slope


def _object(given: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be an object, not {given!r:.60}")
    known = cast("dict[str, Any]", given)
    for name in kind.__annotations__.keys() - known.keys():
        raise ValueError(f"{where} has no key {name!r}")
    for name in known.keys() - kind.__annotations__.keys():
        raise ValueError(f"{where} has an unknown key {name!r}")
    return known


def _list(given: object, where: str) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(f"{where} must be a list, not {given!r:.60}")
    return cast("list[Any]", given)


def _groups(given: object) -> Groups:
    def rank_or_group(member: object) -> int | Groups:
        if isinstance(member, int) and not isinstance(member, bool):
            return member
        return tuple(rank_or_group(inner) for inner in _list(member, "each member of groups"))

    return tuple(rank_or_group(member) for member in _list(given, "groups"))


def _count(groups: int | Groups) -> int:
    return 1 if isinstance(groups, int) else sum(map(_count, groups))


def _positive(given: object, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= sys.float_info.max:
        raise ValueError(f"{where}={given!r:.60} must be a number above 0")
    return float(given)


def _text(given: object, where: str) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{where}={given!r:.60} must be text")
    return given
