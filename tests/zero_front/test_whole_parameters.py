"""Whole parameters, states and gradients out of what ranks hold, at every stage; and changes that all ranks follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import collectives as cc
from collectives.zero import ZeroOptimizer, deepspeed

Threads = Callable[..., list[Any]]
ROWS = 4


class Net(torch.nn.Module):
    """Uses a parameter of `first` outside of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = torch.nn.Linear(9, 33), torch.nn.Linear(33, 9)
        self.frozen = torch.nn.Parameter(torch.tensor([0.5, 2.0, 1.0]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) * self.frozen[0] + x @ self.first.weight.t()[:, :9]


def batch(step: int) -> torch.Tensor:
    """The same on all ranks, so that a power of two of them train as one process does, to the bit."""
    return torch.randn(ROWS, 9, generator=torch.Generator().manual_seed(step))


def change(p: torch.Tensor) -> None:
    with torch.no_grad():
        p.mul_(0.5).add_(0.125)


def alone(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]:
    """Four steps, of which the weight of `second` is changed after two: masters, first moments, and last gradients."""
    m = Net().to(dtype)
    masters = [p.detach().float() for p in m.parameters()]
    trained = [(p, master) for p, master in zip(m.parameters(), masters, strict=True) if p.requires_grad]
    opt = torch.optim.Adam([master for _, master in trained], lr=0.01)
    for step in range(4):
        m.zero_grad()
        m(batch(step).to(dtype)).square().mean().backward()
        for p, master in trained:
            assert p.grad is not None
            master.grad = p.grad.float()
        opt.step()
        with torch.no_grad():
            for p, master in trained:
                p.copy_(master)
        if step == 1:
            change(m.second.weight)
            dict(trained)[m.second.weight].copy_(m.second.weight.detach())
    moments = [opt.state[master]["exp_avg"] for _, master in trained]
    return masters, moments, [p.grad for p in m.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", range(4))
def test_whole_tensors_are_those_of_one_process(stage: int, dtype: torch.dtype, threads: Threads) -> None:
    masters, moments, grads = alone(dtype)
    models = [Net().to(dtype) for _ in range(2)]
    for m in models:
        deepspeed.zero.register_external_parameter(m, m.first.weight)

    def body(comm: cc.Communicator) -> None:
        m = models[comm.rank]
        opt = ZeroOptimizer(m, torch.optim.Adam, comm=comm, stage=stage, lr=0.01, persistence_bytes=0, bucket_bytes=600)
        assert deepspeed.utils.safe_get_full_optimizer_state(m.first.weight, "exp_avg") is None
        for step in range(4):
            m(batch(step).to(dtype)).square().mean().backward()
            if step == 3:
                for p, grad in zip(m.parameters(), grads, strict=True):
                    got = deepspeed.utils.safe_get_full_grad(p)
                    assert (got is None) == (grad is None)
                    assert got is None or torch.equal(got, grad)
            opt.step()
            opt.zero_grad()
            if step == 1:
                with deepspeed.zero.GatheredParameters(m.first.parameters()):
                    with deepspeed.zero.GatheredParameters(m.second.weight, modifier_rank=1):
                        if comm.rank == 1:
                            change(m.second.weight)
                    assert torch.isfinite(m.first.weight).all()  # it is still whole
                assert stage < 3 or torch.isnan(m.first.weight).all()
        for p, master in zip(m.parameters(), masters, strict=True):
            got = deepspeed.utils.safe_get_full_fp32_param(p)
            assert got.dtype == torch.float32
            assert torch.equal(got, master)
        trained = [p for p in m.parameters() if p.requires_grad]
        for p, moment in zip(trained, moments, strict=True):
            assert torch.equal(deepspeed.utils.safe_get_full_optimizer_state(p, "exp_avg"), moment)
        with opt.gathered(m.parameters()):
            for p, master in zip(m.parameters(), masters, strict=True):
                assert torch.equal(p.detach(), master.to(dtype))
        opt.close()

    threads(2, body)


@pytest.mark.parametrize("stage", [1, 3])
def test_values_that_are_set_are_everybodys(stage: int, threads: Threads) -> None:
    models = [Net().bfloat16() for _ in range(3)]

    def body(comm: cc.Communicator) -> None:
        m = models[comm.rank]
        opt = ZeroOptimizer(m, torch.optim.Adam, comm=comm, stage=stage, lr=0.01, persistence_bytes=0)
        deepspeed.zero.register_external_parameter(m, m.first.weight)  # it may come late
        m(batch(0).bfloat16()).square().mean().backward()
        opt.step()
        value = torch.randn(33, 9, generator=torch.Generator().manual_seed(7))
        deepspeed.utils.safe_set_full_fp32_param(m.first.weight, value)
        deepspeed.utils.safe_set_full_optimizer_state(m.first.weight, value.square(), "exp_avg_sq")
        deepspeed.utils.safe_set_full_fp32_param(m.frozen, torch.ones(3))
        assert torch.equal(deepspeed.utils.safe_get_full_fp32_param(m.first.weight), value)
        assert torch.equal(opt.full_tensor(m.first.weight, "exp_avg_sq"), value.square())
        with opt.gathered([m.first.weight, m.frozen]):
            assert torch.equal(m.first.weight.detach(), value.bfloat16())
            assert torch.equal(m.frozen, torch.ones(3).bfloat16())
        with pytest.raises(ValueError, match=r"first\.weight has shape \(33, 9\), and its value \(9,\)"):
            deepspeed.utils.safe_set_full_fp32_param(m.first.weight, torch.zeros(9))
        with pytest.raises(ValueError, match="is not one of this optimizer's model"):
            opt.full_tensor(torch.nn.Parameter(torch.zeros(2)))
        with pytest.raises(ValueError, match="modifier_rank=3"), opt.gathered([m.frozen], 3):
            pass
        opt.close()

    threads(3, body)


def test_parameters_that_nobody_has_taken() -> None:
    m = Net()
    assert deepspeed.utils.safe_get_full_fp32_param(m.first.weight) is None
    assert deepspeed.utils.safe_get_full_grad(m.first.weight) is None
    with deepspeed.zero.GatheredParameters(m.parameters(), modifier_rank=0):
        change(m.frozen)
    with pytest.raises(ValueError, match="modifier_rank=1"), deepspeed.zero.GatheredParameters(m.frozen, 1):
        pass
    with deepspeed.zero.GatheredParameters(m.frozen, 1, enabled=False):
        pass
