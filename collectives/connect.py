"""Ways to get a communicator: `connect` for processes, `connect_threads` for threads of one process."""

from __future__ import annotations

import atexit
import os
import weakref

from collectives.communicator import Communicator
from collectives.plan import COLLECTIVES, Hosts
from transports import inproc
from transports.failures import Names

__all__ = ["connect", "connect_threads"]

_TRANSPORTS = ("auto", "shm", "tcp")
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def connect_threads(size: int, *, hosts: Hosts | None = None, timeout_s: float = 60.0) -> list[Communicator]:
    """One communicator for each of `size` ranks of this process; every rank is used from a thread of its own.

    For tests and for learning: the executor is plain Python. `hosts` pretends that the ranks are on several hosts.
    """
    if size < 1:
        raise ValueError(f"size={size}: there must be at least one rank")
    if hosts is not None and sorted(rank for host in hosts for rank in host) != list(range(size)):
        raise ValueError(f"hosts={hosts} must hold each rank of range({size}) once")
    names = Names(tuple(COLLECTIVES))
    return [
        Communicator(transport, names, timeout_s=timeout_s, found="connect_threads")
        for transport in inproc.connect_threads(size, names, hosts)
    ]


def connect() -> Communicator:
    raise NotImplementedError
