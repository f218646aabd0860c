"""Data that cannot hide an error: results are exact in any order of combining, so the tolerance is zero.

Every rank knows from (seed, index) alone what it puts in and what must come out; nothing is communicated for
the check. The idea is nccl-tests' (`verifiable/`): sums of small integers times one power of two per element,
products of powers of two and one small odd number, means of numbers that cancel in pairs. No partial result
overflows or rounds, in any order.

Values repeat with the period `PERIOD`, a prime, turned by another amount in each repetition, so a block that
arrives in the wrong place is seen, and a table of one period per rank is all the memory it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PERIOD = 8191

FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *SIGNED, *UNSIGNED, "bool", *COMPLEX)
OPS = ("sum", "prod", "min", "max", "mean", "and", "or", "xor")
COPY = "copy"  # the op of a collective that only moves: values of the whole range

# Integers up to this size are exact in a float, one more than its stored mantissa has bits.
EXACT = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24, "float64": 2**53}


def supports(dtype: str, op: str) -> bool:
    """Whether reducing `dtype` by `op` has a meaning: no order among complex numbers, no bits in floats."""
    if op in ("and", "or", "xor"):
        return dtype in SIGNED or dtype in UNSIGNED or dtype == "bool"
    if op in ("min", "max"):
        return dtype not in COMPLEX
    return not (op == "mean" and dtype == "bool")


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """What numpy holds it as: itself, but the bits of a bfloat16 in a uint16 and of a bool in a uint8."""
    return np.dtype({"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype))


def reinterpret(array: Array, dtype: Any) -> Array:
    """The same memory of a contiguous array as another type of the same size."""
    return np.ndarray(array.shape, dtype, array)


class Source(NamedTuple):
    """Whose values: those that `rank` puts in, or with rank None those that reducing all ranks' promises."""

    dtype: str
    op: str
    size: int
    rank: int | None


def fill(target: Array, source: Source, seed: int, start: int = 0) -> None:
    """Write the values number start, start + 1, ... into the one-dimensional `target` of storage dtype."""
    table = _table(source)
    for at, begin, length in _pieces(seed, start, target.size):
        target[at : at + length] = table[begin : begin + length]


def count_wrong(result: Array, source: Source, seed: int, start: int = 0) -> int:
    """Elements of `result` that differ from the values number start, start + 1, ...; NaN always differs."""
    table = _table(source)
    wrong = 0
    for at, begin, length in _pieces(seed, start, result.size):
        there, here = result[at : at + length], table[begin : begin + length]
        wrong += int(np.count_nonzero(_comparable(there, source.dtype) != _comparable(here, source.dtype)))
    return wrong


def _pieces(seed: int, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(offset in the range, offset in the doubled table, length), one for each repetition of the period."""
    index, stop = start, start + count
    while index < stop:
        turn, within = divmod(index, PERIOD)
        length = min(PERIOD - within, stop - index)
        yield index - start, (40503 * (turn + 1) + 7919 * seed) % PERIOD + within, length
        index += length


def _comparable(stored: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return reinterpret(stored.astype(np.uint32) << 16, np.float32)
    return stored


@lru_cache(maxsize=160)
def _table(source: Source) -> Array:
    """Two periods of the source's values, so that any turned period is one slice."""
    dtype, op, size, rank = source
    if dtype == "bool":  # logic under other names, as in numpy
        op = {"sum": "or", "max": "or", "prod": "and", "min": "and"}.get(op, op)
    if op in ("min", "max", "and", "or", "xor", COPY):
        values = _selected(dtype, op, size, rank)
    elif op == "prod":
        values = _multiplied(dtype, size, rank)
    else:
        parts = [_added(dtype, op, size, rank, part) for part in range(2 if dtype in COMPLEX else 1)]
        values = parts[0] + 1j * parts[1] if dtype in COMPLEX else parts[0]
    stored = _store(values, dtype)
    table = np.concatenate([stored, stored])
    table.flags.writeable = False
    return table


def _store(values: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return (reinterpret(values.astype(np.float32), np.uint32) >> 16).astype(np.uint16)
    return values.astype(storage_dtype(dtype))


def _bits(purpose: int, rank: int) -> NDArray[np.uint64]:
    """One period of random words; rank -1 is what all ranks share."""
    raw: NDArray[np.uint64] = np.random.Philox(key=[purpose, rank + 1]).random_raw(PERIOD)
    return raw


def _position(rank: int, size: int) -> NDArray[np.int64]:
    """Each element deals the ranks anew, so that no rank has a fixed part in it."""
    return ((_bits(0, -1) % np.uint64(size)).astype(np.int64) + rank) % size


def _limit(dtype: str) -> int:
    """The largest integer that partial sums may reach, within the int64 that promises are computed in."""
    if dtype in EXACT:
        return EXACT[dtype]
    if dtype in COMPLEX:
        return EXACT["float32" if dtype == "complex64" else "float64"]
    return min(int(np.iinfo(dtype).max), 2**62)


def _scale(integers: NDArray[np.int64], dtype: str) -> Array:
    """Integers as they are; floats times a power of two that all ranks share, from 1/16 to 16."""
    if dtype in SIGNED or dtype in UNSIGNED:
        return integers
    exponent = (_bits(1, -1) % np.uint64(9)).astype(np.int64) - 4
    return np.ldexp(integers.astype(np.float64), exponent)


def _between(bits: NDArray[np.uint64], low: int, high: int) -> NDArray[np.int64]:
    return (bits % np.uint64(high - low + 1)).astype(np.int64) + low


def _added(dtype: str, op: str, size: int, rank: int | None, part: int) -> Array:
    draw = _summand if op == "sum" else _averaged
    if rank is not None:
        return _scale(draw(dtype, size, rank, part), dtype)
    total = sum((draw(dtype, size, r, part) for r in range(size)), np.zeros(PERIOD, np.int64))
    return _scale(total if op == "sum" else total // size, dtype)


def _summand(dtype: str, size: int, rank: int, part: int) -> NDArray[np.int64]:
    """Any integer up to limit / size; with more ranks than the limit, `limit` of them put in something."""
    limit = _limit(dtype)
    largest = max(1, limit // size)
    value = _between(_bits(2 + part, rank), 0 if dtype in UNSIGNED else -largest, largest)
    return np.where(_position(rank, size) < limit, value, 0)


def _averaged(dtype: str, size: int, rank: int, part: int) -> NDArray[np.int64]:
    """The mean, plus what the neighbour in position has less: the sum is the mean times size."""
    largest = _limit(dtype) // size
    swing = largest // 3
    mean = _between(_bits(4 + part, -1), swing if dtype in UNSIGNED else swing - largest, largest - swing)
    position = _position(rank, size)
    pair = (position // 2).astype(np.uint64)
    shared: NDArray[np.uint64] = _bits(6 + part, -1) * (pair * np.uint64(2) + np.uint64(1)) >> np.uint64(11)
    sign = np.where(position % 2 == 1, -1, np.where(position + 1 < size, 1, 0))
    return mean + sign * _between(shared, 0, swing)


def _multiplied(dtype: str, size: int, rank: int | None) -> Array:
    """One factor up to 7, powers of two at a few positions, and signs (complex numbers: powers of i)."""
    factor, exponent, turns = (
        np.ones(PERIOD, np.int64),
        np.zeros(PERIOD, np.int64),
        np.zeros(PERIOD, np.int64),
    )
    integer = dtype in SIGNED or dtype in UNSIGNED
    # int8 reaches 7 * 2**4 and uint8 7 * 2**5; float16 stays between 2**-10 and 7 * 2**10.
    powers = min(20, np.dtype(dtype).itemsize * 8 - (4 if dtype in SIGNED else 3)) if integer else 10
    for r in range(size) if rank is None else (rank,):
        bits, position = _bits(8, r), _position(r, size)
        factor *= np.where(position == 0, _between(bits, 1, 7), 1)
        power = _between(bits >> np.uint64(8), 0 if integer else -1, 1)
        exponent += np.where((position >= 1) & (position <= powers), power, 0)
        turns += _between(bits >> np.uint64(16), 0, 3)
    if integer:
        magnitude: Array = factor << exponent
    else:
        magnitude = np.ldexp(factor.astype(np.float64), exponent)
    if dtype in COMPLEX:
        return magnitude * np.array([1, 1j, -1, -1j])[turns % 4]
    return magnitude if dtype in UNSIGNED else np.where(turns % 2 == 1, -magnitude, magnitude)


def _selected(dtype: str, op: str, size: int, rank: int | None) -> Array:
    """Values of the whole range, combined by an operation that is exact by nature."""
    if rank is not None:
        return _whole_range(dtype, op, size, rank)
    combine = {
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    result = _whole_range(dtype, op, size, 0)
    for r in range(1, size):
        result = combine[op](result, _whole_range(dtype, op, size, r))
    return result


def _whole_range(dtype: str, op: str, size: int, rank: int) -> Array:
    bits = _bits(9, rank)
    if op in ("and", "or"):
        # Both values of a bit of the result are likely only if one is rare: in one word of about 2 * size.
        for purpose in range(10, 9 + size.bit_length()):
            bits = bits & _bits(purpose, rank)
        bits = ~bits if op == "and" else bits
    if dtype == "bool":
        return bits & np.uint64(1)
    if dtype in SIGNED or dtype in UNSIGNED:
        return bits.astype(np.dtype(dtype))
    limit = _limit(dtype)
    value = _scale(_between(bits, -limit, limit), dtype)
    return value + 1j * np.roll(value, 1) if dtype in COMPLEX else value
