"""DeepSpeed's learning-rate schedules, as functions of the step, on any optimizer with parameter groups.

The formulas are those of deepspeed/runtime/lr_schedules.py (0.19). Steps count from 0, the step at construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


class Schedule:
    """Sets every group's lr from the number of steps done. `rates(step)` gives one for each group."""

    def __init__(self, optimizer: Any, rates: Callable[[int], Sequence[float]]) -> None:
        self.optimizer, self._rates = optimizer, rates
        self.last_batch_iteration = -1
        self.step()

    def step(self, last_batch_iteration: int | None = None) -> None:
        """To be called after the optimizer's own step."""
        given = last_batch_iteration
        self.last_batch_iteration = self.last_batch_iteration + 1 if given is None else given
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float]:
        return list(self._rates(self.last_batch_iteration))

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.last_batch_iteration = state["last_batch_iteration"]


def warmup_lr(
    optimizer: Any,
    *,
    warmup_min_lr: float | Sequence[float] = 0.0,
    warmup_max_lr: float | Sequence[float] | None = None,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> Schedule:
    """WarmupLR: from min to max over so many steps, then constant. Without a max it is each group's own lr."""
    return Schedule(optimizer, _warmed(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, None))


def warmup_decay_lr(
    optimizer: Any,
    *,
    total_num_steps: int,
    warmup_min_lr: float | Sequence[float] = 0.0,
    warmup_max_lr: float | Sequence[float] | None = 0.001,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> Schedule:
    """WarmupDecayLR: as WarmupLR, then in a straight line to min at the last of all steps."""
    rates = _warmed(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, total_num_steps)
    return Schedule(optimizer, rates)


def warmup_cosine_lr(
    optimizer: Any,
    *,
    total_num_steps: int,
    warmup_min_ratio: float = 0.0,
    warmup_num_steps: int = 1000,
    cos_min_ratio: float = 0.0001,
    warmup_type: str = "log",
) -> Schedule:
    """WarmupCosineLR: each group's own lr times a ratio that rises to 1, then falls along a cosine."""
    steps = _at_least_two(warmup_num_steps)
    own = _own(optimizer)

    def ratio(step: int) -> float:
        if step < steps:
            return warmup_min_ratio + _rise(step, steps, warmup_type) * (1 - warmup_min_ratio)
        progress = min(1.0, (step - steps + 1) / max(1, total_num_steps - steps))
        return max(0.0, cos_min_ratio + (1 - cos_min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

    return Schedule(optimizer, lambda step: [rate * ratio(step) for rate in own])


TYPES: dict[str, Callable[..., Schedule]] = {
    "WarmupLR": warmup_lr,
    "WarmupDecayLR": warmup_decay_lr,
    "WarmupCosineLR": warmup_cosine_lr,
}
"""By DeepSpeed's names."""


def _warmed(
    optimizer: Any,
    least: float | Sequence[float],
    most: float | Sequence[float] | None,
    warmup_num_steps: int,
    kind: str,
    total: int | None,
) -> Callable[[int], list[float]]:
    steps = _at_least_two(warmup_num_steps)
    low = _each(optimizer, least)
    high = _own(optimizer) if most is None else _each(optimizer, most)

    def part(step: int) -> float:
        if step < steps:
            return _rise(step, steps, kind)
        return 1.0 if total is None else max(0.0, (total - step) / max(1.0, total - steps))

    return lambda step: [a + (b - a) * part(step) for a, b in zip(low, high, strict=True)]


def _rise(step: int, steps: int, kind: str) -> float:
    """From 0 to 1."""
    if kind not in ("log", "linear"):
        raise ValueError(f"warmup_type {kind!r} is not one of log, linear")
    return math.log(step + 1) / math.log(steps) if kind == "log" else step / steps


def _at_least_two(steps: int) -> int:
    if steps != int(steps) or steps < 1:
        raise ValueError(f"warmup_num_steps {steps!r} is not a whole number of at least 1")
    return max(2, int(steps))


def _own(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _each(optimizer: Any, value: float | Sequence[float]) -> list[float]:
    groups = len(optimizer.param_groups)
    if isinstance(value, int | float):
        return [float(value)] * groups
    if len(value) != groups:
        raise ValueError(f"{len(value)} learning rates for {groups} parameter groups")
    return list(value)
