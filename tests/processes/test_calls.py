"""Asynchronous and prepared calls, registered memory, sub-communicators at the same time, and coming and going."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, Job, wait_until
from rank_process import Rank

import collectives as cc
from tests.cases import SPLITTING, WHOLE, Case, perform

Ranks = Callable[..., AbstractContextManager[Job]]

both_transports = pytest.mark.parametrize("transport", ["shm", "tcp"])


def total_of(size: int, offset: float = 0.0) -> float:
    return sum(rank + offset for rank in range(size))


# ---------------------------------------------------------------- asynchronous calls


def compute_meanwhile(me: Rank) -> None:
    comm = me.connect()
    x = np.full(2_000_003, me.rank + 1, np.int64)
    matrix = np.arange(90_000.0).reshape(300, 300) % 7
    product = matrix @ matrix
    for turn in range(5):
        work = comm.all_reduce_async(x + turn)
        while not work.done():
            assert np.array_equal(matrix @ matrix, product)
        assert (work.wait() == total_of(me.size, turn + 1)).all()
        assert work.wait() is work.wait()
    assert "all_reduce" in repr(work)
    assert "done" in repr(work)
    me.say("done")


def interleave(me: Rank) -> None:
    """Blocking calls come after the asynchronous ones started before them; each result is its own call's."""
    comm = me.connect()
    works: list[tuple[int, cc.Work]] = []
    for turn in range(120):
        x = np.full(1 + 37 * turn, turn * (me.rank + 1), np.int64)
        if turn % 3:
            works.append((turn, comm.all_reduce_async(x, out=x if turn % 2 else None)))
        else:
            assert (comm.all_reduce(x) == turn * total_of(me.size, 1)).all()
            assert all(work.done() for _, work in works)
    for turn, work in reversed(works):
        assert (work.wait(PATIENCE_S) == turn * total_of(me.size, 1)).all()
    me.say("done")


def drop_works(me: Rank) -> None:
    """Nobody keeps the Works or the arrays: the calls go on, on memory that stays theirs."""
    comm = me.connect()
    outs = [np.zeros(5_001, np.int32) for _ in range(300)]
    for turn, out in enumerate(outs):
        comm.all_reduce_async(np.full(5_001, turn, np.int32), out=out)
        comm.all_gather_async(np.full(777, turn, np.int16))
        if turn % 50 == 0:
            gc.collect()
    comm.barrier()
    for turn, out in enumerate(outs):
        assert (out == turn * me.size).all()
    me.say("done")


def every_collective_async(me: Rank) -> None:
    comm = me.connect()
    n, r = me.size, me.rank
    x = np.arange(2.0 * n) + r
    works = {
        "all_reduce": comm.all_reduce_async(x, op="max"),
        "reduce": comm.reduce_async(x, root=n - 1, op="min"),
        "reduce_scatter": comm.reduce_scatter_async(x),
        "all_gather": comm.all_gather_async(x[:1]),
        "broadcast": comm.broadcast_async(x, root=n - 1),
        "gather": comm.gather_async(x[:1], root=0),
        "scatter": comm.scatter_async(x if r == 0 else None, out=np.empty(2)),
        "all_to_all": comm.all_to_all_async(x),
        "barrier": comm.barrier_async(),
        "scan": comm.scan_async(x),
        "exscan": comm.exscan_async(x),
    }
    found = {name: work.wait(PATIENCE_S) for name, work in works.items()}
    found = {name: None if result is None else result.tolist() for name, result in found.items()}
    assert found == {
        "all_reduce": [float(i + n - 1) for i in range(2 * n)],
        "reduce": [float(i) for i in range(2 * n)] if r == n - 1 else None,
        "reduce_scatter": [n * (2 * r + i) + total_of(n) for i in (0, 1)],
        "all_gather": [float(rank) for rank in range(n)],
        "broadcast": [float(i + n - 1) for i in range(2 * n)],
        "gather": [float(rank) for rank in range(n)] if r == 0 else None,
        "scatter": [2.0 * r, 2.0 * r + 1],
        "all_to_all": [float(2 * r + i + rank) for rank in range(n) for i in (0, 1)],
        "barrier": None,
        "scan": [sum(i + rank for rank in range(r + 1)) for i in range(2 * n)],
        "exscan": [sum(i + rank for rank in range(r)) for i in range(2 * n)],
    }
    me.say("done")


@both_transports
@pytest.mark.parametrize("body", ["compute_meanwhile", "interleave", "drop_works", "every_collective_async"])
def test_asynchronous_calls(ranks: Ranks, transport: str, body: str) -> None:
    with ranks(3, globals()[body], transport=transport) as job:
        job.hear_all("done")


def wait_in_vain(me: Rank) -> None:
    comm = me.connect()
    if me.rank == 0:
        work = comm.all_reduce_async(np.ones(3))
        assert not work.done()
        with pytest.raises(cc.DeadlineExceeded, match="it goes on"):
            work.wait(0.02)
        assert "not known to be done" in repr(work)
        me.say("waited")
        assert work.wait(PATIENCE_S).tolist() == [2.0] * 3
    else:
        me.wait_for("go")
        assert comm.all_reduce(np.ones(3)).tolist() == [2.0] * 3
    me.say("done")


def test_a_wait_that_times_out_may_be_repeated(ranks: Ranks) -> None:
    with ranks(2, wait_in_vain) as job:
        job.hear("waited", 0)
        job.tell("go", 1)
        job.hear_all("done")


def change_the_deadline(me: Rank) -> None:
    comm = me.connect(timeout_s=PATIENCE_S)
    x = np.ones(3)
    for _ in range(3):  # the engine knows the call from now on, with the deadline it had
        assert comm.all_reduce(x).tolist() == [2.0] * 3
    with pytest.raises(ValueError, match="more than 0"):
        comm.timeout_s = 0
    comm.timeout_s = 0.3
    if me.rank == 0:
        with pytest.raises(cc.DeadlineExceeded, match=r"no progress for 0\.[34]"):
            comm.all_reduce(x)
    else:
        me.wait_for("the end")
    me.say("done")


@both_transports
def test_a_new_deadline_counts_for_calls_made_before(ranks: Ranks, transport: str) -> None:
    with ranks(2, change_the_deadline, transport=transport) as job:
        job.hear("done", 0)
        job.tell("the end", 1)
        job.hear("done", 1)


# ---------------------------------------------------------------- prepared calls


def prepare_and_repeat(me: Rank) -> None:
    comm = me.connect()
    x, out = np.empty(100, np.float32), np.empty(100, np.float32)
    fresh, placed, inside = comm.prepare.all_reduce(x), comm.prepare.all_reduce(x, out=out, op="max"), x.copy()
    in_place = comm.prepare.all_reduce(inside, out=inside)
    gather, barrier = comm.prepare.all_gather(x[:7]), comm.prepare.barrier()
    nothing = comm.prepare.reduce(x, root=0)
    exchanged = np.empty((me.size, 3), np.int64)
    exchange = comm.prepare.all_to_all(exchanged, out=exchanged)
    results = {id(fresh()) for _ in range(3)}
    assert len(results) == 1  # the same array again
    for turn in range(1000):
        x[:] = turn + me.rank
        inside[:] = x
        exchanged[:] = 10 * me.rank + np.arange(me.size)[:, None]
        assert fresh()[turn % 100] == total_of(me.size, turn)
        assert placed() is out
        assert out[99 - turn % 100] == turn + me.size - 1
        assert in_place() is inside
        assert inside[turn % 100] == total_of(me.size, turn)
        assert gather()[7 * (me.size - 1)] == turn + me.size - 1
        assert exchange()[:, 0].tolist() == [10 * rank + me.rank for rank in range(me.size)]
        assert barrier() is None
        total = nothing()
        assert total is None if me.rank else total[0] == total_of(me.size, turn)
        if turn % 100 == 0:  # others in between do not disturb
            assert comm.all_reduce(x)[0] == total_of(me.size, turn)
            comm.all_reduce_async(np.ones(1000))
    del x, inside, out
    gc.collect()
    assert fresh()[0] == total_of(me.size, 999)  # its memory lives as long as the call
    comm.close()
    with pytest.raises(cc.CommunicatorBroken, match="closed"):
        fresh()
    me.say("done")


@both_transports
def test_a_prepared_call_repeats_with_what_its_memory_holds_now(ranks: Ranks, transport: str) -> None:
    with ranks(3, prepare_and_repeat, transport=transport) as job:
        job.hear_all("done")


def prepare_everything(me: Rank) -> None:
    comm = me.connect()
    for collective in (*WHOLE, *SPLITTING):
        rows = ((5 * me.size,),) if collective in WHOLE else ((5,) * me.size,) * me.size
        for place in ("new", "out", "in place"):
            perform(comm, Case(collective, me.size, rows, place=place, root=1), ["prepared"], rounds=20)
    me.say("done")


def test_every_collective_can_be_prepared(ranks: Ranks) -> None:
    with ranks(3, prepare_everything) as job:
        job.hear_all("done")


# ---------------------------------------------------------------- registered memory


def read_in_place(me: Rank) -> None:
    comm = me.connect()
    n, r = me.size, me.rank
    transport: Any = comm._transport
    x = comm.empty((4, 65_536), np.float32)
    assert x.shape == (4, 65_536)
    assert x.dtype == np.float32
    assert not x.any()
    for collective in ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"):
        for algorithm in ("auto", *cc.algorithms(collective)):
            if collective == "all_to_all" or (collective == "reduce_scatter" and 4 % n):
                y: Any = x[:n]
            else:
                y = x
            before = transport.bytes_direct
            for turn in range(3):
                y[:] = r + turn
                found = getattr(comm, collective)(y, algorithm=algorithm)
                if collective in ("all_reduce", "reduce_scatter"):
                    assert (found == total_of(n, turn)).all()
                elif collective == "broadcast":
                    assert (found == turn).all()
                else:
                    rows = found[:: len(found) // n, 0]
                    assert rows.tolist() == [rank + turn for rank in range(n)]
            if algorithm in ("auto", "direct") and (r == 0 or collective != "broadcast"):
                assert transport.bytes_direct > before, (collective, algorithm)
    me.say("done")


def write_in_place(me: Rank) -> None:
    """Results in registered memory, in place, by views, by slices that begin anywhere, of several arrays."""
    comm = me.connect()
    n, r = me.size, me.rank
    x = comm.empty(200_003, np.int64)
    for turn in range(10):
        for begin in (0, 1, 4097):
            part = x[begin:]
            part[:] = np.arange(part.size) * (r + 1) + turn
            comm.all_reduce(part, out=part)
            assert np.array_equal(part, np.arange(part.size) * (n * (n + 1) // 2) + turn * n)
            assert (comm.broadcast(part, root=n - 1) == part).all()
    buffers = [comm.empty(50_000 + i, np.int32) for i in range(20)]
    for i, buffer in enumerate(buffers):
        buffer[:] = i
    assert all((total == n * i).all() for i, total in enumerate(comm.all_reduce(buffers)))
    plain = [np.full(50_000 + i, i, np.int32) for i in range(20)]
    assert all((total == n * i).all() for i, total in enumerate(comm.all_reduce(plain, out=buffers)))
    assert comm.empty(0).shape == (0,)
    assert comm.empty((), np.uint8).shape == ()
    assert comm.all_reduce(comm.empty((3, 0))).shape == (3, 0)
    me.say("done")


def free_memory(me: Rank) -> None:
    """Memory that is freed is gone everywhere, and memory that takes its place is read anew."""
    comm = me.connect()
    comm.all_reduce(np.ones(100_000, np.int32))
    descriptors = len(os.listdir("/proc/self/fd"))
    for turn in range(40):
        buffer = comm.empty(100_000, np.int32)
        buffer[:] = turn + me.rank
        view = buffer[10:]
        del buffer
        assert (comm.all_reduce(view) == total_of(me.size, turn)).all()
        del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + me.size  # peers' last ones may be on their way
    mapped = sum("treering-buffer" in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert mapped <= 2 * me.size
    me.say("done")


def outlive_the_communicator(me: Rank) -> None:
    comm = me.connect()
    buffer = comm.empty(1000)
    comm.all_reduce(buffer + 1, out=buffer)
    comm.close()
    assert (buffer == me.size).all()
    del buffer
    gc.collect()
    with pytest.raises(cc.CommunicatorBroken, match="closed"):
        comm.empty(3)
    me.say("done")


@pytest.mark.parametrize("body", ["read_in_place", "write_in_place", "free_memory", "outlive_the_communicator"])
@pytest.mark.parametrize("size", [2, 4])
def test_registered_memory(ranks: Ranks, size: int, body: str) -> None:
    with ranks(size, globals()[body], transport="shm") as job:
        job.hear_all("done")


@pytest.mark.parametrize("options", [{"transport": "tcp"}, {"transport": "shm", "ring_bytes": 4096, "lanes": 3}])
def test_registered_memory_works_on_every_connection(ranks: Ranks, options: dict[str, Any]) -> None:
    with ranks(3, write_in_place, **options) as job:
        job.hear_all("done")


def share_with_torch(me: Rank) -> None:
    import torch

    torch.set_num_threads(1)  # its threads would stay
    comm = me.connect()
    transport: Any = comm._transport
    tensor = torch.from_numpy(comm.empty(100_000))
    for turn in range(3):
        tensor.fill_(me.rank + turn)
        comm.all_reduce(tensor, out=tensor, algorithm="direct")
        assert (tensor == total_of(me.size, turn)).all()
    assert transport.bytes_direct > 0
    me.say("done")


def test_torch_tensors_in_registered_memory(ranks: Ranks) -> None:
    with ranks(2, share_with_torch) as job:
        job.hear_all("done")


# ---------------------------------------------------------------- groups


def split_in_many_ways(me: Rank) -> None:
    comm = me.connect()
    n, r = me.size, me.rank
    even = comm.split(color=r % 2)
    assert even is not None
    members = [rank for rank in range(n) if rank % 2 == r % 2]
    assert (even.rank, even.size) == (members.index(r), len(members))
    assert even.all_gather(np.array([r])).tolist() == members
    backwards = comm.split(color=7, key=-r)
    assert backwards is not None
    assert backwards.rank == n - 1 - r
    assert backwards.all_gather(np.array([r])).tolist() == [*range(n)][::-1]
    some = comm.split(color=None if r == 1 else -3)
    assert (some is None) == (r == 1)
    if some is not None:
        assert some.all_reduce(np.ones(3)).tolist() == [n - 1] * 3
        again = some.split(color=0)
        assert again is not None
        last = max(rank for rank in range(n) if rank != 1)
        assert again.broadcast(np.array([r]), root=again.size - 1).tolist() == [last]
    inside, across = comm.by_host()
    assert (inside.size, across.size) == (n, 1)
    assert inside.all_reduce(np.ones(1)) == n
    assert across.all_reduce(np.ones(1)) == 1
    assert f"rank {r} of {n}" in repr(comm)
    assert "split of" in repr(even)
    even.close()
    with pytest.raises(cc.CommunicatorBroken, match="closed"):
        even.barrier()
    assert comm.all_reduce(np.ones(1)) == n  # the others live on
    comm.close()
    for closed in (comm, backwards, inside):
        assert "closed" in repr(closed)
        with pytest.raises(cc.CommunicatorBroken, match="closed"):
            closed.barrier()
    me.say("done")


@both_transports
@pytest.mark.parametrize("size", [2, 5])
def test_groups(ranks: Ranks, size: int, transport: str) -> None:
    with ranks(size, split_in_many_ways, transport=transport) as job:
        job.hear_all("done")


def work_at_the_same_time(me: Rank, groups: int) -> None:
    """A thread for each communicator; the calls of different ones cross each other in any order."""
    comm = me.connect()
    mine = [comm.split(color=0, key=me.rank if i % 2 else -me.rank) for i in range(groups)]
    start = threading.Barrier(groups)

    def work(i: int) -> None:
        group = mine[i]
        assert group is not None
        start.wait(PATIENCE_S)
        for turn in range(40):
            x = np.full(1 + (i * 7919 + turn * 977) % 40_000, group.rank + turn, np.int64)
            total = group.all_reduce_async(x).wait(PATIENCE_S) if turn % 4 == i % 4 else group.all_reduce(x)
            assert (total == total_of(me.size, turn)).all()
            assert group.all_gather(x[:1])[-1] == me.size - 1 + turn

    with ThreadPoolExecutor(groups) as pool:
        for future in [pool.submit(work, i) for i in range(groups)]:
            future.result(PATIENCE_S)
    me.say("done")


@both_transports
def test_groups_work_at_the_same_time(ranks: Ranks, transport: str) -> None:
    with ranks(3, work_at_the_same_time, 4, transport=transport) as job:
        job.hear_all("done")


# ---------------------------------------------------------------- coming and going


def come_and_go(me: Rank, stores: str) -> None:
    """The first turns warm up what stays; the later ones must leave nothing."""

    def possessions() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    began, warm = possessions(), 0
    for turn in range(40):
        with me.connect(store=f"{stores}/{turn}") as comm:
            assert comm.all_reduce(np.ones(100_000, np.float32))[0] == me.size
            half = comm.split(color=me.rank % 2)
            assert half is not None
            half.all_reduce_async(comm.empty(1000)).wait(PATIENCE_S)
        me.close()
        del comm, half
        wait_until(lambda: possessions() == began)  # a thread that was joined may stand in /proc for a moment
        if turn == 10:
            warm = resident_bytes()
    if "libasan" not in Path("/proc/self/maps").read_text():  # which keeps freed memory for a while, to watch it
        assert resident_bytes() - warm < 4 << 20
    me.say("done")


@both_transports
def test_communicators_come_and_go_and_leave_nothing(ranks: Ranks, transport: str, tmp_path: Path) -> None:
    with ranks(2, come_and_go, str(tmp_path / "stores"), transport=transport) as job:
        job.hear_all("done")


def tell_repr(me: Rank) -> None:
    comm = me.connect()
    me.say("repr", text=repr(comm))
    comm.close()
    me.say("repr", text=repr(comm))
    comm.close()


@pytest.mark.parametrize(
    ("size", "transport", "how"),
    [(1, "auto", "alone"), (2, "auto", "shared memory"), (2, "shm", "shared memory"), (3, "tcp", "TCP")],
)
def test_repr_tells_who_where_and_how(ranks: Ranks, size: int, transport: str, how: str) -> None:
    with ranks(size, tell_repr, transport=transport) as job:
        for rank, told in enumerate(job.hear_all("repr")):
            assert told["text"].startswith(f"<Communicator: rank {rank} of {size} on 1 host, {how}, found by ")
            assert "closed" not in told["text"]
        assert all(told["text"].endswith("closed>") for told in job.hear_all("repr"))
