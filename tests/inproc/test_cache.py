"""What was measured is kept between runs, for the hosts it was measured on and as long as they stay what they are."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collectives as cc
from collectives import cache
from collectives.exchange import broadcast_json, gather_json
from transports.config import cache_directory
from transports.machine import machine_facts

Threads = Callable[..., list[Any]]
VALUE = {"latency_s": 1.5e-6, "names": ["a", "b"]}


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "treering"


@pytest.fixture
def key(threads: Threads) -> cache.Key:
    keys = threads(2, cache.key_of)
    assert keys[0] == keys[1]
    return keys[0]


def changed(path: Path, **parts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def test_what_was_stored_is_loaded(key: cache.Key, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.load(key, "measurement") is None
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    assert path.parent == directory
    assert list(directory.iterdir()) == [path], "nothing is left beside it"
    assert cache.load(key, "measurement") == VALUE
    assert cache.load(key, "tuning") is None
    cache.store(key, "tuning", [1])
    assert (cache.load(key, "measurement"), cache.load(key, "tuning")) == (VALUE, [1])
    assert not caplog.records


def test_only_its_owner_can_read_what_is_kept(key: cache.Key) -> None:
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0


def test_other_hosts_and_layouts_have_values_of_their_own(threads: Threads, key: cache.Key) -> None:
    cache.store(key, "measurement", VALUE)
    for size, hosts in ((3, ((0, 1, 2),)), (2, ((0,), (1,)))):
        other = threads(size, cache.key_of, hosts=hosts)[0]
        assert cache.load(other, "measurement") is None
        assert other.path("measurement") != key.path("measurement")
    elsewhere = json.loads(json.dumps(key.job))
    elsewhere["hosts"][0]["name"] += "x"
    assert cache.load(key._replace(job=elsewhere), "measurement") is None


def test_changed_hardware_is_noticed(key: cache.Key, caplog: pytest.LogCaptureFixture) -> None:
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    facts = json.loads(json.dumps(key.facts))
    (host,) = (name for name in facts if name.startswith("host"))
    cores = facts[host]["cores"]
    facts[host]["cores"] = cores + 6
    with caplog.at_level(logging.WARNING, "treering"):
        assert cache.load(key._replace(facts=facts), "measurement") is None
    assert f"cores was {cores} and is {cores + 6}" in caplog.text
    assert str(path) in caplog.text
    assert cache.load(key, "measurement") == VALUE


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"stored_at_s": time.time() - 40 * 86400}, "40 days old"),
        ({"stored_at_s": time.time() + 9 * 86400}, "9 days in the future"),
        ({"format": 0}, "format is 0"),
        ({"facts": {}}, "was None"),
    ],
)
def test_stale_entries_are_noticed(
    key: cache.Key, caplog: pytest.LogCaptureFixture, parts: dict[str, Any], words: str
) -> None:
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    changed(path, **parts)
    with caplog.at_level(logging.WARNING, "treering"):
        assert cache.load(key, "measurement") is None
    assert words in caplog.text
    assert "out of date" in caplog.text


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000, b'{"kind": NaN}'],
    ids=["empty", "cut", "list", "null", "binary", "incomplete", "deep", "nan"],
)
def test_a_broken_file_is_ignored_and_replaced(key: cache.Key, caplog: pytest.LogCaptureFixture, text: bytes) -> None:
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    path.write_bytes(text)
    with caplog.at_level(logging.WARNING, "treering"):
        assert cache.load(key, "measurement") is None
    assert "is ignored" in caplog.text
    cache.store(key, "measurement", VALUE)
    assert cache.load(key, "measurement") == VALUE


@pytest.mark.parametrize("parts", [{"job": {}}, {"kind": "tuning"}, {"facts": 3}, {"stored_at_s": "now"}])
def test_a_file_that_says_it_is_another_is_ignored(
    key: cache.Key, caplog: pytest.LogCaptureFixture, parts: dict[str, Any]
) -> None:
    path = cache.store(key, "measurement", VALUE)
    assert path is not None
    changed(path, **parts)
    with caplog.at_level(logging.WARNING, "treering"):
        assert cache.load(key, "measurement") is None
    assert "is ignored" in caplog.text


def test_a_directory_that_cannot_be_made_is_no_error(
    key: cache.Key, caplog: pytest.LogCaptureFixture, directory: Path
) -> None:
    directory.parent.write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING, "treering"):
        assert cache.store(key, "measurement", VALUE) is None
        assert cache.load(key, "measurement") is None
    assert "could not be kept" in caplog.text


def test_a_value_without_a_number_is_refused(key: cache.Key, directory: Path) -> None:
    with pytest.raises(ValueError):
        cache.store(key, "measurement", {"latency_s": float("nan")})
    assert not directory.exists()


def test_all_ranks_recall_the_same(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> Any:
        first = cache.recall(comm, "measurement")
        key = cache.key_of(comm)
        if comm.rank == 0:
            cache.store(key, "measurement", VALUE)
        comm.barrier()
        return first, cache.recall(comm, "measurement")

    assert threads(3, body) == [(None, VALUE)] * 3


def test_facts_travel_as_they_are(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> Any:
        mine = {"rank": comm.rank, "text": "ä" * 100 * comm.rank}
        return gather_json(comm, mine), broadcast_json(comm, mine, root=2)

    everything = [{"rank": rank, "text": "ä" * 100 * rank} for rank in range(4)]
    assert threads(4, body) == [(everything, everything[2])] * 4


def test_the_directory_is_the_users_choice() -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/treering")
    for environ in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "not/absolute"}):
        assert cache_directory(environ) == Path.home() / ".cache" / "treering"


def test_the_facts_of_a_machine(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : Abacus 9000 : fast\n",
        "sys/devices/system/node/node0/cpulist": "9000-9003\n",
        "sys/devices/system/node/node1/cpulist": f"{core}-{core + 4095},9999\n",
        "sys/class/net/eth0/device": "",
        "sys/class/net/eth0/speed": "25000\n",
        "sys/class/net/eth0/mtu": "9000\n",
        "sys/class/net/ib0/device": "",
        "sys/class/net/veth7/speed": "10000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = machine_facts(tmp_path)
    assert facts["cpu"] == "Abacus 9000 : fast"
    assert facts["numa_node"] == 1
    assert facts["nics"] == {"eth0": "25000 Mbit/s, MTU 9000", "ib0": "? Mbit/s, MTU ?"}
    assert facts["available"] == len(os.sched_getaffinity(0))
    assert np.isfinite(machine_facts()["cores"])
