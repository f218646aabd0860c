"""`python -m bench zero`: a training step at each stage, beside DDP, ZeroRedundancyOptimizer, FSDP2 and DeepSpeed.

Every trainer is a group of processes of its own that sleeps while another is measured; a round measures each in turn,
so that a noisy minute falls on all. The model, its first weights and the data are the same for all.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import compare, jsonfile, sizes
from ..about import about
from ..contenders import training, worker
from ..contenders.training import Settings
from ..control import Conductor, ContenderError
from ..emulate import EmulatedCluster, EmulationError
from ..emulate.rates import rate_argument
from . import files
from .forms import FORMS

PEERS = ("ddp", "zero_redundancy", "fsdp2", "deepspeed")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


class Row(NamedTuple):
    """Medians over the rounds, means over the ranks; bytes per rank."""

    name: str
    stage: int  # -1 for a peer without stages
    step_ms: float
    sent_bytes: float
    beyond_bytes: float  # of these, beyond the group; NaN without --group, and for peers
    exposed_ms: float  # NaN where nobody can tell
    peak_bytes: float


class Trainers(compare.Contender):
    """The processes of one trainer; `measure` and `close` are those of any contender."""

    def __init__(self, name: str, python: Path, settings: Settings, cluster: EmulatedCluster | None) -> None:
        self.name = name
        self._conductor = Conductor()
        self._log = Path(self._conductor.directory) / "log"
        self._processes = []
        module = ["-m", "bench.zero.ours"] if settings.kind == "zero" else [training.__file__]
        store = Path(self._conductor.directory) / "store"
        if settings.kind == "zero":
            store.mkdir()
        try:
            for rank in range(settings.size):
                own = settings._replace(rank=rank, store=str(store))
                where = [] if cluster is None else cluster.command(rank)
                more = {} if cluster is None else cluster.environment(rank, str(store))
                self._launch(
                    [*where, str(python), *module, settings.kind, self._conductor.path, json.dumps(own._asdict())],
                    {**_environment(), **more},
                )
            self._conductor.wait_for(settings.size, compare.START_TIMEOUT_S, self._alive)
        except ContenderError as error:
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def of(self, quantity: str, iterations: int, warmup: int = 0) -> float:
        """Mean over the ranks of what training.py calls so."""
        return self.measure(worker.Command(0, warmup, iterations, quantity)).median_us


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(compare.LAUNCHER_VARIABLES)}
    root = str(Path(__file__).resolve().parents[2])
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")])),
    }


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        description="Measure training steps of the ZeRO optimizer on this machine: time, bytes sent, exposed "
        "communication, peak memory. The model is an MLP, in fp32, with AdamW; one torch thread a rank.",
        allow_abbrev=False,
    )
    flag = made.add_argument
    flag("--ranks", type=_positive, default=2, metavar="N", help="ranks of each trainer (2)")
    flag("--stages", default="0,1,2,3", metavar="S[,S]", help="ours (0,1,2,3)")
    flag("--buckets", default=None, metavar="SIZE[,SIZE]", help="ours, with bucket_bytes of each: 8M,32M (its default)")
    flag("--blocks", type=_positive, default=8, metavar="N", help="of the model (8)")
    flag("--width", type=_positive, default=512, metavar="N", help="of its inputs and outputs (512)")
    flag("--hidden", type=_positive, default=2048, metavar="N", help="inside a block (2048)")
    flag("--batch", type=_positive, default=8, metavar="N", help="samples a rank and step (8)")
    flag("-n", "--iters", type=_positive, default=5, metavar="N", help="steps in a timed loop (5)")
    flag("--rounds", type=_positive, default=5, metavar="N", help="loops of each, in turn (5)")
    flag("--group", type=_positive, default=0, metavar="N", help="count N ranks as a host, and what leaves it")
    flag(
        "--link",
        type=rate_argument,
        default=None,
        metavar="RATE",
        help="emulate such hosts, with links of this rate (200mbit)",
    )
    flag("--forms", default="", metavar="NAME[,NAME]", help=f"with --group, stage 3 also as {', '.join(FORMS)}")
    flag("--offload", default="", metavar="DIRECTORY", help="measure ours also with what they can offload, in files")
    flag("--compare", default="", metavar="NAME[,NAME]", help=f"measure beside {', '.join(PEERS)}")
    flag("--deepspeed-python", default=None, metavar="PYTHON", help="the Python that has it (.venv-deepspeed)")
    flag("-J", "--output_file", "--output-file", default=None, metavar="FILE", help="write the figures as JSON")
    return made


def main(argv: Sequence[str], prog: str) -> int:
    made = parser(prog)
    given = made.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        made.error("torch is missing: pip install 'treering[zero]'")
    stages = [int(word) if word in "0123" and len(word) == 1 else -1 for word in given.stages.split(",")]
    if min(stages) < 0:
        made.error(f"--stages {given.stages}: takes some of 0, 1, 2, 3")
    forms = list(dict.fromkeys(given.forms.split(","))) if given.forms else []
    for name in forms:
        if name not in FORMS:
            made.error(f"--forms {name!r} is not known; there are {', '.join(FORMS)}")
    if forms and not given.group:
        made.error("--forms needs --group")
    if given.group and given.ranks % given.group:
        made.error(f"--group {given.group} does not divide --ranks {given.ranks}")
    try:
        buckets = [sizes.parse_size(word) for word in given.buckets.split(",")] if given.buckets else [0]
    except ValueError as error:
        made.error(f"--buckets {error}")
    peers = list(dict.fromkeys(given.compare.split(","))) if given.compare else []
    for name in peers:
        if name not in PEERS:
            made.error(f"--compare {name!r} is not known; there are {', '.join(PEERS)}")
    if given.offload and not Path(given.offload).is_dir():
        made.error(f"--offload {given.offload}: there is no such folder")
    if given.output_file and not Path(given.output_file).absolute().parent.is_dir():
        made.error(f"-J {given.output_file}: there is no such folder")
    if given.link and (not given.group or peers):
        made.error("--link needs --group, and is not for --compare")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that trainers are ended on the way
    try:
        trainers = _entrants(given, stages, buckets, forms, peers)
        start_time = time.strftime(TIME_FORMAT)
        parameters = given.blocks * (2 * given.width * given.hidden + given.width + given.hidden)
        print(
            f"# training step: {given.ranks} ranks, {parameters:,} parameters, fp32, AdamW, batch {given.batch} a rank"
        )
        moved: list[files.Moved] = []
        with contextlib.ExitStack() as stack:
            cluster = None
            if given.link:
                hosts = given.ranks // given.group
                cluster = stack.enter_context(EmulatedCluster(hosts, given.group, link_bytes_per_s=given.link))
                print(f"# {cluster.surroundings().text}")
            rows = measure(trainers, given, moved, cluster)
    except (ContenderError, EmulationError) as error:
        print(f"treering: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(table(rows, 4 * parameters * (given.ranks - 1) / given.ranks))
    if moved:
        print(files.table(moved))
    if given.output_file:
        document = {
            "start_time": start_time, "end_time": time.strftime(TIME_FORMAT), "args": list(argv),
            "config": {key: value for key, value in vars(given).items() if key != "output_file"},
            "parameters": parameters,
            "results": [{k: None if v != v else v for k, v in row._asdict().items()} for row in rows],
            "files": [row._asdict() for row in moved],
            "treering": about(("torch",)),
        }  # fmt: skip
        jsonfile.write(given.output_file, document)
        print(f"# JSON written to {given.output_file}")
    return 0


def _entrants(
    given: Any, stages: Sequence[int], buckets: Sequence[int], forms: Sequence[str], peers: Sequence[str]
) -> list[tuple[str, Path, Settings]]:
    def settings(kind: str, stage: int, bucket_bytes: int = 0, form: str = "") -> Settings:
        model = given.blocks, given.width, given.hidden, given.batch
        return Settings(kind, stage, -1, given.ranks, "", *model, bucket_bytes, form, given.group)

    found = [
        (
            f"stage {stage}" + (f", {sizes.spell(size)}" if size else ""),
            Path(sys.executable),
            settings("zero", stage, size),
        )
        for stage in stages
        for size in buckets
    ]
    found += [(f"stage 3 {form}", Path(sys.executable), settings("zero", 3, buckets[0], form)) for form in forms]
    if given.offload:
        found += [(f"{name}, files", python, of._replace(offload=given.offload)) for name, python, of in found]
    for name in peers:
        if name == "deepspeed":
            python = _deepspeed_python(given.deepspeed_python)
            found += [(f"deepspeed {s}", python, settings(name, s)) for s in stages if s > 0]
        else:
            found.append((name, Path(sys.executable), settings(name, -1)))
    return found


def _deepspeed_python(given: str | None) -> Path:
    roots = (Path(__file__).resolve().parents[2], Path(sys.prefix).parent, Path.cwd())
    found = [Path(given)] if given else [root / ".venv-deepspeed/bin/python" for root in roots]
    for python in found:
        if python.exists():
            return python.absolute()
    raise ContenderError(f"deepspeed is not installed: no {found[0]}; run `make deepspeed`, or use --deepspeed-python")


def measure(
    entrants: Sequence[tuple[str, Path, Settings]], given: Any, moved: list[files.Moved],
    cluster: EmulatedCluster | None,
) -> list[Row]:  # fmt: skip
    """Starts all, measures them in alternating rounds, ends them. `moved` gets what went to files and came back."""
    running: list[tuple[Trainers, Settings]] = []
    try:
        for name, python, settings in entrants:
            running.append((Trainers(name, python, settings, cluster), settings))
        taken: dict[str, list[float]] = {trainers.name: [] for trainers, _ in running}
        for trainers, _ in running:
            trainers.of("step", 1, warmup=2)
        for _ in range(given.rounds):
            for trainers, _ in running:
                taken[trainers.name].append(trainers.of("step", given.iters, warmup=1) / 1e3)
        moved += [files.ask(trainers.name, trainers.of, given.iters) for trainers, of in running if of.offload]
        return [
            Row(
                trainers.name,
                settings.stage,
                statistics.median(taken[trainers.name]),
                trainers.of("sent_bytes", given.iters),
                trainers.of("beyond_bytes", given.iters) if given.group and settings.kind == "zero" else math.nan,
                trainers.of("exposed_s", given.iters) * 1e3,
                trainers.of("peak_bytes", 1),
            )
            for trainers, settings in running
        ]
    finally:
        for trainers, _ in running:
            trainers.close()


def table(rows: Sequence[Row], unit_bytes: float) -> str:
    """`unit_bytes` is the parameters' size times (N - 1) / N, in which what is sent is told too; "beyond" of it left
    the group."""
    lines = [
        f"# {'':<15}  {'step':>9}  {'sent':>9}  {'sent':>10}  {'beyond':>9}  {'exposed':>8}  {'peak':>9}",
        f"# {'':<15}  {'(ms)':>9}  {'(MB)':>9}  {'(P(N-1)/N)':>10}  {'(MB)':>9}  {'(ms)':>8}  {'(MB)':>9}",
    ]
    for row in rows:
        units = row.sent_bytes / unit_bytes if unit_bytes else 0.0
        lines.append(
            f"  {row.name:<15}  {row.step_ms:>9.1f}  {row.sent_bytes / 1e6:>9.1f}  {units:>10.3f}  "
            f"{_known(row.beyond_bytes / 1e6):>9}  {_known(row.exposed_ms):>8}  {row.peak_bytes / 1e6:>9.1f}"
        )
    lines += _ratios(rows)
    return "\n".join(lines)


def _known(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Each of our stages beside the peers it is to be compared with."""
    by_name = {row.name: row for row in rows}
    lines: list[str] = []
    for row in rows:
        if row.name.startswith("stage ") and not row.name.endswith("files"):
            peers = ("fsdp2",) if row.stage == 3 else ("ddp", "zero_redundancy")
            theirs = [by_name[n] for n in (f"deepspeed {row.stage}", *peers) if n in by_name]
            if theirs:
                said = ", ".join(f"{peer.step_ms / row.step_ms:.2f} x faster than {peer.name}" for peer in theirs)
                lines.append(f"# {row.name}: {said}")
    return lines


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
