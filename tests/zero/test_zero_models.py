"""Models as they are: tied, frozen, unused, empty, scalar, reused, nested, checkpointed; at every stage."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer
from tests.canonical import canonical_sum

STEPS = 4
_SEED = threading.Lock()  # torch has one seed for all threads


class Odd(torch.nn.Module):
    """One of everything. `mode` is how its blocks are checkpointed."""

    def __init__(self, mode: str = "none") -> None:
        super().__init__()
        with _SEED:
            torch.manual_seed(1)
            self._make()
        self.mode = mode

    def _make(self) -> None:
        self.embed = torch.nn.Embedding(50, 24)
        self.block = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.GELU(), torch.nn.Linear(48, 24))
        self.mixed = torch.nn.Linear(24, 24)
        self.frozen = torch.nn.Linear(24, 24)
        self.frozen.requires_grad_(False)
        self.unused = torch.nn.Linear(24, 7)
        self.sometimes = torch.nn.Linear(24, 24)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.empty = torch.nn.Parameter(torch.empty(0, 3))
        self.transposed = torch.nn.Parameter(torch.randn(24, 10).t())
        self.head = torch.nn.Linear(24, 50, bias=False)
        self.head.weight = self.embed.weight  # tied

    def part(self, given: dict[str, Any]) -> dict[str, Any]:
        x = given["x"]
        return {"x": (x + self.block(x), given["other"])}

    def forward(self, tokens: torch.Tensor, extra: bool = False) -> dict[str, Any]:
        x = self.embed(tokens) * self.scale
        for _ in range(2):  # the block is used twice
            if self.mode == "none":
                x = self.part({"x": x, "other": None})["x"][0]
            else:
                x = checkpoint(
                    lambda x: self.part({"x": x, "other": 1})["x"][0], x, use_reentrant=self.mode == "reentrant"
                )
        x = self.frozen(torch.tanh(self.mixed(x)))
        if extra:
            x = x + self.sometimes(x)
        x = x + (x @ self.transposed.t()) @ self.transposed + self.empty.sum()
        return {"out": [self.head(x)]}


def loss_of(m: Odd, tokens: torch.Tensor, extra: bool) -> torch.Tensor:
    out = m(tokens, extra=extra)["out"][0]
    return torch.nn.functional.cross_entropy(out.reshape(-1, 50), tokens.reshape(-1))


def flat(m: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def tokens_of(step: int, rank: int) -> torch.Tensor:
    return torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(100 * step + rank))


def groups(m: Odd) -> list[dict[str, Any]]:
    decayed = [p for p in m.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in m.parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.003, "weight_decay": 0.0}]


def alone(size: int, steps: int, clip: float | None) -> torch.Tensor:
    m = Odd()
    opt = torch.optim.AdamW(groups(m), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
    for step in range(steps):
        every: dict[Any, list[torch.Tensor]] = {}
        for rank in range(size):
            opt.zero_grad()
            loss_of(m, tokens_of(step, rank), step % 2 == 1).backward()
            for p in m.parameters():
                if p.grad is not None:
                    every.setdefault(p, [torch.zeros_like(p)] * size)[rank] = p.grad
        for p in m.parameters():
            p.grad = canonical_sum(every[p]) / size if p in every else None
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(m.parameters(), clip)
        opt.step()
        schedule.step()
    return flat(m)


def train(comm: Any, steps: int, mode: str = "none", clip: str = "", **own: Any) -> torch.Tensor:
    m = Odd(mode)
    names = [name for name, _ in m.named_parameters()]
    opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, params=groups(m), lr=0.01, **own)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
    for step in range(steps):
        m.eval()
        with torch.no_grad():  # generation, without a step
            m(tokens_of(step, 77))
        m.train()
        loss_of(m, tokens_of(step, comm.rank), step % 2 == 1).backward()
        if clip == "torch":
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)
        elif clip == "foreach":
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5, foreach=True)
        elif clip == "own":
            opt.clip_grad_norm_(0.5)
        opt.step()
        schedule.step()
        m.zero_grad()  # the model's, not the optimizer's
    assert [name for name, _ in m.named_parameters()] == names
    opt.close()
    return flat(m)


def everything_at_once(me: Any) -> None:
    everything(me.connect())


def everything(comm: Any) -> None:
    expected = alone(comm.size, STEPS, None)
    for stage in range(4):
        for own in ({}, {"bucket_bytes": 1}, {"persistence_bytes": 0}, {"persistence_bytes": 0, "overlap": False}):
            got = train(comm, STEPS, stage=stage, **own)
            assert torch.equal(got, expected), (stage, own, (got - expected).abs().max())
        for mode in ("reentrant", "not reentrant"):
            got = train(comm, STEPS, mode, stage=stage, persistence_bytes=0)
            assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5), (stage, mode, (got - expected).abs().max())
    clipped = alone(comm.size, STEPS, 0.5)
    first = None
    for stage in range(4):
        for clip in ("torch", "foreach", "own"):
            got = train(comm, STEPS, clip=clip, stage=stage, bucket_bytes=3000 * (stage + 1), persistence_bytes=500)
            assert torch.allclose(got, clipped, rtol=1e-5, atol=1e-5), (stage, clip, (got - clipped).abs().max())
            first = got if first is None else first
            if stage:
                assert torch.equal(got, first), (stage, clip)
            elif clip == "own":
                first = got


def test_one_of_everything(ranks: Callable[..., contextlib.AbstractContextManager[Any]]) -> None:
    with ranks(2, everything_at_once):
        pass


@pytest.mark.parametrize("size", [1, 4])
def test_one_of_everything_in_threads(size: int, threads: Callable[..., list[Any]]) -> None:
    threads(size, everything)


def looks_in_between(me: Any) -> None:
    """A part of the model runs between backward and step, and what follows it is gathered ahead, before the step."""
    comm = me.connect()
    found: list[torch.Tensor] = []
    for between in (False, True):
        torch.manual_seed(0)
        m = torch.nn.Sequential(*(torch.nn.Linear(100, 100) for _ in range(4)))
        opt = ZeroOptimizer(m, torch.optim.SGD, lr=0.1, stage=3, comm=comm, persistence_bytes=0)
        for _ in range(3):
            m(torch.ones(2, 100)).square().mean().backward()
            if between:
                with torch.no_grad():
                    m[0](torch.ones(2, 100))
            opt.step()
            opt.zero_grad()
        opt.close()
        found.append(flat(m))
    assert torch.equal(*found)


def test_what_was_gathered_before_a_step_is_gathered_again(ranks: Callable[..., Any]) -> None:
    with ranks(2, looks_in_between):
        pass
