"""Checks of calls: one after the other, in the background, prepared, traced, on several communicators and threads; and
of messages."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from transports.base import Started, Transport
from transports.conformance.kit import Checks
from transports.conformance.member import Array, Member, NotChecked, call_of, finish
from transports.conformance.scripts import Bytes, all_pairs, around, contents
from transports.program import DTYPES, OPS, Native, Place, Program
from transports.tracing import TracedStep

__all__ = ["CHECKS"]

CHECKS = Checks()


@CHECKS("many calls")
def _(me: Member) -> None:
    """A compiled program runs any number of times, on any memory, and in between others."""
    transport = me.connect()
    n = 4001
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    for turn in range(60):
        before, arrays, wanted = me.setting(transport, script, [n, n, 2 * n], turn % 8, turn)
        me.run(transport, compiled, arrays)
        me.compare(before, arrays, wanted)
        if turn % 10 == 0:
            me.perform(transport, all_pairs(me.size, 7), [7, 7 * me.size], seed=turn)


@CHECKS("buffers may be objects")
def _(me: Member) -> None:
    """An array with the buffer protocol is as good as its address: numpy's, or memory that `empty` gave."""
    if me.memory.device.kind != "cpu":
        raise NotChecked("arrays of a device are given by their addresses")
    transport = me.connect()
    script = around(me.size, 1001)
    compiled = me.compile(transport, script, 3, call_of(1001))
    before, _, wanted = me.setting(transport, script, [1001, 1001, 2002])
    numpys = [data.copy() for data in before]
    byte_arrays = [bytearray(data.tobytes()) for data in before]
    given: list[memoryview] = [transport.empty(len(data)) for data in before]
    for view, data in zip(given, before, strict=True):
        me.expect(len(view) == len(data), f"{len(data)} bytes of `empty`, not {len(view)}")
        me.expect(not any(view), "memory of `empty` to be zeros")
        view[:] = data.tobytes()
    for buffers in (numpys, byte_arrays, given):
        transport.run(compiled, me.patience_s, *buffers)
        for buffer, good in zip(buffers, wanted, strict=True):
            me.expect(bytes(buffer) == good.tobytes(), f"the same in {type(buffer).__name__} objects as in memory")


@CHECKS("calls in the background end in order")
def _(me: Member) -> None:
    """Calls that were started run one after the other; a call that blocks waits for them."""
    transport = me.connect()
    n = 200_003
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    settings = [me.setting(transport, script, [n, n, 2 * n], seed=turn) for turn in range(6)]
    addresses = [[array.address for array in arrays] for _, arrays, _ in settings]
    calls: list[Started] = [transport.start(compiled, me.patience_s, *at) for at in addresses[:5]]
    transport.run(compiled, me.patience_s, *addresses[5])
    for call in calls:
        me.expect(call.has_ended(), "a blocking call to wait for those that were started before it")
    for call in reversed(calls):
        me.expect(call.wait(0.0), "`wait` to say at once that a call has ended")
    for before, arrays, wanted in settings:
        me.compare(before, arrays, wanted)


@CHECKS("the output of one call is the input of the next")
def _(me: Member) -> None:
    """Started without waiting in between, on the same memory: each call finds what those before it left."""
    transport = me.connect()
    n = 100_001
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    before, arrays, _ = me.setting(transport, script, [n, n, 2 * n])
    source, target, room = (array.address for array in arrays)
    calls: list[Started] = []
    for turn in range(6):
        there, back = (target, source) if turn % 2 else (source, target)
        calls.append(transport.start(compiled, me.patience_s, there, back, room))
    for call in calls:
        finish(call, me)
    of_ranks = [contents(me.seed, rank, 0, n).astype(np.uint64) for rank in range(me.size)]
    # The first call gives the total; each of the five after it multiplies that by the number of ranks.
    total: Any = np.sum(of_ranks, axis=0, dtype=np.uint64)
    me.compare(before[:1], arrays[:1], [(total * np.uint64(me.size**5)).astype(np.uint8)])


@CHECKS("waiting for a call in the background")
def _(me: Member) -> None:
    """`wait` comes back with False after the time it is given, and with True once the call has ended."""
    beside, transport = me.connect_two()
    me.barrier(transport)
    last = me.size - 1
    compiled = me.compile(transport, all_pairs(me.size), 2, call_of(1))
    arrays = me.array(1), me.array(me.size)
    if me.rank == last:
        # Nobody can have ended before this rank has called; it does when all others have seen that.
        for peer in range(last):
            me.message(beside, False, peer, me.array(1))
    call = transport.start(compiled, me.patience_s, *(array.address for array in arrays))
    if me.rank != last:
        began = time.monotonic()
        me.expect(not call.wait(0.05), "`wait` to say that a call has not ended while a rank has not made it")
        me.expect(time.monotonic() - began >= 0.05, "`wait` to take the time it was given")
        me.expect(not call.has_ended(), "`has_ended` to be False while a rank has not made the call")
        me.message(beside, True, last, me.array(1))
    finish(call, me)
    me.expect(call.has_ended(), "`has_ended` to be True after `wait`")


@CHECKS("prepared calls")
def _(me: Member) -> None:
    """What `prepare` returns runs the program, returns the result, and keeps what it must keep alive."""

    class Kept:
        pass

    transport = me.connect()
    n = 1001
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    before, arrays, wanted = me.setting(transport, script, [n, n, 2 * n])
    result, kept = object(), Kept()
    alive = weakref.ref(kept)
    at = [array.address for array in arrays]
    call: Callable[[], Any] | None = transport.prepare(compiled, me.patience_s, result, kept, *at)
    del kept
    gc.collect()
    me.expect(alive() is not None, "`keep` to live as long as the prepared call")
    for _ in range(3):
        arrays[1].put(before[1])
        arrays[2].put(before[2])
        me.expect(call() is result, "a prepared call to return its result")
        me.compare(before, arrays, wanted)
    call = None
    gc.collect()
    me.expect(alive() is None, "`keep` to be let go of with the prepared call")


@CHECKS("messages")
def _(me: Member) -> None:
    """Messages of many sizes arrive in order, both ways, between calls, and do not count as calls."""
    transport = me.connect()
    sizes = [1, 0, 70_000, 3, 1 << 20, 5, 0, 4096]
    for turn, nbytes in enumerate(sizes):
        sent = me.array(_pattern(nbytes, me.rank, turn), turn % 4)
        got = me.array(nbytes, turn % 3)
        for step in range(2):
            if (me.rank + step) % 2 == 0:
                me.message(transport, True, me.after, sent)
            if (me.rank + step) % 2 == 1:
                me.message(transport, False, me.before, got)
        me.expect(np.array_equal(got.get(), _pattern(nbytes, me.before, turn)), f"message {turn}, {nbytes} bytes")
        if turn % 3 == 0:
            me.perform(transport, around(me.size, 100), [100, 100, 200], seed=turn)
    # Some ranks have more messages than others: it is calls alone that are counted together.
    if me.rank < 2:
        for turn in range(20):
            array = me.array(_pattern(100, 0, turn) if me.rank == 0 else 100)
            me.message(transport, me.rank == 0, 1 - me.rank, array)
            me.expect(np.array_equal(array.get(), _pattern(100, 0, turn)), f"message {turn} of 20 in its turn")
    me.perform(transport, around(me.size, 1000), [1000, 1000, 2000])


def _pattern(nbytes: int, rank: int, turn: int) -> Bytes:
    return np.resize(((np.arange(251) * (rank + 1) + turn) % 256).astype(np.uint8), nbytes)


@CHECKS("traces")
def _(me: Member) -> None:
    """A trace has the calls since it began, with their steps in the order of the program, and consistent times."""
    transport = me.connect()
    n = 300_000
    script = around(me.size, n)
    me.perform(transport, script, [n, n, 2 * n])
    transport.start_trace()
    me.perform(transport, script, [n, n, 2 * n])
    transport.start_trace()  # forgets the one before
    began_s = time.monotonic()
    me.perform(transport, script, [n, n, 2 * n], times=2)
    me.perform(transport, all_pairs(me.size), [1, me.size])
    ended_s = time.monotonic()
    calls = transport.stop_trace()
    me.perform(transport, script, [n, n, 2 * n])
    me.expect(transport.stop_trace() == [], "nothing in a trace that was never begun")
    me.expect([call.seq for call in calls] == [3, 4, 5], f"calls 3 to 5, not {[call.seq for call in calls]}")
    for call, actions in zip(calls, [script(me.rank)] * 2 + [all_pairs(me.size)(me.rank)], strict=True):
        steps = [_moved(step) for step in call.steps]
        wanted = [(a.kind, a.peer, a.lane, a.nbytes) if a.peer >= 0 else (a.kind, a.nbytes) for a in actions]
        me.expect(steps == wanted, f"the steps of the program, {wanted}, not {steps}")
        me.expect(began_s <= call.began_s <= call.ended_s <= ended_s, "times of the monotonic clock")
        ends = [(step.began_s, step.ended_s) for step in call.steps]
        inside = all(call.began_s <= low <= high <= call.ended_s for low, high in ends)
        me.expect(inside, f"every step within its call, {call.began_s} to {call.ended_s}, not {ends}")


def _moved(step: TracedStep) -> tuple[int, ...]:
    local = step.kind > 2
    return (step.kind, step.nbytes) if local else (step.kind, step.peer, step.lane, step.nbytes)


@CHECKS("two communicators at the same time")
def _(me: Member) -> None:
    """Neighbours enter them in opposite orders: on one thread, with calls in the background, and on two threads."""
    world = me.connect()
    everybody = range(me.size)
    a, b = me.split(world, "a", everybody), me.split(world, "b", everybody)
    n = 400_001
    script = around(me.size, n)
    order = (a, b) if me.rank % 2 else (b, a)
    compiled = {id(t): me.compile(t, script, 3, call_of(n)) for t in (a, b)}
    for turn in range(3):
        settings = {id(t): me.setting(t, script, [n, n, 2 * n], seed=10 * turn + (t is a)) for t in (a, b)}
        first, second = order
        at = [[array.address for array in settings[id(t)][1]] for t in order]
        call = first.start(compiled[id(first)], me.patience_s, *at[0])
        second.run(compiled[id(second)], me.patience_s, *at[1])
        finish(call, me)
        for setting in settings.values():
            me.compare(*setting)

    def rounds(transport: Transport) -> None:
        for turn in range(15):
            me.perform(transport, around(me.size, 5003), [5003, 5003, 10_006], seed=turn + 100 * (transport is a))

    me.at_once(*(partial(rounds, transport) for transport in order))


@CHECKS("threads take turns")
def _(me: Member) -> None:
    """A transport may be used from another thread than the one that connected it; and two threads that make the same
    calls at the same time get right results."""
    transport = me.connect()
    n = 20_001
    script = around(me.size, n)
    me.at_once(lambda: me.perform(transport, script, [n, n, 2 * n]))

    def calls() -> None:
        me.perform(transport, script, [n, n, 2 * n])

    me.at_once(lambda: [calls() for _ in range(8)], lambda: [calls() for _ in range(8)])  # pyright: ignore[reportArgumentType]
    calls()


# ---------------------------------------------------------------- the layer's own collectives

_NATIVES = (
    "all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "gather", "scatter", "all_to_all", "scan",
    "exscan", "barrier",
)  # fmt: skip
_DTYPE = "float32"
_COUNT = 1003
_REDUCING = frozenset({"all_reduce", "reduce", "reduce_scatter", "scan", "exscan"})


def _native(collective: str, me: Member) -> None:
    """A whole call of the layer below, on whole numbers, with every root; a sum, and a mean where there is one."""
    transport = me.connect()
    if collective not in transport.natives:
        raise NotChecked(f"this transport has no {collective} of the layer below")
    means = (False, True) if collective in _REDUCING - {"scan", "exscan"} else (False,)
    for root in range(me.size) if collective in ("reduce", "broadcast", "gather", "scatter") else (-1,):
        for mean in means:
            _run_native(me, transport, collective, root, mean)
    me.barrier(transport)


def _run_native(me: Member, transport: Transport, collective: str, root: int, mean: bool) -> None:
    size, rank = me.size, me.rank
    # Those of rank r are r + 1 times as much.
    pieces = np.arange(size * _COUNT, dtype=np.float32).reshape(size, _COUNT)
    of = [pieces * (r + 1) for r in range(size)]
    total = sum(of[1:], of[0]) / (size if mean else 1)
    gives, gets = of[rank].reshape(-1), total.reshape(-1)
    blocks: tuple[int, ...] = (size * _COUNT,)
    here = rank == root
    if collective in ("reduce_scatter", "all_gather", "gather", "scatter"):
        blocks = (_COUNT,) * size
    match collective:
        case "reduce_scatter":
            gets = total[rank]
        case "all_gather" | "gather":
            gives, gets = of[rank][0], np.concatenate([of[r][0] for r in range(size)])
        case "broadcast":
            gets = of[root].reshape(-1)
        case "scatter":
            gives, gets = of[root].reshape(-1), of[root][rank]
        case "all_to_all":
            blocks, gets = (_COUNT,) * (2 * size), np.concatenate([of[r][rank] for r in range(size)])
        case "scan":
            gets = sum(of[1 : rank + 1], of[0]).reshape(-1)
        case "exscan":
            gets = sum(of[1:rank], of[0]).reshape(-1)
        case "barrier":
            blocks, gives, gets = (0,), gives[:0], gets[:0]
        case _:
            pass
    has_input = collective not in ("scatter", "broadcast") or here
    has_output = (collective not in ("reduce", "gather") or here) and not (collective == "exscan" and rank == 0)
    if collective == "barrier":
        has_input = has_output = False
    number, item_bytes = DTYPES[_DTYPE]
    native = Native(
        collective, number, item_bytes, OPS["sum"], mean, root, blocks,
        Place(0, 0) if has_input else None, Place(1, 0) if has_output else None,
    )  # fmt: skip
    call = call_of(4 * sum(blocks), _DTYPE, algorithm="native", root=root)
    program = Program(
        call, np.zeros((0, 15), np.int64), np.zeros((0, 4), np.int64), 3, 0, size if mean else 1, (native,)
    )
    compiled = transport.compile(program, me.patience_s, me.memory.device)
    given, got = np.ascontiguousarray(gives).view(np.uint8), np.ascontiguousarray(gets).view(np.uint8)
    empty = np.full(len(got), 0x77, np.uint8)
    arrays: list[Array] = [me.array(given), me.array(empty), me.array(64)]
    me.run(transport, compiled, arrays)
    me.compare([given, empty], arrays[:2], [given, got if has_output else empty])


for _collective in _NATIVES:
    CHECKS(f"native {_collective}")(partial(_native, _collective))
