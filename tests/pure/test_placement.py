"""Rings and trees follow the hosts: ranks dealt out in turn do not make every hop cross between hosts."""

from __future__ import annotations

from fractions import Fraction

import pytest

from collectives.levels import Groups, Hosts, every_host
from collectives.plan import COLLECTIVES, Plan, algorithms, find
from collectives.verify import Proof, verify

NEAR = [(c, name) for c in COLLECTIVES for name in algorithms(c) if find(c, name).builtin and find(c, name).near]
RINGS = [("all_reduce", 2), ("reduce_scatter", 1), ("all_gather", 1)]


def dealt(hosts: int, each: int) -> Hosts:
    return tuple(tuple(range(h, hosts * each, hosts)) for h in range(hosts))


def in_order(hosts: int, each: int) -> Hosts:
    return tuple(tuple(range(h * each, (h + 1) * each)) for h in range(hosts))


def crossings(proof: Proof, hosts: Groups) -> dict[tuple[int, int], Fraction]:
    """What goes from one host to another."""
    host_of = {rank: h for h, ranks in enumerate(every_host(hosts)) for rank in ranks}
    return {(a, b): share for (a, b), share in proof.links.items() if host_of[a] != host_of[b]}


def roots(collective: str, size: int) -> range:
    return range(size) if COLLECTIVES[collective].rooted else range(1)


@pytest.mark.parametrize(("collective", "directions"), RINGS)
@pytest.mark.parametrize("hosts", [2, 3, 4, 7])
def test_a_ring_over_ranks_dealt_out_in_turn_crosses_between_hosts_once_a_host(
    collective: str, directions: int, hosts: int
) -> None:
    proof = verify(Plan(collective, "ring", 4 * hosts, 0, dealt(hosts, 4)))
    assert len(crossings(proof, dealt(hosts, 4))) == directions * hosts
    in_rank_order = verify(Plan(collective, "ring", 4 * hosts))
    assert len(crossings(in_rank_order, dealt(hosts, 4))) == directions * 4 * hosts


def test_a_ring_goes_rack_by_rack() -> None:
    racks = (((0, 4), (2, 6)), ((1, 5), (3, 7)))
    proof = verify(Plan("all_gather", "ring", 8, 0, racks))
    assert set(proof.links) == {(0, 4), (4, 2), (2, 6), (6, 1), (1, 5), (5, 3), (3, 7), (7, 0)}


@pytest.mark.parametrize(("collective", "name"), NEAR)
def test_placement_costs_what_ranks_in_order_cost(collective: str, name: str) -> None:
    """The place of the ranks changes names, not what crosses: both times rank 5 is the second of host 1."""
    root = 5 if COLLECTIVES[collective].rooted else 0
    ordered = verify(Plan(collective, name, 16, root, in_order(4, 4)))
    proof = verify(Plan(collective, name, 16, root, dealt(4, 4)))
    assert sorted(crossings(proof, dealt(4, 4)).values()) == sorted(crossings(ordered, in_order(4, 4)).values())
    assert (proof.rounds, proof.sent) == (ordered.rounds, ordered.sent)


@pytest.mark.parametrize("collective", ["all_reduce", "broadcast", "reduce"])
def test_two_trees_cross_less_than_over_ranks_as_numbered(collective: str) -> None:
    placed = crossings(verify(Plan(collective, "two_tree", 32, 0, dealt(4, 8))), dealt(4, 8))
    numbered = crossings(verify(Plan(collective, "two_tree", 32)), dealt(4, 8))
    assert 2 * sum(placed.values()) < sum(numbered.values())


@pytest.mark.parametrize(("collective", "name"), NEAR)
def test_every_placement_and_root_is_proved(collective: str, name: str) -> None:
    shuffled: Hosts = ((9, 2, 7), (0, 11), (4,), (10, 1, 3, 5), (8, 6))
    for hosts in [dealt(h, n) for h in (2, 3, 5) for n in (2, 3, 7)] + [shuffled]:
        size = sum(map(len, hosts))
        for root in roots(collective, size):
            verify(Plan(collective, name, size, root, hosts))


@pytest.mark.parametrize(
    ("collective", "name"),
    [
        ("all_reduce", "one_shot"),
        ("all_reduce", "recursive_doubling"),
        ("all_reduce", "binomial"),
        ("all_reduce", "halving_doubling"),
        ("reduce", "binomial"),
        ("reduce_scatter", "direct_canonical"),
        ("reduce_scatter", "halving_canonical"),
    ],
)
def test_what_is_combined_in_the_order_of_the_ranks_stays_so(collective: str, name: str) -> None:
    plan = Plan(collective, name, 12, 0, dealt(3, 4))
    assert plan.hosts is None
    assert verify(plan).order == "canonical"


def test_ranks_that_follow_one_another_are_left_as_they_are() -> None:
    assert Plan("all_reduce", "ring", 8, 0, in_order(2, 4)).hosts is None
    assert Plan("all_reduce", "ring", 8, 0, dealt(2, 4)).hosts == dealt(2, 4)
    assert Plan("all_reduce", "ring", 8, 0, in_order(2, 4)).steps(3) == Plan("all_reduce", "ring", 8).steps(3)
