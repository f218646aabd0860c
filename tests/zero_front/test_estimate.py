"""zero.estimate and its command: the ZeRO paper's figures, and DeepSpeed's estimators as they answered themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from collectives.zero.estimate import KINDS, estimate

ROOT = Path(__file__).resolve().parents[2]
GB = 1e9

PAPER = {  # table 1 of the paper: GB per device at stages 1, 2, 3, as printed there
    7.5e9: {1: (120, 120, 120), 4: (52.5, 41.3, 30), 16: (35.6, 21.6, 7.5), 64: (31.4, 16.6, 1.88),
            256: (30.4, 15.4, 0.47), 1024: (30.1, 15.1, 0.12)},
    128e9: {1: (2048, 2048, 2048), 4: (896, 704, 512), 16: (608, 368, 128), 64: (536, 284, 32),
            256: (518, 263, 8), 1024: (513, 258, 2)},
    1e12: {1: (16000, 16000, 16000), 4: (7000, 5500, 4000), 16: (4750, 2875, 1000), 64: (4187, 2218, 250),
           256: (4046, 2054, 62.5), 1024: (4011, 2013, 15.6)},
}  # fmt: skip


@pytest.mark.parametrize("count", PAPER)
def test_table_one_of_the_paper(count: float) -> None:
    for ranks, row in PAPER[count].items():
        got = [estimate(count, stage=stage, world_size=ranks).total_bytes / GB for stage in (1, 2, 3)]
        assert got == pytest.approx(row, rel=3e-3, abs=0.006)


def test_figure_one_of_the_paper() -> None:
    """7.5 billion parameters on 64 ranks; exact."""
    got = [estimate(7.5e9, stage=stage, world_size=64).total_bytes for stage in range(4)]
    assert got == [120_000_000_000, 31_406_250_000, 16_640_625_000, 1_875_000_000]


def test_fp32_has_no_master_weights() -> None:
    plain = estimate(1000, stage=1, world_size=4, precision="fp32")
    assert plain.device_bytes == {"parameters": 4000, "gradients": 4000, "master": 0, "states": 2000}
    assert plain.deepspeed_device_bytes is None


def test_shares_are_rounded_up_to_an_element() -> None:
    assert estimate(10, stage=3, world_size=4, precision="fp32").device_bytes["parameters"] == 4 * 3


def test_other_optimizers_keep_other_states() -> None:
    for elems in (0, 1, 3):
        assert estimate(100, stage=1, world_size=2, state_elems=elems).device_bytes["states"] == 4 * elems * 50


def test_what_is_offloaded_is_held_by_the_host() -> None:
    whole = estimate(100, stage=2, world_size=2)
    moved = estimate(100, stage=2, world_size=2, offload=("master", "states"))
    assert moved.total_bytes == 200 + 100
    assert moved.host_bytes == {"master": 200, "states": 400}
    assert moved.total_bytes + sum(moved.host_bytes.values()) == whole.total_bytes


def test_bytes_sent_in_a_step() -> None:
    sent = [estimate(1000, stage=stage, world_size=4).sent_bytes for stage in range(4)]
    assert sent == [3000, 3000, 3000, 4500]


def test_a_module_is_counted_and_tied_parameters_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    model[1].weight = model[0].weight
    assert estimate(model, stage=0, world_size=2).parameters == 64 + 8 + 8 + 18
    theirs = estimate(model, stage=3, world_size=2).deepspeed_device_bytes
    assert theirs == 4 * 72 + 18 * 98 // 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"stage": 4}, ValueError, "stage 4"),
        ({"world_size": 0}, ValueError, "world_size 0"),
        ({"precision": "int4"}, ValueError, "'int4'"),
        ({"state_elems": -1}, ValueError, "state_elems -1"),
        ({"offload": ("weights",)}, ValueError, "'weights'"),
        ({"model_or_count": -5}, ValueError, "-5"),
        ({"model_or_count": 0.5}, ValueError, "0.5"),
        ({"model_or_count": "7B"}, TypeError, "str"),
    ],
)
def test_arguments_without_a_meaning(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    call = {"model_or_count": 10, "stage": 1, "world_size": 2, **arguments}
    with pytest.raises(error, match=words):
        estimate(**call)  # type: ignore[arg-type]


def treering(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_prints_the_papers_figures() -> None:
    done = treering("zero", "estimate", "--params", "7.5e9", "--ranks", "64")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert [row[1 + len(KINDS)] for row in rows] == ["120", "31.4", "16.6", "1.9"]


@pytest.mark.parametrize("words", [("--params", "many"), ("--params", "1e3", "--ranks", "0"), ("--ranks", "2")])
def test_a_command_line_without_a_meaning(words: tuple[str, ...]) -> None:
    done = treering("zero", "estimate", *words)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_groups() -> None:
    """In 16 bits, on 8 ranks in groups of 4: worked out by hand."""
    flat = estimate(800, stage=3, world_size=8)
    mics = estimate(800, stage=3, world_size=8, partition=4)
    hpz = estimate(800, stage=3, world_size=8, secondary=4)
    assert (flat.total_bytes, mics.total_bytes, hpz.total_bytes) == (1600, 3200, 1600 + 400)
    assert flat.sent_bytes == 3 * 1600 * 7 // 8
    assert mics.sent_bytes == 3 * 1600 * 3 // 4 + 2 * 400 // 2
    assert hpz.sent_bytes == 2 * 1600 * 7 // 8 + 1600 * 3 // 4
    assert estimate(800, stage=3, world_size=8, partition=8) == flat
    with pytest.raises(ValueError, match="partition=3 does not divide the 8 ranks"):
        estimate(800, stage=1, world_size=8, partition=3)
    with pytest.raises(ValueError, match="secondary is for stage 3"):
        estimate(800, stage=2, world_size=8, secondary=4)
