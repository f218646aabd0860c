"""Clusters as files: what is written is read back equal, and what is wrong is named with its line."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology import Cluster, Device, Level, Wire, graph, parse_preset
from topology.presets import PRESETS, dgx_h100, dragonfly, fat_tree, hosts, ring, torus, tree, twisted_torus, wan
from topology.units import parse_bytes_per_s, parse_s, spell_bytes_per_s, spell_s

bandwidths = st.floats(1e-3, 1e15) | st.sampled_from([25e9, 12.5e9, 25e6, math.inf])
latencies = st.floats(0, 1e3) | st.sampled_from([0.0, 5e-6, 1e-3])
counts = st.integers(1, 4)


@st.composite
def trees(draw: st.DrawFn) -> Cluster:
    ranks = iter(draw(st.permutations(range(12))))
    sizes = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=2), min_size=1, max_size=2))
    groups = [[[next(ranks) for _ in range(n)] for n in rack] for rack in sizes]
    order = {rank: place for place, rank in enumerate(sorted(r for rack in groups for host in rack for r in host))}
    renamed = tuple(tuple(tuple(order[rank] for rank in host) for host in rack) for rack in groups)
    rack = Level("rack", draw(latencies), [draw(bandwidths) for _ in groups], draw(bandwidths), draw(counts))
    levels = [rack, Level("host", draw(latencies), draw(bandwidths))]
    return tree(renamed, levels, latency_s=draw(latencies), combine_bytes_per_s=draw(bandwidths))


@st.composite
def graphs(draw: st.DrawFn) -> Cluster:
    names = draw(st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=5))
    ranks = draw(st.integers(1, len(names)))
    wires = [Wire(names[0], other, draw(latencies), draw(bandwidths)) for other in names[1:]]
    wires.append(Wire(names[-1], "\n", draw(latencies), draw(bandwidths), one_way=True, kind="PCI"))
    return graph(names[:ranks], wires, combine_bytes_per_s=draw(bandwidths))


presets = st.one_of(
    st.builds(ring, counts, latency_s=latencies, bandwidth_bytes_per_s=bandwidths),
    st.builds(hosts, counts, counts, memory_bytes_per_s=bandwidths, placement=st.sampled_from(["round_robin"])),
    st.builds(torus, counts, counts, counts, combine_bytes_per_s=bandwidths),
    st.builds(lambda n: twisted_torus(n, 2 * n, n), st.integers(1, 2)),
    st.builds(fat_tree, st.just(4), counts, link_bandwidth_bytes_per_s=bandwidths),
    st.builds(dragonfly, counts, counts, counts, counts),
    st.builds(dgx_h100, counts),
    st.builds(
        lambda sites, s: wan(sites, site_latency_s=s), st.lists(st.tuples(counts, counts), min_size=1), latencies
    ),
)


@given(st.one_of(presets, trees(), graphs()), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back_equal(cluster: Cluster, described: bool) -> None:
    if described:
        devices = [Device("a", "2 NUMA nodes"), Device('NIC "x"', "µ", ("PIX",) * cluster.size)]
        cluster = cluster.described("our lab", devices)
    again = Cluster.from_json(cluster.to_json())
    assert again == cluster
    assert hash(again) == hash(cluster)
    assert again.to_json() == cluster.to_json()
    assert (again.name, again.devices, again.links) == (cluster.name, cluster.devices, cluster.links)
    assert again.kinds == cluster.kinds
    assert (again.groups, again.levels, again.shape) == (cluster.groups, cluster.levels, cluster.shape)
    assert again.combine_bytes_per_s == cluster.combine_bytes_per_s
    pairs = np.divmod(np.arange(cluster.size**2), cluster.size)
    for one, other in zip(again.routes(*pairs), cluster.routes(*pairs), strict=True):
        assert (one == other).all()


def test_clusters_that_differ_are_not_equal() -> None:
    assert hosts(2, 4) == hosts(2, 4)
    assert hosts(2, 4) != hosts(4, 2)
    assert hosts(2, 4) != hosts(2, 4, bandwidth_bytes_per_s=1e9)
    assert hosts(2, 4) != hosts(2, 4).described("another")


def test_a_file_is_read_and_written(tmp_path: Path) -> None:
    hosts(2, 4, network_bandwidth_bytes_per_s=25e6).save(tmp_path / "lab.json")
    assert '"network_bandwidth_bytes_per_s": "25 MB/s"' in (tmp_path / "lab.json").read_text()
    assert Cluster.load(tmp_path / "lab.json") == hosts(2, 4, network_bandwidth_bytes_per_s=25e6)
    (tmp_path / "lab.json").write_text("[]")
    with pytest.raises(ValueError, match=r"lab.json:1: expected a cluster"):
        Cluster.load(tmp_path / "lab.json")


def test_a_written_file_has_a_link_to_a_line() -> None:
    wires = [Wire("gpu 0000:42:00.0", "pci 0000:40:00.0", 5e-7, 24e9, kind="PCI"), Wire("b", "pci 0000:40:00.0", 1, 1)]
    lines = graph(["gpu 0000:42:00.0", "b"], wires, groups=((0,), (1,)), levels=["host"]).to_json().splitlines()
    assert len(lines) == 2 + 1 + 2 + len(wires) + 2  # braces, ranks, brackets of links, links, groups and levels
    assert '"latency_s": "500 ns", "bandwidth_bytes_per_s": "24 GB/s", "kind": "PCI"}' in lines[3]


def test_a_file_written_by_hand() -> None:
    cluster = Cluster.from_json(
        """
        {"name": "the lab",
         "groups": [[0, 2], [1]],
         "levels": [{"name": "host", "latency_s": "10 us", "bandwidth_bytes_per_s": ["200 Mbit/s", 1e9]}],
         "latency_s": 5e-7, "bandwidth_bytes_per_s": "10 GB/s"}
        """
    )
    assert cluster.name == "the lab"
    assert cluster.hosts == ((0, 2), (1,))
    assert cluster.latency_s(0, 1) == pytest.approx(21e-6)
    assert cluster.bandwidth_bytes_per_s(0, 1) == 25e6
    assert cluster.bandwidth_bytes_per_s(0, 2) == 10e9


GRAPH = '{"ranks": ["a", "b"],\n "links": [\n  %s,\n  %s]}'
LINK = '{"from": "a", "to": "%s", "latency_s": 0, "bandwidth_bytes_per_s": "1 GB/s"}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f.json:1: this is not JSON"),
        ('{"preset": "hosts",\n "arguments": {"hosts": 2', "f.json:2: this is not JSON"),
        ("[" * 5000, "f.json:?1?: (this is not JSON|nested too deeply)"),
        ("[" * 200 + "]" * 200, "f.json:1: nested too deeply"),
        ("7", "f.json:1: expected a cluster: an object with 'preset', with 'groups', or .*, not 7"),
        ('{"prest": "hosts"}', "f.json:1: expected a cluster"),
        ('{\n"preset": "hsts", "arguments": {}}', 'f.json:2: expected one of dgx_h100, dragonfly, .*, not "hsts"'),
        ('{"preset": "ring"}', "f.json:1: the key 'arguments' is missing"),
        ('{"preset": "ring",\n"arguments": {}}', "f.json:2: the key 'ranks' is missing"),
        ('{"preset": "ring",\n"arguments": {"ranks": 3,\n"rnks": 3}}', "f.json:3: unknown key 'rnks': .* ranks, lat"),
        ('{"preset": "ring",\n"arguments": {"ranks": 3,\n"ranks": 3}}', "f.json:3: the key 'ranks' stands twice"),
        ('{"preset": "ring",\n"arguments": {\n"ranks": "3"}}', "f.json:3: expected a whole number for ranks, not"),
        ('{"preset": "ring",\n"arguments": {\n"ranks": 0}}', "f.json:3: ring: ranks=0 must be a whole number of at"),
        ('{"preset": "hosts", "arguments": {"hosts": 2, "ranks": 2,\n"nics": 5}}', "f.json:2: hosts: nics=5 must not"),
        ('{"preset": "hosts", "arguments": {"hosts": 2, "ranks": 2,\n"placement": 5}}', "f.json:2: expected 'contig"),
        ('{"preset": "wan", "arguments": {"sites": [[1, 2],\n[1]]}}', "f.json:2: wan: site 1 is "),
        ('{"preset": "wan", "arguments": {"sites": 3}}', r"f.json:1: expected a list of \[hosts, ranks"),
        ('{"preset": "ring", "arguments": {"ranks": 2,\n"latency_s": -1}}', "f.json:2: .* time of 0 or more, not -1"),
        ('{"preset": "ring", "arguments": {"ranks": 2,\n"latency_s": "1 GB/s"}}', "f.json:2: .* expected seconds, or"),
        ('{"preset": "ring", "arguments": {"ranks": 2,\n"bandwidth_bytes_per_s": "-1 GB/s"}}', "f.json:2: .* above 0"),
        ('{"preset": "ring", "arguments": {"ranks": 2,\n"bandwidth_bytes_per_s": NaN}}', "f.json:2: .* above 0"),
        (
            '{"preset": "ring", "arguments": {"ranks": 2,\n"bandwidth_bytes_per_s": true}}',
            "f.json:2: .* a text such as",
        ),
        ('{"groups": [[0, 1],\n[2,\n1]],\n"levels": []}', "f.json:3: rank 1 stands twice"),
        ('{"groups": [[0, 1],\n[2,\n"x"]],\n"levels": []}', 'f.json:3: expected a rank or a list of ranks, not "x"'),
        ('{"levels": [],\n"groups": [0, 2]}', "f.json:2: rank 1 is missing in the groups"),
        ('{"levels": [],\n"groups": [[0]]}', r"f.json:2: groups\[0\] is a group, but 0 levels are named"),
        ('{"groups": [0]}', "f.json:1: the key 'levels' is missing"),
        ('{"groups": [[0]], "levels": [\n{"name": "host"}]}', "f.json:2: the key 'latency_s' is missing"),
        (
            '{"groups": [[0]], "levels": [\n{"name": "host", "latency_s": [1, 2], "bandwidth_bytes_per_s": 1}]}',
            "f.json:2: level 'host': 2 values of latency_s for 1 groups",
        ),
        (GRAPH % (LINK % "b", LINK % "b"), "f.json:4: the link from a to b is there twice"),
        (GRAPH % (LINK % "c", LINK % "d"), "f.json:1: there is no path from a to b"),
        (GRAPH % (LINK % "a", LINK % "b"), "f.json:3: the link from a to a leads nowhere"),
        (GRAPH % (LINK % "b", '{"from": "a"}'), "f.json:4: the key 'to' is missing"),
        ('{"ranks": ["a"], "links": [], "devices": ["x"]}', "f.json:1: expected a device, not"),
        (
            '{"ranks": ["a"], "links": [],\n"devices": [{"name": "x", "about": "",\n"near": ["PIX", "PIX"]}]}',
            "f.json:3: expected 1 texts, one for each rank",
        ),
        ('{"ranks": ["a"], "links": [], "name": 5}', "f.json:1: expected a name, not 5"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Cluster.from_json(text, "f.json")


words = st.sampled_from(
    ["preset", "arguments", "groups", "levels", "links", "ranks", "hosts", "name", "latency_s", "sites", "ring", "wan"]
)
documents = st.recursive(
    st.none() | st.booleans() | st.floats() | words | st.text() | st.integers(-3, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(documents)
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_value_error_comes_of_any_json(document: Any) -> None:
    with contextlib.suppress(ValueError):
        Cluster.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("25 GB/s", 25e9),
        ("200 Mbit/s", 25e6),
        ("1GiB/s", 2**30),
        ("1.5e3 kB/s", 1.5e6),
        ("8 bit/s", 1),
        ("inf", math.inf),
    ],
)
def test_bandwidths_with_units(text: str, bytes_per_s: float) -> None:
    assert parse_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize(("text", "seconds"), [("5 us", 5e-6), ("5µs", 5e-6), ("0 s", 0), ("1.5ms", 1.5e-3), (7, 7.0)])
def test_times_with_units(text: Any, seconds: float) -> None:
    assert parse_s(text) == seconds


@given(st.floats(0, 1e6), st.floats(0, 1e18, exclude_min=True))
def test_units_are_written_only_where_they_are_exact(seconds: float, bytes_per_s: float) -> None:
    assert parse_s(spell_s(seconds)) == seconds
    assert parse_bytes_per_s(spell_bytes_per_s(bytes_per_s)) == bytes_per_s
    assert (spell_s(5e-6), spell_bytes_per_s(12.5e9)) == ("5 us", "12.5 GB/s")


def test_a_preset_as_text() -> None:
    assert parse_preset("hosts(4, 8)") == hosts(4, 8)
    assert parse_preset(" wan([(1, 2), (2, 2)], site_latency_s='5 ms')") == wan([(1, 2), (2, 2)], site_latency_s=5e-3)
    assert parse_preset("hosts(4, ranks=8, network_bandwidth_bytes_per_s='25 GB/s')").name == "hosts(4, 8)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts", "is not a preset: expected something like hosts"),
        ("hosts(4, 8", "is not a preset"),
        ("a.hosts(4, 8)", "is not a preset"),
        ("hosts(4, 8); ring(2)", "is not a preset"),
        ("lab(4)", "there is no preset 'lab': expected one of dgx_h100"),
        ("ring(__import__('os').getpid())", "the arguments of a preset are numbers, texts and lists"),
        ("ring(2 + len('ab'))", "the arguments of a preset are numbers"),
        ("ring(*[2])", "the arguments of a preset are numbers"),
        ("ring(b'2')", "the arguments of a preset are numbers"),
        ("ring(2, 3, 4, 5, 6)", "ring has the arguments ranks, latency_s"),
        ("ring(2, ranks=3)", "ranks is given twice"),
        ("ring(2, latency_s=1" + "0" * 400 + ")", "latency_s: expected seconds, .* not a number of that size"),
        ("ring(2, latency_s='1e99999999999999999999 s')", "latency_s: expected seconds, .* not a number of that size"),
        ("wan([(1, 1)], site_latency_s=[[1]])", "latency_s=.* must be a number, or one for each group"),
        ("ring(0)", "ranks=0 must be a whole number of at least 1"),
        ("ring(2, sped=3)", "unknown key 'sped'"),
        ("ring()", "the key 'ranks' is missing"),
        ("hosts(4, 8, bandwidth_bytes_per_s='fast')", "expected bytes per second, or a text such as"),
    ],
)
def test_a_text_that_is_no_preset_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_preset(text)


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_says_what_it_is(make: Any) -> None:
    assert len(make.__doc__) > 80
