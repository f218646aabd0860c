"""How one rank is reached by the others and reaches them: authenticated connections, made when they are first
needed.

Each rank listens on a Unix socket (ranks on its host; the kernel vouches for the user) and on TCP, tells the
others through the store of the job (stores.py), and from then on any rank can `dial` any other. Every
connection passes the handshake (handshake.py) before anything else is read from it.

Where TCP listens: without a secret on 127.0.0.1 only; with one on the one address that was chosen
(network.py), never on all. A job without a secret whose ranks turn out to be on several hosts is refused with
a hint how to make one.
"""

from __future__ import annotations

import array
import errno
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Literal

from transports.cards import group_hosts, open_cards, seal_card, tcp_addresses, terms_of
from transports.errors import DeadlineExceeded, PeerLostError, RendezvousError, TransportError, WireError
from transports.handshake import Closed, Dialer, Refused
from transports.listener import Accept, Listener, peer_uid
from transports.network import LOOPBACK, is_loopback
from transports.stores import Store

__all__ = ["HOW_TO_MAKE_A_SECRET", "Accept", "Endpoint"]

HOW_TO_MAKE_A_SECRET = (
    'give every rank the same secret: `python -c "import secrets; print(secrets.token_hex(32))"` makes one, '
    "for the environment as TREERING_SECRET, or for a file (mode 0600) that TREERING_SECRET_FILE names"
)

_BACKLOG = 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class Endpoint:
    """This rank's way to the others.

    Creating one blocks until all ranks have joined, `join_timeout_s` at most, and raises RendezvousError
    naming the rank that is missing or double, that has another secret or another size, or TransportError when
    this process cannot listen. After an error nothing is left: no thread, socket or file. `close` leaves
    nothing either.

    rank, size      of this process
    store           where cards are exchanged (stores.py); None is enough for one rank. `close` closes it.
    job             the job's name, equal on all ranks
    transport       "shm" needs no TCP, so none is listened on; all others do the same
    secret          equal on all ranks; None: this host only
    address         the numeric address that TCP listens on, or several: lanes are spread over them; by default
                    127.0.0.1
    knows           whether this rank has something to tell the others; on the cards, so all know
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store | None,
        *,
        job: str,
        secret: bytes | None,
        transport: str = "auto",
        address: str | Sequence[str] | None = None,
        join_timeout_s: float = 60.0,
        knows: bool = False,
    ) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size}: ranks go from 0 to {size - 1}")
        if store is None and size > 1:
            raise ValueError(f"{size} ranks need a store to find each other")
        addresses = (address,) if isinstance(address, str) else tuple(address or (LOOPBACK,))
        far = [a for a in addresses if not is_loopback(a)]
        if secret is None and far:
            raise ValueError(f"without a secret only this host can be served, not {far[0]}; {HOW_TO_MAKE_A_SECRET}")
        self.rank, self.size = rank, size
        self._secret = secret or b""
        self._store = store
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._listener: Listener | None = None
        unix: str | None = None
        tcp: list[tuple[str, int]] = []
        try:
            if size > 1:
                unix, tcp = self._listen(() if transport == "shm" else addresses)
            card = seal_card(rank, size, job, self._secret, unix, tcp, knows)
            raw = [card] if store is None else store.exchange(rank, size, card, join_timeout_s)
            self.cards: list[dict[str, Any]] = open_cards(raw, rank, self._secret)
            self.hosts: tuple[tuple[int, ...], ...] = group_hosts(self.cards)
            self._check_hosts(secret is not None)
        except BaseException:
            self.close()
            raise
        self._terms = terms_of(self.cards)
        if self._listener is not None:
            self._listener.admit(self._terms)

    def __repr__(self) -> str:
        return f"<Endpoint of rank {self.rank} of {self.size} on {len(self.hosts)} host(s)>"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def refused(self) -> int:
        """How many connections were turned away so far."""
        return self._listener.refused if self._listener is not None else 0

    @property
    def waiting(self) -> int:
        """How many connections wait for a communicator that this rank has not opened yet."""
        return self._listener.waiting if self._listener is not None else 0

    def same_host(self, peer: int) -> bool:
        """Whether memory and Unix sockets can be shared with that rank."""
        return bool(self.cards[peer]["host_id"] == self.cards[self.rank]["host_id"])

    @property
    def rails(self) -> int:
        """The most addresses that any rank listens on."""
        return max(len(tcp_addresses(card)) for card in self.cards)

    def serve(self, comm: str, accept: Accept) -> None:
        """Hands connections whose hello has `"comm": comm` to `accept(peer, hello, sock, fds)`, those that
        came already too.

        `accept` runs on the listener's thread, so it must be quick and never wait for a peer. It owns the
        socket (blocking mode) and the descriptors from then on. When it raises, they are closed here and the
        dialer gets the text of the exception. The dialer may send as soon as it has the acknowledgement,
        which goes out when `accept` has returned; nothing may be *written* to the socket before. A writer
        that is ready at once is started by the function that `accept` may return: it is called right after
        the acknowledgement.
        """
        if self._listener is not None:
            self._listener.serve(comm, accept)

    def unserve(self, comm: str) -> None:
        """Later dials for `comm` fail with WireError, saying that it is closed. A running `accept` still
        ends.
        """
        if self._listener is not None:
            self._listener.unserve(comm)

    def dial(
        self,
        peer: int,
        hello: dict[str, Any],
        *,
        family: Literal["unix", "tcp"],
        deadline_s: float,
        fds: Sequence[int] = (),
        rail: int = 0,
    ) -> socket.socket:
        """A new connection that `peer` has taken over: authenticated both ways, empty, in blocking mode,
        CLOEXEC.

        hello         JSON, at most 4 KiB; "comm" names the communicator. The peer's `accept` gets it.
        deadline_s    for all of it, also for the peer to open the communicator
        fds           sent along (family "unix"); the caller keeps its own copies
        rail          which of the peer's addresses, and from which of this rank's own, each counted round

        May be called from any thread, except by an `accept` (it waits for another rank). Raises PeerLostError
        (nobody listens there, or it went away), DeadlineExceeded, WireError (the peer's `accept` refused, or
        what listens there is not that rank), each naming the rank. After an error the connection is closed;
        the peer may still have seen it, and then finds it closed.
        """
        if peer == self.rank or not 0 <= peer < self.size:
            raise ValueError(f"rank {self.rank} of {self.size} cannot dial rank {peer}")
        if fds and family != "unix":
            raise ValueError("descriptors can only be passed through a Unix socket")
        call = _Call(self, peer, family, rail, time.monotonic() + deadline_s, deadline_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            sock = call.connect()
            if sock is not None:
                dialer = Dialer(self._secret, self._terms, self.rank, peer, hello, len(fds))
                try:
                    if call.introduce(sock, dialer, fds):
                        sock.settimeout(None)
                        return sock
                except BaseException:
                    sock.close()
                    raise
                sock.close()
            # The queue was full, or it hung up before it could know us (a crowd of strangers): try again.
            time.sleep(min(pause_s, call.remaining_s()))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Stops listening, ends the thread; connections that were handed over live on. Safe to call twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._store is not None:
            self._store.close()
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.cleanup()

    def drop_after_fork(self) -> None:
        """For a forked child: closes its copies of the listening sockets, so that the parent's end is seen as
        such.

        Nothing that the parent uses is touched: its thread, its files in the store.
        """
        listener, self._listener, self._store, self._directory = self._listener, None, None, None
        if listener is not None:
            listener.drop_after_fork()

    def _listen(self, addresses: Sequence[str]) -> tuple[str, list[tuple[str, int]]]:
        sockets: list[socket.socket] = []
        try:
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sockets.append(unix)
            name = f"treering-{secrets.token_hex(16)}"
            if sys.platform == "linux":
                name = "@" + name  # abstract: gone with the process, whatever happens to it
            else:
                self._directory = tempfile.TemporaryDirectory(prefix="treering-")
                name = os.path.join(self._directory.name, "socket")
            unix.bind(_unix_address(name))
            unix.listen(_BACKLOG)
            tcp_at: list[tuple[str, int]] = []
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                tcp = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(tcp)
                tcp.bind((address, 0))
                tcp.listen(_BACKLOG)
                tcp_at.append((address, tcp.getsockname()[1]))
            self._listener = Listener(self.rank, self._secret, sockets)
            return name, tcp_at
        except OSError as error:
            for sock in sockets:
                sock.close()
            where = ", ".join(addresses) or "a Unix socket"
            raise TransportError(f"rank {self.rank} cannot listen on {where}: {error}") from error

    def _check_hosts(self, has_secret: bool) -> None:
        if len(self.hosts) == 1:
            return
        names = [f"rank {ranks[0]} on {self.cards[ranks[0]]['host']}" for ranks in self.hosts[:2]]
        if not has_secret:
            raise RendezvousError(
                f"the ranks are on several hosts ({', '.join(names)}), and that needs a secret; " + HOW_TO_MAKE_A_SECRET
            )
        for rank, card in enumerate(self.cards):
            if card["tcp"] is None:
                raise RendezvousError(
                    f"the ranks are on several hosts ({', '.join(names)}), which shared memory cannot join"
                )
            near = next((host for host, _ in tcp_addresses(card) if is_loopback(host)), None)
            if near is not None:
                raise RendezvousError(
                    f"rank {rank} on {card['host']} listens on {near}, which other hosts cannot "
                    "reach: set TREERING_ADDRESS there to its address or network interface"
                )


class _Call:
    """The attempts of one dial: where to, until when, and how its errors read."""

    def __init__(
        self, endpoint: Endpoint, peer: int, family: str, rail: int, deadline: float, deadline_s: float
    ) -> None:
        card = endpoint.cards[peer]
        self.who = f"rank {peer} (process {card['pid']} on {card['host']})"
        self.peer, self.family, self.deadline, self.deadline_s = peer, family, deadline, deadline_s
        self.stage = "take the connection"
        self.source: str | None = None
        if family == "unix":
            if not endpoint.same_host(peer):
                raise ValueError(f"{self.who} is on another host: a Unix socket cannot reach it")
            self.kind, self.address = socket.AF_UNIX, _unix_address(card["unix"])
        else:
            if card["tcp"] is None:
                raise ValueError(f'{self.who} does not listen on TCP (transport="shm")')
            theirs, own = tcp_addresses(card), tcp_addresses(endpoint.cards[endpoint.rank])
            host, port = theirs[rail % len(theirs)]
            self.kind, self.address = (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
            if len(own) > 1:
                source = own[rail % len(own)][0]
                if (":" in source, is_loopback(source)) == (":" in host, is_loopback(host)):
                    self.source = source

    def remaining_s(self) -> float:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded(f"{self.who} did not {self.stage} within {self.deadline_s:g} s")
        return remaining

    def connect(self) -> socket.socket | None:
        """A connected socket, or None when the queue of the peer is full."""
        sock = socket.socket(self.kind, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.remaining_s())
            if self.source is not None:
                sock.bind((self.source, 0))
            sock.connect(self.address)
            if self.kind != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif peer_uid(sock) not in (None, os.geteuid()):
                raise WireError(f"what listens in place of {self.who} is a process of user {peer_uid(sock)}")
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EAGAIN:
                return None
            # Python gives ETIMEDOUT and its own time-out the same class; only the first has a number.
            if isinstance(error, TimeoutError) and error.errno is None:
                self.remaining_s()
                return None
            raise PeerLostError(f"{self.who} cannot be reached by {self.family}: {error}") from error
        except BaseException:
            sock.close()
            raise

    def introduce(self, sock: socket.socket, dialer: Dialer, fds: Sequence[int]) -> bool:
        """Runs the handshake. False: the peer hung up before either side had proved anything."""
        try:
            self._send(sock, dialer.start())
            while dialer.wanted:
                sock.settimeout(self.remaining_s())
                data = sock.recv(dialer.wanted)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "it hung up")
                was_proved = dialer.proved
                answer = dialer.feed(data)
                if answer:
                    self._send(sock, answer)
                if dialer.proved and not was_proved:
                    self.stage = "open the communicator that was asked for"
                    if fds:
                        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                        sock.sendmsg([b"\0"], [rights])
            return True
        except Refused as error:
            where = "its Unix socket" if self.family == "unix" else "{}:{}".format(*self.address)
            raise WireError(f"{self.who} was dialled, but what listens on {where} is no good: {error}") from error
        except WireError as error:
            kind = Closed if isinstance(error, Closed) else WireError
            raise kind(f"{self.who} refused the connection: {error}") from error
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                self.remaining_s()
            if isinstance(error, (ConnectionResetError, BrokenPipeError)) and not dialer.proved:
                return False
            raise PeerLostError(f"{self.who} went away while it was dialled: {error}") from error

    def _send(self, sock: socket.socket, data: bytes) -> None:
        sock.settimeout(self.remaining_s())
        sock.sendall(data)


def _unix_address(name: str) -> str:
    return "\0" + name[1:] if name.startswith("@") else name
