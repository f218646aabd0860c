"""Programs run group by group, for layers below that have no order but that of a stream (NCCL; Gloo in the same way).

`Groups` says what one rank does in each group of a program (Program.groups): its transfers, and after these, in the
order of the program, what can be done with their bytes on this rank: the combining halves of the RECV_REDUCEs, whose
bytes arrive in staging memory, and pieces of local steps. What needs nothing from others comes first of all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
    moves: bool  # whether it has transfers
    transfers: list[Piece]  # that are handed over in it
    next: list[Piece]  # receives of the next one, which are handed over before its sends are waited for
    local: list[Piece]


class Groups:
    """A program's groups. Raises AssertionError for one whose groups do not hold what its steps wait for.

    early    for layers that can receive ahead (`expect` of `run`): receives are handed over a group earlier where
             nothing in that group touches their memory, so that the sender need not wait for this rank
    """

    def __init__(self, program: Program, *, early: bool = False) -> None:
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
        used: defaultdict[int, int] = defaultdict(int)
        for step, pieces in enumerate(when):
            kind = self._rows[step][0]
            for group, low, high in pieces:
                piece = Piece(step, low, high, used[group])
                if kind == Kind.RECV_REDUCE:
                    used[group] += -(-(high - low) // _ALIGN_BYTES) * _ALIGN_BYTES
                if kind <= Kind.RECV_REDUCE:
                    transfers[group].append(piece)
                if kind >= Kind.RECV_REDUCE:
                    local[group].append(piece)
        for group in transfers.values():  # lanes and the order on each are what both ends know of
            group.sort(key=lambda piece: (self._rows[piece.step][1], self._rows[piece.step][2], piece.step))
        numbers = sorted(transfers.keys() | local.keys())
        each = max(used.values(), default=0)
        self.staging_bytes = 2 * each if early else each
        self.groups: list[_Group] = []
        for i, number in enumerate(numbers):
            all_of = transfers[number]
            if early and i % 2:  # what arrives early must not lie where the group before has its own
                for pieces in (all_of, local[number]):
                    pieces[:] = [piece._replace(staged=piece.staged + each) for piece in pieces]
            ahead = self._ahead(all_of, numbers[i - 1], when) if early and i and self.groups[-1].moves else []
            if ahead:
                self.groups[-1].next.extend(ahead)
            self.groups.append(_Group(bool(all_of), [p for p in all_of if p not in ahead], [], local[number]))

    def run(
        self,
        layer: Layer,
        addresses: Sequence[int],
        trace: list[TracedStep] | None = None,
        expect: Callable[[int, int, int], None] | None = None,
    ) -> None:
        """Hands everything to the layer. `addresses` are those of the program's buffers.

        trace     is given the steps, with when the first piece was handed over and the last had ended; those of a
                  group have both in common
        expect    as the layer's `recv`, for a receive of the group that begins next
        """
        staging = layer.staging(self.staging_bytes) if self.staging_bytes else 0
        times: list[tuple[int, float, float]] = []  # of pieces: step, began, ended

        def receive(recv: Callable[[int, int, int], None], piece: Piece) -> None:
            row = self._rows[piece.step]
            to = staging + piece.staged if row[0] == Kind.RECV_REDUCE else addresses[row[10]] + row[11] + piece.low
            recv(row[1], to, piece.high - piece.low)

        arriving: list[Piece] = []
        for moves, transfers, ahead, local in self.groups:
            began_s = monotonic()
            if moves:
                layer.begin()
                for piece in transfers:
                    row = self._rows[piece.step]
                    if row[0] == Kind.SEND:
                        layer.send(row[1], addresses[row[6]] + row[7] + piece.low, piece.high - piece.low)
                    else:
                        receive(layer.recv, piece)
                for piece in ahead:
                    assert expect is not None, "made for a layer that receives ahead"
                    receive(expect, piece)
                layer.end()
                if trace is not None:
                    times += [(piece.step, began_s, monotonic()) for piece in (*arriving, *transfers)]
                arriving = ahead
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

    def _ahead(self, transfers: list[Piece], before: int, when: list[list[tuple[int, int, int]]]) -> list[Piece]:
        """The receives whose memory nothing touches in the group `before`; from each peer those in front of the first
        that has to wait."""
        ahead: list[Piece] = []
        held: set[int] = set()
        for piece in transfers:
            kind, peer = self._rows[piece.step][:2]
            if kind == Kind.SEND or peer in held:
                continue
            waits = [] if kind == Kind.RECV_REDUCE else self._waits(piece.step, when)
            if any(since >= before and low < piece.high and piece.low < high for since, low, high in waits):
                held.add(peer)
            else:
                ahead.append(piece)
        return ahead

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
