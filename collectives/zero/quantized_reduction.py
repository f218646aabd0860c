# pyright: basic, reportMissingImports=false
"""Gradients reduced as quantised blocks, by an all-to-all in one hop or two (qgZ).

    one hop     every rank quantises the stretch of each owner and sends it there; owners add up in float32
    two hops    within the group first: the rank with the owner's place adds up what its group has of that stretch,
                quantises the sum, and sends it to the owner; owners add up in float32

In two hops a rank sends (m - 1) / m of a g-th of the bucket beyond its group, where there are m groups of g, in place
of (N - g) / N of it all. Quantising twice costs accuracy twice. (Wang et al., "ZeRO++", 2023, section 4.3.)

[Note: error feedback]  What quantising takes off a gradient is kept, and added to the next one before that is
quantised: so it is late, but not lost. (Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014;
Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019.) The rest is held in the dtype of the gradients, one for
each element of the bucket, and in two hops another for each of a g-th of it. It begins at zero again with a checkpoint
that is loaded. Blocks with infinities or NaN leave no rest. Under loss scaling it is in the units of the scale it was
made under, so after a change of the scale one step is corrected by half or twice the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from collectives.zero.chain import Chains
from collectives.zero.groups import Hierarchy
from collectives.zero.layout import BucketLayout
from collectives.zero.quantize import Quantizer

__all__ = ["QuantizedReduction"]


class QuantizedReduction:
    """See the module. `hierarchy` makes it two hops. Sums are made in rank order, so bits are the same every time, but
    where blocks begin depends on the buckets: other stages and bucket sizes give other bits."""

    def __init__(self, comm: Any, hierarchy: Hierarchy | None, quantizer: Quantizer, *, error_feedback: bool) -> None:
        self._comm, self._hierarchy, self._quantizer = comm, hierarchy, quantizer
        self._keeps = error_feedback
        self._chains = Chains()
        self._rests: dict[tuple[int, int], torch.Tensor] = {}  # by bucket and hop

    @property
    def held_bytes(self) -> int:
        """Of the rest that is kept; see [Note: error feedback]."""
        return sum(rest.nbytes for rest in self._rests.values())

    def reset(self) -> None:
        """Forgets the rest."""
        self._rests.clear()

    def start(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Any:
        return self._chains.start(self._calls(layout, buffer, into))

    def advance(self) -> None:
        self._chains.advance()

    def _calls(self, layout: BucketLayout, buffer: torch.Tensor, into: torch.Tensor) -> Iterator[Any]:
        """The whole of it, call by call; see chain.py."""
        stretches = [buffer[begin:end] for begin, end in itertools.pairwise(layout.bounds)]
        hierarchy, bucket = self._hierarchy, layout.index
        if hierarchy is None:
            sums = yield from self._exchange(self._comm, (bucket, 0), [[s] for s in stretches], into.dtype)
        else:
            by_place = [[stretches[rank] for rank in ranks] for ranks in zip(*hierarchy.groups, strict=True)]
            partial = yield from self._exchange(hierarchy.within, (bucket, 0), by_place, into.dtype)
            sums = yield from self._exchange(hierarchy.beyond, (bucket, 1), [[p] for p in partial], into.dtype)
        into.copy_(sums[0].div_(self._comm.size))

    def _exchange(
        self, comm: Any, key: tuple[int, int], parts: Sequence[Sequence[torch.Tensor]], dtype: torch.dtype
    ) -> Generator[Any, None, list[torch.Tensor]]:
        """Sends `parts[r]`, quantised, to rank r. Returns the float32 sums of the parts that came, over ranks."""
        mine, device = parts[comm.rank], parts[comm.rank][0].device
        sizes = [sum(self._quantizer.nbytes(part.numel()) for part in some) for some in parts]
        send = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        self._encode([part for some in parts for part in some], send, key, dtype)
        received = torch.empty(comm.size * sizes[comm.rank], dtype=torch.uint8, device=device)
        yield comm.all_to_all_async(
            send, send_sizes=sizes, recv_sizes=[sizes[comm.rank]] * comm.size, out=received
        )  # fmt: skip
        sums = [torch.zeros(part.numel(), device=device) for part in mine]
        stretches = received.split([self._quantizer.nbytes(part.numel()) for part in mine] * comm.size)
        for number, data in enumerate(stretches):
            self._quantizer.decode(data, sums[number % len(sums)], add=True)
        return sums

    def _encode(self, parts: list[torch.Tensor], send: torch.Tensor, key: tuple[int, int], dtype: torch.dtype) -> None:
        """Quantises these one after the other, with what was left of them before. See [Note: error feedback]."""
        numels = [part.numel() for part in parts]
        outs = send.split([self._quantizer.nbytes(numel) for numel in numels])
        rests: Sequence[torch.Tensor | None] = [None] * len(parts)
        if self._keeps:
            if key not in self._rests:
                self._rests[key] = torch.zeros(sum(numels), dtype=dtype, device=send.device)
            rests = self._rests[key].split(numels)
        for part, out, rest in zip(parts, outs, rests, strict=True):
            self._quantizer.encode(part, out, rest)
