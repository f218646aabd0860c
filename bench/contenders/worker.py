"""One rank of a contender: sleeps on a socket, measures when told, answers, sleeps again.

Run as `python worker.py KIND SOCKET SETTINGS`, where KIND names the module beside this file that knows the
contender and SETTINGS is the JSON of `Settings`. Messages are JSON lines: first the worker's `{"rank": r}`,
then a `Command` at a time, answered by a `Timing` or `{"error"}`. End of file means stop, so a group never
outlives whoever started it.

Ours are timed by the same `follow` and `time_calls`, which is what makes the figures comparable.
"""

from __future__ import annotations

import importlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

Call = Callable[[], object]


class Settings(NamedTuple):
    """What is measured: the same for every rank, and for every size of one run."""

    collective: str
    dtype: str  # the library's name: float32, int8, ...
    op: str
    root: int
    rank: int  # -1 where the contender's own launcher numbers its ranks
    size: int
    store: str  # a path in a directory of its own, for contenders that meet through a file


class Command(NamedTuple):
    """What to measure next."""

    elems: int  # in the whole array, as bench/cases.py has it
    warmup: int
    iterations: int
    algorithm: str  # of ours; the contenders choose theirs themselves
    reproducible: bool = False  # ours


class Timing(NamedTuple):
    """Microseconds per call on one rank, over the iterations of one loop."""

    median_us: float
    mean_us: float


class Peer(Protocol):
    """What a contender's module offers: `join(settings) -> Peer`."""

    rank: int

    def barrier(self) -> None: ...

    def operation(self, elems: int) -> Call:
        """A call without arguments that runs the collective once, in place, on `elems` elements in all."""
        ...

    def close(self) -> None: ...


def time_calls(call: Call, barrier: Call, warmup: int, iterations: int) -> Timing:
    """Call back to back and read the clock once after each call, as a training loop would see it."""
    for _ in range(warmup):
        call()
    barrier()
    now = time.perf_counter_ns
    stamps = [0] * (iterations + 1)
    stamps[0] = now()
    for i in range(1, iterations + 1):
        call()
        stamps[i] = now()
    took_ns = [stamps[i + 1] - stamps[i] for i in range(iterations)]
    return Timing(statistics.median(took_ns) / 1e3, (stamps[-1] - stamps[0]) / iterations / 1e3)


def follow(path: str, rank: int, measure: Callable[[Command], Timing]) -> None:
    """Obey commands from the socket at `path` until its end of file."""
    with socket.socket(socket.AF_UNIX) as conductor:
        conductor.connect(path)
        with conductor.makefile("rw", encoding="utf-8") as lines:

            def say(message: dict[str, Any]) -> None:
                lines.write(json.dumps(message) + "\n")
                lines.flush()

            say({"rank": rank})
            for line in lines:
                try:
                    timing = measure(Command(**json.loads(line)))
                except Exception as error:
                    say({"error": f"rank {rank}: {type(error).__name__}: {error}"})
                    raise
                say(timing._asdict())


def main() -> None:
    kind, path, settings_json = sys.argv[1:]
    peer: Peer = importlib.import_module(kind).join(Settings(**json.loads(settings_json)))
    calls: dict[int, Call] = {}

    def measure(command: Command) -> Timing:
        if command.elems not in calls:
            calls.clear()  # buffers of one size at a time
            calls[command.elems] = peer.operation(command.elems)
        return time_calls(calls[command.elems], peer.barrier, command.warmup, command.iterations)

    try:
        follow(path, peer.rank, measure)
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # whoever asked is gone, and so may be the peers
    peer.close()


if __name__ == "__main__":
    main()
