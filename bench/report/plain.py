"""Reports as Markdown, for people, and as CSV, for spreadsheets: one row for each figure that was measured."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Iterator, Sequence

from . import tables
from .lines import lines
from .read import Half, Pairwise, Run
from .tables import Table

CSV_COLUMNS = (
    "file", "collective", "ranks", "transport", "series", "algorithm", "type", "op", "root", "place",
    "size_bytes", "time_us", "algbw_gb_per_s", "busbw_gb_per_s", "wrong", "from", "to", "value",
)  # fmt: skip


def markdown(runs: Sequence[Run | Pairwise]) -> str:
    """Headings and tables; what is in a file cannot become markup."""
    parts = ["# Bandwidth report"]
    for run in runs:
        if isinstance(run, Pairwise):
            parts += [f"## All pairs of {len(run.hosts)} ranks ({_safe(run.name)})", *map(_table, tables.pairs(run))]
        else:
            parts.append(f"## {run.collective}, {run.ranks} ranks, {_safe(run.transport)} ({_safe(run.name)})")
            if drawn := lines([run]):
                parts.append(_table(tables.glance(drawn)))
            if run.roof and run.roof.points:
                parts.append(f"The roof is {_safe(run.roof.name)}: {_safe(run.roof.what)}.")
            parts += [_table(tables.compared(run))] if run.compared else []
            parts += [_table(tables.results(run))] if run.rows else []
        parts.append(_table(Table("Environment", ("what", "value"), run.facts, 2)))
    parts += ["## Formulas", "\n".join(f"- {_safe(formula)}" for formula in tables.FORMULAS), _table(tables.factors())]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rules = ["---" if i < table.words else "---:" for i in range(len(table.headings))]
    rows = [table.headings, rules, *table.rows]
    text = "\n".join("| " + " | ".join(map(_safe, row)) + " |" for row in rows)
    return f"### {_safe(table.title)}\n\n{text}"


def _safe(text: str) -> str:
    """The text as it is, for whoever renders Markdown."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def csv(runs: Sequence[Run | Pairwise]) -> str:
    """A line for each figure, with the columns `CSV_COLUMNS`; what does not apply is empty."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        for row in _pairs(run) if isinstance(run, Pairwise) else _figures(run):
            assert row.keys() <= set(CSV_COLUMNS), row
            writer.writerow(row.get(column, "") for column in CSV_COLUMNS)
    return out.getvalue()


def _figures(run: Run) -> Iterator[dict[str, object]]:
    about = {"file": run.name, "collective": run.collective, "ranks": run.ranks, "transport": run.transport}
    for row in run.rows:
        what = {"algorithm": row.algorithm, "type": row.dtype, "op": row.op, "root": row.root}
        what["size_bytes"] = f"{row.size_bytes}"
        for place, half in (("out of place", row.out_of_place), ("in place", row.in_place)):
            if half is not None:
                yield {**about, **what, "series": "measured", "place": place, **_half(half)}
        if row.predicted_us is not None:
            yield {**about, **what, "series": "predicted", "time_us": row.predicted_us}
    for c in run.compared:
        size = {"size_bytes": c.size_bytes, "place": "in place"}
        yield {**about, **size, "series": "compared", "algorithm": c.algorithm, "time_us": c.ours_us}
        for name, time_us in c.contenders_us.items():
            yield {**about, **size, "series": name, "algorithm": "", "time_us": time_us}
    for size_bytes, busbw in run.roof.points if run.roof else ():
        name = f"roof: {run.roof.name}" if run.roof else ""
        yield {**about, "series": name, "size_bytes": size_bytes, "busbw_gb_per_s": busbw}


def _pairs(run: Pairwise) -> Iterator[dict[str, object]]:
    for series, matrix in (("latency_us", run.latency_us), ("bandwidth_gb_per_s", run.bandwidth_gb_per_s)):
        for source, row in enumerate(matrix):
            for target, value in enumerate(row):
                if value is not None:
                    yield {"file": run.name, "series": series, "from": source, "to": target, "value": value}


def _half(half: Half) -> dict[str, object]:
    figures = {"time_us": half.time_us, "algbw_gb_per_s": half.algbw, "busbw_gb_per_s": half.busbw}
    return {**figures, "wrong": "" if half.wrong is None else half.wrong}
