# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""Failures as torch.distributed raises them: its own exception types, with treering's words.

Each class below is both torch's and treering's, so `except dist.DistBackendError`, `except RuntimeError` and
`except collectives.PeerLostError` all work:

    DistNetworkError   PeerLostError, RendezvousError
    DistBackendError   every other CollectiveError

A caller's mistake stays a ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist

from transports import errors
from transports.errors import CollectiveError

__all__ = ["raise_as_torch", "torch_errors"]


class BackendError(dist.DistBackendError, CollectiveError):
    """A call failed."""


class BackendBrokenError(dist.DistBackendError, errors.CommunicatorBroken):
    """The group failed or was destroyed before this call."""


class BackendTimeoutError(dist.DistBackendError, errors.DeadlineExceeded):
    """Nothing moved for the timeout."""


class BackendMismatchError(dist.DistBackendError, errors.MismatchError):
    """The ranks of a group made different calls."""


class BackendUnsupportedError(dist.DistBackendError, errors.UnsupportedError):
    """This cannot be done."""


class BackendPeerLostError(dist.DistNetworkError, errors.PeerLostError):
    """A rank died or left."""


class BackendRendezvousError(dist.DistNetworkError, errors.RendezvousError):
    """The ranks of a group did not come together."""


_CLASSES: dict[type[CollectiveError], type[CollectiveError]] = {
    errors.CommunicatorBroken: BackendBrokenError,
    errors.DeadlineExceeded: BackendTimeoutError,
    errors.MismatchError: BackendMismatchError,
    errors.UnsupportedError: BackendUnsupportedError,
    errors.PeerLostError: BackendPeerLostError,
    errors.RendezvousError: BackendRendezvousError,
}


def raise_as_torch(error: CollectiveError) -> NoReturn:
    """Raises the error as torch's type, with the original as its cause."""
    if isinstance(error, RuntimeError):  # it is one already
        raise error
    text = f"the timeout ran out: {error}" if isinstance(error, errors.DeadlineExceeded) else str(error)
    raise _CLASSES.get(type(error), BackendError)(text) from error


@contextmanager
def torch_errors() -> Generator[None]:
    """Turns what a block raises into torch's types."""
    try:
        yield
    except CollectiveError as error:
        raise_as_torch(error)
