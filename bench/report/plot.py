"""Lines on logarithmic axes as SVG: colours come from the page's style sheet, marks tell lines apart without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from ..sizes import spell
from .lines import Line, Points

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 58
STYLES = 8
# One for each style, around (0, 0): circle, square, triangle, diamond, triangle down, cross, hexagon, plus.
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.5L4.5 3.5H-4.5z",
    "M0 -5L4.5 0L0 5L-4.5 0z",
    "M0 4.5L4.5 -3.5H-4.5z",
    "M-4 -2.5L-2.5 -4L0 -1.5L2.5 -4L4 -2.5L1.5 0L4 2.5L2.5 4L0 1.5L-2.5 4L-4 2.5L-1.5 0z",
    "M-4.5 0L-2.2 -4H2.2L4.5 0L2.2 4H-2.2z",
    "M-1.4 -4.5H1.4V-1.4H4.5V1.4H1.4V4.5H-1.4V1.4H-4.5V-1.4H-1.4z",
)


class Axis(NamedTuple):
    """A logarithmic axis from `low` to `high`, drawn between two coordinates."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return round(self.begin + share * (self.end - self.begin), 1)


class Across(NamedTuple):
    """What the axis from left to right counts, always in powers of two."""

    name: str
    label: str
    spell: Callable[[int], str]
    unit: str = ""


SIZES = Across("size", "size of the array (bytes)", spell, "B")


def mark(style: int) -> str:
    """The path of a style's mark, without a place."""
    return f'<path d="{MARKS[(style + style // STYLES) % STYLES]}"/>'  # another with each turn of the colours


def plot(
    name: str, title: str, unit: str, lines: Sequence[Line], curves: Sequence[Points], across: Across = SIZES
) -> str:
    """An SVG picture of `lines`, whose values are `curves`; `name` begins its ids. Without any point, an empty text."""
    points = [point for curve in curves for point in curve]
    if not points:
        return ""
    x = _across_axis([size for size, _ in points])
    y = _values_axis([value for _, value in points])
    shown = ", ".join(line.name for line, curve in zip(lines, curves, strict=True) if curve)
    description = (
        f"{title} in {unit} from {_label(across, round(x.low))} to {_label(across, round(x.high))} on logarithmic "
        f"axes: {shown}. The tables have the figures."
    )
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)} against {across.name}</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
        _grid(x, y, across),
        f'<text class="what" x="{LEFT}" y="18">{escape(title)} ({escape(unit)})</text>',
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 8}">{across.label}</text>',
    ]
    for number, (line, curve) in enumerate(zip(lines, curves, strict=True)):
        if curve:
            parts.append(_curve(number, line, curve, x, y, unit, across))
    return "".join([*parts, "</svg>"])


def css_class(line: Line) -> str:
    """The classes that give a line its look."""
    return "roof" if line.kind == "roof" else f"{line.kind} c{line.style % STYLES}"


def value_text(value: float) -> str:
    """Four digits at most, without an exponent where that is readable."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def _label(across: Across, value: int) -> str:
    return f"{across.spell(value)}{across.unit}"


def _curve(number: int, line: Line, curve: Points, x: Axis, y: Axis, unit: str, across: Across) -> str:
    way = " ".join(f"{'L' if i else 'M'}{x.at(size)} {y.at(value)}" for i, (size, value) in enumerate(curve))
    if len(curve) == 1:  # a line all the same, as there may be no mark
        way = f"M{x.at(curve[0][0]) - 24:g} {y.at(curve[0][1])}h48"
    parts = [f'<g class="line {css_class(line)}" data-line="{number}" data-name="{escape(line.name)}">']
    parts.append(f'<path class="way" d="{way}"/>')
    for size, value in curve:
        text = f"{value_text(value)} {unit}"
        parts.append(
            f'<g class="mark" transform="translate({x.at(size)} {y.at(value)})" data-size="{size}" '
            f'data-label="{_label(across, size)}" data-value="{escape(text)}">'
            f"<title>{escape(line.name)}, {_label(across, size)}: {escape(text)}</title>"
            + (mark(line.style) if line.kind in ("measured", "contender") else '<circle r="2"/>')
            + "</g>"
        )
    return "".join([*parts, "</g>"])


def _grid(x: Axis, y: Axis, across: Across) -> str:
    parts = ['<g class="grid" aria-hidden="true">']
    for value, minor in _powers_of_two(x):
        parts.append(f'<path d="M{x.at(value)} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="x{" minor" if minor else ""}" x="{x.at(value)}" y="{HEIGHT - BOTTOM + 18}">'
            f"{across.spell(value)}</text>"
        )
    for value, labelled in _decades(y):
        look = "" if labelled else ' class="fine"'
        parts.append(f'<path d="M{LEFT} {y.at(value)}H{WIDTH - RIGHT}"{look}/>')
        if labelled:
            parts.append(f'<text class="y" x="{LEFT - 7}" y="{y.at(value)}" dy="0.34em">{_short(value)}</text>')
    return "".join([*parts, "</g>"])


def _across_axis(values: Sequence[int]) -> Axis:
    low, high = float(min(values)), float(max(values))
    if low == high:
        low, high = low / 2, high * 2
    margin = (high / low) ** 0.02
    return Axis(low / margin, high * margin, LEFT, WIDTH - RIGHT)


def _values_axis(values: Sequence[float]) -> Axis:
    """From a 1, 2 or 5 of a power of ten to another, so that the lines fill the height."""
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5)]
    below = max((step for step in steps if step <= low), default=low)
    above = min((step for step in steps if step >= high and step > below), default=high * 2)
    return Axis(below, above, HEIGHT - BOTTOM, TOP)


def _powers_of_two(x: Axis) -> list[tuple[int, bool]]:
    """The sizes that have a tick, and whether its label goes first where there is little room."""
    low, high = math.ceil(math.log2(x.low) - 1e-9), math.floor(math.log2(x.high) + 1e-9)
    every = max(math.ceil((high - low) / 9), 1)
    return [(1 << e, i % 2 == 1) for i, e in enumerate(range(max(low, 0), high + 1, every))]


def _decades(y: Axis) -> list[tuple[float, bool]]:
    """The values that have a line, and whether a label goes with it: 1, 2 and 5 where few decades are shown."""
    decades = math.log10(y.high / y.low)
    found: list[tuple[float, bool]] = []
    for exponent in range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)) + 1):
        for digit in range(1, 10):
            value = digit * 10.0**exponent
            labelled = digit == 1 or (digit in (2, 5) and decades <= 2.4)
            if y.low * 0.999 <= value <= y.high * 1.001 and (labelled or (digit in (2, 5) and decades <= 5)):
                found.append((value, labelled))
    return found


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.999:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
