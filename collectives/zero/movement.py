# pyright: basic, reportMissingImports=false
"""How gradients and parameters move: what an optimizer's arguments about it come to."""

from __future__ import annotations

from typing import Any

import torch

from collectives.zero.gathering import Gathering, Quantized, Secondary, Whole
from collectives.zero.groups import Hierarchy, groups_of
from collectives.zero.layout import BucketLayout
from collectives.zero.quantize import Quantizer
from collectives.zero.quantized_reduction import QuantizedReduction
from collectives.zero.reduction import Flat, Reduction, TwoLevel
from collectives.zero.traffic import Traffic

__all__ = ["Movement", "check_movement"]


def check_movement(
    stage: int, *, partition: Any, secondary: Any, quantized_weights: int | None, quantized_gradients: int | None,
    quantization_block: int, error_feedback: bool,
) -> None:  # fmt: skip
    """Raises ValueError for arguments that make no sense together; see ZeroOptimizer."""
    if partition is not None and secondary is not None:
        raise ValueError("partition and secondary: parameters are partitioned within groups, or a second copy of them")
    if partition is not None and quantized_gradients is not None:
        raise ValueError("partition and quantized_gradients: sums beyond a group's partition are not quantised")
    if secondary is not None and stage != 3:
        raise ValueError(f"secondary is for stage 3, where parameters are partitioned, and stage={stage}")
    if quantized_weights is not None and stage != 3:
        raise ValueError(f"quantized_weights is for stage 3: at stage={stage} what is sent is what is trained")
    for name, bits, possible in (
        ("quantized_weights", quantized_weights, (8,)), ("quantized_gradients", quantized_gradients, (8, 4)),
    ):  # fmt: skip
        if bits is not None and bits not in possible:
            raise ValueError(f"{name}={bits!r} must be None or {' or '.join(map(str, possible))} (bits)")
    Quantizer(8, quantization_block)


class Movement:
    """The communicators, and what runs on them. All ranks make it, of arguments that `check_movement` has seen.

    everybody     all ranks
    comm          those that share the parts: all, or the group beyond which they are replicated
    primary       whether this rank's parts are the ones to save, and not a replica of them
    reduction     of gradients
    traffic       what was sent
    """

    def __init__(
        self, comm: Any, device: torch.device, *, partition: Any, secondary: Any, quantized_weights: int | None,
        quantized_gradients: int | None, quantization_block: int, error_feedback: bool, reproducible: bool,
    ) -> None:  # fmt: skip
        self.everybody = self.comm = comm
        self._device, self.primary = device, True
        self._hierarchy: Hierarchy | None = None
        asked = secondary if partition is None else partition
        groups = comm.hosts
        if asked is not None:
            groups = groups_of(comm, asked, "secondary" if partition is None else "partition")
        self.traffic = Traffic(comm, next(group for group in groups if comm.rank in group))
        regular = len(groups) > 1 and len({len(group) for group in groups}) == 1
        if regular and (asked is not None or quantized_gradients is not None):
            self._hierarchy = Hierarchy(comm, groups)
            self.traffic.count(self._hierarchy)
        self._weights = None if quantized_weights is None else Quantizer(quantized_weights, quantization_block)
        self.reduction: Reduction = Flat(comm, reproducible=reproducible)
        if quantized_gradients is not None:
            hops = self._hierarchy if self._hierarchy is not None and self._hierarchy.within.size > 1 else None
            quantizer = Quantizer(quantized_gradients, quantization_block)
            self.reduction = QuantizedReduction(comm, hops, quantizer, error_feedback=error_feedback)
        elif partition is not None and self._hierarchy is not None:
            self.comm, self.primary = self._hierarchy.within, self._hierarchy.number == 0
            self.reduction = TwoLevel(self._hierarchy, reproducible=reproducible)
        self._keeps_secondary = secondary is not None and self._hierarchy is not None

    def gatherings(self, layout: BucketLayout) -> tuple[Gathering, Gathering]:
        """Of a bucket's parameters: for modules to work with, and for others, exact. They may be one and the same."""
        exact: Gathering = Whole(self.comm, layout)
        first = exact if self._weights is None else Quantized(self.comm, layout, self._weights)
        if not self._keeps_secondary:
            return first, exact
        assert self._hierarchy is not None
        kept = Secondary(first, self._hierarchy, layout, self._device)
        return kept, kept if first is exact else exact

    def close(self) -> None:
        """Closes the communicators that it has made."""
        if self._hierarchy is not None:
            self._hierarchy.close()
