"""A stand-in for CuPy: its "GPUs" keep their memory on the host, and their streams run as late as they may, or at once.

Run lazily, what a stream was given happens only when somebody waits for it, and nothing but what is needed for that. So
a missing event shows: what should have happened before has not. Run eagerly it happens within the call that hands it
over, which shows memory that is written again too early. All memory holds rubbish at first, and is never freed.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

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
                        op = self.ops[self.done]
                        self.done += 1
                        op()

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
                return self.stream.done >= self.upto

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
            runtime=SimpleNamespace(memcpyAsync=memcpy, memcpyDefault=4),
        )  # fmt: skip

    def number(self) -> int:
        return getattr(self.local, "number", 0)

    def state(self) -> _GpuState:
        with self.lock:
            return self.devices.setdefault(self.number(), _GpuState(self.number()))

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
