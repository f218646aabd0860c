"""A matrix of pairs as SVG: the stronger the colour, the slower, on logarithmic shades; what stands out has a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from .plot import value_text

WIDTH, CELL, MARGIN, TOP, BOTTOM = 540, 46, 44, 56, 52
SHADES = 7
STRONG = 4  # from this shade on, figures have the other colour
LEAST_SPREAD = 1.5  # figures that differ by a smaller factor do not take all shades
LEAST_WITH_TEXT = 33  # of a cell that has its figure in it
STYLE = Path(__file__).with_name("heatmap.css").read_text(encoding="utf-8")

Matrix = Sequence[Sequence[float | None]]


class Outlier(Protocol):
    """A pair that stands out."""

    @property
    def source(self) -> int: ...
    @property
    def target(self) -> int: ...
    @property
    def what(self) -> str: ...  # "latency" or "bandwidth"
    @property
    def value(self) -> float: ...
    @property
    def typical(self) -> float: ...


def heatmaps(
    name: str, hosts: Sequence[str], bandwidth_gb_per_s: Matrix, latency_us: Matrix, outliers: Sequence[Outlier]
) -> tuple[str, str]:
    """SVG pictures of both matrices [from][to]; `name` begins their ids. `hosts` has the name of each rank's host."""
    made = [
        _map(f"{name}-{what}", hosts, title, unit, matrix, [o for o in outliers if o.what == what], what == "bandwidth")
        for what, title, unit, matrix in (
            ("bandwidth", "Bandwidth", "GB/s", bandwidth_gb_per_s),
            ("latency", "Latency", "µs", latency_us),
        )
    ]
    return made[0], made[1]


def picture(
    title: str, hosts: Sequence[str], bandwidth_gb_per_s: Matrix, latency_us: Matrix, outliers: Sequence[Outlier]
) -> str:
    """Both maps as one SVG document."""
    width, height = _extent(len(hosts))
    maps = heatmaps("pairs", hosts, bandwidth_gb_per_s, latency_us, outliers)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 60}" height="{height + 56}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif">'
        f'<title>{escape(title)}</title><style>{STYLE}</style><rect class="ground" width="100%" height="100%"/>'
        f'<text class="what" x="20" y="28">{escape(title)}</text>'
        f'<g transform="translate(20 44)">{maps[0]}</g><g transform="translate({width + 40} 44)">{maps[1]}</g></svg>\n'
    )


def _cell_pixels(size: int) -> int:
    return max(min(CELL, WIDTH // size), 6)


def _extent(size: int) -> tuple[int, int]:
    pixels = size * _cell_pixels(size)
    return max(MARGIN + pixels + 10, 300), TOP + pixels + BOTTOM


def _map(
    name: str, hosts: Sequence[str], title: str, unit: str, matrix: Matrix, outliers: Sequence[Outlier], more: bool
) -> str:
    """`more`: more is better."""
    size, cell = len(matrix), _cell_pixels(len(matrix))
    width, height = _extent(size)
    values = [value for row in matrix for value in row if value is not None and value > 0]
    marked = {(outlier.source, outlier.target): outlier for outlier in outliers}
    description = (
        f"A matrix of {size} x {size} pairs, from the rank of the row to the rank of the column, in {unit}; "
        f"the strongest colour is the slowest. {len(marked)} pairs stand out."
    )
    extent = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg class="heat" {extent} role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{title} of every pair of ranks</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
        f'<text class="what" x="{MARGIN}" y="18">{title} ({unit})</text>',
        f'<text x="4" y="{TOP - 24}">from ↓ to →</text>',
    ]
    for rank in range(0, size, math.ceil(22 / cell)):
        middle = rank * cell + cell / 2
        parts.append(f'<text class="x" x="{MARGIN + middle:g}" y="{TOP - 8}">{rank}</text>')
        parts.append(f'<text class="y" x="{MARGIN - 8}" y="{TOP + middle:g}" dy="0.34em">{rank}</text>')
    for source, row in enumerate(matrix):
        for target, value in enumerate(row):
            outlier = marked.get((source, target))
            parts.append(_cell(source, target, value, cell, unit, _shade(value, values, more), outlier))
    for rank, (before, after) in enumerate(pairwise(hosts), start=1):
        if before != after:
            at, long = rank * cell, size * cell
            parts.append(f'<path class="host" d="M{MARGIN} {TOP + at}h{long}M{MARGIN + at} {TOP}v{long}"/>')
    return "".join([*parts, _scale(values, TOP + size * cell + 12, unit, more), "</svg>"])


def _cell(
    source: int, target: int, value: float | None, cell: int, unit: str, shade: int | None, outlier: Outlier | None
) -> str:
    x, y = MARGIN + target * cell, TOP + source * cell
    look = "none" if shade is None else f"h{shade}"
    said = "no figure" if value is None else f"{value_text(value)} {unit}"
    if outlier:
        said += f", stands out: {value_text(outlier.typical)} is typical"
    inset = 1 if cell > 12 else 0
    text = (
        f'<rect class="cell {look}{" out" if outlier else ""}" x="{x + inset}" y="{y + inset}" '
        f'width="{cell - 2 * inset}" height="{cell - 2 * inset}" rx="{2 * inset}">'
        f"<title>from rank {source} to {target}: {escape(said)}</title></rect>"
    )
    if value is None or cell < LEAST_WITH_TEXT:
        return text
    strong = " strong" if shade is not None and shade >= STRONG else ""
    return (
        f'{text}<text class="in{strong}" x="{x + cell / 2:g}" y="{y + cell / 2:g}" '
        f'dy="0.34em">{_tiny(value)}{"!" if outlier else ""}</text>'
    )


def _shade(value: float | None, values: Sequence[float], more: bool) -> int | None:
    """0 for the best to SHADES - 1 for the worst."""
    if value is None or value <= 0:
        return None
    best, worst = (max(values), min(values)) if more else (min(values), max(values))
    share = abs(math.log(value / best)) / max(abs(math.log(worst / best)), math.log(LEAST_SPREAD))
    return min(int(share * SHADES), SHADES - 1)


def _scale(values: Sequence[float], y: float, unit: str, more: bool) -> str:
    if not values:
        return ""
    best, worst = (max(values), min(values)) if more else (min(values), max(values))
    boxes = "".join(
        f'<rect class="h{shade}" x="{MARGIN + shade * 18}" y="{y}" width="18" height="12"/>' for shade in range(SHADES)
    )
    text = f"best {value_text(best)}, worst {value_text(worst)} {unit}"
    return f'<g aria-hidden="true">{boxes}<text x="{MARGIN}" y="{y + 30}">{escape(text)}</text></g>'


def _tiny(value: float) -> str:
    """Four characters or so."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"
