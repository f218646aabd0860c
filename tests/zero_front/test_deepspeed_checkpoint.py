"""Checkpoints that DeepSpeed wrote (make_deepspeed_checkpoints.py), read without it, to the bit."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from collectives.zero.checkpoint_errors import CheckpointError
from collectives.zero.deepspeed_checkpoint import read_deepspeed
from collectives.zero.estimate import estimate

MADE = Path(__file__).parent / "deepspeed"
CASES = sorted(path.name for path in MADE.iterdir() if path.is_dir())


def test_all_stages_are_there() -> None:
    assert CASES == ["bf16", "stage1", "stage2", "stage3"]


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_deepspeeds_own_converter(case: str) -> None:
    expected = torch.load(MADE / case / "expected.pt", weights_only=True)
    got = read_deepspeed(MADE / case)
    assert set(expected) <= set(got)
    for name, value in expected.items():
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], value.float()), name  # its converter leaves frozen bf16 parameters as they are
    assert torch.equal(got["head.weight"], got["embed.weight"])
    assert set(got) == {"embed.weight", "norm.weight", "norm.bias", "scale", "head.weight", "offset"} | {
        "frozen.weight", "frozen.bias",  # which DeepSpeed's own converter leaves out of stage 1
    }  # fmt: skip


def test_a_tag_and_its_folder() -> None:
    by_tag, by_folder = read_deepspeed(MADE / "stage2", tag="two"), read_deepspeed(MADE / "stage2" / "two")
    assert all(torch.equal(by_tag[name], by_folder[name]) for name in by_tag)


@pytest.fixture(params=["stage1", "stage3"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(MADE / request.param, tmp_path / "checkpoint")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "two").iterdir())


def test_a_missing_file_is_named(copy: Path) -> None:
    for name in files(copy):
        (copy / "two" / name).rename(copy / name)
        with pytest.raises(CheckpointError) as caught:
            read_deepspeed(copy)
        rank = name.split("_")[3] if "pp_rank" in name else None
        assert (f"of rank {rank} is missing" if rank else f"{name} is missing") in str(caught.value) or (
            "of 2 ranks" in str(caught.value)
        )
        (copy / name).rename(copy / "two" / name)


def test_a_truncated_file_is_named(copy: Path) -> None:
    for name in files(copy):
        path = copy / "two" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=name):
            read_deepspeed(copy)
        path.write_bytes(whole)


class Evil:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("from tests.zero_front.test_deepspeed_checkpoint import Evil; Evil.ran = True",)


def test_nothing_in_a_file_is_run(copy: Path) -> None:
    path = copy / "two" / files(copy)[-1]
    torch.save({"optimizer_state_dict": Evil()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match=path.name):
        read_deepspeed(copy)
    assert not Evil.ran


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a ZeRO checkpoint"):
        read_deepspeed(tmp_path)
    (tmp_path / "latest").write_text("gone")
    with pytest.raises(CheckpointError, match="gone is not there"):
        read_deepspeed(tmp_path)


def test_the_estimates_are_those_of_deepspeed_itself() -> None:
    for case in json.loads((MADE / "estimates.json").read_text()):
        got = estimate(
            case["count"], stage=case["stage"], world_size=case["ranks"],
            offload=case["offload"], largest_layer=case["largest"],
        )  # fmt: skip
        assert got.deepspeed_device_bytes == case["device"], case
