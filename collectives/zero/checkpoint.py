"""Saving and loading a ZeroOptimizer and its model, at any number of ranks and any stage, to the same bits.

Every rank writes the pieces it is the one to save; all of a parameter's values are flat tensors, and the manifest says
which elements of which parameter each is. So a rank that loads reads what it needs wherever that lies.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from collectives.exchange import broadcast_json, gather_json
from collectives.zero import manifest as manifests
from collectives.zero import safetensors_file
from collectives.zero.checkpoint_errors import CheckpointError
from collectives.zero.manifest import Manifest, Shard, Slice
from collectives.zero.safetensors_file import Entry
from collectives.zero.store import OffloadError

torch: Any = importlib.import_module("torch")
Tensor = Any
WEIGHT = "weight"
BUFFER = "buffer:"


def save(optimizer: Any, path: str | Path, extra: Any = None) -> None:
    """Writes a checkpoint to the folder `path`, in the place of one that is there. All ranks call it.

    `extra` is anything JSON can hold, of rank 0: a step, a schedule's state. Until the checkpoint is complete the one
    before stays; see [Note: one rename] in manifest.py. Raises CheckpointError on every rank when one cannot write.
    """
    comm, folder = optimizer.comm, Path(path)
    json.dumps(extra)  # raises before anything is written
    name = broadcast_json(comm, uuid.uuid4().hex[:16])

    def write() -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        entries, slices = _entries(optimizer)
        file = f"{name}-{comm.rank:05}-of-{comm.size:05}.safetensors"
        written = safetensors_file.write(folder / file, entries)
        scalars = {piece.parameter.name: _plain(piece.scalars()) for piece in optimizer.pieces() if piece.primary}
        return {"shard": [file, written.bytes, written.sha256, slices], "scalars": scalars}

    told = _together(comm, folder, write)
    scalars: dict[str, Any] = {}
    for one in told:
        scalars |= one["scalars"]
    _together(comm, folder, lambda: _finish(optimizer, folder, told, scalars, extra) if comm.rank == 0 else None)


def _finish(optimizer: Any, folder: Path, told: Sequence[Any], scalars: Mapping[str, Any], extra: Any) -> None:
    model = optimizer.model
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    manifests.write(
        folder,
        Manifest(
            world_size=optimizer.comm.size,
            stage=optimizer.stage,
            parameters={
                p.name: {
                    "shape": list(p.shape),
                    "dtype": str(p.dtype).removeprefix("torch."),
                    "group": p.group,
                    "scalars": scalars.get(p.name, {}),
                }
                for p in optimizer.parameters
            },
            aliases={name: first[id(parameter)] for name, parameter in every.items() if first[id(parameter)] != name},
            buffers=tuple(_buffers(model)),
            optimizer=_plain(optimizer.scalars()),
            extra=extra,
            shards=tuple(
                Shard(file, nbytes, digest, tuple(Slice(*piece) for piece in slices))
                for file, nbytes, digest, slices in (one["shard"] for one in told)
            ),
        ),
    )


def _entries(optimizer: Any) -> tuple[list[Entry], list[Slice]]:
    """What this rank writes: its primary pieces, neighbours in one tensor; on rank 0 buffers, and what no rank holds
    in pieces."""
    entries: list[Entry] = []
    slices: list[Slice] = []

    def add(parameter: str, key: str, begin: int, end: int, dtype: Any, parts: Any) -> None:
        name = f"{key}:{parameter}:{begin}"
        entries.append(Entry(name, dtype, (end - begin,), parts))
        slices.append(Slice(parameter, key, begin, end, name))

    for run in _runs([piece for piece in optimizer.pieces() if piece.primary]):
        for key in run[0].keys():  # noqa: SIM118 - a piece is no dict
            dtype = run[0].read(key).dtype
            add(run[0].parameter.name, key, run[0].begin, run[-1].end, dtype, _read(run, key))
    if optimizer.comm.rank == 0:
        whole = dict(optimizer.model.named_parameters())
        for p in _beside_pieces(optimizer):
            add(p.name, WEIGHT, 0, p.numel, p.dtype, [whole[p.name]])
        for name, buffer in _buffers(optimizer.model).items():
            entries.append(Entry(BUFFER + name, buffer.dtype, tuple(buffer.shape), [buffer]))
    return entries, slices


def _read(run: Sequence[Any], key: str) -> Iterator[Tensor]:
    """One piece at a time: what is offloaded need not fit into memory all at once."""
    for piece in run:
        yield piece.read(key)


def _runs(pieces: Sequence[Any]) -> Iterator[list[Any]]:
    """Pieces that follow one another in one parameter and have the same tensors."""
    run: list[Any] = []
    for piece in sorted(pieces, key=lambda piece: (piece.parameter.index, piece.begin)):
        if (
            run
            and run[-1].parameter is piece.parameter
            and run[-1].end == piece.begin
            and run[0].keys() == piece.keys()
        ):
            run.append(piece)
            continue
        if run:
            yield run
        run = [piece]
    if run:
        yield run


def _beside_pieces(optimizer: Any) -> list[Any]:
    """Parameters that are whole on every rank and in no rank's pieces: those that are not trained, below stage 3; and
    those without elements."""
    return [p for p in optimizer.parameters if (p.group < 0 and optimizer.stage < 3) or p.numel == 0]


def _buffers(model: Any) -> dict[str, Tensor]:
    """Those that a state dict has."""
    kept = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def load(optimizer: Any, path: str | Path, *, weights_only: bool = False, strict: bool = True) -> Any:
    """Reads a checkpoint of any number of ranks and any stage into the optimizer and its model. All ranks call it.

    `weights_only` leaves the optimizer's state and options as they are. Without `strict`, parameters and buffers that
    only the model or only the checkpoint has are left alone, and so are the options of other parameter groups.
    Returns what was given to `save` as `extra`. Raises CheckpointError, on every rank, for files that are missing, cut
    or altered, and for a model with other parameters; then nothing has been changed.
    """
    comm, folder = optimizer.comm, Path(path)

    def check() -> Manifest:
        found = manifests.read(folder)
        _check_model(optimizer, found, folder, strict, weights_only)
        manifests.verify(folder, found.shards[comm.rank :: comm.size])  # the ranks share the work
        return found

    found: Manifest = _here(comm, folder, check)
    files = {shard.file: safetensors_file.opened(folder / shard.file) for shard in found.shards}
    where = manifests.by_parameter(found)
    with torch.no_grad():
        for piece in optimizer.pieces():
            name = piece.parameter.name
            if name not in found.parameters:
                continue
            trained = found.parameters[name]["group"] >= 0 and piece.parameter.group >= 0 and not weights_only
            for key in dict.fromkeys(part.key for _, part in where[name]):
                if key == WEIGHT or trained:
                    piece.write(key, gathered(files, where[name], key, piece.begin, piece.end))
            if trained:
                piece.set_scalars(found.parameters[name]["scalars"])
        whole = dict(optimizer.model.named_parameters())
        for p in _beside_pieces(optimizer):
            if p.name not in found.parameters:
                continue
            whole[p.name].copy_(gathered(files, where[p.name], WEIGHT, 0, p.numel).view(p.shape))
        buffers = _buffers(optimizer.model)
        for name in found.buffers:
            if name not in buffers:
                continue
            buffers[name].copy_(files[found.shards[0].file].get_tensor(BUFFER + name))
    groups = len(found.optimizer["groups"]), len(optimizer.param_groups)
    if not weights_only and groups[0] == groups[1]:
        optimizer.set_scalars(_as_there(found.optimizer, optimizer.scalars()))
    optimizer.refresh()
    return found.extra


def gathered(files: Mapping[str, Any], where: Sequence[tuple[Shard, Slice]], key: str, begin: int, end: int) -> Tensor:
    """Elements [begin, end) of a parameter's flat tensor, from all shards that have some."""
    parts: list[tuple[int, Tensor]] = []
    for shard, part in where:
        first, last = max(begin, part.begin), min(end, part.end)
        if part.key == key and (first < last or begin == end):
            stored = files[shard.file].get_slice(part.name)
            parts.append((first, stored[first - part.begin : last - part.begin]))
    ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
    assert sum(tensor.numel() for tensor in ordered) == end - begin
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered)


def _check_model(optimizer: Any, found: Manifest, folder: Path, strict: bool, weights_only: bool) -> None:
    mine = {p.name: list(p.shape) for p in optimizer.parameters}
    theirs = {name: about["shape"] for name, about in found.parameters.items()}
    for name in [*mine, *theirs]:
        if not strict and (name not in theirs or name not in mine):
            continue
        if name not in theirs:
            raise CheckpointError(f"{folder}: the model has a parameter {name}, which the checkpoint has not")
        if name not in mine:
            raise CheckpointError(f"{folder}: the checkpoint has a parameter {name}, which the model has not")
        if mine[name] != theirs[name]:
            raise CheckpointError(f"{folder}: {name} is {theirs[name]} in the checkpoint, {mine[name]} in the model")
    if not strict:
        return
    if differ := set(found.buffers) ^ set(_buffers(optimizer.model)):
        raise CheckpointError(f"{folder}: the buffer {min(differ)} is in the model or the checkpoint, not in both")
    groups = len(found.optimizer.get("groups", [])), len(optimizer.param_groups)
    if groups[0] != groups[1] and not weights_only:
        raise CheckpointError(f"{folder}: the checkpoint has {groups[0]} parameter groups, the optimizer {groups[1]}")


def _here(comm: Any, folder: Path, work: Callable[[], Any]) -> Any:
    """Does the work on every rank; if it fails on any, raises on all. Returns this rank's result."""
    result, error = None, ""
    try:
        result = work()
    except OffloadError:  # the others know already that this rank is lost
        raise
    except (CheckpointError, OSError, TypeError) as caught:
        error = str(caught)
    errors = gather_json(comm, error)
    for rank, said in enumerate(errors):
        if said:
            raise CheckpointError(said if str(folder) in said else f"{folder}: rank {rank}: {said}")
    return result


def _together(comm: Any, folder: Path, work: Callable[[], Any]) -> Sequence[Any]:
    """As `_here`, but returns what all ranks found, as JSON has it."""
    return gather_json(comm, _here(comm, folder, work))


def _plain(value: Any) -> Any:
    """As JSON has it: tensors of one element are numbers."""
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast("Sequence[Any]", value)]
    return value


def _as_there(saved: Any, there: Any) -> Any:
    """What was saved, with tuples and tensors where there are such now."""
    if isinstance(there, torch.Tensor):
        return torch.tensor(saved, dtype=there.dtype, device=there.device)
    if isinstance(saved, dict):
        now = cast("dict[str, Any]", there if isinstance(there, dict) else {})
        return {name: _as_there(value, now.get(name)) for name, value in cast("dict[str, Any]", saved).items()}
    if isinstance(saved, list):
        values = cast("list[Any]", saved)
        nows = cast("Sequence[Any]", there if isinstance(there, list | tuple) else ())
        made = [_as_there(value, nows[i] if i < len(nows) else None) for i, value in enumerate(values)]
        return tuple(made) if isinstance(there, tuple) else made
    return saved
