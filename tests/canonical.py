"""What reproducible calls must return, bit for bit: numpy's sums, taken in the canonical order on whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collectives import Communicator, algorithms, plan, verify
from tests.references import Array, dtype_of

__all__ = [
    "FLOATS",
    "SLICES",
    "assert_bits",
    "assert_reproducible",
    "canonical_algorithms",
    "canonical_prefix",
    "canonical_sum",
    "wild",
]

FLOATS = ("float32", "float16", "bfloat16")
SLICES = (slice(0, 1), slice(7, 12), slice(3, 1003), slice(64, 40_064), slice(0, 262_144))
"""One element to 1 MiB of float32: an element must get the same bits in all of them."""


def wild(dtype: str, rank: int, elements: int = 262_144) -> Array:
    """Random numbers of very different magnitudes, so that every order of adding them rounds differently."""
    random = np.random.default_rng([rank, elements])
    reach = 6 if dtype == "float16" else 24
    numbers = random.standard_normal(elements) * 2.0 ** random.integers(-reach, reach, elements)
    return numbers.astype(dtype_of(dtype))


def canonical_sum(xs: Sequence[Array]) -> Array:
    """The ranks beyond a power of two are added to their neighbours first; then neighbours, again and again."""
    pairs = len(xs) - (1 << (len(xs).bit_length() - 1))
    level = [xs[2 * i] + xs[2 * i + 1] for i in range(pairs)] + [*xs[2 * pairs :]]
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def canonical_prefix(xs: Sequence[Array]) -> Array:
    """The right operand has the largest power of two of the ranks that leaves some for the left."""
    if len(xs) == 1:
        return xs[0]
    right = 1 << ((len(xs) - 1).bit_length() - 1)
    return canonical_prefix(xs[:-right]) + canonical_prefix(xs[-right:])


def canonical_algorithms(comm: Communicator, collective: str, root: int = 0) -> list[str]:
    """Those that `reproducible=True` must accept, and "auto"."""
    plans = {name: plan(collective, name, comm.size, root, comm.hosts) for name in algorithms(collective)}
    return ["auto", *(name for name, p in plans.items() if verify(p).order == "canonical")]


def assert_bits(found: Array, wanted: Array, what: object) -> None:
    different = np.flatnonzero(found.view(np.uint8) != wanted.view(np.uint8)) if found.size == wanted.size else [-1]
    assert not len(different), f"{what}: {len(different)} bytes of {found.nbytes} are other bits"


def assert_reproducible(comm: Communicator, dtype: str, **options: Any) -> None:
    """Every collective that reduces, every algorithm, size and kind of call has the bits of the canonical order."""
    xs = [wild(dtype, rank) for rank in range(comm.size)]
    wanted, mine = canonical_sum(xs), xs[comm.rank]
    calls: list[tuple[str, Callable[..., Any]]] = [
        ("blocking", comm.all_reduce),
        ("async", lambda x, **o: comm.all_reduce_async(x, **o).wait(30.0)),
        ("prepared", lambda x, **o: comm.prepare.all_reduce(x, **o)()),
        ("list", lambda x, **o: comm.all_reduce([x[:1], x], **o)[1]),
        ("in place", lambda x, **o: comm.all_reduce(y := x.copy(), out=y, **o)),
    ]
    for name in canonical_algorithms(comm, "all_reduce"):
        for number, part in enumerate(SLICES):
            for how, call in calls if number == 2 else calls[:1]:
                found = call(mine[part], algorithm=name, **options)
                assert_bits(found, wanted[part], (how, name, part, dtype))
    for number, part in enumerate(SLICES):
        for name in canonical_algorithms(comm, "scan") if number % 2 else ["auto"]:
            found = comm.scan(mine[part], algorithm=name, **options)
            assert_bits(found, canonical_prefix([x[part] for x in xs[: comm.rank + 1]]), ("scan", name, part, dtype))
        for name in canonical_algorithms(comm, "exscan") if number % 2 else ["auto"]:
            found = comm.exscan(mine[part], algorithm=name, **options)
            if comm.rank:
                assert_bits(found, canonical_prefix([x[part] for x in xs[: comm.rank]]), ("exscan", name, part, dtype))
    root = comm.size // 2
    for name in canonical_algorithms(comm, "reduce", root):
        for part in SLICES:
            found = comm.reduce(mine[part], root=root, algorithm=name, **options)
            if comm.rank == root:
                assert_bits(found, wanted[part], ("reduce", name, part, dtype))
    for name in canonical_algorithms(comm, "reduce_scatter"):
        for part in SLICES:
            rows = [wanted[part].size // comm.size] * comm.size
            rows[0] += wanted[part].size % comm.size
            begin = sum(rows[: comm.rank])
            found = comm.reduce_scatter(mine[part], sizes=rows, algorithm=name, **options)
            assert_bits(found, wanted[part][begin : begin + rows[comm.rank]], ("reduce_scatter", name, part, dtype))
