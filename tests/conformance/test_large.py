"""One message of more than 2 GiB, from rank to rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.connecting import Threads, connect_engine
from transports import conformance
from transports.base import Transport

LARGE = "an array of 2 GiB and more"


def engine(directory: Path, transport: str) -> Callable[[str, int], Transport]:
    def connect(name: str, rank: int) -> Transport:
        return connect_engine(str(directory), name, rank, 2, transport, 256 << 10)

    return connect


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("transport", ["inproc", "shm", "tcp"])
def test_a_large_message(transport: str, tmp_path: Path) -> None:
    connect = Threads(2) if transport == "inproc" else engine(tmp_path, transport)
    assert conformance.check(connect, 2, checks=[LARGE], big=True).of("passed") == [LARGE]
