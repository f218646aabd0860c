"""MPI keeps the contract of transports, under MPICH and under Open MPI."""

from __future__ import annotations

import pytest

from tests.mpi.test_mpi_transport import mpiexec


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_mpi_keeps_the_contract(name: str) -> None:
    report = mpiexec(name, 3, "-m", "tests.mpi.conformance_rank")
    assert "not checked  a rank that dies, because mpiexec ends the whole job with it" in report
    assert ", 0 failed, 1 not checked, " in report


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_a_large_message(name: str) -> None:
    assert "1 passed, 0 failed" in mpiexec(name, 2, "-m", "tests.mpi.conformance_rank", "big")
