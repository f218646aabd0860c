"""A process that takes part in one job after another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import collectives as cc


def test_what_one_rank_did_elsewhere_does_not_matter(tmp_path: Path) -> None:
    """Also when only one of the ranks was in another job before, in a directory of its own."""
    for lap in range(2):
        with cc.connect(store=tmp_path / "alone", rank=0, size=1) as comm:
            assert comm.all_reduce(np.ones(1)) == 1

        def both(rank: int) -> float:
            with cc.connect(store=tmp_path / "together", rank=rank, size=2, timeout_s=20) as comm:
                return float(comm.all_reduce(np.ones(1))[0])

        with ThreadPoolExecutor(2) as pool:
            assert [*pool.map(both, range(2))] == [2, 2], lap
