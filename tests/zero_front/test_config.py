"""DeepSpeed's JSON: the batch triple, "auto", what becomes of each key, and what is refused, with the key meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collectives.zero.config import Config, Model, Offloaded, parse
from collectives.zero.config_report import ConfigError
from collectives.zero.deepspeed_keys import IGNORED, KEYS, UNSUPPORTED, USED, Key, Section


def made(world_size: int = 2, model: Model | None = None, **keys: Any) -> Config:
    return parse({"train_micro_batch_size_per_gpu": 4, **keys}, world_size=world_size, model=model)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4}, (32, 4, 2)),
        ({"train_batch_size": 32, "gradient_accumulation_steps": 2}, (32, 4, 2)),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}, (32, 4, 2)),
        ({"train_micro_batch_size_per_gpu": 4}, (16, 4, 1)),
        ({"train_batch_size": 32}, (32, 8, 1)),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}, (None, None, 1)),
    ],
)
def test_the_batch_triple(given: dict[str, Any], whole: tuple[int | None, ...]) -> None:
    batch = parse(given, world_size=4).batch
    assert (batch.train, batch.micro, batch.accumulation) == whole


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"train_batch_size": 2},
        {"train_batch_size": 33, "train_micro_batch_size_per_gpu": 4},
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
        {"train_micro_batch_size_per_gpu": 0},
    ],
)
def test_batches_that_do_not_fit(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        parse(given, world_size=4)


def leaves(keys: Section, prefix: str = "") -> dict[str, Key]:
    found: dict[str, Key] = {}
    for name, key in keys.items():
        found |= {prefix + name: key} if isinstance(key, Key) else leaves(key, f"{prefix}{name}.")
    return found


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("name", "key"), leaves(KEYS).items(), ids=list(leaves(KEYS)))
def test_every_key_is_in_the_report_and_its_default_is_accepted(name: str, key: Key) -> None:
    config = (
        parse({"train_micro_batch_size_per_gpu": 4, **nested(name, key.default)}, world_size=2)
        if (key.default is not None)
        else parse({"train_batch_size": 2, **nested(name, "auto")}, world_size=2)
    )
    line = next(line for line in config.report.lines if line.name == name)
    assert line.status == key.status
    assert str(line) in str(config.report)


@pytest.mark.parametrize("name", [name for name, key in leaves(KEYS).items() if key.status != USED])
def test_what_is_not_used_says_why(name: str) -> None:
    assert leaves(KEYS)[name].note


def test_all_three_classes_are_in_one_report() -> None:
    config = made(zero_optimization={"stage": 2, "contiguous_gradients": True}, sparse_gradients=False)
    assert {line.status for line in config.report.lines} == {USED, IGNORED, UNSUPPORTED}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"zero_optimization": {"stages": 2}}, "zero_optimization.stage?"),
        ({"gradient_cliping": 1.0}, "gradient_clipping?"),
        ({"stage": 2}, "zero_optimization.stage?"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "offload_optimizer.device?"),
        ({"reduce_bucket_size": 5}, "zero_optimization.reduce_bucket_size?"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpus"}}}, "did you mean cpu?"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**given)
    assert name in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made(gradient_cliping=1, sparse_gradients=True, zero_optimization={"stage": "two"})
    for words in ("gradient_cliping", "sparse_gradients", "zero_optimization.stage"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gradient_allreduce_op": "sum"}, "averaged"),
        ({"compression_training": {"weight_quantization": {}}}, "changes the model"),
        ({"elasticity": {"enabled": True}}, "number of ranks"),
        ({"zero_optimization": {"stage": 4}}, "0, 1, 2, 3"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "stage 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme_path"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "both"),
        ({"fp16": {"enabled": True, "loss_scale": -1}}, "loss_scale"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size"),
        ({"gradient_clipping": "much"}, "number"),
        ({"fp16": True}, "an object"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(**given)


def test_what_is_switched_off_is_accepted() -> None:
    made(elasticity={"enabled": False}, amp={"enabled": "auto"}, compression_training={})


def test_clipping_is_not_imported_silently() -> None:
    """DeepSpeed's default became 1.0; a config without the key clips nothing here, and the report says so."""
    config = made()
    assert config.clipping == 0
    assert "gradients are not clipped" in str(config.report)
    assert "not clipped" not in str(made(gradient_clipping=1.0).report)


def test_auto_as_hugging_face_writes_it() -> None:
    """The sizes of its ZeRO 3 example, from the model's hidden size; the rest at its defaults."""
    config = parse(
        {
            "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
                     "hysteresis": 2, "min_loss_scale": 1},
            "bf16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto",
                                                      "weight_decay": 0.1}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": 5}},
            "zero_optimization": {
                "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
                "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
            "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
        },
        world_size=2,
        model=Model(hidden_size=64, dtype="bfloat16"),
    )  # fmt: skip
    assert (config.stage, config.precision, config.gathers_on_save) == (3, "bfloat16", True)
    assert (config.bucket_elems, config.prefetch_elems, config.persistence_elems) == (4096, 3686, 640)
    assert config.optimizer is not None
    assert config.optimizer.params == {"weight_decay": 0.1}
    assert config.scheduler is not None
    assert config.scheduler.params == {"warmup_num_steps": 5}
    assert config.offload_optimizer == Offloaded(None)


def test_sizes_are_whole_numbers_also_as_floats() -> None:
    assert made(zero_optimization={"reduce_bucket_size": 2e8}).bucket_elems == 200_000_000
    with pytest.raises(ConfigError, match="whole number"):
        made(zero_optimization={"reduce_bucket_size": 1.5})


def test_old_forms() -> None:
    assert made(zero_optimization=True).stage == 1
    assert made(bfloat16={"enabled": True}).precision == "bfloat16"
    assert made(zero_optimization={"stage": 2, "cpu_offload": True}).offload_optimizer == Offloaded(None)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 4, "zero_optimization": {"stage": 1}}))
    assert parse(path, world_size=2).stage == 1
    path.write_text('{"train_batch_size": 4, "train_batch_size": 8}')
    with pytest.raises(ConfigError, match=r"ds\.json: given twice: train_batch_size"):
        parse(path, world_size=2)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"ds\.json"):
        parse(str(path), world_size=2)
    with pytest.raises(OSError, match="nothing"):
        parse(tmp_path / "nothing.json", world_size=2)


def test_loss_scaling() -> None:
    scale = made(fp16={"enabled": True, "initial_scale_power": 8}).loss_scale
    assert scale is not None
    assert (scale.static, scale.initial, scale.window) == (0, 256, 1000)
    assert made(bf16={"enabled": True}).loss_scale is None
