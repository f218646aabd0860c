"""torch.distributed on treering beside Gloo: all_reduce by size, and training steps of DDP and FSDP2.

    python -m bench.torch_backend all_reduce --ranks 2
    python -m bench.torch_backend ddp
    python -m bench.torch_backend fsdp2

Runs alternate between the backends; a figure is the median over all of a backend's runs.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = tuple(16 * 4**i for i in range(12))  # 16 B to 64 MiB
BACKENDS = ("gloo", "treering")
_WARM_UP = 3


def all_reduce(rank: int, size: int) -> dict[str, float]:
    """Seconds of a blocking all_reduce of float32, by bytes."""
    torch, dist = _torch()
    found: dict[str, float] = {}
    for nbytes in SIZES:
        x = torch.ones(nbytes // 4)
        count = max(5, min(300, (32 << 20) // nbytes))
        times: list[float] = []
        for turn in range(count + _WARM_UP):
            began = time.perf_counter()
            dist.all_reduce(x, dist.ReduceOp.SUM)
            if turn >= _WARM_UP:
                times.append(time.perf_counter() - began)
            if turn % 8 == 7:
                x.fill_(1)
        found[str(nbytes)] = statistics.median(times)
    return found


def _steps(wrap: Callable[[Any], Any]) -> dict[str, float]:
    torch, _ = _torch()
    torch.manual_seed(0)
    blocks = [b for _ in range(8) for b in (torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))]
    model = wrap(torch.nn.Sequential(*blocks))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(8, 512)
    times: list[float] = []
    for step in range(10 + _WARM_UP):
        began = time.perf_counter()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= _WARM_UP:
            times.append(time.perf_counter() - began)
    return {"step": statistics.median(times)}


def ddp(rank: int, size: int) -> dict[str, float]:
    """Seconds of a DDP step of a 16.8 M parameter MLP; and of one without communication."""
    torch, _ = _torch()
    return _steps(lambda model: torch.nn.parallel.DistributedDataParallel(model))


def fsdp2(rank: int, size: int) -> dict[str, float]:
    """Seconds of an FSDP2 step of the same MLP."""
    shard: Any = importlib.import_module("torch.distributed.fsdp").fully_shard
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (size,))

    def wrap(model: Any) -> Any:
        for block in range(0, len(model), 3):
            shard([model[block], model[block + 2]], mesh=mesh)
        shard(model, mesh=mesh)
        return model

    return _steps(wrap)


def _torch() -> tuple[Any, Any]:
    return importlib.import_module("torch"), importlib.import_module("torch.distributed")


def _live(rank: int, size: int, backend: str, store: str, work: str, out: Any) -> None:
    torch, dist = _torch()
    importlib.import_module("collectives.torch_backend")
    torch.set_num_threads(1)
    dist.init_process_group(backend, store=dist.FileStore(store, size), rank=rank, world_size=size)
    found = globals()[work](rank, size)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        out.put(found)


def run(backend: str, size: int, work: str) -> dict[str, float]:
    """What rank 0 measured in a job of its own."""
    mp: Any = importlib.import_module("torch.multiprocessing").get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as directory:
        out = mp.SimpleQueue()
        store = str(Path(directory) / "store")
        ranks = [mp.Process(target=_live, args=(r, size, backend, store, work, out)) for r in range(size)]
        for process in ranks:
            process.start()
        found = out.get()
        for process in ranks:
            process.join()
    return found


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", choices=["all_reduce", "ddp", "fsdp2"])
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--runs", type=int, default=3, help="of each backend")
    given = options.parse_args()
    found: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    for _ in range(given.runs):
        for backend in BACKENDS:
            found[backend].append(run(backend, given.ranks, given.work))
    print(f"{given.work}, {given.ranks} ranks, median us{'':>10}Gloo{'':>10}treering{'':>6}times as fast")
    for key in found["gloo"][0]:
        gloo, ours = (statistics.median(f[key] for f in found[backend]) * 1e6 for backend in BACKENDS)
        print(f"{key:>28} {gloo:>14.1f} {ours:>17.1f} {gloo / ours:>18.2f}")


if __name__ == "__main__":
    main()
