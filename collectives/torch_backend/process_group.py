# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# torch may be missing where types are checked; strict rules would only count what is unknown then.
"""The process group that torch calls: each method checks its tensors, and makes one call of the communicator.

Names and signatures are those of torch 2.13; the older names are the same functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from collectives.communicator import Communicator
from collectives.torch_backend.errors import torch_errors
from collectives.torch_backend.layout import check_dense
from collectives.torch_backend.messages import Messages
from collectives.torch_backend.monitored import monitored_barrier
from collectives.torch_backend.moves import Moves
from collectives.torch_backend.reductions import Reductions
from collectives.torch_backend.work import DONE

__all__ = ["ProcessGroup"]


class ProcessGroup(Reductions, Moves):
    """One rank's part of a group. `communicator` is what it runs on, for whatever torch has no word for."""

    def __init__(self, rank: int, size: int, communicator: Communicator, store: Any) -> None:
        super().__init__(rank, size, communicator)
        self._store = store
        self._messages = Messages(communicator)
        self._name = self._desc = "undefined"
        self._monitored = 0
        self._coalesced: list[Any] | None = None

    # ---------------------------------------------------------------- what it is called

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "treering"

    name = getBackendName

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._desc = desc

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._desc

    def get_group_store(self) -> Any:
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _set_sequence_number_for_group(self) -> None:
        pass

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def set_timeout(self, timeout: timedelta) -> None:
        """How long nothing may move, for calls that do not say."""
        self.communicator.timeout_s = timeout.total_seconds()

    def __repr__(self) -> str:
        return f"<treering process group {self._name}: {self.communicator!r}>"

    # ---------------------------------------------------------------- barriers

    def barrier(self, opts: Any = None) -> Any:
        return self._make("barrier", opts, [], None)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """A barrier on which rank 0 names the ranks that do not come in time. It goes through the group's store."""
        self._monitored += 1
        limit_s = self.communicator.timeout_s if timeout is None else timeout.total_seconds()
        prefix = f"treering-monitored/{self._monitored}"
        rank, size = self.communicator.rank, self.communicator.size
        monitored_barrier(self._store, prefix, rank, size, limit_s, wait_all_ranks)

    # ---------------------------------------------------------------- messages

    def send(self, tensors: Sequence[torch.Tensor], peer: int, tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("send", tensors)
        with torch_errors():
            return self._profiled("send", tensors, lambda: self._message(True, tensor, peer, tag))

    def recv(self, tensors: Sequence[torch.Tensor], peer: int, tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("recv", tensors)
        with torch_errors():
            return self._profiled("recv", tensors, lambda: self._message(False, tensor, peer, tag))

    def recv_anysource(self, tensors: Sequence[torch.Tensor], tag: int = 0) -> Any:
        [tensor] = tensors
        check_dense("recv", tensors)
        with torch_errors():
            return self._profiled("recvAnySource", tensors, lambda: self._message(False, tensor, -1, tag))

    def _message(self, sends: bool, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        return self._messages.post(sends, tensor, peer, tag, self.communicator.timeout_s)

    # ---------------------------------------------------------------- coalescing

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> Any:
        self._coalesced = None
        return DONE

    # ---------------------------------------------------------------- the end

    def shutdown(self) -> None:
        """Says goodbye and gives everything back; destroy_process_group calls it. Idempotent."""
        self._messages.close()
        self._completer.close()

    abort = shutdown

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.shutdown()

    # the names of torch before 2.13
    _allgather_base = Moves.all_gather_single
    _reduce_scatter_base = Reductions.reduce_scatter_single
    allgather_into_tensor_coalesced = Moves.all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = Reductions.reduce_scatter_single_coalesced
    alltoall_base = Moves.all_to_all_single
