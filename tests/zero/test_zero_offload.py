"""What is offloaded to files trains to the same bits, leaves nothing behind, and says what went wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import Offload, ZeroOptimizer
from collectives.zero.offload import Homes
from collectives.zero.offload import homes as homes_of
from collectives.zero.store import FileStore, HostStore
from collectives.zero.stored import Store
from tests.zero import test_zero_models as models

Ranks = Callable[..., contextlib.AbstractContextManager[Any]]

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),  # no state before the first step
    (torch.optim.SGD, {"lr": 0.05}),  # none at all
    (torch.optim.Adagrad, {"lr": 0.05}),  # state from the beginning
    (torch.optim.NAdam, {"lr": 0.01}),  # more numbers than `step`
]


class Late(torch.optim.SGD):
    """Keeps something that cannot be foreseen, from its second step on, and another tensor each time."""

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            held = self.state[p]
            if p.grad is not None and p.numel() > 1000:
                if "seen" in held:
                    held["gone"] = held["seen"].double()
                held["seen"] = p.grad.clone() + held.get("gone", 0)
                p.grad.add_(held["seen"])
        super().step()


def model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(37, 301), torch.nn.ReLU(), torch.nn.Linear(301, 1111), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(1111, 5)).to(dtype)


def train(comm: Any, dtype: torch.dtype, optimizer: Any, arguments: dict[str, Any], **own: Any) -> torch.Tensor:
    """Two micro-batches a step, the second onto the reduced gradients of the first; scaled, unscaled, clipped."""
    m = model(dtype)
    opt = ZeroOptimizer(m, optimizer, comm=comm, bucket_bytes=50_000, persistence_bytes=700, **own, **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    generator = torch.Generator().manual_seed(5 + comm.rank)
    for step in range(3):
        for micro in range(2):
            x = torch.randn(8, 37, generator=generator).to(dtype)
            with opt.no_sync() if step == 1 and not micro else contextlib.nullcontext():
                scaler.scale(m(x).float().square().mean()).backward()
        scaler.unscale_(opt)
        opt.clip_grad_norm_(0.5)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    opt.close()
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def same_bits(me: Any, directory: str) -> None:
    comm = me.connect()
    places: list[tuple[int, Any]] = [(stage, directory) for stage in range(4)]
    places += [(2, Offload(gradients=directory)), (3, Offload(parameters=Path(directory)))]
    places += [(3, Offload(directory, directory, directory, buffer_bytes=1))]
    for dtype in (torch.float32, torch.bfloat16):
        full = dtype == torch.float32 and me.size < 3
        for number, (kind, arguments) in enumerate(OPTIMIZERS if full else OPTIMIZERS[:1]):
            expected = train(comm, dtype, kind, arguments, stage=2)
            for stage, where in places[:: 1 if full else 3] if number == 0 else places[number::4]:
                got = train(comm, dtype, kind, arguments, stage=stage, offload=where)
                assert torch.equal(got, expected), (dtype, kind.__name__, stage, where)
    late = [train(comm, torch.float32, Late, {"lr": 0.01}, stage=3, offload=w) for w in (None, directory)]
    assert torch.equal(*late)
    for stage in (2, 3):
        odd = [models.train(comm, 4, clip="foreach", stage=stage, offload=w) for w in (None, directory)]
        assert torch.equal(*odd), stage
    assert not list(Path(directory).iterdir())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_same_bits_as_in_memory(size: int, ranks: Ranks, tmp_path: Path) -> None:
    directory = tmp_path / "nvme"
    directory.mkdir()
    with ranks(size, same_bits, str(directory)):
        pass


OTHERS: list[dict[str, Any]] = [
    {"stage": 3, "partition": 2},
    {"stage": 3, "secondary": 2, "quantized_weights": 8, "quantized_gradients": 4},
]


def beside_others(comm: Any, directory: str, values: dict[str, torch.Tensor]) -> None:
    for own in OTHERS:
        found: list[torch.Tensor] = []
        for where in (None, directory):
            m = model(torch.float32)  # whose seed the threads share
            m.load_state_dict(values)
            parameters = list(m.parameters())
            opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, lr=0.01, offload=where, **own)
            for step in range(3):
                x = torch.randn(8, 37, generator=torch.Generator().manual_seed(10 * step + comm.rank))
                m(x).square().mean().backward()
                opt.step()
                opt.zero_grad()
                with opt.gathered(parameters[:2], modifier_rank=1):
                    if comm.rank == 1:
                        parameters[0].data[0, 0] = step
            moments = [opt.full_tensor(p, "exp_avg_sq") for p in parameters]
            opt.close()
            found.append(torch.cat([t.detach().reshape(-1) for t in [*parameters, *moments] if t is not None]))
        assert torch.equal(*found), own


def test_beside_other_options(threads: Callable[..., list[Any]], tmp_path: Path) -> None:
    values = model(torch.float32).state_dict()
    threads(4, partial(beside_others, directory=str(tmp_path), values=values))


class Event:
    """Of a stream that is late: it has happened when somebody waits for it, or asks for the third time."""

    def __init__(self, device: torch.device) -> None:
        self.asked, self.lock = 0, threading.Lock()

    def query(self) -> bool:
        with self.lock:
            self.asked += 1
            return self.asked > 2

    def synchronize(self) -> None:
        with self.lock:
            self.asked = 3


def beside_a_gpu(me: Any, directory: str) -> None:
    """The copies to and from a GPU, with this CPU in its place."""
    comm = me.connect()

    def homes(given: Offload, comm: Any, device: torch.device) -> Homes:
        if given.optimizer == "host":
            assert homes_of(given, comm, device) == Homes()  # on a CPU that is where things are already
            store: Store = HostStore(device, given.buffer_bytes)
        else:
            store = FileStore(comm, device, given.buffer_bytes, directory)
            store._staged = True
        return Homes(*(None if w is None else store for w in (given.optimizer, given.gradients, given.parameters)))

    for dtype, places in ((torch.float32, ("host", directory)), (torch.bfloat16, ("host",))):
        expected = train(comm, dtype, torch.optim.AdamW, {"lr": 0.01}, stage=3)
        for where in places:
            with (
                mock.patch("collectives.zero.optimizer.homes", homes),
                mock.patch("collectives.zero.store._event", Event),
            ):
                got = train(comm, dtype, torch.optim.AdamW, {"lr": 0.01}, stage=3, offload=where)
            assert torch.equal(got, expected), (dtype, where)


def test_beside_a_gpu(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(2, beside_a_gpu, str(tmp_path / "nvme")):
        pass


def saving(me: Any, directory: str, checkpoint: str) -> None:
    comm = me.connect()
    for dtype in (torch.float32, torch.bfloat16):
        for stage, where, later in ((1, directory, 3), (3, directory, 2), (2, None, 3)):
            found: list[torch.Tensor] = []
            for resumed in (False, True):
                m = model(dtype)
                kept = {"stage": later, "offload": directory} if resumed else {"stage": stage, "offload": where}
                opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, persistence_bytes=700, lr=0.01, **kept)
                if resumed:
                    assert opt.load(checkpoint) == {"step": 2}
                for step in range(2 if resumed else 0, 4):
                    x = torch.randn(8, 37, generator=torch.Generator().manual_seed(10 * step + me.rank)).to(dtype)
                    m(x).float().square().mean().backward()
                    opt.step()
                    opt.zero_grad()
                    if step == 1:
                        opt.save(checkpoint, {"step": 2})
                opt.close()
                found.append(torch.cat([p.detach().reshape(-1) for p in m.parameters()]))
            assert torch.equal(*found), (dtype, stage, later)


@pytest.mark.parametrize("size", [1, 2])
def test_checkpoints(size: int, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(size, saving, str(tmp_path / "nvme"), str(tmp_path / "checkpoint")):
        pass


def counted(me: Any, directory: str) -> None:
    comm = me.connect()
    m = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(4)))
    numel = sum(p.numel() for p in m.parameters()) / me.size
    opt = ZeroOptimizer(m, torch.optim.Adam, comm=comm, stage=3, offload=directory, persistence_bytes=0)
    for _ in range(2):
        opt.zero_grad()
        m(torch.randn(2, 300)).sum().backward()
        opt.step()
    assert not os.listdir(directory)  # files have no name, so whatever ends this process, nothing is left
    held, moved = opt.memory(), opt.report()["offload"]
    assert held["parameters"] + held["gradients"] == 0
    assert held["optimizer"] < 1000  # each piece's `step`
    assert abs(held["files"] - 16 * numel) < 0.02 * 16 * numel + (1 << 17), held
    # What is read: the parameters in forward, in backward, in step; once gradients; state, but for the first step;
    # and perhaps, ahead, the parameters for another forward.
    least = (2 * 4 * 4 + 8) * numel
    assert least < moved["read_bytes"] < least + 4 * numel + 0.02 * least + (1 << 18), moved
    assert moved["reading_s"] > 0
    opt.close()
    assert opt.memory()["files"] == 0


def test_memory_and_traffic(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(2, counted, str(tmp_path / "nvme")):
        pass


LIMIT = 2_000_000  # bytes: of the largest file; each rank stores 2.7 MB, and shares less at a time


def no_direct_io(me: Any, directory: str) -> None:
    comm, open_file = me.connect(), os.open

    def refusing(path: Any, flags: int, mode: int = 0o777) -> int:  # as some file systems do, once the file is made
        found = open_file(path, flags, mode)
        if flags & os.O_DIRECT:
            os.close(found)
            raise OSError(errno.EINVAL, "Invalid argument")
        return found

    expected = train(comm, torch.float32, torch.optim.AdamW, {"lr": 0.01}, stage=3)
    with mock.patch("collectives.zero.store.os.open", refusing):
        got = train(comm, torch.float32, torch.optim.AdamW, {"lr": 0.01}, stage=3, offload=directory)
    assert torch.equal(got, expected)
    assert not os.listdir(directory)


def test_a_file_system_without_direct_io(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(1, no_direct_io, str(tmp_path / "nvme")):
        pass


def faulty(me: Any, kind: str, directory: str) -> None:
    comm = me.connect(timeout_s=20.0)
    culprit, m = me.rank == 1, model(torch.float32)
    where = directory + "/missing" if culprit and kind == "missing" else directory
    if culprit and kind == "room":  # as on a full disk, but for the number of the error
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    made: list[ZeroOptimizer] = []

    def make() -> None:
        made.append(ZeroOptimizer(m, torch.optim.Adam, comm=comm, stage=3, offload=where, persistence_bytes=0))

    if kind in ("missing", "room"):
        me.attempt(make)
        return
    make()

    def steps() -> None:
        for _ in range(2):  # there need not be a collective between what fails on one rank and the end of the step
            m(torch.randn(2, 37)).sum().backward()
            made[0].step()

    steps()
    if culprit and kind == "written":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    short = mock.patch("collectives.zero.store.os.preadv", return_value=0)
    with short if culprit and kind == "short" else contextlib.nullcontext():
        me.attempt(steps)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "nvme/missing"),
        ("room", "no room for .* bytes"),
        ("written", "File too large"),
        ("short", "ends after .* bytes"),
    ],
)
def test_faults(kind: str, words: str, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    with ranks(2, faulty, kind, str(tmp_path / "nvme")) as job:
        told = [job.hear("raised", rank=rank) for rank in range(2)]
    assert "OffloadError" in told[1]["kinds"]
    assert re.search(words, told[1]["text"]), told
    assert "treering-" in told[1]["text"]
    assert "rank 1" in told[0]["text"], told
    assert "OffloadError" in told[0]["kinds"] or kind in ("written", "short")
    assert max(t["took_s"] for t in told) < 10


@pytest.mark.parametrize(
    ("given", "stage", "words"),
    [
        (Offload(gradients="/tmp"), 1, "stages 2 and 3"),
        (Offload(parameters="/tmp"), 2, "stage 3"),
        (Offload("/tmp", buffer_bytes=0), 2, "buffer_bytes"),
        (7, 1, "offload must be"),
    ],
)
def test_arguments(given: Any, stage: int, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        ZeroOptimizer(torch.nn.Linear(2, 2), torch.optim.Adam, stage=stage, offload=given)


def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    """320 MiB of state in 200 MiB of address space, and not without files."""
    example = Path(__file__).parents[2] / "examples" / "larger_than_memory.py"
    command = [sys.executable, str(example), "--layers", "20", "--limit-mib", "200", "--steps", "2"]
    runs = [
        subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for more in (["--offload", str(tmp_path)], [])
    ]
    try:
        (said, errors), (said_without, errors_without) = (run.communicate(timeout=120) for run in runs)
    finally:
        for run in runs:
            run.kill()
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", said)]
    assert runs[0].returncode == 0, errors
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert "'files': '320 MiB'" in said
    assert runs[1].returncode != 0
    assert "loss" not in said_without
    assert re.search("can't allocate memory|Cannot allocate memory|MemoryError", errors_without), errors_without
