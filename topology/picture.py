"""Draws a cluster as SVG: groups as boxes in boxes, tori as grids, rings as rings, graphs as layers above ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, cast

import numpy as np

from topology.cluster import Cluster, Groups
from topology.matrix import connection, legend
from topology.units import spell_bytes_per_s, spell_s

__all__ = ["svg"]

_MOST_RANKS, _MOST_GROUPS, _MOST_LAYERS, _MOST_LINE = 64, 16, 8, 24
_MOST_WIDTH = 1300.0  # of groups side by side
_INK, _PALE, _LINE, _RANK = "#1f2937", "#6b7280", "#9ca3af", "#dbeafe"
_FILLS = ("#f8fafc", "#eef2f7", "#ffffff", "#f1f5f9")
_KINDS = {"NV": "#16a34a", "PCI": "#2563eb", "PHB": "#7c3aed", "SYS": "#dc2626", "NIC": "#d97706"}
_CHAR = 6.6  # the width of a letter at 12 pixels

_Drawing = tuple[float, float, list[str]]  # width, height, elements


def svg(cluster: Cluster) -> str:
    """The drawing; of large clusters the first groups, saying how many there are."""
    shape = cluster.shape or _twisted_shape(cluster)
    if "links" in cluster.spec:
        width, height, elements = _layers(cluster.spec)
    elif cluster.shape is not None and len(cluster.shape) == 1:
        width, height, elements = _ring(cluster)
    elif shape is not None:
        width, height, elements = _grid(cluster, shape)
    else:
        width, height, elements = _groups(cluster)
    title = f"{cluster.name}: {cluster.size} rank{'s' * (cluster.size != 1)}"
    words = [line.split(None, 1) for line in legend(cluster, _some_pairs(cluster))]
    notes = [meaning if word.isdigit() else f"{word}: {meaning}" for word, meaning in words]
    width = max(width, *(len(text) * _CHAR for text in (title, *notes)))
    top = 44
    total = top + height + 18 * len(notes) + 28
    texts = [_text(20, 28, title, size=16, bold=True)]
    texts += [_text(20, top + height + 24 + 18 * place, note, ink=_PALE) for place, note in enumerate(notes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 40:.0f} {total:.0f}" '
        f'width="{width + 40:.0f}" height="{total:.0f}" font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(texts)
        + f'\n<g transform="translate(20 {top})">\n'
        + "\n".join(elements)
        + "\n</g>\n</svg>\n"
    )


def _twisted_shape(cluster: Cluster) -> tuple[int, ...] | None:
    arguments = cast("Mapping[str, Any]", cluster.spec.get("arguments", {}))
    return tuple(arguments[axis] for axis in "xyz") if cluster.spec.get("preset") == "twisted_torus" else None


def _some_pairs(cluster: Cluster) -> dict[str, list[tuple[int, int]]]:
    """A few pairs of ranks of each kind: rank 0 with ranks near and far."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    steps = {*range(1, min(cluster.size, 33)), *range(0, cluster.size, max(1, cluster.size // 64))} - {0}
    for target in sorted(steps):
        pairs.setdefault(connection(cluster, 0, target), []).append((0, target))
    return dict(sorted(pairs.items(), key=lambda item: min(cluster.latency_s(*pair) for pair in item[1])))


# ---------------------------------------------------------------- groups


def _groups(cluster: Cluster) -> _Drawing:
    counts = [0] * len(cluster.levels)
    links = {link.name: link for link in cluster.links} if cluster.size <= 1 << 16 else {}

    def box(group: Groups, depth: int) -> _Drawing:
        if depth == len(cluster.levels):
            ranks = cast("tuple[int, ...]", group)
            inside = _pack([_rank(rank) for rank in ranks[:_MOST_RANKS]], min(8, len(ranks)), 6)
            more = len(ranks) - _MOST_RANKS
            what = "ranks"
        else:
            members = cast("tuple[Groups, ...]", group)
            shown = [member(m, depth) for m in members[:_MOST_GROUPS]]
            columns = math.ceil(math.sqrt(len(shown)))
            columns = columns if len(shown) > 4 else len(shown)
            widest = max(drawing[0] for drawing in shown) + 14
            inside = _pack(shown, max(1, min(columns, int(_MOST_WIDTH / widest))), 14)
            more = len(members) - _MOST_GROUPS
            what = f"{cluster.levels[depth]}s"
        width, height, elements = inside
        if more > 0:
            elements = [*elements, _text(0, height + 18, f"... and {more} more {what}", ink=_PALE)]
            width, height = max(width, 150), height + 22
        return width, height, elements

    def member(group: Groups, depth: int) -> _Drawing:
        level, number = cluster.levels[depth], counts[depth]
        counts[depth] += 1
        label = f"{level} {number}"
        ways = [links[name] for name in (f"{level}{number}.up", f"{level}{number}.nic0.up") if name in links]
        speed = f"{_rate(ways[0].bandwidth_bytes_per_s)}, {_time(ways[0].latency_s)}" if ways else ""
        nics = sum(f"{level}{number}.nic{nic}.up" in links for nic in range(64))
        speed = f"↕ {nics} x {speed}" if nics > 1 else f"↕ {speed}" if speed else ""
        width, height, elements = box(group, depth + 1)
        top = 40 if speed else 24
        width = max(width, len(label) * _CHAR * 1.1, len(speed) * _CHAR)
        frame = (
            f'<rect width="{width + 20:.1f}" height="{height + top + 10:.1f}" rx="8" '
            f'fill="{_FILLS[depth % len(_FILLS)]}" stroke="{_LINE}"/>'
        )
        texts = [_text(10, 18, label, bold=True)] + ([_text(10, 33, speed, ink=_PALE)] if speed else [])
        return width + 20, height + top + 10, [frame, *texts, *_moved(elements, 10, top)]

    return box(cluster.groups, 0)


def _rank(rank: int) -> _Drawing:
    size = max(28.0, len(str(rank)) * 8.0 + 10)
    return size, 28, [_node(size / 2, 14, str(rank), size)]


def _pack(drawings: Sequence[_Drawing], columns: int, gap: float) -> _Drawing:
    """Drawings in rows of so many columns."""
    x = y = tall = wide = 0.0
    elements: list[str] = []
    for place, (width, height, inside) in enumerate(drawings):
        if place and place % columns == 0:
            x, y, tall = 0.0, y + tall + gap, 0.0
        elements += _moved(inside, x, y)
        x, tall = x + width + gap, max(tall, height)
        wide = max(wide, x - gap)
    return wide, y + tall, elements


# ---------------------------------------------------------------- rings and tori


def _ring(cluster: Cluster) -> _Drawing:
    shown = min(cluster.size, _MOST_RANKS)
    radius = max(60.0, shown * 38 / (2 * math.pi))
    centre = radius + 20
    points = [
        (centre + radius * math.sin(2 * math.pi * n / shown), centre - radius * math.cos(2 * math.pi * n / shown))
        for n in range(shown)
    ]
    around = [(n, (n + 1) % shown) for n in range(shown if shown == cluster.size > 2 else shown - 1)]
    elements = [_line(*points[a], *points[b]) for a, b in around]
    elements += [_node(*point, str(rank)) for rank, point in enumerate(points)]
    if shown < cluster.size:
        elements.append(_text(centre - 60, centre, f"the first {shown} of {cluster.size}", ink=_PALE))
    return 2 * centre, 2 * centre, elements


def _grid(cluster: Cluster, shape: Sequence[int]) -> _Drawing:
    """A layer for each x, with y down and z to the right. What leaves a layer's edge names the rank it leads to."""
    depth, rows, columns = (*shape, 1, 1)[:3]
    step = 46.0
    elements: list[str] = []
    shown_rows, shown_columns = min(rows, _MOST_LINE), min(columns, _MOST_LINE)
    wide, high = shown_columns * step + 60, shown_rows * step + 66
    layers = min(depth, _MOST_LAYERS)
    across = min(layers, max(1, int(1500 / wide)))
    for x in range(layers):
        left, top = x % across * wide + 30, x // across * high + 40
        elements.append(_text(left, top - 26, f"x = {x}", bold=True))
        for y in range(shown_rows):
            for z in range(shown_columns):
                rank = (x * rows + y) * columns + z
                px, py = left + z * step + 14, top + y * step + 14
                neighbours = _neighbours(cluster, rank, shape)
                for name, dx, dy in (("z+", 1, 0), ("z-", -1, 0), ("y+", 0, 1), ("y-", 0, -1)):
                    other = neighbours.get(name)
                    if other is None:
                        continue
                    inner = other == rank + dx + dy * columns and other // (rows * columns) == x
                    reach = step if inner else 24
                    elements.insert(0, _line(px, py, px + dx * reach, py + dy * reach))
                    if not inner:
                        at = px + dx * 26 - (9 if dx < 0 else 0) - (6 if dy else 0), py + dy * 30 + (4 if dx else 3)
                        elements.append(_text(*at, str(other), ink=_PALE, size=9))
                elements.append(_node(px, py, str(rank)))
    height = -(-layers // across) * high
    if depth > 1:
        last = (depth - 1) * rows * columns
        around = _neighbours(cluster, last, shape).get("x+", 0)
        note = f"each layer is linked to the next, rank for rank; rank {last} to rank {around}"
        note += f"; the first {layers} of {depth} layers" if layers < depth else ""
        elements.append(_text(0, height + 10, note, ink=_PALE))
        height += 20
    return across * wide, height, elements


def _neighbours(cluster: Cluster, rank: int, shape: Sequence[int]) -> dict[str, int]:
    """The ranks one link away, by the direction of the link: x+, x-, y+ ..."""
    sizes = np.array([*shape, 1, 1][:3])
    steps = np.concatenate([np.eye(3, dtype=np.int64), -np.eye(3, dtype=np.int64)])
    shifts = np.array(list(itertools.product((0, 1), repeat=3))) * (sizes // 2)  # going round a twisted one also shifts
    near = np.array(np.unravel_index(rank, sizes)) + (steps[:, None, :] + shifts).reshape(-1, 3)
    others = np.unique(np.ravel_multi_index(tuple((near % sizes).T), tuple(sizes)))
    paths = {other: cluster.path(rank, other) for other in others.tolist()}
    return {cluster.links[path[0]].name.partition(" ")[0]: other for other, path in paths.items() if len(path) == 1}


# ---------------------------------------------------------------- graphs


def _layers(spec: Mapping[str, Any]) -> _Drawing:
    """Ranks in the lowest row, everything else above by its distance to them."""
    ranks, links = cast("list[str]", spec["ranks"]), cast("list[dict[str, Any]]", spec["links"])
    joined: dict[str, list[str]] = {rank: [] for rank in ranks}
    for link in links:
        joined.setdefault(link["from"], []).append(link["to"])
        joined.setdefault(link["to"], []).append(link["from"])
    rows: list[list[str]] = [list(ranks)]
    placed = set(ranks)
    while rows[-1]:
        rows.append(list(dict.fromkeys(v for u in rows[-1] for v in joined[u] if v not in placed)))
        placed |= set(rows[-1])
    rows.pop()
    labels = {vertex: vertex for vertex in joined} | {name: f"{rank}: {name}" for rank, name in enumerate(ranks)}
    step = max(64.0, *(len(label) * _CHAR + 26 for label in labels.values()))
    wide = max(map(len, rows)) * step
    at: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        if level:  # above the middle of what is below
            below: Callable[[str], float] = lambda v: _mean([at[u][0] for u in joined[v] if u in at])  # noqa: E731
            row.sort(key=below)
        gap = wide / len(row)
        for place, vertex in enumerate(row):
            at[vertex] = gap * (place + 0.5), 30 + (len(rows) - 1 - level) * 96.0
    elements: list[str] = []
    for link in links:
        kind = str(link.get("kind", ""))
        colour = next((colour for prefix, colour in _KINDS.items() if kind.startswith(prefix)), _LINE)
        thick = min(6.0, max(1.0, math.log10(max(link["bandwidth_bytes_per_s"], 1.0)) - 8))
        about = (
            f"{link['from']} to {link['to']} {kind}: {_rate(link['bandwidth_bytes_per_s'])}, {_time(link['latency_s'])}"
        )
        elements.append(_line(*at[link["from"]], *at[link["to"]], colour, thick, about))
    for vertex, (x, y) in at.items():
        name = labels[vertex]
        elements.append(_node(x, y, name, len(name) * _CHAR + 14, _RANK if vertex in ranks else "#ffffff"))
    kinds = {str(link.get("kind", ""))[:3].rstrip("0123456789") for link in links} - {""}
    for place, kind in enumerate(sorted(kinds)):
        elements.append(_text(90.0 * place, 8, f"― {kind}", ink=_KINDS.get(kind, _LINE), bold=True))
    return wide, 60 + (len(rows) - 1) * 96.0, elements


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---------------------------------------------------------------- elements


def _node(x: float, y: float, label: str, width: float = 28, fill: str = _RANK) -> str:
    size = 11 if len(label) * 7 <= width else 9
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - 14:.1f}" width="{width:.1f}" height="28" rx="8" fill="{fill}" '
        f'stroke="{_PALE}"/><text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="{size}" '
        f'fill="{_INK}">{escape(label)}</text>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, ink: str = _LINE, width: float = 1.5, about: str = "") -> str:
    title = f"<title>{escape(about)}</title>" if about else ""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{ink}" '
        f'stroke-width="{width:.1f}">{title}</line>'
    )


def _text(x: float, y: float, text: str, *, ink: str = _INK, size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{ink}"{weight}>{escape(text)}</text>'


def _moved(elements: Sequence[str], x: float, y: float) -> list[str]:
    return [f'<g transform="translate({x:.1f} {y:.1f})">', *elements, "</g>"]


def _rate(bytes_per_s: float) -> str:
    return str(spell_bytes_per_s(float(f"{bytes_per_s:.3g}")))


def _time(seconds: float) -> str:
    return str(spell_s(float(f"{seconds:.3g}")))
