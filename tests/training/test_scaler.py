"""The loss scale of fp16 moves as PyTorch's does, changes no gradient, and goes on from what was kept."""

import math

import pytest
import torch
from torch import nn

from mtkit.bundle.opening import FIRST_SCALE
from mtkit.training.optimizers import SGD
from mtkit.training.update import LossScaler

CPU = torch.device("cpu")


def update(scaler: LossScaler, factor: float = 1.0) -> tuple[nn.Parameter, tuple[float, int]]:
    """A weight whose gradient is 2 x factor, after one update, and what there is to keep."""
    weight = nn.Parameter(torch.ones(()))
    scaler.scaled(factor * weight**2).backward()
    scaler.unscale(SGD([weight]))
    scaler.adapt()
    return weight, scaler.state


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gradient_is_what_it_would_be_without_scaling(precision):
    weight, _ = update(LossScaler(CPU, precision, FIRST_SCALE, 0), 0.3)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(0.6)


def test_an_overflow_halves_the_scale_and_starts_the_count_again():
    scaler = LossScaler(CPU, "fp16", 1024.0, 7)
    assert update(scaler)[1] == (1024.0, 8)
    assert update(scaler, math.inf)[1] == (512.0, 0)
    assert update(scaler, math.nan)[1] == (256.0, 0)
    assert update(scaler)[1] == (256.0, 1)


def test_updates_without_an_overflow_double_the_scale_wherever_training_was_stopped():
    scaler, kept = LossScaler(CPU, "fp16", 8.0, 0), (8.0, 0)
    found = []
    for number in range(1, 2003):
        if number in (700, 2000):
            scaler = LossScaler(CPU, "fp16", *kept)
        kept = update(scaler)[1]
        found.append(kept)
    assert found == [(8.0, n) for n in range(1, 2000)] + [(16.0, n) for n in range(3)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_fp16_there_is_nothing_to_keep(precision):
    scaler = LossScaler(CPU, precision, FIRST_SCALE, 0)
    assert update(scaler, math.inf)[1] == (FIRST_SCALE, 0)
