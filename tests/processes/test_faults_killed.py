"""A rank that dies is named by every survivor within a second, wherever it was; and nothing of it is left."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Event, Job
from rank_process import Rank

from collectives.choose import assumed_cluster

Ranks = Callable[..., AbstractContextManager[Job]]

LIMIT_S = 1.0
LARGE = 1 << 20  # elements: a call takes milliseconds, so that a death falls into the middle of one
SMALL = 16
TRANSPORTS = ("shm", "tcp")


def assert_lost(job: Job, report: Event, killed_at: float, *suspects: int, number: str = r"\d+") -> None:
    """The error names a dead rank, the collective, the number of the call and the step, soon enough."""
    text, rank = report["text"], report["rank"]
    assert report["kinds"][0] == "PeerLostError", text
    assert "ConnectionError" in report["kinds"]
    assert any(f"rank {suspect} (process {job.pid(suspect)} on " in text for suspect in suspects), text
    assert re.search(rf"rank {rank} was in \w+\(.*\) as call {number}, step \d+ of \d+ \(", text), text
    assert report["at"] - killed_at < LIMIT_S, f"{report['at'] - killed_at:.3f} s: {text}"


def assert_broken(report: Event) -> None:
    """A later call fails at once, and tells since when."""
    assert report["kinds"][0] == "CommunicatorBroken", report["text"]
    assert report["cause"] == "PeerLostError"
    assert report["took_s"] < 0.1


def assert_all_lost(job: Job, at: float, *dead: int, number: str = r"\d+") -> None:
    """Every survivor names one of the dead, and then is broken."""
    for report in job.hear_all("raised", but=dead):
        assert_lost(job, report, at, *dead, number=number)
    for report in job.hear_all("raised", but=dead):
        assert_broken(report)


def calls_until_it_fails(me: Rank, collective: str, elements: int, options: dict[str, Any]) -> None:
    comm = me.connect()
    if options.get("algorithm") == "hierarchical":
        hosts = ((0, 1, 2), (3,)) if me.size == 4 else ((0, 1), (2, 3, 4), (5,))
        comm.use(cluster=assumed_cluster(hosts, shared_memory=False))  # as if
    x = np.ones(elements, np.float32)
    call = getattr(comm, collective)
    if collective == "scatter":
        options = {**options, "out": np.ones(elements // me.size, np.float32)}
    call(x, **options)
    me.until_it_fails(call, x, **options)
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "algorithm",
    ["direct", "one_shot", "ring", "recursive_doubling", "halving_doubling", "two_tree", "hierarchical"],
)
def test_in_the_middle_of_an_all_reduce(ranks: Ranks, algorithm: str, transport: str) -> None:
    options = {"algorithm": algorithm}
    with ranks(4, calls_until_it_fails, "all_reduce", LARGE, options, transport=transport) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(2), 2)


@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [
        ("reduce_scatter", "ring"),
        ("reduce_scatter", "halving"),
        ("all_gather", "doubling"),
        ("all_gather", "ring"),
        ("broadcast", "ring"),
        ("broadcast", "two_tree"),
        ("broadcast", "scatter_all_gather"),
        ("reduce", "binomial"),
        ("reduce", "two_tree"),
        ("gather", "direct"),
        ("scatter", "direct"),
        ("all_to_all", "direct"),
    ],
)
def test_in_the_middle_of_any_collective(ranks: Ranks, collective: str, algorithm: str) -> None:
    with ranks(4, calls_until_it_fails, collective, LARGE, {"algorithm": algorithm}) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(1), 1)


@pytest.mark.parametrize("elements", [SMALL, LARGE])
@pytest.mark.parametrize("dead", [(0,), (3,), (1, 2), (0, 3), (0, 1, 2)], ids=str)
def test_any_rank_and_several_at_once(ranks: Ranks, dead: tuple[int, ...], elements: int) -> None:
    with ranks(4, calls_until_it_fails, "all_reduce", elements, {"algorithm": "ring"}) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(*dead), *dead)


@pytest.mark.parametrize("algorithm", ["ring", "two_tree", "hierarchical"])
def test_far_from_the_dead_rank(ranks: Ranks, algorithm: str) -> None:
    with ranks(6, calls_until_it_fails, "all_reduce", LARGE, {"algorithm": algorithm}) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(4), 4)


def test_with_several_sockets_per_peer(ranks: Ranks) -> None:
    with ranks(3, calls_until_it_fails, "all_reduce", LARGE, {}, transport="tcp", lanes=3) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(1), 1)


def test_the_whole_job(ranks: Ranks) -> None:
    with ranks(4, calls_until_it_fails, "all_reduce", LARGE, {}) as job:
        job.hear_all("calling")
        job.kill(0, 1, 2, 3)


def registered_calls_until_it_fails(me: Rank) -> None:
    comm = me.connect()
    x = comm.empty(LARGE)
    comm.all_reduce(x, out=x)
    me.until_it_fails(comm.all_reduce, x, out=x, algorithm="ring")
    me.attempt(comm.barrier)


def test_while_its_memory_is_read_in_place(ranks: Ranks) -> None:
    with ranks(4, registered_calls_until_it_fails, transport="shm") as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(2), 2)


def prepared_calls_until_it_fails(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(LARGE, np.float32)
    call = comm.prepare.all_reduce(x, out=x)
    call()
    me.until_it_fails(call)
    me.attempt(call)


def test_in_the_middle_of_a_prepared_call(ranks: Ranks) -> None:
    with ranks(3, prepared_calls_until_it_fails) as job:
        job.hear_all("calling")
        assert_all_lost(job, job.kill(1), 1)


def exchanges_until_it_fails(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(LARGE, np.float32)

    def exchange() -> None:
        if me.rank == 0:
            comm.send(x, 1)
        else:
            comm.recv(x, 0)

    exchange()
    me.until_it_fails(exchange)
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dead", [0, 1])
def test_in_the_middle_of_a_message(ranks: Ranks, dead: int, transport: str) -> None:
    with ranks(2, exchanges_until_it_fails, transport=transport) as job:
        job.hear_all("calling")
        at = job.kill(dead)
        report = job.hear("raised", 1 - dead)
        assert report["kinds"][0] == "PeerLostError"
        assert f"lost rank {dead} (process {job.pid(dead)} on " in report["text"]
        assert f"was in {'recv from' if dead == 0 else 'send to'} rank {dead}" in report["text"]
        assert report["at"] - at < LIMIT_S
        assert_broken(job.hear("raised", 1 - dead))


def calls_when_told(me: Rank, good: int) -> None:
    comm = me.connect()
    x = np.ones(SMALL, np.float32)
    for _ in range(good):
        comm.all_reduce(x, algorithm="ring")
    me.say("idle")
    me.wait_for("call")
    me.attempt(comm.all_reduce, x, algorithm="ring")
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("good", [0, 3])
def test_between_two_calls(ranks: Ranks, good: int, dead: int, transport: str) -> None:
    """With `good` 0 the ranks have no connections yet: they learn of the death when they make some."""
    with ranks(4, calls_when_told, good, transport=transport) as job:
        job.hear_all("idle")
        job.kill(dead)
        alive = [rank for rank in range(4) if rank != dead]
        at = job.hear_of_death(dead)
        job.tell("call", *alive)
        assert_all_lost(job, at, dead, number=str(good + 1))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("good", [0, 3])
def test_while_the_others_wait_for_it(ranks: Ranks, good: int, transport: str) -> None:
    with ranks(4, calls_when_told, good, transport=transport) as job:
        job.hear_all("idle")
        job.tell("call", 0, 1, 3)
        for rank in (0, 1, 3):
            job.wait_until_it_sleeps(rank)
        assert_all_lost(job, job.kill(2), 2, number=str(good + 1))


def works_in_groups(me: Rank) -> None:
    comm = me.connect()
    mine = comm.split(color=me.rank % 2)
    assert mine is not None
    x = np.ones(SMALL, np.float32)
    mine.all_reduce(x)
    me.say("idle")
    me.wait_for("call")
    me.attempt(mine.all_reduce, x)
    me.attempt(comm.all_reduce, x)


def test_groups_without_the_dead_rank_go_on(ranks: Ranks) -> None:
    with ranks(4, works_in_groups) as job:
        job.hear_all("idle")
        job.kill(3)
        at = job.hear_of_death(3)
        job.tell("call", 0, 1, 2)
        for rank in (0, 2):
            assert job.hear("returned", rank)["first"] == [2.0]
        report = job.hear("raised", 1)
        assert f"lost rank 1 (rank 3 of the job, process {job.pid(3)} on " in report["text"], report["text"]
        assert "as call 2, step" in report["text"], report["text"]
        for rank in (0, 1, 2):
            assert_lost(job, job.hear("raised", rank), at, 3, number="2")
