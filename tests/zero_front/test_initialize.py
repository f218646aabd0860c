"""zero.initialize: a script written for DeepSpeed's engine, with the numbers that plain torch gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import collectives as cc
from collectives import zero
from collectives.zero.deepspeed_loss_scale import DeepSpeedLossScale
from collectives.zero.schedules import TYPES as SCHEDULES

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
        assert second.save_16bit_model(tmp_path, "model.safetensors")
        for whole in (torch.load(tmp_path / "pytorch_model.bin"), load_file(tmp_path / "model.safetensors")):
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


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_offload(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {"device": device, "nvme_path": str(tmp_path / "new"), "pin_memory": True, "buffer_count": 5}
    config = {**BASE, "zero_optimization": {"stage": 3, "offload_optimizer": where, "offload_param": where,
                                            "stage3_param_persistence_threshold": 0}}  # fmt: skip
    with cc.connect(size=1, rank=0) as comm:
        engine, opt, *_ = zero.initialize(model=model(), config=config, comm=comm)
        run(engine, range(4))
        held = opt.memory()
        opt.close()
        for got, expected in zip(engine.module.parameters(), plain(4), strict=True):
            assert torch.equal(got, expected)
    assert (held["files"] > 0) == (device == "nvme")
    assert (held["optimizer"] > 500) == (device == "cpu")
    said = capsys.readouterr().err
    assert f'used           zero_optimization.offload_param.device = "{device}"' in said
    assert "ignored        zero_optimization.offload_optimizer.buffer_count = 5" in said


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
    ],
)
def test_configs_that_cannot_be_followed(more: dict[str, Any], words: str) -> None:
    with cc.connect(size=1, rank=0) as comm, pytest.raises(zero.ConfigError, match=words):
        zero.initialize(model=model(), config={**BASE, **more}, comm=comm)


NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "deepspeed/numbers.json").read_text())


def test_schedules_are_deepspeeds() -> None:
    assert {name for name, *_ in NUMBERS["schedules"]} == set(SCHEDULES)
    for name, params, rates, momenta in NUMBERS["schedules"]:
        opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = SCHEDULES[name](opt, **params)
        group, got = opt.param_groups[0], []
        for _ in rates:
            got.append((group["lr"], group["betas"][0]))
            schedule.step()
        assert [rate for rate, _ in got] == pytest.approx(rates, rel=1e-12), (name, params)
        assert [momentum for _, momentum in got] == pytest.approx(momenta, rel=1e-12), (name, params)


def test_the_loss_scale_is_deepspeeds() -> None:
    assert any(values[-1] is None for *_, values in NUMBERS["loss_scales"])  # one ends at the least scale
    for hysteresis, consecutive, least, window, overflows, values in NUMBERS["loss_scales"]:
        scale = DeepSpeedLossScale(256.0, window, hysteresis=hysteresis, consecutive=consecutive, least=least)
        for number, (overflow, value) in enumerate(zip(overflows, values, strict=True)):
            if number == 20:  # as a checkpoint does
                state = scale.state()
                scale = DeepSpeedLossScale(256.0, window, hysteresis=hysteresis, consecutive=consecutive, least=least)
                scale.set_state(json.loads(json.dumps(state)))
            if value is None:
                with pytest.raises(FloatingPointError):
                    scale.update(overflow)
            else:
                scale.update(overflow)
                assert scale.value == value, (hysteresis, number)


@pytest.mark.parametrize("static", [0, 8])
def test_fp16_skips_and_forgives(static: float) -> None:
    config = {
        **BASE, "gradient_accumulation_steps": 1, "zero_optimization": {"stage": 2},
        "fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 2, "loss_scale": static},
    }  # fmt: skip
    with cc.connect(size=1, rank=0) as comm:
        engine, opt, *_ = zero.initialize(model=model(), config=config, comm=comm)
        scales, applied = [], []
        for factor in (1.0, float("inf"), float("inf"), 1.0):
            before = [p.clone() for p in engine.parameters()]
            engine.backward(engine(rows(0).half()).float().square().mean() * factor)
            engine.step()
            scales.append(opt.loss_scale)
            applied.append(engine.was_step_applied())
            same = [torch.equal(a, b) for a, b in zip(before, engine.parameters(), strict=True)]
            assert any(not one for one in same) if applied[-1] else all(same)
        assert applied == [True, False, False, True]
        assert engine.skipped_steps == 2
        assert scales == ([8.0] * 4 if static else [16.0, 16.0, 8.0, 8.0])


def loaded(tmp_path: Path, comm: Any, **flags: Any) -> tuple[Any, Any]:
    """A fresh engine that has loaded what `test_load_flags` saved, and what it returned."""
    config = {**BASE, "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2}}}
    engine, *_ = zero.initialize(model=model(), config=config, comm=comm)
    return engine, engine.load_checkpoint(tmp_path, **flags)


def test_load_flags(tmp_path: Path) -> None:
    with cc.connect(size=1, rank=0) as comm:
        first, _ = loaded(tmp_path, comm)
        run(first, range(2))
        first.save_checkpoint(tmp_path, tag="early")
        early = [p.detach().clone() for p in first.parameters()]
        run(first, range(2, 3))
        first.save_checkpoint(tmp_path, tag="late", client_state={"a": 1})

        def has(flags: dict[str, Any]) -> tuple[bool, bool, int, int]:
            engine, _ = loaded(tmp_path, comm, **flags)
            tag = early if flags.get("tag") == "early" else list(first.parameters())
            weights = all(torch.equal(a, b) for a, b in zip(engine.parameters(), tag, strict=True))
            states = engine.optimizer.full_tensor(next(engine.parameters()), "exp_avg") is not None
            return weights, states, engine.global_steps, engine.lr_scheduler.last_batch_iteration

        assert has({}) == (True, True, 3, 2)
        assert has({"tag": "early"}) == (True, True, 2, 1)
        assert has({"load_optimizer_states": False}) == (True, False, 3, 2)
        assert has({"load_lr_scheduler_states": False}) == (True, True, 3, -1)
        assert has({"load_module_only": True}) == (True, False, 0, -1)
        assert loaded(tmp_path, comm, load_module_only=True)[1] == (str(tmp_path / "late"), {"a": 1})
        with pytest.raises(ValueError, match="custom_load_fn"):
            first.load_checkpoint(tmp_path, custom_load_fn=print)


def test_load_without_strict_leaves_alone_what_only_one_side_has(tmp_path: Path) -> None:
    with cc.connect(size=1, rank=0) as comm:
        first, *_ = zero.initialize(model=model(), config=BASE, comm=comm)
        run(first, range(1))
        first.save_checkpoint(tmp_path)
        m = torch.nn.Sequential(*model(), torch.nn.Linear(3, 2))
        m[2] = torch.nn.Identity()
        engine, *_ = zero.initialize(model=m, config=BASE, comm=comm)
        own = m[3].weight.detach().clone()
        with pytest.raises(zero.CheckpointError, match=r"3\.weight"):
            engine.load_checkpoint(tmp_path)
        engine.load_checkpoint(tmp_path, load_module_strict=False)
        assert torch.equal(m[0].weight, first.module[0].weight)
        assert torch.equal(m[3].weight, own)
