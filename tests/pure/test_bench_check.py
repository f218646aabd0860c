"""The bench's data: what it promises is the exact result, and no order of combining can round or overflow.

The references are Python's fractions (exact at any size) and the data type's own arithmetic in random orders.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bench.check import (
    COMPLEX,
    COPY,
    DTYPES,
    FLOATS,
    OPS,
    PERIOD,
    Source,
    count_wrong,
    fill,
    storage_dtype,
    supports,
)

SIZES = (1, 2, 3, 8, 13, 64)
PAIRS = [(dtype, op) for dtype in DTYPES for op in OPS if supports(dtype, op)]
COUNT = 300


def values(dtype: str, op: str, size: int, rank: int | None, count: int = COUNT, seed: int = 0) -> np.ndarray[Any, Any]:
    """As numpy computes with them: bfloat16 by ml_dtypes, bool as bool."""
    stored = np.empty(count, storage_dtype(dtype))
    fill(stored, Source(dtype, op, size, rank), seed)
    return stored.view({"bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}.get(dtype, stored.dtype))


def exactly(value: Any, dtype: str) -> Any:
    """A number of Python that holds it exactly: an integer, a fraction, or two of them."""
    if dtype in COMPLEX:
        return Fraction(float(value.real)), Fraction(float(value.imag))
    return Fraction(float(value)) if dtype in FLOATS else int(value)


def add(a: Any, b: Any) -> Any:
    return (a[0] + b[0], a[1] + b[1]) if isinstance(a, tuple) else a + b


def multiply(a: Any, b: Any) -> Any:
    if isinstance(a, tuple):
        return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
    return a * b


def mean(total: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    if total.dtype.kind in "iu":
        return total // np.array(size, total.dtype)
    if total.dtype.kind == "c":  # part by part; numpy divides by a complex number, which rounds
        return mean(total.view(total.real.dtype), size).view(total.dtype)
    return (total / size).astype(total.dtype)


def divide(a: Any, size: int) -> Any:
    return (a[0] / size, a[1] / size) if isinstance(a, tuple) else Fraction(a) / size


EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "sum": add, "mean": add, "prod": multiply, "min": min, "max": max,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor,
}  # fmt: skip
NATIVE: dict[str, Callable[[Any, Any], Any]] = {
    "sum": np.add, "mean": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "op"), PAIRS)
def test_promise_is_the_exact_result(dtype: str, op: str) -> None:
    combine = EXACT[op]
    if dtype == "bool":
        combine = {"sum": operator.or_, "prod": operator.and_}.get(op, combine)
    for size in SIZES:
        ranks = [values(dtype, op, size, rank, 40) for rank in range(size)]
        promised = values(dtype, op, size, None, 40)
        for i in range(40):
            result = functools.reduce(combine, (exactly(rank[i], dtype) for rank in ranks))
            result = divide(result, size) if op == "mean" else result
            assert exactly(promised[i], dtype) == result, f"{size} ranks, element {i}"


@pytest.mark.parametrize(("dtype", "op"), PAIRS)
def test_no_order_of_combining_rounds_or_overflows(dtype: str, op: str) -> None:
    shuffle = random.Random(1)
    for size in SIZES:
        promised = values(dtype, op, size, None)
        for _ in range(3):
            parts = [values(dtype, op, size, rank) for rank in range(size)]
            while len(parts) > 1:  # any tree, not only chains
                shuffle.shuffle(parts)
                parts.append(NATIVE[op](parts.pop(), parts.pop()))
            result = mean(parts[0], size) if op == "mean" else parts[0]
            assert result.dtype == promised.dtype
            assert np.array_equal(result, promised), f"{size} ranks"


@pytest.mark.parametrize(("dtype", "op"), PAIRS)
@pytest.mark.parametrize("size", [2, 8, 64])
def test_a_rank_left_out_or_added_twice_is_seen(dtype: str, op: str, size: int) -> None:
    for rank in range(0, size, 7):
        left_out = functools.reduce(NATIVE[op], [values(dtype, op, size, r, 4000) for r in range(size) if r != rank])
        promised = values(dtype, op, size, None, 4000)
        total = promised if op != "mean" else functools.reduce(
            NATIVE[op], [values(dtype, op, size, r, 4000) for r in range(size)]
        )  # fmt: skip
        assert not np.array_equal(left_out, total)
        if op in ("sum", "prod", "xor") and dtype != "bool":
            assert not np.array_equal(NATIVE[op](total, values(dtype, op, size, rank, 4000)), total)


def test_finding_what_is_wrong() -> None:
    source = Source("float32", "sum", 4, None)
    result = np.empty(3 * PERIOD + 5, np.float32)
    fill(result, source, seed=9)
    assert count_wrong(result, source, seed=9) == 0
    result.view(np.uint32)[[0, PERIOD - 1, PERIOD, 2 * PERIOD + 1, -1]] ^= 1  # the last bit of a float
    result[7] = np.nan
    assert count_wrong(result, source, seed=9) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_places_seeds_and_ranks_have_other_values(dtype: str) -> None:
    count = 5000
    stored = np.empty(count, storage_dtype(dtype))
    fill(stored, Source(dtype, COPY, 4, 1), seed=3, start=100)
    assert count_wrong(stored, Source(dtype, COPY, 4, 1), seed=3, start=100) == 0
    least = count // 4  # two bools are equal half of the time
    assert count_wrong(stored, Source(dtype, COPY, 4, 2), seed=3, start=100) > least
    assert count_wrong(stored, Source(dtype, COPY, 4, 1), seed=4, start=100) > least
    assert count_wrong(stored, Source(dtype, COPY, 4, 1), seed=3, start=101) > least
    assert count_wrong(stored, Source(dtype, COPY, 4, 1), seed=3, start=100 + PERIOD) > least


def test_a_range_is_the_same_however_it_is_cut() -> None:
    source = Source("int32", "sum", 3, 2)
    whole = np.empty(2 * PERIOD + 17, np.int32)
    fill(whole, source, seed=5, start=11)
    for begin, end in ((0, 10), (PERIOD - 20, PERIOD + 20), (PERIOD, whole.size)):
        piece = np.empty(end - begin, np.int32)
        fill(piece, source, seed=5, start=11 + begin)
        assert np.array_equal(piece, whole[begin:end])


def test_meaningless_pairs_are_known() -> None:
    assert not supports("complex64", "max")
    assert not supports("float32", "xor")
    assert not supports("bool", "mean")
