# pyright: basic, reportMissingImports=false
"""What of a bucket is offloaded: a place for it, and the parameters that come for a step.

bucket.stored_grad    reduced gradients of the own stretch
bucket.stored_shard   parameters of the own stretch
bucket.state          what the optimizer keeps of them, with the master weights of 16-bit parameters
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from collectives.zero.offloaded_state import OffloadedState, StoredPiece
from collectives.zero.stored import Stored

if TYPE_CHECKING:
    from collectives.zero.bucket import Bucket

__all__ = ["order", "own_parameters", "put_away", "reserve"]


def reserve(bucket: Bucket, keeps: Mapping[str, torch.dtype]) -> None:
    """Finds room; `keeps` is what the optimizer will keep of every element (elementwise.py). Raises OffloadError."""
    homes, numel = bucket.settings.homes, bucket.end - bucket.begin
    if homes.gradients is not None and bucket.trained and not bucket.keeps_buffer:
        bucket.stored_grad = Stored(homes.gradients, numel, bucket.grad_dtype)
    if homes.parameters is not None and bucket.layout.partitioned:
        bucket.stored_shard = Stored(homes.parameters, numel, bucket.layout.dtype)
    if homes.optimizer is not None and bucket.optimizer is not None:
        bucket.state = OffloadedState(
            homes.optimizer, bucket.pieces, bucket.optimizer, keeps, with_weights=bucket.separate_master
        )


def put_away(bucket: Bucket) -> None:
    """Stores what there is to begin with."""
    if bucket.state is not None:
        bucket.state.put_away()
        if bucket.separate_master:
            bucket.master = None
    if bucket.stored_shard is not None:
        assert bucket.shard is not None
        bucket.stored_shard.fresh().copy_(bucket.shard)
        if not bucket.separate_master:
            bucket.master = None
        _store_shard(bucket)


def order(bucket: Bucket) -> list[Stored]:
    """What a step gets, in this order."""
    first = [stored for stored in (bucket.stored_grad, bucket.stored_shard) if stored is not None]
    return first + (bucket.state.order() if bucket.state is not None else [])


@contextmanager
def own_parameters(bucket: Bucket) -> Generator[torch.Tensor]:
    """The working parameters that the optimizer's pieces are of, in memory, to be changed."""
    if bucket.stored_shard is None:
        working = bucket.full if bucket.everything else bucket.shard
        assert working is not None
        yield working
        return
    bucket.shard = shard = bucket.stored_shard.get(changing=True)
    if not bucket.separate_master:
        for piece in bucket.pieces:
            piece.master.data = shard[piece.offset : piece.offset + piece.numel]
    yield shard
    _store_shard(bucket)


def _store_shard(bucket: Bucket) -> None:
    assert bucket.stored_shard is not None
    bucket.shard = None
    if not bucket.separate_master:
        for piece in bucket.pieces:
            assert isinstance(piece, StoredPiece)
            piece.shard, piece.master.data = bucket.stored_shard, piece.master.new_empty(0)
    bucket.stored_shard.commit()
