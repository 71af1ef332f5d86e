"""Dropout drops what it says, keeps the mean, and is the same for the same seed."""

import pytest
import torch

from mtkit.models.dropout import dropout


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
