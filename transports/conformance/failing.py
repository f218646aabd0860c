"""Checks of what goes wrong: deadlines, ranks that leave or die, calls that do not match; and that a failure lasts."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from transports.conformance.kit import Checks
from transports.conformance.member import Member, Unmet, call_of, finish
from transports.conformance.scripts import Script, all_pairs, around, recv, send
from transports.errors import CollectiveError, DeadlineExceeded, MismatchError, PeerLostError
from transports.program import DTYPES, OPS, Action, Call

__all__ = ["CHECKS"]

CHECKS = Checks()

_LATE_S = 5.0  # after the deadline, at the most


def _names(rank: int) -> str:
    return rf"\brank {rank}\b"


# ---------------------------------------------------------------- deadlines


def _absent(me: Member, call: Callable[[Any, Any, list[int]], Any]) -> None:
    """The last rank never makes the call: all others miss the deadline, say so in time, and name it."""
    beside, transport = me.connect_two()
    me.barrier(transport)
    compiled = me.compile(transport, all_pairs(me.size), 2, call_of(1, algorithm="barrier"))
    arrays = me.array(1), me.array(me.size)
    last = me.size - 1
    me.barrier(beside)  # or a quick rank's failure would end a slow rank's call before
    if me.rank == last:
        # It stays until the others have seen it miss, and hears of it in its next calls.
        me.barrier(beside)
        me.until_it_fails(transport, CollectiveError)
        return
    limit_s = me.deadline_s
    error = me.raises(
        DeadlineExceeded, lambda: call(transport, compiled, [array.address for array in arrays]), _names(last),
        at_least_s=0.9 * limit_s if me.rank == 0 else 0.0, within_s=limit_s + _LATE_S,
    )  # fmt: skip
    me.expect(isinstance(error, TimeoutError), "DeadlineExceeded to be a TimeoutError")
    me.barrier(beside)
    me.stays_broken(transport, error)


@CHECKS("a deadline")
def _(me: Member) -> None:
    """A call that nothing comes for raises DeadlineExceeded after its timeout, and names the rank waited for."""
    _absent(me, lambda transport, compiled, at: transport.run(compiled, me.deadline_s, *at))


@CHECKS("a deadline in the background")
def _(me: Member) -> None:
    """`wait` raises what a call in the background ended with."""

    def wait(transport: Any, compiled: Any, at: list[int]) -> None:
        finish(transport.start(compiled, me.deadline_s, *at), me)

    _absent(me, wait)


@CHECKS("a deadline of a prepared call")
def _(me: Member) -> None:
    _absent(me, lambda t, compiled, at: t.prepare(compiled, me.deadline_s, None, (), *at)())


@CHECKS("a deadline of a message")
def _(me: Member) -> None:
    """A message that nobody sends."""
    beside, transport = me.connect_two()
    me.barrier(transport)
    me.barrier(beside)
    if me.rank == 0:
        limit_s = me.deadline_s
        error = me.raises(
            DeadlineExceeded, lambda: me.message(transport, False, 1, me.array(10), limit_s), _names(1),
            at_least_s=0.9 * limit_s, within_s=limit_s + _LATE_S,
        )  # fmt: skip
        me.barrier(beside)
        me.stays_broken(transport, error)
    else:
        me.barrier(beside)


@CHECKS("slow is not stuck", ranks=3)
def _(me: Member) -> None:
    """Ranks come later than each other, all in all after more than the timeout; but nothing takes that long by itself:
    the timeout is on time without progress."""
    transport = me.connect()
    timeout_s, pause_s = 2 * me.deadline_s, 1.3 * me.deadline_s
    late = (1, 2)

    def script(rank: int) -> list[Action]:
        if rank == 0:
            return [recv(peer, 10, (0, 10 * peer)) for peer in late]
        return [send(0, 10, (0, 0))] if rank in late else []

    compiled = me.compile(transport, script, 1, call_of(10))
    before, arrays, wanted = me.setting(transport, script, [30])
    me.barrier(transport)
    if me.rank in late:
        time.sleep(me.rank * pause_s)
    began = time.monotonic()
    transport.run(compiled, timeout_s if me.rank == 0 else me.patience_s, arrays[0].address)
    me.compare(before, arrays, wanted)
    if me.rank == 0:
        took_s = time.monotonic() - began
        me.expect(took_s > timeout_s, f"the ranks to take more than {timeout_s:g} s in all, not {took_s:.2f} s")


# ---------------------------------------------------------------- ranks that go


def _left_behind(me: Member, transport: Any) -> None:
    """This rank's calls end because the last rank has gone, which they name."""
    error = me.until_it_fails(transport, PeerLostError, _names(me.size - 1))
    me.expect(isinstance(error, ConnectionError), "PeerLostError to be a ConnectionError")
    me.stays_broken(transport, error)


@CHECKS("a rank that leaves")
def _(me: Member) -> None:
    """It closes while the others need it: they raise PeerLostError long before any deadline."""
    beside, transport = me.connect_two()
    me.barrier(transport)
    me.barrier(beside)
    if me.rank == me.size - 1:
        transport.close()
    else:
        _left_behind(me, transport)
    me.barrier(beside)


@CHECKS("a rank that leaves before any call")
def _(me: Member) -> None:
    beside, transport = me.connect_two()
    if me.rank == me.size - 1:
        transport.close()
    else:
        _left_behind(me, transport)
    me.barrier(beside)


# ---------------------------------------------------------------- calls that do not match

_USUAL = call_of(64_000, "float32", root=0, op=OPS["sum"])
_ODD: dict[str, tuple[Call, tuple[str, str]]] = {
    "collective": (_USUAL._replace(collective=2), ("", "")),
    "dtype": (_USUAL._replace(dtype=DTYPES["int32"][0]), ("float32", "int32")),
    "count": (_USUAL._replace(elements=16_001), ("16000 elements", "16001 elements")),
    "op": (_USUAL._replace(op=OPS["max"]), ("", "")),
    "root": (_USUAL._replace(root=1), ("", "")),
    "algorithm": (_USUAL._replace(algorithm=zlib.crc32(b"two_tree")), ("", "")),
    "extra": (_USUAL._replace(extra=7), ("", "")),
}
_BOTH = r"rank (\d+) called (.*), but rank (\d+) called (.*?)(?:;|$)"


def both_named(me: Member, error: BaseException, odd: int, words: tuple[str, str]) -> None:
    """The text tells of the odd rank and of another, and what each of them called."""
    text = str(error)
    found = re.search(_BOTH, text)
    if found is None:
        raise Unmet(f'expected "rank .. called .., but rank .. called .." in {text!r}')
    one, first, other, second = found.groups()
    me.expect(str(odd) in (one, other) and one != other, f"rank {odd} and another rank in {text!r}")
    me.expect(first != second, f"two different calls in {text!r}")
    me.expect(all(word in text for word in words), f"{' and '.join(filter(None, words))} in {text!r}")


def _mismatch(odd: Call, words: tuple[str, str], me: Member) -> None:
    """One rank calls something else: all raise MismatchError, and no rank that gets something from it has a result."""
    beside, transport = me.connect_two()
    odd_rank = 1
    mine = odd if me.rank == odd_rank else _USUAL
    me.perform(transport, around(me.size, 1000), [1000, 1000, 2000])
    me.barrier(beside)
    n = 4 * mine.elements
    script = all_pairs(me.size, n)
    compiled = me.compile(transport, script, 2, mine)
    arrays = me.array(n), me.array(me.size * n)
    error = me.raises(MismatchError, lambda: me.run(transport, compiled, arrays))
    both_named(me, error, odd_rank, words)
    me.barrier(beside)
    me.stays_broken(transport, error)


for _name, (_call, _words) in _ODD.items():
    CHECKS(f"another {_name}")(partial(_mismatch, _call, _words))


@CHECKS("another call far away", ranks=3)
def _(me: Member) -> None:
    """Ranks that exchange nothing with the odd one hear of it too, in this call or in the next."""
    beside, transport = me.connect_two()
    me.barrier(beside)
    n = 1000

    def line(rank: int) -> list[Action]:
        actions = [send(rank - 1, n, (0, 0))] if rank else []
        return [*actions, recv(rank + 1, n, (1, 0))] if rank + 1 < me.size else actions

    script: Script = line
    odd_rank = me.size - 1
    mine = call_of(n, root=1) if me.rank == odd_rank else call_of(n)
    compiled = me.compile(transport, script, 2, mine)
    arrays = me.array(n), me.array(n)

    def calls() -> None:
        me.run(transport, compiled, arrays)
        me.expect(me.rank != odd_rank - 1, "no result from a call that a neighbour did not make")
        while True:
            me.barrier(transport)

    error = me.raises(MismatchError, calls)
    both_named(me, error, odd_rank, ("", ""))
    me.barrier(beside)
    me.stays_broken(transport, error)


@CHECKS("another order of calls")
def _(me: Member) -> None:
    """Two calls, of which one rank makes the second first."""
    beside, transport = me.connect_two()
    me.barrier(beside)
    calls = [call_of(100, root=0), call_of(100, root=1)]

    def both() -> None:
        for call in calls[:: -1 if me.rank == 0 else 1]:
            me.perform(transport, all_pairs(me.size, 100), [100, 100 * me.size], call=call)

    error = me.raises(MismatchError, both)
    both_named(me, error, 0, ("", ""))
    me.barrier(beside)
    me.stays_broken(transport, error)


@CHECKS("a message of another size")
def _(me: Member) -> None:
    """The one who receives raises MismatchError; so does the other, at the latest in its next call."""
    beside, transport = me.connect_two()
    me.barrier(beside)

    def messages() -> None:
        if me.rank < 2:
            me.message(transport, me.rank == 0, 1 - me.rank, me.array(1000 if me.rank == 0 else 1001))
            me.expect(me.rank == 0, "no message of another size than was sent")
        while True:
            me.barrier(transport)

    error = me.raises(MismatchError, messages, "1000 elements", "1001 elements")
    me.barrier(beside)
    me.stays_broken(transport, error)


# ---------------------------------------------------------------- death; the last check, because a rank is lost


@CHECKS("a rank that dies")
def _(me: Member) -> None:
    """In the middle of a large call. The others raise PeerLostError, naming it, long before any deadline."""
    transport = me.connect()
    n = 8 << 20
    script = around(me.size, n)
    compiled = me.compile(transport, script, 3, call_of(n))
    me.barrier(transport)
    arrays = me.array(n), me.array(n), me.array(2 * n)
    at = [array.address for array in arrays]
    if me.rank == me.size - 1:
        transport.run(compiled, me.patience_s, *at)
        transport.start(compiled, me.patience_s, *at)
        assert me.die is not None
        me.die()
        raise Unmet("expected `die` to end this process")

    def calls() -> None:
        while True:
            transport.run(compiled, me.patience_s, *at)

    error = me.raises(PeerLostError, calls, _names(me.size - 1), within_s=me.patience_s / 2)
    me.stays_broken(transport, error)
