"""What is offloaded to files trains to the same bits, leaves nothing behind, and says what went wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import Offload, ZeroOptimizer
from tests.zero import test_zero_models as models

Ranks = Callable[..., contextlib.AbstractContextManager[Any]]

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),  # no state before the first step
    (torch.optim.SGD, {"lr": 0.05}),  # none at all
    (torch.optim.Adagrad, {"lr": 0.05}),  # state from the beginning
    (torch.optim.NAdam, {"lr": 0.01}),  # more numbers than `step`
]


class Late(torch.optim.SGD):
    """Keeps something that cannot be foreseen, from its second step on, and another tensor each time."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            held = self.state[p]
            if p.grad is not None and p.numel() > 1000:
                if "seen" in held:
                    held["gone"] = held["seen"].double()
                held["seen"] = p.grad.clone() + held.get("gone", 0)
                p.grad.add_(held["seen"])
        super().step()


def model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(37, 301), torch.nn.ReLU(), torch.nn.Linear(301, 1111), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(1111, 5)).to(dtype)


def train(comm: Any, dtype: torch.dtype, optimizer: Any, arguments: dict[str, Any], **own: Any) -> torch.Tensor:
    """Two micro-batches a step, the second onto the reduced gradients of the first; scaled, unscaled, clipped."""
    m = model(dtype)
    opt = ZeroOptimizer(m, optimizer, comm=comm, bucket_bytes=50_000, persistence_bytes=700, **own, **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    generator = torch.Generator().manual_seed(5 + comm.rank)
    for step in range(4):
        for micro in range(2):
            x = torch.randn(8, 37, generator=generator).to(dtype)
            with opt.no_sync() if step == 2 and not micro else contextlib.nullcontext():
                scaler.scale(m(x).float().square().mean()).backward()
        scaler.unscale_(opt)
        opt.clip_grad_norm_(0.5)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    opt.close()
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def same_bits(me: Any, directory: str) -> None:
    comm = me.connect()
    places: list[tuple[int, Any]] = [(stage, directory) for stage in range(4)]
    places += [(2, Offload(gradients=directory)), (3, Offload(parameters=Path(directory)))]
    places += [(3, Offload(directory, directory, directory, buffer_bytes=1))]
    for dtype in (torch.float32, torch.bfloat16):
        for number, (kind, arguments) in enumerate(OPTIMIZERS):
            expected = train(comm, dtype, kind, arguments, stage=2)
            for stage, where in places if number == 0 else places[number % 3 :: 3]:
                got = train(comm, dtype, kind, arguments, stage=stage, offload=where)
                assert torch.equal(got, expected), (dtype, kind.__name__, stage, where)
        for stage in (1, 3) if me.size == 1 else ():
            late = [train(comm, dtype, Late, {"lr": 0.01}, stage=stage, offload=w) for w in (None, directory)]
            assert torch.equal(*late), stage
    odd = models.alone(me.size, 4, None)
    for stage in (1, 2, 3):
        assert torch.equal(models.train(comm, 4, stage=stage, offload=directory, persistence_bytes=0), odd), stage
        clipped = [models.train(comm, 4, clip="foreach", stage=stage, offload=w) for w in (None, directory)]
        assert torch.equal(*clipped), stage
    assert not list(Path(directory).iterdir())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_same_bits_as_in_memory(size: int, ranks: Ranks, tmp_path: Path) -> None:
    directory = tmp_path / "nvme"
    directory.mkdir()
    with ranks(size, same_bits, str(directory)):
        pass
