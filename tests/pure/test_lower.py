"""Programs: they say all that must happen in order and nothing more, and in any order that they allow they are right.

Two oracles. Dependencies are compared with all pairs of conflicting bytes, found one by one. And programs of all ranks
are run byte by byte in random order over lanes of random capacity, by the interpreter below, which knows nothing but
the meaning of a step.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collectives as cc
from collectives.lower import ArrayLayout, lower
from collectives.plan import COLLECTIVES, Plan
from tests.references import expected
from transports.program import DTYPES, OPS, Action, Call, Kind, Place, Program, build

INPUT, OUTPUT, SCRATCH = 0, 1, 2
NO_CALL = Call(0, 0, 0, -1, 0, 0)
thorough = settings(max_examples=80, deadline=None)

Byte = tuple[int, int]  # of a step


# ---------------------------------------------------------------- dependencies, byte by byte


def conflicts(actions: list[Action]) -> dict[Byte, set[Byte]]:
    """For every byte of a step the bytes of earlier steps that touch the same memory, where one of both writes."""
    found: dict[Byte, set[Byte]] = {}
    readers: dict[tuple[int, int], set[Byte]] = {}
    writers: dict[tuple[int, int], set[Byte]] = {}
    for step, action in enumerate(actions):
        for byte in range(action.nbytes):
            cells = [
                [(p.buffer, p.offset_bytes + byte) for p in places] for places in (action.reads(), action.writes())
            ]
            before: set[Byte] = set()
            for cell in cells[0]:
                before |= writers.get(cell, set())
            for cell in cells[1]:
                before |= writers.get(cell, set()) | readers.get(cell, set())
            found[step, byte] = {b for b in before if b[0] != step}
        for byte in range(action.nbytes):
            for place in action.reads():
                readers.setdefault((place.buffer, place.offset_bytes + byte), set()).add((step, byte))
            for place in action.writes():
                writers.setdefault((place.buffer, place.offset_bytes + byte), set()).add((step, byte))
    return found


def stated(program: Program) -> dict[Byte, set[Byte]]:
    """What the program's rows say, for every byte of a step."""
    found: dict[Byte, set[Byte]] = {}
    for step, row in enumerate(program.steps.tolist()):
        for byte in range(row[12]):
            found[step, byte] = set()
        for other, theirs, mine, nbytes in program.dependencies[row[13] : row[14]].tolist():
            for k in range(nbytes):
                found[step, mine + k].add((other, theirs + k))
    return found


def assert_dependencies_are_right(actions: list[Action], program: Program) -> None:
    wanted, rows = conflicts(actions), stated(program)
    implied: dict[Byte, set[Byte]] = {}
    for step, byte in wanted:  # in order: earlier steps are complete
        needs = rows[step, byte]
        assert needs <= wanted[step, byte], f"step {step}, byte {byte} waits for what it has nothing to do with"
        closure = set(needs)
        for other in needs:
            closure |= implied[other]
        if byte:
            closure |= implied[step, byte - 1]  # bytes of a step are done in order
        for other, last in list(closure):
            if other != step:
                closure.add((other, last))
        implied[step, byte] = closure
        missing = {(o, b) for o, b in wanted[step, byte] if not any(o == p and b <= q for p, q in closure)}
        assert not missing, f"step {step}, byte {byte} does not wait for {missing}"


places = st.builds(Place, st.integers(0, 2), st.integers(0, 12))
any_actions = st.lists(
    st.builds(
        lambda kind, nbytes, a, b, out: Action(kind, nbytes, peer=1, a=a, b=b, out=out),
        st.sampled_from([Kind.SEND, Kind.RECV, Kind.RECV_REDUCE, Kind.COPY, Kind.REDUCE, Kind.DIVIDE]),
        st.integers(0, 6),
        places,
        places,
        places,
    ),
    max_size=9,
)


def sensible(action: Action) -> bool:
    """A step's own operands are the same memory or do not overlap, as chunks do."""
    return all(
        p == q or p.buffer != q.buffer or abs(p.offset_bytes - q.offset_bytes) >= action.nbytes
        for p in (*action.reads(), *action.writes())
        for q in (*action.reads(), *action.writes())
    )


@settings(max_examples=400, deadline=None)
@given(any_actions)
def test_any_steps_wait_for_the_bytes_they_conflict_with_and_no_others(actions: list[Action]) -> None:
    actions = [action for action in actions if sensible(action)]
    assert_dependencies_are_right(actions, build(actions, NO_CALL, buffers=3))


def test_a_chain_waits_byte_by_byte() -> None:
    here, there = Place(0, 0), Place(1, 0)
    copy = Action(Kind.COPY, 50, a=here, out=there)
    program = build([Action(Kind.RECV, 100, 1, out=here), Action(Kind.SEND, 100, 2, a=here), copy], NO_CALL, buffers=2)
    assert program.dependencies.tolist() == [[0, 0, 0, 100], [0, 0, 0, 50]]
    assert program.channels() == {(1, 0), (2, 0)}
    assert program.describe(1) == "step 1 of 3 (Send to rank 2, 100 bytes)"
    assert program.describe(2) == "step 2 of 3 (Copy, 50 bytes)"
    assert program.describe(7) == "no step"


# ---------------------------------------------------------------- plans, lowered


class Setting:
    """A plan with the sizes and places of one call's arrays."""

    def __init__(self, plan: Plan, blocks: list[int], dtype: str, in_place: bool, stripes: int, mean: bool) -> None:
        self.plan, self.blocks, self.stripes, self.mean = plan, blocks, stripes, mean
        self.dtype = np.dtype(dtype)
        self.in_place = in_place and plan.collective != "all_to_all"

    def span(self, rank: int, which: str) -> tuple[int, int]:
        """First byte and end of a rank's input or output among the blocks."""
        spec = COLLECTIVES[self.plan.collective]
        blocks = (spec.inputs if which == "input" else spec.outputs)(rank, self.plan.size, self.plan.root)
        item = self.dtype.itemsize
        return sum(self.blocks[: blocks.start]) * item, sum(self.blocks[: blocks.stop]) * item if blocks else 0

    def places(self, rank: int) -> tuple[Place, Place]:
        """In place, input and output lie in one buffer, where their blocks have them."""
        x, out = self.span(rank, "input"), self.span(rank, "output")
        if not self.in_place or x[0] >= x[1] or out[0] >= out[1]:
            return Place(INPUT, 0), Place(OUTPUT, 0)
        first = min(x[0], out[0])
        return Place(OUTPUT, x[0] - first), Place(OUTPUT, out[0] - first)

    def actions(self, rank: int) -> tuple[list[Action], int]:
        x, out = self.places(rank)
        number = DTYPES[self.dtype.name][0]
        layout = ArrayLayout(
            tuple(self.blocks), self.dtype.itemsize, number, OPS["sum"], self.mean, x, out, Place(SCRATCH, 0)
        )
        return lower(self.plan, rank, layout, stripes=self.stripes)

    def program(self, rank: int) -> Program:
        actions, scratch = self.actions(rank)
        return build(actions, NO_CALL, buffers=3, scratch_bytes=scratch, divisor=self.plan.size if self.mean else 1)


@st.composite
def settings_of(draw: st.DrawFn, most_elements: int, most_ranks: int = 7) -> Setting:
    collective = draw(st.sampled_from(list(COLLECTIVES)))
    size = draw(st.integers(1, most_ranks))
    root = draw(st.integers(0, size - 1)) if COLLECTIVES[collective].rooted else 0
    dealt = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    hosts = tuple(tuple(r for r in range(size) if dealt[r] == h) for h in sorted(set(dealt)))
    plan = Plan(collective, draw(st.sampled_from(cc.algorithms(collective))), size, root, hosts)
    elements = st.integers(0, most_elements)
    if collective == "all_to_all":
        one = draw(elements)
        blocks = [one] * (2 * size)
    elif draw(st.booleans()):
        blocks = [draw(elements) for _ in range(plan.blocks)]
    else:
        blocks = [draw(elements)] * plan.blocks
    if collective == "barrier":
        blocks = [1]
    dtype, reducing = (
        draw(st.sampled_from(["uint8", "int32"])),
        collective in ("all_reduce", "reduce", "reduce_scatter"),
    )
    mean = reducing and draw(st.booleans())
    return Setting(plan, blocks, dtype, draw(st.booleans()), draw(st.sampled_from([1, 1, 3])), mean)


@thorough
@given(settings_of(most_elements=6, most_ranks=5))
def test_the_steps_of_plans_wait_for_the_bytes_they_conflict_with_and_no_others(setting: Setting) -> None:
    for rank in range(setting.plan.size):
        actions, _ = setting.actions(rank)
        assert_dependencies_are_right(actions, setting.program(rank))


@thorough
@given(settings_of(most_elements=200))
def test_steps_stay_inside_their_buffers_and_write_no_input(setting: Setting) -> None:
    for rank in range(setting.plan.size):
        actions, scratch = setting.actions(rank)
        x, out = setting.places(rank)
        sizes = {which: end - begin for which in ("input", "output") for begin, end in [setting.span(rank, which)]}
        may_read = {(x.buffer, x.offset_bytes, sizes["input"]), (out.buffer, out.offset_bytes, sizes["output"])}
        may_write = {(out.buffer, out.offset_bytes, sizes["output"])}
        for action in actions:
            assert action.nbytes > 0
            assert action.nbytes % setting.dtype.itemsize == 0
            for place, allowed in [(p, may_read) for p in action.reads()] + [(p, may_write) for p in action.writes()]:
                begin, end = place.offset_bytes, place.offset_bytes + action.nbytes
                assert any(
                    buffer == place.buffer and first <= begin and end <= first + nbytes
                    for buffer, first, nbytes in {*allowed, (SCRATCH, 0, scratch)}
                ), action


def test_large_messages_are_striped_over_lanes_and_small_ones_are_not() -> None:
    plan = Plan("broadcast", "binomial", 2)
    for nbytes, lanes in ((64, {0}), (255 << 10, {0}), (256 << 10, {0, 1}), (10 << 20, {0, 1, 2})):
        setting = Setting(plan, [nbytes], "uint8", False, 3, False)
        sends = [action for action in setting.actions(0)[0] if action.kind == Kind.SEND]
        assert {send.lane for send in sends} == lanes
        ends = [0, *(send.a.offset_bytes + send.nbytes for send in sends)]
        assert [send.a.offset_bytes for send in sends] == ends[:-1]
        assert ends[-1] == nbytes
        assert all(end % 64 == 0 for end in ends[:-1])


def test_chunks_of_large_blocks_begin_at_cache_lines() -> None:
    setting = Setting(Plan("all_reduce", "direct", 3), [100_000], "int32", False, 1, False)
    for rank in range(3):
        offsets = {action.a.offset_bytes for action in setting.actions(rank)[0] if action.a.buffer == INPUT}
        assert all(offset % 64 == 0 for offset in offsets)


# ---------------------------------------------------------------- any order is right


class Rank:
    """One rank's program, in the middle of its run."""

    def __init__(self, program: Program, buffers: list[Any], item: int) -> None:
        self.rows, self.needs, self.divisor = program.steps.tolist(), program.dependencies.tolist(), program.divisor
        self.buffers, self.item = buffers, item
        self.done = [0] * len(self.rows)
        self.begun: set[int] = set()
        self.queues: dict[Any, deque[int]] = {}
        for i, row in enumerate(self.rows):
            lane = (row[0] == Kind.SEND, row[1], row[2]) if row[0] <= Kind.RECV_REDUCE else i
            self.queues.setdefault(lane, deque()).append(i)

    def ready(self, step: int) -> int:
        """How many more bytes the dependencies allow now."""
        row, limit = self.rows[step], self.rows[step][12]
        for other, theirs, mine, nbytes in self.needs[row[13] : row[14]]:
            if self.done[other] < theirs + nbytes:
                limit = min(limit, mine + max(self.done[other] - theirs, 0))
        return (limit - self.done[step]) // self.item * self.item

    def memory(self, step: int, column: int, nbytes: int) -> Any:
        row = self.rows[step]
        begin = row[column + 1] + self.done[step]
        return self.buffers[row[column]][begin : begin + nbytes]


def run_in_any_order(
    programs: list[Program], buffers: list[list[Any]], dtype: np.dtype[Any], chance: random.Random
) -> None:
    """Advances steps of ranks by random amounts until all are done; a deadlock or an early message is an assertion."""
    ranks = [Rank(p, b, dtype.itemsize) for p, b in zip(programs, buffers, strict=True)]
    lanes: dict[tuple[int, int, int], deque[Any]] = {}
    capacity = chance.choice([1, 2, 7, 1000]) * dtype.itemsize

    def advance(me: int, step: int) -> bool:
        rank, row = ranks[me], ranks[me].rows[step]
        kind, peer, lane = row[0], row[1], row[2]
        most = rank.ready(step)
        if kind == Kind.SEND:
            line = lanes.setdefault((me, peer, lane), deque())
            most = min(most, capacity - len(line))
        elif kind in (Kind.RECV, Kind.RECV_REDUCE):
            line = lanes.setdefault((peer, me, lane), deque())
            most = min(most, len(line) // dtype.itemsize * dtype.itemsize)
        else:
            line = deque()
        if most <= 0:
            return False
        nbytes = chance.randint(1, most // dtype.itemsize) * dtype.itemsize
        if kind == Kind.SEND:
            line.extend((me, step, int(byte)) for byte in rank.memory(step, 6, nbytes))
        else:
            if kind in (Kind.RECV, Kind.RECV_REDUCE):
                taken = [line.popleft() for _ in range(nbytes)]
                senders = {sent for _, sent, _ in taken}
                assert len(senders) == 1, "a step takes bytes of two messages"
                assert ranks[peer].rows[senders.pop()][12] == row[12], "a message of another size was expected"
                b = np.array([byte for _, _, byte in taken], np.uint8)
            else:
                b = rank.memory(step, 8, nbytes).copy()
            a = rank.memory(step, 6, nbytes).copy()
            out = rank.memory(step, 10, nbytes)
            if kind == Kind.RECV:
                out[:] = b
            elif kind == Kind.COPY:
                out[:] = a
            elif kind == Kind.DIVIDE:
                out[:] = (a.view(dtype).astype(object) // rank.divisor).astype(dtype).view(np.uint8)
            else:
                with np.errstate(over="ignore"):
                    out[:] = (a.view(dtype) + b.view(dtype)).view(np.uint8)
        rank.done[step] += nbytes
        return True

    while True:
        heads = [(me, queue[0]) for me, rank in enumerate(ranks) for queue in rank.queues.values() if queue]
        if not heads:
            break
        chance.shuffle(heads)
        moved = False
        for me, step in heads[: chance.randint(1, len(heads))] if chance.random() < 0.8 else heads:
            moved |= advance(me, step)
        if not moved:
            assert any(advance(me, step) for me, step in heads), f"deadlock before {heads}"
        for rank in ranks:
            for queue in rank.queues.values():
                while queue and rank.done[queue[0]] == rank.rows[queue[0]][12]:
                    queue.popleft()
    assert not any(lanes.values()), "something is left on the wire"


@settings(max_examples=300, deadline=None)
@given(settings_of(most_elements=30, most_ranks=6), st.integers(0, 1 << 30))
def test_every_order_that_a_program_allows_gives_the_result(setting: Setting, seed: int) -> None:
    assert_right_in_a_random_order(setting, seed)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("collective", list(COLLECTIVES))
def test_every_algorithm_in_random_orders(collective: str, in_place: bool) -> None:
    for name in cc.algorithms(collective):
        for size in range(1, 8):
            hosts = tuple(h for h in (tuple(range(0, size, 2)), tuple(range(1, size, 2))) if h)
            plan = Plan(collective, name, size, size // 2 if COLLECTIVES[collective].rooted else 0, hosts)
            uneven = [7, 0, 13, 1, 5, 2, 11][: plan.blocks]
            blocks = {1: [29], 2 * size: [5] * (2 * size)}.get(plan.blocks, uneven)
            for seed in range(3):
                setting = Setting(plan, [1] if collective == "barrier" else blocks, "int32", in_place, 1, False)
                assert_right_in_a_random_order(setting, seed)


def assert_right_in_a_random_order(setting: Setting, seed: int) -> None:
    plan, dtype, chance = setting.plan, setting.dtype, random.Random(seed)
    n, item = plan.size, dtype.itemsize
    programs = [setting.program(rank) for rank in range(n)]
    inputs: list[Any] = []
    buffers: list[list[Any]] = []
    for rank in range(n):
        begin, end = setting.span(rank, "input")
        given_bytes = np.array([chance.randrange(20) for _ in range((end - begin) // item)], dtype).view(np.uint8)
        x, out = setting.places(rank)
        result_bytes = setting.span(rank, "output")[1] - setting.span(rank, "output")[0]
        shared = x.buffer == out.buffer
        memory = np.full(
            max(out.offset_bytes + result_bytes, x.offset_bytes + len(given_bytes) if shared else 0), 0xA5, np.uint8
        )
        own = given_bytes.copy()
        if shared:
            memory[x.offset_bytes : x.offset_bytes + len(given_bytes)] = given_bytes
        buffers.append([own, memory, np.full(programs[rank].scratch_bytes, 0xA5, np.uint8)])
        inputs.append(given_bytes.view(dtype))
    run_in_any_order(programs, buffers, dtype, chance)
    if plan.collective == "barrier":
        return
    for rank in range(n):
        begin, end = setting.span(rank, "output")
        out = setting.places(rank)[1]
        found = buffers[rank][OUTPUT][out.offset_bytes : out.offset_bytes + end - begin].view(dtype)
        rows = [setting.blocks[:n]] * n
        wanted = expected(
            plan.collective, inputs, rank, op="mean" if setting.mean else "sum", root=plan.root, rows=rows
        )
        if wanted is not None:
            assert found.tolist() == wanted.tolist(), rank
        assert buffers[rank][INPUT].tobytes() == inputs[rank].tobytes()


def test_the_interpreter_finds_what_is_wrong() -> None:
    """The oracle itself: without its dependencies a program gives wrong results in some order."""
    setting = Setting(Plan("all_reduce", "ring", 3), [30], "uint8", True, 1, False)
    programs = [setting.program(rank) for rank in range(3)]
    blind: list[Program] = []
    for program in programs:
        steps = program.steps.copy()
        steps[:, 13:] = 0
        blind.append(Program(program.call, steps, program.dependencies[:0], 3, program.scratch_bytes, 1))

    def results(these: list[Program]) -> set[bytes]:
        found: set[bytes] = set()
        for seed in range(20):
            buffers = [[np.zeros(0, np.uint8), np.full(30, r, np.uint8), np.zeros(999, np.uint8)] for r in range(3)]
            run_in_any_order(these, buffers, np.dtype("uint8"), random.Random(seed))
            found.add(b"".join(b[OUTPUT].tobytes() for b in buffers))
        return found

    assert results(programs) == {bytes([3] * 90)}
    assert len(results(blind)) > 1


def test_pieces_cover_blocks_without_gaps() -> None:
    for elements in (0, 1, 2, 5, 64, 1000, 99_999):
        for name in ("direct", "ring"):
            setting = Setting(Plan("all_reduce", name, 4), [elements], "int32", False, 1, False)
            spans = sorted(
                (action.out.offset_bytes, action.out.offset_bytes + action.nbytes)
                for action in setting.actions(1)[0]
                if action.kind in (Kind.RECV, Kind.COPY) and action.out.buffer == OUTPUT
            )
            assert all(a[1] <= b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("collective", list(COLLECTIVES))
def test_nothing_is_sent_when_there_is_nothing_to_send(collective: str) -> None:
    if collective == "barrier":
        return
    for name in cc.algorithms(collective):
        plan = Plan(collective, name, 4)
        setting = Setting(plan, [0] * plan.blocks, "int32", False, 1, False)
        assert all(setting.actions(rank) == ([], 0) for rank in range(4))
