"""A process that takes part in one job after another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import collectives as cc
from transports import launchers


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


def test_who_knows_how_the_job_was_started_says_it_once(tmp_path: Path) -> None:
    launch = launchers.detect(store=tmp_path, rank=0, size=1)
    with cc.connect(launch=launch) as comm:
        assert (comm.rank, comm.size) == (0, 1)
    with pytest.raises(ValueError, match="launch says it all"):
        cc.connect(launch=launch, rank=0)
