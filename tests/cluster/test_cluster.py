"""What an emulated cluster promises by itself: its links have the rate they are given, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.emulate import EmulatedCluster
from tests.cluster.jobs import PATIENCE_S, ROOT, wait_until

# Tells bytes/s after the first MiB, and of everything from the first byte on.
SINK = """
import socket, sys, time
with socket.create_server(("10.0.0.1", 5000)) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    buffer, marks = bytearray(1 << 20), []
    got = 0
    while n := peer.recv_into(buffer):
        got += n
        marks.append((time.perf_counter(), got))
first = next(mark for mark in marks if mark[1] >= 1 << 20)
print((marks[-1][1] - first[1]) / (marks[-1][0] - first[0]))
print(marks[-1][1] / (marks[-1][0] - marks[0][0]))
"""
SOURCE = """
import socket
with socket.create_connection(("10.0.0.1", 5000)) as peer:
    peer.sendall(bytes(8 << 20))
"""


def rates_bytes_per_s(cluster: EmulatedCluster, from_host: int) -> tuple[float, float]:
    """Of 8 MiB over TCP to host 0: after the first MiB, and from the first byte on."""
    sink = subprocess.Popen([*cluster.command_on(0), sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    assert sink.stdout is not None
    assert sink.stdout.readline() == "listening\n"
    subprocess.run([*cluster.command_on(from_host), sys.executable, "-c", SOURCE], check=True, timeout=PATIENCE_S)
    steady, whole = sink.communicate(timeout=PATIENCE_S)[0].split()
    return float(steady), float(whole)


def knock(cluster: EmulatedCluster) -> str:
    """What host 0 gets from the address of host 1, where nobody listens: the text of an error."""
    code = "import socket; socket.create_connection(('10.0.0.2', 1), 0.5)"
    command = [*cluster.command_on(0), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S).stderr


def net_namespaces() -> set[tuple[int, int]]:
    """Of all threads of all processes of this machine."""
    found: set[tuple[int, int]] = set()
    for path in Path("/proc").glob("[0-9]*/task/[0-9]*/ns/net"):
        try:
            state = path.stat()
        except OSError:
            continue
        found.add((state.st_dev, state.st_ino))
    return found


@pytest.mark.parametrize("link_bytes_per_s", [5e6, 12.5e6])
def test_a_link_carries_its_rate_and_no_more(link_bytes_per_s: float) -> None:
    with EmulatedCluster(hosts=2, link_bytes_per_s=link_bytes_per_s) as cluster:
        steady, whole = rates_bytes_per_s(cluster, from_host=1)
    payload = link_bytes_per_s * 8948 / 9014  # of a frame of 9000 bytes and its Ethernet header
    assert 0.9 * payload < steady < 1.05 * payload  # within 2 % where processes need not wait for a core
    assert whole < payload * 1.05, "no large burst passes for free"


def test_an_uplink_is_the_limit_between_racks_alone() -> None:
    with EmulatedCluster(hosts=3, link_bytes_per_s=50e6, racks=2, uplink_bytes_per_s=12.5e6) as cluster:
        layout = cluster.layout
        assert [layout.rack_of(host) for host in range(3)] == [0, 0, 1]
        assert rates_bytes_per_s(cluster, from_host=1)[0] > 25e6
        assert rates_bytes_per_s(cluster, from_host=2)[0] < 12.5e6 * 1.05


def test_two_clusters_at_once_know_nothing_of_each_other() -> None:
    with EmulatedCluster(1, link_bytes_per_s=25e6) as one, EmulatedCluster(2, link_bytes_per_s=25e6) as other:
        assert not set(one.identities) & set(other.identities)
        assert "refused" in knock(other)  # a host answers
        assert "timed out" in knock(one)


def test_closing_ends_the_programs_and_leaves_nothing() -> None:
    links = set(os.listdir("/sys/class/net"))
    with EmulatedCluster(hosts=2, ranks_per_host=2, link_bytes_per_s=25e6) as cluster:
        made = set(cluster.identities)
        assert len(made) == 3
        assert made <= net_namespaces()
        sleeper = subprocess.Popen([*cluster.command(3), "sh", "-c", "trap '' TERM; sleep 1000 & wait"])
        wait_until(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino in {inode for _, inode in made})
    assert sleeper.wait(PATIENCE_S) == -signal.SIGKILL
    wait_until(lambda: not made & net_namespaces())
    assert set(os.listdir("/sys/class/net")) == links


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_bench_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    before = net_namespaces()
    flags = ["--hosts", "2", "--ranks-per-host", "2", "--link", "10mbit", "all_reduce", "-b", "16M", "-e", "16M"]
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench", "cluster", *flags],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # as the signal shall reach the bench alone
    )
    assert bench.stdout is not None
    assert any("out-of-place" in line for line in bench.stdout), "the ranks have joined"
    made = {
        (state.st_dev, state.st_ino)
        for state in (path.stat() for path in Path(f"/proc/{bench.pid}/task").glob("*/ns/net"))
    } - before
    assert len(made) == 3
    assert os.listdir(tmp_path)  # where the ranks have met
    bench.send_signal(number)
    bench.stdout.read()  # until all that hold it have ended
    assert bench.wait(PATIENCE_S) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not made & net_namespaces())
    wait_until(lambda: not os.listdir(tmp_path))
