"""MPI's own collectives on byte ranges: what `algorithm="native"` means on the `mpi` transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transports.memory import Memory, bytes_at
from transports.program import DTYPE_NAMES, OP_NAMES, Native, Place, Program

__all__ = ["NATIVES", "NativeCall", "refusal"]

NATIVES = frozenset({
    "all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter", "all_to_all", "scan",
    "exscan", "barrier",
})  # fmt: skip
_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter", "scan", "exscan"})
_TYPES = {
    "float32": "FLOAT", "float64": "DOUBLE", "int8": "INT8_T", "int16": "INT16_T", "int32": "INT32_T",
    "int64": "INT64_T", "uint8": "UINT8_T", "uint16": "UINT16_T", "uint32": "UINT32_T", "uint64": "UINT64_T",
    "complex64": "C_FLOAT_COMPLEX", "complex128": "C_DOUBLE_COMPLEX",
}  # fmt: skip
_OPS = {"sum": "SUM", "prod": "PROD", "min": "MIN", "max": "MAX", "and": "BAND", "or": "BOR", "xor": "BXOR"}

_Bytes = npt.NDArray[np.uint8]


_SATURATED = frozenset({"int8", "uint8", "int16", "uint16"})


def refusal(native: Native, library: str) -> str:
    """Why the MPI of that name has no such call; empty when it has."""
    if native.collective not in NATIVES:
        return f"MPI has no {native.collective} of its own"
    dtype = DTYPE_NAMES[native.dtype]
    if native.collective in _REDUCING and dtype not in _TYPES:
        return f"MPI has no arithmetic for {dtype}"
    if library.startswith("Open MPI") and native.collective in _REDUCING and dtype in _SATURATED:
        # Its vector instructions saturate where integers are to wrap around, on processors that have these.
        return f"Open MPI may saturate where {dtype} overflows"
    return ""


class NativeCall:
    """A program whose work is MPI's."""

    def __init__(self, mpi: Any, comm: Any, program: Program, memory: Memory) -> None:
        self.mpi, self.comm, self.program, self.memory = mpi, comm, program, memory

    def run(self, addresses: Sequence[int]) -> None:
        """Makes MPI's calls, one for each array. They have no deadline."""
        self.memory.ready()
        for native in self.program.native:
            _Array(self, native, addresses).run()


class _Array:
    """One array of a call. `input` and `output` are its bytes, None where this rank gives or gets nothing; they may be
    on a GPU, so that nothing here looks into them."""

    def __init__(self, call: NativeCall, native: Native, addresses: Sequence[int]) -> None:
        self.mpi, self.comm, self.native, self.program = call.mpi, call.comm, native, call.program
        self.memory = call.memory
        self.borrowed: list[memoryview] = []
        self.rank: int = call.comm.Get_rank()
        self.size: int = call.comm.Get_size()
        moves = native.collective not in _REDUCING
        self.item_bytes = native.item_bytes
        self.type: Any = call.mpi.BYTE if moves else getattr(call.mpi, _TYPES[DTYPE_NAMES[native.dtype]])
        self.op: Any = None if moves else getattr(call.mpi, _OPS[OP_NAMES[native.op]])
        self.unit = native.item_bytes if moves else 1  # of MPI's type in one element
        gives, gets = native.elements(self.rank, self.size)
        self.input = self._bytes(native.input, gives, addresses)
        self.output = self._bytes(native.output, gets, addresses)
        self.address_out = addresses[native.output.buffer] + native.output.offset_bytes if native.output else 0

    def run(self) -> None:
        calls: dict[str, Callable[[], None]] = {
            "all_reduce": self._all_reduce, "reduce": self._reduce, "reduce_scatter": self._reduce_scatter,
            "all_gather": self._all_gather, "broadcast": self._broadcast, "gather": self._gather,
            "scatter": self._scatter, "all_to_all": self._all_to_all, "scan": self._scan, "exscan": self._scan,
            "barrier": self.comm.Barrier,
        }  # fmt: skip
        try:
            calls[self.native.collective]()
        finally:
            for memory in self.borrowed:
                self.memory.give_back(memory)
        if self.native.mean and self.output is not None:
            out = self.address_out
            self.memory.divide(self.native.dtype, out, out, self.output.size, self.program.divisor)

    def _all_reduce(self) -> None:
        self.comm.Allreduce(self._from(), self._to(), self.op)

    def _reduce(self) -> None:
        mine = self._from() if self.output is not None else [self.input, self.type]
        self.comm.Reduce(mine, self._to(), self.op, self.native.root)

    def _scan(self) -> None:
        call = self.comm.Scan if self.native.collective == "scan" else self.comm.Exscan
        # Rank 0 has no part in an exscan's result, but MPI wants a place for one.
        to = self._to() if self.output is not None else [self._place_for(self.input), self.type]
        call([self._apart(), self.type], to, self.op)

    def _reduce_scatter(self) -> None:
        counts = [n * self.unit for n in self.native.blocks]
        self.comm.Reduce_scatter([self._apart(), self.type], self._to(), counts, self.op)

    def _all_gather(self) -> None:
        if len(set(self.native.blocks)) == 1:
            self.comm.Allgather([self._apart(), self.type], self._to())
        else:
            self.comm.Allgatherv([self._apart(), self.type], [self.output, self._counts(), self.type])

    def _broadcast(self) -> None:
        assert self.output is not None
        if self.input is not None and self.input.ctypes.data != self.output.ctypes.data:
            self.memory.copy(self.input.ctypes.data, self.output.ctypes.data, self.input.size)
        self.comm.Bcast([self.output, self.type], self.native.root)

    def _gather(self) -> None:
        to = None if self.output is None else [self.output, self._counts(), self.type]
        self.comm.Gatherv([self._apart(), self.type], to, self.native.root)

    def _scatter(self) -> None:
        mine = None if self.input is None else [self._apart(), self._counts(), self.type]
        self.comm.Scatterv(mine, self._to(), self.native.root)

    def _all_to_all(self) -> None:
        counts = [n * self.unit for n in self.native.blocks]
        mine, theirs = counts[: self.size], counts[self.size :]
        self.comm.Alltoallv([self._apart(), mine, self.type], [self.output, theirs, self.type])

    def _counts(self) -> list[int]:
        return [n * self.unit for n in self.native.blocks]

    def _from(self) -> Any:
        """What this rank gives; where it is also the place of the result, MPI is told so."""
        if self.input is not None and self.output is not None and self.input.ctypes.data == self.output.ctypes.data:
            return self.mpi.IN_PLACE
        return [self._apart(), self.type]

    def _to(self) -> Any:
        return None if self.output is None else [self.output, self.type]

    def _apart(self) -> _Bytes | None:
        """The input, copied where the result lies over it in a way that MPI does not allow."""
        if self.input is not None and self.output is not None and np.shares_memory(self.input, self.output):
            copy = self._place_for(self.input)
            self.memory.copy(self.input.ctypes.data, copy.ctypes.data, self.input.size)
            return copy
        return self.input

    def _place_for(self, data: _Bytes | None) -> _Bytes:
        """As many bytes, until the end of the call."""
        if data is None or not data.size:
            return np.empty(0, np.uint8)
        self.borrowed.append(self.memory.borrow(data.size))
        return np.frombuffer(self.borrowed[-1], np.uint8)

    def _bytes(self, place: Place | None, elements: int, addresses: Sequence[int]) -> _Bytes | None:
        if place is None:
            return None
        nbytes = elements * self.item_bytes
        if nbytes == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(bytes_at(addresses[place.buffer] + place.offset_bytes, nbytes), np.uint8)
