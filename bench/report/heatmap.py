"""A matrix of pairs as SVG: the stronger the colour, the slower, on logarithmic shades; what stands out has a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .plot import value_text
from .read import Outlier

WIDTH, CELL, MARGIN, TOP = 540, 46, 44, 56
SHADES = 7
STRONG = 4  # from this shade on, figures have the other colour
LEAST_WITH_TEXT = 33  # of a cell that has its figure in it


def heatmap(
    name: str,
    title: str,
    unit: str,
    matrix: Sequence[Sequence[float | None]],
    outliers: Sequence[Outlier],
    *,
    more_is_better: bool,
) -> str:
    """An SVG picture of the matrix [from][to]; `name` begins its ids."""
    size = len(matrix)
    cell = max(min(CELL, WIDTH // size), 6)
    width, height = max(MARGIN + size * cell + 10, 300), TOP + size * cell + 52
    values = [value for row in matrix for value in row if value is not None and value > 0]
    marked = {(outlier.source, outlier.target) for outlier in outliers}
    ids = f'aria-labelledby="{name}-title {name}-desc"'
    description = (
        f"A matrix of {size} x {size} pairs, from the rank of the row to the rank of the column, in {unit}; "
        f"the strongest colour is the slowest. {len(marked)} pairs stand out."
    )
    parts = [
        f'<svg class="heat" viewBox="0 0 {width} {height}" width="{width}" role="img" {ids}>',
        f'<title id="{name}-title">{escape(title)} of every pair of ranks</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
        f'<text class="what" x="{MARGIN}" y="18">{escape(title)} ({escape(unit)})</text>',
    ]
    every = max(math.ceil(22 / cell), 1)
    for rank in range(0, size, every):
        middle = rank * cell + cell / 2
        parts.append(f'<text class="x" x="{MARGIN + middle:g}" y="{TOP - 8}">{rank}</text>')
        parts.append(f'<text class="y" x="{MARGIN - 8}" y="{TOP + middle:g}" dy="0.34em">{rank}</text>')
    parts.append(f'<text x="4" y="{TOP - 24}">from ↓ to →</text>')
    for source, row in enumerate(matrix):
        for target, value in enumerate(row):
            stands_out = (source, target) in marked
            parts.append(_cell(source, target, value, cell, unit, _shade(value, values, more_is_better), stands_out))
    parts.append(_scale(values, TOP + size * cell + 12, unit, more_is_better))
    return "".join([*parts, "</svg>"])


def _cell(
    source: int, target: int, value: float | None, cell: int, unit: str, shade: int | None, stands_out: bool
) -> str:
    x, y = MARGIN + target * cell, TOP + source * cell
    look = "none" if shade is None else f"h{shade}"
    said = "no figure" if value is None else f"{value_text(value)} {unit}"
    inset = 1 if cell > 12 else 0
    text = (
        f'<rect class="cell {look}{" out" if stands_out else ""}" x="{x + inset}" y="{y + inset}" '
        f'width="{cell - 2 * inset}" height="{cell - 2 * inset}" rx="{2 * inset}">'
        f"<title>from rank {source} to {target}: {escape(said)}{', stands out' if stands_out else ''}</title></rect>"
    )
    if value is None or cell < LEAST_WITH_TEXT:
        return text
    strong = " strong" if shade is not None and shade >= STRONG else ""
    return (
        f'{text}<text class="in{strong}" x="{x + cell / 2:g}" y="{y + cell / 2:g}" '
        f'dy="0.34em">{_tiny(value)}{"!" if stands_out else ""}</text>'
    )


def _shade(value: float | None, values: Sequence[float], more_is_better: bool) -> int | None:
    """0 for the best to SHADES - 1 for the worst; a spread of less than a factor of 1.5 is not spread over all."""
    if value is None or value <= 0:
        return None
    best, worst = (max(values), min(values)) if more_is_better else (min(values), max(values))
    share = abs(math.log(value / best)) / max(abs(math.log(worst / best)), math.log(1.5))
    return min(int(share * SHADES), SHADES - 1)


def _scale(values: Sequence[float], y: float, unit: str, more_is_better: bool) -> str:
    if not values:
        return ""
    best, worst = (max(values), min(values)) if more_is_better else (min(values), max(values))
    boxes = "".join(
        f'<rect class="h{shade}" x="{MARGIN + shade * 18}" y="{y}" width="18" height="12"/>' for shade in range(SHADES)
    )
    text = f"best {value_text(best)}, worst {value_text(worst)} {unit}"
    return f'<g aria-hidden="true">{boxes}<text class="note" x="{MARGIN}" y="{y + 30}">{escape(text)}</text></g>'


def _tiny(value: float) -> str:
    """Four characters or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"
