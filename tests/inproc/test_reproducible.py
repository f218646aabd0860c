"""`reproducible=True` gives bits that depend on the ranks' data alone, and refuses what could not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import collectives as cc
from tests.canonical import FLOATS, assert_bits, assert_reproducible, canonical_sum, wild

Threads = Callable[..., list[Any]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("size", "hosts"), [(1, None), (3, None), (4, ((0, 2), (1, 3))), (7, ((0, 1, 2), (3, 4, 5, 6)))]
)
def test_the_bits_are_those_of_the_canonical_order(threads: Threads, size: int, hosts: Any, dtype: str) -> None:
    threads(size, lambda comm: assert_reproducible(comm, dtype, reproducible=True), hosts=hosts)


def test_a_communicator_may_be_reproducible_and_so_are_those_made_of_it(threads: Threads) -> None:
    xs = [wild("float32", rank, 40_000) for rank in range(6)]

    def body(comm: cc.Communicator) -> None:
        wanted = canonical_sum(xs)
        assert_bits(comm.all_reduce(xs[comm.rank]), wanted, "blocking")
        assert_bits(comm.all_reduce_async(xs[comm.rank]).wait(30.0), wanted, "async")
        assert_bits(comm.prepare.all_reduce(xs[comm.rank])(), wanted, "prepared")
        with pytest.raises(ValueError, match="canonical"):
            comm.all_reduce(xs[comm.rank], algorithm="ring")
        comm.all_reduce(xs[comm.rank], algorithm="ring", reproducible=False)
        inside, across = comm.by_host()
        assert_bits(
            inside.all_reduce(xs[comm.rank]), canonical_sum([xs[r] for r in comm.hosts[comm.rank // 3]]), "inside"
        )
        assert_bits(across.all_reduce(xs[comm.rank]), canonical_sum(xs[comm.rank % 3 :: 3]), "across")

    threads(6, body, reproducible=True, hosts=((0, 1, 2), (3, 4, 5)))


def test_before_rank_0_there_is_nobody(threads: Threads) -> None:
    """What exscan gives there: zeros in a new array, what was there in one of the caller's."""

    def body(comm: cc.Communicator) -> list[list[int]]:
        x, out = np.full(3, comm.rank + 1), np.full(3, -5)
        found = [comm.exscan(x), comm.exscan_async(x).wait(30.0), comm.prepare.exscan(x)(), comm.exscan([x, x[:1]])[0]]
        assert comm.exscan(x, out=out) is out
        assert comm.exscan(x, out=x) is x
        return [array[:1].tolist() for array in (*found, out, x)]

    assert threads(3, body) == [[[0]] * 4 + [[-5], [1]], [[1]] * 6, [[3]] * 6]


@pytest.mark.parametrize("name", ["ring", "two_tree", "direct"])
def test_another_order_gives_other_bits_and_is_refused(threads: Threads, name: str) -> None:
    xs = [wild("float32", rank, 1000) for rank in range(5)]

    def body(comm: cc.Communicator) -> None:
        found = comm.all_reduce(xs[comm.rank], algorithm=name)
        assert np.allclose(found, canonical_sum(xs), rtol=1e-3)
        with pytest.raises(AssertionError, match="other bits"):
            assert_bits(found, canonical_sum(xs), name)
        with pytest.raises(ValueError, match=f"{name}.* does not on 5 ranks; these do: one_shot, recursive_doubling"):
            comm.all_reduce(xs[comm.rank], algorithm=name, reproducible=True)

    threads(5, body)


def test_a_plan_of_the_users_own_is_accepted_when_its_order_is_canonical(threads: Threads) -> None:
    def line(rank: int, size: int) -> Iterator[Any]:
        """Three ranks: (0 + 1) + 2, and back."""
        if rank:
            yield cc.RecvReduce(rank - 1, 0, local_first=False)
        if rank + 1 < size:
            yield cc.Send(rank + 1, 0)
            yield cc.Recv(rank + 1, 0)
        if rank:
            yield cc.Send(rank - 1, 0)

    cc.algorithm("all_reduce", "line")(line)
    xs = [wild("float32", rank, 1000) for rank in range(4)]

    def body(comm: cc.Communicator) -> None:
        if comm.size == 3:
            found = comm.all_reduce(xs[comm.rank], algorithm="line", reproducible=True)
            assert_bits(found, canonical_sum(xs[:3]), "line")
        else:
            with pytest.raises(ValueError, match="canonical"):
                comm.all_reduce(xs[comm.rank], algorithm="line", reproducible=True)

    try:
        threads(3, body)
        threads(4, body)
    finally:
        cc.unregister("all_reduce", "line")
