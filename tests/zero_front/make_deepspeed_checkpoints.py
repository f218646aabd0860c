"""Makes tests/zero_front/deepspeed/: small checkpoints that DeepSpeed itself has written, and what it says of them.

    make deepspeed
    .venv-deepspeed/bin/torchrun --nproc-per-node 2 tests/zero_front/make_deepspeed_checkpoints.py

Beside each checkpoint, `expected.pt` has the fp32 weights that DeepSpeed's own converter makes of it; `estimates.json`
has what its estimators of memory answer.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

HERE = Path(__file__).parent / "deepspeed"
CASES = {"stage1": (1, {}), "stage2": (2, {}), "stage3": (3, {}), "bf16": (2, {"bf16": {"enabled": True}})}


class Model(torch.nn.Module):
    """Odd sizes, a tied, a frozen and a scalar-sized parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.register_buffer("offset", torch.arange(5.0))
        self.frozen = torch.nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(self.embed(tokens) + self.offset.to(self.scale.dtype)) * self.scale))


def main() -> None:
    rank = int(os.environ["RANK"])
    deepspeed.init_distributed(dist_backend="gloo")
    for name, (stage, more) in CASES.items():
        torch.manual_seed(stage)
        model = Model()
        plain = [p for n, p in model.named_parameters() if p.requires_grad and "norm" not in n]
        optimizer = torch.optim.AdamW(
            [{"params": plain}, {"params": list(model.norm.parameters()), "weight_decay": 0.0}], lr=0.1
        )
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        config = {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.0, "zero_optimization": zero, **more}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for step in range(2):
            tokens = torch.arange(3) + rank + step
            engine.backward(engine(tokens).float().square().mean())
            engine.step()
        if rank == 0:
            shutil.rmtree(HERE / name, ignore_errors=True)
        torch.distributed.barrier()
        engine.save_checkpoint(str(HERE / name), tag="two", client_state={"note": "made by DeepSpeed"})
        torch.distributed.barrier()
        if rank == 0:
            torch.save(
                {key: value.clone() for key, value in get_fp32_state_dict_from_zero_checkpoint(HERE / name).items()},
                HERE / name / "expected.pt",
            )
            for script in (HERE / name).glob("*.py"):  # copies of its converters
                script.unlink()
    if rank == 0:
        estimates = [
            {"stage": stage, "count": count, "largest": largest, "ranks": ranks, "offload": offload, "device": device}
            for count, largest in ((7_500_000_000, 50_000_000), (16_797_696, 1_050_624))
            for ranks in (1, 2, 8)
            for stage, offload, device in (
                (2, [], estimate_zero2_model_states_mem_needs(count, ranks, 1, False)[1]),
                (2, ["states"], estimate_zero2_model_states_mem_needs(count, ranks, 1, True)[1]),
                (3, [], estimate_zero3_model_states_mem_needs(count, largest, ranks, 1, False, False)[1]),
                (3, ["states"], estimate_zero3_model_states_mem_needs(count, largest, ranks, 1, True, False)[1]),
                (3, ["states", "parameters"], estimate_zero3_model_states_mem_needs(count, largest, ranks)[1]),
            )
        ]
        (HERE / "estimates.json").write_text(json.dumps(estimates, indent=1) + "\n")


if __name__ == "__main__":
    main()
