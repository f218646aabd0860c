# pyright: basic, reportMissingImports=false
"""Stage 3: parameters that are whole only while a module needs them.

    forward     [gather]  module runs  [let go]          hooks on the module
    backward    [gather]  its gradients are computed  [let go]     hooks on its outputs and inputs

A bucket's memory is one storage whose size is 0 while nothing is gathered. What autograd saves for backward, such as
the transpose of a weight, is a view of that storage, and finds the values again once they are gathered again. In
between a parameter is a single NaN seen as the whole shape: it has the right shape and cannot be mistaken for values.

The order of gathers is noted; from the second time on, what follows is gathered ahead, in the background.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from collectives.zero.bucket import Bucket
from collectives.zero.faults import while_doing
from collectives.zero.gathering import Gathering

__all__ = ["EXTERNAL", "Gathered", "Gatherer"]

EXTERNAL = "_external_parameters"
"""The attribute of a module with parameters of others that it uses, by id."""


class Gathered:
    """The whole of one partitioned bucket, now and then."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.layout = bucket, bucket.layout
        device, dtype = bucket.settings.device, self.layout.dtype
        self.whole = torch.empty(self.layout.numel, dtype=dtype, device=device)
        self.storage, self.nbytes = self.whole.untyped_storage(), self.whole.untyped_storage().nbytes()
        self.views = [self.whole[s.begin : s.end].view(s.parameter.shape) for s in self.layout.slots]
        self._gathering, self._exact = bucket.settings.movement.gatherings(self.layout)
        self.here = True
        self.users = 0
        self._work: Any = None
        self.let_go()

    def start(self, gathering: Gathering | None = None) -> None:
        """Starts gathering, unless it is here or on its way."""
        if self.here:
            return
        self.here = True
        self.storage.resize_(self.nbytes)
        comm, bucket, stored = self.bucket.settings.comm, self.bucket, self.bucket.stored_shard
        shard = bucket.shard if stored is None else stored.get()
        if comm.size == 1 or not self.layout.numel:
            with torch.no_grad():
                self.whole.copy_(shard)
            if stored is not None:
                stored.drop()
            return
        with while_doing("gathering the parameters of", self.layout):
            self._work = (gathering or self._gathering).start(shard, self.whole, bucket.version)

    def start_exact(self) -> None:
        """Starts gathering what is not quantised, for others than modules; unless a module is at work on what is."""
        if self._exact is not self._gathering and not self.users:
            self.let_go()
        self.start(self._exact)

    def wait(self) -> None:
        """Returns when the parameters are whole."""
        self.start()
        if self._work is not None:
            work, self._work = self._work, None
            with while_doing("gathering the parameters of", self.layout):
                self.bucket.settings.traffic.wait(work)
            if self.bucket.stored_shard is not None:
                self.bucket.stored_shard.drop()
        for p, view in zip(self.bucket.parameters, self.views, strict=True):
            p.data = view

    @property
    def secondary_bytes(self) -> int:
        """Of a second copy, which is kept from one gather to the next."""
        return self._gathering.held_bytes

    def let_go(self) -> None:
        """Gives the memory back."""
        if self.here:
            self._settle()
            self.bucket.hide()
            self.storage.resize_(0)
            self.here = False

    def _settle(self) -> None:
        if self._work is not None:  # gathered ahead, and not needed after all
            work, self._work = self._work, None
            with while_doing("gathering the parameters of", self.layout):
                self.bucket.settings.traffic.wait(work)
            if self.bucket.stored_shard is not None:
                self.bucket.stored_shard.drop()

    def start_reading(self) -> int:
        """Starts to read what is offloaded of it, ahead of `start`; how many bytes that is."""
        stored = self.bucket.stored_shard
        if stored is None or self.here:
            return 0
        stored.start()
        return stored.nbytes

    def stop_reading(self) -> None:
        """It is not to be gathered after all."""
        if self.bucket.stored_shard is not None and not self.here:
            self.bucket.stored_shard.drop()


class Gatherer:
    """The hooks on modules, and what is gathered.

    prefetch_bytes   how much may be gathered ahead of the module that runs
    """

    def __init__(
        self, model: torch.nn.Module, buckets: Sequence[Bucket], units: Sequence[torch.nn.Module], *,
        prefetch_bytes: int, noted: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.gathered = [Gathered(b) for b in buckets if b.layout.partitioned]
        self._prefetch_bytes, self._noted = prefetch_bytes, noted
        store = self.gathered[0].bucket.settings.homes.parameters if self.gathered else None
        self._read_bytes = store.buffer_bytes if store is not None and prefetch_bytes else 0
        self._of_parameter = {id(p): g for g in self.gathered for p in g.bucket.parameters}
        self._order: list[Gathered] = []  # of the last iteration
        self._now: list[Gathered] = []
        self._handles: list[Any] = []
        self._entered: dict[int, list[Gathered]] = {}
        self._held: list[list[Gathered]] = []
        inside = {id(m) for unit in units for m in unit.modules() if m is not unit}
        for module in model.modules():
            if id(module) in inside:
                continue
            whole = any(module is unit for unit in units)
            needed = self._needed(module, whole)
            if needed:
                self._entered[id(module)] = needed
                self._watch(module)

    def _watch(self, module: torch.nn.Module) -> None:
        self._handles.append(module.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._handles.append(module.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True))

    def _needed(self, module: torch.nn.Module, whole: bool) -> list[Gathered]:
        found: list[Gathered] = []
        inside = module.modules() if whole else (module,)
        others = [p for m in inside for p in m.__dict__.get(EXTERNAL, {}).values()]
        for p in [*module.parameters(recurse=whole), *others]:
            gathered = self._of_parameter.get(id(p))
            if gathered is not None and gathered not in found:
                found.append(gathered)
        return found

    # ---------------------------------------------------------------- hooks

    def _before_forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        needed = self._entered[id(module)]
        self._need(needed)
        for g in needed:
            g.users += 1
        if not torch.is_grad_enabled():
            return None
        leaves, shape = tree_flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
        if not places:
            return None
        for i, x in zip(places, _Leave.apply(lambda: self._leave(needed), *(leaves[i] for i in places)), strict=True):
            leaves[i] = x
        return tree_unflatten(leaves, shape)

    def _after_forward(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        needed = self._entered[id(module)]
        leaves, _ = tree_flatten(output)
        outputs = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
        if torch.is_grad_enabled() and outputs:
            for x in outputs:
                x.register_hook(lambda gradient: self._need(needed))
        # What is computed again for the sake of backward (activation checkpoints) is needed until backward has passed.
        again = torch._C._current_graph_task_id() != -1
        for g in needed:
            g.users -= 1
            if not g.users and not again:
                g.let_go()

    def _leave(self, needed: list[Gathered]) -> None:
        """Backward has passed a module."""
        for g in needed:
            if not g.users:
                g.let_go()

    # ---------------------------------------------------------------- gathering

    def _need(self, needed: list[Gathered]) -> None:
        for g in needed:
            if not (g.here and g in self._now[-len(needed) :]):
                self._now.append(g)
                self._noted(g.layout.index)
            g.start()
        for g in needed:
            g.wait()
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Starts what was gathered next the last time, as long as this time has gone the same way."""
        at, room = len(self._now), self._prefetch_bytes
        if self._order[:at] != self._now:
            return
        coming = deque(self._order[at:])
        while coming and not coming[0].here and coming[0].nbytes <= room:
            room -= coming[0].nbytes
            coming.popleft().start()
        self._read_ahead(coming)

    def _read_ahead(self, coming: Iterable[Gathered]) -> None:
        """Starts to read what is offloaded of the next ones."""
        room = self._read_bytes
        for g in coming if room else ():
            room -= g.start_reading()
            if room <= 0:
                return

    def updated(self) -> None:
        """The parameters are other ones: what is gathered of them lets go, and a new order begins."""
        self.let_go()
        self._read_ahead(self._order)

    def ended(self) -> None:
        """The end of a backward: everything is let go, and the order of gathers becomes what to expect."""
        for g in self.gathered:
            if not g.users:
                g.let_go()
            g.stop_reading()
        self._order, self._now = self._now, []

    def let_go(self) -> None:
        """Lets everything go but what is held, which is gathered again, and begins a new order."""
        for g in self.gathered:
            g.users = 0
            g.let_go()
            g.stop_reading()
        self._now = []
        for g in itertools.chain.from_iterable(self._held):
            g.start_exact()
            g.users += 1
            g.wait()

    @contextmanager
    def held(self, parameters: Iterable[torch.nn.Parameter]) -> Generator[None]:
        """Parameters stay whole in the block. All ranks enter and leave it together."""
        chosen = {g.layout.index: g for p in parameters if (g := self._of_parameter.get(id(p))) is not None}
        found = [chosen[index] for index in sorted(chosen)]
        for g in found:
            g.start_exact()
            g.users += 1
        for g in found:
            g.wait()
        self._held.append(found)
        try:
            yield
        finally:
            self._held.remove(found)
            for g in found:
                g.users -= 1
                if not g.users:
                    g.let_go()

    def attend(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
        """Gathers a parameter for a module that uses it without having it."""
        gathered = self._of_parameter.get(id(parameter))
        if gathered is None:
            return
        needed = self._entered.get(id(module))
        if needed is None:
            self._entered[id(module)] = [gathered]
            self._watch(module)
        elif gathered not in needed:
            needed.append(gathered)

    def close(self) -> None:
        """Takes the hooks off the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Leave(torch.autograd.Function):
    """Nothing in forward; in backward it says when the gradients of a module's inputs have been computed."""

    @staticmethod
    def forward(ctx: Any, left: Callable[[], None], *inputs: torch.Tensor) -> Any:
        ctx.left = left
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        ctx.left()
        return None, *gradients
