"""The transport on NCCL through CuPy, on GPUs that are made up (fake_cupy.py): everything but CUDA and NCCL is real."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import collectives as cc
from tests.fake_cupy import FakeCupy
from tests.inproc.conftest import together
from tests.on_gpu import COLLECTIVES, every_algorithm

SIZE = 3


@pytest.fixture(params=[False, True], ids=["lazy", "eager"])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return fake(request.param, monkeypatch)


@pytest.fixture
def lazy_cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return fake(False, monkeypatch)


def fake(eager: bool, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    made = FakeCupy(eager)
    weakref.finalize(monkeypatch, made.close)
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setitem(sys.modules, "cupy.cuda", made.cuda)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", made.cuda.nccl)
    return made


Ranks = Callable[..., list[Any]]


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """`ranks(cupy, size, body)` runs the body on every rank, a thread whose GPU has the number of the rank."""

    def run(cupy: FakeCupy, size: int, body: Callable[[cc.Communicator], Any], timeout_s: float = 20.0) -> list[Any]:
        def join(rank: int) -> cc.Communicator:
            cupy.cuda.Device(rank).use()
            return cc.connect(store=str(tmp_path), rank=rank, size=size, transport="cupy", timeout_s=timeout_s)

        def on_its_gpu(comm: cc.Communicator) -> Any:
            cupy.cuda.Device(comm.rank).use()
            return body(comm)

        with ThreadPoolExecutor(size) as pool:
            comms = [*pool.map(join, range(size))]
            try:
                return together(comms, on_its_gpu)
            finally:
                [*pool.map(lambda comm: comm.close(), comms)]

    return run


@pytest.mark.parametrize("name", COLLECTIVES)
def test_every_collective_and_algorithm(ranks: Ranks, cupy: FakeCupy, name: str) -> None:
    native = name in ("all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast")
    ranks(cupy, SIZE, lambda comm: every_algorithm(comm, cupy, name, native=native))


def test_dtypes_means_and_places(ranks: Ranks, cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        for dtype in (np.float16, ml_dtypes.bfloat16, np.int32):
            values = np.arange(77).astype(dtype)
            for algorithm in ("ring", "native"):
                a, b = comm.all_reduce([cupy.array(values), cupy.array(values[:5])], op="mean", algorithm=algorithm)
                np.testing.assert_array_equal(a.get(), values)
                np.testing.assert_array_equal(b.get(), values[:5])
        whole = cupy.array(np.zeros(60, np.float32))
        mine = whole.part(20 * comm.rank, 20 * comm.rank + 20)
        shifted = whole.part(7, 27)
        for x in (mine, shifted):  # as NCCL has it in place, and as it has not
            for algorithm in ("ring", "native"):
                x.set(np.full(20, comm.rank + 1.0, np.float32))
                comm.all_gather(x, out=whole, algorithm=algorithm)
                assert whole.get().tolist() == [1.0] * 20 + [2.0] * 20 + [3.0] * 20
        with pytest.raises(ValueError, match="one size only"):
            comm.all_gather(mine.part(0, comm.rank), sizes=[0, 1, 2], algorithm="native")
        host = np.arange(9.0)
        np.testing.assert_array_equal(comm.all_reduce(host), host * SIZE)  # by the engine
        assert comm.transport == "NCCL 2.30.4 through CuPy"

    ranks(cupy, SIZE, body)


def test_background_prepared_messages_and_splits(ranks: Ranks, cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        host = np.arange(50, dtype=np.float32)
        x = cupy.array(host)
        work = comm.all_reduce_async(x, out=x)
        np.testing.assert_array_equal(work.wait(20).get(), host * SIZE)
        call = comm.prepare.all_reduce(x, op="max")
        for lap in range(3):
            x.set(host + lap * comm.rank)
            np.testing.assert_array_equal(call().get(), host + lap * (SIZE - 1))
        if comm.rank == 0:
            comm.send(cupy.array(host), 2)
        elif comm.rank == 2:
            np.testing.assert_array_equal(comm.recv(cupy.array(host * 0), 0).get(), host)
        pair = comm.split(color=int(comm.rank == 1))
        assert pair is not None
        total = pair.all_reduce(cupy.array(host))
        np.testing.assert_array_equal(total.get(), host * pair.size)
        with pytest.raises(ValueError, match="this communicator works on"), cupy.cuda.Device(comm.rank + 3):
            comm.all_reduce(cupy.array(host[:7]))

    ranks(cupy, SIZE, body)


def test_another_call_is_found_out(ranks: Ranks, lazy_cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        n = 10 if comm.rank == 0 else 20
        work = comm.all_reduce_async(lazy_cupy.array(np.ones(n, np.float32)), algorithm="ring")
        with pytest.raises(cc.MismatchError, match=r"rank \d called all_reduce\(float32, \d0 elements"):
            work.wait(20)
        with pytest.raises(cc.CommunicatorBroken, match="an earlier call"):
            comm.barrier()

    ranks(lazy_cupy, 2, body)


def test_a_rank_that_does_not_call_is_named(ranks: Ranks, lazy_cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        x = lazy_cupy.array(np.ones(10, np.float32))
        comm.all_reduce(x)
        comm.barrier()
        if comm.rank == 0:
            work = comm.all_reduce_async(x)
            with pytest.raises(cc.DeadlineExceeded, match="waiting for rank 1"):
                work.wait(20)
            x.get()  # does not hang: NCCL's work was aborted

    ranks(lazy_cupy, 2, body, 0.5)


def test_what_nccl_reports_ends_the_call_everywhere(ranks: Ranks, lazy_cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        x = lazy_cupy.array(np.ones(10, np.float32))
        comm.all_reduce(x)
        if comm.rank == 0:
            comm._transport._comm.error = "NCCL_ERROR_REMOTE_ERROR"  # type: ignore[attr-defined]
        with pytest.raises(cc.TransportError if comm.rank == 0 else cc.PeerLostError):
            again_and_again(comm, x)

    ranks(lazy_cupy, 2, body)


def again_and_again(comm: cc.Communicator, x: Any) -> None:
    for _ in range(1000):
        comm.all_reduce_async(x).wait(20)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(cc.UnsupportedError, match=r"pip install 'treering\[cupy\]'"):
        cc.connect(store=str(tmp_path), rank=0, size=1, transport="cupy")
    made = fake(False, monkeypatch)

    def none() -> int:
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    made.cuda.runtime.getDeviceCount = none
    with pytest.raises(cc.UnsupportedError, match=r"needs a GPU .*no CUDA-capable device"):
        cc.connect(store=str(tmp_path), rank=0, size=1, transport="cupy")


def test_native_is_for_arrays_on_a_gpu(ranks: Ranks, lazy_cupy: FakeCupy) -> None:
    def body(comm: cc.Communicator) -> None:
        with pytest.raises(ValueError, match="NCCL takes arrays on a GPU only"):
            comm.all_reduce(np.ones(4), algorithm="native")
        comm.use(rules=[{"collective": "all_reduce", "algorithm": "native"}])
        assert comm.all_reduce(np.ones(4)).tolist() == [SIZE] * 4  # by a plan instead
        assert comm.all_reduce(lazy_cupy.array(np.ones(4, np.float32))).get().tolist() == [SIZE] * 4

    ranks(lazy_cupy, SIZE, body)
