"""Draws a plan: ranks are vertical lines, time runs down in rounds, arrows are transfers and name chunks.

all_reduce recursive_doubling, 2 ranks: 1 round, a rank sends at most 1 of the array

            0       1
            C       C
 round 1    ├──+0──▶│
            │◀──+0──┤
"""

from __future__ import annotations

from collections.abc import Iterable
from colorsys import hls_to_rgb
from dataclasses import dataclass, field
from html import escape

from collectives.graph import End, where
from collectives.plan import Copy, Plan, RecvReduce, Reduce, Send
from collectives.verify import prove

__all__ = ["svg", "text"]


@dataclass(frozen=True)
class _Arrow:
    source: int
    target: int
    label: str
    chunk: int
    lane: int
    combines: bool
    title: str

    @property
    def low(self) -> int:
        return min(self.source, self.target)

    @property
    def high(self) -> int:
        return max(self.source, self.target)


@dataclass(frozen=True)
class _Mark:
    """A local step: a copy, or a combination of two chunks of the same rank."""

    rank: int
    combines: bool
    title: str


@dataclass
class _Round:
    """Transfers in rows, so that no two arrows of a row touch; then the local steps that follow them."""

    rows: list[list[_Arrow]] = field(default_factory=list[list[_Arrow]])
    marks: list[_Mark] = field(default_factory=list[_Mark])


def text(plan: Plan) -> str:
    """The drawing as text, some 6 columns a rank. Raises PlanError when the plan is broken."""
    title, rounds = _layout(plan)
    width = max(6, 4 + max((len(a.label) for r in rounds for row in r.rows for a in row), default=0))
    margin = 12

    def line(start: str, arrows: Iterable[_Arrow] = (), marks: Iterable[_Mark] = ()) -> str:
        cells = list(start.ljust(margin)) + list(("│" + " " * (width - 1)) * plan.size)
        for arrow in arrows:
            a, b = margin + width * arrow.low, margin + width * arrow.high
            dash, cross = ("─", "┼") if arrow.lane % 2 == 0 else ("═", "╪")
            cells[a + 1 : b] = [cross if (x - margin) % width == 0 else dash for x in range(a + 1, b)]
            if arrow.source < arrow.target:
                cells[a], cells[b - 1], label = "├" if dash == "─" else "╞", "▶", a + 1
            else:
                cells[b], cells[a + 1], label = "┤" if dash == "─" else "╡", "◀", b - width + 2
            label += (width - 2 - len(arrow.label)) // 2
            cells[label : label + len(arrow.label)] = arrow.label
        for mark in marks:
            cells[margin + width * mark.rank] = "+" if mark.combines else "C"
        return "".join(cells).rstrip()

    lines = [title, "", " " * margin + "".join(str(r).ljust(width) for r in range(plan.size)).rstrip()]
    for number, round_ in enumerate(rounds):
        for i, row in enumerate(round_.rows):
            lines.append(line(f" round {number}" if i == 0 else "", arrows=row))
        if round_.marks:
            lines.append(line("", marks=round_.marks))
        elif number:
            lines.append(line(""))
    legend = _legend(rounds, odd_lanes="═", marks="on a rank's line, C copies a chunk and + combines two")
    return "\n".join([*lines, "", legend]) + "\n"


_STEP, _ROW, _LEFT, _TOP = 84, 24, 96, 84
"""Pixels between ranks and between rows, and before the first of each."""

_STYLE = """<style>
.rank { stroke: #9aa4b5; stroke-width: 1.5 }
.name { fill: #fff; font-size: 13px; font-weight: bold; text-anchor: middle }
.round { fill: #6b7585; font-size: 12px }
.chunk { fill: #fff; font-size: 11px; font-weight: bold; text-anchor: middle }
.title { fill: #27303f; font-size: 15px }
.legend { fill: #6b7585; font-size: 12px }
</style>"""


def svg(plan: Plan) -> str:
    """The drawing as an SVG document; its arrows have their two steps as tooltips. Raises PlanError."""
    title, rounds = _layout(plan)
    legend = _legend(rounds, odd_lanes="dashed", marks="squares copy a chunk, or with a + combine two")
    right = _LEFT + _STEP * (plan.size - 1) + 28
    bands: list[str] = []
    steps: list[str] = []
    y = _TOP
    for number, round_ in enumerate(rounds):
        top = y
        for row in round_.rows:
            y += _ROW
            steps.extend(_arrow(plan, arrow, y - 4) for arrow in row)
        if round_.marks:
            y += 20
            steps.extend(_mark(mark, y - 8) for mark in round_.marks)
        y += 8
        if number:
            shade = "#f1f4f9" if number % 2 else "#ffffff"
            bands.append(f'<rect x="12" y="{top}" width="{right - 12}" height="{y - top}" fill="{shade}" rx="4"/>')
            bands.append(f'<text x="22" y="{top + 24}" class="round">round {number}</text>')
    ranks = [
        f'<line x1="{_x(r)}" y1="{_TOP - 12}" x2="{_x(r)}" y2="{y + 8}" class="rank"/>'
        f'<circle cx="{_x(r)}" cy="{_TOP - 24}" r="14" fill="#27303f"/>'
        f'<text x="{_x(r)}" y="{_TOP - 19}" class="name">{r}</text>'
        for r in range(plan.size)
    ]
    width, height = max(right + 12, 8 * len(title) + 32, 6 * len(legend) + 32), y + 52
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">'
    )
    return "\n".join(
        [
            head,
            _STYLE,
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="28" class="title">{escape(title)}</text>',
            *bands,
            *ranks,
            *steps,
            f'<text x="16" y="{y + 36}" class="legend">{escape(legend)}</text>',
            "</svg>\n",
        ]
    )


def _arrow(plan: Plan, arrow: _Arrow, y: int) -> str:
    """Slightly aslant, as time runs down. The colour is the chunk's; odd lanes are dashed."""
    colour = _colour(arrow.chunk, plan.blocks * plan.chunks)
    way = 1 if arrow.source < arrow.target else -1
    x1, y1 = _x(arrow.source), y - 3
    x2, y2 = _x(arrow.target) - 2 * way, y + 3
    x, width = x1 + way * _STEP / 2, 8 * len(arrow.label) + 8
    middle = y1 + (y2 - y1) * _STEP / 2 / abs(x2 - x1)
    dash = ' stroke-dasharray="7 3"' if arrow.lane % 2 else ""
    end = x2 - 7 * way
    return (
        f"<g><title>{escape(arrow.title)}</title>"
        f'<circle cx="{x1}" cy="{y1}" r="3" fill="{colour}"/>'
        f'<line x1="{x1}" y1="{y1}" x2="{end}" y2="{y2}" stroke="{colour}" stroke-width="1.6"{dash}/>'
        f'<path d="M{x2} {y2}l{-9 * way} -5v10z" fill="{colour}"/>'
        f'<rect x="{x - width / 2}" y="{middle - 8:.1f}" width="{width}" height="16" rx="8" fill="{colour}"/>'
        f'<text x="{x}" y="{middle + 4:.1f}" class="chunk">{escape(arrow.label)}</text></g>'
    )


def _colour(chunk: int, chunks: int) -> str:
    """Chunks spread round the colour wheel, dark enough for white figures."""
    rgb = hls_to_rgb(chunk / chunks, 0.38, 0.6)
    return "#" + "".join(f"{int(255 * part):02x}" for part in rgb)


def _mark(mark: _Mark, y: int) -> str:
    x = _x(mark.rank)
    inner = f'<path d="M{x - 4} {y}h8M{x} {y - 4}v8" stroke="#27303f" stroke-width="1.5"/>' if mark.combines else ""
    return (
        f"<g><title>{escape(mark.title)}</title>"
        f'<rect x="{x - 6}" y="{y - 6}" width="12" height="12" rx="2" fill="#ffd777" stroke="#27303f"/>'
        f"{inner}</g>"
    )


def _x(rank: int) -> int:
    return _LEFT + _STEP * rank


def _legend(rounds: list[_Round], odd_lanes: str, marks: str) -> str:
    arrows = [arrow for round_ in rounds for row in round_.rows for arrow in row]
    parts = ["numbers are chunks"]
    if any(arrow.combines for arrow in arrows):
        parts.append("+ on an arrow: combined with what is there")
    if any(arrow.label.endswith("'") for arrow in arrows):
        parts.append("': a spare chunk")
    if any(arrow.lane % 2 for arrow in arrows):
        parts.append(f"{odd_lanes}: odd lanes")
    if any(round_.marks for round_ in rounds):
        parts.append(marks)
    return "; ".join(parts)


def _layout(plan: Plan) -> tuple[str, list[_Round]]:
    """The title, and what happens in each round; round 0 is the local steps before any transfer."""
    proof, graph = prove(plan)
    rounds = [_Round() for _ in range(proof.rounds + 1)]
    arrows: list[list[_Arrow]] = [[] for _ in rounds]
    for node, (giver, taker) in enumerate(graph.ends):
        number = graph.rounds[node]
        if taker is not None:
            arrows[number].append(_to_arrow(plan, giver, taker))
        else:
            rounds[number].marks.append(_Mark(giver[0], isinstance(giver[2], Reduce), where(giver)))
    for round_, several in zip(rounds, arrows, strict=True):
        for arrow in sorted(several, key=lambda a: (a.lane, a.low, a.high)):
            row = next((row for row in round_.rows if row[-1].high < arrow.low), None)
            if row is None:
                round_.rows.append([arrow])
            else:
                row.append(arrow)
    root = f", root {plan.root}" if plan.root else ""
    name = f"{plan.collective} {plan.algorithm}, {_plural(plan.size, 'rank')}{root}"
    title = f"{name}: {_plural(proof.rounds, 'round')}, a rank sends at most {proof.sent} of the array"
    return title, rounds


def _to_arrow(plan: Plan, giver: End, taker: End) -> _Arrow:
    send, receive = giver[2], taker[2]
    assert isinstance(send, Send)
    assert not isinstance(receive, (Send, Copy, Reduce))
    data = plan.blocks * plan.chunks
    chunk = receive.chunk % data
    chunks = f"{chunk}" if receive.count == 1 else f"{chunk}-{chunk + receive.count - 1}"
    combines = isinstance(receive, RecvReduce)
    label = ("+" if combines else "") + chunks + ("'" if receive.chunk >= data else "")
    title = f"{where(giver)}\n{where(taker)}"
    return _Arrow(giver[0], taker[0], label, chunk, receive.lane, combines, title)


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
