"""Arrays on GPUs under an MPI that takes CUDA memory: the same messages with addresses of a GPU, and arithmetic there.

MPI knows no streams. So the host waits for the caller's current stream (CuPy's, and torch's where torch is in use)
before a call, and for every kernel of ours before what depends on it is sent; a result is there when the call returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections import defaultdict
from importlib.util import find_spec
from typing import Any

from transports.base import Device
from transports.cupy_kernels import Kernels
from transports.memory import bytes_at

__all__ = ["CudaMemory", "takes_cuda"]

_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA of MPICH


def takes_cuda(mpi: Any) -> bool:
    """Whether this process can hand CUDA memory to its MPI, and reckon there: the MPI says that it takes it (by the
    memory kinds of MPI 4.1, or by Open MPI's or MPICH's own query), and there is CuPy."""
    return find_spec("cupy") is not None and (_kinds_say_so(mpi) or _query_says_so(mpi))


def _kinds_say_so(mpi: Any) -> bool:
    info = mpi.COMM_WORLD.Get_info()
    try:
        return "cuda" in (info.Get("mpi_memory_alloc_kinds") or "").replace(":", ",").split(",")
    finally:
        info.Free()


def _query_says_so(mpi: Any) -> bool:
    for path in (None, mpi.__file__):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            if hasattr(library, "MPIX_Query_cuda_support"):
                return bool(library.MPIX_Query_cuda_support())
            if hasattr(library, "MPIX_GPU_query_support"):
                found = ctypes.c_int(0)
                return library.MPIX_GPU_query_support(_CUDA, ctypes.byref(found)) == 0 and bool(found.value)
    return False


class CudaMemory:
    """See transports/memory.py. It is one GPU's."""

    def __init__(self, device: Device) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self._device = self._cupy.cuda.Device(device.number)
        with self._device:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._kernels = Kernels(self._cupy)
        self._free: defaultdict[int, list[memoryview]] = defaultdict(list)
        self._arrays: list[Any] = []  # that what is borrowed lies in

    def ready(self) -> None:
        with self._device:
            self._cupy.cuda.get_current_stream().synchronize()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream(self._device.id).synchronize()

    def borrow(self, nbytes: int) -> memoryview:
        free = self._free[nbytes]
        if free:
            return free.pop()
        with self._device:
            self._arrays.append(self._cupy.empty(nbytes, "uint8"))
        return bytes_at(self._arrays[-1].data.ptr, nbytes)

    def give_back(self, memory: memoryview) -> None:
        self._free[memory.nbytes].append(memory)

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        with self._device:
            self._kernels.combine(self._stream, dtype, op, a, b, out, nbytes)
            self._stream.synchronize()

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        with self._device:
            self._kernels.divide(self._stream, dtype, a, out, nbytes, divisor)
            self._stream.synchronize()

    def copy(self, a: int, out: int, nbytes: int) -> None:
        if a == out or not nbytes:
            return
        runtime = self._cupy.cuda.runtime
        with self._device:
            runtime.memcpyAsync(out, a, nbytes, runtime.memcpyDefault, self._stream.ptr)
            self._stream.synchronize()
