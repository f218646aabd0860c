"""Without memory to share, a rank says so or uses TCP; no process ever dies of SIGBUS."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

Ranks = Callable[..., AbstractContextManager[Job]]

# Enough for the store's cards, too little for a lane. What is asked beyond it is refused, as on a full /dev/shm.
FEW_BYTES = 64 << 10
LARGE = 1 << 20


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def limit(who: list[int], rank: int) -> None:
    if rank in who:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, FEW_BYTES))


def calls_without_memory(me: Rank, who: list[int]) -> None:
    limit(who, me.rank)
    comm = me.connect(timeout_s=5.0)
    lines = Lines()
    logging.getLogger("treering").addHandler(lines)
    x = np.ones(LARGE, np.float32)
    for algorithm in ("direct", "ring", "two_tree"):
        if not me.attempt(comm.all_reduce, x, algorithm=algorithm):
            break
    me.say("logged", lines=lines.lines)


@pytest.mark.parametrize("who", [[0], [1], [0, 1, 2, 3]], ids=str)
def test_auto_goes_over_tcp_and_says_so_once(ranks: Ranks, who: list[int]) -> None:
    with ranks(4, calls_without_memory, who) as job:
        for _ in range(3):
            for report in job.hear_all("returned"):
                assert report["first"] == [4.0]
        for report in job.hear_all("logged"):
            short = report["rank"] in who and report["rank"] < 3  # of two ranks the lower one brings the memory
            assert len(report["lines"]) == short, report
            for line in report["lines"]:
                assert "bytes of shared memory" in line, line
                assert "uses TCP" in line, line


def test_shm_is_an_error_that_says_what_to_do(ranks: Ranks) -> None:
    with ranks(4, calls_without_memory, [0, 1, 2, 3], transport="shm") as job:
        kinds = []
        for report in job.hear_all("raised"):
            kinds.append(report["kinds"][0])
            if kinds[-1] == "TransportError":
                assert "bytes of shared memory" in report["text"], report["text"]
                assert '"auto" or "tcp"' in report["text"], report["text"]
            else:
                assert kinds[-1] == "PeerLostError", report["text"]
            assert report["took_s"] < 2.0, report
        assert "TransportError" in kinds
        job.hear_all("logged")


def test_shm_where_one_rank_lacks_it(ranks: Ranks) -> None:
    with ranks(3, calls_without_memory, [0], transport="shm") as job:
        assert job.hear("raised", 0)["kinds"][0] == "TransportError"
        for rank in (1, 2):
            report = job.hear("raised", rank)
            assert report["kinds"][0] == "PeerLostError", report["text"]
            assert f"rank 0 (process {job.pid(0)} on " in report["text"], report["text"]
            assert report["took_s"] < 2.0, report
        job.hear_all("logged")


def allocates_without_memory(me: Rank) -> None:
    limit([0], me.rank)
    comm = me.connect(transport="tcp")
    if me.rank == 0:
        me.attempt(comm.empty, LARGE)
    x = np.ones(LARGE, np.float32)
    me.attempt(comm.all_reduce, x)


def test_registered_memory_is_an_error_and_nothing_is_broken(ranks: Ranks) -> None:
    with ranks(2, allocates_without_memory) as job:
        report = job.hear("raised", 0)
        assert report["kinds"][0] == "TransportError", report
        assert str(LARGE * 4) in report["text"], report["text"]
        job.hear_all("returned")


def calls_with_few_descriptors(me: Rank) -> None:
    comm = me.connect(timeout_s=5.0, join_timeout_s=5.0)
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if me.rank == 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, most))
    me.attempt(comm.all_reduce, np.ones(16, np.float32), algorithm="direct")
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_without_descriptors_there_is_an_error(ranks: Ranks, transport: str) -> None:
    with ranks(4, calls_with_few_descriptors, transport=transport) as job:
        for report in job.hear_all("raised"):
            assert "CollectiveError" in report["kinds"], report
            assert report["took_s"] < 8.0
        job.hear_all("raised")


CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def with_a_tiny_shared_memory(me: Rank) -> None:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS) != 0 and libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    can = libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    can = can and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m") == 0
    me.say("mounted", can=can)
    if not can:
        return
    comm = me.connect()
    x = comm.empty(4 * LARGE)
    x += 1
    me.attempt(comm.all_reduce, x, out=x)


def test_a_tiny_dev_shm_does_not_matter(ranks: Ranks) -> None:
    """As in a container: 1 MiB in /dev/shm, and 16 MiB of registered memory on each of 4 ranks."""
    with ranks(4, with_a_tiny_shared_memory, transport="shm") as job:
        if not all(report["can"] for report in job.hear_all("mounted")):
            pytest.skip("this user may not mount")
        for report in job.hear_all("returned"):
            assert report["first"] == [4.0]
