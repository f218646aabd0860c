"""A mistake of the caller is told before anything is sent: what was given, and what would be right."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

import collectives as cc

Ranks = Callable[..., AbstractContextManager[Job]]


def _frozen(n: int) -> Any:
    x = np.ones(n, np.float32)
    x.flags.writeable = False
    return x


def _mistakes(comm: Any) -> dict[str, Callable[[], Any]]:
    x = np.ones(8, np.float32)
    return {
        "unknown algorithm": lambda: comm.all_reduce(x, algorithm="rign"),
        "algorithm of another collective": lambda: comm.barrier(algorithm="two_tree"),
        "unknown op": lambda: comm.all_reduce(x, op="avg"),
        "op without a meaning for the dtype": lambda: comm.all_reduce(x, op="xor"),
        "op on complex numbers": lambda: comm.all_reduce(np.ones(4, np.complex64), op="max"),
        "dtype that cannot be combined": lambda: comm.all_reduce(np.ones(4, "datetime64[s]")),
        "Python objects": lambda: comm.broadcast(np.array([object()])),
        "foreign byte order": lambda: comm.all_reduce(np.ones(4, ">f4")),
        "a list of numbers": lambda: comm.all_reduce([1.0, 2.0]),
        "a number": lambda: comm.all_reduce(3.0),
        "shape of out": lambda: comm.all_reduce(x, out=np.ones(9, np.float32)),
        "dtype of out": lambda: comm.all_reduce(x, out=np.ones(8, np.float64)),
        "read-only out": lambda: comm.all_reduce(x, out=_frozen(8)),
        "out with gaps": lambda: comm.all_reduce(x, out=np.ones(16, np.float32)[::2]),
        "rows that cannot be split": lambda: comm.reduce_scatter(np.ones(9, np.float32)),
        "sizes that do not add up": lambda: comm.reduce_scatter(x, sizes=[1, 2]),
        "sizes of other ranks": lambda: comm.all_gather(x, sizes=[1, 1]),
        "half of the sizes": lambda: comm.all_to_all(x, send_sizes=[4, 4]),
        "root that is no rank": lambda: comm.broadcast(x, root=2),
        "negative root": lambda: comm.reduce(x, root=-1),
        "scatter without out": lambda: comm.scatter(x, root=1 - comm.rank),
        "peer that is no rank": lambda: comm.send(x, 5),
        "peer that is this rank": lambda: comm.recv(x, comm.rank),
        "read-only recv": lambda: comm.recv(_frozen(8), 1 - comm.rank),
        "no time": lambda: comm.all_reduce(x, timeout_s=0),
        "more outs than arrays": lambda: comm.all_reduce([x, x], out=[x]),
        "asynchronous": lambda: comm.all_reduce_async(x, op="avg"),
        "prepared": lambda: comm.prepare.all_reduce(x, algorithm="rign"),
    }


WORDS: dict[str, tuple[str, ...]] = {
    "unknown algorithm": ("rign", "ring", "two_tree"),
    "algorithm of another collective": ("two_tree", "barrier", "dissemination"),
    "unknown op": ("avg", "sum", "mean"),
    "op without a meaning for the dtype": ("xor", "float32", "sum"),
    "op on complex numbers": ("max", "complex64", "sum"),
    "dtype that cannot be combined": ("datetime64", "float32"),
    "Python objects": ("objects",),
    "foreign byte order": ("byte order",),
    "a list of numbers": ("array",),
    "a number": ("float", "array"),
    "shape of out": ("(9,)", "(8,)"),
    "dtype of out": ("float64", "float32"),
    "read-only out": ("out", "read-only"),
    "out with gaps": ("out", "contiguous"),
    "rows that cannot be split": ("9", "2 ranks", "sizes="),
    "sizes that do not add up": ("(1, 2)", "8 rows"),
    "sizes of other ranks": ("(1, 1)", "8 rows"),
    "half of the sizes": ("send_sizes", "recv_sizes"),
    "root that is no rank": ("root=2", "0 to 1"),
    "negative root": ("root=-1", "0 to 1"),
    "scatter without out": ("out=",),
    "peer that is no rank": ("peer=5", "rank"),
    "peer that is this rank": ("peer=", "rank"),
    "read-only recv": ("read-only",),
    "no time": ("timeout_s=0",),
    "more outs than arrays": ("2", "1"),
    "asynchronous": ("avg", "sum"),
    "prepared": ("rign", "ring"),
}


def makes_mistakes(me: Rank) -> None:
    comm: Any = me.connect()
    for warm in (False, True):  # also when the quick way for calls made before is open
        x = np.ones(8, np.float32)
        if warm:
            comm.all_reduce(x)
            comm.all_reduce(x, out=x)
        sent = comm._transport.bytes_sent
        for call in _mistakes(comm).values():
            me.attempt(call)
        me.say("sent", more=comm._transport.bytes_sent - sent)
    me.attempt(comm.all_reduce, np.ones(8, np.float32))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_mistakes_are_told_and_do_no_harm(ranks: Ranks, transport: str) -> None:
    with ranks(2, makes_mistakes, transport=transport) as job:
        for _ in range(2):
            for name, words in WORDS.items():
                for report in job.hear_all("raised"):
                    assert report["kinds"][0] in ("ValueError", "TypeError"), (name, report)
                    for word in words:
                        assert word in report["text"], (name, report["text"])
                    assert report["took_s"] < 0.5
            for report in job.hear_all("sent"):
                assert report["more"] == 0
        for report in job.hear_all("returned"):
            assert report["first"] == [2.0]


def test_every_mistake_has_its_words() -> None:
    (comm,) = cc.connect_threads(1)
    with comm:
        assert list(_mistakes(comm)) == list(WORDS)


def calls_after_close(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(8, np.float32)
    comm.all_reduce(x)
    group = comm.split(color=0)
    assert group is not None
    group.all_reduce(x)
    call = comm.prepare.all_reduce(x, out=x)
    comm.close()
    for attempt in (
        lambda: comm.all_reduce(x), lambda: comm.all_reduce(x, op="max"), comm.barrier, call,
        lambda: comm.all_reduce_async(x), lambda: comm.send(x, 1 - me.rank), lambda: comm.split(color=0),
        lambda: comm.by_host(), lambda: comm.empty(8), lambda: comm.prepare.all_reduce(x), lambda: group.all_reduce(x),
        group.barrier,
    ):  # fmt: skip
        me.attempt(attempt)
    comm.close()
    me.say("shown", text=repr(comm))


def test_after_close_every_call_says_so(ranks: Ranks) -> None:
    with ranks(2, calls_after_close) as job:
        for _ in range(12):
            for report in job.hear_all("raised"):
                assert report["kinds"][0] == "CommunicatorBroken", report
                assert "closed" in report["text"]
        for report in job.hear_all("shown"):
            assert "closed" in report["text"]


def closes_from_another_thread(me: Rank) -> None:
    comm = me.connect()
    comm.barrier()
    if me.rank == 0:
        thread = threading.Thread(target=lambda: (me.wait_for("close"), comm.close()))
        thread.start()
        me.say("waits")
        me.attempt(comm.recv, np.ones(8, np.float32), 1)
        thread.join()
        return
    me.wait_for("end")
    me.attempt(comm.barrier)


def test_close_ends_a_call_of_another_thread(ranks: Ranks) -> None:
    with ranks(2, closes_from_another_thread) as job:
        job.hear("waits", 0)
        job.wait_until_it_sleeps(0)
        job.tell("close", 0)
        report = job.hear("raised", 0)
        assert report["kinds"][0] == "CommunicatorBroken", report
        assert "closed" in report["text"]
        job.tell("end", 1)
        assert job.hear("raised", 1)["kinds"][0] == "PeerLostError"


def forks(me: Rank, busy: bool) -> None:
    comm = me.connect()
    x = np.ones(8, np.float32)
    comm.all_reduce(x)
    group = comm.split(color=0)
    assert group is not None
    group.all_reduce(x)
    call = comm.prepare.all_reduce(x, out=x)
    work = comm.all_reduce_async(np.ones(8, np.float32)) if busy else None
    pid = os.fork()
    if pid == 0:
        me.attempt(comm.all_reduce, x)
        me.attempt(comm.all_reduce, x, op="max")
        me.attempt(comm.barrier)
        me.attempt(call)
        me.attempt(comm.all_reduce_async, x)
        me.attempt(comm.recv, x, 1 - me.rank)
        me.attempt(group.all_reduce, x)
        me.attempt(comm.split, color=0)
        me.attempt(comm.empty, 8)
        comm.close()
        me.leaves_open = True
        return  # and ends as a process does, handlers at exit and all
    _, status = os.waitpid(pid, 0)
    me.say("child", code=os.waitstatus_to_exitcode(status))
    if work is not None:
        work.wait()
    me.attempt(comm.all_reduce, np.ones(8, np.float32))
    me.attempt(group.all_reduce, np.ones(8, np.float32))
    another = comm.split(color=0)  # new connections: the listener is alive
    assert another is not None
    me.attempt(another.all_reduce, np.ones(8, np.float32))


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_forked_child_is_told_and_its_parent_goes_on(ranks: Ranks, transport: str, busy: bool) -> None:
    with ranks(2, forks, busy, transport=transport) as job:
        for _ in range(9):
            for report in job.hear_all("raised"):
                assert report["kinds"][0] == "UnsupportedError", report
                assert "fork" in report["text"]
        for report in job.hear_all("child"):
            assert report["code"] == 0, job.log(report["rank"])
        for _ in range(3):
            for report in job.hear_all("returned"):
                assert report["first"] == [2.0]


def forks_and_dies(me: Rank) -> None:
    comm = me.connect()
    comm.barrier()
    if me.rank == 1:
        me.leaves_open = True
        child = os.fork()
        if child == 0:
            me.say("child", pid=os.getpid())
            me.wait_for("end")
            return
        os.waitpid(child, 0)
    me.say("calling")
    me.attempt(comm.all_reduce, np.ones(8, np.float32), algorithm="ring")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_child_does_not_hide_the_death_of_its_parent(ranks: Ranks, transport: str) -> None:
    """The child has inherited the connections; its parent's end is seen all the same."""
    with ranks(3, forks_and_dies, transport=transport) as job:
        child = job.hear("child", 1)["pid"]
        for rank in (0, 2):
            job.hear("calling", rank)
        at = job.kill(1)
        for rank in (0, 2):
            report = job.hear("raised", rank)
            assert report["kinds"][0] == "PeerLostError", report
            assert f"lost rank 1 (process {job.pid(1)} on " in report["text"], report["text"]
            assert report["at"] - at < 1.0
        job.tell("end", 1)
        job.disown(child)
