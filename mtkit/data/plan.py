"""The order of training: which pairs make a batch, in which order, and how often each corpus comes.

A plan depends only on lengths, settings and seed, so a run resumes by skipping the pairs it has consumed. A pair is a
number: its place in the binarized corpus, which holds one corpus of the settings after the other.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How often each corpus comes in an epoch.

BLOCK = 1024  # neighbouring pairs that stay in one window, so that a huge corpus is read in runs, not pair by pair


@dataclass(frozen=True)
class Blocks:
    """Runs of neighbouring pairs: block b holds the pairs from starts[b] up to ends[b], exclusive."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_pairs(self) -> int:
        """Number of pairs in all blocks; a pair in several blocks counts several times."""
        return int((self.ends - self.starts).sum())

    def select(self, indices: NDArray[np.int64]) -> "Blocks":
        """The blocks with these indices, in this order."""
        return Blocks(self.starts[indices], self.ends[indices])


def blocks_of(num_pairs: int, first: int = 0) -> Blocks:
    """The blocks of num_pairs pairs, the first of which is number first."""
    starts = np.arange(first, first + num_pairs, BLOCK)
    return Blocks(starts, np.minimum(starts + BLOCK, first + num_pairs))


@dataclass(frozen=True)
class Mixture:
    """How often an epoch goes through each corpus: repeats[c] times on average."""

    counts: tuple[int, ...]  # pairs of each corpus
    repeats: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """Each corpus's share of the pairs of an epoch, on average."""
        return [count * repeats / sum(self.counts) for count, repeats in zip(self.counts, self.repeats, strict=True)]

    def epoch(self, rng: np.random.Generator) -> Blocks:
        """The blocks of one epoch: each corpus its whole number of times, and a random part for the fraction.

        The part consists of whole blocks. Their number is rounded up or down at random so that it is right on average
        over many epochs; this gives a corpus smaller than a block its share, too. So the sizes of epochs differ by up
        to one block for each corpus.
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
    """Whether these settings make every pair come once in an epoch, whatever the sizes of the corpora."""
    return len(set(weights)) <= 1 and (temperature == 1 or len(weights) <= 1)


def mix(counts: Sequence[int], weights: Sequence[float], temperature: float) -> Mixture:
    """A mixture in which corpus c is weight_c x count_c^(1 / temperature) of an epoch, normalised to sum to 1.

    That is temperature-based sampling (Arivazhagan et al. 2019, section 4). An epoch has as many pairs as all corpora
    together. The higher the temperature, the more alike the shares of corpora with equal weights.
    """
    assert len(counts) == len(weights)
    sizes = np.array(counts, dtype=np.float64)
    wanted = np.array(weights) / max(weights) * sizes ** (1 / temperature)
    shares = wanted / wanted.sum()
    # Rounded, so that 1.9999999999999998 is 2.
    repeats = np.divide(shares * sizes.sum(), sizes, out=np.zeros_like(sizes), where=sizes > 0).round(9)
    return Mixture(tuple(counts), tuple(repeats.tolist()))


# Batches of pairs of similar length.

WINDOW = 2048  # blocks that are shuffled, sorted and cut into batches together: about two million pairs


@dataclass(frozen=True)
class Plan:
    """Pairs in batches: batch b holds the pairs order[ends[b - 1]:ends[b]]."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def batch(self, index: int) -> NDArray[np.int64]:
        """The pairs of one batch."""
        return self.order[self.ends[index - 1] if index else 0 : self.ends[index]]


def plan_batches(
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    rng: np.random.Generator,
) -> Plan:
    """Put all pairs into batches of similar length, in random order.

    A batch holds at most batch_tokens, counted as number of pairs x longest side; no single length may exceed that.
    Pairs of equal lengths come in random order and the first batch has a random size, so that batches differ from
    epoch to epoch.
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
    """Where each batch ends, for lengths in ascending order."""
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


# The budget of a batch, which may change when a run resumes with another training.batch_tokens.


@dataclass(frozen=True)
class EarlierBudget:
    """A batch_tokens that a run had earlier."""

    until: int  # pairs of the stream consumed when another one replaced it
    batch_tokens: int


@dataclass(frozen=True)
class Budgets:
    """The batch_tokens at each place in the stream: earlier ones, in order, and the current one."""

    earlier: tuple[EarlierBudget, ...]
    batch_tokens: int

    def after(self, consumed: int) -> tuple[int, int | None]:
        """The budget after so many pairs, and the place where the next one replaces it (None if it is the last)."""
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
    """The endless stream of batches after so many consumed pairs, as (epoch, pairs); epochs count from 0.

    Without a mixture, each pair comes once an epoch. If batch_tokens was changed (earlier), the pairs that were left of
    the window at that place are planned anew. consumed must be the end of a batch, else ValueError: the run was made
    with other data or settings.
    """
    budgets = Budgets(tuple(earlier), batch_tokens)
    epochs_done = 0 if mixture else consumed // len(source_lengths)
    begin = epochs_done * len(source_lengths)  # of the window, in pairs of the whole stream
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
    """All pairs of the blocks, in windows of randomly chosen blocks."""
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
    """The batches of a window that starts after begin pairs of the stream, planned anew where the budget changed."""
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
    """The batches that start after so many consumed pairs; the first of all starts after begin pairs."""
    for batch in batches:
        if begin >= consumed:
            yield batch
        elif begin + len(batch) > consumed:
            raise ValueError(f"no batch ends after {consumed} pairs")
        begin += len(batch)
