"""Which algorithm "auto" is: a small table by collective, size of the array, ranks and hosts.

The limits were measured on shared memory with as many ranks as cores and more. A plan moves each byte over the slowest
resource as seldom as it can once arrays are large, and takes few rounds when they are small; where that turns depends
on the number of ranks.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["choose"]

_FOREVER = float("inf")

# Up to how many bytes of the whole array which algorithm is best on one host.
_ONE_HOST: dict[str, tuple[tuple[float, str], ...]] = {
    "all_reduce": ((16 << 10, "one_shot"), (_FOREVER, "direct")),
    "reduce_scatter": ((_FOREVER, "direct"),),
    "all_gather": ((_FOREVER, "direct"),),
    "broadcast": ((_FOREVER, "binomial"),),
    "reduce": ((_FOREVER, "binomial"),),
}
# Where every rank is linked to every other by many ranks, few neighbours and few rounds win.
_MANY_RANKS = 16
_MANY: dict[str, tuple[tuple[float, str], ...]] = {
    "all_reduce": ((16 << 10, "recursive_doubling"), (256 << 10, "halving_doubling"), (_FOREVER, "ring")),
    "reduce_scatter": ((64 << 10, "halving"), (_FOREVER, "ring")),
    "all_gather": ((64 << 10, "doubling"), (_FOREVER, "ring")),
    "broadcast": ((32 << 10, "binomial"), (_FOREVER, "two_tree")),
    "reduce": ((32 << 10, "binomial"), (_FOREVER, "two_tree")),
}
_ONLY = {"gather": "direct", "scatter": "direct", "all_to_all": "direct", "barrier": "dissemination"}


@lru_cache(maxsize=4096)
def choose(collective: str, nbytes: int, size: int, hosts: tuple[tuple[int, ...], ...]) -> str:
    """The name of the algorithm for an array of `nbytes` in all. The same on every rank, as all inputs are."""
    if collective in _ONLY:
        return _ONLY[collective]
    if 1 < len(hosts) < size:
        return "hierarchical"
    table = _ONE_HOST if size < _MANY_RANKS else _MANY
    return next(name for limit, name in table[collective] if nbytes <= limit)
