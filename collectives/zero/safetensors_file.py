"""Safetensors files, written tensor by tensor without a copy of the whole, and read slice by slice.

The format is eight bytes of length, a JSON header with dtype, shape and place of each tensor, and the bytes
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

torch: Any = importlib.import_module("torch")
Tensor = Any

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor to write: its parts follow one another, as bytes, and are asked for only then."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    parts: Iterable[Tensor]


class Written(NamedTuple):
    bytes: int
    sha256: str


def write(path: Path, entries: Iterable[Entry]) -> Written:
    """Write a new file and bring it to the disk. Raises OSError, and FileExistsError where there is one."""
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        nbytes = entry.dtype.itemsize * torch.Size(entry.shape).numel()
        name = str(entry.dtype).removeprefix("torch.")
        if name not in CODES:
            raise TypeError(f"{entry.name}: {name} has no place in safetensors files")
        header[entry.name] = {"dtype": CODES[name], "shape": list(entry.shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, count = hashlib.sha256(), 0
    with path.open("xb") as file:
        for data in (len(text).to_bytes(8, "little"), text, *_bytes(entries)):
            digest.update(data)
            file.write(data)
            count += len(data)
        file.flush()
        os.fsync(file.fileno())
    assert count == 8 + len(text) + at, f"{path}: parts do not make up their tensors"
    return Written(count, digest.hexdigest())


def _bytes(entries: Iterable[Entry]) -> Iterator[Any]:
    for entry in entries:
        for part in entry.parts:
            if part.numel():
                flat = part.detach().to("cpu").contiguous().reshape(-1)
                yield memoryview(flat.view(torch.uint8).numpy())


def sha256(path: Path) -> str:
    """Of a whole file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def opened(path: Path) -> Any:
    """safetensors' own reader, which maps the file. Raises what that raises."""
    return importlib.import_module("safetensors").safe_open(str(path), framework="pt")
