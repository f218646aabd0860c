"""DeepSpeed's engine, as thin as it can be: the calls of a training script written for it, on a ZeroOptimizer."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from collectives.exchange import gather_json
from collectives.zero.checkpoint_errors import CheckpointError
from collectives.zero.config import Config
from collectives.zero.consolidate import state_dict, write_state_dict

torch: Any = importlib.import_module("torch")
Tensor = Any


class Engine:
    """What `initialize` returns first. Attributes it does not have are the module's own.

    The gradients of `gradient_accumulation_steps` calls of `backward` make one step: `step` does nothing until then.
    """

    def __init__(self, module: Any, optimizer: Any, scheduler: Any, config: Config) -> None:
        self.module, self.optimizer, self.lr_scheduler, self.config = module, optimizer, scheduler, config
        self.training_dataloader: Any = None
        self.global_steps = self.micro_steps = self.global_samples = self.skipped_steps = 0
        self._boundary: bool | None = None
        self._unsynced = False
        self._applied = False
        self._norm: float | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.forward(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not set yet
            raise AttributeError(name)
        return getattr(self.module, name)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's output."""
        if self.config.casts_inputs:
            inputs = tuple(map(_half, inputs))
            named = {name: _half(value) for name, value in named.items()}
        if self.config.autocast is None:
            return self.module(*inputs, **named)
        with torch.autocast(self.device.type, dtype=getattr(torch, self.config.autocast)):
            return self.module(*inputs, **named)

    def backward(self, loss: Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> Tensor:
        """Adds the gradients up; at the last micro-batch of a step they are reduced meanwhile. Returns its share."""
        if scale_wrt_gas and self.config.batch.accumulation > 1:
            loss = loss / self.config.batch.accumulation
        quiet = not self.is_gradient_accumulation_boundary() or self._unsynced or not self.config.manages_accumulation
        with self.optimizer.no_sync() if quiet else contextlib.nullcontext():
            self.optimizer.scale(loss).backward(retain_graph=retain_graph)
        return loss

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the loss scale, for a `backward` of one's own. It is not divided by the accumulation steps."""
        return self.optimizer.scale(loss)

    def step(self, lr_kwargs: Mapping[str, Any] | None = None) -> None:
        """Clips, updates, clears the gradients and steps the schedule, at the last micro-batch of a step."""
        due = self.is_gradient_accumulation_boundary() or not self.config.manages_accumulation
        self.micro_steps += 1
        self.global_samples += (self.config.batch.micro or 0) * self.optimizer.comm.size
        self._applied = due
        if not due:
            return
        if self.config.clipping or self.config.skips_overflow:
            limit = self.config.clipping or float("inf")
            self._norm = float(self.optimizer.clip_grad_norm_(limit))
            self._applied = self._norm < float("inf") or not self.config.skips_overflow
        scale = self.config.loss_scale
        if self._applied or (scale is not None and not scale.static):  # there the optimizer skips, and rescales
            self.optimizer.step()
            self._applied = self._applied and self.optimizer.step_was_applied
        if not self._applied:
            self.skipped_steps += 1
        elif self.lr_scheduler is not None:
            self.lr_scheduler.step(**(lr_kwargs or {}))
        self.optimizer.zero_grad()
        self.global_steps += 1
        every = self.config.steps_per_print
        if every and self.global_steps % every == 0 and self.optimizer.comm.rank == 0:
            print(f"step={self.global_steps}, skipped={self.skipped_steps}, lr={self.get_lr()}", file=sys.stderr)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the micro-batch at work is the last of a step."""
        if self._boundary is not None:
            return self._boundary
        return (self.micro_steps + 1) % self.config.batch.accumulation == 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Says it, in the place of counting."""
        self._boundary = is_boundary

    @contextlib.contextmanager
    def no_sync(self) -> Generator[None]:
        """Gradients of a backward inside stay on this rank until the next one outside, at every stage."""
        before, self._unsynced = self._unsynced, True
        try:
            yield
        finally:
            self._unsynced = before

    def coalesce_grad_reduction(self) -> AbstractContextManager[None]:
        """As `no_sync`: the gradients are reduced together, by the first backward or step outside."""
        return self.no_sync()

    def was_step_applied(self) -> bool:
        """Whether the last call of `step` changed the parameters."""
        return self._applied

    def get_global_grad_norm(self) -> float | None:
        """Before clipping, of the last step; None where nothing asked for it."""
        return self._norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def train(self, mode: bool = True) -> Engine:
        self.module.train(mode)
        return self

    def eval(self) -> Engine:
        return self.train(False)

    def get_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def train_batch_size(self) -> int | None:
        return self.config.batch.train

    def train_micro_batch_size_per_gpu(self) -> int | None:
        return self.config.batch.micro

    def gradient_accumulation_steps(self) -> int:
        return self.config.batch.accumulation

    def zero_optimization_stage(self) -> int:
        return self.config.stage

    @property
    def device(self) -> Any:
        return next(self.module.parameters()).device

    @property
    def local_rank(self) -> int:
        comm = self.optimizer.comm
        return next(host.index(comm.rank) for host in comm.hosts if comm.rank in host)

    @property
    def global_rank(self) -> int:
        return self.optimizer.comm.rank

    @property
    def world_size(self) -> int:
        return self.optimizer.comm.size

    # Checkpoints.

    def save_checkpoint(
        self, save_dir: str | Path, tag: str | None = None, client_state: Mapping[str, Any] | None = None,
        save_latest: bool = True, exclude_frozen_parameters: bool = False,
    ) -> bool:  # fmt: skip
        """Writes `save_dir/tag`, a checkpoint of ZeroOptimizer.save, and the file `latest`. All ranks call it.

        `client_state` is anything JSON can hold. Frozen parameters are always saved.
        """
        tag = f"global_step{self.global_steps}" if tag is None else str(tag)
        self._check_tag(tag)
        schedule = None if self.lr_scheduler is None else self.lr_scheduler.state_dict()
        counters = {name: getattr(self, name) for name in _COUNTERS}
        extra = {"client_state": dict(client_state or {}), "engine": counters, "lr_scheduler": schedule}
        self.optimizer.save(Path(save_dir) / tag, extra)
        if save_latest and self.global_rank == 0:
            beside = Path(save_dir) / "latest.tmp"
            beside.write_text(tag)
            beside.replace(Path(save_dir) / "latest")
        self.optimizer.comm.barrier()
        return True

    def load_checkpoint(
        self, load_dir: str | Path, tag: str | None = None, load_module_strict: bool = True,
        load_optimizer_states: bool = True, load_lr_scheduler_states: bool = True, load_module_only: bool = False,
        custom_load_fn: None = None,
    ) -> tuple[str | None, dict[str, Any] | None]:  # fmt: skip
        """The path and the client state of what was read; (None, None) where `load_dir` has no file `latest`.

        load_optimizer_states     False: the optimizer's state, its options and the loss scale stay as they are
        load_lr_scheduler_states  False: so does the schedule
        load_module_only          True: weights and buffers alone, and no count of steps
        load_module_strict        False: parameters that only the module or only the checkpoint has are left alone

        Raises CheckpointError for a checkpoint that is damaged, or is of another model; ValueError for a
        `custom_load_fn`, which would need a whole state dict.
        """
        if custom_load_fn is not None:
            raise ValueError("custom_load_fn is not supported: load with load_module_strict=False, or zero.state_dict")
        latest = Path(load_dir) / "latest"
        if tag is None:
            if not latest.exists():
                return None, None
            tag = latest.read_text().strip()
        path = Path(load_dir) / tag
        with_states = load_optimizer_states and not load_module_only
        extra = self.optimizer.load(path, weights_only=not with_states, strict=load_module_strict)
        if load_module_only:
            return str(path), extra["client_state"]
        for name, value in extra["engine"].items():
            setattr(self, name, value)
        if load_lr_scheduler_states and self.lr_scheduler is not None and extra["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(extra["lr_scheduler"])
        return str(path), extra["client_state"]

    def save_16bit_model(
        self, save_dir: str | Path, save_filename: str = "pytorch_model.bin", exclude_frozen_parameters: bool = False
    ) -> bool:
        """Writes the whole module's state dict, in the parameters' own dtype, from rank 0. All ranks call it.

        A file named .safetensors is one, any other is for `torch.load`.
        At stage 3 only with stage3_gather_16bit_weights_on_model_save, as in DeepSpeed: returns False without.
        """
        if self.config.stage == 3 and not self.config.gathers_on_save:
            return False
        folder = Path(save_dir)
        parts = folder / f"{save_filename}.parts"
        self.optimizer.save(parts)  # rank by rank: no rank needs to hold the whole model beside its own share
        if self.global_rank == 0:
            target = folder / save_filename
            beside = target.with_name(target.name + ".tmp")
            beside.unlink(missing_ok=True)
            dtypes = {name: parameter.dtype for name, parameter in self.module.named_parameters(remove_duplicate=False)}
            whole = {name: value.to(dtypes.get(name, value.dtype)) for name, value in state_dict(parts).items()}
            if exclude_frozen_parameters:
                named = self.module.named_parameters(remove_duplicate=False)
                frozen = {name for name, parameter in named if not parameter.requires_grad}
                whole = {name: value for name, value in whole.items() if name not in frozen}
            write_state_dict(beside, whole, as_safetensors=target.suffix == ".safetensors")
            beside.replace(target)
            shutil.rmtree(parts)
        self.optimizer.comm.barrier()
        return True

    def _check_tag(self, tag: str) -> None:
        if self.config.tag_validation == "ignore":
            return
        tags = gather_json(self.optimizer.comm, tag)
        if len(set(tags)) > 1:
            said = f"the ranks save under different tags: {', '.join(tags)}"
            if self.config.tag_validation == "fail":
                raise CheckpointError(said)
            print(f"treering: {said}", file=sys.stderr)


_COUNTERS = ("global_steps", "micro_steps", "global_samples", "skipped_steps")


def _half(value: Any) -> Any:
    return value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
