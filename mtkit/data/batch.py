"""Batches: padded rows of token ids, made from the pairs of a corpus and prefetched for the training loop.

In the shapes of arrays, R is the number of rows of a batch, S the source length and T the target length; L is either S
or T. S and T include padding and the start or end mark.
"""

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
from mtkit.data.plan import EarlierBudget, Mixture, batches_from, is_proportional, mix
from mtkit.errors import CheckpointError, DataError
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END, PAD, BoundaryTokens

# The inputs of a model.

NO_LABEL = -1  # the label of padding; no vocabulary has this id


@dataclass(frozen=True)
class Rows:
    """One side of a batch: for each token, its id, the number of its sentence, and its position in that sentence.

    A row holds one sentence, or several if rows are packed. Tokens may attend to each other if they belong to the same
    sentence, that is, are in the same row and have the same number in `segments`.
    """

    ids: Tensor  # (R, L) int64
    segments: Tensor  # (R, L) int64: the number of the token's sentence in the row, from 1; 0 for padding
    positions: Tensor  # (R, L) int64: the token's position in its sentence, from 0; 0 for padding
    packed: bool = False  # whether any row holds more than one sentence
    cut: Tensor | None = None  # (R, L) bool: True for tokens whose embedding is set to zero (token cutoff)

    @property
    def mask(self) -> Tensor:
        """A bool mask (R, L) that is `True` for tokens and `False` for padding."""
        return self.segments != 0

    def to(self, device: torch.device) -> "Rows":
        """Returns a copy of the rows on a device; the copying is asynchronous if the rows are in pinned memory."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            cut=None if self.cut is None else self.cut.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """Sentence pairs: the sources in one set of rows, the targets in another.

    The source and the target of a pair are in rows with the same index, and have the same number in `segments`.
    """

    source: Rows  # (R, S): the source tokens, then the end mark
    target: Rows  # (R, T): the input of the decoder: the start mark, then the target tokens
    labels: Tensor  # (R, T) int64: what to predict: the target tokens, then the end mark; NO_LABEL where padded
    num_pairs: int
    source_tokens: int  # with end marks, without padding
    target_tokens: int  # with end marks, without padding

    def to(self, device: torch.device) -> "Batch":
        """Returns a copy of the batch on a device; the copying is asynchronous if the batch is in pinned memory."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            labels=self.labels.to(device, non_blocking=True),
        )

    @property
    def padding(self) -> float:
        """The fraction of all positions that are padding, between 0 and 1; both sides are counted together."""
        num_positions = self.source.ids.numel() + self.target.ids.numel()
        return 1 - (self.source_tokens + self.target_tokens) / num_positions


# Sentences of different lengths, padded to the rows of a batch.

DEFAULT_BOUNDARIES = BoundaryTokens()  # of vocabularies trained by mtkit, with a decoder that starts with BEGIN


@dataclass(frozen=True)
class Ragged:
    """R sentences of different lengths, concatenated in one array, without start and end marks."""

    tokens: NDArray[np.integer]  # (sum of lengths,)
    lengths: NDArray[np.int64]  # (R,)


def ragged(sentences: Sequence[Sequence[int]]) -> Ragged:
    """Converts sentences from lists of token ids to a Ragged."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64, count=lengths.sum())
    return Ragged(tokens, lengths)


def gather(tokens: NDArray[np.integer], offsets: NDArray[np.integer], chosen: NDArray[np.int64]) -> Ragged:
    """Returns the sentences whose indices are listed in `chosen`, in that order.

    Sentence i consists of `tokens[offsets[i]:offsets[i + 1]]`.
    """
    starts = np.asarray(offsets[chosen], dtype=np.int64)
    lengths = np.asarray(offsets[chosen + 1], dtype=np.int64) - starts
    return Ragged(tokens[np.repeat(starts, lengths) + _positions(lengths)], lengths)


def _positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the position of each token in its sentence, from 0, as one array for all sentences."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _pad(sentences: Ragged, filler: int) -> NDArray[np.int64]:
    """Returns ids (R, L + 1), one sentence per row, padded with the id `filler`.

    L is the length of the longest sentence, so even that sentence is followed by one `filler`.
    """
    real = np.arange(sentences.lengths.max() + 1) < sentences.lengths[:, None]
    ids = np.full(real.shape, filler, dtype=np.int64)
    ids[real] = sentences.tokens
    return ids


def _rows(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    """Returns Rows with one sentence per row; `ids` (R, L) is padded, and row r has `lengths[r]` tokens."""
    positions = np.arange(ids.shape[1])
    real = positions < lengths[:, None]
    return Rows(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), torch.from_numpy(positions * real))


def source_rows(source: Ragged, end: int = END) -> Rows:
    """Returns rows (R, S), each with one source sentence and its end mark; S is the length of the longest row."""
    ids = _pad(source, PAD)  # padding could have any id, since no token attends to it
    ids[np.arange(len(ids)), source.lengths] = end
    return _rows(ids, source.lengths + 1)


def padded_batch(source: Ragged, target: Ragged, boundaries: BoundaryTokens = DEFAULT_BOUNDARIES) -> Batch:
    """Returns a batch with one pair per row: source (R, S), target (R, T) and labels (R, T).

    For a target of the tokens t1, …, tn, the decoder reads start, t1, …, tn and should predict t1, …, tn, end. So T is
    1 more than the length of the longest target. `boundaries` holds the start and end tokens that the model uses.
    """
    labels = _pad(target, NO_LABEL)
    decoder_input = np.concatenate([np.full((len(labels), 1), boundaries.start), labels[:, :-1].clip(min=PAD)], axis=1)
    labels[np.arange(len(labels)), target.lengths] = boundaries.target_end
    return Batch(
        source_rows(source, boundaries.source_end),
        _rows(decoder_input, target.lengths + 1),
        torch.from_numpy(labels),
        num_pairs=len(labels),
        source_tokens=int(source.lengths.sum()) + len(labels),
        target_tokens=int(target.lengths.sum()) + len(labels),
    )


# The batches of a corpus in the order of training, either with the ids of the corpus or with newly sampled
# segmentations.

# For each batch: the epoch to which it belongs, and the parts into which it is divided (usually only one).
Stream = Iterator[tuple[int, tuple[Batch, ...]]]


class SampleSegmentations(Protocol):
    """A function that samples a segmentation of each text and returns the token ids.

    The result depends only on `texts` and `seed`.
    """

    def __call__(self, texts: Sequence[str], *, seed: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class SubwordSampling:
    """How the text of each batch is segmented at random: by BPE-dropout, or by sampling from a unigram model."""

    source: SampleSegmentations
    target: SampleSegmentations
    max_length: int  # in tokens; if either side of a pair gets longer by sampling, the pair keeps the corpus's ids


def micro_batches(
    corpus: Corpus,
    config: TrainingConfig,
    consumed: int,
    sampling: SubwordSampling | None = None,
    boundaries: BoundaryTokens = DEFAULT_BOUNDARIES,
    mixture: Mixture | None = None,
    earlier: Sequence[EarlierBudget] = (),
) -> Stream:
    """Yields (epoch, parts of the batch) for each batch after the first `consumed` pairs of the run; never ends.

    Even if segmentations are sampled, pairs are assigned to batches by their lengths in the corpus. So a batch may be
    larger than `batch_tokens` once segmentations have been sampled. Such a batch is divided into several parts, all for
    the same update of the model; any other batch has one part. Sampled segmentations depend only on the text, the seed
    and the number of pairs before the batch. `earlier` lists the values of `batch_tokens` that the run used before.
    Raises ValueError if no batch ends after exactly `consumed` pairs.
    """
    lengths = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    for epoch, pairs in batches_from(consumed, *lengths, config.batch_tokens, config.seed, mixture, earlier):
        if sampling:
            yield epoch, _sampled_parts(corpus, config, sampling, pairs, consumed, boundaries)
        else:
            source = gather(corpus.source_tokens, corpus.source_offsets, pairs)
            target = gather(corpus.target_tokens, corpus.target_offsets, pairs)
            yield epoch, (padded_batch(source, target, boundaries),)
        consumed += len(pairs)


def _sampled_parts(
    corpus: Corpus,
    config: TrainingConfig,
    sampling: SubwordSampling,
    pairs: NDArray[np.int64],
    consumed: int,
    boundaries: BoundaryTokens,
) -> tuple[Batch, ...]:
    """Samples a segmentation of each pair; returns the batch as parts of at most `batch_tokens` tokens.

    A pair with too long a sample keeps the segmentation of the corpus. The samples are seeded with the seed of the run
    and `consumed`, the number of pairs before the batch.
    """
    # Below 2^31, since SentencePiece interprets the seed 2^32 - 1 as a request for a random seed.
    seeds = np.random.SeedSequence([config.seed, consumed]).generate_state(2) >> 1
    sources = sampling.source(corpus.source_text(pairs), seed=int(seeds[0]))
    targets = sampling.target(corpus.target_text(pairs), seed=int(seeds[1]))
    for row, pair in enumerate(pairs.tolist()):
        if max(len(sources[row]), len(targets[row])) > sampling.max_length:
            sources[row], targets[row] = corpus.source(pair).tolist(), corpus.target(pair).tolist()
    longest = np.array([max(map(len, both)) + 1 for both in zip(sources, targets, strict=True)])
    return tuple(
        padded_batch(ragged([sources[row] for row in part]), ragged([targets[row] for row in part]), boundaries)
        for part in _fitting_parts(longest, config.batch_tokens)
    )


def _fitting_parts(longest: NDArray[np.int64], batch_tokens: int) -> Iterator[list[int]]:
    """Divides the rows of a batch into parts; yields the row numbers of each part, in ascending order.

    `longest` holds, for each row, the length of its longer side. In each part, the number of rows times the length of
    the longest row is at most `batch_tokens`. The first part holds the longest rows.
    """
    assert longest.max() <= batch_tokens, "max_length is less than batch_tokens"
    by_length = np.argsort(-longest, kind="stable")
    while len(by_length):
        count = batch_tokens // int(longest[by_length[0]])
        yield sorted(by_length[:count].tolist())
        by_length = by_length[count:]


# Prefetching in a thread, so that training rarely waits for a batch.

T = TypeVar("T")


@contextmanager
def prefetched(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """Context manager that gives an iterator over `items`; a thread computes up to `most` items in advance.

    If computing an item raises an exception, the iterator raises that exception when it reaches the item. At the end of
    the block, the thread finishes the item that it is computing, and ends.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        yield _results(items, most, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _results(items: Iterator[T], most: int, executor: ThreadPoolExecutor) -> Iterator[T]:
    """Yields the items; the executor computes up to `most` of them in advance."""
    waiting = deque(executor.submit(_list_of_next, items) for _ in range(most))
    while found := waiting.popleft().result():
        waiting.append(executor.submit(_list_of_next, items))
        yield found[0]


def _list_of_next(items: Iterator[T]) -> list[T]:
    """Returns a list that holds only the next item, or [] if there are no more items."""
    for item in items:
        return [item]
    return []


# The batches of a training run, according to its settings.

NUM_PREFETCHED = 8  # batches


@dataclass(frozen=True)
class Feed:
    """A binarized corpus, and everything that decides which batches training makes from the corpus."""

    config: Config
    corpus: Corpus
    mixture: Mixture | None  # None: each pair occurs once per epoch
    sampling: SubwordSampling | None  # None: batches have the ids of the corpus
    boundaries: BoundaryTokens  # start and end tokens of the model that reads the batches

    @staticmethod
    def prepare(config: Config, tokenizer: Tokenizer, corpus: Corpus, boundaries: BoundaryTokens) -> "Feed":
        """Returns the feed for the settings in `config`.

        Raises DataError if the settings require something that `corpus` does not store: the text of the pairs, or the
        number of pairs from each corpus in `data.train`.
        """
        return Feed(
            config, corpus, mixture_of(config, corpus), subword_sampling_of(config, tokenizer, corpus), boundaries
        )

    @contextmanager
    def batches(self, step: int, pairs: int, earlier: Sequence[EarlierBudget] = ()) -> Iterator[Stream]:
        """Context manager that gives the endless stream of batches after the first `pairs` pairs of the run.

        The batches are prefetched. `earlier` lists the values of `batch_tokens` that the run used before. Raises
        CheckpointError if no batch ends after exactly `pairs` pairs; the message names `step`.
        """
        stream = micro_batches(
            self.corpus, self.config.training, pairs, self.sampling, self.boundaries, self.mixture, earlier
        )
        try:
            first = next(stream)
        except ValueError as error:
            raise CheckpointError(
                f"{self.config.run_path}: cannot go on from step {step:,}: {error}, so another version of "
                "mtkit ordered its data; go on with that one, or start anew with --fresh"
            ) from None
        with prefetched(stream, NUM_PREFETCHED) as rest:
            yield chain([first], rest)


def mixture_of(config: Config, corpus: Corpus) -> Mixture | None:
    """Returns how often each corpus of `data.train` is repeated in an epoch; `None` if each pair occurs once.

    Raises DataError if the binarized corpus was made from more or fewer corpora than `data.train` lists.
    """
    weights = [text.weight for text in config.data.train]
    if is_proportional(weights, config.data.temperature):
        return None
    if len(corpus.manifest.corpora) != len(weights):
        raise DataError(
            f"{corpus.directory}: records the pairs of {len(corpus.manifest.corpora)} corpora, but data.train has "
            f"{len(weights)}; binarize the corpora again"
        )
    return mix(corpus.manifest.corpora, weights, config.data.temperature)


def subword_sampling_of(config: Config, tokenizer: Tokenizer, corpus: Corpus) -> SubwordSampling | None:
    """Returns how training samples segmentations, or `None` if the settings do not ask for sampling.

    Raises DataError if the settings ask for sampling but the binarized corpus does not store its text.
    """
    settings = config.training
    if not settings.samples_subwords:
        return None
    corpus.require_text()
    alpha = settings.bpe_dropout if settings.unigram_alpha is None else settings.unigram_alpha
    source, target = (
        partial(sample, alpha=alpha, nbest=settings.unigram_nbest)
        for sample in (tokenizer.sample_source, tokenizer.sample_target)
    )
    return SubwordSampling(source, target, config.data.max_length)
