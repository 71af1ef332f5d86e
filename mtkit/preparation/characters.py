"""Foundations of `mtkit doctor`: lines as character arrays, what is usual in a text, and the kinds of faults.

`mtkit doctor` reads millions of lines. For speed, it processes blocks of a few thousand lines as NumPy arrays. What is
usual (scripts, languages, lengths) is learnt from a sample of the pairs. Nothing is assumed about the languages, so
all languages are treated alike.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkit.text.parallel import Pair

# Array shapes: L lines of a block, C characters of a block, W words of a block, G buckets of hashed letter trigrams.


Codes = NDArray[np.intp]
Flags = NDArray[np.uint16]
Ids = NDArray[np.uint64]

# Classes of characters, as bits. ODD_SPACE: spaces not in PLAIN_SPACES. REPLACED: U+FFFD. END: the line feed. ALONE:
# letters of UNSPACED scripts. LEAD and TAIL: what the first byte and the further bytes of a UTF-8 character become if
# they are decoded as Windows-1252 or Latin-1. ANGLE: < and &. DOT: the characters . / @ that occur in addresses.
# UNSTABLE: characters that Unicode normalisation may change.
LETTER, MARK, DIGIT, SPACE, ODD_SPACE, CONTROL, PRIVATE, REPLACED, OTHER, END, ALONE = (1 << bit for bit in range(11))
LEAD, TAIL, ANGLE, DOT, UNSTABLE = (1 << bit for bit in range(11, 16))

# Characters without a visible form that text does not need: controls, the zero-width space and no-break space, the soft
# hyphen, separators of lines. Joiners and marks of direction are not among them: Persian, Hindi and Hebrew need them.
INVISIBLE = frozenset("\u00ad\u180e\u200b\u2028\u2029\u2060\ufeff\ufff9\ufffa\ufffb")
# Spaces that are correct typography: the no-break spaces, and the space of Chinese and Japanese.
PLAIN_SPACES = frozenset(" \u00a0\u202f\u3000")
# In scripts without spaces between words, each character counts as a word of its own.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# Words that may precede the script in the Unicode name of a character, such as FULLWIDTH LATIN CAPITAL LETTER A.
WIDTHS = {"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE", "MICRO", "SUPERSCRIPT"}


class Alphabet:
    """Tables of character properties, indexed by code point; an entry is filled in when the character is first met.

    Four tables hold a hash of each character. They differ in which characters have a hash of their own:

    - `hashes`: all characters
    - `letter_hashes`: letters, marks and the line feed; all others have the hash of a space
    - `word_hashes`: letters, marks and digits; all others have the hash of a space
    - `content_hashes`: letters, marks, numbers and symbols; all others have 0
    """

    def __init__(self) -> None:
        self._classes: Flags = np.zeros(0x110000, dtype=np.uint16)
        self.scripts = np.zeros(0x110000, dtype=np.uint8)  # indices into `names`; 0: no letter, or script not known
        self.names = [""]
        self.lower: Codes = np.zeros(0x110000, dtype=np.intp)  # 0: becomes several characters, or depends on context
        self.hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.letter_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.word_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)
        self.content_hashes: Ids = np.zeros(0x110000, dtype=np.uint64)

    def classes(self, codes: Codes) -> Flags:
        """Returns the class bits (LETTER, DIGIT, SPACE, ...) of the characters with the code points `codes`, (C)."""
        classes = self._classes.take(codes)
        if classes.all():
            return classes
        for code in np.unique(codes[classes == 0]).tolist():
            self._learn(code)
        return self._classes.take(codes)

    def class_of(self, character: str) -> int:
        """The class bits of a character: all of its classes, such as LETTER or DIGIT, combined by bitwise or."""
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
        """Returns a mask, (256), indexed by script number: True for the scripts named in `scripts`, and for number 0.

        A script number is an index into the attribute `names`. Number 0 stands for characters that are not letters, or
        whose script is not known.
        """
        known = np.zeros(256, dtype=np.bool_)
        known[0] = True
        for place, name in enumerate(self.names):
            known[place] |= name in scripts
        return known


def _described(character: str) -> tuple[int, str]:
    """Returns the class bits of a character, such as LETTER, and its script by its Unicode name, such as "LATIN".

    The script of a character that is not a letter is "".
    """
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

    Replacing such a character changes what the text says. Accents that stand alone (Unicode calls
    them modifier symbols) are no content: they are often apostrophes or quotation marks.
    """
    category = unicodedata.category(character)
    return category[0] in "LMN" or category in ("Sc", "Sm", "So")


def byte_of(character: str) -> int | None:
    """The byte that encodes a character in Windows-1252 or, failing that, in Latin-1; `None` if neither can."""
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
        self.lengths = self.ends - self.starts  # (L)

    def lowered(self) -> "Block":
        """A block with the same lines in lower case."""
        codes = ALPHABET.lower.take(self.codes)
        if not codes.all():
            return Block(lowered(self._lines))
        lower = Block.__new__(Block)
        lower._lines = self._lines
        lower._fill(codes)
        return lower

    def flags(self) -> Flags:
        """The class bits of all characters of each line, combined by bitwise or, (L)."""
        return np.bitwise_or.reduceat(self.classes, self.starts)

    def count(self, bits: int) -> NDArray[np.int64]:
        """The number of characters of each line that have at least one of the class bits `bits`, (L)."""
        return self.sums((self.classes & bits) != 0)

    def count_foreign(self, scripts: Sequence[str]) -> NDArray[np.int64]:
        """The number of letters of each line that are of other scripts than `scripts`, such as ["LATIN"], (L)."""
        is_foreign = ~ALPHABET.is_of(scripts)[ALPHABET.scripts.take(self.codes)]
        return self.sums(is_foreign) if is_foreign.any() else np.zeros(len(self.starts), dtype=np.int64)

    def scripts(self) -> Counter[str]:
        """The number of letters of each script in the block, by the name of the script, such as "LATIN".

        Letters whose script is not known are not counted.
        """
        counts = np.bincount(ALPHABET.scripts[self.codes], minlength=1)
        return Counter({ALPHABET.names[place]: int(counts[place]) for place in np.flatnonzero(counts) if place})

    def sums(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The number of chosen characters in each line, (L); `chosen` is a mask of the characters, (C)."""
        return np.add.reduceat(chosen, self.starts, dtype=np.int64)

    def with_next(self, first: int, then: int) -> NDArray[np.int64]:
        """Returns the indices of lines in which a character of class `first` comes directly before one of class `then`.

        `first` and `then` are class bits; LETTER | DIGIT stands for characters of at least one of the two classes.
        """
        found = np.flatnonzero((self.classes[:-1] & first) != 0)
        return self.lines_of(found[(self.classes[found + 1] & then) != 0])

    def lines_of(self, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Returns the indices of the lines that contain the characters at indices `places`, sorted, each line once."""
        return np.unique(np.searchsorted(self.starts, places, side="right") - 1)

    def keys(self) -> Ids:
        """A hash of all characters of each line, (L)."""
        powers, inverse = _powers(len(self.codes))
        terms = ALPHABET.hashes.take(self.codes)
        terms *= powers[: len(terms)]
        return _mixed(np.add.reduceat(terms, self.starts) * inverse[self.starts])

    @cached_property
    def content_keys(self) -> Ids:
        """A hash of the letters, marks, numbers and symbols of each line, (L).

        Lines that differ only in other characters have the same hash. The hash of a line without any letter, mark,
        number or symbol is NO_CONTENT.
        """
        terms = ALPHABET.content_hashes.take(self.codes)
        chosen = terms != 0
        number: NDArray[np.int64] = np.cumsum(chosen) - chosen  # of the chosen characters before each one
        powers, inverse = _powers(len(self.codes))
        terms *= powers.take(number)
        return _mixed(np.add.reduceat(terms, self.starts) * inverse[number[self.starts]])

    def words(self) -> tuple[Ids, NDArray[np.int64]]:
        """Returns (hashes, offsets): a hash of each word, (W), and the index of the first word of each line, (L + 1).

        `offsets` ends with W, so that the words of line i are hashes[offsets[i]:offsets[i + 1]].

        A word is a run of letters, marks and digits; every other visible character is a word of its own, and so is
        every character of scripts that put no spaces between words.
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
        """Returns an array (C): for each character, a hash of the sequence of `size` characters that starts with it.

        `hashes` is the table of ALPHABET from which the hashes of single characters are taken.
        """
        codes = hashes.take(self.codes)
        total = codes.copy()
        for offset in range(1, size):
            total *= _FACTOR
            total[:-offset] += codes[offset:]
        return _mixed(total)

    def outside(self, size: int) -> NDArray[np.intp]:
        """The indices of characters at which a sequence of `size` characters would run past the end of the line.

        The line feed belongs to its line: a sequence may end with it.
        """
        places = (self.ends[:, None] - np.arange(size - 1)).ravel()
        return places[places >= 0]


def _codes_of(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.intp)


# Hash of a word or a line: a sum over its characters. Each term is a hash of the character (by the finalizer of
# SplitMix64) times the n-th power of an odd number, where n is the position of the character.

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Ids) -> Ids:
    values = values * np.uint64(0xBF58476D1CE4E5B9) + _FACTOR
    values ^= values >> np.uint64(31)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(29)
    return values


NO_CONTENT = _mixed(np.zeros(1, dtype=np.uint64))[0]  # the value of `content_keys` for a line without content

_known_powers: tuple[Ids, Ids] = (np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64))


def _powers(count: int) -> tuple[Ids, Ids]:
    """Returns at least `count` powers of _FACTOR, and as many powers of its inverse, modulo 2**64.

    The powers are cached, and computed again only for a block that is longer than all earlier blocks. A word or line
    that begins at character n of a block is hashed with the powers from the n-th on. Multiplying the sum by the inverse
    of the n-th power makes the hash independent of n.
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


# MinHash signatures, by which nearly equal lines are found (Broder, 1997).

NUM_MINIMA = 16  # entries of a signature
SHINGLE = 4  # characters of a shingle
LEAST_SHINGLES = 20  # in shorter lines, one changed word changes nearly all shingles

_MULTIPLIERS = np.random.default_rng(1).integers(1, 2**32, NUM_MINIMA, dtype=np.uint64).astype(np.uint32) | np.uint32(1)


def minima(block: Block) -> NDArray[np.uint32]:
    """The MinHash signature of each line, (L, NUM_MINIMA).

    A shingle is a sequence of SHINGLE characters. The fraction of equal entries in two signatures estimates the Jaccard
    similarity of the sets of shingles of two lines. In shingles, the line feed and all characters other than letters,
    marks and digits count as spaces.
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
    """Returns a hash of each band (`rows` consecutive entries) of each signature, (L, NUM_MINIMA // rows)."""
    count = NUM_MINIMA // rows
    total = np.zeros((len(signatures), count), dtype=np.uint64)
    for row in range(rows):
        total = _mixed(total + signatures[:, row : row + rows * (count - 1) + 1 : rows].astype(np.uint64))
    total += np.arange(count, dtype=np.uint64)
    return total


# Letter statistics: trigrams of letters tell which language a line is in.

LETTERS = 3  # of a trigram
BUCKETS = 1 << 16  # the number of different hashes of trigrams


SMOOTHING = 0.1  # added to the count of each bucket


class Letters:
    """The letter trigrams of each line of a lower-case block; a trigram is stored as its bucket, a hash of 16 bits.

    Characters other than letters and marks count as spaces. The last trigram of a line ends with the line feed.
    """

    def __init__(self, lower: Block) -> None:
        self._lower = lower
        self.num_lines = len(lower.starts)
        self.buckets = (lower.grams(ALPHABET.letter_hashes, LETTERS) >> np.uint64(48)).astype(np.intp)  # (C)
        self.buckets[lower.outside(LETTERS)] = BUCKETS  # no trigram: it would run past the line end
        self.sizes = np.maximum(lower.lengths + 2 - LETTERS, 0)  # number of trigrams of each line, (L)

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the sum of the values of the trigrams of each line, (L).

        `values`, (G), holds a value for each bucket. A trigram that occurs n times in a line is added n times.
        """
        table = np.append(values, np.float32(0))
        return np.add.reduceat(table.take(self.buckets), self._lower.starts, dtype=np.float64).astype(np.float32)

    def counts(self, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Returns how often the trigrams of each bucket occur in the chosen lines, (G).

        `chosen` is a mask of the lines, (L).
        """
        buckets = self.buckets[np.repeat(chosen, self._lower.lengths + 1)]
        return np.bincount(buckets, minlength=BUCKETS + 1)[:BUCKETS].astype(np.float32)


@dataclass(frozen=True)
class LetterModel:
    """A model of the letter trigrams of some text: the count and the log-probability of each bucket of trigrams."""

    counts: NDArray[np.float32]  # (G)

    @cached_property
    def logs(self) -> NDArray[np.float32]:
        """The log-probability of each bucket of trigrams, (G), in nats, from smoothed counts."""
        return self._logs(self.counts)

    def scores(self, letters: Letters, is_counted: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The log-probability of each line, (L), in nats: the sum over its trigrams.

        `is_counted` is a mask of the lines, (L), that is True for lines whose trigrams the model has counted. For these
        lines, all counts above 0 are lowered by 1, so that a line does not make itself probable.
        """
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


# The kinds of faults, and findings.

NUM_EXAMPLES = 5  # of each kind

MENDED, DROPPED = "mended", "dropped"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it is, what it costs, what mends it, and how many are too many.

    Training should not start if the share of pairs with the fault is `stops_at` or more.
    """

    title: str
    cost: str
    cure: str
    cleaned: str | None = None  # what `mtkit clean` does with such pairs
    stops_at: float | None = None  # share of the pairs; 0: one is enough; None: never
    # A fault with a smaller share is not reported, since most of so few findings are false alarms.
    least_share: float = 0.0


CLEAN = "mtkit clean"

# In the order in which they are reported, and in which a pair is judged when it is cleaned.
KINDS: dict[str, Kind] = {
    "unequal lines": Kind(
        "The files have different numbers of lines",
        "pairs after the missing line are not translations of each other; binarize refuses the files",
        "fetch the files again, or look for the missing line where the sides slip",
        stops_at=0,
    ),
    "slip": Kind(
        "The sides slip out of alignment",
        "every pair from there on teaches a wrong translation",
        "delete the extra line, or insert the missing one, at the line that is named",
        stops_at=0,
    ),
    "not UTF-8": Kind(
        "Bytes that are not UTF-8",
        "binarize refuses the file",
        "convert it from its encoding: iconv -f WINDOWS-1252 -t UTF-8 FILE",
        stops_at=0,
    ),
    "table": Kind(
        "The file is a table, or no sentences",
        "each row is read as one sentence",
        "name the columns, as the example says",
        stops_at=0,
    ),
    "processed text": Kind(
        "Text that was tokenised, cut into subwords or escaped",
        "translations come out in the same form, and scores are not those of plain text",
        "the command in the example undoes it",
    ),
    "header": Kind(
        "A line of column names, read as a pair",
        "one wrong pair",
        "the command in the example deletes it",
    ),
    "lacking side": Kind(
        "Units of TMX without one of the two languages",
        "they are skipped",
        "nothing, if the file has more than two languages; else --languages, such as fr-en",
    ),
    "blank side": Kind(
        "A side is blank",
        "such pairs are left out of training; many of them mean that text was lost",
        f"nothing, or {CLEAN}",
        DROPPED,
        stops_at=0.5,
    ),
    "replacement characters": Kind(
        "Characters lost in an earlier conversion (U+FFFD)",
        "the model learns to write U+FFFD",
        f"make the text again from its source, or {CLEAN}",
        DROPPED,
        stops_at=0.05,
    ),
    "mojibake": Kind(
        "UTF-8 that was read as another encoding (Ã© for é)",
        "words are split into two spellings, and the model writes the broken one",
        CLEAN,
        MENDED,
        stops_at=0.05,
    ),
    "private-use characters": Kind(
        "Private-use characters",
        "they mean something in one font alone, and take up vocabulary",
        CLEAN,
        DROPPED,
        stops_at=0.5,
    ),
    "control characters": Kind(
        "Control and invisible characters",
        "words that look the same have different spellings",
        CLEAN,
        MENDED,
        stops_at=0.5,
    ),
    "spaces": Kind(
        "Odd, doubled, leading or trailing spaces",
        "nothing with the default tokenizer.normalization, which mends them",
        f"nothing, or {CLEAN}",
        MENDED,
    ),
    "not NFC": Kind(
        "Letters with separate accents beside composed ones (NFD beside NFC)",
        "nothing with the default tokenizer.normalization; with identity, one word has two spellings",
        f"tokenizer.normalization: nmt_nfkc, or {CLEAN}",
        MENDED,
    ),
    "markup": Kind(
        "Tags and entities of HTML or XML",
        "the model writes tags and entities of its own",
        f"{CLEAN}, unless translations need the tags",
        MENDED,
        stops_at=0.5,
    ),
    "identical": Kind(
        "Source and target are the same",
        "the model learns to copy; a tenth of such pairs does visible harm (Khayrallah & Koehn, 2018)",
        f"data.drop_identical: true, or {CLEAN}",
        DROPPED,
        stops_at=0.1,
    ),
    "no words": Kind(
        "A side is symbols, digits or addresses alone",
        "little, but such pairs are often wrong",
        f"data.min_letters: 0.3, or {CLEAN}",
        DROPPED,
    ),
    "wrong script": Kind(
        "A side is mostly in another script than the rest",
        "the model learns from the wrong language",
        f"data.source_script and data.target_script, or {CLEAN}",
        DROPPED,
        stops_at=0.1,
    ),
    "swapped": Kind(
        "Source and target have changed places",
        "the model learns to translate backwards",
        CLEAN,
        MENDED,
        stops_at=0.1,
        least_share=0.001,
    ),
    "wrong language": Kind(
        "A side is in another language than the rest",
        "the model translates into the wrong language at times",
        CLEAN,
        DROPPED,
        stops_at=0.1,
        least_share=0.001,
    ),
    "length ratio": Kind(
        "One side is far longer than usual for the other",
        "text is missing on a side, or repeated: the model learns to leave out, or to go on and on",
        f"a smaller data.max_length_ratio, or {CLEAN}",
        DROPPED,
        stops_at=0.2,
        least_share=0.001,
    ),
    "numbers differ": Kind(
        "The sides have different numbers",
        "the model learns not to trust numbers",
        CLEAN,
        DROPPED,
        stops_at=0.3,
        least_share=0.001,
    ),
    "addresses differ": Kind(
        "The sides have different URLs or e-mail addresses",
        "the model learns not to copy addresses",
        CLEAN,
        DROPPED,
        stops_at=0.3,
        least_share=0.001,
    ),
    "held out": Kind(
        "Validation or test pairs are in the training text",
        "the scores of these pairs are too good, and say nothing of new text",
        CLEAN,
        DROPPED,
        stops_at=0.01,  # of the held-out pairs
    ),
    "nearly held out": Kind(
        "Validation or test pairs are in the training text with small edits",
        "the scores of these pairs are better than those of new text",
        CLEAN,
        DROPPED,
        stops_at=0.05,  # of the held-out pairs
    ),
    "duplicate": Kind(
        "Pairs that occur again",
        "training sees them more often than the rest; little, if they are few",
        f"data.drop_duplicates: true, or {CLEAN}",
        DROPPED,
    ),
    "near duplicate": Kind(
        "Pairs that occur again with other case, punctuation or spaces",
        "training sees them more often than the rest; little, if they are few",
        CLEAN,
        DROPPED,
    ),
    "similar": Kind(
        "Pairs that occur again with a few other words or letters",
        "little; but a test set split from such text at random has similar pairs in training",
        "keep similar pairs on one side when you split off validation and test text",
        least_share=0.001,
    ),
}


@dataclass(frozen=True)
class Example:
    """A pair with a fault; or, with `text` alone, a fault of a file.

    If the pair was mended, `source` and `target` are the pair before, and `text` is "source ||| target" after mending.
    """

    file: Path
    line: int | None
    source: str = ""
    target: str = ""
    text: str = ""

    @property
    def place(self) -> str:
        """The file and the line, such as train.fr:17; the file alone if `line` is `None`."""
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Found:
    """How often a kind of fault was found, and the first examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, examples: Sequence[Example], count: int = 1) -> None:
        """Adds `count` to the number found; keeps the examples, up to NUM_EXAMPLES in all."""
        self.count += count
        self.examples += examples[: NUM_EXAMPLES - len(self.examples)]


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found: the number of pairs, and the faults by the name of their kind."""

    num_pairs: int
    num_held_out: int
    files: tuple[Path, ...]
    found: dict[str, Found]
    notes: tuple[str, ...] = ()  # what could not be examined, and why

    @property
    def kinds(self) -> list[str]:
        """The names of the kinds of faults to report, in the order of KINDS.

        Leaves out kinds that were found so rarely that they may be false alarms.
        """
        return [name for name in KINDS if name in self.found and self._is_reported(name)]

    @property
    def stopping(self) -> list[str]:
        """The names of the kinds of faults to mend before training starts, in the order of KINDS."""
        return [name for name in self.kinds if self.is_stopping(name)]

    def share(self, name: str) -> float:
        """The fraction of pairs that have the fault called `name`, at most 1.

        For the faults "held out" and "nearly held out", returns the fraction of the held-out pairs that were found.
        """
        total = self.num_held_out if name in ("held out", "nearly held out") else self.num_pairs
        return min(1.0, self.found[name].count / max(total, 1))

    def is_stopping(self, name: str) -> bool:
        """Whether the fault called `name` is so frequent that training should not start before it is mended."""
        limit = KINDS[name].stops_at
        return limit is not None and self.share(name) >= limit

    def _is_reported(self, name: str) -> bool:
        count = self.found[name].count
        return count > 0 and (count >= 2 or not KINDS[name].least_share) and self.share(name) >= KINDS[name].least_share

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as a value for JSON."""
        return {
            "files": [str(path) for path in self.files],
            "pairs": self.num_pairs,
            "held_out_pairs": self.num_held_out,
            "stops": self.stopping,
            "findings": [self._finding(name) for name in self.kinds],
            "notes": list(self.notes),
        }

    def _finding(self, name: str) -> dict[str, Any]:
        kind, found = KINDS[name], self.found[name]
        return {
            "kind": name,
            "title": kind.title,
            "count": found.count,
            "share": self.share(name),
            "stops": self.is_stopping(name),
            "cost": kind.cost,
            "cure": kind.cure,
            "examples": [_example(example) for example in found.examples],
        }


def _example(example: Example) -> dict[str, Any]:
    shown: dict[str, Any] = {"file": str(example.file), "line": example.line}
    if example.text:
        return {**shown, "text": example.text}
    return {**shown, "source": example.source, "target": example.target}


LONGEST = 1000  # scripts and languages are learnt from so many characters of a line, so that no long line dominates
MAIN_SCRIPT = 0.05  # a script belongs to a side if it has at least this share of the side's letters
# A text in a script on the left may use all scripts on the right, even those that are rare in the sample.
USED_TOGETHER = {
    "HIRAGANA": ("HIRAGANA", "KATAKANA", "CJK"),
    "KATAKANA": ("HIRAGANA", "KATAKANA", "CJK"),
    "HANGUL": ("HANGUL", "CJK"),
}


@dataclass(frozen=True)
class Learned:
    """What is usual in a text: the scripts of (source, target), the languages, and the ratio of the lengths."""

    scripts: tuple[tuple[str, ...], tuple[str, ...]]
    languages: "Languages | None"  # None: the sample is too small, or both sides are of one language
    lengths: "Lengths"


def learn(pairs: Sequence[Pair]) -> Learned:
    """Learns what is usual in a text from a sample of its pairs."""
    sides = [list(side) for side in zip(*pairs, strict=True)] if pairs else [[], []]
    lower = [Block(side).lowered() for side in sides]
    beginnings = [Block([line[:LONGEST] for line in side]).lowered() for side in sides]
    source, target = (_main_scripts(block.scripts()) for block in beginnings)
    return Learned((source, target), learn_languages(*beginnings), learn_lengths(*lower))


def _main_scripts(counts: Counter[str]) -> tuple[str, ...]:
    total = counts.total()
    main = [script for script, count in counts.most_common() if count >= MAIN_SCRIPT * total]
    return tuple(dict.fromkeys(also for script in main for also in USED_TOGETHER.get(script, (script,))))


# Languages.

LEAST_LINES = 200  # of each side; from fewer lines, no languages are learnt
FEWEST_LETTERS = 10  # the language of a line with fewer trigrams is not judged
ROUNDS = 8
ODDEST = 0.03  # the model of a third language starts from this share of the lines of each side
# A line is in another language if that is more probable by MARGIN nats, and by GRAM_MARGIN nats per trigram.
MARGIN = 10.0
GRAM_MARGIN = 0.4
# The model of a third language is kept if three conditions hold. It has at least LEAST_OTHER lines. Its median line is
# at least APART nats per trigram more probable than under the model of the line's side. And the share of trigrams that
# are common on the line's side is, in the median line, at most MOST_COMMON times the usual share.
LEAST_OTHER = 8
MOST_COMMON = 0.5
APART = 1.3


@dataclass(frozen=True)
class Languages:
    """Letter models of the source language, the target language and, if some lines are in neither, a third language."""

    source: LetterModel
    target: LetterModel
    other: LetterModel | None

    def foreign(self, side: int, letters: Letters) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns two masks, (L): lines in the language of the other side, and lines in a third language.

        `side` is the side of the lines: 0 for the source, 1 for the target.
        """
        own, opposite = (self.source, self.target) if side == 0 else (self.target, self.source)
        gain = letters.sums(opposite.logs - own.logs)
        if self.other is None:
            return _exceeds(gain, letters), np.zeros(letters.num_lines, dtype=np.bool_)
        third = letters.sums(self.other.logs - own.logs)
        return _exceeds(gain, letters) & (gain >= third), _exceeds(third, letters) & (third > gain)


def _exceeds(gain: NDArray[np.float32], letters: Letters) -> NDArray[np.bool_]:
    is_clear = (gain > MARGIN) & (gain > GRAM_MARGIN * letters.sizes)
    exceeds: NDArray[np.bool_] = is_clear & (letters.sizes >= FEWEST_LETTERS)
    return exceeds


def learn_languages(source: Block, target: Block) -> Languages | None:
    """Learns a letter model of each side's language and, if some lines are in neither language, of a third language.

    The models form a mixture of multinomials, fitted by hard EM. The third model starts from the lines that are least
    probable under the model of their side. In each of ROUNDS rounds, the models are fitted to their lines; then every
    line that is long enough moves to the model under which it is most probable. At the end, the third model is dropped
    if its lines are not in a third language.

    Returns `None` if there are too few lines, or if both sides are in the same language.
    """
    sides = [Letters(source), Letters(target)]
    if min(letters.num_lines for letters in sides) < LEAST_LINES:
        return None
    kinds = [np.full(letters.num_lines, side, dtype=np.int8) for side, letters in enumerate(sides)]
    models = _refitted(sides, kinds)
    gains = [
        (models[1 - side].scores(letters) - models[side].scores(letters, np.ones(letters.num_lines, dtype=np.bool_)))
        / np.maximum(letters.sizes, 1)
        for side, letters in enumerate(sides)
    ]
    if any(np.median(gain) > -GRAM_MARGIN for gain in gains):
        return None  # both sides are of one language, or of one in two spellings
    for side, letters in enumerate(sides):
        own = models[side].scores(letters, np.ones(letters.num_lines, dtype=np.bool_)) / np.maximum(letters.sizes, 1)
        is_long = letters.sizes >= FEWEST_LETTERS
        if is_long.any():
            kinds[side][is_long & (own <= np.quantile(own[is_long], ODDEST))] = 2
    for _ in range(ROUNDS):
        models = _refitted(sides, kinds)
        for side, letters in enumerate(sides):
            scores = [model.scores(letters, kinds[side] == kind) for kind, model in enumerate(models)]
            scores[2] = scores[2] - MARGIN / 2
            kinds[side] = np.argmax(scores, axis=0).astype(np.int8)
            kinds[side][letters.sizes < FEWEST_LETTERS] = side
    models = _refitted(sides, kinds)
    is_kept = _is_language(sides, kinds, models)
    return Languages(models[0], models[1], models[2] if is_kept else None)


def _is_language(sides: Sequence[Letters], kinds: Sequence[NDArray[np.int8]], models: Sequence[LetterModel]) -> bool:
    """Whether the lines of the third model are in a third language, rather than full of names or about one topic.

    Lines in a third language fit the third model clearly better than the model of their side. The trigrams that are
    most common on their side are rare in them. Returns `False` if the third model has fewer than LEAST_OTHER lines.

    `models` are the models of the source, the target and the third language. `kinds` has an array, (L), for each side:
    the index of the model that each line is assigned to.
    """
    margins: list[float] = []
    commonness: list[float] = []
    for side, letters in enumerate(sides):
        is_long = letters.sizes >= FEWEST_LETTERS
        chosen = (kinds[side] == 2) & is_long
        gain = models[2].scores(letters, chosen) - models[side].scores(letters)
        margins += (gain[chosen] / letters.sizes[chosen]).tolist()
        common = _share_of_common(models[side], letters)
        usual = float(np.median(common[is_long & (kinds[side] == side)]))
        commonness += (common[chosen] / usual).tolist()
    is_apart = len(margins) >= LEAST_OTHER and float(np.median(margins)) >= APART
    return is_apart and float(np.median(commonness)) <= MOST_COMMON


def _share_of_common(model: LetterModel, letters: Letters) -> NDArray[np.float64]:
    """The fraction of the trigrams of each line that are common in the text of `model`, (L).

    The common trigrams are the most frequent ones, which together make up half of all occurrences.
    """
    counts = np.sort(model.counts)[::-1]
    half = counts[np.searchsorted(np.cumsum(counts), counts.sum() / 2)]
    share: NDArray[np.float64] = letters.sums((model.counts >= half).astype(np.float32)) / np.maximum(letters.sizes, 1)
    return share


def _refitted(sides: Sequence[Letters], kinds: Sequence[NDArray[np.int8]]) -> list[LetterModel]:
    return [LetterModel(sides[0].counts(kinds[0] == kind) + sides[1].counts(kinds[1] == kind)) for kind in range(3)]


# Lengths.

SHORT = 8  # characters added to both sides, so that short lines vary less
DEVIATIONS = 4.5
# A ratio of lengths is no outlier if it differs from the usual ratio by at most this factor. Of 340,000 short pairs
# (Multi30k, Tatoeba), 25 exceed this factor, but 200 exceed a factor of 2.
LEAST_FACTOR = 2.25
# The same, for pairs whose sides both end like a sentence, or both do not. If one was cut off, its end usually differs.
FREE_FACTOR = 3.0


@dataclass(frozen=True)
class Lengths:
    """The usual ratio of target length to source length: the median and the standard deviation of its logarithm.

    Lengths are in characters, plus SHORT.
    """

    middle: float
    spread: float

    def outliers(
        self, source: NDArray[np.int64], target: NDArray[np.int64], least_factor: float = LEAST_FACTOR
    ) -> NDArray[np.bool_]:
        """Returns a mask, (L), of the pairs whose ratio of lengths is far from the usual one.

        `source` and `target` are the lengths of the sides in characters, (L) each. A ratio is far from the usual one if
        it is larger or smaller by more than the factor `least_factor`, and by more than DEVIATIONS standard deviations.
        """
        distance = np.abs(_log_ratio(source, target) - self.middle)
        found: NDArray[np.bool_] = distance > max(DEVIATIONS * self.spread, np.log(least_factor))
        return found


def learn_lengths(source: Block, target: Block) -> Lengths:
    """Learns the median of the logarithms of the length ratios, and their spread (by median absolute deviation).

    Ignores pairs with an empty side; if no other pairs are left, returns a median of 0 and a spread of 1.
    """
    is_written = (source.lengths > 0) & (target.lengths > 0)
    ratios = _log_ratio(source.lengths[is_written], target.lengths[is_written])
    if not len(ratios):
        return Lengths(0.0, 1.0)
    middle = float(np.median(ratios))
    # 1.4826 makes the median absolute deviation the standard deviation of a normal distribution.
    return Lengths(middle, 1.4826 * float(np.median(np.abs(ratios - middle))))


def _log_ratio(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.log((target + SHORT) / (source + SHORT))
