"""A rank that never calls, or stands still, is an error at the no-progress deadline that names it, on every rank."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Event, Job
from rank_process import Rank

Ranks = Callable[..., AbstractContextManager[Job]]

DEADLINE_S = 1.0
SLACK_S = 1.0  # for a machine that is busy
LARGE = 1 << 20
SMALL = 16
TRANSPORTS = ("shm", "tcp")


def assert_deadline(job: Job, report: Event, silent: int, *, why: str = "") -> None:
    text = report["text"]
    assert report["kinds"][0] == "DeadlineExceeded", text
    assert "TimeoutError" in report["kinds"]
    assert f"waiting for rank {silent} (process {job.pid(silent)} on " in text, text
    assert why in text, text


def calls_when_told(me: Rank, good: int, collective: str, algorithm: str, per_call: bool, elements: int) -> None:
    comm = me.connect() if per_call else me.connect(timeout_s=DEADLINE_S)
    x = np.ones(elements, np.float32)
    call = getattr(comm, collective)
    for _ in range(good):
        call(x, algorithm=algorithm)
    options: dict[str, Any] = {"timeout_s": DEADLINE_S} if per_call else {}
    me.say("idle")
    me.wait_for("call")
    me.attempt(call, x, algorithm=algorithm, **options)
    me.attempt(comm.barrier)


@pytest.mark.parametrize(
    ("collective", "algorithm", "absent"),
    [
        ("all_reduce", "ring", 2),
        ("all_reduce", "two_tree", 0),
        ("all_reduce", "halving_doubling", 4),
        ("broadcast", "ring", 0),
        ("all_gather", "ring", 1),
    ],
)
@pytest.mark.parametrize(("good", "transport"), [(0, "tcp"), (2, "shm")])
def test_a_rank_that_never_calls(
    ranks: Ranks, good: int, collective: str, algorithm: str, absent: int, transport: str
) -> None:
    with ranks(5, calls_when_told, good, collective, algorithm, False, SMALL, transport=transport) as job:
        job.hear_all("idle")
        waiting = tuple(rank for rank in range(5) if rank != absent)
        job.tell("call", *waiting)
        why = f"it has not made this call (its last was call {good})" if good else "it has not made this call (nor any)"
        if collective == "broadcast" and transport == "shm":
            why = ""
        for report in job.hear_all("raised", but=(absent,)):
            assert_deadline(job, report, absent, why=why)
            assert DEADLINE_S * 0.9 < report["took_s"] < DEADLINE_S + SLACK_S
        for report in job.hear_all("raised", but=(absent,)):
            assert report["kinds"][0] == "CommunicatorBroken"
        job.tell("call", absent)  # too late: it hears why
        report = job.hear("raised", absent)
        assert_deadline(job, report, absent, why=why)
        assert report["took_s"] < DEADLINE_S
        job.hear("raised", absent)


@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_the_deadline_of_one_call(ranks: Ranks, elements: int) -> None:
    with ranks(4, calls_when_told, 1, "all_reduce", "ring", True, elements) as job:
        job.hear_all("idle")
        job.tell("call", 0, 1, 2)
        for report in job.hear_all("raised", but=(3,)):
            assert_deadline(job, report, 3)
            assert DEADLINE_S * 0.9 < report["took_s"] < DEADLINE_S + SLACK_S
        job.tell("call", 3)
        for rank in (0, 1, 2, 3, 3):
            job.hear("raised", rank)


def calls_until_it_fails(me: Rank, algorithm: str, elements: int) -> None:
    comm = me.connect(timeout_s=DEADLINE_S)
    x = np.ones(elements, np.float32)
    comm.all_reduce(x, algorithm=algorithm)
    me.until_it_fails(comm.all_reduce, x, algorithm=algorithm)
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("algorithm", "elements"),
    [("ring", SMALL), ("ring", LARGE), ("direct", LARGE), ("two_tree", LARGE), ("recursive_doubling", SMALL)],
)
def test_a_rank_that_is_stopped_in_the_middle(ranks: Ranks, algorithm: str, elements: int, transport: str) -> None:
    with ranks(5, calls_until_it_fails, algorithm, elements, transport=transport) as job:
        job.hear_all("calling")
        at = job.stop(3)
        for report in job.hear_all("raised", but=(3,)):
            assert_deadline(job, report, 3, why="it does not answer: stopped, or its host cannot be reached")
            assert DEADLINE_S * 0.9 < report["at"] - at < DEADLINE_S + SLACK_S
        for report in job.hear_all("raised", but=(3,)):
            assert report["kinds"][0] == "CommunicatorBroken"
        at = job.go_on(3)
        report = job.hear("raised", 3)
        assert_deadline(job, report, 3)
        assert report["at"] - at < SLACK_S
        job.hear("raised", 3)


@pytest.mark.parametrize(
    ("stopped", "good", "transport"), [(0, 0, "shm"), (0, 2, "tcp"), (2, 0, "tcp"), (2, 0, "shm"), (2, 2, "shm")]
)
def test_a_rank_that_is_stopped_between_two_calls(ranks: Ranks, stopped: int, good: int, transport: str) -> None:
    """With `good` 0 the ranks have no connections yet: already making them comes to a standstill."""
    with ranks(4, calls_when_told, good, "all_reduce", "ring", False, SMALL, transport=transport) as job:
        job.hear_all("idle")
        job.stop(stopped)
        others = [rank for rank in range(4) if rank != stopped]
        job.tell("call", *others)
        for rank in others:
            report = job.hear("raised", rank)
            assert_deadline(job, report, stopped)
            assert report["took_s"] < DEADLINE_S + SLACK_S
            job.hear("raised", rank)
        job.go_on(stopped)
        job.tell("call", stopped)
        for kind in ("DeadlineExceeded", "CommunicatorBroken"):
            report = job.hear("raised", stopped)
            # By then its peers may have gone: who has no connections learns no more than that.
            kinds = (kind,) if good else (kind, "PeerLostError", "CommunicatorBroken")
            assert report["kinds"][0] in kinds, report["text"]
            assert report["took_s"] < DEADLINE_S + SLACK_S


def test_a_short_stop_does_no_harm(ranks: Ranks) -> None:
    with ranks(3, calls_when_told, 1, "all_reduce", "ring", False, LARGE) as job:
        job.hear_all("idle")
        job.stop(1)
        job.tell("call")
        time.sleep(DEADLINE_S / 2)  # the fault itself
        job.go_on(1)
        for report in job.hear_all("returned"):
            assert report["first"] == [3.0]
        job.hear_all("returned")


def test_all_ranks_stopped_for_longer_than_the_deadline_go_on(ranks: Ranks) -> None:
    """What stands still with everybody else (a suspended container) does not blame the others for it."""
    with ranks(3, calls_when_told, 1, "all_reduce", "ring", False, LARGE) as job:
        job.hear_all("idle")
        job.tell("call", 0, 1)
        for rank in (0, 1):
            job.wait_until_it_sleeps(rank)
        job.stop(0, 1, 2)
        time.sleep(DEADLINE_S * 1.5)  # the fault itself
        job.go_on(0, 1, 2)
        job.tell("call", 2)
        for report in job.hear_all("returned"):
            assert report["first"] == [3.0]
        job.hear_all("returned")


def receives_from_a_silent_rank(me: Rank) -> None:
    comm = me.connect(timeout_s=DEADLINE_S)
    x = np.ones(SMALL, np.float32)
    if me.rank == 0:
        me.attempt(comm.recv, x, 2)
        me.say("over")
    else:
        me.wait_for("end")


def test_a_message_that_never_comes(ranks: Ranks) -> None:
    with ranks(3, receives_from_a_silent_rank) as job:
        report = job.hear("raised", 0)
        assert_deadline(job, report, 2)
        assert "recv from rank 2" in report["text"]
        job.hear("over", 0)
        job.tell("end", 1, 2)


def waits_at_a_barrier(me: Rank) -> None:
    comm = me.connect(timeout_s=DEADLINE_S)
    comm.barrier()
    me.say("idle")
    me.wait_for("call")
    me.attempt(comm.barrier)


def test_a_rank_missing_at_a_barrier_of_eight(ranks: Ranks) -> None:
    with ranks(8, waits_at_a_barrier) as job:
        job.hear_all("idle")
        job.tell("call", *range(7))
        for report in job.hear_all("raised", but=(7,)):
            assert_deadline(job, report, 7, why="it has not made this call (its last was call 1)")
        job.tell("call", 7)
        assert_deadline(job, job.hear("raised", 7), 7)


def test_a_stopped_rank_that_is_killed_in_the_end(ranks: Ranks) -> None:
    with ranks(4, calls_until_it_fails, "ring", LARGE) as job:
        job.hear_all("calling")
        job.stop(2)
        at = job.signal(signal.SIGKILL, 2)
        for report in job.hear_all("raised", but=(2,)):
            assert report["kinds"][0] == "PeerLostError"
            assert f"lost rank 2 (process {job.pid(2)} on " in report["text"]
            assert report["at"] - at < SLACK_S
        job.hear_all("raised", but=(2,))
