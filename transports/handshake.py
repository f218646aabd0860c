"""Two ranks prove to each other that they belong to the same job, before anything else is said on a
connection.

    dialer                                                acceptor
      | 1  version, job, epoch, size, from, to, nonce  ->     |      checks that it is meant
      |                                   <- 2  nonce         |
      | 3  proof(dialer), hello, number of descriptors ->     |      checks the proof, refuses or goes on
      |                                   <- 4  proof(acceptor)|
      | 5  one byte that carries the descriptors       ->     |      only when there are some (endpoint.py)
      |                                   <- 6  ok, or an error text

A proof is HMAC-SHA256 over everything said so far, under a key derived from the shared secret and the role:
each side is challenged by the other's fresh nonce (nothing recorded can be replayed), the roles have
different keys (nothing can be reflected), and the acceptor proves itself too (a stranger who took over a port
is refused). The dialer proves first, so a port scanner never sees a proof that it could try secrets against.
Ranks, job, size and epoch are part of it, so a connection cannot be passed off as another.

What it does not do: encrypt or sign the bytes that follow. Somebody who can alter packets between the hosts
can alter those. And *without a secret* the keys come from the job's name alone: that keeps two jobs from
mixing up their connections, it keeps nobody out. The endpoint then listens on this host only.

Everything here is free of I/O: bytes in, bytes out. A message is four bytes of length (big endian) and JSON.
Sources: key derivation after RFC 5869 (HKDF), the challenge after ISO/IEC 9798-4 (mutual authentication,
three passes).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any, cast

from transports.errors import WireError

__all__ = [
    "MAX_FDS",
    "MAX_HELLO_BYTES",
    "MAX_MESSAGE_BYTES",
    "VERSION",
    "Acceptor",
    "Closed",
    "Dialer",
    "Refused",
    "Terms",
    "acknowledgement",
    "refusal",
    "role_key",
]

VERSION = 1
NONCE_BYTES = 32
MAX_HELLO_BYTES = 4096
MAX_MESSAGE_BYTES = MAX_HELLO_BYTES + 512
MAX_FDS = 64
MAX_TEXT_CHARS = 512  # six times this many bytes at worst, when all of it has to be escaped

_LENGTH_BYTES = 4


class Refused(WireError):
    """The other side is not what it should be; the message is short and safe to show to it."""


class Closed(WireError):
    """The peer had the communicator, and has closed it."""


@dataclass(frozen=True)
class Terms:
    """What both sides must agree on: the job's name, its epoch (which processes joined), its size."""

    job: str
    epoch: str
    size: int


def role_key(secret: bytes, job: str, role: str) -> bytes:
    """The key of one role in one job: 32 bytes from which neither the secret nor another role's key can be
    found.
    """
    extracted = hmac.digest(b"treering handshake 1", secret, hashlib.sha256)
    return hmac.digest(extracted, f"{role}\0{job}\0\1".encode(), hashlib.sha256)


def acknowledgement(error: str | None = None, *, closed: bool = False) -> bytes:
    """Message 6: the connection is taken over (None), or why it is not; perhaps because its communicator is closed."""
    return _message({"ok": True} if error is None else {"error": error[:MAX_TEXT_CHARS], "closed": closed})


def refusal(reason: str) -> bytes:
    """What an acceptor says instead of message 2 or 4."""
    return _message({"refused": reason[:MAX_TEXT_CHARS]})


class _Side:
    """Cuts the incoming bytes into messages and never asks for a byte more than the message at hand.

    `wanted` is the number of bytes to read next, 0 when nothing more is expected. A length above
    MAX_MESSAGE_BYTES is refused before a byte of it is read.
    """

    def __init__(self) -> None:
        self.wanted = _LENGTH_BYTES
        self._buffer = b""
        self._in_body = False

    def feed(self, data: bytes) -> bytes:
        """Takes at most `wanted` bytes, returns what to send (often nothing). Raises Refused; then the side
        is over.
        """
        assert len(data) <= self.wanted
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted:
            return b""
        whole, self._buffer = self._buffer, b""
        if not self._in_body:
            length = int.from_bytes(whole, "big")
            if not 2 <= length <= MAX_MESSAGE_BYTES:
                raise Refused(f"a message of {length} bytes, where at most {MAX_MESSAGE_BYTES} are allowed")
            self._in_body, self.wanted = True, length
            return b""
        self._in_body, self.wanted = False, _LENGTH_BYTES
        return self._receive(whole)

    def _receive(self, body: bytes) -> bytes:
        raise NotImplementedError


class Acceptor(_Side):
    """The side that listens. After `peer` is set the dialer has proved itself; `hello` and `fds` came with
    the proof.
    """

    def __init__(self, secret: bytes, terms: Terms, rank: int) -> None:
        super().__init__()
        self.peer: int | None = None
        self.hello: dict[str, Any] = {}
        self.fds = 0
        self._secret, self._terms, self._rank = secret, terms, rank
        self._heard: list[bytes] = []
        self._claimed = -1

    def _receive(self, body: bytes) -> bytes:
        message = _parse(body)
        if not self._heard:
            self._claimed = self._check_opening(message)
            answer = _encode({"nonce": secrets.token_hex(NONCE_BYTES)})
            self._heard = [body, answer]
            return _frame(answer)
        hello, fds = message.get("hello"), message.get("fds")
        if not isinstance(hello, dict) or type(fds) is not int or not 0 <= fds <= MAX_FDS:
            raise Refused("a proof without a proper hello")
        hello = cast("dict[str, Any]", hello)
        heard = [*self._heard, _encode(hello), str(fds).encode()]
        expected = _proof(self._secret, self._terms.job, "dialer", heard)
        if not _same(message.get("proof"), expected):
            raise Refused("the proof of the shared secret is wrong")
        self.peer, self.hello, self.fds = self._claimed, hello, fds
        self.wanted = 0
        heard.append(expected.encode())
        return _message({"proof": _proof(self._secret, self._terms.job, "acceptor", heard)})

    def _check_opening(self, message: dict[str, Any]) -> int:
        terms = self._terms
        if message.get("treering") != VERSION or type(message["treering"]) is not int:
            raise Refused(f"rank {self._rank} speaks version {VERSION} of the protocol")
        for name, here in (
            ("job", terms.job),
            ("epoch", terms.epoch),
            ("size", terms.size),
            ("to", self._rank),
        ):
            if message.get(name) != here or type(message.get(name)) is not type(here):
                raise Refused(f"the {name} differs from that of rank {self._rank}")
        peer = message.get("from")
        if type(peer) is not int or not 0 <= peer < terms.size or peer == self._rank:
            raise Refused(f"not one of the other ranks of {terms.size}")
        nonce = message.get("nonce")
        if not isinstance(nonce, str) or len(nonce) != 2 * NONCE_BYTES:
            raise Refused("no nonce of the right size")
        return peer


class Dialer(_Side):
    """The side that connects. `proved` becomes True when the acceptor has proved itself, `wanted` 0 after its
    ok.
    """

    def __init__(self, secret: bytes, terms: Terms, rank: int, peer: int, hello: dict[str, Any], fds: int = 0) -> None:
        super().__init__()
        self._hello = _encode(hello)
        if len(self._hello) > MAX_HELLO_BYTES:
            raise ValueError(f"a hello of {len(self._hello)} bytes; at most {MAX_HELLO_BYTES} are allowed")
        if not 0 <= fds <= MAX_FDS:
            raise ValueError(f"{fds} descriptors; at most {MAX_FDS} can be passed")
        self.proved = False
        self._secret, self._job, self._fds = secret, terms.job, fds
        opening = {
            "treering": VERSION,
            "job": terms.job,
            "epoch": terms.epoch,
            "size": terms.size,
            "from": rank,
            "to": peer,
            "nonce": secrets.token_hex(NONCE_BYTES),
        }
        self._heard = [_encode(opening)]
        self._challenged = False

    def start(self) -> bytes:
        """Message 1."""
        return _frame(self._heard[0])

    def _receive(self, body: bytes) -> bytes:
        message = _parse(body)
        reason = message.get("refused")
        if reason is not None:
            raise Refused(f"it refused this rank: {_text(reason)}")
        if not self._challenged:
            self._challenged = True
            self._heard += [body, self._hello, str(self._fds).encode()]
            proof = _proof(self._secret, self._job, "dialer", self._heard)
            self._heard.append(proof.encode())
            # The hello's bytes are spliced in as they were signed.
            return _frame(b'{"proof":"%s","fds":%d,"hello":%s}' % (proof.encode(), self._fds, self._hello))
        if not self.proved:
            expected = _proof(self._secret, self._job, "acceptor", self._heard)
            if not _same(message.get("proof"), expected):
                raise Refused("it could not prove that it knows the shared secret")
            self.proved = True
            return b""
        if message.get("ok") is not True:
            kind = Closed if message.get("closed") is True else WireError
            raise kind(_text(message.get("error")))
        self.wanted = 0
        return b""


def _proof(secret: bytes, job: str, role: str, heard: list[bytes]) -> str:
    # Every part goes in behind its length: without it, bytes could move from one part to the next unnoticed.
    transcript = b"".join(len(part).to_bytes(8, "big") + part for part in heard)
    return hmac.digest(role_key(secret, job, role), transcript, hashlib.sha256).hex()


def _same(proof: object, expected: str) -> bool:
    return isinstance(proof, str) and proof.isascii() and hmac.compare_digest(proof, expected)


def _text(value: object) -> str:
    """Foreign text made fit for an error message or a log: short, one line, nothing a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value)[:MAX_TEXT_CHARS])


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise Refused("not a message of this protocol") from None
    if not isinstance(value, dict):
        raise Refused("not a message of this protocol")
    return cast("dict[str, Any]", value)


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _message(message: dict[str, Any]) -> bytes:
    return _frame(_encode(message))
