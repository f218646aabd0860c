"""What a simulation found, as rows; and the rows as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from collectives.simulate import Ports, simulate
from topology import Cluster

from .. import sizes
from ..cases import COLLECTIVES
from ..table import shrink
from .contestants import Contestant
from .formula import ring_price

VERSION = 1
MODEL = {
    "overlapped": "latencies overlap",
    "one_port": "ports are busy for latencies too",
}


class Row(NamedTuple):
    """One algorithm at one size on one cluster. Bandwidths in GB/s of 10^9 bytes, as everywhere in the bench."""

    ranks: int
    size_bytes: int
    algorithm: str  # "auto" for what auto chooses
    label: str
    time_us: float
    algbw: float
    busbw: float
    link: str  # the one that was busy for the longest time
    link_bytes: float
    closed_form: bool


def simulated(cluster: Cluster, contestant: Contestant, nbytes: int, ports: Ports, segment_bytes: float) -> Row:
    """Runs one plan in virtual time, or takes the formula where it is too long for that."""
    a_plan = contestant.plans[nbytes]
    if contestant.closed_form:
        price = ring_price(a_plan, cluster)
        time_s = price.latency_s + price.seconds_per_byte * nbytes
        link, link_bytes = cluster.links[price.link].name, price.link_share * nbytes
    else:
        found = simulate(a_plan, cluster, nbytes, ports=ports, segment_bytes=segment_bytes)
        time_s, (link, link_bytes) = found.time_s, found.busiest
    algbw = nbytes / time_s / 1e9 if time_s > 0 else 0.0
    busbw = algbw * bus_factor(a_plan.collective, cluster.size)
    label = contestant.label(nbytes) + (" *" if contestant.closed_form else "")
    return Row(
        cluster.size, nbytes, contestant.name, label, time_s * 1e6, algbw, busbw, link, link_bytes,
        contestant.closed_form,
    )  # fmt: skip


def bus_factor(collective: str, ranks: int) -> float:
    """busbw / algbw, as nccl-tests has it; 1 for what nccl-tests does not have."""
    return COLLECTIVES[collective].bus_factor(ranks) if collective in COLLECTIVES else 1.0


def header(collective: str, clusters: Sequence[Cluster], ports: Ports, segment_bytes: int, width: int) -> str:
    """What is simulated and how, and the heads of the columns."""
    first, last = clusters[0], clusters[-1]
    where = first.name if first is last else f"{first.name} to {last.name}"
    ranks = f"{first.size:,} ranks" if first is last else f"{len(clusters)} clusters"
    names = (
        f"{'ranks':>8}{'size':>13}  {'algorithm':<{width}}{'time':>10}{'algbw':>10}{'busbw':>10}{'busiest link':>16}"
    )
    units = f"{'':>8}{'(B)':>13}  {'':<{width}}{'(us)':>10}{'(GB/s)':>10}{'(GB/s)':>10}{'(B)':>16}"
    return (
        f"# Simulated: {collective} on {where}, {ranks}\n"
        f"# Links are full duplex and take segments of {sizes.spell(segment_bytes)} one at a time, first come first "
        f"served; {MODEL[ports]} ({ports})\n#\n# {names}\n# {units}"
    )


def line(row: Row, width: int) -> str:
    time, algbw, busbw = shrink(row.time_us, 9), _gigabytes(row.algbw), _gigabytes(row.busbw)
    left = f"{row.ranks:>10}{row.size_bytes:>13}  {row.label:<{width}}"
    return f"{left}{time:>10}{algbw:>10}{busbw:>10}{round(row.link_bytes):>16}  {row.link}"


def _gigabytes(value: float) -> str:
    """Three digits also of what is far below 1 GB/s, as between sites."""
    return shrink(value, 7) if value >= 1 or value == 0 else f"{value:.3g}"


def document(collective: str, rows: Sequence[Row], ports: Ports, segment_bytes: int) -> dict[str, Any]:
    """The rows as JSON types, with what they depend on."""
    results = [{name: value for name, value in row._asdict().items() if name != "label"} for row in rows]
    return {
        "kind": "simulation",
        "version": VERSION,
        "collective": collective,
        "ports": ports,
        "segment_bytes": segment_bytes,
        "results": results,
    }
