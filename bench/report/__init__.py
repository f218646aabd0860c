"""Reports of results: one self-contained HTML page, Markdown, or CSV, from the JSON files of the bench.

    read.py      the JSON of a run, checked, as records
    lines.py     what a plot shows: a line per algorithm, contender, roof and prediction
    plot.py      lines as SVG on logarithmic axes; heatmap.py: a matrix of pairs as SVG
    tables.py    what is shown as a table, for all formats
    page.py      the HTML page; plain.py: Markdown and CSV
    command.py   `treering report`

May import what is beside it in `bench`; nothing here measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import jsonfile
from .read import ReportError, read_document

FORMATS = (".html", ".md", ".csv")

__all__ = ["FORMATS", "ReportError", "write"]


def write(path: str, documents: Sequence[tuple[str, Any]]) -> None:
    """Write a report of (name, JSON document) pairs; the end of `path` picks the format, one of `FORMATS`.

    Raises ReportError, naming the document, for one that is no result, ValueError for another format, and OSError.
    """
    from . import page, plain

    runs = [read_document(name, document) for name, document in documents]
    make = {".html": page.html, ".md": plain.markdown, ".csv": plain.csv}.get(Path(path).suffix)
    if make is None:
        raise ValueError(f"{path}: a report is one of {', '.join(FORMATS)}")
    jsonfile.write_text(path, make(runs))
