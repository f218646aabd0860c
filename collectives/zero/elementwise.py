# pyright: basic, reportMissingImports=false
"""Whether an optimizer works element by element, which is what partitioning its state takes: found out by trying."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["check_elementwise"]

_CUTS = (64, 128, 64)  # multiples of layout.GRAIN, as buckets are cut


def check_elementwise(kind: Any, arguments: dict[str, Any]) -> None:
    """Raises ValueError when two steps on a vector give other bits than on its parts, as they do for LAMB or Adafactor.

    Raises what the optimizer itself raises for `arguments`.
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise TypeError(f"optimizer must be a class of optimizers such as torch.optim.AdamW, not {kind!r}")
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = (torch.randn(sum(_CUTS), generator=generator) for _ in range(3))

    def run(cuts: tuple[int, ...]) -> torch.Tensor:
        parts = [part.clone() for part in weights.split(cuts)]
        optimizer = kind(parts, **arguments)
        for gradient in gradients:
            for part, grad in zip(parts, gradient.split(cuts), strict=True):
                part.grad = grad.clone()
            optimizer.step()
        return torch.cat(parts)

    try:
        alike = torch.equal(run(_CUTS), run((sum(_CUTS),)))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{kind.__name__} does not work on parts of parameters laid flat: {error}") from error
    if not alike:
        raise ValueError(
            f"{kind.__name__} does not work element by element: on parts of a parameter it gives another result"
        )
