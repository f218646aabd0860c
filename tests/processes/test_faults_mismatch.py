"""Ranks that call different things hear so, all of them, with both calls named; a wrong result never comes out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

Ranks = Callable[..., AbstractContextManager[Job]]
Spec = dict[str, Any]

LIMIT_S = 5.0  # the answer to a question at the latest, on a busy machine; far below the deadline of a call
TRANSPORTS = ("shm", "tcp")
SYMMETRIC = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "barrier")  # nobody can end without all others


def make_call(me: Rank, comm: Any, spec: Spec) -> None:
    """Makes the call that a specification tells, on ones."""
    options = {name: value for name, value in spec.items() if name not in ("call", "rows", "dtype")}
    shape = spec.get("rows", 12)
    if spec["call"] == "barrier":
        me.attempt(comm.barrier)
        return
    x: Any = np.ones(shape, spec.get("dtype", "float32"))
    if isinstance(shape, list):
        x = [np.ones(rows, spec.get("dtype", "float32")) for rows in shape]
    if spec["call"] == "scatter" and options.get("root", 0) != me.rank:
        options["out"] = np.ones(shape // me.size, x.dtype)
    me.attempt(getattr(comm, spec["call"]), x, **options)


def differs(me: Rank, good: int, usual: list[Spec], odd: list[Spec], odd_rank: int) -> None:
    comm = me.connect(timeout_s=60.0)
    for _ in range(good):
        comm.all_reduce(np.ones(4, np.float32))
    me.say("ready")
    me.wait_for("differ")  # or a quick rank's mismatch would end a slow rank's last good call
    for spec in odd if me.rank == odd_rank else usual:
        make_call(me, comm, spec)
    me.until_it_fails(comm.barrier)
    me.attempt(comm.barrier)


def check(job: Job, usual: list[Spec], odd: list[Spec], odd_rank: int, *words: str) -> None:
    """Every rank gets one MismatchError, in one of its calls or else in the barriers after them.

    In a rooted collective a rank deals with some of the others only. Those that agree may bring it to an end, with the
    right result, before the odd one is heard of; as may ranks with nothing to reduce.
    """
    job.hear_all("ready")
    job.tell("differ")
    for rank in range(job.size):
        calls = odd if rank == odd_rank else usual
        reports = [job.hear_any("returned", "raised", rank=rank) for _ in calls]
        job.hear("calling", rank)
        reports += [job.hear("raised", rank) for _ in range(2)]  # from barriers until one fails, and from one more
        first = next(i for i, report in enumerate(reports) if report["event"] == "raised")
        assert reports[first]["kinds"][0] == "MismatchError", reports
        assert reports[first]["took_s"] < LIMIT_S, reports
        assert {report["kinds"][0] for report in reports[first + 1 :]} == {"CommunicatorBroken"}, reports
        text = reports[first]["text"]
        both = re.search(r"rank \d called .*? as call (\d+)[^,]*, but rank \d called .*? as call (\d+)", text)
        assert both is not None, text
        if both[1] == both[2]:  # or one of them was further on already, and is named by what it did there
            for word in words:
                assert word in text, text
        for spec, report in zip(calls[:first], reports, strict=False):
            waits_for_all = spec["call"] in SYMMETRIC and spec.get("rows") != 0
            gets_from_all = spec["call"] in ("reduce", "gather") and spec.get("root", 0) == rank
            assert not waits_for_all, f"rank {rank} got a result from {spec['call']}: {reports}"
            assert not gets_from_all, f"rank {rank} got a result from {spec['call']}: {reports}"
            assert report["first"] in (None, [], [1.0]), reports


CALLS = (*SYMMETRIC, "broadcast", "reduce", "gather", "scatter")


@pytest.mark.parametrize(("usual", "odd"), list(itertools.permutations(CALLS, 2)), ids=str)
def test_different_collectives(ranks: Ranks, usual: str, odd: str) -> None:
    """The first call of all, when there are no connections yet that it could be noticed on."""
    specs = [{"call": usual}], [{"call": odd}]
    transport = TRANSPORTS[usual < odd]  # each pair once on either
    with ranks(3, differs, 0, *specs, 1, transport=transport) as job:
        check(job, *specs, 1, f"{usual}(", f"{odd}(", "as call 1")


CASES: dict[str, tuple[list[Spec], list[Spec], tuple[str, ...]]] = {
    "dtype": (
        [{"call": "all_reduce", "dtype": "float32"}],
        [{"call": "all_reduce", "dtype": "int32"}],
        ("all_reduce(float32, 12 elements", "all_reduce(int32, 12 elements"),
    ),
    "dtype and size of the same bytes": (
        [{"call": "all_gather", "dtype": "float64", "rows": 6}],
        [{"call": "all_gather", "dtype": "float32", "rows": 12}],
        ("all_gather(float64, ", "all_gather(float32, "),
    ),
    "size": (
        [{"call": "all_reduce", "rows": 12}],
        [{"call": "all_reduce", "rows": 16}],
        ("12 elements", "16 elements"),
    ),
    "one element more": (
        [{"call": "all_reduce", "rows": 100_000}],
        [{"call": "all_reduce", "rows": 100_001}],
        ("100000 elements", "100001 elements"),
    ),
    "nothing and something": (
        [{"call": "all_reduce", "rows": 0}],
        [{"call": "all_reduce", "rows": 8}],
        ("(float32, 0 elements", "8 elements"),
    ),
    "small and large": (
        [{"call": "all_reduce", "rows": 4}],
        [{"call": "all_reduce", "rows": 4 << 20}],
        ("(float32, 4 elements", "4194304 elements"),
    ),
    "large and larger": (
        [{"call": "all_reduce", "rows": 1 << 20, "algorithm": "ring"}],
        [{"call": "all_reduce", "rows": 1 << 21, "algorithm": "ring"}],
        ("1048576 elements", "2097152 elements"),
    ),
    "op": ([{"call": "all_reduce"}], [{"call": "all_reduce", "op": "max"}], ("op=sum", "op=max")),
    "op of reduce": ([{"call": "reduce"}], [{"call": "reduce", "op": "min"}], ("op=sum", "op=min")),
    "op of reduce_scatter": (
        [{"call": "reduce_scatter", "op": "prod"}],
        [{"call": "reduce_scatter"}],
        ("op=sum", "op=prod"),
    ),
    "sum and mean": ([{"call": "all_reduce"}], [{"call": "all_reduce", "op": "mean"}], ("op=sum", "op=mean")),
    "root of broadcast": ([{"call": "broadcast"}], [{"call": "broadcast", "root": 1}], ("root=0", "root=1")),
    "root of reduce": ([{"call": "reduce"}], [{"call": "reduce", "root": 2}], ("root=0", "root=2")),
    "root of gather": ([{"call": "gather"}], [{"call": "gather", "root": 1}], ("root=0", "root=1")),
    "root of scatter": ([{"call": "scatter"}], [{"call": "scatter", "root": 2}], ("root=0", "root=2")),
    "algorithm": (
        [{"call": "all_reduce", "algorithm": "ring"}],
        [{"call": "all_reduce", "algorithm": "two_tree"}],
        ("algorithm=ring", "algorithm="),
    ),
    "algorithm, large": (
        [{"call": "all_reduce", "algorithm": "direct", "rows": 1 << 20}],
        [{"call": "all_reduce", "algorithm": "halving_doubling", "rows": 1 << 20}],
        ("algorithm=direct", "algorithm="),
    ),
    "order": (
        [{"call": "all_reduce"}, {"call": "all_gather"}],
        [{"call": "all_gather"}, {"call": "all_reduce"}],
        ("all_reduce(", "all_gather("),
    ),
    "order of sizes": (
        [{"call": "all_reduce", "rows": 8}, {"call": "all_reduce", "rows": 9}],
        [{"call": "all_reduce", "rows": 9}, {"call": "all_reduce", "rows": 8}],
        ("8 elements", "9 elements"),
    ),
    "a call too many": (
        [{"call": "all_gather"}],
        [{"call": "all_reduce"}, {"call": "all_gather"}],
        ("all_reduce(", "all_gather("),
    ),
    "sizes": (
        [{"call": "all_gather", "rows": 4, "sizes": [4, 4, 4]}],
        [{"call": "all_gather", "rows": 4, "sizes": [2, 4, 6]}],
        ("12 elements", "with other sizes"),
    ),
    "lists cut differently": (
        [{"call": "all_reduce", "rows": [8, 16]}],
        [{"call": "all_reduce", "rows": [16, 8]}],
        ("24 elements", "with other sizes"),
    ),
}


@pytest.mark.parametrize(("good", "transport"), [(0, "shm"), (3, "tcp")])
@pytest.mark.parametrize(("usual", "odd", "words"), CASES.values(), ids=CASES.keys())
def test_different_arguments(
    ranks: Ranks, usual: list[Spec], odd: list[Spec], words: tuple[str, ...], good: int, transport: str
) -> None:
    """Before there are connections (`good` 0), and after calls that went well."""
    with ranks(3, differs, good, usual, odd, 1, transport=transport) as job:
        check(job, usual, odd, 1, *words)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [2, 4, 6])
@pytest.mark.parametrize("algorithm", ["ring", "two_tree", "recursive_doubling"])
def test_ranks_far_from_the_odd_one_hear_of_it(ranks: Ranks, algorithm: str, size: int, transport: str) -> None:
    usual = [{"call": "all_reduce", "algorithm": algorithm, "rows": 1 << 16}]
    odd = [{"call": "all_reduce", "algorithm": algorithm, "rows": 1 << 16, "op": "max"}]
    with ranks(size, differs, 1, usual, odd, size - 1, transport=transport) as job:
        check(job, usual, odd, size - 1, f"rank {size - 1} called all_reduce(float32, 65536 elements, op=max", "op=sum")


def sends_what_is_not_expected(me: Rank, elements: list[int]) -> None:
    comm = me.connect()
    x = np.ones(elements[me.rank], np.float32)
    if me.rank == 0:
        me.attempt(comm.send, x, 1)
    else:
        me.attempt(comm.recv, x, 0)
    me.attempt(comm.barrier)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("elements", [[8, 9], [1 << 20, 8], [8, 1 << 20]], ids=str)
def test_messages_of_different_sizes(ranks: Ranks, elements: list[int], transport: str) -> None:
    with ranks(2, sends_what_is_not_expected, elements, transport=transport) as job:
        for rank in (0, 1):
            reports = [job.hear_any("returned", "raised", rank=rank) for _ in range(2)]
            raised = [report for report in reports if report["event"] == "raised"]
            assert raised[0]["kinds"][0] == "MismatchError"
            for count in elements:
                assert f"{count} elements" in raised[0]["text"]
        # What is small may be on its way before anybody could object: `send` returned.


def fails_in_one_group(me: Rank) -> None:
    comm = me.connect()
    group = comm.split(color=0)
    assert group is not None
    x = np.ones(4, np.float32)
    me.attempt(group.all_reduce, x, op="max" if me.rank == 1 else "sum")
    me.attempt(comm.all_reduce, x)
    again = comm.split(color=0)
    assert again is not None
    me.attempt(again.all_reduce, x)


def test_a_mismatch_in_a_group_breaks_only_the_group(ranks: Ranks) -> None:
    with ranks(3, fails_in_one_group) as job:
        for report in job.hear_all("raised"):
            assert report["kinds"][0] == "MismatchError"
        for _ in range(2):
            for report in job.hear_all("returned"):
                assert report["first"] == [3.0]
