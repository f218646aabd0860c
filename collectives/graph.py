"""All ranks' steps of a plan merged into one graph: every send joined with its receive, and what must wait
for what.

A matched send and receive become one node, because without buffering both ends move the same bytes at the
same time; a local step is a node of its own. Edges are the order of messages on a lane and the order of steps
on a chunk. The plan can finish without any buffering when this graph has no cycle, and the longest path to a
transfer is its round.
"""

from __future__ import annotations

from collections import deque
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
    """Nodes are numbered; `ends[node]` is (sender, receiver) for a transfer and (rank, None) for a local
    step.

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
    """The graph of a plan. Raises PlanError when steps are malformed, do not match, or wait for each other in
    a circle.

    Takes about a microsecond per step: the loop is written out, since proofs of many ranks and roots run
    through it.
    """
    size, lanes, data = plan.size, plan.lanes, plan.blocks * plan.chunks
    # In an all-to-all the block numbers at the two ends differ by design; elsewhere a chunk keeps its number.
    sizes = plan.chunks if plan.collective == "all_to_all" else data
    first: list[End] = []
    second: list[End | None] = []
    after: list[list[int]] = []
    waits: list[int] = []
    wire: dict[int, deque[int]] = {}
    newest: dict[int, int] = {}
    for rank in range(size):
        writer: dict[int, int] = {}
        readers: dict[int, list[int]] = {}
        index, step = -1, None
        try:
            for index, step in enumerate(
                cast("tuple[object, ...]", plan.steps(rank))
            ):  # a user's, so unknown
                kind = type(step)
                if isinstance(step, (Send, Recv, RecvReduce)):
                    end: End = (rank, index, step)
                    peer, chunk, count, lane = step[:4]
                    if not (
                        0 <= peer < size
                        and peer != rank
                        and 0 <= lane < lanes
                        and count > 0
                        and chunk >= 0
                        and chunk % data + count <= data
                    ):
                        raise _malformed(plan, end)
                    pair = rank * size + peer if kind is Send else peer * size + rank
                    key = pair * lanes + lane
                    if rank < peer:  # the peer comes later and takes the node from the wire
                        node = len(first)
                        first.append(end)
                        second.append(None)
                        queue = wire.get(key)
                        if queue is None:
                            wire[key] = deque((node,))
                            waits.append(0)
                        else:
                            queue.append(node)
                            after[newest[key]].append(node)
                            waits.append(1)
                        newest[key] = node
                        after.append([])
                    else:
                        queue = wire.get(key)
                        if not queue:
                            raise _unmatched(plan, end)
                        node = queue.popleft()
                        other = first[node][2]
                        if other[2] != count or (other[1] - chunk) % sizes:
                            raise _unequal(first[node], end)
                        second[node] = end
                    target = chunk
                    source = chunk if kind is Send else -1
                elif isinstance(step, (Copy, Reduce)):
                    end = (rank, index, step)
                    source, target, count = step[:3]
                    if not (
                        min(source, target) >= 0
                        and count > 0
                        and max(source % data, target % data) + count <= data
                        and (source - target) % sizes == 0
                        and abs(source - target) >= count
                    ):
                        raise _malformed(plan, end)
                    node = len(first)
                    first.append(end)
                    second.append(None)
                    waits.append(0)
                    after.append([])
                else:
                    raise PlanError(f"rank {rank}, step {index}: {step!r} is not a step")

                if source >= 0:
                    for c in range(source, source + count):
                        last = writer.get(c)
                        if last is not None:
                            after[last].append(node)
                            waits[node] += 1
                        since = readers.get(c)
                        if since is None:
                            readers[c] = [node]
                        else:
                            since.append(node)
                if kind is not Send:
                    for c in range(target, target + count):
                        since = readers.pop(c, None)
                        if since is not None:
                            for reader in since:
                                after[reader].append(node)
                            waits[node] += len(since)
                        else:
                            last = writer.get(c)
                            if last is not None:
                                after[last].append(node)
                                waits[node] += 1
                        writer[c] = node
        except TypeError as error:
            raise PlanError(
                f"rank {rank}, step {index}: {step!r} cannot be read as a step: {error}"
            ) from error
    for queue in wire.values():
        if queue:
            raise _unmatched(plan, first[queue[0]])
    ends = [
        (b, a) if b is not None and type(b[2]) is Send else (a, b) for a, b in zip(first, second, strict=True)
    ]
    order, rounds = _sort(ends, after, waits)
    return Graph(plan, ends, order, rounds)


def _sort(
    ends: list[tuple[End, End | None]], after: list[list[int]], waits: list[int]
) -> tuple[list[int], list[int]]:
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
        isinstance(s, (Recv, RecvReduce)) and s.peer == source and s.lane == step.lane
        for s in plan.steps(target)
    )
    trouble = "the message is never received" if sending else "the message never comes"
    return PlanError(
        f"{where(end)}: {trouble}: on lane {step.lane}, rank {source} sends {sends} to rank {target}, "
        f"which receives {takes}"
    )


def _unequal(a: End, b: End) -> PlanError:
    sender, receiver = (a, b) if isinstance(a[2], Send) else (b, a)
    return PlanError(
        f"{where(receiver)}: the message that comes is {where(sender)}; both ends must name the same number "
        f"of chunks, and chunks of the same size"
    )


def _circle(ends: list[tuple[End, End | None]], after: list[list[int]], stuck: set[int]) -> PlanError:
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
    pairs = [
        (a, b)
        for a in earlier
        for b in later
        if a is not None and b is not None and a[0] == b[0] and a[1] < b[1]
    ]
    return next((p for p in pairs if _overwritten(p[0][2], p[1][2]) is not None), pairs[0])


def _overwritten(earlier: Step, later: Step) -> int | None:
    """The first chunk that the earlier step only reads and the later one writes."""
    if isinstance(later, Send) or isinstance(earlier, (Recv, RecvReduce)):
        return None
    read = earlier.chunk if isinstance(earlier, Send) else earlier.source
    written = later.chunk if isinstance(later, (Recv, RecvReduce)) else later.target
    both = range(max(read, written), min(read + earlier.count, written + later.count))
    return both[0] if both else None
