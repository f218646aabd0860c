"""Ranks come together, say who is missing or double, and let nobody else in."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from transports import cards as cards_module
from transports import listener as listener_module
from transports.endpoint import Endpoint
from transports.errors import (
    CollectiveError,
    DeadlineExceeded,
    PeerLostError,
    RendezvousError,
    WireError,
)
from transports.stores import FileStore

SECRET = b"0123456789abcdef0123456789abcdef"
PATIENCE_S = 30.0  # for what is expected to happen at once
spawn = multiprocessing.get_context("spawn")

Hello = tuple[int, dict[str, Any], socket.socket, list[int]]


def join(
    rank: int,
    size: int,
    path: Path,
    *,
    timeout_s: float = PATIENCE_S,
    secret: bytes | None = SECRET,
    **more: Any,
) -> Endpoint:
    return Endpoint(rank, size, FileStore(path), job="job", secret=secret, join_timeout_s=timeout_s, **more)


def outcomes(*calls: Callable[[], Any]) -> list[Any]:
    """Runs the calls at once, a thread for each, and returns what each returned or raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        _, late = wait(futures, PATIENCE_S)
        assert not late, f"{len(late)} of {len(calls)} did not come back"
    return [future.exception() or future.result() for future in futures]


@contextlib.contextmanager
def group(size: int, path: Path, **more: Any) -> Generator[list[Endpoint]]:
    found = outcomes(*(lambda rank=rank: join(rank, size, path, **more) for rank in range(size)))
    for one in found:
        if isinstance(one, BaseException):
            raise one
    try:
        yield found
    finally:
        for endpoint in found:
            endpoint.close()


class Door:
    """An `accept` that keeps what it gets."""

    def __init__(self) -> None:
        self.came: list[Hello] = []
        self._some = threading.Condition()

    def __call__(self, peer: int, hello: dict[str, Any], sock: socket.socket, fds: list[int]) -> None:
        with self._some:
            self.came.append((peer, hello, sock, fds))
            self._some.notify_all()

    def wait(self, count: int = 1) -> list[Hello]:
        with self._some:
            assert self._some.wait_for(lambda: len(self.came) >= count, PATIENCE_S)
            return self.came

    def close(self) -> None:
        for _, _, sock, fds in self.came:
            sock.close()
            for fd in fds:
                os.close(fd)


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test ends with the threads, descriptors and files it began with."""
    resource_tracker.ensure_running()  # multiprocessing's own, which stays
    gc.collect()
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def ask(sock: socket.socket, text: bytes) -> bytes:
    sock.settimeout(PATIENCE_S)
    sock.sendall(text)
    return sock.recv(100)


# --- coming together
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_all_ranks_get_all_cards(tmp_path: Path, size: int) -> None:
    with group(size, tmp_path) as endpoints:
        for rank, endpoint in enumerate(endpoints):
            assert [card["rank"] for card in endpoint.cards] == list(range(size))
            assert endpoint.cards == endpoints[0].cards
            assert endpoint.cards[rank]["pid"] == os.getpid()
            assert endpoint.hosts == (tuple(range(size)),)
            assert all(endpoint.same_host(peer) for peer in range(size))


def test_a_second_group_of_the_same_directory(tmp_path: Path) -> None:
    for _ in range(3):
        with group(3, tmp_path):
            pass


def test_two_groups_at_once_through_the_same_stores(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path) for _ in range(2)]

    def both(rank: int) -> list[Endpoint]:
        return [Endpoint(rank, 2, stores[rank], job=f"job{i}", secret=SECRET) for i in range(2)]

    for pair in outcomes(lambda: both(0), lambda: both(1)):
        for endpoint in pair:
            endpoint.close()


def test_a_missing_rank_is_named_at_the_deadline(tmp_path: Path) -> None:
    began = time.monotonic()
    found = outcomes(*(lambda rank=rank: join(rank, 4, tmp_path, timeout_s=0.5) for rank in (0, 1, 3)))
    assert 0.5 <= time.monotonic() - began < 10
    for error in found:
        assert isinstance(error, RendezvousError)
        assert "rank 2 of 4 is missing" in str(error)


def test_several_missing_ranks_are_named(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match="ranks 0, 2, 3 of 4 are missing"):
        join(1, 4, tmp_path, timeout_s=0.2)


def test_a_rank_that_is_there_twice_is_named_to_all(tmp_path: Path) -> None:
    found = outcomes(*(lambda rank=rank: join(rank, 4, tmp_path, timeout_s=1.0) for rank in (0, 1, 1, 2)))
    for error in found:
        assert isinstance(error, RendezvousError)
        assert "rank 1 is there twice" in str(error)


def test_a_late_double_is_refused_and_the_job_goes_on(tmp_path: Path, door: Door) -> None:
    with group(2, tmp_path) as (first, second):
        with pytest.raises(RendezvousError, match=f"rank 1 is there twice.*process {os.getpid()} on"):
            join(1, 2, tmp_path, timeout_s=PATIENCE_S)
        second.serve("world", door)
        first.dial(1, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S).close()


def test_different_sizes_are_named(tmp_path: Path) -> None:
    found = outcomes(
        *(lambda rank=rank, size=size: join(rank, size, tmp_path) for rank, size in ((0, 3), (1, 4), (2, 3)))
    )
    for error in found:
        assert isinstance(error, RendezvousError)
        assert "disagree about their number" in str(error)
        assert "rank 1 says 4" in str(error)


def test_one_rank_too_many_is_refused_and_the_job_goes_on(tmp_path: Path) -> None:
    with group(2, tmp_path), pytest.raises(RendezvousError, match="rank 2 says 3, rank 0 says 2"):
        join(2, 3, tmp_path, timeout_s=PATIENCE_S)
    with pytest.raises(ValueError, match="rank 4 of 4"):
        join(4, 4, tmp_path)


def test_a_rank_with_another_secret_is_named(tmp_path: Path) -> None:
    found = outcomes(
        lambda: join(0, 3, tmp_path),
        lambda: join(1, 3, tmp_path, secret=b"another secret of this job"),
        lambda: join(2, 3, tmp_path),
    )
    for error in found:
        assert isinstance(error, RendezvousError)
        assert "secret" in str(error)
    assert all("rank 1 (process" in str(found[rank]) for rank in (0, 2))


def test_a_rank_without_the_secret_is_named(tmp_path: Path) -> None:
    found = outcomes(lambda: join(0, 2, tmp_path, secret=None), lambda: join(1, 2, tmp_path))
    assert all(isinstance(error, RendezvousError) and "TREERING_SECRET" in str(error) for error in found)


def test_several_hosts_need_a_secret_and_the_error_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = threading.local()

    def on_host(name: str, rank: int, secret: bytes | None) -> Endpoint:
        names.host = name
        return join(rank, 3, tmp_path, secret=secret)

    monkeypatch.setattr(cards_module, "host_id", lambda: names.host)
    found = outcomes(*(lambda r=r: on_host("a" if r < 2 else "b", r, None) for r in range(3)))
    for error in found:
        assert isinstance(error, RendezvousError)
        for word in ("rank 0 on", "rank 2 on", "token_hex(32)", "TREERING_SECRET", "TREERING_SECRET_FILE"):
            assert word in str(error)
    found = outcomes(*(lambda r=r: on_host("a" if r < 2 else "b", r, SECRET) for r in range(3)))
    assert all(isinstance(error, RendezvousError) and "TREERING_ADDRESS" in str(error) for error in found)


def test_hosts_are_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = threading.local()
    address = next((a for a in _own_addresses() if not a.startswith("127.")), None)
    if address is None:
        pytest.skip("no address but loopback")

    def on_host(name: str, rank: int) -> Endpoint:
        names.host = name
        return join(rank, 4, tmp_path, address=address)

    monkeypatch.setattr(cards_module, "host_id", lambda: names.host)
    for endpoint in outcomes(*(lambda r=r: on_host("xyxy"[r], r) for r in range(4))):
        assert endpoint.hosts == ((0, 2), (1, 3))
        assert endpoint.cards[0]["tcp"][0] == address
        endpoint.close()


def _own_addresses() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        return [sock.getsockname()[0]]
    return []


def test_without_a_secret_only_this_host_is_served(tmp_path: Path) -> None:
    with group(2, tmp_path, secret=None) as endpoints:
        assert {card["tcp"][0] for card in endpoints[0].cards} == {"127.0.0.1"}
    with pytest.raises(ValueError, match=r"token_hex"):
        join(0, 2, tmp_path, secret=None, address="10.0.0.1")


def test_shm_opens_no_port(tmp_path: Path) -> None:
    with group(2, tmp_path, transport="shm") as endpoints:
        assert [card["tcp"] for card in endpoints[0].cards] == [None, None]


def _join_and_wait(rank: int, size: int, path: str, pipe: Any) -> None:
    with contextlib.suppress(CollectiveError), join(rank, size, Path(path)) as endpoint:
        pipe.send(endpoint.size)
        pipe.poll(PATIENCE_S)


def _start(rank: int, size: int, path: Path) -> tuple[Any, Any]:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_join_and_wait, args=(rank, size, str(path), theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _end(process: Any, pipe: Any) -> None:
    pipe.close()
    process.join(PATIENCE_S)
    assert process.exitcode is not None
    process.close()


def test_a_killed_job_does_not_stop_the_next_one_in_its_directory(tmp_path: Path) -> None:
    runs = [_start(rank, 2, tmp_path) for rank in range(2)]
    for _, pipe in runs:
        assert pipe.poll(PATIENCE_S)
        assert pipe.recv() == 2
    for process, pipe in runs:
        os.kill(process.pid, signal.SIGKILL)
        _end(process, pipe)
    assert any(tmp_path.iterdir())
    with group(2, tmp_path):
        pass


def test_a_rank_that_died_while_joining_is_named(tmp_path: Path) -> None:
    process, pipe = _start(0, 3, tmp_path)
    _wait_for_files(tmp_path, "*.card", 1)
    os.kill(process.pid, signal.SIGKILL)
    pid = process.pid
    _end(process, pipe)
    with pytest.raises(RendezvousError, match=rf"ranks 0, 2 of 3 are missing.*rank 0 was process {pid} .*died"):
        join(1, 3, tmp_path, timeout_s=0.3)


def test_files_that_may_be_another_jobs_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """A card of a host that cannot be asked whether the process still runs."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(FileStore(tmp_path).exchange, 0, 2, b"{}", PATIENCE_S)]
        (card,) = _wait_for_files(tmp_path, "*.card", 1)
        prefix, rank, _, kind = card.name.split(".")
        content = json.loads(card.read_text())
        content["process"] = ["elsewhere", 77, "1", "another boot"]
        (tmp_path / "new").write_text(json.dumps(content))
        (tmp_path / "new").rename(tmp_path / f"{prefix}.{rank}.{secrets.token_hex(16)}.{kind}")
        waiting.append(pool.submit(FileStore(tmp_path).exchange, 1, 2, b"{}", PATIENCE_S))
        for future in waiting:
            with pytest.raises(RendezvousError, match=r"rank 0 is there twice.*process 77 on elsewhere.*fresh dir"):
                future.result(PATIENCE_S)
    for file in tmp_path.iterdir():
        file.unlink()


def _wait_for_files(path: Path, pattern: str, count: int) -> list[Path]:
    deadline = time.monotonic() + PATIENCE_S
    while len(found := list(path.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


@pytest.mark.parametrize("text", ["", "x", "[", "9" * 100_000])
def test_a_file_that_is_no_card_is_named(tmp_path: Path, text: str) -> None:
    store = FileStore(tmp_path)
    with contextlib.suppress(RendezvousError):
        store.exchange(0, 2, b"{}", 0.01)
    prefix = store._gathering_prefix()  # pyright: ignore[reportPrivateUsage]
    stray = tmp_path / f"{prefix}.1.{'a' * 32}.card"
    stray.write_text(text)
    try:
        with pytest.raises(RendezvousError, match=r"a{32}"):
            store.exchange(0, 2, b"{}", PATIENCE_S)
    finally:
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_directory_that_cannot_be_used_is_named() -> None:
    with pytest.raises(RendezvousError, match="/dev/null/x"):
        join(0, 2, Path("/dev/null/x"), timeout_s=1.0)


def _time_joins(rank: int, size: int, path: str, pipe: Any) -> None:
    for round_ in range(4):
        pipe.recv()
        began = time.perf_counter()
        with join(rank, size, Path(path) / str(round_)):
            pipe.send(time.perf_counter() - began)
            pipe.recv()
    pipe.send(None)


def test_four_processes_join_quickly(tmp_path: Path) -> None:
    runs: list[tuple[Any, Any]] = []
    for rank in range(4):
        ours, theirs = spawn.Pipe()
        runs.append((spawn.Process(target=_time_joins, args=(rank, 4, str(tmp_path), theirs), daemon=True), ours))
        runs[-1][0].start()
        theirs.close()
    slowest: list[float] = []
    for _ in range(4):
        for _, pipe in runs:
            pipe.send("go")
        assert all(pipe.poll(PATIENCE_S) for _, pipe in runs)
        slowest.append(max(pipe.recv() for _, pipe in runs))
        for _, pipe in runs:
            pipe.send("close")
    for process, pipe in runs:
        assert pipe.poll(PATIENCE_S)
        pipe.recv()
        _end(process, pipe)
    # The best of four, of which the first also starts the processes: the others may have met a busy machine.
    assert min(slowest) < 0.1, slowest


# --- connections
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_a_dialled_connection_reaches_its_communicator(tmp_path: Path, door: Door, family: Any) -> None:
    with group(3, tmp_path) as endpoints:
        endpoints[2].serve("world", door)
        ours = endpoints[0].dial(2, {"comm": "world", "lane": 1}, family=family, deadline_s=PATIENCE_S)
        ((peer, hello, theirs, fds),) = door.wait()
        assert (peer, hello, fds) == (0, {"comm": "world", "lane": 1}, [])
        for sock in (ours, theirs):
            assert not sock.get_inheritable()
            assert sock.gettimeout() is None
            if family == "tcp":
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        ours.sendall(b"ping")
        assert ask(theirs, b"pong") == b"ping"
        assert ours.recv(100) == b"pong"
        ours.close()


def test_descriptors_arrive(tmp_path: Path, door: Door) -> None:
    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("world", door)
        pipes = [os.pipe() for _ in range(3)]
        writers = [writer for _, writer in pipes]
        endpoints[0].dial(1, {"comm": "world"}, family="unix", deadline_s=PATIENCE_S, fds=writers).close()
        for writer in writers:
            os.close(writer)
        ((_, _, _, fds),) = door.wait()
        assert len(fds) == 3
        for number, (fd, (reader, _)) in enumerate(zip(fds, pipes, strict=True)):
            assert not os.get_inheritable(fd)
            os.write(fd, b"%d" % number)
            assert os.read(reader, 10) == b"%d" % number
            os.close(reader)
        with pytest.raises(ValueError, match="Unix socket"):
            endpoints[0].dial(1, {"comm": "world"}, family="tcp", deadline_s=1.0, fds=[0])


def test_what_accept_returns_runs_when_the_dialer_may_read(tmp_path: Path) -> None:
    def accept(peer: int, hello: dict[str, Any], sock: socket.socket, fds: list[int]) -> Callable[[], None]:
        del peer, hello, fds
        line = socket.socket(fileno=sock.detach())  # a new owner may take the descriptor at once

        def start() -> None:
            line.sendall(b"welcome")
            line.close()

        return start

    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("world", accept)
        with endpoints[0].dial(1, {"comm": "world"}, family="unix", deadline_s=PATIENCE_S) as sock:
            sock.settimeout(PATIENCE_S)
            assert sock.recv(100) == b"welcome"


def test_early_connections_wait_until_they_are_served(tmp_path: Path, door: Door) -> None:
    with group(2, tmp_path) as endpoints:
        reader, writer = os.pipe()
        early = ThreadPoolExecutor(2)
        calls = [
            early.submit(
                endpoints[0].dial,
                1,
                {"comm": "later", "n": n},
                family="unix",
                deadline_s=PATIENCE_S,
                fds=[writer],
            )
            for n in range(2)
        ]
        _wait_until(lambda: endpoints[1].waiting == 2)
        endpoints[1].serve("later", door)
        for call in calls:
            call.result(PATIENCE_S).close()
        assert sorted(hello["n"] for _, hello, _, _ in door.wait(2)) == [0, 1]
        assert [len(fds) for _, _, _, fds in door.came] == [1, 1]
        early.shutdown()
        os.close(reader)
        os.close(writer)


def test_a_communicator_that_is_never_served_is_an_error_at_the_deadline(tmp_path: Path, door: Door) -> None:
    with group(2, tmp_path) as endpoints:
        with pytest.raises(DeadlineExceeded, match=r"rank 1 \(process .* did not open the communicator .* 0\.2 s"):
            endpoints[0].dial(1, {"comm": "never"}, family="tcp", deadline_s=0.2)
        _wait_until(lambda: endpoints[1].waiting == 0)
        endpoints[1].serve("never", door)
        endpoints[0].dial(1, {"comm": "never"}, family="tcp", deadline_s=PATIENCE_S).close()
        assert len(door.wait()) == 1


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_accept_raises_reaches_the_dialer(tmp_path: Path) -> None:
    def accept(*_: object) -> None:
        raise ValueError("lane 9 of 2")

    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("world", accept)
        reader, writer = os.pipe()
        with pytest.raises(WireError, match=r"rank 1 .*refused the connection: lane 9 of 2"):
            endpoints[0].dial(1, {"comm": "world"}, family="unix", deadline_s=PATIENCE_S, fds=[writer])
        os.close(writer)
        assert os.read(reader, 1) == b""  # the copy that was sent is closed as well
        os.close(reader)


def test_a_closed_communicator_says_so(tmp_path: Path, door: Door) -> None:
    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("world", door)
        endpoints[1].unserve("world")
        with pytest.raises(WireError, match="communicator world is closed on rank 1"):
            endpoints[0].dial(1, {"comm": "world"}, family="unix", deadline_s=PATIENCE_S)


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_a_rank_that_left_is_named(tmp_path: Path, family: Any) -> None:
    with group(2, tmp_path) as endpoints:
        endpoints[1].close()
        with pytest.raises(PeerLostError, match=rf"rank 1 \(process {os.getpid()} on"):
            endpoints[0].dial(1, {"comm": "world"}, family=family, deadline_s=PATIENCE_S)


def test_a_rank_that_leaves_while_it_is_dialled_is_named(tmp_path: Path) -> None:
    with group(2, tmp_path) as endpoints, ThreadPoolExecutor(1) as pool:
        call = pool.submit(endpoints[0].dial, 1, {"comm": "x"}, family="unix", deadline_s=PATIENCE_S)
        _wait_until(lambda: endpoints[1].waiting == 1)
        endpoints[1].close()
        with pytest.raises(PeerLostError, match=r"rank 1 .* went away"):
            call.result(PATIENCE_S)


def test_a_stopped_rank_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    process, pipe = _start(1, 2, tmp_path)
    with join(0, 2, tmp_path) as endpoint:
        assert pipe.poll(PATIENCE_S)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for family in ("unix", "tcp"):
                with pytest.raises(DeadlineExceeded, match="rank 1"):
                    endpoint.dial(1, {"comm": "world"}, family=family, deadline_s=0.2)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        pipe.send("end")
        _end(process, pipe)


def test_many_threads_dial_at_once(tmp_path: Path, door: Door) -> None:
    """More than may be unknown at a time."""
    count = 3 * listener_module.MAX_GUESTS
    with group(2, tmp_path) as endpoints, ThreadPoolExecutor(count) as pool:
        endpoints[1].serve("world", door)
        calls = [
            pool.submit(
                endpoints[0].dial,
                1,
                {"comm": "world", "n": n},
                family="tcp" if n % 2 else "unix",
                deadline_s=PATIENCE_S,
            )
            for n in range(count)
        ]
        for call in calls:
            call.result(PATIENCE_S).close()
        assert sorted(hello["n"] for _, hello, _, _ in door.wait(count)) == list(range(count))


def test_nonsense_is_a_value_error_before_anything_is_sent(tmp_path: Path) -> None:
    with group(2, tmp_path) as endpoints:
        for peer in (0, 2, -1):
            with pytest.raises(ValueError, match="cannot dial"):
                endpoints[0].dial(peer, {"comm": "x"}, family="tcp", deadline_s=1.0)
        with pytest.raises(ValueError, match="at most 4096"):
            endpoints[0].dial(1, {"comm": "x" * 5000}, family="tcp", deadline_s=1.0)


# --- strangers
# -----------------------------------------------------------------------------------------------------

HUGE = (1 << 32) - 1
STRANGERS = {
    "nothing": b"",
    "half a length": b"\0\0",
    "a huge length": HUGE.to_bytes(4, "big") + b"x" * 100,
    "an empty message": b"\0\0\0\2{}",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
    "deep": b"\0\0\x0f\xa0" + b"[" * 4000,
    "noise": bytes(range(256)) * 64,
}


def knock(address: Any, text: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(PATIENCE_S)
    sock.connect(address)
    with contextlib.suppress(ConnectionError):
        sock.sendall(text)
    return sock


def hears_the_end(sock: socket.socket) -> bool:
    """Whether the other side hangs up, after a short refusal at most."""
    heard = 0
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(4096):
            heard += len(piece)
    return heard < 600


@pytest.mark.parametrize("text", STRANGERS.values(), ids=STRANGERS.keys())
@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_a_stranger_is_refused_and_the_next_rank_is_not(tmp_path: Path, door: Door, way: str, text: bytes) -> None:
    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("world", door)
        card = endpoints[0].cards[1]
        stranger = knock("\0" + card["unix"][1:] if way == "unix" else tuple(card["tcp"]), text)
        endpoints[0].dial(1, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S).close()
        assert hears_the_end(stranger)  # those that say nothing wrong after two seconds
        stranger.close()
        assert endpoints[1].refused == 1
        assert len(door.wait()) == 1


def test_500_silent_and_500_noisy_strangers_while_ranks_join_and_after(
    tmp_path: Path, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "treering")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    silent = 500 if limit > 2000 else 100
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as ends:
        first = pool.submit(join, 0, 2, tmp_path)
        (file,) = _wait_for_files(tmp_path, "*.card", 1)
        address = tuple(json.loads(json.loads(file.read_text())["card"])["tcp"])
        before = _memory_bytes()
        quiet = [ends.enter_context(knock(address, b"")) for _ in range(silent)]
        second = ends.enter_context(join(1, 2, tmp_path))
        rank0 = ends.enter_context(first.result(PATIENCE_S))
        rank0.serve("world", door)
        began = time.monotonic()
        for _ in range(5):
            second.dial(0, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S).close()
        assert time.monotonic() - began < 10
        for _ in range(100):
            for text in STRANGERS.values():
                if len(text) > 4:
                    knock(address, text).close()
            second.dial(0, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S).close()
        assert all(hears_the_end(sock) for sock in quiet)
        assert len(door.wait(105)) == 105
        assert _memory_bytes() - before < 64 << 20
        assert rank0.refused > silent
        lines = [record for record in caplog.records if "refused" in record.message]
        assert 1 <= len(lines) < 20


def _memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_rank_of_an_earlier_incarnation_is_refused(tmp_path: Path) -> None:
    """It knows the secret, the job and the port, but it is not one of the processes that joined."""
    with group(2, tmp_path / "a") as old, group(2, tmp_path / "b") as new:
        old[0].cards[1] = new[0].cards[1]
        with pytest.raises(WireError, match=r"rank 1 .*epoch differs"):
            old[0].dial(1, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S)


def test_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with group(2, tmp_path) as endpoints:
        child = os.fork()
        if child == 0:  # only what is safe in a copy of a process with threads
            os.setresuid(65534, 65534, 65534)
            sock = knock("\0" + endpoints[0].cards[1]["unix"][1:], b"")
            os._exit(0 if sock.recv(1) == b"" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert endpoints[1].refused == 1


def _fake_server(listening: socket.socket, behave: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listening.accept()
            with sock, contextlib.suppress(OSError):
                sock.settimeout(PATIENCE_S)
                behave(sock)


def _mirror(sock: socket.socket) -> None:
    while data := sock.recv(4096):
        sock.sendall(data)


def _pretend(sock: socket.socket) -> None:
    for reply in ({"nonce": "0" * 64}, {"proof": "0" * 64}, {"ok": True}):
        sock.recv(8192)
        body = json.dumps(reply).encode()
        sock.sendall(len(body).to_bytes(4, "big") + body)
    sock.recv(1)


def _hang_up(_: socket.socket) -> None:
    pass


def _huge(sock: socket.socket) -> None:
    sock.sendall(HUGE.to_bytes(4, "big"))
    sock.recv(1)


def _web(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sock.recv(8192)
    sock.recv(1)


@pytest.mark.parametrize("behave", [_mirror, _pretend, _huge, _web])
def test_a_fake_server_on_the_port_is_refused(tmp_path: Path, behave: Callable[[socket.socket], None]) -> None:
    with group(2, tmp_path) as endpoints, socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_fake_server, args=(listening, behave))
        thread.start()
        endpoints[0].cards[1]["tcp"] = listening.getsockname()
        with pytest.raises(WireError, match=r"rank 1 .*what listens on 127\.0\.0\.1"):
            endpoints[0].dial(1, {"comm": "world"}, family="tcp", deadline_s=PATIENCE_S)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_server_that_always_hangs_up_is_an_error_at_the_deadline(tmp_path: Path) -> None:
    with group(2, tmp_path) as endpoints, socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_fake_server, args=(listening, _hang_up))
        thread.start()
        endpoints[0].cards[1]["tcp"] = listening.getsockname()
        with pytest.raises(DeadlineExceeded, match="rank 1"):
            endpoints[0].dial(1, {"comm": "world"}, family="tcp", deadline_s=0.3)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def _serve_with_few_descriptors(path: str, pipe: Any) -> None:
    door = Door()
    with join(1, 2, Path(path)) as endpoint:
        endpoint.serve("world", door)
        pipe.recv()
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = [os.dup(0) for _ in range(highest - len(os.listdir("/proc/self/fd")) + 2)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max([*spare, highest]) + 1, hard))
        pipe.send("full")
        before = time.process_time()
        pipe.recv()
        busy_s = time.process_time() - before
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        pipe.send(busy_s)
        pipe.recv()


def test_without_descriptors_it_waits_quietly_and_recovers(tmp_path: Path) -> None:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve_with_few_descriptors, args=(str(tmp_path), theirs), daemon=True)
    process.start()
    theirs.close()
    with join(0, 2, tmp_path) as endpoint:
        ours.send("go")
        assert ours.poll(PATIENCE_S)
        ours.recv()
        with pytest.raises(DeadlineExceeded, match="rank 1"):
            endpoint.dial(1, {"comm": "world"}, family="unix", deadline_s=1.0)
        ours.send("enough")
        assert ours.poll(PATIENCE_S)
        assert ours.recv() < 0.5
        endpoint.dial(1, {"comm": "world"}, family="unix", deadline_s=PATIENCE_S).close()
        ours.send("end")
        _end(process, ours)


def test_a_forked_child_does_not_keep_the_port_alive(tmp_path: Path) -> None:
    with group(2, tmp_path) as endpoints:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            for endpoint in endpoints:
                endpoint.drop_after_fork()
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        os.close(reader)
        endpoints[1].close()
        with pytest.raises(PeerLostError, match="rank 1"):
            _dial_until_lost(endpoints[0])
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0


def _dial_until_lost(endpoint: Endpoint) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:  # the child may need a moment
        with contextlib.suppress(DeadlineExceeded):
            endpoint.dial(1, {"comm": "world"}, family="tcp", deadline_s=0.1)


def test_an_owner_that_fails_does_not_stop_the_listener(tmp_path: Path, door: Door) -> None:
    def accept(_peer: int, _hello: dict[str, Any], sock: socket.socket, _fds: list[int]) -> Callable[[], None]:
        def start() -> None:
            sock.close()
            raise ValueError("too late to refuse")

        return start

    with group(2, tmp_path) as endpoints:
        endpoints[1].serve("bad", accept)
        endpoints[1].serve("good", door)
        for comm in ("bad", "good"):
            endpoints[0].dial(1, {"comm": comm}, family="unix", deadline_s=PATIENCE_S).close()
        assert len(door.wait()) == 1


def test_closing_twice_and_from_another_thread_is_fine(tmp_path: Path) -> None:
    with group(2, tmp_path) as endpoints:
        outcomes(endpoints[0].close, endpoints[0].close, endpoints[1].close)


if sys.platform != "linux":
    pytest.skip("counts descriptors in /proc", allow_module_level=True)
