# pyright: basic, reportMissingImports=false
"""Tensors that are in memory only now and then, and the store that keeps them meanwhile: read ahead, written behind.

| being written | being written |  here  | being read | being read |  ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch

__all__ = ["Later", "Store", "Stored"]


class Stored:
    """A 1-D tensor with a place in a store. `here` is it, while it is in memory.

    Whoever gets it lets go of it again, with `commit`, `let_go` or `drop`.
    """

    def __init__(self, store: Store, numel: int, dtype: torch.dtype) -> None:
        self.store, self.numel, self.dtype = store, numel, dtype
        self.nbytes = numel * dtype.itemsize
        self.place = store.allocate(self.nbytes)
        self.here: torch.Tensor | None = None
        self.exists = False  # whether it has a value
        self.changed = False  # whether what is here is another than what is stored
        self.written: Future[None] | None = None  # the last write, which a read has to wait for
        self._buffer: torch.Tensor | None = None
        self._next: torch.Tensor | None = None
        self._reading: Any = None

    def start(self) -> None:
        """Starts reading, if there is anything to read."""
        if self.here is None and self._reading is None and self.exists:
            self._reading = self.store.begin_read(self)

    def get(self, changing: bool = False) -> torch.Tensor:
        """The tensor; `changing`: what is done to it is to be stored when it is let go."""
        assert self.exists
        self.start()
        self.store.reached(self)
        if self.here is None:
            self._arrive()
            assert self._buffer is not None
            self.here = self._view(self._buffer)
        self.changed = self.changed or changing
        return self.here

    def fresh(self) -> torch.Tensor:
        """Memory for a new value, not initialised."""
        if self._next is None:
            self._next = self.store.take(self.nbytes)
        return self._view(self._next)

    def commit(self) -> None:
        """Makes what `fresh` gave the value, or else takes what is here; stores it, and lets go of it."""
        if self._next is not None:
            self.drop()
            self._buffer, self._next = self._next, None
        assert self._buffer is not None
        buffer, self._buffer, self.here = self._buffer, None, None
        self.exists, self.changed = True, False
        self.store.write(self, buffer)

    def let_go(self) -> None:
        """Stores what is here if it was changed, and lets go of it."""
        if self.changed:
            self.commit()
        else:
            self.drop()

    def drop(self) -> None:
        """Lets go of what is here, or on its way, and of changes to it."""
        if self._reading is not None:
            self._arrive()
        if self._buffer is not None:
            self.store.give(self._buffer)
        self.here = self._buffer = None
        self.changed = False

    def forget(self) -> None:
        """There is no value any more."""
        self.drop()
        if self._next is not None:
            self.store.give(self._next)
            self._next = None
        self.exists = False

    def read(self, begin: int, end: int) -> torch.Tensor:
        """A copy of elements [begin, end)."""
        self.let_go()
        size = self.dtype.itemsize
        return self.store.read_part(self, begin * size, end * size).view(self.dtype)

    def write(self, begin: int, values: torch.Tensor) -> None:
        """Replaces elements from `begin` on, at once. What has never been written is not initialised."""
        self.let_go()
        flat = values.to(self.dtype).reshape(-1).contiguous().view(torch.uint8)
        self.store.write_part(self, begin * self.dtype.itemsize, flat)
        self.exists = True

    def _arrive(self) -> None:
        reading, self._reading = self._reading, None
        self._buffer = self.store.end_read(reading)

    def _view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[: self.nbytes].view(self.dtype)


class Store:
    """What every kind of store has in common. All is called by the thread that trains.

    device         where the tensors are worked on
    buffer_bytes   at most so much is read ahead, and at most so much waits to be written
    """

    kind = ""  # of memory: "host" or "files"

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self.device, self.buffer_bytes = device, buffer_bytes
        self.held_bytes = 0  # what has room in it
        self.waited_s = 0.0  # for reading and writing
        self._order: Sequence[Stored] = ()
        self._at: dict[int, int] = {}
        self._looked: Stored | None = None

    def allocate(self, nbytes: int) -> Any:
        """Room for a tensor. Raises OffloadError."""
        raise NotImplementedError

    def begin_read(self, stored: Stored) -> Any:
        """Starts reading; `end_read` takes what it returns."""
        raise NotImplementedError

    def end_read(self, reading: Any) -> torch.Tensor:
        """What was read, as bytes on `device`, and perhaps some more bytes. Raises OffloadError."""
        raise NotImplementedError

    def write(self, stored: Stored, buffer: torch.Tensor) -> None:
        """Starts writing, and takes the buffer back once that is done. Raises OffloadError, for earlier writes too."""
        raise NotImplementedError

    def read_part(self, stored: Stored, begin: int, end: int) -> torch.Tensor:
        """A copy of some bytes, on `device`. Raises OffloadError."""
        raise NotImplementedError

    def write_part(self, stored: Stored, begin: int, data: torch.Tensor) -> None:
        """Replaces some bytes. Raises OffloadError."""
        raise NotImplementedError

    def take(self, nbytes: int) -> torch.Tensor:
        """Memory of at least so many bytes, on `device`."""
        raise NotImplementedError

    def give(self, buffer: torch.Tensor) -> None:
        """Takes back what `take` or `end_read` gave."""

    def counters(self) -> dict[str, float]:
        """See ZeroOptimizer.report."""
        return {}

    @property
    def in_memory_bytes(self) -> int:
        """Of all buffers."""
        return 0

    def close(self) -> None:
        """Ends what is under way, and gives everything back."""

    # ---------------------------------------------------------------- order

    def expect(self, order: Sequence[Stored]) -> None:
        """Those of them that are here will be got in this order; each get reads ahead."""
        self._order = [stored for stored in order if stored.store is self]
        self._at = {id(stored): number for number, stored in enumerate(self._order)}

    def reached(self, stored: Stored) -> None:
        """One is got now: what follows is read ahead."""
        at = self._at.get(id(stored))
        if at is None:
            return
        room = self.buffer_bytes
        for coming in self._order[at + 1 :]:
            room -= coming.nbytes
            if room < 0:
                return
            coming.start()

    def as_expected(self) -> None:
        """The order has come to its end; what was read ahead in vain is let go."""
        self.look_away()
        for stored in self._order:
            stored.let_go()
        self.expect(())

    def look(self, stored: Stored, changing: bool = False) -> torch.Tensor:
        """Gets one, and lets go of the one that was looked at before."""
        self.look_away(stored)
        self._looked = stored
        return stored.get(changing)

    def look_away(self, but: Stored | None = None) -> None:
        """Lets go of the one that was looked at last."""
        if self._looked is not None and self._looked is not but:
            self._looked.let_go()
            self._looked = None


class Later:
    """Tensors that are got each time one goes through them, and not before."""

    def __init__(self, get: Callable[[], Iterable[torch.Tensor]]) -> None:
        self._get = get

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._get())
