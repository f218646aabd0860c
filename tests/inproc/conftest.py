"""One fixture, `threads`: ranks as threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

import collectives as cc

PATIENCE_S = 60.0  # for what is expected to happen at once

Body = Callable[[cc.Communicator], Any]


def together(comms: list[cc.Communicator], body: Body) -> list[Any]:
    """Runs the body on every communicator at once; what each returned. The first error of the lowest rank is raised,
    unless another rank knows more than that some rank failed."""
    with ThreadPoolExecutor(len(comms)) as pool:
        futures = [pool.submit(_run, body, comm) for comm in comms]
        _, late = wait(futures, PATIENCE_S)
        if late:
            for comm in comms:
                comm.close()
            raise AssertionError(f"{len(late)} of {len(comms)} ranks did not come back")
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, cc.CollectiveError)):
        raise error
    return [future.result() for future in futures]


def _run(body: Body, comm: cc.Communicator) -> Any:
    try:
        return body(comm)
    except BaseException:
        comm.close()  # the others must not wait
        raise


@pytest.fixture
def threads() -> Callable[..., list[Any]]:
    """`threads(size, body, hosts=None)` runs `body(comm)` on every rank, and returns what each rank returned."""

    def run(size: int, body: Body, **options: Any) -> list[Any]:
        comms = cc.connect_threads(size, **options)
        try:
            return together(comms, body)
        finally:
            for comm in comms:
                comm.close()

    return run
