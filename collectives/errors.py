"""The errors of the library. The tree is drawn, and defined, in transports/errors.py, beside those who raise them."""

from __future__ import annotations

from transports.errors import (
    CollectiveError,
    CommunicatorBroken,
    DeadlineExceeded,
    MismatchError,
    PeerLostError,
    RendezvousError,
    TransportError,
    UnsupportedError,
    WireError,
)

__all__ = [
    "CollectiveError",
    "CommunicatorBroken",
    "DeadlineExceeded",
    "MismatchError",
    "PeerLostError",
    "RendezvousError",
    "TransportError",
    "UnsupportedError",
    "WireError",
]
