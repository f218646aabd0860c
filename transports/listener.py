"""The thread that takes connections: lets the ranks of the job in, keeps everybody else out and cheap.

A stranger (a port scanner, a health probe, a rank of another job) costs one descriptor and a few KiB for two
seconds at most, and never takes a rank's place: connections are counted only after they have proved
themselves, and the listening sockets stay open whatever arrives.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from transports.handshake import Acceptor, Refused, Terms, acknowledgement, refusal

__all__ = ["Accept", "Listener", "peer_uid"]

MAX_GUESTS = 64
"""Connections that have not proved themselves, at once."""
GUEST_S = 2.0
"""How long one may take to do so."""
GRACE_S = 0.05
"""For so long it cannot be pushed out by a later one, so that many honest ranks at once do not push out each
other.
"""
MAX_PARKED = 1024
"""Proved connections that wait for a communicator which this rank has not opened yet."""
MAX_CLOSED_NAMES = 1024
LOG_EVERY_S = 10.0

Accept = Callable[[int, dict[str, Any], socket.socket, list[int]], "Callable[[], None] | None"]

log = logging.getLogger("treering")


class _Guest:
    """One connection on its way from stranger to peer."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock, self.name = sock, name
        self.since = time.monotonic()
        self.acceptor: Acceptor | None = None
        self.fds: list[int] = []  # while it is parked

    @property
    def proved(self) -> bool:
        return self.acceptor is not None and self.acceptor.peer is not None


class Listener:
    """Owns the listening sockets and the thread `treering-listener`. All public methods may be called from
    any thread.

    Connections wait (bounded) until `admit` tells which processes make up the job.
    """

    def __init__(self, rank: int, secret: bytes, sockets: list[socket.socket]) -> None:
        self.refused = 0
        self._rank, self._secret, self._sockets = rank, secret, sockets
        self._terms: Terms | None = None
        self._guests: dict[socket.socket, _Guest] = {}  # in the order of `since`
        self._proved: dict[socket.socket, _Guest] = {}
        self._parked: dict[str, list[_Guest]] = {}
        self._accepting = True
        self._resume_at = 0.0
        self._lock = threading.RLock()  # a communicator may be dropped, and so closed, anywhere
        self._served: dict[str, Accept] = {}
        self._closed_names: dict[str, None] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._unlogged = 0
        self._last_refused = ""
        self._logged_at = -LOG_EVERY_S
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for sock in sockets:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="treering-listener", daemon=True)
        self._thread.start()

    def admit(self, terms: Terms) -> None:
        """From now on connections of this job's processes are let in."""

        def start() -> None:
            self._terms = terms
            for guest in list(self._guests.values()):
                guest.since = time.monotonic()
                self._greet(guest, terms)

        self._call(start)

    def serve(self, comm: str, accept: Accept) -> None:
        """Connections for `comm` go to `accept`, those that wait already first; always on the listener's
        thread.
        """
        with self._lock:
            self._served[comm] = accept
            self._closed_names.pop(comm, None)
        self._call(lambda: self._deliver_parked(comm))

    def unserve(self, comm: str) -> None:
        """Later connections for `comm` are told that it is closed. A call of `accept` that is running still
        ends.
        """
        with self._lock:
            self._served.pop(comm, None)
            self._closed_names[comm] = None
            if len(self._closed_names) > MAX_CLOSED_NAMES:
                del self._closed_names[next(iter(self._closed_names))]
        self._call(lambda: self._deliver_parked(comm))

    @property
    def waiting(self) -> int:
        """How many proved connections wait for their communicator."""
        return sum(len(guests) for guests in list(self._parked.values()))

    def close(self) -> None:
        """Ends the thread and closes every connection that was not handed over. Safe to call twice."""
        self._closing = True
        self._call(lambda: None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def drop_after_fork(self) -> None:
        """In a forked child, which has no such thread: closes its copies of the descriptors and touches
        nothing else.
        """
        self._shut()

    # --- everything below runs on the listener's thread, except _call
    # ----------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        self._calls.append(function)
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: nothing is left to do
            self._wake.send(b"\0")

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select(self._patience_s()):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock is self._woken:
                        with contextlib.suppress(BlockingIOError):
                            self._woken.recv(4096)
                    elif sock in self._sockets:
                        self._take(sock)
                    else:
                        self._hear(sock)
                while self._calls:
                    self._calls.popleft()()
                self._tidy()
        finally:
            self._shut()

    def _patience_s(self) -> float | None:
        moments = [guest.since + GUEST_S for guests in (self._guests, self._proved) for guest in _first(guests)]
        if self._terms is None:
            moments = []
        if not self._accepting:
            moments += [self._resume_at] if self._resume_at else [g.since + GRACE_S for g in _first(self._guests)]
        if self._unlogged:
            moments.append(self._logged_at + LOG_EVERY_S)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _tidy(self) -> None:
        now = time.monotonic()
        if self._terms is not None:
            for guests in (self._guests, self._proved):
                for guest in [guest for guest in guests.values() if now - guest.since > GUEST_S]:
                    self._refuse(guest, f"said too little for {GUEST_S:g} s")
        if not self._accepting and now >= self._resume_at and self._has_room(now):
            self._resume_at = 0.0
            self._pause(False)
        self._log(now)

    def _has_room(self, now: float) -> bool:
        return len(self._guests) < MAX_GUESTS or now - next(iter(self._guests.values())).since > GRACE_S

    def _pause(self, pause: bool) -> None:
        if self._accepting == pause:
            self._accepting = not pause
            for sock in self._sockets:
                if pause:
                    self._selector.unregister(sock)
                else:
                    self._selector.register(sock, selectors.EVENT_READ)

    def _take(self, listening: socket.socket) -> None:
        while self._accepting:
            if not self._has_room(time.monotonic()):
                self._pause(True)
                return
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The connection stays in the queue and the socket stays readable: look again a little
                    # later.
                    self._count(f"somebody ({error.strerror})")
                    self._resume_at = time.monotonic() + GRACE_S
                    self._pause(True)
                    return
                continue  # it went away while it was queued
            sock.setblocking(False)
            unix = listening.family == socket.AF_UNIX
            guest = _Guest(sock, "a process on this host" if unix else f"{address[0]}:{address[1]}")
            if unix and peer_uid(sock) not in (None, os.geteuid()):
                self._refuse(guest, f"it is a process of user {peer_uid(sock)}")
                continue
            if not unix:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._guests) >= MAX_GUESTS:
                self._refuse(next(iter(self._guests.values())), "it kept others waiting")
            self._guests[sock] = guest
            if self._terms is not None:
                self._greet(guest, self._terms)

    def _greet(self, guest: _Guest, terms: Terms) -> None:
        guest.acceptor = Acceptor(self._secret, terms, self._rank)
        self._selector.register(guest.sock, selectors.EVENT_READ)
        self._hear(guest.sock)  # what it has to say is usually here already

    def _hear(self, sock: socket.socket) -> None:
        guest = self._guests.get(sock) or self._proved.get(sock)
        if guest is None:
            # A parked one must be silent until it is acknowledged, so this is its end.
            self._forget_parked(sock)
            return
        try:
            if guest.proved:
                self._hear_descriptors(guest)
            else:
                self._hear_handshake(guest)
        except BlockingIOError:
            return
        except Refused as error:
            with contextlib.suppress(OSError):
                sock.send(refusal(str(error)))
            self._refuse(guest, str(error))
        except OSError as error:
            self._refuse(guest, error.strerror or str(error))

    def _hear_handshake(self, guest: _Guest) -> None:
        acceptor = guest.acceptor
        assert acceptor is not None
        while acceptor.wanted:
            data = guest.sock.recv(acceptor.wanted)
            if not data:
                raise ConnectionError("it went away before it had proved itself")
            answer = acceptor.feed(data)
            if answer:
                _send(guest.sock, answer)
        del self._guests[guest.sock]
        guest.since = time.monotonic()
        self._proved[guest.sock] = guest
        if acceptor.fds == 0:
            self._deliver(guest, [])

    def _hear_descriptors(self, guest: _Guest) -> None:
        assert guest.acceptor is not None
        data, fds = _receive_descriptors(guest.sock, guest.acceptor.fds)
        if len(data) != 1 or len(fds) != guest.acceptor.fds:
            _close(fds)
            raise ConnectionError(f"{len(fds)} descriptors came, {guest.acceptor.fds} were announced")
        self._deliver(guest, fds)

    def _deliver(self, guest: _Guest, fds: list[int]) -> None:
        assert guest.acceptor is not None
        self._proved.pop(guest.sock, None)
        comm = str(guest.acceptor.hello.get("comm"))
        with self._lock:
            accept, closed = self._served.get(comm), comm in self._closed_names
        if accept is None:
            if closed:
                self._dismiss(guest, fds, f"communicator {comm} is closed on rank {self._rank}", closed=True)
            elif self.waiting >= MAX_PARKED:
                self._dismiss(guest, fds, f"{MAX_PARKED} connections wait on rank {self._rank} already")
            else:
                guest.fds = fds
                self._parked.setdefault(comm, []).append(guest)
            return
        self._selector.unregister(guest.sock)
        guest.sock.setblocking(True)
        assert guest.acceptor.peer is not None
        try:
            with guest.sock.dup() as line:  # for the acknowledgement, whatever becomes of the socket
                start = accept(guest.acceptor.peer, guest.acceptor.hello, guest.sock, fds)
                with contextlib.suppress(OSError):  # a dialer that is gone is the new owner's news
                    _send(line, acknowledgement())
        except Exception as error:
            self._dismiss(guest, fds, f"{error}")
            return
        if start is not None:
            try:
                start()
            except Exception:  # the owner's own trouble; the others still want to come in
                log.exception("rank %d could not take over a connection", self._rank)

    def _deliver_parked(self, comm: str) -> None:
        for guest in self._parked.pop(comm, []):
            self._deliver(guest, guest.fds)

    def _forget_parked(self, sock: socket.socket) -> None:
        for comm, guests in list(self._parked.items()):
            for guest in guests:
                if guest.sock is sock:
                    guests.remove(guest)
                    self._drop(guest, guest.fds)
                    if not guests:
                        del self._parked[comm]
                    return

    def _dismiss(self, guest: _Guest, fds: list[int], reason: str, *, closed: bool = False) -> None:
        """Tells a proved peer why it is not wanted."""
        with contextlib.suppress(OSError):
            _send(guest.sock, acknowledgement(reason or "an error without a text", closed=closed))
        self._drop(guest, fds)

    def _refuse(self, guest: _Guest, reason: str) -> None:
        self._guests.pop(guest.sock, None)
        self._proved.pop(guest.sock, None)
        self._count(f"{guest.name}: {reason}")
        self._drop(guest, [])

    def _drop(self, guest: _Guest, fds: list[int]) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(guest.sock)
        guest.sock.close()
        _close(fds)

    def _count(self, what: str) -> None:
        self.refused += 1
        self._unlogged += 1
        self._last_refused = what

    def _log(self, now: float) -> None:
        if self._unlogged and now - self._logged_at >= LOG_EVERY_S:
            log.warning(
                "rank %d refused %d connection(s); the last was from %s",
                self._rank, self._unlogged, self._last_refused,
            )  # fmt: skip
            self._unlogged, self._logged_at = 0, now

    def _shut(self) -> None:
        self._selector.close()
        for sock in (*self._sockets, self._wake, self._woken):
            sock.close()
        for guest in (*self._guests.values(), *self._proved.values()):
            guest.sock.close()
        for guest in (guest for guests in self._parked.values() for guest in guests):
            guest.sock.close()
            _close(guest.fds)


def peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end of a Unix socket, as the kernel knows it; None where the kernel does not
    tell.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # an `accept` that failed may have closed some
            os.close(fd)


def _first(guests: dict[socket.socket, _Guest]) -> list[_Guest]:
    return [next(iter(guests.values()))] if guests else []


def _send(sock: socket.socket, message: bytes) -> None:
    # A few hundred bytes into an empty buffer. One that cannot take them is a peer that does not read: let it
    # go.
    if sock.send(message, getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT) != len(message):
        raise ConnectionError("it does not read what it is told")


def _receive_descriptors(sock: socket.socket, count: int) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(count * fds.itemsize), flags)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)
