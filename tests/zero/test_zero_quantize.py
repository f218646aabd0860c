"""Quantised communication: the numbers, the bytes, the same bits on every rank, and how training fares."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero.quantize import Quantizer

Ranks = Callable[..., contextlib.AbstractContextManager[Any]]


def there_and_back(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
    data = torch.full((quantizer.nbytes(x.numel()),), 99, dtype=torch.uint8)
    quantizer.encode(x, data)
    out = torch.full_like(x, 77.0)
    quantizer.decode(data, out)
    return out


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("numel", [0, 1, 2, 63, 64, 65, 1000, 200_001])
def test_a_number_is_off_by_half_a_scale_at_most(bits: int, numel: int) -> None:
    quantizer, most = Quantizer(bits, 64), {8: 127, 4: 7}[bits]
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)) * torch.logspace(-30, 30, numel)
    got = there_and_back(quantizer, x).double().numpy()
    assert quantizer.nbytes(numel) == 4 * math.ceil(numel / 64) + math.ceil(numel * bits / 8)
    for begin in range(0, numel, 64):
        block = x[begin : begin + 64].double().numpy()
        scale = np.abs(block).max() / most
        assert np.abs(got[begin : begin + 64] - block).max() <= scale * (0.5 + 2e-5)  # float32 rounds as well


def test_integers_and_extremes_come_back_as_they_are() -> None:
    for bits, most in ((8, 127), (4, 7)):
        quantizer = Quantizer(bits, 16)
        exact = torch.arange(-most, most + 1, dtype=torch.float32).repeat_interleave(15)
        blocks = torch.cat([torch.tensor([float(most)]).expand(len(exact) // 15, 1), exact.view(-1, 15)], 1).reshape(-1)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert torch.equal(there_and_back(quantizer, blocks.to(dtype)), blocks.to(dtype))
        assert torch.equal(there_and_back(quantizer, torch.zeros(33)), torch.zeros(33))
        tiny = torch.full((16,), 1e-45)
        assert (there_and_back(quantizer, tiny) - tiny).abs().max() <= 2e-45
        huge = torch.full((16,), 65504.0, dtype=torch.float16)
        assert torch.equal(there_and_back(quantizer, huge), huge)
        for bad in (float("inf"), float("-inf"), float("nan")):
            x = torch.ones(48)
            x[20] = bad
            got = there_and_back(quantizer, x)
            assert torch.isnan(got[16:32]).all()
            assert torch.equal(got[:16], x[:16])
            assert torch.equal(got[32:], x[32:])


def test_what_is_no_block() -> None:
    for bits, block in ((3, 64), (16, 64), (8, 0), (8, 7), (4, -2)):
        with pytest.raises(ValueError, match="the bits are 8 or 4, and a block is even"):
            Quantizer(bits, block)
