"""Programs that measure: what one rank does in a few transfers between known pairs, over and over in one call.

A program is run like that of any collective, so what is timed is a step inside a collective: no Python, no resolving of
arguments, only the transport. All ranks run a probe together; those that are in no pair have nothing to do in it.

    PING_PONG   a sends, b answers with as many bytes: twice the latency, when they are few
    STREAM      a sends, b answers with one byte once it has all of them: the time of one message, and a latency
    COMBINE     the same, and b adds what comes to what it has
    SHIFT       a sends to b, for pairs that form a ring: every rank sends and receives at once, round by round
    REDUCE      the first rank of each pair adds one operand to another; nothing is sent
"""

from __future__ import annotations

from typing import NamedTuple

from transports.program import DTYPES, OPS, Action, Kind, Place

__all__ = ["COMBINE", "PING_PONG", "REDUCE", "SHIFT", "STREAM", "Pair", "Probe", "actions", "memory_bytes"]

PING_PONG, STREAM, COMBINE, SHIFT, REDUCE = "ping_pong", "stream", "combine", "shift", "reduce"
_FLOAT32, _SUM = DTYPES["float32"][0], OPS["sum"]

Pair = tuple[int, int]


class Probe(NamedTuple):
    """What is measured between which pairs (from, to). Ranks may stand in several pairs of a SHIFT only."""

    kind: str
    pairs: tuple[Pair, ...]
    nbytes: int

    def times(self, rank: int) -> bool:
        """Whether what this rank times counts: it then sees a round from its beginning to its end."""
        return any(rank == a for a, _ in self.pairs)


def memory_bytes(nbytes: int) -> int:
    """The memory that a probe of this size works on: buffer 0 of its program."""
    return 2 * nbytes


def actions(probe: Probe, rank: int, rounds: int) -> list[Action]:
    """This rank's steps; each round begins when the one before has ended."""
    kind, pairs, nbytes = probe
    here, there, last = Place(0, 0), Place(0, nbytes), Place(0, nbytes - 1)
    found: list[Action] = []
    for number in range(rounds):
        low, high = (here, there) if number % 2 == 0 else (there, here)
        for a, b in pairs:
            if kind == REDUCE and rank == a:
                found.append(Action(Kind.REDUCE, nbytes, dtype=_FLOAT32, op=_SUM, a=here, b=there, out=here))
            elif kind == SHIFT and rank == a:
                found.append(Action(Kind.SEND, nbytes, b, a=low))
            elif kind == PING_PONG and rank == a:
                found += [Action(Kind.SEND, nbytes, b, a=here), Action(Kind.RECV, nbytes, b, out=here)]
            elif rank == a:
                found += [Action(Kind.SEND, nbytes, b, a=here), Action(Kind.RECV, 1, b, out=here)]
            if kind == REDUCE or rank != b:
                continue
            if kind == SHIFT:
                found.append(Action(Kind.RECV, nbytes, a, out=high))
            elif kind == PING_PONG:
                found += [Action(Kind.RECV, nbytes, a, out=here), Action(Kind.SEND, nbytes, a, a=here)]
            else:
                takes = Action(Kind.RECV, nbytes, a, out=here)
                if kind == COMBINE:
                    takes = Action(Kind.RECV_REDUCE, nbytes, a, dtype=_FLOAT32, op=_SUM, a=here, out=here)
                found += [takes, Action(Kind.SEND, 1, a, a=last)]
    return found
