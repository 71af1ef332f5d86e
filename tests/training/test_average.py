"""The moving average is its formula, and lends its weights to the model without a trace."""

import pytest
import torch
from torch import nn

from mtkit.training.optimizers import MovingAverage


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def change(model: nn.Module) -> None:
    """What an update may do."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
def test_the_average_is_the_decayed_sum_of_the_weights(model, decay):
    average = MovingAverage(model, decay)
    wanted = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for step in range(1, 201):
        change(model)
        average.update(step)
        now = min(decay, (1 + step) / (10 + step))
        wanted = {name: now * wanted[name] + (1 - now) * p.detach().double() for name, p in model.named_parameters()}
    assert average.weights.keys() == wanted.keys()
    for name, tensor in average.weights.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)


def test_while_it_is_in_use_the_model_computes_with_it_and_then_has_its_own_weights_back(model):
    average = MovingAverage(model, 0.9)
    change(model)
    average.update(1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters, x = list(model.parameters()), torch.ones(1, 3)
    kept = {name: tensor.clone() for name, tensor in average.weights.items()}
    with average.in_use():
        assert torch.equal(model(x), nn.functional.linear(x, kept["weight"], kept["bias"]))
    with pytest.raises(KeyboardInterrupt), average.in_use():
        raise KeyboardInterrupt
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in average.weights.items())
    assert not any(torch.equal(kept[name], before[name]) for name in kept)


def test_it_follows_a_model_that_it_was_lent_to(model):
    average = MovingAverage(model, 0.5)
    with average.in_use():
        pass
    change(model)
    before = {name: tensor.clone() for name, tensor in average.weights.items()}
    average.update(100)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(average.weights[name], (before[name] + parameter.detach()) / 2)
