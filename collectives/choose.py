"""Which algorithm "auto" is: a small table by collective, size of the array, number of ranks, and what links them.

Small arrays want few rounds, large ones few bytes over each link. Where that turns was measured on one machine, with as
many ranks as cores and with four times as many: in shared memory a round costs little and a peer more costs nothing, so
everybody talks to everybody; on TCP each message costs a system call on both sides.
"""

from __future__ import annotations

from functools import lru_cache

from collectives.plan import Hosts

__all__ = ["choose"]

_Table = dict[str, tuple[tuple[float, str], ...]]  # up to how many bytes of the whole array which algorithm
_ANY = float("inf")
_KIB = 1 << 10

_SHARED_MEMORY: _Table = {
    "all_reduce": ((8 * _KIB, "one_shot"), (32 * _KIB, "recursive_doubling"), (_ANY, "two_tree")),
    "reduce_scatter": ((_ANY, "direct"),),
    "all_gather": ((_ANY, "direct"),),
    "broadcast": ((64 * _KIB, "binomial"), (_ANY, "two_tree")),
    "reduce": ((64 * _KIB, "binomial"), (_ANY, "direct")),
    "scan": ((128 * _KIB, "recursive_doubling"), (_ANY, "two_tree")),
    "exscan": ((128 * _KIB, "recursive_doubling"), (_ANY, "two_tree")),
}
_NETWORK: _Table = {
    "all_reduce": ((32 * _KIB, "recursive_doubling"), (128 * _KIB, "two_tree"), (_ANY, "halving_doubling")),
    "reduce_scatter": ((64 * _KIB, "halving"), (_ANY, "ring")),
    "all_gather": ((64 * _KIB, "doubling"), (_ANY, "ring")),
    "broadcast": ((64 * _KIB, "binomial"), (_ANY, "two_tree")),
    "reduce": ((64 * _KIB, "binomial"), (_ANY, "two_tree")),
    "scan": ((64 * _KIB, "recursive_doubling"), (_ANY, "two_tree")),
    "exscan": ((64 * _KIB, "recursive_doubling"), (_ANY, "two_tree")),
}
_SHARED_MEMORY_CANONICAL: _Table = {
    "all_reduce": ((8 * _KIB, "one_shot"), (32 * _KIB, "recursive_doubling"), (_ANY, "binomial")),
    "reduce_scatter": ((_ANY, "direct_canonical"),),
    "reduce": ((_ANY, "binomial"),),
    "scan": ((_ANY, "recursive_doubling"),),
    "exscan": ((_ANY, "recursive_doubling"),),
}
_NETWORK_CANONICAL: _Table = {
    "all_reduce": ((32 * _KIB, "recursive_doubling"), (_ANY, "halving_doubling")),
    "reduce_scatter": ((_ANY, "halving_canonical"),),
    "reduce": ((_ANY, "binomial"),),
    "scan": ((_ANY, "recursive_doubling"),),
    "exscan": ((_ANY, "recursive_doubling"),),
}
_MANY_RANKS = 16  # from here on a link to everybody costs more memory and time than it saves, in shared memory too
_ONLY = {"gather": "direct", "scatter": "direct", "all_to_all": "direct", "barrier": "dissemination"}


@lru_cache(maxsize=4096)
def choose(
    collective: str, nbytes: int, size: int, hosts: Hosts, shared_memory: bool = True, *, reproducible: bool = False
) -> str:
    """The name of the algorithm for an array of `nbytes` in all, among `size` ranks on these hosts.

    `shared_memory`: whether ranks on one host are linked by it. `reproducible`: only among those that combine in the
    canonical order. The same on every rank, as all inputs are.
    """
    near = shared_memory and len(hosts) == 1 and size < _MANY_RANKS
    if reproducible:
        table = _SHARED_MEMORY_CANONICAL if near else _NETWORK_CANONICAL
        return next(name for limit, name in table[collective] if nbytes <= limit)
    if collective in _ONLY:
        return _ONLY[collective]
    if 1 < len(hosts) < size and collective not in ("scan", "exscan"):
        return "hierarchical"
    table = _SHARED_MEMORY if near else _NETWORK
    return next(name for limit, name in table[collective] if nbytes <= limit)
