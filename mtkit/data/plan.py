"""Which pairs make a batch, in which order, and how often each corpus comes."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # neighbouring pairs that stay in one window, so that a huge corpus is read in runs, not pair by pair


@dataclass(frozen=True)
class Blocks:
    """Runs of neighbouring pairs, starts[b] to ends[b]."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_pairs(self) -> int:
        """How many pairs they hold, those that stand in several of them counted as often."""
        return int((self.ends - self.starts).sum())

    def chosen(self, indices: NDArray[np.int64]) -> "Blocks":
        """These of them, in this order."""
        return Blocks(self.starts[indices], self.ends[indices])


def blocks_of(num_pairs: int, first: int = 0) -> Blocks:
    """All of so many pairs, which begin at first."""
    starts = np.arange(first, first + num_pairs, BLOCK)
    return Blocks(starts, np.minimum(starts + BLOCK, first + num_pairs))


@dataclass(frozen=True)
class Mixture:
    """An epoch that goes through corpus c so many times, repeats[c], on average."""

    counts: tuple[int, ...]  # pairs of each corpus
    repeats: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """The part of an epoch that is each corpus, on average."""
        return [count * repeats / sum(self.counts) for count, repeats in zip(self.counts, self.repeats, strict=True)]

    def epoch(self, chance: np.random.Generator) -> Blocks:
        """The blocks of one epoch: each corpus as often as it goes whole, and a random part of it.

        The part is of whole blocks. One more is added as often as it takes to come out right over many epochs, which is
        how a corpus smaller than a block has its share; so the sizes of epochs differ by a block for each corpus.
        """
        starts: list[NDArray[np.int64]] = []
        ends: list[NDArray[np.int64]] = []
        first = 0
        for count, repeats in zip(self.counts, self.repeats, strict=True):
            blocks = blocks_of(count, first)
            times, rest = divmod(repeats, 1)
            wanted = rest * len(blocks)
            num_more = int(wanted) + int(chance.random() < wanted % 1)
            part = blocks.chosen(chance.permutation(len(blocks))[:num_more])
            starts += [np.tile(blocks.starts, int(times)), part.starts]
            ends += [np.tile(blocks.ends, int(times)), part.ends]
            first += count
        return Blocks(np.concatenate(starts), np.concatenate(ends))


def is_natural(weights: Sequence[float], temperature: float) -> bool:
    """Whether every pair comes once in an epoch, whatever the corpora hold."""
    return len(set(weights)) <= 1 and (temperature == 1 or len(weights) <= 1)


def mix(counts: Sequence[int], weights: Sequence[float], temperature: float) -> Mixture:
    """Corpus c has the share weight_c x count_c^(1 / temperature) of an epoch (Arivazhagan et al. 2019, section 4).

    An epoch is as many pairs as there are. The more the temperature, the more alike are the shares of equal weights.
    """
    assert len(counts) == len(weights)
    sizes = np.array(counts, dtype=np.float64)
    wanted = np.array(weights) / max(weights) * sizes ** (1 / temperature)
    shares = wanted / wanted.sum()
    # Rounded, so that what is 2 but for the last digit is 2.
    repeats = np.divide(shares * sizes.sum(), sizes, out=np.zeros_like(sizes), where=sizes > 0).round(9)
    return Mixture(tuple(counts), tuple(repeats.tolist()))


# Which pairs make a batch, in which order.

WINDOW = 2048  # blocks that are shuffled, sorted and cut together: about two million pairs


@dataclass(frozen=True)
class Plan:
    """Batch b holds the pairs order[ends[b - 1]:ends[b]]."""

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
    chance: np.random.Generator,
) -> Plan:
    """Cut all pairs into batches of like lengths, shuffled.

    A batch holds at most batch_tokens: pairs x longest side, in the tokens that the lengths count. No length may be
    more than that. Pairs of equal lengths stand in random order, and the first cut falls at a random place, so that
    batches differ from epoch to epoch.
    """
    longest = np.maximum(source_lengths, target_lengths)
    assert longest.max() <= batch_tokens, "longer pairs are left out when the data is binarized"
    shuffled = chance.permutation(len(longest))
    by_length = shuffled[np.lexsort((source_lengths[shuffled], longest[shuffled]))]
    ends = _cuts(longest[by_length], batch_tokens, chance)

    starts = np.concatenate([[0], ends[:-1]])
    turn = chance.permutation(len(ends))
    order = np.concatenate([by_length[starts[b] : ends[b]] for b in turn])
    return Plan(order, np.cumsum(ends[turn] - starts[turn]))


def _cuts(ascending: NDArray[np.integer], batch_tokens: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """Ends of batches over lengths in ascending order."""
    ends: list[int] = []
    start, num_pairs = 0, len(ascending)
    while start < num_pairs:
        count = min(batch_tokens // int(ascending[start]), num_pairs - start)
        while count * int(ascending[start + count - 1]) > batch_tokens:
            count = batch_tokens // int(ascending[start + count - 1])
        if not ends:
            count = int(chance.integers(1, count + 1))
        start += count
        ends.append(start)
    return np.array(ends, dtype=np.int64)


def _windows(blocks: Blocks, chance: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """All pairs of the blocks in windows of random ones."""
    order = chance.permutation(len(blocks))
    for first in range(0, len(order), WINDOW):
        window = blocks.chosen(order[first : first + WINDOW])
        pairs = window.starts[:, None] + np.arange((window.ends - window.starts).max())
        yield pairs[pairs < window.ends[:, None]]


@dataclass(frozen=True)
class Earlier:
    """A budget that batches had until so many pairs of the stream were consumed."""

    until: int
    batch_tokens: int


@dataclass(frozen=True)
class Budgets:
    """Most tokens of a batch, by the place in the stream: those of earlier times in their order, and the one of now."""

    earlier: tuple[Earlier, ...]
    batch_tokens: int

    def after(self, consumed: int) -> tuple[int, int | None]:
        """The budget after so many pairs, and where the next one takes its place; None if none does."""
        for budget in self.earlier:
            if consumed < budget.until:
                return budget.batch_tokens, budget.until
        return self.batch_tokens, None


def batches_from(
    consumed: int,
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    seed: int,
    mixture: Mixture | None = None,
    earlier: Sequence[Earlier] = (),
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The endless stream of batches after so many pairs: the epoch, from 0, and the pairs of the batch.

    Without a mixture each pair comes once an epoch. Where batch_tokens was another before, earlier tells so, and what
    was left of a window then is planned anew. consumed must be where a batch ended, else ValueError: the run was made
    with other data or settings.
    """
    budgets = Budgets(tuple(earlier), batch_tokens)
    epochs_done = 0 if mixture else consumed // len(source_lengths)
    begin = epochs_done * len(source_lengths)  # of the window, in pairs of the whole stream
    for epoch in itertools.count(epochs_done):
        epoch_chance = np.random.default_rng([seed, epoch])
        blocks = mixture.epoch(epoch_chance) if mixture else blocks_of(len(source_lengths))
        if begin + blocks.num_pairs <= consumed:
            begin += blocks.num_pairs
            continue
        for number, pairs in enumerate(_windows(blocks, epoch_chance)):
            if begin + len(pairs) > consumed:
                batches = _batches_of_window(
                    source_lengths, target_lengths, pairs, begin, budgets, [seed, epoch, number]
                )
                for batch in _after(consumed, begin, batches):
                    yield epoch, batch
            begin += len(pairs)


def _batches_of_window(
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    pairs: NDArray[np.int64],
    begin: int,
    budgets: Budgets,
    seeds: list[int],
) -> Iterator[NDArray[np.int64]]:
    """The batches of a window that begins after so many pairs of the stream, planned anew where the budget changed."""
    for times_changed in itertools.count():
        batch_tokens, until = budgets.after(begin)
        chance = np.random.default_rng([*seeds, times_changed] if times_changed else seeds)
        plan = plan_batches(source_lengths[pairs], target_lengths[pairs], batch_tokens, chance)
        if until is None or until >= begin + len(pairs):
            yield from (pairs[plan.batch(index)] for index in range(len(plan)))
            return
        num_batches = int(np.searchsorted(plan.ends, until - begin)) + 1
        yield from (pairs[plan.batch(index)] for index in range(num_batches))
        if plan.ends[num_batches - 1] != until - begin:
            raise ValueError(f"no batch ends after {until} pairs, where training.batch_tokens changed")
        pairs, begin = pairs[plan.order[until - begin :]], until


def _after(consumed: int, begin: int, batches: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The batches that come after so many pairs of the stream; the first of them all begins after begin."""
    for batch in batches:
        if begin >= consumed:
            yield batch
        elif begin + len(batch) > consumed:
            raise ValueError(f"no batch ends after {consumed} pairs")
        begin += len(batch)
