"""A training script as people write it for DeepSpeed. It runs on DeepSpeed as it is:

    .venv-deepspeed/bin/torchrun --nproc-per-node 2 tests/zero_front/deepspeed_script.py \
        --deepspeed_config CONFIG.json --checkpoint DIR --out FILE --epochs 2        # and then: --epochs 3 --resume

and on treering once it imports these from `collectives.zero`, as test_deepspeed_script.py lets it. What it wrote on
DeepSpeed is in deepspeed/script.json.
"""

import argparse
import json

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(12, 37), torch.nn.Linear(37, 5)

    def forward(self, x):
        return self.second(torch.nn.functional.gelu(self.first(x)))


def data():
    torch.manual_seed(1)
    x = torch.randn(96, 12)
    return torch.utils.data.TensorDataset(x, torch.sin(x[:, :5] * 2))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoint")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out")
    parser = deepspeed.add_config_arguments(parser)
    args = parser.parse_args()

    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=args.deepspeed_config, enabled=False):
        model = Net()
    engine, optimizer, loader, _ = deepspeed.initialize(
        args=args, model=model, model_parameters=model.parameters(), training_data=data()
    )
    first = 0
    if args.resume:
        _, client_state = engine.load_checkpoint(args.checkpoint)
        first = client_state["epoch"] + 1
    losses, rates = [], []
    for epoch in range(first, args.epochs):
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(engine(x), y)
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
            if engine.is_gradient_accumulation_boundary():
                rates.append(optimizer.param_groups[0]["lr"])
        engine.save_checkpoint(args.checkpoint, tag=f"epoch{epoch}", client_state={"epoch": epoch})
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=engine.zero_optimization_stage() == 3):
        whole = [p.detach().double().norm().item() for p in model.parameters()]
    weights = [safe_get_full_fp32_param(p) for p in model.parameters()]
    moments = [safe_get_full_optimizer_state(p, "exp_avg") for p in model.parameters()]
    if deepspeed.comm.get_rank() == 0:
        found = {
            "losses": losses,
            "rates": rates,
            "steps": engine.global_steps,
            "norms": whole,
            "weights": [w.double().norm().item() for w in weights],
            "moments": [m.double().norm().item() for m in moments],
            "grad_norm": float(engine.get_global_grad_norm()),
        }
        with open(args.out, "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()
