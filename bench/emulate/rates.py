"""Link rates as iproute2 writes them in bits: `200mbit`, `1.5gbit`. Units are decimal; inside, rates are bytes/s."""

from __future__ import annotations

import argparse
import re

UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
MIN_BYTES_PER_S = 10**6 / 8
MAX_BYTES_PER_S = 400 * 10**9 / 8


def parse_rate(text: str) -> float:
    """Bytes per second. Raises ValueError for an unknown unit, and for a rate that no link here can have."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ValueError(f"{text!r} is not a rate; write a number and one of {', '.join(UNITS)}, such as 200mbit")
    bytes_per_s = float(match[1]) * UNITS[match[2]] / 8
    check_rate(bytes_per_s, text)
    return bytes_per_s


def rate_argument(text: str) -> float:
    """`parse_rate` for argparse."""
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_rate(bytes_per_s: float, where: str) -> None:
    """Raises ValueError unless 1 Mbit/s <= rate <= 400 Gbit/s."""
    if not MIN_BYTES_PER_S <= bytes_per_s <= MAX_BYTES_PER_S:
        low, high = spell_rate(MIN_BYTES_PER_S), spell_rate(MAX_BYTES_PER_S)
        raise ValueError(f"{where}: a link has {low} to {high}, not {spell_rate(bytes_per_s)}")


def spell_rate(bytes_per_s: float) -> str:
    """For people and for `parse_rate`: 25e6 is `200mbit`."""
    bits = bytes_per_s * 8
    unit = next((unit for unit in ("gbit", "mbit") if bits >= UNITS[unit]), "kbit")
    return f"{bits / UNITS[unit]:.6g}{unit}"
