"""Proves a plan: runs all ranks' steps on symbols instead of numbers, before a single byte moves.

A chunk's symbol is the set of ranks that have contributed to it and the chunk of theirs that it is made of. A
plan is right when every output chunk ends with what the collective promises, each rank counted once, and in a
scan combined in rank order, whatever the order in which independent steps happen; `graph.build` shows that they
all can happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal

from collectives.graph import End, Graph, PlanError, build, where
from collectives.plan import COLLECTIVES, Copy, Plan, Recv, Reduce, Send

__all__ = ["PlanError", "Proof", "prove", "verify"]

Symbol = tuple[int, int, bool]
"""Who contributed (bit mask of ranks), which input chunk of theirs, and whether in the canonical order."""


@dataclass(frozen=True)
class Proof:
    """What a proved plan costs.

    `rounds` is the longest chain of transfers. Bytes are fractions of the collective's array: all n blocks
    where there are blocks, one rank's whole input for an all-to-all. `order` is "canonical" when every output
    chunk was combined by the fixed tree over the ranks [Note: canonical order], so that its bits depend on
    nothing but the ranks' data.
    """

    plan: Plan
    rounds: int
    order: Literal["canonical", "fixed"]
    sent_chunks: dict[tuple[int, int], int]

    @cached_property
    def links(self) -> dict[tuple[int, int], Fraction]:
        """What crosses from one rank to another, for each pair that talks."""
        return {pair: self._share(count) for pair, count in self.sent_chunks.items()}

    @cached_property
    def sent_by_rank(self) -> tuple[Fraction, ...]:
        """What each rank sends."""
        counts = [0] * self.plan.size
        for (source, _), count in self.sent_chunks.items():
            counts[source] += count
        return tuple(self._share(count) for count in counts)

    @property
    def sent(self) -> Fraction:
        """What the busiest rank sends."""
        return max(self.sent_by_rank)

    def _share(self, chunks: int) -> Fraction:
        if self.plan.collective == "barrier":
            return Fraction(0)
        return Fraction(chunks, self.plan.data_chunks)


def verify(plan: Plan) -> Proof:
    """Proves that a plan does what its collective promises, without any buffering, and counts what it costs.

    Raises PlanError, naming rank and step, when steps are malformed or unmatched, would deadlock or overwrite
    what is still being sent, read a chunk that holds nothing, count a rank twice, or leave the wrong result.
    """
    return prove(plan)[0]


def prove(plan: Plan) -> tuple[Proof, Graph]:
    """The proof, and the graph that it is about: who transfers what to whom, in which round."""
    graph = build(plan)
    sent: dict[tuple[int, int], int] = {}
    memory = _run(graph, sent)
    canonical = True
    pieces = plan.chunks
    promise = COLLECTIVES[plan.collective].promise
    for rank in range(plan.size):
        holds = memory[rank]
        for chunk in plan.output_chunks(rank):
            mask, block = promise(rank, chunk // pieces, plan.size, plan.root)
            symbol = holds.get(chunk)
            if symbol is None or symbol[0] != mask or symbol[1] != block * pieces + chunk % pieces:
                raise _wrong_result(plan, rank, chunk, symbol, (mask, block * pieces + chunk % pieces, True))
            canonical = canonical and symbol[2]
    rounds = max(graph.rounds, default=0)
    return Proof(plan, rounds, "canonical" if canonical else "fixed", sent), graph


@lru_cache(maxsize=256)
def canonical_siblings(size: int) -> dict[int, int]:
    """The fixed tree by which ranks are combined, as left operand's ranks -> right operand's ranks.

    [Note: canonical order]
    With q the largest power of two <= size, the first 2 * (size - q) ranks are combined in pairs of
    neighbours, which leaves q values in rank order; neighbours among these are combined, then neighbours
    among the results, to the end. Five ranks: ((0 + 1) + 2) + (3 + 4). The tree is in rank order and
    ceil(log2 size) deep.

    In a scan the ranks from a to b are split so that the right operand has the largest power of two of them that
    leaves some for the left. Ranks 0 to 4: 0 + ((1 + 2) + (3 + 4)).
    """
    q = 1 << (size.bit_length() - 1)
    masks = [3 << 2 * i if i < size - q else 1 << (i + size - q) for i in range(q)]
    siblings = {1 << 2 * i: 2 << 2 * i for i in range(size - q)}
    while len(masks) > 1:
        pairs = list(zip(masks[::2], masks[1::2], strict=True))
        siblings.update(pairs)
        masks = [a | b for a, b in pairs]
    return siblings


def _run(graph: Graph, sent: dict[tuple[int, int], int]) -> list[dict[int, Symbol]]:
    """Carries the symbols through the graph; returns what every chunk of every rank holds at the end."""
    plan, ends = graph.plan, graph.ends
    siblings = canonical_siblings(plan.size)
    scans = plan.collective in ("scan", "exscan")
    once = plan.collective != "barrier"  # hearing of a rank twice does no harm there
    memory = [{c: (1 << rank, c, True) for c in plan.input_chunks(rank)} for rank in range(plan.size)]
    for node in graph.order:
        giver, taker = ends[node]
        rank, _, step = giver
        source = memory[rank]
        if taker is None:
            target, end = source, giver
            assert isinstance(step, (Copy, Reduce))
            read, write, count = step.source, step.target, step.count
            combine, first = isinstance(step, Reduce), not isinstance(step, Copy) and step.target_first
        else:
            peer, end, taken = taker[0], taker, taker[2]
            target = memory[peer]
            assert isinstance(step, Send)
            assert not isinstance(taken, (Send, Copy, Reduce))
            read, count, write = step.chunk, step.count, taken.chunk
            combine, first = not isinstance(taken, Recv), isinstance(taken, Recv) or taken.local_first
            sent[rank, peer] = sent.get((rank, peer), 0) + count
        for offset in range(count):
            a = source.get(read + offset)
            if a is None:
                raise PlanError(f"{where(giver)}: reads chunk {read + offset}, which holds nothing yet")
            if not combine:
                target[write + offset] = a
                continue
            b = target.get(write + offset)
            if b is None:
                raise PlanError(f"{where(end)}: combines with chunk {write + offset}, which holds nothing yet")
            if a[1] != b[1] or (once and a[0] & b[0]):
                raise _wrong_sum(end, write + offset, b, a)
            if first:
                a, b = b, a
            if scans:
                if a[0].bit_length() != (b[0] & -b[0]).bit_length() - 1:
                    raise _wrong_order(end, write + offset, a, b)
                canonical = _canonical_split(a[0], b[0])
            else:
                canonical = siblings.get(a[0]) == b[0]
            target[write + offset] = (a[0] | b[0], a[1], a[2] and b[2] and canonical)
    return memory


def _wrong_sum(end: End, chunk: int, local: Symbol, incoming: Symbol) -> PlanError:
    if local[1] != incoming[1]:
        trouble = "only the same chunk of different ranks adds up"
    else:
        trouble = f"{_ranks(local[0] & incoming[0])} would count twice"
    return PlanError(
        f"{where(end)}: chunk {chunk} holds {_describe(local)} and is combined with {_describe(incoming)}: {trouble}"
    )


def _canonical_split(left: int, right: int) -> bool:
    """Whether two neighbouring intervals of ranks are the operands that a scan's canonical order has."""
    ranks = left.bit_count() + right.bit_count()
    return right.bit_count() == 1 << ((ranks - 1).bit_length() - 1)


def _wrong_order(end: End, chunk: int, left: Symbol, right: Symbol) -> PlanError:
    return PlanError(
        f"{where(end)}: chunk {chunk} becomes {_ranks(left[0])} op {_ranks(right[0])}: in a scan the left operand is "
        f"the ranks next below those of the right one"
    )


def _wrong_result(plan: Plan, rank: int, chunk: int, found: Symbol | None, promised: Symbol) -> PlanError:
    def writes(index: int) -> bool:
        step = steps[index]
        start = step.target if isinstance(step, (Copy, Reduce)) else step.chunk
        return not isinstance(step, Send) and start <= chunk < start + step.count

    steps = plan.steps(rank)
    last = next((i for i in reversed(range(len(steps))) if writes(i)), None)
    nowhere = f"none of its {len(steps)} steps writes it:"
    since = nowhere if last is None else f"after step {last}, {steps[last]},"
    holds = "nothing" if found is None else _describe(found)
    return PlanError(
        f"rank {rank}, chunk {chunk}: {since} it ends with {holds}; {plan.collective} promises {_describe(promised)}"
    )


def _describe(symbol: Symbol) -> str:
    return f"chunk {symbol[1]} of {_ranks(symbol[0])}"


def _ranks(mask: int) -> str:
    """ "rank 3", or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in range(mask.bit_length()):
        if mask >> rank & 1:
            if runs and runs[-1][1] == rank - 1:
                runs[-1][1] = rank
            else:
                runs.append([rank, rank])
    listed = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if mask & (mask - 1) else ''} {listed}"
