"""What the ranks did in some calls, step by step, gathered into one trace at rank 0."""

from __future__ import annotations

import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collectives.exchange import gather_json
from transports.program import Kind
from transports.tracing import TracedCall, TracedStep

from . import trace
from .trace import Flow, Span

if TYPE_CHECKING:
    from collectives import Communicator

GAP = 0.1  # between two calls in the trace, in lengths of the earlier; what really lay between is left out


class Recorder:
    """Calls, one after another; every rank has one, and rank 0's gets the spans and flows of all."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.spans: list[Span] = []
        self.flows: list[Flow] = []
        self._end_s = 0.0

    def record(self, name: str, call: Callable[[], object]) -> None:
        """Runs the call once more, and notes it. All ranks call it."""
        self.comm.barrier()
        together_s = time.monotonic()
        with self.comm.trace() as calls:
            call()
        told = {"clock": clock_id(), "together_s": together_s, "call": calls[0]}
        cards = gather_json(self.comm, told)
        if self.comm.rank == 0:
            self._add(name, [_read(card["call"]) for card in cards], clock_shifts_s(cards))

    def write(self, path: str) -> None:
        """Write what rank 0 knows. Raises OSError."""
        trace.write(path, self.spans, self.flows)

    def _add(self, name: str, calls: Sequence[TracedCall], shifts_s: Sequence[float]) -> None:
        begin_s = min(call.began_s + shift_s for call, shift_s in zip(calls, shifts_s, strict=True))
        spans, flows = spans_of(name, calls, [self._end_s - begin_s + shift_s for shift_s in shifts_s])
        known = len(self.spans)
        self.spans += spans
        self.flows += [Flow(flow.source + known, flow.target + known) for flow in flows]
        end_s = max(span.end_s for span in spans)
        self._end_s = end_s + GAP * (end_s - self._end_s)


def spans_of(name: str, calls: Sequence[TracedCall], shifts_s: Sequence[float]) -> tuple[list[Span], list[Flow]]:
    """One call as the ranks saw it, rank by rank: the call and its steps; and the messages between them.

    Of two ranks, the k-th send on a lane is what the k-th receive on that lane gets (transports/program.py).
    """
    spans: list[Span] = []
    sent: defaultdict[tuple[int, int, int], deque[int]] = defaultdict(deque)  # span numbers by (source, target, lane)
    received: defaultdict[tuple[int, int, int], deque[int]] = defaultdict(deque)
    for rank, (call, shift_s) in enumerate(zip(calls, shifts_s, strict=True)):
        whole = {"call": call.seq, "steps": len(call.steps)}
        spans.append(Span(rank, "call", name, "call", call.began_s + shift_s, call.ended_s + shift_s, whole))
        for number, step in enumerate(call.steps):
            track, category = _track(step)
            if category == "send":
                sent[rank, step.peer, step.lane].append(len(spans))
            elif category == "recv":
                received[step.peer, rank, step.lane].append(len(spans))
            args = {"step": number, "bytes": step.nbytes, **({} if category == "local" else {"lane": step.lane})}
            words = Kind.NAMES[step.kind] if category == "local" else f"{Kind.NAMES[step.kind]} {track.split(',')[0]}"
            spans.append(Span(rank, track, words, category, step.began_s + shift_s, step.ended_s + shift_s, args))
    flows = [
        Flow(source, target)
        for channel, sources in sent.items()
        for source, target in zip(sources, received[channel], strict=True)
    ]
    return spans, flows


def _track(step: TracedStep) -> tuple[str, str]:
    """The row of a step in the trace, and its category."""
    if step.kind > Kind.RECV_REDUCE:
        return "local", "local"
    lane = f", lane {step.lane}" if step.lane else ""
    if step.kind == Kind.SEND:
        return f"to rank {step.peer}{lane}", "send"
    return f"from rank {step.peer}{lane}", "recv"


def clock_id() -> str:
    """Equal for processes whose CLOCK_MONOTONIC is the same one: the boot of a machine, its containers included."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def clock_shifts_s(cards: Sequence[Any]) -> list[float]:
    """What to add to each rank's times so that all are on rank 0's clock.

    Other machines' clocks are set by the moment at which the first of their ranks left the same barrier, so an arrow
    between machines is right to about the time of one message.
    """
    first_s: dict[str, float] = {}
    for card in cards:
        first_s[card["clock"]] = min(card["together_s"], first_s.get(card["clock"], card["together_s"]))
    return [first_s[cards[0]["clock"]] - first_s[card["clock"]] for card in cards]


def _read(call: Any) -> TracedCall:
    seq, began_s, ended_s, steps = call
    return TracedCall(seq, began_s, ended_s, tuple(TracedStep(*step) for step in steps))
