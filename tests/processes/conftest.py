"""One fixture, `ranks`: starts the ranks of a job as processes, and sees to it that nothing of them is left."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0  # for what is expected to happen at once

Event = dict[str, Any]


class Server:
    """The process that forks the ranks (rank_process.py), and what became of them."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("rank_process.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1"},
            )
        self._codes: dict[int, int] = {}

    def start(self, order: dict[str, Any], wire: socket.socket) -> int:
        """Starts a rank; its process number."""
        socket.send_fds(self._control, [json.dumps(order).encode()], [wire.fileno()])
        while "started" not in (news := self._news(time.monotonic() + PATIENCE_S)):
            pass
        return news["started"]

    def code(self, pid: int, deadline: float) -> int:
        """How the process ended: its exit status, or minus the signal that it died of."""
        while pid not in self._codes:
            self._news(deadline)
        return self._codes[pid]

    def children(self) -> set[str]:
        """Ranks that run, and what ranks have left behind."""
        pid = self._process.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def reap(self, pid: int) -> None:
        """Lets the server bury what a rank has left behind, once that has ended."""
        self._control.send(json.dumps({"reap": pid}).encode())

    def close(self) -> None:
        self._control.close()
        assert self._process.wait(PATIENCE_S) == 0

    def _news(self, deadline: float) -> dict[str, int]:
        self._control.settimeout(max(deadline - time.monotonic(), 0.001))
        text = self._control.recv(1 << 12)
        assert text, "the server of the ranks is gone"
        news = json.loads(text)
        if "ended" in news:
            self._codes[news["ended"]] = news["code"]
        return news


class Job:
    """Ranks that run. All waiting has a deadline; an event that is not the one waited for fails the test."""

    def __init__(self, server: Server, size: int, body: Callable[..., None], args: tuple[Any, ...], order: Any) -> None:
        self.size, self._server, self._directory = size, server, Path(order["store"]).parent
        self._pids: list[int] = []
        self._wires: list[socket.socket] = []
        self._unread = [b""] * size
        self._expected = [0] * size  # exit statuses
        self._over: set[int] = set()
        for rank in range(size):
            mine, theirs = socket.socketpair()
            self._wires.append(mine)
            with theirs:
                more = {
                    "rank": rank, "size": size, "args": args, "log": str(self._directory / f"rank-{rank}.log"),
                    "module": inspect.getfile(body), "body": body.__name__, "cache": os.environ["XDG_CACHE_HOME"],
                }  # fmt: skip
                self._pids.append(server.start({**order, **more}, theirs))

    def pid(self, rank: int) -> int:
        return self._pids[rank]

    def hear(self, event: str, rank: int) -> Event:
        """The next event of a rank, which must be this one."""
        return self.hear_any(event, rank=rank)

    def hear_any(self, *events: str, rank: int) -> Event:
        """The next event of a rank, which must be one of these."""
        event = " or ".join(events)
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._unread[rank]:
            wire = self._wires[rank]
            wire.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = wire.recv(1 << 16)
            except TimeoutError:
                raise AssertionError(f"rank {rank} has not told {event!r} after {PATIENCE_S} s") from None
            except ConnectionResetError:
                data = b""
            if not data:
                code = self._server.code(self._pids[rank], deadline)
                raise AssertionError(f"rank {rank} ended with status {code} before it told {event!r}\n{self.log(rank)}")
            self._unread[rank] += data
        line, _, self._unread[rank] = self._unread[rank].partition(b"\n")
        told = json.loads(line)
        assert told["event"] in events, f"rank {rank} was to tell {event!r} but told {told}"
        return told

    def hear_all(self, event: str, but: tuple[int, ...] = ()) -> list[Event]:
        """The next event of every rank but some, which must be this one."""
        return [self.hear(event, rank) for rank in range(self.size) if rank not in but]

    def tell(self, word: str, *ranks: int) -> None:
        """Says a word to these ranks (to all when none is named)."""
        for rank in ranks or range(self.size):
            self._wires[rank].sendall(word.encode() + b"\n")

    def signal(self, number: signal.Signals, *ranks: int) -> float:
        """Sends a signal to these ranks; when that was."""
        for rank in ranks:
            if number == signal.SIGKILL:
                self._expected[rank] = -number
            os.kill(self._pids[rank], number)
        return time.monotonic()

    def kill(self, *ranks: int) -> float:
        """Kills ranks on purpose; when that was."""
        return self.signal(signal.SIGKILL, *ranks)

    def hear_of_death(self, rank: int) -> float:
        """Returns once a rank that was killed has ended, with its descriptors; when that was."""
        self._server.code(self._pids[rank], time.monotonic() + PATIENCE_S)
        return time.monotonic()

    def wait_until_it_sleeps(self, rank: int) -> None:
        """Returns once a rank that was told to make a call waits in it: its threads have stood still for a while."""
        ran, since = -1.0, time.monotonic()

        def sleeps() -> bool:
            nonlocal ran, since
            # The rank looks around every 20 ms when it waits, which takes next to nothing.
            now = _seconds_run(self._pids[rank])
            if now - ran > 0.002:
                ran, since = now, time.monotonic()
            return time.monotonic() - since > 0.1

        wait_until(sleeps)

    def stop(self, *ranks: int) -> float:
        """Stops ranks, and returns when they stand."""
        at = self.signal(signal.SIGSTOP, *ranks)
        for rank in ranks:
            for task in Path(f"/proc/{self._pids[rank]}/task").iterdir():
                wait_until(lambda stat=task / "stat": stat.read_text().rpartition(")")[2].split()[0] == "T")
        return at

    def go_on(self, *ranks: int) -> float:
        """Lets stopped ranks go on; when that was."""
        return self.signal(signal.SIGCONT, *ranks)

    def ends(self, rank: int, code: int = 0) -> None:
        """Waits for the end of a rank that leaves its communicators open: its exit status must be `code`."""
        self._expected[rank] = code
        self._over.add(rank)
        assert self._server.code(self._pids[rank], time.monotonic() + PATIENCE_S) == code, self.log(rank)

    def disown(self, pid: int) -> None:
        """Waits for the end of a process that a rank has left behind on purpose."""
        wait_until(lambda: not _runs(pid))
        self._server.reap(pid)

    def log(self, rank: int) -> str:
        """What a rank has written to its standard output and error."""
        path = self._directory / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def finish(self) -> None:
        """Waits for all to end; every one that was not killed must have given everything back."""
        for rank in range(self.size):
            if rank not in self._over and self._expected[rank] == 0:
                ended = self.hear("ended", rank)
                assert ended["left"] == {}, f"rank {rank} leaves {ended['left']}; it began with {ended['before']}"
        deadline = time.monotonic() + PATIENCE_S
        codes = [self._server.code(pid, deadline) for pid in self._pids]
        assert codes == self._expected, "\n".join(self.log(rank) for rank in range(self.size))

    def abandon(self) -> None:
        """Ends every rank, whatever it is doing."""
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        for pid in self._pids:
            self._server.code(pid, deadline)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


def _seconds_run(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9


def _left_in_shared_memory(before: set[str]) -> set[str]:
    """What is new in /dev/shm and in nobody's use: other programs of this machine may work there too."""
    new = set(os.listdir("/dev/shm")) - before
    if new:
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                new -= set(re.findall(r"/dev/shm/([^\s/]+)", maps.read_text()))
    return new


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as the condition holds; fails the test when it does not come to that."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{inspect.getsource(condition).strip()} does not come true"
        time.sleep(0.001)


@pytest.fixture(scope="session")
def _rank_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def ranks(_rank_server: Server, tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Job]]:
    """`with ranks(4, body, *args, **options) as job:` runs `body(me, *args)` on 4 ranks; `options` are for `connect`.

    `body` is a function of the test's module, `me` a Rank (rank_process.py). At the end of the block every rank must
    have ended by itself, unless it was killed on purpose, without a thread, descriptor or mapping more than it began
    with; and the ranks together must have left no process, and nothing in /dev/shm.
    """

    @contextlib.contextmanager
    def start(size: int, body: Callable[..., None], *args: Any, **options: Any) -> Iterator[Job]:
        shared_memory, children = set(os.listdir("/dev/shm")), _rank_server.children()
        job = Job(_rank_server, size, body, args, {"store": str(tmp_path / "store"), "options": options})
        try:
            yield job
            job.finish()
        except BaseException:
            job.abandon()
            raise
        finally:
            job.close()
        wait_until(lambda: not _left_in_shared_memory(shared_memory))
        wait_until(lambda: _rank_server.children() <= children)

    return start
