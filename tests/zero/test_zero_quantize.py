"""Quantised communication: the numbers, the bytes, the same bits on every rank, and how training fares."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import ZeroOptimizer, initialize
from collectives.zero.quantize import Quantizer

mse = torch.nn.functional.mse_loss
ROOT = Path(__file__).resolve().parents[2]
STEPS = 50
Ranks = Callable[..., contextlib.AbstractContextManager[Any]]


def there_and_back(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
    data = torch.full((quantizer.nbytes(x.numel()),), 99, dtype=torch.uint8)
    quantizer.encode(x, data)
    out = torch.full_like(x, 77.0)
    quantizer.decode(data, out)
    return out


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("numel", [0, 1, 2, 63, 64, 65, 1000, 200_001])
def test_a_number_is_off_by_half_a_scale_at_most(bits: int, numel: int) -> None:
    quantizer, most = Quantizer(bits, 64), {8: 127, 4: 7}[bits]
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)) * torch.logspace(-30, 30, numel)
    got = there_and_back(quantizer, x).double().numpy()
    assert quantizer.nbytes(numel) == 4 * math.ceil(numel / 64) + math.ceil(numel * bits / 8)
    for begin in range(0, numel, 64):
        block = x[begin : begin + 64].double().numpy()
        scale = np.abs(block).max() / most
        assert np.abs(got[begin : begin + 64] - block).max() <= scale * (0.5 + 2e-5)  # float32 rounds as well


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_left_over_and_what_comes_back_are_all(bits: int) -> None:
    quantizer, generator = Quantizer(bits, 32), torch.Generator().manual_seed(bits)
    x, before = torch.randn(100, generator=generator), torch.randn(100, generator=generator) / 10
    x[50] = float("inf")
    rest, data = before.clone(), torch.empty(quantizer.nbytes(100), dtype=torch.uint8)
    quantizer.encode(x, data, rest)
    got = torch.empty(100)
    quantizer.decode(data, got)
    there = torch.isfinite(got)
    assert there.sum() == 68  # all but the block of the infinity
    assert torch.allclose((got + rest)[there], (x + before)[there], rtol=0, atol=1e-6)
    assert (rest[~there] == 0).all()
    assert rest[there].abs().max() > 1e-3


def test_integers_and_extremes_come_back_as_they_are() -> None:
    for bits, most in ((8, 127), (4, 7)):
        quantizer = Quantizer(bits, 16)
        exact = torch.arange(-most, most + 1, dtype=torch.float32).repeat_interleave(15)
        blocks = torch.cat([torch.tensor([float(most)]).expand(len(exact) // 15, 1), exact.view(-1, 15)], 1).reshape(-1)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert torch.equal(there_and_back(quantizer, blocks.to(dtype)), blocks.to(dtype))
        assert torch.equal(there_and_back(quantizer, torch.zeros(33)), torch.zeros(33))
        assert torch.equal(there_and_back(quantizer, torch.full((16,), 1e-38)), torch.zeros(16))
        huge = torch.full((16,), 65504.0, dtype=torch.float16)
        assert torch.equal(there_and_back(quantizer, huge), huge)
        for bad in (float("inf"), float("-inf"), float("nan")):
            x = torch.ones(48)
            x[20] = bad
            got = there_and_back(quantizer, x)
            assert torch.isnan(got[16:32]).all()
            assert torch.equal(got[:16], x[:16])
            assert torch.equal(got[32:], x[32:])


def test_what_is_no_block() -> None:
    for bits, block in ((3, 64), (16, 64), (8, 0), (8, 7), (4, -2)):
        with pytest.raises(ValueError, match="the bits are 8 or 4, and a block is even"):
            Quantizer(bits, block)


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(37, 301), torch.nn.ReLU(), torch.nn.Linear(301, 111), torch.nn.Tanh()
    return torch.nn.Sequential(*layers, torch.nn.Linear(111, 5)).to(dtype)


def train(me: Any, comm: Any, steps: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    m = model(dtype)
    opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, lr=1e-2, **{"persistence_bytes": 0, **options})
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * step + me.rank)
        x, y = torch.randn(8, 37, generator=generator).to(dtype), torch.randn(8, 5, generator=generator).to(dtype)
        mse(m(x), y).backward()
        opt.step()
        opt.zero_grad()
    opt.close()
    return torch.cat([p.detach().reshape(-1) for p in m.parameters()])


def deterministic(me: Any) -> None:
    comm = me.connect()
    for options in (
        {"stage": 2, "quantized_gradients": 4},
        {"stage": 1, "quantized_gradients": 8, "error_feedback": False},
        {"stage": 3, "quantized_weights": 8, "quantized_gradients": 4, "secondary": 2},
        {"stage": 3, "quantized_weights": 8, "partition": 2, "dtype": torch.bfloat16},
    ):
        first = train(me, comm, **options)
        every = comm.all_gather(first.float()[None])
        assert all(torch.equal(one, every[0]) for one in every), options
        assert torch.equal(train(me, comm, overlap=False, **options), first), options


def exact_for_others(me: Any) -> None:
    """What is trained is not quantised: nor is what a block of code sees, changes, or is left with at the end."""
    comm = me.connect()
    m = model()
    before = [p.detach().clone() for p in m.parameters()]
    opt = ZeroOptimizer(m, torch.optim.SGD, comm=comm, stage=3, lr=1.0, persistence_bytes=0, quantized_weights=8)
    m(torch.ones(1, 37))
    with opt.gathered(m.parameters(), modifier_rank=0):
        assert all(torch.equal(p, was) for p, was in zip(m.parameters(), before, strict=True))
    opt.close()
    assert all(torch.equal(p, was) for p, was in zip(m.parameters(), before, strict=True))


def test_others_than_modules_see_exact_parameters(ranks: Ranks) -> None:
    with ranks(2, exact_for_others):
        pass


def test_the_same_bits_on_every_rank_and_every_time(ranks: Ranks) -> None:
    with ranks(4, deterministic):
        pass


def mean_of(me: Any) -> None:
    """A mean is off by half a scale a hop; that of many steps by as many times less, with error feedback."""
    comm = me.connect()
    steps = 8
    gradients = [torch.randn(77, 93, generator=torch.Generator().manual_seed(r)) for r in range(me.size)]
    exact = torch.stack(gradients).double().mean(0)
    greatest = max(float(g.abs().max()) for g in gradients)
    for stage, bits, feedback, secondary in (
        (0, 8, False, None), (1, 4, False, None), (2, 4, True, None),
        (3, 8, False, 2), (3, 4, True, 2), (3, 8, True, 1),
    ):  # fmt: skip
        m = torch.nn.Linear(93, 77, bias=False)
        torch.nn.init.zeros_(m.weight)
        opt = ZeroOptimizer(
            m, torch.optim.SGD, comm=comm, stage=stage, lr=1.0, persistence_bytes=0, secondary=secondary,
            quantized_gradients=bits, error_feedback=feedback, quantization_block=64,
        )  # fmt: skip
        for _ in range(steps):
            (m.weight * gradients[me.rank]).sum().backward()
            opt.step()
            opt.zero_grad()
        held = opt.memory()["error_feedback"]
        opt.refresh()  # as after loading
        assert opt.memory()["error_feedback"] == 0
        opt.close()
        hops = 2 if secondary == 2 else 1
        half_a_scale = greatest / {8: 127, 4: 7}[bits] / 2
        error = float((m.weight.detach() / -steps - exact).abs().max())
        assert error <= hops * half_a_scale * (1.2 / steps if feedback else 1.0) + 1e-6, (stage, bits, error)
        numel = m.weight.numel()
        assert held == pytest.approx(feedback * numel * (4 if hops == 1 else 6), rel=0.05), (stage, bits)


def test_what_quantised_means_are_off_by(ranks: Ranks) -> None:
    with ranks(4, mean_of):
        pass


def counted(me: Any) -> None:
    """ZeRO++'s table: 3 M beyond the group for stage 3 in 16 bits; 0.5 M + 0 + 0.25 M with all three, and scales."""
    comm = me.connect()
    ranks, width, block = me.size, 2, 256
    groups = ranks // width

    def nbytes(bits: int, numel: int) -> int:
        return 4 * math.ceil(numel / block) + math.ceil(numel * bits / 8)

    found = []
    every: dict[str, Any] = {"secondary": width, "quantized_weights": 8, "quantized_gradients": 4}
    for options in ({}, every, {"partition": width, "quantized_weights": 8}, {"quantized_gradients": 8}):
        m = model(torch.bfloat16)
        nbytes16 = 2 * sum(p.numel() for p in m.parameters())
        opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, stage=3, persistence_bytes=0, **options)
        before = opt.report()["sent_bytes"]
        mse(m(torch.ones(8, 37, dtype=torch.bfloat16)), torch.ones(8, 5, dtype=torch.bfloat16)).backward()
        opt.step()
        sent = [n - before[k] for k, n in opt.report()["sent_bytes"].items() if k in ("payload", "beyond")]
        payload, beyond = comm.all_reduce(torch.tensor(sent)).tolist()
        stretches = [size for bucket in opt._buckets for size in bucket.layout.sizes]
        in8, in4 = (sum(nbytes(bits, numel) for numel in stretches) for bits in (8, 4))
        if not options:
            assert payload == 3 * (ranks - 1) * nbytes16
        elif options is every:
            hop = (width - 1) * groups * in4
            backward = (width - 1) * groups * nbytes16
            assert payload == (ranks - 1) * in8 + backward + hop + (groups - 1) * in4
            assert beyond == (ranks - width) * in8 + (groups - 1) * in4
            found += [in8 / nbytes16, in4 / nbytes16]
        elif "partition" in options:
            assert payload == groups * (width - 1) * (2 * in8 + nbytes16) + 2 * (groups - 1) * nbytes16
        else:
            assert payload == 2 * (ranks - 1) * nbytes16 + (ranks - 1) * in8
        opt.close()
    assert found[0] == pytest.approx(0.5 * (1 + 4 / block), rel=0.02)
    assert found[1] == pytest.approx(0.25 * (1 + 8 / block), rel=0.02)


def test_bytes_are_those_of_blocks_and_scales(ranks: Ranks) -> None:
    with ranks(4, counted):
        pass


def overflowing(me: Any) -> None:
    """Infinities on one rank are found on all; what error feedback has kept stays finite."""
    comm = me.connect()
    m = model()
    opt = ZeroOptimizer(
        m, torch.optim.SGD, comm=comm, stage=2, lr=0.01, quantized_gradients=4, loss_scale="dynamic", initial_scale=8.0
    )
    applied = []
    for step in range(4):
        x, y = torch.ones(8, 37), torch.full((8, 5), float(me.rank))
        opt.scale(mse(m(x), y) * (float("inf") if step == 1 and me.rank == 0 else 1.0)).backward()
        opt.step()
        opt.zero_grad()
        applied.append(opt.step_was_applied)
    assert applied == [True, False, True, True]
    assert all(torch.isfinite(p).all() for p in m.parameters())
    opt.close()


def test_overflow_is_seen_through_quantised_gradients(ranks: Ranks) -> None:
    with ranks(2, overflowing):
        pass


def learning(me: Any) -> None:
    """A small GPT on this project's own pages: quantised, it learns as well, to within the margin."""
    comm = me.connect()
    spec = importlib.util.spec_from_file_location("train_gpt", ROOT / "examples" / "train_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    gpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpt)
    data, letters = gpt.text()
    losses: list[float] = []
    every = {"quantized_weights": 8, "quantized_gradients": 4}
    for options in ({}, every):
        torch.manual_seed(0)
        m = gpt.Gpt(letters, 32, 48, 4, 2)
        opt = ZeroOptimizer(m, torch.optim.AdamW, comm=comm, stage=3, lr=3e-3, persistence_bytes=0, **options)
        recent = []
        for step in range(STEPS):
            tokens, following = gpt.batch_of(data, step, me.rank, 8, 32)
            loss = torch.nn.functional.cross_entropy(m(tokens).flatten(0, 1), following.flatten())
            loss.backward()
            opt.clip_grad_norm_(1.0)
            opt.step()
            opt.zero_grad()
            recent.append(float(loss.detach()))
        opt.close()
        losses.append(float(comm.all_reduce(torch.tensor(recent[-10:]).mean(), op="mean")))
    me.say("losses", values=losses)


def test_training_fares_as_well(ranks: Ranks) -> None:
    with ranks(2, learning) as job:
        exact, quantised = job.hear("losses", 0)["values"]
        assert job.hear("losses", 1)["values"] == [exact, quantised]
    assert exact < 3.6  # it began near 4.8
    assert abs(quantised - exact) < 0.02 * exact


def by_config(me: Any) -> None:
    """DeepSpeed's keys ask for the same."""
    comm = me.connect()
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
    }
    for keys, options in (
        (
            {"zero_hpz_partition_size": 2, "zero_quantized_weights": True, "zero_quantized_gradients": True,
             "zeropp_loco_param": {"reset_T": 1024}},
            {"secondary": 2, "quantized_weights": 8, "quantized_gradients": 4},
        ),
        ({"mics_shard_size": 2}, {"partition": 2}),
    ):  # fmt: skip
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, **keys}
        engine, opt, *_ = initialize(model=model(), config={**config, "zero_optimization": zero}, comm=comm)
        for step in range(2):
            generator = torch.Generator().manual_seed(1000 * step + me.rank)
            x, y = torch.randn(8, 37, generator=generator), torch.randn(8, 5, generator=generator)
            engine.backward(mse(engine(x), y))
            engine.step()
        opt.close()
        got = torch.cat([p.detach().reshape(-1) for p in engine.parameters()])
        assert torch.equal(got, train(me, comm, 2, stage=3, **options)), keys


def test_the_keys_of_deepspeed(ranks: Ranks) -> None:
    with ranks(4, by_config):
        pass


def test_what_makes_no_sense() -> None:
    m = torch.nn.Linear(2, 2)
    for options, said in (
        ({"partition": 2, "secondary": 2}, "partition and secondary"),
        ({"partition": 2, "quantized_gradients": 8}, "partition and quantized_gradients"),
        ({"stage": 2, "secondary": 2}, "secondary is for stage 3"),
        ({"stage": 1, "quantized_weights": 8}, "quantized_weights is for stage 3"),
        ({"quantized_weights": 4}, "must be None or 8"),
        ({"quantized_gradients": True}, "must be None or 8 or 4"),
        ({"quantized_gradients": 4, "quantization_block": 7}, "a block is even"),
    ):
        with pytest.raises(ValueError, match=said):
            ZeroOptimizer(m, torch.optim.SGD, comm=None, **{"stage": 3, "lr": 0.1, **options})
