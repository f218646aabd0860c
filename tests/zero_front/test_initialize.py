"""zero.initialize: a script written for DeepSpeed's engine, with the numbers that plain torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import collectives as cc
from collectives import zero
from collectives.zero.schedules import warmup_cosine_lr, warmup_decay_lr, warmup_lr

torch.set_num_threads(1)
BASE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": [0.9, 0.95]}},
}


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(9, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))


def rows(step: int) -> torch.Tensor:
    return torch.randn(8, 9, generator=torch.Generator().manual_seed(step))


def run(engine: Any, steps: range) -> None:
    for step in steps:
        for half in rows(step).split(4):
            engine.backward(engine(half).square().mean())
            engine.step()


def plain(steps: int, clip: float = 0.0) -> list[torch.Tensor]:
    m = model()
    opt = torch.optim.AdamW(m.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for step in range(steps):
        for half in rows(step).split(4):
            (m(half).square().mean() / 2).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(m.parameters(), clip)
        opt.step()
        opt.zero_grad()
    return [p.detach() for p in m.parameters()]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_engine_trains_as_plain_torch_does(stage: int, clip: float) -> None:
    with cc.connect(size=1, rank=0) as comm:
        config = {**BASE, "zero_optimization": {"stage": stage}, **({"gradient_clipping": clip} if clip else {})}
        engine, opt, loader, schedule = zero.initialize(model=model(), config=config, comm=comm)
        run(engine, range(4))
        assert (loader, schedule, engine.global_steps, engine.micro_steps) == (None, None, 4, 8)
        opt.close()
        for got, expected in zip(engine.parameters(), plain(4, clip), strict=True):
            assert torch.allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_checkpoints_of_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**BASE, "zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR", "params": {}}}
    with cc.connect(size=1, rank=0) as comm:
        first, *_ = zero.initialize(model=model(), config=config, comm=comm)
        assert first.load_checkpoint(tmp_path) == (None, None)
        run(first, range(2))
        first.save_checkpoint(tmp_path, client_state={"epoch": 7})
        run(first, range(2, 4))
        second, *_ = zero.initialize(model=model(), config=config, comm=comm)
        path, state = second.load_checkpoint(tmp_path)
        assert (path, state) == (str(tmp_path / "global_step2"), {"epoch": 7})
        run(second, range(2, 4))
        assert second.global_steps == first.global_steps == 4
        assert second.get_lr() == first.get_lr()
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
        assert second.save_16bit_model(tmp_path)
        whole = load_file(tmp_path / "model.safetensors")
        assert torch.equal(whole["0.weight"], second.module[0].weight)
    assert "gradients are not clipped" in capsys.readouterr().err


def test_a_client_optimizer_schedule_and_data() -> None:
    with cc.connect(size=1, rank=0) as comm:
        m = model()
        theirs = torch.optim.SGD([{"params": m[0].parameters(), "lr": 0.5}, {"params": m[2].parameters()}], lr=0.1)
        halving = torch.optim.lr_scheduler.StepLR(theirs, 1, 0.5)
        engine, opt, loader, schedule = zero.initialize(
            model=m, optimizer=theirs, lr_scheduler=halving, training_data=rows(0), comm=comm,
            config={"train_batch_size": 4, "bf16": {"enabled": True}},
        )  # fmt: skip
        assert [tuple(batch.shape) for batch in loader] == [(4, 9), (4, 9)]
        assert [group["lr"] for group in opt.param_groups] == [0.5, 0.1]
        engine.backward(engine(rows(0)[:4].bfloat16()).square().mean())
        engine.step()
        assert engine.get_lr() == [0.25, 0.05]
        assert schedule is halving


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"optimizer": {"type": "Adamm"}}, "no such optimizer"),
        ({"optimizer": {"type": "SGD", "params": {"lrr": 1}}}, "lrr"),
        ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}}, "gradient_clipping"),
        ({"scheduler": {"type": "Warmup"}}, "WarmupLR"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "hpz_partition_size = 2 does not divide"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 3}}, "mics_shard_size = 3 does not divide the 1 ranks"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": "all"}}, "mics_shard_size = 'all'"),
        ({"zero_optimization": {"stage": 2, "zero_quantized_weights": True}}, "quantized_weights is for stage 3"),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": 1, "zero_quantized_gradients": True}},
            "mics_shard_size and zero_quantized_gradients",
        ),
        ({"zero_optimization": {"stage": 3, "zero_quantized_nontrainable_weights": True}}, "nontrainable"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}, "nvme"),
    ],
)
def test_configs_that_cannot_be_followed(more: dict[str, Any], words: str) -> None:
    with cc.connect(size=1, rank=0) as comm, pytest.raises(zero.ConfigError, match=words):
        zero.initialize(model=model(), config={**BASE, **more}, comm=comm)


def test_schedules() -> None:
    """Values worked out by hand from the formulas."""

    def rates(make: Any, steps: int, **params: Any) -> list[float]:
        opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = make(opt, **params)
        found: list[float] = []
        for _ in range(steps):
            found.append(opt.param_groups[0]["lr"])
            schedule.step()
        return found

    linear = {"warmup_num_steps": 4, "warmup_type": "linear"}
    assert rates(warmup_lr, 6, **linear) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(warmup_lr, 4, warmup_num_steps=4) == pytest.approx([0, 1, 1.58496, 2], rel=1e-5)
    decay = rates(warmup_decay_lr, 9, total_num_steps=8, warmup_max_lr=4.0, **linear)
    assert decay == pytest.approx([0, 1, 2, 3, 4, 3, 2, 1, 0])
    cosine = rates(warmup_cosine_lr, 8, total_num_steps=8, cos_min_ratio=0.0, **linear)
    assert cosine == pytest.approx([0, 0.5, 1.0, 1.5, 1.70711, 1.0, 0.29289, 0.0], abs=1e-5)
