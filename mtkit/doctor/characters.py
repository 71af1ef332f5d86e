"""Many lines of text as one array of characters: their classes and scripts, words, hashes, and letter statistics.

Everything here works on a block of some thousand lines at once, in NumPy, since the doctor reads millions of lines.
"""

# L lines of a block, C characters of a block, W words of a block, G buckets of hashed character sequences.

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]
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
    """Tables with an entry for every character met so far; characters are looked up when they are first met.

    Four tables have a hash of each character:

    - `hashes`: the character's own hash
    - `letter_hashes`: the same for letters, marks and the end of a line, and the hash of a space for all others
    - `word_hashes`: the same for letters, marks and digits, and the hash of a space for all others
    - `content_hashes`: 0 for spaces, punctuation and controls, and the character's own hash for all others
    """

    def __init__(self) -> None:
        self._classes: Flags = np.zeros(0x110000, dtype=np.uint16)
        self.scripts = np.zeros(0x110000, dtype=np.uint8)  # places in `names`; 0: no letter, or of no one script
        self.names = [""]
        self.lower: Codes = np.zeros(0x110000, dtype=np.intp)  # 0: several characters, or it depends on the next one
        self.hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.letter_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.word_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.content_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)

    def classes(self, codes: Codes) -> Flags:
        """The class bits of each character; characters that are new are looked up."""
        classes = self._classes.take(codes)
        if classes.all():
            return classes
        for code in np.unique(codes[classes == 0]).tolist():
            self._learn(code)
        return self._classes.take(codes)

    def class_of(self, character: str) -> int:
        """The class bits of a character."""
        code = ord(character)
        if not self._classes[code]:
            self._learn(code)
        return int(self._classes[code])

    def _learn(self, code: int) -> None:
        kind, script = _described(chr(code))
        self._classes[code] = kind
        if script and script not in self.names:
            self.names.append(script)
        self.scripts[code] = self.names.index(script) if len(self.names) < 256 else 0
        lower = chr(code).lower()
        self.lower[code] = ord(lower) if len(lower) == 1 and code != ord("Σ") else 0
        own, space = _mixed(np.array([code, ord(" ")], dtype=np.uint64))
        self.hashes[code] = own
        self.letter_hashes[code] = own if kind & (LETTER | MARK | END) else space
        self.word_hashes[code] = own if kind & (LETTER | MARK | DIGIT) else space
        self.content_hashes[code] = own if _is_content(chr(code)) else 0

    def is_of(self, scripts: Sequence[str]) -> NDArray[np.bool_]:
        """For each script number, whether it is allowed in text of `scripts`, (256).

        A script number is a place in `names`. Number 0, for characters that are not letters or whose script is not
        known, is always allowed.
        """
        known = np.zeros(256, dtype=np.bool_)
        known[0] = True
        for place, name in enumerate(self.names):
            known[place] |= name in scripts
        return known


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


def _is_content(character: str) -> bool:
    """Whether a character is content: a letter, a mark, a number or a symbol.

    With another character in its place, a text would say something else. Accents that stand alone (Unicode calls
    them modifier symbols) do not count: they are often apostrophes or quotation marks.
    """
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in ("Sc", "Sm", "So")


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
        self._lines = lines
        self._fill(_codes_of("\n".join([*lines, ""])))
        assert len(self.ends) == len(lines), "a line contains a line feed"

    def _fill(self, codes: Codes) -> None:
        self.codes = codes  # (C)
        self.classes = ALPHABET.classes(codes)  # (C)
        self.ends = np.flatnonzero(codes == 10)  # (L)
        self.starts = np.concatenate([[0], self.ends[:-1] + 1]) if len(self.ends) else self.ends  # (L)
        self.lengths = self.ends - self.starts

    def lowered(self) -> "Block":
        """The block in lower case."""
        codes = ALPHABET.lower.take(self.codes)
        if not codes.all():
            return Block(lowered(self._lines))
        lower = Block.__new__(Block)
        lower._lines = self._lines
        lower._fill(codes)
        return lower

    def flags(self) -> Flags:
        """The class bits that occur in each line, (L)."""
        return np.bitwise_or.reduceat(self.classes, self.starts)

    def count(self, bits: int) -> NDArray[np.int64]:
        """The number of characters of each line that have one of the class bits, (L)."""
        return self.sums((self.classes & bits) != 0)

    def count_foreign(self, scripts: Sequence[str]) -> NDArray[np.int64]:
        """The number of letters of each line that are of other scripts than `scripts`, (L)."""
        is_foreign = ~ALPHABET.is_of(scripts)[ALPHABET.scripts.take(self.codes)]
        return self.sums(is_foreign) if is_foreign.any() else np.zeros(len(self.starts), dtype=np.int64)

    def scripts(self) -> Counter[str]:
        """The number of letters of each script in the block, by the name of the script.

        Letters whose script is not known are not counted.
        """
        counts = np.bincount(ALPHABET.scripts[self.codes], minlength=1)
        return Counter({ALPHABET.names[place]: int(counts[place]) for place in np.flatnonzero(counts) if place})

    def sums(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The number of characters of each line that are chosen, (L)."""
        return np.add.reduceat(chosen, self.starts, dtype=np.int64)

    def with_next(self, first: int, then: int) -> NDArray[np.int64]:
        """The places of the lines in which a character of the classes `first` stands before one of `then`."""
        found = np.flatnonzero((self.classes[:-1] & first) != 0)
        return self.lines_of(found[(self.classes[found + 1] & then) != 0])

    def lines_of(self, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """The lines in which the characters at these places stand, each line once."""
        return np.unique(np.searchsorted(self.starts, places, side="right") - 1)

    def keys(self) -> Ids:
        """A hash of each line, (L), of all characters."""
        powers, inverse = _powers(len(self.codes))
        terms = ALPHABET.hashes.take(self.codes)
        terms *= powers[: len(terms)]
        return _mixed(np.add.reduceat(terms, self.starts) * inverse[self.starts])

    @cached_property
    def content_keys(self) -> Ids:
        """A hash of each line, (L), of its letters, numbers and symbols alone; equal for texts that differ in the rest.

        It is NO_CONTENT for lines of spaces and punctuation alone.
        """
        terms = ALPHABET.content_hashes.take(self.codes)
        chosen = terms != 0
        number: NDArray[np.int64] = np.cumsum(chosen) - chosen  # of the chosen characters before each one
        powers, inverse = _powers(len(self.codes))
        terms *= powers.take(number)
        return _mixed(np.add.reduceat(terms, self.starts) * inverse[number[self.starts]])

    def words(self) -> tuple[Ids, NDArray[np.int64]]:
        """Returns (hashes, offsets): a hash of each word, (W), and the place of the first word of each line.

        `offsets` (L + 1) ends with W, so that the words of line i are those from `offsets[i]` to `offsets[i + 1]`.

        A word is a run of letters, marks and digits; every other visible character is a word, and so is every character
        of scripts that put no spaces between words.
        """
        is_joined = ((self.classes & (LETTER | MARK | DIGIT)) != 0) & ((self.classes & ALONE) == 0)
        is_visible = (self.classes & (SPACE | CONTROL | END)) == 0
        begins = is_visible.copy()
        begins[1:] &= ~(is_joined[1:] & is_joined[:-1])
        first = np.flatnonzero(begins)
        starts = np.searchsorted(first, np.append(self.starts, len(self.codes)))
        if not len(first):
            return np.zeros(0, dtype=np.uint64), starts
        powers, inverse = _powers(len(self.codes))
        terms = ALPHABET.hashes.take(self.codes)
        terms *= powers[: len(terms)]
        terms *= is_visible
        return _mixed(np.add.reduceat(terms, first) * inverse[first]), starts

    def grams(self, hashes: Ids, size: int) -> Ids:
        """A hash of the sequence of `size` characters that begins at each place, (C).

        `hashes` has a hash of each character: one of the tables of ALPHABET.
        """
        codes = hashes.take(self.codes)
        total = codes.copy()
        for offset in range(1, size):
            total *= _FACTOR
            total[:-offset] += codes[offset:]
        return _mixed(total)

    def outside(self, size: int) -> NDArray[np.intp]:
        """The places where a sequence of `size` characters would run past the end of a line.

        The line feed belongs to its line: a sequence may end with it.
        """
        places = (self.ends[:, None] - np.arange(size - 1)).ravel()
        return places[places >= 0]


def _codes_of(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.intp)


# Hashes: characters are mixed (the finalizer of SplitMix64), multiplied by a power of an odd number that depends on
# their place, and summed.

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Ids) -> Ids:
    values = values * np.uint64(0xBF58476D1CE4E5B9) + _FACTOR
    values ^= values >> np.uint64(31)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(29)
    return values


NO_CONTENT = _mixed(np.zeros(1, dtype=np.uint64))[0]  # of no characters

_known_powers: tuple[Ids, Ids] = (np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64))


def _powers(count: int) -> tuple[Ids, Ids]:
    """Returns at least `count` powers of _FACTOR, and as many powers of its inverse, modulo 2**64.

    They are kept, and computed again only for a block that is longer than all before it. A word or a line that begins
    at character n is hashed with the powers from n on, and multiplied by the inverse of the n-th, so that its hash does
    not depend on where it stands.
    """
    global _known_powers
    if len(_known_powers[0]) < count:
        size = 1 << count.bit_length()
        inverse = np.uint64(pow(int(_FACTOR), -1, 1 << 64))
        first, second = (np.cumprod(np.full(size, each, dtype=np.uint64)) for each in (_FACTOR, inverse))
        one = np.ones(1, dtype=np.uint64)
        _known_powers = np.concatenate([one, first]), np.concatenate([one, second])
    return _known_powers


ALPHABET = Alphabet()
class_of = ALPHABET.class_of


# Signatures, by which lines that are nearly equal are found (MinHash; Broder, 1997).

NUM_MINIMA = 16
SHINGLE = 4  # characters
LEAST_SHINGLES = 20  # in shorter lines, one changed word changes nearly all

_MULTIPLIERS = np.random.default_rng(1).integers(1, 2**32, NUM_MINIMA, dtype=np.uint64).astype(np.uint32) | np.uint32(1)


def minima(block: Block) -> NDArray[np.uint32]:
    """The MinHash signature of each line, (L, NUM_MINIMA).

    The fraction of equal entries in two signatures estimates the Jaccard similarity of the lines: of their sets of
    sequences of SHINGLE characters. In these sequences, the end of the line and all characters that are not
    letters, marks or digits count as spaces.
    """
    base = (block.grams(ALPHABET.word_hashes, SHINGLE) >> np.uint64(32)).astype(np.uint32)
    outside = block.outside(SHINGLE)
    found = np.empty((len(block.starts), NUM_MINIMA), dtype=np.uint32)
    value, shifted = np.empty_like(base), np.empty_like(base)
    for number, multiplier in enumerate(_MULTIPLIERS):
        np.multiply(base, multiplier, out=value)
        value ^= np.right_shift(value, np.uint32(15), out=shifted)
        value[outside] = 0xFFFFFFFF
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


SMOOTHING = 0.1


class Letters:
    """The hashed sequences of three letters of some lines; all that is not a letter counts as one space."""

    def __init__(self, lower: Block) -> None:
        self._lower = lower
        self.num_lines = len(lower.starts)
        self.buckets = (lower.grams(ALPHABET.letter_hashes, LETTERS) >> np.uint64(48)).astype(np.intp)  # (C)
        self.buckets[lower.outside(LETTERS)] = BUCKETS  # for sequences that are cut by the end of a line
        self.sizes = np.maximum(lower.lengths + 2 - LETTERS, 0)  # sequences of each line, (L)

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of the values of the sequences of each line, (L); `values` has one for each bucket, (G)."""
        table = np.append(values, np.float32(0))
        return np.add.reduceat(table.take(self.buckets), self._lower.starts, dtype=np.float64).astype(np.float32)

    def counts(self, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        """How often each bucket, (G), occurs in the lines that are chosen, (L)."""
        buckets = self.buckets[np.repeat(chosen, self._lower.lengths + 1)]
        return np.bincount(buckets, minlength=BUCKETS + 1)[:BUCKETS].astype(np.float32)


@dataclass(frozen=True)
class LetterModel:
    """Counts of hashed sequences of three letters, and the log-probabilities that they give."""

    counts: NDArray[np.float32]  # (G)

    @cached_property
    def logs(self) -> NDArray[np.float32]:
        """The log-probability of each bucket, (G)."""
        return self._logs(self.counts)

    def scores(self, letters: Letters, is_counted: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The log-probability of each line, (L); lines with `is_counted` are scored without their own counts."""
        scores = letters.sums(self.logs)
        if is_counted is None:
            return scores
        return np.where(is_counted, letters.sums(self._logs(np.maximum(self.counts - 1, 0))), scores)

    def _logs(self, counts: NDArray[np.float32]) -> NDArray[np.float32]:
        logs: NDArray[np.float32] = np.log((counts + SMOOTHING) / (self.counts.sum() + SMOOTHING * BUCKETS))
        return logs


def lowered(lines: Sequence[str]) -> list[str]:
    """The lines in lower case."""
    return "\n".join(lines).lower().split("\n") if lines else []
