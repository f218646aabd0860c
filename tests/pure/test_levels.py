"""Hosts in groups, to any depth: what is accepted, and what algorithms composed level by level do on them."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest

from collectives.levels import Groups, Levels, checked, every_host, narrowed
from collectives.plan import COLLECTIVES, Plan, Send, algorithm, find, unregister
from collectives.verify import verify

RACKS: Groups = (((0, 1), (2, 3)), ((4, 5), (6, 7)))
UNEVEN: Groups = (((0, 1, 2), (3, 4)), ((5, 6),), ((7,), (8, 9, 10), (11,)))
MIXED: Groups = (((8, 1), (0, 3, 5)), (2, 7), ((4,), (6, 9)))  # a host beside racks, ranks in any order
SITES: Groups = ((((0, 1), (2, 3)), ((4,), (5, 6))), (((7, 8), (9,)),))
SHAPES: list[Groups] = [
    RACKS,
    UNEVEN,
    MIXED,
    SITES,
    ((0, 1, 2), (3, 4), (5, 6, 7, 8)),
    ((0, 2, 4), (1, 3)),
    ((0, 1, 2),),
]
LEVELWISE = ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"]
INNER = ["direct", "ring", "halving_doubling", "two_tree", "binomial"]


def even(*fan_out: int) -> Groups:
    """Groups of equal size, the numbers from the top down: even(3, 4, 2) is three racks of four hosts of two ranks."""
    ranks = itertools.count()

    def group(sizes: tuple[int, ...]) -> Any:
        return tuple(next(ranks) if len(sizes) == 1 else group(sizes[1:]) for _ in range(sizes[0]))

    return group(fan_out)


def size_of(groups: Groups) -> int:
    return sum(size_of(group) if isinstance(group, tuple) else 1 for group in groups)


def roots(collective: str, size: int) -> range:
    return range(size) if COLLECTIVES[collective].rooted else range(1)


def test_groups_are_brought_to_one_depth() -> None:
    assert checked(RACKS, 8) == RACKS
    assert checked((((0, 1), (2, 3)), (4, 5)), 6) == (((0, 1), (2, 3)), ((4, 5),))
    assert checked((RACKS,), 8) == RACKS
    assert checked(((0, 1),), 2) == checked((0, 1), 2) == ((0, 1),)
    assert list(every_host(UNEVEN))[1:4] == [(3, 4), (5, 6), (7,)]


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ((((0, 1), (2,)), ((3,),)), r"each rank of range\(5\) exactly once"),
        (((0, 1), 2, (3, 4)), "holds ranks and groups"),
        (((0, 1), (), (2, 3, 4)), "empty"),
        (((0, 1), [2, 3, 4]), "neither a rank nor a tuple"),
    ],
)
def test_hosts_that_make_no_sense_are_refused(hosts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(hosts, 5)


def test_a_smaller_communicator_keeps_the_groups_of_its_ranks() -> None:
    assert narrowed(RACKS, [0, 1, 4, 6]) == (((0, 1),), ((2,), (3,)))
    assert narrowed(RACKS, [7, 5, 4]) == ((0,), (2, 1))  # all in one rack
    assert narrowed(((0, 1), (2, 3)), [3, 2]) == ((1, 0),)


def test_rails_are_the_same_problem_with_one_level_less() -> None:
    levels = Levels(RACKS)
    assert (levels.depth, levels.width, levels.groups) == (3, 2, ((0, 1), (2, 3), (4, 5), (6, 7)))
    assert [rail.groups for rail in levels.rails] == [((0, 2), (4, 6)), ((1, 3), (5, 7))]
    assert [rail.groups for rail in levels.rails[1].rails] == [((1, 5),), ((3, 7),)]


@pytest.mark.parametrize("collective", LEVELWISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_levels_is_proved_with_any_inner_algorithms(collective: str, shape: Groups) -> None:
    size = size_of(shape)
    names = ["hierarchical"] + [f"hierarchical({a}, {b})" for a in INNER for b in INNER]
    for name in names:
        for root in {0, 2, size - 1} & {*roots(collective, size)}:
            verify(Plan(collective, name, size, root, shape))


@pytest.mark.parametrize("collective", LEVELWISE)
def test_three_and_four_levels_are_proved_for_every_root(collective: str) -> None:
    for shape in (UNEVEN, SITES, even(2, 3, 2), even(3, 1, 4), even(2, 2, 2, 2)):
        for root in roots(collective, size_of(shape)):
            verify(Plan(collective, "hierarchical", size_of(shape), root, shape))


@pytest.mark.parametrize("shape", [even(4, 2), even(2, 2, 2), even(3, 4, 2), even(2, 3, 2, 3), even(5, 3, 4)])
@pytest.mark.parametrize("inner", ["", "(ring)", "(direct, ring)", "(halving_doubling)"])
def test_groups_of_equal_size_send_the_least_possible_on_any_number_of_levels(shape: Groups, inner: str) -> None:
    n = size_of(shape)
    assert verify(Plan("all_reduce", f"hierarchical{inner}", n, 0, shape)).sent == Fraction(2 * (n - 1), n)
    for collective in ("reduce_scatter", "all_gather"):
        assert verify(Plan(collective, f"hierarchical{inner}", n, 0, shape)).sent == Fraction(n - 1, n)


@pytest.mark.parametrize(("collective", "factor"), [("all_reduce", 2), ("reduce_scatter", 1), ("all_gather", 1)])
def test_what_crosses_between_racks_is_the_least_possible(collective: str, factor: int) -> None:
    """A rack of R must send out, and take in, what the others do not have: (R - 1) / R of the array each time."""
    shape = even(3, 4, 2)
    proof = verify(Plan(collective, "hierarchical", 24, 0, shape))
    out = [
        sum(share for (a, b), share in proof.links.items() if a // 8 == rack and b // 8 != rack) for rack in range(3)
    ]
    assert out == [Fraction(2 * factor, 3)] * 3


def test_a_broadcast_enters_every_other_rack_and_host_once() -> None:
    proof = verify(Plan("broadcast", "hierarchical", 24, 5, even(3, 4, 2)))
    for ranks_each in (8, 2):
        into = [0] * (24 // ranks_each)
        for (a, b), share in proof.links.items():
            if a // ranks_each != b // ranks_each:
                into[b // ranks_each] += share
        assert into == [0 if group == 5 // ranks_each else 1 for group in range(24 // ranks_each)]


def test_names_are_spelled_in_one_way() -> None:
    assert Plan("all_reduce", " hierarchical( ring,two_tree )", 4, 0, ((0, 1), (2, 3))).algorithm == (
        "hierarchical(ring, two_tree)"
    )
    assert find("all_reduce", "hierarchical(ring,ring)") is find("all_reduce", "hierarchical(ring, ring)")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hierarchical(rings, ring)", "cannot use 'rings' on a level below the top; there are: direct, ring, "),
        ("hierarchical(ring, rings)", "cannot use 'rings' on the top; there are: direct, one_shot, ring, "),
        ("hierarchical(one_shot, ring)", "cannot use 'one_shot' on a level below"),
        ("hierarchical(hierarchical)", "cannot use 'hierarchical'"),
        ("hierarchical(one_shot)", "cannot use 'one_shot' on a level below"),
        ("hierarchical(ring, ring, ring)", "names 3 algorithms, but these hosts have 2 levels"),
        ("hierarchical()", "cannot use ''"),
        ("ring(2)", "ring takes no arguments"),
        ("hierarchical(ring", "has no algorithm 'hierarchical.ring'; there are"),
    ],
)
def test_inner_names_that_cannot_be_are_refused_with_those_that_can(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan("all_reduce", name, 4, 0, ((0, 1), (2, 3)))


def test_spare_chunks_and_local_steps_find_a_place_at_the_top() -> None:
    for top in ("one_shot", "recursive_doubling"):
        for shape in (RACKS, UNEVEN):
            verify(Plan("all_reduce", f"hierarchical(ring, direct, {top})", size_of(shape), 0, shape))


def test_a_users_algorithm_inside_makes_a_plan_that_must_be_proved() -> None:
    assert find("all_reduce", "hierarchical(ring)").builtin

    def silent(rank: int, size: int) -> list[Send]:
        return []

    algorithm("all_reduce", "silent")(silent)
    try:
        mine = Plan("all_reduce", "hierarchical(ring, silent)", 4, 0, ((0, 1), (2, 3)))
        assert not mine.builtin
        with pytest.raises(ValueError, match="all_reduce promises"):
            verify(mine)
    finally:
        unregister("all_reduce", "silent")


def test_one_rank_of_many_hosts_is_generated_alone() -> None:
    hosts = tuple(tuple(range(8 * h, 8 * h + 8)) for h in range(8192))
    racks = tuple(hosts[32 * r : 32 * r + 32] for r in range(256))
    for shape, inner, most in (
        (hosts, "(direct, two_tree)", 40),
        (racks, "", 81),
        (racks, "(direct, ring, two_tree)", 180),
    ):
        plan = Plan("all_reduce", f"hierarchical{inner}", 65536, 0, shape)
        assert len(plan.steps(40000)) < most
        assert sum(len(plan.steps(rank)) for rank in range(0, 65536, 64)) < most * 1024
