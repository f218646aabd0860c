"""All ranks' steps of a plan merged into one graph: sends joined with receives, and what waits for what.

A matched send and receive become one node, because without buffering both ends move the same bytes at the
same time; a local step is a node of its own. Edges are the order of messages on a lane and the order of steps
on a chunk. The plan can finish without any buffering when this graph has no cycle, and the longest path to a
transfer is its round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from collectives.plan import Copy, Plan, Recv, RecvReduce, Reduce, Send, Step

__all__ = ["End", "Graph", "PlanError", "build", "where"]

End = tuple[int, int, Step]
"""One rank's part in a node: rank, index of the step, step."""


class PlanError(ValueError):
    """A plan that would go wrong; the message names the rank, the step and what was expected."""


@dataclass(frozen=True)
class Graph:
    """Nodes are numbered; `ends[node]` is (sender, receiver) for a transfer, (rank, None) for a local step.

    `order` lists the nodes so that each comes after all it waits for. `rounds[node]` counts the transfers on
    the longest path that ends in the node.
    """

    plan: Plan
    ends: list[tuple[End, End | None]]
    order: list[int]
    rounds: list[int]


def where(end: End) -> str:
    """How every message names a step."""
    rank, index, step = end
    return f"rank {rank}, step {index}, {step}"


def build(plan: Plan) -> Graph:
    """The graph of a plan: a microsecond or two per step.

    Raises PlanError when steps are malformed, do not match, or wait for each other in a circle.
    """
    if not plan.builtin:
        _check_types(plan)
    ends, nodes, after, waits = _match(plan)
    for rank in range(plan.size):
        _order_chunks(plan.steps(rank), nodes[rank], after, waits)
    order, rounds = _sort(ends, after, waits)
    return Graph(plan, ends, order, rounds)


_Ends = list[tuple[End, End | None]]


def _check_types(plan: Plan) -> None:
    """A user's generator can yield anything."""
    for rank in range(plan.size):
        for index, step in enumerate(cast("tuple[object, ...]", plan.steps(rank))):
            if not isinstance(step, (Send, Recv, RecvReduce, Copy, Reduce)):
                raise PlanError(f"rank {rank}, step {index}: {step!r} is not a step")
            if not all(isinstance(field, int) for field in cast("tuple[object, ...]", step)):
                raise PlanError(f"{where((rank, index, step))}: the fields of a step are Python integers")


def _match(plan: Plan) -> tuple[_Ends, list[list[int]], list[list[int]], list[int]]:
    """Joins sends with receives: the ends of every node, the nodes of each rank's steps, the lanes' edges.

    Edges are kept as the nodes that come `after` a node, and the number that a node still `waits` for.
    """
    size, lanes, data = plan.size, plan.lanes, plan.blocks * plan.chunks
    # In an all-to-all the block numbers at the two ends differ by design; elsewhere a chunk keeps its number.
    pieces = plan.chunks if plan.collective == "all_to_all" else data
    ends: _Ends = []
    nodes: list[list[int]] = []
    given: dict[int, list[End]] = {}
    taken: dict[int, list[End]] = {}
    for rank in range(size):
        steps = plan.steps(rank)
        mine = [-1] * len(steps)
        nodes.append(mine)
        for index, step in enumerate(steps):
            end = (rank, index, step)
            kind = type(step)
            if kind is Copy or kind is Reduce:
                source, target, count = cast("Copy", step)[:3]
                if not (
                    source >= 0
                    and target >= 0
                    and 0 < count <= data - max(source % data, target % data)
                    and (source - target) % pieces == 0
                    and abs(source - target) >= count
                ):
                    raise _malformed(plan, end)
                mine[index] = len(ends)
                ends.append((end, None))
                continue
            peer, chunk, count, lane = cast("Send", step)[:4]
            if not (
                0 <= peer < size
                and peer != rank
                and 0 <= lane < lanes
                and 0 < count <= data - chunk % data
                and chunk >= 0
            ):
                raise _malformed(plan, end)
            if kind is Send:
                wire, key = given, (rank * size + peer) * lanes + lane
            else:
                wire, key = taken, (peer * size + rank) * lanes + lane
            if key in wire:
                wire[key].append(end)
            else:
                wire[key] = [end]
    after: list[list[int]] = [[] for _ in ends]
    waits = [0] * len(ends)
    for key, givers in given.items():
        takers = taken.pop(key, [])
        for giver, taker in zip(givers, takers, strict=False):
            send, receive = giver[2], taker[2]
            if send[2] != receive[2] or (send[1] - receive[1]) % pieces:
                raise _unequal(giver, taker)
            nodes[giver[0]][giver[1]] = nodes[taker[0]][taker[1]] = len(ends)
            ends.append((giver, taker))
        if len(givers) != len(takers):
            longer, shorter = (givers, takers) if len(givers) > len(takers) else (takers, givers)
            raise _unmatched(plan, longer[len(shorter)])
        first = len(ends) - len(givers)
        after.extend([node] for node in range(first + 1, len(ends)))
        after.append([])
        waits.append(0)
        waits.extend([1] * (len(givers) - 1))
    for takers in taken.values():
        raise _unmatched(plan, takers[0])
    return ends, nodes, after, waits


def _order_chunks(steps: Sequence[Step], nodes: list[int], after: list[list[int]], waits: list[int]) -> None:
    """Adds the edges between one rank's steps that touch the same chunk, unless both only read it."""
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for step, node in zip(steps, nodes, strict=True):
        kind = type(step)
        count = step[2]
        if kind is Send or kind is Copy or kind is Reduce:
            read = step[1] if kind is Send else step[0]
            for chunk in (read,) if count == 1 else range(read, read + count):
                if chunk in writer:
                    after[writer[chunk]].append(node)
                    waits[node] += 1
                if chunk in readers:
                    readers[chunk].append(node)
                else:
                    readers[chunk] = [node]
            if kind is Send:
                continue
        written = step[1]  # the chunk of a Recv, the target of a Copy
        for chunk in (written,) if count == 1 else range(written, written + count):
            since = readers.pop(chunk, None)
            if since is not None:  # who read it has waited for who wrote it
                for reader in since:
                    after[reader].append(node)
                waits[node] += len(since)
            elif chunk in writer:
                after[writer[chunk]].append(node)
                waits[node] += 1
            writer[chunk] = node


def _sort(ends: _Ends, after: list[list[int]], waits: list[int]) -> tuple[list[int], list[int]]:
    rounds = [0] * len(ends)
    waits = waits.copy()
    order = [node for node, count in enumerate(waits) if not count]
    for node in order:  # grows while it is walked
        if ends[node][1] is not None:
            rounds[node] += 1
        depth = rounds[node]
        for later in after[node]:
            waits[later] -= 1
            if rounds[later] < depth:
                rounds[later] = depth
            if not waits[later]:
                order.append(later)
    if len(order) < len(ends):
        raise _circle(ends, after, {node for node, count in enumerate(waits) if count})
    return order, rounds


def _malformed(plan: Plan, end: End) -> PlanError:
    data, rank, step = plan.blocks * plan.chunks, end[0], end[2]
    if isinstance(step, (Copy, Reduce)):
        what = (
            f"source and target must be different chunks of the same size, in one stretch of {data}, "
            f"and must not overlap"
        )
    elif not 0 <= step.peer < plan.size:
        what = f"there is no rank {step.peer} among {plan.size}"
    elif step.peer == rank:
        what = "a rank cannot exchange messages with itself; use Copy"
    elif not 0 <= step.lane < plan.lanes:
        what = f"lane {step.lane} is not one of the {plan.lanes} this algorithm was registered with"
    else:
        what = f"[chunk, chunk + count) must be at least one chunk, and within one stretch of {data}"
    return PlanError(f"{where(end)}: {what}")


def _unmatched(plan: Plan, end: End) -> PlanError:
    rank, _, step = end
    assert isinstance(step, (Send, Recv, RecvReduce))
    sending = isinstance(step, Send)
    source, target = (rank, step.peer) if sending else (step.peer, rank)
    sends = sum(isinstance(s, Send) and s.peer == target and s.lane == step.lane for s in plan.steps(source))
    takes = sum(
        isinstance(s, (Recv, RecvReduce)) and s.peer == source and s.lane == step.lane for s in plan.steps(target)
    )
    trouble = "the message is never received" if sending else "the message never comes"
    return PlanError(
        f"{where(end)}: {trouble}: on lane {step.lane}, rank {source} sends {sends} to rank {target}, "
        f"which receives {takes}"
    )


def _unequal(giver: End, taker: End) -> PlanError:
    return PlanError(
        f"{where(taker)}: the message that comes is {where(giver)}; both ends must name the same number "
        f"of chunks, and chunks of the same size"
    )


def _circle(ends: _Ends, after: list[list[int]], stuck: set[int]) -> PlanError:
    """Follows the nodes that wait for one another round the circle, and says what each waits for."""
    before = {later: node for node in stuck for later in after[node] if later in stuck}
    node, seen = min(stuck), set[int]()
    while node not in seen:  # every stuck node waits for a stuck one, so this walks into a circle
        seen.add(node)
        node = before[node]
    circle = [node]
    while before[circle[-1]] != node:
        circle.append(before[circle[-1]])
    reasons: list[str] = []
    for later, earlier in zip(circle, [*circle[1:], node], strict=True):
        a, b = _shared(ends[earlier], ends[later])
        clash = _overwritten(a[2], b[2])
        if clash is not None and isinstance(a[2], Send):
            return PlanError(
                f"{where(b)}: would overwrite chunk {clash} while step {a[1]}, {a[2]}, still streams it to "
                f"rank {a[2].peer}: neither can finish unless the network buffers the whole message "
                f"({len(circle)} transfers wait for one another in a circle)"
            )
        reasons.append(f"{where(b)} waits for step {a[1]}, {a[2]}")
    return PlanError("deadlock: " + "; ".join(reasons))


def _shared(earlier: tuple[End, End | None], later: tuple[End, End | None]) -> tuple[End, End]:
    """The two steps of one rank that order one node before another."""
    pairs = [(a, b) for a in earlier for b in later if a is not None and b is not None and a[0] == b[0] and a[1] < b[1]]
    return next((p for p in pairs if _overwritten(p[0][2], p[1][2]) is not None), pairs[0])


def _overwritten(earlier: Step, later: Step) -> int | None:
    """The first chunk that the earlier step only reads and the later one writes."""
    if isinstance(later, Send) or isinstance(earlier, (Recv, RecvReduce)):
        return None
    read = earlier.chunk if isinstance(earlier, Send) else earlier.source
    written = later.chunk if isinstance(later, (Recv, RecvReduce)) else later.target
    both = range(max(read, written), min(read + earlier.count, written + later.count))
    return both[0] if both else None
