"""DeepSpeed's JSON read key by key: what it says, what becomes of each key here, and what is not a key at all."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from collectives.zero.deepspeed_keys import ALIASES, IGNORED, KEYS, UNSUPPORTED, USED, Key, Section


class ConfigError(ValueError):
    """A configuration that cannot be followed; the message names the keys, and what was meant or what to do."""


class Line(NamedTuple):
    """One key of the configuration, its value there, and what becomes of it."""

    name: str  # with its sections: zero_optimization.stage
    value: Any
    status: str  # used, ignored, not supported
    note: str

    def __str__(self) -> str:
        text = f"{self.status:<14} {self.name} = {json.dumps(self.value, default=str)}"
        return f"{text}: {self.note}" if self.note else text


class Report(NamedTuple):
    """`str()` of it is what is printed."""

    lines: tuple[Line, ...]
    remarks: tuple[str, ...] = ()  # what follows from keys that are not there, or from several together

    def __str__(self) -> str:
        order = {USED: 0, IGNORED: 1, UNSUPPORTED: 2}
        lines = sorted(self.lines, key=lambda line: order[line.status])
        return "\n".join(["DeepSpeed config", *(f"  {line}" for line in lines), *(f"  {it}" for it in self.remarks)])


class Reading(NamedTuple):
    """`values` has every key that is a leaf, by its full name: what was given, or DeepSpeed's default."""

    values: dict[str, Any]
    given: frozenset[str]
    lines: tuple[Line, ...]


Resolve = Callable[[str], Any]
"""What "auto" stands for under a full name; None where nobody can tell."""


def read(config: Mapping[str, Any], resolve: Resolve = lambda name: None) -> Reading:
    """Go through a whole configuration. Raises ConfigError with all that is wrong in it."""
    values = {name: key.default for name, key in _leaves(KEYS)}
    lines: list[Line] = []
    errors: list[str] = []
    given: set[str] = set()
    for name, key, value in _walk(config, KEYS, "", errors):
        note = key.note
        if value == "auto":
            found = resolve(name)
            if found is None:
                note = "auto: left at its default" + (f"; {note}" if note else "")
                lines.append(Line(name, value, key.status, note))
                continue
            value, note = found, "auto" + (f"; {note}" if note else "")
        if wrong := _refusal(key, value):
            errors.append(f"{name} = {json.dumps(value, default=str)}: {wrong}")
            continue
        values[name] = int(value) if key.kind == "count" and value is not None else value
        given.add(name)
        lines.append(Line(name, value, key.status, note))
    if errors:
        raise ConfigError("\n  ".join(["the DeepSpeed config cannot be followed:", *errors]))
    return Reading(values, frozenset(given), tuple(lines))


def _walk(config: Mapping[str, Any], keys: Section, prefix: str, errors: list[str]) -> Iterator[tuple[str, Key, Any]]:
    for name, value in config.items():
        name = ALIASES.get(name, name) if not prefix else name
        key = keys.get(name)
        if key is None:
            errors.append(f"{prefix}{name} is not a key of DeepSpeed's{_meant(name, keys, prefix)}")
        elif isinstance(key, Key):
            yield prefix + name, key, value
        elif isinstance(value, Mapping):
            yield from _walk(cast("Mapping[str, Any]", value), key, f"{prefix}{name}.", errors)
        elif name == "zero_optimization" and isinstance(value, bool):  # an old form
            yield f"{name}.stage", Key("count", 0, USED, "an old form: true is stage 1"), int(value)
        elif value is not None:
            errors.append(f"{prefix}{name} must be an object, not {json.dumps(value, default=str)}")


def _meant(name: str, keys: Section, prefix: str) -> str:
    """The nearest name at this place, or the same or the nearest at any other."""
    if near := difflib.get_close_matches(name, keys, 1, 0.75):
        return f"; did you mean {prefix}{near[0]}?"
    everywhere = [full for full, _ in _leaves(KEYS)]
    if same := [full for full in everywhere if full.rpartition(".")[2] == name]:
        return f"; did you mean {same[0]}?"
    by_last = {full.rpartition(".")[2]: full for full in reversed(everywhere)}
    near = difflib.get_close_matches(name, [*keys, *by_last], 1, 0.5)
    return f"; the nearest is {prefix + near[0] if near[0] in keys else by_last[near[0]]}" if near else ""


def _leaves(keys: Section, prefix: str = "") -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        if isinstance(key, Key):
            yield prefix + name, key
        else:
            yield from _leaves(key, f"{prefix}{name}.")


def _refusal(key: Key, value: Any) -> str:
    """Why the value cannot be taken; "" if it can."""
    if value is None:
        return ""
    if wrong := _wrong_kind(key, value):
        return wrong
    if key.status == UNSUPPORTED and not _asks_for_nothing(key, value):
        return f"not supported: {key.note}"
    return ""


def _wrong_kind(key: Key, value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(key.kind, tuple):
        if value not in key.kind:
            near = difflib.get_close_matches(str(value), key.kind, 1)
            return f"must be one of {', '.join(key.kind)}" + (f"; did you mean {near[0]}?" if near else "")
        return ""
    right = {
        "bool": isinstance(value, bool),
        "number": number,
        "count": number and value >= 0 and value == int(value),
        "text": isinstance(value, str),
        "dict": isinstance(value, Mapping),
        "any": True,
    }[key.kind]
    wanted = {"bool": "true or false", "count": "a whole number of at least 0", "dict": "an object"}
    return "" if right else f"must be {wanted.get(key.kind, f'a {key.kind}')}"


def _asks_for_nothing(key: Key, value: Any) -> bool:
    """Whether the value of a key that is not supported is the default, or a section that is switched off."""
    if isinstance(value, Mapping):
        section = cast("Mapping[str, Any]", value)
        return not section or section.get("enabled", section.get("deepcompile", True)) in (False, "auto")
    return value == key.default
