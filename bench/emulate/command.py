"""`python -m bench cluster`: the bench's measurements on the ranks of an emulated cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import options
from ..cases import COLLECTIVES
from .cluster import EmulatedCluster
from .layout import PLACEMENTS, Layout
from .model import spelled
from .namespace import EmulationError
from .rates import rate_argument

# Links are slow on purpose: fewer and smaller calls than on one machine, unless the flags say otherwise.
DEFAULTS = ("-b", "64K", "-e", "16M", "-f", "4", "-n", "5")
SIZES = ("-b", "--minbytes", "-e", "--maxbytes", "-i", "--stepbytes", "-f", "--stepfactor")


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [COLLECTIVE ...] --hosts N --link RATE [flags]",
        description="Measure collectives on an emulated cluster: hosts are network namespaces, joined by links of the "
        "given rate in each direction. All is removed at the end. Needs Linux, root and iproute2. "
        f"COLLECTIVE is of {', '.join(COLLECTIVES)} (all_reduce). Other flags are the bench's own; "
        f"without any about sizes they are {' '.join(DEFAULTS)}.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("--hosts", type=int, required=True, metavar="N", help="hosts")
    flag("--ranks-per-host", type=int, default=1, metavar="N", help="ranks on each (1)")
    flag("--link", type=rate_argument, required=True, metavar="RATE", help="of a host's link: 200mbit, 1gbit")
    flag("--racks", type=int, default=1, metavar="N", help="divide the hosts over this many switches (1)")
    flag(
        "--uplink",
        type=rate_argument,
        default=None,
        metavar="RATE",
        help="of the link from a rack's switch to the others",
    )
    flag("--placement", choices=PLACEMENTS, default="contiguous", help="of ranks over hosts (contiguous)")
    return made


def main(argv: Sequence[str], prog: str) -> int:
    """The exit status: 0, 1 when data was wrong, a rank failed or no cluster can be made, 2 for a bad command line."""
    made = parser(prog)
    collectives = tuple(name for name in argv if name in COLLECTIVES) or ("all_reduce",)
    given, flags = made.parse_known_args([word for word in argv if word not in COLLECTIVES])
    layout = Layout(given.hosts, given.ranks_per_host, given.link, given.racks, given.uplink, given.placement)
    try:
        layout.check()
    except ValueError as error:
        made.error(str(error))
    sized = any(flag.startswith(SIZES) for flag in flags)
    flags = [*DEFAULTS[-2:], *flags] if sized else [*DEFAULTS, *flags]  # what is given comes later, and counts
    for collective in collectives:
        chosen = options.parse([collective, *flags], prog)
        if chosen.ranks is not None:
            made.error("--ranks is for one machine: here it is --hosts times --ranks-per-host")
        if chosen.transport not in ("auto", "tcp"):
            made.error(f"--transport {chosen.transport} cannot reach other hosts")
        if chosen.root >= layout.size:
            made.error(f"-r {chosen.root} is not a rank: there are {layout.size}, from 0")
        if set(chosen.contenders) - {"gloo"}:
            made.error("--compare knows gloo alone here: others have launchers of their own")
        if len(collectives) > 1 and (chosen.json_path or chosen.report_path or chosen.trace_path):
            made.error("-J, --report and --trace take one collective at a time")
    try:
        with EmulatedCluster(**layout._asdict()) as cluster:
            return _measure(cluster, collectives, flags)
    except EmulationError as error:
        print(f"treering: {error}", file=sys.stderr)
        return 1


def _measure(cluster: EmulatedCluster, collectives: Sequence[str], flags: Sequence[str]) -> int:
    if not any(flag.split("=")[0] in ("--cluster", "--measure", "--tune") for flag in flags):
        flags = [*flags, "--cluster", spelled(cluster.layout)]
    with cluster.surroundings().published() as environment:
        for collective in collectives:
            status = cluster.run([sys.executable, "-m", "bench", collective, *flags], environment)
            if status:
                return status
    return 0
