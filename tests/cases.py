"""One call of one collective, made on a communicator and compared with the reference, on every rank alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collectives import Communicator
from tests.references import Array, dtype_of, expected, values

__all__ = ["HOWS", "PLACES", "ROOTED", "SPLITTING", "WHOLE", "Case", "assert_same", "perform"]

WHOLE = ("all_reduce", "reduce", "broadcast", "scan", "exscan")  # one array of one shape on all ranks
SPLITTING = ("reduce_scatter", "all_gather", "gather", "scatter", "all_to_all")
ROOTED = ("reduce", "broadcast", "gather", "scatter")
REDUCING = ("all_reduce", "reduce", "reduce_scatter", "scan", "exscan")
PLACES = ("new", "out", "in place")
HOWS = ("blocking", "async", "prepared")
_GUARD_BYTES = 64


@dataclass(frozen=True)
class Case:
    """A call. `rows[0]` are the rows of each rank's part (one number for WHOLE); of an all-to-all, rows[i][j] go from
    i to j. `row` is the shape of a row. `uneven` passes sizes=. `place` says where the result goes; "in place" is as
    the collective has it: out=x, out a part of x, or x a part of out. `shift` misaligns all arrays by so many bytes."""

    collective: str
    size: int
    rows: tuple[tuple[int, ...], ...]
    row: tuple[int, ...] = ()
    uneven: bool = False
    algorithm: str = "auto"
    dtype: str = "float32"
    op: str = "sum"
    root: int = 0
    place: str = "new"
    shift: int = 0
    seed: int = 0

    def input_shape(self, rank: int) -> tuple[int, ...]:
        if self.collective in ("all_gather", "gather"):
            return (self.rows[0][rank], *self.row)
        return (sum(self.rows[rank if self.collective == "all_to_all" else 0]), *self.row)

    def inputs(self, seed: int) -> list[Array]:
        """Of every rank."""
        return [values(self.dtype, self.input_shape(rank), self.seed, seed, rank) for rank in range(self.size)]

    def expected(self, rank: int, inputs: Sequence[Array]) -> Array | None:
        return expected(self.collective, inputs, rank, op=self.op, root=self.root, rows=self.rows)


class _Memory:
    """The arrays of one rank: input, and `out` where there is one, between bytes that must not change."""

    def __init__(self, case: Case, rank: int) -> None:
        self.case, self.rank = case, rank
        self.gives = case.collective not in ("broadcast", "scatter") or rank == case.root
        result = case.expected(rank, case.inputs(0))
        self.first = case.collective == "exscan" and rank == 0  # has a result, though nothing is promised of it
        if self.first:
            result = case.inputs(0)[rank]
        shape = case.input_shape(rank)
        self._memories: list[Array] = []
        in_place = case.place == "in place"
        self.x = self.out = None
        if in_place and case.collective in ("all_gather", "gather") and result is not None:
            self.out = self._array(result.shape)
            self.x = self.out[self._own()]
        else:
            if self.gives or case.collective == "broadcast":
                self.x = self._array(shape)
            if result is not None and in_place and self.x is not None:
                self.out = self.x if case.collective in (*WHOLE, "all_to_all") else self.x[self._own()]
            elif case.place != "new" or self.x is None:
                self.out = self._array(shape if result is None else result.shape)
        self.shared = self.x is not None and self.out is not None and np.shares_memory(self.x, self.out)

    def fill(self, seed: int) -> None:
        for memory in self._memories:
            memory[:] = 0xA5
        self._inputs = self.case.inputs(seed)
        self._given = self._inputs[self.rank]
        if self.x is not None and self.gives:
            self.x[...] = self._given

    def options(self) -> dict[str, Any]:
        case = self.case
        options: dict[str, Any] = {"algorithm": case.algorithm, "out": self.out}
        if case.collective in ROOTED:
            options["root"] = case.root
        if case.collective in REDUCING:
            options["op"] = case.op
        if case.uneven and case.collective == "all_to_all":
            options["send_sizes"] = case.rows[self.rank]
            options["recv_sizes"] = [rows[self.rank] for rows in case.rows]
        elif case.uneven:
            options["sizes"] = case.rows[0]
        return options

    def check(self, result: Any) -> None:
        wanted = self.case.expected(self.rank, self._inputs)
        if self.first and self.out is None:
            assert_same(result, np.zeros_like(self._given))
        elif self.first and self.out is not None:
            assert result is self.out
            assert self.shared or (self.out.reshape(-1).view(np.uint8) == 0xA5).all(), "what out held was changed"
            assert not self.shared or (self.out == self._given).all(), "what out held was changed"
        elif wanted is None:
            assert result is None, f"{type(result).__name__} instead of None"
        else:
            assert self.out is None or result is self.out
            assert_same(result, wanted)
        if self.x is not None and self.gives and not self.shared:
            assert_same(self.x, self._given)
        for memory in self._memories:
            assert (memory[:_GUARD_BYTES] == 0xA5).all(), "memory before the array was changed"
            assert (memory[-_GUARD_BYTES:] == 0xA5).all(), "memory after the array was changed"

    def _own(self) -> slice:
        end = sum(self.case.rows[0][: self.rank + 1])
        return slice(end - self.case.rows[0][self.rank], end)

    def _array(self, shape: Sequence[int]) -> Array:
        dtype = dtype_of(self.case.dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        memory = np.empty(nbytes + 2 * _GUARD_BYTES + self.case.shift, np.uint8)
        self._memories.append(memory)
        begin = _GUARD_BYTES + self.case.shift
        return memory[begin : begin + nbytes].view(dtype).reshape(shape)


def perform(comm: Communicator, case: Case, hows: Iterable[str] = ("blocking",), rounds: int = 1) -> None:
    """Makes the call of this rank, in each of these ways so many times with changing contents, and checks all of it."""
    memory = _Memory(case, comm.rank)
    seed = 0
    for how in hows:
        prepared = None
        for _ in range(rounds):
            seed += 1
            memory.fill(seed)
            if how == "prepared":
                if prepared is None:
                    prepared = getattr(comm.prepare, case.collective)(memory.x, **memory.options())
                result = prepared()
            elif how == "async":
                work = getattr(comm, f"{case.collective}_async")(memory.x, **memory.options())
                result = work.wait(30.0)
                assert work.done()
            else:
                result = getattr(comm, case.collective)(memory.x, **memory.options())
            try:
                memory.check(result)
            except AssertionError as error:
                raise AssertionError(f"rank {comm.rank}, {how} call {seed} of {case}: {error}") from error


def assert_same(found: Array, wanted: Array) -> None:
    """Equal in dtype, shape and every element."""
    assert found.dtype == wanted.dtype, f"dtype {found.dtype} instead of {wanted.dtype}"
    assert found.shape == wanted.shape, f"shape {found.shape} instead of {wanted.shape}"
    different = np.flatnonzero((found != wanted).reshape(-1))
    if different.size:
        at = different[0]
        raise AssertionError(
            f"{different.size} of {found.size} elements differ, first element {at}: "
            f"{found.reshape(-1)[at]} instead of {wanted.reshape(-1)[at]}"
        )
