"""A plain state dict out of a checkpoint: ours at any stage, or one that DeepSpeed wrote."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from collectives.zero import manifest as manifests
from collectives.zero import safetensors_file
from collectives.zero.checkpoint import BUFFER, WEIGHT, gathered
from collectives.zero.checkpoint_errors import CheckpointError
from collectives.zero.deepspeed_checkpoint import read_deepspeed

torch: Any = importlib.import_module("torch")
Tensor = Any
SUFFIXES = (".safetensors", ".pt")


def state_dict(path: str | Path) -> dict[str, Tensor]:
    """What `model.load_state_dict` takes: all parameters, tied ones under each of their names, and the buffers.

    Weights have the dtype they were updated in: float32 for a 16-bit model with master weights. Checksums are compared.
    Raises CheckpointError with the file that is missing, cut or altered.
    """
    folder = Path(path)
    if not (folder / manifests.NAME).exists() and ((folder / "latest").exists() or [*folder.glob("*_optim_states.pt")]):
        return read_deepspeed(folder)
    found = manifests.read(folder)
    manifests.verify(folder, found.shards)
    files = {shard.file: safetensors_file.opened(folder / shard.file) for shard in found.shards}
    where = manifests.by_parameter(found)
    whole: dict[str, Tensor] = {}
    for name, about in found.parameters.items():
        numel = manifests.numel_of(about["shape"])
        whole[name] = gathered(files, where[name], WEIGHT, 0, numel).view(about["shape"])
    for name in found.buffers:
        whole[name] = files[found.shards[0].file].get_tensor(BUFFER + name)
    for name, first in found.aliases.items():
        whole[name] = whole[first]
    return whole


def consolidate(path: str | Path, output: str | Path) -> None:
    """Writes `state_dict(path)` to a new file: .safetensors (tied parameters in it once for each name), or .pt, which
    torch.load reads. Raises CheckpointError, ValueError for another suffix, FileExistsError, OSError."""
    target = Path(output)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target}: the name must end with one of {', '.join(SUFFIXES)}")
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    whole = state_dict(path)
    beside = target.with_name(f"{target.name}.tmp")
    try:
        write_state_dict(beside, whole, as_safetensors=target.suffix != ".pt")
        beside.rename(target)
    finally:
        beside.unlink(missing_ok=True)


def write_state_dict(path: Path, whole: dict[str, Tensor], *, as_safetensors: bool) -> None:
    """Writes it to a file of safetensors, or one of torch's."""
    if as_safetensors:
        entries = [safetensors_file.Entry(name, v.dtype, tuple(v.shape), [v]) for name, v in whole.items()]
        safetensors_file.write(path, entries)
    else:
        torch.save(whole, path)


__all__ = ["CheckpointError", "consolidate", "state_dict", "write_state_dict"]
