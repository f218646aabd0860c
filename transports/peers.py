"""The little that a transport needs from the layer below: messages that are sent and received without blocking.

Whoever has a `Peers` has a transport: `PeerTransport(peers, names)` (peer.py) runs programs on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["CONTROL_LANE", "LANES", "PeerGone", "Peers"]

LANES = 33
"""Lanes are 0 to 32: those of plans, that of `send` and `recv`, and the control lane."""
CONTROL_LANE = 32


class PeerGone(Exception):
    """A rank that died or whose connection broke, as far as the layer below can tell."""

    def __init__(self, peer: int) -> None:
        super().__init__(f"rank {peer} is gone")
        self.peer = peer


class Peers(Protocol):
    """One rank's messages to and from the others of a group.

    A message has a peer and a lane. Messages to one peer on one lane arrive in the order in which they were sent, and
    a receive has the size of the message that it gets; both ends know it beforehand. Any number may be under way.
    Only one thread calls at a time, not always the same one.
    """

    rank: int
    size: int
    hosts: tuple[tuple[int, ...], ...]
    """The ranks of each host, as far as it is known."""

    def isend(self, peer: int, lane: int, data: memoryview) -> Any:
        """Starts sending bytes, which stay as they are until the request that it returns has ended."""
        ...

    def irecv(self, peer: int, lane: int, into: memoryview) -> Any:
        """Starts receiving a message of so many bytes."""
        ...

    def test(self, requests: list[Any]) -> Sequence[int]:
        """Lets messages move, and returns the places in the list of the requests that have ended. Does not block.

        Raises PeerGone for a peer that one of the requests is waiting for, and that will not come.
        """
        ...

    def cancel(self, requests: list[Any]) -> None:
        """Gives up receives: their memory is not written after this returns. The group is broken then, or closed."""
        ...

    def who(self, rank: int) -> str:
        """What else is known of a rank, for messages: " (process 12 on node3)", or nothing."""
        ...

    def split(self, name: str, members: Sequence[int], rank: int) -> Peers:
        """A group of these ranks, whose messages do not meet those of this one; every member calls it alike."""
        ...

    def describe(self) -> str:
        """In a few words, for `repr`."""
        ...

    def close(self) -> None:
        """Gives everything back. What was sent still arrives."""
        ...
