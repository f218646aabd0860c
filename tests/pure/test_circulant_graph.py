"""Circulant-graph broadcast and all-gather take B - 1 + ceil(log2 n) rounds in which a rank sends to one other rank
and receives from one."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from collectives.algorithms.circulant_graph import base_block, receive_schedule, skips
from collectives.plan import Plan, Recv, Send, plan
from collectives.verify import verify


def ceil_log2(size: int) -> int:
    return (size - 1).bit_length()


def rounds_in_lock_step(plan: Plan) -> int:
    """All ranks take turns together: in a round, each sends at most one message and receives at most one, and only
    what it held before the round can be sent. In an all-gather, messages to one rank in a row count as one."""
    alone = plan.collective == "broadcast"
    bundles: dict[type[Any], list[list[tuple[int, tuple[int, ...]]]]] = {Send: [], Recv: []}
    for rank in range(plan.size):
        runs = [
            (kind, peer, tuple(step.chunk for step in steps))
            for (kind, peer, _), steps in groupby(
                plan.steps(rank), lambda step: (type(step), step.peer, alone and step.chunk)
            )
        ]
        for kind, queues in bundles.items():
            queues.append([(peer, chunks) for which, peer, chunks in runs if which is kind][::-1])
    holds = [{*plan.input_chunks(rank)} for rank in range(plan.size)]
    rounds = 0
    while any(bundles[Send]):
        moves = [
            (rank, *queue[-1])
            for rank, queue in enumerate(bundles[Send])
            if queue and bundles[Recv][queue[-1][0]][-1:] == [(rank, queue[-1][1])] and holds[rank] >= {*queue[-1][1]}
        ]
        assert moves, f"{plan} stands still after {rounds} rounds"
        for rank, peer, chunks in moves:
            bundles[Send][rank].pop()
            bundles[Recv][peer].pop()
            holds[peer].update(chunks)
        rounds += 1
    assert all(holds[rank] >= {*plan.output_chunks(rank)} for rank in range(plan.size))
    return rounds


@pytest.mark.parametrize("blocks", [1, 2, 7, 16])
def test_a_broadcast_takes_as_few_rounds_as_there_can_be(blocks: int) -> None:
    for size in [*range(2, 65), 100, 129, 200]:
        for root in {0, size // 3}:
            found = rounds_in_lock_step(plan("broadcast", f"circulant({blocks})", size, root))
            assert found == blocks - 1 + ceil_log2(size), (size, root)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_an_all_gather_takes_as_many_rounds_as_a_broadcast(blocks: int) -> None:
    for size in [*range(2, 24), 31, 32, 33, 40]:
        found = rounds_in_lock_step(plan("all_gather", f"circulant({blocks})", size))
        assert found == blocks - 1 + ceil_log2(size), size


@pytest.mark.parametrize("blocks", [1, 3, 40])
def test_any_number_of_blocks_is_proved(blocks: int) -> None:
    for size in (1, 2, 3, 6, 17, 33):
        for root in {0, size - 1}:
            verify(plan("broadcast", f"circulant({blocks})", size, root))
        verify(plan("all_gather", f"circulant({blocks})", size))


def test_without_a_number_there_are_16_blocks() -> None:
    assert plan("broadcast", "circulant", 5).chunks == 16
    assert plan("broadcast", "circulant", 5).steps(3) == plan("broadcast", "circulant(16)", 5).steps(3)
    for wrong in ("circulant(0)", "circulant(x)", "circulant(1, 2)", "circulant()"):
        with pytest.raises(ValueError, match="number of blocks from 1 to 4096"):
            plan("broadcast", wrong, 5)


def test_the_schedule_for_17_ranks_is_the_published_one() -> None:
    """Träff (arXiv 2407.18004), table of the receive schedules for p = 17; one line for each round."""
    assert skips(17) == (1, 2, 3, 5, 9, 17)
    schedules = [receive_schedule(rank, 17) for rank in range(17)]
    assert [list(row) for row in zip(*schedules, strict=True)] == [
        [-4, 0, -5, -4, -3, -5, -2, -5, -4, -3, -1, -5, -4, -3, -5, -2, -5],
        [-5, -4, 1, -5, -4, -3, -3, -2, -5, -4, -3, -1, -5, -4, -3, -3, -2],
        [-2, -2, -2, 2, 0, -4, -4, -3, -2, -2, -4, -3, -1, -1, -4, -4, -3],
        [-1, -3, -3, -2, -2, 3, 0, 1, 2, -5, -2, -2, -2, -2, -1, -1, -1],
        [-3, -1, -1, -1, -1, -1, -1, -1, -1, 4, 0, 1, 2, 0, 3, 0, 1],
    ]


@pytest.mark.parametrize("size", [*range(2, 140), 255, 256, 257, 1000])
def test_ranks_receive_every_block_once_and_send_what_they_have(size: int) -> None:
    distances, rounds = skips(size), ceil_log2(size)
    schedules = [receive_schedule(rank, size) for rank in range(size)]
    for rank in range(1, size):
        own, seen = base_block(rank, size), {base_block(rank, size) - rounds}
        assert {*schedules[rank]} == ({*range(-rounds, 0)} | {own}) - {own - rounds}
        for k in range(rounds):
            to = (rank + distances[k]) % size
            assert to == 0 or schedules[to][k] in seen, (rank, k)
            seen.add(schedules[rank][k])
    assert [schedules[distances[k]][k] for k in range(rounds)] == [*range(rounds)]


def test_one_rank_of_many_is_generated_alone() -> None:
    assert len(Plan("broadcast", "circulant", 65536).steps(40000)) <= 2 * (15 + 16)
