"""`bench pairwise`: slow links are found and named, in the table, the JSON and the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pairwise.command import document, main, parse, text
from bench.pairwise.matrix import Pairwise
from bench.pairwise.outliers import FACTOR, Outlier, find_outliers, slow_ranks
from bench.pairwise.picture import picture


def machines(hosts: int, ranks: int, seed: int = 0, noise: float = 0.08) -> dict[str, Any]:
    """Matrices of equal hosts with some noise: 1 us and 10 GB/s inside of one, 20 us and 1 GB/s between two."""
    size, rng = hosts * ranks, np.random.default_rng(seed)
    host = np.arange(size) // ranks
    near = host[:, None] == host[None, :]
    factor = 1 + noise * rng.uniform(-1, 1, (size, size))
    latency = np.where(near, 1.0, 20.0) * (factor + factor.T) / 2
    bandwidth = np.where(near, 10.0, 1.0) * factor
    return {
        "levels": [["" if a == b else "host" if near[a, b] else "cluster" for b in range(size)] for a in range(size)],
        "latency": [[None if a == b else float(latency[a, b]) for b in range(size)] for a in range(size)],
        "bandwidth": [[None if a == b else float(bandwidth[a, b]) for b in range(size)] for a in range(size)],
    }


def found_in(planted: dict[str, Any], what: str) -> set[tuple[int, int]]:
    return {(o.source, o.target) for o in find_outliers(what, planted[what], planted["levels"])}


@given(st.integers(0, 500))
def test_nothing_stands_out_among_equals(seed: int) -> None:
    planted = machines(3, 4, seed)
    assert found_in(planted, "latency") == set()
    assert found_in(planted, "bandwidth") == set()


@given(st.integers(0, 500), st.data())
def test_planted_slow_pairs_are_found_whichever_they_are(seed: int, data: Any) -> None:
    planted = machines(3, 4, seed)
    pair = st.lists(st.integers(0, 11), min_size=2, max_size=2, unique=True).map(tuple)
    slow = data.draw(st.sets(pair, min_size=1, max_size=3))
    for a, b in slow:
        planted["bandwidth"][a][b] /= 3
    assert found_in(planted, "bandwidth") == slow
    for a, b in slow:
        planted["latency"][a][b] = planted["latency"][b][a] = planted["latency"][a][b] * 4
    assert found_in(planted, "latency") == slow | {(b, a) for a, b in slow}


def test_a_slow_pair_is_compared_with_its_own_class() -> None:
    planted = machines(2, 4, noise=0.0)
    planted["bandwidth"][0][1] = 4.0  # on one host: more than any pair of two hosts has
    (slow,) = find_outliers("bandwidth", planted["bandwidth"], planted["levels"])
    assert slow == Outlier(0, 1, "bandwidth", 4.0, 10.0, "host")
    assert slow.factor == 2.5


def test_what_is_hardly_slower_does_not_stand_out_however_equal_the_others_are() -> None:
    planted = machines(1, 6, noise=0.0)
    planted["latency"][2][4] = planted["latency"][4][2] = 0.99 * FACTOR
    assert found_in(planted, "latency") == set()


def test_of_a_wide_spread_nothing_stands_out() -> None:
    planted = machines(1, 8, noise=0.0)
    rng = np.random.default_rng(1)
    for a in range(8):
        for b in range(8):
            if a != b:
                planted["latency"][a][b] = float(rng.uniform(1, 4))
    assert found_in(planted, "latency") == set()


def test_two_ranks_have_nothing_to_compare_with() -> None:
    assert (
        found_in({"levels": [["", "host"], ["host", ""]], "latency": [[None, 1.0], [900.0, None]]}, "latency") == set()
    )


def test_the_slowest_comes_first() -> None:
    planted = machines(2, 4)
    planted["bandwidth"][0][5] /= 3
    planted["bandwidth"][6][2] /= 9
    slow = find_outliers("bandwidth", planted["bandwidth"], planted["levels"])
    assert [(o.source, o.target) for o in slow] == [(6, 2), (0, 5)]
    assert slow[0].factor == pytest.approx(9, rel=0.2)


def test_a_rank_whose_pairs_are_all_slow_is_named() -> None:
    planted = machines(4, 2)
    for peer in range(8):
        if peer not in (2, 3):
            planted["latency"][3][peer] *= 5
            planted["latency"][peer][3] *= 5
    slow = find_outliers("latency", planted["latency"], planted["levels"])
    assert slow_ranks(slow, planted["levels"]) == [(3, "cluster", 6, 6)]


# ---------------------------------------------------------------- what is shown


@pytest.fixture
def pairs() -> tuple[Pairwise, list[Outlier]]:
    planted = machines(2, 3)
    planted["bandwidth"][1][4] /= 3
    planted["latency"][0][5] = planted["latency"][5][0] = 81.0
    levels = tuple(map(tuple, planted["levels"]))
    latency, bandwidth = (tuple(map(tuple, planted[what])) for what in ("latency", "bandwidth"))
    hosts = ("node<1>", "node<1>", "node<1>", "node2", "node2", "node2")
    slow = find_outliers("latency", latency, levels) + find_outliers("bandwidth", bandwidth, levels)
    return Pairwise(hosts, levels, latency, bandwidth, 4 << 20), slow


def test_the_tables_have_every_pair_and_name_the_slow_ones(pairs: tuple[Pairwise, list[Outlier]]) -> None:
    lines = text(*pairs, "TCP").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[0] for row in rows] == [str(rank) for rank in range(6)] * 2
    latency, bandwidth = pairs[0].latency_us, pairs[0].bandwidth_gb_per_s
    for matrix, part in ((latency, rows[:6]), (bandwidth, rows[6:])):
        for a, row in enumerate(part):
            assert row[1 + a] == "-"
            for b, cell in enumerate(row[1:]):
                assert b == a or float(cell) == pytest.approx(matrix[a][b], abs=0.051)
    (one, two) = [line for line in lines if line.startswith("# Slow: ")]
    assert one.startswith("# Slow: ranks 0 and 5, latency 81.00 us where ")
    assert one.endswith("of class cluster: 4.0 times slower")
    assert two.startswith("# Slow: ranks 1 to 4, bandwidth 0.3")
    assert lines[-1].split(" : ")[1] == "2"
    assert "# Host 1: node2, ranks 3, 4, 5" in lines


def test_the_json_has_the_matrices_and_the_outliers(pairs: tuple[Pairwise, list[Outlier]]) -> None:
    read = json.loads(json.dumps(document(*pairs), allow_nan=False))
    assert read["kind"] == "pairwise"
    assert read["hosts"] == list(pairs[0].hosts)
    assert read["latency_us"][0][5] == 81.0
    assert read["latency_us"][2][2] is None
    assert {(o["from"], o["to"], o["what"]) for o in read["outliers"]} == {
        (0, 5, "latency"),
        (5, 0, "latency"),
        (1, 4, "bandwidth"),
    }
    for o in read["outliers"]:
        assert o["value"] == read["latency_us" if o["what"] == "latency" else "bandwidth_gb_per_s"][o["from"]][o["to"]]
        assert o["typical"] == pytest.approx(20.0 if o["what"] == "latency" else 1.0, rel=0.1)


def test_the_picture_has_a_cell_for_each_pair_and_a_frame_for_each_slow_one(
    pairs: tuple[Pairwise, list[Outlier]],
) -> None:
    root = ET.fromstring(picture(*pairs))
    rects = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    tooltips = [next(iter(rect)).text or "" for rect in rects if len(rect)]
    assert len(tooltips) == 2 * 6 * 6
    assert sum("no figure" in tooltip for tooltip in tooltips) == 2 * 6  # a rank and itself
    assert sum("out" in (rect.get("class") or "").split() for rect in rects) == 3
    assert sum("stands out" in tooltip for tooltip in tooltips) == 3
    shade = {next(iter(rect)).text or "": (rect.get("class") or "").split()[1] for rect in rects if len(rect)}
    slowest = [tooltip for tooltip, name in shade.items() if name == "h6"]
    assert any("from rank 0 to 5" in tooltip or "from rank 1 to 4" in tooltip for tooltip in slowest)
    assert "none" not in {name for tooltip, name in shade.items() if "no figure" not in tooltip}


@pytest.mark.parametrize("size", [1, 2, 100])
def test_any_number_of_ranks_can_be_drawn(size: int) -> None:
    planted = machines(1, size)
    rows = {what: tuple(map(tuple, planted[what])) for what in ("levels", "latency", "bandwidth")}
    found = Pairwise(("node",) * size, rows["levels"], rows["latency"], rows["bandwidth"], 1024)
    root = ET.fromstring(picture(found, []))
    assert float(root.get("width", "0")) < 1500
    assert "0" in text(found, [], "alone").splitlines()[-1]


# ---------------------------------------------------------------- the command line


def test_the_flags() -> None:
    options = parse(
        ["--ranks", "3", "--transport", "tcp", "-e", "64K", "--json", "a", "--svg", "b", "--report", "c.md"], "bench"
    )
    assert options == (3, "tcp", 64 << 10, "a", "b", "c.md", 60.0)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ranks", "0"], "--ranks 0"),
        (["--ranks", "x"], "invalid int"),
        (["-e", "0"], "from 1 byte"),
        (["-e", "4T"], "not a size"),
        (["-e", "2G"], "from 1 byte to 1G"),
        (["--transport", "smoke"], "invalid choice"),
        (["--timeout", "-1"], "--timeout"),
        (["--report", "a.pdf"], "must end with one of .html"),
        (["--svg", "/no/such/a.svg"], "--svg /no/such/a.svg: there is no folder /no/such"),
        (["all_reduce"], "unrecognized"),
    ],
)
def test_flags_that_make_no_sense_are_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv, "python -m bench pairwise")
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
