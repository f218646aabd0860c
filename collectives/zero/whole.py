# pyright: basic, reportMissingImports=false
"""Whole tensors of one parameter, out of what each rank holds: its master weights, its optimizer state, its gradient.

And the other way round: `gathered` lets a block of code see whole parameters at stage 3, and change them.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch

from collectives.exchange import gather_json
from collectives.zero.faults import while_doing
from collectives.zero.pieces import WEIGHT, Piece

__all__ = ["gathered", "living", "owner_of", "read", "write"]

living: weakref.WeakSet[Any] = weakref.WeakSet()
"""The ZeroOptimizers that have not been closed."""


def owner_of(parameter: Any) -> Any:
    """The ZeroOptimizer of the model that has this parameter; None where there is none."""
    return next((o for o in living if any(p is parameter for p in o.model.parameters())), None)


def _name_of(optimizer: Any, parameter: Any) -> str:
    """Raises ValueError for a parameter of another model."""
    for name, p in optimizer.model.named_parameters():
        if p is parameter:
            return name
    raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not one of this optimizer's model")


def _pieces(optimizer: Any, name: str) -> list[Piece]:
    return sorted((p for p in optimizer.pieces() if p.parameter.name == name), key=lambda piece: piece.begin)


@torch.no_grad()
def read(optimizer: Any, parameter: Any, key: str = WEIGHT) -> Any:
    """A tensor of the parameter's shape, in the dtype it is held in; None where no rank has one of this name.

    `key` is "weight" (what the optimizer updates: float32 masters of 16-bit parameters) or a name of the optimizer's,
    such as exp_avg. All ranks call it. Raises ValueError for a parameter of another model.
    """
    name, comm = _name_of(optimizer, parameter), optimizer.comm
    mine = [p for p in _pieces(optimizer, name) if p.primary and key in p.keys()]  # noqa: SIM118 - a piece is no dict
    flat = torch.cat([p.read(key).clone() for p in mine]) if mine else None  # a piece may lend its memory only
    with while_doing(f"gathering {key} of", name):
        about = [mine[0].begin, str(flat.dtype).removeprefix("torch."), flat.numel()] if flat is not None else None
        every = gather_json(comm, about)
        there = [one for one in every if one is not None]
        if not there:  # what is whole on every rank and in no rank's pieces
            return parameter.detach().clone() if key == WEIGHT else None
        dtype = getattr(torch, there[0][1])
        own = torch.empty(0, dtype=dtype, device=parameter.device) if flat is None else flat
        sizes = [0 if one is None else one[2] for one in every]
        laid = comm.all_gather(own, sizes=sizes) if comm.size > 1 else own
    parts = zip(every, laid.split(sizes), strict=True)
    ordered = sorted(((one[0], part) for one, part in parts if one is not None), key=lambda pair: pair[0])
    return torch.cat([part for _, part in ordered]).view(parameter.shape)


@torch.no_grad()
def write(optimizer: Any, values: Iterable[tuple[Any, Any]], key: str = WEIGHT) -> None:
    """The opposite of `read`, for several: all ranks call it with the same values, each of its parameter's shape.

    Raises ValueError for another shape or a parameter of another model, before anything is written.
    """
    named = [(_name_of(optimizer, parameter), parameter, value) for parameter, value in values]
    for name, parameter, value in named:
        if value.shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(parameter.shape)}, and its value {tuple(value.shape)}")
    in_no_piece = {p.name for p in optimizer.parameters if not p.trained and optimizer.stage < 3}
    for name, parameter, value in named:
        for piece in _pieces(optimizer, name):
            piece.write(key, value.reshape(-1)[piece.begin : piece.end])
        if name in in_no_piece and key == WEIGHT:
            parameter.copy_(value)
    if key == WEIGHT:
        optimizer.refresh()


@contextmanager
def gathered(optimizer: Any, parameters: Iterable[Any], modifier_rank: int | None = None) -> Generator[None]:
    """See ZeroOptimizer.gathered."""
    comm, chosen = optimizer.comm, {_name_of(optimizer, p): p for p in parameters}
    if modifier_rank is not None and not 0 <= modifier_rank < comm.size:
        raise ValueError(f"modifier_rank={modifier_rank} is none of the {comm.size} ranks")
    with optimizer.held(chosen.values()), torch.no_grad():
        with torch.enable_grad():
            yield
        values: list[tuple[Any, Any]] = []
        for name, p in sorted(chosen.items()) if modifier_rank is not None else ():
            value = p.detach().clone()
            if comm.size > 1 and value.numel():
                with while_doing(f"hearing from rank {modifier_rank} of", name):
                    comm.broadcast(value, root=modifier_rank, out=value)
            values.append((p, value))
    if values:
        write(optimizer, values)
