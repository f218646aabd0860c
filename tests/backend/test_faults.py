"""Bad input and lost ranks: torch's exceptions, treering's words, and never the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import collectives as cc
from tests.backend.conftest import run

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


def refused(call: Callable[[], object], kind: type[BaseException], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def bad_input(rank: int, size: int) -> None:
    x = torch.ones(4)
    refused(lambda: dist.all_reduce(x.to("meta")), TypeError, "on meta")
    refused(lambda: dist.broadcast(x.to_sparse(), 0), TypeError, "sparse")
    refused(lambda: dist.all_reduce(x.to_sparse(), dist.ReduceOp.MAX), TypeError, "sums COO")
    refused(lambda: dist.all_reduce(x, dist.ReduceOp.BAND), ValueError, "op='and' has no meaning for float32")
    refused(lambda: dist.all_reduce(x.to(torch.float8_e5m2)), ValueError, "can be moved but not combined")
    refused(lambda: dist.all_gather_single(torch.empty(3), x), ValueError, "are not 2 times 4")
    refused(lambda: dist.all_to_all_single(x, x, [1, 1], [2, 2]), ValueError, "add up to 4 rows")
    refused(lambda: dist.all_gather([x], x), ValueError, "list of 2 tensors")
    dist.all_reduce(x)  # nothing is broken
    assert x[0] == size


def mismatch(rank: int, size: int) -> None:
    words = "rank . called .* but rank . called"
    refused(lambda: dist.all_reduce(torch.ones(4 + rank)), dist.DistBackendError, words)
    refused(lambda: dist.all_reduce(torch.ones(4)), cc.CommunicatorBroken, "broken since")


def mismatched_message(rank: int, size: int) -> None:
    x = torch.ones(4 + rank)
    call = (lambda: dist.recv(x, 0)) if rank else (lambda: (dist.send(x, 1), dist.recv(x, 1)))
    refused(call, dist.DistBackendError, "rank 1 called message")


def lost(rank: int, size: int) -> None:
    works = [dist.irecv(torch.ones(1), 1)] if rank != 1 else []
    dist.all_reduce(torch.ones(1))
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    refused(lambda: [dist.all_reduce(torch.ones(9)) for _ in range(9)], dist.DistNetworkError, "lost rank 1")
    for work in works:
        refused(work.wait, dist.DistNetworkError, "lost rank 1")


def late(rank: int, size: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    group = dist.new_group(timeout=timedelta(seconds=0.5))
    if rank == 0:
        work = dist.irecv(torch.ones(1), 1)
        refused(lambda: work.wait(timedelta(seconds=0.1)), dist.DistBackendError, "timeout")
        refused(lambda: dist.barrier(group=group), RuntimeError, "timeout ran out.*rank 1.*not made this call")
        store.set("over", "yes")
    else:
        store.wait(["over"], timedelta(seconds=20))
        dist.send(torch.ones(1), 0)


def future_of_a_failure(rank: int, size: int) -> None:
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    loss = wrapped(torch.ones(3)).sum()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    refused(loss.backward, RuntimeError, "lost rank 1")


def test_bad_input() -> None:
    run(2, bad_input)


def test_a_mismatch_is_told_on_both_sides() -> None:
    run(2, mismatch)


def test_messages_that_do_not_fit() -> None:
    run(2, mismatched_message)


def test_a_lost_rank() -> None:
    run(3, lost, lost=(1,))


def test_a_late_rank() -> None:
    run(2, late)


def test_a_rank_lost_in_a_backward_pass() -> None:
    run(2, future_of_a_failure, lost=(1,))


def nothing_left(rank: int, size: int) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    before = held()
    dist.init_process_group("treering", store=dist.PrefixStore("again", store), rank=rank, world_size=size)
    dist.all_reduce(torch.ones(3), async_op=True).get_future().wait()
    works = [dist.isend(torch.ones(3), 1 - rank), dist.irecv(torch.ones(3), 1 - rank)]
    for work in works:
        work.wait()
    dist.destroy_process_group()
    del work, works  # what is still held holds three descriptors
    deadline = time.monotonic() + 10
    while held() != before and time.monotonic() < deadline:  # the system is a little later than Python
        time.sleep(0.001)
    assert held() == before, [thread.name for thread in threading.enumerate()]


def no_thread_left(rank: int, size: int) -> None:
    from collectives.torch_backend.work import _close_all

    def named() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("treering")]

    before = named()
    works = [dist.all_reduce(torch.ones(3), async_op=True), dist.irecv(torch.ones(3), 1 - rank)]  # which never comes
    futures = [work.get_future() for work in works]
    assert len(named()) == len(before) + 2
    works[0].wait()
    dist.barrier()
    _close_all()  # as Python does at its end: a thread that then wanted the GIL would abort the process
    assert not set(named()) - set(before)
    refused(futures[1].wait, RuntimeError, "closed|left")


def test_no_thread_is_left_when_python_ends() -> None:
    run(2, no_thread_left)


def test_destroying_a_group_leaves_nothing() -> None:
    run(2, nothing_left)


RESTARTED = """
import os, signal
import torch, torch.distributed as dist
import collectives.torch_backend
dist.init_process_group("treering")
x = torch.ones(1)
dist.all_reduce(x)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
dist.all_reduce(x)
os.write(1, f"total {x.item()} after {os.environ['TORCHELASTIC_RESTART_COUNT']}\\n".encode())  # in one piece
dist.destroy_process_group()
"""


def test_torchrun_brings_a_group_back(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RESTARTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", "--max-restarts", "1", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("total 4.0 after 1") == 2
