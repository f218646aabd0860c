"""`python -m bench cluster` measures as the bench does elsewhere, and says what it measured on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cluster.jobs import PATIENCE_S, ROOT

BENCH = (sys.executable, "-m", "bench", "cluster")
SMALL = ("-b", "4K", "-e", "64K", "-f", "16", "-n", "2")


def run(*command: str, status: int = 0) -> tuple[str, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def test_several_collectives_one_after_another() -> None:
    flags = ("--hosts", "3", "--ranks-per-host", "2", "--link", "1gbit", "--placement", "round_robin")
    text, _ = run(*BENCH, "all_gather", "broadcast", *flags, *SMALL)
    assert text.count("# emulated cluster: 3 hosts x 2 ranks, round_robin, links 1gbit, MTU 9000") == 2
    assert text.count("# Out of bounds values : 0 OK") == 2
    placed = [line.split("on")[1].split()[0] for line in text.splitlines() if line.startswith("#  Rank")]
    assert placed == ["host0-1gbit", "host1-1gbit", "host2-1gbit"] * 4


def test_beside_gloo_in_the_same_cluster(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    flags = ("--hosts", "2", "--link", "100mbit", "--racks", "2", "--uplink", "50mbit", "-J", str(path))
    text, _ = run(*BENCH, *flags, "-b", "256K", "-e", "256K", "-n", "2", "--compare", "gloo")
    result = json.loads(path.read_text())
    cluster = result["config"]["cluster"]
    assert (cluster["hosts"], cluster["link_bytes_per_s"], cluster["uplink_bytes_per_s"]) == (2, 12.5e6, 6.25e6)
    # Two ranks exchange half of the array twice, over an uplink of 6.25e6 bytes/s: whoever is quicker took another way.
    (row,) = result["compare"]
    least_us = (256 << 10) / 6.25e6 * 1e6 * 0.9
    assert row["ours_us"] > least_us
    assert row["gloo_us"] > least_us
    assert "x faster than gloo" in text
    roof = result["treering"]["roof"]
    assert roof["name"] == "link"
    assert 0.8 * 6.25e-3 < roof["points"][0]["bus_bw"] < 1.05 * 6.25e-3


def test_a_root_without_the_right_to_make_namespaces_is_told_what_it_needs() -> None:
    without = ("setpriv", "--bounding-set=-sys_admin")
    _, error = run(*without, *BENCH, "--hosts", "2", "--link", "1gbit", status=1)
    assert "CAP_SYS_ADMIN" in error
