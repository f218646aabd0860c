"""What a plan costs on a cluster, as two numbers: T(n) = latency_s + seconds_per_byte * n.

The first is the longest chain of messages with the latencies of their paths, the second the load of the busiest link:
the closed form of every algorithm whose steps stream. On p ranks that each have one port, with alpha the latency
between two of them and beta the seconds per byte of a port, that is 2(p-1) alpha + 2(p-1)/p beta n for a ring
all-reduce, and so on. What is left out is the filling of pipelines, and waiting between phases that use different
links; `simulate` has both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from collectives.plan import Plan
from collectives.simulate import simulate
from topology import Cluster

__all__ = ["Price", "price"]


class Price(NamedTuple):
    """The cost of one call: `latency_s` however small the array, and `seconds_per_byte` of it."""

    latency_s: float
    seconds_per_byte: float

    def time_s(self, nbytes: float) -> float:
        """The time of a call on `nbytes`."""
        return self.latency_s + self.seconds_per_byte * nbytes


@lru_cache(maxsize=256)
def price(plan: Plan, cluster: Cluster, overhead_s: float = 0.0) -> Price:
    """The price of a plan on a cluster of as many ranks; `overhead_s` as in `simulate`."""
    empty = simulate(plan, cluster, 0, overhead_s=overhead_s)
    busy_s = simulate(plan, cluster, 1, segment_bytes=np.inf).link_bytes / cluster.link_bandwidths_bytes_per_s
    return Price(empty.time_s, float(busy_s.max(initial=0.0)))
