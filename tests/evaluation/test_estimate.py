"""Estimates agree with the model and the data that they are about, stay above what a run leaves, and write nothing."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.config.settings import Config
from mtkit.data.batches import Batch, Feed
from mtkit.data.corpus import Corpus
from mtkit.evaluation import estimate as module
from mtkit.evaluation.bench import WARM_UP
from mtkit.evaluation.estimate import estimate, estimate_text, measure_speed, parameters_by_part
from mtkit.models.registry import empty_model, pick_device
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.records import Validation
from mtkit.training.update import Updater, forget_peak, largest_batches, resident_memory
from tests.conftest import CorpusFiles
from tests.evaluation.test_bench import Call, call, content  # noqa: F401
from tests.runs import MIXED, RECURRENT


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates tell enough."""
    monkeypatch.setattr(module, "NUM_UPDATES", 2)


def as_prepared(config: Config) -> Config:
    """The settings with the tokenizer that the prepared run has, so that its data counts as up to date."""
    return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 330})})


@pytest.mark.parametrize("model", [{}, {"tie_embeddings": "none"}, RECURRENT, MIXED])
def test_the_parts_hold_all_parameters(make_config: Callable[..., Config], model: dict[str, object]) -> None:
    config = make_config(model=model)
    parts = parameters_by_part(config, 300, 200) if model else parameters_by_part(config, 200, 200)
    whole = empty_model(config.model, *((300, 200) if model else (200, 200)))
    assert sum(parts.values()) == whole.num_parameters
    assert parts["embeddings"] >= 200 * 16


def test_an_estimate_agrees_with_the_data_and_is_above_what_the_run_leaves(
    make: Callable[..., Config], finished_toy: Path
) -> None:
    config = as_prepared(make(max_minutes=1000, max_steps=24))
    before = content(config.run_path)
    record = estimate(config)
    assert content(config.run_path) == before
    corpus = Corpus.open(config.run_path / "data" / "train")
    assert (record["pairs"], record["is_sampled"], record["faults"]) == (len(corpus), False, [])
    assert record["target_tokens_per_epoch"] == corpus.manifest.target.num_tokens + len(corpus)
    assert record["updates"] == 24
    assert record["epochs"] == pytest.approx(24 / record["updates_per_epoch"])
    assert record["seconds"] == pytest.approx(
        24 * (record["seconds_per_update"] + record["seconds_per_validation"] / config.training.validate_every)
    )
    written = sum(path.stat().st_size for path in finished_toy.rglob("*") if path.is_file())
    assert 0.5 * written < record["disk_bytes"]
    text = estimate_text(record)
    assert max(map(len, text.split("\n\n", 1)[1].splitlines())) <= 100  # below the first lines, which have a path
    assert f"{record['parameters']:,}" in text
    seconds = record["seconds"] / 20
    limits = {"max_minutes": seconds / 60}
    limited = estimate(config.model_copy(update={"training": config.training.model_copy(update=limits)}))
    assert limited["updates"] < 24
    assert limited["seconds"] <= seconds + limited["seconds_per_update"] + limited["seconds_per_validation"]


def test_text_that_is_not_binarized_is_sampled_and_nothing_written(
    make_config: Callable[..., Config], corpus_files: CorpusFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training={"max_steps": "auto", "max_minutes": 1, "batch_tokens": 256})
    whole = measure_speed(config)
    monkeypatch.setattr(module, "SAMPLE_PAIRS", 500)
    record = estimate(config)
    assert not config.run_path.exists()
    assert (record["is_sampled"], record["pairs"]) == (True, len(corpus_files.lines("train")[0]))
    assert whole.pairs_per_update == pytest.approx(record["pairs"] / record["updates_per_epoch"], rel=0.2)
    assert 0 < record["seconds"] <= 60
    assert record["config"]["training"]["max_steps"] == "auto"


@pytest.fixture
def feed(make: Callable[..., Config]) -> Feed:
    """The batches of the toy run."""
    config = as_prepared(make())
    corpus = Corpus.open(config.run_path / "data" / "train")
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    return Feed.prepare(config, tokenizer, corpus, empty_model(config.model, 330, 330).boundaries)


@dataclass
class Seen:
    """What a measurement did, in order."""

    events: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Notes updates, validations and the reading of the peak; all are made as usual."""
    found = Seen()

    def noting(place: Any, name: str) -> None:
        plain = getattr(place, name)

        def noted(*arguments: Any, **more: Any) -> Any:
            found.events.append(name)
            found.batches += arguments[1] if name == "update" else []
            return plain(*arguments, **more)

        monkeypatch.setattr(place, name, noted)

    noting(Updater, "update")
    noting(Validation, "expected_seconds")
    noting(module, "peak_memory")
    return found


def test_memory_is_that_of_the_largest_batches_and_a_validation(feed: Feed, seen: Seen) -> None:
    estimate(feed.config)
    largest = largest_batches(feed)
    assert seen.events[-3:] == ["update", "expected_seconds", "peak_memory"]
    assert [batch.labels.tolist() for batch in seen.batches[-len(largest) :]] == [
        batch.labels.tolist() for batch in largest
    ]


def test_the_speed_alone_is_measured_without_the_largest_batches(feed: Feed, seen: Seen) -> None:
    measure_speed(feed.config)
    assert "expected_seconds" not in seen.events
    assert seen.events.count("update") == WARM_UP + module.NUM_UPDATES


@pytest.mark.skipif(resident_memory() is None, reason="the system does not tell the memory of a process")
def test_memory_that_earlier_work_freed_does_not_count() -> None:
    pick_device("cpu")  # from now on, glibc keeps what is freed
    tensors = [torch.ones(1 << 20) for _ in range(32)]
    held = resident_memory()
    size = sum(tensor.nbytes for tensor in tensors)
    del tensors
    forget_peak(torch.device("cpu"))
    left = resident_memory()
    assert held is not None
    assert left is not None
    assert left < held - size / 2


def test_what_does_not_fit_is_told_and_ends_with_1(
    call: Call,  # noqa: F811
    make: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mtkit.config.settings import config_text

    config = make()
    (tmp_path / "my.yaml").write_text(config_text(config), "utf-8")
    monkeypatch.setattr(module, "memory_at_hand", lambda device: 1)
    monkeypatch.setattr(module, "_free_disk", lambda path: 1)
    result = call("estimate", tmp_path / "my.yaml", "--json", "--quiet")
    assert result.code == 1
    assert len(json.loads(result.out)["faults"]) == 3
    errors = result.error.splitlines()
    assert [line.split()[2] for line in errors] == ["training", "translation", "the"]
    assert "training.batch_tokens" in errors[0]
    assert "decoding.batch_tokens" in errors[1]
