"""What training holds per rank, from the ZeRO paper's formulas, and what DeepSpeed's own estimators say of the same.

With P parameters on N ranks, Adam, and 16-bit parameters with fp32 master weights (Rajbhandari et al., ZeRO, SC 2020,
section 3 and figure 1), in bytes per rank:

    stage   parameters   gradients   master + moments    all
      0        2 P          2 P           12 P           16 P
      1        2 P          2 P           12 P / N       4 P + 12 P / N
      2        2 P          2 P / N       12 P / N       2 P + 14 P / N
      3        2 P / N      2 P / N       12 P / N       16 P / N

In fp32 there are no master weights: 4 + 4 + 8 bytes. Activations, buffers of communication and what an allocator keeps
are not in it. What a rank sends in a step is 2 P (N - 1) / N elements, and 3 P (N - 1) / N at stage 3.

Partitioned within groups of g ranks (MiCS, HSDP), N in the table is g; the group is sent what all were before, and
besides 2 (P / g) (m - 1) / m elements go beyond it, where there are m groups. A second copy within groups (hpZ) takes
P / g more parameters, and one of the three passes of stage 3 sends P (g - 1) / g, which stay in the group.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

KINDS = ("parameters", "gradients", "master", "states")
"""Model parameters, their gradients, fp32 master weights, and the optimizer's states."""

PARTITIONED_FROM = {"parameters": 3, "gradients": 2, "master": 1, "states": 1}
"""The stage from which each rank holds its share of a kind alone."""

BYTES_PER_ELEMENT = {
    "fp32": {"parameters": 4, "gradients": 4, "master": 0},
    "16-bit": {"parameters": 2, "gradients": 2, "master": 4},
}


@dataclass(frozen=True)
class Estimate:
    """Bytes per rank. `device_bytes` and `host_bytes` have an entry for each kind that is held there."""

    stage: int
    world_size: int
    parameters: int  # elements of the whole model
    precision: str
    device_bytes: dict[str, int]
    host_bytes: dict[str, int]
    sent_bytes: int  # per rank and step, in messages' payload
    deepspeed_device_bytes: int | None  # None: DeepSpeed estimates stages 2 and 3 alone, in 16 bits

    @property
    def total_bytes(self) -> int:
        """On the device."""
        return sum(self.device_bytes.values())


def estimate(
    model_or_count: Any,
    *,
    stage: int,
    world_size: int,
    precision: str = "16-bit",
    state_elems: int = 2,
    offload: Collection[str] = (),
    largest_layer: int | None = None,
    partition: int | None = None,
    secondary: int | None = None,
) -> Estimate:
    """What a rank holds of `model_or_count`: a module, whose shared parameters count once, or a number of elements.

    `precision` is "16-bit" (with fp32 master weights) or "fp32"; `state_elems` how many fp32 values the optimizer keeps
    for an element (Adam 2, SGD with momentum 1, without 0); `offload` the kinds that are held by the host, or in files.
    `largest_layer` is the elements of the largest module's own parameters, which DeepSpeed's estimator of stage 3 asks
    for: of a module it is found, of a count it is 0 unless given. `partition` and `secondary` are the ranks of a group,
    as for ZeroOptimizer; None: there are none.
    Raises ValueError and TypeError for arguments that make no sense.
    """
    if stage not in range(4):
        raise ValueError(f"stage {stage!r} is not one of 0, 1, 2, 3")
    if world_size < 1:
        raise ValueError(f"world_size {world_size!r} is below 1")
    if precision not in BYTES_PER_ELEMENT:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(BYTES_PER_ELEMENT)}")
    if state_elems < 0:
        raise ValueError(f"state_elems {state_elems!r} is below 0")
    if unknown := set(offload) - set(KINDS):
        raise ValueError(f"offload {min(unknown)!r} is not one of {', '.join(KINDS)}")
    for name, size in (("partition", partition), ("secondary", secondary)):
        if size is not None and (size < 1 or world_size % size):
            raise ValueError(f"{name}={size} does not divide the {world_size} ranks into groups of that size")
    if secondary is not None and (stage != 3 or partition is not None):
        raise ValueError("secondary is for stage 3, and not together with partition")
    count, found = _counted(model_or_count)
    shared_by = world_size if partition is None else partition
    each = {**BYTES_PER_ELEMENT[precision], "states": 4 * state_elems}
    held: dict[str, int] = {}
    for kind in KINDS:
        elems = -(-count // shared_by) if stage >= PARTITIONED_FROM[kind] else count
        held[kind] = each[kind] * elems
    if secondary is not None:
        held["secondary"] = each["parameters"] * -(-count // secondary)
    spread = [shared_by, shared_by]  # over how many ranks each pass is
    if stage == 3:
        spread.append(shared_by if secondary is None else secondary)
    groups = world_size // shared_by
    passes = sum(Fraction(size - 1, size) for size in spread) + 2 * Fraction(groups - 1, groups * shared_by)
    sent_bytes = int(passes * count * each["parameters"])
    largest = found if largest_layer is None else largest_layer
    theirs = None if precision == "fp32" else _deepspeed_bytes(count, largest, stage, world_size, offload)
    return Estimate(
        stage=stage,
        world_size=world_size,
        parameters=count,
        precision=precision,
        device_bytes={kind: nbytes for kind, nbytes in held.items() if kind not in offload},
        host_bytes={kind: nbytes for kind, nbytes in held.items() if kind in offload},
        sent_bytes=sent_bytes,
        deepspeed_device_bytes=theirs,
    )


def _counted(model_or_count: Any) -> tuple[int, int]:
    """Elements in all, and those of the largest module's own parameters (0 for a bare count)."""
    if isinstance(model_or_count, int | float) and not isinstance(model_or_count, bool):
        if model_or_count < 0 or model_or_count != int(model_or_count):
            raise ValueError(f"{model_or_count!r} is not a number of parameters")
        return int(model_or_count), 0
    model: Any = model_or_count
    if not hasattr(model, "modules") or not hasattr(model, "parameters"):
        raise TypeError(f"estimate takes a module or a number of parameters, not {type(model).__name__}")
    layers = [sum(parameter.numel() for parameter in layer.parameters(recurse=False)) for layer in model.modules()]
    return sum(parameter.numel() for parameter in model.parameters()), max(layers, default=0)


def _deepspeed_bytes(count: int, largest_layer: int, stage: int, ranks: int, offload: Collection[str]) -> int | None:
    """On the device, as estimate_zero2_ and estimate_zero3_model_states_mem_needs of DeepSpeed 0.19 have it.

    They count fp32 gradients beside those in 16 bits, so 18 bytes where the paper has 14, and no padding.
    """
    optimizer = "states" in offload
    if stage == 2:
        return 2 * count + (0 if optimizer else 18 * count // ranks)
    if stage == 3:
        partitioned = 18 if not optimizer else 0 if "parameters" in offload else 2
        return 4 * largest_layer + partitioned * count // ranks
    return None
