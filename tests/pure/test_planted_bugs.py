"""Bugs planted in good plans, and plans that are bad from the start: each is caught, by rank and step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import collectives.algorithms  # noqa: F401  (registers them)
from collectives.plan import (
    Copy,
    Plan,
    Recv,
    RecvReduce,
    Reduce,
    Send,
    Step,
    algorithm,
    algorithms,
    unregister,
)
from collectives.verify import PlanError, verify

Steps = list[list[Any]]
"""The steps of every rank, to be tampered with."""

NAMES_RANK_AND_STEP = re.compile(r"rank \d+, (step \d+|chunk \d+: (after step \d+|none of its \d+ steps))")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for collective in (
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "broadcast",
        "reduce",
        "all_to_all",
        "barrier",
        "scan",
        "exscan",
    ):
        if "planted" in algorithms(collective):
            unregister(collective, "planted")


def planted(collective: str, steps: Steps, *, chunks: int = 1, lanes: int = 1, root: int = 0) -> Plan:
    def generate(rank: int, size: int) -> Iterator[Step]:
        yield from steps[rank]

    algorithm(collective, "planted", chunks=chunks, lanes=lanes)(generate)
    return Plan(collective, "planted", len(steps), root)


def tampered(collective: str, name: str, size: int, tamper: Callable[[Steps], object], root: int = 0) -> Plan:
    """A good plan, after something was done to its steps."""
    plan = Plan(collective, name, size, root)
    verify(plan)
    steps = good(collective, name, size, root)
    tamper(steps)
    return planted(collective, steps, chunks=plan.chunks, lanes=plan.lanes, root=root)


def change(rank: int, index: int, **fields: Any) -> Callable[[Steps], None]:
    def tamper(steps: Steps) -> None:
        steps[rank][index] = steps[rank][index]._replace(**fields)

    return tamper


def good(collective: str, name: str, size: int, root: int = 0) -> Steps:
    return [list(Plan(collective, name, size, root).steps(rank)) for rank in range(size)]


def swap(rank: int, i: int, j: int) -> Callable[[Steps], None]:
    def tamper(steps: Steps) -> None:
        steps[rank][i], steps[rank][j] = steps[rank][j], steps[rank][i]

    return tamper


def drop(rank: int, *indices: int) -> Callable[[Steps], None]:
    def tamper(steps: Steps) -> None:
        steps[rank] = [step for i, step in enumerate(steps[rank]) if i not in {i % len(steps[rank]) for i in indices}]

    return tamper


def put(rank: int, index: int, step: Any) -> Callable[[Steps], None]:
    def tamper(steps: Steps) -> None:
        steps[rank].insert(index, step)

    return tamper


def replace(rank: int, index: int, step: Any) -> Callable[[Steps], None]:
    def tamper(steps: Steps) -> None:
        steps[rank][index] = step

    return tamper


def every(count: int, make: Callable[[int], list[Any]]) -> Steps:
    return [make(rank) for rank in range(count)]


def off_by_one(steps: Steps) -> None:
    """Every rank sends the chunk before the one it should, so that both ends disagree in every step."""
    for rank, mine in enumerate(steps):
        steps[rank] = [s._replace(chunk=(s.chunk - 1) % 4) if isinstance(s, Send) else s for s in mine]


def off_by_one_on_both_ends(steps: Steps) -> None:
    for rank, mine in enumerate(steps):
        steps[rank] = [s._replace(chunk=(s.chunk - 1) % 4) for s in mine]


def one_round_short(steps: Steps) -> None:
    for mine in steps:
        del mine[-2:]


def combine_with_the_copy_left_out(steps: Steps) -> None:
    """Partners overwrite what they are still sending to each other."""
    for rank, mine in enumerate(steps):
        steps[rank] = [s._replace(chunk=0) if isinstance(s, Send) else s for s in mine if not isinstance(s, Copy)]


BUGS: dict[str, tuple[Callable[[], Plan], str]] = {
    "off by one at the sending end": (
        lambda: tampered("all_gather", "ring", 4, off_by_one),
        r"the message that comes is rank \d, step \d, Send\(.*same size",
    ),
    "off by one at both ends": (
        lambda: tampered("all_gather", "ring", 4, off_by_one_on_both_ends),
        r"rank 0, step 0, Send\(peer=1, chunk=3, .*reads chunk 3, which holds nothing yet",
    ),
    "off by one block in a reduce-scatter": (
        lambda: tampered("reduce_scatter", "ring", 4, off_by_one_on_both_ends),
        r"rank 0, chunk 0: after step \d+, RecvReduce\(.* it ends with chunk 0 of ranks 0, 2-3; .*",
    ),
    "one round too few": (
        lambda: tampered("all_gather", "ring", 4, one_round_short),
        r"rank 0, chunk 1: none of its 4 steps writes it: it ends with nothing; .* chunk 1 of rank 1",
    ),
    "a missing send": (
        lambda: tampered("broadcast", "binomial", 4, drop(0, 1)),
        r"rank 1, step 0, Recv\(peer=0.*never comes: on lane 0, rank 0 sends 0 to rank 1, which receives 1",
    ),
    "a missing receive": (
        lambda: tampered("broadcast", "binomial", 4, drop(3, 0)),
        r"rank 2, step 1, Send\(peer=3.*never received: on lane 0, rank 2 sends 1 to rank 3, which",
    ),
    "a message too many at the end": (
        lambda: tampered("all_reduce", "ring", 3, put(2, 99, Send(0, 1))),
        r"rank 2, step 16, Send\(peer=0, chunk=1.*never received",
    ),
    "two sends in the wrong order": (
        lambda: tampered("all_gather", "ring", 4, swap(1, 0, 2)),
        r"rank 2, step 1, Recv\(peer=1, chunk=1.*the message that comes is rank 1, step 0, Send",
    ),
    "two receives in the wrong order": (
        lambda: tampered("all_gather", "ring", 4, swap(1, 1, 3)),
        r"rank 1, step 1, Recv\(peer=0, chunk=3.*the message that comes is rank 0, step 0, Send",
    ),
    "a send moved before what it sends has come": (
        lambda: tampered("broadcast", "ring", 4, swap(2, 0, 1)),
        r"rank 2, step 0, Send\(peer=3, chunk=0.*reads chunk 0, which holds nothing yet",
    ),
    "the wrong lane": (
        lambda: tampered("all_reduce", "two_tree", 4, change(0, 0, lane=1)),
        r"rank 0, step 0, Send\(peer=1, chunk=0, count=1, lane=1\).*never received: on lane 1, rank 0 sends",
    ),
    "a lane that was not asked for": (
        lambda: tampered("all_gather", "ring", 3, change(1, 0, lane=1)),
        r"rank 1, step 0, .*lane 1 is not one of the 1 this algorithm was registered with",
    ),
    "the wrong peer": (
        lambda: tampered("reduce", "binomial", 4, change(3, 0, peer=1)),
        r"rank 3, step 0, Send\(peer=1, .*never received",
    ),
    "a peer that does not exist": (
        lambda: tampered("broadcast", "ring", 3, put(2, 1, Send(3, 0))),
        r"rank 2, step 1, Send\(peer=3, .*there is no rank 3 among 3",
    ),
    "a message to itself": (
        lambda: tampered("broadcast", "ring", 3, put(2, 1, Send(2, 0))),
        r"rank 2, step 1, Send\(peer=2, .*a rank cannot exchange messages with itself",
    ),
    "everybody sends the chunk that everybody is about to overwrite": (
        lambda: planted("all_reduce", every(3, lambda r: [Send((r + 1) % 3, 0), Recv((r - 1) % 3, 0)])),
        r"rank \d, step 1, Recv\(.*would overwrite chunk 0 while step 0, Send.*to rank \d.*3 transfers",
    ),
    "partners combine into the chunk they are sending": (
        lambda: tampered("all_reduce", "recursive_doubling", 4, combine_with_the_copy_left_out),
        r"rank \d, step 1, RecvReduce\(.*would overwrite chunk 0 while step 0, Send\(.*still streams",
    ),
    "a range is overwritten while part of it is still being sent": (
        lambda: planted("all_reduce", every(2, lambda r: [Send(1 - r, 0, 2), RecvReduce(1 - r, 0, 2)]), chunks=3),
        r"rank \d, step 1, RecvReduce\(.*would overwrite chunk 0 while step 0, Send\(",
    ),
    "everybody waits before sending": (
        lambda: planted("all_reduce", every(3, lambda r: [RecvReduce((r - 1) % 3, 0), Send((r + 1) % 3, 0)])),
        r"deadlock: rank \d, step 1, Send\(.*\) waits for step 0, RecvReduce\(.*; rank \d, step 1, Send\(",
    ),
    "messages on one lane in an order that the data cannot follow": (
        lambda: planted(
            "all_reduce",
            [
                [Recv(2, 3), Recv(2, 0), Send(1, 0), Send(1, 1)],
                [Recv(0, 0), Recv(0, 1), Send(2, 1)],
                [Recv(1, 1), Send(0, 1), Send(0, 0)],
            ],
            chunks=2,
        ),
        r"deadlock: rank \d, step \d, .* waits for step \d, .*; rank 2, step 2, Send\(.* waits for step 1, ",
    ),
    "two ranks that each wait for the other to send first": (
        lambda: planted(
            "broadcast",
            [[Send(1, 0), Recv(1, 1), Send(1, 1)], [Recv(0, 0), Recv(0, 1), Send(0, 1)]],
            chunks=2,
        ),
        r"deadlock: rank 0, step 2, Send\(.* waits for step 1, Recv\(.*; rank 1, step 2, .* waits for step 1, ",
    ),
    "a rank counted twice": (
        lambda: planted(
            "reduce",
            [[RecvReduce(1, 0), RecvReduce(2, 0)], [Send(0, 0), Send(2, 0)], [RecvReduce(1, 0), Send(0, 0)]],
        ),
        r"rank 0, step 1, RecvReduce\(peer=2.*ranks 0-1 .* with .* ranks 1-2: rank 1 would count twice",
    ),
    "combining where it should overwrite": (
        lambda: tampered("all_reduce", "ring", 2, replace(0, 7, RecvReduce(1, 3, lane=1))),
        r"rank 0, step 7, .* combined with .* ranks 0-1: rank 0 would count twice",
    ),
    "overwriting where it should combine": (
        lambda: tampered("reduce", "ring", 4, replace(1, 0, Recv(2, 0))),
        r"rank 0, chunk 0: after step 0, RecvReduce\(.* ends with chunk 0 of ranks 0, 2-3; .* ranks 0-3",
    ),
    "a pair of steps left out of a reduction": (
        lambda: tampered("all_reduce", "two_tree", 4, lambda steps: (drop(2, 0)(steps), drop(1, 0)(steps))),
        r"rank 0, chunk 0: after step 2, Recv\(.*ends with chunk 0 of ranks 0-1, 3; .* ranks 0-3",
    ),
    "a spare chunk read before it is written": (
        lambda: tampered("all_reduce", "recursive_doubling", 4, drop(2, 0)),
        r"rank 2, step 0, Send\(peer=3, chunk=1.*reads chunk 1, which holds nothing yet",
    ),
    "a sum into a spare chunk that is empty": (
        lambda: planted("all_reduce", [[Send(1, 0), Recv(1, 0)], [RecvReduce(0, 1), Reduce(1, 0), Send(0, 0)]]),
        r"rank 1, step 0, RecvReduce\(peer=0, chunk=1.*combines with chunk 1, which holds nothing yet",
    ),
    "a local sum into an empty chunk": (
        lambda: planted("reduce", [[Reduce(0, 1)]]),
        r"rank 0, step 0, Reduce\(source=0, target=1.*combines with chunk 1, which holds nothing yet",
    ),
    "the wrong root": (
        lambda: planted("broadcast", good("broadcast", "binomial", 4), root=2),
        r"rank 0, step 0, Send\(.*reads chunk 0, which holds nothing yet",
    ),
    "a result that ends at the wrong rank": (
        lambda: planted("reduce", good("reduce", "ring", 3, root=1), root=0),
        r"rank 0, chunk 0: none of its 1 steps .* ends with chunk 0 of rank 0; reduce promises .* ranks 0-2",
    ),
    "a different number of chunks at the two ends": (
        lambda: tampered("all_reduce", "halving_doubling", 4, change(0, 0, count=1)),
        r"rank 1, step 1, RecvReduce\(.*count=2.*the message that comes is rank 0, step 0, Send\(.*count=1",
    ),
    "no chunks at all": (
        lambda: tampered("broadcast", "ring", 2, change(0, 0, count=0)),
        r"rank 0, step 0, Send\(.*must be at least one chunk",
    ),
    "chunks past the end": (
        lambda: tampered("all_reduce", "halving_doubling", 4, change(1, 0, chunk=3, count=2)),
        r"rank 1, step 0, Send\(.*within one stretch of 4",
    ),
    "registered with too few chunks": (
        lambda: planted("all_reduce", good("all_reduce", "ring", 3), chunks=3, lanes=2),
        r"rank \d, step \d+, Send\(.*reads chunk [345], which holds nothing yet",
    ),
    "registered with too many chunks": (
        lambda: planted("broadcast", [[Send(1, 0)], [Recv(0, 0)]], chunks=2),
        r"rank 1, chunk 1: none of its 1 steps writes it: it ends with nothing; .* chunk 1 of rank 0",
    ),
    "a block put in the wrong place": (
        lambda: tampered(
            "all_to_all",
            "direct",
            3,
            lambda steps: (change(0, 3, chunk=4)(steps), change(0, 4, chunk=5)(steps)),
        ),
        r"rank 0, chunk 4: after step 3, Recv\(peer=2, chunk=4.*ends with .* rank 2; .* chunk 0 of rank 1",
    ),
    "blocks of two peers confused": (
        lambda: tampered(
            "all_to_all",
            "direct",
            3,
            lambda steps: (change(0, 1, chunk=2)(steps), change(0, 2, chunk=1)(steps)),
        ),
        r"rank 1, chunk 3: after step \d, Recv\(peer=0, .*ends with chunk 2 of rank 0; .* chunk 1 of rank 0",
    ),
    "a rank's own block forgotten": (
        lambda: tampered("all_to_all", "direct", 3, drop(1, 0)),
        r"rank 1, chunk 4: none of its 4 steps writes it",
    ),
    "a copy onto itself": (
        lambda: tampered("all_reduce", "recursive_doubling", 2, change(0, 0, target=0)),
        r"rank 0, step 0, Copy\(source=0, target=0.*must be different chunks",
    ),
    "a copy to a chunk of another size": (
        lambda: tampered("reduce_scatter", "ring", 2, put(0, 0, Copy(0, 1))),
        r"rank 0, step 0, Copy\(source=0, target=1.*of the same size",
    ),
    "different chunks added up": (
        lambda: planted(
            "all_to_all",
            [[Copy(0, 2), Reduce(1, 2), Send(1, 1), Recv(1, 3)], [Copy(1, 3), Send(0, 0), Recv(0, 2)]],
        ),
        r"rank 0, step 1, Reduce\(.*holds chunk 0 .* combined with chunk 1 of rank 0: only the same chunk",
    ),
    "a barrier that stops one exchange early": (
        lambda: tampered("barrier", "dissemination", 5, lambda steps: [drop(r, -1, -2)(steps) for r in range(5)]),
        r"rank 0, chunk 0: after step 5, RecvReduce\(.*it ends with chunk 0 of ranks 0, 2-4; .* ranks 0-4",
    ),
    "a scan with operands the wrong way round": (
        lambda: tampered("scan", "recursive_doubling", 3, change(1, -1, local_first=True)),
        r"rank 1, step \d, RecvReduce\(.*chunk 0 becomes rank 1 op rank 0: .*the left operand is the ranks next below",
    ),
    "a scan that leaves a rank to be put in between": (
        lambda: planted(
            "scan",
            [
                [Copy(0, 1), Send(2, 1), Send(1, 0)],
                [RecvReduce(0, 0, local_first=False), Send(2, 0)],
                [RecvReduce(0, 0, local_first=False), RecvReduce(1, 0, local_first=False)],
            ],
        ),
        r"rank 2, step 0, RecvReduce\(.*chunk 0 becomes rank 0 op rank 2",
    ),
    "something that is not a step": (
        lambda: tampered("broadcast", "ring", 2, put(1, 0, ("Recv", 0))),
        r"rank 1, step 0: \('Recv', 0\) is not a step",
    ),
    "a chunk that is not a whole number": (
        lambda: tampered("broadcast", "ring", 2, change(0, 0, chunk=0.0)),
        r"rank 0, step 0, Send\(.*chunk=0.0.*integers",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_is_caught_by_rank_and_step(bug: str) -> None:
    plant, expected = BUGS[bug]
    with pytest.raises(PlanError) as caught:
        verify(plant())
    assert re.search(expected, str(caught.value)), str(caught.value)
    assert NAMES_RANK_AND_STEP.search(str(caught.value)), str(caught.value)


def test_dropping_any_single_step_is_caught() -> None:
    """No step of these plans is there for nothing."""
    for collective, name, size in [
        ("all_reduce", "two_tree", 6),
        ("all_reduce", "ring", 3),
        ("reduce", "binomial", 5),
        ("scan", "two_tree", 5),
        ("exscan", "two_tree", 4),
        ("exscan", "recursive_doubling", 4),
    ]:
        for rank in range(size):
            for index in range(len(Plan(collective, name, size).steps(rank))):
                with pytest.raises(PlanError, match=r"rank \d+, "):
                    verify(tampered(collective, name, size, drop(rank, index)))
                unregister(collective, "planted")
