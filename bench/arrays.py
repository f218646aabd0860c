"""Arrays of the library under test, laid over memory that the checker reads as plain numpy."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .check import reinterpret, storage_dtype

LIBRARIES = ("numpy", "torch")


def memory(elems: int, dtype: str) -> NDArray[Any]:
    """Written memory of the storage dtype; `np.zeros` would leave it all on one page of the kernel's."""
    storage = np.empty(elems, storage_dtype(dtype))
    storage.fill(0)
    return storage


def wrap(storage: NDArray[Any], dtype: str, library: str) -> Any:
    """`storage` as a `library` array of `dtype` on the same memory; ImportError if a package is missing."""
    if library == "torch":
        torch = importlib.import_module("torch")
        # torch takes no bits of bfloat16 from numpy but as another type of their size.
        raw = reinterpret(storage, np.int16) if dtype == "bfloat16" else storage
        tensor: Any = torch.from_numpy(raw)
        return tensor.view(getattr(torch, dtype)) if dtype in ("bfloat16", "bool") else tensor
    if dtype == "bfloat16":
        return reinterpret(storage, importlib.import_module("ml_dtypes").bfloat16)
    return reinterpret(storage, np.bool_) if dtype == "bool" else storage
