"""Threads of one process keep the contract, with any number of ranks."""

from __future__ import annotations

import pytest

from tests.conformance.connecting import Threads
from transports import conformance

FAULTS = [name for name in conformance.CHECKS if name.startswith(("a deadline", "another", "slow"))]


def test_threads_keep_the_contract() -> None:
    report = conformance.check(Threads(3), 3)
    natives = [name for name in conformance.CHECKS if name.startswith("native ")]
    unseen = ["an array of 2 GiB and more", *natives, "a forked child", "a rank that dies"]
    assert sorted(report.of("not checked")) == sorted(unseen)


@pytest.mark.parametrize("size", [2, 5])
def test_other_numbers_of_ranks(size: int) -> None:
    conformance.check(Threads(size), size, checks=["random programs", "many calls", "messages", *FAULTS], seed=1)
