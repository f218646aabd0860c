"""The JSON of nccl-tests, version 3 of its keys, which its tools read.

Additions: `compare`, the comparison with other libraries; `predicted_us` in a result, where there is a prediction; and
`treering`, what the figures depend on and what bounds them, with a version of its own in `schema`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .roof import Roof
from .table import OP_NAMES, TYPE_NAMES, Compared, Measured, Row, average_busbw, out_of_bounds

VERSION = 3
SCHEMA = 1  # of what we add

# Only what bears on the figures is reported: an environment may hold secrets.
REPORTED_VARIABLES = ("TREERING_", "OMP_", "OMPI_MCA_", "MPIR_CVAR_", "UCX_", "GLOO_", "MASTER_")


def report(
    *,
    start_time: str,
    end_time: str,
    args: Sequence[str],
    environment: Mapping[str, str],
    config: Mapping[str, Any],
    rows: Sequence[Row],
    compared: Sequence[Compared] | None,
    about: Mapping[str, Any],
    roof: Roof | None,
    errors: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole document as JSON types; times of day are `YYYY-MM-DD HH:MM:SS`, times microseconds.

    `about` is what the figures depend on (about.py).
    """
    wrong = out_of_bounds(rows)
    document: dict[str, Any] = {
        "version": VERSION,
        "start_time": start_time,
        "args": list(args),
        "env": [
            f"{name}={value}"
            for name, value in sorted(environment.items())
            if name.startswith(REPORTED_VARIABLES) and "SECRET" not in name
        ],
        "nccl_version": 0,  # readers expect a number; there is no NCCL here
        "config": dict(config),
        "results": [_result(row) for row in rows],
        "out_of_bounds": {"count": wrong, "okay": _flag(wrong == 0)},
        "average_bus_bandwidth": {"bandwidth": average_busbw(rows), "okay": "unchecked"},
        "errors": list(errors),
        "end_time": end_time,
        "treering": {"schema": SCHEMA, **about, "roof": None if roof is None else _roof(roof)},
    }
    if compared is not None:
        document["compare"] = [
            {
                "size": row.size_bytes,
                "algorithm": row.algorithm,
                "ours_us": row.ours_us,
                **({} if row.plain_us is None else {"plain_us": row.plain_us}),
                **{f"{name}_us": us for name, us in row.contenders_us.items()},
            }
            for row in compared
        ]
    return document


def _flag(value: bool) -> str:
    return "true" if value else "false"  # nccl-tests writes its booleans as strings


def _roof(roof: Roof) -> dict[str, Any]:
    points = [{"size": size_bytes, "bus_bw": busbw} for size_bytes, busbw in roof.points]
    return {"name": roof.name, "what": roof.what, "points": points}


def _result(row: Row) -> dict[str, Any]:
    result: dict[str, Any] = {
        "size": row.size_bytes,
        "count": row.elems,
        "type": TYPE_NAMES.get(row.dtype, row.dtype),
        "redop": OP_NAMES.get(row.op, row.op),
        "root": str(row.root),
        "out_of_place": _half(row.out_of_place),
        "in_place": _half(row.in_place),
        "actual_iterations": row.iterations,
        "experiment_name": row.algorithm,
    }
    if row.predicted_us is not None:
        result["predicted_us"] = row.predicted_us
    return result


def _half(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    wrong = None if measured.wrong is None else float(measured.wrong)
    return {"time": measured.time_us, "alg_bw": measured.algbw, "bus_bw": measured.busbw, "nwrong": wrong}


def write(path: str, document: Mapping[str, Any]) -> None:
    """Write the document as `write_text` does. Raises OSError."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def write_text(path: str, text: str) -> None:
    """Write beside `path` and rename, so that a reader finds all of it or what was before. Raises OSError."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.unlink(beside)
