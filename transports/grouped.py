"""Programs run group by group, for layers below that have no order but that of a stream (NCCL; Gloo in the same way).

`Groups` says what one rank does in each group of a program (Program.groups): its transfers, and after these, in the
order of the program, what can be done with their bytes on this rank: the combining halves of the RECV_REDUCEs, whose
bytes arrive in staging memory, and pieces of local steps. What needs nothing from others comes first of all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from transports.program import Kind, Program
from transports.tracing import TracedStep

__all__ = ["Groups", "Layer", "Piece"]

_ALIGN_BYTES = 64
_BEFORE = -1  # the group of what waits for no transfer


class Layer(Protocol):
    """What the layer below can do, on addresses of one device. Everything happens in the order of these calls; where
    the device has a stream, they return before it has happened."""

    def begin(self) -> None:
        """From here to `end` the sends and receives are one group, whose order counts only within a pair of ranks."""
        ...

    def send(self, peer: int, address: int, nbytes: int) -> None: ...

    def recv(self, peer: int, address: int, nbytes: int) -> None: ...

    def end(self) -> None:
        """Afterwards (on the stream) what was received is there, and what was sent may be changed."""
        ...

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        """out = a op b, by addresses; out may be one of them."""
        ...

    def copy(self, a: int, out: int, nbytes: int) -> None: ...

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None: ...

    def staging(self, nbytes: int) -> int:
        """The address of so many bytes that are this call's until it ends; kept from call to call."""
        ...


class Piece(NamedTuple):
    """Bytes [low, high) of a step; those of a RECV_REDUCE arrive at byte `staged` of the staging memory."""

    step: int
    low: int
    high: int
    staged: int = 0


class _Group(NamedTuple):
    transfers: list[Piece]
    local: list[Piece]


class Groups:
    """A program's groups. Raises AssertionError for one whose groups do not hold what its steps wait for."""

    def __init__(self, program: Program) -> None:
        self._rows: list[list[int]] = program.steps.tolist()
        self._needs: list[list[int]] = program.dependencies.tolist()
        self._divisor = program.divisor
        when: list[list[tuple[int, int, int]]] = []  # of each step: (group, low, high)
        for step, row in enumerate(self._rows):
            if row[0] <= Kind.RECV_REDUCE:
                assert program.groups is not None, "a transfer without a group"
                group, segment_bytes = map(int, program.groups[step])
                when.append(self._transfer(step, group, segment_bytes, when))
            else:
                when.append(self._local(step, when))
        transfers: defaultdict[int, list[Piece]] = defaultdict(list)
        local: defaultdict[int, list[Piece]] = defaultdict(list)
        self.staging_bytes = 0
        used: defaultdict[int, int] = defaultdict(int)
        for step, pieces in enumerate(when):
            kind = self._rows[step][0]
            for group, low, high in pieces:
                piece = Piece(step, low, high, used[group])
                if kind == Kind.RECV_REDUCE:
                    used[group] += -(-(high - low) // _ALIGN_BYTES) * _ALIGN_BYTES
                    self.staging_bytes = max(self.staging_bytes, used[group])
                if kind <= Kind.RECV_REDUCE:
                    transfers[group].append(piece)
                if kind >= Kind.RECV_REDUCE:
                    local[group].append(piece)
        for group in transfers.values():  # lanes and the order on each are what both ends know of
            group.sort(key=lambda piece: (self._rows[piece.step][1], self._rows[piece.step][2], piece.step))
        self.groups = [_Group(transfers[number], local[number]) for number in sorted(transfers.keys() | local.keys())]

    def run(self, layer: Layer, addresses: Sequence[int], trace: list[TracedStep] | None = None) -> None:
        """Hands everything to the layer. `addresses` are those of the program's buffers. `trace` is given the steps
        with the times at which they were handed over, of the first piece and of the last; a group's end together."""
        staging = layer.staging(self.staging_bytes) if self.staging_bytes else 0
        times: list[tuple[int, float, float]] = []  # of pieces: step, began, ended
        for transfers, local in self.groups:
            began_s = monotonic()
            if transfers:
                layer.begin()
                for step, low, high, staged in transfers:
                    kind, peer, row = self._rows[step][0], self._rows[step][1], self._rows[step]
                    if kind == Kind.SEND:
                        layer.send(peer, addresses[row[6]] + row[7] + low, high - low)
                    elif kind == Kind.RECV:
                        layer.recv(peer, addresses[row[10]] + row[11] + low, high - low)
                    else:
                        layer.recv(peer, staging + staged, high - low)
                layer.end()
                if trace is not None:
                    times += [(piece.step, began_s, monotonic()) for piece in transfers]
            for step, low, high, staged in local:
                kind, _, _, dtype, op, local_first, *places = self._rows[step][:12]
                a, b, out = (addresses[places[i]] + places[i + 1] + low for i in (0, 2, 4))
                if kind == Kind.COPY:
                    layer.copy(a, out, high - low)
                elif kind == Kind.DIVIDE:
                    layer.divide(dtype, a, out, high - low, self._divisor)
                else:
                    b = staging + staged if kind == Kind.RECV_REDUCE else b
                    first, second = (a, b) if local_first else (b, a)
                    layer.combine(dtype, op, first, second, out, high - low)
            if trace is not None:
                times += [(piece.step, began_s, monotonic()) for piece in local]
        if trace is not None:
            trace += self._traced(times)

    def _traced(self, times: list[tuple[int, float, float]]) -> Iterator[TracedStep]:
        begins: dict[int, float] = {}
        ends: dict[int, float] = {}
        for step, began_s, ended_s in times:
            begins.setdefault(step, began_s)
            ends[step] = ended_s
        for step, row in enumerate(self._rows):
            if step in begins:  # else it has no bytes
                yield TracedStep(row[0], row[1], row[2], row[12], begins[step], ends[step])

    def _transfer(
        self, step: int, group: int, segment_bytes: int, when: list[list[tuple[int, int, int]]]
    ) -> list[tuple[int, int, int]]:
        nbytes = self._rows[step][12]
        pieces = [
            (group + i, low, min(low + segment_bytes, nbytes)) for i, low in enumerate(range(0, nbytes, segment_bytes))
        ]
        for since, low, high in self._waits(step, when):
            late = group + low // segment_bytes  # the first of its segments that needs these bytes
            assert since < late, f"step {step} needs bytes {low} to {high} before they are there"
        return pieces

    def _local(self, step: int, when: list[list[tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
        """Each byte at the end of the group in which what it waits for is done."""
        nbytes, waits = self._rows[step][12], self._waits(step, when)
        cuts = np.unique([0, nbytes, *(low for _, low, _ in waits), *(high for _, _, high in waits)]).tolist()
        pieces: list[tuple[int, int, int]] = []
        for low, high in pairwise(cuts):
            group = max((since for since, a, b in waits if a < high and low < b), default=_BEFORE)
            if pieces and pieces[-1][0] == group:
                low = pieces.pop()[1]
            pieces.append((group, low, high))
        return pieces

    def _waits(self, step: int, when: list[list[tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
        """Until which group which bytes of a step have to wait: (group, low, high)."""
        begin, end = self._rows[step][13:15]
        return [
            (group, mine + max(low - theirs, 0), mine + min(high - theirs, nbytes))
            for other, theirs, mine, nbytes in self._needs[begin:end]
            for group, low, high in when[other]
            if low < theirs + nbytes and theirs < high
        ]
