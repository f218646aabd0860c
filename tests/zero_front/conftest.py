"""The `ranks` fixture of tests/processes: real processes, forked from one that has torch loaded already."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "processes" / "conftest.py"
_spec = importlib.util.spec_from_file_location("processes_conftest", _path)
assert _spec is not None
assert _spec.loader is not None
_processes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_processes)

ranks, _rank_server = _processes.ranks, _processes._rank_server
