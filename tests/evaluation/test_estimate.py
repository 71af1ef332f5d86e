"""Estimates agree with the model and the data that they are about, stay above what a run leaves, and write nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mtkit.config.settings import Config
from mtkit.data.corpus import Corpus
from mtkit.evaluation import estimate as module
from mtkit.evaluation.estimate import estimate, estimate_text, measure_speed, parameters_by_part
from mtkit.models.registry import empty_model
from tests.conftest import CorpusFiles
from tests.evaluation.test_bench import Call, call, content  # noqa: F401
from tests.runs import MIXED, RECURRENT


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates tell enough."""
    monkeypatch.setattr(module, "NUM_UPDATES", 2)


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
    config = make(max_minutes=1000, max_steps=24)
    prepared_by = config.tokenizer.model_copy(update={"vocab_size": 330})
    config = config.model_copy(update={"tokenizer": prepared_by})
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


def test_what_does_not_fit_is_told_and_ends_with_1(
    call: Call,  # noqa: F811
    make: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mtkit.config.settings import config_text

    config = make()
    (tmp_path / "my.yaml").write_text(config_text(config), "utf-8")
    monkeypatch.setattr(module, "_free_memory", lambda device: 1)
    monkeypatch.setattr(module, "_free_disk", lambda path: 1)
    result = call("estimate", tmp_path / "my.yaml", "--json", "--quiet")
    assert result.code == 1
    assert len(json.loads(result.out)["faults"]) == 3
    errors = result.error.splitlines()
    assert [line.split()[2] for line in errors] == ["training", "translation", "the"]
    assert "training.batch_tokens" in errors[0]
    assert "decoding.batch_tokens" in errors[1]
