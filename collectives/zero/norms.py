# pyright: basic, reportMissingImports=false
"""Norms of gradients of which each rank holds a part, with the same bits however they are cut into parts.

[Note: a sum in any order]  Powers are added in float64 so that no addition rounds. Each is first split at a fixed
power of two, derived from the greatest element of all ranks, into a high part and a low one, both multiples of units
so coarse that all sums of n of them are exact. An exact sum has no order: ranks, buckets and stages drop out. What is
lost is below n^2 * 2^-79 of the sum. (Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["norms"]

_CHUNK = 1 << 16  # elements that are looked at while they are in cache
_MANTISSA = 52


def norms(
    comm: Any, parts: Mapping[int, Iterable[torch.Tensor]], count: int, order: float
) -> list[torch.Tensor]:  # fmt: skip
    """The p-norm of the gradient of each of `count` parameters, float32 scalars, equal on all ranks.

    `parts` are the pieces of each, by number, that this rank holds; each element is held by one rank. They are gone
    through twice. `order` is p, at least 0, or infinity. Raises ValueError for another.
    """
    if not order >= 0:
        raise ValueError(f"the norm's order must not be negative, not {order}")
    peaks = torch.zeros(count, dtype=torch.float64)
    sizes = torch.zeros(count, dtype=torch.float64)
    for i, tensors in parts.items():
        for t in tensors:
            if t.numel():
                peaks[i] = torch.maximum(peaks[i], t.abs().max().double())  # keeps NaN
                sizes[i] += t.numel()
    if comm.size > 1:
        missing = torch.isnan(peaks)
        both = torch.stack([peaks.masked_fill(missing, math.inf), missing.double()])
        comm.all_reduce(both, op="max", out=both)
        comm.all_reduce(sizes, op="sum", out=sizes)
        peaks = both[0].masked_fill(both[1] > 0, math.nan)
    if math.isinf(order):
        return list(peaks.float().unbind())
    sums = torch.zeros(count, 2, dtype=torch.float64)
    for i, tensors in parts.items():
        peak = float(peaks[i])
        if peak and math.isfinite(peak):
            for t in tensors:
                _add(sums[i], t.reshape(-1), peak, float(sizes[i]), order)
    if comm.size > 1:
        comm.all_reduce(sums, op="sum", out=sums)
    found: list[torch.Tensor] = []
    for i in range(count):
        peak = float(peaks[i])
        total = peak if not math.isfinite(peak) else float(sums[i].sum())
        root = total if order == 0 or not math.isfinite(total) else total ** (1.0 / order)
        found.append(torch.tensor(root, dtype=torch.float32))
    return found


def _add(into: torch.Tensor, t: torch.Tensor, peak: float, count: float, order: float) -> None:
    """Adds the high and the low parts of |t|^order; both sums are exact. See [Note: a sum in any order]."""
    greatest = 1.0 if order == 0 else peak**order
    bits = math.frexp(greatest)[1] + math.frexp(count)[1]
    high, low = 1.5 * 2.0 ** min(bits, 1020), 1.5 * 2.0 ** min(bits - _MANTISSA + math.frexp(count)[1] + 1, 1020)
    for chunk in t.split(_CHUNK):
        x = chunk.double()
        if order == 2:
            x = x * x
        elif order == 0:
            x = (x != 0).double()
        elif order != 1:
            x = x.abs().pow(order)
        else:
            x = x.abs()
        upper = (x + high) - high
        x = x - upper
        into[0] += upper.sum()
        into[1] += ((x + low) - low).sum()
