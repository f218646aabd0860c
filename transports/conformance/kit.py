"""The checks, in order, and how they are run: each in every rank, on a thread that may get stuck."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from transports.base import Transport
from transports.conformance.member import HostMemory, Member, Memory, NotChecked, Unmet

__all__ = ["CHECKS", "Check", "Checks", "ConformanceError", "Report", "Result", "check", "check_rank"]

_CLOSE_S = 2.0  # for a close that is to free a check that is stuck


class Check(NamedTuple):
    """One part of the contract. `ranks` is how many it needs; a `big` one takes gigabytes."""

    name: str
    body: Callable[[Member], None]
    ranks: int
    big: bool


CHECKS: dict[str, Check] = {}
"""All checks by name, in the order in which they are made."""


class Checks(dict[str, Check]):
    """The checks of one module, by name."""

    def __call__(self, name: str, *, ranks: int = 2, big: bool = False) -> Callable[[Callable[[Member], None]], Any]:
        """Puts a function among them."""

        def register(body: Callable[[Member], None]) -> Callable[[Member], None]:
            assert name not in self
            self[name] = Check(name, body, ranks, big)
            return body

        return register


class Result(NamedTuple):
    """How one check went: `outcome` is "passed", "failed" or "not checked"; `text` tells what was expected and found,
    and on which rank, or why it was not checked."""

    check: str
    outcome: str
    text: str
    took_s: float

    def __str__(self) -> str:
        if self.outcome == "passed":
            return f"passed       {self.check} ({self.took_s:.2f} s)"
        if self.outcome == "failed":
            return f"FAILED       {self.check}: {self.text}"
        return f"not checked  {self.check}, because {self.text}"


class Report(NamedTuple):
    """What was found of a transport: `str` is one line a check."""

    about: str
    results: tuple[Result, ...]

    def __str__(self) -> str:
        counts = {outcome: len(self.of(outcome)) for outcome in ("passed", "failed", "not checked")}
        took_s = sum(result.took_s for result in self.results)
        last = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        return "\n".join([self.about, *map(str, self.results), f"{last}, in {took_s:.1f} s"])

    def of(self, outcome: str) -> list[str]:
        """The names of the checks with this outcome."""
        return [result.check for result in self.results if result.outcome == outcome]


class ConformanceError(AssertionError):
    """A transport does not keep the contract. The text is the report, which is also there as `report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def check_rank(
    connect: Callable[[str], Transport], rank: int, size: int, *, checks: Collection[str] | None = None,
    not_checked: Mapping[str, str] | None = None, die: Callable[[], None] | None = None,
    memory: Memory | None = None, deadline_s: float = 0.5, patience_s: float = 20.0, big: bool = False, seed: int = 0,
) -> Report:  # fmt: skip
    """Makes the checks as one rank of a job; every rank calls it, with the same arguments but for `rank`.

    connect       makes a fresh transport of all ranks under the name that it is given: letters, digits, "-" and ".",
                  and the same on every rank. It is called some hundred times, from any thread, and the transport's
                  `close` gives everything back. Some ranks may come later than others by `patience_s` and more.
    checks        the names of those to make (of CHECKS); all by default
    not_checked   what the layer below does not let one see: the name of a check, and why, in words
    die           ends this process without a goodbye (os.kill with SIGKILL). It is called in the last rank, in the last
                  check, so this rank never returns from here.
    memory        where arrays are; by default in the process's memory
    deadline_s    the deadline of calls that are to miss it
    patience_s    the most that anything may take that is expected to happen at once; a check that takes longer fails
    big           whether to make the checks that take gigabytes
    seed          of the random contents and scripts; the same on every rank

    Returns the Report when nothing failed, and raises ConformanceError when something did. Raises ValueError for a name
    that no check has, or fewer than two ranks.
    """
    kit = _Kit(rank, size, connect, memory or HostMemory(), deadline_s, patience_s, seed, die, in_threads=False)
    return _judged(kit.run_all(_plan(size, checks, not_checked, die, big)), rank, size, seed)


def check(
    connect: Callable[[str, int], Transport], size: int, *, checks: Collection[str] | None = None,
    not_checked: Mapping[str, str] | None = None, memory: Memory | None = None, deadline_s: float = 0.5,
    patience_s: float = 20.0, big: bool = False, seed: int = 0,
) -> Report:  # fmt: skip
    """Makes the checks with `size` ranks that are threads of this process.

    `connect` is called in the thread of each rank, with a name and the rank. The rest is as for `check_rank`.
    """
    reasons = {"a rank that dies": "the ranks are threads, which die together", **(not_checked or {})}
    plan = _plan(size, checks, reasons, None, big)
    kits = [
        _Kit(
            rank, size, partial(_connect_rank, connect, rank), memory or HostMemory(), deadline_s, patience_s, seed,
            None, in_threads=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(kit.run_all, plan) for kit in kits]
        of_ranks = [future.result() for future in running]
    return _judged([_joined(results) for results in zip(*of_ranks, strict=True)], None, size, seed)


def _connect_rank(connect: Callable[[str, int], Transport], rank: int, name: str) -> Transport:
    return connect(name, rank)


def _plan(
    size: int, names: Collection[str] | None, not_checked: Mapping[str, str] | None, die: Any, big: bool
) -> list[tuple[Check, str]]:
    """The checks, each with the reason why it is not to be made."""
    reasons = dict(not_checked or {})
    unknown = [name for name in (*(names or ()), *reasons) if name not in CHECKS]
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    if size < 2:
        raise ValueError(f"{size} rank: a transport is checked with two or more")
    if die is None:
        reasons.setdefault("a rank that dies", "no way was given for a rank to die")
    plan: list[tuple[Check, str]] = []
    for check in CHECKS.values():
        reason = reasons.get(check.name, "")
        if not reason and size < check.ranks:
            reason = f"it takes {check.ranks} ranks, and there are {size}"
        if not reason and check.big and not big:
            reason = "it takes gigabytes, and was not asked for"
        if names is None or check.name in names:
            plan.append((check, reason))
    return plan


class _Kit:
    """The checks of one rank."""

    def __init__(
        self, rank: int, size: int, connect: Callable[[str], Transport], memory: Memory, deadline_s: float,
        patience_s: float, seed: int, die: Callable[[], None] | None, *, in_threads: bool,
    ) -> None:  # fmt: skip
        self._rank, self._patience_s = rank, patience_s
        self._member = partial(
            Member, rank, size, connect, memory=memory, deadline_s=deadline_s, patience_s=patience_s, seed=seed,
            die=die, in_threads=in_threads,
        )  # fmt: skip

    def run_all(self, plan: list[tuple[Check, str]]) -> list[Result]:
        numbers = {name: i for i, name in enumerate(CHECKS)}
        return [
            Result(check.name, "not checked", reason, 0.0) if reason else self._run(check, numbers[check.name])
            for check, reason in plan
        ]

    def _run(self, check: Check, number: int) -> Result:
        me = self._member(f"{number}-{re.sub('[^a-z0-9]+', '-', check.name)}")
        ended: list[tuple[str, str]] = []
        limit_s = self._patience_s * (20 if check.big else 1)
        thread = threading.Thread(target=lambda: ended.append(self._attempt(check, me)), daemon=True)
        began = time.monotonic()
        thread.start()
        thread.join(limit_s)
        if not ended:
            where = _place(sys._current_frames().get(thread.ident or 0))  # pyright: ignore[reportPrivateUsage]
            freeing = threading.Thread(target=me.close, daemon=True)
            freeing.start()
            freeing.join(_CLOSE_S)
            thread.join(_CLOSE_S)
            ended[:] = [("failed", f"rank {self._rank} expected to be done within {limit_s:g} s, but is at {where}")]
        outcome, text = ended[0]
        return Result(check.name, outcome, text, time.monotonic() - began)

    def _attempt(self, check: Check, me: Member) -> tuple[str, str]:
        """Outcome and text."""
        try:
            try:
                check.body(me)
            finally:
                me.close()
            me.look_at_guards()
        except NotChecked as reason:
            return "not checked", str(reason)
        except Unmet as error:
            return "failed", f"rank {self._rank} {error}"
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            at = f"{frames[-1].filename}:{frames[-1].lineno}"
            return "failed", f"rank {self._rank} expected no error, but got {type(error).__name__} at {at}: {error}"
        return "passed", ""


def _place(frame: Any) -> str:
    """Where a thread is, innermost first."""
    places = [f"{f.filename}:{f.lineno} ({f.name})" for f in reversed(traceback.extract_stack(frame)[-3:])]
    return ", called from ".join(places)


def _joined(results: tuple[Result, ...]) -> Result:
    """One result for all ranks."""
    failed = [result for result in results if result.outcome == "failed"]
    took_s = max(result.took_s for result in results)
    if failed:
        return Result(failed[0].check, "failed", "; ".join(result.text for result in failed), took_s)
    skipped = [result for result in results if result.outcome == "not checked"]
    return (skipped or results)[0]._replace(took_s=took_s)


def _judged(results: list[Result], rank: int | None, size: int, seed: int) -> Report:
    who = f"{size} ranks" if rank is None else f"rank {rank} of {size}"
    report = Report(f"The contract of transports/base.py, on {who}, with seed {seed}", tuple(results))
    if report.of("failed"):
        raise ConformanceError(report)
    return report
