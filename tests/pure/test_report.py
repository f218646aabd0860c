"""Reports tell what the JSON says, in three formats, and refuse what is no result by the name of its file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.cases import COLLECTIVES
from bench.cli import main
from bench.jsonfile import report
from bench.report import ReportError, write
from bench.report.lines import lines
from bench.report.read import Run, read_document
from bench.report.tables import FACTORS, glance
from bench.roof import Roof, busbw_per_link
from bench.table import Compared, Measured, Row


def row(size_bytes: int, algorithm: str = "ring", time_us: float = 10.0, predicted_us: float | None = None) -> Row:
    half = Measured(time_us, size_bytes / time_us / 1e3, 1.5 * size_bytes / time_us / 1e3, 0)
    return Row(size_bytes, size_bytes // 4, "float32", "sum", -1, half, half, algorithm, 20, predicted_us)


def document(**changes: Any) -> dict[str, Any]:
    config = {"collective": "all_reduce", "ranks": 4, "transport": "shm", **changes.pop("config", {})}
    made = report(
        **{
            "start_time": "2026-01-02 03:04:05",
            "end_time": "2026-01-02 03:04:06",
            "args": ["all_reduce", "-b", "1K"],
            "environment": {},
            "config": config,
            "rows": [row(1024), row(4096, time_us=20.0, predicted_us=25.0), row(1024, "two_tree", 5.0)],
            "compared": None,
            "about": {"versions": {"numpy": "2.4"}, "cpu": "a <fast> processor", "cores": 2},
            "roof": Roof("memory copy", "every rank copies", ((1024, 5.0), (4096, 8.0))),
            **changes,
        }
    )
    return json.loads(json.dumps(made))


PAIRWISE: dict[str, Any] = {
    "kind": "pairwise",
    "hosts": ["a", "a", "b"],
    "latency_us": [[None, 1.0, 20.0], [1.0, None, 21.0], [22.0, 20.0, None]],
    "bandwidth_gb_per_s": [[None, 8.0, 1.0], [8.0, None, 0.25], [1.0, 1.0, None]],
    "outliers": [{"from": 1, "to": 2, "what": "bandwidth", "value": 0.25, "typical": 1.0}],
}


def text_of(tmp_path: Path, suffix: str, *documents: Any) -> str:
    path = tmp_path / f"report{suffix}"
    write(str(path), [(f"{i}.json", made) for i, made in enumerate(documents)])
    return path.read_text()


def run_of(made: Any, name: str = "x.json") -> Run:
    run = read_document(name, made)
    assert isinstance(run, Run)
    return run


# ---------------------------------------------------------------- what is refused


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in document().items() if k != key}


def changed(place: str, value: Any) -> dict[str, Any]:
    """The document with one value changed; `place` as in `results.0.size`."""
    made: Any = document()
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    at = made
    for word in way:
        at = at[word]
    at[last] = value
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([1, 2], "is not the result of a run"),
        ({"hello": 1}, "is not the result of a run"),
        (without("version"), "is not the result of a run"),
        (without("config"), "config is not an object"),
        (changed("version", 2), "has version 2, and this reads version 3"),
        (changed("treering.schema", 99), "has schema 99 of treering, and this reads schema 1"),
        (changed("config.collective", "all_the_things"), "config.collective is 'all_the_things'"),
        (changed("config.ranks", 0), "config.ranks is 0"),
        (changed("results", []), "has no results"),
        (changed("results.1.size", -4), "results[1].size is not a whole number: -4"),
        (changed("results.0.in_place.time", float("nan")), "results[0].in_place.time is not a number: nan"),
        (changed("results.0.out_of_place", None), "results[0].out_of_place is not an object: None"),
        (changed("results.0", "row"), "results[0] is not an object"),
        ({**PAIRWISE, "hosts": ["a", "b"]}, "latency_us is not a 2 x 2 matrix"),
        ({**PAIRWISE, "hosts": []}, "hosts is empty"),
        ({**PAIRWISE, "outliers": [{**PAIRWISE["outliers"][0], "to": 7}]}, "an outlier from rank 1 to 7 of 3"),
    ],
)
def test_a_document_that_is_no_result_is_refused_by_name(made: Any, says: str) -> None:
    with pytest.raises(ReportError, match=re.escape(says)) as refused:
        read_document("some/file.json", made)
    assert str(refused.value).startswith("some/file.json: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"\xff\xfe", "is not text"),
    ],
)
def test_a_file_that_is_no_json_ends_the_command_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, says: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert main(["report", str(path), "-o", str(tmp_path / "out.html")]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert says in said
    assert not (tmp_path / "out.html").exists()


def test_a_file_that_is_not_there_and_a_format_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none.json"), "-o", str(tmp_path / "out.html")]) == 1
    assert "none.json: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "x.json", "-o", "out.pdf"])
    assert "must end with one of .html, .md, .csv" in capsys.readouterr().err


# ---------------------------------------------------------------- what is shown


def test_there_is_a_line_per_algorithm_and_contender_and_the_roof_and_the_prediction_beside_them() -> None:
    compared = [Compared(1024, "ring", 8.0, {"gloo": 300.0}), Compared(1024, "two_tree", 9.0, {"gloo": 300.0})]
    found = {line.name: line for line in lines([run_of(document(compared=compared))])}
    assert {name: line.kind for name, line in found.items()} == {
        "ring": "measured",
        "two_tree": "measured",
        "gloo": "contender",
        "ring, predicted": "prediction",
        "roof: memory copy": "roof",
    }
    assert found["ring"].time_us == ((1024, 8.0),)  # from the comparison, which alternates with the others
    assert found["gloo"].busbw == ((1024, pytest.approx(1024 / 300e-6 * 1.5 / 1e9)),)
    assert found["ring, predicted"].time_us == ((4096, 25.0),)
    assert found["ring, predicted"].style == found["ring"].style


def test_the_time_of_the_roof_is_the_one_that_gives_its_bandwidth() -> None:
    (roof,) = (line for line in lines([run_of(document())]) if line.kind == "roof")
    for (size, busbw), (_, time_us) in zip(roof.busbw, roof.time_us, strict=True):
        assert size / (time_us * 1e-6) * 2 * (4 - 1) / 4 == pytest.approx(busbw * 1e9)


def test_lines_are_named_by_what_they_differ_in() -> None:
    eight = document(config={"ranks": 8})
    names = [line.name for line in lines([run_of(document()), run_of(eight)]) if line.kind == "measured"]
    assert names == ["ring, 4 ranks", "two_tree, 4 ranks", "ring, 8 ranks", "two_tree, 8 ranks"]
    again = [run_of(document(), "before.json"), run_of(document(), "after.json")]
    names = [line.name for line in lines(again) if line.kind == "measured"]
    assert names == ["ring, before.json", "two_tree, before.json", "ring, after.json", "two_tree, after.json"]


def test_shares_of_the_roof_are_told_only_where_all_lines_have_the_same() -> None:
    low = document(config={"ranks": 8}, roof=Roof("link", "sent", ((1024, 0.5), (4096, 0.5))))
    for documents, told in (([document()], True), ([document(), low], False)):
        table = glance(lines([run_of(each) for each in documents]))
        assert all(bool(row[-1]) == told for row in table.rows)


def test_what_nccl_tests_has_is_enough() -> None:
    assert run_of(without("treering")).roof is None


def test_the_factors_that_are_shown_are_those_that_are_computed_with() -> None:
    assert FACTORS.keys() == COLLECTIVES.keys()
    for collective, traits in COLLECTIVES.items():
        for n in range(1, 9):
            shown = FACTORS[collective].replace("2 (", "2 * (")
            assert eval(shown, {"n": n}) == traits.bus_factor(n)


def test_the_link_bounds_what_crosses_it() -> None:
    """4 hosts of 2 ranks; S bytes, a link of 1: the time is what leaves a host, and busbw follows from it."""
    S, n, hosts = 8.0, 8, 4  # noqa: N806
    leaves = {
        "all_reduce": 2 * (hosts - 1) / hosts * S,
        "reduce_scatter": (hosts - 1) / hosts * S,
        "all_gather": (hosts - 1) / hosts * S,
        "broadcast": S,
        "all_to_all": 2 * (n - 2) * S / n,  # each of 2 ranks sends S / n to each of n - 2
    }
    for collective, nbytes in leaves.items():
        busbw = S / nbytes * COLLECTIVES[collective].bus_factor(n)
        assert busbw_per_link(collective, n, hosts) == pytest.approx(busbw)


# ---------------------------------------------------------------- formats


def test_the_page_fetches_nothing_and_allows_only_its_own_style_and_script(tmp_path: Path) -> None:
    page = text_of(tmp_path, ".html", document(), PAIRWISE)
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert " style=" not in page
    assert not re.search(r" on[a-z]+=", page)


HOSTILE = "<img src=x onerror=alert(1)>|`\"&'"


def test_nothing_in_a_file_becomes_markup(tmp_path: Path) -> None:
    made = document(
        rows=[row(1024, HOSTILE)],
        args=[HOSTILE],
        roof=Roof(HOSTILE, HOSTILE, ((1024, 1.0),)),
        compared=[Compared(1024, HOSTILE, 1.0, {HOSTILE: 2.0})],
        config={"transport": HOSTILE, "devices": [{"hostname": HOSTILE}]},
    )
    matrix = {**PAIRWISE, "hosts": [HOSTILE] * 3}
    page = text_of(tmp_path, ".html", made, matrix)
    assert "<img" not in page
    assert page.count("<script") == 1
    markdown = text_of(tmp_path, ".md", made, matrix)
    assert "<img" not in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_csv_has_a_line_for_each_figure(tmp_path: Path) -> None:
    compared = [Compared(1024, "ring", 8.0, {"gloo": 300.0})]
    found = list(csv.DictReader(io.StringIO(text_of(tmp_path, ".csv", document(compared=compared), PAIRWISE))))
    series = [line["series"] for line in found]
    assert {name: series.count(name) for name in dict.fromkeys(series)} == {
        "measured": 6,
        "predicted": 1,
        "compared": 1,
        "gloo": 1,
        "roof: memory copy": 2,
        "latency_us": 6,
        "bandwidth_gb_per_s": 6,
    }
    first = found[0]
    assert (first["file"], first["algorithm"], first["size_bytes"], first["time_us"]) == (
        "0.json", "ring", "1024", "10.0",
    )  # fmt: skip
    assert float(first["busbw_gb_per_s"]) == pytest.approx(0.1536)
    assert {line["value"] for line in found if (line["from"], line["to"]) == ("1", "2")} == {"21.0", "0.25"}


def test_markdown_has_the_tables_the_environment_and_the_formulas(tmp_path: Path) -> None:
    text = text_of(tmp_path, ".md", document(), PAIRWISE)
    assert "| ring | float | sum | -1 | 1024 | 256 | 10 | 0.102 | 0.154 | 0 | 10 | 0.102 | 0.154 | 0 |  |" in text
    assert "| CPU | a &lt;fast&gt; processor |" in text
    assert "| 1 to 2 | a to b | bandwidth | 0.25 | 1 | 4.00 |" in text
    assert "| all\\_reduce | 2 (n - 1) / n |" in text


def test_the_command_makes_one_page_of_several_files(tmp_path: Path) -> None:
    for name, made in (("a.json", document()), ("b.json", PAIRWISE)):
        (tmp_path / name).write_text(json.dumps(made))
    out = tmp_path / "out.html"
    assert main(["report", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "-o", str(out)]) == 0
    assert out.read_text().count('class="plot"') == 2
    assert out.read_text().count('class="heat"') == 2


def test_one_size_is_shown_by_a_mark_and_the_roof_by_a_dash(tmp_path: Path) -> None:
    page = text_of(tmp_path, ".html", document(rows=[row(1024)], roof=Roof("memory copy", "how", ((1024, 5.0),))))
    for kind in ("measured", "roof"):
        ways = re.findall(rf'class="line {kind}[^>]*><path class="way" d="M[\d.]+ [\d.]+h48"', page)
        assert len(ways) == 2


def test_a_barrier_has_a_table_and_no_plot(tmp_path: Path) -> None:
    half = Measured(3.0, 0.0, 0.0, None)
    barrier = Row(0, 0, "float32", "none", -1, half, None, "dissemination", 20)
    page = text_of(tmp_path, ".html", document(rows=[barrier], roof=None, config={"collective": "barrier"}))
    assert 'class="plot"' not in page
    assert "At a glance" not in page
    assert "dissemination" in page
