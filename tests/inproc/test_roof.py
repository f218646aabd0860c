"""The roof of a report: every rank measures the same one, of memory on one host and of the link between several."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import collectives as cc
from bench.roof import Roof, measure

SIZES = (1024, 65536)


def on_all(comms: list[cc.Communicator], run: Callable[[cc.Communicator], Roof]) -> list[Roof]:
    with ThreadPoolExecutor(len(comms)) as pool:
        return [future.result(30) for future in [pool.submit(run, comm) for comm in comms]]


def test_on_one_host_it_is_a_copy_of_each_size() -> None:
    roofs = on_all(
        cc.connect_threads(3, timeout_s=30), lambda comm: measure(comm, "all_reduce", [65536, 1024, 0, 1024])
    )
    assert len(set(roofs)) == 1
    assert roofs[0].name == "memory copy"
    assert [size for size, _ in roofs[0].points] == list(SIZES)
    assert all(0 < busbw < 10_000 for _, busbw in roofs[0].points)


@pytest.mark.parametrize("collective", ["all_reduce", "broadcast"])
def test_between_hosts_it_is_the_link_whatever_the_size(collective: str) -> None:
    comms = cc.connect_threads(4, hosts=((0, 2), (1, 3)), timeout_s=30)
    roofs = on_all(comms, lambda comm: measure(comm, collective, SIZES))
    assert len(set(roofs)) == 1
    assert roofs[0].name == "link"
    (busbw,) = {busbw for _, busbw in roofs[0].points}
    assert busbw > 0
