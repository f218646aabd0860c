"""A trace is what Perfetto reads: events with their keys, rows that nest, and arrows with both ends inside spans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.trace import Flow, Span, document, write


def events(made: Any, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(json.dumps(made))["traceEvents"] if event["ph"] == phase]


def test_a_span_becomes_a_complete_event_in_microseconds_from_the_start_of_the_trace() -> None:
    made = document([Span(3, "call", "all_reduce", "call", 100.0, 100.002, {"bytes": 8})])
    assert events(made, "X") == [
        {"ph": "X", "name": "all_reduce", "cat": "call", "pid": 3, "tid": 1, "ts": 0.0, "dur": 2000.0,
         "args": {"bytes": 8}}
    ]  # fmt: skip
    names = {event["name"]: event["args"]["name"] for event in events(made, "M") if "name" in event["args"]}
    assert names == {"process_name": "rank 3", "thread_name": "call"}


def test_ranks_may_have_names() -> None:
    made = document([Span(0, "a", "x", "c", 0, 1)], rank_names={0: "rank 0 on node7"})
    assert events(made, "M")[0]["args"] == {"name": "rank 0 on node7"}


def test_a_flow_leaves_its_source_and_arrives_in_its_target_not_before_it_left() -> None:
    spans = [Span(0, "out", "Send", "send", 2.0, 3.0), Span(1, "in", "Recv", "recv", 1.0, 4.0)]
    made = document(spans, [Flow(0, 1)])
    (start,), (finish,) = events(made, "s"), events(made, "f")
    assert (start["pid"], start["ts"]) == (0, 1e6)
    assert (finish["pid"], finish["ts"], finish["bp"]) == (1, 1e6, "e")
    assert start["id"] == finish["id"]


moment = st.integers(0, 20).map(float)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("ab"), moment, moment), max_size=12))
def test_spans_of_a_row_nest_or_lie_apart(drawn: list[tuple[int, str, float, float]]) -> None:
    spans = [Span(rank, track, "x", "c", min(a, b), max(a, b)) for rank, track, a, b in drawn]
    made = events(document(spans), "X")
    assert len(made) == len(spans)
    for one in made:
        for other in made:
            if (one["pid"], one["tid"]) == (other["pid"], other["tid"]):
                begin, end = max(one["ts"], other["ts"]), min(one["ts"] + one["dur"], other["ts"] + other["dur"])
                assert end - begin <= 0 or end - begin == min(one["dur"], other["dur"])


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="ends at"):
        document([Span(0, "a", "x", "c", 2.0, 1.0)])
    with pytest.raises(ValueError, match="flow 0 from span 0 to 1"):
        document([Span(0, "a", "x", "c", 1.0, 2.0)], [Flow(0, 1)])


def test_a_trace_of_nothing_is_valid() -> None:
    assert document([])["traceEvents"] == []


def test_the_file_is_the_document(tmp_path: Path) -> None:
    spans = [Span(0, "a", "x", "c", 0.0, 1.0)]
    write(str(tmp_path / "trace.json"), spans)
    assert json.loads((tmp_path / "trace.json").read_text()) == document(spans)
