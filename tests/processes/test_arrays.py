"""Arrays of every kind that people have: torch tensors, DLPack objects, ml_dtypes, views, read-only memory, lists."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

import collectives as cc

Ranks = Callable[..., AbstractContextManager[Job]]


def make_calls(me: Rank, *bodies: str) -> None:
    comm = me.connect()
    for body in bodies:
        globals()[body](comm)
        me.say(body)


def make_torch_calls(me: Rank, *bodies: str) -> None:
    importlib.import_module("torch")  # before connecting: quick calls know only the libraries that are there then
    make_calls(me, *bodies)


def test_torch_tensors(ranks: Ranks) -> None:
    bodies = (
        "tensors_of_every_dtype", "lazy_and_strided_tensors", "tensors_with_gradients", "tensors_that_only_move",
        "tensors_repeated",
    )  # fmt: skip
    with ranks(2, make_torch_calls, *bodies) as job:
        for body in bodies:
            job.hear_all(body)


@pytest.mark.parametrize(
    "body",
    [
        "dlpack_objects", "views_of_memory", "numbers_of_other_makes", "lists_of_arrays", "what_is_no_array",
        "results_over_inputs", "zero_dimensions", "read_only_arrays",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 3])
def test_arrays_that_people_have(ranks: Ranks, size: int, body: str) -> None:
    with ranks(size, make_calls, body) as job:
        job.hear_all(body)


# ---------------------------------------------------------------- torch


def tensors_of_every_dtype(comm: cc.Communicator) -> None:
    import torch

    n = comm.size
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    integers = (torch.int8, torch.int16, torch.int32, torch.int64)
    for dtype in (*floats, *integers, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        for _ in range(3):  # once the long way, then quickly
            x = torch.arange(1, 1 + 12).reshape(6, 2).to(dtype)
            given = x.clone()
            total = comm.all_reduce(x)
            assert type(total) is torch.Tensor
            assert total.dtype is dtype
            assert total.shape == (6, 2)
            assert total.tolist() == [[v * n for v in row] for row in given.tolist()]
            assert torch.equal(x.view(torch.uint8), given.view(torch.uint8))
            assert comm.all_reduce(x, out=x, op="max") is x
            part = comm.reduce_scatter(x, op="mean")
            assert part.tolist() == given[6 // n * comm.rank : 6 // n * (comm.rank + 1)].tolist()
            assert comm.all_gather(part).tolist() == given.tolist()
            assert comm.broadcast(torch.full_like(x, comm.rank + 3), root=n - 1).tolist() == [[n + 2] * 2] * 6
    for dtype in (torch.complex64, torch.complex128):
        x = torch.tensor([1 + 2j, 3 - 1j], dtype=dtype)
        assert comm.all_reduce(x).tolist() == (x * n).tolist()
        assert comm.all_reduce(x, op="prod").tolist() == (x**n).tolist()
    flags = torch.tensor([True, False, comm.rank == 0])
    assert comm.all_reduce(flags).tolist() == [True, False, True]
    assert comm.all_reduce(flags, op="and").tolist() == [True, False, n == 1]
    assert comm.all_reduce(flags).dtype is torch.bool


def tensors_that_only_move(comm: cc.Communicator) -> None:
    import torch

    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32):
        x = (
            torch.arange(8 * dtype.itemsize, dtype=torch.uint8).view(dtype)
            if comm.rank == 0
            else torch.zeros(8, dtype=dtype)
        )
        moved = comm.broadcast(x)
        assert moved.dtype is dtype
        assert moved.view(torch.uint8).tolist() == list(range(8 * dtype.itemsize))
        everything = comm.all_gather(x)
        assert everything.shape == (8 * comm.size,)
        assert everything[:8].view(torch.uint8).tolist() == list(range(8 * dtype.itemsize))
        with pytest.raises(ValueError, match="can be moved but not combined"):
            comm.all_reduce(x)


def lazy_and_strided_tensors(comm: cc.Communicator) -> None:
    import torch

    n = comm.size
    z = torch.tensor([[1 + 2j, 3 - 1j], [0 + 1j, 5 + 0j]])
    for _ in range(3):  # the plain tensor first, so that a quick call for this shape is known
        assert comm.all_reduce(z).tolist() == (z * n).tolist()
        assert comm.all_reduce(z.conj()).tolist() == (z.conj() * n).resolve_conj().tolist()
        imaginary = z.conj().imag  # a lazy negative
        assert imaginary.is_neg()
        assert comm.all_reduce(imaginary).tolist() == (imaginary * n).tolist()
        assert comm.all_reduce(z.mT).tolist() == (z.mT * n).tolist()
        x = torch.arange(24.0).reshape(4, 6)
        for view in (x.T, x[:, ::2], x[1:3], x.expand(2, 4, 6), x[::2].T):
            found = comm.all_reduce(view)
            assert found.is_contiguous()
            assert torch.equal(found, view * n)
    for out in (z.conj(), z.mT, z.conj().imag):
        with pytest.raises(ValueError, match="contiguous"):
            comm.all_reduce(out.resolve_conj().resolve_neg().contiguous(), out=out)
    with pytest.raises(TypeError, match="sparse"):
        comm.all_reduce(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="meta"):
        comm.all_reduce(torch.empty(3, device="meta"))
    for lazy in (z.conj(), x.T):
        with pytest.raises(ValueError, match="contiguous copy"):
            comm.prepare.all_reduce(lazy)


def tensors_with_gradients(comm: cc.Communicator) -> None:
    import torch

    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.fill_(comm.rank + 1.0)
    for _ in range(3):
        total = comm.all_reduce(layer.weight)
        assert not total.requires_grad
        assert total.tolist() == [[comm.size * (comm.size + 1) / 2] * 3] * 2
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert comm.all_reduce(layer.weight.grad, out=layer.weight.grad, op="mean").tolist() == [[1.0] * 3] * 2
    comm.broadcast(layer.weight, root=comm.size - 1, out=layer.weight)
    assert layer.weight.tolist() == [[float(comm.size)] * 3] * 2
    assert comm.all_reduce(torch.tensor(2.5)).item() == 2.5 * comm.size
    assert comm.all_reduce(torch.tensor(2.5)).shape == ()
    assert comm.all_reduce(torch.empty(0, 4)).shape == (0, 4)


def tensors_repeated(comm: cc.Communicator) -> None:
    """Quick calls take what is there now: other contents, other memory, numpy in between."""
    import torch

    for turn in range(50):
        x = torch.full((33,), float(turn + comm.rank))
        wanted = [float(sum(turn + rank for rank in range(comm.size)))] * 33
        assert comm.all_reduce(x).tolist() == wanted
        assert comm.all_reduce(x.numpy()).tolist() == wanted
        assert comm.all_reduce(x.numpy(), out=x) is x
        assert x.tolist() == wanted


# ---------------------------------------------------------------- numpy and others


class Exporter:
    """A foreign array that knows nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnGpu(Exporter):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def dlpack_objects(comm: cc.Communicator) -> None:
    x = np.arange(12.0).reshape(3, 4)
    for _ in range(3):
        found = comm.all_reduce(Exporter(x))
        assert type(found) is np.ndarray
        assert np.array_equal(found, x * comm.size)
        out = Exporter(np.zeros((3, 4)))
        assert comm.all_reduce(Exporter(x), out=out) is out
        assert np.array_equal(out.array, x * comm.size)
    call = comm.prepare.all_reduce(Exporter(x))
    x += 1
    assert np.array_equal(call(), x * comm.size)
    assert np.array_equal(comm.all_reduce(Exporter(x.T)), x.T * comm.size)
    with pytest.raises(TypeError, match="on a device"):
        comm.all_reduce(OnGpu(x))


def views_of_memory(comm: cc.Communicator) -> None:
    n = comm.size
    plain = np.arange(60, dtype=np.int32).reshape(6, 10)
    for _ in range(3):
        for view in (
            np.asfortranarray(plain), plain[::-1], plain[:, ::3], plain.T, plain[2:4], plain[:, 3:5],
            np.broadcast_to(plain, (2, 6, 10)), np.frombuffer(b"\0" + plain.tobytes(), np.int32, 60, 1),
        ):  # fmt: skip
            given = view.copy()
            found = comm.all_reduce(view)
            assert found.flags.c_contiguous
            assert found.shape == view.shape
            assert np.array_equal(found, given * n)
            assert np.array_equal(view, given)
    memory = bytearray(1 + 4 * 60)
    out = np.frombuffer(memory, np.int32, 60, 1)  # not aligned
    assert comm.all_reduce(plain.reshape(-1), out=out) is out
    assert np.array_equal(out, plain.reshape(-1) * n)
    for out in (np.empty((10, 6), np.int32).T, np.empty((6, 20), np.int32)[:, ::2]):
        with pytest.raises(ValueError, match="C-contiguous"):
            comm.all_reduce(plain, out=out)
    with pytest.raises(ValueError, match="contiguous copy"):
        comm.prepare.all_reduce(plain.T)
    found = comm.reduce_scatter(np.asfortranarray(np.ones((3 * n, 5), np.float32)))
    assert np.array_equal(found, np.full((3, 5), n, np.float32))


def read_only_arrays(comm: cc.Communicator) -> None:
    x = np.arange(10.0)
    x.flags.writeable = False
    for _ in range(3):
        assert np.array_equal(comm.all_reduce(x), np.arange(10.0) * comm.size)
        with pytest.raises(ValueError, match="read-only"):
            comm.all_reduce(x, out=x)
        with pytest.raises(ValueError, match="read-only"):
            comm.all_reduce(np.ones(10), out=x)
        writable = np.arange(10.0)
        assert comm.all_reduce(writable, out=writable) is writable  # quick calls know the difference
    with pytest.raises(ValueError, match="read-only"):
        comm.recv(x, (comm.rank + 1) % comm.size)
    assert x.tolist() == list(range(10))


def numbers_of_other_makes(comm: cc.Communicator) -> None:
    import ml_dtypes

    n = comm.size
    for _ in range(3):
        x = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16)
        total = comm.all_reduce(x)
        assert total.dtype == ml_dtypes.bfloat16
        assert total.astype(float).tolist() == [1.5 * n, -2.0 * n, 0.25 * n]
        small = np.array([1, 2, comm.rank], ml_dtypes.float8_e4m3fn)
        assert comm.broadcast(small, root=n - 1).astype(float).tolist() == [1, 2, n - 1]
        with pytest.raises(ValueError, match="can be moved but not combined"):
            comm.all_reduce(small)
        when = np.array(["2026-01-01", "1969-07-20"], "datetime64[s]") + np.timedelta64(comm.rank, "s")
        gathered = comm.all_gather(when)
        assert gathered.dtype == when.dtype
        assert gathered[::2].tolist() == [(np.datetime64("2026-01-01", "s") + r).item() for r in range(n)]
        with pytest.raises(ValueError, match="can be moved but not combined"):
            comm.all_reduce(when)
        record = np.zeros(3, [("name", "S5"), ("value", np.int16)])
        record["value"] = comm.rank
        assert comm.broadcast(record, root=n - 1)["value"].tolist() == [n - 1] * 3
        assert comm.all_gather(np.array([f"rank {comm.rank}"])).tolist() == [f"rank {r}" for r in range(n)]
        long = np.array([1, 2], np.longdouble)
        assert comm.all_gather(long).tolist() == [1, 2] * n
        with pytest.raises(ValueError, match="can be moved but not combined"):
            comm.all_reduce(long)
    with pytest.raises(TypeError, match="foreign byte order"):
        comm.all_reduce(np.ones(3, ">f4"))
    with pytest.raises(ValueError, match="no meaning"):
        comm.all_reduce(np.ones(3), op="xor")


def zero_dimensions(comm: cc.Communicator) -> None:
    for _ in range(3):
        total = comm.all_reduce(np.array(comm.rank))
        assert total.shape == ()
        assert total == comm.size * (comm.size - 1) // 2
        out = np.array(0)
        assert comm.all_reduce(np.array(1), out=out) is out
        assert out == comm.size
        assert comm.all_reduce(np.empty((0, 3))).shape == (0, 3)
        assert comm.all_gather(np.empty((2, 0))).shape == (2 * comm.size, 0)
        assert comm.reduce_scatter(np.empty((0, 3))).shape == (0, 3)
        assert comm.all_to_all(np.empty((comm.size, 0))).shape == (comm.size, 0)
        assert comm.broadcast(np.ones((2,) * 9)).shape == (2,) * 9


def what_is_no_array(comm: cc.Communicator) -> None:
    wrong: list[tuple[Any, str]] = [
        (3.0, "float is no array"), ("text", "str is no array"), (np.float32(1), "numpy scalar"),
        (np.array([{}]), "Python objects"), (None, "NoneType is no array"), (b"bytes", "no array"),
    ]  # fmt: skip
    for x, why in wrong:
        with pytest.raises(TypeError, match=why):
            comm.all_reduce(x)
        with pytest.raises(TypeError, match=why):
            comm.all_reduce([np.ones(2), x])
    x = np.ones(4, np.float32)
    for out, why in ((np.ones(4), "dtype float64"), (np.ones(5, np.float32), r"shape \(5,\)")):
        with pytest.raises(ValueError, match=why):
            comm.all_reduce(x, out=out)
    assert comm.all_reduce(x).tolist() == [comm.size] * 4  # nothing is broken by any of it


def results_over_inputs(comm: cc.Communicator) -> None:
    """A result may lie over the input anywhere: the result is right, and only its own memory is written."""
    n = comm.size
    cases: list[tuple[str, int, int]] = [
        ("all_reduce", 12, 12),
        ("reduce_scatter", 12, 12 // n),
        ("all_gather", 12, 12 * n),
    ]
    cases += [("all_to_all", 12, 12), ("broadcast", 12, 12)]
    for collective, gives, gets in cases:
        for algorithm in ("auto", *cc.algorithms(collective)):
            for apart in range(-gets, gives + 1):
                begin = max(-apart, 0)
                memory = np.arange(100, dtype=np.int64) * (comm.rank + 1)
                x, out = memory[begin : begin + gives], memory[begin + apart : begin + apart + gets]
                separate = getattr(comm, collective)(x.copy(), algorithm=algorithm)
                wanted = memory.copy()
                wanted[begin + apart : begin + apart + gets] = separate
                assert getattr(comm, collective)(x, out=out, algorithm=algorithm) is out
                assert np.array_equal(memory, wanted), (collective, algorithm, apart)


def lists_of_arrays(comm: cc.Communicator) -> None:
    n = comm.size

    def mine(rank: int) -> list[Any]:
        return [np.full(5, rank + 1.0), np.full((2, 3), rank, np.int8), np.empty((0, 2)), np.full(40_000, 2, np.uint16)]

    for _ in range(3):
        xs = mine(comm.rank)
        found = comm.all_reduce(xs)
        assert type(found) is list
        for position, total in enumerate(found):
            wanted = np.sum([mine(rank)[position] for rank in range(n)], axis=0).astype(xs[position].dtype)
            assert total.dtype == wanted.dtype
            assert np.array_equal(total, wanted)
        outs = [np.empty_like(x) for x in xs]
        results = comm.all_reduce(tuple(xs), out=outs)
        assert all(result is out for result, out in zip(results, outs, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(outs, found, strict=True))
        comm.all_reduce(xs, out=xs)
        assert all(np.array_equal(a, b) for a, b in zip(xs, found, strict=True))
        xs = mine(comm.rank)
        gathered = comm.all_gather_async(xs).wait(30)
        assert [g.shape for g in gathered] == [(5 * n,), (2 * n, 3), (0, 2), (40_000 * n,)]
        assert np.array_equal(gathered[0], np.repeat(np.arange(1.0, n + 1), 5))
        sent = comm.broadcast(xs, root=n - 1)
        assert all(np.array_equal(a, b) for a, b in zip(sent, mine(n - 1), strict=True))
        reduced = comm.reduce(xs, root=0)
        assert reduced == [None] * 4 if comm.rank else np.array_equal(reduced[0], found[0])
        assert comm.all_reduce([]) == []
        parts = comm.reduce_scatter([np.arange(2.0 * n), np.ones((n, 4), np.int32)])
        assert parts[0].tolist() == [2.0 * comm.rank * n, (2.0 * comm.rank + 1) * n]
        assert parts[1].tolist() == [[n] * 4]
    call = comm.prepare.all_reduce(xs)
    xs[0] += 1
    assert np.array_equal(call()[0], found[0] + n)
    with pytest.raises(ValueError, match="3 arrays were given, but 1"):
        comm.all_reduce([np.ones(1)] * 3, out=[np.ones(1)])
    a, b = np.ones(4), np.ones(4)
    for xs, outs in (([a, b], [b, a]), ([a, b], [a, a]), ([a, a[1:]], [a, np.ones(3)])):
        with pytest.raises(ValueError, match="share memory"):
            comm.all_reduce(xs, out=outs)
    assert [t.tolist() for t in comm.all_reduce([a, a])] == [[n] * 4] * 2  # reading one array twice is fine
