"""How the ranks of each transport come together for the kit: under the name that it gives, any number of times."""

from __future__ import annotations

import threading

from collectives.plan import COLLECTIVES
from transports.base import Transport
from transports.endpoint import Endpoint
from transports.engine.transport import EngineTransport
from transports.failures import Names
from transports.inproc import connect_threads
from transports.stores import FileStore

__all__ = ["Threads", "connect_engine", "names"]


def names() -> Names:
    """Words for the numbers of the kit's calls."""
    return Names(tuple(COLLECTIVES), ("ring", "two_tree", "barrier", "native"))


class Threads:
    """`connect` for ranks that are threads: the first to come under a name makes the transports of all."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._made: dict[str, list[Transport]] = {}

    def __call__(self, name: str, rank: int) -> Transport:
        with self._lock:
            if name not in self._made:
                self._made[name] = [*connect_threads(self._size, names())]
            return self._made[name][rank]


class _Joined(EngineTransport):
    """With the endpoint that it was joined by, which `connect` closes elsewhere."""

    endpoint: Endpoint

    def close(self) -> None:
        super().close()
        self.endpoint.close()

    def forked(self) -> None:
        self.endpoint.drop_after_fork()
        super().forked()


def connect_engine(directory: str, name: str, rank: int, size: int, transport: str, ring_bytes: int) -> Transport:
    """The engine, on ranks that meet in a directory."""
    endpoint = Endpoint(
        rank, size, FileStore(directory, name), job=name, secret=None, transport=transport, join_timeout_s=60.0
    )
    joined = _Joined(endpoint, range(size), rank, names(), transport=transport, ring_bytes=ring_bytes)
    joined.endpoint = endpoint
    return joined
