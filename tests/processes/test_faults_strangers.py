"""Whoever else knocks at a rank's port while a job runs is turned away; the job does not notice."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE_S, Job
from rank_process import Rank

from transports.handshake import Dialer, Refused, Terms

Ranks = Callable[..., AbstractContextManager[Job]]

SECRET = "the secret of this job, long enough"
MORE_BYTES = 64 << 20  # what a rank's memory may grow by meanwhile

STRANGERS = {
    "nothing": b"",
    "one byte": b"\0",
    "a length of 4 GiB": b"\xff\xff\xff\xff" + b"x" * 4096,
    "a negative length": b"\x80\0\0\0",
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030100f8010000f40303") + b"\7" * 200,
    "zeros": bytes(100_000),
    "JSON of another kind": (2).to_bytes(4, "big") + b"[]",
    "JSON that nests": (4000).to_bytes(4, "big") + b"[" * 4000,
    "the header of a message": b"TRN1" + bytes(60),
}


def calls_until_told(me: Rank) -> None:
    comm = me.connect(secret=SECRET)
    comm.all_reduce(np.ones(16, np.float32))
    endpoint: Any = comm._transport._endpoint  # pyright: ignore
    terms = endpoint._terms
    me.say("listens", cards=endpoint.cards, terms=[terms.job, terms.epoch, terms.size])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stop = has_heard_stop(me) if me.rank == 0 else None
    wrong, calls = 0, 0
    over = np.zeros(1, np.int64)
    while not over[0] or calls < 20:
        calls += 1
        wrong += comm.all_reduce(np.full(1000, calls, np.float32))[0] != calls * me.size
        over[0] = stop is not None and stop()
        comm.broadcast(over, out=over)
    again = comm.split(color=0)  # new connections: the ranks find each other in the crowd
    assert again is not None
    wrong += again.all_reduce(np.ones(1, np.float32))[0] != me.size
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    me.say("over", calls=calls, wrong=int(wrong), grown=grown, refused=endpoint.refused)


def has_heard_stop(me: Rank) -> Callable[[], bool]:
    """Tells whether the test has said `stop`, without waiting for it."""
    heard = threading.Event()

    def listen() -> None:
        me.wait_for("stop")
        heard.set()

    thread = threading.Thread(target=listen)
    thread.start()

    def asked() -> bool:
        if heard.is_set():
            thread.join()
        return heard.is_set()

    return asked


@contextlib.contextmanager
def busy_job(ranks: Ranks, **options: Any) -> Iterator[tuple[Job, list[dict[str, Any]], Terms]]:
    """A job that calls all the time; at the end of the block it is stopped, and must have done all calls right."""
    with ranks(3, calls_until_told, **options) as job:
        told = job.hear_all("listens")[0]
        yield job, told["cards"], Terms(*told["terms"])
        job.tell("stop", 0)
        for report in job.hear_all("over"):
            assert report["wrong"] == 0
            assert report["grown"] < MORE_BYTES, report


def addresses(card: dict[str, Any]) -> list[tuple[int, Any]]:
    ways: list[tuple[int, Any]] = [(socket.AF_UNIX, "\0" + card["unix"][1:])]
    if card["tcp"] is not None:
        ways.append((socket.AF_INET, tuple(card["tcp"])))
    return ways


def knock(way: tuple[int, Any]) -> socket.socket | None:
    sock = socket.socket(way[0], socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    try:
        sock.connect(way[1])
    except OSError as error:
        sock.close()
        if error.errno in (errno.EAGAIN, errno.ECONNREFUSED):  # the queue is full of strangers
            return None
        raise
    return sock


def hears_the_end(sock: socket.socket) -> None:
    """Returns once the other side has hung up; whatever it says before is of no use to a stranger."""
    heard = 0
    with sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while data := sock.recv(1 << 16):
            heard += len(data)
    assert heard < 4096


@pytest.mark.parametrize("transport", ["auto", "tcp"])
@pytest.mark.parametrize("text", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_turned_away(ranks: Ranks, text: bytes, transport: str) -> None:
    with busy_job(ranks, transport=transport) as (_, cards, _):
        socks = [knock(way) for card in cards for way in addresses(card)]
        for sock in socks:
            assert sock is not None
            with contextlib.suppress(OSError):  # it may be turned away before it has said all
                sock.sendall(text)
                if text:
                    sock.shutdown(socket.SHUT_WR)
        for sock in socks:
            assert sock is not None
            hears_the_end(sock)


def test_a_crowd_of_strangers(ranks: Ranks) -> None:
    with busy_job(ranks, transport="tcp") as (_, cards, _):
        crowd: list[socket.socket] = []
        for i in range(300):
            for card in cards:
                sock = knock(addresses(card)[i % 2])
                if sock is None:
                    continue
                crowd.append(sock)
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(list(STRANGERS.values())[i % len(STRANGERS)][:1000])
        for sock in crowd:
            sock.close()


def talk(sock: socket.socket, dialer: Dialer) -> None:
    while dialer.wanted:
        data = sock.recv(dialer.wanted)
        assert data, "it hung up without a word"
        answer = dialer.feed(data)
        if answer:
            sock.sendall(answer)


@pytest.mark.parametrize("secret", ["", "another secret, also long enough"])
def test_a_wrong_secret(ranks: Ranks, secret: str) -> None:
    """It knows everything about the job but the secret, and claims to be rank 1."""
    with busy_job(ranks) as (_, cards, terms):
        for way in addresses(cards[0]):
            sock = knock(way)
            assert sock is not None
            dialer = Dialer(secret.encode(), terms, 1, 0, {"comm": "world", "kind": "control"}, 0)
            sock.sendall(dialer.start())
            with pytest.raises(Refused, match="secret"):
                talk(sock, dialer)
            assert not dialer.proved
            sock.close()
