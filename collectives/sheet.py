"""All ranks' steps of a plan as one table of numbers, for what works on ten thousand ranks at once.

A generator that does not branch on its rank (a ring, an exchange with everybody) also understands an array of all
ranks: it is then run once, and every step it yields is that step of every rank. Others are run rank by rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from collectives.plan import Copy, Plan, Recv, RecvReduce, Reduce, Send, Step

__all__ = ["LOCAL", "Sheet", "sheet"]

KINDS = {Send: 0, Recv: 1, RecvReduce: 2, Copy: 3, Reduce: 4}
LOCAL = 3  # kinds from here on
_FEW_RANKS = 64  # rank by rank is as fast
_CHECKED = 5  # ranks whose steps are compared, when all were generated at once
_BLOCK = 256  # steps of all ranks that are turned into columns at a time


@dataclass(frozen=True)
class Sheet:
    """Steps `offsets[r]` to `offsets[r + 1]` are those of rank r, in order."""

    offsets: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]  # as in KINDS
    lane: npt.NDArray[np.uint8]
    other: npt.NDArray[np.int32]  # the peer; the source chunk of a local step
    chunk: npt.NDArray[np.int32]  # the target chunk of a local step
    count: npt.NDArray[np.int32]


def sheet(plan: Plan) -> Sheet:
    """The table of a plan. About a microsecond a step; a hundredth of that where one run serves all ranks."""
    if plan.size > _FEW_RANKS:
        at_once = _all_at_once(plan)
        if at_once is not None:
            return at_once
    return _joined([_rows(plan.generate(rank)) for rank in range(plan.size)])


def _fields(step: Step) -> tuple[int, int, int, int, int]:
    """kind, lane, other, chunk, count: the fields of all steps stand in the same order."""
    kind = KINDS[type(step)]
    return kind, cast("Send", step)[3] if kind < LOCAL else 0, step[0], step[1], step[2]


def _rows(steps: Iterable[Step]) -> npt.NDArray[np.int32]:
    flat: list[int] = []
    for step in steps:
        flat += _fields(step)
    return np.array(flat, np.int32).reshape(-1, 5)


def _joined(ranks: list[npt.NDArray[np.int32]]) -> Sheet:
    offsets = np.zeros(len(ranks) + 1, np.int64)
    np.cumsum([len(rows) for rows in ranks], out=offsets[1:])
    rows = np.concatenate(ranks)
    kind, lane, other, chunk, count = (np.ascontiguousarray(rows[:, i]) for i in range(5))
    return Sheet(offsets, kind.astype(np.uint8), lane.astype(np.uint8), other, chunk, count)


def _all_at_once(plan: Plan) -> Sheet | None:
    """One run of the generator with an array for its rank; None where it needs to know which rank it is."""
    size = plan.size
    ranks = cast(Any, np.arange(size, dtype=np.int32))
    try:
        steps = cast("list[tuple[Any, ...]]", [_fields(step) for step in plan.generate(ranks)])
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None
    offsets = np.arange(size + 1, dtype=np.int64) * len(steps)
    dtypes: tuple[Any, ...] = (np.uint8, np.uint8, np.int32, np.int32, np.int32)
    columns: list[npt.NDArray[Any]] = [np.empty((size, len(steps)), dtype) for dtype in dtypes]
    for begin in range(0, len(steps), _BLOCK):
        block = steps[begin : begin + _BLOCK]
        for i, column in enumerate(columns):
            values = [row[i] for row in block]
            if all(isinstance(value, int) for value in values):
                column[:, begin : begin + len(block)] = values
            else:
                column[:, begin : begin + len(block)] = np.stack([np.broadcast_to(v, size) for v in values], axis=1)
    for rank in {*np.linspace(0, size - 1, _CHECKED).astype(int).tolist()}:
        rows = _rows(plan.generate(rank))
        if len(rows) != len(steps) or any((c[rank] != rows[:, i]).any() for i, c in enumerate(columns)):
            return None
    kind, lane, other, chunk, count = (column.reshape(-1) for column in columns)
    return Sheet(offsets, kind, lane, other, chunk, count)
