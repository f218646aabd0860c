"""Circulant graph: blocks flow over links of ceil(log2 n) fixed distances, in the fewest rounds there can be.

In round i every rank sends one block to the rank skip[k] further and receives one from the rank skip[k] before,
k = i mod q with q = ceil(log2 n). The skips are n halved and rounded up, again and again. Seventeen ranks, root 0,
the first rounds (a block number where one is received; later rounds fill the gaps, with numbers that grow):

    skip           0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15  16
       1  round 0      0
       2  round 1          1
       3  round 2              2   0
       5  round 3                      3   0   1   2
       9  round 4                                      4   0   1   2   0   3   0   1

Any q rounds in a row bring a rank q different blocks, so that B blocks are everywhere after B - 1 + q rounds. What
arrives when follows from the rank alone: its own block of the first q rounds, the base block, is the smallest of
the skips that add up to its number; the others are the base blocks of ranks before it, which it gets q later.

Source: Träff, Optimal broadcast schedules in logarithmic time (arXiv 2407.18004, 2024); for the all-gather Träff,
Optimal, non-pipelined reduce-scatter and allreduce algorithms (arXiv 2410.14234, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from collectives.plan import Recv, Send, Steps, algorithm

_BROADCAST_BLOCKS, _ALL_GATHER_BLOCKS = 16, 2


def _check(arguments: tuple[str, ...]) -> None:
    if len(arguments) != 1 or not arguments[0].isdecimal() or not 1 <= int(arguments[0]) <= 4096:
        raise ValueError(
            f"circulant takes a number of blocks from 1 to 4096, not {', '.join(arguments) or 'nothing'!r}"
        )


def _broadcast_blocks(arguments: tuple[str, ...]) -> int:
    return int(arguments[0]) if arguments else _BROADCAST_BLOCKS


def _all_gather_blocks(arguments: tuple[str, ...]) -> int:
    return int(arguments[0]) if arguments else _ALL_GATHER_BLOCKS


@algorithm("broadcast", "circulant", chunks=_broadcast_blocks, arguments=_check)
def broadcast(rank: int, size: int, root: int, arguments: tuple[str, ...]) -> Steps:
    """The drawing is at the head of this file. "circulant(32)" cuts the array into 32 blocks; else there are 16.

    rounds <= 15 + L if n > 1 else 0
    sent: (15 + L)/16 if n > 1 else 0
    Wins for medium and large arrays and many ranks: B - 1 + L rounds for B blocks, of which no algorithm can do
    with fewer.
    Source: Träff (arXiv 2407.18004, 2024).
    """
    here, blocks = (rank - root) % size, _broadcast_blocks(arguments)
    for skip, sent, received in _rounds(here, size, blocks):
        if sent is not None:
            yield Send((rank + skip) % size, sent)
        if received is not None:
            yield Recv((rank - skip) % size, received)


@algorithm("all_gather", "circulant", chunks=_all_gather_blocks, arguments=_check)
def all_gather(rank: int, size: int, arguments: tuple[str, ...]) -> Steps:
    """All ranks broadcast at once: in a round every rank sends to one other what is due of all roots.

    "circulant(8)" cuts each rank's block into 8 pieces; else there are 2.

    rounds <= 2*(n-1)
    sent: (n-1)/n
    Wins for many ranks whose blocks differ much in size: B - 1 + L rounds of messages to one rank each. The
    messages of a round are counted one after the other here, as they share a lane.
    Source: Träff (arXiv 2410.14234, 2024), and arXiv 2407.18004 for the schedules.
    """
    pieces = _all_gather_blocks(arguments)
    streams = [_rounds((rank - root) % size, size, pieces) for root in range(size)]
    for due in zip(*streams, strict=True):
        skip = due[0][0]
        for root, (_, sent, _) in enumerate(due):
            if sent is not None:
                yield Send((rank + skip) % size, root * pieces + sent)
        for root, (_, _, received) in enumerate(due):
            if received is not None:
                yield Recv((rank - skip) % size, root * pieces + received)


def _rounds(here: int, size: int, blocks: int) -> Iterator[tuple[int, int | None, int | None]]:
    """Round by round: the skip, the block that is sent and the one that is received, for `here` ranks after the root.

    The schedule of q rounds repeats, with block numbers that grow by q. It begins so that it ends with a whole
    repetition; then blocks beyond the last are the last, and those below 0 are not there yet.
    """
    distances = skips(size)
    q = len(distances) - 1
    mine = receive_schedule(here, size)
    theirs = [receive_schedule((here + distances[k]) % size, size)[k] for k in range(q)]
    before = -(blocks - 1) % q if q else 0
    for i in range(before, before + blocks - 1 + q if q else before):
        k, shift = i % q, i // q * q - before
        sent, received = min(theirs[k] + shift, blocks - 1), min(mine[k] + shift, blocks - 1)
        to_root = (here + distances[k]) % size == 0
        yield distances[k], None if sent < 0 or to_root else sent, None if received < 0 or here == 0 else received


@lru_cache(maxsize=64)
def skips(size: int) -> tuple[int, ...]:
    """1, ..., size: each is half of the next, rounded up; ceil(log2 size) + 1 of them."""
    found = [size]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return tuple(reversed(found))


def base_block(here: int, size: int) -> int:
    """The index of the smallest skip, of those that add up to `here` when the largest possible are taken first."""
    distances = skips(size)
    for k in reversed(range(len(distances))):
        if distances[k] <= here:
            here -= distances[k]
            if here == 0:
                return k
    return len(distances) - 1  # the root's


@lru_cache(maxsize=1 << 14)
def receive_schedule(here: int, size: int) -> tuple[int, ...]:
    """The block that a rank receives in each of q rounds; below 0: of the repetition before. In O(q) steps or so.

    In round k a rank gets the base block of a rank that is skip[k] to skip[k+1] before it, a block that it has not got
    in another round. Sums of skips are searched depth first, the larger skips first, for such ranks, ever farther away.
    """
    distances = skips(size)
    q = len(distances) - 1
    own = base_block(here, size)
    left = set(range(q + 1)) - {own}
    found: list[int] = []
    nearest = 2 * size

    def least(k: int) -> int:
        return here + size - distances[k]

    def search(base: int, taken: int) -> None:
        """Adds one more skip to `base`, a sum that ends with the skip `taken`."""
        nonlocal nearest
        for e in range(taken - 1, -1, -1):
            total = base + distances[e]
            if e not in left or total >= nearest or total > least(len(found)):
                continue
            if total <= least(len(found) + 1):
                search(total, e)
            if len(found) == q or base > least(len(found) + 1):
                return
            if total <= least(len(found)):
                found.append(e)
                left.remove(e)
                nearest = total

    search(0, q + 1)
    assert len(found) == q, (here, size)
    return tuple(own if e == q else e - q for e in found)
