"""Bring the ranks of a bench command together: as processes, as threads, or as the one rank that a launcher started."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import local

if TYPE_CHECKING:
    from collectives import Communicator

Body = Callable[["Communicator"], bool]


def start(argv: Sequence[str], body: Body, *, ranks: int | None, transport: str, timeout_s: float) -> int:
    """Run `body(comm)` on every rank; exit status 0, or 1 when one of them says False or fails.

    With `ranks`, the command line `argv` (all after `bench`) is started as so many processes, or with the transport
    "inproc" the body as so many threads. Without, this process is one rank.
    """
    if transport == "inproc":
        return _run_threads(ranks or 1, body)
    if ranks is not None:
        return local.run_bench(ranks, without_ranks(argv))
    return _run_rank(body, transport, timeout_s)


def without_ranks(argv: Sequence[str]) -> list[str]:
    """The command line of a rank: the same, but that it is started already."""
    left: list[str] = []
    skip = False
    for word in argv:
        if skip or word.startswith("--ranks="):
            skip = False
        elif word == "--ranks":
            skip = True
        else:
            left.append(word)
    return left


def _run_rank(body: Body, transport: str, timeout_s: float) -> int:
    import collectives as cc  # after the command line made sense: this loads numpy and the engine

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # so that what was started is ended on the way out

    signal.signal(signal.SIGTERM, leave)
    rank: int | None = None
    try:
        with cc.connect(transport=transport, timeout_s=timeout_s) as comm:
            rank = comm.rank
            return 0 if body(comm) else 1
    except Exception as error:
        _report(error, rank)
        return 1


def _run_threads(ranks: int, body: Body) -> int:
    import collectives as cc

    comms = cc.connect_threads(ranks)
    right = [False] * ranks

    def run(rank: int) -> None:
        try:
            with comms[rank]:
                right[rank] = body(comms[rank])
        except Exception as error:
            _report(error, rank)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if all(right) else 1


def _report(error: Exception, rank: int | None) -> None:
    where = "" if rank is None else f"rank {rank}: "
    with contextlib.suppress(OSError):  # nobody may be reading any more
        print(f"treering: {where}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
