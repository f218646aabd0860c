"""Clusters by name: rings, hosts, nested groups, tori, fabrics, sites. Bandwidths are of one direction."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

import numpy as np

from topology.cluster import Cluster, Groups
from topology.fabrics import Dragonfly, FatTree
from topology.tori import Torus, twist
from topology.trees import Level, Tree, plain

__all__ = [
    "PRESETS",
    "Level",
    "dgx_h100",
    "dragonfly",
    "fat_tree",
    "hosts",
    "ring",
    "torus",
    "tree",
    "twisted_torus",
    "wan",
]

P = ParamSpec("P")
MOST_RANKS = 1 << 22
PRESETS: dict[str, Callable[..., Cluster]] = {}
"""Every preset by its name."""


def preset(make: Callable[P, Cluster]) -> Callable[P, Cluster]:
    """Registers a preset. Its arguments are checked by their names and types, and kept: they are its file."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Cluster:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            _check(make.__name__, name, value, str(signature.parameters[name].annotation))
        counts = [value for value in bound.arguments.values() if isinstance(value, int)]
        if math.prod(counts) > MOST_RANKS:
            raise ValueError(f"{make.__name__}: {counts} is more than the {MOST_RANKS} ranks that a cluster may have")
        cluster = make(*args, **kwargs)
        given = {n: plain(v) for n, v in bound.arguments.items() if v != signature.parameters[n].default}
        cluster.spec = given if make.__name__ == "tree" else {"preset": make.__name__, "arguments": given}
        return cluster

    PRESETS[make.__name__] = checked
    return checked


def _check(preset_name: str, name: str, value: Any, annotation: str) -> None:
    def refuse(what: str) -> None:
        raise ValueError(f"{preset_name}: {name}={value!r} must be {what}")

    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if annotation == "int" and not (isinstance(value, (int, np.integer)) and number and value >= 1):
        refuse("a whole number of at least 1")
    if annotation == "float" and name.endswith("_bytes_per_s") and not (number and value > 0):
        refuse("a number of bytes per second above 0")
    if annotation == "float" and not name.endswith("_bytes_per_s") and not (number and 0 <= value < math.inf):
        refuse("a number of seconds, 0 or more")


def _flat(size: int) -> Groups:
    return tuple(range(size))


@preset
def ring(
    ranks: int,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 50e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """A physical ring: one link each way between neighbours; other pairs go the shorter way round.

    `latency_s` and `bandwidth_bytes_per_s` are those of one link.
    """
    made = Torus([ranks], [[ranks]], latency_s, bandwidth_bytes_per_s)
    return Cluster(
        name=f"ring({ranks})",
        links=made.links,
        groups=_flat(ranks),
        levels=(),
        route=made.route,
        spec={},
        combine_bytes_per_s=combine_bytes_per_s,
        shape=(ranks,),
    )


@preset
def hosts(
    hosts: int,
    ranks: int,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 10e9,
    memory_bytes_per_s: float = math.inf,
    network_latency_s: float = 20e-6,
    network_bandwidth_bytes_per_s: float = 12.5e9,
    nics: int = 1,
    placement: str = "contiguous",
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """Hosts of `ranks` ranks each, behind one switch that is never the bottleneck.

    `latency_s` and `bandwidth_bytes_per_s` are between two ranks of a host, end to end, and the bandwidth is that of a
    rank's port; `memory_bytes_per_s` is shared by all that stays inside a host. `network_latency_s` is between two
    ranks of different hosts, end to end; each of a host's `nics` has `network_bandwidth_bytes_per_s` (100 Gbit/s), and
    ranks take NICs in turn. With `placement` "contiguous" host 0 has ranks 0 to ranks - 1, with "round_robin" it has
    ranks 0, hosts, 2 * hosts and so on.
    """
    if placement not in ("contiguous", "round_robin"):
        raise ValueError(f"hosts: placement={placement!r} must be 'contiguous' or 'round_robin'")
    if network_latency_s < latency_s:
        raise ValueError(
            f"hosts: network_latency_s={network_latency_s} must not be below latency_s={latency_s}: "
            f"both are from rank to rank"
        )
    if nics > ranks:
        raise ValueError(f"hosts: nics={nics} must not be above the {ranks} ranks of a host, which take them in turn")
    numbers = np.arange(hosts * ranks)
    by_host = numbers.reshape(hosts, ranks) if placement == "contiguous" else numbers.reshape(ranks, hosts).T
    level = Level("host", (network_latency_s - latency_s) / 2, network_bandwidth_bytes_per_s, memory_bytes_per_s, nics)
    groups = tuple(map(tuple, by_host.tolist()))
    name = f"hosts({hosts}, {ranks})" if placement == "contiguous" else f"hosts({hosts}, {ranks}, round_robin)"
    return _tree(name, groups, [level], latency_s / 2, bandwidth_bytes_per_s, combine_bytes_per_s)


@preset
def tree(
    groups: Groups,
    levels: Sequence[Level],
    *,
    latency_s: float = 0.5e-6,
    bandwidth_bytes_per_s: float = 10e9,
    combine_bytes_per_s: float = math.inf,
    overhead_s: float = 0.0,
) -> Cluster:
    """Nested groups of ranks in any order and of any sizes, with a Level for each level, outermost first.

    `latency_s` and `bandwidth_bytes_per_s` are those of a rank's port, each way. `tree(((0, 1), (2, 3, 4)), [host])` is
    two hosts; a flat tuple of ranks with no level is ranks on one switch. `overhead_s` is the time that a rank spends
    on a message to or from another host.

    Raises ValueError unless each rank from 0 on stands once, as deep as there are levels.
    """
    hosts = "ranks" if not levels else f"ranks in {' of '.join(level.name + 's' for level in levels)}"
    made = _tree("tree", groups, levels, latency_s, bandwidth_bytes_per_s, combine_bytes_per_s)
    made.name, made.overhead_s = f"{made.size} {hosts}", overhead_s
    return made


@preset
def torus(
    x: int,
    y: int = 1,
    z: int = 1,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 50e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """A torus of up to three dimensions; the rank at (i, j, k) is (i * y + j) * z + k.

    Each rank has a link each way along each dimension, of `latency_s` and `bandwidth_bytes_per_s` (TPU v4: 50 GB/s).
    Messages take a shortest way, x first, then y, then z; of equally short ways, neighbours take different ones.
    """
    made = Torus([x, y, z], np.diag([x, y, z]).tolist(), latency_s, bandwidth_bytes_per_s)
    return _torus(f"torus({x}, {y}, {z})", made, (x, y, z), combine_bytes_per_s)


@preset
def twisted_torus(
    x: int,
    y: int,
    z: int,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 50e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """The twisted torus of TPU v4, n x n x 2n or n x 2n x 2n in any order, otherwise as `torus`.

    It has the links of the torus of this shape, but going round a short dimension ends half way round the long ones:
    distances are shorter and all dimensions carry the same in an all-to-all (see tori.py). `shape` is None, because a
    line along a dimension does not close after that dimension's length.
    """
    made = Torus([x, y, z], twist([x, y, z]), latency_s, bandwidth_bytes_per_s)
    return _torus(f"twisted_torus({x}, {y}, {z})", made, None, combine_bytes_per_s, x * y * z)


@preset
def dgx_h100(
    hosts: int,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 450e9,
    network_latency_s: float = 5e-6,
    network_bandwidth_bytes_per_s: float = 50e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """Hosts of 8 GPUs: NVLink 4 through NVSwitch, 450 GB/s each way per GPU, and a 400 Gbit/s NIC for each GPU.

    The network is rail-optimised, so that NICs of the same number are one switch apart, and no link in it is shared.
    """
    level = Level("host", (network_latency_s - latency_s) / 2, network_bandwidth_bytes_per_s, nics=8)
    groups = tuple(tuple(range(8 * host, 8 * host + 8)) for host in range(hosts))
    return _tree(f"dgx_h100({hosts})", groups, [level], latency_s / 2, bandwidth_bytes_per_s, combine_bytes_per_s)


@preset
def fat_tree(
    radix: int,
    ranks_per_host: int = 1,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 50e9,
    link_latency_s: float = 0.5e-6,
    link_bandwidth_bytes_per_s: float = 12.5e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """The full three-level fat tree of switches with `radix` ports: radix^3 / 4 hosts at full bisection bandwidth.

    `latency_s` and `bandwidth_bytes_per_s` are between ranks of a host, end to end; the others are those of each link
    between a host and a switch or two switches. Groups: pod, switch, host.
    """
    if radix % 2:
        raise ValueError(f"fat_tree: radix={radix} must be even: half of a switch's ports lead up")
    half = radix // 2
    made = FatTree(
        radix, ranks_per_host, (latency_s / 2, bandwidth_bytes_per_s), (link_latency_s, link_bandwidth_bytes_per_s)
    )
    return Cluster(
        name=f"fat_tree({radix}, {ranks_per_host})",
        links=made.links,
        groups=_nested(radix, half, half, ranks_per_host),
        levels=("pod", "switch", "host"),
        route=made.route,
        spec={},
        combine_bytes_per_s=combine_bytes_per_s,
    )


@preset
def dragonfly(
    groups: int,
    routers: int,
    hosts: int = 1,
    ranks_per_host: int = 1,
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 50e9,
    link_latency_s: float = 0.3e-6,
    link_bandwidth_bytes_per_s: float = 25e9,
    global_latency_s: float = 1e-6,
    global_bandwidth_bytes_per_s: float = 25e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """A dragonfly: `groups` of `routers`, all-to-all inside, one global link between each two groups.

    Each router has `hosts` hosts of `ranks_per_host` ranks. `latency_s` and `bandwidth_bytes_per_s` are between ranks
    of a host, end to end; `link_...` are those of a link in a group, `global_...` of one between groups. Messages take
    the shortest way. Groups: group, router, host.
    """
    made = Dragonfly(
        groups,
        routers,
        hosts,
        ranks_per_host,
        (latency_s / 2, bandwidth_bytes_per_s),
        (link_latency_s, link_bandwidth_bytes_per_s),
        (global_latency_s, global_bandwidth_bytes_per_s),
    )
    return Cluster(
        name=f"dragonfly({groups}, {routers}, {hosts}, {ranks_per_host})",
        links=made.links,
        groups=_nested(groups, routers, hosts, ranks_per_host),
        levels=("group", "router", "host"),
        route=made.route,
        spec={},
        combine_bytes_per_s=combine_bytes_per_s,
    )


@preset
def wan(
    sites: Sequence[tuple[int, int]],
    *,
    latency_s: float = 1e-6,
    bandwidth_bytes_per_s: float = 10e9,
    network_latency_s: float = 20e-6,
    network_bandwidth_bytes_per_s: float = 12.5e9,
    site_latency_s: float | Sequence[float] = 10e-3,
    site_bandwidth_bytes_per_s: float | Sequence[float] = 1.25e9,
    combine_bytes_per_s: float = math.inf,
) -> Cluster:
    """Sites far apart, each given as (hosts, ranks of each host); inside a site as `hosts`.

    `site_latency_s` and `site_bandwidth_bytes_per_s` are those of a site's link to the others, each way: one number, or
    one for each site. `wan([(4, 8), (2, 8)], site_latency_s=[5e-3, 20e-3])` has 25 ms between its sites.
    """
    if network_latency_s < latency_s:
        raise ValueError(f"wan: network_latency_s={network_latency_s} must not be below latency_s={latency_s}")
    groups: list[Groups] = []
    first = 0
    for place, site in enumerate(cast("Sequence[object]", sites)):
        if not (
            isinstance(site, (list, tuple))
            and len(cast("Sequence[object]", site)) == 2
            and all(isinstance(n, int) and n >= 1 for n in cast("Sequence[object]", site))
        ):
            raise ValueError(f"wan: site {place} is {site!r}: expected (hosts, ranks of each host), both at least 1")
        count, ranks = cast("tuple[int, int]", site)
        groups.append(tuple(tuple(range(first + ranks * h, first + ranks * (h + 1))) for h in range(count)))
        first += count * ranks
    if not groups:
        raise ValueError("wan: there must be at least one site")
    levels = [
        Level("site", site_latency_s, site_bandwidth_bytes_per_s),
        Level("host", (network_latency_s - latency_s) / 2, network_bandwidth_bytes_per_s),
    ]
    name = f"wan({[tuple(site) for site in sites]})" if len(sites) <= 4 else f"wan of {len(sites)} sites"
    return _tree(name, tuple(groups), levels, latency_s / 2, bandwidth_bytes_per_s, combine_bytes_per_s)


def _nested(outer: int, middle: int, inner: int, ranks: int) -> Groups:
    numbers = np.arange(outer * middle * inner * ranks).reshape(outer, middle, inner, ranks).tolist()
    return tuple(tuple(tuple(tuple(host) for host in switch) for switch in pod) for pod in numbers)


def _torus(name: str, made: Torus, shape: tuple[int, ...] | None, combine_bytes_per_s: float, size: int = 0) -> Cluster:
    return Cluster(
        name=name,
        links=made.links,
        groups=_flat(size or math.prod(shape or ())),
        levels=(),
        route=made.route,
        spec={},
        combine_bytes_per_s=combine_bytes_per_s,
        shape=shape,
    )


def _tree(
    name: str,
    groups: Groups,
    levels: Sequence[Level],
    latency_s: float,
    bandwidth_bytes_per_s: float,
    combine_bytes_per_s: float,
) -> Cluster:
    made = Tree(groups, levels, latency_s, bandwidth_bytes_per_s)
    return Cluster(
        name=name,
        links=made.links,
        groups=groups,
        levels=[level.name for level in levels],
        route=made.route,
        spec={},
        combine_bytes_per_s=combine_bytes_per_s,
    )
