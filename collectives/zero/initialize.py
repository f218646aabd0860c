"""`initialize`: the call by which a training script written for DeepSpeed begins, with DeepSpeed's JSON."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from collectives.connect import connect
from collectives.zero.config import Component, Config, Model, Offloaded, parse
from collectives.zero.config_report import ConfigError
from collectives.zero.deepspeed_loss_scale import DeepSpeedLossScale
from collectives.zero.engine import Engine
from collectives.zero.offload import HOST, Offload
from collectives.zero.optimizer import ZeroOptimizer
from collectives.zero.schedules import TYPES as SCHEDULES

torch: Any = importlib.import_module("torch")

_OF_DEEPSPEEDS_ADAM = ("torch_adam", "adam_w_mode", "fp32_optimizer_states", "bias_correction")


def initialize(
    args: Any = None,
    model: Any = None,
    optimizer: Any = None,
    model_parameters: Iterable[Any] | None = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = 29500,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[[Any], Any] | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    mesh_param: Any = None,
    config_params: Mapping[str, Any] | str | Path | None = None,
    *,
    comm: Any = None,
) -> tuple[Engine, Any, Any, Any]:
    """Returns (engine, optimizer, data loader, schedule), as `deepspeed.initialize` does; the last two may be None.

    `optimizer` is an optimizer of torch's over the model's parameters, or a function that makes one of parameters;
    without it the config names one. `lr_scheduler` is a schedule on that optimizer, or a function that makes one.
    `config` is a dict or the path of a JSON file. `comm` is ours: the ranks, `collectives.connect()` by default;
    `distributed_port` and `dist_init_required` are not needed. Rank 0 prints what becomes of each key.

    Raises ConfigError (a ValueError) for a config that cannot be followed, ValueError and TypeError for arguments that
    make no sense.
    """
    if model is None:
        raise ValueError("initialize needs a model")
    if mpu is not None or mesh_param is not None:
        raise ValueError("mpu and mesh_param are for models split over ranks, which are not supported")
    given = next((c for c in (config, config_params, getattr(args, "deepspeed_config", None)) if c is not None), None)
    if given is None:
        raise ValueError("initialize needs config=, or args with a deepspeed_config")
    comm = connect() if comm is None else comm
    found = parse(given, world_size=comm.size, model=_about(model))
    movement = _movement(found, comm.size)
    if found.precision != "float32":
        model.to(getattr(torch, found.precision))  # in place: parameters stay the same objects
    kind, groups, options = _optimizer(found.optimizer, optimizer, model, model_parameters)
    settings = {**_settings(found, model), **movement}
    made: Any = ZeroOptimizer(model, kind, stage=found.stage, comm=comm, params=groups, **settings, **options)
    schedule = _schedule(found.scheduler, lr_scheduler, made)
    engine = Engine(model, made, schedule, found)
    engine.training_dataloader = _data_loader(training_data, collate_fn, found, comm)
    if comm.rank == 0:
        print(found.report, file=sys.stderr)
    return engine, made, engine.training_dataloader, schedule


def _about(model: Any) -> Model:
    config = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", None) or max(getattr(config, "hidden_sizes", None) or [0]) or None
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    return Model(hidden, dtypes.pop() if len(dtypes) == 1 else None)


def _movement(config: Config, ranks: int) -> dict[str, Any]:
    """How gradients and parameters move. Raises ConfigError for keys that do not fit ranks, stage or others."""
    zero = "zero_optimization."
    hpz, mics = ("zero_hpz_partition_size", config.hpz_size), ("mics_shard_size", config.mics_size)
    for name, size in (hpz, mics):
        if size > 1 and ranks % size:
            raise ConfigError(f"{zero}{name} = {size} does not divide the {ranks} ranks")
    for name, asked in ((hpz[0], config.hpz_size > 1), ("zero_quantized_weights", config.quantized_weights)):
        if asked and config.stage != 3:
            raise ConfigError(f"{zero}{name} is for stage 3, and the stage is {config.stage}")
    for name, asked in ((hpz[0], config.hpz_size > 1), ("zero_quantized_gradients", config.quantized_gradients)):
        if asked and config.mics_size > 0:
            raise ConfigError(f"{zero}{mics[0]} and {name} do not go together")
    return {
        "partition": config.mics_size or None,
        "secondary": config.hpz_size if config.hpz_size > 1 else None,
        "quantized_weights": 8 if config.quantized_weights else None,
        "quantized_gradients": 4 if config.quantized_gradients else None,
        "error_feedback": config.error_feedback,
    }


def _settings(config: Config, model: Any) -> dict[str, Any]:
    """Sizes are elements there, bytes here. What the config does not say keeps the optimizer's own default."""
    item = next(model.parameters()).element_size()
    sizes = {
        "bucket_bytes": config.bucket_elems,
        "prefetch_bytes": config.prefetch_elems,
        "persistence_bytes": config.persistence_elems,
    }
    settings: dict[str, Any] = {name: elems * item for name, elems in sizes.items() if elems is not None}
    settings |= {"overlap": config.overlap, "offload": _offload(config)}
    reduce_dtype = config.communication_dtype or config.accumulation_dtype
    if reduce_dtype is not None:
        settings["reduce_dtype"] = getattr(torch, reduce_dtype)
    scale = config.loss_scale
    if scale is not None:
        settings["loss_scale"] = scale.static or DeepSpeedLossScale(
            max(scale.initial, scale.least), scale.window,
            hysteresis=scale.hysteresis, consecutive=scale.consecutive, least=scale.least,
        )  # fmt: skip
    return settings


def _offload(config: Config) -> Offload:
    """The reduced gradients go with the optimizer, as there."""

    def place(asked: Offloaded | None) -> str | None:
        if asked is None or asked.path is None:
            return None if asked is None else HOST
        with contextlib.suppress(OSError):  # then it says so when it is opened
            Path(asked.path).mkdir(parents=True, exist_ok=True)
        return asked.path

    optimizer, parameters = place(config.offload_optimizer), place(config.offload_parameters)
    return Offload(optimizer, optimizer if config.stage >= 2 else None, parameters)


def _optimizer(
    named: Component | None, given: Any, model: Any, parameters: Iterable[Any] | None
) -> tuple[Any, list[Any], dict[str, Any]]:
    """The class, the parameter groups, and the arguments of the optimizer to be."""
    trained = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    if given is not None and not isinstance(given, torch.optim.Optimizer):
        if not callable(given):
            raise TypeError(f"optimizer is {type(given).__name__}, neither an optimizer nor a function that makes one")
        given = given(trained)
    if given is not None:
        kind: Any = given.__class__
        accepted = inspect.signature(kind).parameters
        options: dict[str, Any] = {name: value for name, value in given.defaults.items() if name in accepted}
        return kind, [dict(group) for group in given.param_groups], options
    if named is None:
        raise ConfigError("no optimizer: pass optimizer=, or name one in the config")
    kind, options = optimizer_of(named)
    return kind, trained, options


def optimizer_of(named: Component) -> tuple[Any, dict[str, Any]]:
    """torch's class of DeepSpeed's name, and its arguments. "Adam" is AdamW unless adam_w_mode is false, as there."""
    options = dict(named.params)
    if "max_grad_norm" in options:
        raise ConfigError("optimizer.params.max_grad_norm: gradient_clipping is the key for it")
    name = named.type
    if name.lower() in ("adam", "adamw"):
        decoupled = name.lower() == "adamw" or options.get("adam_w_mode", True)
        if options.get("bias_correction", True) is not True:
            raise ConfigError("optimizer.params.bias_correction = false: not supported")
        options = {key: value for key, value in options.items() if key not in _OF_DEEPSPEEDS_ADAM}
        name = "AdamW" if decoupled else "Adam"
    by_name = {key.lower(): key for key in dir(torch.optim) if isinstance(getattr(torch.optim, key), type)}
    if name.lower() not in by_name or name.lower() == "optimizer":
        raise ConfigError(f"optimizer.type = {named.type}: torch.optim has no such optimizer")
    kind = getattr(torch.optim, by_name[name.lower()])
    if unknown := set(options) - set(inspect.signature(kind).parameters):
        raise ConfigError(f"optimizer.params.{min(unknown)}: {kind.__name__} has no such argument")
    return kind, {key: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for key, v in options.items()}


def _schedule(named: Component | None, given: Any, optimizer: Any) -> Any:
    if given is not None:
        if hasattr(given, "step"):
            given.optimizer = optimizer  # it was made for the optimizer whose groups this one has taken over
            return given
        return given(optimizer)
    if named is None:
        return None
    if named.type in SCHEDULES:
        make = SCHEDULES[named.type]
    else:
        make = getattr(torch.optim.lr_scheduler, named.type, None)
        if make is None:
            known = ", ".join(SCHEDULES)
            raise ConfigError(f"scheduler.type = {named.type}: neither {known} nor one of torch.optim.lr_scheduler")
    try:
        return make(optimizer, **named.params)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scheduler.params: {error}") from None


def _data_loader(data: Any, collate_fn: Any, config: Config, comm: Any) -> Any:
    if data is None:
        return None
    if config.batch.micro is None:
        raise ConfigError("training_data needs train_micro_batch_size_per_gpu")
    loading = torch.utils.data
    sampler = loading.distributed.DistributedSampler(data, num_replicas=comm.size, rank=comm.rank)
    return loading.DataLoader(
        data, batch_size=config.batch.micro, sampler=sampler, collate_fn=collate_fn, drop_last=config.drop_last
    )
