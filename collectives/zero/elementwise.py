# pyright: basic, reportMissingImports=false
"""Whether an optimizer works element by element, which is what partitioning its state takes: found out by trying."""

from __future__ import annotations

import inspect
from typing import Any

import torch

__all__ = ["check_elementwise"]

_CUTS = (64, 128, 64)  # multiples of layout.GRAIN, as buckets are cut


def check_elementwise(kind: Any, arguments: dict[str, Any]) -> dict[str, torch.dtype]:
    """Raises ValueError when two steps on a vector give other bits than on its parts, as they do for LAMB or Adafactor.

    Returns the names and dtypes of what the optimizer keeps of every element of float32 weights. Raises what the
    optimizer itself raises for `arguments`.
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise TypeError(f"optimizer must be a class of optimizers such as torch.optim.AdamW, not {kind!r}")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{kind.__name__} does not work element by element: a step of it evaluates the model again")
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = (torch.randn(sum(_CUTS), generator=generator) for _ in range(3))

    kept: dict[str, torch.dtype] = {}

    def run(cuts: tuple[int, ...]) -> torch.Tensor:
        parts = [part.clone() for part in weights.split(cuts)]
        optimizer = kind(parts, **arguments)
        for gradient in gradients:
            for part, grad in zip(parts, gradient.split(cuts), strict=True):
                part.grad = grad.clone()
            optimizer.step()
        for part in parts:
            tensors = {k: v for k, v in optimizer.state[part].items() if isinstance(v, torch.Tensor)}
            kept.update((k, v.dtype) for k, v in tensors.items() if v.shape == part.shape)
        return torch.cat(parts)

    try:
        alike = torch.equal(run(_CUTS), run((sum(_CUTS),)))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{kind.__name__} does not work on parts of parameters laid flat: {error}") from error
    if not alike:
        raise ValueError(
            f"{kind.__name__} does not work element by element: on parts of a parameter it gives another result"
        )
    return kept
