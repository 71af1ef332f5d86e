"""Law: where training.batch_tokens is auto, training takes the largest batch that fits, and keeps it."""

from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Batch, Feed, micro_batches
from mtkit.errors import MtkitError, StoppedError
from mtkit.evaluation.bench import bench_training
from mtkit.files import Stop
from mtkit.training import update as module
from mtkit.training.train import Trainer
from mtkit.training.update import OBJECTIVES, find_batch_tokens, largest_batches
from tests.runs import Killed, Make, at_step, doing, events, interrupt, kill, outcome, trained, trainer_of


def rows_times_longest(batch: Batch) -> int:
    """The size that batch_tokens bounds."""
    return len(batch.labels) * max(batch.source.ids.shape[1], batch.target.ids.shape[1])


def positions(batch: Batch) -> int:
    """What the memory of most layers grows with."""
    return len(batch.labels) * (batch.source.ids.shape[1] + batch.target.ids.shape[1])


def scores(batch: Batch) -> int:
    """What the memory of attention grows with."""
    return len(batch.labels) * max(batch.source.ids.shape[1], batch.target.ids.shape[1]) ** 2


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
@pytest.mark.parametrize("size", [positions, scores])
def test_no_batch_of_the_first_epoch_is_larger_than_the_largest(make: Make, size: Any, batching: str) -> None:
    feed = feed_of(make(batching=batching))
    stream = takewhile(lambda item: item[0] == 0, micro_batches(feed.corpus, feed.config.training, 0))
    planned = [part for _, parts in stream for part in parts]
    largest = max(map(size, planned))
    assert largest > min(map(size, planned))
    assert max(map(size, largest_batches(feed))) == largest
    assert [size(batch) for batch in largest_batches(feed, 1)] == [size(planned[0])]


def feed_of(config: Config) -> Feed:
    """What makes the batches of a run."""
    trainer = trainer_of(config)
    trainer.log.close()
    return trainer.feed


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The largest batch for which there is memory, and the largest so far; sizes from about 48 are tried."""
    whole, found = OBJECTIVES["none"], {"tokens": 10**9, "largest": 0}

    def limited(model: Any, batch: Batch, settings: TrainingConfig) -> Any:
        if (size := rows_times_longest(batch)) > found["tokens"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        found["largest"] = max(found["largest"], size)
        return whole(model, batch, settings)

    monkeypatch.setitem(OBJECTIVES, "none", limited)
    monkeypatch.setattr(module, "LEAST_BATCH_TOKENS", 48)
    return found


@pytest.mark.parametrize(
    ("memory", "update_tokens", "tokens"),
    [
        (10**9, 192, 192),  # at most an update
        (10**9, 1000, 333),  # at most 384, and three equal batches make up an update
        (150, 768, 96),
        (75, 100, 50),
        (30, 100, None),
    ],
)
def test_the_largest_size_that_memory_lasts_for_is_divided_evenly(
    make: Make,
    limit: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    memory: int,
    update_tokens: int,
    tokens: int | None,
) -> None:
    monkeypatch.setitem(module.MOST_BATCH_TOKENS, "cpu", 384)
    trainer = trainer_of(make(batch_tokens="auto", accumulate=1, update_tokens=update_tokens))
    trainer.log.close()
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    limit["tokens"] = memory
    if tokens is None:
        with pytest.raises(MtkitError, match=r"^out of memory with training\.batch_tokens auto: [^\n]* 50 tokens; "):
            find_batch_tokens(trainer.model, trainer.feed, "fp32", Stop())
        return
    assert find_batch_tokens(trainer.model, trainer.feed, "fp32", Stop()).tokens == tokens
    assert all(map(torch.equal, weights, trainer.model.parameters()))


def test_where_the_system_does_not_tell_its_memory_the_largest_size_that_did_not_run_out_is_taken(
    make: Make, limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(make(batch_tokens="auto", accumulate=1, update_tokens=768))
    trainer.log.close()
    monkeypatch.setattr(module, "memory_at_hand", lambda device, num_processes: None)
    limit["tokens"] = 150
    found = find_batch_tokens(trainer.model, trainer.feed, "fp32", Stop())
    assert (found.tokens, found.bytes_at_hand) == (96, None)


def test_a_part_of_the_memory_stays_free_and_nothing_larger_is_tried_on_a_cpu(
    make: Make, limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(make(batch_tokens="auto", accumulate=1, update_tokens=3000))
    trainer.log.close()
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    # A peak of one byte for each token, besides the weights that the trial copies.
    monkeypatch.setattr(module, "forget_peak", lambda device: limit.update(largest=0))
    monkeypatch.setattr(module, "peak_memory", lambda device: weights + limit["largest"])
    at_hand = 400
    monkeypatch.setattr(module, "memory_at_hand", lambda device, num_processes: at_hand)
    found = find_batch_tokens(trainer.model, trainer.feed, "fp32", Stop())
    assert found.tokens == 187  # a 16th of an update; an 8th would be more than half of 400
    assert 96 < found.bytes_needed <= 187


def auto(make: Make, name: str, **training: Any) -> Config:
    """Settings with batch_tokens auto."""
    return make(name, **{"batch_tokens": "auto", "accumulate": 1, "update_tokens": 192, "max_steps": 8, **training})


def test_a_run_with_batch_tokens_auto_is_the_run_with_the_number_that_was_found(
    make: Make, limit: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    limit["tokens"] = 100
    run = trained(auto(make, "auto"))
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("training.batch_tokens auto: 96, which takes ") for line in said) == 1, said
    assert events(run, "start", "train")[0]["batch_tokens"] == 96
    assert "batch_tokens: auto" in (run / "config.yaml").read_text("utf-8")
    assert "batch_tokens: 96" in (run / "model" / "config.yaml").read_text("utf-8")
    assert weights_of(run) == weights_of(trained(auto(make, "number", batch_tokens=96)))

    # A run that goes on does not search again.
    config = auto(make, "stopped")
    with doing(kill, Trainer, "_update", at_step(5)), pytest.raises(Killed):
        trained(config)
    limit["tokens"] = 10**9
    assert outcome(trained(config)) == outcome(run)


def weights_of(run: Path) -> dict[str, bytes]:
    """The contents of all files of tensors."""
    return {name: data for name, data in outcome(run).items() if name.endswith(".safetensors")}


def test_a_run_with_batch_tokens_auto_goes_on_with_a_smaller_number(
    make: Make, limit: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = auto(make, "run", save_every=4)
    with doing(interrupt, Trainer, "_update", at_step(5)), pytest.raises(StoppedError):
        trained(config)
    trained(auto(make, "run", save_every=4, batch_tokens=64), change=True)
    assert "training.batch_tokens was 192, is 64" in capsys.readouterr().err
    trainer = trainer_of(auto(make, "run", save_every=4))
    trainer.log.close()
    assert trainer.settings.batch_tokens == 64
    assert trainer._less_memory() == (
        "lower training.batch_tokens, which is 64, and go on with --change (training.batch_tokens=32); updates stay as "
        "large"
    )


def test_the_speed_of_a_training_is_measured_with_the_number_that_is_found(make: Make, limit: dict[str, int]) -> None:
    limit["tokens"] = 100
    config = auto(make, "run")
    config = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 330})})
    record = bench_training(config, minutes=1e-6)
    assert (record["batch_tokens"], record["accumulate"]) == (96, 2)
    assert record["config"]["training"]["batch_tokens"] == "auto"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, "batch_tokens auto wants update_tokens, the size of an update, which would depend on the memory of "),
        ({"update_tokens": 24}, "training.update_tokens 24 must be more than data.max_length 24, so that the longest "),
        ({"update_tokens": 64, "accumulate": 2}, "accumulate 2 and update_tokens 64 both say how large an update is"),
    ],
)
def test_settings_by_which_the_machine_would_decide_the_result_are_refused(
    make_config: Callable[..., Config], training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(training={"batch_tokens": "auto", **training})
