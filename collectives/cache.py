"""What was measured, kept between runs: one JSON file for each set of hosts and each kind of knowledge.

A file's name comes from what a job looks like: its hosts' names, which ranks they have, the transport. In the file
stand the facts that the value depends on (processors, cores, network cards, the version of treering) and the time. A
value whose facts have changed, or that is older than 30 days, is not used, and the log ("treering") says why; so does
it about a file that cannot be read or written, which is never an error. The directory is that of
`transports.config.cache_directory`.

    key = key_of(comm)                        every rank calls it; equal on all of them
    store(key, "measurement", value)          on one rank
    value = load(key, "measurement")          on one rank; None when there is nothing that can be used
    value = recall(comm, "measurement")       every rank calls it: rank 0 reads, and all get the same
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from collectives.exchange import broadcast_json, gather_json
from transports.config import cache_directory
from transports.machine import machine_facts

if TYPE_CHECKING:
    from collectives.communicator import Communicator

__all__ = ["FORMAT", "MOST_DAYS", "Key", "anything", "key_of", "load", "recall", "store"]

FORMAT = 1
MOST_DAYS = 30.0
_DAY_S = 86400.0
_log = logging.getLogger("treering")


class Key(NamedTuple):
    """`job` says which jobs share a value, `facts` what must be as it was when the value was stored; JSON types."""

    job: dict[str, Any]
    facts: dict[str, Any]

    def path(self, kind: str) -> Path:
        """The file of one kind of value."""
        digest = hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()
        return cache_directory() / f"{kind}-{digest[:24]}.json"


def anything() -> bool:
    """Whether anything is kept at all, for whatever hosts."""
    return any(cache_directory().glob("*.json"))


def key_of(comm: Communicator) -> Key:
    """The key of a communicator's hosts. Every rank calls it, and gets the same."""
    machines = gather_json(comm, machine_facts())
    where = {rank: f"host {number}" for number, host in enumerate(comm.hosts) for rank in host}
    job = {
        "hosts": [{"name": machines[host[0]]["host"], "ranks": list(host)} for host in comm.hosts],
        "transport": broadcast_json(comm, comm.transport),
    }
    facts: dict[str, Any] = {"treering": _version()}
    for rank, machine in enumerate(machines):
        name = f"{where[rank]} ({machine.pop('host')})"
        facts[f"rank {rank}"] = {"available": machine.pop("available"), "numa_node": machine.pop("numa_node")}
        facts.setdefault(name, machine)
    return Key(job, broadcast_json(comm, facts))


def load(key: Key, kind: str) -> Any:
    """The value stored for `key`, or None when there is none, or none that can be used; the log says why."""
    path = key.path(kind)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("%s is ignored: %s", path, error)
        return None
    try:
        entry = _checked(json.loads(text), key, kind)
    except (ValueError, RecursionError) as error:
        _log.warning("%s is ignored, it is broken: %s", path, error)
        return None
    reason = _stale(entry, key)
    if reason:
        _log.warning("the %s in %s is out of date: %s", kind, path, reason)
        return None
    return entry["value"]


def store(key: Key, kind: str, value: Any) -> Path | None:
    """Keeps a value of JSON types; the file, or None (and a line in the log) when it could not be written.

    A reader finds the old file or the new one, never a part. Raises ValueError for NaN or infinity in the value.
    """
    path = key.path(kind)
    entry = {"format": FORMAT, "kind": kind, "job": key.job, "facts": key.facts, "stored_at_s": time.time()}
    text = json.dumps({**entry, "value": value}, indent=1, allow_nan=False)
    beside = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", encoding="utf-8", delete=False) as file:
            beside = file.name
            file.write(text + "\n")
        os.replace(beside, path)
    except OSError as error:
        _log.warning("the %s could not be kept in %s: %s", kind, path, error)
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        return None
    return path


def recall(comm: Communicator, kind: str) -> Any:
    """What rank 0 finds stored for these hosts, on every rank; None when there is nothing. Every rank calls it."""
    key = key_of(comm)
    return broadcast_json(comm, load(key, kind) if comm.rank == 0 else None)


def _checked(entry: object, key: Key, kind: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("it holds no object")
    known = cast("dict[str, Any]", entry)
    missing = {"format", "kind", "job", "facts", "stored_at_s", "value"} - known.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    if known["kind"] != kind or known["job"] != key.job:
        raise ValueError("it belongs to another job")
    if not isinstance(known["facts"], dict) or not isinstance(known["stored_at_s"], (int, float)):
        raise ValueError("facts or stored_at_s is of the wrong type")
    return known


def _stale(entry: dict[str, Any], key: Key) -> str:
    """Why an entry may not be used any more; empty when it may."""
    if entry["format"] != FORMAT:
        return f"its format is {entry['format']}, not {FORMAT}"
    changed = list(_changes(entry["facts"], key.facts))
    if changed:
        return "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    days = (time.time() - entry["stored_at_s"]) / _DAY_S
    if days > MOST_DAYS:
        return f"it is {days:.0f} days old"
    return f"it was stored {-days:.0f} days in the future" if days < -1 else ""


def _changes(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """Every fact that differs, in words."""
    if isinstance(then, dict) and isinstance(now, dict):
        old, new = cast("dict[str, Any]", then), cast("dict[str, Any]", now)
        for part in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(part), new.get(part), f"{name} {part}".strip())
    elif then != now:
        yield f"{name} was {then!r} and is {now!r}"


def _version() -> str:
    try:
        return importlib.metadata.version("treering")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
