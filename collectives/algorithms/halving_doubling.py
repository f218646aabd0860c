"""Halving and doubling: partners exchange half of what is left, then half of that, and back again.

A power of two ranks pairs up by the bits of the rank; any other number exchanges round a ring (see
circulant.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from collectives.algorithms import circulant
from collectives.plan import Recv, RecvReduce, Send, Steps, algorithm


def _chunk_per_rank(size: int) -> int:
    return size


@algorithm("all_reduce", "halving_doubling", chunks=_chunk_per_rank)
def all_reduce(rank: int, size: int) -> Steps:
    """Sums are scattered by exchanging halves with ever farther partners, then gathered by the way back.

        rank 0 of 4    | 0 1 2 3 |     <-> rank 1: give 2 3, keep 0 1
                       | 0 1 |         <-> rank 2: give 1, keep 0; then back: get 1 from rank 2, 2 3 from rank
                       1

    rounds <= 2*L if n == 2**L else 2*L + 1
    sent: 2*(n-1)/n
    Wins for medium and large arrays and many ranks: the least bytes in 2 * L exchanges, each of one message,
    or of two where blocks wrap round the end of the array. For a power of two the order is canonical.
    Source: Rabenseifner, Optimization of collective reduction operations (ICCS 2004).
    """
    if _is_power_of_two(size):
        nearest_first = [1 << k for k in range(size.bit_length() - 1)]
        yield from _halve(rank, size, nearest_first)
        yield from _double(rank, size, nearest_first)
    else:
        yield from circulant.reduce_scatter(rank, size)
        yield from circulant.all_gather(rank, size)


@algorithm("reduce_scatter", "halving")
def reduce_scatter(rank: int, size: int) -> Steps:
    """Partners exchange the half of the blocks that lies on the other's side, farthest partner first.

        rank 0 of 4    | 0 1 2 3 |     <-> rank 2: give 2 3, keep 0 1
                       | 0 1 |         <-> rank 1: give 1, keep 0

    rounds <= L if n == 2**L else L + 1
    sent: (n-1)/n
    Wins for small and medium arrays and many ranks: the least bytes in L exchanges.
    Source: Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005); circulant.py for other than powers of two.
    """
    if _is_power_of_two(size):
        return _halve(rank, size, _farthest_first(size))
    return circulant.reduce_scatter(rank, size)


@algorithm("all_gather", "doubling")
def all_gather(rank: int, size: int) -> Steps:
    """Partners exchange all the blocks that they have, nearest partner first.

        rank 0 of 4    | 0 |           <-> rank 1: give 0, get 1
                       | 0 1 |         <-> rank 2: give 0 1, get 2 3

    rounds <= L
    sent: (n-1)/n
    Wins for small and medium arrays and many ranks: the least bytes in L exchanges.
    Source: Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005); circulant.py for other than powers of two.
    """
    if _is_power_of_two(size):
        return _double(rank, size, _farthest_first(size))
    return circulant.all_gather(rank, size)


@dataclass
class _Exchange:
    peer: int
    keep: int
    give: int
    count: int


def _halve(rank: int, size: int, distances: Iterable[int]) -> Steps:
    for exchange in _exchanges(rank, size, distances):
        yield Send(exchange.peer, exchange.give, exchange.count)
        yield RecvReduce(exchange.peer, exchange.keep, exchange.count, local_first=rank < exchange.peer)


def _double(rank: int, size: int, distances: Iterable[int]) -> Steps:
    for exchange in reversed(_exchanges(rank, size, distances)):
        yield Send(exchange.peer, exchange.keep, exchange.count)
        yield Recv(exchange.peer, exchange.give, exchange.count)


def _exchanges(rank: int, size: int, distances: Iterable[int]) -> list[_Exchange]:
    """Which half of the chunks still held to keep and which to give, exchange by exchange."""
    exchanges: list[_Exchange] = []
    start, count = 0, size
    for distance in distances:
        count //= 2
        lower, upper = start, start + count
        start, give = (upper, lower) if rank & distance else (lower, upper)
        exchanges.append(_Exchange(rank ^ distance, start, give, count))
    return exchanges


def _farthest_first(size: int) -> list[int]:
    return [1 << k for k in reversed(range(size.bit_length() - 1))]


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0
