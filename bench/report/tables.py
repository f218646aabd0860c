"""What is shown as a table, the same in every format: headings, and rows of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..sizes import spell
from ..table import faster, geometric_mean
from .lines import Line
from .plot import value_text
from .read import Half, Pairwise, Run

# busbw = algbw times this, for n ranks (nccl-tests, doc/PERFORMANCE.md); bench/cases.py computes with it.
FACTORS = {
    "all_reduce": "2 (n - 1) / n",
    "reduce_scatter": "(n - 1) / n",
    "all_gather": "(n - 1) / n",
    "broadcast": "1",
    "reduce": "1",
    "gather": "(n - 1) / n",
    "scatter": "(n - 1) / n",
    "all_to_all": "(n - 1) / n",
    "barrier": "1",
}
FORMULAS = (
    "algbw = S / t, with S the bytes of the whole array and t the mean time of a call over all ranks",
    "busbw = algbw x factor: what a rank's connection has to carry, to be compared with what the hardware can",
    "GB is 10^9 bytes; K, M and G in sizes are 2^10, 2^20 and 2^30",
)


class Table(NamedTuple):
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # so many columns on the left are words, the others figures


def glance(lines: Sequence[Line]) -> Table:
    """Per line: the lowest time, the highest busbw, and how much of the roof that is, where there is one for all."""
    roofs = [dict(line.busbw) for line in lines if line.kind == "roof"]
    roof = roofs[0] if len(roofs) == 1 else {}
    rows: list[tuple[str, ...]] = []
    for line in lines:
        if line.kind in ("measured", "contender") and line.time_us:
            size, least_us = min(line.time_us, key=lambda point: point[1])
            at, most = max(line.busbw, key=lambda point: point[1], default=(0, 0.0))
            share = f"{100 * most / roof[at]:.0f} %" if at in roof else ""
            rows.append((line.name, f"{value_text(least_us)}", spell(size), value_text(most), spell(at), share))
    return Table(
        "At a glance", ("line", "lowest time (us)", "at", "highest busbw (GB/s)", "at", "of the roof"), tuple(rows)
    )


def results(run: Run) -> Table:
    """The rows of nccl-tests' table."""
    predicted = any(row.predicted_us is not None for row in run.rows)
    halves = ("time (us)", "algbw", "busbw", "wrong")
    rows = tuple(
        (
            row.algorithm, row.dtype, row.op, row.root, f"{row.size_bytes}", f"{row.elems}",
            *_half(row.out_of_place), *_half(row.in_place),
            *([value_text(row.predicted_us) if row.predicted_us is not None else ""] if predicted else []),
        )
        for row in run.rows
    )  # fmt: skip
    headings = (
        "algorithm", "type", "op", "root", "size (B)", "count",
        *(f"out-of-place {half}" for half in halves), *(f"in-place {half}" for half in halves),
        *(["predicted (us)"] if predicted else []),
    )  # fmt: skip
    return Table(f"Results: {run.collective}, {run.ranks} ranks", headings, rows, 4)


def compared(run: Run) -> Table:
    """Beside the contenders, with how many times faster ours is, and the geometric mean of that at the end."""
    names = tuple(dict.fromkeys(name for c in run.compared for name in c.contenders_us))
    rows: list[tuple[str, ...]] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for c in run.compared:
        times = [value_text(c.contenders_us[name]) if name in c.contenders_us else "" for name in names]
        ours: list[str] = []
        for name in names:
            ratio = faster(c.ours_us, c.contenders_us[name]) if name in c.contenders_us else 0.0
            ratios.setdefault((c.algorithm, name), []).append(ratio)
            ours.append(f"{ratio:.2f}" if ratio else "")
        rows.append((c.algorithm, f"{c.size_bytes}", value_text(c.ours_us), *times, *ours))
    for algorithm in dict.fromkeys(c.algorithm for c in run.compared):
        means = [geometric_mean([r for r in ratios[algorithm, name] if r > 0]) for name in names]
        rows.append((algorithm, "geometric mean", "", *([""] * len(names)), *(f"{mean:.2f}" for mean in means)))
    return Table(
        "Beside other libraries: median microseconds, in place",
        ("algorithm", "size (B)", "ours", *names, *(f"x faster than {name}" for name in names)),
        tuple(rows),
    )


def pairs(matrix: Pairwise) -> list[Table]:
    """Latency and bandwidth of every pair, and what stands out."""
    ranks = tuple(f"to {rank}" for rank in range(len(matrix.hosts)))
    made = [
        Table(
            title,
            ("from", "host", *ranks),
            tuple(
                (f"{rank}", matrix.hosts[rank], *("" if value is None else value_text(value) for value in row))
                for rank, row in enumerate(values)
            ),
            2,
        )
        for title, values in (
            ("Bandwidth (GB/s)", matrix.bandwidth_gb_per_s),
            ("Latency (us)", matrix.latency_us),
        )
    ]
    if matrix.outliers:
        rows = tuple(
            (
                f"{o.source} to {o.target}", f"{matrix.hosts[o.source]} to {matrix.hosts[o.target]}", o.what,
                value_text(o.value), value_text(o.typical), f"{_apart(o.value, o.typical):.2f}",
            )
            for o in matrix.outliers
        )  # fmt: skip
        made.append(Table("What stands out", ("ranks", "hosts", "what", "measured", "typical", "factor"), rows, 3))
    return made


def factors() -> Table:
    return Table("busbw / algbw for n ranks", ("collective", "factor"), tuple(FACTORS.items()), 2)


def _apart(value: float, typical: float) -> float:
    low, high = sorted((value, typical))
    return high / low if low > 0 else 0.0


def _half(half: Half | None) -> tuple[str, str, str, str]:
    if half is None:
        return "", "", "", ""
    wrong = "" if half.wrong is None else f"{half.wrong}"
    return value_text(half.time_us), value_text(half.algbw), value_text(half.busbw), wrong
