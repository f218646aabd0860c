"""Several network addresses a rank: lanes are spread over all of them, and bytes really take each."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

import collectives as cc
from transports.endpoint import Endpoint
from transports.network import choose_addresses

Ranks = Callable[..., AbstractContextManager[Job]]

TWO = ("127.0.0.1", "127.0.0.2")
MIB = 1 << 20
BYTES_ACKED = 120  # where struct tcp_info of linux/tcp.h has tcpi_bytes_acked


def sent_by_pair() -> dict[str, int]:
    """The bytes that this process's TCP connections have sent, by "own address > peer's address"."""
    sent: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # the directory's own descriptor, closed meanwhile
            continue
        with sock:
            if sock.family == socket.AF_INET and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                pair = f"{sock.getsockname()[0]} > {sock.getpeername()[0]}"
                sent[pair] = sent.get(pair, 0) + struct.unpack_from("Q", info, BYTES_ACKED)[0]
    return sent


def exchange(me: Rank) -> None:
    comm = me.connect(transport="tcp")
    x = np.full(MIB, comm.rank + 1, np.float32)
    for algorithm in ("ring", "halving_doubling", "direct"):
        assert np.all(comm.all_reduce(x, algorithm=algorithm) == sum(range(comm.size + 1)))
    comm.barrier()
    me.say("sent", pairs=sent_by_pair())


@pytest.mark.parametrize("address", [TWO, "127.0.0.1, 127.0.0.2"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_lanes_are_spread_over_the_addresses(ranks: Ranks, address: Any, lanes: int) -> None:
    with ranks(3, exchange, address=address, lanes=lanes) as job:
        for report in job.hear_all("sent"):
            pairs = report["pairs"]
            assert set(pairs) == {"127.0.0.1 > 127.0.0.1", "127.0.0.2 > 127.0.0.2"}
            assert min(pairs.values()) > 0.4 * sum(pairs.values()) > 4 * MIB


def uneven(me: Rank) -> None:
    comm = me.connect(transport="tcp", address=TWO[: 1 + me.rank % 2])
    x = np.full(MIB, 1, np.float32)
    assert np.all(comm.all_reduce(x, algorithm="ring") == comm.size)
    comm.barrier()
    me.say("sent", pairs=sent_by_pair())


def test_ranks_may_have_different_numbers_of_addresses(ranks: Ranks) -> None:
    """Rank 1 has two: it dials rank 2 from each in turn, and rank 0 dials each."""
    with ranks(3, uneven) as job:
        first, second, third = (set(report["pairs"]) for report in job.hear_all("sent"))
    assert "127.0.0.1 > 127.0.0.2" in first
    assert {"127.0.0.2 > 127.0.0.1", "127.0.0.1 > 127.0.0.1"} <= second
    assert "127.0.0.1 > 127.0.0.2" in third


def test_addresses_come_with_commas_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREERING_ADDRESS", "127.0.0.1,127.0.0.2")
    with cc.connect(store=str(tmp_path), rank=0, size=1) as comm:
        assert comm.size == 1
    monkeypatch.setenv("TREERING_ADDRESS", "127.0.0.1,nosuchif0")
    with pytest.raises(ValueError, match="'nosuchif0' is neither a numeric address nor a network interface"):
        cc.connect(store=str(tmp_path), rank=0, size=1)


@pytest.mark.parametrize("twice", ["127.0.0.1,127.0.0.1", ("127.0.0.2", "127.0.0.1", "127.0.0.2"), ()])
def test_addresses_are_each_named_once(twice: Any) -> None:
    with pytest.raises(ValueError, match="one or more addresses, each once"):
        choose_addresses(twice, None)


def test_without_a_secret_none_may_be_reached_from_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"not 10\.0\.0\.1; .*TREERING_SECRET"):
        Endpoint(0, 1, None, job="job", secret=None, address=("127.0.0.1", "10.0.0.1"))
