"""Small facts between ranks, as JSON over the collectives themselves. Every rank calls these together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collectives.communicator import Communicator

__all__ = ["broadcast_json", "gather_json"]


def gather_json(comm: Communicator, value: Any) -> list[Any]:
    """The values of all ranks in rank order, on every rank."""
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = [int(n) for n in comm.all_gather(np.array([mine.size], np.int64))]
    whole = bytes(comm.all_gather(mine, sizes=sizes))
    ends = np.cumsum(sizes).tolist()
    return [json.loads(whole[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def broadcast_json(comm: Communicator, value: Any, root: int = 0) -> Any:
    """The root's value on every rank, as it reads back from JSON; what the others give is not looked at."""
    mine = np.frombuffer(json.dumps(value if comm.rank == root else None).encode(), np.uint8)
    size = int(comm.broadcast(np.array([mine.size], np.int64), root=root)[0])
    text = mine if comm.rank == root else np.empty(size, np.uint8)
    return json.loads(bytes(comm.broadcast(text, root=root)))
