"""Ranks of an emulated cluster, one process each, and what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.emulate import EmulatedCluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0  # for what is expected to happen at once


class Job:
    """A program of programs.py as every rank; `changes` are variables that differ for a rank, None to unset one."""

    def __init__(
        self, cluster: EmulatedCluster, program: str, directory: Path, changes: dict[int, dict[str, Any]]
    ) -> None:
        directory.mkdir()
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(cluster.size):
            environment = {**os.environ, **cluster.environment(rank, str(directory)), **changes.get(rank, {})}
            self.processes.append(
                subprocess.Popen(
                    [*cluster.command(rank), sys.executable, "-m", "tests.cluster.programs", program],
                    cwd=ROOT,
                    env={name: value for name, value in environment.items() if value is not None},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def line(self, rank: int) -> str:
        """The next line of the rank; every program ends at a deadline of its own, and then this is empty."""
        out = self.processes[rank].stdout
        assert out is not None
        return out.readline().strip()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=PATIENCE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as the condition holds; fails the test when it does not come to that."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not come true"
        time.sleep(0.002)
