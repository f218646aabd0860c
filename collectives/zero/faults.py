"""What went wrong, told with the names of parameters: buckets in place of numbers of elements.

A collective that fails says which rank is to blame and in which call. Here is said what that call was for.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from collectives.zero.layout import BucketLayout
from transports.errors import CollectiveError

__all__ = ["from_to", "while_doing"]


@contextmanager
def while_doing(what: str, where: BucketLayout | str) -> Generator[None]:
    """Adds to a CollectiveError raised within what this rank was doing, and with which bucket or parameter."""
    try:
        yield
    except CollectiveError as error:
        raise type(error)(f"{error}; this rank was {what} {where}") from error


def from_to(layouts: Sequence[BucketLayout]) -> str:
    """What a call about all buckets is about."""
    return str(layouts[0]) if len(layouts) == 1 else f"{layouts[0]} to {layouts[-1]}"
