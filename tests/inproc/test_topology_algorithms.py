"""Levels, placement and tori on real ranks: threads that are on pretended hosts, racks and sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import collectives as cc
from tests.cases import HOWS, PLACES, ROOTED, Case, perform

Threads = Callable[..., list[Any]]

RACKS = (((0, 1), (2, 3)), ((4, 5), (6, 7)))
UNEVEN = (((0, 4), (2, 8, 1)), ((3,), (5, 6)), (7,))  # ranks in any order, a host beside racks
DEALT = ((0, 3, 6), (1, 4, 7), (2, 5, 8))
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")


def case(collective: str, size: int, algorithm: str, place: str = "new", elements: int = 1001) -> Case:
    whole = collective in ("all_reduce", "broadcast", "reduce")
    rows = ((elements,),) if whole else (tuple(elements % (7 + rank) for rank in range(size)),)
    root = size // 2 if collective in ROOTED else 0
    return Case(collective, size, rows, uneven=not whole, place=place, algorithm=algorithm, dtype="int64", root=root)


@pytest.mark.parametrize("hosts", [RACKS, UNEVEN])
@pytest.mark.parametrize("inner", ["", "(ring)", "(direct, two_tree)", "(two_tree, halving_doubling, direct)"])
def test_three_levels_give_the_exact_result(threads: Threads, hosts: Any, inner: str) -> None:
    size = 8 if hosts is RACKS else 9

    def body(comm: cc.Communicator) -> None:
        for collective in COLLECTIVES:
            for place in PLACES:
                perform(comm, case(collective, size, f"hierarchical{inner}", place), HOWS)

    threads(size, body, hosts=hosts)


def test_spare_memory_at_the_top_of_a_hierarchy(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        for top in ("one_shot", "recursive_doubling"):
            for elements in (0, 1, 5, 4001):
                perform(comm, case("all_reduce", 8, f"hierarchical(ring, direct, {top})", elements=elements))

    threads(8, body, hosts=RACKS)


def test_rings_and_trees_over_ranks_dealt_out_in_turn_give_the_exact_result(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        for collective in COLLECTIVES:
            for algorithm in cc.algorithms(collective):
                for place in PLACES:
                    perform(comm, case(collective, 9, algorithm, place))

    threads(9, body, hosts=DEALT)


@pytest.mark.parametrize("torus", ["torus", "torus(3x4)", "torus(2x3x2)", "torus(12)", "torus(1x6x2)"])
def test_a_torus_gives_the_exact_result(threads: Threads, torus: str) -> None:
    def body(comm: cc.Communicator) -> None:
        for collective in ("all_reduce", "reduce_scatter", "all_gather"):
            for place in PLACES:
                perform(comm, case(collective, 12, torus, place))

    threads(12, body)


def test_a_part_of_the_ranks_keeps_the_racks(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> tuple[Any, Any]:
        even = comm.split(color=comm.rank % 2)
        assert even is not None
        x = np.full(10, comm.rank, np.int64)
        total = even.all_reduce(x, algorithm="hierarchical(ring, ring, two_tree)")
        assert total[0] == sum(range(comm.rank % 2, 8, 2))
        return comm.groups, even.groups

    for groups, even in threads(8, body, hosts=RACKS):
        assert groups == RACKS
        assert even == (((0,), (1,)), ((2,), (3,)))


def test_ranks_that_name_different_inner_algorithms_find_out(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> str:
        inner = "ring, two_tree" if comm.rank else "ring,direct"
        with pytest.raises(cc.MismatchError) as caught:
            comm.all_reduce(np.ones(100), algorithm=f"hierarchical({inner})", timeout_s=5)
        return str(caught.value)

    assert any("hierarchical(ring, direct)" in text for text in threads(4, body, hosts=((0, 1), (2, 3))))


def test_the_spelling_of_a_name_makes_no_difference(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        inner = "ring, two_tree" if comm.rank else " ring,two_tree "
        assert comm.all_reduce(np.ones(100), algorithm=f"hierarchical({inner})")[0] == 4

    threads(4, body, hosts=((0, 1), (2, 3)))


def test_a_wrong_inner_name_is_refused_before_anything_is_sent(threads: Threads) -> None:
    def body(comm: cc.Communicator) -> None:
        for wrong in ("hierarchical(rings)", "hierarchical(ring, ring, ring)", "torus(3x3)", "ring(2)"):
            with pytest.raises(ValueError, match=r"there are|at most 2 names|not 4|takes no arguments"):
                comm.all_reduce(np.ones(3), algorithm=wrong)
        assert comm.all_reduce(np.ones(3))[0] == 4

    threads(4, body, hosts=((0, 1), (2, 3)))
