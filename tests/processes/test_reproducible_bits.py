"""The engine's reproducible reductions have the canonical bits on every kind of connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from conftest import Job
from rank_process import Rank

from collectives.choose import assumed_cluster
from tests.canonical import FLOATS, assert_bits, assert_reproducible, canonical_sum, wild

Ranks = Callable[..., AbstractContextManager[Job]]


def reduce_reproducibly(me: Rank, hosts: Any, dtypes: list[str]) -> None:
    comm = me.connect()
    if hosts:
        comm.use(cluster=assumed_cluster(tuple(tuple(host) for host in hosts), shared_memory=False))
    for dtype in dtypes:
        for _ in range(2):  # the second time without Python in between
            assert_reproducible(comm, dtype, reproducible=True)
    me.say("done")


@pytest.mark.parametrize(
    ("size", "options", "hosts"),
    [
        (3, {"transport": "shm", "ring_bytes": 4096}, None),
        (4, {"transport": "shm", "lanes": 2}, None),
        (5, {"transport": "tcp", "lanes": 2}, ((0, 2, 4), (1, 3))),
        (4, {"transport": "tcp"}, ((0,), (1,), (2,), (3,))),
    ],
)
def test_the_bits_are_those_of_the_canonical_order(ranks: Ranks, size: int, options: Any, hosts: Any) -> None:
    with ranks(size, reduce_reproducibly, hosts, list(FLOATS), **options) as job:
        job.hear_all("done")


def alternate(me: Rank) -> None:
    """The same arrays with and without, by turns: what the engine remembers of one is not taken for the other."""
    comm = me.connect(reproducible=me.size % 2 == 0)
    xs = [wild("float32", rank, 100_000) for rank in range(me.size)]
    wanted = canonical_sum(xs)
    differed = 0
    for _ in range(3):
        assert_bits(comm.all_reduce(xs[me.rank], reproducible=True), wanted, "reproducible")
        differed += comm.all_reduce(xs[me.rank], reproducible=False).tobytes() != wanted.tobytes()
        found = comm.all_reduce(xs[me.rank])
        assert (found.tobytes() == wanted.tobytes()) == (me.size % 2 == 0)
        differed += comm.all_reduce(xs[me.rank], algorithm="ring", reproducible=False).tobytes() != wanted.tobytes()
        with pytest.raises(ValueError, match="canonical"):
            comm.all_reduce(xs[me.rank], algorithm="ring", reproducible=True)
    assert differed == 6
    me.say("done")


@pytest.mark.parametrize("size", [4, 5])
def test_calls_with_and_without_are_told_apart(ranks: Ranks, size: int) -> None:
    with ranks(size, alternate) as job:
        job.hear_all("done")
