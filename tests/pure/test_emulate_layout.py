"""The layout of an emulated cluster: what is refused before anything is made, and where ranks and hosts are."""

from __future__ import annotations

from typing import Any

import pytest

import topology
from bench.emulate import EmulatedCluster, Layout
from bench.emulate.model import spelled
from bench.emulate.rates import parse_rate, spell_rate

RATES = {"200mbit": 25e6, "1gbit": 125e6, "1.5 gbit": 187.5e6, "64000kbit": 8e6, "10GBIT": 1.25e9}


@pytest.mark.parametrize(("text", "bytes_per_s"), RATES.items())
def test_rates_are_decimal_bits(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s
    assert parse_rate(spell_rate(bytes_per_s)) == bytes_per_s


@pytest.mark.parametrize("text", ["", "200", "mbit", "-1mbit", "200mb", "200mbps", "1e3mbit", "nanmbit", "200 m bit"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate; write a number and one of kbit, mbit, gbit, such as 200mbit"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0mbit", "999kbit", "500gbit"])
def test_rates_that_no_link_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a link has 1mbit to 400gbit"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hosts": 0}, "0 hosts: there may be 1 to 250"),
        ({"hosts": 251}, "251 hosts"),
        ({"ranks_per_host": 0}, "0 ranks on each"),
        ({"hosts": 250, "ranks_per_host": 5}, "1 to 1024 in all"),
        ({"racks": 5, "uplink_bytes_per_s": 1e6}, "5 racks for 4 hosts"),
        ({"racks": 2}, "racks are joined by uplinks"),
        ({"uplink_bytes_per_s": 1e6}, "racks are joined by uplinks"),
        ({"placement": "random"}, "placement 'random' is not known; there are contiguous, round_robin"),
        ({"link_bytes_per_s": 0.0}, "link: a link has"),
        ({"link_bytes_per_s": float("nan")}, "link: a link has"),
        ({"racks": 2, "uplink_bytes_per_s": -1.0}, "uplink: a link has"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(wrong: dict[str, Any], message: str) -> None:
    right = {"hosts": 4, "ranks_per_host": 2, "link_bytes_per_s": 25e6}
    with pytest.raises(ValueError, match=message):
        EmulatedCluster(**{**right, **wrong})


def test_ranks_fill_hosts_or_go_around_them() -> None:
    assert [Layout(3, 2, 25e6).host_of(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [Layout(3, 2, 25e6, placement="round_robin").host_of(rank) for rank in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("hosts", "racks", "where"), [(4, 1, [0] * 4), (4, 2, [0, 0, 1, 1]), (5, 3, [0, 0, 1, 1, 2]), (3, 3, [0, 1, 2])]
)
def test_racks_hold_neighbours_and_nearly_as_many(hosts: int, racks: int, where: list[int]) -> None:
    layout = Layout(hosts, 1, 25e6, racks)
    assert [layout.rack_of(host) for host in range(hosts)] == where


def test_hosts_with_other_links_have_other_names() -> None:
    layouts = (Layout(4, 1, 25e6), Layout(4, 1, 125e6), Layout(4, 1, 25e6, 2, 25e6), Layout(4, 1, 25e6, 2, 125e6))
    assert len({layout.host_name(host) for layout in layouts for host in range(4)}) == 16


def test_the_model_of_a_layout_has_its_hosts_racks_and_rates() -> None:
    cluster = topology.load(spelled(Layout(5, 2, 25e6, 2, 10e6, "round_robin")))
    assert cluster.groups == (((0, 5), (1, 6), (2, 7)), ((3, 8), (4, 9)))
    assert cluster.bandwidth_bytes_per_s(0, 1) == pytest.approx(25e6 * 8948 / 9014)
    assert cluster.bandwidth_bytes_per_s(0, 3) == pytest.approx(10e6 * 8948 / 9014)
    assert cluster.bandwidth_bytes_per_s(0, 5) > 1e9
    assert topology.load(spelled(Layout(2, 1, 25e6))).hosts == ((0,), (1,))
