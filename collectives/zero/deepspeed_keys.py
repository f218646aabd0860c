"""Every key of DeepSpeed's JSON, with its default there, and what becomes of it here.

A key is **used**; or **ignored**, because it is about speed or memory, and not about what is computed or stored; or
**not supported**, and then a value that asks for it is refused. Names and defaults are those of DeepSpeed 0.19
(deepspeed/runtime/config.py, runtime/constants.py, runtime/zero/config.py, runtime/precision_config.py), which counts
sizes in elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

USED, IGNORED, UNSUPPORTED = "used", "ignored", "not supported"

Kind = str | tuple[str, ...]


class Key(NamedTuple):
    """`kind` is what a value must be: bool, count (a whole number, also written 5e8), number, text, dict, any; or one
    of the words given."""

    kind: Kind
    default: Any
    status: str
    note: str = ""


Section = dict[str, "Key | Section"]


def _used(kind: Kind, default: Any = None, note: str = "") -> Key:
    return Key(kind, default, USED, note)


def _ignored(kind: Kind, default: Any, note: str) -> Key:
    return Key(kind, default, IGNORED, note)


def _unsupported(kind: Kind, default: Any, note: str) -> Key:
    return Key(kind, default, UNSUPPORTED, note)


def _monitor(name: str) -> Key:
    return _ignored("dict", {}, f"nothing is written to {name} here")


DEVICES = ("none", "cpu", "nvme")
DTYPES = ("fp32", "fp16", "bf16", "float32", "float16", "bfloat16", "torch.float16", "torch.bfloat16")

_ALWAYS = "always so here"
_NOT_NEEDED = "not needed here"

OFFLOAD_PARAM: Section = {
    "device": _used(DEVICES, "none", "for a model on the CPU, cpu is where things are already"),
    "nvme_path": _used("text"),
    "buffer_count": _ignored("count", 5, "files are read ahead by size, not by buffer"),
    "buffer_size": _ignored("count", 1e8, "files are read ahead by size, not by buffer"),
    "max_in_cpu": _ignored("count", 1e9, "what is offloaded to files is in files"),
    "pin_memory": _ignored("bool", True, "memory beside a GPU is always pinned"),
}
OFFLOAD_OPTIMIZER: Section = {
    "device": _used(DEVICES, "none", "for a model on the CPU, cpu is where things are already"),
    "nvme_path": _used("text"),
    "buffer_count": _ignored("count", 4, "files are read ahead by size, not by buffer"),
    "pin_memory": _ignored("bool", True, "memory beside a GPU is always pinned"),
    "pipeline_read": _ignored("bool", False, "reading ahead is always on"),
    "pipeline_write": _ignored("bool", False, "writing behind is always on"),
    "fast_init": _ignored("bool", False, _NOT_NEEDED),
    "ratio": _unsupported("number", 1.0, "all of the optimizer's state is offloaded, or none"),
    "super_offload": _unsupported("bool", False, "for superchips"),
    "cpuadam_cores_perc": _ignored("number", 0.8, "torch's threads run the optimizer"),
}
ZERO: Section = {
    "stage": _used("count", 0),
    "contiguous_gradients": _ignored("bool", True, _ALWAYS),
    "reduce_scatter": _ignored("bool", True, "from stage 2 on a real reduce-scatter, always"),
    "reduce_bucket_size": _used("count", 5e8),
    "use_multi_rank_bucket_allreduce": _ignored("bool", True, "gradients are not all-reduced here from stage 1 on"),
    "allgather_partitions": _ignored("bool", True, _ALWAYS),
    "allgather_bucket_size": _ignored("count", 5e8, "parameters are gathered by the buckets of reduce_bucket_size"),
    "overlap_comm": _used("bool", None, "DeepSpeed overlaps at stage 3 alone by default; here it is on by default"),
    "compute_grad_norm": _ignored("bool", True, "the norm is computed when something asks for it"),
    "load_from_fp32_weights": _unsupported("bool", True, "checkpoints hold fp32 master weights, and these are loaded"),
    "elastic_checkpoint": _ignored("bool", False, "checkpoints load at any number of ranks"),
    "offload_param": OFFLOAD_PARAM,
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "zenflow": _unsupported("dict", {}, "an optimizer of DeepSpeed's own"),
    "sub_group_size": _ignored("count", 1e9, "the optimizer runs bucket by bucket"),
    "stage3_prefetch_bucket_size": _used("count", 5e7),
    "stage3_param_persistence_threshold": _used("count", 1e5),
    "stage3_model_persistence_threshold": _unsupported("count", None, "small parameters have no limit in sum"),
    "stage3_max_live_parameters": _ignored("count", 1e9, "parameters are freed right after their use"),
    "stage3_max_reuse_distance": _ignored("count", 1e9, "parameters are freed right after their use"),
    "stage3_gather_16bit_weights_on_model_save": _used("bool", False),
    "stage3_gather_fp16_weights_on_model_save": _used("bool", False, "an old name of ..._16bit_..."),
    "stage3_module_granularity_threshold": _ignored("count", 0, "parameters are gathered by bucket, not by module"),
    "stage3_use_all_reduce_for_fetch_params": _ignored("bool", False, "parameters are all-gathered"),
    "stage3_allgather_sequential": _ignored("bool", False, "parameters are gathered by bucket"),
    "ignore_unused_parameters": _ignored("bool", True, "parameters that are not used count as gradients of zero"),
    "legacy_stage1": _ignored("bool", False, _NOT_NEEDED),
    "round_robin_gradients": _ignored("bool", False, _NOT_NEEDED),
    "parameter_alignment": _ignored("bool", False, _NOT_NEEDED),
    "zero_hpz_partition_size": _used("count", 1),
    "zero_quantized_weights": _used("bool", False, "8 bits"),
    "zero_quantized_nontrainable_weights": _unsupported(
        "bool", False, "weights that are not trained are held as they are, and sent as zero_quantized_weights says"
    ),
    "zero_quantized_gradients": _used("bool", False, "4 bits, in two hops where there are several hosts"),
    "zeropp_loco_param": _used("dict", {}, "error feedback for quantised gradients, without decay and reset"),
    "mics_shard_size": _used("any", -1),
    "mics_hierarchical_params_gather": _ignored("bool", False, "the communicator chooses its algorithms"),
    "memory_efficient_linear": _ignored("bool", True, _NOT_NEEDED),
    "pipeline_loading_checkpoint": _ignored("bool", False, _NOT_NEEDED),
    "override_module_apply": _ignored("bool", True, _NOT_NEEDED),
    "log_trace_cache_warnings": _ignored("bool", False, _NOT_NEEDED),
    "enable_sanity_checks": _ignored("bool", False, "checks are always on"),
    "save_muon_momentum_buffer_in_memory": _ignored("bool", False, _NOT_NEEDED),
    "leaf_module": _ignored("dict", {}, "a module that some ranks do not run needs no mark"),
    "cpu_offload": _used("bool", False, "an old form of offload_optimizer"),
    "cpu_offload_param": _used("bool", False, "an old form of offload_param"),
    "cpu_offload_use_pin_memory": _ignored("bool", False, "an old form of pin_memory"),
}
FP16: Section = {
    "enabled": _used("bool", False),
    "auto_cast": _used("bool", False),
    "loss_scale": _used("number", 0),
    "initial_scale_power": _used("count", 16),
    "loss_scale_window": _used("count", 1000),
    "hysteresis": _used("count", 2),
    "consecutive_hysteresis": _used("bool", False),
    "min_loss_scale": _used("number", 1),
    "fp16_master_weights_and_grads": _unsupported("bool", False, "master weights are fp32"),
}
BF16: Section = {
    "enabled": _used("bool", False),
    "immediate_grad_update": _ignored("bool", False, "gradients are reduced as backward makes them"),
    "check_grad_overflow": _used("bool", True),
    "bf16_master_weights_and_grads": _unsupported("bool", False, "master weights are fp32"),
    "bf16_optimizer_states": _unsupported("bool", False, "the optimizer's states are fp32"),
}

KEYS: Section = {
    "train_batch_size": _used("count"),
    "train_micro_batch_size_per_gpu": _used("count"),
    "gradient_accumulation_steps": _used("count"),
    "managed_gradient_accumulation": _used("bool", True),
    "gradient_clipping": _used("number"),
    "communication_data_type": _used(DTYPES),
    "seq_parallel_communication_data_type": _ignored("text", "fp32", "there is no sequence parallelism here"),
    "prescale_gradients": _ignored("bool", False, "the mean is the same; communication_data_type fp32 cannot overflow"),
    "gradient_predivide_factor": _ignored("number", 1.0, "only divides and multiplies again"),
    "gradient_allreduce_op": _unsupported(("mean", "sum"), "mean", "gradients are averaged"),
    "sparse_gradients": _unsupported("bool", False, "gradients are dense"),
    "steps_per_print": _used("count"),
    "wall_clock_breakdown": _ignored("bool", False, "optimizer.report() has the times"),
    "memory_breakdown": _ignored("bool", False, "optimizer.memory() has it"),
    "dump_state": _ignored("bool", False, "this report is printed anyway"),
    "disable_python_gc": _ignored("bool", False, _NOT_NEEDED),
    "disable_allgather": _ignored("bool", False, "without effect in DeepSpeed too"),
    "allgather_size": _ignored("count", 5e8, "parameters are gathered by the buckets of reduce_bucket_size"),
    "vocabulary_size": _ignored("count", None, "only for a warning of DeepSpeed's"),
    "data_types": {
        "grad_accum_dtype": _used(DTYPES),
        "param_dtype": _unsupported(DTYPES, None, "fp16 and bf16 say what parameters are"),
        "buffer_dtype": _unsupported(DTYPES, None, "buffers follow the module"),
        "keep_in_fp32_modules": _unsupported("any", "auto", "buffers follow the module"),
    },
    "zero_allow_untested_optimizer": _ignored("bool", False, "any optimizer that works element by element does"),
    "zero_force_ds_cpu_optimizer": _ignored("bool", True, "torch's optimizer runs on the CPU as it is"),
    "optimizer": {
        "type": _used("text"),
        "params": _used("dict", {}),
        "legacy_fusion": _ignored("bool", False, _NOT_NEEDED),
    },
    "scheduler": {"type": _used("text"), "params": _used("dict", {})},
    "checkpoint": {
        "tag_validation": _used("text", "Warn"),
        "load_universal": _ignored("bool", False, "checkpoints always load at any number of ranks and any stage"),
        "use_node_local_storage": _unsupported("bool", False, "a checkpoint is one folder that all ranks see"),
        "parallel_write": _ignored("dict", {}, "ranks always write at the same time"),
        "checkpoint_serialization": _ignored("bool", True, "safetensors"),
        "writer": _ignored("dict", {}, "safetensors"),
    },
    "zero_optimization": ZERO,
    "fp16": FP16,
    "bf16": BF16,
    "torch_autocast": {
        "enabled": _used("bool", False),
        "dtype": _used(DTYPES, "bf16"),
        "lower_precision_safe_modules": _ignored("any", None, "torch.autocast chooses, operation by operation"),
    },
    "amp": _unsupported("dict", {}, "fp16 and bf16 do what it is for"),
    "activation_checkpointing": _ignored("dict", {}, "torch.utils.checkpoint needs no key"),
    "comms_logger": _ignored("dict", {}, "optimizer.report() has bytes and times"),
    "aio": _ignored("dict", {}, "files have threads of their own that read ahead"),
    "dataloader_drop_last": _used("bool", False),
    "flops_profiler": _ignored("dict", {}, "there is no profiler here; torch.profiler works as it is"),
    "tensorboard": _monitor("TensorBoard"),
    "wandb": _monitor("Weights & Biases"),
    "csv_monitor": _monitor("CSV files"),
    "comet": _monitor("Comet"),
    "log_level": _ignored("any", None, _NOT_NEEDED),
    "timers": _ignored("dict", {}, "optimizer.report() has the times"),
    "datastates": _ignored("dict", {}, _NOT_NEEDED),
    "pipeline": _ignored("dict", {}, "there are no pipeline stages here"),
    "use_data_before_expert_parallelism": _ignored("bool", False, "there is no expert parallelism here"),
    "elasticity": _unsupported("dict", {}, "the number of ranks is fixed while a job runs"),
    "autotuning": _unsupported("dict", {}, "a program of DeepSpeed's own"),
    "hybrid_engine": _unsupported("dict", {}, "for inference between steps"),
    "compile": _unsupported("dict", {}, "torch.compile the module before"),
    "tensor_parallel": _unsupported("dict", {}, "ranks share data, not layers"),
    "expert_parallel": _unsupported("dict", {}, "ranks share data, not layers"),
    "sequence_parallel_size": _unsupported("count", 1, "ranks share data, not sequences"),
    "data_parallel_size": _unsupported("count", None, "all ranks of the communicator share data"),
    "data_efficiency": _unsupported("dict", {}, "it changes the data"),
    "curriculum_learning": _unsupported("dict", {}, "it changes the data"),
    "progressive_layer_drop": _unsupported("dict", {}, "it changes the model"),
    "eigenvalue": _unsupported("dict", {}, "it changes the model"),
    "quantize_training": _unsupported("dict", {}, "it changes the model"),
    "compression_training": _unsupported("dict", {}, "it changes the model"),
    "weight_quantization": _unsupported("dict", {}, "it changes the model"),
    "sparse_attention": _unsupported("dict", {}, "it changes the model"),
    "nebula": _unsupported("dict", {}, "a service"),
}

ALIASES = {"bfloat16": "bf16"}
"""Old names of whole sections."""
