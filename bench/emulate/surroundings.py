"""What the ranks of a measurement are told of the emulated cluster that they run in: a file that a variable names."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

VARIABLE = "TREERING_BENCH_CLUSTER"


class Surroundings(NamedTuple):
    text: str  # for people
    config: dict[str, Any]  # for the JSON
    commands: list[list[str]]  # for each rank, what begins a command line that runs where it does
    environment: dict[str, str]  # for the contenders

    def write(self, path: str) -> dict[str, str]:
        """Writes the file; the variable to give to the ranks."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file)
        return {VARIABLE: path}


def surroundings() -> Surroundings | None:
    """Those of this process, None outside of an emulated cluster."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return Surroundings(**json.load(file))
