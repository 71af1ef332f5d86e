"""How much of an epoch each of several corpora has, which stand one after the other in the binarized data."""

from collections.abc import Sequence
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
