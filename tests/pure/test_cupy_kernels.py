"""The kernels for GPUs, compiled for the host: the bits of the reference, for every dtype and operation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.host_kernels import compiled, launch
from tests.references import DTYPES as NAMES
from tests.references import OPS as FITTING
from transports import arithmetic
from transports.cupy_kernels import source
from transports.program import DTYPES, OPS


def raw(dtype: str, elements: int, seed: int) -> np.ndarray:
    """Any bits at all: NaNs, infinities, subnormals; 0 and 1 for bool."""
    found = np.random.default_rng(seed).integers(0, 256, elements * DTYPES[dtype][1], np.uint8)
    return found % 2 if dtype == "bool" else found


def without_payloads(dtype: str, bits: np.ndarray) -> np.ndarray:
    """What a NaN carries depends on the processor; that it is one does not."""
    kinds = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
    kinds |= {"complex64": np.float32, "complex128": np.float64}
    if dtype == "bfloat16":
        wide = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.where(np.isnan(wide), 0x7FC0, bits.view(np.uint16))
    if dtype not in kinds:
        return bits
    values = bits.view(kinds[dtype]).copy()
    values[np.isnan(values)] = np.nan
    return values.view(np.uint8)


@pytest.mark.parametrize("dtype", NAMES)
def test_the_bits_of_the_reference(dtype: str) -> None:
    number, item_bytes = DTYPES[dtype]
    a, b = raw(dtype, 4103, 1), raw(dtype, 4103, 2)
    ops = [op for op in FITTING(dtype) if op != "mean"]
    *combining, dividing = compiled(tuple(source(dtype, op) for op in [*ops, "sum" if dtype == "bool" else "divide"]))
    for op, function in zip(ops, combining, strict=True):
        wanted = without_payloads(dtype, arithmetic.combine(number, OPS[op], a, b))
        for shift in (0, item_bytes):  # in packs of sixteen bytes, and not
            room = np.zeros(a.size + 64, np.uint8)
            begin = -room.ctypes.data % 16 + shift
            out = room[begin : begin + a.size]
            launch(function, (out.ctypes.data, a.ctypes.data, b.ctypes.data, 4103))
            np.testing.assert_array_equal(without_payloads(dtype, out), wanted, err_msg=f"{op}, shifted by {shift}")
            assert not room[:begin].any()
            assert not room[begin + a.size :].any()
    if dtype != "bool":
        for divisor in (1, 3, 1000):
            out = a.copy()
            launch(dividing, (out.ctypes.data, out.ctypes.data, divisor, 4103))
            wanted = without_payloads(dtype, arithmetic.divide(number, a, divisor))
            np.testing.assert_array_equal(without_payloads(dtype, out), wanted, err_msg=f"by {divisor}")
