"""deepspeed.utils, as far as it is about tensors that are partitioned. All ranks make each of these calls together.

Parameters are those of a model that `initialize`, or a ZeroOptimizer, has taken; for any other there is None.
"""

from __future__ import annotations

from typing import Any

from collectives.zero import whole

__all__ = [
    "safe_get_full_fp32_param",
    "safe_get_full_grad",
    "safe_get_full_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_full_optimizer_state",
]


def safe_get_full_fp32_param(param: Any) -> Any:
    """The whole parameter as it is updated, float32: the master weights of a 16-bit one. A copy."""
    found = _read(param, whole.WEIGHT)
    return None if found is None else found.float()


def safe_get_full_optimizer_state(param: Any, optim_state_key: str) -> Any:
    """The whole state of this name, float32, such as "exp_avg"; None before the first step. A copy."""
    found = _read(param, optim_state_key)
    return None if found is None else found.float()


def safe_get_full_grad(param: Any) -> Any:
    """The whole averaged gradient, times the loss scale; None where there is none, as after a step."""
    owner = whole.owner_of(param)
    return None if owner is None else owner.full_gradient(param)


def safe_set_full_fp32_param(param: Any, value: Any) -> None:
    """Replaces the parameter, master weights included, by a value that all ranks give."""
    _write(param, value, whole.WEIGHT)


def safe_set_full_optimizer_state(param: Any, value: Any, optim_state_key: str) -> None:
    """Replaces a state of this name by a value that all ranks give."""
    _write(param, value, optim_state_key)


def _read(param: Any, key: str) -> Any:
    owner = whole.owner_of(param)
    return None if owner is None else whole.read(owner, param, key)


def _write(param: Any, value: Any, key: str) -> None:
    owner = whole.owner_of(param)
    if owner is not None:
        whole.write(owner, [(param, value)], key)
