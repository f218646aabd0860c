"""What the checks let ranks do: scripts, which say for every rank its actions, and what must come of them.

A script is a function from a rank to its actions (transports/program.py), so every rank knows what all others do.
`outcome` does them in numpy, whole actions at a time and in order, except that one may overtake others that wait for a
message when it has nothing to do with them; messages wait in queues without limits. So it knows what must be in every
buffer at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transports.program import DTYPE_NAMES, DTYPES, OPS, Action, Kind, Place

__all__ = [
    "Bytes", "Script", "all_pairs", "around", "contents", "copy", "divide", "down_the_line", "outcome", "random_script",
    "recv", "recv_reduce", "reduce", "send",
]  # fmt: skip

Bytes = npt.NDArray[np.uint8]
Script = Callable[[int], list[Action]]
At = tuple[int, int]
"""A buffer and a byte in it."""

_COMBINE: dict[int, Callable[[Any, Any], Any]] = {
    OPS["sum"]: np.add, OPS["prod"]: np.multiply, OPS["min"]: np.minimum, OPS["max"]: np.maximum,
    OPS["and"]: np.bitwise_and, OPS["or"]: np.bitwise_or, OPS["xor"]: np.bitwise_xor,
}  # fmt: skip


# ---------------------------------------------------------------- actions


def send(peer: int, nbytes: int, a: At, lane: int = 0, dtype: str = "bytes") -> Action:
    """Streams the bytes at `a` to the peer."""
    return Action(Kind.SEND, nbytes, peer, lane, DTYPES[dtype][0], a=Place(*a))


def recv(peer: int, nbytes: int, out: At, lane: int = 0, dtype: str = "bytes") -> Action:
    """Puts what the peer streams at `out`."""
    return Action(Kind.RECV, nbytes, peer, lane, DTYPES[dtype][0], out=Place(*out))


def recv_reduce(
    peer: int, nbytes: int, a: At, out: At, *, dtype: str = "uint8", op: str = "sum", lane: int = 0, first: bool = True
) -> Action:
    """Puts a op incoming at `out`, or incoming op a where `a` is not the first operand."""
    return Action(Kind.RECV_REDUCE, nbytes, peer, lane, DTYPES[dtype][0], OPS[op], first, Place(*a), out=Place(*out))


def copy(nbytes: int, a: At, out: At) -> Action:
    """Puts what is at `a` at `out`."""
    return Action(Kind.COPY, nbytes, a=Place(*a), out=Place(*out))


def reduce(nbytes: int, a: At, b: At, out: At, *, dtype: str = "uint8", op: str = "sum", first: bool = True) -> Action:
    """Puts a op b at `out`, or b op a where `a` is not the first operand."""
    return Action(Kind.REDUCE, nbytes, -1, 0, DTYPES[dtype][0], OPS[op], first, Place(*a), Place(*b), Place(*out))


def divide(nbytes: int, a: At, out: At, dtype: str) -> Action:
    """Puts a / divisor at `out`."""
    return Action(Kind.DIVIDE, nbytes, dtype=DTYPES[dtype][0], a=Place(*a), out=Place(*out))


# ---------------------------------------------------------------- scripts


def all_pairs(size: int, nbytes: int = 1) -> Script:
    """Every rank sends its `nbytes` of buffer 0 to every other, which has them in buffer 1, one after the other: a
    barrier that nobody leaves before all have come."""

    def script(rank: int) -> list[Action]:
        others = [peer for peer in range(size) if peer != rank]
        sends = [send(peer, nbytes, (0, 0)) for peer in others]
        return sends + [recv(peer, nbytes, (1, peer * nbytes)) for peer in others]

    return script


def around(size: int, nbytes: int, dtype: str = "uint8", op: str = "sum") -> Script:
    """An all-reduce, as plain as can be: every array goes all the way round, and is added up where it comes by.

    Buffer 0 is the input, 1 the result, 2 has room for two arrays that come by.
    """

    def script(rank: int) -> list[Action]:
        after, before = (rank + 1) % size, (rank - 1) % size
        actions = [copy(nbytes, (0, 0), (1, 0))]
        at: At = (0, 0)
        for step in range(size - 1):
            room = (2, step % 2 * nbytes)
            actions.append(send(after, nbytes, at, dtype=dtype))
            actions.append(recv(before, nbytes, room, dtype=dtype))
            actions.append(reduce(nbytes, (1, 0), room, (1, 0), dtype=dtype, op=op))
            at = room
        return actions

    return script


def down_the_line(size: int, nbytes: int) -> Script:
    """Rank 0's buffer 0 goes from rank to rank, to the last one."""

    def script(rank: int) -> list[Action]:
        actions = [recv(rank - 1, nbytes, (0, 0))] if rank else []
        return [*actions, send(rank + 1, nbytes, (0, 0))] if rank + 1 < size else actions

    return script


def random_script(size: int, seed: int, *, steps: int, room: int, largest: int, lanes: int = 3) -> Script:
    """So many steps or transfers at random places of two buffers of `room` bytes of every rank, of 1 to `largest`.

    They are drawn in an order in which they could be done one at a time, so no such script can get stuck.
    """
    random = np.random.default_rng([seed, size])
    actions: list[list[Action]] = [[] for _ in range(size)]

    def places(nbytes: int, count: int) -> list[At]:
        """Places that do not overlap, except that some are the same."""
        slots = random.permutation(max(room // nbytes - 1, 1))
        found = [(int(random.integers(2)), int(slot) * nbytes + int(random.integers(nbytes))) for slot in slots[:count]]
        while len(found) < count:
            found.append(found[0])
        # Two in one buffer may have been shifted into each other: what reads may then read elsewhere.
        out = found[-1]
        return [out if at != out and _overlap(at, out, nbytes) else at for at in found]

    for _ in range(steps):
        nbytes = int(np.exp(random.uniform(0, float(np.log(largest)))))
        a, b, out = places(nbytes, 3)
        rank, other = (int(r) for r in random.choice(size, 2, replace=False))
        lane, first, kind = int(random.integers(lanes)), bool(random.integers(2)), int(random.integers(7))
        if kind == 0:
            actions[rank].append(copy(nbytes, a, b) if not _overlap(a, b, nbytes) else divide(nbytes, a, a, "uint8"))
        elif kind == 1:
            actions[rank].append(reduce(nbytes, a, b, out, op="xor", first=first))
        elif kind == 2:
            actions[rank].append(divide(nbytes, a, out, "uint8"))
        else:
            actions[rank].append(send(other, nbytes, b, lane))
            reduces = kind == 3
            actions[other].append(
                recv_reduce(rank, nbytes, a, out, lane=lane, first=first) if reduces else recv(rank, nbytes, out, lane)
            )
    return lambda rank: actions[rank]


def _overlap(one: At, other: At, nbytes: int) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) < nbytes


# ---------------------------------------------------------------- what must come of it


def contents(seed: int, rank: int, buffer: int, nbytes: int) -> Bytes:
    """What is in a buffer before a script runs."""
    words = np.random.default_rng([seed, rank, buffer]).integers(0, 1 << 63, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


def outcome(script: Script, buffers: Sequence[Sequence[Bytes]], divisor: int = 1) -> list[list[Bytes]]:
    """What each rank's buffers hold at the end, if they held `buffers` at the beginning."""
    size = len(buffers)
    memory = [[buffer.copy() for buffer in of_rank] for of_rank in buffers]
    left = [script(rank) for rank in range(size)]
    wires: dict[tuple[int, int, int], deque[Bytes]] = {}
    while any(left):
        moved = False
        for rank in range(size):
            waiting: list[Action] = []
            for action in left[rank]:
                free = not any(_in_order(other, action) for other in waiting)
                if free and _do(action, rank, memory[rank], wires, divisor):
                    moved = True
                else:
                    waiting.append(action)
            left[rank] = waiting
        assert moved, "a script that gets stuck by itself proves nothing"
    assert not any(wires.values()), "a script sends what nobody receives"
    return memory


def _in_order(one: Action, other: Action) -> bool:
    """Whether the first of two actions of a rank must be done before the second."""
    if one.peer >= 0 and (one.kind == Kind.SEND, *one[2:4]) == (other.kind == Kind.SEND, *other[2:4]):
        return True
    writes = [(w, one.nbytes, p, other.nbytes) for w in one.writes() for p in (*other.reads(), *other.writes())]
    writes += [(w, other.nbytes, p, one.nbytes) for w in other.writes() for p in one.reads()]
    return any(
        w.buffer == p.buffer and w.offset_bytes < p.offset_bytes + m and p.offset_bytes < w.offset_bytes + n
        for w, n, p, m in writes
    )


def _do(
    action: Action, rank: int, memory: list[Bytes], wires: dict[tuple[int, int, int], deque[Bytes]], divisor: int
) -> bool:
    """Does an action; False if it must wait for a message."""

    def at(place: Place) -> Bytes:
        return memory[place.buffer][place.offset_bytes : place.offset_bytes + action.nbytes]

    if action.kind == Kind.SEND:
        wires.setdefault((rank, action.peer, action.lane), deque()).append(at(action.a).copy())
        return True
    other = np.empty(0, np.uint8)
    if action.kind in (Kind.RECV, Kind.RECV_REDUCE):
        wire = wires.get((action.peer, rank, action.lane))
        if not wire:
            return False
        other = wire.popleft()
        assert len(other) == action.nbytes, "a script sends another size than is received"
    elif action.kind == Kind.REDUCE:
        other = at(action.b)
    out = at(action.out)
    if action.kind == Kind.RECV:
        out[:] = other
    elif action.kind == Kind.COPY:
        out[:] = at(action.a)
    elif action.kind == Kind.DIVIDE:
        assert action.dtype == DTYPES["uint8"][0]
        out[:] = at(action.a) // divisor
    else:
        dtype = np.dtype(DTYPE_NAMES[action.dtype])
        x, y = np.frombuffer(at(action.a).tobytes(), dtype), np.frombuffer(other.tobytes(), dtype)
        result = _COMBINE[action.op](*((x, y) if action.local_first else (y, x)))
        out[:] = np.frombuffer(result.tobytes(), np.uint8)
    return True
