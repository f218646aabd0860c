"""Simulations as a trace: a span for each segment at both ends, and an arrow from the sender to the receiver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collectives.choose import step_count
from collectives.plan import Plan, Step
from collectives.sheet import KINDS, sheet
from collectives.simulate import Ports, simulate
from collectives.steps import Copy, Reduce, Send
from topology import Cluster

from ..trace import Flow, Span
from .contestants import Contestant

MOST_SEGMENTS = 200_000  # of all simulations in a trace: some 75 MB of JSON, and what viewers can bear


def refuse_long(contestants: Sequence[Contestant], nbytes: int, segment_bytes: float) -> None:
    """Raises ValueError, with what to do, for simulations with more segments than a trace should have."""
    plans = [c.plans[nbytes] for c in contestants]
    for contestant in contestants:
        if contestant.closed_form:
            raise ValueError(f"{contestant.name} is too long to simulate, so that there is nothing to trace")
    segments = 0
    for a_plan in plans:
        # Of those with very many steps, each of which is a segment at least at one of two ends, more need not be known.
        steps = step_count(a_plan)
        segments += steps if steps > 4 * MOST_SEGMENTS else segment_count(a_plan, nbytes, segment_bytes)
    if segments > MOST_SEGMENTS:
        raise ValueError(
            f"a trace of {segments:,} segments is too long, {MOST_SEGMENTS:,} are the most: "
            "larger segments (--segment), a smaller array (-e), fewer ranks or fewer algorithms"
        )


def segment_count(a_plan: Plan, nbytes: int, segment_bytes: float) -> int:
    """How many segments a simulation moves, those of local steps included."""
    table = sheet(a_plan)
    moving = (table.kind == KINDS[Send]) | (table.kind == KINDS[Copy]) | (table.kind == KINDS[Reduce])
    each = np.ceil(table.count[moving] * (nbytes / a_plan.data_chunks) / segment_bytes - 1e-9)
    return int(np.maximum(each, 1).sum())


def traced(
    cluster: Cluster, contestants: Sequence[Contestant], nbytes: int, ports: Ports, segment_bytes: float
) -> tuple[list[Span], list[Flow], dict[int, str]]:
    """One simulation for each, all from time zero on; where there are several, ranks are named after theirs."""
    spans: list[Span] = []
    flows: list[Flow] = []
    names: dict[int, str] = {}
    for number, contestant in enumerate(contestants):
        first = number * cluster.size
        if len(contestants) > 1:
            names |= {first + rank: f"{contestant.name}, rank {rank}" for rank in range(cluster.size)}
        found = simulate(
            contestant.plans[nbytes], cluster, nbytes, ports=ports, segment_bytes=segment_bytes, trace=True
        )
        for moved in found.segments():
            rank, step = moved.source
            if moved.target is None:
                spans.append(Span(first + rank, "local", type(step).__name__, "local", moved.begin_s, moved.end_s))
                continue
            peer, received = moved.target
            flows.append(Flow(len(spans), len(spans) + 1))
            to, by = _track("to", peer, step), _track("from", rank, received)
            spans.append(Span(first + rank, to, f"{type(step).__name__} {to}", "send", moved.begin_s, moved.end_s))
            spans.append(Span(first + peer, by, f"{type(received).__name__} {by}", "recv", moved.begin_s, moved.end_s))
    return spans, flows, names


def _track(way: str, peer: int, step: Step) -> str:
    lane = 0 if isinstance(step, (Copy, Reduce)) else step.lane
    return f"{way} rank {peer}" + (f", lane {lane}" if lane else "")
