"""The clusters that come by name: their links, and the paths that ranks take over them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from topology import Cluster, Level, Wire, graph
from topology.presets import dgx_h100, dragonfly, fat_tree, hosts, ring, torus, tree, twisted_torus, wan

ALL = [
    ring(1),
    ring(2),
    ring(7),
    ring(8),
    hosts(1, 1),
    hosts(3, 4, memory_bytes_per_s=20e9),
    hosts(3, 4, nics=2, placement="round_robin"),
    tree(((0, 5), (1,), (2, 4, 3)), [Level("host", 1e-6, 10e9)]),
    tree((((0, 4), (1,)), ((2, 3, 5),)), [Level("rack", 1e-6, 40e9), Level("host", 1e-6, [10e9, 5e9, 20e9])]),
    tree((0, 1, 2), []),
    torus(2, 2, 2),
    torus(3, 1, 4),
    torus(4, 4, 4),
    twisted_torus(2, 2, 4),
    twisted_torus(3, 6, 3),
    twisted_torus(4, 2, 4),
    fat_tree(2),
    fat_tree(4, 2),
    fat_tree(6),
    dragonfly(1, 1, 2),
    dragonfly(5, 2, 2, 2),
    dragonfly(4, 3),
    dgx_h100(2),
    wan([(2, 2), (1, 3), (2, 1)]),
    graph(["a", "b", "c"], [Wire("a", "s", 1e-6, 1e9), Wire("s", "b", 1e-6, 1e9), Wire("c", "s", 2e-6, 5e8)]),
]


def pairs(cluster: Cluster) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(cluster.size**2), cluster.size)


def hops(cluster: Cluster) -> np.ndarray:
    return np.diff(cluster.routes(*pairs(cluster))[0]).reshape(cluster.size, cluster.size)


def names(cluster: Cluster, source: int, target: int) -> list[str]:
    return [cluster.links[number].name for number in cluster.path(source, target)]


@pytest.mark.parametrize("cluster", ALL, ids=lambda cluster: cluster.name)
def test_every_link_is_used_and_paths_are_as_long_both_ways(cluster: Cluster) -> None:
    used = set(cluster.routes(*pairs(cluster))[1].tolist())
    if cluster.size > 1:
        assert used == set(range(len(cluster.links)))
    assert len({link.name for link in cluster.links}) == len(cluster.links)
    assert (hops(cluster) == hops(cluster).T).all()
    assert sorted(rank for host in cluster.hosts for rank in host) == list(range(cluster.size))


@pytest.mark.parametrize("cluster", ALL, ids=lambda cluster: cluster.name)
def test_one_path_is_what_many_at_once_are(cluster: Cluster) -> None:
    offsets, numbers = cluster.routes(*pairs(cluster))
    assert offsets.dtype == np.int64
    assert numbers.dtype == np.int32
    for i, (source, target) in enumerate(zip(*pairs(cluster), strict=True)):
        assert cluster.path(source, target) == tuple(numbers[offsets[i] : offsets[i + 1]])
    assert cluster.path(0, 0) == ()
    assert cluster.latency_s(0, 0) == 0
    assert cluster.bandwidth_bytes_per_s(0, 0) == math.inf


def test_a_message_between_hosts_passes_both_ports_and_both_nics() -> None:
    cluster = hosts(2, 2, latency_s=1e-6, network_latency_s=5e-6, network_bandwidth_bytes_per_s=3e9)
    assert cluster.groups == ((0, 1), (2, 3))
    assert cluster.levels == ("host",)
    assert names(cluster, 0, 1) == ["rank 0.out", "rank 1.in"]
    assert names(cluster, 1, 2) == ["rank 1.out", "host0.up", "host1.down", "rank 2.in"]
    assert cluster.latency_s(0, 1) == pytest.approx(1e-6)
    assert cluster.latency_s(1, 2) == pytest.approx(5e-6)
    assert cluster.bandwidth_bytes_per_s(0, 1) == 10e9
    assert cluster.bandwidth_bytes_per_s(1, 2) == 3e9


def test_shared_memory_is_a_link_of_its_host_for_what_stays_inside() -> None:
    cluster = hosts(2, 3, memory_bytes_per_s=7e9)
    assert names(cluster, 4, 5) == ["rank 4.out", "host1.inside", "rank 5.in"]
    assert "host0.inside" not in names(cluster, 0, 5)
    assert cluster.bandwidth_bytes_per_s(4, 5) == 7e9


def test_ranks_take_the_nics_of_their_host_in_turn() -> None:
    cluster = hosts(2, 4, nics=2)
    assert names(cluster, 3, 6) == ["rank 3.out", "host0.nic1.up", "host1.nic0.down", "rank 6.in"]


def test_round_robin_deals_ranks_to_hosts_like_cards() -> None:
    assert hosts(3, 2, placement="round_robin").hosts == ((0, 3), (1, 4), (2, 5))


def test_a_message_climbs_no_higher_than_it_must() -> None:
    levels = [Level("site", 1e-3, 1e9), Level("rack", 2e-6, 40e9, inside_bytes_per_s=80e9), Level("host", 1e-6, 10e9)]
    cluster = tree(((((0,), (1,)), ((2, 3),)), (((4,),),)), levels, latency_s=1e-7)
    assert names(cluster, 2, 3) == ["rank 2.out", "rank 3.in"]
    assert names(cluster, 0, 1) == ["rank 0.out", "host0.up", "rack0.inside", "host1.down", "rank 1.in"]
    assert names(cluster, 0, 2) == ["rank 0.out", "host0.up", "rack0.up", "rack1.down", "host2.down", "rank 2.in"]
    assert names(cluster, 3, 4) == [
        *("rank 3.out", "host2.up", "rack1.up", "site0.up"),
        *("site1.down", "rack2.down", "host3.down", "rank 4.in"),
    ]
    assert cluster.latency_s(3, 4) == pytest.approx(2 * (1e-7 + 1e-6 + 2e-6 + 1e-3))
    assert cluster.hosts == ((0,), (1,), (2, 3), (4,))


def test_a_ring_goes_the_shorter_way() -> None:
    cluster = ring(7)
    assert names(cluster, 6, 1) == ["x+ of rank 6", "x+ of rank 0"]
    assert names(cluster, 0, 5) == ["x- of rank 0", "x- of rank 6"]
    assert hops(ring(8)).max() == 4
    assert cluster.shape == (7,)


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 5, 2), (1, 6, 1), (2, 2, 2), (1, 1, 1)])
def test_torus_distances_add_up_over_its_dimensions(shape: tuple[int, int, int]) -> None:
    cluster = torus(*shape)
    at = np.stack(np.unravel_index(np.arange(cluster.size), shape))
    apart = np.abs(at[:, :, None] - at[:, None, :])
    around = np.array(shape)[:, None, None] - apart
    assert (hops(cluster) == np.minimum(apart, around).sum(axis=0)).all()
    assert len(cluster.links) == cluster.size * sum(min(length - 1, 2) for length in shape)


@pytest.mark.parametrize("shape", [(2, 2, 4), (3, 3, 6), (4, 4, 8), (2, 4, 4), (3, 6, 6), (6, 3, 3)])
def test_twisted_distances_are_those_of_a_search_over_its_wires(shape: tuple[int, int, int]) -> None:
    cluster = twisted_torus(*shape)
    distances = hops(cluster)
    short = min(shape)
    for start in (0, cluster.size - 1):
        found = {start: 0}
        queue = deque([start])
        while queue:
            rank = queue.popleft()
            point = np.array(np.unravel_index(rank, shape))
            for axis in range(3):
                for step in (1, -1):
                    other = point.copy()
                    other[axis] += step
                    if shape[axis] == short and not 0 <= other[axis] < short:  # half way round each long dimension
                        other += [short * (length > short) for length in shape]
                    number = int(np.ravel_multi_index(tuple(other % shape), shape))
                    if number not in found:
                        found[number] = found[rank] + 1
                        queue.append(number)
        assert [found[rank] for rank in range(cluster.size)] == distances[start].tolist()


@pytest.mark.parametrize("cluster", [torus(3, 4, 2), torus(5, 1, 2), twisted_torus(2, 4, 2), twisted_torus(3, 3, 6)])
def test_each_link_of_a_path_begins_where_the_last_one_ended(cluster: Cluster) -> None:
    shape = np.array(cluster.shape or [cluster.spec["arguments"][axis] for axis in "xyz"])
    for source, target in zip(*pairs(cluster), strict=True):
        point = np.array(np.unravel_index(source, shape))
        for name in names(cluster, source, target):
            assert name[6:] == f"({', '.join(map(str, point))})"
            axis = "xyz".index(name[0])
            point[axis] += 1 if name[1] == "+" else -1
            if cluster.shape is None and shape[axis] == shape.min() and not 0 <= point[axis] < shape[axis]:
                point += np.where(shape > shape.min(), shape.min(), 0)
            point %= shape
        assert np.ravel_multi_index(tuple(point), tuple(shape)) == target


@pytest.mark.parametrize(("shape", "at_least"), [((4, 4, 8), 1.4), ((4, 8, 8), 1.25)])
def test_twisting_relieves_the_busiest_link_of_an_all_to_all(shape: tuple[int, int, int], at_least: float) -> None:
    """Jouppi et al., ISCA 2023, figure 6, measured 1.63 and 1.31 times the throughput on TPU v4."""

    def busiest(cluster: Cluster) -> int:
        return int(np.bincount(cluster.routes(*pairs(cluster))[1]).max())

    # A plain torus is limited by its longest dimension: half of all pairs cross one of its two cuts, evenly spread.
    assert busiest(torus(*shape)) == math.prod(shape) * max(shape) // 8
    assert busiest(torus(*shape)) / busiest(twisted_torus(*shape)) >= at_least


def test_a_fat_tree_carries_every_shift_without_sharing_a_link() -> None:
    """Full bisection: with one rank a host, all ranks send at once to the one k further, and no two paths meet."""
    for cluster in (fat_tree(4), fat_tree(8)):
        ranks = np.arange(cluster.size)
        for shift in range(1, cluster.size):
            assert np.bincount(cluster.routes(ranks, (ranks + shift) % cluster.size)[1]).max() == 1
    assert fat_tree(8).size == 8**3 // 4


def test_a_fat_tree_climbs_no_higher_than_it_must() -> None:
    cluster = fat_tree(4, 2)
    assert names(cluster, 0, 1) == ["rank 0.out", "rank 1.in"]
    assert names(cluster, 0, 2) == ["rank 0.out", "host0.up", "host1.down", "rank 2.in"]
    assert names(cluster, 0, 6) == [
        *("rank 0.out", "host0.up", "pod0.edge0.aggregation1.up"),
        *("pod0.edge1.aggregation1.down", "host3.down", "rank 6.in"),
    ]
    assert names(cluster, 0, 31)[2:6] == [
        *("pod0.edge0.aggregation1.up", "pod0.aggregation1.core1.up"),
        *("pod3.aggregation1.core1.down", "pod3.edge1.aggregation1.down"),
    ]
    assert cluster.levels == ("pod", "switch", "host")
    assert cluster.groups[0][0] == ((0, 1), (2, 3))


def test_a_dragonfly_crosses_one_global_link_and_at_most_two_local_ones() -> None:
    cluster = dragonfly(5, 2)  # each router has two global links: of group 0 to groups 1, 2 and to groups 3, 4
    assert names(cluster, 0, 1) == [*("rank 0.out", "host0.up", "group0.router0 to router1", "host1.down", "rank 1.in")]
    # Group 3 reaches group 0, the second after it, by its router 0; group 0 reaches group 3, the third, by router 1.
    assert names(cluster, 0, 7) == [
        *("rank 0.out", "host0.up", "group0.router0 to router1"),
        *("group0 to group3", "group3.router0 to router1", "host7.down", "rank 7.in"),
    ]
    load = np.bincount(cluster.routes(*pairs(cluster))[1], minlength=len(cluster.links))
    assert {int(n) for n, link in zip(load, cluster.links, strict=True) if link.name.startswith("group0 to")} == {4}


def test_dgx_h100_has_a_nic_for_each_gpu() -> None:
    cluster = dgx_h100(2)
    assert names(cluster, 3, 13) == ["rank 3.out", "host0.nic3.up", "host1.nic5.down", "rank 13.in"]
    assert cluster.bandwidth_bytes_per_s(0, 7) == 450e9
    assert cluster.bandwidth_bytes_per_s(0, 8) == 50e9


def test_sites_have_links_of_their_own() -> None:
    cluster = wan([(1, 2), (1, 1)], site_latency_s=[5e-3, 20e-3], site_bandwidth_bytes_per_s=[1e9, 2e9])
    assert names(cluster, 1, 2) == [*("rank 1.out", "host0.up", "site0.up", "site1.down", "host1.down", "rank 2.in")]
    assert cluster.latency_s(1, 2) == pytest.approx(25e-3 + 20e-6)
    assert cluster.bandwidth_bytes_per_s(1, 2) == 1e9
    assert cluster.groups == (((0, 1),), ((2,),))


def test_a_graph_takes_the_path_of_least_latency_then_fewest_links_then_the_widest() -> None:
    wires = [
        *(Wire("a", "slow", 5e-6, 9e9), Wire("slow", "b", 5e-6, 9e9)),
        *(Wire("a", "narrow", 1e-6, 1e9), Wire("narrow", "b", 1e-6, 1e9)),
        *(Wire("a", "wide", 1e-6, 2e9), Wire("wide", "b", 1e-6, 2e9)),
        *(Wire("a", "x", 1e-6, 9e9), Wire("x", "y", 0, 9e9), Wire("y", "b", 1e-6, 9e9)),
        Wire("b", "a", 1e-6, 4e9, one_way=True),
    ]
    cluster = graph(["a", "b"], wires)
    assert names(cluster, 0, 1) == ["a to wide", "wide to b"]
    assert names(cluster, 1, 0) == ["b to a"]


def test_a_million_routes_take_about_a_second() -> None:
    cluster = hosts(8192, 8)
    sources, targets = np.random.default_rng(1).integers(0, cluster.size, (2, 1_000_000))
    began = time.process_time()
    offsets, _ = cluster.routes(sources, targets)
    assert time.process_time() - began < 2
    assert np.diff(offsets).max() == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ring(0), "ring: ranks=0 must be a whole number of at least 1"),
        (lambda: hosts(2, 2.5), "hosts: ranks=2.5 must be a whole number"),
        (lambda: hosts(2, True), "hosts: ranks=True must be a whole number"),
        (lambda: hosts(2, 2, bandwidth_bytes_per_s=-1.0), "bandwidth_bytes_per_s=-1.0 must be a number of bytes per"),
        (lambda: hosts(2, 2, latency_s=math.nan), "latency_s=nan must be a number of seconds, 0 or more"),
        (lambda: hosts(2, 2, network_latency_s=0.0), "network_latency_s=0.0 must not be below latency_s=1e-06"),
        (lambda: hosts(2, 2, placement="random"), "placement='random' must be 'contiguous' or 'round_robin'"),
        (lambda: hosts(2, 2, nics=3), "nics=3 must not be above the 2 ranks"),
        (lambda: tree(((0, 1), (1, 2)), [Level("host", 0, 1)]), "rank 1 stands twice"),
        (lambda: tree(((0, 1), (3,)), [Level("host", 0, 1)]), "rank 2 is missing"),
        (lambda: tree(((0, 1), ()), [Level("host", 0, 1)]), r"groups\[1\] is empty"),
        (lambda: tree((0, 1), [Level("host", 0, 1)]), r"groups\[0\] is rank 0, but 1 levels are named"),
        (lambda: tree(((0, 1),), []), r"groups\[0\] is a group, but 0 levels are named"),
        (lambda: tree(((0,), (1,)), [Level("host", 0, [1, 2, 3])]), "3 values of bandwidth_bytes_per_s for 2 groups"),
        (lambda: tree(((0,), (1,)), [Level("host", -1, 1)]), "latency_s=-1.0 must be 0 seconds or more"),
        (lambda: tree(((0,), (1,)), [Level("host", 0, 0)]), "bandwidth_bytes_per_s=0.0 must be more than 0"),
        (lambda: fat_tree(5), "radix=5 must be even"),
        (lambda: wan([]), "at least one site"),
        (lambda: wan([(1, 2), (0, 1)]), r"site 1 is \(0, 1\): expected \(hosts, ranks of each host\)"),
        (lambda: wan([(1, 2)], site_latency_s=[1.0, 2.0]), "level 'site': 2 values of latency_s for 1 groups"),
        (lambda: graph(["a", "b"], [Wire("a", "b", 1, 1, one_way=True)]), "no path from b to a"),
        (lambda: graph(["a", "b"], [Wire("a", "b", 1, 1), Wire("b", "a", 1, 1)]), "from b to a is there twice"),
        (lambda: graph(["a", "a"], []), "vertex 'a' is two ranks"),
        (lambda: graph(["a"], [Wire("a", "b", 1, 0)]), "needs a latency of 0 seconds or more and a bandwidth above 0"),
        (lambda: graph(["a"], [], groups=((0, 1),), levels=["host"]), "the groups hold 2 ranks, but there are 1"),
        (lambda: twisted_torus(4, 4, 4), "n x n x 2n or n x 2n x 2n in any order, not"),
        (lambda: ring(4).path(0, 4), r"there is no rank 4 in ring\(4\): ranks are 0 to 3"),
    ],
)
def test_what_cannot_be_is_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_a_part_has_the_same_links_and_its_own_ranks() -> None:
    whole = hosts(3, 4)
    part = whole.part([9, 1, 0, 5])  # rank 0 of the part is rank 9
    assert part.size == 4
    assert part.hosts == ((2, 1), (3,), (0,))
    assert part.links == whole.links
    for source, target in ((0, 1), (1, 2), (3, 0)):
        members = (9, 1, 0, 5)
        assert part.path(source, target) == whole.path(members[source], members[target])
    assert part != whole
    assert part.name == "4 of hosts(3, 4)"


@pytest.mark.parametrize("make", [lambda: hosts(10**9, 8), lambda: ring(10**9), lambda: torus(10**4, 10**4)])
def test_more_ranks_than_memory_holds_are_refused_at_once(make: Callable[[], Cluster]) -> None:
    with pytest.raises(ValueError, match="more than the 4194304 ranks"):
        make()
