"""Simulated times as an SVG picture that stands alone: against the size of the array, or against ranks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .. import sizes
from ..report.lines import Line, Points
from ..report.plot import HEIGHT, SIZES, WIDTH, Across, css_class, mark, plot
from .table import Row

RANKS = Across("ranks", "ranks", str)
HEAD, GAP, ROW = 46, 24, 22
_COLOURS = ("#0060a8", "#c24e00", "#007a64", "#b02a7e", "#7d6200", "#5b3fc0", "#1c86b8", "#666666")
_STYLE = (
    """<style>
text { fill: #575e69; font-size: 13px } .what, .title, .name { fill: #1b1d21 } .what, .title { font-weight: 600 }
.title { font-size: 16px } .x, .axis { text-anchor: middle } .y { text-anchor: end }
.grid path { stroke: #dcdfe4 } .grid path.fine { stroke: #eceef1 }
.way { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round } .mark { fill: currentColor }
.prediction .way { stroke-dasharray: 3 4; stroke-width: 1.6 }
"""
    + "\n".join(f".c{number} {{ color: {colour} }}" for number, colour in enumerate(_COLOURS))
    + "\n</style>"
)


def picture(title: str, rows: Sequence[Row]) -> str:
    """An SVG document: the time against ranks, a panel for each size; on one cluster time and busbw against size.

    Raises ValueError when there is nothing to draw: sizes and times of zero have no place on logarithmic axes.
    """
    names = list(dict.fromkeys(row.algorithm for row in rows))
    if len({row.ranks for row in rows}) > 1:
        panels = [
            (f"Time for {sizes.spell(size)}B", "µs", _lines(names, [r for r in rows if r.size_bytes == size]), RANKS)
            for size in dict.fromkeys(row.size_bytes for row in rows)
        ]
        panels = [
            (what, unit, [(line, line.time_us) for line in lines], across) for what, unit, lines, across in panels
        ]
    else:
        lines = _lines(names, rows, by_size=True)
        panels = [
            ("Time", "µs", [(line, line.time_us) for line in lines], SIZES),
            ("Bus bandwidth", "GB/s", [(line, line.busbw) for line in lines], SIZES),
        ]
    drawn = [
        svg
        for number, (what, unit, curves, across) in enumerate(panels)
        if (svg := plot(f"panel{number}", what, unit, [a for a, _ in curves], [b for _, b in curves], across))
    ]
    if not drawn:
        raise ValueError("there is nothing to draw: sizes and times of zero have no place on logarithmic axes")
    return _page(title, drawn, _legend(rows, names))


def _lines(names: Sequence[str], rows: Sequence[Row], by_size: bool = False) -> list[Line]:
    """A line for each algorithm; where the closed form takes over, a dashed one goes on from the last point."""
    lines: list[Line] = []
    for style, name in enumerate(names):
        mine = [row for row in rows if row.algorithm == name and row.time_us > 0 and (row.size_bytes or not by_size)]
        run = [row for row in mine if not row.closed_form]
        formula = [row for row in mine if row.closed_form]
        for kind, part in (("measured", run), ("prediction", [*run[-1:], *formula] if formula else [])):
            points = sorted((row.size_bytes if by_size else row.ranks, row) for row in part)
            time_us: Points = tuple((x, row.time_us) for x, row in points)
            busbw: Points = tuple((x, row.busbw) for x, row in points if row.busbw > 0)
            lines.append(Line(name, kind, style, time_us, busbw))
    return lines


def _legend(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Name, kind and style of what is drawn."""
    legend = [(name, "measured", style) for style, name in enumerate(names) if _any(rows, name, False)]
    return legend + [
        (f"{name}, closed form", "prediction", style) for style, name in enumerate(names) if _any(rows, name, True)
    ]


def _any(rows: Sequence[Row], name: str, closed_form: bool) -> bool:
    return any(row.algorithm == name and row.closed_form == closed_form for row in rows)


def _page(title: str, plots: Sequence[str], legend: Sequence[tuple[str, str, int]]) -> str:
    columns = min(len(plots), 2)
    bottom = HEAD + -(-len(plots) // columns) * HEIGHT
    width, height = columns * WIDTH + (columns - 1) * GAP, bottom + 12 + ROW * -(-len(legend) // (2 * columns))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    parts = [
        head,
        f"<title>{escape(title)}</title>",
        _STYLE,
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="14" y="28">{escape(title)}</text>',
    ]
    for number, svg in enumerate(plots):
        x, y = number % columns * (WIDTH + GAP), HEAD + number // columns * HEIGHT
        parts.append(f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}">{svg}</svg>')
    for number, (name, kind, style) in enumerate(legend):
        x, y = 62 + number % (2 * columns) * (width - 62) // (2 * columns), bottom + 8 + number // (2 * columns) * ROW
        shape = mark(style) if kind == "measured" else '<circle r="2"/>'
        look = css_class(Line(name, kind, style, (), ()))
        parts.append(
            f'<g class="line {look}" transform="translate({x + 15} {y})"><path class="way" d="M-15 0H15"/>'
            f'<g class="mark">{shape}</g><text class="name" x="22" dy="0.34em">{escape(name)}</text></g>'
        )
    return "\n".join([*parts, "</svg>\n"])
