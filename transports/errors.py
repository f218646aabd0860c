"""The errors of the library: one tree, so that a program can catch as finely as it needs.

    CollectiveError
    ├── RendezvousError      the ranks did not come together: one is missing, double, or disagrees about the job
    ├── DeadlineExceeded     no progress for the deadline; names the rank waited for     (also a TimeoutError)
    ├── PeerLostError        a rank died or left; names it, the call and the step        (also a ConnectionError)
    ├── MismatchError        the ranks made different calls; names both
    ├── WireError            what arrived is not what the protocol allows
    ├── CommunicatorBroken   the communicator failed before this call; says by what, or that it was closed
    ├── UnsupportedError     this transport or build cannot do what was asked
    └── TransportError       the machine refused a resource: memory, descriptors, sockets

A caller's own mistake (a wrong shape, an unknown name) is a `ValueError` or `TypeError`, before any communication.
"""

from __future__ import annotations

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


class CollectiveError(Exception):
    """Something went wrong at run time, on this rank or on another; the message says which."""


class RendezvousError(CollectiveError):
    """The ranks of the job did not come together."""


class DeadlineExceeded(CollectiveError, TimeoutError):
    """Nothing moved for the deadline; the message names the rank that was waited for."""


class PeerLostError(CollectiveError, ConnectionError):
    """A rank died, or left while it was still needed."""


class MismatchError(CollectiveError):
    """Ranks of one communicator made different calls; the message names both calls."""


class WireError(CollectiveError):
    """Bytes arrived that the protocol does not allow at this place."""


class CommunicatorBroken(CollectiveError):
    """The communicator failed or was closed before this call."""


class UnsupportedError(CollectiveError):
    """The transport or this build of it cannot do what was asked."""


class TransportError(CollectiveError):
    """The operating system refused a resource the transport needs."""
