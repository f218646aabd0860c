"""One rank of ours that trains, measured as the contenders are: `python -m bench.zero.ours KIND SOCKET SETTINGS`."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import collectives as cc
from collectives.zero import ZeroOptimizer

from ..contenders.training import Settings, model_and_batch, serve
from .forms import FORMS


class Zero:
    def __init__(self, settings: Settings) -> None:
        torch: Any = importlib.import_module("torch")
        self.comm = cc.connect(store=settings.store, rank=settings.rank, size=settings.size)
        if settings.group:  # as if so many ranks were a host
            ranks = range(settings.size)
            self.comm.hosts = tuple(tuple(ranks[i : i + settings.group]) for i in ranks[:: settings.group])
        self.module, self.inputs, self.targets = model_and_batch(settings)
        self.loss = torch.nn.functional.mse_loss
        more: dict[str, Any] = {"bucket_bytes": settings.bucket_bytes} if settings.bucket_bytes else {}
        more |= FORMS.get(settings.form, {}) | {"offload": settings.offload or None}
        self.optimizer: Any = ZeroOptimizer(
            self.module, torch.optim.AdamW, stage=settings.stage, comm=self.comm, **more
        )  # fmt: skip

    def step(self) -> None:
        self.loss(self.module(self.inputs), self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def barrier(self) -> None:
        self.comm.barrier()

    def sent_bytes(self) -> float:
        return float(self.optimizer.bytes_sent)

    def beyond_bytes(self) -> float:
        """Of these, what left the host."""
        return float(self.optimizer.report()["sent_bytes"]["beyond"])

    def exposed_s(self, steps: int) -> float:
        begun: float = self.optimizer.report()["waited_s"]
        for _ in range(steps):
            self.step()
        return (self.optimizer.report()["waited_s"] - begun) / steps

    def offload(self, name: str, steps: int) -> float:
        begun: float = self.optimizer.report()["offload"][name]
        for _ in range(steps):
            self.step()
        return (self.optimizer.report()["offload"][name] - begun) / steps

    def close(self) -> None:
        self.optimizer.close()
        self.comm.close()


if __name__ == "__main__":
    serve(sys.argv[2], Settings(**json.loads(sys.argv[3])), Zero)
