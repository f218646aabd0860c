# pyright: basic, reportMissingImports=false
"""The optimizer's state of one bucket, kept in a store: it comes and goes run by run.

A run is some pieces that follow one another. In the store it is one stretch, in which every tensor of every piece
begins at a multiple of 64 bytes:

    | piece 0: weight, exp_avg, exp_avg_sq | piece 1: weight, exp_avg, exp_avg_sq | ...

Which tensors an optimizer keeps of each element is seen when it is tried out (elementwise.py), so that there is room
from the start; an optimizer that later keeps others gets another stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from collectives.zero.pieces import PIECE, WEIGHT, Piece
from collectives.zero.stored import Store, Stored

__all__ = ["OffloadedState", "StoredPiece"]

_RUN = 8 * PIECE  # elements: 8 MiB of Adam's state in float32
_ALIGN = 64  # bytes


class StoredPiece(Piece):
    """A piece whose optimizer's state, or whose weights, are in a store. What `read` gives is a copy."""

    run: _Run | None = None
    shard: Stored | None = None  # the parameters that it is a part of

    def keys(self) -> list[str]:
        stored = () if self.run is None else self.run.keys(self)
        return list(dict.fromkeys([WEIGHT, *stored, *self.state_in_memory()]))

    def read(self, key: str) -> torch.Tensor:
        if self.run is not None and key in self.run.keys(self):
            return self.run.read(self, key)
        if key == WEIGHT and self.shard is not None:
            return self.shard.read(self.offset, self.offset + self.numel)
        return super().read(key)

    def write(self, key: str, value: torch.Tensor) -> None:
        if self.run is not None and (self, key) in self.run.layout and value.shape == (self.numel,):
            self.run.write(self, key, value)
        elif key == WEIGHT and self.shard is not None and value.shape == (self.numel,):
            self.shard.write(self.offset, value)
        else:
            super().write(key, value)


class OffloadedState:
    """`keeps` are the tensors that the optimizer is expected to keep of every element of float32 weights."""

    def __init__(
        self, store: Store, pieces: Sequence[Any], optimizer: torch.optim.Optimizer,
        keeps: Mapping[str, torch.dtype], *, with_weights: bool,
    ) -> None:  # fmt: skip
        dtype = pieces[0].master.dtype
        keys = {WEIGHT: dtype} if with_weights else {}
        keys |= {key: dtype if kept == torch.float32 else kept for key, kept in keeps.items()}
        self.runs = [_Run(store, some, optimizer, keys) for some in _cut(pieces)]

    def put_away(self) -> None:
        """Stores the master weights, and what the optimizer has begun with."""
        for run in self.runs:
            run.detach()

    def order(self) -> list[Stored]:
        """What will be read in a step."""
        return [run.stored for run in self.runs]

    def in_turn(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """These pieces, some at a time, while their state is in memory; what is done to it then is stored."""
        wanted = {id(piece) for piece in pieces}
        for run in self.runs:
            some: list[Piece] = [piece for piece in run.pieces if id(piece) in wanted]
            if some:
                run.attach()
                yield some
                run.detach()

    def with_weights(self) -> Iterator[Piece]:
        """Every piece, while its master weights are in memory."""
        for run in self.runs:
            run.attach()
            yield from run.pieces
            run.release()


def _cut(pieces: Sequence[StoredPiece]) -> Iterator[list[StoredPiece]]:
    some: list[StoredPiece] = []
    for piece in pieces:
        if some and sum(p.numel for p in some) + piece.numel > _RUN:
            yield some
            some = []
        some.append(piece)
    yield some


class _Run:
    """Pieces whose state comes and goes together."""

    def __init__(
        self, store: Store, pieces: Sequence[StoredPiece], optimizer: torch.optim.Optimizer,
        keys: Mapping[str, torch.dtype],
    ) -> None:  # fmt: skip
        self._store, self.pieces, self._optimizer = store, pieces, optimizer
        fields = [(piece, key, dtype) for piece in pieces for key, dtype in keys.items()]
        self._there: set[tuple[StoredPiece, str]] = set()  # what has a value
        self._lay_out(fields)
        for piece in pieces:
            piece.run = self

    def _lay_out(self, fields: Sequence[tuple[StoredPiece, str, torch.dtype]]) -> None:
        self.layout: dict[tuple[StoredPiece, str], tuple[int, torch.dtype]] = {}
        end = 0
        for piece, key, dtype in fields:
            self.layout[piece, key] = end, dtype
            end += -(-piece.numel * dtype.itemsize // _ALIGN) * _ALIGN
        self.stored = Stored(self._store, end, torch.uint8)

    # ---------------------------------------------------------------- coming and going

    def attach(self) -> None:
        """Brings what there is, and gives it to the optimizer."""
        whole = self.stored.get() if self.stored.exists else self.stored.fresh()
        for field in self._there:
            piece, key = field
            if key == WEIGHT:
                piece.master.data = self._part(whole, field)
            else:
                self._optimizer.state[piece.master][key] = self._part(whole, field)

    def detach(self) -> None:
        """Takes the state from the optimizer, and stores it."""
        found = {(piece, key): t for piece in self.pieces for key, t in piece.state_in_memory().items()}
        found |= {(p, WEIGHT): p.master for p in self.pieces if (p, WEIGHT) in self.layout and p.master.numel()}
        unknown = [(*f, t.dtype) for f, t in found.items() if f not in self.layout or self.layout[f][1] != t.dtype]
        before = self.stored
        if unknown:
            known = [(piece, key, dtype) for (piece, key), (_, dtype) in self.layout.items()]
            merged = {(piece, key): dtype for piece, key, dtype in known + unknown}
            self._lay_out([(piece, key, dtype) for (piece, key), dtype in merged.items()])
            self._move(found, self.stored.fresh())
            before.forget()
        else:
            self._move(found, before.get() if before.exists else before.fresh())
        self._there = set(found)
        self._hide()
        if found or self.stored.exists:
            self.stored.commit()
        else:
            self.stored.forget()

    def release(self) -> None:
        """Takes the state from the optimizer; it has not changed."""
        self._hide()
        self.stored.drop()

    def _move(self, found: Mapping[tuple[StoredPiece, str], torch.Tensor], whole: torch.Tensor) -> None:
        for field, tensor in found.items():
            part = self._part(whole, field)
            if part.data_ptr() != tensor.data_ptr():
                part.copy_(tensor)

    def _hide(self) -> None:
        for piece, key in self._there:
            if key == WEIGHT:
                piece.master.data = piece.master.new_empty(0)
            else:
                del self._optimizer.state[piece.master][key]

    def _part(self, whole: torch.Tensor, field: tuple[StoredPiece, str]) -> torch.Tensor:
        at, dtype = self.layout[field]
        return whole[at : at + field[0].numel * dtype.itemsize].view(dtype)

    # ---------------------------------------------------------------- one tensor

    def keys(self, piece: StoredPiece) -> list[str]:
        """Of the tensors that a piece has here."""
        return [key for other, key in self.layout if other is piece and (piece, key) in self._there]

    def read(self, piece: StoredPiece, key: str) -> torch.Tensor:
        """A copy of one."""
        at, dtype = self.layout[piece, key]
        return self.stored.read(at, at + piece.numel * dtype.itemsize).view(dtype)

    def write(self, piece: StoredPiece, key: str, value: torch.Tensor) -> None:
        """Replaces one, or begins it."""
        at, dtype = self.layout[piece, key]
        self.stored.write(at, value.to(dtype).contiguous().view(torch.uint8))
        self._there.add((piece, key))
