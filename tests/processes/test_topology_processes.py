"""Levels, placement and tori between processes, on the engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from conftest import Job
from rank_process import Rank

from collectives.choose import assumed_cluster
from tests.cases import ROOTED, Case, perform

Ranks = Callable[..., AbstractContextManager[Job]]

RACKS = (((0, 5), (3, 2)), ((4,), (1, 6, 7)))
ALGORITHMS = {
    "all_reduce": ["hierarchical", "hierarchical(ring, direct, recursive_doubling)", "torus(4x2)", "ring", "two_tree"],
    "reduce_scatter": ["hierarchical(two_tree, ring)", "torus", "ring"],
    "all_gather": ["hierarchical(direct, doubling)", "torus(2x2x2)", "ring"],
    "broadcast": ["hierarchical", "hierarchical(binomial)", "binomial", "scatter_all_gather", "two_tree"],
    "reduce": ["hierarchical(halving, two_tree)", "ring"],
}


def perform_all(me: Rank) -> None:
    comm = me.connect()
    comm.use(cluster=assumed_cluster(RACKS, shared_memory=False))
    for collective, algorithms in ALGORITHMS.items():
        for algorithm in algorithms:
            for elements in (1, 1001, 300_001):
                split = collective in ("reduce_scatter", "all_gather")
                rows = (tuple(elements // 8 + rank for rank in range(8)),) if split else ((elements,),)
                root = 5 if collective in ROOTED else 0
                case = Case(
                    collective, 8, rows, uneven=split, algorithm=algorithm, dtype="int32", root=root, place="out"
                )
                perform(comm, case)
    me.say("done")


@pytest.mark.parametrize("options", [{"transport": "shm"}, {"transport": "tcp", "lanes": 2}], ids=["shm", "tcp"])
def test_every_level_and_torus_is_exact(ranks: Ranks, options: dict[str, Any]) -> None:
    with ranks(8, perform_all, **options) as job:
        job.hear_all("done")
