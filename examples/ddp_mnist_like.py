"""DistributedDataParallel on generated pictures of digits-to-be: only the backend's name differs from any other script.

torchrun --nproc-per-node 2 examples/ddp_mnist_like.py --backend treering
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn

import collectives.torch_backend  # noqa: F401 - registers "treering"


def pictures(rank: int, step: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """28 x 28 pictures of ten classes: a bright row and column that tell the class, and noise."""
    chance = torch.Generator().manual_seed(1000 * step + rank)
    labels = torch.randint(10, (size,), generator=chance)
    images = torch.randn(size, 1, 28, 28, generator=chance)
    images[torch.arange(size), 0, 2 * labels + 4] += 2
    images[torch.arange(size), 0, :, 2 * labels + 4] += 2
    return images, labels


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--backend", choices=["gloo", "treering"], default="treering")
    options.add_argument("--steps", type=int, default=40)
    given = options.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(given.backend)
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 36, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    began = time.perf_counter()
    for step in range(given.steps):
        images, labels = pictures(rank, step)
        loss = nn.functional.cross_entropy(ddp(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    took_s = time.perf_counter() - began
    images, labels = pictures(rank, 10_000, 512)
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean()
    dist.all_reduce(right, dist.ReduceOp.AVG)
    if rank == 0:
        print(f"{given.backend}: {took_s / given.steps * 1e3:.1f} ms a step, accuracy {right.item():.3f}")
    dist.barrier()  # at an exit right after a collective, Gloo's thread may still hold its tensors, and abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
