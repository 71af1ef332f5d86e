"""Training that is given minutes: what is auto is fixed once and for all, and what does not fit is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mtkit.training.train
from mtkit.bundle.opening import Progress, open_model, read_progress
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.errors import CheckpointError, ConfigError, MtkitError, StoppedError
from mtkit.evaluation.plot import schedule_of
from mtkit.training.optimizers import (
    Forecast,
    Pace,
    Plan,
    advice,
    decay_start,
    expected_steps,
    make_plan,
    reviewed_plan,
    reviews_due,
    shortcomings,
    with_shares,
)
from mtkit.training.records import is_trained
from mtkit.training.train import Trainer
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.runs import MODEL, TRAINING, Make, at_step, doing, interrupt, outcome, trained

AUTO = {"max_steps": "auto", "warmup_steps": "auto", "validate_every": "auto", "save_every": "auto"}


def settings(**values: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"max_steps": "auto", "max_minutes": 10.0, "learning_rate": 0.001, **values})


def test_what_follows_from_max_steps_is_auto_with_it_unless_it_is_said():
    assert [getattr(settings(), name) for name in AUTO] == ["auto"] * 4
    assert settings(warmup_steps=50).warmup_steps == 50
    assert TrainingConfig().warmup_steps == 4000
    assert TrainingConfig().save_every == 1000
    with pytest.raises(ValueError, match="max_steps auto wants max_minutes"):
        TrainingConfig(max_steps="auto")


@pytest.mark.parametrize("update", [0.001, 0.05, 2.3, 40.0])
@pytest.mark.parametrize("validation", [0.01, 5.0, 90.0])
@pytest.mark.parametrize("said", [{}, {"validate_every": 7}, {"warmup_steps": 3, "save_every": 2}])
def test_a_plan_takes_the_minutes_and_no_more(update, validation, said):
    plan = make_plan(settings(**said), Pace(update, validation), spent=20.0)
    fixed = plan.settings(settings(**said))
    assert all(settled(getattr(fixed, name)) == value for name, value in said.items())
    validations = plan.max_steps // plan.validate_every
    seconds = plan.max_steps * update + validations * validation
    assert seconds <= 570.0 or plan.max_steps == 2
    longer = update * plan.validate_every + validation  # one stretch more does not fit
    assert seconds + longer > 0.95 * 600 - 20
    assert 1 <= fixed.warmup_steps <= max(plan.max_steps // 2, 1) or "warmup_steps" in said
    if "validate_every" not in said:
        assert plan.max_steps % plan.validate_every == 0
        assert validations <= 10
        assert validations == 1 or validations * validation <= 0.1 * 570


def test_warmup_that_is_longer_than_a_falling_schedule_is_refused():
    config = settings(schedule="linear", warmup_steps=4000)
    with pytest.raises(ConfigError, match=r"^training.warmup_steps 4,000 does not fit: 10 minutes are about \d+ upd"):
        make_plan(config, Pace(2.0, 1.0), 0.0)


def test_a_decay_that_leaves_no_room_for_warm_up_is_refused():
    config = settings(schedule="wsd", warmup_steps=100, decay_steps=190)
    with pytest.raises(ConfigError, match=r"^training.decay_steps 190 does not fit: 10 minutes are about \d+ upd"):
        make_plan(config, Pace(2.0, 1.0), 0.0)
    plan = make_plan(settings(schedule="wsd"), Pace(2.0, 1.0), 0.0)
    assert decay_start(plan.settings(settings(schedule="wsd"))) == round(0.8 * plan.max_steps)


def test_shares_of_a_given_number_of_updates():
    config = with_shares(TrainingConfig.model_validate({"max_steps": 500, **dict.fromkeys(list(AUTO)[1:], "auto")}))
    assert (config.warmup_steps, config.validate_every, config.save_every) == (50, 50, 50)
    assert with_shares(TrainingConfig()) == TrainingConfig()


def test_other_minutes_make_a_plan_so_much_longer():
    plan = Plan(3.0, 100, 10, 25, 25)
    assert plan.for_minutes(6.0) == Plan(6.0, 200, 10, 25, 25)


@pytest.mark.parametrize(
    ("values", "last", "found"),
    [
        ({"warmup_steps": 1000}, 77, ["warmup_steps 1,000", "validate_every 1,000"]),
        ({"warmup_steps": 10, "validate_every": 10}, 77, []),
        ({"schedule": "linear", "warmup_steps": 10, "validate_every": 10}, 77, ["linear schedule has not come down"]),
        ({"schedule": "cosine", "max_steps": 80, "warmup_steps": 10, "validate_every": 10}, 77, []),
    ],
)
def test_what_a_training_that_ends_too_early_lacks(values, last, found):
    config = settings(max_steps=1000, **values) if "max_steps" not in values else settings(**values)
    told = shortcomings(config, last)
    assert len(told) == len(found)
    assert all(part in text for part, text in zip(found, told, strict=True))


def stopped(config: Config, step: int) -> Path:
    """Train until Ctrl-C before update number step + 1; the run directory."""
    with doing(interrupt, Trainer, "_update", at_step(step)), pytest.raises(StoppedError):
        trained(config)
    return config.run_path


def plan_of(run: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((run / "run.json").read_text())["plan"]
    return plan


def test_a_run_in_minutes_is_the_run_with_the_numbers_that_it_fixed(make: Make, capsys):
    run = stopped(make("auto", max_minutes=10.0, **AUTO), 12)
    told = capsys.readouterr().err
    plan = plan_of(run)
    assert f"training.max_steps auto: 10 minutes are {plan['max_steps']:,} updates here" in told
    other = stopped(make("numbers", **{name: plan[name] for name in AUTO}), 12)
    mine, theirs = outcome(run), outcome(other)
    assert mine.pop("progress 13")[0].plan == plan
    assert theirs.pop("progress 13")[0].plan is None
    assert mine == theirs
    assert "checkpoints/step-00000013/weights.safetensors" in mine


@pytest.fixture
def begun(make: Make, auto_run: Path) -> dict[str, Any]:
    """The plan of a run in minutes that was stopped after 13 updates; the run that `make` makes is a copy of it."""
    shutil.copytree(auto_run, make().run_path, dirs_exist_ok=True)
    return plan_of(auto_run)


@pytest.fixture(scope="module")
def auto_run(prepared: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("auto") / "run"
    shutil.copytree(prepared, run)
    training = {**TRAINING, "max_minutes": 10.0, **AUTO}
    return stopped(config_with(toy_settings(corpus_files, run), model=MODEL, training=training), 12)


def test_what_was_fixed_stays_as_the_run_goes_on(make: Make, begun: dict[str, Any], capsys):
    config, plan = make(max_minutes=10.0, **AUTO), begun
    assert plan_of(stopped(config, 20)) == plan
    assert "training.max_steps auto" not in capsys.readouterr().err
    assert read_progress(config.run_path / "checkpoints", 21)[0].plan == plan


def test_numbers_that_a_run_fixed_may_be_given_as_such(make: Make, begun: dict[str, Any]):
    run = stopped(make(max_minutes=10.0, **{name: begun[name] for name in AUTO}), 20)
    progress = read_progress(run / "checkpoints", 21)[0]
    assert (progress.step, progress.changes) == (21, [])


def test_other_minutes_make_a_run_longer_where_the_schedule_lets_it(make: Make, begun: dict[str, Any]):
    longer = plan_of(stopped(make(max_minutes=20.0, **AUTO), 20))
    assert longer == {**begun, "max_minutes": 20.0, "max_steps": 2 * begun["max_steps"]}


def test_other_minutes_must_be_asked_for_where_the_schedule_ends_with_them(make: Make):
    linear = {**AUTO, "schedule": "linear", "learning_rate": 0.01}
    plan = plan_of(stopped(make(max_minutes=10.0, **linear), 12))
    message = rf"training.max_steps was {plan['max_steps']}, is {2 * plan['max_steps']}\. Change them back, add --ch"
    with pytest.raises(CheckpointError, match=message):
        trained(make(max_minutes=20.0, **linear))


def test_a_plan_is_reviewed_a_few_times_by_time_or_updates():
    plan = Plan(10.0, 1000, 100, 100, 100)
    assert reviews_due(plan, step=49, seconds=29.0) == 0
    assert reviews_due(plan, step=50, seconds=29.0) == 1
    assert reviews_due(plan, step=49, seconds=30.0) == 1
    assert reviews_due(plan, step=49, seconds=210.0) == 3  # those that were missed are one
    assert reviews_due(replace(plan, reviews=1), step=149, seconds=89.0) == 1
    assert reviews_due(replace(plan, reviews=5), step=999, seconds=599.0) == 5
    assert reviews_due(replace(plan, reviews=2), step=10, seconds=10.0) == 2  # a longer plan since


def test_a_plan_of_an_earlier_version_keeps_its_validations():
    plan = Plan(10.0, 100, 10, 25, 25)
    new = reviewed_plan(settings(schedule="linear"), plan, 0.1, 30, 60.0)
    assert new.max_steps > 4000
    assert new.validate_every == 25


@pytest.mark.parametrize("schedule", ["linear", "wsd", "noam"])
@pytest.mark.parametrize("update", [0.01, 0.5, 1.0, 20.0])
@pytest.mark.parametrize("said", [{}, {"validate_every": 7}, {"warmup_steps": 30}])
def test_a_reviewed_plan_takes_the_rest_of_the_minutes(schedule, update, said):
    config = settings(schedule=schedule, **said)
    plan = make_plan(config, Pace(0.5, 1.0), spent=0.0)
    step, seconds = 200, 120.0
    new = reviewed_plan(config, plan, update, step, seconds)
    assert new.reviews == 2
    if update == 0.5:  # as planned
        assert replace(new, reviews=0) == plan
        return
    assert new.max_steps > step
    assert new.warmup_steps == plan.warmup_steps
    stretch = update * new.validate_every + 1.0
    rest = (new.max_steps - step) * update + (new.max_steps - step) / new.validate_every
    assert rest <= max(0.95 * 480, 2 * stretch)
    assert rest + stretch > 0.9 * 480
    if "validate_every" not in said:
        assert new.max_steps % new.validate_every == 0


def test_a_warm_up_that_is_not_over_grows_with_the_plan():
    config = settings(schedule="linear")
    plan = make_plan(config, Pace(5.0, 1.0), spent=0.0)
    assert plan.warmup_steps < 12
    new = reviewed_plan(config, plan, 0.1, 5, 30.0)
    assert new.warmup_steps == round(0.1 * new.max_steps) > 300


def test_a_decay_that_has_begun_is_not_planned_again():
    config = settings(schedule="wsd")
    plan = make_plan(config, Pace(0.5, 1.0), spent=0.0)
    step = decay_start(plan.settings(config))
    assert reviewed_plan(config, plan, 5.0, step, 400.0) == replace(plan, reviews=5)
    assert reviewed_plan(config, plan, 5.0, step - 1, 400.0).max_steps < plan.max_steps


def test_a_plan_from_a_busy_moment_is_replaced_and_the_run_resumes_with_the_new_one(make: Make, capsys, monkeypatch):
    monkeypatch.setattr(mtkit.training.train, "measure_pace", lambda *_: Pace(10.0, 0.1))
    config = make(max_minutes=10.0, **{**AUTO, "schedule": "linear", "learning_rate": 0.01})
    run = stopped(config, 12)
    told = capsys.readouterr().err
    assert "training.max_steps auto: 10 minutes are 55 updates here" in told
    progress, identity, _ = read_progress(run / "checkpoints", 13)
    first = progress.changes[0]["settings"]["training.max_steps"]
    assert first[0] == 55 < 500 < first[1]
    assert f"the rest is planned anew: training.max_steps was 55, is {first[1]}; " in told
    assert identity["training"]["max_steps"] == progress.plan["max_steps"] == plan_of(run)["max_steps"]
    stopped(config, 20)
    assert "changed from step" not in capsys.readouterr().err
    again, _, _ = read_progress(run / "checkpoints", 21)
    assert again.plan["reviews"] >= progress.plan["reviews"]


def test_a_run_that_began_with_numbers_does_not_go_on_with_auto(make: Make):
    stopped(make(max_minutes=10.0), 12)
    with pytest.raises(CheckpointError, match=r"with training.max_steps auto, since the run began with numbers; give"):
        trained(make(max_minutes=10.0, **AUTO))


def test_a_finished_run_in_minutes_is_up_to_date(make: Make):
    config = make(max_minutes=0.01, **AUTO)
    trained(config)
    assert is_trained(config)
    assert open_model(config.run_path).config.training.max_steps == plan_of(config.run_path)["max_steps"]
    assert load_config(config.run_path / "config.yaml").training.max_steps == "auto"


def pace_of(forecast: Forecast, seconds: float) -> None:
    """Show it five updates of so many seconds each."""
    for step in range(1, 6):
        forecast.see(step, step * seconds)


def test_the_steps_that_the_minutes_allow_follow_from_the_speed_so_far():
    config = settings(max_steps=1000, max_minutes=10.0)
    assert expected_steps(Progress(step=5, seconds=10.0), config) == 300
    assert expected_steps(Progress(step=5, seconds=1.0), config) == 1000
    assert expected_steps(Progress(step=5, seconds=0.0), config) == 1000  # the clock has not moved
    assert expected_steps(Progress(step=5, seconds=10.0), settings(max_steps=1000, max_minutes=None)) == 1000


def test_how_far_the_minutes_reach_is_told_once(capsys):
    numbers = settings(max_steps=100_000, max_minutes=60.0, warmup_steps=150, validate_every=100)
    forecast = Forecast(numbers)
    pace_of(forecast, 2.4)
    pace_of(forecast, 2.4)
    assert capsys.readouterr().err == (
        "60 minutes are about 1,500 updates here; warm-up takes 150 of them, and the first validation comes after 4 "
        "minutes\n"
    )


def test_minutes_that_are_too_few_are_told(capsys):
    pace_of(Forecast(settings(max_steps=100_000, max_minutes=3.0, warmup_steps=1000, validate_every=1000)), 2.4)
    assert capsys.readouterr().err == (
        "mtkit: warning: 3 minutes are about 75 updates here, which is not enough: the learning rate is still rising "
        "at the end (training.warmup_steps 1,000); there is no validation before the last one "
        "(training.validate_every 1,000). Raise training.max_minutes, or set training.max_steps to auto and leave out "
        "warmup_steps, validate_every and save_every, which are fitted to the minutes then\n"
    )


def test_updates_that_are_too_few_are_told_before_and_after(make: Make, capsys):
    trained(make(max_steps=6, warmup_steps=8))
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told == [
        "mtkit: warning: 6 updates, which is not enough: the learning rate is still rising at the end "
        "(training.warmup_steps 8); there is no validation before the last one (training.validate_every 8). Raise "
        "training.max_steps, or lower the others",
        "mtkit: warning: training ended too early: the learning rate is still rising at the end "
        "(training.warmup_steps 8); there is no validation before the last one (training.validate_every 8). Raise "
        "training.max_steps, or lower the others",
    ]


def test_a_run_in_minutes_alone_is_advised_of_what_was_given_and_else_of_timing_anew():
    anew = "Updates or validations took longer than those that were timed at the beginning"
    assert advice(settings()).startswith(anew)
    assert advice(settings()).endswith("; start anew with --fresh, which times them again")
    given = advice(settings(warmup_steps=50, save_every=10))
    assert given == "Raise training.max_minutes, or leave out warmup_steps and save_every, which are auto then"


@pytest.mark.parametrize(("minutes", "told"), [(1, "1 minute is"), (3, "3 minutes are"), (0.5, "30 seconds are")])
def test_one_minute_is_and_more_are(minutes: float, told: str):
    plan = Plan(max_minutes=minutes, max_steps=99, warmup_steps=10, validate_every=11, save_every=11)
    assert plan.told(Pace(0.4, 1.2)).startswith(f"{told} 99 updates here (")


def test_the_picture_of_a_schedule_in_minutes_wants_a_number_of_updates(make: Make):
    config = make(max_minutes=10.0, **AUTO)
    with pytest.raises(MtkitError, match=r"^my: training.max_steps is auto, a number that training fixes; give --ste"):
        schedule_of("my", config, None)
    assert schedule_of("my", config, 400).training.warmup_steps == 40


def test_a_plan_of_few_updates_is_warned_of(make: Make, capsys):
    trained(make(max_minutes=0.005, **AUTO))
    told = capsys.readouterr().err
    assert "mtkit: warning: so few updates teach a model little; raise training.max_minutes, or lower " in told
    stopped(make("long", max_minutes=10.0, **AUTO), 12)
    assert "so few updates" not in capsys.readouterr().err


def test_a_run_that_was_planned_is_not_told_what_fits(capsys):
    pace_of(Forecast(settings(max_steps=100_000, max_minutes=3.0), is_planned=True), 2.4)
    assert capsys.readouterr().err == ""
