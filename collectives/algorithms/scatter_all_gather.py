"""Scatter, then all-gather: a broadcast in which every rank passes on its share instead of the whole."""

from __future__ import annotations

from collectives.plan import Recv, Send, Steps, algorithm


def _chunk_per_rank(size: int) -> int:
    return size


@algorithm("broadcast", "scatter_all_gather", chunks=_chunk_per_rank, near=True)
def broadcast(rank: int, size: int, root: int) -> Steps:
    """The root scatters the chunks down a binomial tree, then they go round a ring of all ranks.

        root, root+1, ... root+7:   0 --4567--> 4     0 --23--> 2, 4 --67--> 6     0 --1--> 1, ... then round
        the ring:        0 --> 1 --> 2 --> ... --> 7     a chunk skips the ranks that passed it on before

    rounds <= L + n - 1
    sent <= 2*(n-1)/n
    Wins for large arrays where two trees or a chain would keep too few links busy; the root sends almost two
    arrays.
    Source: Barnett, Shuler, van de Geijn, Gupta, Payne and Watts, Interprocessor collective communication
    library (SHPCC 1994).
    """
    me = (rank - root) % size
    reach, end = _reach(me, size), _end(me, size)
    if me:
        yield Recv((root + me - reach) % size, me, end - me)
    while reach > 1:
        reach //= 2
        child = me + reach
        if child < size:
            yield Send((root + child) % size, child, _end(child, size) - child)
    after, end_after = (me + 1) % size, _end((me + 1) % size, size)
    next_rank, previous_rank = (rank + 1) % size, (rank - 1) % size
    for i in range(size - 1):
        sent, received = (me - i) % size, (me - i - 1) % size
        if not after <= sent < end_after:
            yield Send(next_rank, sent)
        if not me <= received < end:
            yield Recv(previous_rank, received)


def _reach(me: int, size: int) -> int:
    """How many ranks the subtree below can have: the lowest bit set; for the root, a power of two >= size."""
    return me & -me or 1 << (size - 1).bit_length()


def _end(me: int, size: int) -> int:
    """The scatter brings chunks me .. end - 1: those of the subtree."""
    return min(me + _reach(me, size), size)
