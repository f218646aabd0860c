"""Pure call overhead: one rank, 16 bytes, nothing to send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import collectives as cc
from bench.arrays import LIBRARIES, memory, wrap


@pytest.fixture(scope="module")
def comm() -> Iterator[cc.Communicator]:
    with cc.connect(rank=0, size=1) as made:
        yield made


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocking_call_in_place(benchmark: Any, comm: cc.Communicator, library: str) -> None:
    x = wrap(memory(4, "float32"), "float32", library)
    benchmark(lambda: comm.all_reduce(x, out=x))


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocking_call_into_another_array(benchmark: Any, comm: cc.Communicator, library: str) -> None:
    x, out = (wrap(memory(4, "float32"), "float32", library) for _ in range(2))
    benchmark(lambda: comm.all_reduce(x, out=out))


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocking_call_with_a_new_result(benchmark: Any, comm: cc.Communicator, library: str) -> None:
    x = wrap(memory(4, "float32"), "float32", library)
    benchmark(lambda: comm.all_reduce(x))


@pytest.mark.parametrize("library", LIBRARIES)
def test_prepared_call(benchmark: Any, comm: cc.Communicator, library: str) -> None:
    x = wrap(memory(4, "float32"), "float32", library)
    benchmark(comm.prepare.all_reduce(x, out=x))


def test_asynchronous_call_and_wait(benchmark: Any, comm: cc.Communicator) -> None:
    x = np.zeros(4, np.float32)
    benchmark(lambda: comm.all_reduce_async(x, out=x).wait())
