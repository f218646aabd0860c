"""DeepSpeed's learning-rate schedules, as functions of the step, on any optimizer with parameter groups.

The formulas are those of deepspeed/runtime/lr_schedules.py (0.19), and so is where they begin: at construction each
schedule sets its lowest rate, and only the first call of its `step`, after the first step of the optimizer, is step 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any


class Schedule:
    """Sets every group's lr, and where there are such its betas, from the number of steps done.

    `rates(step)` gives an lr for each group, `betas(step)` a pair for each; `first` is what they have before the first
    call of `step`, which is for step 0.
    """

    def __init__(
        self,
        optimizer: Any,
        rates: Callable[[int], Sequence[float]],
        first: Sequence[float],
        betas: Callable[[int], Sequence[tuple[float, float]]] | None = None,
        first_betas: Sequence[tuple[float, float]] = (),
    ) -> None:
        self.optimizer, self._rates, self._first, self._betas = optimizer, rates, list(first), betas
        self.last_batch_iteration = -1
        self._set(self._first, first_betas)

    def step(self, last_batch_iteration: int | None = None) -> None:
        """To be called after the optimizer's own step."""
        given = last_batch_iteration
        self.last_batch_iteration = self.last_batch_iteration + 1 if given is None else given
        self._set(self.get_lr(), () if self._betas is None else self._betas(self.last_batch_iteration))

    def _set(self, rates: Sequence[float], betas: Sequence[tuple[float, float]]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for group, pair in zip(self.optimizer.param_groups, betas, strict=False):  # there are none, or one for each
            group["betas"] = pair

    def get_lr(self) -> list[float]:
        return self._first if self.last_batch_iteration < 0 else list(self._rates(self.last_batch_iteration))

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
    low, rates = _warmed(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, None)
    return Schedule(optimizer, rates, low)


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
    low, rates = _warmed(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, total_num_steps)
    return Schedule(optimizer, rates, low)


def warmup_cosine_lr(
    optimizer: Any,
    *,
    total_num_steps: int,
    warmup_min_ratio: float = 0.0,
    warmup_num_steps: int = 1000,
    cos_min_ratio: float = 0.0001,
    warmup_type: str = "log",
) -> Schedule:
    """WarmupCosineLR: each group's own lr times a ratio that rises to 1, then falls along a cosine. First it is 0."""
    steps = _at_least_two(warmup_num_steps)
    own = _own(optimizer)
    _check_kind(warmup_type)

    def ratio(step: int) -> float:
        if step < steps:
            return warmup_min_ratio + _rise(step, steps, warmup_type) * (1 - warmup_min_ratio)
        progress = min(1.0, (step - steps + 1) / max(1, total_num_steps - steps))
        return max(0.0, cos_min_ratio + (1 - cos_min_ratio) * (1 + math.cos(math.pi * progress)) / 2)

    return Schedule(optimizer, lambda step: [rate * ratio(step) for rate in own], [0.0] * len(own))


def lr_range_test(
    optimizer: Any,
    *,
    lr_range_test_min_lr: float | Sequence[float] = 1e-3,
    lr_range_test_step_size: int = 2000,
    lr_range_test_step_rate: float = 1.0,
    lr_range_test_staircase: bool = False,
) -> Schedule:
    """LRRangeTest: from min on, and up by min times the rate every so many steps, in a line or in stairs, for ever."""
    if lr_range_test_step_size != int(lr_range_test_step_size) or lr_range_test_step_size < 1:
        raise ValueError(f"lr_range_test_step_size {lr_range_test_step_size!r} is not a whole number of at least 1")
    low = _each(optimizer, lr_range_test_min_lr)

    def rates(step: int) -> list[float]:
        rounds = (step + 1) / lr_range_test_step_size
        times = 1 + lr_range_test_step_rate * (math.floor(rounds) if lr_range_test_staircase else rounds)
        return [rate * times for rate in low]

    return Schedule(optimizer, rates, low)


def one_cycle(
    optimizer: Any,
    *,
    cycle_min_lr: float | Sequence[float],
    cycle_max_lr: float | Sequence[float],
    decay_lr_rate: float = 0.0,
    cycle_first_step_size: float = 2000,
    cycle_second_step_size: float | None = None,
    cycle_first_stair_count: int = 0,
    cycle_second_stair_count: int | None = None,
    decay_step_size: float = 0,
    cycle_momentum: bool = True,
    cycle_min_mom: float | Sequence[float] = 0.8,
    cycle_max_mom: float | Sequence[float] = 0.9,
    decay_mom_rate: float = 0.0,
) -> Schedule:
    """OneCycle: lr up and down again once, beta 1 the other way round; then lr falls and beta 1 rises further.

    Beta 2 becomes 0.99. Stairs, where there are any, are of so many steps of a half. (Smith, "A disciplined approach to
    neural network hyper-parameters: part 1", 2018.)
    """
    up = float(cycle_first_step_size)
    down = up if cycle_second_step_size is None else float(cycle_second_step_size)
    if up <= 0 or down < 0:
        raise ValueError(f"a cycle has no {up} steps up and {down} down")
    up_stairs = cycle_first_stair_count
    down_stairs = up_stairs if cycle_second_stair_count is None else cycle_second_stair_count
    low, high = _each(optimizer, cycle_min_lr), _each(optimizer, cycle_max_lr)
    least, most = _each(optimizer, cycle_min_mom), _each(optimizer, cycle_max_mom)

    def height(step: int) -> float:
        """From 0 to 1 and back."""
        at = (step + 1) % (up + down)
        part, stairs = (at / up, up_stairs) if at <= up else ((up + down - at) / down, down_stairs)
        return math.floor(part * stairs) / stairs if stairs > 0 else part

    def after(step: int, rate: float) -> float:
        """What lr is divided by, and beta 1 multiplied, once the cycle is over."""
        return 1 + rate * (step - up - down + 1) / decay_step_size if decay_step_size and rate else 1.0

    def rates(step: int) -> list[float]:
        if step < up + down:
            return [a + (b - a) * height(step) for a, b in zip(low, high, strict=True)]
        return [a / after(step, decay_lr_rate) for a in low]

    def betas(step: int) -> list[tuple[float, float]]:
        if step < up + down:
            return [(b - (b - a) * height(step), 0.99) for a, b in zip(least, most, strict=True)]
        return [(b * after(step, decay_mom_rate), 0.99) for b in most]

    if not cycle_momentum or "betas" not in optimizer.defaults:
        return Schedule(optimizer, rates, low)
    return Schedule(optimizer, rates, low, betas, [(a, 0.99) for a in least])


TYPES: dict[str, Callable[..., Schedule]] = {
    "WarmupLR": warmup_lr,
    "WarmupDecayLR": warmup_decay_lr,
    "WarmupCosineLR": warmup_cosine_lr,
    "LRRangeTest": lr_range_test,
    "OneCycle": one_cycle,
}
"""By DeepSpeed's names."""


def _warmed(
    optimizer: Any,
    least: float | Sequence[float],
    most: float | Sequence[float] | None,
    warmup_num_steps: int,
    kind: str,
    total: int | None,
) -> tuple[list[float], Callable[[int], list[float]]]:
    """The rates at the beginning, and as a function of the step."""
    steps = _at_least_two(warmup_num_steps)
    low = _each(optimizer, least)
    high = _own(optimizer) if most is None else _each(optimizer, most)
    _check_kind(kind)

    def part(step: int) -> float:
        if step < steps:
            return _rise(step, steps, kind)
        return 1.0 if total is None else max(0.0, (total - step) / max(1.0, total - steps))

    return low, lambda step: [a + (b - a) * part(step) for a, b in zip(low, high, strict=True)]


def _check_kind(kind: str) -> None:
    if kind not in ("log", "linear"):
        raise ValueError(f"warmup_type {kind!r} is not one of log, linear")


def _rise(step: int, steps: int, kind: str) -> float:
    """From 0 to 1."""
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
