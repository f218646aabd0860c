"""The `torch` transport on Gloo: every collective, ways to call, groups, and what happens when a rank is no good."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist  # here, so that the ranks find it loaded

from collectives import algorithms
from tests.cases import HOWS, SPLITTING, WHOLE, Case, perform

Job = Callable[..., contextlib.AbstractContextManager[Any]]
torch.set_num_threads(1)


def rows_of(collective: str, size: int, each: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Rows of every rank's part: `each` in turn, or all of them for one array."""
    if collective in WHOLE:
        return ((sum(each),),)
    if collective == "all_to_all":
        return tuple(tuple(each[(i + j) % size] for j in range(size)) for i in range(size))
    return (each,)


# ---------------------------------------------------------------- calls


def every_collective(me: Any, algorithm: str) -> None:
    comm = me.connect(transport="torch")
    even, uneven = (1000,) * me.size, tuple(30_000 * (rank % 3) for rank in range(me.size))
    for collective in (*WHOLE, *SPLITTING):
        names = algorithms(collective) if algorithm == "all" else (algorithm,)
        for name in names:
            for each in (even, uneven):
                case = Case(
                    collective, me.size, rows_of(collective, me.size, each), uneven=collective in SPLITTING,
                    algorithm=name, root=me.size - 1,
                )  # fmt: skip
                with contextlib.suppress(_NotForThisSize):
                    _perform(comm, case)
    comm.barrier()


class _NotForThisSize(Exception):
    pass


def _perform(comm: Any, case: Case) -> None:
    try:
        perform(comm, case)
    except ValueError as error:
        if case.algorithm == "auto" or ("ranks" not in str(error) and "hosts" not in str(error)):
            raise
        raise _NotForThisSize from error


@pytest.mark.parametrize(("size", "algorithm"), [(1, "auto"), (3, "auto"), (4, "all")])
def test_every_collective_and_algorithm(ranks: Job, size: int, algorithm: str) -> None:
    with ranks(size, every_collective, algorithm):
        pass


def every_dtype(me: Any) -> None:
    comm = me.connect(transport="torch")
    for dtype in ("float16", "bfloat16", "float64", "int8", "uint16", "int64", "bool", "complex64"):
        perform(comm, Case("all_reduce", me.size, ((5003,),), dtype=dtype, algorithm="ring", shift=dtype == "int8"))
    perform(comm, Case("reduce_scatter", me.size, ((100, 200, 300),), dtype="int32", op="mean", uneven=True))


def test_every_dtype(ranks: Job) -> None:
    with ranks(3, every_dtype):
        pass


def every_way(me: Any) -> None:
    comm = me.connect(transport="torch")
    for collective in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "exscan"):
        for place in ("new", "out", "in place"):
            rows = rows_of(collective, me.size, (40_000,) * me.size)
            perform(comm, Case(collective, me.size, rows, place=place), HOWS, rounds=2)
    works = [comm.all_reduce_async(np.full(100_000, i, np.float32)) for i in range(5)]
    assert [float(work.wait(10.0)[0]) for work in works] == [me.size * i for i in range(5)]
    results = comm.all_reduce([np.ones(10), np.full(70_000, 2, np.int32)])
    assert [r[0] for r in results] == [me.size, 2 * me.size]
    with comm.trace() as calls:
        comm.all_reduce(np.ones(1000), algorithm="ring")
    assert len(calls) == 1
    steps = calls[0].steps
    assert steps
    assert all(calls[0].began_s <= step.began_s <= step.ended_s <= calls[0].ended_s for step in steps)


def test_in_place_in_the_background_prepared_lists_and_traces(ranks: Job) -> None:
    with ranks(3, every_way):
        pass


def tensors(me: Any) -> None:
    comm = me.connect(transport="torch")
    x = torch.full((1000,), float(me.rank + 1), dtype=torch.bfloat16)
    total = comm.all_reduce(x)
    assert isinstance(total, torch.Tensor)
    assert total.dtype == torch.bfloat16
    assert total.tolist() == [6.0] * 1000
    with pytest.raises(TypeError, match="meta"):
        comm.all_reduce([x, torch.empty(3, device="meta")])


def test_tensors(ranks: Job) -> None:
    with ranks(3, tensors):
        pass


def native(me: Any) -> None:
    comm = me.connect(transport="torch")
    for collective in (*WHOLE[:3], *SPLITTING):
        for place in ("new", "out", "in place"):
            rows = rows_of(collective, me.size, (500,) * me.size)
            perform(comm, Case(collective, me.size, rows, algorithm="native", root=1, place=place), rounds=2)
    perform(comm, Case("all_to_all", me.size, ((1, 2, 3), (4, 0, 5), (6, 7, 0)), algorithm="native", uneven=True))
    perform(comm, Case("all_reduce", me.size, ((999,),), algorithm="native", dtype="float64", op="mean"))
    perform(comm, Case("all_reduce", me.size, ((999,),), algorithm="native", dtype="bfloat16", op="max"))
    comm.barrier(algorithm="native")
    x = np.ones(6, np.int32)
    for call in (
        lambda: comm.scan(x, algorithm="native"),
        lambda: comm.all_reduce(x, op="xor", algorithm="native"),
        lambda: comm.all_reduce(x.astype(np.complex64), algorithm="native"),
        lambda: comm.reduce_scatter(x, sizes=(1, 2, 3), algorithm="native"),
    ):
        with pytest.raises(ValueError, match=r"native.*torch\.distributed"):
            call()
    assert comm.all_reduce(x).tolist() == [3] * 6  # nothing was sent


def test_native(ranks: Job) -> None:
    with ranks(3, native):
        pass


def groups(me: Any) -> None:
    comm = me.connect(transport="torch")
    part = comm.split(color=me.rank % 2)
    inside, _across = comm.by_host()
    for c in (part, inside, comm, part):
        assert c.all_reduce(np.full(50_000, 1.0))[-1] == c.size
    if part.rank == 0:
        part.send(np.arange(5), 1)
    else:
        assert part.recv(np.empty(5, np.int64), 0).tolist() == [0, 1, 2, 3, 4]
    part.close()
    assert comm.all_gather(np.array([me.rank])).tolist() == [0, 1, 2, 3]


def test_groups_and_messages(ranks: Job) -> None:
    with ranks(4, groups):
        pass


def in_the_default_group(me: Any, path: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(path, me.size), rank=me.rank, world_size=me.size)
    try:
        import collectives as cc

        with cc.connect(transport="torch") as comm:
            assert (comm.rank, comm.size) == (me.rank, me.size)
            assert "torch.distributed" in repr(comm)
            assert comm.all_reduce(np.ones(1000))[0] == me.size
            theirs = torch.ones(3)
            dist.all_reduce(theirs)
            assert theirs[0] == me.size
        me.attempt(cc.connect, store="/nowhere", rank=0, size=1, transport="torch")
    finally:
        dist.destroy_process_group()


def test_a_default_process_group_is_joined(ranks: Job, tmp_path: Any) -> None:
    with ranks(2, in_the_default_group, str(tmp_path / "default")) as job:
        for told in job.hear_all("raised"):
            assert "RendezvousError" in told["kinds"]
            assert "default process group" in told["text"]


# ---------------------------------------------------------------- failures


def other_calls(me: Any) -> None:
    comm = me.connect(transport="torch", timeout_s=20.0)
    comm.all_reduce(np.ones(10))
    me.attempt(comm.all_reduce, np.ones(10 + (me.rank == 1)), algorithm="ring")
    me.attempt(comm.all_reduce, np.ones(10), algorithm="ring")


def test_other_calls_are_a_mismatch(ranks: Job) -> None:
    with ranks(3, other_calls) as job:
        for told in job.hear_all("raised"):
            assert told["kinds"][0] == "MismatchError"
            assert "11 elements" in told["text"]
        for told in job.hear_all("raised"):
            assert told["kinds"][0] == "CommunicatorBroken"


def other_sizes(me: Any, algorithm: str) -> None:
    comm = me.connect(transport="torch", timeout_s=20.0)
    sends, recvs = [([1, 20_000], [1, 3]), ([3, 4], [10_000, 4])][me.rank]
    me.attempt(comm.all_to_all, np.ones(sum(sends)), send_sizes=sends, recv_sizes=recvs, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["auto", "native"])
def test_sizes_that_two_ranks_disagree_on_are_a_mismatch(ranks: Job, algorithm: str) -> None:
    with ranks(2, other_sizes, algorithm) as job:
        for told in job.hear_all("raised"):
            assert told["kinds"][0] == "MismatchError"
            assert "all_to_all" in told["text"]


def one_stays_away(me: Any) -> None:
    comm = me.connect(transport="torch", timeout_s=20.0)
    comm.all_reduce(np.ones(10))
    if me.rank != 2:
        me.attempt(comm.all_reduce, np.ones(10), timeout_s=0.4)
        me.say("over")
    me.wait_for("end")


def test_a_rank_that_stays_away_is_named(ranks: Job) -> None:
    with ranks(3, one_stays_away) as job:
        for told in job.hear_all("raised", but=(2,)):
            assert "DeadlineExceeded" in told["kinds"]
            assert "rank 2" in told["text"]
            assert "has not made this call" in told["text"]
        job.hear_all("over", but=(2,))
        job.tell("end")


def working(me: Any, elements: int, timeout_s: float) -> None:
    comm = me.connect(transport="torch", timeout_s=timeout_s)
    x, out = np.ones(elements, np.float32), np.empty(elements, np.float32)
    me.until_it_fails(comm.all_reduce, x, out=out)
    me.attempt(comm.all_reduce, x)


@pytest.mark.parametrize("elements", [100, 4 << 20])
def test_a_killed_rank_is_named(ranks: Job, elements: int) -> None:
    with ranks(4, working, elements, 20.0) as job:
        job.hear_all("calling")
        job.kill(2)
        for told in job.hear_all("raised", but=(2,)):
            assert told["kinds"][0] == "PeerLostError"
            assert "lost rank 2 (process" in told["text"]
        for told in job.hear_all("raised", but=(2,)):
            assert told["kinds"][0] == "CommunicatorBroken"


def test_a_stopped_rank_ends_in_a_deadline(ranks: Job) -> None:
    with ranks(3, working, 4 << 20, 1.0) as job:
        job.hear_all("calling")
        job.stop(1)
        for told in job.hear_all("raised", but=(1,)):
            assert "DeadlineExceeded" in told["kinds"]
        job.hear_all("raised", but=(1,))
        job.go_on(1)
        job.hear("raised", 1)
        job.hear("raised", 1)


def interrupted(me: Any) -> None:
    comm = me.connect(transport="torch", timeout_s=20.0)
    comm.all_reduce(np.ones(10))
    if me.rank != 0:
        me.say("calling")
        me.attempt(comm.all_reduce, np.ones(10))
    me.wait_for("end")


def test_an_interrupt_ends_a_call(ranks: Job) -> None:
    with ranks(2, interrupted) as job:
        job.hear("calling", 1)
        job.wait_until_it_sleeps(1)
        job.signal(signal.SIGINT, 1)
        assert job.hear("raised", 1)["kinds"][0] == "KeyboardInterrupt"
        job.tell("end")


def leaving(me: Any) -> None:
    comm = me.connect(transport="torch", timeout_s=20.0)
    comm.all_reduce(np.ones(10))
    if me.rank == 0:
        comm.close()
        me.attempt(comm.all_reduce, np.ones(10))
    else:
        me.attempt(comm.all_reduce, np.ones(10))


def test_a_rank_that_closed_its_communicator_is_named(ranks: Job) -> None:
    with ranks(2, leaving) as job:
        assert job.hear("raised", 0)["kinds"][0] == "CommunicatorBroken"
        told = job.hear("raised", 1)
        assert told["kinds"][0] == "PeerLostError"
        assert "rank 0" in told["text"]
        assert "closed the communicator" in told["text"]
