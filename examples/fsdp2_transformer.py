"""FSDP2 on a small transformer that learns to continue counting: only the backend's name differs from any other script.

torchrun --nproc-per-node 2 examples/fsdp2_transformer.py --backend treering
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import collectives.torch_backend  # noqa: F401 - registers "treering"

WORDS, LENGTH, WIDTH = 64, 32, 128


class Transformer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        length = text.shape[1]
        x = self.words(text) + self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.out(x)


def texts(rank: int, step: int, size: int = 16) -> torch.Tensor:
    """Lines that count up from anywhere, by ones, twos or threes."""
    chance = torch.Generator().manual_seed(1000 * step + rank)
    begin = torch.randint(WORDS, (size, 1), generator=chance)
    by = torch.randint(1, 4, (size, 1), generator=chance)
    return (begin + by * torch.arange(LENGTH)) % WORDS


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--backend", choices=["gloo", "treering"], default="treering")
    options.add_argument("--steps", type=int, default=40)
    given = options.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(given.backend)
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = Transformer(layers=4)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    began, losses = time.perf_counter(), []
    for step in range(given.steps):
        text = texts(rank, step)
        guess = model(text[:, :-1])
        loss = nn.functional.cross_entropy(guess.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    took_s = time.perf_counter() - began
    ends = torch.stack([losses[0], losses[-1]])
    dist.all_reduce(ends, dist.ReduceOp.AVG)
    if rank == 0:
        print(f"{given.backend}: {took_s / given.steps * 1e3:.1f} ms a step, loss {ends[0]:.3f} -> {ends[1]:.3f}")
    dist.barrier()  # at an exit right after a collective, Gloo's thread may still hold its tensors, and abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
