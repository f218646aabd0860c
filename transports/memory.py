"""What is done with bytes where they are, by transports that only move them: arithmetic, copies, and memory for what
arrives beside its place."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from typing import Any, Protocol

from transports.engine import _engine
from transports.program import ITEM_BYTES

__all__ = ["HostMemory", "Memory", "bytes_at"]


class Memory(Protocol):
    """Memory of the host or of a GPU. Places are addresses; all is done when a method returns. One thread at a time."""

    def ready(self) -> None:
        """Returns once what the caller gave his stream to do with this memory is done; the host has no streams."""
        ...

    def borrow(self, nbytes: int) -> memoryview:
        """Memory for so many bytes, until `give_back`. Only what is below a transport may look into it."""
        ...

    def give_back(self, memory: memoryview) -> None: ...

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        """out = a op b; out may be one of them."""
        ...

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        """out = a / divisor; out may be a."""
        ...

    def copy(self, a: int, out: int, nbytes: int) -> None:
        """The two are apart, or the same."""
        ...


class HostMemory:
    """The memory of this process."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[memoryview]] = defaultdict(list)

    def ready(self) -> None:
        pass

    def borrow(self, nbytes: int) -> memoryview:
        free = self._free[nbytes]
        return free.pop() if free else memoryview(bytearray(nbytes))

    def give_back(self, memory: memoryview) -> None:
        self._free[memory.nbytes].append(memory)

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        _engine.combine(dtype, op, out, a, b, nbytes // ITEM_BYTES[dtype])

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        _engine.divide(dtype, out, a, nbytes // ITEM_BYTES[dtype], divisor)

    def copy(self, a: int, out: int, nbytes: int) -> None:
        ctypes.memmove(out, a, nbytes)


def bytes_at(address: int, nbytes: int) -> memoryview:
    """Memory by its address. Whoever makes it sees to it that it stays."""
    memory: Any = (ctypes.c_ubyte * nbytes).from_address(address)
    return memoryview(memory).cast("B")
