"""Batches: rows of token ids, padded, made of the pairs of a corpus and prefetched for the training loop.

R rows of a batch, S source length, T target length, L length of either side; S and T count the marks and the padding.
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

# What a model reads.

NO_LABEL = -1  # the label of padding; no vocabulary has this id


@dataclass(frozen=True)
class Rows:
    """One side of a batch: token ids, the sentence that each belongs to, and its position in that sentence.

    A padded batch is a packed batch with one sentence a row. Tokens may attend to each other where segments are equal.
    """

    ids: Tensor  # (R, L) int64
    segments: Tensor  # (R, L) int64: the number of the sentence in its row: 1, 2, …; 0 is padding
    positions: Tensor  # (R, L) int64: the position in the sentence, from 0; 0 in padding
    packed: bool = False  # whether any row holds more than one sentence
    cut: Tensor | None = None  # (R, L) bool: True where the embedding is set to zero (token cutoff); None: nowhere

    @property
    def mask(self) -> Tensor:
        """(R, L) bool: True for tokens, False for padding."""
        return self.segments != 0

    def to(self, device: torch.device) -> "Rows":
        """Copy the rows to a device, asynchronously if their memory is pinned."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            cut=None if self.cut is None else self.cut.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """Sentence pairs; a pair is in the same row, with the same segment number, on both sides."""

    source: Rows  # (R, S): the tokens and the end mark
    target: Rows  # (R, T): what the decoder reads, that is the start mark and the tokens
    labels: Tensor  # (R, T) int64: what it should predict, that is the tokens and the end mark; NO_LABEL in padding
    num_pairs: int
    source_tokens: int  # end marks counted, padding not
    target_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            labels=self.labels.to(device, non_blocking=True),
        )

    @property
    def padding(self) -> float:
        """Share of padding among all positions of both sides, 0 to 1."""
        num_positions = self.source.ids.numel() + self.target.ids.numel()
        return 1 - (self.source_tokens + self.target_tokens) / num_positions


# Sentences of different lengths, padded to the rows of a batch.

DEFAULT_BOUNDARIES = BoundaryTokens()  # those of vocabularies trained by mtkit, for a decoder that starts with BEGIN


@dataclass(frozen=True)
class Ragged:
    """R sentences of different lengths, one after the other, without marks."""

    tokens: NDArray[np.integer]  # (sum of lengths,)
    lengths: NDArray[np.int64]  # (R,)


def ragged(sentences: Sequence[Sequence[int]]) -> Ragged:
    """Ragged sentences from lists of ids."""
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64, count=lengths.sum())
    return Ragged(tokens, lengths)


def gather(tokens: NDArray[np.integer], offsets: NDArray[np.integer], chosen: NDArray[np.int64]) -> Ragged:
    """The chosen sentences of a corpus, in that order; sentence i is tokens[offsets[i]:offsets[i + 1]]."""
    starts = np.asarray(offsets[chosen], dtype=np.int64)
    lengths = np.asarray(offsets[chosen + 1], dtype=np.int64) - starts
    return Ragged(tokens[np.repeat(starts, lengths) + _positions(lengths)], lengths)


def _positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(sum of lengths,): the positions 0, 1, … of each sentence, one sentence after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _pad(sentences: Ragged, filler: int) -> NDArray[np.int64]:
    """(R, L + 1) ids, one sentence a row; L is the longest, so that at least one filler follows each sentence."""
    real = np.arange(sentences.lengths.max() + 1) < sentences.lengths[:, None]
    ids = np.full(real.shape, filler, dtype=np.int64)
    ids[real] = sentences.tokens
    return ids


def _rows(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    """One sentence a row, from padded ids (R, L) and the number of tokens in each row (R,)."""
    positions = np.arange(ids.shape[1])
    real = positions < lengths[:, None]
    return Rows(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), torch.from_numpy(positions * real))


def source_rows(source: Ragged, end: int = END) -> Rows:
    """Rows (R, S) of source sentences, one a row, each followed by the end mark; S is the longest with its mark."""
    ids = _pad(source, PAD)  # any id would do as padding, since nothing attends to it
    ids[np.arange(len(ids)), source.lengths] = end
    return _rows(ids, source.lengths + 1)


def padded_batch(source: Ragged, target: Ragged, boundaries: BoundaryTokens = DEFAULT_BOUNDARIES) -> Batch:
    """A batch of one pair a row, source (R, S) and target (R, T), with the boundary tokens of the model that reads it.

    T is the longest target with a mark: the decoder reads start, t1, …, tn and should predict t1, …, tn, end.
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


# Batches of a corpus in the order of the plan, with its ids or with segmentations sampled anew.

Stream = Iterator[tuple[int, tuple[Batch, ...]]]  # of each batch: its epoch, and its parts


class SampleSegmentations(Protocol):
    """Samples a segmentation of each text and returns its ids; the same seed gives the same ids."""

    def __call__(self, texts: Sequence[str], *, seed: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class SubwordSampling:
    """How the stored text of a corpus is segmented anew for each batch (BPE-dropout, or unigram sampling)."""

    source: SampleSegmentations
    target: SampleSegmentations
    max_length: int  # tokens of a side; a pair whose sample is longer on either side gets the ids of the corpus instead


def micro_batches(
    corpus: Corpus,
    config: TrainingConfig,
    consumed: int,
    sampling: SubwordSampling | None = None,
    boundaries: BoundaryTokens = DEFAULT_BOUNDARIES,
    mixture: Mixture | None = None,
    earlier: Sequence[EarlierBudget] = (),
) -> Stream:
    """The endless stream of batches after so many consumed pairs; earlier lists former values of batch_tokens.

    Batches are planned by the lengths of the ids in the corpus. If sampled ids make one larger than batch_tokens, it
    comes in several parts that belong to the same update. Samples depend only on the seed and the place in the stream.
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
    """The batch that starts after so many consumed pairs, in as many parts as batch_tokens asks for."""
    # Below 2^31: SentencePiece takes the seed 2^32 - 1 to mean a random one.
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
    """Divides rows into parts of at most batch_tokens, longest rows first; within a part, rows keep their order."""
    assert longest.max() <= batch_tokens, "max_length is less than batch_tokens"
    by_length = np.argsort(-longest, kind="stable")
    while len(by_length):
        count = batch_tokens // int(longest[by_length[0]])
        yield sorted(by_length[:count].tolist())
        by_length = by_length[count:]


# Prefetching in a thread, so that training seldom waits for a batch.

T = TypeVar("T")


@contextmanager
def prefetched(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """The same items in the same order, up to most of them made in a thread before they are asked for.

    An error while an item is made is raised in place of that item. The thread ends with the block, once the item it is
    making is done.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        yield _results(items, most, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _results(items: Iterator[T], most: int, executor: ThreadPoolExecutor) -> Iterator[T]:
    waiting = deque(executor.submit(_list_of_next, items) for _ in range(most))
    while found := waiting.popleft().result():
        waiting.append(executor.submit(_list_of_next, items))
        yield found[0]


def _list_of_next(items: Iterator[T]) -> list[T]:
    """[the next item], or [] at the end."""
    for item in items:
        return [item]
    return []


# The batches of a training run, as its settings ask for them.

NUM_PREFETCHED = 8  # batches


@dataclass(frozen=True)
class Feed:
    """A binarized corpus and how training reads it."""

    config: Config
    corpus: Corpus
    mixture: Mixture | None  # None: each pair once an epoch
    sampling: SubwordSampling | None  # None: the ids in the corpus
    boundaries: BoundaryTokens  # those of the model that reads the batches

    @staticmethod
    def prepare(config: Config, tokenizer: Tokenizer, corpus: Corpus, boundaries: BoundaryTokens) -> "Feed":
        """The feed that the settings ask for. Raises DataError if the corpus does not hold what it needs."""
        return Feed(
            config, corpus, mixture_of(config, corpus), subword_sampling_of(config, tokenizer, corpus), boundaries
        )

    @contextmanager
    def batches(self, step: int, pairs: int, earlier: Sequence[EarlierBudget] = ()) -> Iterator[Stream]:
        """The stream of batches for a run that is at this step and has consumed so many pairs; prefetches in the block.

        earlier lists former values of batch_tokens. Raises CheckpointError if no batch ends after so many pairs.
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
    """How often an epoch goes through each corpus; None if each pair comes once an epoch.

    Raises DataError if the corpus does not hold as many corpora as data.train lists.
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
    """How training samples segmentations; None if it does not. Raises DataError if the corpus holds no text."""
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
