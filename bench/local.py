"""Start ranks as processes of this machine, with a directory to meet in, and end them together.

A rank that fails ends the others, after a moment in which they may say what they saw of it; Ctrl-C, SIGTERM
or the death of this process end them too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence

GRACE_S = 5.0  # for the survivors' own error, then SIGTERM
KILL_S = 12.0  # from SIGTERM to SIGKILL: rank 0 may have three contenders to end
PR_SET_PDEATHSIG = 1


def run_bench(size: int, argv: Sequence[str]) -> int:
    """Run `python -m bench ARGV` as `size` ranks; exit status 0, or that of the rank that failed first."""

    def environment(rank: int, directory: str) -> dict[str, str]:
        return {
            "TREERING_STORE": f"file://{directory}",
            "TREERING_RANK": str(rank),
            "TREERING_SIZE": str(size),
        }

    return run_ranks(size, lambda rank: [sys.executable, "-m", "bench", *argv], environment)


def run_ranks(
    size: int, command: Callable[[int], Sequence[str]], environment: Callable[[int, str], Mapping[str, str]]
) -> int:
    """Run `command(rank)` as each of `size` ranks; exit status 0, or that of the rank that failed first.

    `environment(rank, directory)` is added to this process's; the directory is the job's own, and gone afterwards.
    """
    libc = ctypes.CDLL(None)  # looked up here: little is safe between fork and exec

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, _exit_on_signal)
    ranks: list[subprocess.Popen[bytes]] = []
    with _own_directory("treering-store-") as directory:
        try:
            for rank in range(size):
                ranks.append(
                    subprocess.Popen(
                        command(rank),
                        stdin=subprocess.DEVNULL,
                        env={**os.environ, **environment(rank, directory)},
                        preexec_fn=die_with_parent,
                    )
                )
            return _wait(ranks)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            _end(ranks)
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _own_directory(prefix: str) -> Generator[str]:
    """A directory that ends with the block or with this process, however that dies: what removes it sees a pipe end."""
    directory = tempfile.mkdtemp(prefix=prefix)
    command = ["sh", "-c", 'read never; rm -rf "$0"', directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True):
        yield directory


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Block until all have ended well, or `GRACE_S` after the first that has not."""
    status, deadline = 0, None
    poll = select.poll()
    waiting = {os.pidfd_open(process.pid): rank for rank, process in enumerate(ranks)}
    try:
        for pidfd in waiting:
            poll.register(pidfd, select.POLLIN)
        open_fds = set(waiting)
        while open_fds:
            left_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
            if left_ms is not None and left_ms <= 0:
                break
            for pidfd, _ in poll.poll(left_ms):
                poll.unregister(pidfd)
                open_fds.discard(pidfd)
                returned = ranks[waiting[pidfd]].wait()
                if returned < 0:
                    name = signal.Signals(-returned).name
                    print(f"treering: rank {waiting[pidfd]} was ended by {name}", file=sys.stderr, flush=True)
                if returned and not status:
                    status = returned if returned > 0 else 128 - returned
                    deadline = time.monotonic() + GRACE_S
    finally:
        for pidfd in waiting:
            os.close(pidfd)
    return status


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, patience_s in ((signal.SIGTERM, KILL_S), (signal.SIGKILL, None)):
        left = [process for process in ranks if process.poll() is None]
        for process in left:
            process.send_signal(number)
        for process in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)


def _exit_on_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
