"""The example trains: the same losses at every stage, to the last bit, and after it was killed and resumed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tests.torch_ready  # noqa: F401 - ranks are forked from a process that has imported this

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "examples/train_gpt.py"
SMALL = ["--steps", "6", "--width", "32", "--blocks", "2", "--batch", "2", "--length", "32", "--every", "3"]

_spec = importlib.util.spec_from_file_location("train_gpt", PROGRAM)
assert _spec is not None
assert _spec.loader is not None
train_gpt = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_gpt)


def body_trains(me: Any, store: str, halts_at: int, words: list[str]) -> None:
    os.environ |= {"TREERING_STORE": store, "TREERING_RANK": str(me.rank), "TREERING_SIZE": str(me.size)}
    batch_of = train_gpt.batch_of

    def watched(data: Any, step: int, *rest: int) -> Any:
        if step == halts_at:
            me.say("there")
            signal.pause()
        return batch_of(data, step, *rest)

    train_gpt.batch_of = watched
    sys.argv = [str(PROGRAM), *SMALL, *words]
    train_gpt.main()


def test_stages_and_a_resumed_run_have_one_loss_curve(
    ranks: Callable[..., contextlib.AbstractContextManager[Any]], tmp_path: Path
) -> None:
    curves: list[list[str]] = []
    for stage in range(4):
        file = tmp_path / f"losses-{stage}"
        words = ["--stage", str(stage), "--losses", str(file)]
        with ranks(2, body_trains, f"file://{tmp_path}/store-{stage}", -1, words):
            pass
        curves.append(json.loads(file.read_text()))
    assert curves == 4 * [curves[0]]
    losses = [float.fromhex(loss) for loss in curves[0]]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1

    checkpoint = ["--checkpoint", str(tmp_path / "checkpoint")]
    with ranks(2, body_trains, f"file://{tmp_path}/store", 5, ["--stage", "1", *checkpoint]) as job:
        job.hear_all("there")
        job.kill(0, 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    again = ["--stage", "3", "--resume", *checkpoint, "--losses", str(tmp_path / "resumed")]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(PROGRAM), *SMALL, *again],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed at step 3" in done.stderr
    assert re.search(r"step 6/6  loss \d\.\d{4}  [\d,]+ tokens/s", done.stderr), done.stderr
    assert json.loads((tmp_path / "resumed").read_text()) == curves[0]
