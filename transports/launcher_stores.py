"""The stores that launchers bring: torchrun's TCPStore, and MPI itself. See stores.py for what a store is.

Torch and mpi4py are imported when a store of theirs is first used, and only then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any, cast

from transports.errors import RendezvousError
from transports.host import this_process
from transports.stores import MAX_CARD_BYTES, missing_text, size_text

__all__ = ["MpiStore", "TorchStore", "torch_tcp_store"]


def torch_tcp_store(host: str, port: int, *, serve: bool) -> Callable[[float], Any]:
    """A function that opens torch's TCPStore at that address within so many seconds; `serve`: this process
    hosts it.

    torch's store has no authentication and listens on every address of its host: nothing secret goes through
    it.
    """

    def open_store(timeout_s: float) -> Any:
        try:
            distributed: Any = importlib.import_module("torch.distributed")
        except ImportError as error:
            raise RendezvousError(
                f"the ranks meet in torch's store at {host}:{port}, but torch is not to be had ({error}): "
                "pip install 'treering[torch]', or set TREERING_STORE=file:///a/directory/that/all/hosts/see"
            ) from error
        try:
            # multi_tenant: this process may already host the same store, for torch.distributed.
            return distributed.TCPStore(
                host,
                port,
                is_master=serve,
                timeout=timedelta(seconds=max(timeout_s, 0.1)),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except RuntimeError as error:
            verb = "opened" if serve else "reached"
            raise RendezvousError(
                f"the launcher's store at {host}:{port} could not be {verb} within {timeout_s:.1f} s: " + _line(error)
            ) from error

    return open_store


class TorchStore:
    """Cards as keys of a torch.distributed store (TCPStore, PrefixStore, FileStore, HashStore).

    open_store      called once with the seconds that are left; returns the store prefix          starts all
                    keys: new for every job and every connect, as keys are never removed host_rank       the
                    rank whose process hosts the store, which waits until all have read; None: somebody else
                    does
    """

    def __init__(self, open_store: Callable[[float], Any], prefix: str, host_rank: int | None = None) -> None:
        self._open, self._prefix, self._host_rank = open_store, prefix, host_rank
        self._store: Any = None
        self._round = 0

    def exchange(self, rank: int, size: int, card: bytes, deadline_s: float) -> list[bytes]:
        began = time.monotonic()
        self._round += 1
        prefix = f"{self._prefix}/{self._round}"
        try:
            if self._store is None:
                self._store = self._open(deadline_s)
            with self._telling(f"{prefix}/trouble"):
                cards = self._swap(prefix, rank, size, card, began, deadline_s)
            self._store.add(f"{prefix}/read", 1)
            if rank == self._host_rank:
                self._stay_until_read(f"{prefix}/read", size, began + deadline_s)
        except RuntimeError as error:  # the base of all that torch's stores raise
            raise RendezvousError(f"the launcher's store failed while the ranks joined: {_line(error)}") from error
        return cards

    def close(self) -> None:
        self._store = None

    def _swap(self, prefix: str, rank: int, size: int, card: bytes, began: float, deadline_s: float) -> list[bytes]:
        store = self._store
        process = this_process()
        mine = json.dumps([size, process.pid, process.host, card.decode()]).encode()
        first = bytes(store.compare_set(f"{prefix}/card/{rank}", "", mine))
        if first != mine:
            _, pid, host, _ = json.loads(first)
            there, here = f"process {pid} on {host}", f"process {process.pid} on {process.host}"
            raise RendezvousError(f"rank {rank} is there twice: {there} and {here}")
        keys = [f"{prefix}/card/{peer}" for peer in range(size)]
        pause_s = 0.001
        while not store.check(keys):  # torch's own wait() fills the terminal with warnings when it times out
            if store.check([f"{prefix}/trouble"]):
                raise RendezvousError(store.get(f"{prefix}/trouble").decode())
            if time.monotonic() - began > deadline_s:
                missing = [peer for peer, key in enumerate(keys) if not store.check([key])]
                raise RendezvousError(missing_text(missing, size, time.monotonic() - began))
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, 0.05)
        cards: list[bytes] = []
        for peer, raw in enumerate(store.multi_get(keys)):
            said, _, _, text = json.loads(raw)
            if said != size:
                raise RendezvousError(size_text(rank, size, peer, said))
            cards.append(text.encode())
        return cards

    @contextlib.contextmanager
    def _telling(self, key: str) -> Generator[None]:
        """The first who gives up says why, and everybody who still waits says the same."""
        try:
            yield
        except RendezvousError as error:
            self._store.compare_set(key, "", str(error))
            raise

    def _stay_until_read(self, key: str, size: int, deadline: float) -> None:
        while self._store.add(key, 0) < size and time.monotonic() < deadline:
            time.sleep(0.001)


class MpiStore:
    """Cards as point-to-point messages over mpi4py's MPI.COMM_WORLD: all to rank 0, and from there to all.

    Not one of MPI's own gathers: those cannot be given up, nor tell who is missing. Needs MPI to be the one
    whose mpiexec started this process, and uses it only on the thread that joins.
    """

    _CARD_TAG, _ANSWER_TAG, _SECRET_TAG = 29_201, 29_202, 29_203  # every MPI allows tags up to 32767
    _ANSWER_LATE_S = 1.0

    def __init__(self) -> None:
        self._round = 0
        self._mpi: Any = None
        self._unsent: list[tuple[Any, bytes]] = []  # MPI reads the bytes until the request is done

    def exchange(self, rank: int, size: int, card: bytes, deadline_s: float) -> list[bytes]:
        self._round += 1
        self._open(rank, size)
        deadline = time.monotonic() + deadline_s
        mine = json.dumps([self._round, size, card.decode()]).encode()
        if rank != 0:
            self._send(mine, 0, self._CARD_TAG)
            # Rank 0 may have started its deadline a little later, and it knows who is missing.
            answer = self._receive(0, self._ANSWER_TAG, deadline + self._ANSWER_LATE_S)
            if answer is None:
                raise RendezvousError(
                    f"rank 0 of {size} is missing, or waits for others, after {deadline_s:.1f} s: "
                    "every rank must start and call connect()"
                )
            trouble, cards = json.loads(answer[1])
        else:
            trouble, cards = self._gather(size, mine, deadline, deadline_s)
            answer_text = json.dumps([trouble, cards]).encode()
            for peer in range(1, size):
                self._send(answer_text, peer, self._ANSWER_TAG)
        if trouble:
            raise RendezvousError(trouble)
        return [text.encode() for text in cards]

    def share_secret(self, rank: int, size: int, own: bytes | None, deadline_s: float) -> bytes:
        """The job's secret: `own` where a rank has one, elsewhere rank 0's, which it makes (32 random bytes)
        if need be.

        It travels inside MPI, which is trusted as far as the launcher is. All ranks must call it.
        """
        self._open(rank, size)
        if rank == 0:
            secret = own or secrets.token_hex(32).encode()
            for peer in range(1, size):
                self._send(secret, peer, self._SECRET_TAG)
            return secret
        received = self._receive(0, self._SECRET_TAG, time.monotonic() + deadline_s)
        if received is None:
            raise RendezvousError(missing_text([0], size, deadline_s))
        return own or received[1]

    def close(self) -> None:
        self._unsent = [(request, data) for request, data in self._unsent if not request.Test()]

    def _gather(self, size: int, mine: bytes, deadline: float, deadline_s: float) -> tuple[str, list[str]]:
        cards: dict[int, str] = {0: json.loads(mine)[2]}
        while len(cards) < size:
            received = self._receive(self._mpi.ANY_SOURCE, self._CARD_TAG, deadline)
            if received is None:
                missing = [peer for peer in range(size) if peer not in cards]
                return missing_text(missing, size, deadline_s), []
            peer, raw = received
            number, said, text = json.loads(raw)
            if said != size:
                return size_text(0, size, peer, said), []
            if number == self._round:  # else it comes from an attempt that was given up
                cards[peer] = text
        return "", [cards[peer] for peer in range(size)]

    def _open(self, rank: int, size: int) -> None:
        if self._mpi is None:
            try:
                self._mpi = importlib.import_module("mpi4py.MPI")
            except (ImportError, RuntimeError) as error:
                raise RendezvousError(
                    f"an MPI launcher started this process, but mpi4py cannot be used ({_line(error)}): "
                    "pip install mpi4py (built for that MPI), or set TREERING_STORE=file:///a/shared/directory"
                ) from error
        world = self._mpi.COMM_WORLD
        seen = world.Get_rank(), world.Get_size()
        if seen != (rank, size):
            library = _line(self._mpi.Get_library_version())
            raise RendezvousError(
                f"the launcher calls this process rank {rank} of {size}, mpi4py rank {seen[0]} of {seen[1]} "
                f"({library}): mpi4py was built for another MPI than the mpiexec that started it; install both "
                "into one environment"
            )

    def _send(self, data: bytes, peer: int, tag: int) -> None:
        request = self._mpi.COMM_WORLD.Isend([data, self._mpi.BYTE], dest=peer, tag=tag)
        self._unsent.append((request, data))

    def _receive(self, source: int, tag: int, deadline: float) -> tuple[int, bytes] | None:
        """(sender, bytes) of the next message, None at the deadline."""
        status = self._mpi.Status()
        pause_s = 0.00005
        while True:
            message = self._mpi.COMM_WORLD.Improbe(source=source, tag=tag, status=status)
            if message is not None:
                break
            if time.monotonic() > deadline:
                return None
            self.close()  # lets MPI work on what is not sent yet
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.005)
        length = cast("int", status.Get_count(self._mpi.BYTE))
        if length > MAX_CARD_BYTES * self._mpi.COMM_WORLD.Get_size():
            raise RendezvousError(f"rank {status.Get_source()} sent {length} bytes where a contact card was due")
        data = bytearray(length)
        message.Recv([data, self._mpi.BYTE])
        return int(status.Get_source()), bytes(data)


def _line(error: object) -> str:
    """The first line of what may be a page."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
