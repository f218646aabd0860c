"""Which optimizers can be partitioned is found out when one is given, before any communication."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from collectives.zero.elementwise import check_elementwise


class OneLengthForAll(torch.optim.Optimizer):
    """As LARS and LAMB: a step depends on the length of the whole parameter."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.norm() * p.grad


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (torch.optim.SGD, set()),
        (torch.optim.AdamW, {"exp_avg", "exp_avg_sq"}),
        (torch.optim.Adagrad, {"sum"}),
        (torch.optim.RMSprop, {"square_avg"}),
    ],
)
def test_what_works_element_by_element_is_taken(kind: Any, kept: set[str]) -> None:
    assert set(check_elementwise(kind, {"lr": 0.1})) == kept


@pytest.mark.parametrize("kind", [OneLengthForAll, torch.optim.Adafactor, torch.optim.LBFGS])
def test_what_does_not_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} does not work (element by element|on parts)"):
        check_elementwise(kind, {"lr": 0.1})


def test_what_is_no_optimizer_and_arguments_that_it_does_not_take() -> None:
    with pytest.raises(TypeError, match="must be a class of optimizers"):
        check_elementwise(torch.nn.Linear, {})
    with pytest.raises(TypeError, match="momentums"):
        check_elementwise(torch.optim.SGD, {"lr": 0.1, "momentums": 0.9})
    with pytest.raises(ValueError, match="learning rate"):
        check_elementwise(torch.optim.SGD, {"lr": -1.0})
