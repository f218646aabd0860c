"""DeepSpeed's JSON as what it asks for here: one immutable `Config`, and the report of all its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from collectives.zero.config_report import ConfigError, Report, read

DTYPE_NAMES = {
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "torch.float16": "float16", "torch.bfloat16": "bfloat16",
}  # fmt: skip


class Model(NamedTuple):
    """What "auto" needs to know of the model."""

    hidden_size: int | None = None  # of its config, as Hugging Face models carry one
    dtype: str | None = None  # of its parameters: "float32", "float16", "bfloat16"


@dataclass(frozen=True)
class Batch:
    """Samples: `train` a step on all ranks, `micro` a forward pass on one. None: as the training loop feeds them."""

    train: int | None
    micro: int | None
    accumulation: int


@dataclass(frozen=True)
class LossScale:
    """`static` is 0 for dynamic scaling, which the other numbers are about."""

    static: float
    initial: float
    window: int
    hysteresis: int
    consecutive: bool
    least: float


@dataclass(frozen=True)
class Offloaded:
    """To files in `path`, or to the host's memory where it is None."""

    path: str | None


class Component(NamedTuple):
    """An optimizer or a schedule, as the JSON names it."""

    type: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Sizes are elements, as DeepSpeed counts them; dtypes are names of torch's."""

    batch: Batch
    stage: int
    precision: str  # of parameters: "float32", "float16", "bfloat16"; master weights are float32
    autocast: str | None
    casts_inputs: bool
    loss_scale: LossScale | None
    skips_overflow: bool
    clipping: float  # 0: none
    communication_dtype: str | None
    accumulation_dtype: str | None
    manages_accumulation: bool
    bucket_elems: int | None  # None, also of the next two: not said
    overlap: bool
    prefetch_elems: int | None
    persistence_elems: int | None
    hpz_size: int
    mics_size: int
    quantized_weights: bool
    quantized_gradients: bool
    error_feedback: bool
    offload_optimizer: Offloaded | None
    offload_parameters: Offloaded | None
    optimizer: Component | None
    scheduler: Component | None
    gathers_on_save: bool
    steps_per_print: int | None
    tag_validation: str  # "ignore", "warn", "fail"
    drop_last: bool
    report: Report


def load(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """The configuration as a dict: it is one, or the path of a JSON file. Raises ConfigError, OSError."""
    if isinstance(config, Mapping):
        return config
    try:
        found: Any = json.loads(Path(config).read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{config}: an object is expected, not {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"given twice: {', '.join(doubled)}")
    return dict(pairs)


def parse(config: Mapping[str, Any] | str | Path, *, world_size: int, model: Model | None = None) -> Config:
    """What the configuration asks for, on so many ranks. Raises ConfigError (a ValueError) that names the keys."""
    given = load(config)
    model = model or Model()
    reading = read(given, lambda name: _auto(name, model))
    values = reading.values
    remarks: list[str] = []
    zero = "zero_optimization."
    stage = values[f"{zero}stage"]
    if stage > 3:
        raise ConfigError(f"zero_optimization.stage = {stage}: there are 0, 1, 2, 3")
    if "gradient_clipping" not in reading.given:
        remarks.append("gradients are not clipped: gradient_clipping is not set (DeepSpeed clips at 1.0 since 0.19)")
    parameters_offload = _offload(values, f"{zero}offload_param.", values[f"{zero}cpu_offload_param"])
    if parameters_offload is not None and stage != 3:
        raise ConfigError(f"zero_optimization.offload_param is for stage 3, and the stage is {stage}")
    optimizer_offload = _offload(values, f"{zero}offload_optimizer.", values[f"{zero}cpu_offload"])
    if optimizer_offload is not None and stage == 0:
        raise ConfigError("zero_optimization.offload_optimizer is for stages 1 to 3, and the stage is 0")
    precision = _precision(values)
    prefetch, persistence = "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"

    def said(name: str) -> bool:
        return zero + name in reading.given

    return Config(
        batch=_batch(given, values, world_size),
        stage=stage,
        precision=precision,
        autocast=_dtype(values["torch_autocast.dtype"]) if values["torch_autocast.enabled"] else None,
        casts_inputs=precision == "float16" and values["fp16.auto_cast"],
        loss_scale=_loss_scale(values) if precision == "float16" else None,
        skips_overflow=precision == "float16" or (precision == "bfloat16" and values["bf16.check_grad_overflow"]),
        clipping=float(values["gradient_clipping"] or 0),
        communication_dtype=_dtype(values["communication_data_type"]),
        accumulation_dtype=_dtype(values["data_types.grad_accum_dtype"]),
        manages_accumulation=values["managed_gradient_accumulation"],
        bucket_elems=_at_least_one(values, f"{zero}reduce_bucket_size") if said("reduce_bucket_size") else None,
        overlap=values[f"{zero}overlap_comm"] is not False,
        prefetch_elems=values[f"{zero}{prefetch}"] if said(prefetch) else None,
        persistence_elems=values[f"{zero}{persistence}"] if said(persistence) else None,
        hpz_size=_at_least_one(values, f"{zero}zero_hpz_partition_size"),
        mics_size=_mics_size(values[f"{zero}mics_shard_size"]),
        quantized_weights=values[f"{zero}zero_quantized_weights"],
        quantized_gradients=values[f"{zero}zero_quantized_gradients"],
        error_feedback=bool(values[f"{zero}zeropp_loco_param"]),
        offload_optimizer=optimizer_offload,
        offload_parameters=parameters_offload,
        optimizer=_component(values, "optimizer"),
        scheduler=_component(values, "scheduler"),
        gathers_on_save=values[f"{zero}stage3_gather_16bit_weights_on_model_save"]
        or values[f"{zero}stage3_gather_fp16_weights_on_model_save"],
        steps_per_print=values["steps_per_print"] or None,
        tag_validation=_tag_validation(values),
        drop_last=values["dataloader_drop_last"],
        report=Report(reading.lines, tuple(remarks)),
    )


def _mics_size(value: Any) -> int:
    """0 for none, which DeepSpeed writes as -1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < -1:
        raise ConfigError(f"zero_optimization.mics_shard_size = {value!r}: a number of ranks is expected, or -1")
    return max(value, 0)


def _auto(name: str, model: Model) -> Any:
    """What Hugging Face's integration puts in the place of "auto", as far as the model says it (accelerate,
    utils/deepspeed.py: sizes from the hidden size); None leaves the default."""
    if name == "bf16.enabled":
        return None if model.dtype is None else model.dtype == "bfloat16"
    if name == "fp16.enabled":
        return None if model.dtype is None else model.dtype == "float16"
    hidden = model.hidden_size
    if hidden is None:
        return None
    return {
        "zero_optimization.reduce_bucket_size": hidden * hidden,
        "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "zero_optimization.stage3_param_persistence_threshold": 10 * hidden,
    }.get(name)


def _batch(given: Mapping[str, Any], values: Mapping[str, Any], world_size: int) -> Batch:
    """The third of the triple from the two others; from one of the two batch sizes with an accumulation of 1."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, accumulation = (values[name] for name in names)
    for name in names:
        if values[name] == 0:
            raise ConfigError(f"{name} = 0: must be at least 1")
    if train is None and micro is None:
        if not any(given.get(name) == "auto" for name in names[:2]):
            raise ConfigError(f"one of {names[0]} and {names[1]} is needed")
        return Batch(None, None, accumulation or 1)
    if train is None:
        assert micro is not None
        accumulation = accumulation or 1
        return Batch(micro * accumulation * world_size, micro, accumulation)
    if micro is None:
        accumulation = accumulation or 1
        micro = train // (accumulation * world_size)
    elif accumulation is None:
        accumulation = train // (micro * world_size)
    if train != micro * accumulation * world_size or micro == 0 or accumulation == 0:
        raise ConfigError(
            f"train_batch_size = {train} is not train_micro_batch_size_per_gpu ({micro}) x gradient_accumulation_steps "
            f"({accumulation}) x ranks ({world_size})"
        )
    return Batch(train, micro, accumulation)


def _precision(values: Mapping[str, Any]) -> str:
    if values["fp16.enabled"] and values["bf16.enabled"]:
        raise ConfigError("fp16 and bf16 are both enabled")
    return "float16" if values["fp16.enabled"] else "bfloat16" if values["bf16.enabled"] else "float32"


def _loss_scale(values: Mapping[str, Any]) -> LossScale:
    static = float(values["fp16.loss_scale"])
    if not 0 <= static < float("inf"):
        raise ConfigError(f"fp16.loss_scale = {static}: must be at least 0, where 0 is dynamic")
    return LossScale(
        static=static,
        initial=2.0 ** values["fp16.initial_scale_power"],
        window=_at_least_one(values, "fp16.loss_scale_window"),
        hysteresis=_at_least_one(values, "fp16.hysteresis"),
        consecutive=values["fp16.consecutive_hysteresis"],
        least=float(values["fp16.min_loss_scale"]),
    )


def _offload(values: Mapping[str, Any], prefix: str, old_form: bool) -> Offloaded | None:
    device = "cpu" if old_form else values[f"{prefix}device"]
    path = values[f"{prefix}nvme_path"]
    if device == "none":
        return None
    if device == "nvme" and path is None:
        raise ConfigError(f"{prefix}nvme_path is needed with {prefix}device = nvme")
    return Offloaded(path if device == "nvme" else None)


def _component(values: Mapping[str, Any], section: str) -> Component | None:
    kind = values[f"{section}.type"]
    if kind is None:
        return None
    params: Mapping[str, Any] = values[f"{section}.params"] or {}
    return Component(kind, {name: value for name, value in params.items() if value != "auto"})


def _at_least_one(values: Mapping[str, Any], name: str) -> int:
    if values[name] < 1:
        raise ConfigError(f"{name} = {values[name]}: must be at least 1")
    return values[name]


def _dtype(name: str | None) -> str | None:
    return None if name is None else DTYPE_NAMES.get(name, name)


def _tag_validation(values: Mapping[str, Any]) -> str:
    value = values["checkpoint.tag_validation"].lower()
    if value not in ("ignore", "warn", "fail"):
        raise ConfigError(f"checkpoint.tag_validation = {value}: must be Ignore, Warn or Fail")
    return value
