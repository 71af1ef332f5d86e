"""Learning rates are those of the papers."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mtkit.config.training_settings import TrainingConfig
from mtkit.training.optimizers import (
    ENDING,
    SCHEDULES,
    decay_start,
    learning_rate,
    lowers_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)

D_MODEL = 64
STEPS = [1, 2, 99, 100, 101, 400, 10_000]


def rates(**settings: object) -> list[float]:
    return [learning_rate(step, TrainingConfig.model_validate(settings), D_MODEL) for step in STEPS]


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


FALLING = {"learning_rate": 0.005, "warmup_steps": 100, "max_steps": 500, "final_learning_rate": 0.001}


def test_linear_falls_in_a_line_to_its_final_rate_at_max_steps():
    config = TrainingConfig.model_validate({"schedule": "linear", **FALLING})
    found = [learning_rate(step, config, D_MODEL) for step in range(100, 501)]
    assert found == pytest.approx([0.005 - 0.004 * done / 400 for done in range(401)])
    assert found[-1] == pytest.approx(0.001)


def test_cosine_is_equation_5_of_its_paper_from_warm_up_to_max_steps():
    config = TrainingConfig.model_validate({"schedule": "cosine", **FALLING})
    found = [learning_rate(step, config, D_MODEL) for step in range(100, 501)]
    assert found == pytest.approx([0.001 + 0.004 * (1 + math.cos(math.pi * t / 400)) / 2 for t in range(401)])
    assert (found[0], found[200], found[-1]) == pytest.approx((0.005, 0.003, 0.001))


def test_wsd_stays_and_then_falls_in_a_line_over_its_last_updates():
    config = TrainingConfig.model_validate({"schedule": "wsd", **FALLING, "decay_steps": 50})
    found = [learning_rate(step, config, D_MODEL) for step in range(1, 501)]
    rising, stable, falling = found[:99], found[99:450], found[449:]
    assert rising == pytest.approx([0.005 * step / 100 for step in range(1, 100)])
    assert stable == [0.005] * 351, "to the bit"
    assert falling == pytest.approx([0.005 - 0.004 * done / 50 for done in range(51)])
    assert found[-1] == 0.001
    assert learning_rate(501, config, D_MODEL) == 0.001


@pytest.mark.parametrize(
    ("max_steps", "warmup_steps", "start"),
    [(500, 100, 400), (500, 450, 450), (3, 0, 2), (2, 0, 1), (100_000, 4000, 80_000)],
)
def test_a_decay_that_is_auto_is_the_last_fifth_that_is_not_warm_up(max_steps, warmup_steps, start):
    values = {"schedule": "wsd", "learning_rate": 0.005, "max_steps": max_steps, "warmup_steps": warmup_steps}
    config = TrainingConfig.model_validate(values)
    assert decay_start(config) == start
    assert learning_rate(start, config, D_MODEL) == 0.005
    assert learning_rate(start + 1, config, D_MODEL) == pytest.approx(0.005 * (1 - 1 / (max_steps - start)))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_without_a_final_rate_the_last_update_has_none(schedule):
    config = TrainingConfig.model_validate({"schedule": schedule, **FALLING, "final_learning_rate": 0.0})
    assert learning_rate(499, config, D_MODEL) > 0
    assert learning_rate(500, config, D_MODEL) == pytest.approx(0.0, abs=1e-12)


def test_plateau_is_multiplied_each_time_down_to_its_final_rate():
    config = TrainingConfig.model_validate({"schedule": "plateau", **FALLING, "plateau_factor": 0.5})
    found = [learning_rate(300, config, D_MODEL, lowered) for lowered in range(5)]
    assert found == pytest.approx([0.005, 0.0025, 0.00125, 0.001, 0.001])
    assert learning_rate(50, config, D_MODEL, 1) == pytest.approx(0.00125), "warm-up is to the lowered peak"


def test_plateau_is_lowered_after_its_patience_and_never_below_its_final_rate():
    values = {"schedule": "plateau", **FALLING, "plateau_factor": 0.5, "plateau_patience": 3}
    config = TrainingConfig.model_validate(values)
    assert [lowers_rate(stale, config, 0) for stale in range(5)] == [False, False, False, True, True]
    assert [lowers_rate(3, config, lowered) for lowered in range(5)] == [True, True, True, False, False]
    constant = TrainingConfig(schedule="constant", learning_rate=0.005)
    assert not lowers_rate(9, constant, 0)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_schedules_that_end_at_max_steps_are_those_that_ask_for_it(schedule):
    ends = [TrainingConfig(schedule=schedule, learning_rate=0.01, max_steps=steps) for steps in (5000, 6000)]
    same = learning_rate(4500, ends[0], D_MODEL) == learning_rate(4500, ends[1], D_MODEL)
    assert same == (schedule not in ENDING)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "cosine"}, "schedule cosine wants a learning_rate; only noam knows its own"),
        (
            {"schedule": "cosine", "learning_rate": 0.1, "warmup_steps": 50, "max_steps": 50},
            "schedule cosine wants max_steps above warmup_steps 50 and 1, found 50",
        ),
        (
            {"schedule": "linear", "learning_rate": 0.1, "warmup_steps": 0, "max_steps": 1},
            "schedule linear wants max_steps above warmup_steps 0 and 1, found 1",
        ),
        (
            {"schedule": "linear", "learning_rate": 0.1, "final_learning_rate": 0.2},
            "final_learning_rate 0.2 must be at most learning_rate 0.1",
        ),
        (
            {"schedule": "plateau", "learning_rate": 0.1, "patience": 5},
            "patience 5 ends training before plateau_patience 5 lowers the learning rate; it must be more",
        ),
        (
            {"schedule": "wsd", "learning_rate": 0.1, "warmup_steps": 60, "decay_steps": 50, "max_steps": 100},
            "decay_steps 50 and warmup_steps 60 are together more than max_steps 100",
        ),
        ({"decay_steps": 50}, "decay_steps 50 wants schedule wsd, not noam"),
        ({"momentum": 0.9}, "momentum 0.9 is for optimizer sgd; adam has adam_betas"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings, told):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(settings)
    (error,) = caught.value.errors()
    assert error["msg"] == f"Value error, {told}"


# The optimizers.


@pytest.mark.parametrize(
    ("name", "momentum", "memory"),
    [
        ("adam", 0.0, {"step", "exp_avg", "exp_avg_sq"}),
        ("adamw", 0.0, {"step", "exp_avg", "exp_avg_sq"}),
        ("sgd", 0.9, {"momentum_buffer"}),
        ("sgd", 0.0, set()),
        ("muon", 0.0, {"step", "exp_avg", "exp_avg_sq", "matrix_momentum"}),
    ],
)
def test_an_optimizer_whose_memory_was_kept_goes_on_as_if_it_had_not_stopped(name, momentum, memory):
    config = TrainingConfig.model_validate({"optimizer": name, "weight_decay": 0.01, "momentum": momentum})

    def begun() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        return model, make_optimizer(model, config, torch.device("cpu"))

    def update(model: nn.Sequential, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / step
        optimizer.zero_grad()
        (model(torch.full((4, 3), float(step))) + 1).pow(3).sum().backward()
        optimizer.step()

    model, optimizer = begun()
    for step in (1, 2, 3):
        update(model, optimizer, step)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    other, resumed = begun()
    other.load_state_dict(model.state_dict())
    restore_optimizer(resumed, other, kept)
    for step in (4, 5):
        update(model, optimizer, step)
        update(other, resumed, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert {key.split("/")[0] for key in kept} == memory


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_every_setting_of_the_optimizer_reaches_it(name):
    config = TrainingConfig.model_validate(
        {"optimizer": name, "weight_decay": 0.01, "adam_betas": (0.7, 0.9), "adam_eps": 1e-7}
    )
    (group,) = make_optimizer(nn.Linear(3, 2), config, torch.device("cpu")).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.7, 0.9), 1e-7, 0.01)


def test_sgd_is_the_formula_it_states():
    config = TrainingConfig.model_validate({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1})
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    wanted, velocity = weight.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = make_optimizer(nn.ParameterList([weight]), config, torch.device("cpu"))
    for step in range(1, 5):
        gradient = torch.randn(5, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate = 0.5 / step
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.1 * wanted
        wanted = wanted - rate * velocity
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_an_optimizer_without_memory_yet_has_none_to_keep():
    config = TrainingConfig.model_validate({"optimizer": "sgd", "momentum": 0.9})
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, config, torch.device("cpu"))
    assert optimizer_tensors(optimizer, layer) == {}
    layer.weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert set(optimizer_tensors(optimizer, layer)) == {"momentum_buffer/weight"}
    restore_optimizer(optimizer, layer, {})
    assert optimizer_tensors(optimizer, layer) == {}
