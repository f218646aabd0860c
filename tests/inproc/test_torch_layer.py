"""Arithmetic that torch does not have on GPUs, made of what it has; on tensors of the CPU, where it is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transports.base import CPU
from transports.program import DTYPES, OPS
from transports.torch_layer import CudaLayer


class OnCpu(CudaLayer):
    """Without a stream."""

    def __init__(self) -> None:
        self._torch, self.device = torch, CPU


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_unsigned_numbers(dtype: str) -> None:
    largest = np.iinfo(dtype).max
    chance = np.random.default_rng(1)
    x, y = (chance.integers(0, largest, 1000, dtype=dtype, endpoint=True) for _ in range(2))
    x[:4], y[:4] = [0, 1, largest, largest - 1], [largest, 0, largest, 1]
    layer, number, out = OnCpu(), DTYPES[dtype][0], np.empty_like(x)
    for op, wanted in {"sum": x + y, "prod": x * y, "min": np.minimum(x, y), "max": np.maximum(x, y)}.items():
        layer.combine(number, OPS[op], x.ctypes.data, y.ctypes.data, out.ctypes.data, out.nbytes)
        np.testing.assert_array_equal(out, wanted, err_msg=op)
    for divisor in (1, 2, 3, 8, 4097):
        layer.divide(number, x.ctypes.data, out.ctypes.data, out.nbytes, divisor)
        np.testing.assert_array_equal(out, x // np.array(divisor, dtype), err_msg=str(divisor))
