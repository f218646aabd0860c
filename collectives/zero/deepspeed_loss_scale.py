"""Dynamic loss scaling as DeepSpeed does it: the first overflows may be forgiven, and growth is one step later."""

from __future__ import annotations

from typing import Any

from collectives.zero.precision import LossScale

__all__ = ["DeepSpeedLossScale"]


class DeepSpeedLossScale(LossScale):
    """`DynamicLossScaler` of deepspeed/runtime/fp16/loss_scaler.py (0.19), number by number.

    The scale halves at an overflow, but at the first `hysteresis` - 1 of them only the step is left out. It doubles
    when `window` steps have followed the first good one after an overflow, and after each `window` more; the patience
    with overflows is renewed then, or at every good step where `consecutive`. It does not fall below `least`.
    """

    def __init__(self, initial: float, window: int, *, hysteresis: int, consecutive: bool, least: float) -> None:
        super().__init__("dynamic", initial, window)
        if hysteresis < 1 or not 0 < least <= initial:
            raise ValueError(f"hysteresis={hysteresis} must be at least 1, and {initial} not below {least} > 0")
        self._hysteresis, self._patience, self._consecutive, self._least = hysteresis, hysteresis, consecutive, least

    def update(self, overflow: bool) -> None:
        """Raises FloatingPointError, on every rank, at an overflow at the least scale."""
        if overflow:
            self._good = 0
            if self._patience > 1:
                self._patience -= 1
            elif self.value == self._least:
                raise FloatingPointError(f"gradients overflow at the least loss scale, {self.value}")
            else:
                self.value = max(self.value / 2, self._least)
            return
        self._good += 1
        grows = self._good > 1 and (self._good - 1) % self._interval == 0
        if grows or self._consecutive:
            self._patience = self._hysteresis
        if grows:
            self.value *= 2

    def state(self) -> dict[str, Any]:
        return {**super().state(), "patience": self._patience}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._patience = int(state.get("patience", self._hysteresis))
