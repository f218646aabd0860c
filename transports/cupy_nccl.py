"""NCCL through CuPy as a transport: plans as sends and receives in groups on CuPy's current stream, combined by kernels
(cupy_kernels.py), and NCCL's own collectives as "native".

The engine goes along as a side channel: it carries NCCL's unique id over its authenticated connections, serves arrays
of the CPU, and tells every rank about every call. That last it does in the background: a call on a GPU returns once it
was handed to the stream, and what the side channel or NCCL finds out later is raised by the next call, or by `wait`. A
rank that made another call, made none within the deadline or was lost is named as on the engine; what NCCL has begun is
then aborted, so that streams do not hang, and outputs hold anything.

What NCCL does not let one see: which rank is slow, once all of them have made the call. A deadline counts from the
moment at which this rank's stream has come to the call, and does not name anybody then.

The GPU is the one that was current at `connect`; a process that has chosen none (its current one is 0) gets the one of
its local rank. Work on several streams is put in the order of the calls. The stream is CuPy's current one, also for
arrays of other libraries: whoever passes a torch tensor makes torch's stream CuPy's (`cupy.cuda.ExternalStream`).
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from transports import launchers
from transports.base import CPU, Buffer, Device, QuickCalls
from transports.cupy_kernels import Kernels
from transports.cupy_native import NATIVES, refusal, run_native
from transports.endpoint import Endpoint
from transports.engine.transport import EngineTransport
from transports.errors import CollectiveError, CommunicatorBroken, DeadlineExceeded, TransportError, UnsupportedError
from transports.failures import FailureKind, Names
from transports.grouped import Groups
from transports.launchers import Launch
from transports.program import DTYPES, Action, Call, Kind, Native, Place, Program, build
from transports.tracing import TracedCall

__all__ = ["CupyTransport", "connect", "load_cupy"]

_ID_BYTES = 128
_POLL_S, _LONGEST_POLL_S = 50e-6, 5e-3
_BYTES = 1  # ncclUint8
_FLOAT, _SUM = 7, 0
_GOODBYE_S = 5.0  # how long `close` waits for calls to end


def connect(launch: Launch, *, names: Names, timeout_s: float) -> CupyTransport:
    """The transport of all ranks of a job. Every rank calls it, with its GPU current.

    Raises UnsupportedError when CuPy or its NCCL is missing or there is no GPU, what `launchers.join` raises, and
    TransportError when NCCL refuses.
    """
    cupy = load_cupy()
    _choose_device(cupy, launch)
    endpoint = launchers.join(launch, timeout_s=timeout_s)
    try:
        engine = EngineTransport(endpoint, range(launch.size), launch.rank, names)
        transport = CupyTransport(cupy, engine, names, endpoint=endpoint)
    except BaseException:
        endpoint.close()
        raise
    try:
        transport.ready(Device("cuda", cupy.cuda.Device().id), timeout_s)
    except BaseException:
        transport.close()
        raise
    return transport


def load_cupy() -> Any:
    """The module cupy, with NCCL. Raises UnsupportedError that says what to install."""
    try:
        cupy = importlib.import_module("cupy")
        nccl = importlib.import_module("cupy.cuda.nccl")
        if not nccl.available:
            raise ImportError("this CuPy has no NCCL")
    except (ImportError, AttributeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedError(
            f"transport='cupy' needs CuPy with NCCL ({why}): pip install 'treering[cupy]'"
        ) from error
    return cupy


def _choose_device(cupy: Any, launch: Launch) -> None:
    try:
        count, current = cupy.cuda.runtime.getDeviceCount(), cupy.cuda.Device().id
    except Exception as error:  # CUDARuntimeError, for which there must be a CuPy
        raise UnsupportedError(
            f"transport='cupy' needs a GPU ({error}); without one choose another transport, as transport='auto'"
        ) from error
    if current == 0 and launch.local_rank is not None and count > 1:
        cupy.cuda.Device(launch.local_rank % count).use()


class CupyTransport:
    """One rank of a communicator; see transports/base.py for the contract."""

    shared_memory = True
    devices = frozenset({"cpu", "cuda"})
    grouped = True
    natives = NATIVES

    def __init__(self, cupy: Any, engine: EngineTransport, names: Names, *, endpoint: Endpoint | None = None) -> None:
        self.rank, self.size, self.hosts = engine.rank, engine.size, engine.hosts
        self._cupy, self._engine, self._names, self._endpoint = cupy, engine, names, endpoint
        self._nccl: Any = cupy.cuda.nccl
        self._comm: Any = None  # made with the first program for a GPU
        self._device = CPU
        self._kernels = Kernels(cupy)
        self._staging: list[Any] = []
        self._last: tuple[Any, Any] | None = None  # the stream of the last call, and the event at its end
        self._side: Any = None  # the stream of calls in the background
        self._told: dict[Call, Any] = {}
        self._watch = _Watch(self)
        self._lock = threading.Lock()
        self._cause: CollectiveError | None = None
        self._raised = self._closed = False

    # ---------------------------------------------------------------- running

    def refuses(self, native: Native) -> str:
        return refusal(native)

    def compile(self, program: Program, timeout_s: float, device: Device = CPU) -> Any:
        if device.kind == "cpu":
            assert not program.native, "refused"
            return self._engine.compile(program, timeout_s)
        self.check()
        self.ready(device, timeout_s)
        call = program.call
        if call not in self._told:
            self._told[call] = self._engine.compile(_announcement(call, self.rank, self.size), timeout_s)
        groups = None if program.native else Groups(program)
        return _Compiled(program, groups, self._told[call])

    def ready(self, device: Device, timeout_s: float) -> None:
        """Makes NCCL's communicator on a GPU, if there is none. All ranks call it together."""
        if self._comm is not None:
            if device != self._device:
                raise ValueError(
                    f"an array on {device}, but this communicator works on {self._device}, as that was current when it "
                    "was made: move the array, or call cupy.cuda.Device(n).use() before connect"
                )
            return
        cupy, nccl = self._cupy, self._nccl
        unique = np.zeros(_ID_BYTES, np.uint8)
        if self.rank == 0:
            unique[:] = np.frombuffer(nccl.get_unique_id(), np.uint8)
        sharing = _sharing(self._names, self.rank, self.size)
        self._engine.run(self._engine.compile(sharing, timeout_s), timeout_s, unique)
        try:
            with cupy.cuda.Device(device.number):
                comm = nccl.NcclCommunicator(self.size, unique.tobytes(), self.rank)
                self._side = cupy.cuda.Stream(non_blocking=True)
                warm = cupy.empty(1, np.float32)  # the first collective is what connects the GPUs
                comm.allReduce(warm.data.ptr, warm.data.ptr, 1, _FLOAT, _SUM, self._side.ptr)
                self._side.synchronize()
        except nccl.NcclError as error:
            self._engine.close()  # the other ranks must not wait
            raise TransportError(
                f"NCCL refused to connect rank {self.rank} on {device}: {error}; every rank needs a GPU of its own "
                "(NCCL 2.30 and later share one where NCCL_MULTI_RANK_GPU_ENABLE=1), and NCCL_DEBUG=WARN says more"
            ) from error
        self._device, self._comm = device, comm

    def run(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> None:
        if isinstance(compiled, _Compiled):
            with self._cupy.cuda.Device(self._device.number):
                self._hand_over(compiled, timeout_s, buffers, self._cupy.cuda.get_current_stream())
        else:
            with self._by_engine():
                self._engine.run(compiled, timeout_s, *buffers)

    def start(self, compiled: Any, timeout_s: float, *buffers: Buffer) -> Any:
        if not isinstance(compiled, _Compiled):
            with self._by_engine():
                return self._engine.start(compiled, timeout_s, *buffers)
        with self._cupy.cuda.Device(self._device.number):
            ready = self._cupy.cuda.Event(disable_timing=True)
            ready.record(self._cupy.cuda.get_current_stream())
            self._side.wait_event(ready)
            return _Started(self, self._hand_over(compiled, timeout_s, buffers, self._side))

    def prepare(self, compiled: Any, timeout_s: float, result: Any, keep: Any, *buffers: Buffer) -> Callable[[], Any]:
        def call() -> Any:
            self.run(compiled, timeout_s, *buffers)
            return (result, keep)[0]

        return call

    def quick_calls(self) -> QuickCalls | None:
        return None

    def message(
        self, sends: bool, peer: int, dtype: int, count: int, nbytes: int, timeout_s: float, data: Buffer,
        device: Device = CPU,
    ) -> None:  # fmt: skip
        """Messages between GPUs are NCCL's, and no side channel checks them. Those of a child need one collective call
        on a GPU before, which makes its communicator."""
        self.check()
        if device.kind == "cpu":
            self._engine.message(sends, peer, dtype, count, nbytes, timeout_s, data)
            return
        if self._comm is None:
            raise UnsupportedError("this communicator has no NCCL yet: make one collective call on GPU arrays first")
        self.ready(device, timeout_s)
        if not nbytes:
            return
        with self._cupy.cuda.Device(device.number):
            stream = self._cupy.cuda.get_current_stream()

            def work() -> None:
                move = self._comm.send if sends else self._comm.recv
                move(int(data), nbytes, _BYTES, peer, stream.ptr)

            self._in_order(work, stream, timeout_s, None)

    def start_trace(self) -> None:
        self._engine.start_trace()

    def stop_trace(self) -> list[TracedCall]:
        """Of the calls on arrays of the CPU, and of the announcements of the others."""
        return self._engine.stop_trace()

    def empty(self, nbytes: int) -> memoryview:
        return self._engine.empty(nbytes)

    def _hand_over(self, compiled: _Compiled, timeout_s: float, buffers: Sequence[Buffer], stream: Any) -> _OnStream:
        self.check()
        token = np.zeros(1, np.uint8)
        with self._by_engine():
            told = self._engine.start(compiled.told, timeout_s, token)
        addresses = [int(b) for b in buffers]
        layer = _Layer(self._cupy, self._comm, self._kernels, self.staging, stream)

        def work() -> None:
            if compiled.groups is not None:
                compiled.groups.run(layer, addresses)
            else:
                run_native(self._comm, layer, stream, compiled.program, addresses, self.rank, self.size)

        return self._in_order(work, stream, timeout_s, _Told(told, token))

    def _in_order(self, work: Callable[[], None], stream: Any, timeout_s: float, told: Any) -> _OnStream:
        """Does the work on a stream, after that of the call before on whichever stream."""
        event = self._cupy.cuda.Event
        if self._last is not None and self._last[0].ptr != stream.ptr:
            stream.wait_event(self._last[1])
        began, ended = event(disable_timing=True), event(disable_timing=True)
        began.record(stream)
        try:
            work()
        except self._nccl.NcclError as error:
            self.fail(TransportError(f"NCCL refused a call: {error}; NCCL_DEBUG=WARN says more"))
            self.check()
        ended.record(stream)
        self._last = stream, ended
        on_stream = _OnStream(began, ended, told, timeout_s)
        self._watch.add(on_stream)
        return on_stream

    def staging(self, nbytes: int) -> int:
        """Memory of the GPU for segments; what is outgrown is kept, as calls on a stream may still use it."""
        if not self._staging or self._staging[-1].nbytes < nbytes:
            twice = 2 * self._staging[-1].nbytes if self._staging else 0
            self._staging.append(self._cupy.empty(max(nbytes, twice), np.uint8))
        return self._staging[-1].data.ptr

    # ---------------------------------------------------------------- failing

    @contextmanager
    def _by_engine(self) -> Generator[None]:
        """What the engine raises in here is a failure of this communicator."""
        self.check()
        try:
            yield
        except CollectiveError as error:
            self.fail(error)
            self.check()
            raise

    def look_for_errors(self) -> None:
        """Raises what the side channel or NCCL has found out meanwhile: lost ranks, failures of others."""
        if self._engine.failed and self._cause is None:
            self._engine.raise_failure(None, "a call on a GPU")
        try:
            if self._comm is not None and self._cause is None:
                self._comm.check_async_error()
        except self._nccl.NcclError as error:
            raise TransportError(f"NCCL failed: {error}; NCCL_DEBUG=WARN says more") from error

    def fail(self, cause: CollectiveError) -> None:
        """Keeps the first cause, ends what is on the streams, and lets the other ranks know."""
        with self._lock:
            if self._cause is not None or self._closed:
                return
            # Of two threads that hear of a failure from the engine, the second is told that it is known.
            first = cause.__cause__ if isinstance(cause, CommunicatorBroken) else None
            self._cause = first if isinstance(first, CollectiveError) else cause
        if self._comm is not None:
            self._comm.abort()
        if self._told and not self._engine.failed:
            self._engine.fail(FailureKind.LEFT, self.rank, 0.0, next(iter(self._told.values())))
        self._engine.close()

    def check(self) -> None:
        """Raises what broke the communicator, the first time; CommunicatorBroken from then on."""
        if self._closed:
            raise CommunicatorBroken("the communicator was closed before this call")
        if self._cause is None:
            return
        if self._raised:
            raise CommunicatorBroken(f"the communicator is broken since an earlier call: {self._cause}")
        self._raised = True
        raise type(self._cause)(str(self._cause))

    # ---------------------------------------------------------------- life

    def split(self, name: str, members: Sequence[int], rank: int) -> CupyTransport:
        self.check()
        return CupyTransport(self._cupy, self._engine.split(name, members, rank), self._names)

    def describe(self) -> str:
        version = self._nccl.get_version()
        return f"NCCL {version // 10000}.{version // 100 % 100}.{version % 100} through CuPy"

    def forked(self) -> None:
        self._comm = None  # it is the parent's
        self._engine.forked()
        if self._endpoint is not None:
            self._endpoint.drop_after_fork()

    def close(self) -> None:
        """A call that is on a stream ends well where the other ranks have made it too; otherwise it is aborted."""
        if self._closed:
            return
        ended = self._cause is None and self._watch.settle(_GOODBYE_S) and self._cause is None
        self._closed = True
        self._watch.close()
        if self._comm is not None and self._cause is None:
            (self._comm.destroy if ended else self._comm.abort)()
        self._comm = None
        self._engine.close()
        self._staging.clear()
        if self._endpoint is not None:
            self._endpoint.close()


class _Compiled(NamedTuple):
    program: Program
    groups: Groups | None  # None: native
    told: Any  # the engine's program that tells the others of the call


class _Told(NamedTuple):
    """An announcement in the background, and the byte that it moves."""

    started: Any
    token: Any

    def wait(self, wait_s: float) -> bool:
        return self.started.wait(wait_s)


class _Layer:
    """See transports/grouped.py."""

    def __init__(self, cupy: Any, comm: Any, kernels: Kernels, staging: Callable[[int], int], stream: Any) -> None:
        self._stream, self._ptr = stream, stream.ptr
        self._comm, self._nccl, self._kernels = comm, cupy.cuda.nccl, kernels
        self._runtime, self._staging = cupy.cuda.runtime, staging

    def begin(self) -> None:
        self._nccl.groupStart()

    def send(self, peer: int, address: int, nbytes: int) -> None:
        self._comm.send(address, nbytes, _BYTES, peer, self._ptr)

    def recv(self, peer: int, address: int, nbytes: int) -> None:
        self._comm.recv(address, nbytes, _BYTES, peer, self._ptr)

    def end(self) -> None:
        self._nccl.groupEnd()

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        self._kernels.combine(self._stream, dtype, op, a, b, out, nbytes)

    def copy(self, a: int, out: int, nbytes: int) -> None:
        if a != out and nbytes:
            self._runtime.memcpyAsync(out, a, nbytes, self._runtime.memcpyDefault, self._ptr)

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        self._kernels.divide(self._stream, dtype, a, out, nbytes, divisor)

    def staging(self, nbytes: int) -> int:
        return self._staging(nbytes)


class _OnStream:
    """A call that was handed to a stream; `finished` is set when it has ended, well or with the communicator."""

    def __init__(self, began: Any, ended: Any, told: Any, timeout_s: float) -> None:
        self._began, self._ended, self._told, self._timeout_s = began, ended, told, timeout_s
        self._since_s: float | None = None  # when all ranks had called, and the stream come to it
        self.finished = threading.Event()

    def has_ended(self) -> bool:
        """True once its work is done and the other ranks have made the same call. Raises what the side channel has
        found out, and DeadlineExceeded."""
        if self._told is not None and self._told.wait(0.0):
            self._told = None
        if self._told is not None:
            return False  # and the engine counts, which names whom it waits for
        if self._ended.done:
            return True
        now = time.monotonic()
        if self._since_s is None and self._began.done:
            self._since_s = now
        if self._since_s is not None and now - self._since_s > self._timeout_s:
            raise DeadlineExceeded(
                f"no progress for {now - self._since_s:.1f} s in a call on a GPU: NCCL does not say which rank it "
                "waits for"
            )
        return False


class _Started:
    """See transports/base.py."""

    def __init__(self, owner: CupyTransport, call: _OnStream) -> None:
        self._owner, self._call = owner, call

    def wait(self, wait_s: float) -> bool:
        if not self._call.finished.wait(wait_s):
            return False
        self._owner.check()
        return True

    def has_ended(self) -> bool:
        return self._call.finished.is_set()


class _Watch:
    """A thread that looks after the calls on streams, one after the other, and says when one has failed."""

    def __init__(self, owner: CupyTransport) -> None:
        self._owner = weakref.ref(owner)
        self._calls: queue.SimpleQueue[_OnStream | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: _OnStream | None = None
        self._stopped = False

    def add(self, call: _OnStream) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="treering-nccl", daemon=True)
            self._thread.start()
        self._last = call
        self._calls.put(call)

    def settle(self, wait_s: float) -> bool:
        """Whether all calls have ended, which it waits for."""
        return self._last is None or self._last.finished.wait(wait_s)

    def close(self) -> None:
        """Ends the thread; calls that have not ended are left to themselves."""
        self._stopped = True
        self._calls.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            pause_s, failed = _POLL_S, False
            while not (self._stopped or failed):
                try:
                    if call.has_ended():
                        break
                    self._look_for_errors()
                except CollectiveError as error:
                    failed = True
                    if owner := self._owner():
                        owner.fail(error)
                    del owner
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_POLL_S)
            call.finished.set()

    def _look_for_errors(self) -> None:
        if owner := self._owner():
            owner.look_for_errors()


def _announcement(call: Call, rank: int, size: int) -> Program:
    """What the engine does so that every rank knows that all of them make this call: a barrier that says which."""
    actions: list[Action] = []
    distance = 1
    while distance < size:
        to, of = (rank + distance) % size, (rank - distance) % size
        actions += [Action(Kind.SEND, 1, to, a=Place(0, 0)), Action(Kind.RECV, 1, of, out=Place(0, 0))]
        distance *= 2
    return build(actions, call, buffers=1)


def _sharing(names: Names, rank: int, size: int) -> Program:
    """What the engine does to give NCCL's unique id, which rank 0 has, to all."""
    call = Call(
        names.collectives.index("broadcast"), DTYPES["bytes"][0], 0, 0, _ID_BYTES, names.algorithm("NCCL's unique id")
    )
    if rank:
        return build([Action(Kind.RECV, _ID_BYTES, 0, out=Place(0, 0))], call, buffers=1)
    return build([Action(Kind.SEND, _ID_BYTES, peer, a=Place(0, 0)) for peer in range(1, size)], call, buffers=1)
