"""Checks of a transport's life: what it says of itself, splitting, leaving, closing, and what is left afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transports.base import Transport
from transports.conformance.kit import Checks
from transports.conformance.member import Member, NotChecked, Unmet, call_of, finish
from transports.conformance.scripts import Script, all_pairs, around, recv, send
from transports.errors import CollectiveError, CommunicatorBroken, UnsupportedError
from transports.program import Action

__all__ = ["CHECKS"]

CHECKS = Checks()

_FORKED_S = 10.0
_LATE_S = 0.3


@CHECKS("what it says of itself")
def _(me: Member) -> None:
    transport: Any = me.connect()
    hosts = sorted(rank for host in transport.hosts for rank in host)
    me.expect(hosts == [*range(me.size)], f"every rank once in hosts, not {transport.hosts}")
    me.expect(all(list(host) == sorted(host) for host in transport.hosts), f"hosts in order, not {transport.hosts}")
    kind = me.memory.device.kind
    me.expect(kind in transport.devices, f"{kind!r} among its devices, {sorted(transport.devices)}")
    me.expect(isinstance(transport.natives, frozenset), f"a frozenset of natives, not {transport.natives!r}")
    me.expect(isinstance(transport.grouped, bool), f"grouped to be True or False, not {transport.grouped!r}")
    me.expect(isinstance(transport.shared_memory, bool), "shared_memory to be True or False")
    words = transport.describe()
    me.expect(0 < len(words) < 200, f"a few words from describe(), not {words!r}")
    table = transport.quick_calls()
    if table is not None:
        unknown = table.call(0, None, None, "sum", 0, "auto")
        me.expect(unknown is NotImplemented, f"NotImplemented from quick calls that know no call, not {unknown!r}")


@CHECKS("splitting", ranks=3)
def _(me: Member) -> None:
    """Parts of the ranks, in any order, at the same time, and parts of parts; each counts its calls by itself."""
    world = me.connect()
    me.barrier(world)
    odd, even = [r for r in range(me.size) if r % 2][::-1], [r for r in range(me.size) if r % 2 == 0]
    members = odd if me.rank % 2 else even
    half = me.split(world, f"half{me.rank % 2}", members)
    hosts = sorted(rank for host in half.hosts for rank in host)
    me.expect(hosts == [*range(half.size)], f"every rank of the part once in its hosts, not {half.hosts}")
    for turn in range(1 + me.rank % 2):
        me.perform(half, around(half.size, 3001), [3001, 3001, 6002], seed=turn)
    others = [*range(1, me.size), 0]  # all, in another order
    turned = me.split(world, "turned", others)
    me.perform(turned, around(me.size, 999), [999, 999, 1998])
    nested = me.split(turned, "again", [*range(me.size)])
    half.close()
    me.perform(nested, around(me.size, 555), [555, 555, 1110])
    nested.close()
    turned.close()
    me.perform(world, around(me.size, 77), [77, 77, 154])


@CHECKS("a failure stays in its communicator")
def _(me: Member) -> None:
    """What breaks a part leaves the whole and the other parts as they are."""
    world, bad = me.connect_two()
    good = me.split(world, "good", range(me.size))
    me.barrier(bad)
    me.barrier(good)  # or a quick rank's failure would end a slow rank's call before
    if me.rank == 0:
        bad.close()
    else:
        me.until_it_fails(bad, CollectiveError)
    me.perform(good, around(me.size, 1000), [1000, 1000, 2000])
    me.perform(world, around(me.size, 1000), [1000, 1000, 2000])


@CHECKS("leaving when no longer needed", ranks=3)
def _(me: Member) -> None:
    """A rank that has done its part may close: what it sent still arrives, also where its turn has not come, and the
    others can still send each other messages."""
    transport = me.connect()
    n = 1000
    rest = range(1, me.size)

    def first(rank: int) -> list[Action]:
        """Rank 1 has no use for what rank 0 sends before rank 2 has come, late."""
        if rank == 0:
            return [send(peer, n, (0, 0)) for peer in rest]
        turn = [send(1, n, (1, 0))] if rank == 2 else [recv(2, n, (0, 0))] if rank == 1 else []
        return [*turn, recv(0, n, (0, 0))]

    compiled = me.compile(transport, first, 2, call_of(n))
    before, arrays, wanted = me.setting(transport, first, [n, n])
    me.barrier(transport)
    if me.rank == 2:
        time.sleep(_LATE_S)  # most likely rank 0 has gone by then; if not, this checks a little less
    me.run(transport, compiled, arrays)
    me.compare(before, arrays, wanted)
    if me.rank == 0:
        transport.close()
        return
    for _ in range(5):
        if me.rank > 1:
            me.message(transport, True, me.rank - 1, me.array(10))
        if me.rank < me.size - 1:
            me.message(transport, False, me.rank + 1, me.array(10))


@CHECKS("closing")
def _(me: Member) -> None:
    """`close` may be called again, also before any call and at the same time; a call after it says that it was
    closed, and so does every kind of call."""
    never_used = me.connect()
    never_used.close()
    never_used.close()
    transport = me.connect()
    script = all_pairs(me.size)
    compiled = me.compile(transport, script, 2, call_of(1, algorithm="barrier"))
    arrays = me.array(1), me.array(me.size)
    at = [array.address for array in arrays]
    transport.run(compiled, me.patience_s, *at)
    prepared = transport.prepare(compiled, me.patience_s, None, (), *at)
    me.at_once(transport.close, transport.close)
    transport.close()
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: transport.run(compiled, me.patience_s, *at),
        "start": lambda: finish(transport.start(compiled, me.patience_s, *at), me),
        "message": lambda: me.message(transport, True, me.after, arrays[0]),
        "a prepared call": prepared,
    }
    for name, call in calls.items():
        try:
            me.raises(CommunicatorBroken, call, "closed", within_s=me.patience_s / 4)
        except Unmet as error:
            raise Unmet(f"{error}, in {name} after close") from None


def _closed_in(me: Member, call: Callable[[Transport], Any]) -> None:
    """The last rank closes its transport while a call of another of its threads waits for the others."""
    beside, transport = me.connect_two()
    me.barrier(transport)
    last = me.size - 1
    if me.rank != last:
        me.barrier(beside)  # they never make the call: it waits for them in vain
        return
    errors: list[BaseException] = []

    def waits() -> None:
        try:
            call(transport)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    thread.join(0.1)
    me.expect(thread.is_alive(), f"a call to wait for ranks that do not make it, not {errors}")
    me.at_once(transport.close)
    thread.join(me.patience_s / 4)
    me.expect(not thread.is_alive(), "a call in another thread to end when its transport is closed")
    me.expect(len(errors) == 1, "a call in another thread to raise when its transport is closed")
    me.expect(isinstance(errors[0], CollectiveError), f"a CollectiveError in the call, not {errors[0]!r}")
    me.barrier(beside)


@CHECKS("closing while another thread is in a call")
def _(me: Member) -> None:
    """The call ends with an error, and soon."""
    _closed_in(me, me.barrier)


@CHECKS("closing while a call is in the background")
def _(me: Member) -> None:
    """The call, and the one behind it, end with an error; `wait` raises it."""

    def started(transport: Transport) -> None:
        compiled = me.compile(transport, all_pairs(me.size), 2, call_of(1, algorithm="barrier"))
        arrays = [(me.array(1), me.array(me.size)) for _ in range(2)]
        calls = [transport.start(compiled, me.patience_s, *(a.address for a in pair)) for pair in arrays]
        try:
            finish(calls[0], me)
        finally:
            me.raises(CollectiveError, lambda: finish(calls[1], me))

    _closed_in(me, started)


@CHECKS("all is given back")
def _(me: Member) -> None:
    """Connecting, calling and closing again and again leaves no thread and no descriptor behind."""
    if not Path("/proc/self/fd").exists():
        raise NotChecked("there is no /proc to look into")

    beside = me.connect()

    def once() -> None:
        world = me.connect()
        part = me.split(world, "part", range(me.size))
        n = 10_000
        script = around(me.size, n)
        me.perform(world, script, [n, n, 2 * n])
        compiled = me.compile(part, script, 3, call_of(n))
        before, arrays, wanted = me.setting(part, script, [n, n, 2 * n])
        me.run(part, compiled, arrays, background=True)
        me.compare(before, arrays, wanted)
        me.leave(part)
        me.leave(world)

    for _ in range(2):
        once()
    me.barrier(beside)  # ranks that are threads have their threads and descriptors in common
    me.barrier(beside)
    steady = _count()
    me.barrier(beside)
    for _ in range(4):
        once()
    me.barrier(beside)
    deadline = time.monotonic() + me.patience_s / 4
    while (now := _count()) > steady and time.monotonic() < deadline:
        time.sleep(0.01)
    # A leak of one in each round shows as four or more; one or two may be those of a rank about to end.
    me.expect(now < steady + 4, f"as many threads and descriptors as before, {steady}, not {now}")
    me.barrier(beside)


def _count() -> int:
    return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))


@CHECKS("a forked child")
def _(me: Member) -> None:
    """In the child of a fork the transport does not work, and says so; in the parent it goes on."""
    if me.in_threads:
        raise NotChecked("the ranks are threads of one process, which must not fork")
    if not hasattr(os, "fork"):
        raise NotChecked("this system cannot fork")
    transport = me.connect()
    script: Script = all_pairs(me.size)
    compiled = me.compile(transport, script, 2, call_of(1, algorithm="barrier"))
    arrays = me.array(1), me.array(me.size)
    at = [array.address for array in arrays]
    transport.run(compiled, me.patience_s, *at)
    heard, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, _in_child(transport, lambda: transport.run(compiled, me.patience_s, *at)).encode())
        os._exit(0)
    os.close(tell)
    ended = _ends(child)
    found = os.read(heard, 4096).decode() or "the end of the child"
    os.close(heard)
    me.expect(ended, f"a forked child to end within {_FORKED_S:g} s")
    me.expect(found == UnsupportedError.__name__, f"UnsupportedError from a call in a forked child, not {found}")
    transport.run(compiled, me.patience_s, *at)


def _in_child(transport: Transport, call: Callable[[], None]) -> str:
    """What a call in the child ends with."""
    try:
        transport.forked()
        call()
    except UnsupportedError:
        return UnsupportedError.__name__
    except BaseException as error:
        return repr(error)[:4096]
    return "no error"


def _ends(child: int) -> bool:
    """Whether the child ends by itself; if not, it is killed."""
    deadline = time.monotonic() + _FORKED_S
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
