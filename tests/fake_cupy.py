"""A stand-in for CuPy: its "GPUs" keep their memory on the host, and their streams run as late as they may, or at once.

Run lazily, what a stream was given happens only when somebody waits for it, and nothing but what is needed for that. So
a missing event shows: what should have happened before has not. Run eagerly it happens within the call that hands it
over, which shows memory that is written again too early. All memory holds rubbish at first, and is never freed.
"""

from __future__ import annotations

import ctypes
import math
import queue
import secrets
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests import host_kernels
from transports import arithmetic
from transports.program import DTYPES, OPS

_RUBBISH = 0xA5


def at(address: int, nbytes: int) -> Any:
    """Bytes of memory."""
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8) if nbytes else np.empty(0, np.uint8)


class FakeCupy(ModuleType):
    """The module; `eager` says when streams run."""

    def __init__(self, eager: bool) -> None:
        super().__init__("cupy")
        self.eager = eager
        self.memory: list[Any] = []
        self.spans: list[tuple[int, int]] = []  # of the GPUs' memory
        self.devices: dict[int, _GpuState] = {}
        self.local = threading.local()
        self.lock = threading.Lock()
        self.host_waits = 0
        owner = self

        class Device:
            def __init__(self, number: int | None = None) -> None:
                self.id = owner.number() if number is None else number

            def __enter__(self) -> Any:
                self.before = owner.number()
                owner.local.number = self.id
                return self

            def __exit__(self, *error: Any) -> None:
                owner.local.number = self.before

            def use(self) -> None:
                owner.local.number = self.id

        class Stream:
            def __init__(self, *, non_blocking: bool = False) -> None:
                self.state = owner.state()
                self.ops: list[Callable[[], None]] = []
                self.done = 0
                self.ptr = len(self.state.streams) + 1000 * self.state.number
                self.state.streams.append(self)

            def give(self, op: Callable[[], None]) -> None:
                with self.state.lock:
                    self.ops.append(op)
                    if owner.eager:
                        self.run(len(self.ops))

            def run(self, upto: int) -> None:
                with self.state.lock:
                    while self.done < upto:
                        self.ops[self.done]()
                        self.done += 1

            def wait_event(self, event: Any) -> None:
                stream, upto = event.stream, event.upto
                self.give(lambda: stream.run(upto))

            def synchronize(self) -> None:
                owner.host_waits += 1
                self.run(len(self.ops))

            def __enter__(self) -> Any:
                self.before = owner.current()
                owner.local.streams[owner.number()] = self
                return self

            def __exit__(self, *error: Any) -> None:
                owner.local.streams[owner.number()] = self.before

        class Event:
            def __init__(self, *, disable_timing: bool = False) -> None:
                self.stream, self.upto = owner.current(), 0

            def record(self, stream: Any = None) -> None:
                self.stream = stream or owner.current()
                self.upto = len(self.stream.ops)

            def synchronize(self) -> None:
                owner.host_waits += 1
                self.stream.run(self.upto)

            @property
            def done(self) -> bool:
                """As it is now; somebody who asks gives the GPU time to get there."""
                if self.stream.done >= self.upto:
                    return True
                self.stream.state.go_on(self.stream, self.upto)
                return False

        class Ndarray:
            def __init__(self, shape: Any, dtype: Any) -> None:
                self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
                self.dtype = np.dtype(dtype)
                self.itemsize, self.device = self.dtype.itemsize, Device()
                self.nbytes = math.prod(self.shape) * self.itemsize
                self.data = SimpleNamespace(ptr=owner.allocate(self.nbytes, on_gpu=True))
                self.flags = SimpleNamespace(c_contiguous=True)

            def __setitem__(self, key: Any, value: Any) -> None:
                assert key is Ellipsis
                self.set(np.full(self.shape, value, self.dtype))

            def set(self, values: Any) -> None:
                """Work of the current stream: new contents."""
                raw = np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).copy()
                assert raw.size == self.nbytes
                address = self.data.ptr
                owner.current().give(lambda: at(address, raw.size).__setitem__(slice(None), raw))

            def get(self) -> Any:
                """The contents, after the current stream's work."""
                found = np.empty(self.nbytes, np.uint8)
                address = self.data.ptr
                owner.current().give(lambda: found.__setitem__(slice(None), at(address, found.size)))
                owner.current().synchronize()
                return found.view(self.dtype).reshape(self.shape)

            def part(self, begin: int, end: int) -> Any:
                """Elements of a one-dimensional array, in place."""
                found = Ndarray(0, self.dtype)
                found.shape, found.nbytes = (end - begin,), (end - begin) * self.itemsize
                found.data = SimpleNamespace(ptr=self.data.ptr + begin * self.itemsize)
                return found

        def array(values: Any) -> Any:
            made = Ndarray(np.shape(values), np.asarray(values).dtype)
            made.set(values)
            return made

        def memcpy(out: int, a: int, nbytes: int, kind: int, stream: int) -> None:
            owner.stream(stream).give(lambda: at(out, nbytes).__setitem__(slice(None), at(a, nbytes).copy()))

        def pinned(nbytes: int) -> Any:
            return SimpleNamespace(ptr=owner.allocate(nbytes, on_gpu=False))

        self.ndarray, self.empty, self.array = Ndarray, Ndarray, array
        self.cuda = SimpleNamespace(
            Device=Device, Stream=Stream, Event=Event, get_current_stream=self.current, alloc_pinned_memory=pinned,
            runtime=SimpleNamespace(memcpyAsync=memcpy, memcpyDefault=4, getDeviceCount=lambda: 8), nccl=FakeNccl(self),
        )  # fmt: skip

    def RawModule(self, *, code: str, options: Any) -> Any:  # noqa: N802
        def run(grid: Any, block: Any, args: Any, *, stream: Any) -> None:
            assert all(0 < n <= 4096 for n in (*grid, *block))
            stream.give(lambda: host_kernels.launch(host_kernels.kernel(code), args))

        assert "--fmad=false" in options
        return SimpleNamespace(get_function=lambda name: run)

    def number(self) -> int:
        return getattr(self.local, "number", 0)

    def state(self) -> _GpuState:
        with self.lock:
            if self.number() not in self.devices:
                self.devices[self.number()] = _GpuState(self.number())
            return self.devices[self.number()]

    def close(self) -> None:
        """Ends the threads of the GPUs."""
        for state in self.devices.values():
            state.todo.put(None)

    def current(self) -> Any:
        """The current stream of the thread, which has one of its own for each GPU until it says otherwise."""
        streams = self.local.__dict__.setdefault("streams", {})
        if self.number() not in streams:
            streams[self.number()] = self.cuda.Stream()
        return streams[self.number()]

    def stream(self, ptr: int) -> Any:
        return self.devices[ptr // 1000].streams[ptr % 1000]

    def allocate(self, nbytes: int, *, on_gpu: bool) -> int:
        memory = np.full(nbytes + 1, _RUBBISH, np.uint8)
        address = memory.ctypes.data
        with self.lock:
            self.memory.append(memory)
            if on_gpu:
                self.spans.append((address, address + nbytes))
        return address

    def on_gpu(self, address: int) -> bool:
        return any(low <= address < high for low, high in self.spans)


class _GpuState:
    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.RLock()
        self.streams: list[Any] = []
        self.todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.asked: set[Any] = set()
        threading.Thread(target=self._work, daemon=True).start()

    def go_on(self, stream: Any, upto: int) -> None:
        if (stream.ptr, upto) not in self.asked:
            self.asked.add((stream.ptr, upto))
            self.todo.put((stream, upto))

    def _work(self) -> None:
        while (order := self.todo.get()) is not None:
            stream, upto = order
            stream.run(upto)


class FakeNccl(ModuleType):
    """cupy.cuda.nccl, between threads that have a GPU each."""

    def __init__(self, owner: FakeCupy) -> None:
        super().__init__("cupy.cuda.nccl")
        self.available = True
        self.groups = threading.local()
        worlds: dict[bytes, _World] = {}
        nccl = self
        names = ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bfloat16")
        types = [DTYPES[name] for name in names]
        ops = [OPS[name] for name in ("sum", "prod", "max", "min")]

        class NcclError(RuntimeError):
            pass

        class NcclCommunicator:
            def __init__(self, size: int, unique: bytes, rank: int) -> None:
                assert len(unique) == 128
                with owner.lock:
                    self.world = worlds.setdefault(unique, _World(size))
                self.world.met.wait(20)  # as NCCL, it returns when all ranks are there
                self.size, self.rank, self.device = size, rank, owner.number()
                self.error, self.aborted, self.destroyed = "", threading.Event(), False

            def send(self, a: int, count: int, dtype: int, peer: int, stream: int) -> None:
                self.give(stream, [(True, peer, a, count * types[dtype][1])])

            def recv(self, out: int, count: int, dtype: int, peer: int, stream: int) -> None:
                self.give(stream, [(False, peer, out, count * types[dtype][1])])

            def give(self, stream: int, moves: list[Any]) -> None:
                group = getattr(nccl.groups, "open", None)
                if group is not None:
                    group.append((self, stream, moves))
                else:
                    self.enqueue(stream, lambda: self.move(moves))

            def enqueue(self, stream: int, work: Callable[[], None]) -> None:
                assert owner.number() == self.device, "another GPU is current"
                assert stream // 1000 == self.device, "a stream of another GPU"
                assert not self.destroyed
                if self.aborted.is_set():
                    raise NcclError("NCCL_ERROR_INVALID_USAGE")
                owner.stream(stream).give(work)

            def move(self, moves: list[Any]) -> None:
                """It receives before anything was sent, as far as anybody can tell."""
                data = [at(address, n).copy() for sends, _, address, n in moves if sends]
                for sends, _, address, n in moves:
                    if not sends:
                        at(address, n)[:] = _RUBBISH
                for (_, peer, _, _), what in zip([m for m in moves if m[0]], data, strict=True):
                    self.world.wires[self.rank, peer].put(what)
                for sends, peer, address, n in moves:
                    if not sends and (what := self.take(peer)) is not None:
                        assert what.size == n
                        at(address, n)[:] = what

            def take(self, peer: int) -> Any:
                while not self.aborted.is_set():
                    try:
                        return self.world.wires[peer, self.rank].get(timeout=0.02)
                    except queue.Empty:
                        pass
                return None

            def all(self, address: int, nbytes: int) -> list[Any]:
                """What all ranks have."""
                mine = at(address, nbytes).copy()
                for peer in range(self.size):
                    self.world.wires[self.rank, peer].put(mine)
                return [self.take(peer) for peer in range(self.size)]

            def reduced(self, a: int, count: int, dtype: int, op: int) -> Any:
                number, item_bytes = types[dtype]
                total, *more = self.all(a, count * item_bytes)
                for other in more:
                    if other is not None:
                        total = arithmetic.combine(number, ops[op], total, other)
                return total

            def allReduce(self, a: int, out: int, count: int, dtype: int, op: int, stream: int) -> None:  # noqa: N802
                def work() -> None:
                    total = self.reduced(a, count, dtype, op)
                    at(out, total.size)[:] = total

                self.enqueue(stream, work)

            def reduce(self, a: int, out: int, count: int, dtype: int, op: int, root: int, stream: int) -> None:
                def work() -> None:
                    total = self.reduced(a, count, dtype, op)
                    if self.rank == root:
                        at(out, total.size)[:] = total

                self.enqueue(stream, work)

            def reduceScatter(  # noqa: N802
                self, a: int, out: int, count: int, dtype: int, op: int, stream: int
            ) -> None:
                def work() -> None:
                    total = self.reduced(a, count * self.size, dtype, op)
                    part = total.size // self.size
                    at(out, part)[:] = total[part * self.rank :][:part]

                self.enqueue(stream, work)

            def allGather(self, a: int, out: int, count: int, dtype: int, stream: int) -> None:  # noqa: N802
                def work() -> None:
                    parts = np.concatenate(self.all(a, count * types[dtype][1]))
                    at(out, parts.size)[:] = parts

                self.enqueue(stream, work)

            def broadcast(self, a: int, out: int, count: int, dtype: int, root: int, stream: int) -> None:
                def work() -> None:
                    data = self.all(a, count * types[dtype][1])[root]
                    at(out, data.size)[:] = data

                self.enqueue(stream, work)

            def check_async_error(self) -> None:
                if self.error:
                    raise NcclError(self.error)

            def abort(self) -> None:
                self.aborted.set()

            def destroy(self) -> None:
                self.destroyed = True

        self.NcclError, self.NcclCommunicator = NcclError, NcclCommunicator

    def get_version(self) -> int:
        return 23004

    def get_unique_id(self) -> bytes:
        return secrets.token_bytes(128)

    def groupStart(self) -> None:  # noqa: N802
        assert getattr(self.groups, "open", None) is None
        self.groups.open = []

    def groupEnd(self) -> None:  # noqa: N802
        given, self.groups.open = self.groups.open, None
        if given:
            comm, stream = given[0][:2]
            comm.enqueue(stream, lambda: comm.move([move for _, _, moves in given for move in moves]))


class _World:
    def __init__(self, size: int) -> None:
        self.met = threading.Barrier(size)
        self.wires = {(a, b): queue.SimpleQueue[Any]() for a in range(size) for b in range(size)}
