"""deepspeed.comm, as far as a training script needs it: who takes part. The communicator is one for the process."""

from __future__ import annotations

from typing import Any

from collectives.connect import connect

__all__ = [
    "barrier",
    "destroy_process_group",
    "everybody",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "init_distributed",
    "is_initialized",
]

_comm: Any = None


def init_distributed(dist_backend: str | None = None, *ignored: Any, **also_ignored: Any) -> None:
    """Joins the other ranks, unless that was done. Names of backends, and what else DeepSpeed takes, are not needed."""
    everybody()


def everybody() -> Any:
    """The Communicator of all ranks, who join the first time that it is asked for."""
    global _comm
    if _comm is None:
        _comm = connect()
    return _comm


def is_initialized() -> bool:
    return _comm is not None


def get_rank() -> int:
    return everybody().rank


def get_world_size() -> int:
    return everybody().size


def get_local_rank() -> int:
    """Among the ranks of this host."""
    comm = everybody()
    return next(host.index(comm.rank) for host in comm.hosts if comm.rank in host)


def barrier() -> None:
    everybody().barrier()


def destroy_process_group() -> None:
    """Leaves the others; `init_distributed` joins again."""
    global _comm
    if _comm is not None:
        _comm.close()
    _comm = None
