"""Models made on the meta device get the values that the same seed gives on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer

Ranks = Callable[..., contextlib.AbstractContextManager[Any]]


class Language(torch.nn.Module):
    """A tied weight, buffers, a module within modules that initialises another's parameters, some not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 32)
        self.layers = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0) for _ in range(2))
        self.norm = torch.nn.BatchNorm1d(32)
        self.head = torch.nn.Linear(32, 50)
        self.head.weight = self.embedding.weight
        self.norm.bias.requires_grad_(False)
        self.head.bias.mark = "kept"  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


def trained(me: Any, comm: Any, meta: bool, **own: Any) -> list[torch.Tensor]:
    torch.manual_seed(7 + 10 * me.rank * meta)  # rank 0's values count
    with torch.device("meta") if meta else contextlib.nullcontext():
        m = Language()
    parameters = dict(m.named_parameters())
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, lr=0.1, units=[torch.nn.MultiheadAttention], **own)
    assert all(parameters[name] is p for name, p in m.named_parameters())
    assert m.head.weight is m.embedding.weight
    assert (m.head.bias.mark, m.norm.bias.requires_grad) == ("kept", False)
    for step in range(3):
        tokens = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(step))
        m(tokens).square().mean().backward()
        opt.step()
        opt.zero_grad()
    opt.close()
    return [*m.parameters(), *m.buffers()]


def same_values(me: Any, directory: str) -> None:
    comm = me.connect()
    for stage in (1, 3):
        expected = trained(me, comm, False, stage=stage, persistence_bytes=0)
        for where in (None, directory):
            got = trained(me, comm, True, stage=stage, persistence_bytes=500, offload=where)
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b), (stage, where)


def test_same_values_as_on_the_cpu(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(2, same_values, str(tmp_path / "nvme")):
        pass


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((100,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_a_module_that_does_not_initialise_itself() -> None:
    with torch.device("meta"):
        m = torch.nn.Sequential(torch.nn.Linear(100, 100), Scale())
    with pytest.raises(ValueError, match=r"'1' \(Scale\).*init_parameters"):
        ZeroOptimizer(m, torch.optim.SGD, stage=3)

    def initialise(module: Any) -> None:
        if isinstance(module, Scale):
            module.weight.fill_(2.0)
        else:
            module.reset_parameters()

    opt = ZeroOptimizer(m, torch.optim.SGD, stage=3, init_parameters=initialise, persistence_bytes=0)
    opt.close()
    assert torch.equal(m[1].weight, torch.full((100,), 2.0))  # pyright: ignore[reportArgumentType]
