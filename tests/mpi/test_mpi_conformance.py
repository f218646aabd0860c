"""MPI keeps the contract of transports, under MPICH and under Open MPI."""

from __future__ import annotations

import pytest

from tests.mpi.test_mpi_transport import mpiexec


@pytest.mark.parametrize("name", ["mpich", "openmpi"])
def test_mpi_keeps_the_contract(name: str) -> None:
    report = mpiexec(name, 3, "-m", "tests.mpi.conformance_rank")
    assert "not checked  a rank that dies, because mpiexec ends the whole job with it" in report
    assert ", 0 failed, 2 not checked, " in report
