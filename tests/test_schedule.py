"""Learning rates are those of the papers, and every choice of the settings exists."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from mtkit.config.settings import TrainingConfig
from mtkit.training.optimizer import OPTIMIZERS, make_optimizer, optimizer_tensors, restore_optimizer
from mtkit.training.schedule import SCHEDULES, learning_rate

D_MODEL = 64
STEPS = [1, 2, 99, 100, 101, 400, 10_000]


def choices(setting: str) -> set[str]:
    return set(get_args(TrainingConfig.model_fields[setting].annotation))


def rates(**settings: object) -> list[float]:
    return [learning_rate(step, TrainingConfig.model_validate(settings), D_MODEL) for step in STEPS]


def test_every_schedule_on_offer_exists():
    assert choices("schedule") == set(SCHEDULES)


def test_every_optimizer_on_offer_exists():
    assert choices("optimizer") == set(OPTIMIZERS)


def test_noam_without_a_rate_is_equation_3_of_the_paper():
    wanted = [D_MODEL**-0.5 * min(step**-0.5, step * 100**-1.5) for step in STEPS]
    assert rates(schedule="noam", warmup_steps=100) == pytest.approx(wanted, rel=1e-12)


def test_noam_with_a_rate_is_equation_3_scaled_to_that_peak():
    plain = rates(schedule="noam", warmup_steps=100)
    scaled = rates(schedule="noam", warmup_steps=100, learning_rate=0.005)
    factor = 0.005 * math.sqrt(D_MODEL * 100)
    assert scaled == pytest.approx([factor * rate for rate in plain], rel=1e-12)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 100])
def test_the_rate_peaks_at_learning_rate_when_warm_up_ends(schedule, warmup_steps):
    config = TrainingConfig(schedule=schedule, learning_rate=0.005, warmup_steps=warmup_steps)
    found = [learning_rate(step, config, D_MODEL) for step in range(1, 300)]
    assert max(found) == pytest.approx(0.005)
    assert found[max(warmup_steps, 1) - 1] == pytest.approx(0.005)
    assert all(rate > 0 for rate in found)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_rate_rises_in_a_line_during_warm_up(schedule):
    config = TrainingConfig(schedule=schedule, learning_rate=0.005, warmup_steps=100)
    found = [learning_rate(step, config, D_MODEL) for step in range(1, 101)]
    assert found == pytest.approx([0.005 * step / 100 for step in range(1, 101)])


def test_inverse_sqrt_falls_with_the_root_of_the_step_and_constant_stays():
    after = [step for step in STEPS if step >= 100]
    falling = rates(schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=100)[-len(after) :]
    assert falling == pytest.approx([0.005 * math.sqrt(100 / step) for step in after])
    staying = rates(schedule="constant", learning_rate=0.005, warmup_steps=100)[-len(after) :]
    assert staying == pytest.approx([0.005] * len(after))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_whose_memory_was_kept_goes_on_as_if_it_had_not_stopped(name):
    config = TrainingConfig.model_validate({"optimizer": name, "weight_decay": 0.01, "adam_betas": (0.7, 0.9)})
    names = ["weight", "bias"]

    def begun() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(1)
        layer = nn.Linear(3, 2)
        return layer, make_optimizer(layer.parameters(), config, torch.device("cpu"))

    def update(layer: nn.Linear, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 / step
        optimizer.zero_grad()
        layer(torch.full((4, 3), float(step))).square().sum().backward()
        optimizer.step()

    layer, optimizer = begun()
    for step in (1, 2, 3):
        update(layer, optimizer, step)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, names).items()}
    other, resumed = begun()
    other.load_state_dict(layer.state_dict())
    restore_optimizer(resumed, names, kept)
    for step in (4, 5):
        update(layer, optimizer, step)
        update(other, resumed, step)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
    assert {key.split("/")[0] for key in kept} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_setting_of_the_optimizer_reaches_it(name):
    config = TrainingConfig.model_validate(
        {"optimizer": name, "weight_decay": 0.01, "adam_betas": (0.7, 0.9), "adam_eps": 1e-7}
    )
    (group,) = make_optimizer(nn.Linear(3, 2).parameters(), config, torch.device("cpu")).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.7, 0.9), 1e-7, 0.01)
