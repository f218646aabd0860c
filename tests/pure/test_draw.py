"""A drawn plan shows who sends what to whom, when."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

import collectives.algorithms  # noqa: F401  (registers them)
from collectives.plan import COLLECTIVES, Plan, Recv, Send, algorithm, algorithms, unregister
from collectives.verify import PlanError, verify

CHAIN = """\
broadcast ring, 3 ranks: 2 rounds, a rank sends at most 1 of the array

            0     1     2
 round 1    ├─0──▶│     │
            │     │     │
 round 2    │     ├─0──▶│
            │     │     │

numbers are chunks
"""

EXCHANGE = """\
all_reduce recursive_doubling, 2 ranks: 1 round, a rank sends at most 1 of the array

            0     1
            C     C
 round 1    ├─+0─▶│
            │◀─+0─┤
            │     │

numbers are chunks; + on an arrow: combined with what is there; on a rank's line, C copies a chunk and + combines two
"""


def test_a_chain_as_text() -> None:
    assert Plan("broadcast", "ring", 3).draw() == CHAIN


def test_an_exchange_as_text() -> None:
    assert Plan("all_reduce", "recursive_doubling", 2).draw() == EXCHANGE


def test_text_shows_lanes_ranges_and_spare_chunks() -> None:
    assert "═" in Plan("all_reduce", "two_tree", 4).draw()
    assert "+2-3" in Plan("all_reduce", "halving_doubling", 4).draw()
    assert "0'" in Plan("all_reduce", "one_shot", 3).draw()


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_every_transfer_is_in_both_drawings(collective: str, size: int) -> None:
    for name in algorithms(collective):
        plan = Plan(collective, name, size)
        transfers = sum(isinstance(step, Send) for rank in range(size) for step in plan.steps(rank))
        text = plan.draw()
        assert len(re.findall("[▶◀]", text)) == transfers
        assert max(map(len, text.splitlines()[2:-1])) <= 170
        svg = ElementTree.fromstring(plan.draw(format="svg"))
        assert (
            sum(path.get("d", "").endswith("z") for path in svg.iter("{http://www.w3.org/2000/svg}path")) == transfers
        )


def test_arrows_of_one_row_never_touch() -> None:
    for line in Plan("all_to_all", "direct", 8).draw().splitlines():
        assert len(re.findall(r"[├┤╞╡]", line)) == len(re.findall("[▶◀]", line))


def test_rounds_are_numbered_as_the_proof_counts_them() -> None:
    plan = Plan("all_reduce", "hierarchical", 6, 0, ((0, 1, 2), (3, 4), (5,)))
    rounds = [int(r) for r in re.findall(r"round (\d+)", plan.draw())]
    assert rounds == [*range(1, verify(plan).rounds + 1)]


def test_tooltips_name_both_steps() -> None:
    svg = Plan("broadcast", "ring", 2).draw(format="svg")
    assert "<title>rank 0, step 0, Send(peer=1, chunk=0, count=1, lane=0)\nrank 1, step 0, Recv(peer=0, " in svg


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="'text' or 'svg', not 'png'"):
        Plan("broadcast", "ring", 2).draw(format="png")  # type: ignore[arg-type]


def test_a_broken_plan_is_not_drawn() -> None:
    algorithm("broadcast", "broken")(lambda rank, size: [Recv(1 - rank, 0)])
    try:
        with pytest.raises(PlanError, match="rank 0, step 0"):
            Plan("broadcast", "broken", 2).draw()
    finally:
        unregister("broadcast", "broken")
