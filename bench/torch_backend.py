"""torch.distributed on treering beside Gloo: all_reduce by size, and training steps of DDP and FSDP2.

    python -m bench.torch_backend all_reduce --ranks 2
    python -m bench.torch_backend ddp
    python -m bench.torch_backend fsdp2

Runs alternate between the backends; a figure is the median over all of a backend's runs.

`ddp` also gives the times of a backward pass with communication and without, those of the communication alone, and how
much of it is hidden: of the time from the first bucket's start to the last one's end, the part in which gradients were
still being computed, by DDP's own clocks.
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
_BUCKET_BYTES = 25 << 20  # DDP's own


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


def _model() -> Any:
    torch, _ = _torch()
    torch.manual_seed(0)
    blocks = [b for _ in range(8) for b in (torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))]
    return torch.nn.Sequential(*blocks)


def _steps(model: Any) -> dict[str, float]:
    torch, _ = _torch()
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(8, 512)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"step": _median(step)}


def ddp(rank: int, size: int) -> dict[str, float]:
    """Seconds of a DDP step of a 16.8 M parameter MLP, and of its parts; `hidden` is a share."""
    torch, dist = _torch()
    model = torch.nn.parallel.DistributedDataParallel(_model())
    found = _steps(model)
    x = torch.randn(8, 512)

    def backward() -> float:
        loss = model(x).square().mean()
        began = time.perf_counter()
        loss.backward()
        took_s = time.perf_counter() - began
        model.zero_grad()
        return took_s

    found["backward"] = _median(backward)
    with model.no_sync():
        found["backward, no_sync"] = _median(backward)
    gradients = torch.zeros(sum(p.numel() for p in model.parameters())).split(_BUCKET_BYTES // 4)

    def communicate() -> None:
        for bucket in gradients:
            dist.all_reduce(bucket)

    found["all_reduce of gradients"] = _median(communicate)
    clocks = model._get_ddp_logging_data()
    found["hidden"] = clocks["avg_backward_compute_comm_overlap_time"] / clocks["avg_backward_comm_time"]
    return found


def _median(work: Callable[[], float | None]) -> float:
    """Median seconds of a piece of work, or of what it says that it took."""
    times: list[float] = []
    for turn in range(10 + _WARM_UP):
        began = time.perf_counter()
        took_s = work()
        if turn >= _WARM_UP:
            times.append(time.perf_counter() - began if took_s is None else took_s)
    return statistics.median(times)


def fsdp2(rank: int, size: int) -> dict[str, float]:
    """Seconds of an FSDP2 step of the same MLP."""
    shard: Any = importlib.import_module("torch.distributed.fsdp").fully_shard
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (size,))

    model = _model()
    for block in range(0, len(model), 3):
        shard([model[block], model[block + 2]], mesh=mesh)
    shard(model, mesh=mesh)
    return _steps(model)


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
    medians = {b: {key: statistics.median(f[key] for f in runs) for key in runs[0]} for b, runs in found.items()}
    for key in medians["gloo"]:
        gloo, ours = (medians[backend][key] for backend in BACKENDS)
        if key == "hidden":
            print(f"{'communication hidden':>28} {gloo:>14.0%} {ours:>17.0%}")
        else:
            print(f"{key:>28} {gloo * 1e6:>14.1f} {ours * 1e6:>17.1f} {gloo / ours:>18.2f}")


if __name__ == "__main__":
    main()
