"""`treering report`: results that were kept as JSON, as one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import FORMATS, ReportError, write
from .read import read_file


def main(argv: Sequence[str], prog: str) -> int:
    """The exit status: 0, 1 for a file that is no result or cannot be written, 2 for a wrong command line."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Make one self-contained page (or Markdown, or CSV) of results that the bench wrote with -J.",
        allow_abbrev=False,
    )
    made.add_argument("results", nargs="+", metavar="RESULT.json", help="what `treering bench ... -J FILE` wrote")
    made.add_argument("-o", "--output", required=True, metavar="FILE", help=f"to write: {', '.join(FORMATS)}")
    given = made.parse_args(argv)
    if not given.output.endswith(FORMATS):
        made.error(f"-o {given.output}: its name must end with one of {', '.join(FORMATS)}")
    paths: list[str] = given.results
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):  # files of one name in several folders
        names = paths
    try:
        write(given.output, [(name, read_file(path)) for name, path in zip(names, paths, strict=True)])
    except (ReportError, OSError) as error:
        print(f"treering: {error}", file=sys.stderr)
        return 1
    return 0
