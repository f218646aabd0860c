"""The two matrices as an SVG picture: the darker a cell, the slower the pair, and slow pairs in a frame.

Colours are logarithmic in one hue, told apart by lightness alone; every cell has its figure as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from bench import sizes

from .matrix import Matrix, Pairwise
from .outliers import Outlier

LIGHT, DARK, NOTHING = (239, 245, 251), (8, 48, 107), "#e4e1da"
LEAST_SPREAD = 1.5  # matrices whose figures differ by less do not use all of the scale
MAP_PIXELS, LARGEST_CELL, SMALLEST_CELL = 560, 52, 5
TEXT_CELL = 34  # cells from this size on show their figure
LEFT, TOP, GAP, LEGEND = 44, 92, 56, 64

_STYLE = """<style>
text { fill: #27303f; font-size: 12px }
.title { font-size: 17px; font-weight: bold } .map { font-size: 14px; font-weight: bold } .small { fill: #6b7585 }
.end { text-anchor: end } .middle { text-anchor: middle } .dark { fill: #ffffff }
.slow { fill: none; stroke: #d1480f; stroke-width: 2.5 } .host { stroke: #27303f; stroke-width: 1.5 }
</style>"""


def picture(found: Pairwise, slow: Sequence[Outlier]) -> str:
    """An SVG document: latency on the left, bandwidth on the right."""
    size = len(found.hosts)
    cell = min(max(MAP_PIXELS // size, SMALLEST_CELL), LARGEST_CELL)
    side = max(cell * size, 470)  # a legend has this width
    width, height = 2 * (LEFT + side) + GAP + 24, TOP + cell * size + LEGEND
    hosts = len(set(found.hosts))
    title = f"All pairs of {size} rank{'s' * (size != 1)} on {hosts} host{'s' * (hosts != 1)}"
    bandwidth = f"Bandwidth of {sizes.spell(found.size_bytes)} (GB/s)"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" role="img">'
    )
    parts = [
        head,
        f"<title>{escape(title)}</title>",
        _STYLE,
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="28" class="title">{escape(title)}</text>',
        *_map(found, "latency", "Latency of a step (us)", found.latency_us, slow, LEFT, cell),
        *_map(found, "bandwidth", bandwidth, found.bandwidth_gb_per_s, slow, 2 * LEFT + side + GAP, cell),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _map(
    found: Pairwise, what: str, title: str, matrix: Matrix, slow: Sequence[Outlier], left: int, cell: int
) -> list[str]:
    values = [value for row in matrix for value in row if value is not None]
    least, most = min(values, default=1.0), max(values, default=1.0)
    pairs = sum(o.what == what and (what == "bandwidth" or o.source < o.target) for o in slow)
    framed = {(o.source, o.target): o for o in slow if o.what == what}
    size, bottom = len(matrix), TOP + cell * len(matrix)
    parts = [f'<text x="{left}" y="56" class="map">{escape(title)}</text>']
    parts.append(f'<text x="{left}" y="72" class="small">rows send, columns receive</text>')
    every = math.ceil(18 / cell)
    for rank in range(0, size, every):
        middle = rank * cell + cell / 2
        parts.append(f'<text x="{left + middle:g}" y="{TOP - 6}" class="small middle">{rank}</text>')
        parts.append(f'<text x="{left - 6}" y="{TOP + middle + 4:g}" class="small end">{rank}</text>')
    frames: list[str] = []
    for a, row in enumerate(matrix):
        for b, value in enumerate(row):
            x, y = left + b * cell, TOP + a * cell
            if value is None:
                parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{NOTHING}"/>')
                continue
            share = _darkness(value, least, most, more_is_better=what == "bandwidth")
            outlier = framed.get((a, b))
            said = f"rank {a} to {b}: {value:.3g}" + (f", {outlier.factor:.1f} times slower" if outlier else "")
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{_colour(share)}">'
                f"<title>{said}</title></rect>"
            )
            if cell >= TEXT_CELL:
                shade = " dark" if share > 0.42 else ""
                parts.append(
                    f'<text x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" class="middle{shade}">{_short(value)}</text>'
                )
            if outlier:
                frames.append(f'<rect x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" class="slow"/>')
    for rank, (one, other) in enumerate(pairwise(found.hosts), start=1):
        if one != other:
            at = rank * cell
            parts.append(f'<path d="M{left} {TOP + at}h{size * cell}M{left + at} {TOP}v{size * cell}" class="host"/>')
    if not values:
        return [*parts, f'<text x="{left}" y="{bottom + 28}" class="small">no pairs</text>']
    return [*parts, *frames, *_legend(least, most, left, bottom + 18, what == "bandwidth", pairs)]


def _legend(least: float, most: float, left: int, y: int, more_is_better: bool, slow_pairs: int) -> list[str]:
    fast, slow = (most, least) if more_is_better else (least, most)
    steps = 8
    darkest = _darkness(slow, least, most, more_is_better)
    parts = [
        f'<rect x="{left + 14 * i}" y="{y}" width="14" height="12" fill="{_colour(darkest * i / (steps - 1))}"/>'
        for i in range(steps)
    ]
    stands_out = f"{slow_pairs} slow, framed" if slow_pairs else "none stands out"
    note = f"from fastest, {_short(fast)}, to slowest, {_short(slow)}; {stands_out}"
    return [*parts, f'<text x="{left + 14 * steps + 8}" y="{y + 11}">{note}</text>']


def _darkness(value: float, least: float, most: float, more_is_better: bool) -> float:
    """0 for the fastest to 1 for the slowest, by the logarithm."""
    behind = most / value if more_is_better else value / least
    return math.log(behind) / math.log(max(most / least, LEAST_SPREAD))


def _colour(share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(LIGHT, DARK, strict=True))


def _short(value: float) -> str:
    """Three digits or so."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"
