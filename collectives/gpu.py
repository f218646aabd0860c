"""What staging asks of the library that an array on a GPU belongs to: streams, events, copies and page-locked memory.

Two libraries can be it: torch and CuPy. Neither is imported here; whoever has an array of theirs has done so.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, Protocol

from collectives.buffers import ArrayView

__all__ = ["Gpu", "Memory", "gpu_of"]

Stream = Any
Event = Any


class Memory(NamedTuple):
    """Bytes of the host or of a GPU. `owner` keeps them alive."""

    owner: Any
    address: int


class Gpu(Protocol):
    """One GPU. Any thread may call these; `copy`, `record` and `wait` return at once, and happen on the stream, in the
    order in which they were called for it."""

    def current_stream(self) -> Stream:
        """The stream on which the calling thread's work happens."""
        ...

    def new_stream(self) -> Stream:
        """A stream that waits for no other."""
        ...

    def record(self, stream: Stream) -> Event:
        """An event that happens once all that the stream was given so far has happened."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """What the stream is given from now on happens after the event."""
        ...

    def synchronize(self, event: Event) -> None:
        """Returns once the event has happened. Nothing else is waited for."""
        ...

    def pinned(self, nbytes: int) -> Memory:
        """New page-locked memory of the host."""
        ...

    def bytes_of(self, array: ArrayView) -> Memory:
        """An array's bytes, as `copy` takes them."""
        ...

    def copy(self, stream: Stream, a: Memory, a_at: int, out: Memory, out_at: int, nbytes: int) -> None:
        """out[out_at:][:nbytes] = a[a_at:][:nbytes]; from the host, to it, or within the GPU."""
        ...


def gpu_of(array: ArrayView) -> Gpu:
    """The GPU that an array is on, by the library of the array."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array.array, torch.Tensor):
        return _TorchGpu(torch, array.array.device)
    return _CupyGpu(sys.modules["cupy"], array.device.number)


class _TorchGpu:
    """A GPU by torch; an address means nothing to it, so memory is a tensor of bytes."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._cuda, self._device = torch, torch.cuda, device

    def current_stream(self) -> Stream:
        return self._cuda.current_stream(self._device)

    def new_stream(self) -> Stream:
        return self._cuda.Stream(self._device)

    def record(self, stream: Stream) -> Event:
        return stream.record_event()

    def wait(self, stream: Stream, event: Event) -> None:
        stream.wait_event(event)

    def synchronize(self, event: Event) -> None:
        event.synchronize()

    def pinned(self, nbytes: int) -> Memory:
        memory = self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True)
        return Memory(memory, memory.data_ptr())

    def bytes_of(self, array: ArrayView) -> Memory:
        flat = array.array.detach().reshape(-1)
        return Memory(flat.view(self._torch.uint8), array.address)

    def copy(self, stream: Stream, a: Memory, a_at: int, out: Memory, out_at: int, nbytes: int) -> None:
        with self._cuda.stream(stream):
            out.owner[out_at : out_at + nbytes].copy_(a.owner[a_at : a_at + nbytes], non_blocking=True)


class _CupyGpu:
    """A GPU by CuPy."""

    def __init__(self, cupy: Any, number: int) -> None:
        self._cuda, self._device = cupy.cuda, cupy.cuda.Device(number)

    def current_stream(self) -> Stream:
        with self._device:
            return self._cuda.get_current_stream()

    def new_stream(self) -> Stream:
        with self._device:
            return self._cuda.Stream(non_blocking=True)

    def record(self, stream: Stream) -> Event:
        with self._device:
            event = self._cuda.Event(disable_timing=True)
            event.record(stream)
            return event

    def wait(self, stream: Stream, event: Event) -> None:
        with self._device:
            stream.wait_event(event)

    def synchronize(self, event: Event) -> None:
        event.synchronize()

    def pinned(self, nbytes: int) -> Memory:
        with self._device:
            memory = self._cuda.alloc_pinned_memory(nbytes)
        return Memory(memory, memory.ptr)

    def bytes_of(self, array: ArrayView) -> Memory:
        return Memory(array.array, array.address)

    def copy(self, stream: Stream, a: Memory, a_at: int, out: Memory, out_at: int, nbytes: int) -> None:
        runtime = self._cuda.runtime
        with self._device:
            runtime.memcpyAsync(out.address + out_at, a.address + a_at, nbytes, runtime.memcpyDefault, stream.ptr)
