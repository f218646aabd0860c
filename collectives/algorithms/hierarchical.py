"""Hierarchical: other algorithms composed, so that each byte crosses between hosts as rarely as possible.

With C the size of the smallest host, rank c of every host (c < C) is on rail c, and a C-th of the data
crosses between hosts on each rail. Inside a host data moves directly, to the rails before and from the rails
after:

    host 0   0   1   2        inside:  every rank gives rail c its part c      (_collect)
             |   |            across:  rail by rail, here {0, 3} and {1, 4}
    host 1   3   4            inside:  every rail gives its part to all        (_spread)

Hosts may differ in size: here C = 2, and rank 2 is on no rail.

Source: the multi-leader designs of Kandalla et al. (CAC 2009) and BlueConnect of Cho et al. (MLSys 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from collectives.algorithms import direct, halving_doubling, two_tree
from collectives.algorithms.compose import placed
from collectives.plan import Hosts, Steps, algorithm


def _rails(hosts: Hosts) -> int:
    return min(map(len, hosts))


def _all_reduce_chunks(hosts: Hosts) -> int:
    return _rails(hosts) * halving_doubling.pieces(len(hosts))


def _rooted_chunks(hosts: Hosts) -> int:
    return _rails(hosts) * len(two_tree.TREES)


@algorithm("all_reduce", "hierarchical", chunks=_all_reduce_chunks)
def all_reduce(rank: int, size: int, hosts: Hosts) -> Steps:
    """Reduce inside the hosts, all-reduce by halving and doubling on the rails, broadcast inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 4*ceil(log2(H))
    sent <= (C+W)/C - 2/(C*2**ceil(log2(H)))
    Wins when hosts are far apart: less than two arrays cross from host to host, on C rails at once. With hosts
    of equal size, a power of two of them, the total is 2*(n-1)/n, the least possible.
    """
    host, h, i = _home(rank, hosts)
    pieces = halving_doubling.pieces(len(hosts))
    parts = [range(c * pieces, (c + 1) * pieces) for c in range(_rails(hosts))]
    for c, part in enumerate(parts):
        yield from _collect(rank, _from(host, c), part)
    if i < len(parts):
        rail = [other[i] for other in hosts]
        yield from placed(halving_doubling.all_reduce(h, len(hosts)), rail, [(c,) for c in parts[i]])
    for c, part in enumerate(parts):
        yield from _spread(rank, _from(host, c), part)


@algorithm("reduce_scatter", "hierarchical")
def reduce_scatter(rank: int, size: int, hosts: Hosts) -> Steps:
    """Reduce inside the hosts, reduce-scatter by halving on the rails, hand over to ranks that are on none.

    The drawing is at the head of this file. A block travels on the rail of its owner, or if it has none, on
    that of a rank on its host. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 2*H*ceil(W/C)
    sent <= (n + H*ceil(W/C) - H - 1)/n
    Wins when hosts are far apart: only the blocks of other hosts cross, already added up inside the host.
    """
    host, h, i = _home(rank, hosts)
    rails = range(_rails(hosts))
    blocks = [_blocks(hosts, c) for c in rails]
    for c in rails:
        yield from _collect(rank, _from(host, c), [*chain(*blocks[c])])
    if i in rails:
        rail = [other[i] for other in hosts]
        yield from placed(halving_doubling.reduce_scatter(h, len(hosts)), rail, blocks[i])
    for owner in range(len(rails), len(host)):
        yield from _spread(rank, [host[owner % len(rails)], host[owner]], [host[owner]])


@algorithm("all_gather", "hierarchical")
def all_gather(rank: int, size: int, hosts: Hosts) -> Steps:
    """Hand over by ranks on no rail, all-gather by doubling on the rails, broadcast inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= 2*H*ceil(W/C) + 1
    sent <= ((H*W - 1)*ceil(W/C) + (W > C))/n
    Wins when hosts are far apart: every block crosses to every other host once, on C rails at once.
    """
    host, h, i = _home(rank, hosts)
    rails = range(_rails(hosts))
    blocks = [_blocks(hosts, c) for c in rails]
    for owner in range(len(rails), len(host)):
        yield from _spread(rank, [host[owner], host[owner % len(rails)]], [host[owner]])
    if i in rails:
        rail = [other[i] for other in hosts]
        yield from placed(halving_doubling.all_gather(h, len(hosts)), rail, blocks[i])
    for c in rails:
        for taker in host:
            if taker != host[c] and rank in (host[c], taker):  # the taker may own a block on this rail
                yield from _spread(rank, [host[c], taker], [b for b in chain(*blocks[c]) if b != taker])


@algorithm("broadcast", "hierarchical", chunks=_rooted_chunks, lanes=len(two_tree.TREES))
def broadcast(rank: int, size: int, root: int, hosts: Hosts) -> Steps:
    """The root gives each rail of its host a part, two trees on the rails, broadcast inside the hosts.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= ceil(log2(H)) + 2
    sent <= 1 + (W-1)/C
    Wins when hosts are far apart: the array crosses to every other host once, on C rails at once.
    """
    host, h, i = _home(rank, hosts)
    root_host, root_h, _ = _home(root, hosts)
    parts = _rooted_parts(hosts)
    for c, part in enumerate(parts):
        if root_host[c] != root:
            yield from _spread(rank, [root, root_host[c]], part)
    if i < len(parts):
        rail = [other[i] for other in hosts]
        yield from placed(two_tree.broadcast(h, len(hosts), root_h), rail, [(c,) for c in parts[i]])
    for c, part in enumerate(parts):
        yield from _spread(rank, [r for r in _from(host, c) if r == host[c] or r != root], part)


@algorithm("reduce", "hierarchical", chunks=_rooted_chunks, lanes=len(two_tree.TREES))
def reduce(rank: int, size: int, root: int, hosts: Hosts) -> Steps:
    """Reduce inside the hosts, two trees on the rails, each rail of the root's host gives the root its part.

    The drawing is at the head of this file. H hosts, the smallest of C ranks, the largest of W.

    rounds <= W + 2*ceil(log2(H))
    sent <= 1
    Wins when hosts are far apart: every other host sends the array once, on C rails at once.
    """
    host, h, i = _home(rank, hosts)
    root_host, root_h, _ = _home(root, hosts)
    parts = _rooted_parts(hosts)
    for c, part in enumerate(parts):
        yield from _collect(rank, _from(host, c), part)
    if i < len(parts):
        rail = [other[i] for other in hosts]
        yield from placed(two_tree.reduce(h, len(hosts), root_h), rail, [(c,) for c in parts[i]])
    for c, part in enumerate(parts):
        if root_host[c] != root:
            yield from _spread(rank, [root_host[c], root], part)


def _collect(rank: int, members: Sequence[int], chunks: Sequence[int]) -> Steps:
    """The first of the members gets the sum of all."""
    if rank in members:
        yield from placed(direct.reduce(members.index(rank), len(members), 0), members, [chunks])


def _spread(rank: int, members: Sequence[int], chunks: Sequence[int]) -> Steps:
    """The first of the members gives to all."""
    if rank in members:
        yield from placed(direct.broadcast(members.index(rank), len(members), 0), members, [chunks])


def _home(rank: int, hosts: Hosts) -> tuple[tuple[int, ...], int, int]:
    """The ranks of a rank's host, which host it is, and which rank on it."""
    h = next(h for h, host in enumerate(hosts) if rank in host)
    return hosts[h], h, hosts[h].index(rank)


def _from(host: tuple[int, ...], first: int) -> tuple[int, ...]:
    return host[first:] + host[:first]


def _blocks(hosts: Hosts, rail: int) -> list[list[int]]:
    """For each host, the blocks that travel on a rail: its owner's, and those of every C-th rank after."""
    return [list(host[rail :: _rails(hosts)]) for host in hosts]


def _rooted_parts(hosts: Hosts) -> list[range]:
    trees = len(two_tree.TREES)
    return [range(c * trees, (c + 1) * trees) for c in range(_rails(hosts))]
