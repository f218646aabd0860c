"""Writes deepspeed/numbers.json: what DeepSpeed's schedules and its loss scaler give. Run by hand, with DeepSpeed:

.venv-deepspeed/bin/python tests/zero_front/make_deepspeed_numbers.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import deepspeed.runtime.fp16.loss_scaler as scaler
import torch
from deepspeed.runtime import lr_schedules

RANGE = {"lr_range_test_min_lr": 0.01, "lr_range_test_step_size": 3}
CYCLE = {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0}
DECAY = {"decay_lr_rate": 0.5, "decay_step_size": 2, "decay_mom_rate": 0.1}
SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("WarmupLR", {"warmup_num_steps": 4, "warmup_type": "linear"}),
    ("WarmupLR", {"warmup_num_steps": 4}),
    ("WarmupLR", {"warmup_num_steps": 1, "warmup_min_lr": 0.5, "warmup_max_lr": 3.0}),
    ("WarmupDecayLR", {"total_num_steps": 8, "warmup_max_lr": 4.0, "warmup_num_steps": 4, "warmup_type": "linear"}),
    ("WarmupDecayLR", {"total_num_steps": 8, "warmup_min_lr": 0.01, "warmup_num_steps": 3}),
    ("WarmupCosineLR", {"total_num_steps": 8, "cos_min_ratio": 0.0, "warmup_num_steps": 4, "warmup_type": "linear"}),
    ("WarmupCosineLR", {"total_num_steps": 8, "warmup_min_ratio": 0.1, "warmup_num_steps": 3}),
    ("LRRangeTest", {**RANGE, "lr_range_test_step_rate": 2.0}),
    ("LRRangeTest", {**RANGE, "lr_range_test_staircase": True}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 4}),
    ("OneCycle", {**CYCLE, **DECAY, "cycle_first_step_size": 3, "cycle_second_step_size": 5, "cycle_min_mom": 0.85}),
    ("OneCycle", {**CYCLE, "cycle_first_step_size": 4, "cycle_first_stair_count": 2, "cycle_momentum": False}),
]
LOSS_SCALES = [
    (1, False, 1.0, 3),
    (2, False, 1.0, 3),
    (3, True, 4.0, 2),
    (2, False, 2.0, 1),
    (2, True, 1.0, 5),
    (1, False, 64.0, 9),
]


def schedules() -> list[Any]:
    found: list[Any] = []
    for name, params in SCHEDULES:
        opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = getattr(lr_schedules, name)(opt, **params)
        group, rates, momenta = opt.param_groups[0], [], []
        for _ in range(12):
            rates.append(float(group["lr"]))
            momenta.append(float(group["betas"][0]))
            schedule.step()
        found.append([name, params, rates, momenta])
    return found


def loss_scales() -> list[Any]:
    scaler.dist.get_rank = lambda: 1  # which prints nothing
    found: list[Any] = []
    chance = random.Random(0)
    for hysteresis, consecutive, least, window in LOSS_SCALES:
        scale = scaler.DynamicLossScaler(256.0, window, least, hysteresis, consecutive)
        overflows, values = [], []
        for _ in range(60):
            overflows.append(chance.random() < 0.25)
            try:
                scale.update_scale(overflows[-1])
            except Exception:  # that is what it raises at the least scale
                values.append(None)
                break
            values.append(scale.cur_scale)
        found.append([hysteresis, consecutive, least, window, overflows, values])
    return found


if __name__ == "__main__":
    path = Path(__file__).parent / "deepspeed" / "numbers.json"
    path.write_text(json.dumps({"schedules": schedules(), "loss_scales": loss_scales()}) + "\n")
