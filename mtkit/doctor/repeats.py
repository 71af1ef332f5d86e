"""Finds pairs that occur again, exactly or nearly, and held-out pairs in the training text.

The training text is not kept, only hashes of each pair, two of 8 bytes and NUM_BANDS of 4 bytes: 320 MB for ten
million pairs. Among ten million pairs, the probability that different pairs have an equal hash of 8 bytes is below
0.001 %. A pair is similar to earlier text if at least two of its hashes of 4 bytes have occurred before.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtkit.doctor.characters import NO_CONTENT, NUM_MINIMA, Block, Ids, bands, lowered, minima
from mtkit.doctor.pairs import WORD, Chosen, Sides
from mtkit.preparation.encoding import insert_sorted, unknown_among
from mtkit.text.parallel import Pair

# L pairs of a block, B bands of their signatures.

ROWS = 4  # entries of a signature in each band by which pairs of the training text are compared
LEAST_LENGTH = 30  # characters of each side, for the text to be compared by signatures
NUM_BANDS = NUM_MINIMA // ROWS
LEAST_FILTER = 16  # the smallest table of bits has 2 ** 16
SPARSE = 4  # bits for each hash, at least
LEAST_BANDS = 2  # that two similar pairs share; with one, every second pair of similarity 0.8 would be found, with two
# every eighth, but also more than half of those of similarity 0.9, which are the ones that are meant


class Seen:
    """A set of hashes, in sorted arrays.

    Most hashes that are looked for are new, and a search in arrays of many megabytes is slow. So a table of bits comes
    first: the possible hashes are divided into equal ranges, at least SPARSE times as many as there are hashes in the
    set, and each range has a bit. If it is not set, the set has no hash in that range, and nothing is searched (a Bloom
    filter with one function; Bloom, 1970).
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[Any]] = []
        self._count = 0
        self._bits = np.zeros(1 << LEAST_FILTER - 3, dtype=np.uint8)

    def add(self, keys: NDArray[Any]) -> Chosen:
        """Add hashes; returns for each whether it was there before, or earlier among `keys`."""
        is_old = np.zeros(len(keys), dtype=np.bool_)
        bytes_, bits = self._places(keys)
        maybe = np.flatnonzero(self._bits.take(bytes_) & bits)
        is_old[maybe] = ~unknown_among(keys[maybe], self._levels)
        new = np.flatnonzero(~is_old)
        distinct = np.sort(keys[new])
        is_repeated = distinct[1:] == distinct[:-1]
        if is_repeated.any():
            distinct, first = np.unique(keys[new], return_index=True)
            is_old[new] = True
            is_old[new[first]] = False
        insert_sorted(distinct, self._levels)
        self._count += len(distinct)
        if self._count * SPARSE > 8 * len(self._bits):
            self._bits = np.zeros(4 * len(self._bits), dtype=np.uint8)
            for level in self._levels:
                self._mark(level)
        else:
            self._mark(distinct)
        return is_old

    def _mark(self, keys: NDArray[Any]) -> None:
        np.bitwise_or.at(self._bits, *self._places(keys))

    def _places(self, keys: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """The byte of each hash in the table of bits, and the bit there."""
        unused = 8 * keys.itemsize - (len(self._bits).bit_length() - 1) - 3  # bits of a hash
        ranges = (keys >> keys.dtype.type(unused)).astype(np.intp)
        return ranges >> 3, np.left_shift(1, ranges & 7).astype(np.uint8)


def _joined(source: Ids, target: Ids) -> Ids:
    """A hash of each pair, from those of its sides."""
    return source * np.uint64(0x9E3779B97F4A7C15) + (target ^ (target >> np.uint64(32)))


def _content(sides: Sequence[Block]) -> tuple[Ids, Chosen]:
    """A hash of the letters, numbers and symbols of each pair, (L), and whether it has any."""
    source, target = sides[0].content_keys, sides[1].content_keys
    return _joined(source, target), (source != NO_CONTENT) | (target != NO_CONTENT)


class Repeats:
    """Finds pairs that have occurred before."""

    def __init__(self) -> None:
        self._exact = Seen()
        self._content = Seen()
        self._bands = [Seen() for _ in range(NUM_BANDS)]

    def find(
        self, sides: Sides, signatures: Sequence[NDArray[np.uint32]], is_judged: Chosen
    ) -> tuple[Chosen, Chosen, Chosen]:
        """Which pairs of a block have occurred before: exactly, nearly, or in a similar form; adds them all.

        A pair nearly repeats another one if both sides are the same but for case, punctuation and spaces. Pairs are
        similar if they are long and share most sequences of four characters on both sides. Only pairs with `is_judged`
        are compared and added.
        """
        exact = np.zeros(len(is_judged), dtype=np.bool_)
        near = exact.copy()
        places = np.flatnonzero(is_judged)
        exact[places] = self._exact.add(_joined(sides.raw[0].keys(), sides.raw[1].keys())[places])
        content, has_content = _content(sides.lower)
        places = np.flatnonzero(is_judged & has_content)
        near[places] = self._content.add(content[places])
        lengths = np.minimum(sides.lower[0].lengths, sides.lower[1].lengths)
        places = np.flatnonzero(is_judged & (lengths >= LEAST_LENGTH))
        keys = _joined(bands(signatures[0], ROWS), bands(signatures[1], ROWS)) >> np.uint64(32)  # (L, B)
        shared = np.zeros(len(is_judged), dtype=np.int64)
        for number, seen in enumerate(self._bands):
            shared[places] += seen.add(keys[places, number].astype(np.uint32))
        return exact, near & ~exact, (shared >= LEAST_BANDS) & ~near & ~exact


# Held-out pairs.

HELD_OUT_ROWS = 3
EDITS = 0.1  # edited letters and digits for each one of a side, at most, for a pair to be nearly the same


class HeldOutPair(NamedTuple):
    """A validation or test pair; with several references, one of them."""

    name: str  # of its set
    number: int  # of its line
    source: str
    target: str


class HeldOut:
    """Finds validation and test pairs in training text, also with small edits."""

    def __init__(self, pairs: Iterable[HeldOutPair]) -> None:
        self._pairs = [pair for pair in pairs if pair.source.strip() and pair.target.strip()]
        self._words: list[Pair] = []  # in lower case, without punctuation
        self._exact: dict[int, list[int]] = {}
        self._bands: dict[int, list[int]] = {}
        self.found: set[tuple[str, int]] = set()  # set and line of those found in the training text
        self.nearly_found: set[tuple[str, int]] = set()
        if self._pairs:
            self._index()
        self._exact_keys = np.array(sorted(self._exact), dtype=np.uint64)
        self._band_keys = np.array(sorted(self._bands), dtype=np.uint64)

    @property
    def num_pairs(self) -> int:
        """The number of held-out lines."""
        return len({(pair.name, pair.number) for pair in self._pairs})

    def _index(self) -> None:
        sources, targets = lowered([p.source for p in self._pairs]), lowered([p.target for p in self._pairs])
        self._words = [
            (_words_alone(source), _words_alone(target)) for source, target in zip(sources, targets, strict=True)
        ]
        blocks = Block(sources), Block(targets)
        content, has_content = _content(blocks)
        for place in np.flatnonzero(has_content).tolist():
            self._exact.setdefault(int(content[place]), []).append(place)
        for side, block in enumerate(blocks):
            for place, keys in enumerate((bands(minima(block), HELD_OUT_ROWS) + np.uint64(side)).tolist()):
                for key in keys:
                    self._bands.setdefault(key, []).append(place)

    def find(self, sides: Sides, signatures: Sequence[NDArray[np.uint32]], is_judged: Chosen) -> tuple[Chosen, Chosen]:
        """Which pairs of a block match held-out pairs, and which do with small edits; (L).

        The former differ from a held-out pair at most in case, punctuation and spaces. Only pairs with `is_judged`
        are compared. Adds the held-out pairs that are found, as (set, line), to `found` and `nearly_found`.
        """
        exact = np.zeros(len(is_judged), dtype=np.bool_)
        near = exact.copy()
        if not self._pairs:
            return exact, near
        keys, _ = _content(sides.lower)
        for place in np.flatnonzero(is_judged & _among(keys, self._exact_keys)).tolist():
            exact[place] = True
            self.found.update(self._pairs[one][:2] for one in self._exact[int(keys[place])])
        both = np.concatenate(
            [bands(signature, HELD_OUT_ROWS) + np.uint64(side) for side, signature in enumerate(signatures)], axis=1
        )
        hits = _among(both, self._band_keys) & (is_judged & ~exact)[:, None]
        for place in np.flatnonzero(hits.any(axis=1)).tolist():
            candidates = {one for key in both[place][hits[place]].tolist() for one in self._bands[key]}
            pair = _words_alone(sides.texts[0][place].lower()), _words_alone(sides.texts[1][place].lower())
            for one in candidates:
                other = self._words[one]
                if all(map(_is_close, pair, other)) and not _are_exchanged(pair, other):
                    near[place] = True
                    self.nearly_found.add(self._pairs[one][:2])
        return exact, near


def _among(keys: Ids, known: Ids) -> Chosen:
    """For each hash, whether it is in the sorted array `known`."""
    if not len(known):
        return np.zeros(keys.shape, dtype=np.bool_)
    found: Chosen = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found


def _words_alone(text: str) -> str:
    """The words of a text with a space between one and the next."""
    return " ".join(WORD.findall(text))


def _are_exchanged(pair: Pair, other: Pair) -> bool:
    """Whether two pairs each have a word, on both of their sides, that the other pair lacks.

    A word that the other pair has less often counts, too. Such words are numbers, names and code. With others in
    their place, a sentence of the same form says something else: "Python 3.3" is no edit of "Python 3.4", nor one
    list entry an edit of the next.
    """
    words, others = ([Counter(text.split()) for text in both] for both in (pair, other))
    alone = (words[0] & words[1]) - (others[0] | others[1]), (others[0] & others[1]) - (words[0] | words[1])
    return all(alone)


def _is_close(text: str, other: str) -> bool:
    """Whether the edit distance of two texts is at most EDITS times the longer length.

    The distance counts edits of characters (Levenshtein, 1966).
    """
    limit = int(EDITS * max(len(text), len(other)))
    return text == other or (abs(len(text) - len(other)) <= limit and _edits(text, other, limit) <= limit)


def _edits(text: str, other: str, limit: int) -> int:
    """The number of insertions, deletions and changes that make one text from the other; `limit` + 1 if it is more.

    Only a diagonal of width 2 x `limit` + 1 of the table is filled in.
    """
    start = 0
    while start < min(len(text), len(other)) and text[start] == other[start]:
        start += 1
    text, other = text[start:], other[start:]
    row = list(range(len(other) + 1))
    for i, character in enumerate(text, start=1):
        first, last = max(1, i - limit), min(len(other), i + limit)
        new = [limit + 1] * (len(other) + 1)
        if first == 1:
            new[0] = i
        for j in range(first, last + 1):
            new[j] = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (character != other[j - 1]))
        row = new
        if min(row) > limit:
            return limit + 1
    return row[-1]
