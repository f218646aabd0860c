# pyright: basic, reportMissingImports=false
"""What this rank holds now, by kind."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from collectives.zero.bucket import Bucket
from collectives.zero.gather import Gatherer

__all__ = ["memory"]


def memory(buckets: Iterable[Bucket], rest: Iterable[torch.Tensor], gatherer: Gatherer | None) -> dict[str, int]:
    """Bytes that this rank holds now, by kind; see ZeroOptimizer.memory."""
    kinds = "parameters", "gradients", "optimizer", "secondary", "error_feedback", "in_transit", "gathered"
    held: dict[str, int] = dict.fromkeys(kinds, 0)
    held["parameters"] = sum(t.nbytes for t in rest)
    for bucket in buckets:
        for kind, nbytes in bucket.held_bytes().items():
            held[kind] += nbytes
    reductions = {id(b.settings.movement): b.settings.movement.reduction for b in buckets}
    held["error_feedback"] = sum(reduction.held_bytes for reduction in reductions.values())
    pools = {id(b.settings.pool): b.settings.pool for b in buckets}
    held["in_transit"] = sum(pool.held_bytes for pool in pools.values())
    if gatherer is not None:
        held["gathered"] = sum(g.nbytes for g in gatherer.gathered if g.here)
        held["secondary"] = sum(g.secondary_bytes for g in gatherer.gathered)
    return held
