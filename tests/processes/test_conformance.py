"""Ranks that are processes keep the contract of transports: the public kit, in which one of them dies in the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed  # here, so that the ranks find it loaded
from conftest import Job
from rank_process import Rank

from examples import unix_socket_transport
from tests.conformance.connecting import connect_engine, names
from transports import conformance, launchers, torch_distributed
from transports.base import Transport

Ranks = Callable[..., AbstractContextManager[Job]]
torch.set_num_threads(1)

NAMES = [*conformance.CHECKS]
PARTS = [NAMES[:20], NAMES[20:50], NAMES[50:]]  # each takes less than a test waits for a word
NATIVES = [name for name in NAMES if name.startswith("native ")]
LARGE = "an array of 2 GiB and more"
WITHOUT = {
    "shm": [LARGE, *NATIVES],
    "tcp": [LARGE, *NATIVES],
    "unix": [LARGE, *NATIVES],
    "torch": [LARGE, "native scan", "native exscan"],
}


def run_kit(me: Rank, directory: str, transport: str) -> None:
    def connect(name: str) -> Transport:
        if transport in ("shm", "tcp"):
            return connect_engine(directory, name, me.rank, me.size, transport, 4096)
        launch = launchers.detect(store=Path(directory, name), rank=me.rank, size=me.size)
        factory = torch_distributed.connect if transport == "torch" else unix_socket_transport.connect
        return factory(launch, names=names(), timeout_s=60)

    die = partial(os.kill, os.getpid(), signal.SIGKILL)
    for part in PARTS:
        try:
            report = conformance.check_rank(connect, me.rank, me.size, checks=part, die=die)
        except conformance.ConformanceError as error:
            report = error.report
        me.say("report", text=str(report), failed=report.of("failed"), not_checked=report.of("not checked"))


@pytest.mark.parametrize("transport", WITHOUT)
def test_it_keeps_the_contract(ranks: Ranks, tmp_path: Path, transport: str) -> None:
    with ranks(3, run_kit, str(tmp_path / "kit"), transport) as job:
        for rank in (0, 1):
            not_checked: list[str] = []
            for _ in PARTS:
                report = job.hear("report", rank)
                assert report["failed"] == [], report["text"]
                not_checked += report["not_checked"]
            assert sorted(not_checked) == sorted(WITHOUT[transport])
        job.ends(2, -signal.SIGKILL)


def use_by_name(me: Rank, packages: str) -> None:
    sys.path.insert(0, packages)
    comm = me.connect(transport="unix-sockets")
    assert comm.transport == "Unix sockets"
    for collective in ("all_reduce", "all_gather", "reduce_scatter"):
        getattr(comm, collective)(np.ones(6 * me.size, np.float32))
    inside, _ = comm.by_host()
    assert inside.all_reduce(np.arange(5)).tolist() == [0, 3, 6, 9, 12]
    me.say("sum", first=float(comm.all_reduce(np.full(100_000, me.rank + 1.0))[-1]))


def test_the_example_is_found_by_its_entry_point(ranks: Ranks, tmp_path: Path) -> None:
    """As an installed package registers it (transports/README.md)."""
    package = tmp_path / "packages" / "ours-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    lines = ["[treering.transports]", "unix-sockets = examples.unix_socket_transport:connect", ""]
    (package / "entry_points.txt").write_text("\n".join(lines))
    with ranks(3, use_by_name, str(package.parent)) as job:
        assert [report["first"] for report in job.hear_all("sum")] == [6.0] * 3
