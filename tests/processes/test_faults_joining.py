"""`connect` with fewer or more ranks than announced, or one twice; and how long it takes when all is well."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from conftest import Job
from rank_process import Rank

Ranks = Callable[..., AbstractContextManager[Job]]

JOIN_S = 1.0


def joins(me: Rank, claimed: list[int], sizes: list[int]) -> None:
    def join() -> None:
        me.connect(rank=claimed[me.rank], size=sizes[me.rank], join_timeout_s=JOIN_S).barrier()

    me.attempt(join)


def test_a_missing_rank_is_named(ranks: Ranks) -> None:
    with ranks(3, joins, [0, 1, 3], [4, 4, 4]) as job:
        for report in job.hear_all("raised"):
            assert report["kinds"][0] == "RendezvousError", report
            assert "rank 2" in report["text"], report["text"]
            assert report["took_s"] < JOIN_S + 1.0


def test_a_double_rank_is_named(ranks: Ranks) -> None:
    with ranks(4, joins, [0, 1, 2, 1], [3, 3, 3, 3]) as job:
        reports = [job.hear_any("raised", "returned", rank=rank) for rank in range(4)]
        raised = [report for report in reports if report["event"] == "raised"]
        # If it came before the others were complete, nobody can tell which one is right. A late one finds itself alone.
        assert [report["rank"] for report in raised] in ([0, 1, 2, 3], [1], [3])
        for report in raised:
            assert report["kinds"][0] == "RendezvousError", report
            assert "rank 1" in report["text"] or "ranks 0, 2 of 3 are missing" in report["text"], report["text"]


def test_ranks_that_disagree_about_the_size_are_named(ranks: Ranks) -> None:
    with ranks(3, joins, [0, 1, 2], [3, 3, 4]) as job:
        for report in job.hear_all("raised"):
            assert report["kinds"][0] == "RendezvousError", report
            assert report["took_s"] < JOIN_S + 1.0


def measures(me: Rank) -> None:
    began = time.monotonic()
    comm = me.connect()
    joined = time.monotonic()
    comm.barrier()
    me.say("joined", connect_s=joined - began, barrier_s=time.monotonic() - joined)


def test_four_ranks_connect_quickly(ranks: Ranks) -> None:
    with ranks(4, measures) as job:
        reports = job.hear_all("joined")
        connect_s, barrier_s = (max(report[name] for report in reports) for name in ("connect_s", "barrier_s"))
        print(f"connect() of 4 ranks: {connect_s * 1e3:.1f} ms; the first barrier: {barrier_s * 1e3:.1f} ms")
        assert connect_s < 5.0  # half a second on a quiet machine
