"""The table of nccl-tests, column by column, for its readers and its parsers; and one for comparisons.

algbw is S / t and busbw is algbw times the collective's factor, in GB/s of 10^9 bytes (nccl-tests,
doc/PERFORMANCE.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# nccl-tests' names where they differ from ours; anything else is printed as it is.
TYPE_NAMES = {
    "float16": "half",
    "float32": "float",
    "float64": "double",
    "complex64": "cfloat",
    "complex128": "cdouble",
}
OP_NAMES = {"mean": "avg"}


PLAIN = "plain"
"""What the column of our own calls without reproducible=True is called, beside those with."""


class Measured(NamedTuple):
    """One half of a row."""

    time_us: float
    algbw: float  # GB/s
    busbw: float  # GB/s
    wrong: int | None  # elements that differ from the promise; None when nobody looked


class Row(NamedTuple):
    size_bytes: int
    elems: int  # as the collective's caller counts them, per block where there are blocks
    dtype: str
    op: str  # "none" for a collective that only moves
    root: int  # -1 for a collective without one
    out_of_place: Measured
    in_place: Measured | None  # None for a collective that has no such form
    algorithm: str
    iterations: int
    predicted_us: float | None = None  # what a price model said beforehand, where there is one


class Compared(NamedTuple):
    """Microseconds of one size, in place, the median of the rounds; the contenders by name.

    `plain_us` is what the same call takes without reproducible=True, where that was measured too.
    """

    size_bytes: int
    algorithm: str
    ours_us: float
    contenders_us: dict[str, float]
    plain_us: float | None = None

    @property
    def price(self) -> float | None:
        """How many times longer a reproducible call takes."""
        return None if self.plain_us is None else faster(self.plain_us, self.ours_us)


def shrink(value: float, width: int) -> str:
    """`value` in `width` columns with as many decimals (two at most) as have room: 1.23, 12345.6, 1.2e+08."""
    digits = len(str(math.floor(value))) if value >= 1 else 0
    decimals = 2 if digits < width - 2 else 1 if digits < width - 1 else 0
    if digits <= width:
        return f"{value:{width}.{decimals}f}"
    return f"{value:{width}.{1 if width >= 7 else 0}e}"


def header(with_algorithm: bool, with_prediction: bool = False) -> str:
    """Four lines, from the lone `#` to the units."""
    left = "# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}"
    half = "  {:>7}  {:>6}  {:>6}  {:>6}"
    lines = [
        "#",
        left.format("", "", "", "", "") + f"{'out-of-place':>23}{'in-place':>31}",
        left.format("size", "count", "type", "redop", "root") + half.format("time", "algbw", "busbw", "#wrong") * 2,
        left.format("(B)", "(elements)", "", "", "") + half.format("(us)", "(GB/s)", "(GB/s)", "") * 2,
    ]
    if with_prediction:
        lines[2] += "  predicted"
        lines[3] += f"  {'(us)':>9}"
    if with_algorithm:
        lines[2] += "  algorithm"
    return "\n".join(line.rstrip() for line in lines)


def line(row: Row, with_algorithm: bool, with_prediction: bool = False) -> str:
    dtype, op = TYPE_NAMES.get(row.dtype, row.dtype), OP_NAMES.get(row.op, row.op)
    text = f"{row.size_bytes:>12}  {row.elems:>12}  {dtype:>8}  {op:>6}  {row.root:>6}"
    text += _half(row.out_of_place) + _half(row.in_place)
    if with_prediction:
        text += f"  {'N/A' if row.predicted_us is None else shrink(row.predicted_us, 9):>9}"
    return f"{text}  {row.algorithm}" if with_algorithm else text


def _half(measured: Measured | None) -> str:
    if measured is None:
        return "  {:>7}  {:>6}  {:>6}  {:>6}".format(*["N/A"] * 4)
    wrong = "N/A" if measured.wrong is None else f"{measured.wrong:g}"
    time, algbw, busbw = shrink(measured.time_us, 7), shrink(measured.algbw, 6), shrink(measured.busbw, 6)
    return f"  {time:>7}  {algbw:>6}  {busbw:>6}  {wrong:>6}"


def out_of_bounds(rows: Sequence[Row]) -> int:
    """Wrong elements over all rows and both halves."""
    return sum(half.wrong or 0 for row in rows for half in (row.out_of_place, row.in_place) if half)


def average_busbw(rows: Sequence[Row]) -> float:
    """GB/s, the plain mean over rows and halves, as nccl-tests takes it; 0 without rows."""
    halves = [half.busbw for row in rows for half in (row.out_of_place, row.in_place) if half]
    return sum(halves) / len(halves) if halves else 0.0


def footer(rows: Sequence[Row]) -> str:
    wrong = out_of_bounds(rows)
    lines = [
        f"# {'Out of bounds values':<20} : {wrong} {'FAILED' if wrong else 'OK'}",
        f"# {'Avg bus bandwidth':<20} : {average_busbw(rows):g}",
    ]
    algorithms = dict.fromkeys(row.algorithm for row in rows)
    if len(algorithms) > 1:
        for name in algorithms:
            lines.append(f"#   {name:<18} : {average_busbw([row for row in rows if row.algorithm == name]):g}")
    return "\n".join([*lines, "#"])


def faster(ours_us: float, theirs_us: float) -> float:
    """The peer's time over ours: above 1, ours is the faster."""
    return theirs_us / ours_us if ours_us > 0 else math.inf


def compare_header(contenders: Sequence[str], with_algorithm: bool, with_price: bool = False) -> str:
    times = "".join(f"  {name:>9}" for name in ("ours", *((PLAIN,) if with_price else ()), *contenders))
    price = f"  {'price':>9}" if with_price else ""
    ratios = "".join(f"  {name:>9}" for name in contenders)
    spans = f"# {'':>10}" + f"{'time in place (us)':>{len(times)}}" + " " * len(price)
    spans += f"{'x faster than':>{len(ratios)}}" if ratios else ""
    names = f"# {'size':>10}" + times + price + ratios + ("  algorithm" if with_algorithm else "")
    return f"{spans.rstrip()}\n{names}"


def compare_line(row: Compared, with_algorithm: bool) -> str:
    theirs = list(row.contenders_us.values())
    plain = () if row.plain_us is None else (row.plain_us,)
    text = f"{row.size_bytes:>12}" + "".join(f"  {shrink(us, 9):>9}" for us in (row.ours_us, *plain, *theirs))
    text += "" if row.price is None else f"  {shrink(row.price, 9):>9}"
    text += "".join(f"  {shrink(faster(row.ours_us, us), 9):>9}" for us in theirs)
    return f"{text}  {row.algorithm}" if with_algorithm else text


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def compare_footer(rows: Sequence[Compared]) -> str:
    """Per algorithm: what reproducible calls cost, and how many times faster than each contender it is; the
    geometric mean, and where it is the worst."""
    lines: list[str] = []
    algorithms = dict.fromkeys(row.algorithm for row in rows)
    for algorithm in algorithms:
        mine = [row for row in rows if row.algorithm == algorithm]
        prefix = f"{algorithm}, " if len(algorithms) > 1 else ""
        prices = [(row.price, row.size_bytes) for row in mine if row.price is not None]
        if prices:
            mean, (most, at) = geometric_mean([price for price, _ in prices]), max(prices)
            lines.append(
                f"# {prefix + 'price of reproducible':<21} : {mean:.2f} geometric mean, {most:.2f} at most (at {at} B)"
            )
        for name in mine[0].contenders_us:
            ratios = [faster(row.ours_us, row.contenders_us[name]) for row in mine]
            least = min(range(len(ratios)), key=ratios.__getitem__)
            lines.append(
                f"# {prefix + 'x faster than ' + name:<21} : {geometric_mean(ratios):.2f} geometric mean, "
                f"{ratios[least]:.2f} at least (at {mine[least].size_bytes} B)"
            )
    return "\n".join([*lines, "#"])
