"""Groups of transfers: all ranks agree on them, nothing waits for what is in its own group, and results are right."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import collectives as cc
from collectives.lower import ArrayLayout, lower
from collectives.plan import COLLECTIVES, plan
from collectives.rounds import LOCAL, schedule
from tests.references import expected
from transports import arithmetic
from transports.grouped import Groups
from transports.program import DTYPES, OPS, Call, Place, Program, build

NAMED = [(collective, name) for collective in COLLECTIVES for name in cc.algorithms(collective)]


class Line:
    """A layer over queues between threads. It receives before it has sent, as if nothing were buffered in a group."""

    def __init__(self, rank: int, wires: Any) -> None:
        self.rank, self.wires, self.log, self.number = rank, wires, [], 0
        self.memory = np.empty(0, np.uint8)
        self.expected: list[Any] = []

    def begin(self) -> None:
        self.sends: list[Any] = []
        self.recvs, self.expected = self.expected, []

    def expect(self, peer: int, address: int, nbytes: int) -> None:
        self.expected.append((peer, at(address, nbytes)))
        at(address, nbytes)[:] = 0x5A  # here too

    def send(self, peer: int, address: int, nbytes: int) -> None:
        self.sends.append((peer, at(address, nbytes)))

    def recv(self, peer: int, address: int, nbytes: int) -> None:
        self.recvs.append((peer, at(address, nbytes)))
        at(address, nbytes)[:] = 0x5A  # may come at any time from now on

    def end(self) -> None:
        for peer, data in self.sends:
            self.wires[self.rank, peer].put(data.copy())
        for peer, data in self.recvs:
            data[:] = self.wires[peer, self.rank].get(timeout=20)

    def combine(self, dtype: int, op: int, a: int, b: int, out: int, nbytes: int) -> None:
        at(out, nbytes)[:] = arithmetic.combine(dtype, op, at(a, nbytes), at(b, nbytes))

    def copy(self, a: int, out: int, nbytes: int) -> None:
        at(out, nbytes)[:] = at(a, nbytes).copy()

    def divide(self, dtype: int, a: int, out: int, nbytes: int, divisor: int) -> None:
        at(out, nbytes)[:] = arithmetic.divide(dtype, at(a, nbytes), divisor)

    def staging(self, nbytes: int) -> int:
        self.memory = np.empty(nbytes, np.uint8)
        return self.memory.ctypes.data


def at(address: int, nbytes: int) -> Any:
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


def programs(collective: str, name: str, size: int, rows: tuple[int, ...], root: int) -> list[Program]:
    the_plan = plan(collective, name, size, root)
    found: list[Program] = []
    for rank in range(size):
        layout = ArrayLayout(rows, 4, DTYPES["int32"][0], OPS["sum"], False, Place(0, 0), Place(1, 0), Place(2, 0))
        actions, scratch = lower(the_plan, rank, layout, grouped=True)
        found.append(build(actions, Call(0, 0, 0, -1, 0, 0), buffers=3, scratch_bytes=scratch))
    return found


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("collective", "name"), NAMED)
def test_every_algorithm_runs_group_by_group(
    collective: str, name: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectives.rounds._GROUP_BYTES", 64)  # so that small messages are cut
    schedule.cache_clear()
    for size in range(1, 10):
        root = size // 2 if COLLECTIVES[collective].rooted else 0
        try:
            blocks = plan(collective, name, size, root).blocks
        except ValueError:
            continue  # not for this number of ranks
        parts = tuple(37 * (1 + i * 7 % 5) * (i != 1) for i in range(size))
        whole = collective in ("all_reduce", "reduce", "broadcast", "barrier", "scan", "exscan")
        rows = (1777,) * blocks if whole or collective == "all_to_all" else parts
        check(collective, programs(collective, name, size, rows, root), rows, root, early=early)
    schedule.cache_clear()


def check(collective: str, made: list[Program], rows: tuple[int, ...], root: int, *, early: bool) -> None:
    size = len(made)
    groups = [Groups(program, early=early) for program in made]  # which asserts that nothing waits inside of a group
    seen: defaultdict[Any, list[int]] = defaultdict(list)
    for rank, program in enumerate(made):
        for step, row in enumerate(program.steps.tolist()):
            if row[0] <= 2:
                assert program.groups is not None
                group = int(program.groups[step][0])
                assert group > LOCAL
                pair = (rank, row[1], row[2]) if row[0] == 0 else (row[1], rank, row[2])
                seen[row[0] == 0, pair].append((group, row[12], int(program.groups[step][1])))
    for (sends, pair), what in seen.items():
        assert what == seen[not sends, pair]
    spec = COLLECTIVES[collective]
    begins = np.cumsum([0, *rows])
    wires: defaultdict[Any, queue.Queue[Any]] = defaultdict(queue.Queue)
    for a in range(size):
        for b in range(size):
            wires[a, b]
    inputs, results, errors = [], [], []
    for rank in range(size):
        gives, gets = spec.inputs(rank, size, root), spec.outputs(rank, size, root)
        inputs.append(np.arange(begins[gives.stop] - begins[gives.start], dtype=np.int32) * (rank + 3) + rank)
        results.append(np.full(begins[gets.stop] - begins[gets.start], -1, np.int32))

    def live(rank: int) -> None:
        try:
            scratch = np.empty(made[rank].scratch_bytes + 1, np.uint8)
            line = Line(rank, wires)
            addresses = [a.ctypes.data for a in (inputs[rank], results[rank], scratch)]
            groups[rank].run(line, addresses, expect=line.expect if early else None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    if collective == "barrier":
        return
    table = ((rows[0],) * size,) * size if collective == "all_to_all" else (rows,)
    given = [a if a.size or spec.inputs(r, size, root) else inputs[root] for r, a in enumerate(inputs)]
    for rank in range(size):
        wanted = expected(collective, given, rank, op="sum", root=root, rows=table)
        if wanted is not None and len(spec.outputs(rank, size, root)):
            np.testing.assert_array_equal(results[rank], wanted.reshape(-1))
