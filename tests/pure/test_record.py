"""Traced calls of several ranks become spans on one clock, and each message an arrow."""

from __future__ import annotations

from bench.record import clock_shifts_s, spans_of
from transports.program import Kind
from transports.tracing import TracedCall, TracedStep

SENDER = TracedCall(
    7, 100.0, 109.0,
    (
        TracedStep(Kind.SEND, 1, 0, 40, 101.0, 102.0),
        TracedStep(Kind.SEND, 1, 3, 50, 101.0, 104.0),
        TracedStep(Kind.SEND, 1, 0, 60, 103.0, 105.0),
    ),
)  # fmt: skip
RECEIVER = TracedCall(
    7, 5000.0, 5009.0,
    (
        TracedStep(Kind.RECV, 0, 3, 50, 5002.0, 5004.0),
        TracedStep(Kind.RECV_REDUCE, 0, 0, 40, 5002.0, 5003.0),
        TracedStep(Kind.COPY, -1, 0, 40, 5003.0, 5003.5),
        TracedStep(Kind.RECV, 0, 0, 60, 5004.0, 5006.0),
    ),
)  # fmt: skip


def test_a_message_is_an_arrow_from_its_send_to_the_receive_of_the_same_lane_and_order() -> None:
    spans, flows = spans_of("all_reduce", [SENDER, RECEIVER], [0.0, -4900.0])
    ends = [(spans[flow.source], spans[flow.target]) for flow in flows]
    assert sorted((source.args["bytes"], target.args["bytes"]) for source, target in ends) == [
        (40, 40),
        (50, 50),
        (60, 60),
    ]
    for source, target in ends:
        assert (source.rank, target.rank) == (0, 1)
        assert source.start_s < target.start_s < target.end_s


def test_spans_say_what_was_done_with_whom() -> None:
    spans, _ = spans_of("all_reduce", [SENDER, RECEIVER], [0.0, -4900.0])
    assert [(span.rank, span.track, span.name, span.category) for span in spans] == [
        (0, "call", "all_reduce", "call"),
        (0, "to rank 1", "Send to rank 1", "send"),
        (0, "to rank 1, lane 3", "Send to rank 1", "send"),
        (0, "to rank 1", "Send to rank 1", "send"),
        (1, "call", "all_reduce", "call"),
        (1, "from rank 0, lane 3", "Recv from rank 0", "recv"),
        (1, "from rank 0", "RecvReduce from rank 0", "recv"),
        (1, "local", "Copy", "local"),
        (1, "from rank 0", "Recv from rank 0", "recv"),
    ]
    assert [span.start_s for span in spans if span.rank == 1] == [100.0, 102.0, 102.0, 103.0, 104.0]


def test_ranks_of_one_machine_share_its_clock_and_other_machines_are_set_by_a_barrier() -> None:
    cards = [
        {"clock": "a", "together_s": 100.0},
        {"clock": "a", "together_s": 100.5},
        {"clock": "b", "together_s": 7000.5},
        {"clock": "b", "together_s": 7000.0},
    ]
    assert clock_shifts_s(cards) == [0.0, 0.0, -6900.0, -6900.0]
