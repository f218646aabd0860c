"""`comm.measure()` between processes: the engine's shared memory and TCP."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rank_process import Rank

import collectives as cc
from collectives.measure import recall

Ranks = Callable[..., Any]


def measure(me: Rank, cache: str) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    comm = me.connect()
    began = time.monotonic()
    found = comm.measure(1.0)
    took_s = time.monotonic() - began
    me.say("measured", text=found.to_json(), took_s=took_s, again=recall(comm) == found)


@pytest.mark.parametrize(("size", "transport"), [(1, "auto"), (2, "shm"), (4, "auto"), (3, "tcp")])
def test_processes_measure_each_other(ranks: Ranks, tmp_path: Path, size: int, transport: str) -> None:
    with ranks(size, measure, str(tmp_path / "cache"), transport=transport) as job:
        told = job.hear_all("measured")
    assert len({event["text"] for event in told}) == 1
    assert all(event["again"] for event in told)
    assert max(event["took_s"] for event in told) < 6.0
    found = cc.Measurement.from_json(told[0]["text"])
    assert [c.level for c in found.classes] == (["host"] if size > 1 else [])
    assert found.combine_bytes_per_s > 1e8
    for c in found.classes:
        assert c.latency_s < 5e-3, "a step of the engine, with other programs on the machine"
        assert c.bandwidth_bytes_per_s > 1e8
        assert c.busy_bandwidth_bytes_per_s > 1e8
    assert found.transport == {"auto": "shared memory", "shm": "shared memory", "tcp": "TCP"}[transport] or size == 1
