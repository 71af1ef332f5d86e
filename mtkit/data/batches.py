"""Batches: which pairs form a batch, in which order, and the padded rows that training reads.

The order depends only on sentence lengths, settings and seed, so a resumed run can skip the pairs that it has
already trained on (has consumed). A pair is represented by its index in the binarized corpus, which holds all the
corpora of `data.train`, one after the other.

In the shapes of arrays, P is the number of pairs of a batch, R its number of rows, S the source length and T the
target length; L is either S or T. S and T include padding and the start or end mark.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.data.corpus import Blocks, Corpus, Mixture, blocks_of, is_proportional, mix
from mtkit.errors import CheckpointError, DataError
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END, PAD, BoundaryTokens

# How batches are made. With "bucketed", a row holds one pair, and the pairs of a batch have similar lengths. With
# "packed", a row holds several pairs. The other two are for runs begun by earlier versions: they are like "bucketed",
# but sort the pairs in ways that leave more padding.
Batching = Literal["bucketed", "packed", "by exact length", "by length"]

# Batches of rows of similar length. A row holds one pair or, if rows are packed, several.

WINDOW = 2048  # blocks whose pairs are shuffled, sorted and divided into batches together: about two million pairs


@dataclass(frozen=True)
class PlannedBatch:
    """The pairs of a batch, as indices into the corpus, and for each pair, the number of its row in the batch."""

    pairs: NDArray[np.int64]  # (P,)
    rows: NDArray[np.int64]  # (P,) from 0, in ascending order

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def is_packed(self) -> bool:
        """Whether any row holds several pairs."""
        return len(self.rows) > 0 and int(self.rows[-1]) + 1 < len(self.rows)


@dataclass(frozen=True)
class Plan:
    """Pairs divided into batches: batch b consists of the pairs `order[ends[b - 1]:ends[b]]`."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]  # the row of each pair in `order`; rows are numbered consecutively through all batches

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, index: int) -> PlannedBatch:
        """Returns the pairs of the batch with this index."""
        place = slice(self.ends[index - 1] if index else 0, self.ends[index])
        return PlannedBatch(self.order[place], self.rows[place] - self.rows[place.start])


Lengths = NDArray[np.integer]


def plan_batches(
    source_lengths: Lengths,
    target_lengths: Lengths,
    batch_tokens: int,
    rng: np.random.Generator,
    batching: Batching = "bucketed",
) -> Plan:
    """Divides all pairs into batches of rows of similar length, and puts the batches in random order.

    The size of a batch is its number of rows times the length of its longest row, source or target; no batch is larger
    than `batch_tokens`. No pair may be longer than `batch_tokens`. Pairs of equal lengths are in random order, and the
    batch of the shortest rows has a random size, so that batches differ between epochs.

    If `batching` is "packed", `packed_rows` says which pairs share a row; otherwise, a row holds one pair. Lengths are
    in tokens, with the end mark.
    """
    assert max(source_lengths.max(), target_lengths.max()) <= batch_tokens, "longer pairs are not binarized"
    shuffled = rng.permutation(len(source_lengths))
    source, target = source_lengths[shuffled], target_lengths[shuffled]
    if batching == "packed":
        row_of = packed_rows(source, target, batch_tokens)
        source, target = _sums(row_of, source), _sums(row_of, target)
    else:
        row_of = np.arange(len(shuffled))
    pairs = shuffled[np.argsort(row_of, kind="stable")]  # row by row
    num_pairs = np.bincount(row_of)  # of each row
    first_pairs = np.cumsum(num_pairs) - num_pairs

    by_length, longest = _sorted_rows(source, target, batching)
    ends = _batch_ends(longest, batch_tokens, rng, is_exact=batching != "bucketed")
    starts = np.concatenate([[0], ends[:-1]])
    batch_order = rng.permutation(len(ends))
    rows = np.concatenate([by_length[starts[b] : ends[b]] for b in batch_order])
    order = pairs[np.repeat(first_pairs[rows], num_pairs[rows]) + _positions(num_pairs[rows])]
    row_ends = np.cumsum(ends[batch_order] - starts[batch_order])
    return Plan(order, np.cumsum(num_pairs[rows])[row_ends - 1], np.repeat(np.arange(len(rows)), num_pairs[rows]))


def _sums(rows: NDArray[np.int64], lengths: Lengths) -> NDArray[np.int64]:
    """Returns the total length of each row; item i of `lengths` is part of row `rows[i]`."""
    return np.bincount(rows, lengths).astype(np.int64)


SIMILAR = 1.04  # the largest ratio of two lengths that count as similar


def _sorted_rows(source: Lengths, target: Lengths, batching: Batching) -> tuple[NDArray[np.int64], Lengths]:
    """Sorts rows so that neighbours have similar lengths; returns (row indices, lengths of the rows' longer sides).

    Both results are in the new order. `source` and `target` are the lengths of each row on the two sides.

    First, the rows are sorted into groups by the length of their longer side. A group has similar lengths (`_groups`)
    if `batching` is "bucketed", else equal lengths. Second, each group is sorted by source length minus target length.
    The direction alternates from group to group, so that rows at the border of two groups are similar on both sides.
    If `batching` is "by length", each group is instead sorted by the source length alone.
    """
    longest = np.maximum(source, target)
    groups = _groups(longest) if batching == "bucketed" else longest
    difference = (source.astype(np.int64) - target) * np.where(groups % 2, -1, 1)
    by_length = np.lexsort((source if batching == "by length" else difference, groups))
    return by_length, longest[by_length]


def _groups(lengths: Lengths) -> NDArray[np.int64]:
    """Returns the group number of each length; the lengths in a group differ by at most the factor SIMILAR."""
    firsts = [1]
    while firsts[-1] <= lengths.max():
        firsts.append(max(firsts[-1] + 1, round(firsts[-1] * SIMILAR)))
    return np.searchsorted(firsts, lengths, side="right")


ROW_TOKENS = 128  # the approximate length of a packed row, unless four pairs of average length are longer
ROW_SHARE = 0.96  # planned length of a row / length that fills a batch exactly; less than 1, since some rows get longer
SIMILAR_ROWS = 16  # rows in a group of similar size; in a group, rows and pairs are matched by surplus of source tokens


def packed_rows(source_lengths: Lengths, target_lengths: Lengths, batch_tokens: int) -> NDArray[np.int64]:
    """Divides pairs into rows of nearly the same length on each side; returns the row of each pair, from 0.

    This is a form of the heuristic "longest processing time first" (Graham 1969). The pairs are dealt out in rounds,
    the largest first. In each round, every row gets one pair, and the row with the fewest tokens gets the largest pair.
    Within a group of SIMILAR_ROWS rows of similar size, pairs with many source tokens relative to their target tokens
    go to rows with few.

    On its longer side, a row has about ROW_TOKENS tokens, or the length of four average pairs if that is more. No row
    is longer than `batch_tokens`.
    """
    sizes = np.asarray(source_lengths, dtype=np.int64) + target_lengths
    longer_side = max(int(source_lengths.sum()), int(target_lengths.sum()))
    wanted = max(ROW_TOKENS, 4 * longer_side / len(sizes))
    length = ROW_SHARE * batch_tokens / max(1, round(batch_tokens / wanted))
    num_rows = math.ceil(longer_side / length)
    surplus = source_lengths - source_lengths.sum() / target_lengths.sum() * target_lengths

    rows = np.empty(len(sizes), dtype=np.int64)
    tokens, excess = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows)
    largest_first = np.argsort(-sizes, kind="stable")
    for start in range(0, len(sizes), num_rows):
        dealt = largest_first[start : start + num_rows]
        group = np.arange(len(dealt)) // SIMILAR_ROWS
        emptiest = np.argsort(tokens, kind="stable")[: len(dealt)]
        emptiest = emptiest[np.lexsort((excess[emptiest], group))]
        dealt = dealt[np.lexsort((-surplus[dealt], group))]
        rows[dealt] = emptiest
        tokens[emptiest] += sizes[dealt]
        excess[emptiest] += surplus[dealt]
    return _without_long_rows(rows, source_lengths, target_lengths, batch_tokens)


def _without_long_rows(
    rows: NDArray[np.int64], source_lengths: Lengths, target_lengths: Lengths, batch_tokens: int
) -> NDArray[np.int64]:
    """Splits each row longer than `batch_tokens` into rows of one pair; returns the new row number of each pair.

    `rows` holds the old row number of each pair. The new rows are numbered from 0 without gaps.
    """
    is_long = np.maximum(_sums(rows, source_lengths), _sums(rows, target_lengths)) > batch_tokens
    alone = is_long[rows]
    rows = np.where(alone, len(is_long) + np.cumsum(alone), rows)
    return np.unique(rows, return_inverse=True)[1]


def _batch_ends(
    longest: Lengths, batch_tokens: int, rng: np.random.Generator, is_exact: bool = False
) -> NDArray[np.int64]:
    """Divides sorted rows into batches of at most `batch_tokens` tokens; returns the end of each batch, exclusive.

    The size of a batch is its number of rows times the length of its longest row; the first batch has a random size.
    `longest` holds the length of the longer side of each row. With `is_exact`, these lengths must be in ascending
    order, and batches end where they did in earlier versions of mtkit, which made some batches a row too small.
    """
    ends: list[int] = []
    start, num_rows = 0, len(longest)
    while start < num_rows:
        count = min(batch_tokens // int(longest[start]), num_rows - start)
        if is_exact:
            while count * int(longest[start + count - 1]) > batch_tokens:
                count = batch_tokens // int(longest[start + count - 1])
        else:
            sizes = np.maximum.accumulate(longest[start : start + count]) * np.arange(1, count + 1)
            count = int(np.searchsorted(sizes, batch_tokens, side="right"))
        if not ends:
            count = int(rng.integers(1, count + 1))
        start += count
        ends.append(start)
    return np.array(ends, dtype=np.int64)


# Budgets. A budget says how batches are made: their maximum size, and whether rows are packed. The budget changes if a
# run resumes with another value of training.batch_tokens or training.batching.


@dataclass(frozen=True)
class EarlierBudget:
    """Values of `batch_tokens` and `batching` that a run used earlier."""

    until: int  # the number of pairs that the run had trained on when other values replaced the two below
    batch_tokens: int
    batching: Batching = "bucketed"


@dataclass(frozen=True)
class Budgets:
    """The values of `batch_tokens` and `batching` in the course of a run: the earlier values, and the current values.

    Each batch is made with the values that the run had when it trained on this batch.
    """

    earlier: tuple[EarlierBudget, ...]
    batch_tokens: int
    batching: Batching = "bucketed"

    def after(self, consumed: int) -> tuple[int, Batching, int | None]:
        """Returns `batch_tokens` and `batching` after `consumed` pairs, and after how many pairs they next change.

        Pairs are counted from the start of training. If the two values do not change any more, the last item is `None`.
        """
        for budget in self.earlier:
            if consumed < budget.until:
                return budget.batch_tokens, budget.batching, budget.until
        return self.batch_tokens, self.batching, None


# The endless stream of batches.


def batches_from(
    consumed: int,
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    seed: int,
    mixture: Mixture | None = None,
    earlier: Sequence[EarlierBudget] = (),
    batching: Batching = "bucketed",
) -> Iterator[tuple[int, PlannedBatch]]:
    """Yields (epoch, planned batch) for each batch after the first `consumed` pairs of the run; never ends.

    Epochs count from 0. Lengths are in tokens, with the end mark. `mixture` says how often each corpus is repeated in
    an epoch; without `mixture`, each pair occurs once. An epoch is divided at random into windows, and each window is
    divided into batches.

    `earlier` lists the values of `batch_tokens` and `batching` that the run used before. If such a value changed within
    a window, the rest of that window is divided into new batches.

    Raises ValueError if no batch ends after exactly `consumed` pairs, or if a value changed at a number of pairs after
    which no batch ends. This happens if the data or other settings are no longer those with which the run began.
    """
    budgets = Budgets(tuple(earlier), batch_tokens, batching)
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
) -> Iterator[PlannedBatch]:
    """Divides a window, a set of pairs, into batches; yields the pairs of each batch, with their rows.

    `begin` is the number of pairs from the start of training to the window; `seeds` determines the random order. If
    `batch_tokens` or `batching` changed within the window (see `Budgets`), the pairs after the change are divided into
    new batches. Raises ValueError if the change was in the middle of a batch.
    """
    for times_changed in itertools.count():
        batch_tokens, batching, until = budgets.after(begin)
        rng = np.random.default_rng([*seeds, times_changed] if times_changed else seeds)
        plan = plan_batches(source_lengths[pairs], target_lengths[pairs], batch_tokens, rng, batching)
        kept = len(pairs) if until is None else min(until - begin, len(pairs))
        num_batches = int(np.searchsorted(plan.ends, kept)) + 1
        for index in range(num_batches):
            batch = plan.batch(index)
            yield PlannedBatch(pairs[batch.pairs], batch.rows)
        if until is None or kept == len(pairs):
            return
        if plan.ends[num_batches - 1] != until - begin:
            raise ValueError(f"no batch ends after {until} pairs, where training.batch_tokens or batching changed")
        pairs, begin = pairs[plan.order[until - begin :]], until


def _skip_consumed(consumed: int, begin: int, batches: Iterator[PlannedBatch]) -> Iterator[PlannedBatch]:
    """Skips the batches of the first `consumed` pairs and yields the remaining batches.

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
    # (R, L) bool: True for tokens whose embedding is replaced: by zeros (token cutoff) or, in a conditional masked
    # language model, by a learned vector
    cut: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """A bool mask (R, L) that is `True` for tokens and `False` for padding."""
        return self.segments != 0

    def map(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """Returns the rows with `function` applied to each tensor."""
        return replace(
            self,
            ids=function(self.ids),
            segments=function(self.segments),
            positions=function(self.positions),
            cut=None if self.cut is None else function(self.cut),
        )

    def to(self, device: torch.device) -> "Rows":
        """Returns a copy of the rows on a device; the copying is asynchronous if the rows are in pinned memory."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def between(self, begin: int, end: int) -> "Rows":
        """Returns the rows from `begin` to `end`, exclusive, without columns that hold only padding."""
        length = max(1, int(self.mask[begin:end].sum(1).max()))
        ids, segments, positions = (part[begin:end, :length] for part in (self.ids, self.segments, self.positions))
        return replace(
            self,
            ids=ids,
            segments=segments,
            positions=positions,
            cut=None if self.cut is None else self.cut[begin:end, :length],
        )


@dataclass(frozen=True)
class AlignedTokens:
    """The word alignments of a batch, as N links between a target token and a source token of the same row."""

    rows: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64: the position of the target token in `Batch.labels`
    sources: Tensor  # (N,) int64: the position of the source token in `Batch.source`
    shares: Tensor  # (N,) float32: 1 divided by the number of links of the target token

    def map(self, function: Callable[[Tensor], Tensor]) -> "AlignedTokens":
        """Returns the alignments with `function` applied to each tensor."""
        return AlignedTokens(*map(function, (self.rows, self.targets, self.sources, self.shares)))


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
    # (target_tokens,) int64: the indices, in the flattened `labels`, of all labels that are not padding; computed in
    # advance, since the CPU would have to wait if the GPU computed them
    places: Tensor
    alignment: AlignedTokens | None = None  # only if training is guided by word alignments

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `function` applied to each tensor."""
        return replace(
            self,
            source=self.source.map(function),
            target=self.target.map(function),
            labels=function(self.labels),
            places=function(self.places),
            alignment=None if self.alignment is None else self.alignment.map(function),
        )

    def to(self, device: torch.device) -> "Batch":
        """Returns a copy of the batch on a device; the copying is asynchronous if the batch is in pinned memory."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def parts(self, number: int) -> list["Batch"]:
        """Divides the batch into `number` batches, whose losses add up to the loss of the whole batch.

        The batch must have at least `number` rows.
        """
        bounds = [place * len(self.labels) // number for place in range(number + 1)]
        return [self._between(begin, end) for begin, end in pairwise(bounds)]

    def _between(self, begin: int, end: int) -> "Batch":
        source, target = self.source.between(begin, end), self.target.between(begin, end)
        links = self.alignment
        if links is not None:
            here = (links.rows >= begin) & (links.rows < end)
            fields = (links.rows - begin, links.targets, links.sources, links.shares)
            links = AlignedTokens(*(field[here] for field in fields))
        labels = self.labels[begin:end, : target.ids.shape[1]]
        return Batch(
            source,
            target,
            labels,
            places=(labels != NO_LABEL).flatten().nonzero()[:, 0],
            num_pairs=int(target.segments.amax(1).sum()),
            source_tokens=int(source.mask.sum()),
            target_tokens=int(target.mask.sum()),
            alignment=links,
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
    """Returns the sentences, which are lists of token ids, concatenated in one array."""
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


def _marked(sentences: Ragged, mark: int, first: bool) -> NDArray[np.int64]:
    """Returns the tokens of all sentences as one array, with `mark` added to each sentence.

    The mark comes before the sentence if `first` is true, else after it.
    """
    is_mark = np.zeros(sentences.lengths.sum() + len(sentences.lengths), dtype=bool)
    ends = np.cumsum(sentences.lengths + 1)
    is_mark[ends - sentences.lengths - 1 if first else ends - 1] = True
    ids = np.full(len(is_mark), mark, dtype=np.int64)
    ids[~is_mark] = sentences.tokens
    return ids


@dataclass(frozen=True)
class Layout:
    """Where each sentence of one side of a batch stands in the rows (R, L).

    Each sentence includes one mark, at its start or its end. A row holds one sentence or several.
    """

    lengths: NDArray[np.int64]  # (P,) with the mark
    rows: NDArray[np.int64]  # (P,) the row of each sentence, from 0, in ascending order

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The column of each sentence's first token, (P,)."""
        before = np.cumsum(self.lengths) - self.lengths
        return before - before[self._first][self.rows]

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The index of the first sentence of each row, (R,)."""
        return np.flatnonzero(np.diff(self.rows, prepend=-1))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The number R of rows, and the length L of the longest row."""
        return len(self._first), int((self.starts + self.lengths).max())

    def filled(self, values: NDArray[np.int64], filler: int) -> Tensor:
        """Returns `values` as rows (R, L) int64, padded with `filler`.

        `values` has one item for each token, in the order of the sentences.
        """
        array = np.full(self.shape, filler, dtype=np.int64)
        array.reshape(-1)[self.places] = values
        return torch.from_numpy(array)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """The index of each token in an array (R, L) that is flattened row by row."""
        return np.repeat(self.rows * self.shape[1] + self.starts, self.lengths) + self._positions

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        return _positions(self.lengths)

    def rows_of(self, ids: NDArray[np.int64]) -> Rows:
        """Returns the rows that hold the token ids `ids`, which are concatenated in the order of the sentences."""
        segments = np.arange(len(self.rows)) - self._first[self.rows] + 1
        # Padding could have any id, since no token attends to it.
        filled = (self.filled(ids, PAD), self.filled(np.repeat(segments, self.lengths), 0))
        return Rows(*filled, self.filled(self._positions, 0), packed=len(self._first) < len(self.rows))


def source_rows(source: Ragged, end: int = END, rows: NDArray[np.int64] | None = None) -> Rows:
    """Returns rows (R, S) of source sentences with their end marks; S is the length of the longest row.

    `rows`, if given, is the row number of each sentence, from 0, in ascending order; a row may then hold several
    sentences. Without `rows`, each row holds one sentence.
    """
    layout = Layout(source.lengths + 1, np.arange(len(source.lengths)) if rows is None else rows)
    return layout.rows_of(_marked(source, end, first=False))


def padded_batch(
    source: Ragged,
    target: Ragged,
    boundaries: BoundaryTokens = DEFAULT_BOUNDARIES,
    rows: NDArray[np.int64] | None = None,
) -> Batch:
    """Returns a batch: source (R, S), target (R, T) and labels (R, T).

    `rows`, if given, is the row number of each pair, from 0, in ascending order; a row may then hold several pairs.
    Without `rows`, each row holds one pair, and T is 1 more than the length of the longest target.

    `boundaries` holds the start and end tokens of the model, and says whether the model shifts the target. For a target
    t1, …, tn, the labels are t1, …, tn, end. The decoder reads start, t1, …, tn if the model shifts the target, else
    the labels.
    """
    layout = Layout(target.lengths + 1, np.arange(len(target.lengths)) if rows is None else rows)
    labels = _marked(target, boundaries.target_end, first=False)
    return Batch(
        source_rows(source, boundaries.source_end, layout.rows),
        layout.rows_of(_marked(target, boundaries.start, first=True) if boundaries.shifted else labels),
        layout.filled(labels, NO_LABEL),
        places=torch.from_numpy(layout.places),
        num_pairs=len(layout.rows),
        source_tokens=int(source.lengths.sum()) + len(layout.rows),
        target_tokens=len(labels),
    )


def aligned_tokens(corpus: Corpus, chosen: PlannedBatch) -> AlignedTokens:
    """Returns the word alignments of the pairs in the planned batch `chosen`; `corpus` must store alignments."""
    links = [corpus.links(pair) for pair in chosen.pairs.tolist()]
    numbers = np.repeat(np.arange(len(links)), [len(of_pair) for of_pair in links])
    sources, targets = np.concatenate(links).astype(np.int64).T
    source_starts, target_starts = (
        Layout(np.asarray(lengths[chosen.pairs], dtype=np.int64) + 1, chosen.rows).starts
        for lengths in (corpus.source_lengths, corpus.target_lengths)
    )
    rows, targets = chosen.rows[numbers], targets + target_starts[numbers]
    _, places, counts = np.unique(np.stack([rows, targets]), axis=1, return_inverse=True, return_counts=True)
    shares = (1 / counts[places.reshape(-1)]).astype(np.float32)
    return AlignedTokens(*map(torch.from_numpy, (rows, targets, sources + source_starts[numbers], shares)))


# The batches of a corpus in the order of training, either with the ids of the corpus or with newly sampled
# segmentations.


@dataclass(frozen=True)
class Share:
    """Which batches one of `count` processes trains on: of every `count` batches, the one with index `rank`, from 0."""

    rank: int
    count: int


ALL = Share(0, 1)

ORDER = 3  # the version of the rule by which new runs sort pairs into buckets; see `batching_of`


def batching_of(setting: str, order: int) -> Batching:
    """Returns how a run makes batches, such as "packed" or "bucketed"; `setting` is the setting `batching`.

    `order` (`Progress.order`) is the version of the rule by which the run sorts pairs into buckets: ORDER in new runs,
    lower in runs begun by earlier versions of mtkit. The setting "auto" means "bucketed", since packed rows were
    no faster where they were measured (configs/README.md).
    """
    if setting == "packed":
        return "packed"
    return "bucketed" if order >= ORDER else "by exact length" if order == 2 else "by length"


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
    order: int = ORDER,
) -> Stream:
    """Yields (epoch, parts of the batch) for each batch after the first `consumed` pairs of the run; never ends.

    If several processes train together, only the batches in `share`, those of this process, are made and yielded.
    `earlier` lists the values of `batch_tokens` and `batching` that the run used before. `order` (`Progress.order`) is
    the version of the rule by which the run sorts pairs into buckets (see `batching_of`). Raises ValueError if no batch
    ends after exactly `consumed` pairs.

    Pairs are assigned to batches by their lengths in the corpus. With `sampling`, the sampled segmentations may be
    longer, and a batch may become larger than `batch_tokens`. Such a batch is divided into several parts, all for the
    same update of the model; any other batch has one part. Sampled segmentations depend only on the text, the seed and
    the number of pairs before the batch.
    """
    lengths = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    batching = batching_of(config.batching, order)
    batches = batches_from(consumed, *lengths, settled(config.batch_tokens), config.seed, mixture, earlier, batching)
    for number, (epoch, chosen) in enumerate(batches):
        if number % share.count == share.rank:
            yield epoch, made_batch(corpus, config, chosen, consumed, sampling, boundaries)
        consumed += len(chosen)


def made_batch(
    corpus: Corpus,
    config: TrainingConfig,
    chosen: PlannedBatch,
    consumed: int,
    sampling: SubwordSampling | None = None,
    boundaries: BoundaryTokens = DEFAULT_BOUNDARIES,
) -> tuple[Batch, ...]:
    """Returns the parts of the planned batch `chosen`, as `micro_batches` yields them.

    `consumed` is the number of pairs that the run trains on before this batch.
    """
    if sampling:
        return _sampled_parts(corpus, config, sampling, chosen, consumed, boundaries)
    source = gather(corpus.source_tokens, corpus.source_offsets, chosen.pairs)
    target = gather(corpus.target_tokens, corpus.target_offsets, chosen.pairs)
    batch = padded_batch(source, target, boundaries, chosen.rows)
    if corpus.has_links:
        batch = replace(batch, alignment=aligned_tokens(corpus, chosen))
    return (batch,)


def _sampled_parts(
    corpus: Corpus,
    config: TrainingConfig,
    sampling: SubwordSampling,
    chosen: PlannedBatch,
    consumed: int,
    boundaries: BoundaryTokens,
) -> tuple[Batch, ...]:
    """Samples a segmentation of each pair; returns the batch as parts of at most `batch_tokens` tokens.

    A pair keeps the segmentation of the corpus if the sampled segmentation is longer than `sampling.max_length`. The
    samples are seeded with the seed of the run and `consumed`, the number of pairs before the batch.
    """
    # Below 2^31, since SentencePiece interprets the seed 2^32 - 1 as a request for a random seed.
    seeds = np.random.SeedSequence([config.seed, consumed]).generate_state(2) >> 1
    sources = sampling.source(corpus.source_text(chosen.pairs), seed=int(seeds[0]))
    targets = sampling.target(corpus.target_text(chosen.pairs), seed=int(seeds[1]))
    for number, pair in enumerate(chosen.pairs.tolist()):
        if max(len(sources[number]), len(targets[number])) > sampling.max_length:
            sources[number], targets[number] = corpus.source(pair).tolist(), corpus.target(pair).tolist()
    source_lengths, target_lengths = (np.array([len(ids) + 1 for ids in side]) for side in (sources, targets))
    rows = _without_long_rows(chosen.rows, source_lengths, target_lengths, settled(config.batch_tokens))
    longest = np.maximum(_sums(rows, source_lengths), _sums(rows, target_lengths))
    parts = []
    for part in _fitting_parts(longest, settled(config.batch_tokens)):
        numbers = np.flatnonzero(np.isin(rows, part))
        numbers = numbers[np.argsort(rows[numbers], kind="stable")]
        source, target = (ragged([side[number] for number in numbers]) for side in (sources, targets))
        parts.append(padded_batch(source, target, boundaries, np.unique(rows[numbers], return_inverse=True)[1]))
    return tuple(parts)


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
    """Yields the items; a thread of `executor` computes up to `most` items in advance."""
    waiting = deque(executor.submit(_list_of_next, items) for _ in range(most))
    while found := waiting.popleft().result():
        waiting.append(executor.submit(_list_of_next, items))
        yield found[0]


def _list_of_next(items: Iterator[T]) -> list[T]:
    """Returns a list that holds only the next item, or [] if there are no more items."""
    for item in items:
        return [item]
    return []


# Batches for a GPU are put into pinned memory, and sent before they are needed, so that neither CPU nor GPU waits.


def pinned(batches: Stream) -> Stream:
    """Yields the batches in pinned memory, from which they are copied to a GPU while the CPU goes on."""
    for epoch, parts in batches:
        yield epoch, tuple(part.map(Tensor.pin_memory) for part in parts)


def sent_ahead(batches: Stream, device: torch.device) -> Stream:
    """Yields the batches on `device`; each batch is sent when the batch before it is requested.

    `batches` must be endless: the last batch would be left out.
    """
    sent = ((epoch, tuple(part.to(device) for part in parts)) for epoch, parts in batches)
    for this, _ in itertools.pairwise(sent):
        yield this


# The batches of a training run, according to its settings.

NUM_PREFETCHED = 8  # batches
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Feed:
    """A binarized corpus, and everything that decides which batches training makes from the corpus."""

    config: Config
    corpus: Corpus
    mixture: Mixture | None  # None: each pair occurs once per epoch
    sampling: SubwordSampling | None  # None: batches have the ids of the corpus
    boundaries: BoundaryTokens  # start and end tokens of the model that reads the batches
    device: torch.device = CPU  # of that model

    @staticmethod
    def prepare(
        config: Config, tokenizer: Tokenizer, corpus: Corpus, boundaries: BoundaryTokens, device: torch.device = CPU
    ) -> "Feed":
        """Returns the feed for the settings in `config`.

        Raises DataError if the settings require something that `corpus` does not store: the text of the pairs, or the
        number of pairs from each corpus in `data.train`, or word alignments.
        """
        if config.training.guided_alignment is not None:
            corpus.require_links()
        sampling = subword_sampling_of(config, tokenizer, corpus)
        return Feed(config, corpus, mixture_of(config, corpus), sampling, boundaries, device)

    @contextmanager
    def batches(
        self, step: int, pairs: int, earlier: Sequence[EarlierBudget] = (), share: Share = ALL, order: int = ORDER
    ) -> Iterator[Stream]:
        """Context manager that gives the endless stream of batches after the first `pairs` pairs of the run.

        An item of the stream is (epoch, parts of the batch). The arguments `earlier`, `share` and `order` are those of
        `micro_batches`. Batches are made in advance; for training on a GPU, the next batch is also copied to the GPU in
        advance. Raises CheckpointError if no batch ends after exactly `pairs` pairs; the message names `step`.
        """
        stream = micro_batches(
            self.corpus,
            self.config.training,
            pairs,
            self.sampling,
            self.boundaries,
            self.mixture,
            earlier,
            share,
            order,
        )
        try:
            first = next(stream)
        except ValueError as error:
            raise CheckpointError(
                f"{self.config.run_path}: cannot go on from step {step:,}: {error}, so another version of "
                "mtkit ordered its data; go on with that one, or start anew with --fresh"
            ) from None
        stream = chain([first], stream)
        if self.device.type != "cuda":
            with prefetched(stream, NUM_PREFETCHED) as ready:
                yield ready
        else:
            with prefetched(pinned(stream), NUM_PREFETCHED) as ready:
                yield sent_ahead(ready, self.device)


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
