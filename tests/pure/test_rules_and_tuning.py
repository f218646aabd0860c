"""A person's rules, and tables of measured times."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from collectives.rules import Rule, read_rules
from collectives.tuning import Tuning


def test_rules_are_read_from_a_file_with_sizes_in_words(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(
        '[{"collective": "all_reduce", "algorithm": "ring", "from": "64 KiB", "below": "1.5 MB"},'
        ' {"collective": "broadcast", "algorithm": "hierarchical(direct, two_tree)"}]'
    )
    first, second = read_rules(path)
    assert first == Rule("all_reduce", "ring", 64 << 10, 1_500_000)
    assert second == Rule("broadcast", "hierarchical(direct, two_tree)", 0, math.inf)
    assert [first.fits("all_reduce", n) for n in (65535, 65536, 1_499_999, 1_500_000)] == [False, True, True, False]
    assert not first.fits("broadcast", 65536)
    assert read_rules([first]) == (first,)
    assert read_rules([Rule("all_reduce", "ring", "1 KiB")]) == (Rule("all_reduce", "ring", 1024),)  # type: ignore[arg-type]
    assert read_rules(None) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "rules.json: "),
        ("{}", "must be a list of rules"),
        ("[1]", r"rules.json\[0\] must be an object"),
        ('[{"collective": "all_reduce"}]', "needs 'algorithm'"),
        ('[{"collective": "all_reduce", "algorithm": "ring", "size": 1}]', "unknown key 'size'"),
        ('[{"collective": "all_reduce", "algorithm": "rign"}]', r"rules.json\[0\]: all_reduce has no algorithm 'rign'"),
        ('[{"collective": "reduce_all", "algorithm": "ring"}]', "no collective 'reduce_all'"),
        ('[{"collective": "all_reduce", "algorithm": "ring", "from": "1 parsec"}]', "'1 parsec' is no size"),
        ('[{"collective": "all_reduce", "algorithm": "ring", "from": -1}]', "-1 is no size"),
        ('[{"collective": "all_reduce", "algorithm": "ring", "from": 9, "below": 9}]', "is about no size"),
    ],
)
def test_what_is_no_rule_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rules(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.json cannot be read"):
        read_rules(tmp_path / "missing.json")


TABLE = Tuning({"all_reduce": {"ring": {1024: 10e-6, 4096: 40e-6}, "direct": {4096: 5e-6}}})


def test_between_measured_sizes_times_lie_on_a_line_on_logarithmic_axes() -> None:
    assert TABLE.measured_s("all_reduce", "ring", 1024) == 10e-6
    assert TABLE.measured_s("all_reduce", "ring", 2048) == pytest.approx(20e-6)
    assert TABLE.measured_s("all_reduce", "ring", 1023) is None
    assert TABLE.measured_s("all_reduce", "ring", 4097) is None
    assert TABLE.measured_s("all_reduce", "two_tree", 4096) is None
    assert TABLE.measured_s("broadcast", "ring", 4096) is None
    assert TABLE.nearest("all_reduce", "ring", 1 << 20) == (4096, 40e-6)
    assert TABLE.nearest("all_reduce", "ring", 1) == (1024, 10e-6)
    assert TABLE.nearest("reduce", "ring", 1) is None
    assert TABLE.sizes("all_reduce") == [1024, 4096]


def test_a_table_survives_json_and_grows() -> None:
    assert Tuning.from_json(TABLE.to_json()) == TABLE
    more = TABLE.merged(Tuning({"all_reduce": {"ring": {4096: 1e-6}}, "reduce": {"ring": {8: 2e-6}}}))
    assert more.times_s["all_reduce"]["ring"] == {1024: 10e-6, 4096: 1e-6}
    assert more.times_s["reduce"]["ring"] == {8: 2e-6}
    assert TABLE.times_s["all_reduce"]["ring"][4096] == 40e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must be an object"),
        ({"all_reduces": {}}, "no collective 'all_reduces'"),
        ({"all_reduce": []}, "all_reduce must be an object"),
        ({"all_reduce": {"ring": {}}}, "must be a list"),
        ({"all_reduce": {"ring": [[8]]}}, "is not"),
        ({"all_reduce": {"ring": [[8, -1.0]]}}, r"\[8, -1.0\] is not"),
        ({"all_reduce": {"ring": [[0, 1.0]]}}, r"\[0, 1.0\] is not"),
        ({"all_reduce": {"ring": [[8, 10**400]]}}, "is not"),
    ],
)
def test_a_table_that_is_wrong_is_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tuning.from_json(json.dumps(given))
