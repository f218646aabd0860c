"""Loss scaling: small gradients of 16-bit parameters kept from vanishing.

The loss is multiplied by the scale before backward, and the gradients are divided by it, in the dtype of the master
weights, when they are used. A dynamic scale is halved, and the step left out, on every rank, when any rank's gradients
are infinite or NaN; it doubles after `growth_interval` steps without. (Micikevicius et al., "Mixed Precision Training",
ICLR 2018.)
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["LossScale"]


class LossScale:
    """`fixed`: the scale, "dynamic", or None for 1."""

    def __init__(self, fixed: float | Literal["dynamic"] | None, initial: float, growth_interval: int) -> None:
        self.dynamic = fixed == "dynamic"
        if isinstance(fixed, str) and not self.dynamic:
            raise ValueError(f"loss_scale={fixed!r} must be a number, 'dynamic' or None")
        self.value = initial if self.dynamic else 1.0 if fixed is None else float(fixed)
        if not self.value > 0 or growth_interval < 1:
            raise ValueError(f"a loss scale of {self.value} and growth_interval={growth_interval} must be positive")
        self._interval, self._good = growth_interval, 0

    def update(self, overflow: bool) -> None:
        """After a step, or one that was left out because of an overflow."""
        if not self.dynamic:
            return
        if overflow:
            self.value, self._good = max(self.value / 2, 2.0**-24), 0
        else:
            self._good += 1
            if self._good == self._interval:
                self.value, self._good = min(self.value * 2, 2.0**32), 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scale": self.value, "good_steps": self._good}

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets what `state` gives."""
        self.value, self._good = float(state["scale"]), int(state["good_steps"])
