# pyright: basic, reportMissingImports=false
"""Memory that collectives work on: registered with the transport, so that ranks on one host read it in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["Pool", "registered"]


def registered(comm: Any, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A 1-D tensor of `numel` elements, not initialised, in memory that peers on the same host can read."""
    if device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=device)
    nbytes = numel * torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(comm.empty(max(nbytes, 1), np.uint8))[:nbytes].view(dtype)


class Pool:
    """Buffers that are taken for a while, and given back. `make` makes a new one of so many bytes."""

    def __init__(self, make: Callable[[int], torch.Tensor]) -> None:
        self._make = make
        self._free: list[torch.Tensor] = []  # uint8
        self.held_bytes = 0

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of at least this many bytes: the smallest that is free, or a new one."""
        fitting = [b for b in self._free if b.numel() >= nbytes]
        if fitting:
            best = min(fitting, key=torch.Tensor.numel)
            self._free = [b for b in self._free if b is not best]
            return best
        if self._free:  # a larger one takes the place of a smaller one
            self.held_bytes -= self._free.pop().numel()
        self.held_bytes += nbytes
        return self._make(nbytes)

    def give(self, buffer: torch.Tensor) -> None:
        """Takes a buffer back."""
        self._free.append(buffer)
