"""`treering checkpoint consolidate`: one plain file of weights out of a checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog, description="Checkpoints of the ZeRO optimizer.", allow_abbrev=False)
    words = made.add_subparsers(dest="word", required=True)
    consolidate = words.add_parser(
        "consolidate",
        help="one plain state dict of all weights",
        description="Writes all weights of a checkpoint, whole, into one file that needs nothing of treering: a plain "
        "state dict for torch's load_state_dict. PATH is a checkpoint of ZeroOptimizer.save, or a folder of "
        "DeepSpeed's (stages 1 to 3).",
    )
    consolidate.add_argument("path", metavar="PATH", help="the folder of the checkpoint")
    consolidate.add_argument(
        "-o",
        "--output",
        default=None,
        metavar="FILE",
        help="a .safetensors or .pt file (PATH/consolidated.safetensors)",
    )
    return made


def main(argv: Sequence[str], prog: str) -> int:
    given = parser(prog).parse_args(argv)
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"treering: {' and '.join(missing)} missing: pip install 'treering[zero]'", file=sys.stderr)
        return 1
    from collectives.zero.consolidate import consolidate  # loads torch, which --help does without

    output = Path(given.path, "consolidated.safetensors") if given.output is None else Path(given.output)
    try:
        consolidate(given.path, output)
    except (ValueError, OSError) as error:
        print(f"treering: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0
