"""The ring's all-reduce in closed form, for so many ranks that its steps, 8p(p-1) on p ranks, are too many to simulate.

On p ranks it takes 2(p-1) messages one after another, along the ring: T(n) = the latencies of the longest such chain +
n bytes * (p-1)/p / the bandwidth of the busiest link, for each time that the ring passes it, one way or the other. It
is what `collectives.price` finds in the steps: ports are "overlapped".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from collectives.plan import Plan, Send
from topology import Cluster


class RingPrice(NamedTuple):
    """Of a call on n bytes: latency_s + n * seconds_per_byte; the busiest link carries n * link_share."""

    latency_s: float
    seconds_per_byte: float
    link: int
    link_share: float


def ring_price(plan: Plan, cluster: Cluster) -> RingPrice:
    """The price of the plan of an all-reduce by "ring", whose first steps say who its neighbours are."""
    size = plan.size
    if size == 1:
        return RingPrice(0.0, 0.0, 0, 0.0)
    neighbours = np.array([_neighbours(plan, rank) for rank in range(size)], np.int64).T
    crossed = np.zeros(len(cluster.links), np.int64)
    latencies_s: list[float] = []
    for towards in neighbours:
        order = _around(towards)
        offsets, links = cluster.routes(order, towards[order])
        crossed += np.bincount(links, minlength=len(crossed))
        until = np.concatenate([[0.0], np.cumsum(cluster.link_latencies_s[links])])
        hops_s = np.diff(until[offsets])
        # Twice round, but for the two hops before the start.
        latencies_s.append(2 * float(hops_s.sum()) - float((hops_s + np.roll(hops_s, 1)).min()))
    share = crossed * (size - 1) / size
    busy_s = share / cluster.link_bandwidths_bytes_per_s
    link = int(np.argmax(busy_s))
    return RingPrice(max(latencies_s), float(busy_s[link]), link, float(share[link]))


def _neighbours(plan: Plan, rank: int) -> tuple[int, int]:
    """To whom a rank sends on either lane."""
    found: dict[int, int] = {}
    for step in plan.generate(rank):
        if isinstance(step, Send):
            found.setdefault(step.lane, step.peer)
            if len(found) == 2:
                break
    return found[0], found[1]


def _around(towards: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ranks in the order of the ring."""
    order = [0]
    while (following := int(towards[order[-1]])) != 0:
        order.append(following)
    return np.array(order, np.int64)
