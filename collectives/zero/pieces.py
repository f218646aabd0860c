# pyright: basic, reportMissingImports=false
"""What of each logical parameter this rank's optimizer holds, and how to read and write it.

A piece is a slice of one parameter, laid flat. Pieces are cut small enough that one optimizer update of a piece stays
in a core's cache, which makes PyTorch's plain optimizers about twice as fast on large parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch

from collectives.zero.layout import GRAIN, Slot, Stretch

__all__ = ["PIECE", "WEIGHT", "Piece", "cut"]

PIECE = 2048 * GRAIN
"""Elements. Adam works on four tensors of a piece: 2 MiB of float32."""
WEIGHT = "weight"
"""The name of the master weights among a piece's tensors; the others are the optimizer's own, such as exp_avg."""


class Piece:
    """Elements [begin, end) of a parameter, laid flat.

    parameter   what it is a piece of: name, shape, dtype
    primary     False where another rank holds the same elements and is the one to save them
    """

    def __init__(self, slot: Slot, begin: int, end: int, master: torch.Tensor, offset: int, primary: bool) -> None:
        self.slot, self.parameter, self.begin, self.end = slot, slot.parameter, begin, end
        self.master, self.offset, self.primary = master, offset, primary
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def numel(self) -> int:
        """How many elements."""
        return self.end - self.begin

    def keys(self) -> list[str]:
        """Names of the tensors there are of these elements: "weight", and the optimizer's state."""
        return [WEIGHT, *self.state_in_memory()]

    def state_in_memory(self) -> dict[str, torch.Tensor]:
        """The tensors that the optimizer has now."""
        return {k: v for k, v in self._state().items() if self._is_of_elements(v)}

    def read(self, key: str) -> torch.Tensor:
        """A tensor of `keys`, 1-D, in the dtype it is held in. It may be the very memory: copy it to keep it."""
        return self.master.detach() if key == WEIGHT else self._state()[key]

    def write(self, key: str, value: torch.Tensor) -> None:
        """Replaces a tensor of `keys`, or adds one to the state, as a fresh optimizer has none."""
        if value.shape != (self.numel,):
            raise ValueError(f"{key} of {self} must have shape ({self.numel},), not {tuple(value.shape)}")
        if key == WEIGHT:
            self.master.copy_(value)
        elif self.optimizer is not None:
            held = self.optimizer.state[self.master]
            if key in held:
                held[key].copy_(value)
            else:
                held[key] = value.to(self.master.device, copy=True)

    def scalars(self) -> dict[str, Any]:
        """The rest of the optimizer's state of these elements: numbers, such as `step`, as Python has them."""
        return {
            k: v.item() if isinstance(v, torch.Tensor) else v
            for k, v in self._state().items()
            if not self._is_of_elements(v)
        }

    def set_scalars(self, values: dict[str, Any]) -> None:
        """Sets what `scalars` gives. A `step` becomes a float32 tensor, as PyTorch's optimizers have it."""
        if self.optimizer is None:
            return
        held = self.optimizer.state[self.master]
        for name, value in values.items():
            known = held.get(name)
            tensor = isinstance(known, torch.Tensor) or (known is None and name == "step")
            held[name] = torch.tensor(float(value), dtype=torch.float32) if tensor else value

    def _state(self) -> dict[str, Any]:
        return self.optimizer.state.get(self.master, {}) if self.optimizer is not None else {}

    def _is_of_elements(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dim() == 1 and value.numel() == self.numel

    def __repr__(self) -> str:
        return f"<Piece: {self.parameter.name}[{self.begin}:{self.end}]>"


P = TypeVar("P", bound=Piece)


def cut(kind: type[P], stretches: Iterable[Stretch], master: torch.Tensor, first: int, mine: range) -> list[P]:
    """Pieces of these stretches. `master` holds the bucket from element `first` on; `mine` is saved by this rank."""
    pieces: list[P] = []
    for stretch in stretches:
        slot, begin = stretch.slot, stretch.begin
        while begin < stretch.end:
            end = min(begin + PIECE, stretch.end)
            at = slot.begin + begin
            if at in mine:
                end = min(end, mine.stop - slot.begin)
            elif at < mine.start:
                end = min(end, mine.start - slot.begin)
            offset = at - first
            own = master[offset : offset + end - begin].data  # a slice itself would keep all of `master` alive
            pieces.append(kind(slot, begin, end, own, offset, at in mine))
            begin = end
    return pieces
