"""What a plot shows: a line per algorithm and contender; and, dashed, the roof and what was predicted.

Where the runs of one plot differ in something (ranks, type, ...), it is part of the lines' names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..cases import COLLECTIVES, bandwidths
from .read import Row, Run

Points = tuple[tuple[int, float], ...]


class Line(NamedTuple):
    """A line of both plots. `kind`: "measured", "contender", "roof" or "prediction"."""

    name: str
    kind: str
    style: int  # of the colour and the mark; a prediction has that of its algorithm
    time_us: Points  # (size in bytes, value)
    busbw: Points  # GB/s


class _Named(NamedTuple):
    """A line before it is known which of its qualities tell it from the others."""

    what: str
    qualities: tuple[tuple[str, str], ...]
    kind: str
    times: Points
    ranks: int


def lines(runs: Sequence[Run]) -> list[Line]:
    """The lines of runs of one collective, algorithms first. Sizes and values of zero have no place on the axes."""
    found = [line for run in runs for line in (*_measured(run), *_contenders(run)) if line.times]
    predicted = [line for run in runs for line in _predictions(run) if line.times]
    collective = runs[0].collective
    name = _namer([*found, *predicted])
    styles = {name(line): style for style, line in enumerate(found)}
    made: list[Line] = []
    for line in (*found, *predicted):
        label = name(line)
        style = styles.get(label, 0)
        if line.kind == "prediction":
            label = f"{label}, predicted"
        made.append(Line(label, line.kind, style, line.times, _busbw(collective, line.times, line.ranks)))
    for run in runs:
        if run.roof and run.roof.points:
            tell = f", {run.name}" if len(runs) > 1 else ""
            points = tuple(point for point in run.roof.points if min(point) > 0)
            made.append(Line(f"roof: {run.roof.name}{tell}", "roof", 0, _floor(run, points), points))
    return made


def plotted(row: Row) -> float:
    """The microseconds that a row's line shows: in place where there is such a form, as contenders are measured."""
    return (row.in_place or row.out_of_place).time_us


def _measured(run: Run) -> Iterable[_Named]:
    """Ours: from the comparison where there is one, as that alternates with the contenders, else from the table."""
    if run.compared:
        for algorithm in dict.fromkeys(c.algorithm for c in run.compared):
            times = _points((c.size_bytes, c.ours_us) for c in run.compared if c.algorithm == algorithm)
            yield _Named(algorithm, _qualities(run, run.rows[0] if run.rows else None), "measured", times, run.ranks)
    else:
        yield from _by_quality(run, "measured", plotted)


def _contenders(run: Run) -> Iterable[_Named]:
    for contender in dict.fromkeys(name for c in run.compared for name in c.contenders_us):
        times = {c.size_bytes: c.contenders_us[contender] for c in run.compared if contender in c.contenders_us}
        qualities = _qualities(run, run.rows[0] if run.rows else None)
        yield _Named(contender, qualities, "contender", _points(times.items()), run.ranks)


def _predictions(run: Run) -> Iterable[_Named]:
    return _by_quality(run, "prediction", lambda row: row.predicted_us or 0.0)


def _by_quality(run: Run, kind: str, time_us: Callable[[Row], float]) -> Iterable[_Named]:
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Row]] = {}
    for row in run.rows:
        groups.setdefault((row.algorithm, _qualities(run, row)), []).append(row)
    for (algorithm, qualities), rows in groups.items():
        yield _Named(algorithm, qualities, kind, _points((r.size_bytes, time_us(r)) for r in rows), run.ranks)


def _qualities(run: Run, row: Row | None) -> tuple[tuple[str, str], ...]:
    of_row = (("type", row.dtype), ("op", row.op), ("root", f"root {row.root}")) if row else ()
    return ("ranks", f"{run.ranks} ranks"), ("transport", run.transport), *of_row, ("run", run.name)


def _namer(found: Sequence[_Named]) -> Callable[[_Named], str]:
    """Names with the qualities in which lines differ; the run is named only where nothing else tells two apart."""
    values: dict[str, set[str]] = {}
    for line in found:
        for key, value in line.qualities:
            values.setdefault(key, set()).add(value)
    telling = [key for key in values if key != "run" and len(values[key]) > 1]

    def name(line: _Named, keys: Sequence[str] = telling) -> str:
        return ", ".join([line.what, *(value for key, value in line.qualities if key in keys)])

    taken = [(name(line), line.kind) for line in found]
    return name if len(set(taken)) == len(taken) else lambda line: name(line, [*telling, "run"])


def _points(pairs: Iterable[tuple[int, float]]) -> Points:
    return tuple(sorted((size, value) for size, value in pairs if size > 0 and value > 0))


def _busbw(collective: str, times: Points, ranks: int) -> Points:
    made = ((size, bandwidths(collective, size, time_us, ranks)[1]) for size, time_us in times)
    return tuple((size, busbw) for size, busbw in made if busbw > 0)


def _floor(run: Run, points: Points) -> Points:
    """The times that go with busbw at the roof."""
    factor = COLLECTIVES[run.collective].bus_factor(run.ranks)
    return tuple((size, size * factor / busbw / 1e3) for size, busbw in points if factor > 0)
