"""Which algorithm "auto" is: the one that is predicted to be the fastest on this cluster, unless more is known.

    1. a rule that a person made (rules.py)
    2. the shortest time: measured by `Communicator.tune`, or else predicted, corrected by what tuning has shown
    3. predicted: the plan is run in virtual time (simulate.py) on the cluster: as measured by
       `Communicator.measure`, as given by the user, or as assumed here

Everything that decides is the same on every rank, so all choose alike: hosts and transports, and clusters, tables and
rules that come from rank 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from collectives.levels import Groups, checked
from collectives.plan import NATIVE, Plan, Recv, RecvReduce, Send, algorithms, find, plan
from collectives.rules import Rule
from collectives.simulate import simulate
from collectives.tuning import Tuning
from topology import Cluster, Level, presets
from transports.program import Native

__all__ = [
    "CANONICAL",
    "Candidate",
    "Chooser",
    "Explanation",
    "assumed_cluster",
    "sensible",
    "step_count",
]

_NATIVE_FACTOR = 1.05  # nothing is known of how it works: until measured, it is a little behind the best plan

CANONICAL = {
    "all_reduce": ("one_shot", "recursive_doubling", "binomial", "halving_doubling"),
    "reduce_scatter": ("direct_canonical", "halving_canonical", "binomial"),
    "reduce": ("binomial",),
    "scan": ("recursive_doubling",),
    "exscan": ("recursive_doubling",),
}
"""The algorithms that combine in the canonical order on any number of ranks; what `reproducible=True` chooses among."""

ASSUMED, GIVEN = "assumed", "given"
"""The basis of a cluster that nobody has described, and of one that the user has: nothing else is known then."""

_MANY_PEERS = 16  # with more, connections cost more memory and time than they save, and who is sent to is overrun
_MOST_STEPS = 500_000  # of all ranks; a plan with more takes too long to look at, and has too many messages to be fast
_MOST_SEGMENTS, _LEAST_SEGMENT_BYTES = 256, 1024  # of an array, in a simulation
_FEWEST_SEGMENTS, _MOST_MOVES = 16, 200_000  # where many steps move that many segments
_SLOW = 3.0  # predicted to take this many times the shortest: not worth measuring


class Candidate(NamedTuple):
    """An algorithm and what it takes: in virtual time, and as measured where it was."""

    algorithm: str
    predicted_s: float
    measured_s: float | None
    time_s: float  # measured, or predicted and corrected


@dataclass(frozen=True)
class Explanation:
    """Why "auto" is what it is: the candidates, the fastest first."""

    collective: str
    nbytes: int
    cluster: Cluster
    basis: str
    candidates: tuple[Candidate, ...]
    chosen: str
    reason: str

    def __str__(self) -> str:
        """A table for people; times in microseconds."""
        width = max(len("algorithm"), *(len(c.algorithm) for c in self.candidates), len(self.chosen))
        hosts = "1 host" if len(self.cluster.hosts) == 1 else f"{len(self.cluster.hosts)} hosts"
        lines = [
            f"{self.collective} of {self.nbytes} bytes on {self.cluster.size} ranks of {hosts}, {self.basis}",
            f"  {'algorithm':<{width}} {'predicted us':>14} {'measured us':>14}",
        ]
        for c in self.candidates:
            measured = "-" if c.measured_s is None else f"{c.measured_s * 1e6:.1f}"
            mark = "*" if c.algorithm == self.chosen else " "
            lines.append(f"{mark} {c.algorithm:<{width}} {c.predicted_s * 1e6:>14.1f} {measured:>14}")
        return "\n".join([*lines, f"{self.chosen}: {self.reason}"])


class Assumed(NamedTuple):
    """What is taken for granted of a kind of link until it is measured."""

    latency_s: float
    bandwidth_bytes_per_s: float
    inside_bytes_per_s: float  # what all ranks of a host can move at once
    overhead_s: float  # of a message, on either side


# On one host ranks share cores, caches and memory in ways that no model of links has. What was measured there, on a
# machine with two cores, two to eight ranks: up to how many bytes of the array which algorithm is the fastest.
_Table = dict[str, tuple[tuple[float, str], ...]]
_KIB = 1 << 10
_IN_MEMORY: _Table = {
    "all_reduce": ((8 * _KIB, "one_shot"), (32 * _KIB, "recursive_doubling"), (math.inf, "two_tree")),
    "reduce_scatter": ((math.inf, "direct"),),
    "all_gather": ((math.inf, "direct"),),
    "broadcast": ((64 * _KIB, "binomial"), (math.inf, "two_tree")),
    "reduce": ((64 * _KIB, "binomial"), (math.inf, "direct")),
    "scan": ((64 * _KIB, "recursive_doubling"), (math.inf, "two_tree")),
    "exscan": ((64 * _KIB, "recursive_doubling"), (math.inf, "two_tree")),
}
_IN_MEMORY_CANONICAL: _Table = {
    "all_reduce": ((8 * _KIB, "one_shot"), (32 * _KIB, "recursive_doubling"), (math.inf, "binomial")),
    "reduce_scatter": ((128 * _KIB, "direct_canonical"), (math.inf, "binomial")),
}
_OVER_LOOPBACK: _Table = {
    "all_reduce": ((32 * _KIB, "recursive_doubling"), (128 * _KIB, "two_tree"), (math.inf, "halving_doubling")),
    "reduce_scatter": ((64 * _KIB, "halving"), (math.inf, "ring")),
    "all_gather": ((64 * _KIB, "doubling"), (math.inf, "ring")),
    "broadcast": ((64 * _KIB, "binomial"), (math.inf, "two_tree")),
    "reduce": ((64 * _KIB, "binomial"), (math.inf, "two_tree")),
    "scan": ((64 * _KIB, "recursive_doubling"), (math.inf, "two_tree")),
    "exscan": ((64 * _KIB, "recursive_doubling"), (math.inf, "two_tree")),
}
_OVER_LOOPBACK_CANONICAL: _Table = {
    "all_reduce": ((32 * _KIB, "recursive_doubling"), (math.inf, "halving_doubling")),
    "reduce_scatter": ((math.inf, "halving_canonical"),),
}
# In virtual time the segments of consecutive rounds of halving meet on links, and keep one another waiting; measured on
# shaped links, these algorithms take a tenth less than that.
_CORRECTION = {"hierarchical": 0.9, "halving_doubling": 0.9, "halving": 0.9}
_MEASURED_RANKS = 16  # with as many, a link to everybody costs more memory and time than it saves
_FAVOUR = 0.5  # how much of its predicted time such an algorithm is taken to need

_SHARED_MEMORY = Assumed(0.5e-6, 8e9, 16e9, 0.2e-6)
_LOOPBACK = Assumed(12e-6, 3e9, 5e9, 3e-6)
_NETWORK_LATENCY_S = 20e-6
_NETWORK_OVERHEAD_S = 5e-6
_NETWORK_BYTES_PER_S = 1.25e9  # 10 Gbit/s


@lru_cache(maxsize=64)
def assumed_cluster(groups: Groups, shared_memory: bool) -> Cluster:
    """Ranks on hosts of which nothing is known but what links them; groups of hosts are not far from one another."""
    near, depth = _near(shared_memory), 0
    inner = groups[0]
    while not isinstance(inner, int):
        inner, depth = inner[0], depth + 1
    above = [Level(f"level {i}", 0.0, math.inf) for i in range(1, depth)]
    level = Level("host", (_NETWORK_LATENCY_S - near.latency_s) / 2, _NETWORK_BYTES_PER_S, near.inside_bytes_per_s)
    return presets.tree(
        groups, [*above, level], latency_s=near.latency_s / 2, bandwidth_bytes_per_s=near.bandwidth_bytes_per_s
    )


def _near(shared_memory: bool) -> Assumed:
    return _SHARED_MEMORY if shared_memory else _LOOPBACK


class Chooser:
    """Chooses for one communicator. What it goes by can be replaced; every rank must be given the same.

    cluster   the machines;  basis says in words where it comes from
    hosts     what plans are made for: nested groups of ranks, or None where all are alike
    tuning    measured times;  rules  the user's
    natives   the collectives that the transport has itself;  refuses  why it cannot do one such call, or nothing
    """

    def __init__(
        self,
        groups: Groups,
        shared_memory: bool,
        *,
        natives: frozenset[str] = frozenset(),
        refuses: Callable[[Native], str] = lambda native: "",
    ) -> None:
        self.natives, self.refuses = natives, refuses
        self.cluster = assumed_cluster(groups, shared_memory)
        self.basis, self.hosts = ASSUMED, _hosts(self.cluster)
        self.rules: Sequence[Rule] = ()
        self.tuning = Tuning({})
        self._overhead_s = _near(shared_memory).overhead_s
        self._known = _IN_MEMORY if shared_memory else _OVER_LOOPBACK
        self._known_canonical = _IN_MEMORY_CANONICAL if shared_memory else _OVER_LOOPBACK_CANONICAL
        self._chosen: dict[tuple[str, int, bool, bool], str] = {}
        self._predicted: dict[tuple[str, str, int], float] = {}

    def use(
        self,
        *,
        cluster: Cluster | None = None,
        basis: str = GIVEN,
        tuning: Tuning | None = None,
        rules: Sequence[Rule] | None = None,
    ) -> None:
        """Goes by something else from now on."""
        if cluster is not None:
            self.cluster, self.basis, self.hosts = cluster, basis, _hosts(cluster)
            self._predicted.clear()
        if tuning is not None:
            self.tuning = tuning
        if rules is not None:
            self.rules = tuple(rules)
        self._chosen.clear()

    def follow(self, other: Chooser, members: Sequence[int]) -> None:
        """Goes by what the chooser of a larger communicator knows, of which this one's rank i is `members[i]`."""
        self.use(rules=other.rules)
        if other.basis != ASSUMED:
            self.use(cluster=other.cluster.part(members), basis=other.basis)

    def choose(self, collective: str, nbytes: int, reproducible: bool = False, *, native: bool = True) -> str:
        """The name of the algorithm for an array of `nbytes` in all: that for the nearest power of two, or a rule's.
        Without `native` it is one with a plan."""
        names = [name for name in self.names(collective, reproducible) if native or name != NATIVE]
        pinned = self._pinned(collective, nbytes, reproducible)
        if pinned == NATIVE and not native:
            pinned = ""
        if pinned:
            return pinned
        if len(names) == 1:
            return names[0]
        near = 1 << round(math.log2(max(nbytes, 1)))
        key = (collective, near, reproducible, native)
        if key not in self._chosen:
            candidates, favoured = self._candidates(collective, near, reproducible)
            self._chosen[key] = self._decide([c for c in candidates if c.algorithm in names], favoured)[0]
        return self._chosen[key]

    def explain(self, collective: str, nbytes: int, reproducible: bool = False) -> Explanation:
        """What is known of every candidate, which one `choose` takes, and why."""
        candidates, favoured = self._candidates(collective, nbytes, reproducible)
        chosen, reason = self._decide(candidates, favoured)
        used = self.choose(collective, nbytes, reproducible)
        if self._pinned(collective, nbytes, reproducible):
            reason = "pinned by a rule"
        elif used != chosen:
            reason = "the choice for the nearest power of two"
        return Explanation(collective, nbytes, self.cluster, self._where(), tuple(candidates), used, reason)

    def _pinned(self, collective: str, nbytes: int, reproducible: bool) -> str:
        """The algorithm of the first rule that fits; of a reproducible call, the first with one in canonical order."""
        fitting = [rule.algorithm for rule in self.rules if rule.fits(collective, nbytes)]
        if reproducible:
            fitting = [name for name in fitting if name in self.names(collective, reproducible)]
        return fitting[0] if fitting else ""

    def _candidates(self, collective: str, nbytes: int, reproducible: bool) -> tuple[list[Candidate], str]:
        """The candidates, the fastest first, and the one that was the fastest elsewhere."""
        names = self.names(collective, reproducible)
        found = [(name, self.predicted_s(collective, name, nbytes)) for name in names]
        measured = {name: self.tuning.measured_s(collective, name, nbytes) for name in names}
        known = [(name, s, m) for name, s in found if (m := measured[name]) is not None]
        # How far off predictions are here: what was not measured is as far off as the median of what was.
        ratios = sorted(m / s for _, s, m in known if s)
        off = ratios[len(ratios) // 2] if ratios else 1.0
        favoured = self._favoured(collective, nbytes, reproducible)
        candidates = [
            Candidate(n, s, measured[n], measured[n] or self._corrected_s(collective, n, nbytes, s, off, favoured))
            for n, s in found
        ]
        # What another processor may count a trifle otherwise is a tie, and goes by the order of the names.
        return sorted(candidates, key=lambda c: float(f"{c.time_s:.6g}")), favoured

    def _corrected_s(
        self, collective: str, name: str, nbytes: int, predicted_s: float, off: float, favoured: str
    ) -> float:
        """The prediction at a size that was not measured, as far off as the nearest that was."""
        nearest = self.tuning.nearest(collective, name, nbytes)
        if nearest is not None:
            size, seconds = nearest
            predicted_there_s = self.predicted_s(collective, name, size)
            off = seconds / predicted_there_s if predicted_there_s else 1.0
        elif name == favoured:
            off *= _FAVOUR
        else:
            off *= _CORRECTION.get(name, 1.0)
        return predicted_s * off

    def _favoured(self, collective: str, nbytes: int, reproducible: bool) -> str:
        """What was the fastest on such ranks elsewhere; empty where nothing was measured."""
        known = self._known_canonical if reproducible else self._known
        unlike = len(self.cluster.hosts) > 1 or self.cluster.size >= _MEASURED_RANKS or self.basis == GIVEN
        if unlike or collective not in known:
            return ""
        return next(name for limit, name in known[collective] if nbytes <= limit)

    def worth_measuring(self, collective: str, nbytes: int, reproducible: bool = False) -> list[str]:
        """The candidates that may be the fastest, as far as predictions tell."""
        found = [(self.predicted_s(collective, name, nbytes), name) for name in self.names(collective, reproducible)]
        shortest = min(found)[0]
        return [name for predicted_s, name in sorted(found) if predicted_s <= _SLOW * shortest]

    def _decide(self, candidates: Sequence[Candidate], favoured: str) -> tuple[str, str]:
        best = candidates[0]
        if len(candidates) == 1:
            return best.algorithm, "there is no other"
        if best.measured_s is None and best.algorithm == favoured:
            return best.algorithm, "measured as the fastest on another machine with ranks on one host"
        over = candidates[1].time_s / best.time_s if best.time_s else 1.0
        how = "predicted to be" if best.measured_s is None else "measured as"
        return best.algorithm, f"{how} the fastest, {over:.2f} times as fast as {candidates[1].algorithm}"

    def _where(self) -> str:
        return f"{self.basis} ({self.cluster.name})"

    def names(self, collective: str, reproducible: bool = False) -> tuple[str, ...]:
        """The algorithms that make sense on this cluster."""
        plans = _names(collective, self.cluster.size, self.hosts, self.cluster.shape, reproducible)
        return (*plans, NATIVE) if collective in self.natives and not reproducible else plans

    def predicted_s(self, collective: str, algorithm: str, nbytes: int) -> float:
        """The time in virtual time: simulated at the powers of two around `nbytes`, and on the line between them."""
        if algorithm == NATIVE:
            plans = [name for name in self.names(collective) if name != NATIVE]
            return _NATIVE_FACTOR * min(self.predicted_s(collective, name, nbytes) for name in plans)
        low = 1 << max(nbytes, 1).bit_length() - 1
        share = (max(nbytes, 1) - low) / low
        at_low = self._simulated_s(collective, algorithm, low)
        return at_low if share == 0 else at_low + share * (self._simulated_s(collective, algorithm, 2 * low) - at_low)

    def _simulated_s(self, collective: str, algorithm: str, nbytes: int) -> float:
        key = (collective, algorithm, nbytes)
        if key not in self._predicted:
            a_plan = plan(collective, algorithm, self.cluster.size, 0, self.hosts)
            segments = max(_FEWEST_SEGMENTS, min(_MOST_SEGMENTS, _MOST_MOVES // max(1, step_count(a_plan))))
            self._predicted[key] = simulate(
                a_plan,
                self.cluster,
                nbytes,
                segment_bytes=max(_LEAST_SEGMENT_BYTES, nbytes / segments),
                overhead_s=self._overhead_s,
                network_overhead_s=self.cluster.overhead_s or _NETWORK_OVERHEAD_S,
            ).time_s
        return self._predicted[key]


def _hosts(cluster: Cluster) -> Groups | None:
    groups = checked(cluster.groups, cluster.size)
    return None if len(groups) == 1 else groups


@lru_cache(maxsize=256)
def _names(
    collective: str, size: int, hosts: Groups | None, shape: tuple[int, ...] | None, reproducible: bool
) -> tuple[str, ...]:
    if reproducible and collective in CANONICAL:
        return CANONICAL[collective]
    ours = list(sensible(collective, size, hosts, shape))
    short = [p for p in ours if step_count(p) <= _MOST_STEPS]
    few = [p for p in short if _peer_count(p) <= _MANY_PEERS]
    return tuple(p.algorithm for p in few or short or ours)


def sensible(
    collective: str, size: int, hosts: Groups | None, shape: tuple[int, ...] | None, root: int = 0
) -> Iterator[Plan]:
    """A plan of every algorithm of the library that makes sense on such ranks, however many steps it has.

    Hierarchical ones where there are hosts with several ranks, and on a torus the one of its `shape`.
    """
    for name in algorithms(collective):
        if not find(collective, name).builtin:  # a user's may be known to some of the ranks only
            continue
        if name == "hierarchical" and (hosts is None or not any(_several(group) for group in hosts)):
            continue
        if name == "torus":
            if shape is None or len(shape) < 2:
                continue
            name = f"torus({'x'.join(map(str, shape))})"
        yield plan(collective, name, size, root, hosts)


def _several(group: object) -> bool:
    return isinstance(group, tuple) and len(group) > 1  # pyright: ignore[reportUnknownArgumentType]


def _peer_count(a_plan: Plan) -> int:
    """To how many others a rank talks: the one of the first two that has more."""
    remote = (Send, Recv, RecvReduce)
    peers = [{s.peer for s in a_plan.generate(r) if isinstance(s, remote)} for r in range(min(2, a_plan.size))]
    return max(map(len, peers))


def step_count(a_plan: Plan) -> int:
    """About how many steps there are: as many for every rank as for the one of the first two that has more."""
    return a_plan.size * max(sum(1 for _ in a_plan.generate(rank)) for rank in range(min(2, a_plan.size)))
