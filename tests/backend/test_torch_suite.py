"""A part of torch's own suite, on treering in Gloo's place; `make test-torch-suite` runs all of it beside Gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PART = [
    "test_all_reduce_*", "test_all_gather*", "test_all_to_all*", "test_broadcast*", "test_gather*", "test_scatter*",
    "test_send_recv*", "test_isend*", "test_new_subgroups*", "test_barrier*", "test_ddp_hook_parity*", "test_grads_*",
    "test_ddp_logging_data_cpu", "test_monitored_barrier*", "test_DistributedDataParallelCPU*",
]  # fmt: skip


GLOO_FAILS = {"test_barrier_timeout_global"}  # on two ranks


@pytest.mark.timeout(180)
def test_a_part_of_torchs_own_suite(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.torch_suite.suite", "--backend", "treering", "--out", str(tmp_path / "out")]
    command += [word for pattern in PART for word in ("--only", pattern)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170)
    results = json.loads((tmp_path / "out").read_text())
    failed = {name: r["words"] for name, r in results.items() if r["status"] == "failed" and name not in GLOO_FAILS}
    assert failed == {}, done.stdout[-2000:]
    assert sum(r["status"] == "passed" for r in results.values()) >= 50
