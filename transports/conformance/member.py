"""What a check gets: one rank, which can connect, hold memory, run scripts, and say what it expected."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from transports.base import CPU, Compiled, Device, Started, Transport
from transports.conformance.grouping import in_groups
from transports.conformance.scripts import Bytes, Script, all_pairs, contents, outcome
from transports.errors import CollectiveError, CommunicatorBroken
from transports.program import DTYPES, Call, build

__all__ = ["Array", "HostMemory", "Member", "Memory", "NotChecked", "Unmet", "call_of"]

_GUARD_BYTES = 64
_GUARD = np.resize(np.frombuffer(b"\xa5\x5a\xc3", np.uint8), _GUARD_BYTES)


class Unmet(AssertionError):
    """A transport did not do what the contract says; the message says what was expected, and what was found."""


class NotChecked(Exception):
    """A check cannot be made here; the message says why."""


class Memory(Protocol):
    """Where a check puts its arrays: memory of the device whose arrays the transport is to take."""

    device: Device

    def allocate(self, nbytes: int) -> Any:
        """A block of memory, which lives as long as what is returned."""
        ...

    def address(self, block: Any) -> int:
        """Where a block begins."""
        ...

    def write(self, block: Any, offset: int, data: Bytes) -> None:
        """Puts bytes into a block, from byte `offset` on."""
        ...

    def read(self, block: Any, offset: int, nbytes: int) -> Bytes:
        """A copy of bytes of a block, once everything that was to be written there has been."""
        ...


class HostMemory:
    """Memory of the process."""

    device = CPU

    def allocate(self, nbytes: int) -> Bytes:
        return np.empty(nbytes, np.uint8)

    def address(self, block: Bytes) -> int:
        return block.ctypes.data

    def write(self, block: Bytes, offset: int, data: Bytes) -> None:
        block[offset : offset + len(data)] = data

    def read(self, block: Bytes, offset: int, nbytes: int) -> Bytes:
        return block[offset : offset + nbytes].copy()


class Array:
    """The memory of one array, between guards. It begins `shift` bytes after a multiple of 64."""

    def __init__(self, memory: Memory, data: Bytes, shift: int) -> None:
        self.nbytes, self._memory = len(data), memory
        self._block = memory.allocate(64 + shift + 2 * _GUARD_BYTES + self.nbytes)
        start = memory.address(self._block)
        self._begin = _GUARD_BYTES + (-(start + _GUARD_BYTES)) % 64 + shift
        self.address = start + self._begin
        memory.write(self._block, self._begin - _GUARD_BYTES, _GUARD)
        memory.write(self._block, self._begin + self.nbytes, _GUARD)
        self.put(data)

    def put(self, data: Bytes) -> None:
        self._memory.write(self._block, self._begin, data)

    def get(self) -> Bytes:
        return self._memory.read(self._block, self._begin, self.nbytes)

    def is_guarded(self) -> bool:
        """Whether nothing was written beside it."""
        before = self._memory.read(self._block, self._begin - _GUARD_BYTES, _GUARD_BYTES)
        after = self._memory.read(self._block, self._begin + self.nbytes, _GUARD_BYTES)
        return np.array_equal(before, _GUARD) and np.array_equal(after, _GUARD)


def call_of(nbytes: int, dtype: str = "uint8", *, algorithm: str = "ring", **fields: int) -> Call:
    """The fingerprint of a call on an array of so many bytes."""
    number, item_bytes = DTYPES[dtype]
    usual = Call(0, number, 0, -1, nbytes // item_bytes, zlib.crc32(algorithm.encode()))
    return usual._replace(**fields)


class Member:
    """One rank in one check.

    patience_s   what is expected to happen at once happens within this time
    deadline_s   the deadline of calls that are to miss it
    """

    def __init__(
        self, rank: int, size: int, connect: Callable[[str], Transport], name: str, *, memory: Memory,
        deadline_s: float, patience_s: float, seed: int, die: Callable[[], None] | None, in_threads: bool,
    ) -> None:  # fmt: skip
        self.rank, self.size, self.memory, self.seed = rank, size, memory, seed
        self.deadline_s, self.patience_s, self.die, self.in_threads = deadline_s, patience_s, die, in_threads
        self._connect, self._name, self._connections = connect, name, 0
        self.after, self.before = (rank + 1) % size, (rank - 1) % size
        self._open: list[Transport] = []
        self._arrays: list[Array] = []

    # ---------------------------------------------------------------- connecting

    def connect(self) -> Transport:
        """A fresh transport of all ranks. Every rank connects as often as the others."""
        self._connections += 1
        transport = self._connect(f"{self._name}.{self._connections}")
        self._open.append(transport)
        seen = (transport.rank, transport.size)
        self.expect(seen == (self.rank, self.size), f"rank {self.rank} of {self.size}, not {seen[0]} of {seen[1]}")
        return transport

    def connect_two(self) -> tuple[Transport, Transport]:
        """A transport of all ranks by which they can meet whatever happens, and a part of it, with all of them, that
        may fail."""
        beside = self.connect()
        return beside, self.split(beside, "part", range(self.size))

    def split(self, transport: Transport, name: str, members: Sequence[int]) -> Transport:
        """The part of a transport for these ranks, this one among them."""
        part = transport.split(name, members, list(members).index(transport.rank))
        self._open.append(part)
        place, seen = list(members).index(transport.rank), (part.rank, part.size)
        wanted = f"the part to be rank {place} of {len(members)}, not {seen[0]} of {seen[1]}"
        self.expect(seen == (place, len(members)), wanted)
        return part

    def leave(self, transport: Transport) -> None:
        """Closes a transport, and lets go of it."""
        transport.close()
        self._open.remove(transport)

    def close(self) -> None:
        """Closes what is still open, the last first."""
        while self._open:
            self._open.pop().close()

    def look_at_guards(self) -> None:
        for array in self._arrays:
            self.expect(array.is_guarded(), "nothing written in front of an array or behind it")

    # ---------------------------------------------------------------- running

    def array(self, data: Bytes | int, shift: int = 0) -> Array:
        """Memory with these bytes in it, or with so many zeros."""
        array = Array(self.memory, np.zeros(data, np.uint8) if isinstance(data, int) else data, shift)
        self._arrays.append(array)
        return array

    def compile(
        self, transport: Transport, script: Script, buffers: int, call: Call, divisor: int = 1, timeout_s: float = 0.0
    ) -> Compiled:
        """The rank's part of a script, ready to run."""
        if transport.grouped:
            script = in_groups(script, transport.size, buffers)
        program = build(script(transport.rank), call, buffers=buffers, divisor=divisor)
        return transport.compile(program, timeout_s or self.patience_s, self.memory.device)

    def run(self, transport: Transport, compiled: Compiled, arrays: Sequence[Array], background: bool = False) -> None:
        """Runs what was compiled on these arrays, to its end."""
        at = [array.address for array in arrays]
        if background:
            finish(transport.start(compiled, self.patience_s, *at), self)
        else:
            transport.run(compiled, self.patience_s, *at)

    def perform(
        self, transport: Transport, script: Script, sizes: Sequence[int], *, shift: int = 0, seed: int = 0,
        divisor: int = 1, call: Call | None = None, times: int = 1,
    ) -> None:  # fmt: skip
        """Runs a script on buffers of so many bytes, with random contents, and compares every byte of them with what
        must be there. With `times`, the same compiled program again, each time on other memory and contents."""
        compiled = self.compile(transport, script, len(sizes), call or call_of(sizes[0]), divisor)
        for turn in range(times):
            first, arrays, wanted = self.setting(transport, script, sizes, shift + turn, seed + turn, divisor)
            self.run(transport, compiled, arrays)
            self.compare(first, arrays, wanted)

    def setting(
        self, transport: Transport, script: Script, sizes: Sequence[int], shift: int = 0, seed: int = 0,
        divisor: int = 1,
    ) -> tuple[list[Bytes], list[Array], list[Bytes]]:  # fmt: skip
        """What is in this rank's buffers before a script runs, the buffers, and what must be in them afterwards."""
        ranks, key = range(transport.size), self.seed + seed
        before = [[contents(key, rank, i, nbytes) for i, nbytes in enumerate(sizes)] for rank in ranks]
        wanted = outcome(script, before, divisor)[transport.rank]
        mine = before[transport.rank]
        return mine, [self.array(data, shift) for data in mine], wanted

    def compare(self, before: Sequence[Bytes], arrays: Sequence[Array], wanted: Sequence[Bytes]) -> None:
        """Every byte of the buffers is what it must be."""
        for number, (old, array, good) in enumerate(zip(before, arrays, wanted, strict=True)):
            found = array.get()
            if not np.array_equal(found, good):
                wrong = np.flatnonzero(found != good)
                still = " (what was there before)" if np.array_equal(found[wrong], old[wrong]) else ""
                raise Unmet(
                    f"expected other bytes in buffer {number} of {len(good)} bytes: {len(wrong)} are wrong{still}, the "
                    f"first at {wrong[0]}, with {found[wrong[0]]} in place of {good[wrong[0]]}"
                )
            if not array.is_guarded():
                raise Unmet(f"expected nothing to be written beside buffer {number} of {len(good)} bytes")

    def barrier(self, transport: Transport, timeout_s: float = 0.0) -> None:
        """Returns once every rank of the transport has come here."""
        script = all_pairs(transport.size)
        compiled = self.compile(transport, script, 2, call_of(1, algorithm="barrier"))
        arrays = self.array(1), self.array(transport.size)
        transport.run(compiled, timeout_s or self.patience_s, *(array.address for array in arrays))

    # ---------------------------------------------------------------- expecting

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            raise Unmet(f"expected {what}")

    def raises(
        self, kind: type[BaseException] | tuple[type[BaseException], ...], action: Callable[[], Any], *words: str,
        within_s: float | None = None, at_least_s: float = 0.0,
    ) -> BaseException:  # fmt: skip
        """The error that an action ends with: of this kind, with a text in which each of the words is found (regular
        expressions), within the time."""
        within_s = self.patience_s if within_s is None else within_s
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds)
        began = time.monotonic()
        try:
            action()
        except CollectiveError as error:
            took_s = time.monotonic() - began
            self.expect(isinstance(error, kinds), f"{wanted}, not {type(error).__name__}: {error}")
            for word in words:
                found = re.search(word, str(error))
                self.expect(found is not None, f"{word!r} in the text of {type(error).__name__}: {error}")
            self.expect(took_s < within_s, f"{wanted} within {within_s:g} s, not after {took_s:.2f} s")
            self.expect(took_s >= at_least_s, f"{wanted} after {at_least_s:g} s, not {took_s:.2f} s: {error}")
            return error
        raise Unmet(f"expected {wanted}, but there was no error")

    def until_it_fails(self, transport: Transport, kind: type[BaseException], *words: str) -> BaseException:
        """The error that ends barrier after barrier."""
        deadline = time.monotonic() + self.patience_s

        def barriers() -> None:
            while time.monotonic() < deadline:
                self.barrier(transport)

        return self.raises(kind, barriers, *words, within_s=self.patience_s * 2)

    def stays_broken(self, transport: Transport, cause: BaseException) -> None:
        """From a failure on, every call raises CommunicatorBroken at once, and tells the first cause."""
        told = re.escape(str(cause))
        compiled = self.compile(transport, all_pairs(transport.size), 2, call_of(1, algorithm="barrier"))
        arrays = self.array(1), self.array(transport.size)
        at = [array.address for array in arrays]
        quick = {"within_s": self.patience_s / 4}
        self.raises(CommunicatorBroken, lambda: transport.run(compiled, self.patience_s, *at), told, **quick)
        self.raises(
            CommunicatorBroken, lambda: finish(transport.start(compiled, self.patience_s, *at), self), told, **quick
        )
        peer = (transport.rank + 1) % transport.size
        self.raises(CommunicatorBroken, lambda: self.message(transport, True, peer, arrays[0]), told, **quick)
        error = self.raises(CommunicatorBroken, lambda: transport.run(compiled, self.patience_s, *at), told, **quick)
        self.expect(type(error.__cause__) is type(cause), f"{type(cause).__name__} as the __cause__ of {error!r}")

    def message(self, transport: Transport, sends: bool, peer: int, array: Array, timeout_s: float = 0.0) -> None:
        """One message of the array's bytes."""
        number = DTYPES["uint8"][0]
        limit = timeout_s or self.patience_s
        transport.message(sends, peer, number, array.nbytes, array.nbytes, limit, array.address)

    def at_once(self, *actions: Callable[[], None]) -> None:
        """Runs actions on threads of their own at the same time; raises what the first of them raised that did."""
        errors: list[BaseException | None] = [None] * len(actions)

        def run(number: int) -> None:
            try:
                actions[number]()
            except BaseException as error:
                errors[number] = error

        threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(actions))]
        deadline = time.monotonic() + self.patience_s
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        for error in errors:
            if error is not None:
                raise error
        late = sum(thread.is_alive() for thread in threads)
        self.expect(late == 0, f"{len(actions)} threads to end, but {late} did not")


def finish(started: Started, me: Member) -> None:
    """Waits for a call in the background."""
    if not started.wait(me.patience_s):
        raise Unmet(f"expected a call in the background to end within {me.patience_s:g} s")
