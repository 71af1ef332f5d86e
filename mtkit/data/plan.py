"""Which pairs make a batch, in which order.

A plan is a pure function of the lengths, the budget, the seed and the epoch, and the place in it is the number of pairs
consumed: so a run resumes by skipping, and nothing else has to be remembered.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtkit.data.mixing import Blocks, Mixture, blocks_of

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
