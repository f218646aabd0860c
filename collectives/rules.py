"""Choices that a person makes: which algorithm for which collective, and for arrays of which sizes.

As a file or as objects of the same form; sizes are bytes of the whole array, as algbw counts them, and the first rule
that fits counts. A JSON file:

    [{"collective": "all_reduce", "algorithm": "two_tree", "from": "64 KiB", "below": "8 MiB"},
     {"collective": "broadcast", "algorithm": "binomial"}]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from collectives.plan import COLLECTIVES, NATIVE, find

__all__ = ["Rule", "read_rules"]

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_KEYS = ("collective", "algorithm", "from", "below")


class Rule(NamedTuple):
    """`algorithm` for arrays of at least `from_bytes` and less than `below_bytes`."""

    collective: str
    algorithm: str
    from_bytes: float = 0
    below_bytes: float = math.inf

    def fits(self, collective: str, nbytes: int) -> bool:
        """Whether it is about this call."""
        return self.collective == collective and self.from_bytes <= nbytes < self.below_bytes


def read_rules(given: str | Path | Sequence[Rule | dict[str, Any]] | None) -> tuple[Rule, ...]:
    """The rules in a file, or those given. Raises ValueError that says where, for what is not a rule."""
    if given is None:
        return ()
    where = "rules"
    if isinstance(given, (str, Path)):
        where = str(given)
        try:
            given = cast("Sequence[Rule | dict[str, Any]]", json.loads(Path(given).read_text()))
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not isinstance(cast(object, given), (list, tuple)):
        raise ValueError(f"{where} must be a list of rules")
    return tuple(_rule(rule, f"{where}[{i}]") for i, rule in enumerate(given))


def _rule(given: Rule | dict[str, Any], where: str) -> Rule:
    if isinstance(given, Rule):
        given = dict(zip(_KEYS, given, strict=True))
    if not isinstance(cast(object, given), dict):
        raise ValueError(f"{where} must be an object with {', '.join(_KEYS)}, not {given!r:.60}")
    for key in given:
        if key not in _KEYS:
            raise ValueError(f"{where} has an unknown key {key!r}; there are: {', '.join(_KEYS)}")
    for key in _KEYS[:2]:
        if not isinstance(given.get(key), str):
            raise ValueError(f"{where} needs {key!r}, a name")
    begin, end = _bytes(given.get("from", 0), where), _bytes(given.get("below", math.inf), where)
    rule = Rule(given["collective"], given["algorithm"], begin, end)
    if not rule.from_bytes < rule.below_bytes:
        raise ValueError(f"{where} is about no size: from {rule.from_bytes} to below {rule.below_bytes} bytes")
    try:
        if rule.algorithm != NATIVE or rule.collective not in COLLECTIVES:
            find(rule.collective, rule.algorithm)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return rule


def _bytes(given: object, where: str) -> float:
    if isinstance(given, (int, float)) and not isinstance(given, bool) and given >= 0:
        return given
    spelled = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given) if isinstance(given, str) else None
    if spelled is None or spelled[2].upper() not in _UNITS:
        raise ValueError(f"{where}: {given!r:.40} is no size: write bytes, or '64 KiB', '8 MiB', '1 GB'")
    return float(spelled[1]) * _UNITS[spelled[2].upper()]
