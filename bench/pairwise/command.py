"""The command line of `bench pairwise`, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import jsonfile, report, sizes
from bench.about import about
from bench.start import start
from bench.table import shrink

if TYPE_CHECKING:
    from collectives import Communicator

    from .matrix import Pairwise
    from .outliers import Outlier

TRANSPORTS = ("auto", "shm", "tcp", "inproc")
VERSION = 1
MOST_NAMED = 20
LARGEST_BYTES = 1 << 30


class Options(NamedTuple):
    ranks: int | None
    transport: str
    size_bytes: int
    json_path: str | None
    svg_path: str | None
    report_path: str | None
    timeout_s: float


def main(argv: Sequence[str], prog: str) -> int:
    """`bench pairwise ARGV`; the exit status."""
    chosen = parse(argv, prog)

    def body(comm: Communicator) -> bool:
        return run(comm, chosen, ["pairwise", *argv])

    given = ["pairwise", *argv]
    return start(given, body, ranks=chosen.ranks, transport=chosen.transport, timeout_s=chosen.timeout_s)


def parse(argv: Sequence[str], prog: str) -> Options:
    """Options, or exit status 2 with a message that says what was given and what would be right."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Measure latency and bandwidth of every pair of ranks, and name the slow links. Starts ranks with "
        "--ranks, or is one rank under torchrun, mpirun or srun.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("--ranks", type=int, default=None, metavar="N", help="start N ranks on this machine")
    flag("--transport", choices=TRANSPORTS, default="auto", help="how bytes move; inproc: ranks are threads (auto)")
    flag("-e", "--maxbytes", type=_size, default=4 << 20, metavar="SIZE", help="the message for the bandwidth (4M)")
    flag("-J", "--json", default=None, metavar="FILE", help="write the matrices there")
    flag("--svg", default=None, metavar="FILE", help="draw them there, as heat maps")
    flag("--report", default=None, metavar="FILE", help=f"write a report there: {', '.join(report.FORMATS)}")
    flag("--timeout", type=float, default=60.0, metavar="S", help="seconds without progress that end the run (60)")
    given = made.parse_args(argv)
    if given.ranks is not None and given.ranks < 1:
        made.error(f"--ranks {given.ranks} is not a whole number of at least 1")
    if not given.timeout > 0:
        made.error("--timeout takes seconds above 0")
    for path_flag, path in (("-J", given.json), ("--svg", given.svg), ("--report", given.report)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            made.error(f"{path_flag} {path}: there is no folder {Path(path).absolute().parent}")
    if given.report is not None and not given.report.endswith(report.FORMATS):
        made.error(f"--report {given.report}: its name must end with one of {', '.join(report.FORMATS)}")
    return Options(
        given.ranks, given.transport, given.maxbytes, given.json, given.svg, given.report, given.timeout
    )  # fmt: skip


def _size(text: str) -> int:
    try:
        size_bytes = sizes.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= size_bytes <= LARGEST_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 byte to {sizes.spell(LARGEST_BYTES)}")
    return size_bytes


def run(comm: Communicator, options: Options, args: Sequence[str]) -> bool:
    """What one rank does; only rank 0 prints and writes."""
    from .matrix import measure_pairs
    from .outliers import find_outliers, slow_ranks

    start_time = time.strftime("%Y-%m-%d %H:%M:%S")

    def tell(text: str) -> None:
        if comm.rank == 0 and sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)

    found = measure_pairs(comm, options.size_bytes, tell)
    tell("")
    if comm.rank:
        return True
    slow = find_outliers("latency", found.latency_us, found.levels)
    slow += find_outliers("bandwidth", found.bandwidth_gb_per_s, found.levels)
    print(text(found, slow, comm.transport), flush=True)
    for rank, level, count, pairs in slow_ranks(slow, found.levels):
        print(f"# Rank {rank} ({found.hosts[rank]}) is in {count} slow pairs of its {pairs} of class {level}")
    whole = {
        **document(found, slow),
        "start_time": start_time,
        "args": list(args),
        "config": {"ranks": comm.size, "transport": comm.transport},
        "treering": about(()),
    }
    if options.json_path:
        jsonfile.write(options.json_path, whole)
        print(f"# JSON written to {options.json_path}", flush=True)
    if options.svg_path:
        from .picture import picture

        jsonfile.write_text(options.svg_path, picture(found, slow))
        print(f"# SVG written to {options.svg_path}", flush=True)
    if options.report_path:
        report.write(options.report_path, [("pairwise", json.loads(json.dumps(whole)))])
        print(f"# report written to {options.report_path}", flush=True)
    return True


def text(found: Pairwise, slow: Sequence[Outlier], transport: str) -> str:
    """The two matrices as tables, and the slow pairs by name."""
    size = len(found.hosts)
    lines = [f"# All pairs of {size} ranks, {transport}; rows send, columns receive"]
    for number, host in enumerate(dict.fromkeys(found.hosts)):
        ranks = [str(rank) for rank, name in enumerate(found.hosts) if name == host]
        lines.append(f"# Host {number}: {host}, ranks {', '.join(ranks)}")
    for title, matrix in (
        ("Latency of a step (us)", found.latency_us),
        (f"Bandwidth of a message of {sizes.spell(found.size_bytes)} (GB/s)", found.bandwidth_gb_per_s),
    ):
        lines += ["#", f"# {title}", "#" + " " * 5 + "".join(f"{rank:>8}" for rank in range(size))]
        for rank, row in enumerate(matrix):
            cells = ("-" if value is None else figure(value) for value in row)
            lines.append(f"{rank:>6}" + "".join(f"  {cell:>6}" for cell in cells))
    lines.append("#")
    # A latency is the same both ways: it is named once.
    named = [o for o in slow if o.what == "bandwidth" or o.source < o.target]
    for o in named[:MOST_NAMED]:
        pair = f"{o.source} to {o.target}" if o.what == "bandwidth" else f"{o.source} and {o.target}"
        unit = "GB/s" if o.what == "bandwidth" else "us"
        lines.append(
            f"# Slow: ranks {pair}, {o.what} {figure(o.value)} {unit} where {figure(o.typical)} is typical of class "
            f"{o.level}: {o.factor:.1f} times slower"
        )
    if len(named) > MOST_NAMED:
        lines.append(f"# and {len(named) - MOST_NAMED} more slow pairs")
    return "\n".join([*lines, f"# {'Slow pairs':<20} : {len(named)}"])


def figure(value: float) -> str:
    """Three digits or more, in six columns."""
    return shrink(value, 6).strip() if value >= 10 else f"{value:#.3g}"


def document(found: Pairwise, slow: Sequence[Outlier]) -> dict[str, Any]:
    """The JSON document, [from][to] in both matrices, null on the diagonal."""
    return {
        "kind": "pairwise",
        "version": VERSION,
        "hosts": found.hosts,
        "size_bytes": found.size_bytes,
        "latency_us": found.latency_us,
        "bandwidth_gb_per_s": found.bandwidth_gb_per_s,
        "levels": found.levels,
        "outliers": [
            {"from": o.source, "to": o.target, "what": o.what, "value": o.value, "typical": o.typical, "level": o.level}
            for o in slow
        ],
    }
