"""`mtkit train --end-in N` ends a run by a decay of N updates, whatever the run's own end was to be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.opening import checkpoint_steps, open_model, read_progress, read_weights
from mtkit.cli import _run
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, StoppedError
from mtkit.pipeline import run_train
from mtkit.preparation.prepare import read_validation
from mtkit.training.records import is_trained
from mtkit.training.train import Trainer, train
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.runs import MODEL, TRAINING, Killed, at_step, doing, events, interrupt, kill, outcome, trained

# Stable from step 8 to 15, then nine updates of decay.
CONSTANT = {"schedule": "constant", "max_steps": 100, "log_every": 1}
WSD = {"schedule": "wsd", "max_steps": 24, "decay_steps": 9, "log_every": 1}
START, STEPS, END = 15, 9, 24


def stopped(config: Config, step: int = START) -> Path:
    """Train until so many updates are done, and stop with the state saved."""
    with doing(interrupt, Trainer, "_update", at_step(step - 1)), pytest.raises(StoppedError):
        trained(config)
    return config.run_path


def ended(config: Config, steps: int = STEPS, change: bool = False) -> Path:
    """`mtkit train --end-in`, without a look at what comes before training."""
    train(config, read_validation(config), change, end_in=steps)
    return config.run_path


def settings_of(corpus_files: CorpusFiles, run: Path, **training: Any) -> Config:
    """The settings of `make`, for another place."""
    return config_with(toy_settings(corpus_files, run), model=MODEL, training={**TRAINING, **training})


@pytest.fixture(scope="module")
def stable(prepared: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a constant rate that was stopped after 15 updates; must not be changed."""
    run = shutil.copytree(prepared, tmp_path_factory.mktemp("stable") / "run")
    return stopped(settings_of(corpus_files, run, **CONSTANT))


@pytest.fixture(scope="module")
def ended_at_once(stable: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, ended by --end-in 9 without an interruption; must not be changed."""
    return ended(copied(stable, settings_of(corpus_files, tmp_path_factory.mktemp("ended") / "run", **CONSTANT)))


@pytest.fixture(scope="module")
def with_wsd(prepared: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was to end by a decay of nine updates from its first one on; must not be changed."""
    run = shutil.copytree(prepared, tmp_path_factory.mktemp("wsd") / "run")
    return trained(settings_of(corpus_files, run, **WSD))


def copied(stable: Path, config: Config) -> Config:
    """The settings, once their run directory is a copy of the stable run."""
    shutil.rmtree(config.run_path, ignore_errors=True)
    shutil.copytree(stable, config.run_path)
    return config


def without_text(config: Config) -> Config:
    """The settings on a machine that has the run, but not the text that it was prepared from."""
    return config.model_copy(update={"data": config.data.model_copy(update={"root": Path("nowhere")})})


def rates(run: Path) -> list[float]:
    return [event["lr"] for event in events(run, "train")]


@pytest.mark.parametrize("begun", ["constant", "wsd"])
def test_a_run_that_is_ended_is_that_with_wsd_that_was_to_end_so(make, ended_at_once, with_wsd, begun):
    run, wanted = ended_at_once, with_wsd
    if begun == "wsd":
        config = make(**{**CONSTANT, "schedule": "wsd", "max_steps": 50, "decay_steps": 30})
        stopped(config)
        run = ended(config)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        files = [each / "checkpoints" / "step-00000024" / name for each in (run, wanted)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert rates(run) == rates(wanted)
    assert rates(run)[START - 1 :] == pytest.approx([0.01 * (1 - done / 9) for done in range(10)])
    assert events(run, "validation") == events(wanted, "validation")


def test_a_decay_that_was_interrupted_goes_on_with_and_without_the_option(make, stable, ended_at_once):
    wanted = outcome(ended_at_once)
    config = copied(stable, make(**CONSTANT))
    with doing(kill, Trainer, "_save", at_step(START)), pytest.raises(Killed):  # before anything is saved of it
        ended(config)
    with doing(kill, Trainer, "_update", at_step(START)), pytest.raises(Killed):
        ended(config)
    with doing(kill, Trainer, "_update", at_step(18)), pytest.raises(Killed):
        trained(config)
    with doing(interrupt, Trainer, "_update", at_step(21)), pytest.raises(StoppedError):
        ended(config)
    found = outcome(trained(config))
    assert found["log"] == wanted["log"]
    last = [name for name in wanted if name.startswith(("checkpoints/step-00000024/", "model/"))]
    assert all(found[name] == wanted[name] for name in last)
    assert found["progress 24"] == wanted["progress 24"]


def test_a_run_that_was_ended_is_finished_and_says_how(make, stable, capsys):
    config = without_text(copied(stable, make(**CONSTANT)))
    capsys.readouterr()
    run = ended(config)
    said = capsys.readouterr().err
    assert "--end-in 9: the learning rate falls to 0 from step 16 to 24, where training ends\n" in said
    assert "training ends at step 24: the decay of --end-in 9 is done" in said
    assert open_bundle(run).description["training"]["steps"] == END
    settings = open_model(run).config.training
    assert (settings.schedule, settings.max_steps, settings.decay_steps) == ("wsd", 24, 9)
    assert json.loads((run / "run.json").read_text())["ending"] == {"start": 15, "steps": 9}
    (change,) = events(run, "change")
    assert change["settings"]["training.schedule"] == ["constant", "wsd"]
    assert is_trained(config)
    before = outcome(run)
    for end_in in (None, STEPS):
        run_train(config, end_in=end_in)
        told = f"training: {run / 'model'} is up to date; --end-in 9 ended the run at step 24\n"
        assert capsys.readouterr().err.endswith(told)
    with pytest.raises(
        CheckpointError, match=r"the run ended by --end-in 9, from step 16 to 24; found --end-in 7, wan"
    ):
        run_train(config, end_in=7)
    assert is_trained(config)
    run_train(without_text(make(**{**CONSTANT, "max_steps": 200})))
    assert {name: data for name, data in outcome(run).items() if name != "log"} == {
        name: data for name, data in before.items() if name != "log"
    }


def test_a_run_that_finished_at_its_full_rate_can_still_be_ended(make, stable, ended_at_once):
    wanted = read_weights(ended_at_once / "checkpoints", END)
    config = without_text(copied(stable, make(**{**CONSTANT, "max_steps": START})))
    run = trained(config)
    assert open_bundle(run).description["training"]["steps"] == START
    run_train(config, end_in=STEPS)
    assert open_bundle(run).description["training"]["steps"] == END
    assert all(torch.equal(weight, wanted[name]) for name, weight in read_weights(run / "checkpoints", END).items())
    assert is_trained(config)


def test_minutes_and_patience_do_not_cut_the_decay_short(make, stable, capsys):
    limits = {"max_minutes": 1e-9, "patience": 1, "validate_every": 1}
    config = copied(stable, make(**{**CONSTANT, **limits}))
    capsys.readouterr()
    run = ended(config)
    assert checkpoint_steps(run / "checkpoints")[-1] == END
    assert "training ends; training.max_minutes and patience cannot end it earlier" in capsys.readouterr().err
    assert is_trained(config)


def test_a_run_in_minutes_can_be_ended_too(make, ended_at_once):
    auto = dict.fromkeys(("max_steps", "warmup_steps", "validate_every", "save_every"), "auto")
    config = make(**{**CONSTANT, **auto, "max_minutes": 10.0, "warmup_steps": 8})
    stopped(config)
    with doing(kill, Trainer, "_update", at_step(18)), pytest.raises(Killed):
        ended(config)
    run = trained(config)
    assert is_trained(config)
    assert read_progress(run / "checkpoints", END)[0].ending == {"start": 15, "steps": 9}
    assert rates(run)[-9:] == rates(ended_at_once)[-9:]


def test_the_average_of_the_weights_goes_on_through_the_decay(make):
    config = make(**CONSTANT, ema_decay=0.9)
    stopped(config)
    wanted = trained(make("wanted", **WSD, ema_decay=0.9))
    averages = [load_file(each / "checkpoints/step-00000024/average.safetensors") for each in (ended(config), wanted)]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())


# What is refused.


@pytest.mark.parametrize(
    ("settings", "step", "told"),
    [
        ({"schedule": "noam"}, 10, "--end-in 9: found schedule noam, wants constant or wsd"),
        (
            {"schedule": "constant"},
            6,
            r"--end-in 9: step 6 is before the end of warm-up \(training.warmup_steps 8\)",
        ),
        (
            {"schedule": "wsd", "max_steps": 12, "decay_steps": 4},
            12,
            "--end-in 9: step 12 is in the decay of schedule wsd already, which goes from step 9 to 12",
        ),
        (
            {"schedule": "constant", "optimizer": "schedule_free"},
            10,
            "--end-in 9: optimizer schedule_free needs no decay; lower training.max_steps to end the run",
        ),
    ],
    ids=["noam", "warm-up", "decay", "schedule_free"],
)
def test_a_run_that_cannot_be_ended_says_why_and_is_left_as_it_was(make, settings, step, told):
    config = without_text(make(**{"max_steps": step, **settings}))
    run = trained(config)
    before = outcome(run)
    with pytest.raises(CheckpointError, match=told):
        run_train(config, end_in=STEPS)
    assert is_trained(config)
    assert outcome(run) == before


def test_a_run_without_checkpoints_cannot_be_ended(make, stable):
    told = r"--end-in ends a run from its newest checkpoint, but there is none; train without it"
    for config in map(without_text, (make("new", **CONSTANT), make(**{**CONSTANT, "max_steps": 9}))):
        with pytest.raises(CheckpointError, match=told):
            run_train(config, end_in=STEPS)
        with pytest.raises(CheckpointError, match=told):
            ended(config)
    shutil.rmtree(trained(config) / "checkpoints")
    with pytest.raises(CheckpointError, match=told):
        run_train(config, end_in=STEPS)
    config = without_text(copied(stable, make("gone", **CONSTANT)))
    shutil.rmtree(ended(config) / "checkpoints")
    run_train(config, end_in=STEPS)  # it has ended so


def test_other_changes_must_be_asked_for_all_the_same(make, stable):
    config = copied(stable, make(**CONSTANT, learning_rate=0.02))
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.01, is 0\.02\. Change them back, add --change"):
        ended(config)
    with pytest.raises(CheckpointError, match=r"schedule was constant, is wsd.*add --change"):
        ended(copied(stable, make(**{**CONSTANT, "schedule": "wsd", "max_steps": 50})))
    run = ended(copied(stable, config), change=True)
    assert rates(run)[-9:] == pytest.approx([0.02 * (1 - done / 9) for done in range(1, 10)])


def test_a_decay_that_has_begun_is_not_begun_anew_or_dropped(make, stable):
    config = copied(stable, make(**CONSTANT))
    with doing(kill, Trainer, "_update", at_step(18)), pytest.raises(Killed):
        ended(config)
    with pytest.raises(
        CheckpointError, match=r"is ending by --end-in 9, from step 16 to 24; found --end-in 5, wants 9"
    ):
        ended(config, 5)
    with pytest.raises(CheckpointError, match=r"is ending by --end-in 9, and now: found schedule cosine, wants const"):
        trained(make(**{**CONSTANT, "schedule": "cosine"}), change=True)
    run = trained(make(**{**CONSTANT, "learning_rate": 0.005}), change=True)
    assert rates(run)[-9:] == pytest.approx([(0.01 if done <= 1 else 0.005) * (1 - done / 9) for done in range(1, 10)])


@pytest.mark.parametrize("steps", ["0", "-3", "1.5", "many"])
def test_what_is_no_number_of_updates_is_told_in_one_line(make, tmp_path, capsys, steps):
    (tmp_path / "my.yaml").write_text(config_text(make(**CONSTANT)), "utf-8")
    assert _run(["train", str(tmp_path / "my.yaml"), "--end-in", steps]) == 1
    told = f"mtkit: error: --end-in: found {steps}, wants a whole number, at least 1\n"
    assert capsys.readouterr().err == told


def test_a_fresh_start_ends_nothing(make, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(config_text(make(**CONSTANT)), "utf-8")
    assert _run(["train", str(tmp_path / "my.yaml"), "--fresh", "--end-in", "9"]) == 2
    assert "--fresh starts anew and --end-in ends the run that is there; give one of them" in capsys.readouterr().err
