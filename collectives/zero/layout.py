# pyright: basic, reportMissingImports=false
"""Which parameters share a bucket, and which part of a bucket each rank owns. Pure arithmetic: no tensors.

    bucket      |  weight 0            | bias 0 |  weight 1                 |
    owned by    |  rank 0        |  rank 1       |  rank 2      |  rank 3   |

A bucket is what one collective moves: whole parameters of one dtype and one parameter group, laid end to end. Every
rank owns one stretch of it, and nothing is padded, so a reduce-scatter or an all-gather sends (N - 1) / N of it and no
byte more.

[Note: cuts]  A bucket is cut where a parameter begins or ends, or at a multiple of GRAIN elements from where it began.
So the vector loops of an optimizer meet the same elements in the same places however a bucket is cut, and the bits of
the result do not depend on it, even in fused kernels, whose tails are rounded differently.

[Note: telling buckets apart]  Ranks compare the sizes of what they call. Buckets of one size are cut a few grains
apart, so that a rank that gathers another bucket than its peers is found out at the first message.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GRAIN", "BucketLayout", "Parameter", "Slot", "Stretch", "buckets"]

GRAIN = 64
"""Elements. Two vectors of 512 bits of the narrowest type that is computed on, and more."""


@dataclass(frozen=True)
class Parameter:
    """A logical parameter: what the model calls it, whatever is left of it on this rank.

    group is the index of its parameter group, -1 for one that is not trained. dtype is torch's.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    numel: int
    dtype: Any
    group: int

    @property
    def trained(self) -> bool:
        """Whether an optimizer updates it."""
        return self.group >= 0


@dataclass(frozen=True)
class Slot:
    """A parameter's place in a bucket: elements [begin, begin + numel)."""

    parameter: Parameter
    begin: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.begin + self.parameter.numel


@dataclass(frozen=True)
class Stretch:
    """The part of a slot that one rank owns: elements [begin, end) of the parameter, laid flat."""

    slot: Slot
    begin: int
    end: int


@dataclass(frozen=True)
class BucketLayout:
    """One bucket. `bounds[r]` to `bounds[r + 1]` is what rank r owns of it."""

    index: int
    slots: tuple[Slot, ...]
    bounds: tuple[int, ...]
    partitioned: bool = False  # whether the parameters themselves are, as in stage 3
    unit: int = -1  # the module whose parameters are gathered together
    names: str = field(default="", compare=False)

    @property
    def numel(self) -> int:
        """Elements of the whole bucket."""
        return self.slots[-1].end if self.slots else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements that each rank owns."""
        return tuple(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def group(self) -> int:
        """The parameter group of all of its parameters."""
        return self.slots[0].parameter.group

    @property
    def dtype(self) -> Any:
        """The dtype of all of its parameters."""
        return self.slots[0].parameter.dtype

    def stretches(self, begin: int, end: int) -> Iterator[Stretch]:
        """What of each parameter lies within elements [begin, end) of the bucket."""
        for slot in self.slots:
            first, last = max(begin, slot.begin), min(end, slot.end)
            if first < last:
                yield Stretch(slot, first - slot.begin, last - slot.begin)

    def __str__(self) -> str:
        return f"bucket {self.index} ({self.names})"


def buckets(
    parameters: Iterable[tuple[Parameter, int]],
    ranks: int,
    bucket_bytes: int,
    item_bytes: Callable[[Any], int],
    partitioned: Callable[[Parameter], bool],
) -> list[BucketLayout]:
    """Packs parameters, given with the unit each belongs to, in this order, into buckets of at most `bucket_bytes`.

    A bucket holds at least one parameter however large that is. Parameters that are partitioned share a bucket only
    within a unit.
    """
    open_: dict[Any, list[Parameter]] = {}
    filled: list[tuple[Any, list[Parameter]]] = []
    for parameter, unit in parameters:
        apart = partitioned(parameter)
        key = (parameter.group, parameter.dtype, apart, unit if apart else -1)
        held = open_.get(key)
        room = bucket_bytes // item_bytes(parameter.dtype)
        if held is None or sum(p.numel for p in held) + parameter.numel > room:
            held = open_[key] = []
            filled.append((key, held))
        held.append(parameter)
    made: list[BucketLayout] = []
    taken: set[tuple[int, ...]] = set()
    for index, (key, held) in enumerate(filled):
        slots: list[Slot] = []
        for parameter in held:
            slots.append(Slot(parameter, slots[-1].end if slots else 0))
        bounds = _cut(slots, ranks, index, taken)
        taken.add(bounds)
        made.append(BucketLayout(index, tuple(slots), bounds, key[2], key[3], _names(held)))
    return made


def _cut(slots: Sequence[Slot], ranks: int, index: int, taken: set[tuple[int, ...]]) -> tuple[int, ...]:
    """Cuts a bucket as evenly as may be. See [Note: cuts] and [Note: telling buckets apart]."""
    numel = slots[-1].end
    for attempt in range(64 if ranks > 1 else 1):
        shift = (attempt + 1) // 2 * (GRAIN if attempt % 2 else -GRAIN)
        bounds = [0]
        for rank in range(1, ranks):
            moved = shift if rank == 1 + index % (ranks - 1) else 0
            target = min(max(numel * rank // ranks + moved, bounds[-1]), numel)
            bounds.append(max(_nearest_cut(slots, target, index), bounds[-1]))
        bounds.append(numel)
        if tuple(bounds) not in taken:
            break
    return tuple(bounds)  # of very small buckets there may be several alike


def _nearest_cut(slots: Sequence[Slot], target: int, index: int) -> int:
    slot = slots[max(bisect_left([s.end for s in slots], target), 0)] if target else slots[0]
    below = slot.begin + (target - slot.begin) // GRAIN * GRAIN
    above = min(below + GRAIN, slot.end)
    if above - target == target - below:  # neither rank is to get the odd small parameter every time
        return above if index % 2 else below
    return below if target - below < above - target else above


def _names(parameters: Sequence[Parameter]) -> str:
    names = [p.name for p in parameters]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}, {len(names)} parameters"
