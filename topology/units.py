"""Latencies and bandwidths as people write them: "5 us", "25 GB/s", "200 Mbit/s". GB is 10^9 bytes, GiB is 2^30."""

from __future__ import annotations

import math
import re
from decimal import Decimal

__all__ = ["parse_bytes_per_s", "parse_s", "spell_bytes_per_s", "spell_s"]

_TIMES = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "µs": Decimal("1e-6"), "ns": Decimal("1e-9")}
_PREFIXES = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_RATES = {
    **{f"{prefix}B/s": Decimal(factor) for prefix, factor in _PREFIXES.items()},
    **{f"{prefix}bit/s": Decimal(factor) / 8 for prefix, factor in _PREFIXES.items()},
}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\D*?)\s*")


def parse_s(given: object) -> float:
    """Seconds, from a number of seconds or a text with a unit. Raises ValueError, also for less than 0 and for inf."""
    value = _parse(given, _TIMES, 'seconds, or a text such as "5 us"')
    if not 0 <= value < math.inf:
        raise ValueError(f"expected a time of 0 or more, not {given!r}")
    return value


def parse_bytes_per_s(given: object) -> float:
    """Bytes per second, from a number or a text with a unit; "inf" is no limit. Raises ValueError, also for 0."""
    if given == "inf":
        return math.inf
    value = _parse(given, _RATES, 'bytes per second, or a text such as "25 GB/s" or "200 Mbit/s"')
    if not value > 0:
        raise ValueError(f"expected a bandwidth above 0, not {given!r}")
    return value


def spell_s(value_s: float) -> str | float:
    """The shortest text that `parse_s` reads as exactly this; the number itself where none is short."""
    unit = "s" if value_s >= 1 else "ms" if value_s >= 1e-3 else "us" if value_s >= 1e-6 else "ns"
    return _spell(value_s, "s" if value_s == 0 else unit, _TIMES)


def spell_bytes_per_s(value: float) -> str | float:
    """The shortest text that `parse_bytes_per_s` reads as exactly this; the number itself where none is short."""
    if value == math.inf:
        return "inf"
    unit = next((u for u in ("TB/s", "GB/s", "MB/s", "kB/s") if value >= _RATES[u]), "B/s")
    return _spell(value, unit, _RATES)


def _parse(given: object, units: dict[str, Decimal], expected: str) -> float:
    try:
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return float(given)
        match = _NUMBER.fullmatch(given) if isinstance(given, str) else None
        if match is not None and match[2] in units:
            return float(Decimal(match[1]) * units[match[2]])  # in decimal, so that 5 us is 5e-6 and not its neighbour
    except ArithmeticError:
        raise ValueError(f"expected {expected}, not a number of that size") from None
    raise ValueError(f"expected {expected}, not {given!r}")


def _spell(value: float, unit: str, units: dict[str, Decimal]) -> str | float:
    text = f"{float(Decimal(value) / units[unit]):.9g} {unit}"
    return text if _parse(text, units, "") == value else value
