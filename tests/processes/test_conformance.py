"""The engine keeps the contract of transports: the public kit, on ranks that are processes, of which one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
from conftest import Job
from rank_process import Rank

from tests.conformance.connecting import connect_engine
from transports import conformance
from transports.base import Transport

Ranks = Callable[..., AbstractContextManager[Job]]

NAMES = [*conformance.CHECKS]
PARTS = [NAMES[:20], NAMES[20:50], NAMES[50:]]  # of which each takes less than a test waits for a word


def run_kit(me: Rank, directory: str, transport: str, ring_bytes: int) -> None:
    def connect(name: str) -> Transport:
        return connect_engine(directory, name, me.rank, me.size, transport, ring_bytes)

    die = partial(os.kill, os.getpid(), signal.SIGKILL)
    for names in PARTS:
        try:
            report = conformance.check_rank(connect, me.rank, me.size, checks=names, die=die)
        except conformance.ConformanceError as error:
            report = error.report
        me.say("report", text=str(report), failed=report.of("failed"), not_checked=report.of("not checked"))


@pytest.mark.parametrize(("transport", "ring_bytes"), [("shm", 4096), ("tcp", 256 << 10)])
def test_the_engine_keeps_the_contract(ranks: Ranks, tmp_path: object, transport: str, ring_bytes: int) -> None:
    natives = [name for name in conformance.CHECKS if name.startswith("native ")]
    with ranks(3, run_kit, str(tmp_path), transport, ring_bytes) as job:
        for rank in (0, 1):
            not_checked: list[str] = []
            for _ in PARTS:
                report = job.hear("report", rank)
                assert report["failed"] == [], report["text"]
                not_checked += report["not_checked"]
            assert not_checked == ["an array of 2 GiB and more", *natives]
        job.ends(2, -signal.SIGKILL)
