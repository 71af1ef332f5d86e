"""Which pairs make a batch, in which order.

A plan is a pure function of the lengths, the budget, the seed and the epoch, and the place in it is the number of pairs
consumed: so a run resumes by skipping, and nothing else has to be remembered.
"""

import itertools
from collections.abc import Iterator
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


def batches_from(
    consumed: int,
    source_lengths: NDArray[np.integer],
    target_lengths: NDArray[np.integer],
    batch_tokens: int,
    seed: int,
    mixture: Mixture | None = None,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The endless stream of batches after so many pairs: the epoch, from 0, and the pairs of the batch.

    Without a mixture each pair comes once an epoch. consumed must be where a batch ended, else ValueError: the run was
    made with other data or settings.
    """
    epochs_done, skip = (0, consumed) if mixture else divmod(consumed, len(source_lengths))
    for epoch in itertools.count(epochs_done):
        epoch_chance = np.random.default_rng([seed, epoch])
        blocks = mixture.epoch(epoch_chance) if mixture else blocks_of(len(source_lengths))
        if skip >= blocks.num_pairs:
            skip -= blocks.num_pairs
            continue
        for number, pairs in enumerate(_windows(blocks, epoch_chance)):
            if skip >= len(pairs):
                skip -= len(pairs)
                continue
            chance = np.random.default_rng([seed, epoch, number])
            plan = plan_batches(source_lengths[pairs], target_lengths[pairs], batch_tokens, chance)
            first = int(np.searchsorted(plan.ends, skip, side="right"))
            if skip and plan.ends[first - 1] != skip:
                raise ValueError(f"no batch ends after {consumed} pairs")
            skip = 0
            for index in range(first, len(plan)):
                yield epoch, pairs[plan.batch(index)]
