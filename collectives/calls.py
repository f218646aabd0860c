"""The collectives as a user calls them: one signature each, for blocking, asynchronous and prepared calls alike.

All arguments after the array are keyword-only. Arrays are numpy arrays, torch tensors, CuPy arrays or other DLPack
objects; those on a GPU are staged where the transport takes only the CPU's (staging.py). A result is a new array of the
same library, dtype and device (numpy for other DLPack objects on the CPU), or `out` when that is given.
`out` may be the input itself (in place), or hold it where the result has it, as a part or as the whole. A list or tuple
of arrays is one call: the arrays are moved together, and a list of results is returned.

Arguments that all of them take:
    out          where the result goes; a C-contiguous, writable array of the right shape and dtype
    algorithm    a name from `collectives.algorithms(collective)`, or "auto"
    timeout_s    how long nothing may move before DeadlineExceeded; the communicator's own limit by default
Those that reduce also take:
    op            sum, prod, min, max, mean, and, or, xor
    reproducible  True: the same bits whatever the size of the array, the algorithm, the transport, the placement and
                  the number of lanes, as long as the number of ranks is the same. Ranks are then combined in the
                  canonical order (collectives/verify.py); "auto" chooses among the algorithms that do, and another
                  one is a ValueError. None: as the communicator was made.
They raise ValueError or TypeError for wrong arguments before anything is sent, and a CollectiveError when the call
fails; the communicator is then broken on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from collectives.plan import COLLECTIVES

__all__ = ["COLLECTIVE_NUMBERS", "QUICK", "REPRODUCIBLE", "Calls", "Request"]

QUICK = frozenset({"all_reduce", "reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "scan", "exscan"})
"""The collectives whose calls may be answered by `_quick`."""
COLLECTIVE_NUMBERS = {name: number for number, name in enumerate(COLLECTIVES)}
REPRODUCIBLE = "reproducible "
"""Stands before the name of the algorithm in a call that must be; so it is part of every key that calls are kept by."""
_ALL_REDUCE, _REDUCE = COLLECTIVE_NUMBERS["all_reduce"], COLLECTIVE_NUMBERS["reduce"]
_REDUCE_SCATTER, _ALL_GATHER = COLLECTIVE_NUMBERS["reduce_scatter"], COLLECTIVE_NUMBERS["all_gather"]
_BROADCAST, _ALL_TO_ALL = COLLECTIVE_NUMBERS["broadcast"], COLLECTIVE_NUMBERS["all_to_all"]
_SCAN, _EXSCAN = COLLECTIVE_NUMBERS["scan"], COLLECTIVE_NUMBERS["exscan"]
_BARRIER = COLLECTIVE_NUMBERS["barrier"]
_TOKEN = np.zeros(1, np.uint8)  # what a barrier moves: a byte that nobody looks at, so that steps wait for it


class Request(NamedTuple):
    """A call, as the user gave it, but that `algorithm` begins with `REPRODUCIBLE` where that was wanted."""

    collective: str
    x: Any
    out: Any
    op: str
    root: int
    algorithm: str
    sizes: tuple[int, ...] | None
    timeout_s: float | None


class Calls:
    """Every collective; a subclass says in `_call` what calling one means.

    `_quick` may answer a usual call at once, given the collective's number, x, out, op, root and algorithm; it returns
    NotImplemented for every other. `_reproducible` is what calls are that do not say it.
    """

    _reproducible = False

    def _call(self, request: Request) -> Any:
        raise NotImplementedError

    @staticmethod
    def _quick(collective: int, x: Any, out: Any, op: str, root: int, algorithm: str) -> Any:
        return NotImplemented

    def all_reduce(
        self,
        x: Any,
        *,
        op: str = "sum",
        out: Any = None,
        algorithm: str = "auto",
        reproducible: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The element-wise combination of every rank's `x`, on every rank. Same shape as `x`."""
        if reproducible or (reproducible is None and self._reproducible):
            algorithm = _reproducibly(algorithm)
        if timeout_s is None:
            result = self._quick(_ALL_REDUCE, x, out, op, -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("all_reduce", x, out, op, -1, algorithm, None, timeout_s))

    def reduce(
        self,
        x: Any,
        *,
        root: int = 0,
        op: str = "sum",
        out: Any = None,
        algorithm: str = "auto",
        reproducible: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The element-wise combination of every rank's `x`, on `root`; None on the others."""
        if reproducible or (reproducible is None and self._reproducible):
            algorithm = _reproducibly(algorithm)
        if timeout_s is None:
            result = self._quick(_REDUCE, x, out, op, root, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("reduce", x, out, op, root, algorithm, None, timeout_s))

    def reduce_scatter(
        self,
        x: Any,
        *,
        op: str = "sum",
        sizes: Sequence[int] | None = None,
        out: Any = None,
        algorithm: str = "auto",
        reproducible: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The combination of every rank's `x`, split along axis 0: rank r gets its r-th part.

        The parts are equal, or have `sizes[r]` rows (the same `sizes` on every rank).
        """
        if reproducible or (reproducible is None and self._reproducible):
            algorithm = _reproducibly(algorithm)
        if sizes is None and timeout_s is None:
            result = self._quick(_REDUCE_SCATTER, x, out, op, -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("reduce_scatter", x, out, op, -1, algorithm, _tuple(sizes), timeout_s))

    def all_gather(
        self,
        x: Any,
        *,
        sizes: Sequence[int] | None = None,
        out: Any = None,
        algorithm: str = "auto",
        timeout_s: float | None = None,
    ) -> Any:
        """Every rank's `x`, concatenated along axis 0 in rank order, on every rank.

        All ranks give the same shape, or rank r gives `sizes[r]` rows (the same `sizes` on every rank).
        """
        if sizes is None and timeout_s is None:
            result = self._quick(_ALL_GATHER, x, out, "sum", -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("all_gather", x, out, "sum", -1, algorithm, _tuple(sizes), timeout_s))

    def broadcast(
        self, x: Any, *, root: int = 0, out: Any = None, algorithm: str = "auto", timeout_s: float | None = None
    ) -> Any:
        """The root's `x`, on every rank. On the others `x` only gives shape and dtype; it may be `out`."""
        if timeout_s is None:
            result = self._quick(_BROADCAST, x, out, "sum", root, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("broadcast", x, out, "sum", root, algorithm, None, timeout_s))

    def gather(
        self,
        x: Any,
        *,
        root: int = 0,
        sizes: Sequence[int] | None = None,
        out: Any = None,
        algorithm: str = "auto",
        timeout_s: float | None = None,
    ) -> Any:
        """Every rank's `x`, concatenated along axis 0 in rank order, on `root`; None on the others."""
        return self._call(Request("gather", x, out, "sum", root, algorithm, _tuple(sizes), timeout_s))

    def scatter(
        self,
        x: Any = None,
        *,
        root: int = 0,
        sizes: Sequence[int] | None = None,
        out: Any = None,
        algorithm: str = "auto",
        timeout_s: float | None = None,
    ) -> Any:
        """The r-th part of the root's `x` along axis 0, on rank r. Ranks other than the root must give `out`."""
        return self._call(Request("scatter", x, out, "sum", root, algorithm, _tuple(sizes), timeout_s))

    def all_to_all(
        self,
        x: Any,
        *,
        send_sizes: Sequence[int] | None = None,
        recv_sizes: Sequence[int] | None = None,
        out: Any = None,
        algorithm: str = "auto",
        timeout_s: float | None = None,
    ) -> Any:
        """Part j of `x` along axis 0 goes to rank j; the result is what the ranks sent here, concatenated.

        The parts are equal, or `send_sizes[j]` rows go to rank j and `recv_sizes[j]` rows come from it; both are
        given then.
        """
        if (send_sizes is None) != (recv_sizes is None):
            raise ValueError("all_to_all takes send_sizes and recv_sizes together, or neither")
        sizes = None if send_sizes is None or recv_sizes is None else (*send_sizes, *recv_sizes)
        if sizes is None and timeout_s is None:
            result = self._quick(_ALL_TO_ALL, x, out, "sum", -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("all_to_all", x, out, "sum", -1, algorithm, _tuple(sizes), timeout_s))

    def scan(
        self,
        x: Any,
        *,
        op: str = "sum",
        out: Any = None,
        algorithm: str = "auto",
        reproducible: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The element-wise combination of the `x` of ranks 0 to r, on rank r. Same shape as `x`."""
        if reproducible or (reproducible is None and self._reproducible):
            algorithm = _reproducibly(algorithm)
        if timeout_s is None:
            result = self._quick(_SCAN, x, out, op, -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("scan", x, out, op, -1, algorithm, None, timeout_s))

    def exscan(
        self,
        x: Any,
        *,
        op: str = "sum",
        out: Any = None,
        algorithm: str = "auto",
        reproducible: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The element-wise combination of the `x` of ranks 0 to r - 1, on rank r. Same shape as `x`.

        Nobody comes before rank 0: there `out` is left as it was, and a new array holds zeros.
        """
        if reproducible or (reproducible is None and self._reproducible):
            algorithm = _reproducibly(algorithm)
        if timeout_s is None:
            result = self._quick(_EXSCAN, x, out, op, -1, algorithm)
            if result is not NotImplemented:
                return result
        return self._call(Request("exscan", x, out, op, -1, algorithm, None, timeout_s))

    def barrier(self, *, algorithm: str = "auto", timeout_s: float | None = None) -> Any:
        """Returns on each rank once every rank has called it."""
        if timeout_s is None and self._quick(_BARRIER, _TOKEN, None, "sum", -1, algorithm) is not NotImplemented:
            return None
        return self._call(Request("barrier", _TOKEN, None, "sum", -1, algorithm, None, timeout_s))


def _tuple(sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if sizes is None else tuple(int(n) for n in sizes)


@lru_cache(maxsize=1024)
def _reproducibly(algorithm: str) -> str:
    return REPRODUCIBLE + algorithm  # one object for each name: `_quick` knows calls by it
