"""What a transport is: it runs programs on the memory of one rank, in concert with the other ranks.

[Note: transports and threads] Calls on one transport object take their turns: a blocking call waits for those started
before it. Two threads that call at the same time on one object race for whose call comes first, and the ranks may then
disagree; give each thread a communicator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from transports.program import Native, Program
from transports.tracing import TracedCall

__all__ = ["CPU", "Buffer", "Compiled", "Device", "QuickCalls", "Started", "Transport"]


class Device(NamedTuple):
    """Where arrays are: the kind as torch names it, and the number among the devices of that kind."""

    kind: str  # "cpu" or "cuda"
    number: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"


CPU = Device("cpu")

Compiled = Any
"""What a transport made of a program; good for that transport only."""

Buffer = Any
"""An address (int) on the device that the program was compiled for, or a C-contiguous array with the buffer protocol.
The caller keeps it alive until the call ends."""


class QuickCalls(Protocol):
    """A table of calls seen before, which a transport can run without Python in between (engine/quick_calls.hpp)."""

    def add(
        self, collective: int, x: Any, out: Any, op: str, root: int, algorithm: str, compiled: Compiled,
        timeout_s: float, make: Callable[[], Any] | None, shape: Sequence[int], gets: bool,
    ) -> None:  # fmt: skip
        """Remembers a call with one array. Without `out`, `make` makes the result; not `gets`: this rank gets none."""
        ...

    def call(self, collective: int, x: Any, out: Any, op: str, root: int, algorithm: str) -> Any:
        """The result, or NotImplemented when the call is not known."""
        ...

    def set_scratch(self, address: int) -> None:
        """Where scratch memory is, from now on; large enough for every call that was added."""
        ...

    def clear(self) -> None:
        """Forgets all calls."""
        ...


class Started(Protocol):
    """A call in progress."""

    def wait(self, wait_s: float) -> bool:
        """True once the call has ended; False when it has not after `wait_s` seconds. Raises the call's failure."""
        ...

    def has_ended(self) -> bool:
        """Whether the call has ended, well or with a failure."""
        ...


class Transport(Protocol):
    """One rank's part of a communicator's data path.

    After `run` returned, the buffers hold the result and belong to the caller. After it raised, the transport is
    broken, outputs hold anything, and no thread touches the buffers any more. The timeout is a limit on time without
    progress, in seconds.
    """

    rank: int
    size: int
    hosts: tuple[tuple[int, ...], ...]
    shared_memory: bool
    """Whether ranks on one host are to be linked by shared memory; the same on every rank."""
    devices: frozenset[str]
    """The kinds of devices whose arrays it takes; the same on every rank."""
    grouped: bool
    """Whether programs must say in which group each transfer is (Program.groups): the layer below has no order but
    that of a stream, as NCCL."""
    natives: frozenset[str]
    """The collectives that the layer below has itself, and which `Program.native` may ask for."""

    def refuses(self, native: Native) -> str:
        """Why the layer below cannot do this; empty when it can. The same on every rank."""
        ...

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Compiled:
        """Makes a program ready to run on arrays of one device, and connects the lanes it needs. Every rank compiles
        before it runs.

        Raises a CollectiveError when a peer cannot be reached; the transport is broken then.
        """
        ...

    def run(self, compiled: Compiled, timeout_s: float, *buffers: Buffer) -> None:
        """Runs a program on the caller's thread; raises a CollectiveError, or KeyboardInterrupt."""
        ...

    def start(self, compiled: Compiled, timeout_s: float, *buffers: Buffer) -> Started:
        """Runs a program in the background, after the ones started before."""
        ...

    def prepare(
        self, compiled: Compiled, timeout_s: float, result: Any, keep: Any, *buffers: Buffer
    ) -> Callable[[], Any]:
        """A function that runs a program on these buffers and returns `result`; it keeps `keep` alive."""
        ...

    def quick_calls(self) -> QuickCalls | None:
        """A new table of quick calls for one caller, or None when the transport has no such thing."""
        ...

    def start_trace(self) -> None:
        """Notes from now on when the steps of every call begin and end; an earlier trace is forgotten."""
        ...

    def stop_trace(self) -> list[TracedCall]:
        """The calls that ended well since `start_trace`, in the order in which they ran."""
        ...

    def message(
        self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: Buffer,
        device: Device = CPU,
    ) -> None:  # fmt: skip
        """Sends one message to the peer, or receives one, on that device; in order per pair and direction."""
        ...

    def empty(self, nbytes: int) -> memoryview:
        """Memory that collectives can read in place from other ranks, where the transport has such; zeroed."""
        ...

    def split(self, name: str, members: Sequence[int], rank: int) -> Transport:
        """The transport of a sub-communicator of these ranks (of this one); every member calls it with this name."""
        ...

    def describe(self) -> str:
        """In a few words, for `repr`."""
        ...

    def forked(self) -> None:
        """In a forked child: lets go of the parent's connections without a word. Calls raise UnsupportedError."""
        ...

    def close(self) -> None:
        """Says goodbye and gives everything back. Idempotent. A call in another thread ends with an error."""
        ...
