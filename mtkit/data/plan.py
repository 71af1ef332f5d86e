"""The order of training: how often each corpus is repeated, which pairs form a batch, and the order of the batches.

The order depends only on sentence lengths, settings and seed, so a resumed run can skip the pairs that it has already
trained on (has consumed). A pair is represented by its index in the binarized corpus, which holds all the corpora of
`data.train`, one after the other.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How often each corpus is repeated in an epoch.

BLOCK = 1024  # consecutive pairs kept together in one window (see WINDOW), so that a huge corpus is read in long runs


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive pairs: block b consists of the pairs `starts[b]`, …, `ends[b] - 1`."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_pairs(self) -> int:
        """The total number of pairs in all blocks; a pair that is in several blocks counts several times."""
        return int((self.ends - self.starts).sum())

    def select(self, indices: NDArray[np.int64]) -> "Blocks":
        """Returns the blocks with the given indices, in that order."""
        return Blocks(self.starts[indices], self.ends[indices])


def blocks_of(num_pairs: int, first: int = 0) -> Blocks:
    """Divides `num_pairs` pairs, beginning with pair `first`, into blocks of `BLOCK` pairs; the last may be shorter."""
    starts = np.arange(first, first + num_pairs, BLOCK)
    return Blocks(starts, np.minimum(starts + BLOCK, first + num_pairs))


@dataclass(frozen=True)
class Mixture:
    """How often each corpus is repeated in an epoch."""

    counts: tuple[int, ...]  # the number of pairs of each corpus
    repeats: tuple[float, ...]  # how many times a pair of each corpus occurs in an epoch, on average

    @property
    def shares(self) -> list[float]:
        """For each corpus, the fraction of an epoch that the corpus makes up, on average over many epochs."""
        return [count * repeats / sum(self.counts) for count, repeats in zip(self.counts, self.repeats, strict=True)]

    def epoch(self, rng: np.random.Generator) -> Blocks:
        """Returns the blocks of one epoch.

        For example, a corpus that is repeated 2.3 times occurs twice as a whole, plus a random 30% of its blocks. The
        number of these extra blocks is rounded up or down at random, so epochs differ in size by up to one block per
        corpus. On average over many epochs, even a corpus smaller than a block occurs 2.3 times.
        """
        starts: list[NDArray[np.int64]] = []
        ends: list[NDArray[np.int64]] = []
        first = 0
        for count, repeats in zip(self.counts, self.repeats, strict=True):
            blocks = blocks_of(count, first)
            times, fraction = divmod(repeats, 1)
            wanted = fraction * len(blocks)
            num_more = int(wanted) + int(rng.random() < wanted % 1)
            part = blocks.select(rng.permutation(len(blocks))[:num_more])
            starts += [np.tile(blocks.starts, int(times)), part.starts]
            ends += [np.tile(blocks.ends, int(times)), part.ends]
            first += count
        return Blocks(np.concatenate(starts), np.concatenate(ends))


def is_proportional(weights: Sequence[float], temperature: float) -> bool:
    """Whether every pair occurs once per epoch with these weights and temperature, whatever the corpus sizes."""
    return len(set(weights)) <= 1 and (temperature == 1 or len(weights) <= 1)


def mix(counts: Sequence[int], weights: Sequence[float], temperature: float) -> Mixture:
    """Returns a mixture in which corpus c has a share proportional to `weights[c] * counts[c] ** (1 / temperature)`.

    This is temperature-based sampling (Arivazhagan et al. 2019, section 4). An epoch has as many pairs as all corpora
    together. The higher the temperature, the more similar are the shares of corpora with equal weights.
    """
    assert len(counts) == len(weights)
    sizes = np.array(counts, dtype=np.float64)
    wanted = np.array(weights) / max(weights) * sizes ** (1 / temperature)
    shares = wanted / wanted.sum()
    # Rounded, so that 1.9999999999999998 becomes 2.
    repeats = np.divide(shares * sizes.sum(), sizes, out=np.zeros_like(sizes), where=sizes > 0).round(9)
    return Mixture(tuple(counts), tuple(repeats.tolist()))


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
