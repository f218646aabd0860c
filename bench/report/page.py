"""The HTML page: everything in one file, nothing fetched, and readable without its script.

The page forbids itself all else by a content security policy that knows its style sheet and its script by their hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from . import tables
from .heatmap import STYLE, heatmaps
from .lines import Line, lines
from .plot import css_class, mark, plot
from .read import Pairwise, Run
from .tables import Table

HYPHEN = "\N{NON-BREAKING HYPHEN}"


def html(runs: Sequence[Run | Pairwise]) -> str:
    """The page of these runs; those of one collective share their plots."""
    here = Path(__file__)
    style = STYLE + here.with_name("page.css").read_text(encoding="utf-8")
    script = here.with_name("page.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:"
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if isinstance(run, Run):
            groups.setdefault(run.collective, []).append(run)
    body = [_collective(f"c{i}", group) for i, group in enumerate(groups.values())]
    matrices = [run for run in runs if isinstance(run, Pairwise)]
    body += [_pairs(f"p{i}", matrix) for i, matrix in enumerate(matrices)]
    title = ", ".join([*groups, *(["all pairs"] if matrices else [])])
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}: bandwidth report</title>",
            f"<style>{style}</style></head>",
            f"<body><main><header><h1>Bandwidth report</h1><p>{escape(_summary(runs))}</p></header>",
            *body,
            _environment(runs),
            _formulas(),
            f"</main><script>{script}</script></body></html>\n",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(runs: Sequence[Run | Pairwise]) -> str:
    said: list[str] = []
    for run in runs:
        if isinstance(run, Pairwise):
            said.append(f"all pairs of {len(run.hosts)} ranks")
        else:
            said.append(f"{run.collective} on {run.ranks} ranks, transport {run.transport}")
    return "; ".join(dict.fromkeys(said)) + "."


def _collective(name: str, runs: Sequence[Run]) -> str:
    drawn = lines(runs)
    parts = [f'<section id="{name}"><h2>{escape(runs[0].collective)}</h2>']
    plots = [
        plot(f"{name}-busbw", "Bus bandwidth", "GB/s", drawn, [line.busbw for line in drawn]),
        plot(f"{name}-time", "Time of a call", "µs", drawn, [line.time_us for line in drawn]),
    ]
    if any(plots):
        figures = "".join(f"<figure>{svg}</figure>" for svg in plots if svg)
        parts.append(f'<div class="plots">{figures}</div>{_legend(name, drawn)}')
        parts += [f'<p class="note">{escape(text)}</p>' for text in _notes(runs)]
        parts.append(_table(tables.glance(drawn)))
    for run in runs:
        tell = f" ({run.name})" if len(runs) > 1 else ""
        if run.compared:
            parts.append(_table(tables.compared(run), tell))
        if run.rows:
            parts.append(_table(tables.results(run), tell))
    return "".join([*parts, "</section>"])


def _legend(name: str, drawn: Sequence[Line]) -> str:
    """What the lines are; the script makes the boxes switch them."""
    parts = [f'<ul class="legend" aria-label="Lines of the plots" data-section="{name}">']
    for number, line in enumerate(drawn):
        shape = mark(line.style) if line.kind in ("measured", "contender") else ""
        parts.append(
            f'<li><label><input type="checkbox" checked data-line="{number}">'
            f'<svg class="key line {css_class(line)}" viewBox="-16 -7 32 14" aria-hidden="true">'
            f'<path class="way" d="M-15 0H15"/><g class="mark">{shape}</g></svg>{escape(line.name)}</label></li>'
        )
    return "".join([*parts, "</ul>"])


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = ["In place where the collective has such a form. Both axes are logarithmic."]
    roofs = dict.fromkeys((run.roof.name, run.roof.what) for run in runs if run.roof and run.roof.points)
    notes += [f"Roof, {name}: {what}." for name, what in roofs]
    if any(run.compared for run in runs):
        notes.append("Times beside other libraries are medians over alternating rounds.")
    return notes


def _pairs(name: str, matrix: Pairwise) -> str:
    maps = heatmaps(name, matrix.hosts, matrix.bandwidth_gb_per_s, matrix.latency_us, matrix.outliers)
    figures = "".join(f'<figure class="wide">{svg}</figure>' for svg in maps)
    shown = "".join(map(_table, tables.pairs(matrix)))
    return f'<section id="{name}"><h2>All pairs</h2><div class="plots">{figures}</div>{shown}</section>'


def _environment(runs: Sequence[Run | Pairwise]) -> str:
    parts = ["<section><h2>Environment</h2>"]
    for run in (run for run in runs if run.facts):
        facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in run.facts)
        parts.append(f"<h3>{escape(run.name)}</h3><dl>{facts}</dl>")
    return "".join([*parts, "</section>"])


def _formulas() -> str:
    formulas = "".join(f"<li>{escape(formula)}</li>" for formula in tables.FORMULAS)
    return f"<section><h2>Formulas</h2><ul>{formulas}</ul>{_table(tables.factors())}</section>"


def _table(table: Table, tell: str = "") -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        words = [' class="word"' if i < table.words else "" for i in range(len(texts))]
        return "".join(f"<{tag}{word}>{escape(text)}</{tag}>" for word, text in zip(words, texts, strict=True))

    head = cells("th", [text.replace("-", HYPHEN) for text in table.headings])
    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return (
        f"<h3>{escape(table.title + tell)}</h3>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
