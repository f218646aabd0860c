"""A communicator finds the cluster its ranks are on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import collectives as cc
from topology import Cluster, discover


def test_all_ranks_of_a_communicator_find_the_same_cluster(threads: Callable[..., list[Any]]) -> None:
    def body(comm: cc.Communicator) -> Cluster:
        return discover(comm)

    clusters = threads(5, body, hosts=((0, 2, 4), (1, 3)))
    assert clusters == [clusters[0]] * 5
    assert clusters[0].hosts == ((0, 2, 4), (1, 3))
    assert [device.name for device in clusters[0].devices if device.name.startswith("rank ")] == [
        f"rank {rank}" for rank in range(5)
    ]
