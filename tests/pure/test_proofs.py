"""Every algorithm is right for every size from 1 to 64 and every root, and costs what its docstring says."""

from __future__ import annotations

import sys

import pytest
from formulas import formulas, names

import collectives.algorithms  # noqa: F401  (registers them)
from collectives.plan import COLLECTIVES, Hosts, Plan, algorithms, find
from collectives.verify import Proof, verify

ALL = [
    (collective, name)
    for collective in COLLECTIVES
    for name in algorithms(collective)
    if find(collective, name).builtin
]
FLAT = [case for case in ALL if case[1] != "hierarchical"]
OVER_HOSTS = [case for case in ALL if case[1] == "hierarchical"]


def assert_costs(proof: Proof, hosts: Hosts) -> None:
    plan = proof.plan
    for formula in formulas(find(plan.collective, plan.algorithm)):
        found = getattr(proof, formula.quantity)
        values = names(plan.size, hosts)
        relation = "" if formula.exact else "at most "
        assert formula.holds(found, values), (
            f"{plan}: {formula.quantity} is {found}, the docstring says {relation}{formula.source} = "
            f"{formula.value(values)}"
        )


def roots(collective: str, size: int) -> range:
    return range(size) if COLLECTIVES[collective].rooted else range(1)


def sizes(name: str) -> list[int]:
    """1 to 64; fewer where a plan has many messages, with primes, cubes and boxes among them."""
    return [*range(1, 25), 27, 31, 32, 36, 47, 60, 64] if name == "torus" else [*range(1, 65)]


@pytest.mark.parametrize(("collective", "name"), FLAT)
def test_every_size_and_root_is_proved(collective: str, name: str) -> None:
    for size in sizes(name):
        for root in roots(collective, size):
            assert_costs(verify(Plan(collective, name, size, root)), (tuple(range(size)),))


def consecutive(sizes: list[int]) -> Hosts:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(tuple(range(start, start + count)) for start, count in zip(starts, sizes, strict=True))


def partitions(size: int) -> set[Hosts]:
    """Even and uneven hosts, hosts of one rank, growing hosts, and ranks dealt out in turn."""
    growing: list[int] = []
    while sum(growing) < size:
        growing.append(min(len(growing) + 1, size - sum(growing)))
    sizes = [[each] * (size // each) for each in range(1, size + 1) if size % each == 0]
    sizes += [growing, growing[::-1], [1, size - 1], [size - 1, 1], [size // 3, size - size // 3]]
    dealt = [tuple(tuple(range(h, size, count)) for h in range(count)) for count in range(2, min(size, 6))]
    return {consecutive(s) for s in sizes if all(s)} | set(dealt)


@pytest.mark.parametrize(("collective", "name"), OVER_HOSTS)
@pytest.mark.parametrize("size", [*range(1, 18), 20, 24, 31, 33, 48, 64])
def test_every_shape_of_hosts_is_proved(collective: str, name: str, size: int) -> None:
    for hosts in partitions(size):
        every = roots(collective, size)
        some = every if size <= 12 else {0, 1, size // 2, size - 1} & {*every}
        for root in some:
            assert_costs(verify(Plan(collective, name, size, root, hosts)), hosts)


@pytest.mark.parametrize(("collective", "name"), ALL)
def test_every_docstring_states_rounds_and_bytes(collective: str, name: str) -> None:
    stated = [formula.quantity for formula in formulas(find(collective, name))]
    assert stated == ["rounds", "sent"]
    generate = find(collective, name).generate
    assert "Source:" in (generate.__doc__ or "") + (sys.modules[generate.__module__].__doc__ or "")


CANONICAL = {
    ("all_reduce", "one_shot"): range(1, 65),
    ("all_reduce", "recursive_doubling"): range(1, 65),
    ("all_reduce", "binomial"): range(1, 65),
    ("all_reduce", "halving_doubling"): range(1, 65),
    ("reduce", "binomial"): range(1, 65),
    ("scan", "recursive_doubling"): range(1, 65),
    ("exscan", "recursive_doubling"): range(1, 65),
    ("reduce_scatter", "direct_canonical"): range(1, 65),
    ("reduce_scatter", "binomial"): range(1, 65),
    ("reduce_scatter", "halving_canonical"): range(1, 65),
}


@pytest.mark.parametrize(("case", "sizes"), CANONICAL.items())
def test_canonical_order_is_found_where_it_is_promised(case: tuple[str, str], sizes: range) -> None:
    for size in sizes:
        for root in {0, size // 2, size - 1} if COLLECTIVES[case[0]].rooted else {0}:
            assert verify(Plan(*case, size, root)).order == "canonical"


@pytest.mark.parametrize(
    "case", [("all_reduce", "ring"), ("all_reduce", "two_tree"), ("reduce", "ring"), ("scan", "two_tree")]
)
def test_other_orders_are_not_called_canonical(case: tuple[str, str]) -> None:
    assert verify(Plan(*case, 8)).order == "fixed"


def test_a_two_tree_rank_has_at_most_four_neighbours() -> None:
    for size in range(1, 65):
        links = verify(Plan("all_reduce", "two_tree", size)).links
        for rank in range(size):
            assert len({peer for pair in links if rank in pair for peer in pair} - {rank}) <= 4


def test_links_add_up_to_what_ranks_send() -> None:
    proof = verify(Plan("all_reduce", "hierarchical", 7, 0, ((0, 1, 2), (3, 4), (5, 6))))
    for rank, sent in enumerate(proof.sent_by_rank):
        assert sent == sum(share for (source, _), share in proof.links.items() if source == rank)
    assert proof.sent == max(proof.sent_by_rank)


def test_one_rank_of_many_is_generated_alone() -> None:
    """At run time a process asks for its own steps only; the steps of a tree or an exchange stay few."""
    for collective, name in [
        ("all_reduce", "two_tree"),
        ("all_reduce", "halving_doubling"),
        ("broadcast", "binomial"),
    ]:
        assert len(Plan(collective, name, 65536).steps(40000)) < 80
