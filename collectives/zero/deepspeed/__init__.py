"""What a script written for DeepSpeed imports, by DeepSpeed's names: `from collectives.zero import deepspeed`.

    initialize, init_distributed, add_config_arguments     here
    zero       Init, GatheredParameters, register_external_parameter
    utils      safe_get_full_fp32_param and its kin
    comm       the rank, the size, a barrier

Loading it loads torch. Ranks are found as `collectives.connect` finds them; torch.distributed is not needed.
"""

from __future__ import annotations

import argparse
from typing import Any

from collectives.zero import initialize as _front
from collectives.zero.deepspeed import comm, utils, zero
from collectives.zero.deepspeed.comm import init_distributed
from collectives.zero.engine import Engine as DeepSpeedEngine

__all__ = ["DeepSpeedEngine", "add_config_arguments", "comm", "init_distributed", "initialize", "utils", "zero"]


def initialize(*args: Any, **named: Any) -> tuple[DeepSpeedEngine, Any, Any, Any]:
    """As `collectives.zero.initialize`, on the ranks of `init_distributed`, which it calls where nobody has."""
    if named.get("comm") is None:
        named["comm"] = comm.everybody()
    return _front(*args, **named)


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds --deepspeed and --deepspeed_config, which `initialize(args, ...)` reads."""
    group = parser.add_argument_group("DeepSpeed")
    group.add_argument("--deepspeed", action="store_true", help="for the script's own use")
    group.add_argument("--deepspeed_config", metavar="FILE", help="the JSON that initialize goes by")
    return parser
