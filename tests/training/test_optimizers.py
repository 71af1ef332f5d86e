"""Updates of Adam and AdamW are their formulas, and no optimizer needs PyTorch's compiler, which loads slowly."""

import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mtkit.config.training_settings import TrainingConfig
from mtkit.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_tensors, restore_optimizer

RATE, DECAY, MOMENTUM, BETAS, EPSILON = 0.05, 0.1, 0.8, (0.9, 0.98), 1e-6
State = list[Tensor]


def adam(weight: Tensor, gradient: Tensor, state: State, update: int, decoupled: bool = False) -> None:
    if decoupled:
        weight -= RATE * DECAY * weight
    else:
        gradient = gradient + DECAY * weight
    for moment, power, beta in zip(state, (1, 2), BETAS, strict=True):
        moment += (1 - beta) * (gradient**power - moment)
    mean, square = (moment / (1 - beta**update) for moment, beta in zip(state, BETAS, strict=True))
    weight -= RATE * mean / (square.sqrt() + EPSILON)


def adamw(weight: Tensor, gradient: Tensor, state: State, update: int) -> None:
    adam(weight, gradient, state, update, decoupled=True)


FORMULAS: dict[str, Callable[[Tensor, Tensor, State, int], None]] = {
    "adam": adam,
    "adamw": adamw,
}  # test_schedule.py has that of sgd


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_the_formula_and_import_no_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error now
    own = {"momentum": MOMENTUM} if name == "sgd" else {"adam_betas": BETAS, "adam_eps": EPSILON}
    values = {"optimizer": name, "schedule": "constant", "learning_rate": RATE, "weight_decay": DECAY, **own}
    config = TrainingConfig.model_validate(values)
    torch.manual_seed(1)
    model = nn.Linear(3, 4).double()
    parameters = list(model.parameters())
    wanted = [parameter.detach().clone() for parameter in parameters]
    states = [[torch.zeros_like(weight) for _ in range(2)] for weight in wanted]
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    weights = [model.weight.detach().clone()]
    for update in range(1, 5):
        if update == 3:  # the rest is done by another one, from the state
            tensors = optimizer_tensors(optimizer, model)
            optimizer = make_optimizer(model, config, torch.device("cpu"))
            restore_optimizer(optimizer, model, tensors)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        model(torch.randn(5, 3).double()).square().sum().backward()
        if name in FORMULAS:
            for weight, parameter, state in zip(wanted, parameters, states, strict=True):
                FORMULAS[name](weight, parameter.grad, state, update)
        optimizer.step()
        optimizer.zero_grad()
        assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
        if name in FORMULAS:
            assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(parameters, wanted, strict=True))
        weights.append(model.weight.detach().clone())
    assert not any(torch.equal(one, other) for one, other in pairwise(weights))
