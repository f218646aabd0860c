"""What the ranks of a measurement are told of the emulated cluster that they run in: memory that a variable names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from typing import Any, NamedTuple

VARIABLE = "TREERING_BENCH_CLUSTER"


class Surroundings(NamedTuple):
    text: str  # for people
    config: dict[str, Any]  # for the JSON
    commands: list[list[str]]  # for each rank, what begins a command line that runs where it does
    environment: dict[str, str]  # for the contenders

    @contextlib.contextmanager
    def published(self) -> Generator[dict[str, str]]:
        """The variable to give to the ranks; what it names is gone after the block, or with this process."""
        with os.fdopen(os.memfd_create("cluster"), "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file)
            file.flush()
            yield {VARIABLE: f"/proc/{os.getpid()}/fd/{file.fileno()}"}


def surroundings() -> Surroundings | None:
    """Those of this process, None outside of an emulated cluster."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return Surroundings(**json.load(file))
