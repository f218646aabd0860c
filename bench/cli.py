"""The `treering` command: `treering bench COLLECTIVE ...`, which `python -m bench COLLECTIVE ...` is as well.

`bench cluster` runs the same on an emulated cluster (emulate/command.py), `bench pairwise` measures every pair of ranks
(pairwise/command.py), `bench simulate` needs no ranks at all (simulate/command.py), `bench zero` measures steps of
training (zero/command.py); `treering report`, also `python -m bench report`, makes a page of the JSON of runs
(report/command.py); `treering zero estimate` is about memory (zero/estimate.py), `treering checkpoint` about files
(zero/checkpoint.py).

Exit status: 0, 1 when data was wrong or a rank failed, 2 for a command line that makes no sense, 130 after
Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import options
from .emulate import command as emulate_command
from .pairwise import command as pairwise_command
from .report import command as report_command
from .start import start
from .zero import checkpoint as zero_checkpoint
from .zero import estimate as zero_estimate

if TYPE_CHECKING:
    from collectives import Communicator

COMMANDS = ("bench",)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    named = bool(given) and given[0] in COMMANDS
    if named:
        given = given[1:]
    prog = "treering bench" if named else "python -m bench"
    try:
        if given and given[0] == "cluster":
            return emulate_command.main(given[1:], f"{prog} cluster")
        if given and given[0] == "report":
            return report_command.main(given[1:], "treering report")
        if given and given[0] == "pairwise":
            return pairwise_command.main(given[1:], f"{prog} pairwise")
        if given and given[0] == "simulate":
            from .simulate import command as simulate_command  # the others need no simulator, and start without it

            return simulate_command.main(given[1:], f"{prog} simulate")
        if given and given[0] == "checkpoint":
            return zero_checkpoint.main(given[1:], "treering checkpoint")
        if given[:2] == ["zero", "estimate"]:
            return zero_estimate.main(given[2:], "treering zero estimate")
        if given and given[0] == "zero":
            from .zero import command as zero_command

            return zero_command.main(given[1:], f"{prog} zero")
        chosen = options.parse(given, prog)

        def measure(comm: Communicator) -> bool:
            from .session import Session  # after the command line made sense: this loads numpy

            return Session(comm, chosen, given).run()

        return start(given, measure, ranks=chosen.ranks, transport=chosen.transport, timeout_s=chosen.timeout_s)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
