"""Norms and clipping of gradients of which each rank holds a part: what torch finds on whole ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import collectives as cc
from collectives.zero import ZeroOptimizer

ORDERS = (0.5, 1.0, 2.0, 3.0, math.inf)


def model() -> torch.nn.Module:
    torch.manual_seed(8)
    return torch.nn.Sequential(torch.nn.Linear(11, 71), torch.nn.Tanh(), torch.nn.Linear(71, 3))


def batch(rank: int) -> torch.Tensor:
    return torch.randn(5, 11, generator=torch.Generator().manual_seed(rank))


def whole(size: int, order: float, most: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The norm before, and the gradients clipped, in one process."""
    m = model()
    for rank in range(size):
        (m(batch(rank)).square().sum() / size).backward()
    norm = torch.nn.utils.clip_grad_norm_(m.parameters(), most, order)
    return norm, [p.grad for p in m.parameters() if p.grad is not None]


@pytest.mark.parametrize("stage", range(4))
def test_every_order_by_every_function(stage: int, threads: Callable[..., list[Any]]) -> None:
    models = [model() for _ in range(3)]
    wholes = {(order, most): whole(3, order, most) for order in ORDERS for most in (1e-3, 1e9)}

    def body(comm: cc.Communicator) -> None:
        m = models[comm.rank]
        opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=stage, lr=0.1, persistence_bytes=0, bucket_bytes=900)

        def norms(order: float, most: float, error: bool = False) -> list[Callable[[], torch.Tensor]]:
            parameters, function = list(m.parameters()), torch.nn.utils.clip_grad_norm_
            return [
                lambda: opt.clip_grad_norm_(most, order, error),
                lambda: function(parameters, most, order, error),
                lambda: function(parameters, most, order, error, foreach=True),
            ]

        for (order, most), (expected, gradients) in wholes.items():
            for number in range(3):
                m(batch(comm.rank)).square().sum().backward()
                got = norms(order, most)[number]()
                assert torch.allclose(got, expected, rtol=1e-6), (order, number, got, expected)
                for p, gradient in zip(m.parameters(), gradients, strict=True):
                    assert torch.allclose(opt.full_gradient(p), gradient, rtol=1e-4, atol=1e-7)
                opt.zero_grad()
        factor = float("inf") if comm.rank == 1 else 1.0  # on one rank, and all hear of it
        for number in range(3):
            (m(batch(comm.rank)).square().sum() * factor).backward()
            with pytest.raises(RuntimeError, match="norm of order 2"):
                norms(2.0, 1.0, error=True)[number]()
            opt.zero_grad()
        opt.close()

    threads(3, body)
