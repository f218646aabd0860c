"""A trace of real ranks: every step within its call, every message with both ends, and the plan's steps, no others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, ROOT, Job
from rank_process import Rank

import collectives as cc
from transports.program import Kind

SIZES = (1 << 10, 1 << 20)


@pytest.fixture(scope="module", params=["shm", "tcp", "inproc"])
def events(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trace of a ring all_reduce of 1 KiB and one of 1 MiB on four ranks."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    flags = ("-b", "1K", "-e", "1M", "-f", "1024", "-n", "2", "--algorithm", "ring", "--trace", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "all_reduce", "--ranks", "4", "--transport", request.param, *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"# trace written to {path}" in done.stdout
    return json.loads(path.read_text())["traceEvents"]


def spans(events: list[dict[str, Any]], *categories: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["cat"] in categories]


def test_every_rank_shows_one_call_of_each_size(events: list[dict[str, Any]]) -> None:
    calls = Counter((call["pid"], call["name"]) for call in spans(events, "call"))
    assert calls == {(rank, f"all_reduce {size} ring"): 1 for rank in range(4) for size in ("1KB", "1MB")}


def test_every_step_lies_within_a_call_of_its_rank(events: list[dict[str, Any]]) -> None:
    calls = spans(events, "call")
    for step in spans(events, "send", "recv", "local"):
        assert any(
            call["pid"] == step["pid"]
            and call["ts"] <= step["ts"] + 1e-3
            and step["ts"] + step["dur"] <= call["ts"] + call["dur"] + 2e-3  # rounded to nanoseconds
            for call in calls
        )


def test_every_rank_sends_what_a_ring_sends(events: list[dict[str, Any]]) -> None:
    """2 (p - 1) / p of the array: Patarasuk and Yuan 2009."""
    for rank in range(4):
        sends = [step for step in spans(events, "send") if step["pid"] == rank]
        assert sum(step["args"]["bytes"] for step in sends) == sum(SIZES) * 2 * 3 // 4
        assert {step["name"] for step in sends} <= {f"Send to rank {(rank + way) % 4}" for way in (1, -1)}


def around(events: list[dict[str, Any]], end: dict[str, Any], category: str) -> Iterator[dict[str, Any]]:
    """The spans that an end of a flow lies in."""
    for span in spans(events, category):
        in_row = (span["pid"], span["tid"]) == (end["pid"], end["tid"])
        if in_row and span["ts"] <= end["ts"] <= span["ts"] + span["dur"] + 1e-3:
            yield span


def test_every_message_leaves_a_send_and_arrives_in_a_receive_of_as_many_bytes(events: list[dict[str, Any]]) -> None:
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    finishes = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == finishes.keys()
    assert len(starts) == len(spans(events, "send")) == len(spans(events, "recv")) > 0
    for number, start in starts.items():
        finish = finishes[number]
        assert start["ts"] <= finish["ts"]
        assert any(
            send["args"]["bytes"] == receive["args"]["bytes"]
            for send in around(events, start, "send")
            for receive in around(events, finish, "recv")
            if send["name"] == f"Send to rank {finish['pid']}"
            and receive["name"].endswith(f" from rank {start['pid']}")
        )


def trace_calls(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(1000, np.float32)
    comm.all_reduce(x, out=x)
    with comm.trace() as calls:
        assert calls == []
        comm.all_reduce(x, out=x)  # seen before: without Python in between
        comm.barrier_async().wait(PATIENCE_S)
        comm.prepare.broadcast(x, algorithm="binomial", out=x)()
    comm.all_reduce(x, out=x)
    assert [len(call.steps) > 0 for call in calls] == [True] * 3
    assert [call.seq for call in calls] == [2, 3, 4]
    for call in calls:
        for step in call.steps:
            assert 0 < call.began_s <= step.began_s <= step.ended_s <= call.ended_s
    broadcast = cc.plan("broadcast", "binomial", me.size)
    assert [step.kind for step in calls[2].steps] == [
        Kind.NAMES.index(type(step).__name__) for step in broadcast.steps(me.rank)
    ]
    with comm.trace() as none, pytest.raises(ValueError, match="traced already"), comm.trace():
        pass
    assert none == []
    me.say("done")


def test_a_communicator_traces_the_calls_within_the_block(ranks: Callable[..., AbstractContextManager[Job]]) -> None:
    with ranks(3, trace_calls) as job:
        job.hear_all("done")
