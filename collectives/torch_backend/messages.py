# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""Messages between two ranks of a group: they have connections of their own, so they never wait for collectives."""

from __future__ import annotations

import time
from typing import Any

import torch

from collectives.communicator import Communicator
from collectives.torch_backend.layout import Finish, writable
from collectives.torch_backend.work import Completer, Work
from transports.errors import DeadlineExceeded

__all__ = ["Messages"]


class Messages:
    """Sends and receives of one group, any number at the same time, matched by rank and tag."""

    def __init__(self, communicator: Communicator) -> None:
        ranks = range(communicator.size)
        self._mail = communicator.subgroup(ranks, name="messages")
        self._completer = Completer(self._mail, "treering-message", in_order=False)  # messages end in any order
        self._under_way: list[tuple[Any, torch.Tensor]] = []  # their memory lives as long as they do

    def post(self, sends: bool, tensor: torch.Tensor, peer: int, tag: int, timeout_s: float) -> Work:
        """Begins to send the tensor to the peer, or to receive into it (from any rank: peer -1)."""
        target, finish = writable(tensor, keep=sends)
        posted = self._mail.post(target, sends=sends, peer=peer, tag=tag, timeout_s=timeout_s)
        self._under_way = [item for item in self._under_way if not item[0].has_ended()]
        self._under_way.append((posted, target))
        return _MessageWork(posted, [tensor], self._completer, None if sends else finish)

    def close(self) -> None:
        """Ends what is under way. Idempotent."""
        self._completer.close()
        self._under_way.clear()


class _Posted:
    """A message as a call in progress."""

    def __init__(self, posted: Any) -> None:
        self._posted = posted

    def wait(self, timeout_s: float | None = None) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = 3600.0 if deadline is None else deadline - time.monotonic()
            if self._posted.wait(max(left_s, 0.0)):
                return
            if left_s <= 0:
                raise DeadlineExceeded(f"the message has not ended after {timeout_s} s; it goes on")

    def done(self) -> bool:
        return self._posted.wait(0.0)


class _MessageWork(Work):
    """A message in progress."""

    def __init__(self, posted: Any, outputs: list[torch.Tensor], completer: Completer, finish: Finish) -> None:
        super().__init__(_Posted(posted), outputs, completer, finish)
        self._posted = posted

    def source_rank(self) -> int:
        """The rank of the group that a message came from."""
        return self._posted.source

    _source_rank = source_rank
