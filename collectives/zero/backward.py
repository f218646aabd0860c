# pyright: basic, reportMissingImports=false
"""Gradients on their way: hooks on the parameters take them as backward makes them, and send them off by bucket.

Buckets are reduced in one fixed order, whatever order they fill in, so that every rank makes the same calls; what is
not full when backward ends follows then, with zeros for parameters that this rank did not use. Together that is a
round (agreement.py).

[Note: whose gradient]  Before a gradient is accumulated, a hook sets `grad` to None, so that autograd hands over the
gradient of this backward alone; whether it is added to what there was follows from whether `grad` was None before: so
`model.zero_grad()` works as it is, and nobody needs to tell us.
"""

from __future__ import annotations

import itertools
import sys
import weakref
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from collectives.zero.agreement import NOTHING, Note, agree
from collectives.zero.bucket import Bucket
from collectives.zero.faults import from_to, while_doing
from collectives.zero.gradient import ShardedGradient
from collectives.zero.norms import norms
from collectives.zero.traffic import Traffic

__all__ = ["Backward"]

_IN_FLIGHT = 3  # buckets of stages 2 and 3 whose buffers are taken at a time

_queue_callback = torch.autograd.Variable._execution_engine.queue_callback
_engine_run = torch.autograd.graph._engine_run_backward.__code__


class Backward:
    """The hooks, and what has become of the round. `ended` is called at the end of each backward."""

    def __init__(
        self, buckets: Sequence[Bucket], parameters: Sequence[torch.nn.Parameter], comm: Any, *,
        ended: Callable[[], None], traffic: Traffic,
    ) -> None:  # fmt: skip
        self.buckets = [b for b in buckets if b.trained]
        self.layouts = [b.layout for b in buckets]
        self.parameters, self.comm, self._ended, self._traffic = list(parameters), comm, ended, traffic
        self.synchronised = True  # False under no_sync
        self.place: dict[int, tuple[Bucket, int]] = {}
        self._next = self.rounds = self.backwards = 0
        self._task = NOTHING  # the graph task whose end is awaited
        self._running = self._open = self._early = False
        self.gathers = self._ended_rounds = 0
        self._in_flight: list[Bucket] = []
        self._norms: dict[float, list[torch.Tensor]] = {}
        self._handles: list[Any] = []
        for bucket in self.buckets:
            for number, (slot, p) in enumerate(zip(bucket.layout.slots, bucket.parameters, strict=True)):
                self.place[slot.parameter.index] = bucket, number
                self._handles.append(p.register_hook(self._before(slot.parameter.index)))
                self._handles.append(p.register_post_accumulate_grad_hook(self._after(slot.parameter.index)))
        self.gradients = {
            i: ShardedGradient(self, i, self.parameters[i]) for i, (b, _) in self.place.items()
        }  # fmt: skip

    # ---------------------------------------------------------------- hooks

    # The hooks know their owner weakly: Python does not see what C++ keeps in a tensor, and could never free the cycle.

    def _before(self, index: int) -> Callable[[torch.Tensor], None]:
        me = weakref.ref(self)

        def before(gradient: torch.Tensor) -> None:
            if (owner := me()) is not None:
                owner.expect(index)

        return before

    def _after(self, index: int) -> Callable[[torch.Tensor], None]:
        me = weakref.ref(self)

        def after(p: torch.Tensor) -> None:
            if (owner := me()) is not None:
                owner.take(index)

        return after

    def expect(self, index: int) -> None:
        """A parameter's gradient is about to be accumulated. See [Note: whose gradient]."""
        bucket, number = self.place[index]
        if bucket.sent:
            self.complete()
        self._enter()
        if bucket.untouched:
            bucket.reopen()
        p = self.parameters[index]
        bucket.kept[number] = p.grad is not None
        p.grad = None

    def take(self, index: int) -> None:
        """A parameter's gradient of this backward is there."""
        bucket, number = self.place[index]
        p = self.parameters[index]
        assert p.grad is not None
        bucket.add(number, p.grad, bucket.kept[number])
        p.grad = self.gradients[index]
        if self.synchronised and not bucket.missing:
            self._launch(bucket)

    def _enter(self) -> None:
        """Notes a backward that has just begun. One within another (reentrant checkpoints) is a part of that."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        nested = _backwards_on_stack() > 1
        if nested and self._running:
            return
        self._early = self._early or self._running  # the one before never came to its end
        self._task, self._open = task, True
        self._norms.clear()
        for bucket in self.buckets:
            bucket.expect()
        if not nested:
            self._running = True
            self.backwards += 1
            _queue_callback(self._end)

    def _end(self) -> None:
        self._running, self._task = False, NOTHING
        self._ended()
        if self.synchronised:
            unused = any(b.missing for b in self.buckets if not b.sent)
            self.launch_all()
            if unused:  # whether others have used them decides what `grad` is
                self.complete()

    # ---------------------------------------------------------------- rounds

    def _launch(self, full: Bucket) -> None:
        """Sends off a bucket that is full, and those that have waited for it."""
        if full.settings.stage == 3:
            # Gathers come in between, in the order of modules. What is spread over modules waits for the end.
            if full.layout.partitioned:
                self._send(full)
            return
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            self._send(self.buckets[self._next])

    def _send(self, bucket: Bucket) -> None:
        bucket.reduce()
        self._next += bucket.settings.stage < 3
        if not bucket.keeps_buffer:
            self._in_flight.append(bucket)
            if len(self._in_flight) > _IN_FLIGHT:
                self._in_flight.pop(0).collect()

    def launch_all(self) -> None:
        """Sends off every bucket that is not on its way."""
        for bucket in self.buckets:
            if not bucket.sent:
                self._send(bucket)

    @contextmanager
    def no_sync(self) -> Generator[None]:
        """See ZeroOptimizer."""
        before, self.synchronised = self.synchronised, False
        try:
            yield
        finally:
            self.synchronised = before

    def complete(self) -> None:
        """Ends the round: waits for all gradients, and hears of the other ranks which parameters were used.

        Does nothing where nothing has happened since the last round.
        """
        if self._open or self._next:
            self.finish()

    def finish(self) -> None:
        """Ends the round even if this rank has computed nothing, because others may have."""
        used: Any = np.zeros(len(self.parameters), bool)
        for bucket in self.buckets:
            for slot, there, reduced, p in zip(
                bucket.layout.slots, bucket.local, bucket.reduced, bucket.parameters, strict=True
            ):
                used[slot.parameter.index] = there or (reduced and p.grad is not None)
        incomplete = NOTHING
        inside = torch._C._current_graph_task_id() != NOTHING  # a parameter in several reentrant checkpoints
        if self._early or (self._running and not inside):
            waiting = (b.layout.index for b in self.buckets if b.missing and not b.sent)
            incomplete = next(waiting, self.buckets[-1].layout.index)
        self.launch_all()
        note = Note(self.rounds, self.backwards, incomplete, self.gathers, 0)
        for bucket in self.buckets:
            bucket.collect()
        self._in_flight.clear()
        for bucket in self.buckets:
            bucket.gradient_ready()
        with self._traffic.header():
            marks: Any = agree(self.comm, note, used, self.layouts)
        anywhere: Any = marks.any(axis=0)
        for index, (bucket, number) in self.place.items():
            p = self.parameters[index]
            if not anywhere[index]:
                p.grad, bucket.reduced[number] = None, False
            elif p.grad is None and used[index]:  # cleared since backward
                continue
            elif bucket.everything and bucket.grad_dtype == p.dtype:
                assert bucket.buffer is not None
                slot = bucket.layout.slots[number]
                p.grad = bucket.buffer[slot.begin : slot.end].view(p.shape)
            else:
                p.grad = self.gradients[index]
        self.rounds += 1
        self._ended_rounds += 1
        self._next = self.backwards = 0
        self._open = self._early = False
        self._running = self._running and inside
        self._norms.clear()
        for bucket in self.buckets:
            bucket.sent = False

    def complete_or_join(self) -> None:
        """Ends the round before a step. A rank that has computed nothing takes part, if only to be told of."""
        if self._open or self._next or not self._ended_rounds:
            self.finish()
        self._ended_rounds = 0

    def adopt(self, p: torch.nn.Parameter) -> None:
        """Takes a gradient that somebody put into `grad` as this rank's own, to be reduced like the others."""
        index = next(i for i, q in enumerate(self.parameters) if q is p)
        bucket, number = self.place[index]
        gradient = p.grad
        assert gradient is not None
        if not gradient.numel() or (bucket.buffer is not None and _lies_in(gradient, bucket.buffer)):
            return  # stage 0: it is the reduced one
        if bucket.sent:
            self.complete()
        if bucket.untouched:
            p.grad = None
            bucket.reopen()
        bucket.kept[number] = False
        bucket.add(number, gradient, False)
        p.grad, self._open = self.gradients[index], True

    def forget(self) -> None:
        """Drops all gradients; what is under way is waited for."""
        for bucket in self.buckets:
            bucket.gradient_ready()
            bucket.forget()
        self._in_flight.clear()

    def clip(self, max_norm: float, order: float, error_if_nonfinite: bool, loss_scale: float) -> torch.Tensor:
        """See ZeroOptimizer.clip_grad_norm_."""
        every = self.norms(order)
        numbers = [i for i in self.place if self.parameters[i].grad is not None]
        if not numbers:
            return torch.zeros(())
        total = torch.linalg.vector_norm(torch.stack([every[i] for i in sorted(numbers)]), order) / loss_scale
        if error_if_nonfinite and not torch.isfinite(total):
            raise RuntimeError(
                f"the norm of order {order} of the gradients is {total.item()}, which cannot be clipped to"
            )
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for i in numbers:
            for part in self.parts(i):
                part.mul_(scale.to(part.dtype))
        return total

    def full(self, p: torch.nn.Parameter) -> torch.Tensor | None:
        """See ZeroOptimizer.full_gradient."""
        index = next(i for i, q in enumerate(self.parameters) if q is p)
        if p.grad is None or index not in self.place:
            return None
        if not isinstance(p.grad, ShardedGradient):
            return p.grad.clone()
        bucket, number = self.place[index]
        slot, bounds = bucket.layout.slots[number], bucket.layout.bounds
        own = bucket.parts(slot)
        if bucket.everything:
            return own[0].to(p.dtype).view(p.shape) if own else torch.zeros_like(p)
        inside = [min(max(b - slot.begin, 0), slot.parameter.numel) for b in bounds]
        sizes = [b - a for a, b in itertools.pairwise(inside)]
        mine = own[0].contiguous() if own else torch.empty(0, dtype=bucket.grad_dtype)
        comm = bucket.settings.comm
        with while_doing("gathering the gradient of", slot.parameter.name):
            whole = comm.all_gather(mine, sizes=sizes) if comm.size > 1 else mine
        return whole.to(p.dtype).view(slot.parameter.shape)

    def active(self, bucket: Bucket) -> list[bool]:
        """Which of a bucket's parameters have a gradient to update with."""
        return [
            reduced and p.grad is not None for reduced, p in zip(bucket.reduced, bucket.parameters, strict=True)
        ]  # fmt: skip

    def gathered(self, index: int) -> None:
        """Notes that a bucket's parameters were gathered."""
        self.gathers = zlib.crc32(index.to_bytes(4, "little"), self.gathers)

    # ---------------------------------------------------------------- what ShardedGradient asks

    def parts(self, number: int) -> list[torch.Tensor]:
        self.complete()
        self._norms.clear()
        bucket, place = self.place[number]
        return bucket.parts(bucket.layout.slots[place], changing=True)

    def norms(self, order: float) -> list[torch.Tensor]:
        self.complete()
        known = self._norms.get(order)
        if known is None:
            comm = self.buckets[0].settings.comm if self.buckets else self.comm  # within which parts are not replicated
            stored = [bucket.stored_grad for bucket in self.buckets if bucket.stored_grad is not None]
            for store in {s.store for s in stored}:
                store.expect(stored)
            parts = {  # by bucket, because of gradients that are offloaded one bucket is in memory at a time
                number: bucket.every_part(place)
                for number, (bucket, place) in self.place.items()
                if bucket.reduced[place] and (not bucket.everything or comm.rank == 0)
            }
            with self._traffic.header(), while_doing("computing the norms of", from_to(self.layouts)):
                known = self._norms[order] = norms(comm, parts, len(self.parameters), order)
        return known

    def any_rank(self, flag: torch.Tensor) -> None:
        if self.comm.size > 1:
            with self._traffic.header(), while_doing("looking for infinities in", from_to(self.layouts)):
                self.comm.all_reduce(flag, op="max", out=flag)

    def close(self) -> None:
        """Takes the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _lies_in(inner: torch.Tensor, outer: torch.Tensor) -> bool:
    begin, size = outer.data_ptr(), outer.numel() * outer.element_size()
    return begin <= inner.data_ptr() < begin + max(size, 1)


def _backwards_on_stack() -> int:
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        count += frame.f_code is _engine_run
        frame = frame.f_back
    return count
