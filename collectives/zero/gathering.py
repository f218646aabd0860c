# pyright: basic, reportMissingImports=false
"""How the stretches of one bucket's parameters, of which each rank has its own, become whole on all of them.

    Whole        all-gather
    Quantized    all-gather of what was quantised (qwZ)
    Secondary    the first time after an update one of these two, over all ranks; then, until the next update, an
                 all-gather within the group of a second copy that was kept of the first (hpZ)

qwZ and hpZ: Wang et al., "ZeRO++: Extremely Efficient Collective Communication for Giant Model Training", 2023,
sections 4.1 and 4.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch

from collectives.zero.groups import Hierarchy
from collectives.zero.layout import BucketLayout
from collectives.zero.memory import registered
from collectives.zero.quantize import Quantizer

__all__ = ["Gathering", "Quantized", "Secondary", "Whole"]


class Gathering(Protocol):
    """What a partitioned bucket asks for."""

    held_bytes: int
    """What it keeps between calls."""

    def start(self, shard: torch.Tensor, whole: torch.Tensor, version: int) -> Any:
        """Starts to gather this rank's `shard` and the others' into `whole`; what it returns is waited for.

        `version` differs from the last one when the parameters have been written since, on any rank.
        """
        ...


class Whole:
    """See the module. `comm` are the ranks that have a stretch each."""

    held_bytes = 0

    def __init__(self, comm: Any, layout: BucketLayout) -> None:
        self._comm, self._sizes = comm, layout.sizes

    def start(self, shard: torch.Tensor, whole: torch.Tensor, version: int) -> Any:
        return self._comm.all_gather_async(shard, sizes=self._sizes, out=whole)


class Quantized:
    """See the module. This rank's own stretch is quantised like the others, so all have the same bits."""

    held_bytes = 0

    def __init__(self, comm: Any, layout: BucketLayout, quantizer: Quantizer) -> None:
        self._comm, self._layout, self._quantizer = comm, layout, quantizer
        self._sizes = [quantizer.nbytes(size) for size in layout.sizes]

    def start(self, shard: torch.Tensor, whole: torch.Tensor, version: int) -> Any:
        mine = torch.empty(self._sizes[self._comm.rank], dtype=torch.uint8, device=shard.device)
        every = torch.empty(sum(self._sizes), dtype=torch.uint8, device=shard.device)
        self._quantizer.encode(shard, mine)

        def decode() -> None:
            bounds = itertools.pairwise(self._layout.bounds)
            for (begin, end), data in zip(bounds, every.split(self._sizes), strict=True):
                self._quantizer.decode(data, whole[begin:end])

        return _Then(self._comm.all_gather_async(mine, sizes=self._sizes, out=every), decode)


class Secondary:
    """See the module. The copy takes a g-th of the bucket on each rank of a group of g."""

    def __init__(self, first: Gathering, hierarchy: Hierarchy, layout: BucketLayout, device: torch.device) -> None:
        self._first, self._comm = first, hierarchy.within
        bounds = layout.bounds[:: hierarchy.beyond.size]  # as many as there are places, and the end
        self._sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
        self._mine = slice(bounds[hierarchy.place], bounds[hierarchy.place + 1])
        self._copy = registered(self._comm, self._sizes[hierarchy.place], layout.dtype, device)
        self._version = -1  # of the parameters in the copy
        self.held_bytes = self._copy.nbytes

    def start(self, shard: torch.Tensor, whole: torch.Tensor, version: int) -> Any:
        if self._version != version:

            def keep() -> None:
                self._copy.copy_(whole[self._mine])
                self._version = version

            return _Then(self._first.start(shard, whole, version), keep)
        return self._comm.all_gather_async(self._copy, sizes=self._sizes, out=whole)


class _Then:
    """A Work, and what is to be done when it has ended."""

    def __init__(self, work: Any, after: Callable[[], None]) -> None:
        self._work, self._after = work, after

    def wait(self) -> None:
        with torch.no_grad():
            self._work.wait()
            self._after()
