"""Sampled segmentations: the same for the same seed and place, others in another epoch, and text stays text."""

import shutil
import threading
from collections.abc import Callable
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtkit.config.load import config_from_text
from mtkit.config.settings import Config
from mtkit.data.batches import Batch, SubwordSampling, micro_batches, padded_batch, ragged, subword_sampling_of
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, ConfigError, DataError
from mtkit.files import Stop
from mtkit.pipeline import run_binarize
from mtkit.preparation.prepare import binarize, binarized_is_current
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import NUM_SPECIAL
from mtkit.training.train import Trainer
from tests.conftest import CorpusFiles, config_with, toy_settings, write_toy_corpus
from tests.runs import at_step, doing, events, outcome, trained, trainer_of, whole_and_killed

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "bpe": {"tokenizer": {"vocab_size": 330}, "training": {"bpe_dropout": 0.3}},
    "unigram": {"tokenizer": {"vocab_size": 330, "type": "unigram"}, "training": {"unigram_alpha": 0.2}},
    "nbest": {
        "tokenizer": {"vocab_size": 330, "type": "unigram"},
        "training": {"unigram_alpha": 0.5, "unigram_nbest": 8},
    },
}
TEXTS = [
    "four nine one",
    "",
    "déjà vu 👩‍👩‍👧",
    "zero",
    "x" * 300,
    "seven " * 40 + "seven",
    "three three three three",
] * 5


@pytest.fixture(scope="session", params=KINDS)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with binarized data, for each way to sample; not to be changed."""
    root = tmp_path_factory.mktemp(request.param)
    files = CorpusFiles(write_toy_corpus(root, 120))
    sections = KINDS[request.param]
    training = {**sections["training"], "batch_tokens": 96}
    config = config_with(
        toy_settings(files, root / "run"), tokenizer=sections["tokenizer"], training=training, data={"max_length": 40}
    )
    run_binarize(config)
    return config


@pytest.fixture
def tokenizer(config: Config) -> Tokenizer:
    return Tokenizer.load(config.run_path / "tokenizer")


@pytest.fixture
def corpus(config: Config) -> Corpus:
    return Corpus.open(config.run_path / "data" / "train")


def samples(tokenizer: Tokenizer, config: Config) -> list[Callable[..., list[list[int]]]]:
    """Source and target of the settings at hand."""
    training = config.training
    alpha = training.bpe_dropout or training.unigram_alpha
    return [
        partial(sample, alpha=alpha, nbest=training.unigram_nbest)
        for sample in (tokenizer.sample_source, tokenizer.sample_target)
    ]


def tensors(batches: tuple[Batch, ...]) -> list[list[Any]]:
    return [[batch.source.ids.tolist(), batch.target.ids.tolist(), batch.labels.tolist()] for batch in batches]


def stream(config: Config, corpus: Corpus, consumed: int = 0, **training: Any) -> Any:
    settings = config.training.model_copy(update=training)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    sampling = subword_sampling_of(config, tokenizer, corpus)
    assert sampling
    return micro_batches(corpus, settings, consumed, sampling)


def epoch_of(config: Config, corpus: Corpus, epoch: int) -> list[tuple[Batch, ...]]:
    return [parts for _, parts in takewhile(lambda one: one[0] == epoch, stream(config, corpus, epoch * len(corpus)))]


# The tokenizer.


def test_the_same_seed_gives_the_same_segmentations_and_another_one_others(config, tokenizer):
    for sample in samples(tokenizer, config):
        first = sample(TEXTS, seed=7)
        assert sample(TEXTS, seed=7) == first
        assert sample(TEXTS, seed=8) != first
        assert sample(TEXTS, seed=7) == first


def test_other_threads_change_no_sample(config, tokenizer):
    sample, other = samples(tokenizer, config)
    wanted = sample(TEXTS, seed=7)
    others = other(TEXTS, seed=3)
    found: list[tuple[list[list[int]], list[list[int]]]] = []

    def work() -> None:
        for _ in range(20):
            tokenizer.encode_source(TEXTS, num_threads=2)
            found.append((sample(TEXTS, seed=7), other(TEXTS, seed=3)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(wanted, others)] * 80


def test_one_text_is_segmented_in_several_ways_by_one_call(config, tokenizer):
    for sample in samples(tokenizer, config):
        assert len({tuple(row) for row in sample(["seven three nine"] * 50, seed=1)}) > 2


def test_decoding_any_sample_is_the_text(config, tokenizer):
    texts = [tokenizer.normalize_source(text) for text in TEXTS]
    for seed in range(5):
        for sample, decode in zip(
            samples(tokenizer, config), (tokenizer.decode_source, tokenizer.decode_target), strict=True
        ):
            tokens = sample(texts, seed=seed)
            assert decode(tokens) == texts
            assert all(id_ >= NUM_SPECIAL for row in tokens for id_ in row)


def test_sampling_leaves_encoding_as_it_was(config, tokenizer):
    wanted = tokenizer.encode_source(TEXTS)
    sample, _ = samples(tokenizer, config)
    sample(TEXTS, seed=1)
    assert tokenizer.encode_source(TEXTS) == wanted
    assert sample([], seed=1) == []


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_the_more_merges_are_left_out_the_more_pieces_there_are(config, tokenizer):
    lengths = []
    for dropout in (0.0, 0.1, 0.3, 0.6, 0.99):
        tokens = tokenizer.sample_source(TEXTS, dropout, -1, 5)
        lengths.append(sum(map(len, tokens)))
    assert lengths == sorted(set(lengths))
    assert tokenizer.sample_source(TEXTS, 0.0, -1, 5) == tokenizer.encode_source(TEXTS)


@pytest.mark.parametrize("config", ["unigram"], indirect=True)
def test_the_larger_alpha_the_more_often_the_best_segmentation_is_drawn(config, tokenizer):
    text = "seven three nine"
    best = tokenizer.encode_source([text])[0]
    shares = [tokenizer.sample_source([text] * 500, alpha, -1, 5).count(best) for alpha in (0.0, 0.3, 1.0, 20.0)]
    assert shares == sorted(shares)
    assert shares[0] < 100
    assert shares[-1] == 500


@pytest.mark.parametrize("config", ["nbest"], indirect=True)
def test_no_more_than_the_best_ones_are_drawn(config, tokenizer):
    for most in (2, 3):
        drawn = tokenizer.sample_source(["seven"] * 500, 0.0, most, 5)
        assert len({tuple(row) for row in drawn}) == most


# The batches.


def test_the_text_of_each_pair_stands_beside_its_ids(config, corpus, tokenizer):
    corpus.verify()
    pairs = np.arange(len(corpus))
    assert corpus.source_text(pairs) == tokenizer.decode_source([corpus.source(pair) for pair in pairs])
    assert corpus.target_text(pairs) == tokenizer.decode_target([corpus.target(pair) for pair in pairs])
    assert corpus.source_text(np.array([7, 2, 2])) == [corpus.source_text(pairs)[pair] for pair in (7, 2, 2)]


def test_the_same_settings_give_the_same_batches(config, corpus):
    first, second = ([tensors(parts) for _, parts in islice(stream(config, corpus), 60)] for _ in range(2))
    assert first == second
    assert first != [tensors(parts) for _, parts in islice(stream(config, corpus, seed=2), 60)]


def test_from_every_place_the_stream_goes_on_as_if_it_had_not_stopped(config, corpus):
    wanted = list(islice(stream(config, corpus), 60))
    consumed = 0
    for done, (_, parts) in enumerate(wanted):
        if done % 7 == 0:
            later = list(islice(stream(config, corpus, consumed), 60 - done))
            assert [(epoch, tensors(parts)) for epoch, parts in later] == [
                (epoch, tensors(parts)) for epoch, parts in wanted[done:]
            ]
        consumed += sum(part.num_pairs for part in parts)
    assert consumed > len(corpus)


def test_each_epoch_holds_every_text_once_in_another_segmentation(config, corpus, tokenizer):
    ids, texts = [], []
    for epoch in range(2):
        rows = [
            [id_ for id_ in row if id_ >= NUM_SPECIAL]
            for parts in epoch_of(config, corpus, epoch)
            for part in parts
            for row in part.source.ids.tolist()
        ]
        ids.append({tuple(row) for row in rows})
        texts.append(sorted(tokenizer.decode_source(rows)))
    assert texts[0] == texts[1] == sorted(corpus.source_text(np.arange(len(corpus))))
    assert len(ids[0] & ids[1]) < len(corpus) / 2


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_no_part_is_larger_than_the_budget_and_all_belong_to_the_batch_of_the_plan(config, corpus, batching):
    divided = 0
    plain = micro_batches(corpus, config.training.model_copy(update={"batching": batching}), 0)
    for (_, parts), (_, (whole,)) in islice(zip(stream(config, corpus, batching=batching), plain, strict=False), 60):
        divided += len(parts) > 1
        assert sum(part.num_pairs for part in parts) == whole.num_pairs
        for part in parts:
            assert part.source.ids.numel() <= config.training.batch_tokens
            assert part.target.ids.numel() <= config.training.batch_tokens
            assert len(part.source.ids) == len(part.target.ids)
    assert divided > 5


def long_sampling(tokens: int, max_length: int) -> SubwordSampling:
    """Says that every text has so many tokens."""

    def sample(texts: Any, *, seed: int) -> list[list[int]]:
        return [[5 + seed % 7] * tokens for _ in texts]

    return SubwordSampling(sample, sample, max_length)


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_a_pair_that_comes_out_too_long_keeps_its_own_ids(config, corpus):
    plain = islice(micro_batches(corpus, config.training, 0), 30)
    kept = islice(micro_batches(corpus, config.training, 0, long_sampling(41, 40)), 30)
    assert [tensors(parts) for _, parts in kept] == [tensors(parts) for _, parts in plain]
    for _, parts in islice(micro_batches(corpus, config.training, 0, long_sampling(40, 40)), 30):
        assert all(part.source.ids.shape[1] == 41 for part in parts)
        assert all(part.num_pairs <= 2 for part in parts)


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_sampled_batches_without_dropout_of_merges_are_the_plain_ones(config, corpus, tokenizer):
    sampling = SubwordSampling(
        partial(tokenizer.sample_source, alpha=0.0, nbest=-1), partial(tokenizer.sample_target, alpha=0.0, nbest=-1), 40
    )
    sampled = islice(micro_batches(corpus, config.training, 0, sampling), 30)
    plain = islice(micro_batches(corpus, config.training, 0), 30)
    assert [tensors(parts) for _, parts in sampled] == [tensors(parts) for _, parts in plain]


# Training.

MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 16, "dropout": 0.3}
TRAINING = {
    "accumulate": 2,
    "max_steps": 12,
    "warmup_steps": 8,
    "validate_every": 8,
    "validation_sentences": 5,
    "save_every": 4,
    "log_every": 5,
}


def run_of(config: Config, run_dir: Path, model: dict[str, Any] | None = None, **training: Any) -> Config:
    """The same settings with a copy of the data."""
    shutil.copytree(config.run_path, run_dir)
    return settings_of(config, run_dir, model, **training)


def settings_of(config: Config, run_dir: Path, model: dict[str, Any] | None = None, **training: Any) -> Config:
    """The same settings for a run that is there."""
    sections = {"model": {**MODEL, **(model or {})}, "training": {**TRAINING, **training}}
    return config_with({**config.model_dump(mode="json"), "run_dir": str(run_dir)}, **sections)


def test_a_killed_run_that_samples_goes_on_to_the_bit(config, tmp_path):
    def make(name: str, **options: Any) -> Config:
        place = tmp_path / name
        return settings_of(config, place, **options) if place.exists() else run_of(config, place, **options)

    whole, killed = whole_and_killed(make, 7)
    assert outcome(killed) == outcome(whole)
    other = trained(make("other", seed=2, max_steps=5))
    assert events(other, "train")[0] != events(killed, "train")[0]


def gradient(trainer: Trainer, batches: list[tuple[Batch, ...]]) -> Tensor:
    """All of an update's gradient as one vector."""
    found: list[Tensor] = []
    trainer.state.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.double().flatten() for p in trainer.model.parameters())
    )
    trainer._update((0, parts) for parts in batches)
    trainer.log.close()
    return torch.cat(found)


def whole(parts: tuple[Batch, ...]) -> Batch:
    """All pairs of the parts as one batch."""
    sources = [
        row[real].tolist() for part in parts for row, real in zip(part.source.ids, part.source.mask, strict=True)
    ]
    targets = [row[real].tolist() for part in parts for row, real in zip(part.labels, part.target.mask, strict=True)]
    return padded_batch(ragged([row[:-1] for row in sources]), ragged([row[:-1] for row in targets]))


def test_a_divided_batch_has_the_gradient_of_the_whole_one(config, corpus, tmp_path):
    run = run_of(config, tmp_path / "run", model={"dropout": 0.0})
    divided = [parts for parts in epoch_of(config, corpus, 0) if len(parts) > 1][:2]
    assert len(divided) == 2
    parts = gradient(trainer_of(run), divided)
    together = gradient(trainer_of(run), [(whole(batch),) for batch in divided])
    assert together.norm() > 0.1
    assert (parts - together).norm() < 1e-5 * together.norm()


def test_validation_is_the_same_whatever_training_samples(config, tmp_path):
    plain = {"bpe_dropout": 0.0, "unigram_alpha": None, "unigram_nbest": -1}
    figures = []
    for name, training in (("sampled", {}), ("plain", plain)):
        run = run_of(config, tmp_path / name, **training)
        trainer = trainer_of(run)
        figures.append(trainer.validation.measure(trainer.model, trainer.tokenizer, Stop()))
        trainer.log.close()
    assert figures[0] == figures[1]


def test_an_error_in_making_batches_ends_training_and_leaves_no_thread(config, tmp_path):
    run = run_of(config, tmp_path / "run")
    trainer = trainer_of(run)
    path = run.run_path / "data" / "train" / "source.text"

    def damage() -> None:
        path.write_bytes(b"\xff" * path.stat().st_size)  # while it is mapped, so that no checksum can tell

    before = threading.enumerate()
    with doing(damage, Trainer, "_update", at_step(2)), pytest.raises(UnicodeDecodeError):
        trainer.run(Stop())
    assert trainer.state.progress.step > 2
    assert threading.enumerate() == before


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_sampling_cannot_be_changed_when_training_goes_on(config, tmp_path):
    run = run_of(config, tmp_path / "run", max_steps=4)
    trained(run)
    other = config_with(run.model_dump(mode="json"), training={"bpe_dropout": 0.2})
    with pytest.raises(CheckpointError, match=r"training\.bpe_dropout was 0\.3, is 0\.2"):
        trained(other)


# The stored text.


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_text_is_kept_only_where_segmentations_are_sampled(config, corpus, tmp_path):
    run = run_of(config, tmp_path / "run")
    files = {"source.text", "source.text_offsets", "target.text", "target.text_offsets"}
    folder = run.run_path / "data" / "train"
    assert files < {path.name for path in folder.iterdir()}
    assert binarized_is_current(run)
    more = config_with(run.model_dump(mode="json"), training={"bpe_dropout": 0.5})
    assert binarized_is_current(more)

    plain = config_with(run.model_dump(mode="json"), training={"bpe_dropout": 0.0})
    assert not binarized_is_current(plain)
    binarize(plain)
    assert binarized_is_current(plain)
    assert not files & {path.name for path in folder.iterdir()}
    found = Corpus.open(folder)
    assert found.source_tokens.tolist() == corpus.source_tokens.tolist()
    assert not found.has_text
    assert found.manifest.settings == {"max_length": 40, "max_length_ratio": 9.0}
    assert not binarized_is_current(run)
    with pytest.raises(DataError, match=r"train: holds no text, which training\.bpe_dropout and .*; binarize the"):
        subword_sampling_of(run, Tokenizer.load(run.run_path / "tokenizer"), found)


@pytest.mark.parametrize("config", ["unigram"], indirect=True)
@pytest.mark.parametrize("name", ["source.text", "target.text", "source.text_offsets", "target.text_offsets"])
def test_damage_to_stored_text_is_noticed(config, tmp_path, name):
    run = run_of(config, tmp_path / "run")
    path = run.run_path / "data" / "train" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{name}: damaged in piece 1 of 1"):
        Corpus.open(path.parent).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{name}: has .* bytes but .* were written"):
        Corpus.open(path.parent)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: missing"):
        Corpus.open(path.parent)


@pytest.mark.parametrize("config", ["bpe"], indirect=True)
def test_a_corpus_with_other_text_has_another_digest(config, corpus, tmp_path):
    plain = run_of(config, tmp_path / "run", bpe_dropout=0.0)
    binarize(plain)
    assert Corpus.open(plain.run_path / "data" / "train").digest != corpus.digest


# Settings.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tokenizer: {type: unigram}\ntraining: {bpe_dropout: 0.1}",
            "training.bpe_dropout 0.1 wants tokenizer.type bpe, not unigram",
        ),
        ("training: {unigram_alpha: 0.2}", "training.unigram_alpha 0.2 wants tokenizer.type unigram, not bpe"),
        ("training: {unigram_nbest: 64}", "unigram_nbest 64 wants a unigram_alpha, without which none is sampled"),
        (
            "tokenizer: {type: unigram}\ntraining: {unigram_alpha: 0.1, unigram_nbest: 1}",
            "unigram_nbest 1 leaves nothing to sample; it wants 2 or more, or -1",
        ),
        ("training: {bpe_dropout: 1.0}", "training.bpe_dropout: found 1.0, wants a number, at least 0, less than 1"),
    ],
)
def test_settings_that_cannot_sample_are_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        config_from_text(text, "x.yaml")
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)
