"""What one rank does from the first line to the last: the table, then the comparison, then the JSON.

Every rank runs `Session.run`; only rank 0 prints, and starts the contenders.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from collectives.exchange import broadcast_json, gather_json
from topology import load

from . import compare, jsonfile, report, roof, table
from .about import about
from .cases import Case, What, whole_elems
from .check import storage_dtype
from .contenders.worker import Command, Settings, Timing, follow, time_calls
from .control import Conductor
from .emulate.surroundings import surroundings
from .measure import measure_row
from .options import Options
from .record import Recorder
from .table import Compared, Row

if TYPE_CHECKING:
    from collectives import Communicator

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


class Session:
    def __init__(self, comm: Communicator, options: Options, args: Sequence[str]) -> None:
        self.comm, self.options, self.args = comm, options, args
        self.speaks = comm.rank == 0
        self.named = len(options.algorithms) > 1
        self.recorder = Recorder(comm) if options.trace_path else None
        self.surroundings = surroundings()
        if options.root >= comm.size:
            raise ValueError(f"-r {options.root} is not a rank: there are {comm.size}, from 0")

    def run(self) -> bool:
        """Whether all data was right, the same on every rank. Raises what collectives or contenders raise."""
        start_time = time.strftime(TIME_FORMAT)
        devices = gather_json(self.comm, self._card())
        self._say(self._preamble(devices))
        self._learn()
        rows = self._table()
        if self.speaks and self.recorder and self.options.trace_path:
            self.recorder.write(self.options.trace_path)
            self._say(f"# trace written to {self.options.trace_path}")
        compared = self._compare() if self.options.contenders or self.options.reproducible else None
        if self.options.json_path or self.options.report_path:
            self._keep(start_time, devices, rows, compared)
        return table.out_of_bounds(rows) == 0

    def _keep(
        self,
        start_time: str,
        devices: Sequence[dict[str, Any]],
        rows: Sequence[Row],
        compared: Sequence[Compared] | None,
    ) -> None:
        """Writes the JSON and the report. Collective: what bounds the figures is measured now."""
        self._tell("measuring the roof")
        top = roof.measure(self.comm, self.options.collective, [row.size_bytes for row in rows])
        document = jsonfile.report(
            start_time=start_time,
            end_time=time.strftime(TIME_FORMAT),
            args=self.args,
            environment=os.environ,
            config={**self._config(), "devices": devices},
            rows=rows,
            compared=compared,
            about={**about(self._packages()), "hosts": self.comm.hosts},
            roof=top,
        )
        if not self.speaks:
            return
        if self.options.json_path:
            jsonfile.write(self.options.json_path, document)
            self._say(f"# JSON written to {self.options.json_path}")
        if self.options.report_path:
            report.write(self.options.report_path, [(self.options.collective, document)])
            self._say(f"# report written to {self.options.report_path}")

    def _packages(self) -> Sequence[str]:
        return ("torch",) if "gloo" in self.options.contenders or self.options.library == "torch" else ()

    def _learn(self) -> None:
        """Lets the communicator know the machines, as far as the flags say so."""
        options = self.options
        if options.cluster is not None:
            self.comm.use(cluster=load(options.cluster))
        if options.measured:
            self._say(f"# {self.comm.measure()}".replace("\n", "\n# "))
        if options.tuned:
            self._say("# tuning")
            self.comm.tune((options.collective,), sizes=options.sizes(), budget_s=600)

    def _predicted_us(self, row: Row) -> float | None:
        """In virtual time on the machines as they are known; None where that is not known of an algorithm."""
        reproducible = self.options.reproducible
        known = self.comm.explain(self.options.collective, nbytes=row.size_bytes, reproducible=reproducible)
        wanted = known.chosen if row.algorithm == "auto" else row.algorithm
        return next((c.predicted_s * 1e6 for c in known.candidates if c.algorithm == wanted), None)

    def _table(self) -> list[Row]:
        options = self.options
        self._say(table.header(self.named, options.predicts))
        rows: list[Row] = []
        roots = range(self.comm.size) if self._every_root() else (options.root,)
        for dtype, op in options.reductions:
            for root in roots:
                for size_bytes in options.sizes():
                    for algorithm in options.algorithms:
                        self._tell(f"{size_bytes} B {algorithm}")
                        what = self._what(dtype, op, root, algorithm, options.reproducible)
                        row = measure_row(
                            self.comm,
                            what,
                            size_bytes,
                            iterations=options.iterations,
                            warmup=options.warmup,
                            checks=options.checks,
                            recorder=self.recorder,
                        )
                        if options.predicts:
                            row = row._replace(predicted_us=self._predicted_us(row))
                        rows.append(row)
                        self._say(table.line(row, self.named, options.predicts))
        self._say(table.footer(rows))
        return rows

    def _every_root(self) -> bool:
        return self.options.collective in ("broadcast", "reduce", "gather", "scatter") and self.options.root < 0

    def _what(self, dtype: str, op: str, root: int, algorithm: str, reproducible: bool) -> What:
        options = self.options
        return What(options.collective, dtype, op, root, algorithm, options.library, options.prepared, reproducible)

    # The comparison. Rank 0 conducts; the others sleep on a socket, not in a collective, until they are told.

    def _compare(self) -> list[Compared]:
        conductor = Conductor() if self.speaks else None
        path = broadcast_json(self.comm, conductor.path if conductor else "")
        cases: dict[tuple[int, str, bool], Case] = {}

        def measure(command: Command) -> Timing:
            key = command.elems, command.algorithm, command.reproducible
            if key not in cases:
                if any(elems != command.elems for elems, _, _ in cases):
                    cases.clear()
                dtype, op = self.options.reductions[0]
                what = self._what(dtype, op, self.options.root, command.algorithm, command.reproducible)
                cases[key] = Case(self.comm, what, command.elems, in_place=True)
            return time_calls(cases[key].call, self.comm.barrier, command.warmup, command.iterations)

        if conductor is None:
            follow(path, self.comm.rank, measure)
            return []
        contenders: list[compare.Contender] = []
        try:
            conductor.wait_for(self.comm.size - 1, self.options.timeout_s)
            for name, python in zip(self.options.contenders, self.options.pythons, strict=True):
                self._tell(f"starting {name}")
                around = self.surroundings
                environment = {**os.environ, **(around.environment if around else {})}
                places = around.commands if around else None
                contenders.append(compare.Contender(name, compare.Path(python), self._settings(), environment, places))
            together = functools.partial(conductor.measure, own=measure)
            reproducible = self.options.reproducible
            ours = [compare.Entrant(name, together, name, reproducible) for name in self.options.algorithms]
            plain = compare.Entrant(table.PLAIN, together, "auto") if reproducible else None
            theirs = [compare.Entrant(contender.name, contender.measure) for contender in contenders]
            return self._compare_table(ours, plain, theirs)
        finally:
            conductor.close()
            for contender in contenders:
                contender.close()

    def _compare_table(
        self, ours: Sequence[compare.Entrant], plain: compare.Entrant | None, theirs: Sequence[compare.Entrant]
    ) -> list[Compared]:
        options, (dtype, _) = self.options, self.options.reductions[0]
        self._say(table.compare_header([entrant.name for entrant in theirs], self.named, plain is not None))
        entrants = [*ours, *([plain] if plain else ()), *theirs]
        compared: list[Compared] = []
        for size_bytes in options.sizes():
            elems = whole_elems(options.collective, size_bytes, dtype, self.comm.size)
            whole_bytes = elems * storage_dtype(dtype).itemsize
            taken_us = compare.compare_size(elems, entrants, self._teller(f"{whole_bytes} B, "))
            for entrant in ours:
                row = Compared(
                    whole_bytes,
                    entrant.algorithm,
                    taken_us[entrant.name],
                    {entrant.name: taken_us[entrant.name] for entrant in theirs},
                    taken_us[plain.name] if plain else None,
                )
                compared.append(row)
                self._say(table.compare_line(row, self.named))
        self._say(table.compare_footer(compared))
        return compared

    def _settings(self) -> Settings:
        dtype, op = self.options.reductions[0]
        root = max(self.options.root, 0)
        return Settings(self.options.collective, dtype, op, root, rank=-1, size=self.comm.size, store="")

    # What is told about the run.

    def _card(self) -> dict[str, Any]:
        return {"rank": self.comm.rank, "pid": os.getpid(), "hostname": socket.gethostname()[:64]}

    def _preamble(self, devices: Sequence[dict[str, Any]]) -> str:
        options = self.options
        for number, device in enumerate(devices):
            device |= {
                "group": 0,
                "device": number,
                "device_hex": "",
                "device_info": f"{platform.machine()} CPU, {os.cpu_count()} cores",
            }
        step = options.step_factor if options.step_factor > 1 else options.step_bytes
        unit = "factor" if options.step_factor > 1 else "bytes"
        prepared = " prepared" if options.prepared else ""
        reproducible = " reproducible" if options.reproducible else ""
        sizes = f"minBytes {options.minimum_bytes} maxBytes {options.maximum_bytes} step: {step}({unit})"
        loop = f"warmup iters: {options.warmup} iters: {options.iterations} validation: {options.checks}"
        names = ",".join(options.algorithms)
        lines = [
            f"# Collective test starting: {options.collective}",
            f"# nRanks {self.comm.size} {sizes} {loop}",
            f"# algorithm {names} transport {options.transport} array {options.library}{prepared}{reproducible}",
            *([f"# {self.surroundings.text}"] if self.surroundings else []),
            "#",
            "# Using ranks",
        ]
        for device in devices:
            lines.append(
                f"#  Rank {device['rank']:2} Group  0 Pid {device['pid']:6} on {device['hostname']:>10} "
                f"{device['device_info']}"
            )
        return "\n".join(lines)

    def _config(self) -> dict[str, Any]:
        options = self.options
        by_factor = options.step_factor > 1
        return {
            "nthreads": 1,
            "ngpus": 0,
            "minimum_bytes": options.minimum_bytes,
            "maximum_bytes": options.maximum_bytes,
            "step_factor" if by_factor else "step_bytes": options.step_factor if by_factor else options.step_bytes,
            "warmup_iters": options.warmup,
            "iterations": options.iterations,
            "aggregated_iterations": 1,
            "validation": options.checks,
            "graph": 0,
            "blocking_collectives": "true",
            "per_iter_timing": 0,
            "per_iter_skip": 0,
            "parallel_init": "false",
            "ranks": self.comm.size,
            "collective": options.collective,
            "algorithm": ",".join(options.algorithms),
            "transport": options.transport,
            "array": options.library,
            "prepared": options.prepared,
            "reproducible": options.reproducible,
            **({"cluster": self.surroundings.config} if self.surroundings else {}),
        }

    def _teller(self, prefix: str) -> Callable[[str], None]:
        return lambda text: self._tell(prefix + text)

    def _say(self, text: str) -> None:
        if self.speaks:
            self._tell("")
            print(text, flush=True)

    def _tell(self, text: str) -> None:
        """Progress: one line on a terminal that the next line replaces, nothing in a pipe."""
        if self.speaks and sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
