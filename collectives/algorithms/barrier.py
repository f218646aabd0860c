"""Barrier: no data, only the knowledge that every rank has arrived."""

from __future__ import annotations

from collectives.plan import Copy, RecvReduce, Send, Steps, algorithm


@algorithm("barrier", "dissemination")
def barrier(rank: int, size: int) -> Steps:
    """In exchange k every rank tells the one 2**k further whom it has heard of.

        0 --> 1 --> 2 --> 3 --> 4 --> 0        distance 1
        0 --> 2, 1 --> 3, 2 --> 4, ...         distance 2, and so on until everybody has heard of everybody

    rounds: L
    sent: 0
    The fewest exchanges for any number of ranks. What a rank knows is copied before it is sent, so that
    hearing more need not wait for the sending.
    Source: Hensgen, Finkel and Manber, Two algorithms for barrier synchronization (IJPP 17(1), 1988).
    """
    known, told = 0, 1
    distance = 1
    while distance < size:
        yield Copy(known, told)
        yield Send((rank + distance) % size, told)
        yield RecvReduce((rank - distance) % size, known)
        distance *= 2
