"""Dropout drops what it says, keeps the mean, and is the same for the same seed."""

import pytest
import torch

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.load import config_from_text
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import ConfigError
from mtkit.models.layers import dropout
from mtkit.models.registry import new_model


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(1000, 333), (7, 11, 1301)])
def test_a_share_is_dropped_and_the_mean_stays(rate, shape):
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    y = dropout(x, rate, training=True)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(x.grad, y.detach()), "the gradient is dropped where the value is, and scaled alike"
    assert y.detach().unique().numel() == 2


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 20), 0.3, training=True) != 0).float() - 0.7
    for distance in (1, 2, 3, 4, 8):
        assert abs((kept[:-distance] * kept[distance:]).mean().item()) < 0.001


def test_the_same_seed_drops_the_same():
    x = torch.randn(100, 7)
    torch.manual_seed(5)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5, training=True), first)


def test_nothing_is_dropped_where_it_should_not_be():
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("rate", [0.9999999, 1 - 1e-16, 0.99999])
def test_a_rate_near_1_leaves_numbers(rate):
    torch.manual_seed(0)
    y = dropout(torch.ones(1 << 20), rate, training=True)
    assert y.isfinite().all()
    assert 0 < (y != 0).sum() < 100


def test_a_rate_near_0_still_drops():
    torch.manual_seed(0)
    assert 0 < (dropout(torch.ones(1 << 20), 1e-9, training=True) == 0).sum() < 100


@pytest.mark.parametrize(
    "model",
    [
        "dropout: 0.9999999999",
        "attention_dropout: 0.9999999999",
        "activation_dropout: 0.9999999999",
        "{architecture: rnn, dropout: 0.9999999999}",
        "{architecture: mixed, encoder: {attention_dropout: 0.9999999999}}",
        "{architecture: mixed, decoder: {dropout: 0.9999999999}}",
    ],
)
def test_a_dropout_so_near_to_1_that_a_device_divides_by_zero_is_refused(model):
    with pytest.raises(ConfigError, match=r"dropout: found 0.9999999999, wants a number, at least 0, at most 0.999$"):
        config_from_text(f"model: {model if model[0] == '{' else '{' + model + '}'}", "x.yaml")


def test_the_largest_dropouts_that_are_taken_give_numbers():
    rates = dict.fromkeys(["dropout", "attention_dropout", "activation_dropout", "layer_dropout"], 0.999)
    model = new_model(TransformerConfig(d_model=16, num_heads=2, d_ff=32, **rates), 30, 30, 1).train()
    batch = padded_batch(ragged([[5, 6, 7, 8]]), ragged([[5, 6, 7, 8]]), model.boundaries)
    for seed in range(5):
        torch.manual_seed(seed)
        model(batch.source, batch.target).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
