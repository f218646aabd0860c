"""Every collective returns what exact arithmetic says, whatever the ranks, hosts, sizes, dtypes and algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import collectives as cc
from tests.cases import HOWS, PLACES, REDUCING, ROOTED, SPLITTING, WHOLE, Case, perform
from tests.references import DTYPES, OPS

Threads = Callable[..., list[Any]]
thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def partitions(draw: st.DrawFn, size: int) -> cc.plan.Hosts | None:  # type: ignore[name-defined]
    """One host, or the ranks dealt out to several in any way."""
    hosts = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return tuple(tuple(r for r in range(size) if hosts[r] == h) for h in sorted(set(hosts)))


@st.composite
def cases(draw: st.DrawFn, collective: str) -> tuple[Case, Any]:
    size = draw(st.integers(1, 9))
    uneven, place = False, draw(st.sampled_from(PLACES))
    few = st.integers(0, 4) | st.integers(0, 40)
    if collective in WHOLE:
        rows = ((draw(few | st.integers(0, 700)),),)
    elif collective == "all_to_all":
        uneven = draw(st.booleans()) and place != "in place"
        one = draw(few)
        rows = tuple(tuple(draw(few) if uneven else one for _ in range(size)) for _ in range(size))
    else:
        uneven = draw(st.booleans())
        one = draw(few)
        rows = (tuple(draw(few) if uneven else one for _ in range(size)),)
    dtype = draw(st.sampled_from(DTYPES if collective in REDUCING else (*DTYPES, "datetime64[ns]", "S3")))
    op = draw(st.sampled_from(OPS(dtype))) if collective in REDUCING else "sum"
    case = Case(
        collective, size, rows,
        row=draw(st.sampled_from([(), (3,), (2, 5), (0,), (1, 1)])),
        uneven=uneven, place=place, dtype=dtype, op=op,
        algorithm=draw(st.sampled_from(("auto", *cc.algorithms(collective)))),
        root=draw(st.integers(0, size - 1)) if collective in ROOTED else 0,
        shift=draw(st.sampled_from([0, 0, 1, 5])),
        seed=draw(st.integers(0, 1 << 20)),
    )  # fmt: skip
    return case, draw(partitions(size))


@pytest.mark.parametrize("collective", [*WHOLE, *SPLITTING])
@thorough
@given(data=st.data())
def test_the_result_is_exact(threads: Threads, collective: str, data: st.DataObject) -> None:
    case, hosts = data.draw(cases(collective))
    how = data.draw(st.sampled_from(HOWS))
    threads(case.size, lambda comm: perform(comm, case, [how], rounds=2), hosts=hosts)


@pytest.mark.parametrize("algorithm", ["auto", *cc.algorithms("barrier")])
@pytest.mark.parametrize("size", range(1, 10))
def test_nobody_leaves_a_barrier_before_all_have_come(threads: Threads, algorithm: str, size: int) -> None:
    came: list[int] = []

    def body(comm: cc.Communicator) -> int:
        came.append(comm.rank)
        assert comm.barrier(algorithm=algorithm) is None
        return len(came)

    assert threads(size, body) == [size] * size
