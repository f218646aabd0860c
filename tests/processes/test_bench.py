"""`python -m bench` with real ranks: every transport and launcher gives a table without a wrong element."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
)


def bench(*argv: str, launcher: tuple[str, ...] = (sys.executable,), timeout_s: float = 110) -> str:
    """What `python -m bench ARGV` prints; the test fails with its error unless the exit status is 0."""
    done = subprocess.run(
        [*launcher, "-m", "bench", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def rows(text: str) -> list[list[str]]:
    """The words of the lines that are no comment, which are the rows of the tables."""
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("transport", ["auto", "shm", "tcp", "inproc"])
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_every_collective_on_every_transport(collective: str, transport: str) -> None:
    text = bench(collective, "--ranks", "4", "--transport", transport, "-b", "16", "-e", "256K", "-f", "32", "-n", "3")
    table = rows(text)
    assert [int(row[0]) for row in table] == [16, 512, 16384]
    assert "# Out of bounds values : 0 OK" in text
    for row in table:
        wrong = (row[8], row[12])
        assert wrong == ("0", "N/A" if collective == "all_to_all" else "0")


@pytest.mark.parametrize("ranks", ["1", "2", "3", "5"])
def test_other_numbers_of_ranks(ranks: str) -> None:
    text = bench("all_reduce", "--ranks", ranks, "-b", "4", "-e", "4K", "-f", "32", "-n", "3")
    assert f"# nRanks {ranks} " in text
    assert len(rows(text)) == 3


def test_barrier_has_one_row_without_data() -> None:
    (row,) = rows(bench("barrier", "--ranks", "3", "-n", "5"))
    assert row[:2] == ["0", "0"]


def test_every_type_and_op_is_right() -> None:
    table = rows(bench("all_reduce", "--ranks", "3", "-b", "1K", "-e", "1K", "-n", "1", "-d", "all", "-o", "all"))
    assert len(table) > 80
    assert {row[2] for row in table} >= {
        "half",
        "bfloat16",
        "float",
        "double",
        "int8",
        "uint64",
        "bool",
        "cfloat",
    }
    assert {row[3] for row in table} == {"sum", "prod", "min", "max", "avg", "and", "or", "xor"}


def test_every_type_is_right_in_torch() -> None:
    table = rows(
        bench("all_reduce", "--ranks", "2", "-b", "1K", "-e", "1K", "-n", "1", "-d", "all", "--array", "torch")
    )
    assert len(table) == 15


def test_all_algorithms_are_named_in_the_last_column() -> None:
    text = bench("all_reduce", "--ranks", "4", "-b", "1K", "-e", "64K", "-f", "64", "-n", "3", "--algorithm", "all")
    names = {row[-1] for row in rows(text)}
    assert {"direct", "ring", "two_tree", "hierarchical", "recursive_doubling", "halving_doubling"} <= names
    assert len(rows(text)) == 2 * len(names)


def test_prepared_calls_and_every_root() -> None:
    table = rows(bench("broadcast", "--ranks", "3", "-b", "1K", "-e", "1K", "-n", "3", "-r", "-1", "--prepared"))
    assert [row[4] for row in table] == ["0", "1", "2"]


def test_torchrun() -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "4")
    text = bench("all_reduce", "-b", "16", "-e", "64K", "-f", "64", "-n", "3", launcher=(sys.executable, *torchrun))
    assert "# nRanks 4 " in text
    assert len(rows(text)) == 3


def test_comparison_json_and_report(tmp_path: Path) -> None:
    path, shown = tmp_path / "out.json", tmp_path / "out.md"
    text = bench(
        "all_reduce",
        "--ranks",
        "2",
        "-b",
        "1K",
        "-e",
        "4K",
        "-f",
        "4",
        "-n",
        "3",
        "--compare",
        "gloo",
        "-J",
        str(path),
        "--report",
        str(shown),
    )
    document: dict[str, Any] = json.loads(path.read_text())
    assert document["version"] == 3
    assert [result["size"] for result in document["results"]] == [1024, 4096]
    assert all(result["in_place"]["nwrong"] == 0 for result in document["results"])
    assert [device["rank"] for device in document["config"]["devices"]] == [0, 1]
    assert [entry["size"] for entry in document["compare"]] == [1024, 4096]
    for entry in document["compare"]:
        assert set(entry) == {"size", "algorithm", "ours_us", "gloo_us"}
        assert entry["gloo_us"] > 0
        assert entry["ours_us"] > 0
    assert "x faster than gloo" in text
    assert str(path) in text
    assert document["treering"]["hosts"] == [[0, 1]]
    roof = document["treering"]["roof"]
    assert roof["name"] == "memory copy"
    assert [point["size"] for point in roof["points"]] == [1024, 4096]
    assert all(point["bus_bw"] > 0 for point in roof["points"])
    assert str(shown) in text
    assert "x faster than gloo" in shown.read_text()


def test_the_price_of_reproducible_calls_stands_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    text = bench("all_reduce", "--ranks", "2", "-b", "1K", "-e", "1K", "-n", "3", "--reproducible", "-J", str(path))
    document: dict[str, Any] = json.loads(path.read_text())
    assert document["config"]["reproducible"] is True
    assert [set(entry) for entry in document["compare"]] == [{"size", "algorithm", "ours_us", "plain_us"}]
    assert "# price of reproducible : " in text


def test_a_wrong_command_line_starts_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "all_reduce", "--ranks", "2", "--algorithm", "rink"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "'rink' is not known; there are auto, " in done.stderr


def children(pid: int) -> list[int]:
    """Process ids below `pid`, from /proc."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@contextlib.contextmanager
def long_run(*flags: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A bench that would take minutes, once its ranks are at work, and the ranks."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bench",
            "all_reduce",
            "--ranks",
            "3",
            "-b",
            "1M",
            "-e",
            "1M",
            "-n",
            "10000000",
            *flags,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "(elements)" in line:
                break
        time.sleep(0.3)
        # Beside the ranks there is a shell that removes the folder they met in, however the bench ends.
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children(process.pid)}
        ranks = [pid for pid, line in words.items() if b"bench" in line]
        assert len(ranks) == 3
        yield process, ranks
    finally:
        process.kill()
        process.communicate()


def gone(pids: list[int], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_rank_that_dies_ends_the_others_and_is_named() -> None:
    with long_run() as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        _, said = process.communicate(timeout=30)
        assert process.returncode not in (0, None)
        assert "SIGKILL" in said
        assert "PeerLostError" in said
        assert gone(ranks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_bench(number: signal.Signals) -> None:
    with long_run() as (process, ranks):
        process.send_signal(number)
        process.wait(timeout=30)
        assert process.returncode in (128 + number, -number)
        assert gone(ranks)


@pytest.mark.parametrize("flags", [("--cluster", "hosts(1, 3)"), ("--measure",), ("--tune",)])
def test_predictions_stand_beside_what_was_measured(flags: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    sizes = ("-b", "1K", "-e", "32K", "-f", "32", "-n", "3", "--algorithm", "auto,ring")
    text = bench("all_reduce", "--ranks", "3", *sizes, *flags, "-J", str(path))
    table = rows(text)
    assert [row[-1] for row in table] == ["auto", "ring"] * 2
    predicted = [float(row[-2]) for row in table]
    assert all(us > 0 for us in predicted)
    kept = [result["predicted_us"] for result in json.loads(path.read_text())["results"]]
    assert kept == pytest.approx(predicted, rel=0.01, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cluster", "hosts(1, 2"), "--cluster hosts(1, 2:"),
        (("--cluster", "/no/such/file.json"), "--cluster /no/such/file.json:"),
        (("--tune",), "--tune is about"),
    ],
)
def test_what_the_bench_cannot_go_by(flags: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "all_to_all", "--ranks", "2", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
