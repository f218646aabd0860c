"""What is run on a cluster: the algorithms that were asked for, as far as they can be simulated."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from collectives.choose import Chooser, sensible, step_count
from collectives.plan import Plan, Send, plan
from collectives.simulate import Ports
from topology import Cluster

MOST_STEPS = 140_000_000  # 4,096 ranks of a ring: half a minute and 9 GiB
MOST_SEGMENTS = 200_000_000  # about two minutes
MOST_STEPS_OF_ALL = 5_000_000  # what was not asked for by name has to be over in some seconds
MOST_SEGMENTS_OF_ALL = 20_000_000
_SAMPLE = 5  # ranks whose segments are counted


class Contestant(NamedTuple):
    """An algorithm on a cluster. "auto" has a plan for each size; what is too long for its steps has a formula."""

    name: str
    plans: dict[int, Plan]  # by the bytes of the array
    closed_form: bool = False

    def label(self, nbytes: int) -> str:
        """The name, and what "auto" is."""
        return self.name if self.name != "auto" else f"auto: {self.plans[nbytes].algorithm}"


class Entry(NamedTuple):
    """Those that are run on one cluster, and which of "all" are not, and why."""

    cluster: Cluster
    contestants: list[Contestant]
    left_out: list[str]


def enter(
    cluster: Cluster, collective: str, given: str, root: int, sizes: Sequence[int], segment_bytes: float, ports: Ports
) -> Entry:
    """`given` is "all", "auto", or names with commas between them. Raises ValueError for what makes no sense."""
    chooser = Chooser(cluster.hosts, True)
    chooser.use(cluster=cluster)
    contestants: list[Contestant] = []
    left_out: list[str] = []
    if given.strip() == "all":
        limits = (MOST_STEPS_OF_ALL, MOST_SEGMENTS_OF_ALL)
        entered = [
            (made.algorithm, dict.fromkeys(sizes, made))
            for made in sensible(collective, cluster.size, chooser.hosts, cluster.shape, root)
        ]
    else:
        limits = (MOST_STEPS, MOST_SEGMENTS)
        names = dict.fromkeys(name.strip() for name in re.split(r",(?![^(]*\))", given))
        entered = [_planned(chooser, collective, name, root, sizes) for name in names]
    for name, plans in entered:
        largest = plans[max(sizes)]
        why = _too_long(largest, max(sizes), segment_bytes, *limits)
        if why is None:
            contestants.append(Contestant(name, plans))
        elif ports == "overlapped" and _has_formula(largest):
            contestants.append(Contestant(name, plans, closed_form=True))
        elif given.strip() == "all":
            left_out.append(f"{name} is left out of all: it has {why}")
        else:
            raise ValueError(f"{name} on {cluster.size:,} ranks has {why}: fewer ranks, or larger segments (--segment)")
    return Entry(cluster, contestants, left_out)


def _planned(
    chooser: Chooser, collective: str, name: str, root: int, sizes: Sequence[int]
) -> tuple[str, dict[int, Plan]]:
    cluster = chooser.cluster
    if name == "auto":
        if not chooser.names(collective):
            raise ValueError(f"auto has nothing to choose from on {cluster.size:,} ranks: name algorithms")
        chosen = {nbytes: chooser.choose(collective, nbytes) for nbytes in sizes}
    else:
        if name == "torus" and cluster.shape:
            name = f"torus({'x'.join(map(str, cluster.shape))})"
        chosen = dict.fromkeys(sizes, name)
    return name, {nbytes: plan(collective, how, cluster.size, root, chooser.hosts) for nbytes, how in chosen.items()}


def _has_formula(a_plan: Plan) -> bool:
    return (a_plan.collective, a_plan.algorithm) == ("all_reduce", "ring") and a_plan.builtin


def _too_long(a_plan: Plan, nbytes: int, segment_bytes: float, most_steps: int, most_segments: int) -> str | None:
    steps = step_count(a_plan)
    if steps > most_steps:
        return f"about {steps:,} steps, and {most_steps:,} are the most that are simulated"
    segments = about_segments(a_plan, nbytes, segment_bytes)
    if segments > most_segments:
        return f"about {segments:,} segments, and {most_segments:,} are the most that are simulated"
    return None


def about_segments(a_plan: Plan, nbytes: int, segment_bytes: float) -> int:
    """About how many segments are sent, from what some of the ranks send."""
    chunk_bytes = nbytes / a_plan.data_chunks
    ranks = sorted({round(i * (a_plan.size - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)})
    sent = sum(
        max(1, math.ceil(step.count * chunk_bytes / segment_bytes))
        for rank in ranks
        for step in a_plan.generate(rank)
        if isinstance(step, Send)
    )
    return round(sent / len(ranks) * a_plan.size)
