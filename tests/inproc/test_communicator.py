"""What a communicator does beside moving bytes: plans of the user's own, groups, messages, and calls that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import collectives as cc
from collectives.choose import CANONICAL
from tests.references import values

Threads = Callable[..., list[Any]]
thorough = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---------------------------------------------------------------- plans of the user's own


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers algorithms for the length of a test."""
    names: list[tuple[str, str]] = []

    def take(collective: str, name: str, steps: Callable[..., Any], **options: Any) -> None:
        cc.algorithm(collective, name, **options)(steps)
        names.append((collective, name))

    yield take
    for collective, name in names:
        cc.unregister(collective, name)


def star(rank: int, size: int) -> Iterator[cc.Send | cc.Recv | cc.RecvReduce]:
    """Everybody sends to rank 0, which adds up and sends back."""
    for peer in range(1, size):
        if rank == 0:
            yield cc.RecvReduce(peer, 0)
        elif rank == peer:
            yield cc.Send(0, 0)
    for peer in range(1, size):
        if rank == 0:
            yield cc.Send(peer, 0)
        elif rank == peer:
            yield cc.Recv(0, 0)


def test_a_plan_of_the_users_own_runs_by_its_name(threads: Threads, register: Callable[..., None]) -> None:
    register("all_reduce", "my star", star)

    def body(comm: cc.Communicator) -> list[float]:
        x = np.arange(1000.0) + comm.rank
        total = comm.all_reduce(x, algorithm="my star")
        assert np.array_equal(total, comm.all_reduce(x, algorithm="ring"))
        assert np.array_equal(total, comm.all_reduce_async(x, algorithm="my star").wait(30))
        assert np.array_equal(total, comm.prepare.all_reduce(x, algorithm="my star")())
        return total[:2].tolist()

    assert threads(4, body) == [[6.0, 10.0]] * 4


def two_chunks_crosswise(rank: int, size: int) -> Iterator[Any]:
    """Two halves on two lanes, by way of spare memory, with a local copy and a local sum."""
    assert size == 2
    data = 2
    yield cc.Send(1 - rank, 0, lane=0)
    yield cc.Send(1 - rank, 1, lane=1)
    yield cc.Recv(1 - rank, data, lane=0)
    yield cc.Recv(1 - rank, data + 1, lane=1)
    yield cc.Copy(data, 2 * data, 2)
    yield cc.Reduce(2 * data, 0, 2, target_first=rank == 0)


def test_a_plan_may_use_lanes_chunks_and_spare_memory(threads: Threads, register: Callable[..., None]) -> None:
    register("all_reduce", "crosswise", two_chunks_crosswise, chunks=2, lanes=2)

    def body(comm: cc.Communicator) -> bool:
        x = np.arange(777, dtype=np.int64) * (comm.rank + 1)
        wanted = np.arange(777) * 3
        comm_result = comm.all_reduce(x, algorithm="crosswise")
        assert comm.all_reduce(x, algorithm="crosswise", out=x) is x
        return np.array_equal(comm_result, wanted) and np.array_equal(x, wanted)

    assert threads(2, body) == [True, True]


def test_steps_of_several_chunks_are_brought_together(threads: Threads, register: Callable[..., None]) -> None:
    """A Send of chunks of which some were received and some are still the caller's."""

    def gather_in_a_chain(rank: int, size: int) -> Iterator[Any]:
        if rank + 1 < size:
            yield cc.Recv(rank + 1, rank + 1, size - rank - 1)
        if rank:
            yield cc.Send(rank - 1, rank, size - rank)
            yield cc.Recv(rank - 1, 0, size)
        if rank + 1 < size:
            yield cc.Send(rank + 1, 0, size)

    register("all_gather", "chain there and back", gather_in_a_chain)

    def body(comm: cc.Communicator) -> list[int]:
        sizes = [3, 0, 7, 1, 4]
        x = np.full(sizes[comm.rank], comm.rank)
        return comm.all_gather(x, sizes=sizes, algorithm="chain there and back").tolist()

    assert threads(5, body) == [[0] * 3 + [2] * 7 + [3] + [4] * 4] * 5


def broken_in_many_ways() -> list[tuple[str, Callable[..., Any], str]]:
    def forgets(rank: int, size: int) -> Iterator[Any]:
        yield from (step for step in star(rank, size) if not isinstance(step, cc.Recv) or rank != size - 1)

    def counts_twice(rank: int, size: int) -> Iterator[Any]:
        yield cc.Send(1 - rank, 0)
        yield cc.RecvReduce(1 - rank, 0)
        yield cc.Send(1 - rank, 0)
        yield cc.RecvReduce(1 - rank, 0)

    def waits_forever(rank: int, size: int) -> Iterator[Any]:
        yield cc.RecvReduce(1 - rank, 0)
        yield cc.Send(1 - rank, 0)

    return [
        ("forgets", forgets, "rank"),
        ("twice", counts_twice, "rank"),
        ("waits", waits_forever, "deadlock|holds|rank"),
    ]


@pytest.mark.parametrize(("name", "steps", "why"), broken_in_many_ways())
def test_a_broken_plan_is_refused_before_anything_is_sent(
    threads: Threads, register: Callable[..., None], name: str, steps: Callable[..., Any], why: str
) -> None:
    register("all_reduce", name, steps)

    def body(comm: cc.Communicator) -> int:
        x = np.ones(4)
        transport: Any = comm._transport
        for call in (comm.all_reduce, comm.all_reduce_async, comm.prepare.all_reduce):
            with pytest.raises(cc.PlanError, match=why):
                call(x, algorithm=name)
        assert transport.bytes_sent == 0
        assert comm.all_reduce(x).tolist() == [2.0] * 4  # nothing is broken
        return transport.bytes_sent

    assert all(threads(2, body))


# ---------------------------------------------------------------- groups


@thorough
@given(
    colors=st.lists(st.none() | st.integers(-2, 2), min_size=1, max_size=7),
    keys=st.lists(st.none() | st.integers(-3, 3), min_size=7, max_size=7),
)
def test_split_groups_by_color_and_orders_by_key(
    threads: Threads, colors: list[int | None], keys: list[int | None]
) -> None:
    def body(comm: cc.Communicator) -> list[int] | None:
        group = comm.split(color=colors[comm.rank], key=keys[comm.rank])
        if group is None:
            return None
        members = group.all_gather(np.array([comm.rank])).tolist()
        assert members[group.rank] == comm.rank
        assert group.all_reduce(np.ones(1))[0] == group.size == len(members)
        return members

    def wanted(rank: int) -> list[int] | None:
        if colors[rank] is None:
            return None
        members = [r for r in range(len(colors)) if colors[r] == colors[rank]]
        return sorted(members, key=lambda r: (r if (k := keys[r]) is None else k, r))

    assert threads(len(colors), body) == [wanted(rank) for rank in range(len(colors))]


@thorough
@given(dealt=st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_by_host_gives_those_inside_and_those_across(threads: Threads, dealt: list[int]) -> None:
    size = len(dealt)
    hosts = tuple(tuple(r for r in range(size) if dealt[r] == h) for h in sorted(set(dealt)))

    def body(comm: cc.Communicator) -> tuple[list[int], list[int]]:
        assert comm.hosts == hosts
        inside, across = comm.by_host()
        assert inside.hosts == (tuple(range(inside.size)),)
        assert len(across.hosts) == across.size
        me = np.array([comm.rank])
        total = inside.all_reduce(np.ones(2))
        assert total[0] == inside.size
        return inside.all_gather(me).tolist(), across.all_gather(me).tolist()

    for rank, (inside, across) in enumerate(threads(size, body, hosts=hosts)):
        host = next(h for h in hosts if rank in h)
        place = host.index(rank)
        assert inside == list(host)
        assert across == [h[place] for h in hosts if len(h) > place]


@thorough
@given(data=st.data())
def test_hosts_do_not_change_results(threads: Threads, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 8))
    dealt = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    hosts = tuple(tuple(r for r in range(size) if dealt[r] == h) for h in sorted(set(dealt)))
    elements = data.draw(st.sampled_from([1, 5, 100])) * size

    def body(comm: cc.Communicator) -> None:
        xs = [values("int64", [elements], rank) for rank in range(size)]
        x = xs[comm.rank]
        total = np.sum(xs, axis=0)
        for algorithm in ("auto", "hierarchical"):
            assert np.array_equal(comm.all_reduce(x, algorithm=algorithm), total)
            part = comm.reduce_scatter(x, algorithm=algorithm)
            assert np.array_equal(comm.all_gather(part, algorithm=algorithm), total)
            for root in (0, size - 1):
                assert np.array_equal(comm.broadcast(x, root=root, algorithm=algorithm), xs[root])
                reduced = comm.reduce(x, root=root, algorithm=algorithm)
                assert np.array_equal(reduced, total) if comm.rank == root else reduced is None

    threads(size, body, hosts=hosts)


# ---------------------------------------------------------------- messages


def test_messages_arrive_in_order_and_beside_calls(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> list[int]:
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        got = []
        for turn in range(20):
            out = np.empty(turn, np.int64)
            if comm.rank % 2:
                assert comm.recv(out, before) is out
                comm.send(np.full(turn, turn + comm.rank), after)
            else:
                comm.send(np.full(turn, turn + comm.rank), after)
                comm.recv(out, before)
            assert (out == turn + before).all()
            got.append(int(comm.all_reduce(np.array(turn))))
        return got

    assert threads(4, body) == [[4 * turn for turn in range(20)]] * 4


# ---------------------------------------------------------------- wrong calls, refused before anything is sent


def wrong_calls(comm: cc.Communicator) -> list[tuple[Callable[[], Any], type[Exception], str]]:
    x, n = np.ones(6, np.float32), comm.size
    return [
        (lambda: comm.all_reduce(x, algorithm="rings"), ValueError, "there are: .*ring"),
        (lambda: comm.all_reduce(x, op="plus"), ValueError, "unknown op 'plus'; there are: sum"),
        (lambda: comm.all_reduce(x, op="and"), ValueError, "no meaning for float32"),
        (lambda: comm.all_reduce(np.ones(3, bool), op="mean"), ValueError, "no meaning for bool"),
        (lambda: comm.all_reduce(np.ones(3, complex), op="max"), ValueError, "no meaning for complex128"),
        (lambda: comm.all_reduce(x, out=np.ones(5, np.float32)), ValueError, r"out has shape \(5,\)"),
        (lambda: comm.all_reduce(x, timeout_s=0), ValueError, "timeout_s=0 must be more than 0"),
        (lambda: comm.broadcast(x, root=n), ValueError, f"root={n} is not a rank"),
        (lambda: comm.reduce(x, root=-1), ValueError, "root=-1 is not a rank"),
        (lambda: comm.reduce_scatter(np.ones(7)), ValueError, "cannot split 7 rows evenly over 3 ranks; give sizes="),
        (lambda: comm.reduce_scatter(x, sizes=[1, 2, 4]), ValueError, "must be 3 sizes that add up to the 6 rows"),
        (lambda: comm.reduce_scatter(x, sizes=[6]), ValueError, "must be 3 sizes"),
        (lambda: comm.reduce_scatter(x, sizes=[7, -1, 0]), ValueError, "must be 3 sizes"),
        (lambda: comm.all_gather(x, sizes=[5, 5, 5]), ValueError, r"of which sizes\[\d\] is the 6 rows"),
        (lambda: comm.all_to_all(np.ones(4)), ValueError, "give send_sizes= and recv_sizes="),
        (lambda: comm.all_to_all(x, send_sizes=[2, 2, 2]), ValueError, "together, or neither"),
        (lambda: comm.all_to_all(x, send_sizes=[2, 2, 3], recv_sizes=[2, 2, 2]), ValueError, "add up to the 6 rows"),
        (lambda: comm.scatter(np.ones(7), root=comm.rank), ValueError, "cannot split 7 rows"),
        (lambda: comm.scatter(x, root=(comm.rank + 1) % n), ValueError, "is not the root: scatter needs out="),
        (lambda: comm.send(x, comm.rank), ValueError, "is not another rank"),
        (lambda: comm.recv(x, n), ValueError, f"peer={n} is not another rank"),
        (lambda: comm.all_reduce("x"), TypeError, "no array"),
        (lambda: comm.all_reduce([x, x], out=[x]), ValueError, "2 arrays were given, but 1"),
    ]


def test_wrong_calls_say_what_would_be_right_and_break_nothing(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        transport: Any = comm._transport
        for call, kind, why in wrong_calls(comm):
            with pytest.raises(kind, match=why):
                call()
        assert transport.bytes_sent == 0
        assert comm.all_reduce(np.ones(2)).tolist() == [3.0, 3.0]

    threads(3, body)


def test_a_closed_communicator_says_so(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        comm.barrier()
        again = comm.prepare.barrier()
        comm.close()
        comm.close()
        assert "closed" in repr(comm)
        for call in (comm.barrier, comm.by_host, lambda: comm.all_reduce(np.ones(1)), lambda: comm.empty(1), again):
            with pytest.raises(cc.CommunicatorBroken, match="closed"):
                call()

    threads(2, body)


@pytest.mark.parametrize(("size", "hosts"), [(0, None), (2, ((0,),)), (2, ((0, 0), (1,))), (2, ((0, 1), (2,)))])
def test_impossible_sets_of_ranks_are_refused(size: int, hosts: Any) -> None:
    with pytest.raises(ValueError, match=r"size=0|must hold each rank"):
        cc.connect_threads(size, hosts=hosts)


def test_repr_tells_rank_size_and_hosts() -> None:
    first, second = cc.connect_threads(2, hosts=((0,), (1,)))
    assert repr(first) == "<Communicator: rank 0 of 2 on 2 hosts, threads of one process, found by connect_threads>"
    for comm in (first, second):
        comm.close()


# ---------------------------------------------------------------- what "auto" goes by


@pytest.mark.parametrize(
    "options", [{"cluster": "missing.json"}, {"cluster": "."}, {"cluster": 5}, {"rules": "missing.json"}, {"rules": 5}]
)
def test_what_rank_0_cannot_read_is_an_error_on_all_ranks_and_breaks_nothing(
    threads: Threads, options: dict[str, Any]
) -> None:
    def body(comm: cc.Communicator) -> float:
        with pytest.raises(ValueError):
            comm.use(**options)
        return float(comm.all_reduce(np.ones(1))[0])

    assert threads(3, body, timeout_s=10) == [3.0] * 3


def test_a_reproducible_communicator_is_tuned_for_its_own_calls(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> set[str]:
        return set(comm.tune(("all_reduce",), sizes=(1 << 16,), budget_s=1).times_s["all_reduce"])

    for measured in threads(3, body, reproducible=True):
        assert measured
        assert measured <= set(CANONICAL["all_reduce"])
