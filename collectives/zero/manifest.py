"""The manifest of a checkpoint: which files make it up, their checksums, and where every tensor lies.

    PATH/
      manifest.json                              the one file that makes the others a checkpoint
      3f9a...-00000-of-00002.safetensors         what rank 0 held

[Note: one rename] A save writes its shards under names that no other save has, brings them to the disk, and then puts
its manifest in the place of the last one by a rename. So whatever happens, and whenever, the manifest is the old one or
the new one, and its shards are whole. Shards that no manifest names are removed after the next save.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from collectives.zero import safetensors_file
from collectives.zero.checkpoint_errors import CheckpointError

NAME = "manifest.json"
FORMAT = "treering checkpoint"
VERSION = 1
SHARDS = "*-of-*.safetensors"


class Slice(NamedTuple):
    """Elements [begin, end) of a parameter's flat `key` tensor, under `name` in a shard."""

    parameter: str
    key: str
    begin: int
    end: int
    name: str


@dataclass(frozen=True)
class Shard:
    file: str
    bytes: int
    sha256: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Manifest:
    """`parameters` by name: shape, dtype, group, scalars (the optimizer's numbers). `aliases`: a second name of the
    same parameter to the first. `buffers` lie whole in shard 0. `optimizer` is what its `scalars()` said."""

    world_size: int
    stage: int
    parameters: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    buffers: tuple[str, ...]
    optimizer: dict[str, Any]
    extra: Any
    shards: tuple[Shard, ...]

    def slices(self) -> Iterator[tuple[Shard, Slice]]:
        """Every slice with its shard."""
        for shard in self.shards:
            for piece in shard.slices:
                yield shard, piece


def write(folder: Path, manifest: Manifest) -> None:
    """See [Note: one rename]. Raises OSError."""
    beside = folder / f"{NAME}.{os.getpid()}.tmp"
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(manifest)}, indent=1)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync(folder)  # the shards' names are on the disk before the manifest's is
        beside.replace(folder / NAME)
        sync(folder)
    finally:
        beside.unlink(missing_ok=True)
    named = {shard.file for shard in manifest.shards}
    for old in folder.glob(SHARDS):
        if old.name not in named:
            old.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint, once all of its files have the sizes it says. Raises CheckpointError."""
    path = folder / NAME
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: no checkpoint is in {folder}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    kept = cast("dict[str, Any]", found if isinstance(found, dict) else {})
    if kept.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a treering checkpoint")
    if kept.pop("version", None) != VERSION:
        raise CheckpointError(f"{path} is of another version than {VERSION}")
    try:
        stored: list[dict[str, Any]] = kept["shards"]
        shards = tuple(
            Shard(one["file"], one["bytes"], one["sha256"], tuple(Slice(*piece) for piece in one["slices"]))
            for one in stored
        )
        kept |= {"shards": shards, "buffers": tuple(kept["buffers"])}
        manifest = Manifest(**kept)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    for shard in shards:
        file = folder / shard.file
        if file.name != shard.file:
            raise CheckpointError(f"{path} names {shard.file!r}, which is not a file beside it")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != shard.bytes:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, not {shard.bytes}: it was cut or replaced")
    _check_whole(path, manifest)
    return manifest


def _check_whole(path: Path, manifest: Manifest) -> None:
    """Every element of every parameter's weight is there."""
    covered = dict.fromkeys(manifest.parameters, 0)
    for _, piece in manifest.slices():
        if piece.key == "weight" and piece.parameter in covered:
            covered[piece.parameter] += piece.end - piece.begin
    for name, about in manifest.parameters.items():
        numel = numel_of(about["shape"])
        if covered[name] != numel:
            raise CheckpointError(f"{path} is damaged: it has {covered[name]} of {numel} elements of {name}")


def numel_of(shape: Sequence[int]) -> int:
    """Elements of a tensor of this shape."""
    count = 1
    for length in shape:
        count *= length
    return count


def verify(folder: Path, shards: Sequence[Shard]) -> None:
    """Compares checksums. Raises CheckpointError with the file."""
    for shard in shards:
        file = folder / shard.file
        try:
            same = safetensors_file.sha256(file) == shard.sha256
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        if not same:
            raise CheckpointError(f"{file} was altered: its checksum is not the one in {folder / NAME}")


def by_parameter(manifest: Manifest) -> Mapping[str, Sequence[tuple[Shard, Slice]]]:
    """The slices of each parameter."""
    found: dict[str, list[tuple[Shard, Slice]]] = {name: [] for name in manifest.parameters}
    for shard, piece in manifest.slices():
        if piece.parameter in found:
            found[piece.parameter].append((shard, piece))
    return found
