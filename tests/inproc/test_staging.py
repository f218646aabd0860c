"""Arrays on GPUs over a transport of the CPU, on GPUs that are made up (fake_cupy.py)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import collectives as cc
from collectives import staging
from tests.fake_cupy import FakeCupy
from tests.references import expected
from transports.inproc import InprocTransport

MOVES = ["broadcast", "all_gather", "gather", "scatter", "all_to_all"]
REDUCES = ["all_reduce", "reduce", "reduce_scatter", "scan", "exscan"]
SIZE, ROWS = 3, 12


@pytest.fixture(params=[False, True], ids=["lazy", "eager"])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    fake = FakeCupy(request.param)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(staging, "PIECE_BYTES", 64)
    execute = InprocTransport._execute

    def checked(self: Any, compiled: Any, timeout_s: float, buffers: Any, message: int) -> Any:
        assert not any(fake.on_gpu(b) for b in buffers if isinstance(b, int)), "the transport was given a GPU's memory"
        return execute(self, compiled, timeout_s, buffers, message)

    monkeypatch.setattr(InprocTransport, "_execute", checked)
    yield fake
    fake.close()


def given(rank: int) -> Any:
    return np.random.default_rng(rank).integers(0, 100, (ROWS, 5)).astype(np.float32)


def call(comm: cc.Communicator, cupy: FakeCupy, name: str, x: Any, how: str, out: Any = None, **options: Any) -> Any:
    """Calls it in one of three ways."""
    if name in ("broadcast", "reduce", "gather", "scatter"):
        options["root"] = 1
    if how == "prepared":
        return getattr(comm.prepare, name)(x, out=out, **options)()
    if how == "async":
        return getattr(comm, f"{name}_async")(x, out=out, **options).wait(30)
    return getattr(comm, name)(x, out=out, **options)


@pytest.mark.parametrize("how", ["blocking", "async", "prepared"])
@pytest.mark.parametrize("name", [*MOVES, *REDUCES])
def test_every_collective(threads: Callable[..., list[Any]], cupy: FakeCupy, name: str, how: str) -> None:
    inputs = [given(rank) for rank in range(SIZE)]

    table = {
        "all_gather": ((ROWS * 5,) * SIZE,), "gather": ((ROWS * 5,) * SIZE,), "scatter": ((20,) * SIZE,),
        "reduce_scatter": ((20,) * SIZE,), "all_to_all": ((20,) * SIZE,) * SIZE,
    }.get(name, ((ROWS * 5,),))  # fmt: skip

    def body(comm: cc.Communicator) -> None:
        for lap in range(2):
            with cupy.cuda.Stream():  # another one each time
                x = cupy.array(np.zeros((ROWS, 5), np.float32))
                x.set(inputs[comm.rank])  # the producer
                out = cupy.empty((4, 5), np.float32) if name == "scatter" and comm.rank != 1 else None
                result = call(comm, cupy, name, None if out is not None else x, how, out)
                x.set(np.full((ROWS, 5), -1, np.float32))  # once it has been read
                wanted = expected(name, [a.reshape(-1) for a in inputs], comm.rank, op="sum", root=1, rows=table)
                if wanted is None or (name == "exscan" and comm.rank == 0):
                    assert result is None or not result.get().any()
                else:
                    assert type(result) is cupy.ndarray
                    np.testing.assert_array_equal(result.get().reshape(-1), wanted, err_msg=f"lap {lap}")

    threads(SIZE, body)


def test_in_place_and_over_one_another(threads: Callable[..., list[Any]], cupy: FakeCupy) -> None:
    total = sum(given(rank) for rank in range(SIZE)).reshape(-1)

    def body(comm: cc.Communicator) -> None:
        x = cupy.array(given(comm.rank).reshape(-1))
        assert comm.all_reduce(x, out=x) is x
        np.testing.assert_array_equal(x.get(), total)
        for here, there in ((28, 3), (3, 28)):  # the result runs over what is still to be read
            room = cupy.array(np.zeros(90, np.float32))
            room.part(here, here + 60).set(given(comm.rank).reshape(-1))
            comm.all_reduce(room.part(here, here + 60), out=room.part(there, there + 60))
            np.testing.assert_array_equal(room.get()[there : there + 60], total)
        y = cupy.array(given(comm.rank).reshape(-1))
        comm.broadcast(y, out=y)  # where nothing comes down, the result still comes after what was there before
        np.testing.assert_array_equal(y.get(), given(0).reshape(-1))
        parts = cupy.array(np.zeros(60, np.float32))
        mine = parts.part(20 * comm.rank, 20 * comm.rank + 20)
        mine.set(np.full(20, comm.rank + 1.0, np.float32))
        comm.all_gather(mine, out=parts)
        assert parts.get().tolist() == [1.0] * 20 + [2.0] * 20 + [3.0] * 20
        rows = cupy.array(np.arange(60, dtype=np.float32) + 100 * comm.rank)
        comm.all_to_all(rows, out=rows)
        wanted = [np.arange(20) + 20 * comm.rank + 100 * peer for peer in range(SIZE)]
        np.testing.assert_array_equal(rows.get(), np.concatenate(wanted))

    threads(SIZE, body)


def test_lists_dtypes_and_uneven_parts(threads: Callable[..., list[Any]], cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        for dtype in (np.float16, ml_dtypes.bfloat16, np.int64, np.bool_, np.complex64):
            values = np.arange(77).astype(dtype)
            a, b = cupy.array(values), cupy.array(values[:3])
            a2, b2 = comm.all_reduce([a, b])
            wanted = values if dtype is np.bool_ else values * dtype(SIZE)
            np.testing.assert_array_equal(a2.get(), wanted)
            np.testing.assert_array_equal(b2.get(), wanted[:3])
        sizes = [50, 0, 7]
        mine = np.full((sizes[comm.rank], 2), comm.rank, np.int32)
        whole = comm.all_gather(cupy.array(mine), sizes=sizes)
        np.testing.assert_array_equal(whole.get()[:, 0], np.repeat([0, 1, 2], sizes))
        back = comm.reduce_scatter(whole, sizes=sizes, op="mean")
        np.testing.assert_array_equal(back.get(), mine)
        send = [comm.rank + 1] * SIZE
        x = cupy.array(np.full((3 * (comm.rank + 1), 9), comm.rank, np.int32))
        found = comm.all_to_all(x, send_sizes=send, recv_sizes=[1, 2, 3])
        assert found.get()[:, 0].tolist() == [0, 1, 1, 2, 2, 2]
        assert comm.all_reduce(cupy.empty((0, 4), np.float32)).shape == (0, 4)

    threads(SIZE, body)


def test_calls_keep_their_order(threads: Callable[..., list[Any]], cupy: FakeCupy) -> None:
    """Calls in the background on a GPU, and behind them some on the CPU, of every kind."""

    def body(comm: cc.Communicator) -> None:
        host = np.arange(50, dtype=np.float32)
        comm.all_reduce(host)
        first = comm.all_reduce_async(cupy.array(host))
        second = comm.all_reduce_async(host, op="max")
        third = comm.broadcast_async(cupy.array(host + comm.rank), root=2)
        np.testing.assert_array_equal(comm.all_reduce(host), host * SIZE)
        assert first.done()
        assert third.done()
        np.testing.assert_array_equal(first.wait().get(), host * SIZE)
        np.testing.assert_array_equal(second.wait(), host)
        np.testing.assert_array_equal(third.wait().get(), host + 2)
        again = comm.prepare.all_reduce(host)
        work = comm.all_reduce_async(cupy.array(host))
        np.testing.assert_array_equal(again(), host * SIZE)
        np.testing.assert_array_equal(work.wait().get(), host * SIZE)
        dropped = cupy.array(host)
        comm.all_reduce_async(dropped, out=dropped)
        comm.barrier()

    threads(SIZE, body)


def test_messages(threads: Callable[..., list[Any]], cupy: FakeCupy) -> None:
    """Between two GPUs, and from a GPU to the CPU."""

    def body(comm: cc.Communicator) -> None:
        x = np.arange(1000, dtype=np.int32)
        if comm.rank == 0:
            mine = cupy.array(x)
            comm.send(mine, 1)
            mine.set(x * 0)
            comm.send(cupy.array(x + 1), 1)
        elif comm.rank == 1:
            out = cupy.array(x * 0)
            assert comm.recv(out, 0) is out
            np.testing.assert_array_equal(out.get(), x)
            np.testing.assert_array_equal(comm.recv(x * 0, 0), x + 1)

    threads(2, body)


def test_one_line_says_so(
    threads: Callable[..., list[Any]], cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staging, "_said", set())

    def body(comm: cc.Communicator) -> None:
        for _ in range(2):
            comm.all_reduce(cupy.array(np.ones(3, np.float32)))

    with caplog.at_level(logging.WARNING, "treering"):
        threads(SIZE, body)
    (line,) = (r.message for r in caplog.records if r.name == "treering")
    assert line == (
        "arrays on cuda:0 go through pinned memory of the host, as this transport (threads of one process) takes "
        "arrays of the CPU only; one that takes them is faster: connect(transport=...)"
    )


def test_a_failure_on_the_gpu_is_heard_by_the_others(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, threads: Callable[..., list[Any]]
) -> None:
    class GpuError(Exception):
        pass

    def body(comm: cc.Communicator) -> None:
        x = cupy.array(np.ones(100, np.float32))
        if comm.rank:
            with pytest.raises(cc.PeerLostError, match="rank 0"):
                comm.all_reduce(x)
            return
        free_out = staging._Line.free_out

        def broken(self: Any, k: int) -> Any:
            if k == 2 and self is comm._staging._lines[next(iter(comm._staging._lines))]:
                raise GpuError("an illegal address")
            return free_out(self, k)

        monkeypatch.setattr(staging._Line, "free_out", broken)
        with pytest.raises(GpuError):
            comm.all_reduce(x)
        with pytest.raises(cc.CommunicatorBroken):
            comm.all_reduce(x)

    threads(SIZE, body)


def test_mixed_devices_are_refused(threads: Callable[..., list[Any]], cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        x = cupy.array(np.ones(3, np.float32))
        with pytest.raises(ValueError, match="several devices"):
            comm.all_reduce([x, np.ones(3, np.float32)])
        with pytest.raises(ValueError, match="both must be on one device"):
            comm.all_reduce(x, out=np.ones(3, np.float32))
        assert comm.all_reduce(x).get().tolist() == [2.0] * 3

    threads(2, body)
