"""Asynchronous calls fail as blocking ones do, and communicators that work at the same time fail one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

import collectives as cc

Ranks = Callable[..., AbstractContextManager[Job]]

LIMIT_S = 1.0
DEADLINE_S = 1.0
LARGE = 1 << 20
SMALL = 16
TRANSPORTS = ("shm", "tcp")


def waits_for_works(me: Rank, elements: int) -> None:
    """Three calls in the background, over and over, until one fails; then what all three say."""
    comm = me.connect(timeout_s=DEADLINE_S)
    arrays = [np.ones(elements, np.float32) for _ in range(3)]
    for x in arrays:
        comm.all_reduce_async(x, out=x, algorithm="ring").wait()
    works: list[cc.Work] = []

    def forever() -> None:
        me.say("calling")
        while True:
            works[:] = [comm.all_reduce_async(x, out=x, algorithm="ring") for x in arrays]
            for work in works:
                work.wait()

    me.attempt(forever)
    for work in works:  # those of the calls that were not looked at yet
        try:
            work.wait()
        except cc.CommunicatorBroken:
            continue
    me.attempt(comm.all_reduce_async, arrays[0])
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_a_rank_killed_under_asynchronous_calls(ranks: Ranks, elements: int, transport: str) -> None:
    with ranks(4, waits_for_works, elements, transport=transport) as job:
        job.hear_all("calling")
        at = job.kill(2)
        for rank in (0, 1, 3):
            report = job.hear("raised", rank)
            assert report["kinds"][0] == "PeerLostError", report
            assert f"lost rank 2 (process {job.pid(2)} on " in report["text"], report["text"]
            assert "step" in report["text"]
            assert report["at"] - at < LIMIT_S
            for _ in range(2):
                assert job.hear("raised", rank)["kinds"][0] == "CommunicatorBroken"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_rank_stopped_under_asynchronous_calls(ranks: Ranks, transport: str) -> None:
    with ranks(4, waits_for_works, LARGE, transport=transport) as job:
        job.hear_all("calling")
        job.stop(1)
        for rank in (0, 2, 3):
            report = job.hear("raised", rank)
            assert report["kinds"][0] == "DeadlineExceeded", report
            assert f"waiting for rank 1 (process {job.pid(1)} on " in report["text"], report["text"]
        job.go_on(1)
        report = job.hear("raised", 1)
        assert report["kinds"][0] == "DeadlineExceeded", report
        assert f"waiting for rank 1 (process {job.pid(1)} on " in report["text"], report["text"]
        for rank in range(4):
            for _ in range(2):
                assert job.hear("raised", rank)["kinds"][0] == "CommunicatorBroken"


def starts_and_forgets(me: Rank) -> None:
    """The failure of a Work that nobody looks at is told by the next one that somebody does look at."""
    comm = me.connect(timeout_s=DEADLINE_S)
    x = np.ones(SMALL, np.float32)
    comm.all_reduce(x)
    me.say("idle")
    if me.rank == 2:
        me.wait_for("end")
        return
    first = comm.all_reduce_async(x)
    while not _has_ended(first):
        pass
    me.attempt(comm.all_reduce_async, x)
    me.attempt(first.wait)


def _has_ended(work: cc.Work) -> bool:
    return work._started.has_ended()  # pyright: ignore[reportPrivateUsage]


def test_the_first_error_that_is_seen_is_the_cause(ranks: Ranks) -> None:
    with ranks(3, starts_and_forgets) as job:
        job.hear_all("idle")
        for rank in (0, 1):
            report = job.hear("raised", rank)
            assert report["kinds"][0] == "DeadlineExceeded", report
            assert f"waiting for rank 2 (process {job.pid(2)} on " in report["text"], report["text"]
            assert "as call 3" in report["text"], report["text"]
            assert job.hear("raised", rank)["kinds"][0] == "CommunicatorBroken"
        job.tell("end", 2)


def a_wait_is_too_short(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(SMALL, np.float32)
    comm.all_reduce(x)
    me.say("idle")
    if me.rank == 1:
        me.wait_for("call")
    work = comm.all_reduce_async(x)
    if me.rank == 0:
        me.attempt(work.wait, timeout_s=0.05)
    me.attempt(work.wait)


def test_waiting_for_a_while_does_no_harm(ranks: Ranks) -> None:
    with ranks(2, a_wait_is_too_short) as job:
        job.hear_all("idle")
        report = job.hear("raised", 0)
        assert report["kinds"][0] == "DeadlineExceeded"
        assert "goes on" in report["text"]
        job.tell("call", 1)
        for report in job.hear_all("returned"):
            assert report["first"] == [2.0]


def mismatch_in_the_background(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(SMALL, np.float32)
    me.attempt(lambda: comm.all_reduce_async(x, op="max" if me.rank == 1 else "sum").wait())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mismatch_of_asynchronous_calls(ranks: Ranks, transport: str) -> None:
    with ranks(3, mismatch_in_the_background, transport=transport) as job:
        for report in job.hear_all("raised"):
            assert report["kinds"][0] == "MismatchError", report
            assert "op=max" in report["text"]
            assert "op=sum" in report["text"]


def drops_everything(me: Rank) -> None:
    """Nobody keeps the communicator, the Work or the array of a call that can never end."""
    comm = me.connect()
    comm.barrier()
    if me.rank == 0:
        group = comm.split(color=0)
        assert group is not None
        group.all_reduce_async(np.ones(LARGE, np.float32))
        del group
        me.say("dropped")
    else:
        group = comm.split(color=0)
        assert group is not None
        me.attempt(group.recv, np.ones(SMALL, np.float32), 0)
    me.attempt(comm.barrier)


def test_dropping_a_communicator_ends_its_calls(ranks: Ranks) -> None:
    with ranks(2, drops_everything) as job:
        job.hear("dropped", 0)
        report = job.hear("raised", 1)
        assert report["kinds"][0] == "PeerLostError", report
        job.hear_all("returned")


def works_in_threads(me: Rank, calls: int) -> None:
    """Three communicators, a thread each; the second one's ranks disagree after a while."""
    comm = me.connect()
    groups = [comm.split(color=0) for _ in range(3)]
    failed: list[str] = []

    def work(number: int) -> None:
        group = groups[number]
        assert group is not None
        x = np.ones(LARGE >> 4, np.float32)
        try:
            for i in range(calls):
                odd = number == 1 and me.rank == 1 and i == calls // 2
                y = group.all_reduce(x, op="max" if odd else "sum")
                assert y[0] == me.size
        except cc.CollectiveError as error:
            failed.append(f"{number} {type(error).__name__}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    me.say("failed", which=failed)
    me.attempt(comm.all_reduce, np.ones(SMALL, np.float32))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_communicators_at_work_at_the_same_time_fail_alone(ranks: Ranks, transport: str) -> None:
    with ranks(3, works_in_threads, 50, transport=transport) as job:
        for report in job.hear_all("failed"):
            assert report["which"] == ["1 MismatchError"]
        for report in job.hear_all("returned"):
            assert report["first"] == [3.0]


def is_killed_in_threads(me: Rank) -> None:
    comm = me.connect()
    groups = [comm.split(color=0) for _ in range(3)]
    failed: list[str] = []

    def work(number: int) -> None:
        group = groups[number]
        assert group is not None
        x = np.ones(LARGE >> 4, np.float32)
        try:
            while True:
                group.all_reduce(x)
        except cc.CollectiveError as error:
            failed.append(f"{type(error).__name__} {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    me.say("calling")
    for thread in threads:
        thread.join()
    me.say("failed", which=failed)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_communicators_of_a_killed_rank_fail(ranks: Ranks, transport: str) -> None:
    with ranks(3, is_killed_in_threads, transport=transport) as job:
        job.hear_all("calling")
        at = job.kill(1)
        for rank in (0, 2):
            report = job.hear("failed", rank)
            assert report["at"] - at < LIMIT_S
            assert len(report["which"]) == 3
            for text in report["which"]:
                assert text.startswith("PeerLostError"), text
                assert f"rank 1 (process {job.pid(1)} on " in text, text
