"""Ways to get a communicator: `connect` for processes, `connect_threads` for threads of one process."""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from collectives import cache
from collectives.communicator import Communicator
from collectives.exchange import broadcast_json
from collectives.levels import Groups, checked, every_host
from collectives.plan import COLLECTIVES, algorithms
from collectives.rules import Rule
from topology import Cluster
from transports import inproc, launchers
from transports.base import Transport
from transports.engine.transport import EngineTransport
from transports.failures import Names

__all__ = ["connect", "connect_threads"]

_ENGINE = ("auto", "shm", "tcp")
_OURS = {  # imported, with what they need, when they are asked for
    "mpi": "transports.mpi",
    "torch": "transports.torch_distributed",
    "cupy": "transports.cupy_nccl",
}
_ENTRY_POINTS = "treering.transports"
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def connect_threads(
    size: int, *, hosts: Groups | None = None, reproducible: bool = False, timeout_s: float = 60.0
) -> list[Communicator]:
    """One communicator for each of `size` ranks of this process; every rank is used from a thread of its own.

    For tests and for learning: the executor is plain Python. `hosts` pretends that the ranks are on several hosts,
    or on hosts in groups: (((0, 1), (2, 3)), ((4, 5), (6, 7))) is two racks of two hosts. `reproducible` is as for
    `connect`.
    """
    if size < 1:
        raise ValueError(f"size={size}: there must be at least one rank")
    groups = (tuple(range(size)),) if hosts is None else checked(hosts, size)
    flat = tuple(every_host(groups))
    names = _names()
    nested = None if groups == flat else groups
    return [
        Communicator(
            transport, names, groups=nested, timeout_s=timeout_s, reproducible=reproducible, found="connect_threads"
        )
        for transport in inproc.connect_threads(size, names, flat)
    ]


def connect(
    *,
    store: Any = None,
    rank: int | None = None,
    size: int | None = None,
    launch: launchers.Launch | None = None,
    secret: str | bytes | None = None,
    address: str | Sequence[str] | None = None,
    transport: str = "auto",
    lanes: int = 1,
    ring_bytes: int = 256 << 10,
    reproducible: bool = False,
    cluster: Cluster | str | Path | None = None,
    rules: str | Path | Sequence[Rule | dict[str, Any]] | None = None,
    timeout_s: float = 60.0,
    join_timeout_s: float = 60.0,
) -> Communicator:
    """Joins the other processes of this job and returns the communicator of all of them.

    How the job was started is found out (torchrun, mpirun or mpiexec of Open MPI or MPICH, Slurm's srun, a file store
    named by TREERING_STORE, or one process; launchers.py has the order), or said by `store` (a directory that all ranks
    see, or a store object), `rank` and `size`, or by `launch` for all of them. `repr` of the result tells what was
    found.

    secret           at least 16 characters, equal on all ranks; needed when ranks are on several hosts. Without it
                     this rank listens on this host only. TREERING_SECRET and TREERING_SECRET_FILE give it too.
    address          the address or network interface to listen on (TREERING_ADDRESS), or several, in a sequence or
                     with commas: "eth1,eth2"; lanes are spread over them
    transport        "auto": shared memory within a host, TCP between hosts; "shm", "tcp": that one only. "mpi": MPI
                     through mpi4py; "torch": torch.distributed (NCCL, Gloo); "cupy": NCCL through CuPy. Any other name
                     is that of a transport which a package has registered as an entry point (transports/README.md).
                     secret, address, lanes and ring_bytes are for the first three
    lanes            TCP connections and rings per peer over which a large message is spread; at least one for each
                     address
    ring_bytes       memory of one direction of a shared-memory lane, a power of two, at least 4096
    reproducible     calls that reduce give the same bits whatever the size of the array, algorithm, transport,
                     placement and lanes, unless they say reproducible=False (collectives/calls.py)
    cluster, rules   what "auto" goes by, as for `Communicator.use`; those of rank 0 count on every rank. Beside
                     them it goes by what earlier jobs on the same hosts have tuned, and without a cluster by what they
                     have measured
    timeout_s        how long nothing may move in a call before DeadlineExceeded
    join_timeout_s   how long to wait for the other ranks here

    Raises ValueError for arguments or variables that make no sense, RendezvousError naming the ranks that are missing,
    double or disagree, TransportError when this machine refuses a resource. After an error nothing is left.
    """
    if launch is None:
        launch = launchers.detect(store=store, rank=rank, size=size)
    elif any(given is not None for given in (store, rank, size)):
        raise ValueError("launch says it all: store, rank and size are not to be given beside it")
    if not 1 <= lanes <= 8:
        raise ValueError(f"lanes={lanes} must be 1 to 8")
    if ring_bytes < 4096 or ring_bytes & (ring_bytes - 1):
        raise ValueError(f"ring_bytes={ring_bytes} must be a power of two, at least 4096")
    if not timeout_s > 0 or not join_timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s} and join_timeout_s={join_timeout_s} must be more than 0 seconds")
    make, names = None if transport in _ENGINE else _factory(transport), _names()
    knows = launch.rank == 0 and (cluster is not None or rules is not None or cache.anything())
    common: dict[str, Any] = {"timeout_s": timeout_s, "reproducible": reproducible, "found": launch.found}
    if make is not None:
        communicator = Communicator(make(launch, names=names, timeout_s=join_timeout_s), names, **common)
        knows = broadcast_json(communicator, knows) if communicator.size > 1 else knows
    else:
        endpoint = launchers.join(
            launch, secret=secret, transport=transport, address=address, timeout_s=join_timeout_s, knows=knows
        )
        try:
            engine = EngineTransport(
                endpoint, range(launch.size), launch.rank, names, transport=transport, ring_bytes=ring_bytes
            )
        except BaseException:
            endpoint.close()
            raise
        communicator = Communicator(
            engine, names, lanes=max(lanes, endpoint.rails), on_close=endpoint.close,
            on_fork=endpoint.drop_after_fork, **common,
        )  # fmt: skip
        knows = endpoint.cards[0]["knows"]
    _open.add(communicator)
    if knows:
        try:
            communicator.recall()
            communicator.use(cluster=cluster, rules=rules)
        except BaseException:
            communicator.close()
            raise
    return communicator


def _factory(transport: str) -> Callable[..., Transport]:
    """What makes a transport of that name: `factory(launch, names=..., timeout_s=...)`; ours, or an entry point."""
    if transport in _OURS:
        return importlib.import_module(_OURS[transport]).connect
    found = [entry for entry in entry_points(group=_ENTRY_POINTS) if entry.name == transport]
    if not found:
        known = [*_ENGINE, *_OURS, *sorted({entry.name for entry in entry_points(group=_ENTRY_POINTS)})]
        raise ValueError(f"unknown transport {transport!r}; there are: {', '.join(known)}")
    return found[0].load()


def _names() -> Names:
    """Words for everything a peer may have called, also what this rank never calls."""
    return Names(tuple(COLLECTIVES), (name for collective in COLLECTIVES for name in algorithms(collective)))


def _after_fork() -> None:
    for communicator in list(_open):
        communicator.forked()


os.register_at_fork(after_in_child=_after_fork)
