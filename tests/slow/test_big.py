"""Messages of more than 2^31 bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import collectives as cc

ELEMENTS = 3 << 30  # of one byte each
PATIENCE_S = 900.0
CHECKED = 1 << 24  # elements looked at at once


def pattern(begin: int, end: int, rank: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """What rank's array holds there; of period 251, so that no shift by a power of two goes unnoticed."""
    cycle = (np.arange(251, dtype=np.uint8) * (rank + 1)).astype(np.uint8)
    first = begin % 251
    return np.resize(np.roll(cycle, -first), end - begin)


def move(rank: int, store: str, way: str, collective: str) -> None:
    transport = "shm" if way == "registered" else way
    with cc.connect(store=store, rank=rank, size=2, transport=transport, timeout_s=120) as comm:
        x = comm.empty(ELEMENTS, np.uint8) if way == "registered" else np.empty(ELEMENTS, np.uint8)
        pieces = [(begin, min(begin + CHECKED, ELEMENTS)) for begin in range(0, ELEMENTS, CHECKED)]
        for begin, end in pieces:
            x[begin:end] = pattern(begin, end, rank)
        if collective == "all_reduce":
            assert comm.all_reduce(x, out=x) is x
        else:
            assert comm.broadcast(x, root=1, out=x) is x
        for begin, end in pieces:
            wanted = pattern(begin, end, 1)
            if collective == "all_reduce":
                wanted += pattern(begin, end, 0)
            assert np.array_equal(x[begin:end], wanted), f"elements from {begin}"


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("way", ["shm", "tcp", "registered"])
@pytest.mark.parametrize("collective", ["all_reduce", "broadcast"])
def test_three_gibibytes(tmp_path: Path, way: str, collective: str) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=move, args=(r, str(tmp_path), way, collective)) for r in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.join(PATIENCE_S), processes))
    try:
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
