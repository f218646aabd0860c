"""The engine's combine kernels beside numpy's plain copy, in cache and out of it: GB/s of result."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from bench.arrays import memory
from bench.check import DTYPES, supports
from transports.program import DTYPES as NUMBERS
from transports.program import OPS

SIZES = {"256K": 256 << 10, "32M": 32 << 20}


def report(benchmark: Any, size_bytes: int) -> None:
    benchmark.extra_info["GB/s"] = round(size_bytes / benchmark.stats.stats.median / 1e9, 2)


@pytest.mark.parametrize("size", SIZES)
def test_copy(benchmark: Any, size: str) -> None:
    source, target = memory(SIZES[size], "uint8"), memory(SIZES[size], "uint8")
    benchmark(lambda: np.copyto(target, source))
    report(benchmark, SIZES[size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "op"),
    [(dtype, "sum") for dtype in DTYPES]
    + [("float32", op) for op in OPS if op != "sum" and supports("float32", op)]
    + [("int32", "xor"), ("float16", "max"), ("bfloat16", "prod")],
)
def test_combine(benchmark: Any, dtype: str, op: str, size: str) -> None:
    number, item_bytes = NUMBERS[dtype]
    elems = SIZES[size] // item_bytes
    a, b, out = (memory(elems, dtype) for _ in range(3))
    combine: Any = importlib.import_module("transports.engine._engine").combine
    addresses = out.ctypes.data, a.ctypes.data, b.ctypes.data
    benchmark(lambda: combine(number, OPS[op], *addresses, elems))
    report(benchmark, SIZES[size])
