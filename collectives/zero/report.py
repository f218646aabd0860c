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
    kinds = "parameters", "gradients", "optimizer", "secondary", "error_feedback"
    held: dict[str, int] = dict.fromkeys((*kinds, "in_transit", "gathered", "host", "files"), 0)
    held["parameters"] = sum(t.nbytes for t in rest)
    for bucket in buckets:
        for kind, nbytes in bucket.held_bytes().items():
            held[kind] += nbytes
    for settings in {id(b.settings): b.settings for b in buckets}.values():
        stores = settings.homes.stores()
        held["error_feedback"] = settings.movement.reduction.held_bytes
        held["in_transit"] = settings.pool.held_bytes + sum(store.in_memory_bytes for store in stores)
        for store in stores:
            held[store.kind] += store.held_bytes
    if gatherer is not None:
        held["gathered"] = sum(g.nbytes for g in gatherer.gathered if g.here)
        held["secondary"] = sum(g.secondary_bytes for g in gatherer.gathered)
    return held
