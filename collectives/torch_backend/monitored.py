# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""A barrier that finds out who is missing: every rank says in a store that it is here, and rank 0 gives the verdict."""

from __future__ import annotations

import time
from typing import Any

from collectives.torch_backend.errors import BackendError

__all__ = ["monitored_barrier"]


def monitored_barrier(
    store: Any, prefix: str, rank: int, size: int, limit_s: float, wait_all_ranks: bool = False
) -> None:
    """Returns once all ranks are here. BackendError names the first rank that is not in time, or all such ranks.

    `prefix` is of this barrier alone, and the same on all ranks.
    """
    if rank:
        store.set(f"{prefix}/{rank}", "here")
        text = _hear(store, f"{prefix}/verdict", limit_s * 1.5 + 1)
        if text != "ok":
            raise BackendError(
                f"Rank {rank} successfully reached monitoredBarrier, but received errors while waiting for "
                f"send/recv from rank 0. Please check rank 0 logs for faulty rank. ({text})"
            )
        return
    deadline = time.monotonic() + limit_s
    if limit_s <= 0:
        store.set(f"{prefix}/verdict", "Rank 0 timed out")
        raise BackendError("Rank 0 timed out in monitoredBarrier: its timeout leaves no time to wait")
    late = [r for r in range(1, size) if _hear(store, f"{prefix}/{r}", deadline - time.monotonic()) is None]
    if late and not wait_all_ranks:
        late = late[:1]
    names = ", ".join(map(str, late))
    text = f"Rank{'s' if len(late) > 1 else ''} {names} failed to pass monitoredBarrier in {limit_s * 1e3:.0f} ms"
    store.set(f"{prefix}/verdict", text if late else "ok")
    if late:
        raise BackendError(text)


def _hear(store: Any, key: str, limit_s: float) -> str | None:
    deadline, pause_s = time.monotonic() + limit_s, 0.0005
    while not store.check([key]):
        if time.monotonic() > deadline:
            return None
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)
    return store.get(key).decode()
