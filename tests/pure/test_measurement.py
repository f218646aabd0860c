"""What is made of times: fits that find what was planted, pairs chosen from groups, and a measurement as text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collectives as cc
from collectives.measurement import PairClass, fit
from collectives.pairs import WHOLE, common_level, near_and_far, rank_groups
from collectives.probe import COMBINE, PING_PONG, REDUCE, SHIFT, STREAM, Probe, actions, memory_bytes
from transports.program import Kind

SIZES = (4 << 10, 64 << 10, 1 << 20, 4 << 20)


def times(seed: int, latency_s: float, bandwidth: float, noise: float, outliers: float) -> Any:
    """Samples with so much relative noise, of which some take ten times as long because something else ran."""
    rng = np.random.default_rng(seed)

    def several(exact_s: float, count: int) -> list[float]:
        factors = 1 + noise * rng.uniform(-1, 1, count)
        return (exact_s * factors * np.where(rng.random(count) < outliers, 10, 1)).tolist()

    return several(latency_s, 25), {n: several(2 * latency_s + n / bandwidth, 25) for n in SIZES}


@given(st.integers(0, 1000), st.floats(-7, -2), st.floats(6, 11))
def test_a_fit_finds_the_planted_latency_and_bandwidth(seed: int, latency: float, bandwidth: float) -> None:
    planted = 10**latency, 10**bandwidth
    found_latency_s, found_bandwidth = fit(*times(seed, *planted, noise=0.0, outliers=0.1))
    assert found_latency_s == pytest.approx(planted[0], rel=1e-6)
    assert found_bandwidth == pytest.approx(planted[1], rel=1e-3)


@given(st.integers(0, 1000))
def test_a_fit_is_not_misled_by_noise_and_disturbed_samples(seed: int) -> None:
    found_latency_s, found_bandwidth = fit(*times(seed, 5e-6, 1e9, noise=0.1, outliers=0.15))
    assert found_latency_s == pytest.approx(5e-6, rel=0.1)
    assert found_bandwidth == pytest.approx(1e9, rel=0.15)


def test_a_fit_survives_one_disturbed_size() -> None:
    streams = {n: [1e-5 + n / 2e9] for n in (1 << 16, 1 << 18, 1 << 20, 1 << 21, 1 << 22)}
    streams[1 << 18] = [0.5]
    assert fit([1e-5], streams)[1] == pytest.approx(2e9, rel=0.2)


def test_a_fit_of_one_size_or_of_falling_times_uses_the_largest() -> None:
    assert fit([1e-3], {1000: [2e-3]}) == (1e-3, pytest.approx(1e6))
    assert fit([1e-3], {1000: [9e-3], 2000: [3e-3]}) == (1e-3, pytest.approx(1e6))
    assert fit([5e-3], {1000: [2e-3]})[1] == pytest.approx(1e6)


def test_nothing_can_be_fitted_to_nothing() -> None:
    with pytest.raises(ValueError, match="small message"):
        fit([], {8: [1.0]})
    with pytest.raises(ValueError, match="large one"):
        fit([1.0], {})


# ---------------------------------------------------------------- pairs


def smallest_common(groups: Any, levels: tuple[str, ...], a: int, b: int) -> str:
    """By brute force: the name of the smallest group that holds both."""
    name, names = WHOLE, list(levels)
    while True:
        inner = next((g for g in groups if isinstance(g, tuple) and {a, b} <= set(flat(g))), None)
        if inner is None:
            return name
        groups, name = inner, names.pop(0)


def flat(groups: Any) -> list[int]:
    return [groups] if isinstance(groups, int) else [rank for g in groups for rank in flat(g)]


GROUPS = [
    (((0, 1, 2, 3),), ("host",)),
    (((0,), (1,), (2,)), ("host",)),
    (((0, 3), (1, 4), (2, 5)), ("host",)),
    (((0, 1, 2), (3,), (4, 5, 6, 7)), ("host",)),
    ((((0, 1), (2, 3)), ((4, 5), (6, 7))), ("host", "numa")),
    (((((0, 1), (2, 3)), ((4,), (5, 6))), (((7, 8),), ((9, 10),))), ("site", "rack", "host")),
]


@pytest.mark.parametrize(("groups", "levels"), GROUPS)
def test_pairs_are_of_the_class_they_stand_for(groups: Any, levels: tuple[str, ...]) -> None:
    size = len(flat(groups))
    classes = near_and_far(groups, levels, size, most=6)
    there = {smallest_common(groups, levels, a, b) for a in range(size) for b in range(a)}
    assert [c.level for c in classes] == [level for level in (*levels[::-1], WHOLE) if level in there]
    for c in classes:
        assert 0 < len(c.alone) <= 6
        assert {smallest_common(groups, levels, *pair) for pair in (*c.alone, *c.busy)} == {c.level}
        senders, receivers = [a for a, _ in c.busy], [b for _, b in c.busy]
        assert len(set(senders)) == len(senders), "a rank sends in one pair only"
        assert len(set(receivers)) == len(receivers)
        assert c.of_ranks or not set(senders) & set(receivers)


@pytest.mark.parametrize(("groups", "levels"), GROUPS)
def test_the_level_of_every_pair(groups: Any, levels: tuple[str, ...]) -> None:
    ranks = flat(groups)
    for a in ranks:
        for b in ranks:
            if a != b:
                assert common_level(groups, levels, a, b) == smallest_common(groups, levels, a, b)


def test_all_ranks_of_a_host_send_at_once() -> None:
    host, cluster = near_and_far(((0, 1, 2), (3, 4, 5)), ("host",), 6, most=6)
    assert set(host.busy) == {(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)}
    assert (host.senders, host.of_ranks) == (3, True)
    assert set(cluster.busy) == {(0, 3), (1, 4), (2, 5)}
    assert (cluster.senders, cluster.of_ranks) == (3, False)


def test_pairs_are_spread_over_many_ranks() -> None:
    (host,) = near_and_far((tuple(range(1000)),), ("host",), 1000, most=4)
    assert host.alone == ((0, 1), (249, 250), (499, 500), (749, 750))


def test_one_rank_has_no_pairs() -> None:
    assert near_and_far(((0,),), ("host",), 1, most=6) == []


@pytest.mark.parametrize(
    ("groups", "levels", "words"),
    [
        (((0, 1),), ("host",), "hold 2 ranks, but there are 3"),
        (((0, 1, 1),), ("host",), "rank 1 stands twice"),
        ((0, 1, 2), ("host",), "expected a group"),
        (((0, 1), 2), ("host",), "expected a group"),
        ((((0, 1), (2,)),), ("host",), "expected a rank"),
        ((((0, 1), (2,)),), ("host", "host"), "different names"),
        (((0, 1, 2),), (WHOLE,), "different names"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: Any, levels: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        near_and_far(groups, levels, 3, most=6)


def test_numa_nodes_are_a_level_where_ranks_are_bound_to_them() -> None:
    hosts = ((0, 1, 2, 3), (4, 5))
    assert rank_groups(hosts, [None] * 6) == (hosts, ("host",))
    assert rank_groups(hosts, [0] * 6) == (hosts, ("host",))
    nested = (((0, 2), (1, 3)), ((4, 5),))
    assert rank_groups(hosts, [0, 1, 0, 1, 1, 1]) == (nested, ("host", "numa"))


# ---------------------------------------------------------------- programs


@pytest.mark.parametrize("kind", [PING_PONG, STREAM, COMBINE, SHIFT, REDUCE])
def test_what_is_sent_is_received(kind: str) -> None:
    pairs = ((0, 1), (1, 2), (2, 0)) if kind == SHIFT else ((0, 2),)
    programs = [actions(Probe(kind, pairs, 24), rank, rounds=4) for rank in range(4)]
    sent = {
        (a, b): [s.nbytes for s in programs[a] if s.kind == Kind.SEND and s.peer == b]
        for a in range(4)
        for b in range(4)
    }
    got = {
        (a, b): [s.nbytes for s in programs[b] if s.kind in (Kind.RECV, Kind.RECV_REDUCE) and s.peer == a]
        for a in range(4)
        for b in range(4)
    }
    assert sent == got
    assert sum(map(len, sent.values())) == {PING_PONG: 8, STREAM: 8, COMBINE: 8, SHIFT: 12, REDUCE: 0}[kind]
    assert programs[3] == []
    for step in (step for program in programs for step in program):
        for place in (*step.reads(), *step.writes()):
            assert place.offset_bytes + step.nbytes <= memory_bytes(24)


# ---------------------------------------------------------------- text


MEASUREMENT = cc.Measurement(
    groups=((0, 1), (2, 3)),
    levels=("host",),
    classes=(
        PairClass("host", 2, 1.2e-6, 9.5e9, 2.5e-6, 12.0e9),
        PairClass(WHOLE, 1, 3.1e-5, 1.1e8, 4.0e-5, 1.2e8),
    ),
    combine_bytes_per_s=2e10,
    recv_reduce_bytes_per_s=8e9,
    transport="shared memory and TCP",
    took_s=1.25,
)


def test_a_measurement_reads_back_from_json() -> None:
    assert cc.Measurement.from_json(MEASUREMENT.to_json()) == MEASUREMENT
    assert MEASUREMENT["host"].latency_s == 1.2e-6
    with pytest.raises(KeyError, match="there are: host, cluster"):
        MEASUREMENT["rack"]


def test_the_cluster_of_a_measurement_has_its_latencies_and_bandwidths() -> None:
    cluster = MEASUREMENT.cluster()
    assert (cluster.size, cluster.hosts, cluster.levels) == (4, ((0, 1), (2, 3)), ("host",))
    assert cluster.latency_s(0, 1) == pytest.approx(2.5e-6)
    assert cluster.latency_s(1, 2) == pytest.approx(4.0e-5)
    assert cluster.bandwidth_bytes_per_s(0, 1) == pytest.approx(9.5e9)
    assert cluster.bandwidth_bytes_per_s(1, 2) == pytest.approx(1.2e8)
    assert cluster.combine_bytes_per_s == 2e10
    assert set(cluster.path(0, 2)) & set(cluster.path(1, 3)), "ranks of a host share its way out"
    assert set(cluster.path(0, 1)) & set(cluster.path(1, 0)), "ranks of a host share its memory"


def measured(groups: Any, levels: tuple[str, ...], **latencies_s: float) -> cc.Measurement:
    classes = tuple(PairClass(level, 1, s, 1e9, s, 1e9) for level, s in latencies_s.items())
    return cc.Measurement(groups, levels, classes, 1e10, None, "TCP", 1.0)


def test_the_cluster_of_deeper_groups_adds_up_to_each_class() -> None:
    groups, levels = GROUPS[-1]
    latencies_s = {"host": 2e-6, "rack": 2e-5, "site": 3e-5, WHOLE: 2e-2}
    cluster = measured(groups, levels, **latencies_s).cluster()
    for a in range(11):
        for b in range(11):
            if a != b:
                assert cluster.latency_s(a, b) == pytest.approx(latencies_s[smallest_common(groups, levels, a, b)])


def test_the_cluster_of_hosts_with_one_rank_each() -> None:
    cluster = measured(((0,), (1,), (2,)), ("host",), cluster=5e-5).cluster()
    assert cluster.latency_s(0, 2) == pytest.approx(5e-5)
    assert cluster.bandwidth_bytes_per_s(0, 2) == 1e9


def test_a_level_without_pairs_costs_nothing() -> None:
    groups = (((0, 1),), ((2, 3),))  # one host in each rack
    cluster = measured(groups, ("rack", "host"), host=1e-6, cluster=5e-5).cluster()
    assert cluster.latency_s(0, 1) == pytest.approx(1e-6)
    assert cluster.latency_s(0, 2) == pytest.approx(5e-5)


def test_the_cluster_of_one_rank() -> None:
    assert measured(((0,),), ("host",)).cluster().size == 1


def test_a_measurement_prints_as_a_table() -> None:
    lines = str(MEASUREMENT).splitlines()
    assert lines[1].split() == ["host", "1.20", "us", "2.50", "us", "9.50", "GB/s", "12.0", "GB/s"]
    assert "combining 20.0 GB/s" in lines[-1]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((), None, "object"),
        (("combine_bytes_per_s",), 0, "combine_bytes_per_s=0 must be a number above 0"),
        (("combine_bytes_per_s",), 10**400, "must be a number above 0"),
        (("took_s",), "1", "took_s='1'"),
        (("transport",), 3, "transport=3 must be text"),
        (("levels",), "host", "levels must be a list"),
        (("levels",), [1], "must be names"),
        (("groups",), [[0, 1], [2, 2]], "rank 2 stands twice"),
        (("groups",), [[0, 1.5]], "groups must be a list"),
        (("classes", 1, "latency_s"), float("nan"), r"classes\[1\].latency_s=nan"),
        (("classes", 0, "pairs"), 0, r"classes\[0\].pairs=0"),
        (("classes", 0), [], r"classes\[0\] must be an object"),
        (("colour",), 1, "unknown key 'colour'"),
        (("classes", 0, "colour"), 1, r"classes\[0\] has an unknown key 'colour'"),
    ],
)
def test_json_that_is_wrong_is_refused_by_the_name_of_the_key(path: tuple[Any, ...], value: Any, words: str) -> None:
    entry: Any = json.loads(MEASUREMENT.to_json())
    if path:
        inner = entry
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
    else:
        entry = value
    with pytest.raises(ValueError, match=words):
        cc.Measurement.from_json(json.dumps(entry))


@pytest.mark.parametrize("name", ["groups", "levels", "classes", "combine_bytes_per_s", "transport", "took_s"])
def test_json_that_lacks_a_key_is_refused(name: str) -> None:
    entry = json.loads(MEASUREMENT.to_json())
    del entry[name]
    with pytest.raises(ValueError, match=f"no key '{name}'"):
        cc.Measurement.from_json(json.dumps(entry))


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON object"):
        cc.Measurement.from_json("{")
