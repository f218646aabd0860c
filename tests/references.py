"""What every collective must return, by exact arithmetic on the inputs of all ranks: nothing here is the library's.

Inputs are small whole numbers (also as floats), so that any order of sums and products gives the same exact result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "OPS", "Array", "combined", "dtype_of", "expected", "values"]

Array = npt.NDArray[Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_COMPLEX = ("complex64", "complex128")
DTYPES = (*_FLOATS, *_INTEGERS, "bool", *_COMPLEX)


def OPS(dtype: str) -> tuple[str, ...]:  # noqa: N802
    """The operations that have a meaning for a dtype."""
    if dtype in _FLOATS:
        return ("sum", "prod", "min", "max", "mean")
    if dtype in _COMPLEX:
        return ("sum", "prod", "mean")
    if dtype == "bool":
        return ("sum", "prod", "min", "max", "and", "or", "xor")
    return ("sum", "prod", "min", "max", "mean", "and", "or", "xor")


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype of this name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def values(dtype: str, shape: Sequence[int], *seed: int) -> Array:
    """Reproducible inputs of one rank. Integers use their whole range, so that sums and products wrap around."""
    random = np.random.default_rng([*seed])
    if dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if dtype in _INTEGERS:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    if dtype in _COMPLEX:
        return (random.integers(-1, 2, shape) + 1j * random.integers(-1, 2, shape)).astype(dtype)
    if dtype in _FLOATS:
        return random.choice([-2.0, -1.0, 0.0, 1.0, 2.0], shape).astype(dtype_of(dtype))
    return np.frombuffer(random.bytes(int(np.prod(shape)) * dtype_of(dtype).itemsize), dtype).reshape(shape)


def combined(op: str, xs: Sequence[Array]) -> Array:
    """The element-wise combination of all ranks' arrays."""
    dtype = xs[0].dtype
    if dtype.kind == "b":
        return reduce(_LOGIC[op], xs)
    if dtype.kind in "iu":
        if op in _BITS:
            return reduce(_BITS[op], xs)
        whole = reduce(_NUMBERS[op], [x.astype(np.uint64) for x in xs]).astype(dtype)  # modulo 2^64, then 2^bits
        if op != "mean":
            return whole
        quotients = [abs(int(v)) // len(xs) * (-1 if v < 0 else 1) for v in whole.reshape(-1).tolist()]
        return np.array(quotients, dtype).reshape(whole.shape)
    wide = np.complex128 if dtype.kind == "c" else np.float64
    whole = reduce({**_NUMBERS, **_BITS}[op], [x.astype(wide) for x in xs])
    if op == "mean":
        whole = (whole.reshape(-1).view(np.float64) / len(xs)).view(wide).reshape(whole.shape)
    return whole.astype(dtype)


_Binary = Callable[[Array, Array], Array]
_LOGIC: dict[str, _Binary] = {
    "sum": np.logical_or, "max": np.logical_or, "or": np.logical_or, "prod": np.logical_and,
    "min": np.logical_and, "and": np.logical_and, "xor": np.logical_xor,
}  # fmt: skip
_NUMBERS: dict[str, _Binary] = {"sum": np.add, "mean": np.add, "prod": np.multiply}
_BITS: dict[str, _Binary] = {
    "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def expected(
    collective: str,
    xs: Sequence[Array],
    rank: int,
    *,
    op: str = "sum",
    root: int = 0,
    rows: Sequence[Sequence[int]] = (),
) -> Array | None:
    """The result of one rank, given what every rank passes; None where there is none.

    rows    rows[0] are the rows of every rank's part; of an all-to-all, rows[i][j] are those that i has for j
    """
    if collective in ("reduce", "gather") and rank != root:
        return None
    if collective in ("all_reduce", "reduce"):
        return combined(op, xs)
    if collective == "scan":
        return combined(op, xs[: rank + 1])
    if collective == "exscan":
        return combined(op, xs[:rank]) if rank else None
    if collective == "broadcast":
        return xs[root]
    if collective in ("all_gather", "gather"):
        return np.concatenate(xs)
    if collective == "reduce_scatter":
        return combined(op, [_part(x, rows[0], rank) for x in xs])
    if collective == "scatter":
        return _part(xs[root], rows[0], rank)
    assert collective == "all_to_all"
    return np.concatenate([_part(x, rows[i], rank) for i, x in enumerate(xs)])


def _part(x: Array, rows: Sequence[int], which: int) -> Array:
    begin = sum(rows[:which])
    return x[begin : begin + rows[which]]
