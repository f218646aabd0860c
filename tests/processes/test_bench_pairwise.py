"""`python -m bench pairwise` with real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("ranks", "transport"), [(1, "auto"), (2, "shm"), (3, "inproc"), (4, "tcp")])
def test_every_pair_is_measured(ranks: int, transport: str, tmp_path: Path) -> None:
    matrix, picture = tmp_path / "pairs.json", tmp_path / "pairs.svg"
    page = tmp_path / "pairs.html"
    files = ["--json", str(matrix), "--svg", str(picture), "--report", str(page)]
    flags = ["--ranks", str(ranks), "--transport", transport, "-e", "64K", *files]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "pairwise", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"# All pairs of {ranks} ranks" in done.stdout
    found = json.loads(matrix.read_text())
    assert len(found["hosts"]) == ranks
    for a in range(ranks):
        for b in range(ranks):
            latency_us, bandwidth = found["latency_us"][a][b], found["bandwidth_gb_per_s"][a][b]
            if a == b:
                assert latency_us is None
                assert bandwidth is None
            else:
                assert latency_us == found["latency_us"][b][a]
                assert 0.05 < latency_us < 1e5
                assert 1e-4 < bandwidth < 1e3
    assert "All pairs" in page.read_text()
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    flags = ["--ranks", "2", "-e", "1K", "--svg", str(tmp_path / "no" / "a.svg")]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "pairwise", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2  # and nothing was measured
    assert "a.svg" in done.stderr
