"""Plans and their registry; a user's own plan is written, proved and used by name."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest

import collectives.algorithms  # noqa: F401  (registers them)
from collectives.plan import (
    COLLECTIVES,
    Copy,
    Hosts,
    Plan,
    Recv,
    RecvReduce,
    Reduce,
    Send,
    Step,
    algorithm,
    algorithms,
    find,
    plan,
    unregister,
)
from collectives.verify import PlanError, verify


@pytest.fixture
def star() -> Iterator[str]:
    """A user's plan: a designated rank adds everything up and hands it out."""

    @algorithm("all_reduce", "star")
    def star(rank: int, size: int) -> Iterator[Step]:
        """Everything through rank 0."""
        if rank == 0:
            for peer in range(1, size):
                yield RecvReduce(peer, 0)
            for peer in range(1, size):
                yield Send(peer, 0)
        else:
            yield Send(0, 0)
            yield Recv(0, 0)

    yield "star"
    unregister("all_reduce", "star")


def test_a_users_plan_is_proved_and_found_by_name(star: str) -> None:
    assert star in algorithms("all_reduce")
    assert not plan("all_reduce", star, 5).builtin
    proof = verify(plan("all_reduce", star, 5))
    assert (proof.rounds, proof.sent) == (5, Fraction(4))
    assert proof.links[0, 3] == proof.links[3, 0] == 1


def test_a_users_plan_can_be_forgotten_and_replaced() -> None:
    def silent(rank: int, size: int) -> Iterator[Step]:
        yield from ()

    algorithm("barrier", "mine")(silent)
    assert plan("barrier", "mine", 1).steps(0) == ()
    with pytest.raises(PlanError):
        verify(plan("barrier", "mine", 2))
    unregister("barrier", "mine")
    with pytest.raises(ValueError, match="barrier has no algorithm 'mine'; there are: dissemination"):
        plan("barrier", "mine", 1)


def test_the_librarys_own_are_marked(star: str) -> None:
    assert [name for name in algorithms("all_reduce") if not find("all_reduce", name).builtin] == [star]


def test_the_library_has_what_it_names() -> None:
    expected = {
        "all_reduce": {
            "direct",
            "one_shot",
            "ring",
            "recursive_doubling",
            "halving_doubling",
            "binomial",
            "two_tree",
            "torus",
            "hierarchical",
        },
        "reduce_scatter": {
            "direct",
            "direct_canonical",
            "ring",
            "halving_canonical",
            "halving",
            "binomial",
            "torus",
            "hierarchical",
        },
        "all_gather": {"direct", "ring", "doubling", "circulant", "torus", "hierarchical"},
        "broadcast": {"direct", "ring", "binomial", "two_tree", "scatter_all_gather", "circulant", "hierarchical"},
        "reduce": {"direct", "ring", "binomial", "two_tree", "hierarchical"},
        "gather": {"direct"},
        "scatter": {"direct"},
        "all_to_all": {"direct"},
        "barrier": {"dissemination"},
        "scan": {"recursive_doubling", "two_tree"},
        "exscan": {"recursive_doubling", "two_tree"},
    }
    assert {c: {n for n in algorithms(c) if find(c, n).builtin} for c in COLLECTIVES} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("all_reduced", "ring", 4), "there is no collective 'all_reduced'; there are: all_reduce, "),
        (("all_reduce", "rings", 4), "all_reduce has no algorithm 'rings'; there are: direct, one_shot, ring, "),
        (("all_reduce", "ring", 0), "at least one rank, not 0"),
        (("broadcast", "ring", 4, 4), "root 4 is not a rank of 4"),
        (("all_reduce", "ring", 4, 1), "all_reduce has no root, but root=1 was given"),
        (("all_reduce", "hierarchical", 3, 0, ((0, 1), (1, 2))), r"hosts .* each rank of range\(3\) exactly once"),
        (("all_reduce", "hierarchical", 2, 0, ((0, 1), ())), "a group of hosts is empty"),
        (("all_reduce", "hierarchical", 3, 0, ((0, 1), 2)), "holds ranks and groups"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(given: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*given)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="all_reduce already has an algorithm 'ring'"):
        algorithm("all_reduce", "ring")


def test_a_generator_must_take_rank_and_size() -> None:
    def greedy(rank: int, size: int, bytes: int) -> Iterator[Step]:
        yield from ()

    def forgetful(size: int) -> Iterator[Step]:
        yield from ()

    with pytest.raises(ValueError, match=r"\['bytes'\] are not among those provided"):
        algorithm("all_reduce", "greedy")(greedy)
    with pytest.raises(ValueError, match="forgetful must take"):
        algorithm("all_reduce", "forgetful")(forgetful)
    assert not {"greedy", "forgetful"} & set(algorithms("all_reduce"))


def test_chunks_and_lanes_may_depend_on_size_and_hosts() -> None:
    def silent(rank: int, size: int) -> Iterator[Step]:
        yield from ()

    def chunks(size: int, hosts: Hosts) -> int:
        return size * len(hosts)

    algorithm("all_reduce", "mine", chunks=chunks, lanes=lambda size: size - 1)(silent)
    try:
        mine = Plan("all_reduce", "mine", 3)
        assert (mine.chunks, mine.lanes) == (3, 2)
        with pytest.raises(ValueError, match="asks for 0 lanes"):
            Plan("all_reduce", "mine", 1)
    finally:
        unregister("all_reduce", "mine")


def test_hosts_are_kept_only_by_algorithms_that_look_at_them() -> None:
    hosts = ((0, 1), (2, 3))
    assert plan("all_reduce", "ring", 4, 0, hosts).hosts is None
    assert plan("all_reduce", "hierarchical", 4, 0, hosts).hosts == hosts


def test_steps_are_generated_for_the_rank_asked_for_and_kept() -> None:
    asked: list[int] = []

    def noted(rank: int, size: int) -> Iterator[Step]:
        asked.append(rank)
        yield from ()

    algorithm("barrier", "noted")(noted)
    try:
        noted_plan = Plan("barrier", "noted", 9)
        noted_plan.steps(4)
        noted_plan.steps(4)
        assert asked == [4]
        with pytest.raises(ValueError, match="rank 9 is not one of 9"):
            noted_plan.steps(9)
    finally:
        unregister("barrier", "noted")


def test_equal_requests_share_a_plan() -> None:
    assert plan("all_reduce", "ring", 4) is plan("all_reduce", "ring", 4)


@pytest.mark.parametrize(
    ("collective", "name", "inputs", "outputs"),
    [
        ("all_reduce", "ring", range(6), range(6)),
        ("reduce_scatter", "ring", range(3), range(1, 2)),
        ("all_gather", "ring", range(1, 2), range(3)),
        ("broadcast", "two_tree", range(0), range(2)),
        ("reduce", "two_tree", range(2), range(0)),
        ("gather", "direct", range(1, 2), range(0)),
        ("scatter", "direct", range(0), range(1, 2)),
        ("all_to_all", "direct", range(3), range(3, 6)),
        ("barrier", "dissemination", range(1), range(1)),
        ("scan", "two_tree", range(2), range(2)),
        ("exscan", "two_tree", range(2), range(2)),
    ],
)
def test_where_inputs_and_outputs_are(collective: str, name: str, inputs: range, outputs: range) -> None:
    root = 2 if COLLECTIVES[collective].rooted else 0
    seen = Plan(collective, name, 3, root)
    assert seen.input_chunks(1) == inputs
    assert seen.output_chunks(1) == outputs


def test_a_plan_and_its_steps_say_what_they_are() -> None:
    assert repr(Plan("broadcast", "ring", 3, 2)) == "Plan(broadcast, ring, size=3, root=2)"
    assert repr(Send(1, 4)) == "Send(peer=1, chunk=4, count=1, lane=0)"
    assert (Copy(0, 1).count, Reduce(0, 1).target_first, RecvReduce(0, 0).local_first) == (1, True, True)
