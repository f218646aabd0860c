"""`bench zero`: steps measured beside DDP, with the bytes that each sends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--blocks", "1", "--width", "128", "--hidden", "160", "--batch", "2", "-n", "1", "--rounds", "1"]


def bench_zero(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "zero", *SMALL, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def test_steps_beside_ddp(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    done = bench_zero("--stages", "3", "--offload", str(tmp_path), "--compare", "ddp", "-J", str(file))
    assert done.returncode == 0, done.stderr
    assert "# stage 3: " not in done.stdout  # which is compared with FSDP2 alone
    told = json.loads(file.read_text())
    weights, biases = 2 * 128 * 160, 128 + 160
    assert told["parameters"] == weights + biases
    rows = {row["name"]: row for row in told["results"]}
    assert list(rows) == ["stage 3", "stage 3, files", "ddp"]
    assert all(row["step_ms"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    half = 4 / 2  # bytes of an element, times (N - 1) / N
    assert rows["stage 3"]["sent_bytes"] == half * (3 * weights + 2 * biases)  # biases are small, and stay whole
    assert rows["stage 3, files"]["sent_bytes"] == rows["stage 3"]["sent_bytes"]
    (moved,) = told["files"]
    assert moved["name"] == "stage 3, files"
    assert moved["written_bytes"] > 8 * weights / 2  # 16 bytes of half of them, but for what is still on its way
    assert moved["waited_s"] >= 0
    assert moved["busy_s"] > 0
    assert "hidden" in done.stdout
    assert rows["ddp"]["sent_bytes"] > half * weights  # what has been acknowledged by then
    assert rows["stage 3"]["exposed_ms"] > 0
    assert rows["ddp"]["exposed_ms"] is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--stages", "4"), "--stages 4"),
        (("--offload", "/missing"), "--offload /missing"),
        (("--buckets", "2X"), "2X"),
        (("--compare", "x"), "'x'"),
    ],
)
def test_words_without_a_meaning(words: tuple[str, str], complaint: str) -> None:
    done = bench_zero(*words)
    assert done.returncode == 2
    assert complaint in done.stderr
