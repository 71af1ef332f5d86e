"""Training on several corpora goes on to the bit, and notices damage that it did not wait to look for."""

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mtkit.bundle.opening import checkpoint_steps, read_progress, read_weights
from mtkit.config.settings import Config
from mtkit.data import corpus as corpus_module
from mtkit.data.corpus import Corpus, Verification
from mtkit.errors import CheckpointError, DataError, StoppedError
from mtkit.pipeline import run_binarize, run_train
from mtkit.preparation.prepare import read_validation
from mtkit.training.records import is_trained
from mtkit.training.train import Trainer, train
from tests.conftest import CorpusFiles, config_with, toy_pairs, toy_settings, write_lines
from tests.runs import at_step, doing, interrupt

TRAINING = {"batch_tokens": 96, "max_steps": 24, "validate_every": 12, "save_every": 4, "validation_sentences": 3}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Config]:
    """Makes the settings of a binarized run with a corpus of 60 pairs and one of 12, of such weights."""
    pairs = toy_pairs(80)
    for name, chosen in (("large", pairs[:60]), ("small", pairs[60:72]), ("valid", pairs[72:])):
        write_lines(tmp_path / f"{name}.src", [source for source, _ in chosen])
        write_lines(tmp_path / f"{name}.tgt", [target for _, target in chosen])

    def made(name: str, weights: tuple[float, float] = (1.0, 5.0), temperature: float = 1.0) -> Config:
        files = CorpusFiles(tmp_path)
        train = [
            {**files.pair(side), "weight": weight} for side, weight in zip(("large", "small"), weights, strict=True)
        ]
        data = {"train": train, "valid": [files.pair("valid")], "test": {}, "temperature": temperature}
        settings = toy_settings(files, tmp_path / name)
        config = config_with(settings, data=data, training=TRAINING, tokenizer={"vocab_size": 330})
        if not (tmp_path / name).exists():
            run_binarize(config)
        return config

    return made


def stopped(config: Config, step: int) -> Config:
    """A run that Ctrl-C ended after the update that follows so many."""
    with doing(interrupt, Trainer, "_update", at_step(step)), pytest.raises(StoppedError):
        train(config, read_validation(config))
    return config


def weights_of(config: Config) -> dict[str, list[float]]:
    found = read_weights(config.run_path / "checkpoints", 24)
    return {name: tensor.flatten().tolist() for name, tensor in found.items()}


def test_a_run_on_a_mixture_that_was_stopped_goes_on_to_the_bit(make):
    whole = make("whole")
    train(whole, read_validation(whole))
    config = make("parts")
    places = []
    for step in (3, 10, 17):
        stopped(config, step)
        places.append(read_progress(config.run_path / "checkpoints", step + 1)[0].pairs % 72)
    assert all(places), "in the middle of an epoch"
    train(config, read_validation(config))
    assert weights_of(config) == weights_of(whole)
    assert is_trained(config)


def test_weights_decide_what_is_trained_on(make):
    for name, weights in (("natural", (1.0, 1.0)), ("mixed", (1.0, 5.0))):
        train(make(name, weights), read_validation(make(name, weights)))
    assert weights_of(make("natural")) != weights_of(make("mixed"))


@pytest.mark.parametrize(
    ("weights", "temperature", "told"),
    [
        ((1.0, 6.0), 1.0, "mixing.weights was [1.0, 5.0], is [1.0, 6.0]"),
        ((1.0, 5.0), 2.0, "mixing.temperature was 1.0, is 2.0"),
        ((2.0, 2.0), 1.0, "the mixing"),
    ],
)
def test_a_mixture_that_changes_midway_is_refused_and_binarizes_nothing(make, weights, temperature, told):
    config = stopped(make("run"), 5)
    corpus = {path.name: path.stat().st_mtime_ns for path in (config.run_path / "data" / "train").iterdir()}
    with pytest.raises(CheckpointError) as raised:
        run_train(make("run", weights, temperature))
    assert f"these changed: {told}. Change them back" in str(raised.value)
    assert corpus == {path.name: path.stat().st_mtime_ns for path in (config.run_path / "data" / "train").iterdir()}


def test_a_finished_run_is_up_to_date_for_its_own_mixture_alone(make):
    config = make("run", (1.0, 5.0))
    train(config, read_validation(config))
    assert is_trained(config)
    assert not is_trained(make("run", (1.0, 6.0)))
    assert not is_trained(make("run", (1.0, 5.0), 2.0))
    assert not is_trained(make("run", (1.0, 1.0)))


def test_weights_that_come_to_the_same_may_change(make):
    stopped(make("run", (1.0, 1.0)), 5)
    run_train(make("run", (3.0, 3.0)))
    assert checkpoint_steps((make("run").run_path) / "checkpoints")[-1] == 24


def test_data_that_does_not_tell_its_corpora_apart_is_refused_where_they_are_mixed(make):
    config = make("run")
    data = config.data.model_copy(update={"train": (*config.data.train, config.data.train[0])})
    with pytest.raises(DataError, match=r"records the pairs of 2 corpora, but data\.train has 3; binarize the corpora"):
        train(config.model_copy(update={"data": data}), read_validation(config))


# Damage that is found while training goes on.


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The corpus counts as large, and is read when this is called, which waits for the end of it."""
    begin = threading.Event()
    futures: list[Future[Any]] = []

    class Late(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
            futures.append(super().submit(lambda: (begin.wait(60), function(*arguments, **options))))
            return futures[-1]

    monkeypatch.setattr(corpus_module, "VERIFIED_FIRST_BYTES", 100)
    monkeypatch.setattr(corpus_module, "ThreadPoolExecutor", Late)

    def read() -> None:
        begin.set()
        concurrent.futures.wait(futures, timeout=60)

    return read


def damage(config: Config) -> None:
    path = config.run_path / "data" / "train" / "target.tokens"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + content[-4:-2])
    assert path.read_bytes() != content


def updating(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    update = Trainer._update

    def watched(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.state.progress.step == step:
            action()
        return update(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_update", watched)


def test_a_run_ends_at_the_first_update_after_damage_was_found(make, late, monkeypatch):
    config = make("run")
    damage(config)
    updating(monkeypatch, 5, late)
    with pytest.raises(DataError, match=r"target\.tokens: damaged in piece 1 of 1"):
        train(config, read_validation(config))
    assert checkpoint_steps(config.run_path / "checkpoints") == [4], "what the damage may have spoilt is not saved"
    assert not (config.run_path / "model").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verification")]


def test_damage_that_is_found_after_the_last_update_leaves_no_model(make, late, monkeypatch):
    config = make("run")
    damage(config)
    wait = Verification.wait

    def reading_late(verification: Verification, check: Callable[[], None]) -> None:
        late()
        wait(verification, check)

    monkeypatch.setattr(Verification, "wait", reading_late)
    with pytest.raises(DataError, match=r"target\.tokens: damaged in piece 1 of 1"):
        train(config, read_validation(config))
    assert not (config.run_path / "model").exists()


def test_a_large_corpus_that_is_whole_trains_as_a_small_one(make, late, monkeypatch):
    updating(monkeypatch, 5, late)
    config = make("run")
    assert Corpus.open(config.run_path / "data" / "train").num_bytes > 100
    train(config, read_validation(config))
    monkeypatch.undo()
    again = make("again")
    train(again, read_validation(again))
    assert weights_of(config) == weights_of(again)
