"""Transports that break the contract in one way each: the check that is meant for it finds it.

All are the threads of one process, with something wrong in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conformance.connecting import Threads
from transports import conformance
from transports.errors import CollectiveError, CommunicatorBroken
from transports.portable import NO_CALL
from transports.program import COLUMNS, Kind, Program
from transports.tracing import TracedCall

COLUMN = {name: i for i, name in enumerate(COLUMNS)}
PATIENCE_S = 20.0
STUCK_S = 2.0  # where it is waited for in vain


class Faulty:
    """A transport with one thing wrong; everything else goes to the real one."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def split(self, name: str, members: Sequence[int], rank: int) -> Any:
        return type(self)(self.real.split(name, members, rank))


def steps_of(program: Program, kind: int) -> list[int]:
    return [i for i, row in enumerate(program.steps.tolist()) if row[0] == kind and row[12] > 0]


def changed(program: Program, change: Callable[[Any], None]) -> Program:
    """The program with other steps."""
    steps = program.steps.copy()
    change(steps)
    return replace(program, steps=steps)


# ---------------------------------------------------------------- how bytes move


class SwapsMessages(Faulty):
    """Two messages of the same size on one lane arrive in the other's place."""

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        def swap(steps: Any) -> None:
            receives = steps_of(program, Kind.RECV)
            for i, j in itertools.combinations(receives, 2):
                same = all(steps[i, COLUMN[c]] == steps[j, COLUMN[c]] for c in ("peer", "lane", "bytes"))
                if same:
                    steps[[i, j], COLUMN["out_offset"]] = steps[[j, i], COLUMN["out_offset"]]
                    return

        return self.real.compile(changed(program, swap), timeout_s, device)


class DropsAByte(Faulty):
    """The last byte of a large message does not arrive."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        large = [i for i in steps_of(compiled, Kind.RECV) if compiled.steps[i, COLUMN["bytes"]] > 60_000]
        places = [
            buffers[row[COLUMN["out_buffer"]]] + row[COLUMN["out_offset"]] + row[COLUMN["bytes"]] - 1
            for row in compiled.steps[large].tolist()
        ]
        before = [ctypes.c_ubyte.from_address(place).value for place in places]
        self.real.run(compiled, timeout_s, *buffers)
        for place, value in zip(places, before, strict=True):
            ctypes.c_ubyte.from_address(place).value = value


class WritesBeside(Faulty):
    """One byte more than the array has."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *buffers)
        for row in compiled.steps[steps_of(compiled, Kind.COPY)].tolist():
            end = buffers[row[COLUMN["out_buffer"]]] + row[COLUMN["out_offset"]] + row[COLUMN["bytes"]]
            ctypes.c_ubyte.from_address(end).value ^= 0xFF


class SpoilsInputs(Faulty):
    """What is sent is changed on the way out."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *buffers)
        for row in compiled.steps[steps_of(compiled, Kind.SEND)].tolist():
            ctypes.c_ubyte.from_address(buffers[row[COLUMN["a_buffer"]]] + row[COLUMN["a_offset"]]).value ^= 1


class ForgetsDependencies(Faulty):
    """Steps do not wait for each other."""

    keeps_reads = False

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        steps, kept, table = program.steps.copy(), [], program.dependencies.tolist()
        for row in steps:
            begin = len(kept)
            for need in table[row[13] : row[14]]:
                writes_mine = program.steps[need[0], 0] == Kind.SEND
                if self.keeps_reads and not writes_mine:
                    kept.append(need)
            row[13:15] = begin, len(kept)
        dependencies = np.array(kept, np.int64).reshape(-1, 4)
        return self.real.compile(replace(program, steps=steps, dependencies=dependencies), timeout_s, device)


class OverwritesWhatItSends(ForgetsDependencies):
    """Only what is written after it was sent does not wait."""

    keeps_reads = True


class StoresAndForwards(Faulty):
    """Every step waits until the steps before it have ended."""

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        needs = program.dependencies.copy()
        for row in program.steps.tolist():
            for i in range(row[13], row[14]):
                needs[i, 1:] = program.steps[needs[i, 0], COLUMN["bytes"]] - 1, 0, 1  # the last byte, before the first
        return self.real.compile(replace(program, dependencies=needs), timeout_s, device)


class OneLane(Faulty):
    """All lanes to a peer are one; each step of it waits for the one before."""

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        def merge(steps: Any) -> None:
            steps[:, COLUMN["lane"]] = 0

        return self.real.compile(changed(program, merge), timeout_s, device)


class InOrder(Faulty):
    """A step begins when the one before it in the program has ended, as where sending blocks."""

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        steps = program.steps.copy()
        count = len(steps)
        sizes = steps[:, COLUMN["bytes"]].tolist()
        needs = np.array([(i, sizes[i] - 1, 0, 1) for i in range(count - 1)], np.int64).reshape(-1, 4)
        for i in range(count):
            steps[i, 13:15] = max(i - 1, 0), i
        return self.real.compile(replace(program, steps=steps, dependencies=needs), timeout_s, device)


class AddsUpElsewhere(Faulty):
    """Combines float32 in another order or precision: the last bit of a sum is another."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *buffers)
        for row in compiled.steps[steps_of(compiled, Kind.RECV_REDUCE)].tolist():
            address = buffers[row[COLUMN["out_buffer"]]] + row[COLUMN["out_offset"]]
            ctypes.c_ubyte.from_address(address).value ^= 1


class RoundsIntegers(Faulty):
    """Divides integers toward minus infinity, as Python does."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *buffers)
        for row in compiled.steps[steps_of(compiled, Kind.DIVIDE)].tolist():
            if row[COLUMN["dtype"]] == 4:  # int8
                count = row[COLUMN["bytes"]]
                a = (ctypes.c_int8 * count).from_address(buffers[row[COLUMN["a_buffer"]]] + row[COLUMN["a_offset"]])
                out = (ctypes.c_int8 * count).from_address(
                    buffers[row[COLUMN["out_buffer"]]] + row[COLUMN["out_offset"]]
                )
                out[:] = [value // compiled.divisor for value in a]


class WritesLater(Faulty):
    """`run` returns before the last bytes are there: they come with the next call."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._late: tuple[int, bytes] | None = None

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *buffers)
        if self._late is not None:
            ctypes.memmove(*self._late, len(self._late[1]))
        self._late = None
        for row in compiled.steps[steps_of(compiled, Kind.COPY)].tolist():
            address = buffers[row[COLUMN["out_buffer"]]] + row[COLUMN["out_offset"]]
            self._late = address, ctypes.string_at(address, 100)


class WantsNumpy(Faulty):
    """Takes no other objects than numpy's arrays."""

    def run(self, compiled: Program, timeout_s: float, *buffers: Any) -> None:
        self.real.run(compiled, timeout_s, *(b if isinstance(b, int) else b.ctypes.data for b in buffers))


# ---------------------------------------------------------------- calls


class Overtakes(Faulty):
    """A blocking call does not wait for those in the background."""

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        return _Lazy(lambda: self.real.run(compiled, timeout_s, *buffers))


class _Lazy:
    """A call that runs when somebody waits for it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call, self._done = call, False

    def wait(self, wait_s: float) -> bool:
        if not self._done:
            self._call()
            self._done = True
        return True

    def has_ended(self) -> bool:
        return self._done


class WaitsForEver(Faulty):
    """`wait` does not come back before the call has ended."""

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        started = self.real.start(compiled, timeout_s, *buffers)
        blocking = Faulty(started)
        blocking.wait = lambda wait_s: started.wait(float("inf"))  # type: ignore[attr-defined]
        return blocking


class SwallowsErrors(Faulty):
    """`wait` says that all is well when the call has failed."""

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        started = self.real.start(compiled, timeout_s, *buffers)

        def wait(wait_s: float) -> bool:
            try:
                return started.wait(wait_s)
            except CollectiveError:
                return True

        deaf = Faulty(started)
        deaf.wait = wait  # type: ignore[attr-defined]
        return deaf


class LastComesFirst(Faulty):
    """Of the calls in the background, the last is run first."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._waiting: list[Callable[[], None]] = []

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        self._waiting.append(lambda: self.real.run(compiled, timeout_s, *buffers))
        return _Lazy(self._run_all)

    def _run_all(self) -> None:
        while self._waiting:
            self._waiting.pop()()


class RemembersBuffers(Faulty):
    """Runs a program on the memory that it had at first."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._first: dict[int, tuple[Any, ...]] = {}

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s, *self._first.setdefault(id(compiled), buffers))


class RefusesNothing(Faulty):
    """Cannot do steps without bytes."""

    def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
        if (program.steps[:, COLUMN["bytes"]] == 0).any():
            raise ValueError("a step without bytes")
        return self.real.compile(program, timeout_s, device)


class KeepsNothing(Faulty):
    """A prepared call does not keep alive what it should."""

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: int) -> Any:
        return self.real.prepare(compiled, timeout_s, result, None, *buffers)


class ReturnsNothing(Faulty):
    """A prepared call does not return its result."""

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: int) -> Any:
        return self.real.prepare(compiled, timeout_s, None, (keep, result), *buffers)


class MessagesCount(Faulty):
    """A message takes a number of those of the calls."""

    def message(self, *args: Any) -> None:
        self.real.message(*args)
        self.real._hub.calls[self.real.rank].append(NO_CALL)


class MixesMessages(Faulty):
    """Two messages to a peer arrive in the other order: the first is held back until the second has gone."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._held: list[tuple[Any, ...]] = []

    def message(self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: int) -> None:
        if not sends or nbytes != 100:
            self.real.message(sends, peer, dtype, count, nbytes, timeout_s, data)
            return
        self._held.append((ctypes.create_string_buffer(ctypes.string_at(data, nbytes), nbytes), nbytes))
        if len(self._held) == 2:
            for held, size in reversed(self._held):
                self.real.message(True, peer, dtype, count, size, timeout_s, ctypes.addressof(held))
            self._held = []


class TracesTooMuch(Faulty):
    """`start_trace` does not forget what was traced before."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._before: list[TracedCall] = []

    def start_trace(self) -> None:
        self._before += self.real.stop_trace()
        self.real.start_trace()

    def stop_trace(self) -> list[TracedCall]:
        taken, self._before = self._before + self.real.stop_trace(), []
        return taken


class TracesBackwards(Faulty):
    """The steps of a trace are not in the order of the program."""

    def stop_trace(self) -> list[TracedCall]:
        return [call._replace(steps=call.steps[::-1]) for call in self.real.stop_trace()]


class SharesALock(Faulty):
    """One call at a time in a process, whatever the communicator."""

    def __init__(self, real: Any, lock: Any = None) -> None:
        super().__init__(real)
        self._lock = lock or threading.Lock()

    def split(self, name: str, members: Sequence[int], rank: int) -> Any:
        return SharesALock(self.real.split(name, members, rank), self._lock)

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        with self._lock:
            self.real.run(compiled, timeout_s, *buffers)

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        def run() -> None:
            with contextlib.suppress(CollectiveError):
                self.run(compiled, timeout_s, *buffers)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return _Lazy(thread.join)


class NoTurns(Faulty):
    """Used by two threads at the same time it gets confused."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._inside = 0

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        self._inside += 1
        time.sleep(0.001)
        confused = self._inside > 1
        try:
            self.real.run(compiled, timeout_s, *buffers)
        finally:
            self._inside -= 1
        if confused:
            ctypes.memset(buffers[-1], 0, 1)
            ctypes.memset(buffers[0], 0, 8)


class NeedsItsThread(Faulty):
    """Works on the thread that connected it, only."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._thread = threading.get_ident()

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        assert threading.get_ident() == self._thread, "another thread"
        self.real.run(compiled, timeout_s, *buffers)


# ---------------------------------------------------------------- life and faults


class DoublesARank(Faulty):
    """A rank is on two hosts."""

    @property
    def hosts(self) -> Any:
        return (*self.real.hosts, (0,))


class NumbersAsTheWhole(Faulty):
    """A part has the ranks of the whole."""

    def split(self, name: str, members: Sequence[int], rank: int) -> Any:
        return type(self)(self.real.split(name, sorted(members), sorted(members).index(members[rank])))


class PartsBreakTheWhole(Faulty):
    """When a part is closed, the whole is too."""

    def __init__(self, real: Any, whole: Any = None) -> None:
        super().__init__(real)
        self._whole = whole

    def split(self, name: str, members: Sequence[int], rank: int) -> Any:
        return type(self)(self.real.split(name, members, rank), self.real)

    def close(self) -> None:
        self.real.close()
        if self._whole is not None:
            self._whole.close()


class LeavesWithItsData(Faulty):
    """What a rank sent is gone when it closes."""

    def close(self) -> None:
        hub = self.real._hub
        with hub.changed:
            for channel in [channel for channel in hub.channels if channel[0] == self.real.rank]:
                hub.channels.pop(channel).clear()
        self.real.close()


class ClosesOnce(Faulty):
    """A second close is an error."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._closed_before = False

    def close(self) -> None:
        if self._closed_before:
            raise RuntimeError("closed already")
        self._closed_before = True
        self.real.close()


class WorksAfterClose(Faulty):
    """Forgets that it was closed, and does nothing."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._shut = False

    def close(self) -> None:
        self._shut = True
        self.real.close()

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        if not self._shut:
            self.real.run(compiled, timeout_s, *buffers)


class CannotBeInterrupted(Faulty):
    """A call goes on whatever happens in other threads: close waits for it."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self._busy = threading.Lock()

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        with self._busy:
            self.real.run(compiled, timeout_s, *buffers)

    def close(self) -> None:
        with self._busy:
            self.real.close()


class LeaksThreads(Faulty):
    """Leaves a thread behind."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()


class NoDeadline(Faulty):
    """Waits for ever."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, 1e9, *buffers)


class NoDeadlineBehind(Faulty):
    """Waits for ever in the background."""

    def start(self, compiled: Any, timeout_s: float, *buffers: int) -> Any:
        return self.real.start(compiled, 1e9, *buffers)


class NoDeadlinePrepared(Faulty):
    """Waits for ever in prepared calls."""

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: int) -> Any:
        return self.real.prepare(compiled, 1e9, result, keep, *buffers)


class NoDeadlineForMessages(Faulty):
    """Waits for ever for a message."""

    def message(self, *args: Any) -> None:
        self.real.message(*args[:5], 1e9, args[6])


class Hasty(Faulty):
    """The deadline comes early."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        self.real.run(compiled, timeout_s / 3, *buffers)


class TimesTheWholeCall(Faulty):
    """The deadline counts from the beginning of the call, also while bytes arrive."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        over = threading.Timer(timeout_s, self._give_up)
        over.start()
        try:
            self.real.run(compiled, timeout_s, *buffers)
        finally:
            over.cancel()

    def _give_up(self) -> None:
        self.real._hub.fail(3, 0, 0, {"seq": 0, "point_to_point": 0, **self.real._hub.calls[0][-1]._asdict()})


class BlamesNobody(Faulty):
    """Does not name the rank that it waited for."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        renamed(lambda: self.real.run(compiled, timeout_s, *buffers), self.real.size)


def renamed(call: Callable[[], None], size: int) -> None:
    try:
        call()
    except CommunicatorBroken:
        raise
    except CollectiveError as error:
        raise type(error)(str(error).replace(f"rank {size - 1}", "some rank")) from None


class WaitsForTheDead(Faulty):
    """Does not notice that a rank has left, and misses the deadline instead."""

    def close(self) -> None:
        pass


class NoNames(Faulty):
    """Says that something does not match, but not what."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        try:
            self.real.run(compiled, timeout_s, *buffers)
        except CommunicatorBroken:
            raise
        except CollectiveError as error:
            raise type(error)("the ranks made different calls") from None


def compares_all_but(name: str) -> type[Faulty]:
    """A transport that does not compare one part of the call."""

    class Careless(Faulty):
        def compile(self, program: Program, timeout_s: float, device: Any) -> Any:
            call = program.call._replace(**{name: 0})
            return self.real.compile(replace(program, call=call), timeout_s, device)

    return Careless


class CutsMessages(Faulty):
    """Receives what comes, though another size was asked for."""

    def message(self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: int) -> None:
        least = min(nbytes, 1000)
        self.real.message(sends, peer, dtype, least, least, timeout_s, data)


class TellsNobody(Faulty):
    """Keeps a mismatch to itself; the others wait."""

    def run(self, compiled: Program, timeout_s: float, *buffers: int) -> None:
        call = compiled.call
        if call.root == 1 and self.real.rank == self.real.size - 1:
            raise CommunicatorBroken("this rank knows, and leaves")
        self.real.run(compiled, timeout_s, *buffers)


class GoesOn(Faulty):
    """Forgets a failure, and makes a new start."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        try:
            self.real.run(compiled, timeout_s, *buffers)
        except CommunicatorBroken:
            if self.real._closed:
                raise


class ForgetsTheCause(Faulty):
    """Says that it is broken, but not since when and by what."""

    def run(self, compiled: Any, timeout_s: float, *buffers: int) -> None:
        try:
            self.real.run(compiled, timeout_s, *buffers)
        except CommunicatorBroken:
            raise CommunicatorBroken("closed, or otherwise broken") from None


STUCK = "expected to be done within|DeadlineExceeded"  # where it is having to wait that gives the fault away
BYTES = "expected other bytes"

PLANTED: list[tuple[type[Faulty], str, str]] = [
    (SwapsMessages, "order on a lane", BYTES),
    (SwapsMessages, "random programs", BYTES),
    (DropsAByte, "every pair of ranks", BYTES),
    (DropsAByte, "sizes and addresses", BYTES),
    (OneLane, "lanes do not wait for each other", BYTES),
    (InOrder, "everybody sends first", STUCK),
    (InOrder, "everybody receives first", STUCK),
    (StoresAndForwards, "a chain of ranks streams", "a send to begin before the receive"),
    (StoresAndForwards, "a chain of combinations streams", "a send to begin before the combination"),
    (RefusesNothing, "nothing at all", "a step without bytes"),
    (ForgetsDependencies, "reads wait for writes", BYTES),
    (ForgetsDependencies, "writes in turn", BYTES),
    (ForgetsDependencies, "random programs", BYTES),
    (OverwritesWhatItSends, "writes wait for reads", BYTES),
    (WritesBeside, "memory beside the arrays", BYTES),
    (SpoilsInputs, "memory beside the arrays", BYTES),
    (WritesLater, "buffers are the caller's again", "nobody to write to a buffer after its call"),
    (RoundsIntegers, "arithmetic of int8", "divided by 2"),
    (AddsUpElsewhere, "combinations in the order of the steps", "the bits of"),
    (RemembersBuffers, "many calls", "what was there before"),
    (WantsNumpy, "buffers may be objects", "bytearray"),
    (Overtakes, "calls in the background end in order", "a blocking call to wait"),
    (LastComesFirst, "the output of one call is the input of the next", BYTES),
    (WaitsForEver, "waiting for a call in the background", STUCK),
    (KeepsNothing, "prepared calls", "`keep` to live"),
    (ReturnsNothing, "prepared calls", "to return its result"),
    (MessagesCount, "messages", "MismatchError"),
    (MixesMessages, "messages", "message 0 of 20 in its turn"),
    (TracesTooMuch, "traces", "calls 3 to 5, not"),
    (TracesBackwards, "traces", "the steps of the program"),
    (SharesALock, "two communicators at the same time", STUCK),
    (NoTurns, "threads take turns", BYTES),
    (NeedsItsThread, "threads take turns", "another thread"),
    (DoublesARank, "what it says of itself", "every rank once in hosts"),
    (NumbersAsTheWhole, "splitting", "the part to be rank"),
    (PartsBreakTheWhole, "a failure stays in its communicator", "closed before this call"),
    (LeavesWithItsData, "leaving when no longer needed", "rank 0 .* closed the communicator"),
    (ClosesOnce, "closing", "closed already"),
    (WorksAfterClose, "closing", "no error, in run after close"),
    (CannotBeInterrupted, "closing while another thread is in a call", STUCK),
    (SwallowsErrors, "closing while a call is in the background", "a CollectiveError in the call, not"),
    (LeaksThreads, "all is given back", "as many threads and descriptors as before"),
    (NoDeadline, "a deadline", STUCK),
    (Hasty, "a deadline", "DeadlineExceeded after"),
    (BlamesNobody, "a deadline", "in the text of DeadlineExceeded"),
    (ForgetsTheCause, "a deadline", "in the text of CommunicatorBroken"),
    (GoesOn, "a deadline", "CommunicatorBroken, but there was no error"),
    (NoDeadlineBehind, "a deadline in the background", STUCK),
    (NoDeadlinePrepared, "a deadline of a prepared call", STUCK),
    (NoDeadlineForMessages, "a deadline of a message", STUCK),
    (TimesTheWholeCall, "slow is not stuck", "expected no error, but got DeadlineExceeded"),
    (WaitsForTheDead, "a rank that leaves", STUCK),
    (WaitsForTheDead, "a rank that leaves before any call", STUCK),
    (BlamesNobody, "a rank that leaves", "in the text of PeerLostError"),
    *((compares_all_but(name), f"another {name}", "MismatchError, but there was no error")
      for name in ("collective", "dtype", "op", "root", "algorithm", "extra")),
    (compares_all_but("elements"), "another count", "16000 elements and 16001 elements"),
    (NoNames, "another dtype", '"rank .. called .., but rank .. called .."'),
    (GoesOn, "another root", "CommunicatorBroken, but there was no error"),
    (TellsNobody, "another call far away", "MismatchError, not"),
    (compares_all_but("root"), "another order of calls", "MismatchError, but there was no error"),
    (CutsMessages, "a message of another size", "no message of another size than was sent"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "name", "words"), PLANTED, ids=[f"{f.__name__}, {n}" for f, n, _ in PLANTED])
def test_a_broken_transport_is_caught(fault: type[Faulty], name: str, words: str) -> None:
    connect, size = Threads(3), 3
    patience_s = STUCK_S if words is STUCK else PATIENCE_S
    with pytest.raises(conformance.ConformanceError) as caught:
        conformance.check(
            lambda where, rank: fault(connect(where, rank)), size, checks=[name], deadline_s=0.2, patience_s=patience_s
        )
    report = caught.value.report
    assert report.of("failed") == [name]
    assert re.search(words, report.results[0].text), report
    assert str(report.results[0]) in str(caught.value)


def test_every_check_has_a_transport_that_it_catches() -> None:
    """But those that take gigabytes, processes or another transport, and those of arithmetic, which are all one."""
    elsewhere = ("an array of", "native", "arithmetic", "a forked child", "a rank that dies")
    caught = {name for _, name, _ in PLANTED}
    uncaught = [name for name in conformance.CHECKS if name not in caught and not name.startswith(elsewhere)]
    assert uncaught == []
