"""Connections of one communicator, made when a program first needs them.

Of two ranks the lower one dials. It brings the memory of shared-memory lanes along, so a link over shared memory is
one Unix connection (kept for control frames) and one segment a lane; a link over TCP is one connection for control and
one a lane. Where ranks listen on several addresses, lane i takes the i-th of them, counted round. The higher rank
waits; when the lower one does not come by itself (it is busy with something else, or about to make a call that does
not match), a `poke` asks it to, which its listener answers without its main thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transports.endpoint import Endpoint
from transports.engine._engine import Engine  # pyright: ignore[reportMissingModuleSource]
from transports.errors import CollectiveError, DeadlineExceeded, TransportError, WireError

__all__ = ["Links"]

_log = logging.getLogger("treering")
_POKE_AFTER_S = 0.05
_LOOK_EVERY_S = 0.05
_LOCAL_SEND_BUFFER_BYTES = 256 << 10
_TELL_ALL_S, _TELL_ONE_S = 0.3, 0.1


class Links:
    """Makes the lanes of one engine. `ensure` may be called by one thread at a time; connections arrive any time."""

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        name: str,
        members: Sequence[int],
        rank: int,
        *,
        transport: str,
        ring_bytes: int,
    ) -> None:
        self._engine, self._endpoint, self._name = engine, endpoint, name
        self._members, self._rank = tuple(members), rank
        self._of_world = {world: rank for rank, world in enumerate(self._members)}
        self._transport, self._ring_bytes = transport, ring_bytes
        self._changed = threading.Condition()
        self._dialing: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._controls: set[int] = set()
        self.connecting_to = -1
        """The peer that `ensure` is or was last concerned with."""
        endpoint.serve(name, self._accept)

    def close(self) -> None:
        """Accepts no more connections. Those that are made belong to the engine."""
        self._endpoint.unserve(self._name)

    def shared_memory(self, peer: int) -> bool:
        """Whether the bytes to and from the peer go through shared memory."""
        return self._transport != "tcp" and self._endpoint.same_host(self._members[peer])

    def ensure(self, channels: Iterable[tuple[int, int]], timeout_s: float) -> None:
        """Returns when all these (peer, lane) pairs are connected.

        Raises PeerLostError or DeadlineExceeded naming the peer; whatever it raises, the communicator is of no more
        use, and the caller says so to the others. Returns early when the engine has failed meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        for peer, lane in sorted(channels):
            if not self._engine.has_lane(peer, lane):
                wanted[peer].append(lane)
        try:
            for peer, lanes in wanted.items():
                if self._rank < peer:
                    self._turn_to(peer)
                    self._dial(peer, lanes, deadline - time.monotonic())
            for peer, lanes in wanted.items():
                if self._rank > peer:
                    self._turn_to(peer)
                    self._await(peer, lanes, deadline)
        finally:
            if wanted:
                self._engine.connecting(-1)

    def _turn_to(self, peer: int) -> None:
        self.connecting_to = peer
        self._engine.connecting(peer)

    def spread(self, culprit: int) -> None:
        """Tells the ranks that have no connection to this one yet why the engine has failed, as well as it can.

        They would ask when they first need a connection, but by then this rank may have ended. The culprit is left out.
        """
        deadline = time.monotonic() + _TELL_ALL_S
        for peer, world in enumerate(self._members):
            left_s = deadline - time.monotonic()
            if peer in (self._rank, culprit) or peer in self._controls or left_s <= 0:
                continue
            family = "unix" if self._endpoint.same_host(world) else "tcp"
            with contextlib.suppress(CollectiveError, OSError):
                sock = self._connect(peer, {"kind": "control"}, family, min(left_s, _TELL_ONE_S))
                if not self._keep_control(peer, sock):  # the engine says why as soon as it has the connection
                    sock.close()

    # ---------------------------------------------------------------- the lower rank

    def _dial(self, peer: int, lanes: Sequence[int], timeout_s: float) -> None:
        with self._dialing[peer]:
            missing = [lane for lane in lanes if not self._engine.has_lane(peer, lane)]
            if not missing:
                return
            if self.shared_memory(peer):
                try:
                    segments = [_Segment(self._ring_bytes) for _ in missing]
                except OSError as error:
                    self._no_memory(error)
                else:
                    self._dial_shared_memory(peer, missing, segments, timeout_s)
                    return
            self._dial_tcp(peer, missing, timeout_s)

    def _dial_shared_memory(
        self, peer: int, lanes: Sequence[int], segments: Sequence[_Segment], timeout_s: float
    ) -> None:
        hello = {"kind": "shm", "lanes": list(lanes), "ring_bytes": self._ring_bytes}
        try:
            sock = self._connect(peer, hello, "unix", timeout_s, [fd for s in segments for fd in s.fds()])
            if not self._keep_control(peer, sock):
                sock.close()
            for lane, segment in zip(lanes, segments, strict=True):
                segment.attach(self._engine, peer, lane, self._ring_bytes, side=0)
        finally:
            for segment in segments:
                segment.close()

    def _dial_tcp(self, peer: int, lanes: Sequence[int], timeout_s: float) -> None:
        if peer not in self._controls:
            self._keep_control(peer, self._connect(peer, {"kind": "control"}, "tcp", timeout_s))
        for lane in lanes:
            sock = self._connect(peer, {"kind": "tcp", "lane": lane}, "tcp", timeout_s, rail=lane)
            self._engine.attach_tcp(peer, lane, self._tuned(peer, sock).detach())

    def _connect(
        self, peer: int, hello: dict[str, Any], family: Any, timeout_s: float, fds: Sequence[int] = (), rail: int = 0
    ) -> socket.socket:
        hello = {"comm": self._name, **hello}
        return self._endpoint.dial(self._members[peer], hello, family=family, deadline_s=timeout_s, fds=fds, rail=rail)

    def _keep_control(self, peer: int, sock: socket.socket) -> bool:
        """Gives the engine the control connection to the peer, unless it has one."""
        with self._changed:
            if peer in self._controls:
                return False
            self._controls.add(peer)
        self._engine.attach_control(peer, self._tuned(peer, sock).detach())
        return True

    def _no_memory(self, error: OSError) -> None:
        text = f"no {Engine.segment_bytes(self._ring_bytes)} bytes of shared memory for a lane: {error.strerror}"
        if self._transport == "shm":
            raise TransportError(f'{text}; free some, raise the limit, or use transport="auto" or "tcp"') from error
        _log.warning("treering: %s; rank %d uses TCP on this host instead", text, self._rank)
        self._transport = "tcp"

    def _tuned(self, peer: int, sock: socket.socket) -> socket.socket:
        """Non-blocking, and on TCP quick and watchful: a dead host is noticed within seconds."""
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if self._endpoint.same_host(self._members[peer]) and hasattr(socket, "TCP_CONGESTION"):
            # Within a host there is no network to be careful of, and pacing (BBR) costs a factor of three at 4 MiB.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            # What is under way should stay in the cache until it is read.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_SEND_BUFFER_BYTES)
        return sock

    # ---------------------------------------------------------------- the higher rank

    def _await(self, peer: int, lanes: Sequence[int], deadline: float) -> None:
        begin = time.monotonic()
        poked = False

        def connected() -> bool:
            return all(self._engine.has_lane(peer, lane) for lane in lanes)

        with self._changed:
            while not connected():
                now = time.monotonic()
                if self._engine.failure() is not None:
                    return
                if now > deadline:
                    raise DeadlineExceeded(f"rank {peer} did not connect within {deadline - begin:.1f} s")
                if not poked and now - begin > _POKE_AFTER_S:
                    poked = True
                    self._changed.release()
                    try:
                        self._poke(peer, lanes, deadline - now)
                    except CollectiveError:
                        # It may have come by itself meanwhile, done its part and left.
                        with self._changed:
                            if not self._changed.wait_for(connected, _LOOK_EVERY_S):
                                raise
                    finally:
                        self._changed.acquire()
                    continue
                self._changed.wait(_LOOK_EVERY_S)

    def _poke(self, peer: int, lanes: Sequence[int], timeout_s: float) -> None:
        family = "unix" if self._endpoint.same_host(self._members[peer]) else "tcp"
        self._connect(peer, {"kind": "poke", "lanes": list(lanes)}, family, timeout_s).close()

    # ---------------------------------------------------------------- the listener's thread

    def _accept(
        self, world: int, hello: dict[str, Any], sock: socket.socket, fds: list[int]
    ) -> Callable[[], None] | None:
        peer = self._of_world.get(world)
        if peer is None:
            raise WireError(f"rank {world} of the job is not a member of this communicator")
        kind = hello.get("kind")
        if kind == "shm":
            lanes, ring_bytes = hello["lanes"], int(hello["ring_bytes"])
            if len(fds) != 3 * len(lanes):
                raise WireError(f"{len(fds)} descriptors came for {len(lanes)} lanes")
            if any(os.fstat(memory).st_size < Engine.segment_bytes(ring_bytes) for memory in fds[::3]):
                raise WireError("a shared-memory lane is smaller than announced")
            segments = [_Segment.received(*fds[i : i + 3]) for i in range(0, len(fds), 3)]
            for lane, segment in zip(lanes, segments, strict=True):
                segment.attach(self._engine, peer, int(lane), ring_bytes, side=1)
            for segment in segments:
                segment.close()
        elif kind == "poke":
            sock.close()
            lanes = [int(lane) for lane in hello["lanes"]]
            threading.Thread(target=self._answer_poke, args=(peer, lanes), daemon=True).start()
            return None
        elif kind not in ("tcp", "control"):
            raise WireError(f"an unknown kind of connection: {kind!r}")

        def ready() -> None:  # after the acknowledgement: from now on the engine may write
            if kind == "tcp":
                self._engine.attach_tcp(peer, int(hello["lane"]), self._tuned(peer, sock).detach())
            elif not self._keep_control(peer, sock):
                sock.close()
            with self._changed:
                self._changed.notify_all()

        return ready

    def _answer_poke(self, peer: int, lanes: Sequence[int]) -> None:
        try:
            self._dial(peer, lanes, timeout_s=10.0)
        except (CollectiveError, OSError) as error:
            _log.debug("treering: rank %d could not connect to rank %d: %s", self._rank, peer, error)


class _Segment:
    """The memory of one lane, and a bell (eventfd) for each side to wake the other."""

    def __init__(self, ring_bytes: int) -> None:
        self.memory = os.memfd_create("treering-lane", os.MFD_CLOEXEC)
        self.bells: list[int] = []
        try:
            # Takes the memory now: a lack of it is an error here, not SIGBUS when a page is first touched.
            os.posix_fallocate(self.memory, 0, Engine.segment_bytes(ring_bytes))
            for _ in range(2):
                self.bells.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            self.close()
            raise

    @classmethod
    def received(cls, memory: int, their_bell: int, my_bell: int) -> _Segment:
        segment = cls.__new__(cls)
        segment.memory, segment.bells = memory, [my_bell, their_bell]
        return segment

    def fds(self) -> tuple[int, int, int]:
        return self.memory, self.bells[0], self.bells[1]

    def attach(self, engine: Engine, peer: int, lane: int, ring_bytes: int, side: int) -> None:
        """Gives the lane to the engine, with bells of its own."""
        mine = os.dup(self.bells[0])
        try:
            theirs = os.dup(self.bells[1])
        except BaseException:
            os.close(mine)
            raise
        engine.attach_shm(peer, lane, self.memory, ring_bytes, side, mine, theirs)

    def close(self) -> None:
        for fd in (self.memory, *self.bells):
            os.close(fd)
