"""The `treering` command: `treering bench COLLECTIVE ...`, which `python -m bench COLLECTIVE ...` is as well.

Exit status: 0, 1 when data was wrong or a rank failed, 2 for a command line that makes no sense, 130 after
Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Sequence

from . import local, options
from .emulate import command as emulate_command
from .options import Options

COMMANDS = ("bench",)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    named = bool(given) and given[0] in COMMANDS
    if named:
        given = given[1:]
    prog = "treering bench" if named else "python -m bench"
    try:
        if given and given[0] == "cluster":
            return emulate_command.main(given[1:], f"{prog} cluster")
        chosen = options.parse(given, prog)
        if chosen.transport == "inproc":
            return _run_threads(chosen, given)
        if chosen.ranks is not None:
            return local.run_bench(chosen.ranks, _without_ranks(given))
        return _run_rank(chosen, given)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _without_ranks(argv: Sequence[str]) -> list[str]:
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


def _run_rank(chosen: Options, argv: Sequence[str]) -> int:
    import collectives as cc  # after the command line made sense: this loads numpy and the engine

    from .session import Session

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # so that the contenders are ended on the way out

    signal.signal(signal.SIGTERM, leave)
    rank: int | None = None
    try:
        with cc.connect(transport=chosen.transport, timeout_s=chosen.timeout_s) as comm:
            rank = comm.rank
            return 0 if Session(comm, chosen, argv).run() else 1
    except Exception as error:
        _report(error, rank)
        return 1


def _run_threads(chosen: Options, argv: Sequence[str]) -> int:
    import collectives as cc

    from .session import Session

    comms = cc.connect_threads(chosen.ranks or 1)
    right = [False] * len(comms)

    def run(rank: int) -> None:
        try:
            with comms[rank]:
                right[rank] = Session(comms[rank], chosen, argv).run()
        except Exception as error:
            _report(error, rank)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(comms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if all(right) else 1


def _report(error: Exception, rank: int | None) -> None:
    where = "" if rank is None else f"rank {rank}: "
    with contextlib.suppress(OSError):  # nobody may be reading any more
        print(f"treering: {where}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
