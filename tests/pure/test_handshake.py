"""The handshake lets the ranks of one job in and nobody else, whatever bytes arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports.errors import WireError
from transports.handshake import (
    MAX_FDS,
    MAX_HELLO_BYTES,
    MAX_MESSAGE_BYTES,
    Acceptor,
    Dialer,
    Refused,
    Terms,
    acknowledgement,
    refusal,
)

SECRET = b"0123456789abcdef"
TERMS = Terms(job="job", epoch="epoch", size=4)


def feed(side: Acceptor | Dialer, data: bytes) -> bytes:
    """Gives a side as much of `data` as it wants, piece by piece; returns all that it answers."""
    answer = b""
    while data and side.wanted:
        piece, data = data[: side.wanted], data[side.wanted :]
        answer += side.feed(piece)
    return answer


def frame(message: Any) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def dialer(
    *, secret: bytes = SECRET, terms: Terms = TERMS, hello: dict[str, Any] | None = None, fds: int = 0
) -> Dialer:
    return Dialer(secret, terms, rank=1, peer=2, hello=hello or {"comm": "world"}, fds=fds)


def acceptor(*, secret: bytes = SECRET, terms: Terms = TERMS, rank: int = 2) -> Acceptor:
    return Acceptor(secret, terms, rank)


def test_two_ranks_of_one_job_let_each_other_in() -> None:
    a, b = dialer(hello={"comm": "world", "lane": 3, "text": 'ä"\\'}, fds=2), acceptor()
    proof = feed(a, feed(b, a.start()))
    assert b.peer is None
    answer = feed(b, proof)
    assert (b.peer, b.hello, b.fds, b.wanted) == (1, {"comm": "world", "lane": 3, "text": 'ä"\\'}, 2, 0)
    feed(a, answer)
    assert a.proved
    feed(a, acknowledgement())
    assert a.wanted == 0


def test_an_error_instead_of_the_acknowledgement_reaches_the_dialer() -> None:
    a, b = dialer(), acceptor()
    feed(a, feed(b, feed(a, feed(b, a.start()))))
    with pytest.raises(WireError, match="too many lanes"):
        feed(a, acknowledgement("too many lanes"))


def test_a_side_never_wants_more_than_the_message_at_hand() -> None:
    b = acceptor()
    opening = dialer().start()
    asked = 0
    while b.wanted and asked < len(opening):
        take = b.wanted
        assert asked + take <= len(opening)
        b.feed(opening[asked : asked + take])
        asked += take
    assert asked == len(opening)


def test_wrong_secret_is_refused_by_both() -> None:
    a, b = dialer(secret=b"another secret of this length"), acceptor()
    proof = feed(a, feed(b, a.start()))
    with pytest.raises(Refused, match="proof"):
        feed(b, proof)
    assert b.peer is None


def test_an_acceptor_without_the_secret_is_refused() -> None:
    a = dialer()
    b = acceptor(secret=b"another secret of this length")
    challenge = feed(b, a.start())
    feed(a, challenge)
    with pytest.raises(Refused, match="could not prove"):
        feed(a, frame({"proof": "0" * 64}))
    assert not a.proved


@pytest.mark.parametrize(
    "reply", [{}, {"proof": None}, {"proof": "ä"}, {"proof": 1}, {"proof": "\ud800"}, {"ok": True}]
)
def test_a_fake_server_cannot_skip_its_proof(reply: dict[str, Any]) -> None:
    a = dialer()
    feed(a, feed(acceptor(), a.start()))
    with pytest.raises(Refused):
        feed(a, frame(reply))
    assert not a.proved


def test_a_recorded_handshake_cannot_be_replayed() -> None:
    a, b = dialer(), acceptor()
    opening = a.start()
    proof = feed(a, feed(b, opening))
    feed(b, proof)
    assert b.peer == 1
    again = acceptor()
    feed(again, opening)
    with pytest.raises(Refused, match="proof"):
        feed(again, proof)


def test_a_recorded_server_cannot_be_replayed() -> None:
    a, b = dialer(), acceptor()
    challenge = feed(b, a.start())
    answer = feed(b, feed(a, challenge))
    later = dialer()
    feed(later, challenge)
    with pytest.raises(Refused, match="could not prove"):
        feed(later, answer)


def test_a_proof_cannot_be_reflected() -> None:
    """Somebody without the secret mirrors what the dialer itself says."""
    a = dialer()
    opening = json.loads(a.start()[4:])
    proof = json.loads(feed(a, frame({"nonce": opening["nonce"]}))[4:])["proof"]
    with pytest.raises(Refused):
        feed(a, frame({"proof": proof}))


def test_a_reflected_opening_is_refused() -> None:
    """The rank that is dialled is told about a connection to the dialer: it is not meant."""
    with pytest.raises(Refused, match="to differs"):
        feed(acceptor(rank=1), dialer().start())


@pytest.mark.parametrize(
    ("terms", "what"),
    [
        (Terms("other", "epoch", 4), "job"),
        (Terms("job", "earlier", 4), "epoch"),
        (Terms("job", "epoch", 5), "size"),
    ],
)
def test_another_job_epoch_or_size_is_refused(terms: Terms, what: str) -> None:
    with pytest.raises(Refused, match=what):
        feed(acceptor(), dialer(terms=terms).start())


@pytest.mark.parametrize("change", ["job", "epoch", "size", "to", "from", "nonce", "treering"])
@pytest.mark.parametrize("value", [None, True, -1, 2, 99, "", "x", [], 1.0, "\ud800", 10**300])
def test_every_field_of_the_opening_is_checked(change: str, value: object) -> None:
    message = json.loads(dialer().start()[4:])
    if change == "to" and value == 2:
        value = 3
    message[change] = value
    b = acceptor()
    with pytest.raises(Refused):
        feed(b, frame(message))
    assert b.peer is None


def test_the_proof_covers_who_speaks() -> None:
    """A rank that knows no secret alters the ranks in a true rank's opening on its way."""
    a, b = dialer(), acceptor()
    message = json.loads(a.start()[4:])
    message["from"] = 3
    proof = feed(a, feed(b, frame(message)))
    with pytest.raises(Refused, match="proof"):
        feed(b, proof)


@pytest.mark.parametrize("field", ["hello", "fds"])
def test_the_proof_covers_the_hello(field: str) -> None:
    a, b = dialer(fds=1), acceptor()
    message = json.loads(feed(a, feed(b, a.start()))[4:])
    message[field] = {"comm": "another"} if field == "hello" else 2
    with pytest.raises(Refused, match="proof"):
        feed(b, frame(message))


@pytest.mark.parametrize("length", [0, 1, MAX_MESSAGE_BYTES + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("make", [dialer, acceptor])
def test_a_length_outside_the_bounds_is_refused_before_the_message(make: Any, length: int) -> None:
    side = make()
    with pytest.raises(Refused, match=f"{length} bytes"):
        side.feed(length.to_bytes(4, "big"))


def test_a_cut_off_message_gives_nothing() -> None:
    a, b = dialer(), acceptor()
    opening = a.start()
    assert feed(b, opening[:-1]) == b""
    assert b.wanted == 1
    proof = feed(a, feed(b, opening[-1:]))
    assert feed(b, proof[:-1]) == b""
    assert b.peer is None


def test_a_hello_may_have_4_kib_and_no_more() -> None:
    fill = MAX_HELLO_BYTES - len('{"comm":""}')
    a, b = dialer(hello={"comm": '"' * (fill // 2)}), acceptor()
    feed(b, feed(a, feed(b, a.start())))
    assert b.hello == {"comm": '"' * (fill // 2)}
    with pytest.raises(ValueError, match="4096"):
        dialer(hello={"comm": "x" * (fill + 1)})
    with pytest.raises(ValueError, match="descriptors"):
        dialer(fds=MAX_FDS + 1)


def test_a_refusal_is_one_printable_line() -> None:
    with pytest.raises(Refused) as caught:
        feed(dialer(), refusal("bad\n\x1b[31m\u202e" + "x" * 10_000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_without_a_secret_jobs_are_still_kept_apart() -> None:
    a, b = dialer(secret=b""), acceptor(secret=b"")
    feed(b, feed(a, feed(b, a.start())))
    assert b.peer == 1
    with pytest.raises(Refused):
        feed(acceptor(secret=b""), dialer(secret=b"", terms=Terms("other", "epoch", 4)).start())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["treering", "job", "epoch", "size", "from", "to", "nonce", "proof", "hello", "fds", "ok", "error"]
)
MESSAGES = st.binary(max_size=64) | JSON | st.dictionaries(KEYS, JSON)
DEEP = st.sampled_from([b"[" * 4000, b'{"a":' * 900, b"1" * 4500, b"\xff" * 10])


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES | DEEP, max_size=4), st.booleans())
def test_no_bytes_get_in_or_break_it(messages: list[object], after_the_opening: bool) -> None:
    b = acceptor()
    if after_the_opening:
        feed(b, dialer().start())
    try:
        for message in messages:
            feed(b, frame(message))
    except Refused:
        pass
    assert b.peer is None


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES | DEEP, max_size=4), st.booleans())
def test_no_bytes_convince_a_dialer(messages: list[object], after_the_challenge: bool) -> None:
    a = dialer()
    if after_the_challenge:
        feed(a, feed(acceptor(), a.start()))
    try:
        for message in messages:
            feed(a, frame(message))
    except Refused:
        pass
    assert not a.proved


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_changed_byte_is_noticed(data: st.DataObject) -> None:
    """A bit flipped anywhere in the four messages of the proof: one side refuses, or waits for ever."""
    where = data.draw(st.integers(0, 3))
    a, b = dialer(), acceptor()

    def meddle(number: int, message: bytes) -> bytes:
        if number != where or not message:
            return message
        at = data.draw(st.integers(0, len(message) - 1))
        return message[:at] + bytes([message[at] ^ 1 << data.draw(st.integers(0, 7))]) + message[at + 1 :]

    try:
        answer = feed(b, meddle(2, feed(a, meddle(1, feed(b, meddle(0, a.start()))))))
        feed(a, meddle(3, answer))
    except Refused:
        return
    assert not (b.peer is not None and a.proved)
