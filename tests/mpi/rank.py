"""One rank of the jobs that test_mpi_transport.py starts: `python -m tests.mpi.rank NAME` under mpiexec."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import collectives as cc
from tests import on_gpu
from tests.cases import HOWS, PLACES, REDUCING, ROOTED, SPLITTING, WHOLE, Case, perform
from tests.fake_cupy import FakeCupy
from transports import mpi

DTYPES = ("float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64")
NOT_NATIVE = ("float16", "bool", "int8", "uint16")  # in every MPI


def drawn(chance: random.Random, size: int, native: bool) -> Case:
    """A call, the same on every rank."""
    collective, place = chance.choice([*WHOLE, *SPLITTING]), chance.choice(PLACES)
    most = chance.choice([5, 3000, 300_000])
    uneven = collective in SPLITTING and chance.random() < 0.5
    if collective == "all_to_all":
        uneven = uneven and place != "in place"
        one = chance.randrange(most // size + 1)
        rows = tuple(tuple(chance.randrange(most) if uneven else one for _ in range(size)) for _ in range(size))
    elif collective in SPLITTING:
        one = chance.randrange(most)
        rows = (tuple(chance.randrange(most) if uneven else one for _ in range(size)),)
    else:
        rows = ((chance.randrange(most),),)
    reduces = collective in REDUCING
    dtype = chance.choice([d for d in DTYPES if not (native and reduces and d in NOT_NATIVE)])
    ops = {"bool": ("sum", "and"), "complex64": ("sum", "mean")}.get(dtype, ("sum", "max", "mean"))
    return Case(
        collective, size, rows, uneven=uneven, place=place, dtype=dtype,
        op=chance.choice(ops) if reduces else "sum",
        algorithm="native" if native else chance.choice(("auto", *cc.algorithms(collective))),
        root=chance.randrange(size) if collective in ROOTED else 0,
        shift=0 if native else chance.choice([0, 0, 1, 5]),
    )  # fmt: skip


def every_call(comm: cc.Communicator) -> None:
    chance = random.Random(7)
    for number in range(160):
        case = drawn(chance, comm.size, native=number % 4 == 0)
        perform(comm, case, [chance.choice(HOWS)], rounds=2)


def refusals(comm: cc.Communicator) -> None:
    with pytest.raises(ValueError, match="no arithmetic for float16"):
        comm.all_reduce(np.ones(4, np.float16), algorithm="native")
    with pytest.raises(ValueError, match="its order is its own"):
        comm.all_reduce(np.ones(4), algorithm="native", reproducible=True)
    comm.use(rules=[{"collective": "all_reduce", "algorithm": "native"}])
    assert comm.all_reduce(np.ones(4, np.float16)).tolist() == [comm.size] * 4  # by a plan instead


def choice(comm: cc.Communicator) -> None:
    comm.tune(["all_reduce"], sizes=[4096], budget_s=10)
    told = comm.explain("all_reduce", nbytes=4096)
    native = next(c for c in told.candidates if c.algorithm == "native")
    assert native.measured_s is not None
    assert native.measured_s > 0


def groups(comm: cc.Communicator) -> None:
    half = comm.split(color=comm.rank % 2)
    assert half is not None
    assert half.all_reduce(np.array([comm.rank])).tolist() == [sum(range(comm.rank % 2, comm.size, 2))]
    assert half.all_reduce(np.array([comm.rank]), algorithm="native")[0] == half.all_reduce(np.array([comm.rank]))[0]
    inside, across = comm.by_host()
    assert (inside.size, across.size) == (comm.size, 1)
    parts = [comm.split(color=0) for _ in range(3)]
    totals = [0.0] * 3

    def work(i: int) -> None:
        part = parts[i]
        assert part is not None
        for _ in range(20):
            totals[i] = part.all_reduce(np.full(10_000, i + 1.0))[-1]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert totals == [comm.size * 1.0, comm.size * 2.0, comm.size * 3.0]


def messages(comm: cc.Communicator) -> None:
    if comm.size == 1:
        return
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for count in (0, 1, 200_000):
        x, y = np.full(count, comm.rank), np.empty(count, int)
        if comm.rank % 2 == 0:
            comm.send(x, after)
            comm.recv(y, before)
        else:
            comm.recv(y, before)
            comm.send(x, after)
        assert (y == before).all()


def trace(comm: cc.Communicator) -> None:
    with comm.trace() as calls:
        comm.all_reduce(np.ones(1000), algorithm="ring")
    (call,) = calls
    assert len(call.steps) >= 4 * (comm.size - 1) - 1
    assert all(call.began_s <= step.began_s <= step.ended_s <= call.ended_s for step in call.steps)


def mismatch(comm: cc.Communicator) -> None:
    call = comm.all_gather if comm.rank == 1 else comm.all_reduce
    with pytest.raises(cc.MismatchError, match=r"called (all_reduce|all_gather).*called (all_reduce|all_gather)"):
        call(np.ones(100, np.float32), algorithm="ring")
    with pytest.raises(cc.CommunicatorBroken, match="called all_gather"):
        comm.barrier()


def other_count(comm: cc.Communicator) -> None:
    with pytest.raises(cc.MismatchError, match="elements"):
        comm.all_reduce(np.ones(100 + (comm.rank == 0)), algorithm="recursive_doubling")


def late(comm: cc.Communicator) -> None:
    """The last rank never calls: all others hear of it, through one another."""
    comm.barrier()
    last = comm.size - 1
    if comm.rank != last:
        began = time.monotonic()
        with pytest.raises(cc.DeadlineExceeded, match=rf"waiting for rank {last}"):
            comm.broadcast(np.ones(10), root=last, algorithm="ring", timeout_s=1.0)
        assert 0.9 < time.monotonic() - began < 20
        return
    deadline = time.monotonic() + 30
    while comm._transport.failure is None and time.monotonic() < deadline:  # type: ignore[attr-defined]
        comm._transport.control.poll()  # type: ignore[attr-defined]


def leaving(comm: cc.Communicator) -> None:
    comm.barrier()
    if comm.rank == 0:
        comm.close()
        comm.close()
        with pytest.raises(cc.CommunicatorBroken, match="closed"):
            comm.barrier()
    else:
        with pytest.raises(cc.PeerLostError, match=r"rank 0 .* closed the communicator"):
            comm.all_reduce(np.ones(1000), algorithm="ring")


def low_thread_level(comm: cc.Communicator) -> None:
    assert comm.all_reduce(np.ones(3)).tolist() == [comm.size] * 3
    with pytest.raises(cc.UnsupportedError, match=r"MPI_THREAD_SINGLE.*background"):
        comm.all_reduce_async(np.ones(3))


def on_a_gpu() -> None:
    """As under an MPI that takes CUDA memory: the GPU is made up, its memory is the host's."""
    cupy = FakeCupy(eager=False)
    sys.modules.update({"cupy": cupy, "cupy.cuda": cupy.cuda})  # type: ignore[dict-item]
    mpi.takes_cuda = lambda _: True
    try:
        with cc.connect(transport="mpi", timeout_s=30) as comm:
            for name in on_gpu.COLLECTIVES:
                on_gpu.every_algorithm(comm, cupy, name, native=True)
            streamed(comm, cupy)
    finally:
        cupy.close()


def streamed(comm: cc.Communicator, cupy: FakeCupy) -> None:
    """Means, calls in the background, and messages, each after work of the caller's stream that nobody waited for."""
    total = sum(range(comm.size))
    x = cupy.array(np.full(100_000, float(comm.rank)))
    assert (comm.all_reduce(x, op="mean").get() == total / comm.size).all()
    assert (comm.all_reduce(x, op="mean", algorithm="native").get() == total / comm.size).all()
    x.set(np.full(100_000, comm.rank + 1.0))
    job = comm.all_reduce_async(x)
    assert (job.wait(30).get() == total + comm.size).all()
    if comm.rank == 0:
        comm.send(x, 1)
    elif comm.rank == 1:
        y = cupy.empty(100_000, np.float64)
        comm.recv(y, 0)
        assert (y.get() == 1).all()
    part = comm.split(color=comm.rank % 2)
    assert part is not None
    with part:
        assert part.all_reduce(x).get()[0] == sum(range(comm.rank % 2 + 1, comm.size + 1, 2))
    with pytest.raises(ValueError, match="both must be on one device"):
        comm.all_reduce(x, out=np.empty(100_000))


RIGHT: tuple[Callable[[Any], None], ...] = (every_call, refusals, choice, groups, messages, trace)
WRONG: tuple[Callable[[Any], None], ...] = (mismatch, other_count, late, leaving)


def main() -> None:
    name = sys.argv[1]
    if name == "low_thread_level":
        import mpi4py

        mpi4py.rc.thread_level = "single"
        with cc.connect(transport="mpi") as comm:
            low_thread_level(comm)
        print("ok")
        return
    if name == "on_a_gpu":
        on_a_gpu()
        print("ok")
        return
    with cc.connect(transport="mpi", timeout_s=30) as comm:
        for body in RIGHT if name == "right" else WRONG:
            part = comm.split(color=0)
            assert part is not None
            with part:
                try:
                    body(part)
                except BaseException as error:
                    print(f"rank {comm.rank}, {body.__name__}: {type(error).__name__}: {error}", flush=True)
                    raise
            comm.barrier()
    print("ok")


if __name__ == "__main__":
    main()
