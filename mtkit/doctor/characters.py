"""Many lines of text as one array of characters: their classes and scripts, words, hashes, and letter statistics.

Everything here works on a block of some thousand lines at once, in NumPy, since the doctor reads millions of lines.
"""

# L lines of a block, C characters of a block, W words of a block, G buckets of hashed character sequences.

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.uint16]
Ids = NDArray[np.uint64]

# Classes of characters, as bits. LEAD and TAIL are the characters as which bytes of UTF-8 appear when read as
# Windows-1252 or Latin-1; DOT is the marks of addresses (. / @); UNSTABLE what Unicode normalisation may change.
LETTER, MARK, DIGIT, SPACE, ODD_SPACE, CONTROL, PRIVATE, REPLACED, OTHER, END, ALONE = (1 << bit for bit in range(11))
LEAD, TAIL, ANGLE, DOT, UNSTABLE = (1 << bit for bit in range(11, 16))

# Characters without a visible form that text does not need: controls, the zero-width space and no-break space, the soft
# hyphen, separators of lines. Joiners and marks of direction are not among them: Persian, Hindi and Hebrew need them.
INVISIBLE = frozenset("\u00ad\u180e\u200b\u2028\u2029\u2060\ufeff\ufff9\ufffa\ufffb")
# Spaces that are correct typography: the no-break spaces, and the space of Chinese and Japanese.
PLAIN_SPACES = frozenset(" \u00a0\u202f\u3000")
# In scripts without spaces between words, each character counts as a word of its own.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# Words of character names that come before the name of the script.
WIDTHS = {"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE", "MICRO", "SUPERSCRIPT"}


class Alphabet:
    """The class and the script of every character met so far; characters are looked up when they are first met."""

    def __init__(self) -> None:
        self.classes: Flags = np.zeros(0x110000, dtype=np.uint16)
        self.scripts = np.zeros(0x110000, dtype=np.uint8)  # places in `names`; 0: no letter, or of no one script
        self.names = [""]

    def learn(self, codes: NDArray[np.uint32]) -> None:
        """Look up the characters of `codes` that are new."""
        new = codes[self.classes[codes] == 0]
        for code in np.unique(new).tolist():
            self.classes[code], script = _described(chr(code))
            if script and script not in self.names:
                self.names.append(script)
            self.scripts[code] = self.names.index(script) if len(self.names) < 256 else 0

    def is_of(self, scripts: Sequence[str]) -> NDArray[np.bool_]:
        """For each script number: whether it is one of `scripts`, or stands for characters of no one script."""
        known = np.zeros(256, dtype=np.bool_)
        known[0] = True
        for place, name in enumerate(self.names):
            known[place] |= name in scripts
        return known


ALPHABET = Alphabet()


def class_of(character: str) -> int:
    """The class bits of a character."""
    if not ALPHABET.classes[ord(character)]:
        ALPHABET.learn(np.array([ord(character)], dtype=np.uint32))
    return int(ALPHABET.classes[ord(character)])


def _described(character: str) -> tuple[int, str]:
    """The class bits of a character, and its script by its Unicode name; the script is "" if it is not a letter."""
    kind, script = _kind(character)
    byte = byte_of(character)
    if byte is not None:
        kind |= (LEAD if 0xC2 <= byte <= 0xF4 else 0) | (TAIL if 0x80 <= byte <= 0xBF else 0)
    is_stable = unicodedata.is_normalized("NFC", character) and not unicodedata.combining(character)
    if not is_stable or kind & MARK or "\u1160" <= character <= "\u11ff":  # vowels and finals of Hangul
        kind |= UNSTABLE
    return kind | (ANGLE if character in "<&" else 0) | (DOT if character in "./@" else 0), script


def byte_of(character: str) -> int | None:
    """The byte that stands for a character in Windows-1252, with the gaps of that encoding filled as in Latin-1."""
    try:
        return character.encode("cp1252")[0]
    except UnicodeEncodeError:
        return ord(character) if ord(character) < 256 else None


def _kind(character: str) -> tuple[int, str]:
    if character == "\n":
        return END, ""
    category = unicodedata.category(character)
    if character in INVISIBLE or (category == "Cc" and character != "\t"):
        return CONTROL, ""
    if category == "Zs" or character == "\t":
        return SPACE if character in PLAIN_SPACES else SPACE | ODD_SPACE, ""
    if character == "\ufffd":
        return REPLACED, ""
    if category == "Co":
        return PRIVATE, ""
    kind = {"L": LETTER, "M": MARK, "N": DIGIT if category == "Nd" else OTHER}.get(category[0], OTHER)
    words = [word for word in unicodedata.name(character, "").replace("-", " ").split() if word not in WIDTHS]
    script = words[0] if category[0] == "L" and words else ""
    return kind | (ALONE if script in UNSPACED else 0), script


class Block:
    """Lines as one array of characters, each line ended by a line feed."""

    def __init__(self, lines: Sequence[str]) -> None:
        text = "".join([f"{line}\n" for line in lines])
        self.codes: NDArray[np.uint32] = np.frombuffer(
            text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32
        )  # (C)
        ends = np.flatnonzero(self.codes == 10)
        assert len(ends) == len(lines), "a line contains a line feed"
        self.starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends  # (L)
        self.lengths = ends - self.starts
        ALPHABET.learn(self.codes)
        self.classes = ALPHABET.classes[self.codes]  # (C)

    def flags(self) -> Flags:
        """The class bits that occur in each line, (L)."""
        return np.bitwise_or.reduceat(self.classes, self.starts)

    def count(self, bits: int) -> NDArray[np.int64]:
        """The number of characters of each line that have one of the class bits, (L)."""
        return self._sums((self.classes & bits) != 0)

    def count_foreign(self, scripts: Sequence[str]) -> NDArray[np.int64]:
        """The number of letters of each line that are of other scripts than `scripts`, (L)."""
        known = ALPHABET.is_of(scripts)
        return self._sums(~known[ALPHABET.scripts[self.codes]])

    def scripts(self) -> Counter[str]:
        """How many letters of each script the block has; letters of no one script are not counted."""
        counts = np.bincount(ALPHABET.scripts[self.codes], minlength=1)
        return Counter({ALPHABET.names[place]: int(counts[place]) for place in np.flatnonzero(counts) if place})

    def keys(self) -> Ids:
        """A hash of each line, (L), of all characters."""
        return self._hashes(np.ones(len(self.codes), dtype=np.bool_))

    def with_next(self, first: int, then: int) -> NDArray[np.int64]:
        """The places of the lines in which a character of the classes `first` stands before one of `then`."""
        found = np.flatnonzero(((self.classes[:-1] & first) != 0) & ((self.classes[1:] & then) != 0))
        return np.unique(np.searchsorted(self.starts, found, side="right") - 1)

    @cached_property
    def letter_keys(self) -> Ids:
        """A hash of each line, (L), of its letters, marks and digits alone; equal for texts that differ in the rest."""
        return self._hashes((self.classes & (LETTER | MARK | DIGIT)) != 0)

    def _sums(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.add.reduceat(chosen, self.starts, dtype=np.int64)

    def _hashes(self, chosen: NDArray[np.bool_]) -> Ids:
        number: NDArray[np.int64] = np.cumsum(chosen) - chosen  # of the chosen characters before each one
        place: NDArray[np.int64] = number - np.repeat(number[self.starts], self.lengths + 1)
        terms = np.where(
            chosen, _mixed(self.codes.astype(np.uint64)) * _powers(int(place.max(initial=0)) + 1)[place], 0
        )
        return _mixed(np.add.reduceat(terms, self.starts, dtype=np.uint64))

    def words(self) -> tuple[Ids, NDArray[np.int64]]:
        """A hash of each word (W), and the line in which it stands (W).

        A word is a run of letters, marks and digits; every other visible character is a word, and so is every
        character of scripts that put no spaces between words.
        """
        part = (self.classes & (LETTER | MARK | DIGIT)) != 0
        alone = (self.classes & ALONE) != 0
        visible = (self.classes & (SPACE | CONTROL | END)) == 0
        joined = part & ~alone
        begins = visible.copy()
        begins[1:] &= ~(joined[1:] & joined[:-1])
        first = np.flatnonzero(begins)
        if not len(first):
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        word = np.cumsum(begins) - 1
        place = np.arange(len(self.codes)) - first[np.maximum(word, 0)]
        kept = visible & (word >= 0)
        place = np.where(kept, place, 0)
        terms = np.where(kept, _mixed(self.codes.astype(np.uint64)) * _powers(int(place.max()) + 1)[place], 0)
        hashes = _mixed(np.add.reduceat(terms.astype(np.uint64), first, dtype=np.uint64))
        return hashes, np.searchsorted(self.starts, first, side="right") - 1

    def grams(self, size: int) -> tuple[Ids, NDArray[np.bool_]]:
        """A hash of the `size` characters from each place on (C), and whether these lie within one line (C).

        The line feed at the end of a line may be the last of them.
        """
        codes = _mixed(np.concatenate([self.codes, np.full(size, 10, dtype=np.uint32)]).astype(np.uint64))
        total = np.zeros(len(self.codes), dtype=np.uint64)
        is_whole = np.ones(len(self.codes), dtype=np.bool_)
        ends = np.concatenate([self.classes == END, np.ones(size, dtype=np.bool_)])
        for offset in range(size):
            total = total * _FACTOR + codes[offset : offset + len(total)]
            if offset < size - 1:
                is_whole &= ~ends[offset : offset + len(total)]
        return _mixed(total), is_whole


# Hashes: characters are mixed (the finalizer of SplitMix64), multiplied by a power of an odd number that depends on
# their place, and summed.

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Ids) -> Ids:
    values = values * np.uint64(0xBF58476D1CE4E5B9) + _FACTOR
    values ^= values >> np.uint64(31)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(29)
    return values


_known_powers: Ids = np.ones(1, dtype=np.uint64)


def _powers(count: int) -> Ids:
    """The first `count` powers of the factor; kept, since long lines are rare."""
    global _known_powers
    if len(_known_powers) < count:
        size = 1 << count.bit_length()
        _known_powers = np.concatenate(
            [np.ones(1, dtype=np.uint64), np.cumprod(np.full(size - 1, _FACTOR, dtype=np.uint64), dtype=np.uint64)]
        )
    return _known_powers


# Signatures, by which lines that are nearly equal are found (MinHash; Broder, 1997).

NUM_MINIMA = 16
SHINGLE = 4  # characters
LEAST_SHINGLES = 20  # in shorter lines, one changed word changes nearly all

_MULTIPLIERS = np.random.default_rng(1).integers(1, 2**32, NUM_MINIMA, dtype=np.uint64).astype(np.uint32) | np.uint32(1)


def minima(block: Block) -> NDArray[np.uint32]:
    """The signature of each line, (L, NUM_MINIMA).

    The share of equal entries in two signatures estimates the Jaccard similarity of the lines' SHINGLE-grams, in which
    all that is not a letter, mark or digit counts as a space, the end of the line, too.
    """
    grams, is_whole = _only(block, LETTER | MARK | DIGIT).grams(SHINGLE)
    base = (grams >> np.uint64(32)).astype(np.uint32)
    outside = np.where(is_whole, np.uint32(0), np.uint32(0xFFFFFFFF))
    found = np.empty((len(block.starts), NUM_MINIMA), dtype=np.uint32)
    for number, multiplier in enumerate(_MULTIPLIERS):
        value = base * multiplier
        value ^= value >> np.uint32(15)
        value |= outside
        found[:, number] = np.minimum.reduceat(value, block.starts)
    return found


def bands(signatures: NDArray[np.uint32], rows: int) -> Ids:
    """Hashes of groups of `rows` entries of the signatures, (L, NUM_MINIMA // rows)."""
    count = NUM_MINIMA // rows
    total = np.zeros((len(signatures), count), dtype=np.uint64)
    for row in range(rows):
        total = _mixed(total + signatures[:, row : row + rows * (count - 1) + 1 : rows].astype(np.uint64))
    total += np.arange(count, dtype=np.uint64)
    return total


# Letter statistics: which of several kinds of text a line belongs to, by its sequences of three letters.

LETTERS = 3
BUCKETS = 1 << 16


@dataclass
class LetterModel:
    """Counts of hashed sequences of three letters, and the log-probabilities that they give."""

    counts: NDArray[np.float32] = field(default_factory=lambda: np.zeros(BUCKETS, dtype=np.float32))  # (G)

    def add(self, letters: "Letters", weights: NDArray[np.float32]) -> None:
        """Count the lines of a text; `weights` has a weight for each line."""
        self.counts += np.bincount(letters.buckets, weights[letters.lines], BUCKETS).astype(np.float32)

    def scores(self, letters: "Letters", is_counted: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The log-probability of each line, (L); lines with `is_counted` are scored without their own counts."""
        counts = self.counts[letters.buckets]
        if is_counted is not None:
            counts = np.maximum(counts - is_counted[letters.lines], 0)
        logs = np.log((counts + SMOOTHING) / (self.counts.sum() + SMOOTHING * BUCKETS))
        return np.bincount(letters.lines, logs, letters.num_lines).astype(np.float32)


SMOOTHING = 0.1


class Letters:
    """The hashed sequences of three letters of some lines; all that is not a letter counts as one space."""

    def __init__(self, lower: Block) -> None:
        self.num_lines = len(lower.starts)
        grams, is_whole = _only(lower, LETTER | MARK | END).grams(LETTERS)
        lines = np.repeat(np.arange(self.num_lines), lower.lengths + 1)
        self.buckets = (grams[is_whole] >> np.uint64(48)).astype(np.int64)
        self.lines = lines[is_whole]
        self.sizes = np.bincount(self.lines, minlength=self.num_lines)  # (L)


def _only(block: Block, classes: int) -> Block:
    """The block with a space in place of each character that has none of the class bits."""
    changed = Block.__new__(Block)
    changed.codes = np.where((block.classes & classes) != 0, block.codes, np.uint32(32))
    changed.starts, changed.lengths, changed.classes = block.starts, block.lengths, block.classes
    return changed


def lowered(lines: Sequence[str]) -> list[str]:
    """The lines in lower case."""
    return "\n".join(lines).lower().split("\n") if lines else []
