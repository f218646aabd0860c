"""Checks of arithmetic: every operation that has a meaning for a dtype, local and on what comes in, is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from transports.conformance.kit import Checks
from transports.conformance.member import Member, call_of
from transports.conformance.scripts import Bytes, recv, recv_reduce, reduce, send
from transports.program import DTYPES, OPS, Action, Kind, Place

__all__ = ["CHECKS"]

CHECKS = Checks()

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_COMPLEX = ("complex64", "complex128")
_COUNTS = (1, 3, 33, 1000)
_PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b, "prod": lambda a, b: a * b, "min": min, "max": max,
    "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
}  # fmt: skip
_LOGIC = {"sum": "or", "prod": "and", "min": "and", "max": "or"}


def ops_of(dtype: str) -> tuple[str, ...]:
    """The operations that have a meaning for a dtype."""
    if dtype in _FLOATS:
        return ("sum", "prod", "min", "max")
    return ("sum", "prod") if dtype in _COMPLEX else tuple(OPS)


def stored(dtype: str, values: Sequence[Any]) -> Bytes:
    """Python's numbers as elements; integers wrap around."""
    if dtype == "bfloat16":  # the upper half of a float32, which is exact for the small whole numbers used here
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if dtype == "bool" or dtype in _FLOATS or dtype in _COMPLEX:
        return np.array(values, dtype).view(np.uint8)
    nbytes = DTYPES[dtype][1]
    whole = b"".join((int(v) % (1 << (8 * nbytes))).to_bytes(nbytes, "little") for v in values)
    return np.frombuffer(whole, np.uint8)


def drawn(dtype: str, count: int, *seed: int) -> list[Any]:
    """Numbers of which sums, products and quotients by 2 are exact. Those of integers use the whole range."""
    random = np.random.default_rng([*seed])
    if dtype in _FLOATS:
        return [float(v) for v in random.integers(-4, 5, count)]
    if dtype in _COMPLEX:
        return [complex(a, b) for a, b in random.integers(-4, 5, (count, 2)).tolist()]
    if dtype == "bool":
        return [int(v) for v in random.integers(0, 2, count)]
    bits = 8 * DTYPES[dtype][1]
    low = 0 if dtype.startswith("u") else -(1 << (bits - 1))
    return [int.from_bytes(random.bytes(8), "little") % (1 << bits) + low for _ in range(count)]


def combined(dtype: str, op: str, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """By Python's own arithmetic, which has no limits."""
    function = _PYTHON[_LOGIC.get(op, op) if dtype == "bool" else op]
    return [function(x, y) for x, y in zip(a, b, strict=True)]


def quotient(value: Any, divisor: int) -> Any:
    """Of integers it is truncated toward zero."""
    if not isinstance(value, int):
        return value / divisor
    return abs(value) // divisor * (-1 if value < 0 else 1)


def _arithmetic(dtype: str, me: Member) -> None:
    """Rank r gets what the rank before it has, and combines it with its own in all ways there are."""
    transport = me.connect()
    number, item_bytes = DTYPES[dtype]
    for turn, op in enumerate(ops_of(dtype)):
        count = _COUNTS[(turn + me.seed) % len(_COUNTS)]
        n = count * item_bytes
        mine, theirs = drawn(dtype, count, me.seed, turn, me.rank), drawn(dtype, count, me.seed, turn, me.before)
        whole = combined(dtype, op, mine, theirs)

        def script(rank: int, n: int = n, op: str = op) -> list[Action]:
            after, before = (rank + 1) % me.size, (rank - 1) % me.size
            more: dict[str, Any] = {"dtype": dtype, "op": op}
            return [
                *(send(after, n, (0, 0), dtype=dtype) for _ in range(3)),
                recv_reduce(before, n, (0, 0), (1, 0), first=True, **more),
                recv_reduce(before, n, (0, 0), (1, n), first=False, **more),
                recv(before, n, (1, 2 * n), dtype=dtype),
                reduce(n, (0, 0), (1, 2 * n), (1, 3 * n), first=True, **more),
                reduce(n, (1, 2 * n), (0, 0), (1, 4 * n), first=False, **more),
                Action(Kind.DIVIDE, n, dtype=number, a=Place(0, 0), out=Place(1, 5 * n)),
            ]

        wanted = [
            *(stored(dtype, whole) for _ in range(2)), stored(dtype, theirs),
            *(stored(dtype, whole) for _ in range(2)),
        ]  # fmt: skip
        parts = ["incoming, local first", "incoming, local second", "received", "local", "local, swapped"]
        if dtype != "bool":
            wanted.append(stored(dtype, [quotient(value, 2) for value in mine]))
            parts.append("divided by 2")
        doable = _without_division(script) if dtype == "bool" else script
        compiled = me.compile(transport, doable, 2, _call(n, dtype, op), 2)
        arrays = me.array(stored(dtype, mine), turn % 3), me.array(6 * n, turn % 2)
        me.run(transport, compiled, arrays)
        found = arrays[1].get()
        for i, (good, part) in enumerate(zip(wanted, parts, strict=True)):
            same = _same(dtype, found[i * n : (i + 1) * n], good)
            me.expect(same, f"{op} of {count} {dtype}, {part}, to be that of Python's own numbers")
        me.expect(np.array_equal(arrays[0].get(), stored(dtype, mine)), "the input to stay as it was")


def _without_division(script: Callable[[int], list[Action]]) -> Callable[[int], list[Action]]:
    return lambda rank: script(rank)[:-1]


def _call(n: int, dtype: str, op: str) -> Any:
    return call_of(n, dtype, op=OPS[op])


def _same(dtype: str, found: Bytes, good: Bytes) -> bool:
    """Bit for bit, but that zero has two signs."""
    if dtype == "bfloat16":
        words = [(x.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32) for x in (found, good)]
        return np.array_equal(words[0], words[1])
    if dtype in _FLOATS or dtype in _COMPLEX:
        return np.array_equal(found.copy().view(dtype), good.view(dtype))
    return np.array_equal(found, good)


for _dtype in DTYPES:
    if _dtype != "bytes":
        CHECKS(f"arithmetic of {_dtype}")(partial(_arithmetic, _dtype))


@CHECKS("combinations in the order of the steps")
def _(me: Member) -> None:
    """A sum of float32 that depends on what is added first: ((x0 + x1) + x2) + ..., down the line of ranks."""
    count = 1001
    n = 4 * count
    random = [np.random.default_rng([me.seed, rank]) for rank in range(me.size)]
    xs = [(r.standard_normal(count) * 10.0 ** r.integers(-6, 7, count)).astype(np.float32) for r in random]

    def script(rank: int) -> list[Action]:
        if rank == 0:
            return [send(1, n, (0, 0), dtype="float32")]
        actions = [recv_reduce(rank - 1, n, (0, 0), (1, 0), dtype="float32", first=False)]
        return [*actions, send(rank + 1, n, (1, 0), dtype="float32")] if rank + 1 < me.size else actions

    transport = me.connect()
    compiled = me.compile(transport, script, 2, call_of(n, "float32"))
    arrays = me.array(xs[me.rank].view(np.uint8)), me.array(n)
    me.run(transport, compiled, arrays)
    if me.rank:
        total = xs[0]
        for x in xs[1 : me.rank + 1]:
            total = total + x
        same = np.array_equal(arrays[1].get(), total.view(np.uint8))
        me.expect(same, "the bits of ((x0 + x1) + x2) + ... in float32")
