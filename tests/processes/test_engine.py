"""The engine's results are exact, and are bit for bit those of the portable executor, on every kind of connection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, Job
from rank_process import Rank

import collectives as cc
from collectives.choose import assumed_cluster
from tests.cases import PLACES, REDUCING, ROOTED, SPLITTING, WHOLE, Case, perform
from tests.references import DTYPES, OPS, values

Ranks = Callable[..., AbstractContextManager[Job]]

COLLECTIVES = (*WHOLE, *SPLITTING)
TINY = 4096  # a ring that everything must stream through
CONNECTIONS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {"transport": "shm", "ring_bytes": TINY}),
    (2, {"transport": "tcp", "lanes": 3}),
    (3, {"transport": "shm", "lanes": 3}),
    (3, {"transport": "tcp"}),
    (4, {"transport": "shm"}),
    (4, {"transport": "shm", "ring_bytes": TINY, "lanes": 3}),
    (5, {"transport": "shm", "ring_bytes": TINY}),
    (5, {"transport": "tcp", "lanes": 3}),
    (8, {"transport": "shm", "lanes": 3}),
    (8, {"transport": "tcp"}),
]


def name(connection: tuple[int, dict[str, Any]]) -> str:
    size, options = connection
    return "-".join([f"{size}", *(value if key == "transport" else f"{key}={value}" for key, value in options.items())])


every_connection = pytest.mark.parametrize(("size", "options"), CONNECTIONS, ids=[name(c) for c in CONNECTIONS])


def algorithms(collective: str) -> tuple[str, ...]:
    return ("auto", *cc.algorithms(collective))


def pretend_hosts(size: int) -> tuple[tuple[int, ...], ...]:
    """Uneven hosts, not in rank order, for the algorithms that look at them."""
    if size < 3:
        return (tuple(range(size)),)
    return (tuple(range(0, size, 2)), tuple(range(1, size, 2)))


# ---------------------------------------------------------------- exact results


def rows_of(collective: str, size: int, elements: int, uneven: bool, seed: int) -> tuple[tuple[int, ...], ...]:
    """`elements` in all, or about as many where they must be split evenly."""
    if collective in WHOLE:
        return ((elements,),)
    each = -(-elements // size)
    if not uneven:
        return ((each,) * size,) * (size if collective == "all_to_all" else 1)
    random = np.random.default_rng(seed)
    table = random.integers(0, 2 * each + 1, (size, size))
    return tuple(tuple(map(int, row)) for row in (table if collective == "all_to_all" else table[:1]))


def dtype_cases(size: int) -> Iterator[Case]:
    """Every dtype and op, while the rest varies."""
    counts, places, shifts = cycle([1000, 3, 70]), cycle(PLACES), cycle([0, 1, 0, 3, 0])
    for collective in REDUCING:
        names = cycle(algorithms(collective))
        for dtype in DTYPES:
            for op in OPS(dtype):
                uneven = collective == "reduce_scatter" and size % 2 == 1
                rows = rows_of(collective, size, next(counts), uneven, 1)
                yield Case(
                    collective, size, rows, algorithm=next(names), dtype=dtype, op=op, root=size // 2, uneven=uneven,
                    place=next(places), shift=next(shifts),
                )  # fmt: skip


def size_cases(size: int) -> Iterator[Case]:
    """Every algorithm, at nothing, one element, fewer elements than ranks, primes; out of place and in place."""
    dtypes, roots = cycle(["float32", "int64", "uint8", "complex128"]), cycle(range(size))
    rows, places = cycle([(), (3,)]), cycle(PLACES)
    for collective in COLLECTIVES:
        for algorithm in algorithms(collective):
            for elements in (0, 1, max(size - 1, 1), 10007, 257):
                place = next(places)
                uneven = place != "in place" and collective in SPLITTING and elements == 257
                yield Case(
                    collective, size, rows_of(collective, size, elements, uneven, elements), uneven=uneven,
                    algorithm=algorithm, dtype=next(dtypes), root=next(roots) if collective in ROOTED else 0,
                    place=place, row=next(rows),
                )  # fmt: skip


def perform_all(me: Rank, which: str) -> None:
    comm = me.connect()
    comm.use(cluster=assumed_cluster(pretend_hosts(me.size), shared_memory=True))
    for number, case in enumerate({"dtypes": dtype_cases, "sizes": size_cases}[which](me.size)):
        how = ("blocking", "async", "blocking", "prepared")[number % 4]
        perform(comm, case, [how], rounds=3 if how == "blocking" else 2)  # from the second on without Python
    me.say("done")


@every_connection
def test_every_dtype_and_op_is_exact(ranks: Ranks, size: int, options: dict[str, Any]) -> None:
    with ranks(size, perform_all, "dtypes", **options) as job:
        job.hear_all("done")


@every_connection
def test_every_algorithm_is_exact_at_every_size(ranks: Ranks, size: int, options: dict[str, Any]) -> None:
    with ranks(size, perform_all, "sizes", **options) as job:
        job.hear_all("done")


def perform_large(me: Rank) -> None:
    comm = me.connect()
    comm.use(cluster=assumed_cluster(pretend_hosts(me.size), shared_memory=True))
    for collective in COLLECTIVES:
        for algorithm in algorithms(collective):
            rows = rows_of(collective, me.size, (3 << 20) // 4 + 3, False, 0)
            case = Case(collective, me.size, rows, algorithm=algorithm, dtype="int32", root=me.size - 1, shift=4)
            perform(comm, case)
    me.say("done")


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"transport": "shm"}),
        (3, {"transport": "tcp", "lanes": 3}),
        (4, {"transport": "shm", "ring_bytes": TINY, "lanes": 3}),
        (5, {"transport": "tcp"}),
    ],
)
def test_messages_of_several_mebibytes_are_exact(ranks: Ranks, size: int, options: dict[str, Any]) -> None:
    with ranks(size, perform_large, **options) as job:
        job.hear_all("done")


# ---------------------------------------------------------------- the same bits as the reference executor

ELEMENTS = 5003 * 8  # divides evenly over 2, 4 and 8 ranks; cut to do so over 3 and 5


def random_calls(comm: cc.Communicator) -> dict[str, str | None]:
    """Random float32 numbers through every algorithm: what this rank gets, as a hash of the bits."""
    comm.use(cluster=assumed_cluster(pretend_hosts(comm.size), shared_memory=True))
    n = comm.size
    elements = ELEMENTS // (n * n) * n * n
    found: dict[str, str | None] = {}
    for collective in COLLECTIVES:
        for algorithm in cc.algorithms(collective):
            x = np.random.default_rng([n, comm.rank]).standard_normal(elements, np.float32)
            options: dict[str, Any] = {"algorithm": algorithm}
            if collective in ROOTED:
                options["root"] = n // 2
            if collective == "scatter":
                options["out"] = np.empty(elements // n, np.float32)
            result = getattr(comm, collective)(x, **options)
            found[f"{collective} {algorithm}"] = None if result is None else hashlib.sha256(result).hexdigest()
    return found


@lru_cache
def reference_bits(size: int) -> list[dict[str, str | None]]:
    comms = cc.connect_threads(size, timeout_s=PATIENCE_S)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(random_calls, comm) for comm in comms]
        wait(futures, PATIENCE_S)
        for comm in comms:
            comm.close()
    return [future.result() for future in futures]


def tell_bits(me: Rank) -> None:
    me.say("bits", bits=random_calls(me.connect()))


@every_connection
def test_floats_have_the_bits_of_the_reference_executor(ranks: Ranks, size: int, options: dict[str, Any]) -> None:
    with ranks(size, tell_bits, **options) as job:
        found = [report["bits"] for report in job.hear_all("bits")]
    assert found == reference_bits(size)


def tell_bits_in_pieces(me: Rank) -> None:
    """The same sum with other lanes, rings and connections, and asynchronously, or split over a list."""
    comm = me.connect()
    x = np.random.default_rng(me.rank).standard_normal(300_001, np.float32)
    hashes = [
        hashlib.sha256(result).hexdigest()
        for result in (
            comm.all_reduce(x, algorithm="ring"),
            comm.all_reduce(x, algorithm="ring"),
            comm.all_reduce_async(x, algorithm="ring").wait(),
            comm.prepare.all_reduce(x, algorithm="ring")(),
            comm.all_reduce([x, x[:5]], algorithm="ring")[0],
        )
    ]
    me.say("bits", bits=hashes)


def test_bits_do_not_depend_on_the_connection_or_the_kind_of_call(ranks: Ranks) -> None:
    found: set[str] = set()
    for options in ({"transport": "shm", "ring_bytes": TINY}, {"transport": "tcp", "lanes": 5}, {"lanes": 2}):
        with ranks(3, tell_bits_in_pieces, **options) as job:
            found |= {text for report in job.hear_all("bits") for text in report["bits"]}
    assert len(found) == 1


def test_the_result_is_near_the_sum_in_double_precision(ranks: Ranks) -> None:
    with ranks(4, compare_with_double_precision) as job:
        job.hear_all("done")


def compare_with_double_precision(me: Rank) -> None:
    comm = me.connect()
    xs = [np.random.default_rng(rank).standard_normal(10_007) for rank in range(me.size)]
    exact = np.sum(xs, axis=0)
    for dtype, eps in (("float16", 2.0**-11), ("float32", 2.0**-24), ("float64", 2.0**-53)):
        given = [x.astype(dtype) for x in xs]
        bound = 4 * me.size * eps * np.sum(np.abs(xs), axis=0)
        for algorithm in cc.algorithms("all_reduce"):
            found = comm.all_reduce(given[me.rank], algorithm=algorithm).astype(np.float64)
            assert (np.abs(found - exact) <= bound).all(), (dtype, algorithm)
    me.say("done")


# ---------------------------------------------------------------- barriers and messages


def pass_tokens(me: Rank) -> None:
    """A rank that left a barrier early would see a counter that is not yet full."""
    comm = me.connect()
    counter = np.zeros(me.size, np.int64)
    peers = [rank for rank in range(me.size) if rank != me.rank]
    for turn in range(1, 30):
        counter[me.rank] = turn
        for peer in peers[:1] if me.size > 2 else peers:
            comm.barrier() if turn % 3 else comm.barrier_async().wait(PATIENCE_S)
            assert peer is not None
        assert comm.barrier(algorithm="dissemination") is None
    ring = np.array([me.rank], np.int64)
    after, before = (me.rank + 1) % me.size, (me.rank - 1) % me.size
    for elements in (1, 0, 1000, 300_000):
        data, got = values("int64", [elements], me.rank, elements), np.zeros(elements, np.int64)
        if me.rank % 2:
            assert comm.recv(got, before) is got
            comm.send(data, after)
        else:
            comm.send(data, after)
            comm.recv(got, before)
        assert np.array_equal(got, values("int64", [elements], before, elements))
        assert comm.all_reduce(ring)[0] == me.size * (me.size - 1) // 2  # messages and calls do not disturb each other
    me.say("done")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("size", [2, 4])
def test_messages_between_two_ranks_arrive_in_order(ranks: Ranks, size: int, transport: str) -> None:
    with ranks(size, pass_tokens, transport=transport) as job:
        job.hear_all("done")


def come_late(me: Rank, late: int) -> None:
    comm = me.connect()
    comm.barrier()
    me.say("ready")
    if me.rank == late:
        me.wait_for("go")
    me.say("came")
    comm.barrier()
    me.say("left")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_nobody_leaves_a_barrier_before_all_have_come(ranks: Ranks, size: int) -> None:
    with ranks(size, come_late, size - 1) as job:
        job.hear_all("ready")
        job.hear_all("came", but=(size - 1,))
        job.tell("go", size - 1)
        came = job.hear("came", size - 1)["at"]
        assert all(report["at"] >= came for report in job.hear_all("left"))


# ---------------------------------------------------------------- a plan of the user's own


def there_and_back(rank: int, size: int) -> Iterator[Any]:
    """All-gather along a line: what is behind comes forward, then everything goes back."""
    if rank + 1 < size:
        yield cc.Recv(rank + 1, rank + 1, size - rank - 1)
    if rank:
        yield cc.Send(rank - 1, rank, size - rank)
        yield cc.Recv(rank - 1, 0, size)
    if rank + 1 < size:
        yield cc.Send(rank + 1, 0, size)


def says_nothing(rank: int, size: int) -> Iterator[Any]:
    if rank == 0:
        yield cc.Send(1, 0)


def run_own_plans(me: Rank) -> None:
    cc.algorithm("all_gather", "there and back")(there_and_back)
    cc.algorithm("all_gather", "nothing")(says_nothing)
    comm = me.connect()
    transport: Any = comm._transport
    with pytest.raises(cc.PlanError, match="rank"):
        comm.all_gather(np.ones(3), algorithm="nothing")
    assert transport.bytes_sent == 0
    for rows in ((3, 0, 7, 1), (40_000, 1, 0, 30_011)):
        for place in PLACES:
            case = Case("all_gather", me.size, (rows,), uneven=True, algorithm="there and back", place=place)
            perform(comm, case, ["blocking", "async", "prepared"], rounds=2)
    me.say("done")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_plan_of_the_users_own_is_proved_and_runs_by_its_name(ranks: Ranks, transport: str) -> None:
    with ranks(4, run_own_plans, transport=transport) as job:
        job.hear_all("done")
