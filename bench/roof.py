"""What bounds the bus bandwidth here, measured in the same run: copying memory on one host, the link between several.

busbw is made to be compared with what the hardware does (nccl-tests, doc/PERFORMANCE.md). On one host that is a copy:
every rank copies as many bytes within its own memory, all at the same time. Between hosts it is a host's link, which
its ranks share.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .arrays import memory
from .cases import COLLECTIVES
from .contenders.worker import time_calls

if TYPE_CHECKING:
    from collectives import Communicator

COPY_S = 0.02  # per size
LINK_BYTES, LINK_S = 1 << 20, 0.4


class Roof(NamedTuple):
    name: str  # "memory copy" or "link"
    what: str  # how it was measured, a sentence
    points: tuple[tuple[int, float], ...]  # (size in bytes, busbw in GB/s)


def measure(comm: Communicator, collective: str, sizes_bytes: Iterable[int]) -> Roof:
    """The roof at each of the sizes. All ranks call it, and get the same."""
    sizes = sorted({size for size in sizes_bytes if size > 0})
    if len(comm.hosts) == 1:
        what = "every rank copies as many bytes within its own memory, all at the same time"
        return Roof("memory copy", what, tuple((size, _copy_gb_per_s(comm, size)) for size in sizes))
    link_gb_per_s = _link_gb_per_s(comm)
    busbw = link_gb_per_s * busbw_per_link(collective, comm.size, len(comm.hosts))
    what = f"one rank of the first host sends to one of the second at {link_gb_per_s:.4g} GB/s; a host's ranks share it"
    return Roof("link", what, tuple((size, busbw) for size in sizes))


def busbw_per_link(collective: str, size: int, hosts: int) -> float:
    """The highest busbw over a host's link rate, where `hosts` hosts have equally many of the `size` ranks.

    What has to cross a host's link is what a collective among the hosts moves, so algbw is bounded by the link rate
    over the factor for `hosts`; busbw is algbw times the factor for `size`.
    """
    factor = COLLECTIVES[collective].bus_factor
    blocks = size // hosts if collective == "all_to_all" else 1  # nothing that crosses is shared by a host's ranks
    return factor(size) / factor(hosts) / blocks


def _copy_gb_per_s(comm: Communicator, size_bytes: int) -> float:
    source, target = memory(size_bytes, "uint8"), memory(size_bytes, "uint8")
    started = time.perf_counter()
    np.copyto(target, source)
    took_s = time.perf_counter() - started
    iterations = int(min(max(COPY_S / max(took_s, 1e-7), 3), 2000))
    timing = time_calls(lambda: np.copyto(target, source), comm.barrier, 3, iterations)
    return size_bytes / (_mean(comm, timing.median_us) * 1e3)


def _link_gb_per_s(comm: Communicator) -> float:
    """Payload over time of messages from a rank of the first host to one of the second, for some `LINK_S`."""
    source, target = comm.hosts[0][0], comm.hosts[1][0]
    data, answer = memory(LINK_BYTES, "uint8"), memory(1, "uint8")
    rate = 0.0
    comm.barrier()
    count = 2  # enough to fill what shapes the link
    for _ in range(2):
        started = time.perf_counter()
        if comm.rank == source:
            for _ in range(count):
                comm.send(data, target)
            comm.recv(answer, target)
        elif comm.rank == target:
            for _ in range(count):
                comm.recv(data, source)
            comm.send(answer, source)
        took_s = time.perf_counter() - started if comm.rank == source else 0.0
        took_s = float(np.asarray(comm.broadcast(np.array([took_s]), root=source))[0])
        rate = count * LINK_BYTES / took_s / 1e9
        count = int(min(max(LINK_S * rate * 1e9 / LINK_BYTES, 2), 4000))
    return rate


def _mean(comm: Communicator, value: float) -> float:
    return float(np.asarray(comm.all_reduce(np.array([value], np.float64)))[0]) / comm.size
