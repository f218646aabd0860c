"""What the ranks of the tests do: `python -m tests.cluster.programs NAME`, told by the environment who they are.

They write one line for each thing they have to tell. Nothing waits longer than the deadlines of the library.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import numpy as np

import collectives as cc
from tests.references import Array, expected, values

DEADLINE_S = 20.0
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter", "all_to_all")
ROOTED = ("broadcast", "reduce", "gather", "scatter")


def where_am_i() -> None:
    """Tells rank, host, and the host of every rank as the communicator has found them."""
    with cc.connect(timeout_s=DEADLINE_S) as comm:
        ranks_of_host = [list(host) for host in comm.hosts]
        print(comm.rank, socket.gethostname(), sorted(os.listdir("/sys/class/net")), ranks_of_host, flush=True)


def every_collective() -> None:
    """Calls each on arrays of several lengths, from every root, and tells what went wrong, or "right"."""
    wrong: list[str] = []
    with cc.connect(timeout_s=DEADLINE_S) as comm:
        for collective in COLLECTIVES:
            for rows in (1, 1000, 30_000):
                for root in range(comm.size) if collective in ROOTED else (0,):
                    if not _is_right(comm, collective, rows, root):
                        wrong.append(f"{collective} of {rows} from {root}")
        comm.barrier()
    print(wrong or "right", flush=True)


def _is_right(comm: cc.Communicator, collective: str, rows: int, root: int) -> bool:
    blocks = rows if collective in ("all_gather", "gather", "all_reduce", "broadcast", "reduce") else rows * comm.size
    inputs: list[Array] = [values("int64", (blocks,), rows, root, rank) for rank in range(comm.size)]
    parts = [[rows] * comm.size] * comm.size
    promised = expected(collective, inputs, comm.rank, root=root, rows=parts)
    options: dict[str, Any] = {"root": root} if collective in ROOTED else {}
    if collective == "scatter":
        options["out"] = np.empty_like(inputs[0][:rows])
    result = getattr(comm, collective)(inputs[comm.rank], **options)
    return result is None if promised is None else bool((result == promised).all())


def join() -> None:
    """Tells "joined", or the error with which that failed."""
    try:
        with cc.connect(timeout_s=DEADLINE_S) as comm:
            comm.barrier()
        print("joined", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)


def repeat_until_it_fails() -> None:
    """Tells "ready", then calls all_reduce again and again, and tells the error that ends it."""
    comm = cc.connect(timeout_s=DEADLINE_S)
    x = values("int64", (1000,), comm.rank)
    comm.barrier()
    print("ready", flush=True)
    try:
        while True:
            comm.all_reduce(x, out=x)
    except cc.CollectiveError as error:
        print(type(error).__name__, error, flush=True)


PROGRAMS = (where_am_i, every_collective, join, repeat_until_it_fails)

if __name__ == "__main__":
    {program.__name__: program for program in PROGRAMS}[sys.argv[1]]()
