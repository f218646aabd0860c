"""A rank that is interrupted, or leaves while it is needed, ends at once; the others hear which one it was."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
from conftest import Event, Job
from rank_process import Rank

Ranks = Callable[..., AbstractContextManager[Job]]

LIMIT_S = 1.0  # 0.2 s are promised; a busy machine may add to that
LARGE = 4 << 20
SMALL = 16
TRANSPORTS = ("shm", "tcp")


def assert_lost(job: Job, report: Event, rank: int, how: str) -> None:
    text = report["text"]
    assert report["kinds"][0] == "PeerLostError", text
    assert f"rank {rank} (process {job.pid(rank)} on " in text, text
    assert how in text, text


def waits(me: Rank, good: int, how: str) -> None:
    """Every rank but the last makes a call, which lasts until the test ends it."""
    comm = me.connect()
    x = np.ones(SMALL, np.float32)
    for _ in range(good):
        comm.all_reduce(x, algorithm="ring")
    me.say("idle")
    me.wait_for("call")
    if how == "blocking":
        me.attempt(comm.all_reduce, x, algorithm="ring")
    elif how == "prepared":
        me.attempt(lambda: comm.prepare.all_reduce(x, algorithm="ring")())
    elif how == "waiting":
        me.attempt(lambda: comm.all_reduce_async(x, algorithm="ring").wait())
    elif how == "behind an asynchronous one":
        me.attempt(lambda: (comm.all_reduce_async(x, algorithm="ring"), comm.barrier()))
    else:
        me.attempt(comm.recv, x, me.size - 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("good", [0, 2])
@pytest.mark.parametrize("how", ["blocking", "prepared", "waiting", "behind an asynchronous one", "receiving"])
def test_ctrl_c_while_waiting(ranks: Ranks, how: str, good: int, transport: str) -> None:
    with ranks(4, waits, good, how, transport=transport) as job:
        job.hear_all("idle")
        job.tell("call", 0, 1, 2)
        for rank in (0, 1, 2):
            job.wait_until_it_sleeps(rank)
        at = job.signal(signal.SIGINT, 1)
        report = job.hear("raised", 1)
        assert report["kinds"][0] == "KeyboardInterrupt"
        assert report["at"] - at < LIMIT_S, report["at"] - at
        for rank in (0, 2) if how != "receiving" else ():
            report = job.hear("raised", rank)
            # Who waits for a Work can be interrupted without harm to the call; its end is what the others hear of.
            assert_lost(job, report, 1, "closed the communicator" if how == "waiting" else "was interrupted (Ctrl-C)")
            assert report["at"] - at < LIMIT_S
        if how == "receiving":
            job.tell("call", 3)
            for rank in (0, 2):
                job.hear("raised", rank)
        else:
            job.tell("call", 3)
        job.hear("raised", 3)


def calls_until_it_fails(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(LARGE, np.float32)
    comm.all_reduce(x, out=x)
    me.until_it_fails(comm.all_reduce, x, out=x)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ctrl_c_in_a_call_that_moves(ranks: Ranks, transport: str) -> None:
    with ranks(3, calls_until_it_fails, transport=transport) as job:
        job.hear_all("calling")
        at = job.signal(signal.SIGINT, 2)
        report = job.hear("raised", 2)
        assert report["kinds"][0] == "KeyboardInterrupt"
        assert report["at"] - at < LIMIT_S, report["at"] - at
        for rank in (0, 1):
            report = job.hear("raised", rank)
            # Between two calls it is Python that is interrupted, and the communicator is closed on the way out.
            assert_lost(job, report, 2, "")
            assert report["at"] - at < LIMIT_S


def every_rank_waits(me: Rank) -> None:
    comm = me.connect()
    comm.barrier()
    me.say("idle")
    if me.rank == 0:
        me.wait_for("call")
    me.attempt(comm.barrier)


def test_ctrl_c_to_all_ranks_at_once(ranks: Ranks) -> None:
    """As a terminal does it. Each raises KeyboardInterrupt, or what it heard of the others' in the meantime."""
    with ranks(4, every_rank_waits) as job:
        job.hear_all("idle")
        for rank in (1, 2, 3):
            job.wait_until_it_sleeps(rank)
        at = job.signal(signal.SIGINT, 1, 2, 3)
        for rank in (1, 2, 3):
            report = job.hear("raised", rank)
            assert report["kinds"][0] in ("KeyboardInterrupt", "PeerLostError"), report
            assert report["at"] - at < LIMIT_S
        job.tell("call", 0)
        assert job.hear("raised", 0)["kinds"][0] == "PeerLostError"


def leaves(me: Rank, good: int, how: str) -> None:
    comm = me.connect()
    for _ in range(good):
        comm.barrier()
    me.say("idle")
    me.wait_for("go")
    if me.rank != 1:
        me.attempt(comm.all_reduce, np.ones(SMALL, np.float32), algorithm="ring")
        me.attempt(comm.barrier)
        return
    me.leaves_open = how != "closes"
    if how == "exits":
        raise SystemExit(3)
    if how == "fails":
        raise RuntimeError("a mistake in the program of this rank")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("good", [0, 2])
@pytest.mark.parametrize("how", ["closes", "ends", "exits", "fails"])
def test_a_rank_that_leaves(ranks: Ranks, how: str, good: int, transport: str) -> None:
    """With or without closing its communicator: an end that is no crash says goodbye by itself."""
    with ranks(4, leaves, good, how, transport=transport) as job:
        job.hear_all("idle")
        job.tell("go", 0, 2, 3)
        for rank in (0, 2, 3):
            job.wait_until_it_sleeps(rank)
        job.tell("go", 1)
        if how in ("exits", "fails"):
            job.hear("crashed", 1)
            job.ends(1, 3 if how == "exits" else 1)
        elif how == "ends":
            job.ends(1)
        for rank in (0, 2, 3):
            assert_lost(job, job.hear("raised", rank), 1, "closed the communicator while it was still needed")
        for rank in (0, 2, 3):
            assert job.hear("raised", rank)["kinds"][0] == "CommunicatorBroken"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("good", [0, 2])
def test_a_rank_that_has_left_before_the_others_call(ranks: Ranks, good: int, transport: str) -> None:
    with ranks(4, leaves, good, "ends", transport=transport) as job:
        job.hear_all("idle")
        job.tell("go", 1)
        job.ends(1)
        job.tell("go", 0, 2, 3)
        for rank in (0, 2, 3):
            report = job.hear("raised", rank)
            # Without a connection it cannot be told how the rank has ended.
            assert_lost(job, report, 1, "closed the communicator" if good else "")
            assert report["took_s"] < LIMIT_S
        for rank in (0, 2, 3):
            job.hear("raised", rank)


def last_call_then_gone(me: Rank) -> None:
    comm = me.connect()
    x = np.full(LARGE, me.rank + 1, np.float32)
    me.attempt(comm.broadcast, x, out=x, algorithm="ring")
    if me.rank == 0:
        return  # its bytes may still be on their way
    me.wait_for("more")
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_has_done_its_part_may_leave(ranks: Ranks, transport: str) -> None:
    with ranks(4, last_call_then_gone, transport=transport) as job:
        for report in job.hear_all("returned"):
            assert report["first"] == [1.0]
        job.tell("more", 1, 2, 3)
        for report in job.hear_all("raised", but=(0,)):
            assert_lost(job, report, 0, "")
