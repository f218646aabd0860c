# pyright: basic, reportMissingImports=false
"""Models that were made on the meta device: their parameters get memory and values module by module.

    with torch.device("meta"):
        model = Model()                                     # takes no memory
    opt = ZeroOptimizer(model, torch.optim.AdamW, stage=3)  # each module is initialised, partitioned, and let go

Modules come children first, as in `model.apply`, which is the order in which most models make them: if each initialises
itself in `reset_parameters`, as those of torch.nn do, the values are those that the same seed gives on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import Module, Parameter

__all__ = ["device_of", "materialised"]


def device_of(parameters: Sequence[Parameter]) -> torch.device:
    """Where the model is; torch's default device, if it is all on the meta device."""
    return next((p.device for p in parameters if not p.is_meta), torch.get_default_device())


def materialised(
    model: Module, units: Sequence[Module], initialise: Callable[[Any], None] | None, device: torch.device
) -> Iterator[list[Parameter]]:
    """Gives what is on the meta device memory and values. Parameters stay the same objects.

    Yields those that have just got theirs: of a unit all at once, otherwise of one module. Raises ValueError for a
    module that cannot be initialised.
    """
    names = {id(module): name for name, module in model.named_modules()}
    wanted = {id(m) for m in model.modules() if any(t.is_meta for t in _own(m))}
    for group in _groups(model, units):
        new: list[Parameter] = []
        for module in group:
            if id(module) in wanted:
                new += _materialise(module, names[id(module)], initialise, device)
        if new:
            yield new


def _materialise(module: Any, name: str, initialise: Callable[[Any], None] | None, device: Any) -> list[Parameter]:
    reset: Any = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if initialise is None and reset is None:
        raise ValueError(
            f"module {name!r} ({type(module).__name__}) is on the meta device and has no reset_parameters(): pass "
            f"init_parameters=, a function that gives the parameters and buffers of a module their values"
        )
    new: list[Parameter] = []
    elsewhere: dict[str, Parameter] = {}
    for key, p in list(module._parameters.items()):
        if p is not None and p.is_meta:
            real = Parameter(torch.full(p.shape, float("nan"), dtype=p.dtype, device=device), p.requires_grad)
            real.__dict__.update(p.__dict__)
            torch.utils.swap_tensors(p, real)
            new.append(p)
        elif p is not None:  # shared with a module that has given it its values: this one may spend its own elsewhere
            elsewhere[key] = p
            module._parameters[key] = Parameter(torch.empty(p.shape, dtype=p.dtype, device=device))
    for key, b in module._buffers.items():
        if b is not None and b.is_meta:
            module._buffers[key] = torch.empty(b.shape, dtype=b.dtype, device=device)
            if b.is_floating_point():
                module._buffers[key].fill_(float("nan"))
    with torch.no_grad():
        if initialise is not None:
            initialise(module)
        else:
            reset()
    module._parameters.update(elsewhere)
    return new


def _own(module: Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _groups(model: Module, units: Sequence[Module]) -> Iterator[list[Module]]:
    """All modules once, children first; a unit's together."""
    seen: set[int] = set()

    def below(module: Module, into: list[Module]) -> list[Module]:
        for child in module.children():
            below(child, into)
        if id(module) not in seen:
            seen.add(id(module))
            into.append(module)
        return into

    def walk(module: Module) -> Iterator[list[Module]]:
        if any(module is unit for unit in units):
            yield below(module, [])
        elif id(module) not in seen:
            for child in module.children():
                yield from walk(child)
            seen.add(id(module))
            yield [module]

    yield from walk(model)
