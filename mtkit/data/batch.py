"""Batches: pairs padded to rows, made ahead for the training loop."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.corpus import Corpus
from mtkit.data.plan import Earlier, Mixture, batches_from, is_natural, mix
from mtkit.errors import CheckpointError, DataError
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END, PAD, BoundaryTokens

NO_LABEL = -1  # no token, whatever the vocabulary


@dataclass(frozen=True)
class Rows:
    """Token ids with the sentence each belongs to and its place in it.

    A padded batch is a packed one with one sentence a row. Tokens may look at each other where segments are equal.
    """

    ids: Tensor  # (R, L) int64
    segments: Tensor  # (R, L) int64: 1, 2, … number the sentences of a row; 0 is padding
    positions: Tensor  # (R, L) int64: the place in the sentence, from 0; 0 where padded
    packed: bool = False  # whether any row holds more than one sentence
    cut: Tensor | None = None  # (R, L) bool: tokens whose embedding is zero; None is none

    @property
    def mask(self) -> Tensor:
        """(R, L), True where a token is real."""
        return self.segments != 0

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device; the copy does not wait where memory is pinned."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            cut=None if self.cut is None else self.cut.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """Sentence pairs; a pair lies in the same row, with the same segment number, on both sides."""

    source: Rows  # ends with the end mark
    target: Rows  # what the decoder reads: the start mark and all tokens but the end mark
    labels: Tensor  # (R, T) int64: what it should say at each place; NO_LABEL where padded
    num_pairs: int
    source_tokens: int  # real tokens, end marks counted
    target_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            labels=self.labels.to(device, non_blocking=True),
        )

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        places = self.source.ids.numel() + self.target.ids.numel()
        return 1 - (self.source_tokens + self.target_tokens) / places


# From pairs of token arrays to the rows of a batch.

DEFAULT_BOUNDARIES = BoundaryTokens()  # of the vocabularies that are made here, and of a decoder that begins with BEGIN


@dataclass(frozen=True)
class Ragged:
    """Sentences of different lengths, one after the other."""

    tokens: NDArray[np.integer]
    lengths: NDArray[np.int64]


def ragged(sentences: Sequence[Sequence[int]]) -> Ragged:
    """Lists of ids as one array."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64, count=lengths.sum())
    return Ragged(tokens, lengths)


def gather(tokens: NDArray[np.integer], offsets: NDArray[np.integer], chosen: NDArray[np.int64]) -> Ragged:
    """The chosen sentences of a corpus; sentence i is tokens[offsets[i]:offsets[i + 1]]."""
    starts = np.asarray(offsets[chosen], dtype=np.int64)
    lengths = np.asarray(offsets[chosen + 1], dtype=np.int64) - starts
    return Ragged(tokens[np.repeat(starts, lengths) + _places(lengths)], lengths)


def _places(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, … for every sentence, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _pad(sentences: Ragged, filler: int) -> NDArray[np.int64]:
    """(R, L + 1) ids, one sentence a row with at least one filler after it."""
    real = np.arange(sentences.lengths.max() + 1) < sentences.lengths[:, None]
    ids = np.full(real.shape, filler, dtype=np.int64)
    ids[real] = sentences.tokens
    return ids


def _rows(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    places = np.arange(ids.shape[1])
    real = places < lengths[:, None]
    return Rows(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), torch.from_numpy(places * real))


def source_rows(source: Ragged, end: int = END) -> Rows:
    """One sentence a row, its end mark last; any token will do where padded, since nobody looks there."""
    ids = _pad(source, PAD)
    ids[np.arange(len(ids)), source.lengths] = end
    return _rows(ids, source.lengths + 1)


def padded_batch(source: Ragged, target: Ragged, boundaries: BoundaryTokens = DEFAULT_BOUNDARIES) -> Batch:
    """One pair a row, with the boundary tokens of the model that reads it."""
    labels = _pad(target, NO_LABEL)
    read = np.concatenate([np.full((len(labels), 1), boundaries.start), labels[:, :-1].clip(min=PAD)], axis=1)
    labels[np.arange(len(labels)), target.lengths] = boundaries.target_end
    return Batch(
        source_rows(source, boundaries.source_end),
        _rows(read, target.lengths + 1),
        torch.from_numpy(labels),
        num_pairs=len(labels),
        source_tokens=int(source.lengths.sum()) + len(labels),
        target_tokens=int(target.lengths.sum()) + len(labels),
    )


class Sample(Protocol):
    """Texts of one side, to the ids of one segmentation of each; the same seed gives the same."""

    def __call__(self, texts: Sequence[str], *, seed: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class Sampling:
    """How the text of a corpus becomes ids anew in each epoch."""

    source: Sample
    target: Sample
    max_length: int  # tokens of a side; a pair that comes out longer has the ids that the corpus holds


def micro_batches(
    corpus: Corpus,
    config: TrainingConfig,
    consumed: int,
    sampling: Sampling | None = None,
    boundaries: BoundaryTokens = DEFAULT_BOUNDARIES,
    mixture: Mixture | None = None,
    earlier: Sequence[Earlier] = (),
) -> Iterator[tuple[int, tuple[Batch, ...]]]:
    """The endless stream of batches after so many pairs, each with its epoch.

    The plan goes by the ids that the corpus holds; earlier tells of other batch_tokens that the run had before. A batch
    whose sampled ids are more than batch_tokens comes in several parts, which belong to the same update. Chance is a
    function of the seed and of the place in the stream.
    """
    sides = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    for epoch, pairs in batches_from(consumed, *sides, config.batch_tokens, config.seed, mixture, earlier):
        if sampling:
            yield epoch, _sampled_batches(corpus, config, sampling, pairs, consumed, boundaries)
        else:
            source = gather(corpus.source_tokens, corpus.source_offsets, pairs)
            target = gather(corpus.target_tokens, corpus.target_offsets, pairs)
            yield epoch, (padded_batch(source, target, boundaries),)
        consumed += len(pairs)


def _sampled_batches(
    corpus: Corpus,
    config: TrainingConfig,
    sampling: Sampling,
    pairs: NDArray[np.int64],
    consumed: int,
    boundaries: BoundaryTokens,
) -> tuple[Batch, ...]:
    """The batch that begins after so many pairs, in one part or more."""
    # Below 2^31, since 2^32 - 1 asks SentencePiece for any.
    seeds = np.random.SeedSequence([config.seed, consumed]).generate_state(2) >> 1
    sources = sampling.source(corpus.source_text(pairs), seed=int(seeds[0]))
    targets = sampling.target(corpus.target_text(pairs), seed=int(seeds[1]))
    for row, pair in enumerate(pairs.tolist()):
        if max(len(sources[row]), len(targets[row])) > sampling.max_length:
            sources[row], targets[row] = corpus.source(pair).tolist(), corpus.target(pair).tolist()
    longest = np.array([max(map(len, both)) + 1 for both in zip(sources, targets, strict=True)])
    return tuple(
        padded_batch(ragged([sources[row] for row in part]), ragged([targets[row] for row in part]), boundaries)
        for part in _parts(longest, config.batch_tokens)
    )


def _parts(longest: NDArray[np.int64], batch_tokens: int) -> Iterator[list[int]]:
    """Rows that fit into batch_tokens, the longest ones first; all in their order if they fit together."""
    assert longest.max() <= batch_tokens, "max_length is less than batch_tokens"
    by_length = np.argsort(-longest, kind="stable")
    while len(by_length):
        count = batch_tokens // int(longest[by_length[0]])
        yield sorted(by_length[:count].tolist())
        by_length = by_length[count:]


# Work done ahead in a thread, so that what takes its results seldom waits.

T = TypeVar("T")


@contextmanager
def made_ahead(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """The same items in the same order, at most so many made before they are asked for.

    An error in the making is raised where the item would have come. The thread ends with the block, after the item at
    hand.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        yield _taken(items, most, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _taken(items: Iterator[T], most: int, executor: ThreadPoolExecutor) -> Iterator[T]:
    made = deque(executor.submit(_list_of_next, items) for _ in range(most))
    while found := made.popleft().result():
        made.append(executor.submit(_list_of_next, items))
        yield found[0]


def _list_of_next(items: Iterator[T]) -> list[T]:
    """The next item alone, or nothing at the end."""
    for item in items:
        return [item]
    return []


# What feeds the training loop: how often each pair comes, in which segmentation, and the batches made ahead.

NUM_AHEAD = 8  # batches that are made before they are needed

Stream = Iterator[tuple[int, tuple[Batch, ...]]]  # each batch in its parts, with its epoch


@dataclass(frozen=True)
class Feed:
    """The binarized pairs, and how training takes them."""

    config: Config
    corpus: Corpus
    mixture: Mixture | None  # None: each pair once an epoch
    sampling: Sampling | None  # None: the ids that the corpus holds
    boundaries: BoundaryTokens  # of the model that reads the batches

    @staticmethod
    def prepare(config: Config, tokenizer: Tokenizer, corpus: Corpus, boundaries: BoundaryTokens) -> "Feed":
        """As the settings say; a corpus that does not hold what they ask for is an error."""
        return Feed(config, corpus, mixture_of(config, corpus), sampling_of(config, tokenizer, corpus), boundaries)

    @contextmanager
    def batches(self, step: int, pairs: int, earlier: Sequence[Earlier] = ()) -> Iterator[Stream]:
        """The batches of training that is at a step and has consumed so many pairs, made in a thread.

        earlier holds the batch sizes that the run had before. The thread ends with the block.
        """
        stream = micro_batches(
            self.corpus,
            self.config.training,
            pairs,
            self.sampling,
            self.boundaries,
            self.mixture,
            earlier,
        )
        try:
            first = next(stream)
        except ValueError as error:
            raise CheckpointError(
                f"{self.config.run_path}: cannot go on from step {step:,}: {error}, so another version of "
                "mtkit ordered its data; go on with that one, or start anew with --fresh"
            ) from None
        with made_ahead(stream, NUM_AHEAD) as rest:
            yield chain([first], rest)


def mixture_of(config: Config, corpus: Corpus) -> Mixture | None:
    """How often an epoch goes through each of the corpora; None where it goes through all once."""
    weights = [text.weight for text in config.data.train]
    if is_natural(weights, config.data.temperature):
        return None
    if len(corpus.manifest.corpora) != len(weights):
        raise DataError(
            f"{corpus.directory}: tells the pairs of {len(corpus.manifest.corpora)} corpora, but data.train has "
            f"{len(weights)}; binarize the corpora again"
        )
    return mix(corpus.manifest.corpora, weights, config.data.temperature)


def sampling_of(config: Config, tokenizer: Tokenizer, corpus: Corpus) -> Sampling | None:
    """How training samples segmentations of the corpus's text, if it does."""
    settings = config.training
    if not settings.samples_subwords:
        return None
    corpus.require_text()
    alpha = settings.bpe_dropout if settings.unigram_alpha is None else settings.unigram_alpha
    source, target = (
        partial(sample, alpha=alpha, nbest=settings.unigram_nbest)
        for sample in (tokenizer.sample_source, tokenizer.sample_target)
    )
    return Sampling(source, target, config.data.max_length)
