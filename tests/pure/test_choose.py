"""What "auto" is: by rules, by measured times, by predictions."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

import collectives as cc
from collectives.choose import CANONICAL, Chooser
from collectives.plan import COLLECTIVES, Step
from collectives.rules import Rule
from collectives.tuning import Tuning
from topology import presets

ONE_HOST = (tuple(range(4)),)
TWO_HOSTS = ((0, 1, 2, 3), (4, 5, 6, 7))
KIB, MIB = 1 << 10, 1 << 20


def test_one_host_goes_by_what_was_measured_on_such() -> None:
    chooser = Chooser(ONE_HOST, shared_memory=True)
    assert chooser.choose("all_reduce", 16) == "one_shot"
    assert chooser.choose("all_reduce", 16 * KIB) == "recursive_doubling"
    assert chooser.choose("all_reduce", 64 * MIB) == "two_tree"
    assert chooser.choose("reduce_scatter", MIB) == "direct"
    assert Chooser(ONE_HOST, shared_memory=False).choose("all_reduce", 64 * MIB) == "halving_doubling"


def test_slow_links_between_hosts_are_crossed_as_little_as_can_be() -> None:
    chooser = Chooser(TWO_HOSTS, shared_memory=True)
    for collective in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"):
        explained = chooser.explain(collective, 16 * MIB)
        times = {c.algorithm: c.time_s for c in explained.candidates}
        assert explained.chosen == min(times, key=lambda name: times[name])
        assert times["hierarchical"] <= 1.3 * times[explained.chosen], explained


def test_every_collective_has_a_choice_on_any_number_of_ranks() -> None:
    for size in (1, 2, 3, 7, 16, 33):
        for hosts in ((tuple(range(size)),), tuple((r,) for r in range(size))):
            chooser = Chooser(hosts, shared_memory=True)
            for collective in COLLECTIVES:
                for nbytes in (0, 1, 1000, MIB):
                    assert chooser.choose(collective, nbytes) in cc.algorithms(collective)


def test_a_rule_wins() -> None:
    chooser = Chooser(ONE_HOST, shared_memory=True)
    chooser.use(rules=[Rule("all_reduce", "ring", 0, 1 * MIB), Rule("all_reduce", "direct")])
    assert chooser.choose("all_reduce", 16) == "ring"
    assert chooser.choose("all_reduce", MIB) == "direct"
    assert "pinned by a rule" in chooser.explain("all_reduce", 16).reason
    chooser.use(rules=())
    assert chooser.choose("all_reduce", 16) == "one_shot"


def test_a_rule_does_not_change_the_bits_of_a_reproducible_call() -> None:
    chooser = Chooser(ONE_HOST, shared_memory=True)
    chooser.use(rules=[Rule("all_reduce", "two_tree"), Rule("all_reduce", "binomial")])
    assert chooser.choose("all_reduce", 16, reproducible=True) == "binomial"
    assert chooser.choose("all_reduce", 16) == "two_tree"
    chooser.use(rules=[Rule("all_reduce", "two_tree")])
    assert chooser.choose("all_reduce", 16, reproducible=True) == "one_shot"


def test_one_rank_can_be_tuned() -> None:
    with cc.connect_threads(1)[0] as comm:
        comm.tune(("all_reduce",), sizes=(1024,), budget_s=1)
        assert comm.all_reduce(np.ones(5))[0] == 1
        assert comm.explain("all_reduce", nbytes=10_000_000).chosen in cc.algorithms("all_reduce")


def test_a_plan_of_the_users_own_is_no_candidate() -> None:
    def steps(rank: int, size: int) -> list[Step]:
        return []

    def even(size: int) -> int:
        raise ValueError(f"not for {size} ranks")

    cc.algorithm("all_reduce", "mine", chunks=even)(steps)
    try:
        names = Chooser((tuple(range(21)),), shared_memory=True).names("all_reduce")
        assert "ring" in names
        assert "mine" not in names
    finally:
        cc.unregister("all_reduce", "mine")


def test_measured_times_win_over_predictions() -> None:
    chooser = Chooser(ONE_HOST, shared_memory=True)
    times = {name: {MIB: 5e-3} for name in cc.algorithms("all_reduce") if not name.startswith(("torus", "hier"))}
    times["ring"] = {MIB: 1e-6}
    chooser.use(tuning=Tuning({"all_reduce": times}))
    explained = chooser.explain("all_reduce", MIB)
    assert explained.chosen == "ring"
    assert "measured as the fastest" in explained.reason
    assert chooser.choose("all_reduce", 4 * MIB) == "ring"  # as far off as at the nearest size that was measured


def test_what_was_not_measured_is_taken_to_be_as_far_off_as_the_rest() -> None:
    chooser = Chooser(ONE_HOST, shared_memory=True)
    predicted = {c.algorithm: c.predicted_s for c in chooser.explain("all_reduce", MIB).candidates}
    times = {name: {MIB: 10 * seconds} for name, seconds in predicted.items() if name != "ring"}
    chooser.use(tuning=Tuning({"all_reduce": times}))
    ring = next(c for c in chooser.explain("all_reduce", MIB).candidates if c.algorithm == "ring")
    assert ring.measured_s is None
    assert ring.time_s == pytest.approx(10 * predicted["ring"])


def test_a_cluster_decides() -> None:
    """A chain of slow links favours few bytes, a network where nothing but messages costs favours few of these."""
    slow = presets.tree(tuple(range(8)), [], latency_s=1e-9, bandwidth_bytes_per_s=1e6)
    far = presets.tree(tuple(range(8)), [], latency_s=1.0, bandwidth_bytes_per_s=1e12)
    chooser = Chooser(tuple((r,) for r in range(8)), shared_memory=True)
    chooser.use(cluster=slow, basis="given")
    explained = chooser.explain("all_reduce", 8 * MIB)
    assert float(cc.verify(cc.plan("all_reduce", explained.chosen, 8)).sent) == pytest.approx(2 * 7 / 8)
    assert "given (8 ranks" in str(explained)
    chooser.use(cluster=far)
    best = cc.price(cc.plan("all_reduce", chooser.choose("all_reduce", 8 * MIB), 8), far)
    assert best.latency_s == min(
        cc.price(cc.plan("all_reduce", name, 8), far).latency_s for name in chooser.names("all_reduce")
    )


def test_the_explanation_is_a_table() -> None:
    text = str(Chooser(ONE_HOST, shared_memory=True).explain("all_reduce", 16))
    lines = text.splitlines()
    assert lines[0] == "all_reduce of 16 bytes on 4 ranks of 1 host, assumed (4 ranks in hosts)"
    assert lines[1].split() == ["algorithm", "predicted", "us", "measured", "us"]
    assert sum(line.startswith("* one_shot") for line in lines) == 1
    assert lines[-1] == "one_shot: measured as the fastest on another machine with ranks on one host"


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 13])
def test_what_reproducible_calls_choose_among_is_canonical(size: int) -> None:
    for collective, names in CANONICAL.items():
        for name in names:
            assert cc.verify(cc.plan(collective, name, size)).order == "canonical", (collective, name)
        for shared_memory in (True, False):
            chooser = Chooser((tuple(range(size)),), shared_memory)
            for nbytes in (16, 100 * KIB, 16 * MIB):
                assert chooser.choose(collective, nbytes, reproducible=True) in names


def test_nested_groups_are_kept_for_plans() -> None:
    racks = (((0, 1), (2, 3)), ((4, 5), (6, 7)))
    chooser = Chooser(racks, shared_memory=True)
    assert chooser.hosts == racks
    assert chooser.cluster.hosts == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert "hierarchical" in chooser.names("all_reduce")
    chooser = Chooser(TWO_HOSTS, shared_memory=True)
    chooser.use(cluster=presets.tree((TWO_HOSTS,), [presets.Level("rack", 0, math.inf), presets.Level("host", 0, 1e9)]))
    assert chooser.hosts == TWO_HOSTS
    assert "hierarchical" in chooser.names("all_reduce")
    assert "hierarchical" not in Chooser(ONE_HOST, shared_memory=True).names("all_reduce")
    assert "hierarchical" not in Chooser(tuple((r,) for r in range(4)), shared_memory=True).names("all_reduce")


def test_numa_nodes_are_groups_but_not_hosts() -> None:
    nodes = presets.tree((TWO_HOSTS,), [presets.Level("host", 0, math.inf), presets.Level("numa", 1e-6, 1e10)])
    assert nodes.hosts == (tuple(range(8)),)
    assert nodes.part([6, 1, 4]).hosts == ((1, 2, 0),)
    chooser = Chooser((tuple(range(8)),), shared_memory=True)
    chooser.use(cluster=nodes, basis="measured")
    assert chooser.hosts == TWO_HOSTS
    assert "ranks of 1 host, " in str(chooser.explain("all_reduce", 16))
    assert chooser.predicted_s("all_reduce", "recursive_doubling", 16) < 15e-6  # a message between hosts takes 16 us


def test_many_ranks_are_chosen_for_in_no_time_and_do_not_talk_to_everybody() -> None:
    chooser = Chooser(tuple((rank,) for rank in range(256)), shared_memory=True)
    begin = time.process_time()
    for collective in ("all_reduce", "all_gather", "broadcast", "all_to_all", "barrier"):
        assert chooser.choose(collective, MIB) in cc.algorithms(collective)
        assert set(chooser.names(collective)) <= {"direct"} or "direct" not in chooser.names(collective)
    assert time.process_time() - begin < 10  # it takes about half a second
