"""`bench zero` with groups: what leaves them beside the flat form, and command lines that make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.zero.command import main

SMALL = ["--ranks", "2", "--blocks", "1", "--width", "128", "--hidden", "256", "--rounds", "1", "-n", "1"]


def test_a_form_beside_the_flat_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    flags = ["--stages", "3", "--group", "1", "--forms", "mics"]
    assert main([*SMALL, *flags, "-J", str(path)], "bench zero") == 0
    rows = json.loads(path.read_text())["results"]
    assert [row["name"] for row in rows] == ["stage 3", "stage 3 mics"]
    matrices, biases = 2 * 128 * 256 * 4, (128 + 256) * 4  # bytes; biases are small enough to stay whole
    assert rows[0]["beyond_bytes"] == rows[0]["sent_bytes"] == (3 * matrices + 2 * biases) / 2
    assert rows[1]["beyond_bytes"] == rows[1]["sent_bytes"] == matrices + biases  # all-reduced, and that is all
    assert "stage 3 mics" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--forms", "mics"], "--forms needs --group"),
        (["--forms", "mix", "--group", "1"], "--forms 'mix' is not known"),
        (["--group", "3"], "--group 3 does not divide --ranks 2"),
        (["--link", "1gbit"], "--link needs --group"),
        (["--link", "fast", "--group", "1"], "'fast' is not a rate"),
        (["--link", "1gbit", "--group", "1", "--compare", "ddp"], "not for --compare"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, *flags], "bench zero")
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
