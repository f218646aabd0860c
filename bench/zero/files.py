"""What a training step moves to files and back, where states are offloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Moved", "ask", "table"]


class Moved(NamedTuple):
    """By a rank in a step, means over the ranks."""

    name: str
    read_bytes: float
    written_bytes: float
    reading_s: float  # in which at least one thread read
    writing_s: float
    busy_s: float  # either
    waited_s: float  # in which the rank stood still for them

    @property
    def hidden(self) -> float:
        """The share of `busy_s` in which something else was done."""
        return 1 - min(self.waited_s / self.busy_s, 1.0) if self.busy_s else 0.0


def ask(name: str, of: Callable[[str, int], float], steps: int) -> Moved:
    """`of` measures a quantity of training.py over so many steps."""
    read, written, reading, writing, busy, waited = (of(f"offload.{field}", steps) for field in Moved._fields[1:])
    return Moved(name, read, written, reading, writing, busy, waited)


def table(rows: Sequence[Moved]) -> str:
    lines = [
        f"# {'':<15}  {'read':>8}  {'':>7}  {'written':>8}  {'':>7}  {'busy':>8}  {'waited':>8}  {'hidden':>7}",
        f"# {'':<15}  {'(MB)':>8}  {'(GB/s)':>7}  {'(MB)':>8}  {'(GB/s)':>7}  {'(ms)':>8}  {'(ms)':>8}  {'(%)':>7}",
    ]
    for row in rows:
        reading, writing = (
            nbytes / seconds / 1e9 if seconds else 0.0
            for nbytes, seconds in ((row.read_bytes, row.reading_s), (row.written_bytes, row.writing_s))
        )
        lines.append(
            f"  {row.name:<15}  {row.read_bytes / 1e6:>8.1f}  {reading:>7.2f}  {row.written_bytes / 1e6:>8.1f}  "
            f"{writing:>7.2f}  {row.busy_s * 1e3:>8.1f}  {row.waited_s * 1e3:>8.1f}  {100 * row.hidden:>7.0f}"
        )
    return "\n".join(lines)
