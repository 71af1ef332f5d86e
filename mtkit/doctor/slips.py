"""Finds the line from which two sides slip out of alignment, and by how many lines.

Each word gets a random vector. The vector of a target line is the mean of its words'; that of a source word is the mean
of the target lines beside which it stands in a sample (random indexing; Kanerva et al., 2000), and that of a source
line the mean of its words'. The cosine of a source line and a target line then tells whether they belong together. A
slip is a place from which another target line fits better, on and on (the CUSUM test; Page, 1954).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mtkit.doctor.characters import Block

# L lines of a block, W words of a block, B buckets of hashed words, D width of the vectors, F folds, S shifts.

WIDTH = 128
BUCKETS = 1 << 14
# A line is compared by vectors learnt from the other folds: else a pair would support itself, whatever it is.
FOLDS = 4
MOST_WORDS = 500  # of a line that count
SHRINKAGE = 3.0  # lines without content that each source word is averaged with, so that rare words weigh less

MOST_SHIFT = 8  # lines
LEAST_LINES = 400  # of a sample, to learn from
LEAST_GAIN = 0.06  # of aligned pairs over others, in cosine, for the vectors to be of use
# A slip is reported when lines have favoured it by the gain of so many aligned pairs. The larger number is for text
# that fits nowhere: its lines favour no other one, so the evidence is weaker.
EVIDENCE, EVIDENCE_LOST = 14.0, 25.0
LOST_GAIN = 0.3  # share of the usual gain; lines that fit by less are taken for lost

Vectors = NDArray[np.float32]

# By how many lines a whole text may be shifted for it to be noticed; and when a text is no translation at all.
START_SHIFTS = (1, -1, 2, -2, 3, -3)
UNRELATED_LINES, UNRELATED_GAIN = 2000, 0.01


@dataclass(frozen=True)
class Slip:
    """A place in the text from which source line n belongs to target line n + shift.

    `line` is the first such line, counted from 1. If `shift` is `None`, line n belongs to no target line within
    MOST_SHIFT lines.
    """

    line: int
    shift: int | None


class Associations:
    """Vectors of words, learnt from pairs of which most are aligned."""

    def __init__(self, source: Block, target: Block, numbers: NDArray[np.int64]) -> None:
        """Learn from the lines of a sample; `numbers` are their places in the whole text, from 0."""
        random = np.random.default_rng(1).integers(0, 2, (BUCKETS, WIDTH), dtype=np.int8).astype(np.float32) * 2 - 1
        self._random = random * _weights(target)[:, None]  # (B, D)
        self._mean = np.zeros(WIDTH, dtype=np.float32)
        targets = self._target_vectors(target, center=False)
        self._mean = targets.mean(axis=0)
        targets = _unit(targets - self._mean)
        sums = np.zeros((FOLDS, BUCKETS, WIDTH), dtype=np.float32)
        counts = np.zeros((FOLDS, BUCKETS), dtype=np.float32)
        words, starts = _words(source)
        for number, line in zip(numbers.tolist(), range(len(starts) - 1), strict=True):
            of_line = words[starts[line] : starts[line + 1]]
            sums[number % FOLDS, of_line] += targets[line]
            counts[number % FOLDS, of_line] += 1
        sums = sums.sum(axis=0) - sums
        counts = counts.sum(axis=0) - counts
        sums *= (_weights(source) / (counts + SHRINKAGE))[:, :, None]
        self._learnt = sums.reshape(FOLDS * BUCKETS, WIDTH)
        self.gain = self._learn_gain(source, target, numbers)

    def _learn_gain(self, source: Block, target: Block, numbers: NDArray[np.int64]) -> float:
        """By how much the cosine of aligned pairs exceeds that of others, on average."""
        sources, targets = self.vectors(source, target, numbers)
        shifted = [np.roll(targets, shift, axis=0) for shift in (MOST_SHIFT + 3, -MOST_SHIFT - 5)]
        return float((sources * targets).sum(1).mean() - np.mean([(sources * each).sum(1).mean() for each in shifted]))

    def vectors(self, source: Block, target: Block, numbers: NDArray[np.int64]) -> tuple[Vectors, Vectors]:
        """Unit vectors of the source lines and of the target lines, (L, D), whose places in the text are `numbers`."""
        words, starts = _words(source)
        words = words + np.repeat(numbers % FOLDS * BUCKETS, np.diff(starts))
        return _unit(_sums(self._learnt, words, starts)), self._target_vectors(target, center=True)

    def _target_vectors(self, target: Block, center: bool) -> Vectors:
        vectors = _unit(_sums(self._random, *_words(target)))
        return _unit(vectors - self._mean) if center else vectors


def associate(
    sources: Sequence[str], targets: Sequence[str], numbers: Sequence[int]
) -> "tuple[Associations | None, bool]":
    """Learns the vectors from a sample of lower-cased pairs; also returns whether the sides are unrelated.

    If the pairs do not seem to be aligned, the sides are tried with a shift, in case the whole text is shifted. `None`
    is returned in place of vectors that are of no use.
    """
    if len(sources) < LEAST_LINES:
        return None, False
    places = np.array(numbers, dtype=np.int64)
    best = Associations(Block(sources), Block(targets), places)
    if best.gain >= LEAST_GAIN:
        return best, False
    for shift in START_SHIFTS:
        after, before = max(shift, 0), max(-shift, 0)
        size = len(sources) - abs(shift)
        shifted = Associations(
            Block(sources[before : before + size]), Block(targets[after : after + size]), places[before : before + size]
        )
        best = max(best, shifted, key=lambda each: each.gain)
    is_unrelated = best.gain < UNRELATED_GAIN and len(sources) >= UNRELATED_LINES
    return (best if best.gain >= LEAST_GAIN else None), is_unrelated


def _words(block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns a number below 16,384 for each word, (W), and the place of the first word of each line, (L + 1).

    The number is the first bits of the hash of the word, so that equal words have equal numbers. Of a very long line,
    only the first MOST_WORDS words count.
    """
    hashes, starts = block.words()
    sizes = np.diff(starts)
    if sizes.max(initial=0) > MOST_WORDS:
        hashes = hashes[np.arange(len(hashes)) - np.repeat(starts[:-1], sizes) < MOST_WORDS]
        starts = np.concatenate([[0], np.cumsum(np.minimum(sizes, MOST_WORDS))])
    return (hashes >> np.uint64(50)).astype(np.int64), starts


def _weights(block: Block) -> NDArray[np.float32]:
    """The inverse document frequency of each word, (B); 0 for words that do not occur."""
    words, starts = _words(block)
    lines = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    number = np.bincount(np.unique(np.stack([words, lines]), axis=1)[0], minlength=BUCKETS)
    idf = np.log((len(block.starts) + 1) / np.maximum(number, 1))
    return np.where(number > 0, idf, 0).astype(np.float32)


CHUNK = 500  # lines, whose vectors fit into the cache of a processor


def _sums(table: Vectors, words: NDArray[np.int64], starts: NDArray[np.int64]) -> Vectors:
    """The sum of the vectors of the words of each line, (L, D).

    The lines are taken in the order of their lengths, a chunk at a time, so that their n-th words are added in one go.
    """
    lengths = np.diff(starts)
    order = np.argsort(-lengths, kind="stable")
    first, shortest_last = starts[:-1][order], -lengths[order]
    sums = np.empty((len(lengths), table.shape[1]), dtype=np.float32)
    taken = np.empty((CHUNK, table.shape[1]), dtype=np.float32)
    for begin in range(0, len(lengths), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        ordered = np.zeros((len(lengths[chunk]), table.shape[1]), dtype=np.float32)
        for place in range(-int(shortest_last[begin])):
            number = int(shortest_last[chunk].searchsorted(-place))  # of the lines that have more words than `place`
            places = words[first[begin : begin + number] + place]
            # Without "clip", take would fill a copy of `taken` first; all places are within the table.
            ordered[:number] += table.take(places, axis=0, out=taken[:number], mode="clip")
        sums[order[chunk]] = ordered
    return sums


def _unit(vectors: Vectors) -> Vectors:
    norms = np.sqrt(np.einsum("ld,ld->l", vectors, vectors))
    units: Vectors = vectors / np.maximum(norms, 1e-6)[:, None]
    return units


class SlipSearch:
    """Reads blocks of pairs in order, and reports the places where the alignment changes."""

    def __init__(self, associations: Associations) -> None:
        self._associations = associations
        self._sources = np.zeros((0, WIDTH), dtype=np.float32)
        self._targets = np.zeros((0, WIDTH), dtype=np.float32)
        self._first = 0  # number of the first line that is held, from 0
        self._next = 0  # the first line that has not been judged yet
        self._shifts: list[int] = list(range(-MOST_SHIFT, MOST_SHIFT + 1))
        self._current: int | None = 0
        self._sums = np.zeros(len(self._shifts) + 1)  # evidence for each other alignment; the last is for none
        self._since = np.zeros(len(self._shifts) + 1, dtype=np.int64)
        self.slips: list[Slip] = []

    def add(self, source: Block, target: Block) -> None:
        """Judge the next lines; the last MOST_SHIFT of them wait for those that follow."""
        end = self._first + len(self._sources)
        sources, targets = self._associations.vectors(source, target, np.arange(end, end + len(source.starts)))
        self._sources = np.concatenate([self._sources, sources])
        self._targets = np.concatenate([self._targets, targets])
        self._judge(end + len(sources) - MOST_SHIFT)
        kept = max(self._next - self._first - MOST_SHIFT, 0)
        self._sources, self._targets = self._sources[kept:], self._targets[kept:]
        self._first += kept

    def _judge(self, end: int) -> None:
        """Judge the lines up to `end`, not included."""
        while self._next < end:
            gains = self._gains(self._next, end)  # (L, S + 1)
            totals = np.cumsum(gains, axis=0) + self._sums
            lowest = np.minimum(np.minimum.accumulate(totals, axis=0), 0)
            evidence = totals - lowest
            limits = np.full(gains.shape[1], EVIDENCE * self._associations.gain)
            limits[-1] = EVIDENCE_LOST * LOST_GAIN * self._associations.gain
            reached = (evidence > limits).any(axis=1)
            at = int(np.argmax(reached)) if reached.any() else None
            stop = len(gains) if at is None else at + 1
            begins = self._begins(totals[:stop], lowest[:stop])
            if at is None:
                self._sums, self._since = evidence[-1], begins
                self._next = end
                return
            best = int(np.argmax(evidence[at] / limits))
            self._current = None if best == len(self._shifts) else self._shifts[best]
            self._next = int(begins[best])
            self.slips.append(Slip(self._next + 1, self._current))
            self._next = max(self._next, self._first)
            self._sums = np.zeros_like(self._sums)
            self._since = np.full_like(self._since, self._next)

    def _begins(self, totals: NDArray[np.float64], lowest: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each alignment, the line from which evidence for it has been growing, (S + 1).

        `totals` are the sums of the gains up to each of the judged lines, and `lowest` the lowest of these sums so
        far, at most 0; (L, S + 1) each. Lines are counted from 0.
        """
        is_low = totals <= lowest
        place = len(totals) - np.argmax(is_low[::-1], axis=0)  # after the last line at which there was none
        return np.where(is_low.any(axis=0), self._next + place, self._since)

    def _gains(self, begin: int, end: int) -> NDArray[np.float64]:
        """By how much each shift fits better than the current one, in cosine, (L, S + 1).

        The lines are those from `begin` up to `end`, which is not included. The columns are the shifts from -MOST_SHIFT
        to MOST_SHIFT; the last one is for source lines that belong to no target line.
        """
        first = begin - self._first
        fits = _banded(self._sources[first : first + end - begin], self._targets, first)
        is_other = np.array([shift != self._current for shift in self._shifts])
        usual = np.median(fits[:, is_other], axis=1)
        lost = usual + LOST_GAIN * self._associations.gain
        current = lost if self._current is None else fits[:, self._shifts.index(self._current)]
        gains: NDArray[np.float64] = np.concatenate([fits, lost[:, None]], axis=1) - current[:, None]
        return gains


STRIP = 32  # lines whose cosines with all that are near are computed together


def _banded(sources: Vectors, targets: Vectors, first: int) -> NDArray[np.float32]:
    """The cosines of each source with the targets near it, (L, S).

    For source n, these are the targets from first + n - MOST_SHIFT to first + n + MOST_SHIFT. The cosine with a
    target before the first or after the last one is 0. Each strip of lines is multiplied with all targets near it,
    and the diagonals of the products are kept.
    """
    count = -(-len(sources) // STRIP)
    strips = np.zeros((count * STRIP, WIDTH), dtype=np.float32)
    strips[: len(sources)] = sources
    near = np.zeros((count * STRIP + 2 * MOST_SHIFT, WIDTH), dtype=np.float32)
    low, high = max(first - MOST_SHIFT, 0), min(first + len(sources) + MOST_SHIFT, len(targets))
    near[low - first + MOST_SHIFT : high - first + MOST_SHIFT] = targets[low:high]
    windows = sliding_window_view(near, STRIP + 2 * MOST_SHIFT, axis=0)[::STRIP]  # (count, D, STRIP + 2 MOST_SHIFT)
    products = strips.reshape(count, STRIP, WIDTH) @ windows
    places = np.arange(STRIP)[:, None] + np.arange(2 * MOST_SHIFT + 1)  # (STRIP, S)
    diagonals = np.take_along_axis(products, places[None], axis=2)
    return diagonals.reshape(count * STRIP, -1)[: len(sources)]
