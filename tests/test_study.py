"""A study trains each of its runs once, whatever stops it, and its table says what the logs say."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from mtkit.bundle.opening import Progress
from mtkit.config.training_settings import TrainingConfig
from mtkit.errors import ConfigError, StoppedError
from mtkit.files import Stop
from mtkit.pipeline import run_train
from mtkit.training.optimizers import divergence
from tests.conftest import SCRIPTS, CorpusFiles, script, toy_settings, write_toy_corpus
from tests.forked import Forked
from tests.runs import MODEL, TRAINING, events


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("study")


@pytest.fixture(scope="module")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    """A toy corpus of 120 pairs."""
    return CorpusFiles(write_toy_corpus(tmp_path_factory.mktemp("study"), 120))


@pytest.fixture
def write(few_pairs: CorpusFiles, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of two variants, two budgets and two seeds of a tiny model, with some keys replaced."""
    settings = toy_settings(few_pairs, tmp_path / "unused")
    settings |= {"model": MODEL, "training": {**TRAINING, "accumulate": 1, "log_every": 2}}
    settings["tokenizer"] = {"vocab_size": 330}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), "utf-8")

    def written(**keys: Any) -> Path:
        content = {
            "recipe": str(tmp_path / "recipe.yaml"),
            "settings": ["training.validate_every=4"],
            "budgets": {1: ["training.max_steps=9"], 2: ["training.max_steps=20"]},
            "seeds": [1, 2],
            "variants": {"adam": [], "no dropout": {"settings": ["model.dropout=0"], "budgets": [1]}},
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**content, **keys}, sort_keys=False), "utf-8")
        return tmp_path / "study.yaml"

    return written


def test_a_study_that_was_stopped_repeats_nothing_and_its_table_says_what_the_logs_say(
    study, write, tmp_path, monkeypatch
):
    folder, results = tmp_path / "runs", tmp_path / "results.json"
    arguments = [str(write()), "--folder", str(folder), "--budget", "1", "--jobs", "1", "--json", str(results)]
    runs = [run for run in study.runs_of(study.read_study(write()), folder, []) if run.budget == "1"]
    for run in runs[2:]:  # seed 2, here and not in processes, to save time
        run_train(run.config)
        study.write_record(run, "trained")

    def wait_for_signal(stop: Stop) -> None:
        end = time.monotonic() + 120
        while not stop.signal:
            assert time.monotonic() < end, "no signal came"
            time.sleep(0.01)
        raise StoppedError

    def fork(command: list[str], env: Any, process_group: Any, **streams: Any) -> Forked:
        if any(str(runs[1].path) in argument for argument in command):  # however fast it is, it must not end first
            monkeypatch.setattr(Stop, "check", wait_for_signal)
        return Forked(command, **streams)

    # Both studies and their trainings are forks, which need not import PyTorch.
    monkeypatch.setattr(subprocess, "Popen", fork)
    monkeypatch.syspath_prepend(SCRIPTS)
    command = [sys.executable, "-m", "study", *arguments]
    with (tmp_path / "told").open("wb") as told:
        process = Forked(command, stderr=told)
        while process.poll() is None and state(runs[0].path) != "trained":
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130, (tmp_path / "told").read_text("utf-8")
    finished = [run.path / name for run in runs if run != runs[1] for name in ("log.jsonl", "model")]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in finished]
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, process_group, **streams: Forked(command, **streams))
    with (tmp_path / "told").open("wb") as told:
        again = Forked(command, stdout=subprocess.PIPE, stderr=told)
        printed = again.communicate()[0].decode()
    assert again.returncode == 0, (tmp_path / "told").read_text("utf-8")
    assert "4 runs, 3 of them done" in (tmp_path / "told").read_text("utf-8")
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in finished] == before
    assert all(state(run.path) == "trained" for run in runs)
    assert len({(run.path / "data" / "train" / "manifest.json").stat().st_ino for run in runs[:2]}) == 1

    nll = np.array([events(run.path, "validation")[-1]["nll"] for run in runs]).reshape(2, 2)  # seeds, variants
    adam, other = json.loads(results.read_text("utf-8"))["budgets"]["1"]
    assert (adam["variant"], adam["seeds"], other["seeds"]) == ("adam", [1, 2], [1, 2])
    differences = nll[:, 1] - nll[:, 0]
    assert [adam["nll"]["mean"], other["nll"]["mean"]] == pytest.approx(nll.mean(0))
    assert other["nll"]["difference"] == pytest.approx(differences.mean())
    assert other["nll"]["difference_interval"] == pytest.approx(12.7062 * differences.std(ddof=1) / 2**0.5)
    assert f"| no dropout | 2 | {other['bleu']['mean']:.2f} |" in printed
    assert f"{nll[:, 1].mean():.4f} | {differences.mean():+.4f}" in printed


def test_the_script_is_a_program_that_answers_without_pytorch() -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / "study.py"), "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("usage: study.py")
    assert "pydantic" in done.stderr
    assert " torch\n" not in done.stderr


def state(run: Path) -> str:
    """The state of a run as the study has noted it; "" if it has not begun."""
    try:
        return str(json.loads((run / "study.json").read_text("utf-8"))["state"])
    except FileNotFoundError:
        return ""


def test_all_variants_of_a_seed_and_a_budget_come_before_the_next(study, write, tmp_path):
    runs = study.runs_of(study.read_study(write()), tmp_path, ["device=cpu"])
    assert [(run.seed, run.budget, run.variant) for run in runs] == [
        (seed, *rest) for seed in (1, 2) for rest in (("1", "adam"), ("1", "no dropout"), ("2", "adam"))
    ]
    for run in runs:
        assert run.config.training.seed == run.seed
        assert run.config.model.dropout == (0.3 if run.variant == "adam" else 0)
        assert run.config.training.max_steps == (9 if run.budget == "1" else 20)
        assert run.config.training.validate_every == 4


def test_a_run_is_done_until_its_settings_change(study, write, tmp_path):
    def first(**keys: Any) -> Any:
        return study.runs_of(study.read_study(write(**keys)), tmp_path / "runs", [])[0]

    study.write_record(first(), "trained")
    assert study.is_done(first())
    assert study.is_done(first(settings=["training.validate_every=4", "training.log_every=7", "decoding.beam_size=3"]))
    assert not study.is_done(first(settings=["training.validate_every=3"]))
    record = json.loads((first().path / "study.json").read_text("utf-8"))
    del record["config"]["training"]["ema_decay"]  # as if written before the setting existed
    assert not study.is_changed(first(), record)
    study.write_record(first(), "begun")
    assert not study.is_done(first())


def test_a_run_that_diverged_is_a_row_and_is_not_tried_again(study, write, tmp_path):
    content = study.read_study(write())
    run = study.runs_of(content, tmp_path / "runs", [])[0]
    settings = TrainingConfig()
    assert study.has_diverged(divergence(Progress(step=7), settings, 0.5))
    error = f"{run.path}: {divergence(Progress(step=120, skipped_in_row=100), settings, 1)}; there is no checkpoint yet"
    assert study.has_diverged(error)
    study.write_record(run, "diverged", error)
    assert study.is_done(run)
    (row,) = study.table(study.rows_of(content, [run], "1")).splitlines()[2:]
    assert row.startswith("| adam, seed 1: diverged: 100 updates in a row, the last at step 120, were not finite | - |")


def test_a_single_seed_has_no_interval(study):
    assert study.mean_and_interval([3.5]) == (3.5, None)


def test_the_quantiles_are_those_of_students_t(study):
    # Known values: tan(0.475 pi) for one degree of freedom; Abramowitz & Stegun, table 26.10, for the others.
    known = {1: np.tan(0.475 * np.pi), 2: 4.303, 5: 2.571, 9: 2.262, 10: 2.228, 12: 2.179, 30: 2.042, 120: 1.980}
    assert [study.t_quantile(freedom) for freedom in known] == pytest.approx(list(known.values()), abs=6e-4)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"variants": {"a": {"budgets": [7]}}}, "variants.a: found budget 7, which budgets has not"),
        ({"variants": {"a": {"buget": [1]}}}, r"variants.a.buget: Extra inputs are not permitted"),
        ({"seeds": []}, "seeds is empty, wants at least one"),
        ({"seeds": "x"}, "seeds: Input should be a valid list"),
    ],
)
def test_a_wrong_study_is_refused_with_the_place(study, write, keys, told):
    with pytest.raises(ConfigError, match=told):
        study.read_study(write(**keys))


def test_wrong_settings_are_refused_before_anything_is_trained(study, write, tmp_path):
    wrong = study.read_study(write(variants={"a": ["training.max_stepz=1"]}))
    with pytest.raises(ConfigError, match=r"a, budget 1, seed 1: training\.max_stepz=1: unknown"):
        study.runs_of(wrong, tmp_path, [])
    same = study.read_study(write(variants={"a, b": [], "a b": []}))
    with pytest.raises(ConfigError, match="same name but for punctuation"):
        study.runs_of(same, tmp_path, [])


def test_seconds_of_validations_are_not_seconds_of_training(study):
    logged = [
        {"event": "train", "minutes": 1.0},
        {"event": "validation", "seconds": 30.0},
        {"event": "train", "minutes": 2.5},
        {"event": "validation", "seconds": 40.0},
    ]
    assert study._training_seconds(logged) == 120
