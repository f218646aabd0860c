"""Every method of the process group on CPU tensors, against what Gloo or arithmetic says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.backend.conftest import run

pytestmark = pytest.mark.timeout(120)
MOVED = [torch.float8_e4m3fn, torch.int16, torch.bool, torch.complex64]
SUMMED = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.int8,
    torch.uint8,
]


def sample(rank: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ((torch.arange(n) * 7 + rank * 3) % 5).to(dtype)


def reductions(rank: int, size: int) -> None:
    total = sum((torch.arange(13) * 7 + r * 3) % 5 for r in range(size))
    for dtype in SUMMED:
        for asynchronous in (False, True):
            x = sample(rank, 13, dtype)
            work = dist.all_reduce(x, async_op=asynchronous)
            if asynchronous:
                assert work.wait() is True
                assert work.is_completed()
                assert work.is_success()
            assert torch.equal(x, total.to(dtype))
    every = torch.stack([sample(r, 13, torch.int64) for r in range(size)])
    for op, expected in {
        dist.ReduceOp.PRODUCT: every.prod(0),
        dist.ReduceOp.MIN: every.min(0).values,
        dist.ReduceOp.MAX: every.max(0).values,
        dist.ReduceOp.BAND: every[0] if size == 1 else None,
    }.items():
        if expected is not None:
            x = sample(rank, 13, torch.int64)
            dist.all_reduce(x, op)
            assert torch.equal(x, expected)
    bits = torch.tensor([1 << rank, 7])
    for op, expected in (
        (dist.ReduceOp.BOR, [(1 << size) - 1, 7]),
        (dist.ReduceOp.BXOR, [(1 << size) - 1, 7 * (size % 2)]),
    ):
        x = bits.clone()
        dist.all_reduce(x, op)
        assert x.tolist() == expected
    x = torch.full((5,), float(rank))
    dist.all_reduce(x, dist.ReduceOp.AVG)
    assert torch.equal(x, torch.full((5,), (size - 1) / 2))
    x = torch.full((5,), float(rank))
    dist.all_reduce(x, dist._make_nccl_premul_sum(0.5))
    assert torch.equal(x, torch.full((5,), size * (size - 1) / 4))
    x = torch.full((4, 6), rank).t()  # not contiguous
    dist.all_reduce(x)
    assert torch.equal(x, torch.full((6, 4), size * (size - 1) // 2))
    x = torch.complex(torch.ones(3), torch.full((3,), float(rank)))
    dist.all_reduce(x)
    assert torch.equal(x, torch.complex(torch.full((3,), float(size)), torch.full((3,), size * (size - 1) / 2)))
    x = torch.zeros(0)
    dist.all_reduce(x)
    x = torch.tensor(float(rank))
    dist.reduce(x, size - 1)
    if rank == size - 1:
        assert x.item() == size * (size - 1) / 2
    out = torch.empty(3)
    whole = torch.arange(3.0 * size) + rank
    dist.reduce_scatter_single(out, whole.clone())
    assert torch.equal(out, (torch.arange(3.0 * size) * size + size * (size - 1) / 2)[3 * rank : 3 * rank + 3])
    out2 = torch.empty(3)
    dist.reduce_scatter(out2, list(whole.clone().chunk(size)), dist.ReduceOp.AVG)
    assert torch.equal(out2, out / size)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, rank]]), torch.tensor([1.0, 2.0]), (size + 1,))
    dist.all_reduce(sparse)
    expected = torch.full((size + 1,), 2.0)
    expected[0] += size
    expected[-1] = 0
    assert torch.equal(sparse.to_dense(), expected)


def moves(rank: int, size: int) -> None:
    for dtype in [*MOVED, torch.float32]:
        x = sample(rank, 6, torch.float32).to(dtype)
        raw = [sample(r, 6).to(dtype) for r in range(size)]

        def same(a: torch.Tensor, b: torch.Tensor) -> bool:
            return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))

        y = x.clone()
        dist.broadcast(y, size - 1)
        assert same(y, raw[-1])
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x)
        assert all(same(a, b) for a, b in zip(parts, raw, strict=True))
        whole = torch.empty(size, 6).to(dtype)
        whole[rank] = x
        dist.all_gather_single(whole, whole[rank])  # in place, as FSDP2 does
        assert all(same(a, b) for a, b in zip(whole, raw, strict=True))
        parts = [torch.empty_like(x) for _ in range(size)] if rank == 0 else None
        dist.gather(x, parts)
        if parts:
            assert all(same(a, b) for a, b in zip(parts, raw, strict=True))
        y = torch.empty_like(x)
        dist.scatter(y, raw if rank == 0 else None)
        assert same(y, raw[rank])
    sends = [rank + r + 1 for r in range(size)]
    x = torch.cat([torch.full((n, 2), rank * 10 + r) for r, n in enumerate(sends)])
    out = torch.empty(sum(sends), 2, dtype=x.dtype)
    dist.all_to_all_single(out, x, sends, sends)
    assert torch.equal(out, torch.cat([torch.full((n, 2), r * 10 + rank) for r, n in enumerate(sends)]))
    outs = [torch.empty(n, dtype=torch.int64) for n in sends]
    dist.all_to_all(outs, [torch.full((n,), rank * 10 + r) for r, n in enumerate(sends)])
    assert [o[0].item() for o in outs] == [r * 10 + rank for r in range(size)]
    uneven = [torch.empty(r + 1) for r in range(size)]
    dist.all_gather(uneven, torch.full((rank + 1,), float(rank)))
    assert torch.equal(uneven[-1], torch.full((size,), size - 1.0))
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank, "text": "x" * rank * 1000})
    assert [o["rank"] for o in objects] == list(range(size))
    told = [f"from {rank}"]
    dist.broadcast_object_list(told, 0)
    assert told == ["from 0"]
    got: list[Any] = [None]
    dist.scatter_object_list(got, list(range(size)) if rank == 0 else None)
    assert got == [rank]
    with dist._coalescing_manager():
        tensors = [torch.full((n,), float(rank)) for n in (1, 3, 5)]
        for t in tensors:
            dist.all_reduce(t)
    assert all(t[0].item() == size * (size - 1) / 2 for t in tensors)
    dist.barrier()
    dist.barrier(async_op=True).wait()


def messages(rank: int, size: int) -> None:
    right, left = (rank + 1) % size, (rank - 1) % size
    for n in (0, 1, 5000, 300_000):  # small, and larger than any buffer on the way: all send first
        works = [dist.isend(torch.full((n,), float(rank + tag)), right, tag=tag) for tag in range(3)]
        for tag in (2, 0, 1):  # tags in another order than they were sent in
            x = torch.empty(n)
            assert dist.recv(x, left, tag=tag) == left
            assert torch.equal(x, torch.full((n,), float(left + tag)))
        for work in works:
            work.wait(timedelta(seconds=10))
            assert work.is_completed()
    if rank == 0:
        seen = {dist.recv(torch.empty(4), tag=9) for _ in range(size - 1)}
        assert seen == set(range(1, size))
    else:
        dist.send(torch.ones(4), 0, tag=9)
    x = torch.empty(8)
    pending = dist.irecv(x, left)  # posted before a collective that comes before the send
    dist.barrier()
    ops = dist.batch_isend_irecv([dist.P2POp(dist.isend, torch.full((8,), float(rank)), right)])
    for work in [pending, *ops]:
        work.wait()
    assert torch.equal(x, torch.full((8,), float(left)))
    work = dist.isend(torch.ones(2), right, tag=3)
    got = dist.irecv(y := torch.zeros(2), left, tag=3).get_future().wait()
    assert torch.equal(got[0], y)
    assert y.sum() == 2
    work.wait()


def background(rank: int, size: int) -> None:
    works = [dist.all_reduce(torch.full((50_000,), float(rank + i)), async_op=True) for i in range(8)]
    futures = [work.get_future() for work in works]
    doubled = futures[3].then(lambda f: f.value()[0][0].item() * 2)
    for i, future in enumerate(futures):
        [value] = future.wait()
        assert value[0].item() == size * (size - 1) / 2 + i * size
    assert doubled.wait() == 2 * (size * (size - 1) / 2 + 3 * size)
    work = dist.all_reduce(torch.ones(3), async_op=True)
    dist.barrier()
    assert work.is_completed()


def groups(rank: int, size: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    for _ in range(2):  # the same ranks again
        pair = dist.new_group([0, size - 1])
        if rank in (0, size - 1):
            x = torch.ones(2)
            dist.all_reduce(x, group=pair)
            assert x[0] == len({0, size - 1})
            dist.destroy_process_group(pair)
    local = dist.new_group([r for r in range(size) if r % 2 == rank % 2], use_local_synchronization=True)
    x = torch.ones(1)
    dist.all_reduce(x, group=local)
    assert x.item() == len(range(rank % 2, size, 2))
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("a", "b"))
    x = torch.tensor(float(rank))
    dist.all_reduce(x, group=mesh.get_group("b"))
    assert x.item() == sum(r for r in range(size) if r // (size // 2) == rank // (size // 2))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("body", [reductions, moves, background])
def test_collectives(body: Any, size: int) -> None:
    run(size, body)


@pytest.mark.parametrize("size", [2, 3])
def test_messages(size: int) -> None:
    run(size, messages)


def test_groups() -> None:
    run(4, groups)
