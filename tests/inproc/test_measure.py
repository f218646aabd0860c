"""Ranks measure the machines together, and all of them get the same."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collectives as cc
from collectives import cache
from collectives.measure import recall

Threads = Callable[..., list[Any]]


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "treering"


@pytest.mark.parametrize(
    ("hosts", "levels"),
    [
        (((0, 1, 2),), ["host"]),
        (((0,), (1,), (2,)), ["cluster"]),
        (((0, 2), (1, 3)), ["host", "cluster"]),
        (((0, 1), (2,)), ["host", "cluster"]),
    ],
)
def test_every_rank_gets_the_same_measurement(threads: Threads, hosts: Any, levels: list[str]) -> None:
    results = threads(sum(map(len, hosts)), lambda comm: comm.measure(0.3), hosts=hosts)
    assert all(result == results[0] for result in results)
    found = results[0]
    assert [c.level for c in found.classes] == levels
    assert (found.groups, found.levels) == (hosts, ("host",))
    for c in found.classes:
        # Threads that take turns, on a machine that may be busy: sane, and not more than that.
        assert 1e-7 < c.latency_s < 10
        assert 1e-7 < c.busy_latency_s < 10
        assert 1e3 < c.bandwidth_bytes_per_s < 1e12
        assert 1e3 < c.busy_bandwidth_bytes_per_s < 1e12
    assert 1e5 < found.combine_bytes_per_s < 1e12


def test_deeper_groups_are_measured_by_level(threads: Threads) -> None:
    groups = (((0, 1), (2, 3)), ((4, 5), (6, 7)))
    results = threads(8, lambda comm: comm.measure(0.3, groups=groups, levels=("rack", "host")))
    assert [c.level for c in results[0].classes] == ["host", "rack", "cluster"]
    assert len({result.to_json() for result in results}) == 1


def test_one_rank_has_no_pairs_but_combines(threads: Threads) -> None:
    (found,) = threads(1, lambda comm: comm.measure(0.2))
    assert found.classes == ()
    assert found.recv_reduce_bytes_per_s is None
    assert found.combine_bytes_per_s > 0


def test_the_budget_is_kept(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> float:
        began = time.monotonic()
        comm.measure(1.0)
        return time.monotonic() - began

    assert max(threads(3, body, hosts=((0, 1), (2,)))) < 4.0


def test_calls_go_on_after_a_measurement(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> Any:
        comm.measure(0.1)
        return comm.all_reduce(np.full(3, comm.rank)).tolist()

    assert threads(3, body) == [[3, 3, 3]] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_s": 0.0}, "budget_s=0.0"),
        ({"budget_s": -1.0}, "budget_s=-1.0"),
        ({"budget_s": float("nan")}, "budget_s=nan"),
        ({"budget_s": float("inf")}, "budget_s=inf"),
        ({"groups": ((0, 1),)}, "together"),
        ({"levels": ("host",)}, "together"),
        ({"groups": ((0, 2),), "levels": ("host",)}, "rank 1 is missing"),
        ({"groups": ((0, 1),), "levels": ("rack", "host")}, "expected a group"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    threads: Threads, options: dict[str, Any], words: str
) -> None:
    def body(comm: cc.Communicator) -> int:
        with pytest.raises(ValueError, match=words):
            comm.measure(**options)
        return int(comm.all_reduce(np.ones(1, int))[0])

    assert threads(2, body) == [2, 2]


def test_a_measurement_is_kept_and_recalled_by_all(threads: Threads, directory: Path) -> None:
    def body(comm: cc.Communicator) -> Any:
        before = recall(comm)
        measured = comm.measure(0.1)
        return before, measured == recall(comm)

    assert threads(3, body) == [(None, True)] * 3
    assert [path.name.partition("-")[0] for path in directory.iterdir()] == ["measurement"]


def test_a_measurement_that_makes_no_sense_is_not_recalled(
    threads: Threads, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = threads(2, cache.key_of)[0]
    cache.store(key, "measurement", {"latency_s": 3})
    with caplog.at_level(logging.WARNING, "treering"):
        assert threads(2, recall) == [None, None]
    assert "no key" in caplog.text
    assert json.loads(next(directory.iterdir()).read_text())["value"] == {"latency_s": 3}
