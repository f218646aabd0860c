"""Messages by rank and tag (mailbox.hpp): many under way, posted in any order, small and large, by several threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, Job
from rank_process import Rank

import collectives as cc

Ranks = Callable[..., AbstractContextManager[Job]]
both_transports = pytest.mark.parametrize("transport", ["shm", "tcp"])
TURNS = 5
# Empty, small, either side of what is sent at once (32 KiB), and in several chunks of a mebibyte.
SIZES = (0, 1, 100, 8192, 8193, 70_000, 600_000)


def contents(source: int, to: int, tag: int, size: int) -> np.ndarray[Any, Any]:
    return np.arange(size, dtype=np.float32) + 1000 * source + 100 * to + tag


def all_to_all_by_tags(me: Rank) -> None:
    with me.connect() as comm:
        peers = [peer for peer in range(me.size) if peer != me.rank]
        mine = [(peer, tag) for peer in peers for tag in range(len(SIZES))]
        theirs = list(mine)
        random.Random(me.rank).shuffle(mine)
        random.Random(9 - me.rank).shuffle(theirs)
        sent = [(contents(me.rank, peer, tag, SIZES[tag]), peer, tag) for peer, tag in mine]
        outs = [(np.empty(SIZES[tag], np.float32), peer, tag) for peer, tag in theirs]
        posted: list[Any] = []

        def post(arrays: list[Any], sends: bool) -> None:
            posted.extend([comm.post(x, sends=sends, peer=peer, tag=tag) for x, peer, tag in arrays])

        threads = [threading.Thread(target=post, args=order) for order in ((sent, True), (outs, False))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(message.wait(PATIENCE_S) for message in posted)
        for out, peer, tag in outs:
            np.testing.assert_array_equal(out, contents(peer, me.rank, tag, SIZES[tag]))
        me.say("received")
        me.wait_for("leave")
        me.say("left")


@both_transports
def test_many_messages_under_way(ranks: Ranks, transport: str) -> None:
    with ranks(3, all_to_all_by_tags, transport=transport) as job:
        job.hear_all("received")
        job.tell("leave")
        job.hear_all("left")


def any_source(me: Rank) -> None:
    with me.connect() as comm:
        if me.rank:
            for turn in range(20):
                message = np.full(SIZES[turn % len(SIZES)] + 1, 100 * me.rank + turn, np.int32)
                assert comm.post(message, sends=True, peer=0, tag=turn % len(SIZES)).wait(PATIENCE_S)
        else:
            last = {peer: [-1] * len(SIZES) for peer in range(1, me.size)}
            for turn in range(20):
                for _ in range(1, me.size):
                    tag = turn % len(SIZES)
                    out = np.empty(SIZES[tag] + 1, np.int32)
                    message = comm.post(out, sends=False, peer=-1, tag=tag)
                    assert message.wait(PATIENCE_S)
                    source, number = divmod(int(out[0]), 100)
                    assert source == message.source
                    assert number % len(SIZES) == tag
                    assert number > last[source][tag]  # in the order in which they were sent
                    last[source][tag] = number
        me.say("received")
        me.wait_for("leave")
        me.say("left")


@both_transports
def test_from_any_rank(ranks: Ranks, transport: str) -> None:
    with ranks(3, any_source, transport=transport) as job:
        job.hear_all("received")
        job.tell("leave")
        job.hear_all("left")


def closed_under_way(me: Rank, stores: str) -> None:
    for turn in range(TURNS):
        comm = me.connect(store=f"{stores}/{turn}")
        peer = 1 - me.rank
        large = np.zeros(1 << 20, np.float32)
        messages = [
            comm.post(large, sends=True, peer=peer, tag=1), comm.post(large.copy(), sends=False, peer=peer, tag=2),
            comm.post(large[:5].copy(), sends=False, peer=-1, tag=3),
        ]  # fmt: skip
        failed: list[str] = []

        def await_failure(message: Any, failed: list[str] = failed) -> None:
            with pytest.raises(cc.CollectiveError):
                message.wait(PATIENCE_S)
            failed.append("told")

        threads = [threading.Thread(target=await_failure, args=(message,)) for message in messages]
        for thread in threads:
            thread.start()
        me.say("posted")
        me.wait_for("close")
        comm.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(failed) == len(messages)


@both_transports
def test_closing_ends_what_is_under_way(ranks: Ranks, transport: str, tmp_path: Path) -> None:
    with ranks(2, closed_under_way, str(tmp_path), transport=transport) as job:
        for _ in range(TURNS):
            job.hear_all("posted")
            job.tell("close")
