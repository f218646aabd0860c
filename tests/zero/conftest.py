"""The `ranks` fixture of tests/processes, forked from one that has torch loaded, and `threads` of tests/inproc."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def _conftest(folder: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_processes = _conftest("processes")
ranks, _rank_server = _processes.ranks, _processes._rank_server
threads = _conftest("inproc").threads
