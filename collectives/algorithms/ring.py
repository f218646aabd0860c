"""Ring: every rank talks to its two neighbours only, and all links are busy all the time.

The ring goes host by host, however the ranks were dealt out, so it enters and leaves every host once.
"""

from __future__ import annotations

from collectives.plan import Recv, RecvReduce, Send, Steps, algorithm


def _chunk_per_rank_and_direction(size: int) -> int:
    return 2 * size


@algorithm("all_reduce", "ring", chunks=_chunk_per_rank_and_direction, lanes=2, near=True)
def all_reduce(rank: int, size: int) -> Steps:
    """Partial sums of each chunk go once round the ring, then the sums go round; half the chunks each way.

        chunks 0..n-1, lane 0       0 --> 1 --> 2 --> 3 --> 0
        chunks n..2n-1, lane 1      0 <-- 1 <-- 2 <-- 3 <-- 0

    rounds: 2*(n-1)
    sent: 2*(n-1)/n
    Wins for large arrays: the least bytes, and both directions of every link in use. Slow for small ones and
    many ranks.
    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms (JPDC 69(2), 2009).
    """
    there = (
        _reduce_scatter(rank, size, turn=1, base=0, lane=0),
        _all_gather(rank, size, turn=1, base=0, lane=0),
    )
    back = (
        _reduce_scatter(rank, size, turn=-1, base=size, lane=1),
        _all_gather(rank, size, turn=-1, base=size, lane=1),
    )
    for one_way, other_way in zip(there, back, strict=True):
        for steps in zip(one_way, other_way, strict=True):
            yield from steps


@algorithm("reduce_scatter", "ring", near=True)
def reduce_scatter(rank: int, size: int) -> Steps:
    """The partial sum of block b starts at rank b + 1 and goes round, collecting, until it ends at rank b.

        0 --> 1 --> 2 --> 3 --> 0        rank r sends block r-1, then r-2, ..., each with its own added

    rounds: n-1
    sent: (n-1)/n
    Wins for large arrays on networks where neighbours are near.
    Source: Patarasuk and Yuan (JPDC 69(2), 2009).
    """
    return _reduce_scatter(rank, size, turn=1, base=0, lane=0)


@algorithm("all_gather", "ring", near=True)
def all_gather(rank: int, size: int) -> Steps:
    """Every block goes once round the ring.

        0 --> 1 --> 2 --> 3 --> 0        rank r sends its own block, then what it received, ...

    rounds: n-1
    sent: (n-1)/n
    Wins for large arrays on networks where neighbours are near.
    Source: Patarasuk and Yuan (JPDC 69(2), 2009).
    """
    return _all_gather(rank, size, turn=1, base=0, lane=0)


@algorithm("broadcast", "ring", near=True)
def broadcast(rank: int, size: int, root: int) -> Steps:
    """A chain from the root; steps stream, so all links are busy once the first byte has arrived at the end.

        root --> root + 1 --> ... --> root - 1

    rounds: n-1
    sent: min(1, n-1)
    Wins for few ranks and large arrays.
    Source: the pipelined chain of Watts and van de Geijn (PPL 5(2), 1995).
    """
    if rank != root:
        yield Recv((rank - 1) % size, 0)
    if (rank + 1) % size != root:
        yield Send((rank + 1) % size, 0)


@algorithm("reduce", "ring", near=True)
def reduce(rank: int, size: int, root: int) -> Steps:
    """A chain to the root: each rank adds its own to what passes.

        root <-- root + 1 <-- ... <-- root - 1

    rounds: n-1
    sent: min(1, n-1)
    Wins for few ranks and large arrays.
    Source: the chain of Watts and van de Geijn (PPL 5(2), 1995), run backwards.
    """
    after = (rank + 1) % size
    if after != root:
        yield RecvReduce(after, 0, local_first=rank < after)
    if rank != root:
        yield Send((rank - 1) % size, 0)


def _reduce_scatter(rank: int, size: int, turn: int, base: int, lane: int) -> Steps:
    """Towards higher ranks (turn = 1) or lower ones (-1), on chunks base .. base + size - 1."""
    after, before = (rank + turn) % size, (rank - turn) % size
    for i in range(1, size):
        yield Send(after, base + (rank - turn * i) % size, lane=lane)
        yield RecvReduce(before, base + (rank - turn * (i + 1)) % size, lane=lane, local_first=rank < before)


def _all_gather(rank: int, size: int, turn: int, base: int, lane: int) -> Steps:
    after, before = (rank + turn) % size, (rank - turn) % size
    for i in range(size - 1):
        yield Send(after, base + (rank - turn * i) % size, lane=lane)
        yield Recv(before, base + (rank - turn * (i + 1)) % size, lane=lane)
