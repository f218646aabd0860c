"""Checks of how bytes move: in order, streaming, as soon as what they need is there, and nowhere else."""

from __future__ import annotations

import numpy as np

from transports.conformance.kit import Checks
from transports.conformance.member import Member, Unmet, call_of
from transports.conformance.scripts import (
    Bytes,
    Script,
    all_pairs,
    around,
    copy,
    divide,
    down_the_line,
    random_script,
    recv,
    recv_reduce,
    reduce,
    send,
)
from transports.program import Action

__all__ = ["CHECKS"]

CHECKS = Checks()

LARGE = (6 << 20) + 3  # bytes: more than any buffer on the way
SIZES = (1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 1_048_577)


@CHECKS("every pair of ranks")
def _(me: Member) -> None:
    transport = me.connect()
    for nbytes in (1, 1000, 100_003):
        me.perform(transport, all_pairs(me.size, nbytes), [nbytes, me.size * nbytes])


@CHECKS("order on a lane")
def _(me: Member) -> None:
    """Many messages of many sizes to one peer, on two lanes: each arrives in its turn."""
    random = np.random.default_rng(me.seed)
    sizes = [int(n) for n in np.exp(random.uniform(0, 11, 120))]
    begins = np.concatenate([[0], np.cumsum(sizes)]).tolist()

    def script(rank: int) -> list[Action]:
        after, before = (rank + 1) % me.size, (rank - 1) % me.size
        messages = list(enumerate(zip(begins[:-1], sizes, strict=True)))
        return [send(after, n, (0, at), i % 2) for i, (at, n) in messages] + [
            recv(before, n, (1, at), i % 2) for i, (at, n) in messages
        ]

    transport = me.connect()
    me.perform(transport, script, [begins[-1]] * 2, times=3)


@CHECKS("lanes do not wait for each other")
def _(me: Member) -> None:
    """A large message on lane 0 that nobody can take yet, because what is on lane 1 has to come first."""

    def script(rank: int) -> list[Action]:
        if rank == 0:
            return [send(1, LARGE, (0, 0), 0), send(1, LARGE, (1, 0), 1)]
        if rank == 1:
            return [recv(0, LARGE, (0, 0), 1), copy(LARGE, (0, 0), (1, 0)), recv(0, LARGE, (0, 0), 0)]
        return []

    me.perform(me.connect(), script, [LARGE, LARGE])


@CHECKS("everybody sends first")
def _(me: Member) -> None:
    """Messages larger than any buffer, in a circle: it gets stuck where a send must end before a receive begins."""

    def script(rank: int) -> list[Action]:
        return [send((rank + 1) % me.size, LARGE, (0, 0)), recv((rank - 1) % me.size, LARGE, (1, 0))]

    me.perform(me.connect(), script, [LARGE, LARGE])


@CHECKS("everybody receives first")
def _(me: Member) -> None:
    """It gets stuck where a receive must end before a send that does not depend on it begins."""

    def script(rank: int) -> list[Action]:
        return [recv((rank - 1) % me.size, LARGE, (1, 0)), send((rank + 1) % me.size, LARGE, (0, 0))]

    me.perform(me.connect(), script, [LARGE, LARGE])


@CHECKS("a chain of ranks streams", ranks=3)
def _(me: Member) -> None:
    """Every rank in the middle passes the first bytes on before it has the last, as its trace tells."""
    transport = me.connect()
    compiled = me.compile(transport, down_the_line(me.size, LARGE), 1, call_of(LARGE))
    before, arrays, wanted = me.setting(transport, down_the_line(me.size, LARGE), [LARGE])
    transport.start_trace()
    me.run(transport, compiled, arrays)
    calls = transport.stop_trace()
    me.compare(before, arrays, wanted)
    if 0 < me.rank < me.size - 1:
        me.expect(len(calls) == 1, f"one call in the trace, not {len(calls)}")
        receive, pass_on = calls[0].steps
        me.expect(pass_on.began_s < receive.ended_s, "a send to begin before the receive of the same bytes ends")


@CHECKS("a chain of combinations streams", ranks=3)
def _(me: Member) -> None:
    """Every rank adds its own to what comes by, and passes it on, piece by piece."""

    def script(rank: int) -> list[Action]:
        if rank == 0:
            return [send(1, LARGE, (0, 0))]
        mine = [recv_reduce(rank - 1, LARGE, (0, 0), (1, 0), first=False)]
        return [*mine, send(rank + 1, LARGE, (1, 0))] if rank + 1 < me.size else mine

    transport = me.connect()
    transport.start_trace()
    me.perform(transport, script, [LARGE, LARGE])
    calls = transport.stop_trace()
    if 0 < me.rank < me.size - 1:
        receive, pass_on = calls[0].steps
        me.expect(pass_on.began_s < receive.ended_s, "a send to begin before the combination of the same bytes ends")


@CHECKS("sizes and addresses")
def _(me: Member) -> None:
    """Around powers of two, to and from memory that begins anywhere."""

    def script(nbytes: int, there: int) -> Script:
        def of_rank(rank: int) -> list[Action]:
            after, before = (rank + 1) % me.size, (rank - 1) % me.size
            return [send(after, nbytes, (0, 1)), recv(before, nbytes, (1, there))]

        return of_rank

    transport = me.connect()
    for number, nbytes in enumerate(SIZES):
        there = number % 5
        me.perform(transport, script(nbytes, there), [nbytes + 2, nbytes + 6], shift=number % 9, seed=number)


@CHECKS("nothing at all")
def _(me: Member) -> None:
    """Calls without a step, steps without a byte, and messages without a byte between others."""

    def empty_steps(rank: int) -> list[Action]:
        after, before = (rank + 1) % me.size, (rank - 1) % me.size
        return [
            send(after, 0, (0, 3)), send(after, 5, (0, 0)), send(after, 0, (0, 9)),
            recv(before, 0, (1, 2)), recv(before, 5, (1, 1)), recv(before, 0, (1, 0)),
            copy(0, (0, 0), (1, 0)), reduce(0, (0, 0), (0, 0), (1, 0)), divide(0, (0, 0), (1, 0), "uint8"),
        ]  # fmt: skip

    transport = me.connect()
    me.perform(transport, lambda _: [], [9, 9])
    me.perform(transport, empty_steps, [9, 9], times=2)
    me.perform(transport, lambda _: [], [0])
    me.perform(transport, all_pairs(me.size, 8), [8, 8 * me.size])


@CHECKS("reads wait for writes")
def _(me: Member) -> None:
    """Bytes that came are copied, combined and passed on, at odd offsets that cut the message elsewhere."""
    n = 1_000_003

    def script(rank: int) -> list[Action]:
        after, before = (rank + 1) % me.size, (rank - 1) % me.size
        return [
            send(after, n, (0, 0)),
            recv(before, n, (1, 7)),
            copy(n - 11, (1, 13), (2, 5)),
            reduce(n - 101, (2, 21), (1, 40), (3, 3)),
            send(after, n - 333, (3, 77), 1),
            recv(before, n - 333, (0, 300), 1),
            copy(n - 400, (0, 1), (2, 9)),
        ]

    me.perform(me.connect(), script, [n + 50] * 4, times=2)


@CHECKS("writes wait for reads")
def _(me: Member) -> None:
    """What is being sent, copied or combined is overwritten afterwards: by a copy, by a receive, by a combination.

    Along a chain, not around a ring: there each rank would wait for the next one to have taken what it overwrites,
    which nothing can do without a buffer.
    """
    n = LARGE

    def script(rank: int) -> list[Action]:
        sends, receives = rank + 1 < me.size, rank > 0
        return [
            *([send(rank + 1, n, (0, 0))] if sends else []),
            copy(n - 9, (1, 0), (0, 5)),
            *([recv(rank - 1, n, (1, 0))] if receives else []),
            *([send(rank + 1, n - 77, (1, 33), 1)] if sends else []),
            *([recv_reduce(rank - 1, n - 77, (0, 11), (1, 11), lane=1)] if receives else []),
            copy(n - 13, (1, 13), (0, 0)),
        ]

    me.perform(me.connect(), script, [n, n])


@CHECKS("writes in turn")
def _(me: Member) -> None:
    """Two messages and a copy to one place: the last one stays."""
    n = LARGE

    def script(rank: int) -> list[Action]:
        after, before = (rank + 1) % me.size, (rank - 1) % me.size
        return [
            send(after, n, (0, 0), 0),
            send(after, n - 5, (0, 5), 1),
            recv(before, n, (1, 0), 0),
            recv(before, n - 5, (1, 3), 1),
            copy(1001, (0, 17), (1, n - 1001)),
        ]

    me.perform(me.connect(), script, [n, n])


@CHECKS("random programs")
def _(me: Member) -> None:
    """Steps of all kinds at random places, so that all wait for each other in all ways."""
    transport = me.connect()
    for number in range(12):
        seed = me.seed + number
        steps, room, largest = [(40, 20_000, 5_000), (120, 3_000, 900), (24, 600_000, 290_000)][number % 3]
        script = random_script(me.size, seed, steps=steps, room=room, largest=largest)
        try:
            me.perform(transport, script, [room, room], divisor=3, seed=number, shift=number % 3)
        except Unmet as error:
            raise Unmet(f"{error} (random_script({me.size}, {seed}, steps={steps}, room={room}, ...))") from None


@CHECKS("memory beside the arrays")
def _(me: Member) -> None:
    """Inputs stay as they are, and nothing is written but what the steps say; of any size, in and out of a call in the
    background."""
    transport = me.connect()
    for nbytes in (1, 3, 17, 4099, 300_001):
        script = around(me.size, nbytes)
        compiled = me.compile(transport, script, 3, call_of(nbytes))
        for background in (False, True):
            before, arrays, wanted = me.setting(transport, script, [nbytes, nbytes + 7, 2 * nbytes], 1)
            me.run(transport, compiled, arrays, background)
            me.compare(before, arrays, wanted)


@CHECKS("buffers are the caller's again")
def _(me: Member) -> None:
    """Once a call has returned, what is done to its buffers reaches nobody, and nothing writes there any more."""
    n = (2 << 20) + 1
    transport = me.connect()
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    for background in (False, True, False):
        before, arrays, wanted = me.setting(transport, script, [n, n, 2 * n])
        me.run(transport, compiled, arrays, background)
        me.compare(before, arrays, wanted)
        junk = np.full(n, 0xEE, np.uint8)
        arrays[0].put(junk)
        arrays[1].put(junk)
        me.barrier(transport)
        for array in arrays[:2]:
            me.expect(bool((array.get() == 0xEE).all()), "nobody to write to a buffer after its call has returned")


@CHECKS("an array of 2 GiB and more", big=True)
def _(me: Member) -> None:
    """One message from rank 0 to rank 1 of a byte more than a signed 32-bit number counts."""
    n, patience_s = (1 << 31) + 1, 20 * me.patience_s  # as the whole check has
    transport = me.connect()

    def script(rank: int) -> list[Action]:
        return [send(1, n, (0, 0))] if rank == 0 else [recv(0, n, (0, 0))] if rank == 1 else []

    compiled = me.compile(transport, script, 1, call_of(n))
    if me.rank > 1:
        transport.run(compiled, patience_s, me.array(0).address)
        return
    # Of period 251, so that no shift by a power of two goes unnoticed; looked at in pieces, to save memory.
    wanted: Bytes = np.resize(np.arange(251, dtype=np.uint8), n if me.rank == 0 else 251)
    array = me.array(wanted if me.rank == 0 else n)
    transport.run(compiled, patience_s, array.address)
    if me.rank == 1:
        found = array.get()
        for begin in range(0, n, 251 << 16):
            piece = found[begin : begin + (251 << 16)]
            right = np.array_equal(piece, np.resize(wanted, len(piece)))
            me.expect(right, f"the bytes that were sent, from {begin} on")
