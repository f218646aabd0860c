"""The command line of one measurement: nccl-tests' flags by their names, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import check, compare, report, sizes
from .arrays import LIBRARIES
from .cases import COLLECTIVES
from .table import OP_NAMES, TYPE_NAMES

TRANSPORTS = ("auto", "shm", "tcp", "inproc", "mpi", "torch")
THEIR_TYPES = {theirs: ours for ours, theirs in TYPE_NAMES.items()}
THEIR_OPS = {theirs: ours for ours, theirs in OP_NAMES.items()}


class Options(NamedTuple):
    """What the flags say, checked as far as one process can: `parse` never returns a contradiction."""

    collective: str
    minimum_bytes: int
    maximum_bytes: int
    step_bytes: int
    step_factor: int
    iterations: int
    warmup: int
    reductions: tuple[tuple[str, str], ...]  # (dtype, op) pairs that have a meaning
    root: int  # -1: every rank in turn
    checks: int
    json_path: str | None
    report_path: str | None
    trace_path: str | None
    ranks: int | None
    algorithms: tuple[str, ...]
    transport: str
    library: str
    prepared: bool
    reproducible: bool
    cluster: str | None  # what "auto" goes by: a file, or a cluster by name
    measured: bool
    tuned: bool
    contenders: tuple[str, ...]
    pythons: tuple[str, ...]  # one for each contender
    timeout_s: float

    @property
    def predicts(self) -> bool:
        """Whether enough is known of the machines to say how long calls will take."""
        return self.cluster is not None or self.measured or self.tuned

    def sizes(self) -> tuple[int, ...]:
        return tuple(sizes.steps(self.minimum_bytes, self.maximum_bytes, self.step_bytes, self.step_factor))


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COLLECTIVE [flags]",
        description="Measure a collective and check what it computes. Starts ranks with --ranks, or is one "
        "rank under torchrun, mpirun or srun. Sizes take K, M and G (binary) and mean the whole array.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("collective", metavar="COLLECTIVE", choices=COLLECTIVES, help=", ".join(COLLECTIVES))
    flag("-b", "--minbytes", type=_size, default=32 << 20, metavar="SIZE", help="smallest size (32M)")
    flag(
        "-e",
        "--maxbytes",
        type=_size,
        default=None,
        metavar="SIZE",
        help="largest size (32M)",
    )
    flag("-i", "--stepbytes", type=_size, default=1 << 20, metavar="SIZE", help="added from size to size (1M)")
    flag("-f", "--stepfactor", type=_at_least(1), default=1, metavar="N", help="or multiplied, if above 1")
    flag("-n", "--iters", type=_at_least(1), default=20, metavar="N", help="calls in a timed loop (20)")
    flag(
        "-w",
        "--warmup_iters",
        "--warmup-iters",
        type=_at_least(0),
        default=1,
        metavar="N",
        help="before it (1)",
    )
    flag(
        "-d",
        "--datatype",
        default="float32",
        metavar="TYPE",
        help=f"all, or of {', '.join(check.DTYPES)} (float32)",
    )
    flag("-o", "--op", default="sum", metavar="OP", help=f"all, or of {', '.join(check.OPS)} (sum)")
    flag(
        "-r",
        "--root",
        type=_at_least(-1),
        default=0,
        metavar="RANK",
        help="of rooted collectives; -1: each in turn",
    )
    flag(
        "-c",
        "--check",
        type=_at_least(0),
        default=1,
        metavar="N",
        help="checks of the data per size; 0: none (1)",
    )
    flag(
        "-J",
        "--output_file",
        "--output-file",
        default=None,
        metavar="FILE",
        help="write nccl-tests' JSON there",
    )
    flag("--report", default=None, metavar="FILE", help="write a report there: .html, .md or .csv")
    flag("--trace", default=None, metavar="FILE", help="trace one call of each size, for Perfetto")
    flag("--ranks", type=_at_least(1), default=None, metavar="N", help="start N ranks on this machine")
    flag("--algorithm", default="auto", metavar="NAME[,NAME]", help="auto, all, or names (auto)")
    flag(
        "--transport",
        choices=TRANSPORTS,
        default="auto",
        help="how bytes move; inproc: ranks are threads (auto)",
    )
    flag("--array", choices=LIBRARIES, default="numpy", help="whose arrays are passed (numpy)")
    flag("--prepared", action="store_true", help="resolve each call once, then repeat it")
    flag("--reproducible", action="store_true", help="calls with the same bits whatever the size, and what that costs")
    flag("--cluster", default=None, metavar="CLUSTER", help="the machines: a file, or 'hosts(4, 8)'; shows predictions")
    flag("--measure", action="store_true", help="measure the machines first (comm.measure); shows predictions")
    flag("--tune", action="store_true", help="measure all algorithms first (comm.tune), so that auto knows them")
    flag("--compare", default="", metavar="NAME[,NAME]", help=f"measure beside {', '.join(compare.NAMES)}")
    for name in compare.NAMES:
        flag(f"--{name}-python", default=None, metavar="PYTHON", help=f"the Python that has {name}")
    flag(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without progress that end the run (60)",
    )
    return made


def parse(argv: Sequence[str], prog: str) -> Options:
    """Options, or exit status 2 with a message that says what was given and what would be right."""
    made = parser(prog)
    given = made.parse_args(argv)
    collective: str = given.collective
    maximum_bytes: int = max(given.minbytes, 32 << 20) if given.maxbytes is None else given.maxbytes
    if maximum_bytes < given.minbytes:
        made.error(f"-e {sizes.spell(maximum_bytes)} is below -b {sizes.spell(given.minbytes)}")
    if given.stepfactor == 1 and given.stepbytes == 0 and maximum_bytes > given.minbytes:
        made.error("-i 0 never reaches -e")
    for flag, path in (("-J", given.output_file), ("--report", given.report), ("--trace", given.trace)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            made.error(f"{flag} {path}: there is no folder {Path(path).absolute().parent}")
    if given.report is not None and not given.report.endswith(report.FORMATS):
        made.error(f"--report {given.report}: its name must end with one of {', '.join(report.FORMATS)}")
    if given.cluster is not None:
        from topology import load  # not needed, and numpy not loaded, without it

        try:
            load(given.cluster)
        except (OSError, ValueError) as error:
            made.error(f"--cluster {given.cluster}: {error}")
    if given.tune:
        from collectives.tune import TUNED  # not needed, and numpy not loaded, without it

        if collective not in TUNED:
            made.error(f"--tune is about {', '.join(TUNED)}")
    if given.timeout <= 0:
        made.error("--timeout takes seconds above 0")
    if collective == "barrier":
        given.minbytes = maximum_bytes = 0
    contenders: tuple[str, ...] = ()
    if given.compare:
        contenders = _names(made, "--compare", given.compare, compare.NAMES)
    reductions = _reductions(made, collective, given.datatype, given.op)
    first_dtype, first_op = reductions[0]
    if given.reproducible and not COLLECTIVES[collective].reduces:
        made.error(f"--reproducible is about collectives that reduce, which {collective} does not")
    if given.reproducible and given.algorithm == "all":
        made.error("--reproducible takes auto, or the names of algorithms whose order is canonical")
    beside = "--compare" if contenders else "--reproducible" if given.reproducible else ""
    if beside and (len(reductions) > 1 or given.root < 0):
        made.error(f"{beside} measures one data type, one op and one root at a time")
    pythons: list[str] = []
    for name in contenders:
        try:
            compare.refuse_unsupported(name, collective, first_dtype, first_op)
            pythons.append(str(compare.find_python(name, getattr(given, f"{name}_python"))))
        except compare.ContenderError as error:
            made.error(str(error))
    if given.ranks and given.root >= given.ranks:
        made.error(f"-r {given.root} is not a rank: there are {given.ranks}, from 0")
    return Options(
        collective=collective,
        minimum_bytes=given.minbytes,
        maximum_bytes=maximum_bytes,
        step_bytes=given.stepbytes,
        step_factor=given.stepfactor,
        iterations=given.iters,
        warmup=given.warmup_iters,
        reductions=reductions,
        root=given.root if COLLECTIVES[collective].rooted else -1,
        checks=given.check,
        json_path=given.output_file,
        report_path=given.report,
        trace_path=given.trace,
        ranks=given.ranks,
        algorithms=_algorithms(made, collective, given.algorithm),
        transport=given.transport,
        library=given.array,
        prepared=given.prepared,
        reproducible=given.reproducible,
        cluster=given.cluster,
        measured=given.measure,
        tuned=given.tune,
        contenders=contenders,
        pythons=tuple(pythons),
        timeout_s=given.timeout,
    )


def _size(text: str) -> int:
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _at_least:  # noqa: N801 - reads as a type in the table of flags
    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self.least - 1
        if value < self.least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {self.least}")
        return value


def _names(made: argparse.ArgumentParser, flag: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            made.error(f"{flag} {name!r} is not known; there are {', '.join(known)}")
    return names


def _reductions(made: argparse.ArgumentParser, collective: str, dtype: str, op: str) -> tuple[tuple[str, str], ...]:
    dtype, op = THEIR_TYPES.get(dtype, dtype), THEIR_OPS.get(op, op)
    dtypes = check.DTYPES if dtype == "all" else _names(made, "--datatype", dtype, check.DTYPES)
    if not COLLECTIVES[collective].reduces:
        return tuple((name, "none") for name in dtypes)
    ops = check.OPS if op == "all" else _names(made, "--op", op, check.OPS)
    pairs = tuple((d, o) for d in dtypes for o in ops if check.supports(d, o))
    if not pairs:
        made.error(f"--op {op} has no meaning for {dtype}")
    return pairs


def _algorithms(made: argparse.ArgumentParser, collective: str, text: str) -> tuple[str, ...]:
    if text == "auto":
        return ("auto",)
    from collectives.plan import algorithms  # not needed, and numpy not loaded, for --help and for auto

    known = algorithms(collective)
    return known if text == "all" else _names(made, "--algorithm", text, ("auto", *known))
