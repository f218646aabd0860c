"""What goes wrong on one rank is an error on every rank, which names the rank and the parameters."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer, backward

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


class InBackward(torch.autograd.Function):
    """Nothing in forward; a call in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: Callable[[], Any]) -> torch.Tensor:
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.call()
        return gradient, None


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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
        if kind in ("exception", "uncaught") and broken:
            try:
                InBackward.apply(m.left(x), lambda: 1 / 0).sum().backward()
            except ZeroDivisionError:
                if kind == "uncaught":
                    comm.close()  # as the end of the process does
                    raise
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
        ("uncaught", 1, ["rank 1", "bucket"]),
        ("module", 3, ["rank 1"]),  # below stage 3 it is a module that some ranks do not use
    ],
)
def test_a_rank_that_does_something_else_is_named(kind: str, stage: int, words: list[str], ranks: Ranks) -> None:
    with ranks(2, faulty, kind, stage) as job:
        for rank in range(2):
            told = job.hear("raised", rank)
            if kind == "uncaught" and rank == 1:
                assert told["kinds"][0] == "ZeroDivisionError"
                continue
            assert "CollectiveError" in told["kinds"], told
            assert told["took_s"] < 20, told
            assert "left." in told["text"] or "right." in told["text"], told
            for word in words:
                assert word in told["text"], told


class Mortal(torch.optim.SGD):
    """One that ends its process at one of its steps: each bucket has one of its own."""

    steps_left = -1

    def step(self, closure: Any = None) -> Any:
        Mortal.steps_left -= 1
        if Mortal.steps_left == 0:
            dies()
        return super().step(closure)


def target(step: int) -> torch.Tensor:
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(step))


def killed(me: Any, stage: int, when: str, path: str) -> None:
    comm = me.connect(timeout_s=10.0)
    m = Two()
    opt = ZeroOptimizer(
        m, Mortal, comm=comm, stage=stage, lr=0.1, momentum=0.9, persistence_bytes=0, bucket_bytes=1000
    )  # fmt: skip

    def step(number: int, last: bool) -> None:
        x = m.left(torch.ones(3, 40))
        m.right(InBackward.apply(x, dies) if last and when == "backward" else x).sub(
            target(number)
        ).square().mean().backward()
        if last and when == "agreement":
            backward.agree = lambda *arguments: dies()
        Mortal.steps_left = 2 if last and when == "step" else -1
        opt.step()
        opt.zero_grad()

    for number in range(2):
        step(number, False)
    opt.save(path, number + 1)
    me.say("saved")
    me.attempt(lambda: [step(number, number == 2 and me.rank == 1) for number in range(2, 5)])


def resumed(me: Any, stage: int, path: str) -> None:
    m = Two()
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=me.connect(), stage=stage, lr=0.1, momentum=0.9)
    for number in range(opt.load(path), 5):
        m.right(m.left(torch.ones(3, 40))).sub(target(number)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    opt.close()
    me.say("trained", values=torch.cat([p.detach().reshape(-1) for p in m.parameters()]).tolist())


@pytest.mark.parametrize(("stage", "when"), [(0, "backward"), (1, "step"), (2, "agreement"), (3, "step")])
def test_a_rank_killed_in_a_step_is_named_and_training_resumes(
    stage: int, when: str, ranks: Ranks, tmp_path: Path
) -> None:
    """All ranks have the same batch, so that any power of two of them trains as one process does, to the bit."""
    path = str(tmp_path / "checkpoint")
    with ranks(4, killed, stage, when, path) as job:
        job.hear_all("saved")
        job.ends(1, -signal.SIGKILL)
        for told in job.hear_all("raised", but=(1,)):
            assert "PeerLostError" in told["kinds"], told
            assert "lost rank 1" in told["text"], told
            assert re.search(r"bucket \d+ \((left|right)\.(weight|bias)\)", told["text"]), told
            assert told["took_s"] < 10, told

    alone = Two()
    opt = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for number in range(5):
        alone.right(alone.left(torch.ones(3, 40))).sub(target(number)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    expected = torch.cat([p.detach().reshape(-1) for p in alone.parameters()]).tolist()
    with ranks(2, resumed, stage, path) as job:
        for told in job.hear_all("trained"):
            assert told["values"] == expected
