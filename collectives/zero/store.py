# pyright: basic, reportMissingImports=false
"""Where offloaded tensors are: in a file, or in pinned memory of the host beside a GPU.

    file   --pread, by a thread-->  buffer  (--copied up-->  tensor on a GPU)
    host                                      --copied up, on a stream of its own-->  tensor on a GPU

Files are opened for direct I/O where the file system has it, so what is in them takes no memory as a cache.

[Note: a file without a name]  A store's file loses its name as soon as it is open. So the file system takes it back
when the process ends, whatever ends it: nothing is left behind, and nothing can be mistaken for another job's.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch

from collectives.zero.memory import Pool, registered
from collectives.zero.stored import Store, Stored
from transports.errors import CollectiveError

__all__ = ["FileStore", "HostStore", "OffloadError"]

_ALIGN = mmap.PAGESIZE  # and a block of any disk
_THREADS = 4


class OffloadError(CollectiveError, OSError):
    """What is offloaded could not be read or written; the message names the file, and says what the system said."""


class FileStore(Store):
    """One file in `directory`; see [Note: a file without a name]. Raises OSError."""

    kind = "files"

    def __init__(self, comm: Any, device: torch.device, buffer_bytes: int, directory: str) -> None:
        super().__init__(device, buffer_bytes)
        self._comm, self._end = comm, 0
        self._file = file = _File(directory)
        self.path = file.path
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="treering-offload")
        self._pool = Pool(self._new_buffer)
        self._writes: deque[tuple[Future[None], torch.Tensor]] = deque()
        self._staged = device.type != "cpu"
        self._copies: deque[tuple[Any, torch.Tensor]] = deque()  # on their way up to a GPU
        self._closed = weakref.finalize(self, _close, self._threads, file)

    def allocate(self, nbytes: int) -> _Place:
        place = _Place(self._end, _rounded(nbytes))
        self._file.allocate(place)
        self._end += place.nbytes
        self.held_bytes = self._end
        return place

    def begin_read(self, stored: Stored) -> Any:
        buffer = self._take(stored.place.nbytes)
        return self._threads.submit(self._file.read, stored.place, _bytes(buffer), stored.written), buffer

    def end_read(self, reading: Any) -> torch.Tensor:
        future, buffer = reading
        self._wait(future)
        if not self._staged:
            return buffer
        above = torch.empty_like(buffer, device=self.device)
        above.copy_(buffer, non_blocking=True)
        self._copies.append((_event(self.device), buffer))
        return above

    def write(self, stored: Stored, buffer: torch.Tensor) -> None:
        ready: Callable[[], None] = _nothing
        if self._staged:
            below = self._take(stored.place.nbytes)
            below[: stored.nbytes].copy_(buffer[: stored.nbytes], non_blocking=True)
            ready, buffer = _event(self.device).synchronize, below
        stored.written = self._threads.submit(self._file.write, stored.place, _bytes(buffer), stored.written, ready)
        self._writes.append((stored.written, buffer))
        self._reap(self.buffer_bytes)

    def read_part(self, stored: Stored, begin: int, end: int) -> torch.Tensor:
        first = begin // _ALIGN * _ALIGN
        place = _Place(stored.place.begin + first, _rounded(end - first))
        buffer = self._take(place.nbytes)
        self._wait(self._threads.submit(self._file.read, place, _bytes(buffer), stored.written))
        part = buffer[begin - first : end - first].clone().to(self.device)
        self._pool.give(buffer)
        return part

    def write_part(self, stored: Stored, begin: int, data: torch.Tensor) -> None:
        first, end = begin // _ALIGN * _ALIGN, begin + data.numel()
        place = _Place(stored.place.begin + first, _rounded(end - first))
        buffer = self._take(place.nbytes)
        self._wait(self._threads.submit(self._file.read, place, _bytes(buffer), stored.written))
        buffer[begin - first : end - first].copy_(data)
        self._wait(self._threads.submit(self._file.write, place, _bytes(buffer), None, _nothing))
        self._pool.give(buffer)

    def take(self, nbytes: int) -> torch.Tensor:
        if self._staged:
            return torch.empty(_rounded(nbytes), dtype=torch.uint8, device=self.device)
        return self._take(_rounded(nbytes))

    def give(self, buffer: torch.Tensor) -> None:
        if not self._staged:
            self._pool.give(buffer)

    def counters(self) -> dict[str, float]:
        f = self._file
        return {
            "read_bytes": f.reading.nbytes, "written_bytes": f.writing.nbytes, "reading_s": f.reading.busy_s,
            "writing_s": f.writing.busy_s, "busy_s": f.busy.busy_s, "waited_s": self.waited_s,
        }  # fmt: skip

    @property
    def in_memory_bytes(self) -> int:
        return self._pool.held_bytes

    def close(self) -> None:
        self._closed()
        self._writes.clear()
        self._pool, self.held_bytes = Pool(self._new_buffer), 0

    def _new_buffer(self, nbytes: int) -> torch.Tensor:
        if self._staged:
            pinned = torch.empty(nbytes + _ALIGN, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            return _aligned(pinned, nbytes)
        return _aligned(registered(self._comm, nbytes + _ALIGN, torch.uint8, self.device), nbytes)

    def _take(self, nbytes: int) -> torch.Tensor:
        self._reap(None)
        while self._copies and self._copies[0][0].query():
            self._pool.give(self._copies.popleft()[1])
        return self._pool.take(nbytes)

    def _reap(self, allowed_bytes: int | None) -> None:
        """Takes back the buffers that have been written; waits until no more than this is left to write."""
        left = sum(buffer.numel() for _, buffer in self._writes)
        while self._writes:
            future, buffer = self._writes[0]
            if not future.done() and (allowed_bytes is None or left <= allowed_bytes):
                return
            self._wait(future)
            self._writes.popleft()
            self._pool.give(buffer)
            left -= buffer.numel()

    def _wait(self, future: Future[None]) -> None:
        began = time.perf_counter()
        try:
            future.result()
        except OSError as error:
            self._comm.close()  # so that the other ranks hear at once that this one is lost
            raise OffloadError(f"{self.path}: {error.strerror}") from error
        finally:
            self.waited_s += time.perf_counter() - began


class HostStore(Store):
    """Pinned memory beside a GPU. Copies have a stream of their own, which goes by that of the caller, and it by them.

    On a CPU it copies as well, which nobody needs, but for tests.
    """

    kind = "host"

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        super().__init__(device, buffer_bytes)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.held_bytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._stream is not None)

    def begin_read(self, stored: Stored) -> Any:
        above = self.take(stored.nbytes)
        return above, self._copy(above, stored.place)

    def end_read(self, reading: Any) -> torch.Tensor:
        above, copied = reading
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)
        return above

    def write(self, stored: Stored, buffer: torch.Tensor) -> None:
        self._copy(stored.place, buffer[: stored.nbytes])

    def read_part(self, stored: Stored, begin: int, end: int) -> torch.Tensor:
        part = self.take(end - begin)
        copied = self._copy(part, stored.place[begin:end])
        return self.end_read((part, copied))

    def write_part(self, stored: Stored, begin: int, data: torch.Tensor) -> None:
        self._copy(stored.place[begin : begin + data.numel()], data.to(self.device, copy=True))

    def take(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def close(self) -> None:
        self.held_bytes = 0

    def _copy(self, into: torch.Tensor, source: torch.Tensor) -> Any:
        if self._stream is None:
            into.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
            if source.is_cuda:
                source.record_stream(self._stream)  # nobody gets this memory before it has been copied
            return self._stream.record_event()


class _Place(NamedTuple):
    """Bytes of a file."""

    begin: int
    nbytes: int


class _File:
    """What the threads do with the file."""

    def __init__(self, directory: str) -> None:
        # O_DIRECT is refused when a file is opened (tmpfs), or when it is written to (some network file systems).
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.path = os.path.join(directory, f"treering-{uuid.uuid4().hex[:16]}.offload")
        self.direct = hasattr(os, "O_DIRECT")
        try:
            self.fd = os.open(self.path, flags | (os.O_DIRECT if self.direct else 0), 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            self.direct = False
            self.fd = os.open(self.path, flags, 0o600)
        os.unlink(self.path)
        self.reading, self.writing, self.busy = _Clock(), _Clock(), _Clock()

    def allocate(self, place: _Place) -> None:
        """Takes room on the disk. Raises OffloadError."""
        try:
            os.posix_fallocate(self.fd, place.begin, place.nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise OffloadError(f"{self.path}: no room for {place.nbytes} bytes: {error.strerror}") from error
            os.ftruncate(self.fd, place.begin + place.nbytes)  # the file system cannot promise

    def read(self, place: _Place, into: memoryview, after: Future[None] | None) -> None:
        if after is not None:
            after.result()
        with self.reading.runs(place.nbytes), self.busy.runs(place.nbytes):
            done = 0
            while done < place.nbytes:
                count = os.preadv(self.fd, [into[done : place.nbytes]], place.begin + done)
                if not count:
                    raise OSError(errno.EIO, f"ends after {done} of {place.nbytes} bytes at {place.begin}")
                done += count
            if not self.direct:
                os.posix_fadvise(self.fd, place.begin, place.nbytes, os.POSIX_FADV_DONTNEED)

    def write(
        self, place: _Place, data: memoryview, after: Future[None] | None, ready: Callable[[], None]
    ) -> None:  # fmt: skip
        if after is not None:
            after.result()
        ready()
        with self.writing.runs(place.nbytes), self.busy.runs(place.nbytes):
            done = 0
            while done < place.nbytes:
                done += os.pwrite(self.fd, data[done : place.nbytes], place.begin + done)
            if not self.direct:
                os.fdatasync(self.fd)  # only what is on the disk can be let go of
                os.posix_fadvise(self.fd, place.begin, place.nbytes, os.POSIX_FADV_DONTNEED)


class _Clock:
    """Bytes, and the time in which at least one thread was busy with them."""

    def __init__(self) -> None:
        self.nbytes, self.busy_s = 0, 0.0
        self._lock, self._busy, self._since = threading.Lock(), 0, 0.0

    @contextmanager
    def runs(self, nbytes: int) -> Generator[None]:
        with self._lock:
            if not self._busy:
                self._since = time.perf_counter()
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self.nbytes += nbytes
                if not self._busy:
                    self.busy_s += time.perf_counter() - self._since


def _close(threads: ThreadPoolExecutor, file: _File) -> None:
    threads.shutdown(wait=True, cancel_futures=True)
    os.close(file.fd)


def _event(device: torch.device) -> Any:
    """Happens once the caller's stream has done what it was given so far."""
    return torch.cuda.current_stream(device).record_event()


def _nothing() -> None:
    pass


def _rounded(nbytes: int) -> int:
    return max(-(-nbytes // _ALIGN), 1) * _ALIGN


def _aligned(memory: torch.Tensor, nbytes: int) -> torch.Tensor:
    shift = -memory.data_ptr() % _ALIGN
    return memory[shift : shift + nbytes]


def _bytes(buffer: torch.Tensor) -> memoryview:
    return memoryview(buffer.numpy())
