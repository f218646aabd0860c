"""How it is found out whether an MPI takes CUDA memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transports import mpi_cuda

OPEN_MPI = 'extern "C" int MPIX_Query_cuda_support(void) { return %d; }'
MPICH = 'extern "C" int MPIX_GPU_query_support(int type, int* found) { *found = type == 0 && %d; return 0; }'
NEITHER = 'extern "C" int unrelated(void) { return %d; }'


def made_up(folder: Path, source: str, kinds: str | None) -> Any:
    """As much of mpi4py.MPI as is asked."""
    written, library = folder / "mpi.cpp", folder / "mpi.so"
    written.write_text(source)
    subprocess.run(["g++", "-shared", "-fPIC", str(written), "-o", str(library)], check=True, timeout=60)
    info = SimpleNamespace(Get=lambda key: kinds if key == "mpi_memory_alloc_kinds" else None, Free=lambda: None)
    return SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_info=lambda: info), __file__=str(library))


@pytest.mark.parametrize(
    ("source", "kinds", "wanted"),
    [
        (OPEN_MPI % 1, None, True),
        (OPEN_MPI % 0, None, False),
        (MPICH % 1, None, True),
        (MPICH % 0, None, False),
        (NEITHER % 1, None, False),
        (NEITHER % 1, "system,mpi,cuda:device", True),
        (NEITHER % 1, "system,mpi", False),
    ],
)
def test_the_mpi_is_asked(
    source: str, kinds: str | None, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpi = made_up(tmp_path, source, kinds)
    monkeypatch.setattr(mpi_cuda, "find_spec", lambda _: None)
    assert not mpi_cuda.takes_cuda(mpi)  # without CuPy there is nothing to reckon with
    monkeypatch.setattr(mpi_cuda, "find_spec", lambda _: object())
    assert mpi_cuda.takes_cuda(mpi) == wanted
