"""The stores of torchrun and of MPI answer as the file store does: all cards, or who is at fault."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import pytest

from transports.errors import RendezvousError
from transports.launcher_stores import MpiStore, TorchStore, torch_tcp_store

PATIENCE_S = 30.0


def outcomes(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Any]] = [pool.submit(call) for call in calls]
        _, late = wait(futures, PATIENCE_S)
        assert not late
    return [future.exception() or future.result() for future in futures]


def cards(size: int) -> list[bytes]:
    return [json.dumps({"rank": rank, "text": "ä"}).encode() for rank in range(size)]


# --- torch
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Any:
    """A store of torch's that the threads of this process share."""
    distributed = pytest.importorskip("torch.distributed")
    return distributed.HashStore()


def in_torch(shared: Any, *ranks: tuple[int, int], deadline_s: float = PATIENCE_S, prefix: str = "p") -> list[Any]:
    def one(rank: int, size: int) -> list[bytes]:
        return TorchStore(lambda _: shared, prefix).exchange(rank, size, cards(size)[rank], deadline_s)

    return outcomes(*(lambda rank=rank, size=size: one(rank, size) for rank, size in ranks))


def test_torch_gives_all_cards(shared: Any) -> None:
    for prefix in ("first", "second"):
        found = in_torch(shared, *((rank, 5) for rank in range(5)), prefix=prefix)
        assert found == [cards(5)] * 5


def test_torch_names_the_missing(shared: Any) -> None:
    for error in in_torch(shared, (0, 4), (2, 4), deadline_s=0.3):
        assert isinstance(error, RendezvousError)
        assert "ranks 1, 3 of 4 are missing" in str(error)


def test_torch_tells_everybody_of_a_double(shared: Any) -> None:
    other = json.dumps([3, 77, "elsewhere", "{}"])
    shared.set("p/1/card/1", other)
    for error in in_torch(shared, (0, 3), (1, 3)):
        assert isinstance(error, RendezvousError)
        assert "rank 1 is there twice: process 77 on elsewhere" in str(error)


def test_torch_names_different_sizes(shared: Any) -> None:
    for error in in_torch(shared, (0, 2), (1, 3)):
        assert isinstance(error, RendezvousError)
        assert "disagree about their number" in str(error)


def test_torch_hosted_by_the_first_rank_stays_until_all_have_read() -> None:
    pytest.importorskip("torch.distributed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def one(rank: int) -> list[bytes]:
        store = TorchStore(torch_tcp_store("127.0.0.1", port, serve=rank == 0), "p", host_rank=0)
        try:
            return store.exchange(rank, 3, cards(3)[rank], PATIENCE_S)
        finally:
            store.close()

    assert outcomes(*(lambda rank=rank: one(rank) for rank in range(3))) == [cards(3)] * 3


def test_torch_that_nobody_hosts_is_an_error() -> None:
    pytest.importorskip("torch.distributed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = TorchStore(torch_tcp_store("127.0.0.1", port, serve=False), "p")
    with pytest.raises(RendezvousError, match=rf"127\.0\.0\.1:{port} could not be reached"):
        store.exchange(1, 2, b"{}", 0.5)


# --- MPI
# -----------------------------------------------------------------------------------------------------------


class World:
    """As much of MPI as the store uses, between the threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queues: defaultdict[tuple[int, int], list[tuple[int, bytes]]] = defaultdict(list)
        self.lock = threading.Lock()
        self.local = threading.local()

    def module(self) -> Any:
        return SimpleNamespace(
            COMM_WORLD=self,
            BYTE="byte",
            ANY_SOURCE=-1,
            Status=SimpleNamespace,
            Get_library_version=lambda: "Fake 1",
        )

    def Get_rank(self) -> int:  # noqa: N802
        return int(self.local.rank)

    def Get_size(self) -> int:  # noqa: N802
        return self.size

    def Isend(self, buffer: list[Any], dest: int, tag: int) -> Any:  # noqa: N802
        with self.lock:
            self.queues[dest, tag].append((self.Get_rank(), bytes(buffer[0])))
        return SimpleNamespace(Test=lambda: True)

    def Improbe(self, source: int, tag: int, status: Any) -> Any:  # noqa: N802
        with self.lock:
            queue = self.queues[self.Get_rank(), tag]
            found = next((item for item in queue if source in (-1, item[0])), None)
            if found is None:
                return None
            queue.remove(found)
        status.Get_count = lambda _kind: len(found[1])  # pyright: ignore
        status.Get_source = lambda: found[0]

        def receive(buffer: list[Any]) -> None:
            buffer[0][:] = found[1]

        return SimpleNamespace(Recv=receive)


def in_mpi(
    monkeypatch: pytest.MonkeyPatch, size: int, call: Callable[[MpiStore, int], Any], ranks: list[int]
) -> list[Any]:
    world = World(size)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", world.module())

    def one(rank: int) -> Any:
        world.local.rank = rank
        return call(MpiStore(), rank)

    return outcomes(*(lambda rank=rank: one(rank) for rank in ranks))


def test_mpi_gives_all_cards_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(store: MpiStore, rank: int) -> list[list[bytes]]:
        return [store.exchange(rank, 4, cards(4)[rank], PATIENCE_S) for _ in range(2)]

    assert in_mpi(monkeypatch, 4, twice, [0, 1, 2, 3]) == [[cards(4)] * 2] * 4


def test_mpi_names_the_missing_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_mpi(monkeypatch, 4, lambda s, r: s.exchange(r, 4, cards(4)[r], 0.3), [0, 1, 3])
    for error in found:
        assert isinstance(error, RendezvousError)
        assert "rank 2 of 4 is missing" in str(error)


def test_mpi_names_a_missing_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    (error,) = in_mpi(monkeypatch, 2, lambda s, r: s.exchange(r, 2, cards(2)[r], 0.1), [1])
    assert "rank 0 of 2 is missing" in str(error)
    assert time.monotonic() - began < 10


def test_mpi_brings_one_secret_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_mpi(monkeypatch, 3, lambda s, r: s.share_secret(r, 3, None, PATIENCE_S), [0, 1, 2])
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    own = {0: b"rank 0's own secret"}
    found = in_mpi(monkeypatch, 2, lambda s, r: s.share_secret(r, 2, own.get(r), PATIENCE_S), [0, 1])
    assert found == [own[0]] * 2


def test_the_wrong_mpi_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = in_mpi(monkeypatch, 1, lambda s, r: s.exchange(3, 4, b"{}", PATIENCE_S), [0])
    assert isinstance(error, RendezvousError)
    assert "rank 3 of 4, mpi4py rank 0 of 1 (Fake 1)" in str(error)
