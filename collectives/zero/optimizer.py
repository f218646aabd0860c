# pyright: basic, reportMissingImports=false
"""The ZeRO optimizer: a `torch.optim.Optimizer` whose state, gradients and parameters are spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from collectives.connect import connect
from collectives.zero import checkpoint, offloaded_bucket, whole
from collectives.zero.agreement import check_alike
from collectives.zero.backward import Backward
from collectives.zero.bucket import Bucket, Settings
from collectives.zero.elementwise import check_elementwise
from collectives.zero.gather import Gatherer
from collectives.zero.gradient import ShardedGradient
from collectives.zero.layout import BucketLayout, Parameter, buckets
from collectives.zero.meta import device_of, materialised
from collectives.zero.movement import Movement, check_movement
from collectives.zero.offload import Offload, homes
from collectives.zero.pieces import Piece
from collectives.zero.precision import LossScale
from collectives.zero.report import memory

__all__ = ["ZeroOptimizer"]

_MIB = 1 << 20


class ZeroOptimizer(torch.optim.Optimizer):
    """Trains a model on all ranks of a communicator, with any torch optimizer that works element by element.

        opt = ZeroOptimizer(model, torch.optim.AdamW, stage=2, lr=1e-3)
        loss_of_this_ranks_batch.backward()
        opt.step()
        opt.zero_grad()

    Gradients are averaged over the ranks. The bits of all parameters are the same at every stage, for every
    `bucket_bytes`, with and without `overlap`.

    model               keeps its modules, names and shapes. Rank 0's values become everybody's
    optimizer           a class of `torch.optim`, or one like it; called with `optimizer_arguments`
    stage               0: nothing is partitioned; 1: optimizer state; 2: gradients too; 3: parameters too
    comm                a Communicator; None: `collectives.connect()`
    params              what to train, as for torch's optimizers: parameters, or dicts with options of their own.
                        None: all that require gradients
    partition           the ranks over which all that is partitioned, and beyond which it is replicated (MiCS, HSDP;
                        reduction.py): "host", a number (of consecutive ranks), or a Communicator of this rank's group.
                        None: all
    secondary           stage 3: within which ranks, named likewise, a second copy of the parameters is partitioned,
                        from which they are gathered until the next update (hpZ; gathering.py). None: there is none
    quantized_weights   stage 3: parameters are gathered as integers of 8 bits (qwZ). None: as they are
    quantized_gradients gradients are reduced as integers of 8 or 4 bits (qgZ; quantized_reduction.py), in two hops
                        where there are several hosts, or groups of `secondary`. None: as they are
    quantization_block  how many quantised numbers share a scale
    error_feedback      whether what quantising takes off a gradient is added to the next
    bucket_bytes        at most so many bytes are moved at a time, but at least one parameter
    overlap             whether gradients move while backward runs
    reproducible        whether ranks are combined in the canonical order (collectives/calls.py)
    reduce_dtype        the dtype in which gradients are reduced and held; None: the parameters' own
    master_weights      whether 16-bit parameters are updated in float32
    persistence_bytes   stage 3: parameters smaller than this stay whole
    prefetch_bytes      stage 3: how much is gathered ahead
    units               stage 3: modules, or classes of modules, whose parameters are gathered and let go as one
    loss_scale          what `scale(loss)` multiplies by: a number, or "dynamic", which begins with `initial_scale` and
                        doubles after `growth_interval` good steps, or a LossScale. None: 1, or use
                        torch.amp.GradScaler
    offload             where to keep what the stage partitions while nobody needs it: a directory on a fast disk, or
                        "host"; an Offload says it for each kind. None: where the model is
    init_parameters     of a model on the meta device (meta.py): gives the parameters of a module their values. None:
                        its `reset_parameters()` does

    Every rank constructs it, and calls `step`, at the same time. Raises ValueError or TypeError for arguments that
    make no sense and for an optimizer that does not work element by element, MismatchError when the ranks differ.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        *,
        stage: int = 1,
        comm: Any = None,
        params: Iterable[Any] | None = None,
        partition: Any = None,
        secondary: Any = None,
        quantized_weights: Literal[8] | None = None,
        quantized_gradients: Literal[8, 4] | None = None,
        quantization_block: int = 256,
        error_feedback: bool = True,
        bucket_bytes: int = 32 * _MIB,
        overlap: bool = True,
        reproducible: bool = True,
        reduce_dtype: torch.dtype | None = None,
        master_weights: bool = True,
        persistence_bytes: int = 64 << 10,
        prefetch_bytes: int = 32 * _MIB,
        units: Sequence[Any] = (),
        loss_scale: float | Literal["dynamic"] | LossScale | None = None,
        initial_scale: float = 65536.0,
        growth_interval: int = 2000,
        offload: Offload | str | Path | None = None,
        init_parameters: Callable[[torch.nn.Module], None] | None = None,
        **optimizer_arguments: Any,
    ) -> None:
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"stage={stage} must be 0, 1, 2 or 3")
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes={bucket_bytes} must be at least 1")
        movement: dict[str, Any] = {
            "partition": partition, "secondary": secondary, "quantized_weights": quantized_weights,
            "quantized_gradients": quantized_gradients, "quantization_block": quantization_block,
            "error_feedback": error_feedback,
        }  # fmt: skip
        check_movement(stage, **movement)
        offload = Offload.of(offload, stage)
        keeps = check_elementwise(optimizer, optimizer_arguments)
        if params is None:
            params = [p for p in model.parameters() if p.requires_grad]
        prototype = optimizer(params, **optimizer_arguments)  # checks the arguments, and fills in defaults
        self._built = False
        super().__init__(prototype.param_groups, prototype.defaults)
        del prototype
        own_scale = isinstance(loss_scale, LossScale)
        self._scale = loss_scale if own_scale else LossScale(loss_scale, initial_scale, growth_interval)
        self.step_was_applied = True
        self._own_comm = comm is None
        self.comm: Any = connect() if comm is None else comm
        self.stage, self.model = stage, model
        self._everything, self.parameters = self._describe()
        settings = {
            "stage": stage, "bucket_bytes": bucket_bytes, "reproducible": reproducible, "reduce_dtype": reduce_dtype,
            "master_weights": master_weights, "persistence_bytes": persistence_bytes,
            "prefetch_bytes": prefetch_bytes, "overlap": overlap, "optimizer": optimizer.__name__,
            "offload": [where is not None for where in (offload.optimizer, offload.gradients, offload.parameters)],
        }  # fmt: skip
        alike = {k: v if isinstance(v, (str, int)) else type(v).__name__ for k, v in movement.items()}
        check_alike(self.comm, self.parameters, {**settings, **alike})
        device = device_of(self._everything)
        self._movement = Movement(self.comm, device, reproducible=reproducible, **movement)
        self._settings = Settings(
            self._movement, stage=stage, reduce_dtype=reduce_dtype, master_weights=master_weights, overlap=overlap,
            device=device, homes=homes(offload, self.comm, device),
        )  # fmt: skip
        whole_units = _modules(model, units)
        owner = _owners(model, whole_units)
        packed = [
            (p, owner[id(self._everything[p.index])])
            for p in reversed(self.parameters)
            if p.trained or stage == 3  # what is not trained is only worth partitioning
        ]

        def partitioned(p: Parameter) -> bool:
            return stage == 3 and p.numel * p.dtype.itemsize >= max(persistence_bytes, 1)

        layouts = buckets(packed, self._settings.comm.size, bucket_bytes, lambda dtype: dtype.itemsize, partitioned)
        made: dict[int, Bucket] = {}

        def make(layout: BucketLayout) -> None:
            made[layout.index] = bucket = Bucket(layout, self._settings, self._everything)
            if bucket.trained:
                bucket.make_optimizer(optimizer, self.param_groups[layout.group], optimizer_arguments)
            self._settings.homes.together(self.comm, partial(offloaded_bucket.reserve, bucket, keeps))
            offloaded_bucket.put_away(bucket)

        with torch.no_grad():
            of_parameter = {slot.parameter.index: layout for layout in layouts for slot in layout.slots}
            numbers = {id(p): index for index, p in enumerate(self._everything)}
            for parameters in materialised(model, whole_units, init_parameters, device):
                for layout in dict.fromkeys(of_parameter.get(numbers[id(p)]) for p in parameters):
                    if layout is not None and layout.partitioned and not _on_meta(layout, self._everything):
                        make(layout)  # and so it is let go before others come
            for layout in layouts:
                if layout.index not in made:
                    make(layout)
            self._buckets = [made[index] for index in sorted(made)]
            self._share_the_rest(model)
        self._backward = Backward(
            self._buckets, self._everything, self.comm, ended=self._backward_ended, traffic=self._settings.traffic
        )
        self._gatherer = None
        if stage == 3:
            with torch.no_grad():
                self._gatherer = Gatherer(
                    model, self._buckets, whole_units, prefetch_bytes=prefetch_bytes if overlap else 0,
                    noted=self._backward.gathered,
                )  # fmt: skip
        self._settings.traffic.begin()
        self._built = True
        whole.living.add(self)

    # ---------------------------------------------------------------- making

    def _describe(self) -> tuple[list[torch.nn.Parameter], list[Parameter]]:
        """All parameters of the model once, in its order."""
        group_of = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        found: list[torch.nn.Parameter] = []
        described: list[Parameter] = []
        for name, p in self.model.named_parameters():
            group = group_of.pop(id(p), -1)
            if p.is_sparse or p.is_complex():
                raise ValueError(f"parameter {name!r} is sparse or complex, which is not supported")
            found.append(p)
            described.append(Parameter(len(found) - 1, name, tuple(p.shape), p.numel(), p.dtype, group))
        if group_of:
            raise ValueError(f"params has {len(group_of)} parameters that are not the model's")
        if not found:
            raise ValueError("the model has no parameters")
        return found, described

    def _share_the_rest(self, model: torch.nn.Module) -> None:
        """Rank 0's buffers, and the parameters that are in no bucket, become everybody's."""
        bucketed = {id(p) for b in self._buckets for p in b.parameters}
        rest = [p.data for p in self._everything if id(p) not in bucketed] + list(model.buffers())
        if self.comm.size > 1:
            for tensor in rest:
                if tensor.numel():
                    same = tensor.contiguous()
                    self.comm.broadcast(same, root=0, out=same)
                    tensor.copy_(same)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not after construction: the parts are dealt out then. Raises ValueError."""
        if getattr(self, "_built", False):
            raise ValueError("a ZeroOptimizer takes all parameter groups when it is made: pass params=[{...}, {...}]")
        super().add_param_group(param_group)

    # ---------------------------------------------------------------- training

    def no_sync(self) -> AbstractContextManager[None]:
        """In a `with` block, backward adds gradients up on this rank; the next one outside, or `step`, reduces them."""
        return self._backward.no_sync()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters with the averaged gradients of all ranks. Returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        backward = self._backward
        for p in self._everything:
            if p.grad is not None and not isinstance(p.grad, ShardedGradient):
                backward.adopt(p)
        backward.complete_or_join()
        overflow = self._scale.dynamic and not all(map(torch.isfinite, backward.norms(float("inf"))))
        self.step_was_applied = not overflow
        stores = self._settings.homes.stores()
        order = [stored for b in self._buckets if b.trained for stored in offloaded_bucket.order(b)]
        for store in stores:
            store.expect(order)
        for bucket in self._buckets if not overflow else ():
            if bucket.trained:
                bucket.step(backward.active(bucket), self.param_groups[bucket.layout.group], self._scale.value)
        for bucket in self._buckets:
            bucket.published()
        for store in stores:
            store.as_expected()
        if self._gatherer is not None:
            self._gatherer.updated()
        self._scale.update(overflow)
        return loss

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times `loss_scale`: what backward is to be called on."""
        return loss * self._scale.value

    @property
    def loss_scale(self) -> float:
        """The current loss scale; gradients are divided by it when they are used."""
        return self._scale.value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients. `set_to_none=False` is the same here: a gradient of zeros would take memory."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
        self._backward.forget()

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> torch.Tensor:
        """Scales all gradients so that their norm, as one vector over all ranks, is at most `max_norm`.

        Returns the norm before, a float32 scalar; the same as `torch.nn.utils.clip_grad_norm_` on a model that is not
        partitioned. All ranks call it.
        """
        self._backward.complete()
        return self._backward.clip(max_norm, norm_type, error_if_nonfinite, self._scale.value)

    def full_tensor(self, parameter: torch.nn.Parameter, key: str = "weight") -> torch.Tensor | None:
        """The whole of what the optimizer holds of a parameter, on every rank, as a copy. All ranks call it.

        `key` is "weight": what is updated, so float32 for a 16-bit parameter with master weights; or a name of the
        optimizer's state, such as "exp_avg". None where there is no such state, as before the first step.
        """
        return whole.read(self, parameter, key)

    def gathered(
        self, parameters: Iterable[torch.nn.Parameter], modifier_rank: int | None = None
    ) -> AbstractContextManager[None]:
        """In a `with` block, these parameters are whole on every rank, also at stage 3. All ranks enter and leave it.

        Changes are lost (stage 3) or this rank's alone, unless `modifier_rank` says whose become everybody's, master
        weights included. Raises ValueError for a parameter of another model, and for a rank that is none.
        """
        return whole.gathered(self, parameters, modifier_rank)

    def held(self, parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[None]:
        """As `gathered`, for reading alone."""
        return nullcontext() if self._gatherer is None else self._gatherer.held(parameters)

    def attend(self, module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
        """Stage 3: gathers `parameter` for `module`, whose forward uses it though it belongs to another module."""
        if self._gatherer is not None:
            self._gatherer.attend(module, parameter)

    def full_gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """The whole averaged gradient of a parameter, on every rank; None where it has none. All ranks call it."""
        self._backward.complete()
        return self._backward.full(parameter)

    def _backward_ended(self) -> None:
        if self._gatherer is not None:
            self._gatherer.ended()

    # ---------------------------------------------------------------- what it takes

    def memory(self) -> dict[str, int]:
        """Bytes of model state that this rank holds now.

        parameters (with those that are not trained), gradients, optimizer (master weights and state), secondary (the
        second copy), error_feedback (what quantising took off gradients); besides, what comes and goes: in_transit
        (buffers of gradients on their way, and of what is offloaded) and gathered (whole parameters of stage 3). What
        is offloaded lies in host (pinned memory) and files.
        """
        bucketed = {id(p) for b in self._buckets for p in b.parameters}
        rest = [p for p in self._everything if id(p) not in bucketed]
        return memory(self._buckets, rest, self._gatherer)

    def report(self) -> dict[str, Any]:
        """What this rank has sent and waited for since it was made.

        sent_bytes   payload: gradients and parameters, and of it what went within the group (of `partition`
                     or `secondary`, or the host) and beyond; headers: what ranks told each other to agree, and norms
        waited_s     seconds in which this rank stood still for a collective: communication that was not hidden
        rounds       reductions of all gradients
        memory       what `memory` gives
        offload      of what is in files: read_bytes, written_bytes; seconds in which threads read, wrote, or did
                     either (reading_s, writing_s, busy_s), and in which this rank stood still for them (waited_s)
        """
        traffic = self._settings.traffic
        return {
            "sent_bytes": traffic.sent_bytes(), "waited_s": traffic.waited_s, "rounds": self._backward.rounds,
            "memory": self.memory(), "offload": self._settings.homes.counters(),
        }  # fmt: skip

    @property
    def bytes_sent(self) -> int:
        """Bytes of gradients and parameters that this rank has sent since the optimizer was made."""
        return self._settings.traffic.sent_bytes()["payload"]

    def measure(self) -> AbstractContextManager[dict[str, float]]:
        """`with opt.measure() as found:` traces the steps in the block, and fills `found` at its end.

        wall_s            seconds that the block took, and of these
        communication_s   in which a collective ran on this rank, its waiting for other ranks included. It is the sum
        exposed_s         of that for which this rank stood still, and
        hidden_s          of that which ran behind computation
        sent_bytes        of gradients and parameters, by this rank
        calls             collectives that ran

        Nothing is communicated for it: each rank measures itself. Raises ValueError where the communicator is being
        traced already.
        """
        return self._settings.traffic.measure()

    # ---------------------------------------------------------------- what checkpoints are made of

    def pieces(self) -> list[Piece]:
        """All that this rank's optimizer holds, by parameter; see `collectives.zero.pieces`."""
        return [piece for bucket in self._buckets for piece in bucket.pieces]

    def scalars(self) -> dict[str, Any]:
        """The rest of what there is to save: the options of the parameter groups, by number, and the loss scale."""
        groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in self.param_groups]
        return {"groups": groups, "loss_scale": self._scale.state()}

    def set_scalars(self, values: dict[str, Any]) -> None:
        """Sets what `scalars` gives."""
        for group, saved in zip(self.param_groups, values["groups"], strict=True):
            group.update(saved)
        self._scale.set_state(values["loss_scale"])

    @torch.no_grad()
    def refresh(self) -> None:
        """Working parameters from what was written to pieces. All ranks call it, once all is written."""
        self._movement.reduction.reset()
        for bucket in self._buckets:
            bucket.follow()
            bucket.publish()
        for bucket in self._buckets:
            bucket.published()
        if self._gatherer is not None:
            self._gatherer.let_go()

    def save(self, path: str | Path, extra: Any = None) -> None:
        """Writes a checkpoint to a folder; `extra` is kept with it, as JSON. All ranks call it; see checkpoint.py."""
        checkpoint.save(self, path, extra)

    def load(self, path: str | Path, *, weights_only: bool = False, strict: bool = True) -> Any:
        """Reads a checkpoint of any number of ranks and any stage; returns its `extra`. All ranks call it.

        `weights_only` leaves the optimizer's state and options as they are. Without `strict`, parameters that only the
        model or only the checkpoint has are left alone.
        """
        return checkpoint.load(self, path, weights_only=weights_only, strict=strict)

    def close(self, gather: bool = True) -> None:
        """Takes the hooks off the model, and gives up what is offloaded. All ranks call it.

        The parameters of stage 3 become whole first; `gather=False` leaves them without values, for a model that
        would not fit into memory.
        """
        if self._gatherer is not None:
            with torch.no_grad():
                for gathered in self._gatherer.gathered if gather else ():
                    gathered.start_exact()
                    gathered.wait()
            self._gatherer.close()
        self._backward.close()
        whole.living.discard(self)
        for p in self._everything:
            if isinstance(p.grad, ShardedGradient):
                p.grad = None
        self._settings.homes.close()
        self._movement.close()
        if self._own_comm:
            self.comm.close()


def _on_meta(layout: BucketLayout, parameters: Sequence[torch.Tensor]) -> bool:
    return any(parameters[slot.parameter.index].is_meta for slot in layout.slots)


def _modules(model: torch.nn.Module, units: Sequence[Any]) -> list[torch.nn.Module]:
    classes = tuple(u for u in units if isinstance(u, type))
    named = [u for u in units if not isinstance(u, type)]
    return [m for m in model.modules() if isinstance(m, classes) or any(m is u for u in named)]


def _owners(model: torch.nn.Module, units: Sequence[torch.nn.Module]) -> dict[int, int]:
    """The number of the unit, or of the module, that each parameter is gathered for."""
    owner: dict[int, int] = {}
    for unit in units:
        for p in unit.parameters():
            owner.setdefault(id(p), -2 - len(owner))
        first = min((owner[id(p)] for p in unit.parameters()), default=0)
        owner.update((id(p), first) for p in unit.parameters())
    for number, module in enumerate(model.modules()):
        for p in module.parameters(recurse=False):
            owner.setdefault(id(p), number)
    return owner
