"""Recursive doubling: partners exchange everything they know, at distances 1, 2, 4, ..."""

from __future__ import annotations

from collectives.algorithms.fold import at, position, positions
from collectives.plan import Copy, Recv, RecvReduce, Send, Steps, algorithm


@algorithm("all_reduce", "recursive_doubling")
def all_reduce(rank: int, size: int) -> Steps:
    """After exchange k every rank has the sum of its 2**(k+1) neighbours; all bytes travel every time.

        0 <-> 1   2 <-> 3   4 <-> 5   6 <-> 7
        0 <-----> 2, 1 <-----> 3, ...                 ranks beyond a power of two hand their data to a
        0 <---------------> 4, ...                    neighbour before, and get the result after (see fold.py)

    rounds: L if n == 2**L else L + 1
    sent: L
    Wins for small arrays and many ranks: the fewest exchanges. What is sent is copied to spare memory first,
    because both partners overwrite the chunk that the other is still reading.
    Source: Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005), with pairs combined in rank order.
    """
    chunk, copy = 0, 1
    here = position(rank, size)
    leader, last = at(here, size)[0], at(here, size)[-1]
    if rank != leader:
        yield Send(leader, chunk)
        yield Recv(leader, chunk)
        return
    if last != leader:
        yield RecvReduce(last, chunk)
    distance = 1
    while distance < positions(size):
        peer = at(here ^ distance, size)[0]
        yield Copy(chunk, copy)
        yield Send(peer, copy)
        yield RecvReduce(peer, chunk, local_first=rank < peer)
        distance *= 2
    if last != leader:
        yield Send(last, chunk)
