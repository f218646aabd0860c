"""Checkpoints: the same bits after loading, at any number of ranks and any stage; whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import collectives as cc
import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import CheckpointError, ZeroOptimizer, consolidate, manifest, safetensors_file, state_dict

ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


class Model(torch.nn.Module):
    """Odd sizes, a tied, a frozen, a scalar and an empty parameter, and a buffer; the tokens may be the ranks' own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(53, 17)
        self.hidden = torch.nn.Linear(17, 31)
        self.frozen = torch.nn.Linear(31, 17)
        self.frozen.requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.nothing = torch.nn.Parameter(torch.zeros(0))
        self.head = torch.nn.Linear(17, 53, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.arange(3.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(torch.tanh(self.hidden(self.embed(tokens))))) * self.scale


def made(comm: Any, stage: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Model, ZeroOptimizer]:
    torch.manual_seed(seed)
    model = Model().to(dtype)
    hidden = list(model.hidden.parameters())
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "hidden" not in n]
    groups = [{"params": rest}, {"params": hidden, "weight_decay": 0.0}]
    opt = ZeroOptimizer(
        model, torch.optim.AdamW, stage=stage, comm=comm, params=groups, lr=1e-2,
        bucket_bytes=2000, persistence_bytes=100,
    )  # fmt: skip
    return model, opt


def train(model: Model, opt: ZeroOptimizer, steps: range) -> None:
    """The same batch on every rank, so that the mean over two, four or eight ranks has the bits of one."""
    for step in steps:
        tokens = torch.randint(0, 53, (6,), generator=torch.Generator().manual_seed(step))
        model(tokens).float().square().mean().backward()
        opt.param_groups[0]["lr"] = 1e-2 / (step + 1)
        opt.step()
        opt.zero_grad()


def weights(model: Model, opt: ZeroOptimizer) -> list[float]:
    opt.close()  # makes parameters whole
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()]).tolist()


def body_save(me: Any, stage: int, path: str, dtype: str) -> None:
    model, opt = made(me.connect(), stage, dtype=getattr(torch, dtype))
    train(model, opt, range(3))
    opt.save(path, {"step": 3})
    train(model, opt, range(3, 6))
    me.say("weights", values=weights(model, opt))


def body_resume(me: Any, stage: int, path: str, dtype: str) -> None:
    model, opt = made(me.connect(), stage, seed=1, dtype=getattr(torch, dtype))
    extra = opt.load(path)
    train(model, opt, range(extra["step"], 6))
    me.say("weights", values=weights(model, opt))


Ranks = Callable[..., Any]
CHANGES = [
    (1, 2, 3, 4, "float32"), (3, 2, 0, 1, "float32"), (0, 1, 2, 2, "bfloat16"), (3, 2, 2, 2, "bfloat16"),
    (2, 1, 3, 3, "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "size", "then", "on", "dtype"), CHANGES)
def test_training_goes_on_with_the_same_bits(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, then: int, on: int, dtype: str
) -> None:
    with ranks(size, body_save, stage, str(tmp_path / "c"), dtype) as job:
        straight = [job.hear("weights", rank)["values"] for rank in range(size)]
    with ranks(on, body_resume, then, str(tmp_path / "c"), dtype) as job:
        resumed = [job.hear("weights", rank)["values"] for rank in range(on)]
    if on == 3:  # a third is not exact
        assert resumed[0] == pytest.approx(straight[0], rel=1e-5, abs=1e-7)
    else:
        assert all(one == straight[0] for one in [*straight, *resumed])


def body_fails(me: Any, path: str) -> None:
    model, opt = made(me.connect(), 2)
    train(model, opt, range(1))
    opt.save(path)
    if me.rank == 1:
        import collectives.zero.safetensors_file as file

        def full(*arguments: Any) -> Any:
            raise OSError(28, "No space left on device")

        file.write = full
    me.attempt(opt.save, path)
    opt.load(path)
    opt.close()


def test_a_rank_that_cannot_write_is_named_on_every_rank_and_the_old_one_stays(ranks: Ranks, tmp_path: Path) -> None:
    with ranks(2, body_fails, str(tmp_path / "c")) as job:
        for rank in range(2):
            raised = job.hear("raised", rank)
            assert raised["kinds"][0] == "CheckpointError"
            assert "rank 1: [Errno 28] No space left on device" in raised["text"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    path = tmp_path_factory.mktemp("zero") / "c"
    with cc.connect(size=1, rank=0) as comm:
        model, opt = made(comm, 2)
        train(model, opt, range(2))
        opt.save(path)
    return path, model


def alone(stage: int = 2) -> tuple[Model, ZeroOptimizer]:
    return made(cc.connect(size=1, rank=0), stage, seed=1)


def test_a_plain_state_dict_loads_into_a_plain_model(saved: tuple[Path, Model], tmp_path: Path) -> None:
    path, model = saved
    done = subprocess.run(
        [sys.executable, "-m", "bench", "checkpoint", "consolidate", str(path), "-o", str(tmp_path / "w.safetensors")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    consolidate(path, tmp_path / "w.pt")
    for whole in (load_file(tmp_path / "w.safetensors"), torch.load(tmp_path / "w.pt")):
        plain = Model()
        plain.load_state_dict(whole, strict=True)
        for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_consolidate_reads_what_deepspeed_wrote(tmp_path: Path) -> None:
    made_by = ROOT / "tests/zero_front/deepspeed/stage3"
    expected = torch.load(made_by / "expected.pt", weights_only=True)
    got = state_dict(made_by)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def broken(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "broken")


def shard(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


DAMAGE: dict[str, Callable[[Path], tuple[str, str]]] = {
    "a shard is missing": lambda path: (_gone(shard(path)), "is missing"),
    "a shard is cut": lambda path: (_cut(shard(path)), "it was cut or replaced"),
    "a shard is altered": lambda path: (_altered(shard(path)), "was altered"),
    "no manifest": lambda path: (_gone(path / "manifest.json"), "is missing"),
    "the manifest is cut": lambda path: (_cut(path / "manifest.json"), "cannot be read"),
    "the manifest is of something else": lambda path: (
        _says(path / "manifest.json", format="x"),
        "is not the manifest",
    ),
    "the manifest lacks a part": lambda path: (_says(path / "manifest.json", shards=[]), "elements of"),
}


def _gone(path: Path) -> str:
    path.unlink()
    return path.name


def _cut(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return path.name


def _altered(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path.name


def _says(path: Path, **change: Any) -> str:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return path.name


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_names_the_file_and_changes_nothing(saved: tuple[Path, Model], tmp_path: Path, damage: str) -> None:
    path = broken(saved[0], tmp_path)
    name, words = DAMAGE[damage](path)
    model, opt = alone()
    before = [p.clone() for p in model.parameters()]
    for call in (lambda: opt.load(path), lambda: state_dict(path)):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert name in str(caught.value)
        assert words in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    opt.comm.close()


def test_a_checkpoint_of_another_model_names_the_parameter(saved: tuple[Path, Model]) -> None:
    with cc.connect(size=1, rank=0) as comm:
        model = Model()
        model.more = torch.nn.Parameter(torch.zeros(1))
        opt = ZeroOptimizer(model, torch.optim.AdamW, comm=comm)
        with pytest.raises(CheckpointError, match="a parameter more, which"):
            opt.load(saved[0])
        model = Model()
        model.hidden = torch.nn.Linear(17, 30)
        opt = ZeroOptimizer(model, torch.optim.AdamW, comm=comm)
        with pytest.raises(CheckpointError, match=r"hidden\.weight is \[31, 17\] in the checkpoint, \[30, 17\]"):
            opt.load(saved[0])


def body_dies(me: Any, path: str, when: str) -> None:
    def die(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(7)
    model = torch.nn.Linear(9, 9)
    opt = ZeroOptimizer(model, torch.optim.SGD, comm=me.connect(), lr=0.1, momentum=0.9)
    opt.save(path, "old")
    model(torch.ones(9)).sum().backward()
    opt.step()
    if when == "in a shard":
        whole = safetensors_file._bytes
        safetensors_file._bytes = lambda entries: (die() for _ in whole(entries))
    elif when == "before the manifest":
        manifest.write = die
    elif when == "before the rename":
        manifest.sync = die
    elif when == "after the rename":
        manifest.Path.replace = (lambda replace: lambda *a: (replace(*a), die()))(manifest.Path.replace)
    opt.save(path, "new")


@pytest.mark.parametrize("when", ["in a shard", "before the manifest", "before the rename", "after the rename"])
def test_a_crash_leaves_the_old_or_the_new_one(ranks: Ranks, tmp_path: Path, when: str) -> None:
    path = tmp_path / "c"
    with ranks(1, body_dies, str(path), when) as job:
        job.ends(0, -signal.SIGKILL)
    with cc.connect(size=1, rank=0) as comm:
        torch.manual_seed(7)
        first = torch.nn.Linear(9, 9).weight.detach()
        model = torch.nn.Linear(9, 9)
        opt = ZeroOptimizer(model, torch.optim.SGD, comm=comm, lr=0.1, momentum=0.9)
        extra = opt.load(path)
        assert extra == ("new" if when == "after the rename" else "old")
        assert torch.equal(model.weight, first) == (extra == "old")
        opt.save(path, "next")  # and what the crash left is gone
        assert len(list(path.iterdir())) == 2 or when == "before the rename"
        assert len(list(path.glob("*.safetensors"))) == 1


def test_extra_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _, opt = alone()
    with pytest.raises(TypeError):
        opt.save(tmp_path / "c", object())
    assert not (tmp_path / "c").exists()
    opt.comm.close()
