"""`treering zero estimate`: what each stage of ZeRO holds per rank, by the paper and by DeepSpeed's estimators."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collectives.zero.estimate import Estimate

GB = 1e9


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        description="What each rank holds at each stage: parameters, gradients, fp32 master weights and the "
        "optimizer's states, in GB of 10^9 bytes, without activations. Formulas of the ZeRO paper (SC 2020); beside "
        "them what DeepSpeed's own estimators say.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("--params", type=_count, required=True, metavar="N", help="parameters of the model: 7.5e9")
    flag("--ranks", type=_positive, required=True, metavar="N", help="ranks that share the model's states")
    flag("--precision", choices=("16-bit", "fp32"), default="16-bit", help="16-bit has fp32 master weights (16-bit)")
    flag("--states", type=int, default=2, metavar="N", help="fp32 values the optimizer keeps per parameter (2: Adam)")
    flag("--largest-layer", type=_count, default=0, metavar="N", help="its parameters, for DeepSpeed's stage 3 (0)")
    return made


def main(argv: Sequence[str], prog: str) -> int:
    given = parser(prog).parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        print("treering: the package collectives.zero needs torch: pip install 'treering[zero]'", file=sys.stderr)
        return 1
    from collectives.zero.estimate import estimate  # loads torch, which --help does without

    rows = [
        estimate(
            given.params,
            stage=stage,
            world_size=given.ranks,
            precision=given.precision,
            state_elems=given.states,
            largest_layer=given.largest_layer,
        )
        for stage in range(4)
    ]
    print(table(rows))
    return 0


def table(rows: Sequence[Estimate]) -> str:
    """A line for each estimate, of the same model."""
    first = rows[0]
    kinds = list(first.device_bytes)
    names = [*kinds, "in all", "DeepSpeed", "sent/step"]
    lines = [
        f"# {first.parameters:,} parameters, {first.precision}, on {first.world_size} ranks: GB held per rank",
        f"# {'stage':>5}" + "".join(f"  {name:>10}" for name in names),
    ]
    for row in rows:
        theirs = row.deepspeed_device_bytes
        figures: list[int | None] = [*row.device_bytes.values(), row.total_bytes, theirs, row.sent_bytes]
        lines.append(f"{row.stage:>7}" + "".join(f"  {_gigabytes(figure):>10}" for figure in figures))
    return "\n".join(lines)


def _gigabytes(nbytes: int | None) -> str:
    """120, 31.4, 1.9: as many digits as the paper gives."""
    if nbytes is None:
        return "-"
    value = nbytes / GB
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.3g}"


def _count(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e18 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters")
    return int(value)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
