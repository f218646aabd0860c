"""`bench simulate`: its table says what the simulator finds, and what makes no sense is refused beforehand."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import collectives as cc
from bench import cli
from bench.simulate import contestants, tracing
from bench.simulate.clusters import fill, make
from bench.simulate.formula import ring_price
from collectives.choose import Chooser
from collectives.plan import COLLECTIVES, Plan, plan
from collectives.simulate import simulate
from topology import Cluster, presets

KIB, MIB = 1 << 10, 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


def run(*flags: str) -> int:
    return cli.main(["simulate", *flags])


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The message of a command line that makes no sense."""
    with pytest.raises(SystemExit) as left:
        run(*flags)
    assert left.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def results(path: Path) -> dict[tuple[int, int, str], dict[str, Any]]:
    document = json.loads(path.read_text())
    return {(r["ranks"], r["size_bytes"], r["algorithm"]): r for r in document["results"]}


def test_the_table_says_what_the_simulator_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = presets.hosts(2, 4)
    flags = ("--cluster", "hosts(2, 4)", "-b", "1K", "-e", "1M", "-f", "1024", "--segment", "16K")
    assert run(*flags, "--ports", "one_port", "-J", str(tmp_path / "r.json")) == 0
    found = results(tmp_path / "r.json")
    assert {name for _, _, name in found} == set(cc.algorithms("all_reduce")) - {"torus"}
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(rows) == len(found) == 2 * (len(cc.algorithms("all_reduce")) - 1)
    for (ranks, nbytes, name), row in found.items():
        expected = simulate(
            plan("all_reduce", name, 8, 0, cluster.groups), cluster, nbytes, segment_bytes=16 * KIB, ports="one_port"
        )
        assert row["time_us"] == pytest.approx(expected.time_s * 1e6)
        assert (row["link"], row["link_bytes"]) == expected.busiest
        assert row["algbw"] == pytest.approx(nbytes / expected.time_s / 1e9)
        assert row["busbw"] == pytest.approx(row["algbw"] * 2 * 7 / 8)
        printed = next(words for words in rows if words[1:3] == [str(nbytes), name])
        assert float(printed[3]) == pytest.approx(row["time_us"], abs=0.0051)
        assert float(printed[6]) == pytest.approx(row["link_bytes"], abs=0.5)
        assert " ".join(printed[7:]) == row["link"]
        assert int(printed[0]) == ranks == 8


def test_the_header_says_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cluster", "ring(4)", "--collective", "broadcast", "-r", "3", "-b", "1K", "-e", "1K") == 0
    told = capsys.readouterr().out
    assert "# Simulated: broadcast on ring(4), 4 ranks" in told
    assert "full duplex" in told
    assert "one at a time, first come first served; latencies overlap (overlapped)" in told


def test_auto_is_what_the_library_would_choose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--cluster", "hosts(4, 2)", "--algorithm", "auto,ring", "-b", "1K", "-e", "16M", "-f", "16384")
    assert run(*flags, "-J", str(tmp_path / "r.json")) == 0
    cluster = presets.hosts(4, 2)
    chooser = Chooser(cluster.groups, True)
    chooser.use(cluster=cluster)
    told = capsys.readouterr().out
    for nbytes in (KIB, 16 * MIB):
        name = chooser.choose("all_reduce", nbytes)
        assert f"auto: {name} " in told
        expected = simulate(plan("all_reduce", name, 8, 0, cluster.groups), cluster, nbytes)
        assert results(tmp_path / "r.json")[8, nbytes, "auto"]["time_us"] == pytest.approx(expected.time_s * 1e6)


def test_a_file_and_every_collective_can_be_simulated(tmp_path: Path) -> None:
    presets.hosts(2, 2).save(tmp_path / "cluster.json")
    for collective in COLLECTIVES:
        flags = ("--cluster", str(tmp_path / "cluster.json"), "--collective", collective, "-b", "0", "-e", "0")
        assert run(*flags, "-J", str(tmp_path / "r.json")) == 0
        assert all(row["time_us"] > 0 for row in results(tmp_path / "r.json").values())


def test_on_a_torus_its_own_algorithm_is_among_all(tmp_path: Path) -> None:
    flags = ("--cluster", "torus(2, 3, 2)", "-b", "64K", "-e", "64K", "-J", str(tmp_path / "r.json"))
    assert run(*flags) == 0
    every = {name for _, _, name in results(tmp_path / "r.json")}
    assert "torus(2x3x2)" in every
    assert "hierarchical" not in every
    assert run(*flags, "--algorithm", "torus") == 0
    assert {name for _, _, name in results(tmp_path / "r.json")} == {"torus(2x3x2)"}


@pytest.mark.parametrize(
    ("template", "ranks", "filled"),
    [
        ("hosts({n}/8, 8)", 64, "hosts(8, 8)"),
        ("torus({n} / 4 / 4, 2 * 2, 4)", 128, "torus(8, 4, 4)"),
        ("hosts({n}/6, 6, network_latency_s='5 us')", 12, "hosts(2, 6, network_latency_s='5 us')"),
        ("wan([({n}/4, 2), ({n}/4, 2)])", 16, "wan([(4, 2), (4, 2)])"),
    ],
)
def test_a_template_is_filled_with_the_number_of_ranks(template: str, ranks: int, filled: str) -> None:
    assert fill(template, ranks) == filled
    assert [cluster.size for cluster in make(template, [ranks])] == [ranks]


@pytest.mark.parametrize(
    ("template", "ranks", "message"),
    [
        ("hosts({n}/8, 8)", 12, r"12 / 8 is not a whole number"),
        ("hosts({n}/0, 8)", 8, r"8 / 0 is not a whole number"),
        ("hosts({n}, 8)", 8, r"is hosts\(8, 8\), which has 64 ranks"),
        ("hosts({n}**2, 8)", 8, r"8 \*\* 2: only \* and / are worked out"),
        ("hosts({n}*'a', 8)", 8, r"8 \* 'a' is not one of two whole numbers"),
        ("hosts({n}*9999999999, 8)", 8, r"at most 2\^31"),
        ("hosts({n}/8, ranks=open('x'))", 8, r"the arguments of a preset are numbers"),
        ("hosts({n}/8", 8, r"is not a preset"),
        ("hosts({n}/8, 8)", 0, r"0 is not a number of ranks from 1"),
        ("hosts({n}/8, 8)", 1 << 30, r"is not a number of ranks from 1"),
        ("hosts(2, 8)", 16, r"write \{n\}"),
    ],
)
def test_a_template_that_makes_no_sense(template: str, ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(template, [ranks])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cluster nowhere.json", "nowhere.json is no preset, such as hosts(4, 8), and no file"),
        ("--cluster hosts(2) --algorithm ring", "ranks"),
        ("--cluster hosts({n}/2,2)", "add --ranks"),
        ("--cluster hosts({n}/2,2) --ranks 2,x", "'2,x' is not whole numbers"),
        ("--cluster ring(4) --algorithm rings", "all_reduce has no algorithm 'rings'; there are: direct"),
        ("--cluster ring(4) --collective broad", "invalid choice: 'broad'"),
        ("--cluster ring(4) --collective broadcast -r 4", "root 4 is not a rank of 4"),
        ("--cluster ring(4) -r 1", "all_reduce has no root"),
        ("--cluster ring(4) -b 1M -e 1K", "-e 1K is below -b 1M"),
        ("--cluster ring(4) -b many", "'many' is not a size"),
        ("--cluster ring(4) -f 1", "-f 1"),
        ("--cluster ring(4) --segment 0", "--segment"),
        ("--cluster ring(4) --ports three", "invalid choice: 'three'"),
        ("--cluster ring(4) --svg /nowhere/at/all.svg", "there is no folder /nowhere/at"),
        ("--cluster ring(4) --svg a.svg -b 0 -e 0", "sizes above 0"),
        ("--cluster ring({n}) --ranks 4,8 --trace a.json", "--trace shows one cluster"),
        # Each of 64 ranks sends 63 blocks of 16 segments.
        (
            "--cluster ring(64) --collective all_gather --algorithm ring -b 64M -e 64M --trace a.json",
            "a trace of 64,512 segments",
        ),
        ("--cluster ring(64) --algorithm one_shot -b 1G -e 1G --segment 1", "larger segments (--segment)"),
        ("--cluster ring(100000) --algorithm direct -b 1K -e 1K", "direct on 100,000 ranks has about"),
        ("--cluster ring(8192) --algorithm ring --ports one_port", "ring on 8,192 ranks has about 536,805,376 steps"),
        ("--cluster ring(8192) --algorithm ring -b 1K -e 1K --trace a.json", "nothing to trace"),
    ],
)
def test_bad_command_lines(
    flags: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST_SEGMENTS", 10_000)
    assert message in refused(capsys, *flags.split())


ROUND_ROBIN = presets.hosts(4, 3, placement="round_robin")


@pytest.mark.parametrize(
    "cluster", [presets.ring(2), presets.hosts(3, 4), ROUND_ROBIN, presets.torus(3, 4, 2)], ids=str
)
def test_the_closed_form_of_the_ring_is_the_price_of_its_steps(cluster: Cluster) -> None:
    a_plan = plan("all_reduce", "ring", cluster.size, 0, None if cluster.shape else cluster.groups)
    expected, found = cc.price(a_plan, cluster), ring_price(a_plan, cluster)
    assert found.latency_s == pytest.approx(expected.latency_s)
    assert found.seconds_per_byte == pytest.approx(expected.seconds_per_byte)
    carried = simulate(a_plan, cluster, MIB).link_bytes
    assert found.link_share * MIB == pytest.approx(carried[found.link])


def test_ranks_that_are_too_many_to_simulate_go_by_the_closed_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants, "MOST_STEPS_OF_ALL", 3000)
    flags = ("--cluster", "hosts({n}/4, 4)", "--ranks", "8,64", "-b", "1K", "-e", "1K")
    assert run(*flags, "-J", str(tmp_path / "r.json"), "--svg", str(tmp_path / "r.svg")) == 0
    found = results(tmp_path / "r.json")
    assert found[8, KIB, "ring"]["closed_form"] is False
    assert found[64, KIB, "ring"]["closed_form"] is True
    simulated = simulate(plan("all_reduce", "ring", 64), presets.hosts(16, 4), KIB)
    assert found[64, KIB, "ring"]["time_us"] == pytest.approx(simulated.time_s * 1e6, rel=0.01)
    told = capsys.readouterr().out
    assert re.search(r"^ +64 +1024 +ring \* ", told, re.MULTILINE)
    assert re.search(r"# 64 ranks: one_shot is left out of all: it has about \S+ steps, and 3,000 are the most", told)
    assert "ring, closed form" in (tmp_path / "r.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "panels", "points"),
    [
        (
            ("--cluster", "hosts(2, 2)", "--algorithm", "ring,two_tree", "-b", "1K", "-e", "64K", "-f", "8"),
            2,
            2 * 2 * 3,
        ),
        (("--cluster", "ring({n})", "--ranks", "2,4,8,16", "--algorithm", "ring", "-b", "0", "-e", "0"), 1, 4),
        (("--cluster", "ring({n})", "--ranks", "2,4", "--algorithm", "ring", "-b", "8", "-e", "8K", "-f", "32"), 3, 6),
    ],
)
def test_a_picture_has_every_point(tmp_path: Path, flags: tuple[str, ...], panels: int, points: int) -> None:
    path = tmp_path / "picture.svg"
    assert run(*flags, "--svg", str(path)) == 0
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    plots = [element for element in root.iter(f"{SVG}svg") if element.get("class") == "plot"]
    assert len(plots) == panels
    marks = [element for plot in plots for element in plot.iter(f"{SVG}g") if element.get("class") == "mark"]
    assert len(marks) == points
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_what_takes_no_time_is_not_drawn_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.svg"
    assert run("--cluster", "ring(1)", "-b", "1K", "-e", "4K", "--svg", str(path)) == 1
    assert "--svg: there is nothing to draw" in capsys.readouterr().err
    assert not path.exists()


def test_a_trace_has_every_segment_at_both_ends_and_an_arrow_between(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    flags = ("--cluster", "hosts(2, 2)", "--algorithm", "two_tree,one_shot", "-b", "1K", "-e", "1M", "-f", "1024")
    assert run(*flags, "--segment", "128K", "--trace", str(path)) == 0
    events = json.loads(path.read_text())["traceEvents"]
    by_kind: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_kind[event["ph"]].append(event)
    cluster = presets.hosts(2, 2)
    names = {e["pid"]: e["args"]["name"] for e in by_kind["M"] if e["name"] == "process_name"}
    assert names[1] == "two_tree, rank 1"
    assert names[7] == "one_shot, rank 3"
    for number, name in enumerate(("two_tree", "one_shot")):
        found = simulate(plan("all_reduce", name, 4, 0, cluster.groups), cluster, MIB, segment_bytes=128 * KIB)
        mine = [e for e in by_kind["X"] if e["pid"] // 4 == number]
        assert max(e["ts"] + e["dur"] for e in mine) == pytest.approx(found.time_s * 1e6, abs=0.01)
        sent = [e for e in mine if e["cat"] == "send"]
        assert len(sent) == len([e for e in mine if e["cat"] == "recv"]) > 0
    assert len(by_kind["s"]) == len(by_kind["f"]) == len([e for e in by_kind["X"] if e["cat"] == "send"])


@pytest.mark.parametrize("preset", ["torus", "wan"])  # what takes seconds or gigabytes is left out
def test_the_tables_of_the_documentation_are_what_the_commands_print(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    blocks = re.findall(r"^```console\n\$ (.*?[^\\\n])\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ((command, shown),) = [block for block in blocks if f"--cluster '{preset}(" in block[0]]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:4] == ["python", "-m", "bench", "simulate"]
    flags = words[4 : words.index("--svg")]
    assert run(*flags) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line.split() for line in shown.splitlines() if line.strip() != "..." and "SVG" not in line]
    assert len(rows) > 10
    assert [row for row in rows if row not in printed] == []


@pytest.mark.parametrize("name", ["ring", "two_tree", "one_shot", "recursive_doubling"])
def test_segments_are_counted_before_they_move(name: str) -> None:
    a_plan: Plan = plan("all_reduce", name, 6)
    moved = list(simulate(a_plan, presets.ring(6), MIB, segment_bytes=50_000, trace=True).segments())
    assert tracing.segment_count(a_plan, MIB, 50_000) == len(moved)
    sent = sum(one.target is not None for one in moved)
    assert contestants.about_segments(a_plan, MIB, 50_000) == pytest.approx(sent, rel=0.25)
