"""Emulated clusters need Linux, root and iproute2. Without, these tests are skipped, but fail where CI=true is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.emulate import EmulatedCluster, EmulationError
from tests.cluster.jobs import Job


@pytest.fixture(scope="session", autouse=True)
def _possible() -> None:
    try:
        EmulatedCluster(hosts=1, link_bytes_per_s=25e6).close()
    except EmulationError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """`start(cluster, program, {rank: {variable: value or None}})` runs a program of programs.py as every rank."""
    jobs: list[Job] = []

    def begin(cluster: EmulatedCluster, program: str, changes: dict[int, dict[str, Any]] | None = None) -> Job:
        jobs.append(Job(cluster, program, tmp_path / f"store{len(jobs)}", changes or {}))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()
