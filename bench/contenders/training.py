"""One rank of a contender that trains: DDP, ZeroRedundancyOptimizer, FSDP2 or DeepSpeed, all over Gloo.

Run as `python training.py KIND SOCKET SETTINGS`; the protocol is worker.py's. A command's `algorithm` says what is
measured: "step" in microseconds, or one of the others in the unit that its name ends with, once.
Ours are measured by the same `serve`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

worker: Any = importlib.import_module("bench.contenders.worker" if __package__ else "worker")


class Settings(NamedTuple):
    """A model of `blocks` times width -> hidden -> width with GELU, trained with AdamW in fp32.

    `form` and `group` are for ours alone: see bench/zero/forms.py.
    """

    kind: str
    stage: int
    rank: int
    size: int
    store: str
    blocks: int
    width: int
    hidden: int
    batch: int
    bucket_bytes: int = 0  # of ours; 0: its default
    form: str = ""
    group: int = 0
    offload: str = ""  # a directory, of ours


class Trainer(Protocol):
    """A step is forward, backward, update and clearing the gradients, on the same batch each time."""

    def step(self) -> object: ...

    def barrier(self) -> None: ...

    def sent_bytes(self) -> float:
        """Since the beginning, by this rank."""
        ...

    def exposed_s(self, steps: int) -> float:
        """Seconds a step in which this rank stood still for communication; NaN where nobody can tell."""
        ...

    def offload(self, name: str, steps: int) -> float:
        """A counter of files (ZeroOptimizer.report), a step."""
        ...

    def close(self) -> None: ...


def model_and_batch(settings: Settings) -> tuple[Any, Any, Any]:
    """The same model on every rank, and this rank's inputs and targets."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)  # as torchrun does: the ranks share the cores
    torch.manual_seed(0)
    layers: list[Any] = []
    for _ in range(settings.blocks):
        layers += [torch.nn.Linear(settings.width, settings.hidden), torch.nn.GELU()]
        layers += [torch.nn.Linear(settings.hidden, settings.width)]
    model = torch.nn.Sequential(*layers)
    torch.manual_seed(1 + settings.rank)
    inputs, targets = torch.randn(2, settings.batch, settings.width).unbind()
    return model, inputs, targets


def serve(path: str, settings: Settings, make: Callable[[Settings], Trainer]) -> None:
    """Obey commands until the end of the socket."""
    importlib.import_module("torch")
    before_bytes = resident_bytes()
    trainer = make(settings)

    def measure(command: Any) -> Any:
        if command.algorithm == "step":
            return worker.time_calls(trainer.step, trainer.barrier, command.warmup, command.iterations)
        if command.algorithm in ("sent_bytes", "beyond_bytes"):
            counter = getattr(trainer, command.algorithm)
            trainer.barrier()
            begun = counter()
            for _ in range(command.iterations):
                trainer.step()
            value = (counter() - begun) / command.iterations
        elif command.algorithm == "exposed_s":
            value = trainer.exposed_s(command.iterations)
        elif command.algorithm.startswith("offload."):
            value = trainer.offload(command.algorithm.removeprefix("offload."), command.iterations)
        else:  # peak_bytes
            value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes
        return worker.Timing(value, value)

    try:
        worker.follow(path, settings.rank, measure)
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
    trainer.close()


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tcp_sent_bytes() -> int:
    """What peers have acknowledged on this process's TCP connections, headers of the library included."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if connection.family in (socket.AF_INET, socket.AF_INET6) and len(info) >= 128:
                total += struct.unpack_from("Q", info, 120)[0]  # tcpi_bytes_acked, linux/tcp.h
    return total


class OverGloo:
    """What the contenders have in common."""

    def __init__(self, settings: Settings) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.dist: Any = importlib.import_module("torch.distributed")
        self.dist.init_process_group(
            "gloo", init_method=f"file://{settings.store}", rank=settings.rank, world_size=settings.size
        )
        self.module, self.inputs, self.targets = model_and_batch(settings)
        self.loss = self.torch.nn.functional.mse_loss
        self.optimizer: Any = None

    def step(self) -> None:
        self.loss(self.module(self.inputs), self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def barrier(self) -> None:
        self.dist.barrier()

    def sent_bytes(self) -> float:
        return float(tcp_sent_bytes())

    def exposed_s(self, steps: int) -> float:
        return float("nan")

    def offload(self, name: str, steps: int) -> float:
        return float("nan")

    def close(self) -> None:
        self.dist.destroy_process_group()


class Ddp(OverGloo):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.module = self.torch.nn.parallel.DistributedDataParallel(self.module, gradient_as_bucket_view=True)
        self.optimizer = self.torch.optim.AdamW(self.module.parameters())


class ZeroRedundancy(OverGloo):
    """torch's own stage 1, on DDP."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.module = self.torch.nn.parallel.DistributedDataParallel(self.module, gradient_as_bucket_view=True)
        kind = importlib.import_module("torch.distributed.optim").ZeroRedundancyOptimizer
        self.optimizer = kind(self.module.parameters(), optimizer_class=self.torch.optim.AdamW)


class Fsdp2(OverGloo):
    """Each block's two layers are a group, as its authors advise."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (settings.size,))
        shard = importlib.import_module("torch.distributed.fsdp").fully_shard
        layers = list(self.module)
        for at in range(0, len(layers), 3):
            shard([layers[at], layers[at + 2]], mesh=mesh)
        shard(self.module, mesh=mesh)
        self.optimizer = self.torch.optim.AdamW(self.module.parameters())


class DeepSpeed(OverGloo):
    def __init__(self, settings: Settings) -> None:
        os.environ |= {"RANK": str(settings.rank), "WORLD_SIZE": str(settings.size), "LOCAL_RANK": str(settings.rank)}
        super().__init__(settings)
        deepspeed = importlib.import_module("deepspeed")
        config = {
            "train_micro_batch_size_per_gpu": settings.batch,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": settings.stage},
        }
        optimizer = self.torch.optim.AdamW(self.module.parameters())
        self.module, self.optimizer, _, _ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=config, dist_init_required=False
        )

    def step(self) -> None:
        self.module.backward(self.loss(self.module(self.inputs), self.targets))
        self.module.step()


KINDS: dict[str, Callable[[Settings], Trainer]] = {
    "ddp": Ddp, "zero_redundancy": ZeroRedundancy, "fsdp2": Fsdp2, "deepspeed": DeepSpeed,
}  # fmt: skip

if __name__ == "__main__":
    chosen = Settings(**json.loads(sys.argv[3]))
    serve(sys.argv[2], chosen, KINDS[chosen.kind])
