"""Where a model runs decides in which precision it is trained, unless the settings say so."""

from typing import get_args

import pytest
import torch

from mtkit.config.training_settings import TrainingConfig
from mtkit.models.registry import DTYPES, mixed_precision, pick_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_every_precision_on_offer_exists():
    choices = set(get_args(TrainingConfig.model_fields["precision"].annotation)) - {"auto"}
    assert choices <= set(DTYPES)


@pytest.mark.parametrize(
    ("has_bf16", "capability", "wanted"),
    [
        (True, (8, 0), "bf16"),
        (True, (9, 0), "bf16"),
        (False, (7, 5), "fp16"),  # T4
        (False, (7, 0), "fp16"),  # V100
        (False, (6, 1), "fp32"),  # P40, which is slow at fp16
    ],
)
def test_auto_is_the_fastest_that_a_gpu_has(monkeypatch, has_bf16, capability, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", CUDA, 64) == wanted


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_the_settings_say_is_taken_everywhere(precision):
    assert pick_precision(precision, CPU, 64) == pick_precision(precision, CUDA, 64) == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_products_are_in_the_precision_and_sums_in_fp32(precision):
    x = torch.ones(2, 2)
    with mixed_precision(CPU, precision):
        assert (x @ x).dtype == DTYPES[precision]
        assert torch.nn.functional.layer_norm(x, (2,)).dtype == torch.float32
