"""Halving and doubling: partners exchange half of what is left, then half of that, and back again.

Any number of ranks becomes a power of two by the fold (see fold.py), on two rails: the ranks of a pair exchange
halves of the array first, and each then acts for the pair on the half that it has summed. A rank that is in no
pair acts on both. So no rank idles while its neighbour works:

    five ranks:   0 <-> 1   2   3   4          half 0 to rank 0, half 1 to rank 1
    rail 0        0         2 , 3   4          exchanges at distance 1, then 2, between positions
    rail 1            1     2 , 3   4

Where the order need not be canonical, other numbers than powers of two exchange round a ring (see circulant.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from collectives.algorithms import circulant
from collectives.algorithms.fold import at, position, positions
from collectives.plan import Recv, RecvReduce, Send, Steps, algorithm


def pieces(size: int) -> int:
    """The chunks of the all-reduce: one for each position, on each rail."""
    return positions(size) * _rails(size)


def _rails(size: int) -> int:
    return 1 if _is_power_of_two(size) else 2


@algorithm("all_reduce", "halving_doubling", chunks=pieces)
def all_reduce(rank: int, size: int) -> Steps:
    """Sums are scattered by exchanging halves with ever farther partners, then gathered by the way back.

        rank 0 of 4    | 0 1 2 3 |     <-> rank 1: give 2 3, keep 0 1
                       | 0 1 |         <-> rank 2: give 1, keep 0; then back: get 1 from rank 2, 2 3 from rank
                       1

    rounds <= 2*L if n == 2**L else 2*L + 2
    sent: 2 - 2/2**L
    Wins for medium and large arrays and many ranks: the least bytes (nearly, where n is no power of two) in
    2 * L exchanges of one message, or of two, one after the other, between ranks that act on both rails. The
    order is canonical.
    Source: Rabenseifner, Optimization of collective reduction operations (ICCS 2004).
    """
    rails = [_Rail(rail, size, positions(size)) for rail in range(_rails(size))]
    yield from _sum(rank, size, rails)
    yield from _gather(rank, size, rails)


@algorithm("reduce_scatter", "halving_canonical", chunks=_rails)
def reduce_scatter_canonical(rank: int, size: int) -> Steps:
    """The first half of the all-reduce, nearest partner first; then every block goes to its owner.

        rank 1 of 4    | 0 1 2 3 |     <-> rank 0: give 0 1, keep 2 3
                       | 2 3 |         <-> rank 3: give 3, keep 2; then 2 to rank 2, and 1 from rank 2

    rounds <= L + 1 if n == 2**L else L + 2
    sent <= 1
    Wins where the order must be canonical and ranks are many or far apart; where neighbours share a host, most
    bytes stay inside it.
    Source: Rabenseifner (ICCS 2004); the order of the partners makes the last step necessary.
    """
    rails = [_Rail(rail, size, size) for rail in range(_rails(size))]
    yield from _sum(rank, size, rails)
    per_block = len(rails)
    for rail in rails:
        if rank == rail.player(position(rank, size)):
            unit = _mirrored(position(rank, size), size)
            for owner, chunks in groupby(rail.chunks(unit, unit + 1), lambda chunk: chunk // per_block):
                if owner != rank:
                    yield Send(owner, *_stretch(chunks))
    mine = range(rank * per_block, (rank + 1) * per_block)
    for (holder, _), chunks in groupby(mine, lambda chunk: _holder(chunk, rails)):
        if holder != rank:
            yield Recv(holder, *_stretch(chunks))


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
class _Rail:
    """What one rail works on: `count` chunks, split among the positions; who acts for a position on it."""

    number: int
    size: int
    count: int

    def player(self, position: int) -> int:
        ranks = at(position, self.size)
        return ranks[min(self.number, len(ranks) - 1)]

    def chunks(self, first: int, end: int) -> range:
        """The chunks of units first .. end - 1; there are as many units as positions."""
        start, units = self.number * self.count, positions(self.size)
        return range(start + first * self.count // units, start + end * self.count // units)

    def unit(self, chunk: int) -> int:
        """The unit that has a chunk of this rail."""
        return ((chunk - self.number * self.count + 1) * positions(self.size) - 1) // self.count


def _sum(rank: int, size: int, rails: list[_Rail]) -> Steps:
    """Every position gets the sums of one unit on each rail, in the canonical order."""
    for mate, own, other in _pair(rank, size, rails):
        yield Send(mate, *_stretch(other))
        yield RecvReduce(mate, *_stretch(own), local_first=rank < mate)
    for exchange, rail in _on_rails(rank, size, rails):
        peer = rail.player(exchange.peer)
        yield Send(peer, *_stretch(rail.chunks(exchange.give, exchange.give + exchange.count)))
        kept = rail.chunks(exchange.keep, exchange.keep + exchange.count)
        yield RecvReduce(peer, *_stretch(kept), local_first=rank < peer)


def _gather(rank: int, size: int, rails: list[_Rail]) -> Steps:
    """The same way back."""
    for exchange, rail in reversed(list(_on_rails(rank, size, rails))):
        peer = rail.player(exchange.peer)
        yield Send(peer, *_stretch(rail.chunks(exchange.keep, exchange.keep + exchange.count)))
        yield Recv(peer, *_stretch(rail.chunks(exchange.give, exchange.give + exchange.count)))
    for mate, own, other in _pair(rank, size, rails):
        yield Send(mate, *_stretch(own))
        yield Recv(mate, *_stretch(other))


def _pair(rank: int, size: int, rails: list[_Rail]) -> Iterator[tuple[int, range, range]]:
    """The other rank of the pair, the chunks that this rank sums for it, and those that the other sums; if any."""
    ranks, q = at(position(rank, size), size), positions(size)
    if len(ranks) == 2:
        own = ranks.index(rank)
        yield ranks[1 - own], rails[own].chunks(0, q), rails[1 - own].chunks(0, q)


def _on_rails(rank: int, size: int, rails: list[_Rail]) -> Iterator[tuple[_Exchange, _Rail]]:
    here, q = position(rank, size), positions(size)
    for exchange in _exchanges(here, q, [1 << k for k in range(q.bit_length() - 1)]):
        for rail in rails:
            if rail.player(here) == rank:
                yield exchange, rail


def _holder(chunk: int, rails: list[_Rail]) -> tuple[int, int]:
    """The rank that has summed a chunk, and the number of its rail."""
    rail = rails[chunk // rails[0].count]
    return rail.player(_mirrored(rail.unit(chunk), rail.size)), rail.number


def _mirrored(number: int, size: int) -> int:
    """The bits read from the other end: the unit that a position ends with, and back."""
    bits = positions(size).bit_length() - 1
    return sum((number >> k & 1) << (bits - 1 - k) for k in range(bits))


def _stretch(chunks: Iterable[int]) -> tuple[int, int]:
    first, *more = chunks
    return first, 1 + len(more)


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
