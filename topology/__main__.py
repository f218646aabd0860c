"""`python -m topology`: what a cluster looks like, as a matrix, a file or a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from topology.discover import this_machine
from topology.files import parse_preset
from topology.matrix import show
from topology.nccl_xml import load
from topology.picture import svg


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m topology",
        description="Shows how the ranks of a cluster are connected, as `nvidia-smi topo -m` does for one machine.",
    )
    parser.add_argument(
        "file", nargs="?", help="a cluster as JSON, or what NCCL_TOPO_DUMP_FILE wrote; else this machine"
    )
    parser.add_argument("--preset", metavar="TEXT", help="a cluster by name, such as 'hosts(4, 8)' or 'torus(4, 4, 4)'")
    parser.add_argument("--json", action="store_true", help="print the cluster as a file instead of the matrix")
    parser.add_argument("--svg", metavar="FILE", help="draw the cluster")
    given = parser.parse_args(arguments)
    if given.preset and given.file:
        parser.error("give a file or --preset, not both")
    try:
        cluster = parse_preset(given.preset) if given.preset else load(given.file) if given.file else this_machine()
        if given.svg:
            Path(given.svg).write_text(svg(cluster), encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.stdout.write(cluster.to_json() if given.json else show(cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
