"""The matrix of who is connected to whom by what, the way `nvidia-smi topo -m` prints it.

      0     1     2     3   eth0
0     X    HOST  NET   NET  NODE
1    HOST   X    NET   NET  SYS
"""

from __future__ import annotations

from collections.abc import Iterable

from topology.cluster import Cluster
from topology.units import spell_bytes_per_s, spell_s

__all__ = ["connection", "legend", "show"]

MOST_COLUMNS = 32

_MEANINGS = {
    "X": "itself",
    "NV#": "# NVLinks",
    "PIX": "at most one PCI switch",
    "PXB": "several PCI switches, but not the CPU",
    "PHB": "the PCI host bridge, which is the CPU",
    "NODE": "the same NUMA node",
    "SYS": "the link between CPUs or NUMA nodes",
    "NET": "the network",
    "-": "unknown",
}


def connection(cluster: Cluster, source: int, target: int) -> str:
    """How two ranks are connected, in a word: the farthest thing on the path.

    Where links say what they are made of: NV# (that many NVLinks), PIX, PXB, PHB or SYS as nvidia-smi has them. Where
    ranks are in groups: the level of the smallest group that holds both, such as HOST or RACK, and NET when there is
    none. Otherwise the number of links on the path. X for a rank and itself.
    """
    if source == target:
        return "X"
    path = cluster.path(source, target)
    if cluster.kinds:
        kinds = [cluster.kinds[number] for number in path]
        for far in ("SYS", "PHB"):
            if far in kinds:
                return far
        if "PCI" in kinds:
            return "PIX" if kinds.count("PCI") <= 2 else "PXB"
        lanes = [int(kind[2:]) for kind in kinds if kind.startswith("NV") and kind[2:].isdigit()]
        return f"NV{min(lanes)}" if lanes else next((kind for kind in kinds if kind), "-")
    if not cluster.levels:
        return str(len(path))
    inner = zip(reversed(cluster.levels), reversed(cluster.group_numbers), strict=True)
    return next((level.upper() for level, group in inner if group[source] == group[target]), "NET")


def show(cluster: Cluster) -> str:
    """The matrix, what its words mean, latencies and bandwidths, and what was found on the machines."""
    ranks = range(min(cluster.size, MOST_COLUMNS))
    shown = [device for device in cluster.devices if device.near]
    names = [str(rank) for rank in ranks] + [device.name for device in shown]
    rows = [[connection(cluster, source, target) for target in ranks] for source in ranks]
    pairs: dict[str, list[tuple[int, int]]] = {}
    for source, row in enumerate(rows):
        for target, cell in enumerate(row):
            pairs.setdefault(cell, []).append((source, target))
    columns = [[device.near[rank] for rank in ranks] for device in shown]
    rows = [row + [column[place] for column in columns] for place, row in enumerate(rows)]
    rows += [[*column, *("X" if other is column else "" for other in columns)] for column in columns]
    width = max(map(len, [*names, *(cell for row in rows for cell in row)])) + 2
    margin = max(map(len, names))
    lines = [f"{cluster!r}"[1:-1], ""]
    lines.append(" " * margin + "".join(name.center(width).rstrip().ljust(width) for name in names).rstrip())
    for name, row in zip(names, rows, strict=True):
        lines.append(name.rjust(margin) + "".join(cell.center(width) for cell in row).rstrip())
    if cluster.size > len(ranks):
        lines.append(f"... the first {len(ranks)} of {cluster.size} ranks")
    lines += ["", *legend(cluster, pairs, {cell for column in columns for cell in column})]
    if cluster.devices:
        widest = max(len(device.name) for device in cluster.devices)
        lines += ["", *(f"{device.name.ljust(widest)}  {device.about}".rstrip() for device in cluster.devices)]
    return "\n".join(lines) + "\n"


def legend(cluster: Cluster, pairs: dict[str, list[tuple[int, int]]], more: set[str] | None = None) -> Iterable[str]:
    """A line for each word: what it means, and for pairs of ranks the range of their latencies and bandwidths."""
    words = list(pairs) + sorted((more or set()) - pairs.keys())
    margin = max(map(len, words), default=0)
    for word in words:
        line = f"{word.ljust(margin)}  {_meaning(cluster, word)}"
        if word in pairs and word != "X":
            latencies_s = [cluster.latency_s(*pair) for pair in pairs[word]]
            bandwidths = [cluster.bandwidth_bytes_per_s(*pair) for pair in pairs[word]]
            line += f": {_range([_round(value, True) for value in (min(latencies_s), max(latencies_s))])}"
            line += f", {_range([_round(value, False) for value in (min(bandwidths), max(bandwidths))])}"
        yield line


def _meaning(cluster: Cluster, word: str) -> str:
    if word.isdigit():
        return f"{word} link{'s' * (word != '1')}"
    if word.startswith("NV"):
        return f"{word[2:]} NVLinks"
    level = next((level for level in cluster.levels if level.upper() == word and not cluster.kinds), None)
    return f"the same {level}" if level else _MEANINGS.get(word, word)


def _round(value: float, time: bool) -> str:
    rounded = float(f"{value:.3g}")
    return str(spell_s(rounded) if time else spell_bytes_per_s(rounded))


def _range(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
