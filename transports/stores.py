"""How ranks that cannot reach each other yet exchange their contact cards: the launcher's own store.

A store does one thing, `exchange`: every rank hands in its card and gets the cards of all, or an error that
says which rank is missing, which one is there twice, or who disagrees about the number of ranks. Cards are no
secrets.

    FileStore    a directory all hosts can see        started by hand, by a script, by `bench --ranks`
    TorchStore   torch.distributed's TCPStore         torchrun, Slurm      (launcher_stores.py)
    MpiStore     point-to-point messages of mpi4py    mpirun, mpiexec      (launcher_stores.py)

Whoever gives up tells the others why, so that all ranks raise the first cause and not "rank 2 went away".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from transports.errors import RendezvousError
from transports.host import ProcessId, is_running, this_process

__all__ = ["FileStore", "Store"]

MAX_CARD_BYTES = 64 << 10
"""More than any card; a longer one is not read."""


class Store(Protocol):
    """What `Endpoint` asks of a store. Only the thread that joins uses it."""

    def exchange(self, rank: int, size: int, card: bytes, deadline_s: float) -> list[bytes]:
        """The cards of all ranks, in rank order; `deadline_s` is the time allowed, in seconds from now.

        Raises RendezvousError on every rank that takes part, at the deadline or sooner. May be called again,
        for another group of the same ranks.
        """
        ...

    def close(self) -> None:
        """Gives back what the exchanges left; the caller needs nothing more of them. Safe to call twice."""
        ...


def missing_text(missing: Iterable[int], size: int, waited_s: float, notes: Iterable[str] = ()) -> str:
    names = list(missing)
    who = f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(map(str, names))}"
    verb = "is" if len(names) == 1 else "are"
    text = f"{who} of {size} {verb} missing after {waited_s:.1f} s: every rank must start and call connect()"
    return "; ".join([text, *notes])


def size_text(rank: int, size: int, other: int, other_size: int) -> str:
    return f"the ranks disagree about their number: rank {rank} says {size}, rank {other} says {other_size}"


# --- files
# ---------------------------------------------------------------------------------------------------------


class _Card(NamedTuple):
    """What a card file says. `incarnation` is random: two processes never have the same."""

    rank: int
    size: int
    incarnation: str
    process: ProcessId
    card: bytes

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host}"


class FileStore:
    """Cards as files in a directory that all ranks see; it is made (0700) when it is not there.

    Use a fresh directory for each job, or a `namespace` (a job's name) that is new for each job. The files
    are removed when the last rank has closed. A job that was killed leaves its files: a later job in the same
    directory ignores those whose processes are known to be gone (same host), and otherwise says that a rank
    is there twice and which process that is.

    [Note: how ranks agree through files]
    Every rank writes `RANK.INCARNATION.card`. Once it sees one card of every rank it writes a `.vote` that
    lists them, and the group stands when all its members have voted for the same list. So the leftovers of
    another job, or a process that claims a taken rank, can never be part of a group in which somebody does
    not know of it. A rank that has closed or given up writes `.left` with the reason; the last one to leave
    removes all files. A file is written elsewhere and renamed, so nobody reads half of one.
    """

    def __init__(self, path: str | os.PathLike[str], namespace: str = "") -> None:
        self.path = Path(path)
        self._namespace = namespace
        self._round = 0
        self._joined: list[_Gathering] = []

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def exchange(self, rank: int, size: int, card: bytes, deadline_s: float) -> list[bytes]:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            gathering = _Gathering(self.path, self._gathering_prefix(), rank, size, card)
            self._joined.append(gathering)
            cards = gathering.run(deadline_s)
            self._round += 1  # a failed round may be tried again: the others may still be on their way to it
            return cards
        except OSError as error:
            raise RendezvousError(f"the directory {self.path} of the file store cannot be used: {error}") from error

    def _gathering_prefix(self) -> str:
        """What the names of this round's files start with."""
        return hashlib.sha256(f"{self._namespace}\0{self._round}".encode()).hexdigest()[:12]

    def close(self) -> None:
        while self._joined:
            with contextlib.suppress(OSError):  # a directory that is gone has nothing left to remove
                self._joined.pop().leave("")


class _Gathering:
    """One exchange over a FileStore's directory, as one rank sees it."""

    def __init__(self, path: Path, prefix: str, rank: int, size: int, card: bytes) -> None:
        self.path, self.prefix = path, prefix
        self.me = _Card(rank, size, secrets.token_hex(16), this_process(), card)
        self.cards: dict[str, _Card] = {self.me.incarnation: self.me}
        self.votes: dict[str, list[str]] = {}
        self.left: dict[str, str] = {}
        self.earlier: set[str] = set()  # had left before this rank came
        self._read: set[str] = set()
        self._dead: set[str] = set()
        self._look_for_dead_at = 0.0
        self._left = False

    def run(self, deadline_s: float) -> list[bytes]:
        began = time.monotonic()
        self._look()
        self.earlier = set(self.left)
        content = {
            "rank": self.me.rank,
            "size": self.me.size,
            "process": self.me.process,
            "card": self.me.card.decode(),
        }
        self._write("card", json.dumps(content))
        try:
            group = self._agree(began, deadline_s)
        except BaseException as error:
            reason = str(error) if isinstance(error, RendezvousError) else "was interrupted while it waited"
            with contextlib.suppress(OSError):
                self.leave(reason if isinstance(error, RendezvousError) else f"rank {self.me.rank} {reason}")
            raise
        return [self.cards[incarnation].card for incarnation in group]

    def _agree(self, began: float, deadline_s: float) -> list[str]:
        vote: list[str] = []
        taken_since: float | None = None
        # Many ranks that look all the time would keep each other from writing.
        pause_s = 0.0005 * max(1.0, self.me.size / 8)
        while True:
            self._look()
            # First of all, because the others may have gone on already: what comes later cannot undo a group.
            if vote and all(self.votes.get(member) == vote for member in vote):
                return vote
            self._follow_those_who_gave_up()
            if not vote:
                vote = self._choose()
                if vote:
                    self._write("vote", json.dumps(vote))
                    continue
            now = time.monotonic()
            taken = self._group_of_others()
            taken_since = (taken_since or now) if taken else None
            # A second is enough for the last files of an earlier job to go.
            if taken and taken_since is not None and now - taken_since > 1.0:
                raise RendezvousError(self._taken_text(taken))
            if now - began > deadline_s:
                raise RendezvousError(self._deadline_text(now - began))
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, 0.02)

    def leave(self, reason: str) -> None:
        """Marks this rank as gone; the last one to go removes the files of all."""
        if self._left:
            return
        self._left = True
        self._write("left", json.dumps(reason))
        self._look()
        gone = self.left.keys() | {self.me.incarnation}
        self._look_for_dead_at = 0.0
        if all(name in gone or self._is_dead(name) for name in self.cards):
            for name in self._read:  # and no others: a new job may be starting in this directory
                (self.path / name).unlink(missing_ok=True)

    def _choose(self) -> list[str]:
        """One incarnation for each rank, [] while some are missing.

        What is wrong is raised only when nobody is missing (or at the deadline): so that those who come last hear
        of it too, instead of waiting for ranks that have given up.
        """
        candidates = self._candidates()
        by_rank = {card.rank: card.incarnation for card in candidates}
        if any(rank not in by_rank for rank in range(self.me.size)):
            return []
        problem = self._problem(candidates)
        if problem:
            raise RendezvousError(problem)
        return [by_rank[rank] for rank in range(self.me.size)]

    def _problem(self, candidates: Sequence[_Card]) -> str:
        claims: dict[int, list[_Card]] = {}
        for card in candidates:
            if card.size != self.me.size:
                return size_text(self.me.rank, self.me.size, card.rank, card.size)
            claims.setdefault(card.rank, []).append(card)
        double = next((cards for cards in claims.values() if len(cards) > 1), None)
        return self._double_text(double) if double else ""

    def _candidates(self) -> list[_Card]:
        """The cards that may still become part of a group with this rank."""
        mine = self.me.incarnation
        return [
            card
            for name, card in self.cards.items()
            if name not in self.left and mine in self.votes.get(name, [mine]) and not self._is_dead(name)
        ]

    def _is_dead(self, incarnation: str) -> bool:
        """Whether that card's process is known to have ended; looked up again every quarter of a second."""
        now = time.monotonic()
        if now >= self._look_for_dead_at:
            self._look_for_dead_at = now + 0.25
            self._dead = {name for name, card in self.cards.items() if not is_running(card.process)}
        return incarnation in self._dead

    def _group_of_others(self) -> list[_Card]:
        """A group that stands, is in use, and does not have this rank in it."""
        for incarnation, vote in self.votes.items():
            if self.me.incarnation not in vote and incarnation not in self.left:
                members = [self.cards[i] for i in vote if i in self.cards and i not in self.left]
                if len(members) == len(vote) and not any(self._is_dead(card.incarnation) for card in members):
                    return members
        return []

    def _follow_those_who_gave_up(self) -> None:
        for incarnation, reason in self.left.items():
            same_group = self.me.incarnation in self.votes.get(incarnation, [self.me.incarnation])
            if reason and incarnation not in self.earlier and same_group:
                raise RendezvousError(reason)

    def _double_text(self, claims: Sequence[_Card]) -> str:
        return (
            f"rank {claims[0].rank} is there twice: {' and '.join(sorted(map(str, claims)))}; either two "
            f"processes claim that rank, or {self.path} holds files of a job that was killed: use a fresh "
            "directory for each job"
        )

    def _taken_text(self, group: Sequence[_Card]) -> str:
        if self.me.rank >= len(group):
            return size_text(self.me.rank, self.me.size, group[0].rank, group[0].size)
        other = next(card for card in group if card.rank == self.me.rank)
        return (
            f"rank {self.me.rank} is there twice: {self.me} came when {other} had already joined the "
            f"others; a second job needs a directory of its own instead of {self.path}"
        )

    def _deadline_text(self, waited_s: float) -> str:
        self._look_for_dead_at = 0.0
        candidates = self._candidates()
        problem = self._problem(candidates)
        if problem:
            return problem
        here = {card.rank for card in candidates}
        absent = [rank for rank in range(self.me.size) if rank not in here]
        if absent:
            died = [c for i, c in self.cards.items() if c.rank in absent and i not in self.left]
            notes = [f"rank {card.rank} was {card}, which has died" for card in died if not is_running(card.process)]
            return missing_text(absent, self.me.size, waited_s, notes)
        silent = [card for card in candidates if card.incarnation not in self.votes and card is not self.me]
        names = ", ".join(f"rank {card.rank} ({card})" for card in silent)
        return f"after {waited_s:.1f} s these ranks are there but do not answer: {names}"

    def _look(self) -> None:
        for entry in os.scandir(self.path):
            if entry.name in self._read or not entry.name.startswith(self.prefix + "."):
                continue
            content = _read_json(entry.path)
            if content is None:
                continue  # removed since; a process that leaves the directory as the last one does that
            _, rank, incarnation, kind = entry.name.split(".")
            self._read.add(entry.name)
            if kind == "card":
                fields = cast("dict[str, Any]", content)
                process = ProcessId(*fields["process"])
                card = _Card(int(rank), fields["size"], incarnation, process, fields["card"].encode())
                self.cards.setdefault(incarnation, card)
                if not is_running(process):
                    self._dead.add(incarnation)
            elif kind == "vote":
                self.votes[incarnation] = cast("list[str]", content)
            elif incarnation != self.me.incarnation:
                self.left[incarnation] = str(content)

    def _write(self, kind: str, text: str) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self.path)
        with open(descriptor, "w") as file:
            file.write(text)
        os.rename(temporary, self.path / f"{self.prefix}.{self.me.rank}.{self.me.incarnation}.{kind}")


def _read_json(path: str) -> object | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        raw = file.read(MAX_CARD_BYTES + 1)
    try:
        if len(raw) > MAX_CARD_BYTES:
            raise ValueError("too long")
        return json.loads(raw)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{path} is not a file of this store ({error})") from None
