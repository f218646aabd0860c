"""What each collective means in nccl-tests' terms; and one of one size, as something to call, fill and check.

`elems` is always the whole array: what every rank ends with (all_gather), starts with (reduce_scatter), or
both. For the collectives that cut it into one block per rank, nccl-tests' `count` is the elements of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import check
from .arrays import memory, wrap
from .check import Source, count_wrong, fill

if TYPE_CHECKING:
    from collectives import Communicator


class Traits(NamedTuple):
    reduces: bool
    rooted: bool
    blocks: bool
    in_place: bool
    bus_factor: Callable[[int], float]  # busbw / algbw by ranks: nccl-tests, doc/PERFORMANCE.md


def _once(size: int) -> float:
    return 1.0


def _crossing(size: int) -> float:
    return (size - 1) / size


def _crossing_twice(size: int) -> float:
    return 2 * _crossing(size)


COLLECTIVES = {
    "all_reduce": Traits(True, False, False, True, _crossing_twice),
    "reduce_scatter": Traits(True, False, True, True, _crossing),
    "all_gather": Traits(False, False, True, True, _crossing),
    "broadcast": Traits(False, True, False, True, _once),
    "reduce": Traits(True, True, False, True, _once),
    "gather": Traits(False, True, True, True, _crossing),
    "scatter": Traits(False, True, True, True, _crossing),
    "all_to_all": Traits(False, False, True, False, _crossing),
    "barrier": Traits(False, False, False, False, _once),
}


class What(NamedTuple):
    """One measurement but for the size and whether it is in place."""

    collective: str
    dtype: str
    op: str  # "none" where nothing is reduced
    root: int  # -1 where there is none
    algorithm: str
    library: str
    prepared: bool
    reproducible: bool = False


def whole_elems(collective: str, size_bytes: int, dtype: str, size: int) -> int:
    """The most elements that fit in `size_bytes` and divide into blocks where the collective has blocks."""
    if collective == "barrier":
        return 0
    elems = size_bytes // check.storage_dtype(dtype).itemsize
    return elems - elems % size if COLLECTIVES[collective].blocks else elems


class Case:
    """Buffers of one rank for one size, and the call on them."""

    def __init__(self, comm: Communicator, what: What, elems: int, in_place: bool) -> None:
        self.what, self.rank, self.size = what, comm.rank, comm.size
        self.at_root = comm.rank == max(what.root, 0)
        each = elems // comm.size if COLLECTIVES[what.collective].blocks else elems
        self.start = comm.rank * each  # of this rank's block
        block = slice(self.start, self.start + each)
        sends, receives = {
            "all_reduce": (elems, elems),
            "reduce_scatter": (elems, each),
            "all_gather": (each, elems),
            "broadcast": (elems if self.at_root else 0, elems),
            "reduce": (elems, elems if self.at_root else 0),
            "gather": (each, elems if self.at_root else 0),
            "scatter": (elems if self.at_root else 0, each),
            "all_to_all": (elems, elems),
            "barrier": (0, 0),
        }[what.collective]
        self.send, self.recv = memory(0, what.dtype), memory(0, what.dtype)
        self.apart = not (in_place and sends and receives)
        if self.apart:
            self.send, self.recv = memory(sends, what.dtype), memory(receives, what.dtype)
        elif receives >= sends:
            self.recv = memory(receives, what.dtype)
            self.send = self.recv if receives == sends else self.recv[block]
        else:
            self.send = memory(sends, what.dtype)
            self.recv = self.send[block]
        self.call = self._bind(comm)

    def _bind(self, comm: Communicator) -> Callable[[], object]:
        what = self.what
        options: dict[str, Any] = {} if what.algorithm == "auto" else {"algorithm": what.algorithm}
        if COLLECTIVES[what.collective].reduces:
            options["op"] = what.op
            options["reproducible"] = what.reproducible
        if COLLECTIVES[what.collective].rooted:
            options["root"] = what.root
        positional: list[Any] = []
        if what.collective != "barrier":
            send, recv = (wrap(storage, what.dtype, what.library) for storage in (self.send, self.recv))
            out_only_at_root = what.collective in ("reduce", "gather") and not self.at_root
            options["out"] = None if out_only_at_root else recv
            if what.collective == "broadcast" and not self.at_root:
                positional = [recv]
            elif what.collective == "scatter" and not self.at_root:
                positional = [None]
            else:
                positional = [recv if not self.apart and self.send is self.recv else send]
        if what.prepared:
            prepared: Callable[[], object] = getattr(comm.prepare, what.collective)(*positional, **options)
            return prepared
        run: Callable[..., object] = getattr(comm, what.collective)
        return lambda: run(*positional, **options)

    def fill(self, seed: int) -> None:
        """The promised input in `send`, and in a separate `recv` bytes that are wrong everywhere."""
        if self.apart:
            np.ndarray(self.recv.nbytes, np.uint8, self.recv).fill(0x7F)
        if self.send.size:
            fill(self.send, self._source(self.rank), seed)

    def wrong(self, seed: int) -> int:
        """Elements of the result that differ from the promise, and of the input if the call changed it."""
        wrong = 0
        if self.apart and self.send.size:
            wrong += count_wrong(self.send, self._source(self.rank), seed)
        if not self.recv.size:
            return wrong
        collective, recv = self.what.collective, self.recv
        if collective in ("all_gather", "gather", "all_to_all"):
            each = recv.size // self.size
            start = self.start if collective == "all_to_all" else 0
            blocks = (recv[rank * each : (rank + 1) * each] for rank in range(self.size))
            return wrong + sum(count_wrong(block, self._source(rank), seed, start) for rank, block in enumerate(blocks))
        if collective in ("broadcast", "scatter"):
            return wrong + count_wrong(recv, self._source(self.what.root), seed, self._recv_start())
        return wrong + count_wrong(recv, self._source(None), seed, self._recv_start())

    def _source(self, rank: int | None) -> Source:
        op = self.what.op if COLLECTIVES[self.what.collective].reduces else check.COPY
        return Source(self.what.dtype, op, self.size, rank)

    def _recv_start(self) -> int:
        return self.start if self.what.collective in ("reduce_scatter", "scatter") else 0


def bandwidths(collective: str, size_bytes: int, time_us: float, size: int) -> tuple[float, float]:
    """(algbw, busbw) in GB/s of 10^9 bytes; zero for a call that moves nothing."""
    algbw = size_bytes / time_us / 1e3 if time_us > 0 else 0.0
    return algbw, algbw * COLLECTIVES[collective].bus_factor(size)
