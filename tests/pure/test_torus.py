"""The torus: neighbours only, all links busy, the least bytes."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import pytest

from collectives.plan import Plan, Send
from collectives.verify import verify

SHAPES = [(4, 4, 4), (2, 3, 4), (5, 1, 3), (3, 3), (8, 2), (7,), (2, 2, 2, 2), (1,), (6, 5)]
COLLECTIVES = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}


def spelled(shape: tuple[int, ...]) -> str:
    return f"torus({'x'.join(map(str, shape))})"


def apart(shape: tuple[int, ...], a: int, b: int) -> list[int]:
    """How far two ranks are from each other in every dimension, going the shorter way round."""
    distances: list[int] = []
    for side in reversed(shape):
        distances.append(min((a - b) % side, (b - a) % side))
        a, b = a // side, b // side
    return distances


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("collective", COLLECTIVES)
def test_it_sends_the_least_in_the_fewest_rounds_to_neighbours_only(collective: str, shape: tuple[int, ...]) -> None:
    n, times = prod(shape), COLLECTIVES[collective]
    proof = verify(Plan(collective, spelled(shape), n))
    if collective == "all_reduce":
        assert proof.rounds == times * sum(side - 1 for side in shape)
    assert proof.sent_by_rank == (Fraction(times * (n - 1), n),) * n
    assert all(sum(apart(shape, a, b)) == 1 for a, b in proof.links)


@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_on_a_cube_every_link_carries_the_same_both_ways(side: int, dimensions: int) -> None:
    n = side**dimensions
    for collective, times in COLLECTIVES.items():
        if n < 100 or collective == "all_reduce":
            links = verify(Plan(collective, spelled((side,) * dimensions), n)).links
            assert len(links) == 2 * dimensions * n
            assert set(links.values()) == {Fraction(times * (n - 1), 2 * dimensions * n)}


def test_with_one_side_it_is_the_ring() -> None:
    torus, ring = verify(Plan("all_reduce", "torus(9)", 9)), verify(Plan("all_reduce", "ring", 9))
    assert (torus.links, torus.rounds) == (ring.links, ring.rounds)


@pytest.mark.parametrize(
    ("size", "shape"), [(64, (4, 4, 4)), (16, (4, 2, 2)), (12, (3, 2, 2)), (60, (5, 4, 3)), (13, (13,))]
)
def test_without_sides_it_is_as_near_to_a_cube_as_can_be(size: int, shape: tuple[int, ...]) -> None:
    assert [Plan("all_reduce", "torus", size).steps(r) for r in range(size)] == [
        Plan("all_reduce", spelled(shape), size).steps(r) for r in range(size)
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torus(4x4)", r"torus\(4x4\) is for 16 ranks, not 60; torus\(5x4x3\) would do"),
        ("torus(4, 4)", "needs its sides, as in torus"),
        ("torus(0x60)", "needs its sides"),
        ("torus()", "needs its sides"),
    ],
)
def test_sides_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan("all_reduce", name, 60)


def test_parts_begin_on_different_links() -> None:
    """In the first round of an all-reduce on 4 x 4 x 4, every rank sends to all six neighbours at once."""
    plan = Plan("all_reduce", "torus(4x4x4)", 64)
    for rank in range(64):
        first = {step.lane: step.peer for step in reversed(plan.steps(rank)) if isinstance(step, Send)}
        assert len(set(first.values())) == len(first) == 6


def test_a_torus_can_be_a_level() -> None:
    racks = tuple(tuple(range(2 * h, 2 * h + 2)) for h in range(6))
    proof = verify(Plan("all_reduce", "hierarchical(direct, torus(3x2))", 12, 0, racks))
    assert proof.sent == Fraction(2 * 11, 12)
