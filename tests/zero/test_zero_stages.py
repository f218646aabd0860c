"""Every stage trains like one process on the whole batch, and gives the same bits as every other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer
from tests.canonical import canonical_sum

STEPS, ROWS = 20, 4
ADAMW = torch.optim.AdamW, {"lr": 1e-2}
SGD = torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}

mse = torch.nn.functional.mse_loss
Recipe = tuple[type[torch.optim.Optimizer], dict[str, Any]]


class Odd(torch.nn.Module):
    """No size is a multiple of any number of ranks; one parameter is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        layers = torch.nn.Linear(7, 15), torch.nn.Tanh(), torch.nn.LayerNorm(15), torch.nn.Linear(15, 123)
        self.body = torch.nn.Sequential(*layers, torch.nn.GELU(), torch.nn.Linear(123, 17), torch.nn.Tanh())
        self.head, self.gain = torch.nn.Linear(17, 5), torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) * self.gain)


def batches(size: int, steps: int = STEPS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield torch.randn(ROWS * size, 7, generator=generator), torch.randn(ROWS * size, 5, generator=generator)


def copies(m: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in m.parameters()]


def whole_batch(size: int, recipe: Recipe) -> list[torch.Tensor]:
    """One process that takes all ranks' rows at once."""
    m = Odd()
    opt = recipe[0](m.parameters(), **recipe[1])
    for x, y in batches(size):
        opt.zero_grad()
        mse(m(x), y).backward()
        opt.step()
    return copies(m)


def rank_by_rank(size: int, recipe: Recipe, steps: int = STEPS) -> list[torch.Tensor]:
    """One process that takes the ranks' rows one after the other, and adds gradients up in the canonical order."""
    m = Odd()
    opt = recipe[0](m.parameters(), **recipe[1])
    for x, y in batches(size, steps):
        every: list[list[Any]] = []
        for part in zip(x.split(ROWS), y.split(ROWS), strict=True):
            opt.zero_grad()
            mse(m(part[0]), part[1]).backward()
            every.append([p.grad for p in m.parameters()])
        for p, grads in zip(m.parameters(), zip(*every, strict=True), strict=True):
            p.grad = canonical_sum(grads) / size
        opt.step()
    return copies(m)


def train(comm: Any, m: torch.nn.Module, recipe: Recipe, steps: int = STEPS, **own: Any) -> list[torch.Tensor]:
    opt = ZeroOptimizer(m, recipe[0], comm=comm, **own, **recipe[1])
    for x, y in batches(comm.size, steps):
        part = slice(ROWS * comm.rank, ROWS * (comm.rank + 1))
        mse(m(x[part]), y[part]).backward()
        opt.step()
        opt.zero_grad()
    opt.close()
    return copies(m)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_parity_with_one_process(size: int, threads: Callable[..., list[Any]]) -> None:
    for recipe in (ADAMW, SGD) if size < 4 else (ADAMW,):
        same, near = rank_by_rank(size, recipe), whole_batch(size, recipe)
        for stage, bucket_bytes in zip(range(4), (1, 900, 5000, 1 << 40), strict=True):
            models = [Odd() for _ in range(size)]  # here, because torch's seed is one for all threads
            own = {"stage": stage, "bucket_bytes": bucket_bytes, "persistence_bytes": 100}
            for got in threads(size, lambda comm: train(comm, models[comm.rank], recipe, **own)):  # noqa: B023
                for one, exact, other in zip(got, same, near, strict=True):
                    assert torch.equal(one, exact), (recipe, stage)
                    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


def every_setting(me: Any) -> None:
    comm = me.connect()
    for recipe in (ADAMW, SGD):
        expected = rank_by_rank(me.size, recipe, 6)
        settings = [{"stage": s, "bucket_bytes": b} for s in range(4) for b in (1, 5000, 1 << 40)]
        settings += [{"stage": s, "overlap": False} for s in range(4)]
        settings += [{"stage": 3, "persistence_bytes": n, "prefetch_bytes": n} for n in (0, 1 << 40)]
        for own in settings:
            for one, exact in zip(train(comm, Odd(), recipe, 6, **own), expected, strict=True):
                assert torch.equal(one, exact), own


@pytest.mark.parametrize("size", [2, 3])
def test_bits_do_not_depend_on_settings(
    size: int, ranks: Callable[..., contextlib.AbstractContextManager[Any]]
) -> None:
    with ranks(size, every_setting):
        pass
