"""`python -m bench cluster` says what is wrong with its command line, or missing here, before anything is made."""

from __future__ import annotations

import os
import shutil

import pytest

from bench.cli import main
from bench.emulate import what_is_missing

ENOUGH = ("--hosts", "2", "--link", "200mbit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--link", "200mbit"), "--hosts"),
        (("--hosts", "2"), "--link"),
        (("--hosts", "2", "--link", "200"), "'200' is not a rate"),
        (("--hosts", "2", "--link", "200mb"), "'200mb' is not a rate"),
        (("--hosts", "2", "--link", "0mbit"), "a link has 1mbit to 400gbit"),
        (("--hosts", "two", "--link", "1gbit"), "invalid int value: 'two'"),
        (("--hosts", "0", "--link", "1gbit"), "0 hosts"),
        ((*ENOUGH, "--ranks-per-host", "-1"), "-1 ranks on each of 2 hosts"),
        ((*ENOUGH, "--placement", "random"), "invalid choice: 'random'"),
        ((*ENOUGH, "--racks", "2"), "racks are joined by uplinks"),
        ((*ENOUGH, "--uplink", "1gbit"), "racks are joined by uplinks"),
        ((*ENOUGH, "allreduce"), "unrecognized arguments: allreduce"),
        ((*ENOUGH, "--ranks", "4"), "--hosts times --ranks-per-host"),
        ((*ENOUGH, "--transport", "shm"), "shm cannot reach other hosts"),
        ((*ENOUGH, "broadcast", "-r", "2"), "-r 2 is not a rank: there are 2"),
        ((*ENOUGH, "all_reduce", "broadcast", "-J", "x.json"), "one collective at a time"),
        ((*ENOUGH, "all_reduce", "--algorithm", "none"), "'none' is not known"),
    ],
)
def test_a_command_line_without_a_meaning(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["cluster", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/sbin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["cluster", *ENOUGH]) == 1
    assert "need root" in capsys.readouterr().err


def test_without_its_tools_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("ip", "tc") else f"/usr/bin/{tool}")
    missing = what_is_missing()
    assert missing is not None
    assert "`apt-get install iproute2`" in missing
