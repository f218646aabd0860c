# pyright: basic, reportMissingImports=false
"""How the gradients of a bucket become the mean over all ranks of the stretch that this rank owns.

Flat        reduce-scatter over all ranks
TwoLevel    reduce-scatter within the group, then all-reduce of the piece beyond it (MiCS: Zhang et al., VLDB 2022,
            section 3.4; HSDP: Zhao et al., PyTorch FSDP, VLDB 2023, section 3.2.2)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from collectives.zero.chain import Chains
from collectives.zero.groups import Hierarchy
from collectives.zero.layout import BucketLayout

__all__ = ["Flat", "Reduction", "TwoLevel", "scattering"]


class Reduction(Protocol):
    """What a bucket asks for."""

    def start(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Any:
        """Starts to put the mean of all ranks' `buffer` (1-D, the whole bucket) into `into`: the own stretch of it, or
        a tensor of that size. What it returns is waited for."""
        ...

    def advance(self) -> None:
        """Goes on with what can go on, without waiting."""
        ...

    def reset(self) -> None:
        """Forgets what it has kept of earlier gradients."""
        ...

    @property
    def held_bytes(self) -> int:
        """Of what it keeps of earlier gradients."""
        ...


def scattering(size: int, reproducible: bool) -> dict[str, Any]:
    """Arguments of a reduce-scatter over so many ranks that sends (size - 1) / size of the array from each."""
    few = size <= 16 or size & (size - 1)  # both combine in the canonical order
    name = "auto" if not reproducible else "direct_canonical" if few else "halving_canonical"
    return {"algorithm": name, "reproducible": reproducible}


class _KeepsNothing:
    held_bytes = 0

    def advance(self) -> None:
        pass

    def reset(self) -> None:
        pass


class Flat(_KeepsNothing):
    """See the module."""

    def __init__(self, comm: Any, *, reproducible: bool) -> None:
        self._comm, self._options = comm, {"op": "mean", **scattering(comm.size, reproducible)}

    def start(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Any:
        return self._comm.reduce_scatter_async(buffer, out=into, sizes=layout.sizes, **self._options)


class TwoLevel(_KeepsNothing):
    """See the module.

    From every rank go (g - 1) / g of the bucket to its group of g ranks, and 2 (m - 1) / m of its piece, a g-th of the
    bucket, beyond it to the m - 1 others with its place; somewhat more where m is no power of two.

    Reproducible sums are made in the canonical order within the group and in that of the groups beyond it. Where
    groups are runs of ranks and g is a power of two this is the canonical order of all ranks, so the bits are those of
    Flat; elsewhere they are others, which depend on nothing but the data and the groups.
    """

    def __init__(self, hierarchy: Hierarchy, *, reproducible: bool) -> None:
        self._within, self._beyond = hierarchy.within, hierarchy.beyond
        self._scatter = scattering(self._within.size, reproducible)
        # one_shot sends m - 1 times the piece: for two, no more than the others, in one hop.
        name = "auto" if not reproducible else "one_shot" if self._beyond.size == 2 else "halving_doubling"
        self._add: dict[str, Any] = {"algorithm": name, "reproducible": reproducible}
        self._chains = Chains()

    def start(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Any:
        return self._chains.start(self._calls(layout, buffer, into))

    def _calls(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Iterator[Any]:
        within, beyond = self._within, self._beyond
        if within.size > 1:
            yield within.reduce_scatter_async(buffer, out=into, op="sum", sizes=layout.sizes, **self._scatter)
        elif into.data_ptr() != buffer.data_ptr():
            into.copy_(buffer)
        yield beyond.all_reduce_async(into, out=into, op="sum", **self._add)
        into.div_(within.size * beyond.size)

    def advance(self) -> None:
        self._chains.advance()
