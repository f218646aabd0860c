"""Contact cards: what a rank tells the others about itself before they can reach it. JSON, and no secrets in
it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any, cast

from transports.errors import RendezvousError
from transports.handshake import VERSION, Terms, role_key
from transports.host import host_id

__all__ = ["epoch_of", "group_hosts", "open_cards", "seal_card", "tcp_addresses", "terms_of"]


def seal_card(
    rank: int,
    size: int,
    job: str,
    secret: bytes,
    unix: str | None,
    tcp: Sequence[tuple[str, int]],
    knows: bool = False,
) -> bytes:
    """This process's card as JSON bytes. Its seal (an HMAC) lets only those who know the secret write or change one.

    `tcp`: where it listens, the first on the card as "tcp", the others as "rails". `knows`: this rank has something to
    tell the others once all are there.
    """
    card: dict[str, Any] = {
        "version": VERSION,
        "job": job,
        "rank": rank,
        "size": size,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "host_id": host_id(),
        "uid": os.geteuid(),
        "unix": unix,
        "tcp": tcp[0] if tcp else None,
        "rails": tcp[1:],
        "knows": knows,
        "incarnation": secrets.token_hex(16),
    }
    return json.dumps({**card, "seal": _seal(card, secret)}).encode()


def open_cards(raw: Sequence[bytes], rank: int, secret: bytes) -> list[dict[str, Any]]:
    """The cards of all ranks, checked against the one of `rank`. Raises RendezvousError naming the rank that
    differs.
    """
    cards = [_parse(text, peer) for peer, text in enumerate(raw)]
    own = cards[rank]
    for peer, card in enumerate(cards):
        where = f"rank {peer} (process {card.get('pid')} on {card.get('host')})"
        for name, advice in (
            ("version", "install the same release on every host"),
            ("job", "are two jobs using the same store?"),
            ("size", "start every rank with the same number of ranks"),
        ):
            if card.get(name) != own[name]:
                found, here = card.get(name), own[name]
                raise RendezvousError(f"{where} has {name} {found!r}, rank {rank} has {here!r}: {advice}")
        if card.get("rank") != peer:
            raise RendezvousError(f"{where} calls itself rank {card.get('rank')!r}")
        if not hmac.compare_digest(str(card.pop("seal", "")).encode(), _seal(card, secret).encode()):
            raise RendezvousError(
                f"{where} does not have the secret of rank {rank} (or somebody changed its card): "
                "give every rank the same TREERING_SECRET or TREERING_SECRET_FILE, or none of them one"
            )
    return cards


def epoch_of(cards: Sequence[dict[str, Any]]) -> str:
    """A name for exactly these processes: one that is started again has no part in it."""
    return hashlib.sha256("".join(str(card["incarnation"]) for card in cards).encode()).hexdigest()[:32]


def terms_of(cards: Sequence[dict[str, Any]]) -> Terms:
    return Terms(job=str(cards[0]["job"]), epoch=epoch_of(cards), size=len(cards))


def group_hosts(cards: Sequence[dict[str, Any]]) -> tuple[tuple[int, ...], ...]:
    """The ranks of each host, in rank order; the hosts in the order of their first rank."""
    hosts: dict[str, list[int]] = {}
    for rank, card in enumerate(cards):
        hosts.setdefault(str(card["host_id"]), []).append(rank)
    return tuple(tuple(ranks) for ranks in hosts.values())


def tcp_addresses(card: dict[str, Any]) -> list[tuple[str, int]]:
    """Where a rank listens: (numeric address, port)."""
    return [] if card["tcp"] is None else [(str(host), int(port)) for host, port in (card["tcp"], *card["rails"])]


def _seal(card: dict[str, Any], secret: bytes) -> str:
    text = json.dumps(card, sort_keys=True).encode()
    return hmac.digest(role_key(secret, str(card.get("job")), "card"), text, hashlib.sha256).hex()


def _parse(text: bytes, rank: int) -> dict[str, Any]:
    try:
        card: object = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise RendezvousError(f"the card of rank {rank} in the store is not a contact card")
    return cast("dict[str, Any]", card)
