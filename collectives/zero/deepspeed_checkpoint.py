"""Checkpoints that DeepSpeed has written at stages 1 to 3: their fp32 weights, without DeepSpeed.

What lies in the folder of a tag, from N ranks:

    mp_rank_00_model_states.pt                       names, shapes, buffers; at stage 3 one for each rank instead,
    zero_pp_rank_R_mp_rank_00_model_states.pt        with its share of frozen parameters
    [bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt rank R's share of master weights and of the optimizer's states

At stages 1 and 2 a parameter group is one vector, the parameters end to end, cut into N equal parts. At stage 3 each
parameter is cut into N equal parts, the last of them padded, and a rank's parts lie end to end. The format is that of
DeepSpeed 0.12 to 0.19 (deepspeed/utils/zero_to_fp32.py).

Nothing in a file is executed: torch's restricted unpickler reads it, and the few classes of DeepSpeed's that it may
name become inert objects.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from collectives.zero.checkpoint_errors import CheckpointError

torch: Any = importlib.import_module("torch")
Tensor = Any


class _Inert:
    """Stands for a class of DeepSpeed's; takes any state and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        pass


_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.utils.tensor_fragment.tensor_fragment",
)
_SAFE: Any = [(int, "deepspeed.runtime.zero.config.ZeroStageEnum"), *((_Inert, name) for name in _CLASSES)]

_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL_FILE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")


def read_deepspeed(path: str | Path, tag: str | None = None) -> dict[str, Tensor]:
    """The whole model's weights by name, in fp32, with frozen and shared parameters and the buffers.

    `path` is the folder given to DeepSpeed's save_checkpoint, or the folder of a tag in it; without `tag` the file
    `latest` says which. Raises CheckpointError, with the file, for what is missing, damaged, or holds other things
    than such a checkpoint does.
    """
    folder = _folder(Path(path), tag)
    shards = _ranked(folder, _OPTIMIZER_FILE)
    if not shards:
        raise CheckpointError(f"{folder} has no zero_pp_rank_*_optim_states.pt: not a ZeRO checkpoint of DeepSpeed's")
    optimizers = [_section(file, "optimizer_state_dict") for file in shards]
    stage = int(_entry(shards[0], optimizers[0], "zero_stage"))
    ranks = _entry(shards[0], optimizers[0], "partition_count")
    _complete(folder, shards, max(cast("list[int]", ranks)) if isinstance(ranks, list) else int(ranks))
    if stage == 3:
        model_files = _ranked(folder, _MODEL_FILE)
        _complete(folder, model_files, len(shards))
    else:
        model_files = [folder / "mp_rank_00_model_states.pt"]
    models = [_load(file) for file in model_files]
    first: Mapping[str, Any] = models[0]
    shapes: list[Mapping[str, Any]] = _entry(model_files[0], first, "param_shapes")
    names = set(_entry(model_files[0], first, "buffer_names"))
    module: Mapping[str, Any] = _entry(model_files[0], first, "module")
    # Up to stage 2 the module is whole, and the one place of frozen parameters that stage 1 saves.
    weights = {name: _fp32(value) for name, value in module.items() if name in names or stage < 3}
    weights |= _frozen(models, stage)
    if stage == 3:
        parts = [_flat(_entry(file, state, "fp32_flat_groups")) for file, state in zip(shards, optimizers, strict=True)]
        together = {name: shape for group in shapes for name, shape in group.items()}
        weights |= _by_parameter(together, parts, folder)
    else:
        groups = [
            _entry(file, state, "single_partition_of_fp32_groups")
            for file, state in zip(shards, optimizers, strict=True)
        ]
        paddings = optimizers[0].get("param_alignment_paddings") or [[0] * len(group) for group in shapes]
        for number, group in enumerate(shapes):
            whole = torch.cat([group_parts[number] for group_parts in groups])
            weights |= _end_to_end(group, whole, paddings[number], folder)
    for name, same in dict(first.get("shared_params") or {}).items():
        if same in weights:
            weights[name] = weights[same]
    return weights


def _folder(path: Path, tag: str | None) -> Path:
    if tag is None and (path / "latest").is_file():
        tag = (path / "latest").read_text().strip()
    folder = path if tag is None else path / tag
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there" + (f": the file {path / 'latest'} names it" if tag else ""))
    return folder


def _ranked(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    found: dict[int, Path] = {}
    for file in folder.iterdir():
        if match := pattern.fullmatch(file.name):
            if int(match[2]) != 0:
                raise CheckpointError(f"{file}: checkpoints of models that are split over ranks cannot be read")
            found[int(match[1])] = file
    return [found[rank] for rank in sorted(found)]


def _complete(folder: Path, files: Sequence[Path], ranks: int) -> None:
    there = {int(match[1]) for file in files if (match := re.search(r"zero_pp_rank_(\d+)_", file.name))}
    missing = sorted(set(range(ranks)) - there)
    if missing:
        kind = re.sub(r".*mp_rank_\d+", "", files[0].name) if files else "_model_states.pt"
        which = ", ".join(map(str, missing))
        raise CheckpointError(f"{folder}: of {ranks} ranks, the {kind.strip('_')} of rank {which} is missing")


def _load(file: Path) -> dict[str, Any]:
    """What is in one file. Raises CheckpointError with its name."""
    try:
        with torch.serialization.safe_globals(_SAFE):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise CheckpointError(f"{file} cannot be read: {said}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds no state of DeepSpeed's")
    return cast("dict[str, Any]", loaded)


def _entry(file: Path, state: Mapping[str, Any], name: str) -> Any:
    if name not in state:
        raise CheckpointError(f"{file} has no {name}: not a ZeRO checkpoint of DeepSpeed's")
    return state[name]


def _section(file: Path, name: str) -> dict[str, Any]:
    return _entry(file, _load(file), name)


def _fp32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _frozen(models: Sequence[Mapping[str, Any]], stage: int) -> dict[str, Tensor]:
    shapes: Mapping[str, Any] = models[0].get("frozen_param_shapes") or {}
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        parts = [model["frozen_param_fragments"][name] for model in (models if stage == 3 else models[:1])]
        found[name] = _fp32(torch.cat([part.reshape(-1) for part in parts])[: shape.numel()].view(shape))
    return found


def _flat(groups: Any) -> Tensor:
    vectors = cast("list[Any]", groups if isinstance(groups, list) else [groups])
    return torch.cat([vector.reshape(-1) for vector in vectors])


def _end_to_end(shapes: Mapping[str, Any], whole: Tensor, paddings: Sequence[int], folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    begin = 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        found[name] = _cut(whole, begin, torch.Size(shape), name, folder)
        begin += torch.Size(shape).numel() + padding
    return found


def _by_parameter(shapes: Mapping[str, Any], parts: Sequence[Tensor], folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    begin = 0
    for name, shape in shapes.items():
        share = -(-torch.Size(shape).numel() // len(parts))
        whole = torch.cat([_cut(part, begin, torch.Size([share]), name, folder) for part in parts])
        found[name] = whole[: torch.Size(shape).numel()].view(shape)
        begin += share
    return found


def _cut(flat: Tensor, begin: int, shape: Any, name: str, folder: Path) -> Tensor:
    if begin + shape.numel() > flat.numel():
        raise CheckpointError(f"{folder}: the optimizer's files end before {name}")
    return flat[begin : begin + shape.numel()].view(shape).clone()
