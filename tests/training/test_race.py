"""Training ends at the validation that reaches target_score, and a race records how long that took."""

import json
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mtkit.bundle.opening import checkpoint_steps, read_progress
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import batches_from
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, StoppedError
from mtkit.pipeline import run_race, run_train
from mtkit.training.records import race_text
from mtkit.training.train import Trainer
from tests.conftest import config_with, toy_settings
from tests.runs import MODEL, TRAINING, at_step, doing, events, interrupt, outcome, trained

TINY = {**TRAINING, "accumulate": 1, "max_steps": 12, "validate_every": 4, "select_by": "loss"}
NOT_COMPARED = ("training_seconds", "validation_seconds", "command_seconds", "command", "config")


def race(config: Config, **options: bool) -> dict[str, Any]:
    return run_race(config, time.monotonic(), **options)


@pytest.fixture
def racing(make_config, tmp_path):
    """A function that makes the settings of a short race by the loss, for a target and other settings of training."""

    def made(target: float, name: str = "race", **training: object) -> Config:
        training = {**TINY, "target_score": target, **training}
        return make_config(tmp_path / name, model=MODEL, training=training, tokenizer={"vocab_size": 330})

    return made


VALIDATED: dict[str, Any] = {"validate_every": 4, "learning_rate": 0.03, "max_steps": 32}


@pytest.fixture(scope="module")
def validations(prepared, corpus_files, tmp_path_factory) -> list[dict[str, Any]]:
    """What a run without a target logs at its eight validations, whatever it is selected by."""
    run = shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "run")
    settings = toy_settings(corpus_files, run)
    return events(trained(config_with(settings, model=MODEL, training={**TRAINING, **VALIDATED})), "validation")


@pytest.mark.parametrize("metric", ["loss", "bleu", "chrf"])
def test_training_ends_at_the_first_validation_that_reaches_the_target(make, validations, metric):
    name, sign = ("nll", -1) if metric == "loss" else (metric, 1)
    scores = {event["step"]: event[name] for event in validations}
    target = sorted(scores.values(), key=lambda score: sign * score)[len(scores) // 2]
    run = trained(make("run", **VALIDATED, select_by=metric, target_score=target))
    steps = [event["step"] for event in events(run, "validation")]
    assert steps == list(scores)[: len(steps)]
    assert [sign * scores[step] >= sign * target for step in steps] == [False] * (len(steps) - 1) + [True]
    assert checkpoint_steps(run / "checkpoints")[-1] == steps[-1] < 32
    assert (run / "model" / "bundle.json").exists()


def test_a_run_goes_on_when_its_target_is_gone(make, capsys):
    run = trained(make(select_by="loss", target_score=100, max_steps=16))
    assert checkpoint_steps(run / "checkpoints")[-1] == 8
    assert "training.target_score 100 is reached" in capsys.readouterr().err
    run_again = trained(make(select_by="loss", max_steps=16))
    assert checkpoint_steps(run_again / "checkpoints")[-1] == 16


def test_target_tokens_are_those_of_the_batches(make):
    config = make(max_steps=9, accumulate=1)
    run = trained(config)
    corpus = Corpus.open(run / "data" / "train")
    lengths = corpus.source_lengths + 1, corpus.target_lengths + 1
    batches = islice(batches_from(0, *lengths, config.training.batch_tokens, config.training.seed), 9)
    progress, _, _ = read_progress(run / "checkpoints", 9)
    assert progress.target_tokens == sum(int(lengths[1][batch.pairs].sum()) for _, batch in batches)


def test_a_race_records_what_reached_the_target(racing):
    config = racing(100.0)
    record = race(config, test=True)
    run = config.run_path
    assert json.loads((run / "race.json").read_text("utf-8")) == record
    (validation,) = events(run, "validation")
    assert (record["reached"], record["updates"], record["best_step"]) == (True, 4, 4)
    assert record["best_score"] == validation["nll"]
    assert [point["step"] for point in record["curve"]] == [4]
    assert 0 < record["training_seconds"] + record["validation_seconds"] <= record["command_seconds"] + 0.1
    assert {score["metric"] for score in record["test"]} == {"BLEU", "chrF2", "TER"}
    assert Config.model_validate_json(json.dumps(record["config"])) == config
    assert "reached the target 100: 4 updates" in race_text(record, run)
    assert race(config) == record, "a race that is over is neither trained nor recorded again"
    with pytest.raises(CheckpointError, match=r"begun with training\.target_score 100, wants 50 from the start"):
        race(racing(50.0))
    assert not race(racing(0.01, max_steps=4), fresh=True)["reached"]


def test_a_race_that_was_interrupted_goes_on_to_the_same_record(racing):
    whole = racing(0.01, "whole")
    record = race(whole)
    assert (record["reached"], record["updates"], len(record["curve"])) == (False, 12, 3)
    config = racing(0.01)
    with doing(interrupt, Trainer, "_update", at_step(6)), pytest.raises(StoppedError):
        race(config)
    assert not (config.run_path / "race.json").exists()
    again = race(config)
    assert outcome(config.run_path) == outcome(whole.run_path)
    assert without_times(again) == without_times(record)
    # Both sessions count.
    progress, _, _ = read_progress(config.run_path / "checkpoints", 12)
    assert again["validation_seconds"] == round(sum(event["seconds"] for event in logged(config.run_path)), 3)
    times = [point["training_seconds"] for point in again["curve"]]
    assert 0 < times[0] <= times[1] <= times[2] == again["training_seconds"] <= progress.seconds + 0.001


def logged(run: Path) -> list[dict[str, Any]]:
    """The validations in the log, with their times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if line["event"] == "validation"]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a race without what differs between two runs of the same settings."""
    curve = [{**point, "training_seconds": 0} for point in record["curve"]]
    return {**{name: value for name, value in record.items() if name not in NOT_COMPARED}, "curve": curve}


def test_a_run_that_may_have_reached_the_target_before_is_no_race(racing, make_config):
    config = racing(100.0, max_steps=4)
    run_train(config.model_copy(update={"training": config.training.model_copy(update={"target_score": None})}))
    with pytest.raises(CheckpointError, match=r"begun with no training\.target_score, wants 100 from the start"):
        race(config)


def test_a_target_beyond_the_scale_is_refused():
    with pytest.raises(ValidationError, match="target_score 101 cannot be reached: bleu is at most 100"):
        TrainingConfig(target_score=101)
    assert TrainingConfig(target_score=101, select_by="loss").target_score == 101
