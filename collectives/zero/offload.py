# pyright: basic, reportMissingImports=false
"""What of a model's state lives elsewhere while nobody needs it: in files, or in the host's memory beside a GPU.

(Ren et al., "ZeRO-Offload", USENIX ATC 2021; Rajbhandari et al., "ZeRO-Infinity", SC 2021.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectives.exchange import gather_json
from collectives.zero.store import FileStore, HostStore, OffloadError
from collectives.zero.stored import Store

__all__ = ["HOST", "Homes", "Offload", "homes"]

HOST = "host"
_MIB = 1 << 20
Where = str | Path | None


@dataclass(frozen=True)
class Offload:
    """Where a ZeroOptimizer keeps what it does not need just now.

    optimizer    the optimizer's state, with the master weights of 16-bit parameters; at every stage
    gradients    reduced gradients; at stages 2 and 3
    parameters   partitioned parameters; at stage 3

    Each is None (where the model is), "host", or a directory, in which every rank keeps one file without a name: it is
    gone when the process ends, however that happens. "host" is pinned memory of the host; for a model on the CPU that
    is where things are already, and it changes nothing.

    buffer_bytes   at most so much is on its way, each way, besides what is worked on: read ahead, and written behind
    """

    optimizer: Where = None
    gradients: Where = None
    parameters: Where = None
    buffer_bytes: int = 32 * _MIB

    @classmethod
    def of(cls, given: Offload | Where, stage: int) -> Offload:
        """What `offload=` means: one place stands for all that the stage partitions. Raises ValueError, TypeError."""
        if given is None:
            return cls()
        if isinstance(given, (str, Path)):
            return cls(given, given if stage >= 2 else None, given if stage == 3 else None)
        if not isinstance(given, cls):
            raise TypeError(f'offload must be an Offload, a directory, "host" or None, not {type(given).__name__}')
        if given.gradients is not None and stage < 2:
            raise ValueError(f"offload.gradients is for stages 2 and 3, whose gradients are partitioned, not {stage}")
        if given.parameters is not None and stage < 3:
            raise ValueError(f"offload.parameters is for stage 3, whose parameters are partitioned, not {stage}")
        if given.buffer_bytes < 1:
            raise ValueError(f"offload.buffer_bytes={given.buffer_bytes} must be at least 1")
        return given


@dataclass(frozen=True)
class Homes:
    """The stores of one optimizer; None: in memory."""

    optimizer: Store | None = None
    gradients: Store | None = None
    parameters: Store | None = None

    def stores(self) -> list[Store]:
        """Each of them once."""
        return list(dict.fromkeys(s for s in (self.optimizer, self.gradients, self.parameters) if s is not None))

    def together(self, comm: Any, work: Callable[[], None]) -> None:
        """Does something on every rank that may fail; where it does, all raise OffloadError, which names the rank."""
        if self.stores():
            _everywhere(comm, work)

    def counters(self) -> dict[str, float]:
        """Of all of them together."""
        counted: dict[str, float] = {}
        for store in self.stores():
            for name, value in store.counters().items():
                counted[name] = counted.get(name, 0) + value
        return counted

    def close(self) -> None:
        """Gives everything back. What was stored is lost."""
        for store in self.stores():
            store.close()


def homes(given: Offload, comm: Any, device: Any) -> Homes:
    """Opens what is asked for, on all ranks together. Raises OffloadError on every rank where one cannot."""
    opened: dict[str, Store] = {}

    def store(where: Where) -> Store | None:
        if where is None or (where == HOST and device.type == "cpu"):
            return None
        name = HOST if where == HOST else os.fspath(where)
        if name not in opened:
            host = where == HOST
            opened[name] = (
                HostStore(device, given.buffer_bytes) if host else FileStore(comm, device, given.buffer_bytes, name)
            )
        return opened[name]

    made = Homes()

    def open_all() -> None:
        nonlocal made
        made = Homes(store(given.optimizer), store(given.gradients), store(given.parameters))

    if any(where is not None for where in (given.optimizer, given.gradients, given.parameters)):
        try:
            _everywhere(comm, open_all)
        except BaseException:
            for one in opened.values():
                one.close()
            raise
    return made


def _everywhere(comm: Any, work: Callable[[], None]) -> None:
    """Does the work on every rank; if it fails on any, raises on all."""
    error = ""
    try:
        work()
    except OSError as caught:
        error = str(caught)
    errors = gather_json(comm, error) if comm.size > 1 else [error]
    for rank, said in enumerate(errors):
        if said:
            raise OffloadError(f"rank {rank}: {said}")
