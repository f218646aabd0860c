"""Steps, proof, and the program of one rank, each from nothing; a communicator does it once per shape."""

from __future__ import annotations

from typing import Any

import pytest

from collectives.lower import ArrayLayout, lower
from collectives.plan import Plan, plan
from collectives.verify import verify
from transports.program import DTYPES, OPS, Call, Place, build

ALGORITHMS = ("direct", "ring", "recursive_doubling", "halving_doubling", "two_tree")
ELEMS = 1 << 20


def fresh(algorithm: str, size: int) -> Plan:
    return plan.__wrapped__("all_reduce", algorithm, size)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_steps_of_every_rank(benchmark: Any, algorithm: str, size: int) -> None:
    def steps() -> int:
        made = fresh(algorithm, size)
        return sum(len(made.steps(rank)) for rank in range(size))

    assert benchmark(steps) > 0


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_proof(benchmark: Any, algorithm: str, size: int) -> None:
    benchmark.pedantic(lambda: verify(fresh(algorithm, size)), rounds=3)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_program_of_one_rank(benchmark: Any, algorithm: str, size: int) -> None:
    made = fresh(algorithm, size)
    made.steps(1)
    number = DTYPES["float32"][0]
    layout = ArrayLayout((ELEMS,), 4, number, OPS["sum"], False, Place(0, 0), Place(0, 0), Place(1, 0))

    def program() -> int:
        actions, scratch_bytes = lower(made, 1, layout)
        call = Call(0, number, OPS["sum"], -1, ELEMS, 0)
        return len(build(actions, call, buffers=2, scratch_bytes=scratch_bytes).steps)

    assert benchmark(program) > 0
