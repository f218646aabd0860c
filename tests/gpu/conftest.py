"""What the tests on a GPU have in common: they are skipped, with the reason, where there is none."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 240.0
ROOT = Path(__file__).resolve().parents[2]


def _gpus() -> tuple[int, str]:
    """How many GPUs torch sees, and why there is none."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        return 0, f"torch: {error}"
    if torch.version.cuda is None:
        return 0, f"no GPU to be used: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return 0, f"no GPU: torch {torch.__version__} sees none"
    return torch.cuda.device_count(), ""


@pytest.fixture(scope="session")
def gpus() -> int:
    """The number of GPUs; skips where there is none."""
    count, why = _gpus()
    if not count:
        pytest.skip(why)
    return count


@pytest.fixture(scope="session")
def cupy(gpus: int) -> Any:
    """CuPy; skips where it is missing or sees no GPU."""
    try:
        found: Any = importlib.import_module("cupy")
        found.cuda.runtime.getDeviceCount()
    except Exception as error:  # ImportError, or what CuPy raises without a driver
        pytest.skip(f"no CuPy on a GPU: {error}")
    return found


Run = Callable[..., None]


@pytest.fixture
def processes(tmp_path: Path) -> Run:
    """`processes(size, name, transport)` runs a function of programs.py on every rank, each a process of its own."""

    def run(size: int, name: str, transport: str, **environment: str) -> None:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.programs", name, transport, str(tmp_path), str(rank), str(size)],
                cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        for process, text in zip(started, said, strict=True):
            assert process.returncode == 0, text

    return run
