"""The ranks' side of the `ranks` fixture (conftest.py): a server with all modules loaded forks one process a rank.

A forked rank starts in milliseconds; from then on it is a process like any other, with a `main` that ends, handlers
that run at exit, and a status. It runs a function of a test module, tells the test what happens as lines of JSON on a
socket, and hears words from the test on the same socket.

    python rank_process.py DESCRIPTOR      serves the orders that come through that socket, until it ends
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import json
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import conftest  # noqa: F401 - what the test modules import too, so that no rank needs to
import numpy as np

import collectives as cc

PATIENCE_S = 5.0  # for a thread that has been joined to be gone
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Rank:
    """What a rank's function gets: its place in the job, ways to join it, and ways to talk with the test."""

    def __init__(self, order: dict[str, Any], wire: socket.socket) -> None:
        self.rank: int = order["rank"]
        self.size: int = order["size"]
        self.leaves_open = False  # True: the process ends without closing its communicators
        self._store: str = order["store"]
        self._options: dict[str, Any] = order["options"]
        self._wire = wire
        self._words = wire.makefile("r", encoding="utf-8")
        self._open: list[cc.Communicator] = []

    def connect(self, **options: Any) -> cc.Communicator:
        """Joins the job, with the options of the test and these."""
        comm = cc.connect(**{"store": self._store, "rank": self.rank, "size": self.size, **self._options, **options})
        self._open.append(comm)
        return comm

    def say(self, event: str, **facts: Any) -> None:
        """Tells the test."""
        line = json.dumps({"event": event, "rank": self.rank, "at": time.monotonic(), **facts})
        self._wire.sendall(line.encode() + b"\n")

    def wait_for(self, word: str) -> None:
        """Returns once the test has said `word`."""
        heard = self._words.readline().strip()
        assert heard == word, f"rank {self.rank} waits for {word!r} and hears {heard!r}"

    def attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Makes a call and tells how it ended, as the event `returned` or `raised`. True if it returned."""
        began = time.monotonic()
        try:
            result = call(*args, **options)
        except BaseException as error:
            took_s = time.monotonic() - began
            kinds = [kind.__name__ for kind in type(error).__mro__]
            self.say("raised", took_s=took_s, kinds=kinds, text=str(error), cause=type(error.__cause__).__name__)
            return False
        first = result.reshape(-1)[:1].tolist() if isinstance(result, np.ndarray) else None
        self.say("returned", took_s=time.monotonic() - began, first=first)
        return True

    def until_it_fails(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Says `calling`, makes the call over and over, and tells what ended that as `raised`."""

        def forever() -> None:
            self.say("calling")
            while True:
                call(*args, **options)

        self.attempt(forever)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


def possessions() -> dict[str, Any]:
    """What a process holds that it may forget to give back."""
    gc.collect()
    descriptors: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            descriptors.append(re.sub(r"\d+", "", os.readlink(f"/proc/self/fd/{fd}")))
    maps = Path("/proc/self/maps").read_text()
    return {
        "threads": sorted(_thread_name(task) for task in os.listdir("/proc/self/task")),
        "descriptors": sorted(descriptors),
        "mapped": sum("treering" in line for line in maps.splitlines()),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
    }


def _thread_name(task: str) -> str:
    try:
        return Path(f"/proc/self/task/{task}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "one that has just ended"


def live(order: dict[str, Any], wire: socket.socket) -> None:
    """The life of one rank."""
    os.environ["XDG_CACHE_HOME"] = order["cache"]
    me = Rank(order, wire)
    first = threading.Thread(target=gc.collect)  # a sanitizer's own thread comes with the first of ours
    first.start()
    first.join()
    while Path(f"/proc/self/task/{first.native_id}").exists():  # the system is a little later than Python
        time.sleep(0)
    before = possessions()
    try:
        getattr(load(order["module"]), order["body"])(me, *order["args"])
    except BaseException:
        me.say("crashed", text=traceback.format_exc())
        raise
    if me.leaves_open:
        return
    me.close()
    deadline = time.monotonic() + PATIENCE_S
    while (after := possessions()) != before and time.monotonic() < deadline:
        time.sleep(0.001)
    me.say("ended", left={name: after[name] for name in after if after[name] != before[name]}, before=before)


@functools.cache
def load(path: str) -> ModuleType:
    """A module of tests, for the functions in it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(control: socket.socket) -> tuple[dict[str, Any], socket.socket] | None:
    """Forks a rank for each order. Returns the order in the rank, and None in the server once the test session ends."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                text, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
                if not text:
                    return None
                if not fds:
                    os.waitpid(json.loads(text)["reap"], 0)
                    continue
                load(json.loads(text)["module"])  # here, so that its ranks find it done
                gc.freeze()  # nor need they look through all of it for garbage, which takes a second where torch is
                pid = os.fork()
                if pid == 0:
                    control.close()
                    for other in selector.get_map().values():
                        if other.data is not None:
                            os.close(other.fd)
                    selector.close()
                    return json.loads(text), socket.socket(fileno=fds[0])
                os.close(fds[0])
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                control.send(json.dumps({"started": pid}).encode())
            else:
                _, status = os.waitpid(key.data, 0)
                selector.unregister(key.fd)
                os.close(key.fd)
                control.send(json.dumps({"ended": key.data, "code": os.waitstatus_to_exitcode(status)}).encode())


def main() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a rank leaves behind becomes the server's child, and is seen
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the test session is the session's business
    order = serve(socket.socket(fileno=int(sys.argv[1])))
    if order is None:
        return
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order[0]["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    live(*order)


if __name__ == "__main__":
    main()
