"""The JSON of a run, checked: what is missing or of another kind is named, with the file and the place in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..cases import COLLECTIVES
from ..jsonfile import SCHEMA, VERSION


class ReportError(ValueError):
    """A file is not the result of a run; the message begins with its name."""


class Half(NamedTuple):
    """Out of place, or in place."""

    time_us: float
    algbw: float  # GB/s
    busbw: float  # GB/s
    wrong: int | None  # None when nobody looked


class Row(NamedTuple):
    size_bytes: int
    elems: int
    dtype: str  # as nccl-tests names it, and so is op
    op: str
    root: str
    algorithm: str
    out_of_place: Half
    in_place: Half | None
    predicted_us: float | None


class Comparison(NamedTuple):
    """One size with one algorithm of ours beside the contenders, in place, microseconds."""

    size_bytes: int
    algorithm: str
    ours_us: float
    contenders_us: dict[str, float]


class Roof(NamedTuple):
    name: str
    what: str
    points: tuple[tuple[int, float], ...]  # (size in bytes, busbw in GB/s)


class Run(NamedTuple):
    """The measurement of a collective."""

    name: str
    collective: str
    ranks: int
    transport: str
    rows: tuple[Row, ...]
    compared: tuple[Comparison, ...]
    roof: Roof | None
    facts: tuple[tuple[str, str], ...]  # what the figures depend on: (what, value)


class Pairwise(NamedTuple):
    """The matrix of all pairs, [from][to]; None where there is no figure, as on the diagonal."""

    name: str
    hosts: tuple[str, ...]  # of each rank
    latency_us: tuple[tuple[float | None, ...], ...]
    bandwidth_gb_per_s: tuple[tuple[float | None, ...], ...]
    outliers: tuple[Outlier, ...]
    facts: tuple[tuple[str, str], ...]


class Outlier(NamedTuple):
    source: int
    target: int
    what: str  # "latency" or "bandwidth"
    value: float
    typical: float


def read_file(path: str) -> Any:
    """The JSON of a file. Raises ReportError for what is no JSON, and for a file that cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ReportError(f"{path}: cannot be read: {reason}") from error
    if not text.strip():
        raise ReportError(f"{path}: is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: is not JSON: {error}") from error


def read_document(name: str, document: Any) -> Run | Pairwise:
    """A document as `jsonfile.report` or `bench pairwise` makes it. Raises ReportError that begins with `name`."""
    whole = _Part(name, "", document)
    if not isinstance(document, dict):
        raise ReportError(f"{name}: is not the result of a run: no JSON object")
    if whole.optional("kind") == "pairwise":
        return _pairwise(name, whole)
    if "results" not in document or "version" not in document:
        raise ReportError(f"{name}: is not the result of a run: it has no results and version, and is not pairwise")
    if document["version"] != VERSION:
        raise ReportError(f"{name}: has version {document['version']!r}, and this reads version {VERSION}")
    return _run(name, whole)


def _run(name: str, whole: _Part) -> Run:
    config = whole.part("config")
    collective = config.text("collective")
    if collective not in COLLECTIVES:
        raise ReportError(f"{name}: config.collective is {collective!r}; known are {', '.join(COLLECTIVES)}")
    own = whole.part("treering") if whole.optional("treering") is not None else None
    if own and own.whole("schema") != SCHEMA:
        raise ReportError(f"{name}: has schema {own.whole('schema')} of treering, and this reads schema {SCHEMA}")
    rows = tuple(map(_row, whole.parts("results")))
    compared = tuple(map(_comparison, whole.parts("compare"))) if whole.optional("compare") is not None else ()
    if not rows and not compared:
        raise ReportError(f"{name}: has no results")
    roof = own.part("roof") if own and own.optional("roof") is not None else None
    ranks = config.whole("ranks")
    if ranks < 1:
        raise ReportError(f"{name}: config.ranks is {ranks}")
    return Run(
        name=name,
        collective=collective,
        ranks=ranks,
        transport=str(config.optional("transport") or "unknown"),
        rows=rows,
        compared=compared,
        roof=_roof(roof) if roof else None,
        facts=_facts(whole, config, own),
    )


def _row(part: _Part) -> Row:
    predicted_us = part.optional("predicted_us")
    return Row(
        size_bytes=part.whole("size"),
        elems=part.whole("count"),
        dtype=part.text("type"),
        op=part.text("redop"),
        root=str(part.optional("root")),
        algorithm=str(part.optional("experiment_name") or "unnamed"),
        out_of_place=_half(part.part("out_of_place")),
        in_place=_half(part.part("in_place")) if part.optional("in_place") is not None else None,
        predicted_us=part.number("predicted_us") if predicted_us is not None else None,
    )


def _half(part: _Part) -> Half:
    wrong = int(part.number("nwrong")) if part.optional("nwrong") is not None else None
    return Half(part.number("time"), part.number("alg_bw"), part.number("bus_bw"), wrong)


def _comparison(part: _Part) -> Comparison:
    contenders = [key for key in part.names() if key.endswith("_us") and key not in ("ours_us", "predicted_us")]
    return Comparison(
        part.whole("size"),
        part.text("algorithm"),
        part.number("ours_us"),
        {
            ("not reproducible" if key == "plain_us" else key.removesuffix("_us")): part.number(key)
            for key in contenders
        },
    )


def _roof(part: _Part) -> Roof:
    points = tuple((point.whole("size"), point.number("bus_bw")) for point in part.parts("points"))
    return Roof(part.text("name"), str(part.optional("what") or ""), points)


def _pairwise(name: str, whole: _Part) -> Pairwise:
    hosts = tuple(map(str, whole.values("hosts")))
    if not hosts:
        raise ReportError(f"{name}: hosts is empty: there is no pair")
    latency_us = _matrix(whole, "latency_us", len(hosts))
    bandwidth_gb_per_s = _matrix(whole, "bandwidth_gb_per_s", len(hosts))
    outliers = tuple(
        Outlier(at.whole("from"), at.whole("to"), at.text("what"), at.number("value"), at.number("typical"))
        for at in (whole.parts("outliers") if whole.optional("outliers") is not None else ())
    )
    for outlier in outliers:
        if not (0 <= outlier.source < len(hosts) and 0 <= outlier.target < len(hosts)):
            raise ReportError(f"{name}: an outlier from rank {outlier.source} to {outlier.target} of {len(hosts)}")
    own = whole.part("treering") if whole.optional("treering") is not None else None
    return Pairwise(
        name,
        hosts,
        latency_us,
        bandwidth_gb_per_s,
        outliers,
        _facts(whole, _Part(name, "config", whole.optional("config") or {}), own),
    )


def _matrix(whole: _Part, key: str, size: int) -> tuple[tuple[float | None, ...], ...]:
    rows: list[Any] = whole.values(key)
    whole_rows: list[list[Any]] = [row for row in rows if isinstance(row, list)]
    square = len(rows) == len(whole_rows) == size and all(len(row) == size for row in whole_rows)
    if not square or not all(value is None or _is_number(value) for row in rows for value in row):
        raise ReportError(f"{whole.file}: {key} is not a {size} x {size} matrix of numbers, as there are hosts")
    return tuple(tuple(row) for row in rows)


def _facts(whole: _Part, config: _Part, own: _Part | None) -> tuple[tuple[str, str], ...]:
    """What is known of the run, in the order in which it is shown."""
    args = whole.words("args")
    found: dict[str, Any] = {"command": " ".join(["treering bench", *args]) if args else ""}
    for key in ("ranks", "transport", "array", "prepared", "iterations", "warmup_iters"):
        found[key.replace("_iters", " iterations")] = config.optional(key)
    devices: Any = config.optional("devices")
    if isinstance(devices, list):
        names = [str(device.get("hostname")) for device in devices if isinstance(device, dict)]  # pyright: ignore
        found["hosts"] = ", ".join(f"{name} ({names.count(name)} ranks)" for name in dict.fromkeys(names))
    cluster: Any = config.optional("cluster")
    if isinstance(cluster, dict):
        found["emulated cluster"] = ", ".join(f"{key} {value}" for key, value in cluster.items() if value is not None)  # pyright: ignore
    if own:
        versions: Any = own.optional("versions")
        if isinstance(versions, dict):
            found["versions"] = ", ".join(f"{key} {value}" for key, value in versions.items())  # pyright: ignore
        found["CPU"] = own.optional("cpu")
        found["cores"], usable = own.optional("cores"), own.optional("usable_cores")
        if usable is not None and usable != found["cores"]:
            found["cores"] = f"{found['cores']}, of which {usable} may be used"
        found["system"] = own.optional("system")
    found["variables"] = " ".join(whole.words("env"))
    found["started"], found["ended"] = whole.optional("start_time"), whole.optional("end_time")
    return tuple((key, _words(value)) for key, value in found.items() if value not in (None, ""))


def _words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class _Part:
    """A JSON object somewhere in a file, which says where it is when something is not as it should be."""

    def __init__(self, file: str, place: str, value: Any) -> None:
        self.file, self.place, self._value = file, place, value

    def names(self) -> list[str]:
        return list(self._value)

    def optional(self, key: str) -> Any:
        return self._value.get(key) if isinstance(self._value, dict) else None  # pyright: ignore

    def number(self, key: str) -> float:
        value = self.optional(key)
        return float(value) if _is_number(value) else self._refuse(key, "a number")

    def whole(self, key: str) -> int:
        value = self.number(key)
        return int(value) if value == int(value) >= 0 else self._refuse(key, "a whole number")

    def text(self, key: str) -> str:
        value = self.optional(key)
        return value if isinstance(value, str) and value else self._refuse(key, "a text")

    def values(self, key: str) -> list[Any]:
        value = self.optional(key)
        return value if isinstance(value, list) else self._refuse(key, "a list")  # pyright: ignore

    def words(self, key: str) -> list[str]:
        """The texts of a list that need not be there."""
        return [str(value) for value in self.values(key)] if self.optional(key) is not None else []

    def part(self, key: str) -> _Part:
        value = self.optional(key)
        return _Part(self.file, self._at(key), value) if isinstance(value, dict) else self._refuse(key, "an object")

    def parts(self, key: str) -> list[_Part]:
        found = [_Part(self.file, f"{self._at(key)}[{i}]", value) for i, value in enumerate(self.values(key))]
        for part in found:
            if not isinstance(part._value, dict):
                raise ReportError(f"{self.file}: {part.place} is not an object")
        return found

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _refuse(self, key: str, wanted: str) -> Any:
        raise ReportError(f"{self.file}: {self._at(key)} is not {wanted}: {self.optional(key)!r}"[:300])
