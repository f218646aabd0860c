# pyright: basic, reportMissingImports=false
"""A gradient of which this rank holds a part: what `parameter.grad` is once gradients are partitioned.

It has the parameter's shape and dtype, but no memory of its own. What PyTorch does to gradients between backward and
step works on it as on a whole one, on all ranks together: norms, scaling, clamping, `torch.nn.utils.clip_grad_norm_`
(plain and foreach), `torch.amp.GradScaler`. Anything else raises TypeError and names `opt.full_gradient`.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch

__all__ = ["GradientOwner", "ShardedGradient"]


class GradientOwner(Protocol):
    """Who holds the parts of gradients."""

    def parts(self, number: int) -> list[torch.Tensor]:
        """The parts that this rank holds of a parameter's reduced gradient, to be worked on in place until others are
        asked for."""
        ...

    def norms(self, order: float) -> list[torch.Tensor]:
        """Of every parameter, by number, the norm of the whole gradient. All ranks call it."""
        ...

    def any_rank(self, flag: torch.Tensor) -> None:
        """Puts the greatest of all ranks' values into a tensor of one element. All ranks call it."""
        ...


_ELEMENTWISE = frozenset(
    {
        "aten::mul_", "aten::div_", "aten::neg_", "aten::zero_", "aten::clamp_", "aten::clamp_min_", "aten::clamp_max_",
        "aten::nan_to_num_", "aten::sign_",
    }
)  # fmt: skip
_ELEMENTWISE_OF_LISTS = frozenset(
    {"aten::_foreach_mul_", "aten::_foreach_div_", "aten::_foreach_clamp_min_", "aten::_foreach_clamp_max_",
     "aten::_foreach_zero_", "aten::_foreach_neg_"}
)  # fmt: skip


class ShardedGradient(torch.Tensor):
    """See the module. `number` is the parameter's."""

    number: int
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, owner: GradientOwner, number: int, like: torch.Tensor) -> ShardedGradient:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)

    def __init__(self, owner: GradientOwner, number: int, like: torch.Tensor) -> None:
        self._owner, self.number = weakref.ref(owner), number  # Python cannot see cycles through `grad`

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"ShardedGradient(parameter {self.number}, shape {tuple(self.shape)}, {self.dtype})"

    @property
    def owner(self) -> GradientOwner:
        owner = self._owner()
        if owner is None:
            raise RuntimeError("the ZeroOptimizer that held the parts of this gradient is gone")
        return owner

    def _parts(self) -> list[torch.Tensor]:
        return self.owner.parts(self.number)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        kwargs = kwargs or {}
        first = args[0] if args else None
        if name in ("aten::detach", "aten::alias"):
            return first
        if name in _ELEMENTWISE and isinstance(first, ShardedGradient) and not _sharded(args[1:]):
            for part in first._parts():
                func(part, *args[1:], **kwargs)
            return first
        if name == "aten::linalg_vector_norm" and isinstance(first, ShardedGradient) and len(args) <= 2:
            return first.owner.norms(float(args[1]) if len(args) > 1 else 2.0)[first.number]
        if isinstance(first, (list, tuple)) and all(isinstance(g, ShardedGradient) for g in first):
            return _on_list(func, name, first, args[1:], kwargs)
        raise TypeError(
            f"{name} is not possible on a gradient that is partitioned over the ranks; gather it with "
            f"opt.full_gradient(parameter), which all ranks call"
        )


def _on_list(func: Any, name: str, gradients: Any, more: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "aten::_foreach_norm":
        order = float(more[0]) if more else 2.0
        norms = gradients[0].owner.norms(order)
        return [norms[g.number] for g in gradients]
    if name in _ELEMENTWISE_OF_LISTS:
        for g, own in zip(gradients, _each(more, len(gradients)), strict=True):
            for part in g._parts():
                func([part], *own, **kwargs)
        return None
    if name == "aten::_amp_foreach_non_finite_check_and_unscale_":
        found = more[0]
        for g in gradients:
            for part in g._parts():
                func([part], *more)
        gradients[0].owner.any_rank(found)
        return None
    raise TypeError(f"{name} is not possible on gradients that are partitioned over the ranks")


def _each(more: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
    """The arguments for each gradient: those that are lists hold one for each."""
    return [tuple([m[i]] if isinstance(m, (list, tuple)) else m for m in more) for i in range(count)]


def _sharded(values: tuple[Any, ...]) -> bool:
    return any(isinstance(v, ShardedGradient) for v in values)
