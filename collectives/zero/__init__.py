"""The ZeRO optimizer: optimizer state, gradients and parameters spread over the ranks, in a plain PyTorch loop.

    from collectives.zero import ZeroOptimizer

    opt = ZeroOptimizer(model, torch.optim.AdamW, stage=3, lr=1e-3)

Read optimizer.py first. layout.py says who owns what, backward.py when gradients move, gather.py when the parameters of
stage 3 come and go, movement.py between which ranks and in how many bits. May import torch, and what `collectives` may.

What checkpoints are built on, at any number of ranks and any stage:
    opt.parameters     every logical parameter of the model: name, shape, numel, dtype, group (-1: not trained)
    opt.pieces()       Piece: elements [begin, end) of a parameter, laid flat, that this rank holds. `primary` ones
                       together cover every parameter once; read(key), write(key, tensor) for key in keys(), which are
                       "weight" (master weights) and the optimizer's tensors, 1-D; scalars(), set_scalars(dict) for its
                       numbers, such as step
    opt.scalars()      options of the parameter groups, and all else that is one for all; set_scalars(dict)
    opt.refresh()      to be called by all ranks after writing: the model's parameters follow the pieces
"""

from __future__ import annotations

from collectives.zero.checkpoint_errors import CheckpointError
from collectives.zero.config_report import ConfigError
from collectives.zero.consolidate import consolidate, state_dict
from collectives.zero.deepspeed_checkpoint import read_deepspeed
from collectives.zero.estimate import Estimate, estimate
from collectives.zero.initialize import initialize
from collectives.zero.offload import Offload
from collectives.zero.optimizer import ZeroOptimizer
from collectives.zero.pieces import Piece

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Estimate",
    "Offload",
    "Piece",
    "ZeroOptimizer",
    "consolidate",
    "estimate",
    "initialize",
    "read_deepspeed",
    "state_dict",
]
