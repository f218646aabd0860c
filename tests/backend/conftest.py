"""`run(size, body, *args)`: runs `body(rank, size, *args)` in processes that are ranks of a torch.distributed group."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
PATIENCE_S = 60.0

_context = multiprocessing.get_context("forkserver")  # ranks that begin in milliseconds, torch imported
_context.set_forkserver_preload(
    [
        "collectives.torch_backend", "torch.distributed.fsdp", "torch.distributed.tensor.parallel",
        "torch.distributed.pipelining", "torch.distributed.checkpoint", "torch.distributed.optim",
        "torch.distributed.nn.functional", "torch.distributed._functional_collectives", "torch.nn.parallel",
    ]
)  # fmt: skip


def live(rank: int, size: int, backend: str, store: str, body: Callable[..., Any], args: Any, out: Any) -> None:
    import torch.distributed as dist

    import collectives.torch_backend  # noqa: F401 - registers the backend

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            backend, store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timedelta(seconds=30)
        )
        result = body(rank, size, *args)
        if dist.is_initialized():
            dist.destroy_process_group()
        out.send(("result", result))
    except BaseException:
        out.send(("crashed", traceback.format_exc()))


def run(
    size: int, body: Callable[..., Any], *args: Any, backend: str = "treering", lost: tuple[int, ...] = ()
) -> list[Any]:
    """What `body` returned on every rank; None for ranks in `lost`, which must die. Fails when one ends badly."""
    with tempfile.TemporaryDirectory(prefix="treering-backend-") as directory:
        pipes = [_context.Pipe(duplex=False) for _ in range(size)]
        store = str(Path(directory) / "store")
        ranks = [
            _context.Process(target=live, args=(rank, size, backend, store, body, args, pipes[rank][1]))
            for rank in range(size)
        ]
        try:
            for process in ranks:
                process.start()
            for _, theirs in pipes:
                theirs.close()
            deadline = time.monotonic() + PATIENCE_S
            results: list[Any] = [None] * size
            for rank, (mine, _) in enumerate(pipes):
                try:
                    assert mine.poll(max(deadline - time.monotonic(), 0)), f"rank {rank} has not ended"
                    kind, value = mine.recv()
                except EOFError:
                    assert rank in lost, f"rank {rank} died"
                    continue
                assert kind == "result", f"rank {rank}:\n{value}"
                results[rank] = value
            for process in ranks:
                process.join(max(deadline - time.monotonic(), 0.1))
            return results
        finally:
            for process in ranks:
                if process.is_alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                process.join()
            for mine, _ in pipes:
                mine.close()
