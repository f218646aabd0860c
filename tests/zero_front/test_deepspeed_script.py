"""A script written for DeepSpeed, with its import changed and nothing else, gives the numbers that DeepSpeed gave."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this
from collectives.zero import deepspeed

HERE = Path(__file__).parent
SCRIPT = HERE / "deepspeed_script.py"
TOLD = json.loads((HERE / "deepspeed/script.json").read_text())


def body(me: Any, store: str, words: list[str]) -> None:
    os.environ |= {"TREERING_STORE": store, "TREERING_RANK": str(me.rank), "TREERING_SIZE": str(me.size)}
    text = SCRIPT.read_text()
    text = text.replace("import deepspeed\n", "from collectives.zero import deepspeed\n")
    text = text.replace("from deepspeed.", "from collectives.zero.deepspeed.")
    sys.argv = [str(SCRIPT), *words]
    exec(compile(text, str(SCRIPT), "exec"), {"__name__": "__main__"})
    deepspeed.comm.destroy_process_group()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_numbers_of_deepspeed(
    stage: int, ranks: Callable[..., contextlib.AbstractContextManager[Any]], tmp_path: Path
) -> None:
    config = {**TOLD["config"], "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--deepspeed_config", str(tmp_path / "config.json"), "--checkpoint", str(tmp_path / "checkpoint")]
    for number, more in enumerate((["--epochs", "2"], ["--epochs", "3", "--resume"])):
        out = tmp_path / f"{number}.json"
        with ranks(2, body, f"file://{tmp_path}/store{number}", [*words, *more, "--out", str(out)]):
            pass
        got, expected = json.loads(out.read_text()), TOLD["runs"][str(stage)][number]
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=2e-6, abs=1e-12), name
