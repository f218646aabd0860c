"""`python -m topology` shows a cluster as a matrix, as a file and as a picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from topology import Cluster, Wire, graph, load, parse_preset
from topology.__main__ import main
from topology.files import from_json
from topology.picture import svg

ROOT = Path(__file__).resolve().parents[2]

MATRIX = """\
Cluster hosts(2, 2): 4 ranks on 2 hosts, 12 links

   0     1     2     3
0  X    HOST  NET   NET
1 HOST   X    NET   NET
2 NET   NET    X    HOST
3 NET   NET   HOST   X

X     itself
HOST  the same host: 1 us, 10 GB/s
NET   the network: 20 us, 3 GB/s
"""


def test_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", 'hosts(2, 2, network_bandwidth_bytes_per_s="3 GB/s")']) == 0
    assert capsys.readouterr().out == MATRIX


def test_a_torus_counts_links(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "torus(3)"])
    assert "0 X  1  1\n1 1  X  1\n2 1  1  X\n" in capsys.readouterr().out


def test_of_a_large_cluster_the_first_ranks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "hosts(1024, 8)"])
    assert "the first 32 of 8192 ranks" in capsys.readouterr().out


def test_json_comes_back_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "wan([(2, 4), (1, 2)])", "--json"])
    (tmp_path / "wan.json").write_text(capsys.readouterr().out)
    main([str(tmp_path / "wan.json"), "--json"])
    again = from_json(capsys.readouterr().out, "again")
    assert again == load("wan([(2, 4), (1, 2)])") == load(tmp_path / "wan.json") == Cluster.load(tmp_path / "wan.json")


def test_this_machine_in_a_process_of_its_own() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "topology"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert said.startswith("Cluster ")
    assert re.search(r"^ *0 +X", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "hsts(2)"], "there is no preset 'hsts'"),
        (["no-such-file.json"], "No such file"),
        (["BROKEN"], "BROKEN:1: this is not JSON"),
        (["--preset", "ring(2)", "--svg", "/no/such/folder/x.svg"], "No such file"),
        (["--preset", "ring(2)", "x.json"], "give a file or --preset, not both"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("BROKEN").write_text("{,}")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def texts(drawing: str) -> list[str]:
    return [
        "".join(node.itertext()) for node in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize(
    "preset",
    [
        "ring(1)",
        "ring(9)",
        "hosts(3, 4, nics=2)",
        "wan([(2, 4), (1, 2)])",
        "torus(2, 3, 4)",
        "twisted_torus(4, 2, 4)",
        "fat_tree(4)",
        "dragonfly(3, 2)",
        "dgx_h100(2)",
    ],
)
def test_every_rank_is_drawn_once(preset: str) -> None:
    cluster = parse_preset(preset)
    drawn = texts(svg(cluster))
    ranks = re.findall(r'text-anchor="middle"[^>]*>(\d+)<', svg(cluster))
    assert sorted(map(int, ranks)) == list(range(cluster.size))
    assert drawn[0].startswith(cluster.name)


def test_a_drawing_names_the_ends_of_links_that_go_round() -> None:
    drawing = svg(parse_preset("twisted_torus(2, 4, 4)"))
    assert "rank 16 to rank 10" in drawing  # (1, 0, 0) is linked to (0, 2, 2)


def test_a_graph_is_drawn_with_its_links(tmp_path: Path) -> None:
    wires = [Wire(rank, "a <switch>", 1e-6, 25e9, kind="PCI") for rank in "xy"]
    graph(["x", "y"], wires).save(tmp_path / "lab.json")
    main([str(tmp_path / "lab.json"), "--svg", str(tmp_path / "lab.svg")])
    drawing = (tmp_path / "lab.svg").read_text()
    assert {"0: x", "1: y", "a <switch>"} <= set(texts(drawing))
    assert drawing.count("25 GB/s, 1 us</title>") == 2


def test_of_a_large_cluster_the_first_groups_are_drawn() -> None:
    drawing = svg(parse_preset("hosts(1000, 100)"))
    assert "... and 984 more hosts" in drawing
    assert "... and 36 more ranks" in drawing
    assert len(drawing) < 500_000
