"""Partition within groups of ranks: the bits, the bytes within groups and beyond, the memory, checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import collectives as cc
import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer, estimate
from collectives.zero.groups import groups_of, keep_the_order

mse = torch.nn.functional.mse_loss
Ranks = Callable[..., contextlib.AbstractContextManager[Any]]


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(37, 301), torch.nn.ReLU(), torch.nn.Linear(301, 111), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(111, 5)).to(dtype)


def flat(m: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def train(me: Any, comm: Any, steps: int = 2, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    m = model(dtype)
    opt = ZeroOptimizer(
        m, torch.optim.AdamW, comm=comm, lr=1e-2, **{"bucket_bytes": 20_000, "persistence_bytes": 600, **options}
    )
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * step + me.rank)
        x, y = torch.randn(8, 37, generator=generator).to(dtype), torch.randn(8, 5, generator=generator).to(dtype)
        mse(m(x), y).backward()
        opt.clip_grad_norm_(0.5)
        opt.step()
        opt.zero_grad()
    opt.close()
    return flat(m)


def same_as_flat(me: Any) -> None:
    comm = me.connect()
    for dtype, cases in (
        (torch.float32, [(0, 2), (1, 2), (2, 2), (3, 2), (2, 1)] if me.size == 4 else [(3, 2)]),
        (torch.bfloat16, [(3, 2)]),
    ):
        expected = train(me, comm, dtype=dtype, stage=1)
        for stage, partition in cases:
            got = train(me, comm, dtype=dtype, stage=stage, partition=partition, overlap=stage != 2)
            assert torch.equal(got, expected), (dtype, partition, stage)


@pytest.mark.parametrize("size", [4, 6])
def test_groups_of_a_power_of_two_have_the_bits_of_all_ranks(size: int, ranks: Ranks) -> None:
    with ranks(size, same_as_flat):
        pass


def secondary(me: Any) -> None:
    """Gathered from the second copy: the bits are the same, and after the first gather nothing leaves the group."""
    comm = me.connect()
    for dtype in (torch.float32, torch.bfloat16):
        expected = train(me, comm, dtype=dtype, stage=3)
        for width in (1, 2, me.size):
            assert torch.equal(train(me, comm, dtype=dtype, stage=3, secondary=width), expected), (dtype, width)
    m = model()
    numel = sum(p.numel() for p in m.parameters())
    options: Any = {"stage": 3, "persistence_bytes": 0, "bucket_bytes": 20_000, "secondary": 2}
    opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, **options)
    width, ranks = 2, me.size
    for step, micros in enumerate((1, 1, 3)):
        before = opt.report()["sent_bytes"]
        for micro in range(micros):
            with opt.no_sync() if micro < micros - 1 else contextlib.nullcontext():
                mse(m(torch.ones(8, 37)), torch.ones(8, 5)).backward()
        opt.step()
        opt.zero_grad()
        sent = [n - before[k] for k, n in opt.report()["sent_bytes"].items() if k in ("within", "beyond")]
        within, beyond = comm.all_reduce(torch.tensor(sent)).tolist()
        # on all ranks together: one gather and one reduce-scatter over all of them, the other gathers within groups
        assert beyond == 2 * (ranks - width) * 4 * numel, step
        assert within == (2 * (width - 1) + (2 * micros - 1) * (width - 1) * ranks // width) * 4 * numel, step
    assert abs(opt.memory()["secondary"] - 4 * numel // width) < 4 * 64 * 8
    before = opt.report()["sent_bytes"]["beyond"]
    with torch.no_grad():
        first = m(torch.ones(8, 37))  # parameters have been updated
        assert opt.report()["sent_bytes"]["beyond"] > before
        again = opt.report()["sent_bytes"]["beyond"]
        assert torch.equal(m(torch.ones(8, 37)), first)
        assert opt.report()["sent_bytes"]["beyond"] == again
        opt.refresh()  # and may have been written
        assert torch.equal(m(torch.ones(8, 37)), first)
        assert opt.report()["sent_bytes"]["beyond"] > again
    opt.close()


def test_a_second_copy_within_the_group(ranks: Ranks) -> None:
    with ranks(4, secondary):
        pass


def odd_groups(me: Any) -> None:
    """Sums of other groups have an order of their own: exact where sums are exact, near elsewhere, equal every time."""
    comm = me.connect()
    across = comm.split(color=comm.rank % 2)  # ranks that are not neighbours
    exact = torch.arange(1, 2001, dtype=torch.float32).reshape(40, 50) % 64
    for partition in (3, across):
        m = torch.nn.Linear(50, 40, bias=False)
        torch.nn.init.zeros_(m.weight)
        opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=2, lr=1.0, partition=partition)
        (m.weight * exact * 6 * (me.rank + 1)).sum().backward()
        opt.step()
        opt.close()
        assert torch.equal(m.weight, -exact * sum(range(1, 7)))  # no rounding on the way: the mean, negated

        gradients = [torch.randn(40, 50, generator=torch.Generator().manual_seed(r)) for r in range(me.size)]
        found = []
        for stage, bucket_bytes in ((2, 1 << 20), (3, 500), (2, 1 << 20)):
            m = torch.nn.Linear(50, 40, bias=False)
            torch.nn.init.zeros_(m.weight)
            options: Any = {"stage": stage, "bucket_bytes": bucket_bytes, "partition": partition}
            opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, lr=1.0, persistence_bytes=0, **options)
            (m.weight * gradients[me.rank]).sum().backward()
            opt.step()
            opt.close()
            found.append(m.weight.detach())
        reference = -torch.stack(gradients).double().mean(0)
        assert (found[0] - reference).abs().max() < 4 * 2.0**-24
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_sums_over_groups_of_any_shape(ranks: Ranks) -> None:
    with ranks(6, odd_groups):
        pass


def test_which_groups_keep_the_canonical_order() -> None:
    for size in range(1, 25):
        for width in (w for w in range(1, size + 1) if size % w == 0):
            groups = tuple(tuple(range(first, first + width)) for first in range(0, size, width))
            power = width & (width - 1) == 0
            assert keep_the_order(groups) == (power or width == size or (width, size) == (3, 3)), groups
    assert not keep_the_order(((0, 2), (1, 3)))


def counted(me: Any, width: int) -> None:
    comm = me.connect()
    groups = me.size // width
    for stage, gathers in ((2, 1), (3, 2)) if me.size == 4 else ((3, 2),):
        m = model()
        nbytes = 4 * sum(p.numel() for p in m.parameters())
        opt = ZeroOptimizer(
            m, torch.optim.AdamW, comm=comm, stage=stage, partition=width, persistence_bytes=0, bucket_bytes=20_000
        )
        for step in range(2):
            before = opt.report()["sent_bytes"]
            mse(m(torch.ones(8, 37)), torch.ones(8, 5)).backward()
            opt.step()
            opt.zero_grad()
            sent = [n - before[k] for k, n in opt.report()["sent_bytes"].items() if k in ("within", "beyond")]
            within, beyond = comm.all_reduce(torch.tensor(sent)).tolist()
            # on all ranks together: each group scatters once and gathers; each piece is all-reduced beyond its group
            assert within == (1 + gathers) * (width - 1) * groups * nbytes, (stage, step)
            assert beyond == 2 * (groups - 1) * nbytes, (stage, step)
        opt.close()


@pytest.mark.parametrize(("size", "width"), [(4, 2), (8, 2)])
def test_bytes_within_groups_and_beyond(size: int, width: int, ranks: Ranks) -> None:
    with ranks(size, counted, width):
        pass


def held(me: Any) -> None:
    comm = me.connect()
    for stage in range(1, 4):
        torch.manual_seed(0)
        m = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(4)))
        numel = sum(p.numel() for p in m.parameters())
        opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, stage=stage, partition=2)
        m(torch.randn(2, 300)).sum().backward()
        opt.step()
        memory = opt.memory()
        formula = estimate(numel, stage=stage, world_size=4, precision="fp32", partition=2).total_bytes
        assert formula == numel * sum(each / (2 if stage >= since else 1) for each, since in ((4, 3), (4, 2), (8, 1)))
        held_bytes = memory["parameters"] + memory["gradients"] + memory["optimizer"]
        assert abs(held_bytes - formula) <= 0.02 * formula + (1 << 12), (stage, memory, formula)
        opt.close()


def test_memory_is_that_of_the_group(ranks: Ranks) -> None:
    with ranks(4, held):
        pass


def going_on(me: Any, path: str, begin: int, forms: list[Any]) -> None:
    """The same batch on every rank: the mean over a power of two of them has the bits of one."""
    comm, found = me.connect(), []
    for number, (stage, partition) in enumerate(forms):
        m = model()
        opt = ZeroOptimizer(
            m, torch.optim.AdamW, comm=comm, stage=stage, partition=partition, lr=1e-2, persistence_bytes=600
        )
        if number or begin:
            opt.load(path)
        for step in range(2 if number else begin, 4):
            if step == 2 and not number and not begin:
                opt.save(path)
            generator = torch.Generator().manual_seed(step)
            mse(m(torch.randn(8, 37, generator=generator)), torch.randn(8, 5, generator=generator)).backward()
            opt.step()
            opt.zero_grad()
        opt.close()
        found.append(flat(m).tolist())
    me.say("weights", values=found)


def test_checkpoints_load_at_any_other_partition(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tmp_path / "checkpoint")
    with ranks(4, going_on, path, 0, [(3, 2), (2, 1), (3, None)]) as job:
        found = [weights for rank in range(4) for weights in job.hear("weights", rank)["values"]]
    with ranks(2, going_on, path, 2, [(1, None), (3, 1)]) as job:
        found += [weights for rank in range(2) for weights in job.hear("weights", rank)["values"]]
    assert all(weights == found[0] for weights in found)


def killed(me: Any) -> None:
    comm = me.connect(timeout_s=10.0)
    m = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40))
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=3, partition=2, lr=0.1, persistence_bytes=0)

    def step() -> None:
        m(torch.ones(3, 40)).sum().backward()
        opt.step()
        opt.zero_grad()

    me.until_it_fails(step)


def test_a_killed_rank_is_named_by_its_number_in_the_job(ranks: Ranks) -> None:
    with ranks(4, killed) as job:
        job.hear_all("calling")
        job.kill(3)
        texts = []
        for rank in range(3):
            told = job.hear("raised", rank)
            assert "PeerLostError" in told["kinds"], told
            assert "weight)" in told["text"] or "agree" in told["text"], told
            texts.append(told["text"])
        named = "lost rank 1 (rank 3 of the job, ", "lost rank 3 (process "
        assert any(name in text for name in named for text in texts), texts


def test_groups_that_make_no_sense() -> None:
    comms = cc.connect_threads(4, hosts=((0, 1), (2, 3)))
    comm = comms[0]
    assert groups_of(comm, "host", "partition") == ((0, 1), (2, 3))
    assert groups_of(comm, 1, "partition") == ((0,), (1,), (2,), (3,))
    for wrong in (0, -1, 3, 8):
        with pytest.raises(ValueError, match=f"partition={wrong} does not divide the 4 ranks"):
            groups_of(comm, wrong, "partition")
    for odd in (True, 2.0, "rack", comm.hosts):
        with pytest.raises(TypeError, match="must be 'host', a number of ranks, or a Communicator"):
            groups_of(comm, odd, "secondary")
    uneven = cc.connect_threads(3, hosts=((0, 1), (2,)))
    with pytest.raises(ValueError, match="same number of ranks, and these have 2, 1"):
        groups_of(uneven[0], "host", "partition")
    with ThreadPoolExecutor(4) as pool:
        groups = list(pool.map(lambda comm: comm.split(color=min(comm.rank, 2)), comms))
        asked = [pool.submit(groups_of, c, g, "partition") for c, g in zip(comms, groups, strict=True)]
        for one in asked:
            with pytest.raises(ValueError, match="these have 1, 1, 2"):
                one.result(10)
    for each in [*comms, *uneven]:
        each.close()
