"""Batches: which pairs form a batch, in which order, and the padded rows of token ids that the training loop gets.

The order depends only on sentence lengths, settings and seed, so a resumed run can skip the pairs that it has already
trained on (has consumed). A pair is represented by its index in the binarized corpus, which holds all the corpora of
`data.train`, one after the other.

In the shapes of arrays, R is the number of rows of a batch, S the source length and T the target length; L is either S
or T. S and T include padding and the start or end mark.
"""

import itertools
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
from mtkit.data.corpus import Blocks, Corpus, Mixture, blocks_of, is_proportional, mix
from mtkit.errors import CheckpointError, DataError
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END, PAD, BoundaryTokens

# Batches of pairs of similar length.

WINDOW = 2048  # blocks whose pairs are shuffled, sorted and divided into batches together: about two million pairs


@dataclass(frozen=True)
class Plan:
    """Pairs divided into batches: batch b consists of the pairs `order[ends[b - 1]:ends[b]]`."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, index: int) -> NDArray[np.int64]:
        """Returns the pairs of the batch with this index."""
        return self.order[self.ends[index - 1] if index else 0 : self.ends[index]]


def plan_batches(
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    rng: np.random.Generator,
) -> Plan:
    """Divides all pairs into batches of pairs of similar length, and puts the batches in random order.

    The size of a batch is its number of pairs times the length of its longest sentence, source or target; no batch is
    larger than `batch_tokens`. No pair may be longer than `batch_tokens`. Pairs of equal lengths are in random order,
    and the batch of the shortest pairs has a random size, so that batches differ between epochs.
    """
    longest = np.maximum(source_lengths, target_lengths)
    assert longest.max() <= batch_tokens, "longer pairs are left out when the data is binarized"
    shuffled = rng.permutation(len(longest))
    by_length = shuffled[np.lexsort((source_lengths[shuffled], longest[shuffled]))]
    ends = _batch_ends(longest[by_length], batch_tokens, rng)

    starts = np.concatenate([[0], ends[:-1]])
    batch_order = rng.permutation(len(ends))
    order = np.concatenate([by_length[starts[b] : ends[b]] for b in batch_order])
    return Plan(order, np.cumsum(ends[batch_order] - starts[batch_order]))


def _batch_ends(ascending: NDArray[np.integer], batch_tokens: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Divides pairs, sorted by length, into batches; returns the end of each batch, exclusive.

    `ascending` holds the lengths of the pairs, in ascending order.
    """
    ends: list[int] = []
    start, num_pairs = 0, len(ascending)
    while start < num_pairs:
        count = min(batch_tokens // int(ascending[start]), num_pairs - start)
        while count * int(ascending[start + count - 1]) > batch_tokens:
            count = batch_tokens // int(ascending[start + count - 1])
        if not ends:
            count = int(rng.integers(1, count + 1))
        start += count
        ends.append(start)
    return np.array(ends, dtype=np.int64)


# The maximum size of a batch (its budget). It changes if a run resumes with another value of training.batch_tokens.


@dataclass(frozen=True)
class EarlierBudget:
    """A value of `batch_tokens` that a run used earlier."""

    until: int  # the number of pairs that the run had trained on when another value replaced this one
    batch_tokens: int


@dataclass(frozen=True)
class Budgets:
    """All values of `batch_tokens` in the course of a run: the earlier values, in order, and the current value."""

    earlier: tuple[EarlierBudget, ...]
    batch_tokens: int

    def after(self, consumed: int) -> tuple[int, int | None]:
        """Returns the maximum batch size after `consumed` pairs, and the number of pairs at which this maximum changes.

        Pairs are counted from the start of training. If the maximum does not change any more, the second value is
        `None`.
        """
        for budget in self.earlier:
            if consumed < budget.until:
                return budget.batch_tokens, budget.until
        return self.batch_tokens, None


# The endless stream of batches.


def batches_from(
    consumed: int,
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    seed: int,
    mixture: Mixture | None = None,
    earlier: Sequence[EarlierBudget] = (),
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields (epoch, pairs) for each batch after the first `consumed` pairs of the run; never ends.

    Epochs count from 0. Without `mixture`, each pair occurs once per epoch. An epoch is divided at random into windows,
    and the pairs of a window are divided into batches together. `earlier` lists the values of `batch_tokens` that the
    run used before. If the value changed within a window, the rest of that window is divided into new batches. If the
    data or settings have changed during the run, so that no batch ends after exactly `consumed` pairs, raises
    ValueError.
    """
    budgets = Budgets(tuple(earlier), batch_tokens)
    epochs_done = 0 if mixture else consumed // len(source_lengths)
    begin = epochs_done * len(source_lengths)  # pairs before the window, since the start of training
    for epoch in itertools.count(epochs_done):
        epoch_rng = np.random.default_rng([seed, epoch])
        blocks = mixture.epoch(epoch_rng) if mixture else blocks_of(len(source_lengths))
        if begin + blocks.num_pairs <= consumed:
            begin += blocks.num_pairs
            continue
        for number, pairs in enumerate(_windows(blocks, epoch_rng)):
            if begin + len(pairs) > consumed:
                batches = _batches_of_window(
                    source_lengths, target_lengths, pairs, begin, budgets, [seed, epoch, number]
                )
                for batch in _skip_consumed(consumed, begin, batches):
                    yield epoch, batch
            begin += len(pairs)


def _windows(blocks: Blocks, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Divides the blocks at random into windows of `WINDOW` blocks; yields the pairs of each window.

    The last window may be smaller. The caller then divides all pairs of a window into batches.
    """
    order = rng.permutation(len(blocks))
    for first in range(0, len(order), WINDOW):
        window = blocks.select(order[first : first + WINDOW])
        pairs = window.starts[:, None] + np.arange((window.ends - window.starts).max())
        yield pairs[pairs < window.ends[:, None]]


def _batches_of_window(
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    pairs: NDArray[np.int64],
    begin: int,
    budgets: Budgets,
    seeds: list[int],
) -> Iterator[NDArray[np.int64]]:
    """Divides a window, a set of pairs, into batches; yields the pairs of each batch.

    If `batch_tokens` changed within the window, the pairs after the change are divided into new batches. `begin` is the
    number of pairs from the start of training to the window. Raises ValueError if `batch_tokens` changed in the middle
    of a batch.
    """
    for times_changed in itertools.count():
        batch_tokens, until = budgets.after(begin)
        rng = np.random.default_rng([*seeds, times_changed] if times_changed else seeds)
        plan = plan_batches(source_lengths[pairs], target_lengths[pairs], batch_tokens, rng)
        if until is None or until >= begin + len(pairs):
            yield from (pairs[plan.batch(index)] for index in range(len(plan)))
            return
        num_batches = int(np.searchsorted(plan.ends, until - begin)) + 1
        yield from (pairs[plan.batch(index)] for index in range(num_batches))
        if plan.ends[num_batches - 1] != until - begin:
            raise ValueError(f"no batch ends after {until} pairs, where training.batch_tokens changed")
        pairs, begin = pairs[plan.order[until - begin :]], until


def _skip_consumed(consumed: int, begin: int, batches: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Skips the batches of the first `consumed` pairs and yields the others.

    `begin` is the number of pairs before the first of the given batches. Raises ValueError if `consumed` is in the
    middle of a batch.
    """
    for batch in batches:
        if begin >= consumed:
            yield batch
        elif begin + len(batch) > consumed:
            raise ValueError(f"no batch ends after {consumed} pairs")
        begin += len(batch)


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
    # (R, L) bool: True for tokens without their embedding: zero (token cutoff) or, in a cmlm, a learned vector
    cut: Tensor | None = None

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
class AlignedTokens:
    """The word alignments of a batch, as N links between a target token and a source token of the same row."""

    rows: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64: the position of the target token in `Batch.labels`
    sources: Tensor  # (N,) int64: the position of the source token in `Batch.source`
    shares: Tensor  # (N,) float32: 1 divided by the number of links of the target token

    def to(self, device: torch.device) -> "AlignedTokens":
        """Returns a copy on a device."""
        fields = (self.rows, self.targets, self.sources, self.shares)
        return AlignedTokens(*(field.to(device, non_blocking=True) for field in fields))


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
    alignment: AlignedTokens | None = None  # only if training is guided by word alignments

    def to(self, device: torch.device) -> "Batch":
        """Returns a copy of the batch on a device; the copying is asynchronous if the batch is in pinned memory."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            labels=self.labels.to(device, non_blocking=True),
            alignment=None if self.alignment is None else self.alignment.to(device),
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
    1 more than the length of the longest target. `boundaries` holds the start and end tokens that the model uses. If
    the input of the model is not shifted, the decoder reads what it should predict.
    """
    labels = _pad(target, NO_LABEL)
    decoder_input = np.concatenate([np.full((len(labels), 1), boundaries.start), labels[:, :-1].clip(min=PAD)], axis=1)
    labels[np.arange(len(labels)), target.lengths] = boundaries.target_end
    if not boundaries.shifted:
        decoder_input = labels.clip(min=PAD)
    return Batch(
        source_rows(source, boundaries.source_end),
        _rows(decoder_input, target.lengths + 1),
        torch.from_numpy(labels),
        num_pairs=len(labels),
        source_tokens=int(source.lengths.sum()) + len(labels),
        target_tokens=int(target.lengths.sum()) + len(labels),
    )


def aligned_tokens(corpus: Corpus, pairs: NDArray[np.int64]) -> AlignedTokens:
    """Returns the word alignments of a batch whose rows are `pairs` of a corpus that stores alignments."""
    links = [corpus.links(pair) for pair in pairs.tolist()]
    rows = np.repeat(np.arange(len(links)), [len(of_pair) for of_pair in links])
    sources, targets = np.concatenate(links).astype(np.int64).T
    keys = np.stack([rows, targets])
    _, places, counts = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    shares = (1 / counts[places.reshape(-1)]).astype(np.float32)
    return AlignedTokens(*map(torch.from_numpy, (rows, targets.copy(), sources.copy(), shares)))


# The batches of a corpus in the order of training, either with the ids of the corpus or with newly sampled
# segmentations.


@dataclass(frozen=True)
class Share:
    """The batches that one of several processes trains on: of every `count` batches in a row, number `rank`, from 0."""

    rank: int
    count: int


ALL = Share(0, 1)

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
    share: Share = ALL,
) -> Stream:
    """Yields (epoch, parts of the batch) for each batch after the first `consumed` pairs of the run; never ends.

    Of these batches, only those of `share` are made and yielded. Even if segmentations are sampled, pairs are assigned
    to batches by their lengths in the corpus. So a batch may be larger than `batch_tokens` once segmentations have been
    sampled. Such a batch is divided into several parts, all for the same update of the model; any other batch has one
    part. Sampled segmentations depend only on the text, the seed and the number of pairs before the batch. `earlier`
    lists the values of `batch_tokens` that the run used before. Raises ValueError if no batch ends after exactly
    `consumed` pairs.
    """
    lengths = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    batches = batches_from(consumed, *lengths, config.batch_tokens, config.seed, mixture, earlier)
    for number, (epoch, pairs) in enumerate(batches):
        if number % share.count != share.rank:
            pass
        elif sampling:
            yield epoch, _sampled_parts(corpus, config, sampling, pairs, consumed, boundaries)
        else:
            source = gather(corpus.source_tokens, corpus.source_offsets, pairs)
            target = gather(corpus.target_tokens, corpus.target_offsets, pairs)
            batch = padded_batch(source, target, boundaries)
            if corpus.has_links:
                batch = replace(batch, alignment=aligned_tokens(corpus, pairs))
            yield epoch, (batch,)
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
        number of pairs from each corpus in `data.train`, or word alignments.
        """
        if config.training.guided_alignment is not None:
            corpus.require_links()
        return Feed(
            config, corpus, mixture_of(config, corpus), subword_sampling_of(config, tokenizer, corpus), boundaries
        )

    @contextmanager
    def batches(
        self, step: int, pairs: int, earlier: Sequence[EarlierBudget] = (), share: Share = ALL
    ) -> Iterator[Stream]:
        """Context manager that gives the endless stream of batches after the first `pairs` pairs of the run.

        Of these, only the batches of `share` are given. The batches are prefetched. `earlier` lists the values of
        `batch_tokens` that the run used before. Raises CheckpointError if no batch ends after exactly `pairs` pairs;
        the message names `step`.
        """
        stream = micro_batches(
            self.corpus, self.config.training, pairs, self.sampling, self.boundaries, self.mixture, earlier, share
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
    return SubwordSampling(source, target, config.data.longest_training_side)
