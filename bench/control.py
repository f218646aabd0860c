"""One conductor and its ranks: commands out, timings back, over a Unix socket in a directory of its own.

A rank that is not told anything blocks in a read, so it takes nothing from the group that is being measured.
The other end is `contenders.worker.follow`, in our own ranks and in the contenders' alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from .contenders.worker import Command, Timing

ANSWER_TIMEOUT_S = 600.0  # of one loop, whose length `compare.py` keeps near a second


class ContenderError(RuntimeError):
    """A contender could not be started, died, or failed; the message has what it said."""


class Conductor:
    """Owns the directory and the socket until `close`; not for use by several threads."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="treering-bench-")
        self.path = os.path.join(self.directory, "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._ranks: dict[int, tuple[socket.socket, Any]] = {}

    def wait_for(self, size: int, timeout_s: float, alive: Callable[[], None] = lambda: None) -> None:
        """Return when `size` ranks have come; `alive` is called every 0.1 s and raises if they never will."""
        deadline = time.monotonic() + timeout_s
        self._listener.settimeout(0.1)
        while len(self._ranks) < size:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                alive()
                if time.monotonic() > deadline:
                    raise ContenderError(f"{len(self._ranks)} of {size} ranks came within {timeout_s:g} s") from None
                continue
            connection.settimeout(ANSWER_TIMEOUT_S)
            lines = connection.makefile("rw", encoding="utf-8")
            self._ranks[json.loads(lines.readline())["rank"]] = (connection, lines)

    def measure(self, command: Command, own: Callable[[Command], Timing] | None = None) -> Timing:
        """Tell every rank, do the own part meanwhile, and return the mean over ranks of what they timed."""
        try:
            for _, lines in self._ranks.values():
                lines.write(json.dumps(command._asdict()) + "\n")
                lines.flush()
            timings = [own(command)] if own else []
            timings += [self._answer(rank, lines) for rank, (_, lines) in self._ranks.items()]
        except OSError as error:
            raise ContenderError(f"a rank went away while it was measured ({error})") from error
        return Timing(*(statistics.fmean(column) for column in zip(*timings, strict=True)))

    def _answer(self, rank: int, lines: Any) -> Timing:
        line = lines.readline()
        if not line:
            raise ContenderError(f"rank {rank} ended while it was measured")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return Timing(**answer)

    def close(self) -> None:
        """Every rank reads an end of file and stops. May be called again."""
        for connection, lines in self._ranks.values():
            with contextlib.suppress(OSError):  # what cannot be flushed has no reader any more
                lines.close()
            connection.close()
        self._ranks.clear()
        self._listener.close()
        shutil.rmtree(self.directory, ignore_errors=True)
