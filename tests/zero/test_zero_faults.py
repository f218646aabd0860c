"""What goes wrong on one rank is an error on every rank, which names the rank and the parameters."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer

Ranks = Callable[..., contextlib.AbstractContextManager[Any]]


class Two(torch.nn.Module):
    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("right", "left") if swapped else ("left", "right"):
            setattr(self, name, torch.nn.Linear(40, 40))

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        x = self.left(x)
        return x if skip else self.right(x)


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("in backward")


def faulty(me: Any, kind: str, stage: int) -> None:
    comm = me.connect(timeout_s=3.0)
    culprit = me.rank == 1
    if kind == "order":
        me.attempt(ZeroOptimizer, Two(culprit), torch.optim.SGD, comm=comm, stage=stage, lr=0.1)
        return
    m = Two()
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=stage, lr=0.1, persistence_bytes=0, bucket_bytes=1000)
    x = torch.ones(3, 40)

    def step(broken: bool) -> None:
        if kind == "backward" and broken:
            opt.step()
            return
        y = m(x, skip=kind == "module" and broken)
        if kind == "exception" and broken:
            with contextlib.suppress(ZeroDivisionError):
                Fails.apply(m.left(x)).sum().backward()
        else:
            y.sum().backward()
        opt.step()
        opt.zero_grad()

    step(False)
    me.attempt(step, culprit)


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        ("order", 1, ["rank 1", "right.weight", "left.weight"]),
        ("backward", 0, ["rank 1"]),
        ("backward", 2, ["rank 1"]),
        ("exception", 2, ["rank 1"]),
        ("exception", 3, ["rank 1"]),
        ("module", 3, ["rank 1"]),  # below stage 3 it is a module that some ranks do not use
    ],
)
def test_a_rank_that_does_something_else_is_named(kind: str, stage: int, words: list[str], ranks: Ranks) -> None:
    with ranks(2, faulty, kind, stage) as job:
        for rank in range(2):
            told = job.hear("raised", rank)
            assert "CollectiveError" in told["kinds"], told
            assert told["took_s"] < 20, told
            assert "left." in told["text"] or "right." in told["text"], told
            for word in words:
                assert word in told["text"] or rank == 1, (word, told)


def killed(me: Any, stage: int) -> None:
    comm = me.connect(timeout_s=10.0)
    m = Two()
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=stage, lr=0.1, persistence_bytes=0)

    def step() -> None:
        m(torch.ones(3, 40)).sum().backward()
        opt.step()
        opt.zero_grad()

    me.until_it_fails(step)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_killed_rank_is_named_with_the_bucket(stage: int, ranks: Ranks) -> None:
    with ranks(3, killed, stage) as job:
        job.hear_all("calling")
        job.signal(signal.SIGKILL, 1)
        for rank in (0, 2):
            told = job.hear("raised", rank)
            assert "PeerLostError" in told["kinds"], told
            assert "lost rank 1" in told["text"]
