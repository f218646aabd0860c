"""What went wrong, told with the names of parameters: buckets in place of numbers of elements.

A collective that fails says which rank is to blame and in which call. Here is said what that call was for.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from collectives.zero.layout import BucketLayout
from transports.errors import CollectiveError

__all__ = ["while_doing"]


@contextmanager
def while_doing(what: str, layout: BucketLayout) -> Generator[None]:
    """Adds to a CollectiveError raised within what this rank was doing, and with which bucket."""
    try:
        yield
    except CollectiveError as error:
        raise type(error)(f"{error}; this rank was {what} {layout}") from error
