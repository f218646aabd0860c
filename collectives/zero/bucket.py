# pyright: basic, reportMissingImports=false
"""One bucket on one rank: where its gradients gather, which part of them stays, and the optimizer of that part.

    gradients   buffer (whole, on the way)  --reduce-scatter-->  own stretch  -->  optimizer
    parameters  own stretch  --all-gather-->  whole

The stages differ in what is kept: up to stage 1 the buffer stays, and holds the own stretch; from stage 2 on it goes
back to a pool, and the own stretch has memory of its own. At stage 0 the reduced gradients are gathered again, and
every rank updates everything. What is offloaded (offload.py) is in memory only while somebody works on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from collectives.zero.faults import while_doing
from collectives.zero.layout import BucketLayout, Slot
from collectives.zero.memory import Pool, registered
from collectives.zero.movement import Movement
from collectives.zero.offload import Homes
from collectives.zero.offloaded_bucket import own_parameters
from collectives.zero.offloaded_state import OffloadedState, StoredPiece
from collectives.zero.pieces import Piece, cut
from collectives.zero.stored import Later, Stored

__all__ = ["Bucket", "Settings"]


class Settings:
    """What all buckets have in common.

    movement         how gradients and parameters move; comm: the ranks that share the parts
    stage            0 to 3
    reduce_dtype     of gradients on the way; None: the parameters' own
    master_weights   whether 16-bit parameters are updated in float32
    overlap          whether collectives run in the background
    homes            what is offloaded, and where to
    """

    def __init__(
        self, movement: Movement, *, stage: int, reduce_dtype: torch.dtype | None, master_weights: bool, overlap: bool,
        device: torch.device, homes: Homes,
    ) -> None:  # fmt: skip
        self.movement, self.comm, self.traffic = movement, movement.comm, movement.traffic
        self.stage, self.reduce_dtype, self.overlap = stage, reduce_dtype, overlap
        self.master_weights, self.device, self.homes = master_weights, device, homes
        self.pool = Pool(lambda nbytes: registered(movement.comm, nbytes, torch.uint8, device))


class Bucket:
    """See the module. `parameters` are the model's own, by number."""

    def __init__(self, layout: BucketLayout, settings: Settings, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.layout, self.settings = layout, settings
        self.parameters = [parameters[slot.parameter.index] for slot in layout.slots]
        comm, dtype = settings.comm, layout.dtype
        self.begin, self.end = layout.bounds[comm.rank], layout.bounds[comm.rank + 1]
        self.trained = layout.group >= 0
        self.grad_dtype = settings.reduce_dtype or dtype
        self.everything = settings.stage == 0  # every rank updates the whole bucket
        self.keeps_buffer = settings.stage <= 1
        self.full: torch.Tensor | None = None  # the working parameters, whole; None while they are partitioned
        self.shard: torch.Tensor | None = None  # the own stretch of them; None while it is only stored
        self.stored_shard: Stored | None = None  # what is offloaded of it; see offloaded_bucket.py
        self.buffer: torch.Tensor | None = None
        self.taken: torch.Tensor | None = None  # what the pool gave for it
        self._grad: torch.Tensor | None = None  # reduced, the own stretch, unless it is stored
        self.stored_grad: Stored | None = None
        count = len(layout.slots)
        self.local, self.reduced, self.kept = [False] * count, [False] * count, [False] * count
        self.arrived, self.missing = [False] * count, count  # gradients of the backward that runs
        self.sent = False  # in this round
        self.version = 0  # of the parameters: how often they were published
        self._launched = self._earlier = False
        self._work: Any = None
        self._into: torch.Tensor | None = None
        self._place_parameters()
        self._make_pieces()

    # ---------------------------------------------------------------- parameters

    def _place_parameters(self) -> None:
        """Rank 0's values become everybody's, in memory that peers can read."""
        layout, s = self.layout, self.settings
        partitioned = layout.partitioned
        taken = s.pool.take(max(layout.numel * layout.dtype.itemsize, 1)) if partitioned else None
        if taken is None:
            whole = registered(s.comm, layout.numel, layout.dtype, s.device)
        else:
            whole = taken[: layout.numel * layout.dtype.itemsize].view(layout.dtype)
        for slot, p in zip(layout.slots, self.parameters, strict=True):
            whole[slot.begin : slot.end].copy_(p.detach().reshape(-1))
        if s.movement.everybody.size > 1 and layout.numel:
            s.movement.everybody.broadcast(whole, root=0, out=whole)
        if taken is not None:
            self.shard = shard = registered(s.comm, self.end - self.begin, layout.dtype, s.device)
            shard.copy_(whole[self.begin : self.end])
            s.pool.give(taken)
            self.hide()
        else:
            self.full, self.shard = whole, whole[self.begin : self.end]
            self.show(whole)

    def show(self, whole: torch.Tensor) -> None:
        """Makes the model's parameters views of a whole bucket."""
        for slot, p in zip(self.layout.slots, self.parameters, strict=True):
            p.data = whole[slot.begin : slot.end].view(slot.parameter.shape)

    def hide(self) -> None:
        """Lets the model's parameters have their shapes, but no values: a single NaN, seen as the whole shape."""
        nothing = torch.full((), float("nan"), dtype=self.layout.dtype, device=self.settings.device)
        for slot, p in zip(self.layout.slots, self.parameters, strict=True):
            p.data = nothing.expand(slot.parameter.shape)

    def _make_pieces(self) -> None:
        s, layout = self.settings, self.layout
        working = self.full if self.everything else self.shard
        assert working is not None
        self.first, last = (0, layout.numel) if self.everything else (self.begin, self.end)
        apart = self.trained and s.master_weights and layout.dtype in (torch.float16, torch.bfloat16)
        self.master: torch.Tensor | None = working.float() if apart else working
        self.separate_master = apart
        kind = StoredPiece if s.homes.optimizer or s.homes.parameters else Piece
        mine = range(self.begin, self.end if s.movement.primary else self.begin)
        self.pieces = cut(kind, layout.stretches(self.first, last), self.master, self.first, mine)
        self.optimizer: torch.optim.Optimizer | None = None
        self.state: OffloadedState | None = None

    def make_optimizer(self, kind: Any, group: dict[str, Any], arguments: dict[str, Any]) -> None:
        """The optimizer of the own stretch."""
        if self.pieces and self.trained:
            values = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            self.optimizer = kind([{**values, "params": [piece.master for piece in self.pieces]}], **arguments)
            for piece in self.pieces:
                piece.optimizer = self.optimizer

    # ---------------------------------------------------------------- gradients

    @property
    def grad(self) -> torch.Tensor | None:
        """The reduced gradient of the own stretch; None where there is none. One that is stored is looked at."""
        if self.stored_grad is None:
            return self._grad
        return self.stored_grad.store.look(self.stored_grad) if self.stored_grad.exists else None

    def add(self, number: int, gradient: torch.Tensor, onto: bool) -> None:
        """Takes this rank's gradient of a slot, onto what there is of it since the last reduction, if `onto`."""
        with while_doing("reducing gradients, among them those of", self.layout):
            self.settings.movement.reduction.advance()
        buffer = self._buffer()
        slot = self.layout.slots[number]
        place = buffer[slot.begin : slot.end].view(slot.parameter.shape)
        if self.local[number] and onto:
            place.add_(gradient)
        else:
            place.copy_(gradient)
        self.local[number] = True
        if not self.arrived[number]:
            self.arrived[number] = True
            self.missing -= 1

    def expect(self) -> None:
        """A backward begins: a gradient of every slot may come."""
        self.missing = len(self.arrived)
        self.arrived = [False] * self.missing

    def _buffer(self) -> torch.Tensor:
        numel, item = self.layout.numel, self.grad_dtype.itemsize
        if self.buffer is None and self.keeps_buffer:
            self.buffer = registered(self.settings.comm, numel, self.grad_dtype, self.settings.device)
        elif self.buffer is None:
            self.taken = taken = self.settings.pool.take(max(numel * item, 1))
            self.buffer = taken[: numel * item].view(self.grad_dtype)
        return self.buffer

    def reduce(self) -> None:
        """Starts the reduction of the gradients. Slots without one count as zeros."""
        s, layout = self.settings, self.layout
        if self.untouched:  # a later backward has used other parameters
            self.reopen()
        buffer = self._buffer()
        for number, slot in enumerate(layout.slots):
            if not self.local[number]:
                buffer[slot.begin : slot.end].zero_()
                self.kept[number] = self.parameters[number].grad is not None
        own = buffer[self.begin : self.end]
        earlier = any(kept and reduced for kept, reduced in zip(self.kept, self.reduced, strict=True))
        into = own
        if not self.keeps_buffer:
            fresh = self.stored_grad.fresh() if self.stored_grad is not None else None
            into = fresh if fresh is not None else torch.empty_like(own) if earlier or self.grad is None else self.grad
        self._earlier, self._into, self._launched, self.sent = earlier, into, True, True
        if s.movement.everybody.size > 1 and layout.numel:
            with while_doing("reducing the gradients of", layout):
                self._work = s.movement.reduction.start(layout, buffer, into)
            if not s.overlap:
                self._wait("reducing the gradients of")
        elif into is not own:
            into.copy_(own)

    @property
    def untouched(self) -> bool:
        """Whether no gradient has come since the last reduction."""
        return any(self.reduced) and not any(self.local)

    def reopen(self) -> None:
        """Takes reduced gradients that are wanted out of the buffer, because new ones are about to be added to them."""
        self.gradient_ready()
        wanted = any(r and p.grad is not None for r, p in zip(self.reduced, self.parameters, strict=True))
        if wanted and self.keeps_buffer and self.buffer is not None:
            self._grad = self.buffer[self.begin : self.end].clone()
        if not wanted:
            self.reduced = [False] * len(self.reduced)

    def collect(self) -> None:
        """Waits for the reduction."""
        if not self._launched:
            return
        layout = self.layout
        self._wait("reducing the gradients of")
        assert self._into is not None
        assert self.buffer is not None
        if self._earlier:
            before = self.grad
            assert before is not None
            for slot, kept, reduced in zip(layout.slots, self.kept, self.reduced, strict=True):
                begin, end = max(slot.begin, self.begin) - self.begin, min(slot.end, self.end) - self.begin
                if kept and reduced and begin < end:
                    self._into[begin:end] += before[begin:end]
        if self.stored_grad is not None:
            self.stored_grad.commit()
        else:
            self._grad = self._into
        self._into, self._launched = None, False
        self.reduced = [True] * len(layout.slots)
        self.local = [False] * len(layout.slots)
        if self.everything:
            self._gather_gradients()
        if not self.keeps_buffer:
            if self.taken is not None:
                self.settings.pool.give(self.taken)
            self.buffer = self.taken = None

    def _gather_gradients(self) -> None:
        s, layout = self.settings, self.layout
        if s.comm.size > 1 and layout.numel:
            buffer = self._buffer()
            own = buffer[self.begin : self.end]
            with while_doing("gathering the gradients of", layout):
                self._work = s.comm.all_gather_async(own, sizes=layout.sizes, out=buffer)

    def gradient_ready(self) -> None:
        """Waits until the reduced gradients are where they belong."""
        self.collect()
        self._wait("gathering the gradients of")

    def _wait(self, doing: str) -> None:
        if self._work is not None:
            work, self._work = self._work, None
            with while_doing(doing, self.layout):
                self.settings.traffic.wait(work)

    def reduced_gradient(self) -> torch.Tensor | None:
        """What the optimizer works with: elements `first` and on of the bucket."""
        return self.buffer if self.everything else self.grad

    def forget(self) -> None:
        """Drops all gradients."""
        count = len(self.layout.slots)
        self.local, self.reduced, self.kept = [False] * count, [False] * count, [False] * count
        if not self.keeps_buffer:
            self._grad = None
            if self.stored_grad is not None:
                self.stored_grad.forget()
            if self.taken is not None:
                self.settings.pool.give(self.taken)
            self.buffer = self.taken = None

    # ---------------------------------------------------------------- step

    def step(self, active: Sequence[bool], group: dict[str, Any], scale: float = 1.0) -> None:
        """Updates the own stretch of the active slots with gradients / `scale`, then starts sending it."""
        gradient = self.reduced_gradient()
        if self.optimizer is not None and gradient is not None and any(active):
            of_slot = {id(slot): there for slot, there in zip(self.layout.slots, active, strict=True)}
            active_pieces = [piece for piece in self.pieces if of_slot[id(piece.slot)]]
            values = self.optimizer.param_groups[0]
            values.update((k, v) for k, v in group.items() if k not in ("params", "param_names"))
            with own_parameters(self) as working:
                for pieces in [active_pieces] if self.state is None else self.state.in_turn(active_pieces):
                    for piece in pieces:
                        part = gradient[piece.offset : piece.offset + piece.numel].to(piece.master.dtype)
                        piece.master.grad = part if scale == 1.0 else part / scale
                    values["params"] = [piece.master for piece in pieces]
                    self.optimizer.step()
                    for piece in pieces:
                        piece.master.grad = None
                        self._round(piece, working)
        self.publish()

    def _round(self, piece: Piece, working: torch.Tensor) -> None:
        """The working parameters of a piece from its master weights."""
        if self.separate_master:
            working[piece.offset : piece.offset + piece.numel].copy_(piece.master)

    def follow(self) -> None:
        """The working parameters from all master weights, of which some were written."""
        if self.separate_master:
            with own_parameters(self) as working:
                for piece in self.pieces if self.state is None else self.state.with_weights():
                    self._round(piece, working)

    def publish(self) -> None:
        """Working parameters from their owners; `published` waits for it."""
        s, layout = self.settings, self.layout
        self.version += 1
        if not layout.partitioned and not self.everything and s.comm.size > 1 and layout.numel:
            with while_doing("gathering the parameters of", layout):
                if s.overlap:
                    self._work = s.comm.all_gather_async(self.shard, sizes=layout.sizes, out=self.full)
                else:
                    with s.traffic.exposed():
                        s.comm.all_gather(self.shard, sizes=layout.sizes, out=self.full)

    def published(self) -> None:
        """Returns when all parameters are whole again, or where they belong."""
        self._wait("gathering the parameters of")

    def held_bytes(self) -> dict[str, int]:
        """Memory by kind; see report.py."""
        working = self.shard if self.layout.partitioned else self.full
        state = self.optimizer.state.values() if self.optimizer is not None else ()
        tensors = [t for held in state for t in held.values() if isinstance(t, torch.Tensor)]
        gradients = [self.buffer] if self.keeps_buffer and self.buffer is not None else []
        if self._grad is not None and not self._lies_in_buffer(self._grad):
            gradients.append(self._grad)
        masters = sum(piece.master.nbytes for piece in self.pieces) if self.separate_master else 0
        return {
            "parameters": working.nbytes if working is not None else 0,
            "gradients": sum(t.nbytes for t in gradients),
            "optimizer": sum(t.nbytes for t in tensors) + masters,
        }

    def _lies_in_buffer(self, t: torch.Tensor) -> bool:
        return self.buffer is not None and t.untyped_storage().data_ptr() == self.buffer.untyped_storage().data_ptr()

    def every_part(self, number: int) -> Iterable[torch.Tensor]:
        """The parts of a slot, looked up whenever one goes through them."""
        return Later(lambda: self.parts(self.layout.slots[number]))

    def parts(self, slot: Slot, changing: bool = False) -> list[torch.Tensor]:
        """What this rank holds of a slot's reduced gradient, each element on one rank only, but at stage 0.

        `changing`: to be changed in place. What is stored is there until parts of another bucket are asked for.
        """
        gradient = self.reduced_gradient()
        if changing and self.stored_grad is not None and gradient is not None:
            self.stored_grad.changed = True
        if gradient is None:
            return []
        first, last = (0, self.layout.numel) if self.everything else (self.begin, self.end)
        begin, end = max(slot.begin, first), min(slot.end, last)
        return [gradient[begin - first : end - first]] if begin < end else []
