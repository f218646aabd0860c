"""Traces that Perfetto and chrome://tracing open: spans of time on every rank, and arrows between them.

The format is the JSON of Google's "Trace Event Format" (2016): complete events ("X") for the spans, flow events
("s" and "f") for the arrows, metadata ("M") for the names. A rank is a process of the trace, a track one of its
threads. Times are seconds in, from any one clock; the trace begins at zero and holds microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import jsonfile


class Span(NamedTuple):
    """From `start_s` to `end_s` a rank did something. `args` are shown when it is selected; JSON types."""

    rank: int
    track: str  # spans of one track lie in one row; where they overlap without nesting, they get further rows
    name: str
    category: str  # what a viewer filters by: "call", "send", "recv", "local"
    start_s: float
    end_s: float
    args: Mapping[str, Any] = {}


class Flow(NamedTuple):
    """An arrow from one span to another, each by its number in the list of spans."""

    source: int
    target: int
    name: str = "message"


def document(spans: Sequence[Span], flows: Iterable[Flow] = (), rank_names: Mapping[int, str] | None = None) -> Any:
    """The trace as JSON types. Raises ValueError for a span that ends before it starts, and a flow to no span."""
    for number, span in enumerate(spans):
        if not span.start_s <= span.end_s:
            raise ValueError(f"span {number} ({span.name}) ends at {span.end_s} s, before it starts: {span.start_s} s")
    zero_s = min((span.start_s for span in spans), default=0.0)
    rows, names = _rows(spans)
    events: list[dict[str, Any]] = []
    for rank in sorted({span.rank for span in spans}):
        title = (rank_names or {}).get(rank, f"rank {rank}")
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": title}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}})
    for (rank, row), name in names.items():
        events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": name}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": rank, "tid": row, "args": {"sort_index": row}})
    for span, row in zip(spans, rows, strict=True):
        start_us, end_us = _us(span.start_s - zero_s), _us(span.end_s - zero_s)
        event = {
            "ph": "X", "name": span.name, "cat": span.category, "pid": span.rank, "tid": row,
            "ts": start_us, "dur": round(end_us - start_us, 3),
        }  # fmt: skip
        events.append({**event, "args": dict(span.args)} if span.args else event)
    for number, flow in enumerate(flows):
        if not (0 <= flow.source < len(spans) and 0 <= flow.target < len(spans)):
            raise ValueError(f"flow {number} from span {flow.source} to {flow.target}: there are {len(spans)} spans")
        source, target = spans[flow.source], spans[flow.target]
        arrives_s = min(max(target.start_s, source.start_s), target.end_s)  # inside the target, and not before it left
        for phase, span, at_s, row in (
            ("s", source, source.start_s, rows[flow.source]),
            ("f", target, arrives_s, rows[flow.target]),
        ):
            event = {
                "ph": phase, "name": flow.name, "cat": "flow", "id": number, "pid": span.rank, "tid": row,
                "ts": _us(at_s - zero_s),
            }  # fmt: skip
            events.append({**event, "bp": "e"} if phase == "f" else event)
    return {"displayTimeUnit": "ns", "traceEvents": events}


def write(
    path: str, spans: Sequence[Span], flows: Iterable[Flow] = (), rank_names: Mapping[int, str] | None = None
) -> None:
    """Write the trace, all of it or nothing. Raises OSError, and ValueError as `document` does."""
    jsonfile.write_text(path, json.dumps(document(spans, flows, rank_names), separators=(",", ":")) + "\n")


def _us(time_s: float) -> float:
    return round(time_s * 1e6, 3)


def _rows(spans: Sequence[Span]) -> tuple[list[int], dict[tuple[int, int], str]]:
    """The row of each span, and the names of the rows by (rank, row).

    The format wants the spans of a row to nest or to lie apart, so one that crosses those before it takes the next
    row of its track, which is made when all of them are taken.
    """
    tracks: dict[tuple[int, str], list[tuple[int, list[float]]]] = {}  # rows, each with the ends of its open spans
    names: dict[tuple[int, int], str] = {}
    used: dict[int, int] = {}
    for span in spans:  # rows in the order of first mention, so that the caller decides it
        if (span.rank, span.track) not in tracks:
            row = used[span.rank] = used.get(span.rank, 0) + 1
            tracks[span.rank, span.track] = [(row, [])]
            names[span.rank, row] = span.track
    found = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda i: (spans[i].start_s, -spans[i].end_s)):
        span = spans[number]
        rows = tracks[span.rank, span.track]
        free = next((row for row in rows if _fits(span, row[1])), None)
        if free is None:
            used[span.rank] += 1
            free = used[span.rank], list[float]()
            rows.append(free)
            names[span.rank, free[0]] = f"{span.track} ({len(rows)})"
        free[1].append(span.end_s)
        found[number] = free[0]
    return found, names


def _fits(span: Span, open_until: list[float]) -> bool:
    """Whether a span lies apart from those of a row, or within the last; forgets those that have ended."""
    while open_until and open_until[-1] <= span.start_s:
        open_until.pop()
    return not open_until or span.end_s <= open_until[-1]
