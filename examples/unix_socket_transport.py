"""A transport of one's own: ranks of one host and user, connected by Unix sockets. transports/README.md explains it."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

from transports.failures import Names
from transports.launchers import Launch
from transports.peer import PeerTransport
from transports.peers import PeerGone

FRAME = struct.Struct("<IHxxQ")  # group, lane, bytes; the bytes follow
CLOSE_S = 1.0  # for the last words to be taken
numbers = itertools.count()  # of the meetings of this process: all ranks have as many


def connect(launch: Launch, *, names: Names, timeout_s: float) -> PeerTransport:
    """The factory: joins the other ranks of the job. As an entry point it is what `cc.connect(transport=...)` calls."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path := os.path.join(directory, "socket"))
        listener.listen(launch.size)
        store = launch.open_store(f"{launch.job}/unix-sockets/{next(numbers)}")
        paths = store.exchange(launch.rank, launch.size, path.encode(), timeout_s) if store else []
        sockets: dict[int, socket.socket] = {}
        for peer in range(launch.rank + 1, launch.size):  # of two ranks, the lower dials
            sockets[peer] = socket.socket(socket.AF_UNIX)
            sockets[peer].connect(paths[peer])
            sockets[peer].sendall(struct.pack("<I", launch.rank))
        listener.settimeout(timeout_s)
        for _ in range(launch.rank):
            accepted, _ = listener.accept()
            sockets[struct.unpack("<I", accepted.recv(4, socket.MSG_WAITALL))[0]] = accepted
        if store:
            store.close()
    return PeerTransport(UnixPeers(Wires(sockets), "world", range(launch.size), launch.rank), names)


class Request:
    """A message on its way: what is left to send, or where to put what comes."""

    def __init__(self, peer: int, memory: memoryview) -> None:
        self.peer, self.memory, self.ended = peer, memory, False


class Wires:
    """The sockets to the other ranks of the job, which all groups have in common."""

    def __init__(self, sockets: dict[int, socket.socket]) -> None:
        self.sockets, self.lock, self.users = sockets, threading.Lock(), 0
        self.gone: set[int] = set()
        self.outgoing: defaultdict[int, deque[Request]] = defaultdict(deque)
        self.incoming: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.wanted: defaultdict[tuple[int, ...], deque[Request]] = defaultdict(deque)  # by peer, group, lane
        self.came: defaultdict[tuple[int, ...], deque[bytes]] = defaultdict(deque)  # before it was wanted
        for sock in sockets.values():
            sock.setblocking(False)

    def move(self) -> None:
        """Sends and receives what can be, without waiting."""
        for peer, sock in self.sockets.items():
            out, data = self.outgoing[peer], self.incoming[peer]
            try:
                while out:
                    out[0].memory = out[0].memory[sock.send(out[0].memory) :]
                    if not out[0].memory:
                        out.popleft().ended = True
            except BlockingIOError:
                pass
            except OSError:
                self.gone.add(peer)
            try:
                while more := sock.recv(1 << 18):
                    data += more
                self.gone.add(peer)
            except BlockingIOError:
                pass
            except OSError:
                self.gone.add(peer)
            begin = 0
            while len(data) >= begin + FRAME.size:
                group, lane, nbytes = FRAME.unpack_from(data, begin)
                if len(data) < (end := begin + FRAME.size + nbytes):
                    break
                self.came[peer, group, lane].append(bytes(data[begin + FRAME.size : end]))
                self.match((peer, group, lane))
                begin = end
            del data[:begin]

    def match(self, channel: tuple[int, ...]) -> None:
        """Gives the messages that came on a channel to those who want them."""
        wanted, came = self.wanted[channel], self.came[channel]
        while wanted and came:
            request = wanted.popleft()
            request.memory[:] = came.popleft()
            request.ended = True


class UnixPeers:
    """The ranks of a group; see transports/peers.py."""

    def __init__(self, wires: Wires, name: str, members: Sequence[int], rank: int) -> None:
        self.wires, self.name, self.members, self.number = wires, name, members, zlib.crc32(name.encode())
        self.rank, self.size = rank, len(members)
        self.hosts = (tuple(range(self.size)),)
        with wires.lock:
            wires.users += 1

    def isend(self, peer: int, lane: int, data: memoryview) -> Request:
        to, frame = self.members[peer], memoryview(FRAME.pack(self.number, lane, len(data)))
        with self.wires.lock:
            requests = [Request(to, part) for part in (frame, data) if part]
            self.wires.outgoing[to].extend(requests)
            self.wires.move()
        return requests[-1]

    def irecv(self, peer: int, lane: int, into: memoryview) -> Request:
        request, channel = Request(self.members[peer], into), (self.members[peer], self.number, lane)
        with self.wires.lock:
            self.wires.wanted[channel].append(request)
            self.wires.match(channel)
        return request

    def test(self, requests: list[Any]) -> Sequence[int]:
        with self.wires.lock:
            self.wires.move()
            ended = [i for i, request in enumerate(requests) if request.ended]
            gone = [request.peer for request in requests if request.peer in self.wires.gone]
        if gone and not ended:  # what came before it went is there to be read
            raise PeerGone(self.members.index(gone[0]))
        return ended

    def cancel(self, requests: list[Any]) -> None:
        with self.wires.lock:
            for request in requests:
                request.memory = memoryview(bytearray(len(request.memory)))  # bytes of the broken group, for nobody

    def who(self, rank: int) -> str:
        return ""

    def split(self, name: str, members: Sequence[int], rank: int) -> UnixPeers:
        return UnixPeers(self.wires, f"{self.name}/{name}", [self.members[member] for member in members], rank)

    def describe(self) -> str:
        return "Unix sockets"

    def close(self) -> None:
        deadline, left = time.monotonic() + CLOSE_S, True
        while left and time.monotonic() < deadline:
            with self.wires.lock:
                self.wires.move()
                left = any(out for peer, out in self.wires.outgoing.items() if peer not in self.wires.gone)
        with self.wires.lock:
            self.wires.users -= 1
            if not self.wires.users:
                for sock in self.wires.sockets.values():
                    sock.close()
