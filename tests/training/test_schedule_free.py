"""Schedule-free AdamW is the algorithm of its paper, and validation, checkpoints and bundles have its average."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.opening import Progress, read_weights, step_directory
from mtkit.config.training_settings import TrainingConfig
from mtkit.files import Stop
from mtkit.training.checkpoint import load_checkpoint, save_checkpoint
from mtkit.training.optimizers import (
    MovingAverage,
    ScheduleFree,
    learning_rate,
    make_average,
    make_optimizer,
    optimizer_tensors,
)
from mtkit.training.update import TrainState
from mtkit.translation.translator import load
from tests.runs import events, outcome, trained, trainer_of, whole_and_killed

CPU = torch.device("cpu")
SETTINGS = {"optimizer": "schedule_free", "schedule": "constant", "learning_rate": 0.1}


def state_of(dtype: torch.dtype = torch.float64, **settings: object) -> TrainState:
    """A layer and its optimizer, before any update; the weights are always the same."""
    config = TrainingConfig.model_validate({**SETTINGS, **settings})
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2, dtype=dtype))
    optimizer = make_optimizer(model, config, CPU)
    return TrainState(model, optimizer, Progress(precision="fp32"), make_average(model, optimizer, config))


def update(state: TrainState, rate: float) -> None:
    """One update by a gradient that depends on the weights and on the number of the update."""
    state.progress.step += 1
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad()
    x = torch.full((4, 3), float(state.progress.step), dtype=state.model[0].weight.dtype)
    (state.model(x) + 1).pow(3).sum().backward()
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.progress.step)


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.0, 0.9)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_every_update_is_that_of_algorithm_1(betas, weight_decay):
    state = state_of(adam_betas=betas, weight_decay=weight_decay, adam_eps=1e-6, warmup_steps=7)
    schedule = TrainingConfig.model_validate({**SETTINGS, "warmup_steps": 7})
    beta1, beta2 = betas
    x, y, z = ({name: p.detach().clone() for name, p in state.model.named_parameters()} for _ in range(3))
    squares, weights = {name: torch.zeros_like(tensor) for name, tensor in x.items()}, 0.0
    for step in range(1, 21):
        rate = learning_rate(step, schedule, 64)
        assert rate == pytest.approx(0.1 * min(1, step / 7))
        update(state, rate)
        gamma = rate * (1 - beta2**step) ** 0.5
        weights += gamma**2
        for name, parameter in state.model.named_parameters():
            squares[name] = beta2 * squares[name] + (1 - beta2) * parameter.grad**2
            z[name] = z[name] - gamma * parameter.grad / (squares[name].sqrt() + 1e-6)
            z[name] = z[name] - gamma * weight_decay * y[name]
            share = gamma**2 / weights
            x[name] = (1 - share) * x[name] + share * z[name]
            y[name] = (1 - beta1) * z[name] + beta1 * x[name]
            torch.testing.assert_close(parameter.detach(), y[name], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(state.average.weights[name], x[name], rtol=1e-10, atol=1e-10)
    assert not any(torch.equal(x[name], y[name]) for name in x)


def test_a_learning_rate_that_was_lowered_still_counts_as_the_largest_so_far():
    state = state_of()
    for rate in (0.1, 0.1, 0.01):
        before = {name: tensor.clone() for name, tensor in state.average.weights.items()}
        update(state, rate)
    gamma = [0.1 * (1 - 0.98**step) ** 0.5 for step in (1, 2)]
    share = gamma[1] ** 2 / (gamma[0] ** 2 + 2 * gamma[1] ** 2)
    for name, parameter in state.model.named_parameters():
        z = state.optimizer.state[parameter]["z"]
        torch.testing.assert_close(state.average.weights[name], before[name].lerp(z, share), rtol=1e-10, atol=1e-12)


def test_weights_without_a_gradient_stay():
    state = state_of()
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    state.optimizer.step()
    state.model[0].weight.grad = torch.ones_like(state.model[0].weight)
    state.optimizer.param_groups[0]["lr"] = 0.1
    state.optimizer.step()
    assert torch.equal(state.model[0].bias, before["0.bias"])
    assert torch.equal(state.average.weights["0.bias"], before["0.bias"])
    assert not torch.equal(state.model[0].weight, before["0.weight"])


def test_of_a_model_whose_matrices_alone_decay_the_other_weights_do_not():
    without, partly, all_over = (
        state_of(weight_decay=decay, weight_decay_of=which)
        for decay, which in ((0.0, "all"), (0.1, "matrices"), (0.1, "all"))
    )
    for state in (without, partly, all_over):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.1
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.optimizer.step()
    assert torch.equal(partly.model[0].weight, all_over.model[0].weight)
    assert torch.equal(partly.model[0].bias, without.model[0].bias)
    assert not torch.equal(partly.model[0].weight, without.model[0].weight)
    assert not torch.equal(partly.model[0].bias, all_over.model[0].bias)


# Checkpoints.


def test_a_checkpoint_brings_back_all_that_the_next_updates_depend_on(tmp_path):
    saved = state_of(torch.float32, weight_decay=0.1)
    for step in range(1, 6):
        update(saved, 0.1 / 3 * step)  # whose squares no fp32 holds
    save_checkpoint(tmp_path, saved, {})
    found = state_of(torch.float32, weight_decay=0.1)
    load_checkpoint(tmp_path, 5, found)
    memory, loaded = (optimizer_tensors(state.optimizer, state.model) for state in (saved, found))
    assert all(torch.equal(memory[name], loaded[name]) for name in memory | loaded)
    for _ in range(3):
        for state in (saved, found):
            update(state, 0.1)
        for one, other in zip(saved.model.parameters(), found.model.parameters(), strict=True):
            assert torch.equal(one, other)
        for name, tensor in saved.average.weights.items():
            assert torch.equal(tensor, found.average.weights[name])


OTHERS = [
    {"optimizer": "adam"},
    {"optimizer": "adamw", "ema_decay": 0.5},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "ema_decay": 0.5},
    {"optimizer": "sgd", "momentum": 0.5},
    {"optimizer": "muon"},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: "-".join(map(str, other.values())))
def test_after_another_optimizer_all_three_sets_of_weights_are_those_of_the_checkpoint_and_back(tmp_path, other):
    saved = state_of(**other)
    for _ in range(3):
        update(saved, 0.01)
    save_checkpoint(tmp_path, saved, {})
    found = state_of()
    load_checkpoint(tmp_path, 3, found)
    assert not found.optimizer.state
    for name, parameter in saved.model.named_parameters():
        assert torch.equal(found.average.weights[name], parameter)
        assert torch.equal(dict(found.model.named_parameters())[name], parameter)
    update(found, 0.01)
    save_checkpoint(tmp_path, found, {})
    back = state_of(**other)
    load_checkpoint(tmp_path, 4, back)
    assert not back.optimizer.state
    for name, parameter in found.model.named_parameters():
        assert torch.equal(dict(back.model.named_parameters())[name], parameter)
        if back.average is not None:
            assert torch.equal(back.average.weights[name], found.average.weights[name])
    update(back, 0.01)


# Runs.

RUN = {"optimizer": "schedule_free", "schedule": "constant", "learning_rate": 0.03, "weight_decay": 0.01}


def test_the_average_is_what_is_validated_and_bundled_and_training_goes_on_from_its_own_weights(make):
    config = make(**RUN, select_by="loss", save_every=8, average_checkpoints=1)
    run = trained(config)
    without = trained(make("without", **RUN, select_by="loss", save_every=8, validate_every=24))
    for name, weight in read_weights(run / "checkpoints", 24).items():
        assert torch.equal(weight, read_weights(without / "checkpoints", 24)[name]), "validation changes no weight"
    (best,) = open_bundle(run).description["training"]["averaged_steps"]
    average = load_file(step_directory(run / "checkpoints", best) / "average.safetensors")
    kept = open_bundle(run).weights()
    weights = read_weights(run / "checkpoints", best)
    assert all(torch.equal(kept[name], average[name]) for name in average)
    assert not any(torch.equal(kept[name], weights[name]) for name in average)
    trainer = trainer_of(config)
    measured, _ = trainer.validation.measure(load(run, ["device=cpu"]).model, trainer.tokenizer, Stop())
    trainer.log.close()
    validation = next(event for event in events(run, "validation") if event["step"] == best)
    assert measured == {name: validation[name] for name in measured}


def test_all_of_a_checkpoint_is_loaded_though_other_weights_decay_from_there_on(tmp_path):
    saved = state_of(torch.float32, weight_decay=0.1)
    update(saved, 0.1)
    save_checkpoint(tmp_path, saved, {})
    found = state_of(torch.float32, weight_decay=0.1, weight_decay_of="matrices")
    load_checkpoint(tmp_path, 1, found)
    memory, loaded = (optimizer_tensors(state.optimizer, state.model) for state in (saved, found))
    assert all(torch.equal(memory[name], loaded[name]) for name in memory | loaded)


@pytest.mark.parametrize("optimizers", [("adam", "schedule_free"), ("schedule_free", "adam")])
def test_a_run_that_changes_its_optimizer_resumes_to_the_bit(make, optimizers):
    before, after = ({**RUN, "optimizer": optimizer} for optimizer in optimizers)
    trained(make("uninterrupted", **before, max_steps=8))
    whole, killed = whole_and_killed(make, 14, change=True, **after, max_steps=16)
    end = outcome(killed)
    assert end == outcome(whole)
    averages = [name for name in end if name.startswith("checkpoints/step-00000016/average")]
    assert len(averages) == (optimizers[-1] == "schedule_free")


def test_it_learns_from_another_model_whose_weights_its_average_begins_with(make):
    parent = trained(make("parent", max_steps=4))
    trainer = trainer_of(make(**RUN, start_from=str(parent)))
    trainer.log.close()
    assert isinstance(trainer.state.optimizer, ScheduleFree)
    wanted = open_bundle(parent).weights()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in trainer.state.average.weights.items())
    assert not isinstance(trainer.state.average, MovingAverage)


# Settings.


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"schedule": "linear"},
            "optimizer schedule_free wants schedule constant, not linear: after warm-up it needs no other",
        ),
        ({"ema_decay": 0.9}, "ema_decay 0.9 does not go with optimizer schedule_free, which averages the weights"),
        ({"momentum": 0.9}, "momentum 0.9 is for optimizer sgd; schedule_free has adam_betas"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings, told):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate({**SETTINGS, **settings})
    (error,) = caught.value.errors()
    assert error["msg"] == f"Value error, {told}"
