"""The library between hosts that share nothing but links: right results, and errors that name who is at fault."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from bench.emulate import EmulatedCluster
from bench.emulate.layout import Placement
from tests.cluster.jobs import PATIENCE_S, Job

Start = Callable[..., Job]
LINK_BYTES_PER_S = 25e6


@pytest.fixture(scope="module")
def two_by_two() -> Iterator[EmulatedCluster]:
    with EmulatedCluster(hosts=2, ranks_per_host=2, link_bytes_per_s=LINK_BYTES_PER_S) as cluster:
        yield cluster


@pytest.mark.parametrize(("placement", "hosts"), [("contiguous", [[0, 1], [2, 3]]), ("round_robin", [[0, 2], [1, 3]])])
def test_ranks_are_on_the_hosts_that_the_placement_promises(
    start: Start, placement: Placement, hosts: list[list[int]]
) -> None:
    with EmulatedCluster(2, 2, link_bytes_per_s=LINK_BYTES_PER_S, placement=placement) as cluster:
        job = start(cluster, "where_am_i")
        for rank in range(4):
            host = next(number for number, ranks in enumerate(hosts) if rank in ranks)
            assert job.line(rank) == f"{rank} host{host}-200mbit ['eth0', 'lo'] {hosts}"


def test_every_collective_is_right_between_hosts(two_by_two: EmulatedCluster, start: Start) -> None:
    job = start(two_by_two, "every_collective")
    assert [job.line(rank) for rank in range(4)] == ["right"] * 4


def test_every_collective_is_right_across_racks(start: Start) -> None:
    with EmulatedCluster(3, link_bytes_per_s=LINK_BYTES_PER_S, racks=2, uplink_bytes_per_s=10e6) as cluster:
        job = start(cluster, "every_collective")
        assert [job.line(rank) for rank in range(3)] == ["right"] * 3


def test_a_rank_with_another_secret_is_refused(two_by_two: EmulatedCluster, start: Start) -> None:
    job = start(two_by_two, "join", {3: {"TREERING_SECRET": "not the secret of this job"}})
    for rank in range(4):
        line = job.line(rank)
        assert line.startswith("RendezvousError"), line
        assert "secret" in line, line
        assert "rank 3" in line or rank == 3, line


def test_hosts_without_a_secret_say_how_to_make_one(two_by_two: EmulatedCluster, start: Start) -> None:
    without = {"TREERING_SECRET": None, "TREERING_ADDRESS": None}
    job = start(two_by_two, "join", dict.fromkeys(range(4), without))
    for rank in range(4):
        line = job.line(rank)
        assert line.startswith(
            "RendezvousError the ranks are on several hosts (rank 0 on host0-200mbit, rank 2 on host1-200mbit)"
        ), line
        assert "secrets.token_hex(32)" in line, line
        assert "TREERING_SECRET" in line, line


def test_a_rank_that_is_killed_on_another_host_is_named(two_by_two: EmulatedCluster, start: Start) -> None:
    job = start(two_by_two, "repeat_until_it_fails")
    assert [job.line(rank) for rank in range(4)] == ["ready"] * 4
    pid = job.processes[3].pid
    job.processes[3].send_signal(signal.SIGKILL)
    for rank in range(3):
        line = job.line(rank)
        assert line.startswith("PeerLostError"), line
        assert f"rank 3 (process {pid} on host1-200mbit)" in line, line
    assert job.processes[3].wait(PATIENCE_S) == -signal.SIGKILL
