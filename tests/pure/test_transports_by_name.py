"""connect(transport=...): ours by name, others by entry point, and what is missing said before anything is sent."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

import collectives as cc
from transports import inproc


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(cc.UnsupportedError, match="pip install mpi4py mpich"):
        cc.connect(transport="mpi")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown transport 'carrier pigeon'; there are: auto, shm, tcp, mpi"):
        cc.connect(transport="carrier pigeon")


def make_alone(launch: Any, *, names: Any, timeout_s: float) -> inproc.InprocTransport:
    assert launch.size == 1
    assert timeout_s == 7
    return inproc.connect_threads(1, names)[0]


def test_an_entry_point_is_a_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("alone", "tests.pure.test_transports_by_name:make_alone", "treering.transports")
    connecting = sys.modules["collectives.connect"]  # the name itself is that of the function
    monkeypatch.setattr(connecting, "entry_points", lambda group: [entry] if group == entry.group else [])
    with cc.connect(transport="alone", rank=0, size=1, join_timeout_s=7) as comm:
        assert comm.all_reduce(np.ones(3)).tolist() == [1.0] * 3
        assert comm.transport == "threads of one process"
    with pytest.raises(ValueError, match="alone"):
        cc.connect(transport="another")


def test_native_needs_a_layer_below() -> None:
    with cc.connect(rank=0, size=1) as comm, pytest.raises(ValueError, match="no collectives but plans"):
        comm.all_reduce(np.ones(3), algorithm="native")
    with pytest.raises(ValueError, match="choose another name"):
        cc.algorithm("all_reduce", "native")


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    program = (
        "import sys, collectives, bench.cli; collectives.connect(rank=0, size=1).close(); "
        "print([name for name in ('torch', 'mpi4py', 'cupy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
