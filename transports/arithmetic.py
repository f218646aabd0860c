"""The operations of the engine's kernels, in numpy: the reference, and what the portable executor uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from transports.program import DTYPE_NAMES, OP_NAMES

__all__ = ["combine", "divide"]

_Array = npt.NDArray[Any]
_FUNCTIONS: dict[str, Callable[[_Array, _Array], _Array]] = {
    "sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_BOOLEAN = {"sum": "or", "prod": "and", "min": "and", "max": "or"}


def combine(dtype: int, op: int, a: _Array, b: _Array) -> _Array:
    """a op b element by element, on arrays of bytes that hold elements of the dtype; the result is bytes too."""
    name, operation = DTYPE_NAMES[dtype], OP_NAMES[op]
    if name == "bool":
        name, operation = "uint8", _BOOLEAN.get(operation, operation)
    with np.errstate(all="ignore"):
        x, y = _values(name, a), _values(name, b)
        result = _complex_product(x, y) if operation == "prod" and x.dtype.kind == "c" else _FUNCTIONS[operation](x, y)
    return _stored(name, result)


def divide(dtype: int, a: _Array, divisor: int) -> _Array:
    """a / divisor element by element; integers truncate toward zero."""
    name = DTYPE_NAMES[dtype]
    values = _values(name, a)
    if values.dtype.kind in "iu":
        quotient = values.astype(np.int64 if values.dtype.kind == "i" else np.uint64)
        truncated = quotient // divisor + ((quotient < 0) & (quotient % divisor != 0))
        return _stored(name, truncated.astype(values.dtype))
    if values.dtype.kind == "c":
        values = values.view(np.float32 if name == "complex64" else np.float64)  # each part by itself
    with np.errstate(all="ignore"):
        return _stored(name, (values / values.dtype.type(divisor)).astype(values.dtype))


def _complex_product(x: _Array, y: _Array) -> _Array:
    """As the engine has it: each product rounded, where numpy may fuse a product with the sum."""
    a, b, c, d = np.real(x), np.imag(x), np.real(y), np.imag(y)
    parts = np.stack([a * c - b * d, a * d + b * c], axis=-1)
    return parts.view(x.dtype)[..., 0]


def _values(name: str, raw: _Array) -> _Array:
    """The elements; bfloat16 as float32, of which it is the upper half."""
    if name == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if name == "float16":
        return raw.view(np.float16).astype(np.float32)
    return raw.view(name)


def _stored(name: str, values: _Array) -> _Array:
    if name == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        quiet = (bits >> 16) | 0x40
        values = np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype(np.uint16)
    elif name == "float16":
        with np.errstate(all="ignore"):
            values = values.astype(np.float16)
    return np.ascontiguousarray(values).view(np.uint8)
