"""deepspeed.zero: parameters that are partitioned at stage 3, seen whole."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

from collectives.zero import whole
from collectives.zero.gather import EXTERNAL

__all__ = ["GatheredParameters", "Init", "register_external_parameter"]


def Init(*args: Any, **named: Any) -> AbstractContextManager[None]:  # noqa: N802 - DeepSpeed's name
    """A block that makes the model. Parameters are whole in it: it is `initialize` that partitions them."""
    return nullcontext()


@contextmanager
def GatheredParameters(  # noqa: N802 - DeepSpeed's name
    params: Any, modifier_rank: int | None = None, fwd_module: Any = None, enabled: bool = True
) -> Generator[None]:
    """A block in which these parameters are whole; what `modifier_rank` makes of them becomes everybody's.

    `params` is a parameter or several. `fwd_module` is registered as their user. All ranks enter and leave it together.
    Before `initialize` parameters are whole anyway, and rank 0's become everybody's: a block for another rank's is
    refused then (ValueError).
    """
    chosen: list[Any] = [params] if hasattr(params, "data_ptr") else list(cast("Iterable[Any]", params))
    by_owner: dict[int, tuple[Any, list[Any]]] = {}
    for param in chosen if enabled else ():
        if fwd_module is not None:
            register_external_parameter(fwd_module, param)
        owner = whole.owner_of(param)
        if owner is not None:
            by_owner.setdefault(id(owner), (owner, []))[1].append(param)
        elif modifier_rank not in (None, 0):
            raise ValueError(f"modifier_rank={modifier_rank}: before initialize, which makes rank 0's parameters all's")
    with ExitStack() as stack:
        for owner, held in by_owner.values():
            stack.enter_context(owner.gathered(held, modifier_rank))
        yield


def register_external_parameter(module: Any, parameter: Any) -> None:
    """Lets `parameter` be whole while `module` runs, although it is another module's."""
    module.__dict__.setdefault(EXTERNAL, {})[id(parameter)] = parameter
    owner = whole.owner_of(parameter)
    if owner is not None:
        owner.attend(module, parameter)
