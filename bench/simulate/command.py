"""The command line of `bench simulate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from collectives.plan import COLLECTIVES
from collectives.simulate import SEGMENT_BYTES, Ports

from .. import jsonfile, sizes, trace
from . import clusters, table
from .contestants import Entry, enter
from .picture import picture
from .tracing import refuse_long, traced

PORTS = ("overlapped", "one_port")


class Options(NamedTuple):
    """What the flags say, and the clusters and plans they mean: nothing is left that could be wrong."""

    collective: str
    sizes: tuple[int, ...]
    ports: Ports
    segment_bytes: int
    entries: list[Entry]
    svg_path: str | None
    trace_path: str | None
    json_path: str | None


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --cluster FILE|PRESET [flags]",
        description="Simulate a collective on a cluster: its very steps in virtual time, without starting a rank. "
        "Sizes take K, M and G (binary) and mean the whole array.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("--cluster", required=True, metavar="FILE|PRESET", help="a file, or a preset such as 'hosts(4, 8)'")
    flag(
        "--ranks",
        type=_numbers,
        default=(),
        metavar="N[,N]",
        help="a cluster for each, made of --cluster 'hosts({n}/8, 8)'",
    )
    flag(
        "--collective",
        choices=tuple(COLLECTIVES),
        default="all_reduce",
        metavar="NAME",
        help=f"of {', '.join(COLLECTIVES)} (all_reduce)",
    )
    flag("--algorithm", default="all", metavar="NAME[,NAME]", help="all, auto, or names (all)")
    flag("-b", "--minbytes", type=_size, default=1 << 10, metavar="SIZE", help="smallest size (1K)")
    flag("-e", "--maxbytes", type=_size, default=None, metavar="SIZE", help="largest size (64M)")
    flag("-f", "--stepfactor", type=int, default=4, metavar="N", help="from size to size (4)")
    flag("-r", "--root", type=int, default=0, metavar="RANK", help="of rooted collectives (0)")
    flag("--ports", choices=PORTS, default=PORTS[0], help="how latency is counted (overlapped)")
    flag("--segment", type=_size, default=SEGMENT_BYTES, metavar="SIZE", help="what is moved at a time (64K)")
    flag("--svg", default=None, metavar="FILE", help="draw the times there")
    flag("--trace", default=None, metavar="FILE", help="trace the largest size there, for Perfetto")
    flag("-J", "--json", default=None, metavar="FILE", help="write the table there")
    return made


def parse(argv: Sequence[str], prog: str) -> Options:
    """Options, or exit status 2 with a message that says what was given and what would be right."""
    made = parser(prog)
    given = made.parse_args(argv)
    least: int = given.minbytes
    most: int = max(least, 64 << 20) if given.maxbytes is None else given.maxbytes
    if most < least:
        made.error(f"-e {sizes.spell(most)} is below -b {sizes.spell(least)}")
    if given.stepfactor < 2:
        made.error(f"-f {given.stepfactor} is not a whole number of at least 2")
    if given.segment < 1:
        made.error("--segment takes at least a byte")
    for flag, path in (("--svg", given.svg), ("--trace", given.trace), ("-J", given.json)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            made.error(f"{flag} {path}: there is no folder {Path(path).absolute().parent}")
    if given.trace and len(given.ranks) > 1:
        made.error("--trace shows one cluster: give --ranks one number, or leave it out")
    all_sizes = tuple(sizes.steps(least, most, 0, given.stepfactor)) if given.collective != "barrier" else (0,)
    if given.svg and not max(all_sizes) and len(given.ranks) < 2:
        made.error("--svg has logarithmic axes: give sizes above 0, or several --ranks")
    try:
        found = clusters.make(given.cluster, given.ranks)
    except ValueError as error:
        made.error(f"--cluster: {error}")
    try:
        what = (given.collective, given.algorithm, given.root, all_sizes, given.segment, given.ports)
        entries = [enter(cluster, *what) for cluster in found]
        if not any(entry.contestants for entry in entries):
            raise ValueError("; ".join(text for entry in entries for text in entry.left_out))
        if given.trace:
            refuse_long(entries[0].contestants, all_sizes[-1], given.segment)
    except ValueError as error:
        made.error(str(error))
    ports = cast(Ports, given.ports)
    return Options(given.collective, all_sizes, ports, given.segment, entries, given.svg, given.trace, given.json)


def main(argv: Sequence[str], prog: str) -> int:
    """`bench simulate ARGV`; the exit status: 0, 1 when nothing takes any time, which cannot be drawn."""
    options = parse(argv, prog)
    rows = run(options)
    if options.json_path:
        said = table.document(options.collective, rows, options.ports, options.segment_bytes)
        jsonfile.write(options.json_path, {**said, "args": ["simulate", *argv]})
        print(f"# JSON written to {options.json_path}")
    if options.svg_path:
        first, last = options.entries[0].cluster, options.entries[-1].cluster
        where = first.name if first is last else f"{first.name} to {last.name}"
        try:
            drawn = picture(f"{options.collective} on {where}, simulated", rows)
        except ValueError as error:
            print(f"treering: --svg: {error}", file=sys.stderr)
            return 1
        jsonfile.write_text(options.svg_path, drawn)
        print(f"# SVG written to {options.svg_path}")
    if options.trace_path:
        cluster, contestants, _ = options.entries[0]
        trace.write(
            options.trace_path, *traced(cluster, contestants, options.sizes[-1], options.ports, options.segment_bytes)
        )
        print(f"# trace written to {options.trace_path}")
    return 0


def run(options: Options) -> list[table.Row]:
    """Simulates, and prints each row when it is there."""
    contestants = [contestant for entry in options.entries for contestant in entry.contestants]
    width = max(len(c.label(nbytes)) + 2 * c.closed_form for c in contestants for nbytes in options.sizes)
    width = max(width, len("algorithm"))
    places = [entry.cluster for entry in options.entries]
    print(table.header(options.collective, places, options.ports, options.segment_bytes, width), flush=True)
    rows: list[table.Row] = []
    for entry in options.entries:
        for nbytes in options.sizes:
            for contestant in entry.contestants:
                row = table.simulated(entry.cluster, contestant, nbytes, options.ports, options.segment_bytes)
                rows.append(row)
                print(table.line(row, width), flush=True)
    for entry in options.entries:
        for text in entry.left_out:
            print(f"# {entry.cluster.size:,} ranks: {text}")
    if any(row.closed_form for row in rows):
        print("# * by the closed form: the longest chain of messages, and the load of the busiest link")
    return rows


def _size(text: str) -> int:
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers with commas between them") from None
