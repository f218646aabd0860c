"""Direct: every piece travels straight from the rank that has it to the rank that wants it.

The fewest hops and no forwarding; every rank talks to every other, so it wins on shared memory and on small
groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from collectives.algorithms.fold import Tree, canonical_tree, members
from collectives.plan import Copy, Recv, RecvReduce, Reduce, Send, Steps, algorithm


def _chunk_per_rank(size: int) -> int:
    return size


@algorithm("all_reduce", "direct", chunks=_chunk_per_rank)
def all_reduce(rank: int, size: int) -> Steps:
    """Two shots: every rank sums one chunk of all ranks, then hands the sum to all.

        0 1 2 3        chunk r to rank r, added up there          0 1 2 3
        |\\|/|\\|       then from rank r to everybody              a b c d

    rounds: n if n > 1 else 0
    sent: 2*(n-1)/n
    Wins at medium and large sizes on shared memory, where all pairs of ranks are equally near.
    Source: the reduce-scatter and all-gather decomposition of Rabenseifner (ICCS 2004), each half in one
    direct step.
    """
    yield from reduce_scatter(rank, size)
    yield from all_gather(rank, size)


@algorithm("all_reduce", "one_shot")
def one_shot(rank: int, size: int) -> Steps:
    """Everybody sends everything to everybody, and each combines all of it in the same canonical order.

        0 --x0--> 1, 2, 3      rank 2:  spare 1 = x0 + x1           (what lies left of it)
        1 --x1--> 0, 2, 3               c       = x2 + x3           (what lies right of it, onto its own)
        ...                             c       = spare 1 + c

    rounds: 2 + n % 2 if n > 1 else 0
    sent: n-1
    Wins at the smallest sizes, where one hop is all that counts. A lower rank's data goes to spare memory
    first: if two ranks overwrote the chunk that they are still sending to each other, neither could finish
    without a buffer.
    Source: the flat exchange of the literature; the order is the canonical one, so all ranks get the same
    bits.
    """
    for i in range(1, size):
        yield Send((rank + i) % size, 0)
    yield from _combine(rank, canonical_tree(size), 0, count(1))


def _combine(rank: int, tree: Tree, chunk: int, spare: Iterator[int]) -> Steps:
    """The chunk, this rank's own, becomes the value of a subtree that contains the rank."""
    if isinstance(tree, int):
        return
    left, right = tree
    if rank in members(left):
        yield from _combine(rank, left, chunk, spare)
        yield from _add(right, chunk, spare)
    else:
        yield from _combine(rank, right, chunk, spare)
        yield from _fetch(left, taken := next(spare), spare)
        yield Reduce(taken, chunk, target_first=False)


def _fetch(tree: Tree, into: int, spare: Iterator[int]) -> Steps:
    """Chunk `into` becomes the value of a subtree that other ranks send."""
    if isinstance(tree, int):
        yield Recv(tree, into)
    else:
        yield from _fetch(tree[0], into, spare)
        yield from _add(tree[1], into, spare)


def _add(tree: Tree, into: int, spare: Iterator[int]) -> Steps:
    """Chunk `into` gets the value of a subtree that other ranks send, as the right operand."""
    if isinstance(tree, int):
        yield RecvReduce(tree, into)
    else:
        yield from _fetch(tree, taken := next(spare), spare)
        yield Reduce(taken, into)


@algorithm("reduce_scatter", "direct")
def reduce_scatter(rank: int, size: int) -> Steps:
    """Block b of every rank goes straight to rank b, which adds it up.

        0 1 2 3
        |\\|X|/|       step i: to rank r + i, from rank r - i, so that no two ranks send to the same one
        a b c d

    rounds: n-1
    sent: (n-1)/n
    Wins on shared memory at every size, elsewhere while n is small.
    Source: the pairwise exchange of Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    for i in range(1, size):
        peer = (rank + i) % size
        yield Send(peer, peer)
    for i in range(1, size):
        peer = (rank - i) % size
        yield RecvReduce(peer, rank, local_first=rank < peer)


@algorithm("reduce_scatter", "direct_canonical")
def reduce_scatter_canonical(rank: int, size: int) -> Steps:
    """Block b of every rank goes straight to rank b, which combines the ranks in the canonical order.

        0 1 2 3
        |\\|X|/|       the same messages as direct; rank 0 of 4:  own + x1;  spare = x2, + x3;  own + spare
        a b c d

    rounds <= 3
    sent: (n-1)/n
    Wins on shared memory where the bits must not depend on anything but the data; spare memory makes it a
    little slower than direct.
    Source: the pairwise exchange of Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    for i in range(1, size):
        peer = (rank + i) % size
        yield Send(peer, peer)
    yield from _combine(rank, canonical_tree(size), rank, count(size + rank, size))


@algorithm("all_gather", "direct")
def all_gather(rank: int, size: int) -> Steps:
    """Every rank sends its block to every other.

        0 1 2 3
        |\\|X|/|       step i: to rank r + i, from rank r - i
        * * * *

    rounds: 1 if n > 1 else 0
    sent: (n-1)/n
    Wins on shared memory at every size, elsewhere while n is small.
    Source: the basic linear algorithm of the MPI libraries, rotated so that no rank is everybody's first
    target.
    """
    for i in range(1, size):
        yield Send((rank + i) % size, rank)
    for i in range(1, size):
        peer = (rank - i) % size
        yield Recv(peer, peer)


@algorithm("broadcast", "direct")
def broadcast(rank: int, size: int, root: int) -> Steps:
    """The root sends everything to everybody.

        root --> 1, 2, 3

    rounds: 1 if n > 1 else 0
    sent: n-1
    Wins for few ranks and small messages: one hop.
    Source: the basic linear algorithm of the MPI libraries.
    """
    if rank == root:
        for i in range(1, size):
            yield Send((root + i) % size, 0)
    else:
        yield Recv(root, 0)


@algorithm("reduce", "direct")
def reduce(rank: int, size: int, root: int) -> Steps:
    """Everybody sends everything to the root, which adds it up in the order root, root + 1, ..., root - 1.

        1, 2, 3 --> root

    rounds: n-1
    sent: min(1, n-1)
    Wins for few ranks and small messages: one hop.
    Source: the basic linear algorithm of the MPI libraries.
    """
    if rank == root:
        for i in range(1, size):
            peer = (root + i) % size
            yield RecvReduce(peer, 0, local_first=root < peer)
    else:
        yield Send(root, 0)


@algorithm("gather", "direct")
def gather(rank: int, size: int, root: int) -> Steps:
    """Every rank sends its block to the root.

        1, 2, 3 --> root

    rounds: 1 if n > 1 else 0
    sent: 1/n if n > 1 else 0
    The root has to receive n - 1 blocks whatever the algorithm; nothing beats this for large blocks.
    Source: the basic linear algorithm of the MPI libraries.
    """
    if rank == root:
        for i in range(1, size):
            peer = (root + i) % size
            yield Recv(peer, peer)
    else:
        yield Send(root, rank)


@algorithm("scatter", "direct")
def scatter(rank: int, size: int, root: int) -> Steps:
    """The root sends every rank its block.

        root --> 1, 2, 3

    rounds: 1 if n > 1 else 0
    sent: (n-1)/n
    The root has to send n - 1 blocks whatever the algorithm; nothing beats this for large blocks.
    Source: the basic linear algorithm of the MPI libraries.
    """
    if rank == root:
        for i in range(1, size):
            peer = (root + i) % size
            yield Send(peer, peer)
    else:
        yield Recv(root, rank)


@algorithm("all_to_all", "direct")
def all_to_all(rank: int, size: int) -> Steps:
    """Every rank sends every other the block meant for it.

        step i: block r + i to rank r + i, and from rank r - i the block meant for r

    rounds: 1 if n > 1 else 0
    sent: (n-1)/n
    Every byte travels once, the least possible; for tiny blocks and many ranks the n - 1 messages dominate.
    Source: the pairwise exchange of Thakur, Rabenseifner and Gropp (IJHPCA 19(1), 2005).
    """
    yield Copy(rank, size + rank)
    for i in range(1, size):
        peer = (rank + i) % size
        yield Send(peer, peer)
    for i in range(1, size):
        peer = (rank - i) % size
        yield Recv(peer, size + peer)
