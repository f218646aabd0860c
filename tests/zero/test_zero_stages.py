"""Every stage trains like one process, and gives the same bits as every other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer

mse = torch.nn.functional.mse_loss


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(37, 301), torch.nn.ReLU(), torch.nn.Linear(301, 111), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(111, 5))


def batches(size: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        yield torch.randn(8 * size, 37, generator=generator), torch.randn(8 * size, 5, generator=generator)


def flat(m: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def alone(size: int, steps: int, optimizer: Any, **arguments: Any) -> torch.Tensor:
    """One process, which adds the ranks' gradients up in the canonical order as they do."""
    m = model()
    opt = optimizer(m.parameters(), **arguments)
    for x, y in batches(size, steps):
        every = []
        for rank in range(size):
            m.zero_grad()
            own = slice(8 * rank, 8 * rank + 8)
            mse(m(x[own]), y[own]).backward()
            every.append([p.grad for p in m.parameters()])
        for i, p in enumerate(m.parameters()):
            p.grad = canonical([g[i] for g in every]) / size
        opt.step()
    return flat(m)


def canonical(values: list[torch.Tensor]) -> torch.Tensor:
    """The sum by the fixed tree: the greatest power of two of ranks below the number, and the rest."""
    if len(values) == 1:
        return values[0]
    half = 1 << ((len(values) - 1).bit_length() - 1)
    return canonical(values[:half]) + canonical(values[half:])


def train(me: Any, comm: Any, steps: int, optimizer: Any, own: dict[str, Any], **arguments: Any) -> torch.Tensor:
    m = model()
    opt = ZeroOptimizer(m, optimizer, comm=comm, **own, **arguments)
    for x, y in batches(me.size, steps):
        part = slice(8 * me.rank, 8 * me.rank + 8)
        mse(m(x[part]), y[part]).backward()
        opt.step()
        opt.zero_grad()
    opt.close()
    return flat(m)


def every_setting(me: Any, steps: int) -> None:
    comm = me.connect()
    for optimizer, arguments in (
        (torch.optim.AdamW, {"lr": 1e-2}),
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ):
        expected = alone(me.size, steps, optimizer, **arguments)
        settings = [{"stage": s, "bucket_bytes": b} for s in range(4) for b in (1, 5000, 1 << 40)]
        settings += [{"stage": s, "overlap": False} for s in range(4)]
        settings += [{"stage": 3, "persistence_bytes": n, "prefetch_bytes": n} for n in (0, 1 << 40)]
        for own in settings:
            assert torch.equal(train(me, comm, steps, optimizer, own, **arguments), expected), own


@pytest.mark.parametrize(("size", "steps"), [(1, 20), (2, 20), (3, 6), (4, 6), (8, 1)])
def test_same_bits_as_one_process(
    size: int, steps: int, ranks: Callable[..., contextlib.AbstractContextManager[Any]]
) -> None:
    with ranks(size, every_setting, steps):
        pass
