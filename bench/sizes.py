"""Message sizes as nccl-tests writes them: `16`, `1K`, `4M`, `1G` (binary); steps by a factor or by bytes."""

from __future__ import annotations

from collections.abc import Iterator

MULTIPLES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """The bytes `text` names; a fraction may stand before K, M or G: `1.5K` is 1536. Raises ValueError."""
    number, unit = text.strip(), 1
    if number and number[-1].upper() in MULTIPLES:
        number, unit = number[:-1], MULTIPLES[number[-1].upper()]
    try:
        size_bytes = float(number) * unit
    except ValueError:
        size_bytes = -1.0
    if not 0 <= size_bytes < 1 << 62:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with K, M or G, such as 16 or 64M")
    return int(size_bytes)


def steps(minimum_bytes: int, maximum_bytes: int, step_bytes: int, step_factor: int) -> Iterator[int]:
    """Sizes from smallest to largest: times `step_factor` when that is above 1, else plus `step_bytes`."""
    size_bytes = minimum_bytes
    while size_bytes <= maximum_bytes:
        yield size_bytes
        following = size_bytes * step_factor if step_factor > 1 else size_bytes + step_bytes
        if following <= size_bytes:  # zero times anything, or a step of nothing
            return
        size_bytes = following


def spell(size_bytes: int) -> str:
    """The shortest exact spelling, the inverse of `parse_size`: 65536 is `64K`."""
    for unit in "GMK":
        if size_bytes and size_bytes % MULTIPLES[unit] == 0:
            return f"{size_bytes // MULTIPLES[unit]}{unit}"
    return str(size_bytes)
