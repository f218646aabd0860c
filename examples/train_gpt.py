"""A small GPT that learns this project's own pages, letter by letter, with its states spread over the ranks.

    torchrun --nproc-per-node 2 examples/train_gpt.py --stage 3
    mpirun -n 2 python examples/train_gpt.py --stage 1 --checkpoint /tmp/gpt     # with mpi4py and torch
    torchrun --nproc-per-node 4 examples/train_gpt.py --stage 2 --checkpoint /tmp/gpt --resume

The losses are the same at every stage, to the last bit, and after a resume; `--losses FILE` keeps them, exactly.
Quantised they are others, but hardly worse: try `--stage 3 --quantized-weights 8 --quantized-gradients 4`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import collectives as cc
from collectives.zero import ZeroOptimizer

ROOT = Path(__file__).resolve().parents[1]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, length, width)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class Gpt(nn.Module):
    """The head is the embedding, turned round."""

    def __init__(self, letters: int, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        self.head.weight = self.letter.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # (batch, length) -> (batch, length, letters)
        x = self.letter(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def text() -> tuple[torch.Tensor, int]:
    """The project's pages as numbers, and how many letters there are."""
    pages = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "ARCHITECTURE.md"))
    letters = {letter: number for number, letter in enumerate(sorted(set(pages)))}
    return torch.tensor([letters[letter] for letter in pages]), len(letters)


def batch_of(data: torch.Tensor, step: int, rank: int, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decided by the step and the rank alone, so that a resumed run sees what it would have seen."""
    generator = torch.Generator().manual_seed(step * 1009 + rank)
    begins = torch.randint(len(data) - length - 1, (batch,), generator=generator)
    rows = torch.stack([data[begin : begin + length + 1] for begin in begins])
    return rows[:, :-1], rows[:, 1:]


def show(step: int, steps: int, loss: float, tokens_per_s: float) -> None:
    """One line, which on a terminal the next one replaces."""
    if sys.stderr.isatty():
        done = 30 * step // steps
        line = f"{'█' * done}{'·' * (30 - done)} {step}/{steps}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s"
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
    elif step % 10 == 0 or step == steps:
        print(f"step {step}/{steps}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s", file=sys.stderr, flush=True)


def group(text: str) -> str | int:
    return text if text == "host" else int(text)


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--stage", type=int, choices=range(4), default=2)
    made.add_argument("--partition", type=group, metavar="GROUP", help="within the host, or groups of so many ranks")
    made.add_argument("--secondary", type=group, metavar="GROUP", help="stage 3: a second copy within them")
    made.add_argument("--quantized-weights", type=int, choices=(8,), help="stage 3: bits in which they are gathered")
    made.add_argument("--quantized-gradients", type=int, choices=(8, 4), help="bits in which they are reduced")
    made.add_argument("--seed", type=int, default=0, help="of the first weights")
    made.add_argument("--steps", type=int, default=100)
    made.add_argument("--batch", type=int, default=4, help="rows of a rank")
    made.add_argument("--length", type=int, default=64, help="letters of a row")
    made.add_argument("--width", type=int, default=128)
    made.add_argument("--heads", type=int, default=4)
    made.add_argument("--blocks", type=int, default=4)
    made.add_argument("--lr", type=float, default=3e-3)
    made.add_argument("--checkpoint", metavar="PATH", help="saved here, every --every steps and at the end")
    made.add_argument("--every", type=int, default=50, metavar="N")
    made.add_argument("--resume", action="store_true", help="from --checkpoint")
    made.add_argument("--losses", metavar="FILE", help="write them as JSON, as exact hexadecimal numbers")
    given = made.parse_args()
    if given.resume and not given.checkpoint:
        made.error("--resume needs --checkpoint")
    return given


def main() -> None:
    given = options()
    torch.set_num_threads(1)  # the ranks share the cores
    torch.manual_seed(given.seed)
    data, letters = text()
    with cc.connect() as comm:
        model = Gpt(letters, given.length, given.width, given.heads, given.blocks)
        opt = ZeroOptimizer(
            model, torch.optim.AdamW, stage=given.stage, comm=comm, lr=given.lr, partition=given.partition,
            secondary=given.secondary, quantized_weights=given.quantized_weights,
            quantized_gradients=given.quantized_gradients,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, given.steps)
        losses: list[float] = []
        if given.resume:
            extra = opt.load(given.checkpoint)
            losses = [float.fromhex(loss) for loss in extra["losses"]]
            schedule.load_state_dict(extra["schedule"])
            if comm.rank == 0:
                print(f"resumed at step {len(losses)}", file=sys.stderr)
        for step in range(len(losses), given.steps):
            began = time.perf_counter()
            tokens, following = batch_of(data, step, comm.rank, given.batch, given.length)
            loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            loss.backward()
            opt.clip_grad_norm_(1.0)
            opt.step()
            opt.zero_grad()
            schedule.step()
            losses.append(float(comm.all_reduce(loss.detach(), op="mean", reproducible=True)))
            if comm.rank == 0:
                tokens_per_s = comm.size * tokens.numel() / (time.perf_counter() - began)
                show(step + 1, given.steps, losses[-1], tokens_per_s)
            if given.checkpoint and ((step + 1) % given.every == 0 or step + 1 == given.steps):
                kept = [loss.hex() for loss in losses]
                opt.save(given.checkpoint, {"losses": kept, "schedule": schedule.state_dict()})
        if comm.rank == 0:
            print(
                f"\nstage {given.stage}, {comm.size} ranks: loss {losses[0]:.4f} -> {losses[-1]:.4f}", file=sys.stderr
            )
            if given.losses:
                Path(given.losses).write_text(json.dumps([loss.hex() for loss in losses]))
        opt.close()


if __name__ == "__main__":
    main()
