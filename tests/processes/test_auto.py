"""All ranks choose the same, whatever each of them has measured, read or been given."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from conftest import Job
from rank_process import Rank

from collectives.rules import Rule
from collectives.tuning import Tuning
from topology import presets

Ranks = Callable[..., AbstractContextManager[Job]]
SIZES = (64, 4 << 10, 256 << 10, 4 << 20)


def tell_choices(me: Rank, comm: object) -> None:
    me.say("chose", names=[comm.explain("all_reduce", nbytes=n).chosen for n in SIZES])  # type: ignore[attr-defined]


def heard_alike(job: Job) -> list[str]:
    reports = job.hear_all("chose")
    assert all(report["names"] == reports[0]["names"] for report in reports)
    return reports[0]["names"]


def tune_and_go_on(me: Rank) -> None:
    comm = me.connect()
    x = np.ones(1000, np.float32)
    assert comm.all_reduce(x)[0] == me.size
    found = comm.tune(("all_reduce", "broadcast"), sizes=(64, 64 << 10), budget_s=5)
    assert found.sizes("all_reduce") == [64, 64 << 10]
    me.say("tuned", table=found.to_json())
    tell_choices(me, comm)
    assert comm.all_reduce(x)[0] == me.size  # with what is chosen now, though the call was seen before
    for nbytes in (64, 64 << 10):
        best = min((s[nbytes], name) for name, s in found.times_s["all_reduce"].items() if nbytes in s)
        assert comm.explain("all_reduce", nbytes=nbytes).chosen == best[1]


def test_tuning_gives_every_rank_the_same_table(ranks: Ranks) -> None:
    with ranks(3, tune_and_go_on) as job:
        tables = [report["table"] for report in job.hear_all("tuned")]
        assert tables[1:] == tables[:-1]
        heard_alike(job)


def told_different_things(me: Rank, what: str) -> None:
    """Each rank has its own idea of the cluster, or of the rules: that of rank 0 counts."""
    cluster = presets.tree(
        tuple(range(me.size)), [], latency_s=1e-3 * 10**me.rank, bandwidth_bytes_per_s=1e9 / 10**me.rank
    )
    rules = [Rule("all_reduce", ("ring", "direct", "two_tree")[me.rank], 0, 1 << 20)]
    given = {"cluster": cluster} if what == "cluster" else {"rules": rules}
    comm = me.connect(**given)
    tell_choices(me, comm)
    assert comm.all_reduce(np.ones(10, np.float32))[0] == me.size
    assert comm.cluster == (presets.tree((0, 1, 2), [], latency_s=1e-3, bandwidth_bytes_per_s=1e9)
                            if what == "cluster" else comm.cluster)  # fmt: skip


@pytest.mark.parametrize("what", ["cluster", "rules"])
def test_ranks_that_are_told_different_things_go_by_rank_0(ranks: Ranks, what: str) -> None:
    with ranks(3, told_different_things, what) as job:
        names = heard_alike(job)
        if what == "rules":
            assert names[:3] == ["ring"] * 3


def split_after_use(me: Rank) -> None:
    comm = me.connect()
    comm.use(cluster=presets.hosts(2, 2, placement="round_robin"), rules=[Rule("broadcast", "ring")])
    half = comm.split(color=comm.rank // 2)
    assert half is not None
    assert half.cluster.hosts == ((0,), (1,))
    assert half.explain("broadcast", nbytes=10).chosen == "ring"
    inside, across = comm.by_host()
    assert inside.all_reduce(np.ones(3))[0] + across.all_reduce(np.ones(3))[0] == inside.size + across.size
    me.say("done")


def test_a_part_of_a_communicator_goes_by_what_the_whole_goes_by(ranks: Ranks) -> None:
    with ranks(4, split_after_use) as job:
        job.hear_all("done")


def use_later(me: Rank, path: str) -> None:
    comm = me.connect()
    x = np.ones(1 << 10, np.float32)
    comm.all_reduce(x)
    comm.use(rules=path if me.rank == 0 else None)
    tell_choices(me, comm)
    assert comm.all_reduce(x)[0] == me.size
    with pytest.raises(ValueError, match=r"rules\.json\.wrong cannot be read"):
        comm.use(rules=path + ".wrong" if me.rank == 0 else None)
    with pytest.raises(ValueError, match="has 5 ranks, but this communicator has 2"):
        comm.use(cluster=presets.ring(5))
    assert comm.all_reduce(x)[0] == me.size  # nothing is broken by a wrong file


def test_rules_from_a_file_reach_every_rank(ranks: Ranks, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([{"collective": "all_reduce", "algorithm": "ring"}]))
    with ranks(2, use_later, str(path)) as job:
        assert heard_alike(job) == ["ring"] * len(SIZES)


def remember(me: Rank, cache: str) -> None:
    import os

    import collectives as cc
    from collectives import cache as kept

    os.environ["XDG_CACHE_HOME"] = cache if me.rank == 0 else cache + "-of-nobody"
    with me.connect() as comm:
        key = kept.key_of(comm)
        if me.rank == 0:
            others = dict.fromkeys(cc.algorithms("all_reduce"), dict.fromkeys(SIZES, 1.0))
            table = Tuning({"all_reduce": {**others, "ring": dict.fromkeys(SIZES, 1e-9)}})
            kept.store(key, "tuning", json.loads(table.to_json()))
    with me.connect() as comm:  # only rank 0 has the file
        tell_choices(me, comm)
    if me.rank == 0:
        kept.store(key, "tuning", {"all_reduce": "nonsense"})
    with me.connect() as comm:
        tell_choices(me, comm)


def test_what_was_tuned_is_remembered_by_the_next_job(ranks: Ranks, tmp_path: Path) -> None:
    with ranks(2, remember, str(tmp_path / "cache")) as job:
        assert heard_alike(job) == ["ring"] * len(SIZES)
        assert heard_alike(job) != ["ring"] * len(SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"collectives": ("all_to_all",)}, "'all_to_all' cannot be tuned"),
        ({"budget_s": 0}, "budget_s=0 must be above 0"),
        ({"sizes": (0,)}, "at least 1 byte"),
    ],
)
def test_tuning_that_makes_no_sense(arguments: dict[str, object], message: str) -> None:
    import collectives as cc

    with cc.connect_threads(1)[0] as comm, pytest.raises(ValueError, match=message):
        comm.tune(**arguments)  # type: ignore[arg-type]
