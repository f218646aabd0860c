"""Arrays of any library, seen as memory: numpy arrays, torch tensors, CuPy arrays, and whatever speaks DLPack or the
CUDA array interface.

Nothing is imported for it: torch and cupy are looked up among the modules the program has imported already. Memory of a
GPU that belongs to another library is taken as an array of cupy, or else of torch, without a copy; so are its results.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from transports.base import CPU, Device
from transports.program import DTYPES

__all__ = ["ArrayView", "check_op", "empty", "scratch", "view"]

_Array = np.ndarray[Any, np.dtype[Any]]
_DLPACK_ON_CPU = (1, 3, 11)  # plain memory, and memory that CUDA or ROCm has pinned
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_OPS = ("sum", "prod", "min", "max", "mean", "and", "or", "xor")


class ArrayView(NamedTuple):
    """An array's memory. `array` keeps it alive."""

    array: Any
    address: int
    shape: tuple[int, ...]
    dtype: str  # a name of transports.program.DTYPES; "bytes" for a type that can only be moved
    dtype_name: str  # as its library calls it
    item_bytes: int
    copied: bool  # whether `array` is a contiguous copy of what was given
    device: Device = CPU  # where the address is one

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.item_bytes


def view(x: Any, *, out: bool = False) -> ArrayView:
    """The memory of an array. A non-contiguous input is copied; a non-contiguous or read-only `out` is a ValueError.

    Raises TypeError for what is no array in the memory of the CPU or of a GPU. Nothing waits for a GPU: a copy is work
    of its current stream.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _view_torch(torch, x, out)
    if isinstance(x, np.ndarray):
        return _view_numpy(cast("_Array", x), out)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return _view_cupy(cupy, x, out)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        kind, _ = x.__dlpack_device__()
        if int(kind) in _DLPACK_ON_CPU:
            return _view_numpy(np.from_dlpack(x), out)
        return view(_adopted(x, f"DLPack type {int(kind)}"), out=out)
    if hasattr(x, "__cuda_array_interface__"):
        if out and x.__cuda_array_interface__["data"][1]:
            raise ValueError("out is read-only: pass a writable array")
        return view(_adopted(x, "CUDA array interface"), out=out)
    if isinstance(x, np.generic):
        raise TypeError("a numpy scalar is no array: pass numpy.asarray(x)")
    name = type(x).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    raise TypeError(f"{article} {name} is no array: pass a numpy array, a torch tensor or a DLPack object")


def _view_numpy(x: _Array, out: bool) -> ArrayView:
    if x.dtype.hasobject:
        raise TypeError("an array of Python objects cannot be sent: its elements are addresses of this process")
    if not x.dtype.isnative:
        raise TypeError(f"{x.dtype} is in foreign byte order: convert it with .astype(x.dtype.newbyteorder('='))")
    if out and not x.flags.c_contiguous:
        raise ValueError("out must be C-contiguous: pass a contiguous array and copy the result where it belongs")
    if out and not x.flags.writeable:
        raise ValueError("out is read-only: pass a writable array")
    copied = not x.flags.c_contiguous
    if copied:
        x = np.ascontiguousarray(x).reshape(x.shape)
    name, dtype = _names(x.dtype)
    return ArrayView(x, x.ctypes.data, x.shape, dtype, name, x.itemsize, copied)


@lru_cache(maxsize=256)
def _names(dtype: np.dtype[Any]) -> tuple[str, str]:
    """A dtype's own name, and the one of transports.program.DTYPES; numpy takes its time to find the former."""
    known = dtype.name in DTYPES and DTYPES[dtype.name][1] == dtype.itemsize
    return dtype.name, dtype.name if known else "bytes"


def _view_torch(torch: Any, x: Any, out: bool) -> ArrayView:
    if x.layout != torch.strided:
        raise TypeError(f"a sparse tensor ({x.layout}) has no single memory: pass x.to_dense()")
    device = CPU
    if x.device.type != "cpu":
        if x.device.type != "cuda":
            raise TypeError(f"a tensor on {x.device}: only the CPU's memory and that of CUDA devices can be used")
        device = Device("cuda", x.device.index)
    copied = x.is_conj() or x.is_neg() or not x.is_contiguous()
    if copied and out:
        raise ValueError(
            "out must be contiguous, and no lazy conjugate or negative: pass a contiguous tensor and copy the result "
            "where it belongs"
        )
    if copied:
        x = x.resolve_conj().resolve_neg().contiguous()
    name = str(x.dtype).removeprefix("torch.")
    return ArrayView(
        x, x.data_ptr(), tuple(x.shape), name if name in DTYPES else "bytes", name, x.element_size(), copied, device
    )


def _view_cupy(cupy: Any, x: Any, out: bool) -> ArrayView:
    if out and not x.flags.c_contiguous:
        raise ValueError("out must be C-contiguous: pass a contiguous array and copy the result where it belongs")
    copied = not x.flags.c_contiguous
    if copied:
        with x.device:
            x = cupy.ascontiguousarray(x)
    name, dtype = _names(x.dtype)
    return ArrayView(x, x.data.ptr, x.shape, dtype, name, x.itemsize, copied, Device("cuda", x.device.id))


def _adopted(x: Any, how: str) -> Any:
    """An array of another library in a GPU's memory, as one of cupy or torch on the same memory."""
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if cupy is None and torch is None:
        raise TypeError(f"a {type(x).__name__} on a device ({how}): import cupy or torch, which then makes the results")
    if hasattr(x, "__dlpack__"):
        return cupy.from_dlpack(x) if cupy is not None else cast("Any", torch).from_dlpack(x)
    return cupy.asarray(x) if cupy is not None else cast("Any", torch).as_tensor(x, device="cuda")


def empty(like: Any, shape: Sequence[int]) -> Callable[[], Any]:
    """A function that makes new arrays of this shape, of the library and dtype of `like` (numpy for DLPack objects)."""
    torch = sys.modules.get("torch")
    shape = tuple(shape)
    if torch is not None and isinstance(like, torch.Tensor):
        dtype, new = like.dtype, torch.empty
        if like.device.type != "cpu":
            device = like.device
            return lambda: new(shape, dtype=dtype, device=device)
        return lambda: new(shape, dtype=dtype)
    if not isinstance(like, np.ndarray) and view(like).device != CPU:
        return _empty_on_gpu(view(like).array, shape)
    model = cast("_Array", like if isinstance(like, np.ndarray) else np.from_dlpack(like))
    dtype = model.dtype
    return lambda: np.empty(shape, dtype)


def _empty_on_gpu(like: Any, shape: tuple[int, ...]) -> Callable[[], Any]:
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(like, cupy.ndarray):
        return empty(like, shape)  # a tensor on memory of another library
    dtype, device, new = like.dtype, like.device, cupy.empty

    def make() -> Any:
        with device:
            return new(shape, dtype)

    return make


def scratch(like: ArrayView, nbytes: int) -> ArrayView:
    """New memory on the device of an array, from its library; it is not written to."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like.array, torch.Tensor):
        return view(torch.empty(nbytes, dtype=torch.uint8, device=like.array.device))
    cupy: Any = sys.modules["cupy"]
    with like.array.device:
        return view(cupy.empty(nbytes, np.uint8))


def check_op(op: str, array: ArrayView) -> None:
    """Raises ValueError when the operation is unknown or has no meaning for the array's dtype."""
    if op not in _OPS:
        raise ValueError(f"unknown op {op!r}; there are: {', '.join(_OPS)}")
    name = array.dtype_name
    if array.dtype == "bytes":
        raise ValueError(f"{name} can be moved but not combined: op={op!r} needs a number type ({', '.join(DTYPES)})")
    if name in _FLOATS:
        allowed = ("sum", "prod", "min", "max", "mean")
    elif name.startswith("complex"):
        allowed = ("sum", "prod", "mean")
    elif name == "bool":
        allowed = ("sum", "prod", "min", "max", "and", "or", "xor")
    else:
        allowed = _OPS
    if op not in allowed:
        raise ValueError(f"op={op!r} has no meaning for {name}; for it there are: {', '.join(allowed)}")
