"""The doctor's checks: faults of single pairs, repeated pairs, and sides that slip out of alignment.

Repeats: only hashes of each pair are kept in memory. Two have 8 bytes, and NUM_BANDS have 4 bytes: 320 MB for ten
million pairs. Among ten million pairs, the probability that two different pairs share a hash of 8 bytes is below
0.001 %. A pair is similar to earlier text if at least two of its hashes of 4 bytes have occurred before.

Slips: word vectors tell whether a source line and a target line belong together (random indexing; Kanerva et al.,
2000). Each target word gets a random vector. The vector of a source word is the mean of the vectors of the target lines
that are paired with it in a sample. The vector of a line is the sum of the vectors of its words, weighted by inverse
document frequency. Lines belong together if the cosine of their vectors is high. A slip is where lines begin to fit
better at another shift; it is found by the CUSUM test (Page, 1954).
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mtkit.preparation.characters import (
    ALONE,
    ALPHABET,
    ANGLE,
    CONTROL,
    DIGIT,
    DOT,
    FREE_FACTOR,
    LEAD,
    LETTER,
    MARK,
    NO_CONTENT,
    NUM_MINIMA,
    ODD_SPACE,
    PRIVATE,
    REPLACED,
    SPACE,
    TAIL,
    UNSPACED,
    UNSTABLE,
    Block,
    Flags,
    Ids,
    Languages,
    Learned,
    Letters,
    bands,
    byte_of,
    class_of,
    lowered,
    minima,
)
from mtkit.preparation.encoding import insert_sorted, unknown_among
from mtkit.text.parallel import Pair

Chosen = NDArray[np.bool_]  # a mask of the pairs of a block, True for those that are chosen, (L)

FEW_LETTERS = 0.2  # share of the visible characters; a side with fewer letters has no words
LEAST_SCRIPT_LETTERS = 3  # the script of a side with fewer letters is not judged

NUMBER = re.compile(r"\d+(?:[ .,'’\u00a0\u202f，٬]\d{3}(?!\d))*")
LEAST_DIGITS = 3  # shorter numbers are not compared; they are often written as words, or as times of day
ADDRESS = re.compile(r"https?://[^\s<>\"`]+|www\.[^\s<>\"`]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# The code of a language, as a label of a host's name (fr.example.org) or a part of a path (/en-us/).
LANGUAGE_CODE = re.compile(r"(?<![^/.])[a-z]{2}(?:-[a-z]{2,4})?(?=[/.]|$)")
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
TAG = re.compile(
    r"<(?P<end>/)?(?P<name>[A-Za-z][A-Za-z0-9]*(?::[A-Za-z0-9]+)?)"
    r"(?P<attributes>(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*)\s*(?P<empty>/)?>|<!--.*?-->"
)
# Elements of HTML that are common in text. Other names in angle brackets, such as <file>, more often stand for a value.
ELEMENT = re.compile(
    r"a|b|big|blockquote|br|center|d[dlt]|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span|strike|strong|su[bp]|"
    r"tbody|t[dhrt]|u|ul|wbr",
    re.IGNORECASE,
)
CODE = re.compile(r"(``.+?``|`[^`]+`)")  # quoted, as in Markdown and reStructuredText
END = re.compile(r"[.!?…:;。！？：；।॥؟۔։።။།][\"'’”»)\]」』*`\s]*$")  # of a sentence
WORD = re.compile(r"\w+")
TERMINAL_CODE = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]")


class Sides:
    """A block of pairs as arrays: the characters of both sides, also in lower case, and the classes of characters."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.texts = (sources, targets)
        self.raw = (Block(sources), Block(targets))
        self.lower = (self.raw[0].lowered(), self.raw[1].lowered())
        self.flags: tuple[Flags, Flags] = (self.raw[0].flags(), self.raw[1].flags())

    def where(self, bits: int) -> list[int]:
        """Returns the indices of the pairs that have, on at least one side, a character with a class bit of `bits`."""
        places: list[int] = np.flatnonzero((self.flags[0] | self.flags[1]) & bits).tolist()
        return places

    def with_next(self, first: int, then: int) -> list[int]:
        """Returns the indices of pairs in which a character of class `first` comes directly before one of class `then`.

        Both characters are on the same side. `first` and `then` are class bits; LETTER | DIGIT stands for characters of
        at least one of the two classes.
        """
        places: list[int] = np.union1d(*(block.with_next(first, then) for block in self.raw)).tolist()
        return places

    def chosen(self, places: Iterable[int]) -> Chosen:
        """Returns a mask of the pairs, (L), which is True at the indices `places`."""
        chosen = np.zeros(len(self.texts[0]), dtype=np.bool_)
        chosen[list(places)] = True
        return chosen

    def having(self, places: Iterable[int], has_fault: Callable[[str], bool]) -> Chosen:
        """Returns a mask, (L), of those pairs among `places` that have a fault on at least one side.

        `places` are indices of pairs; `has_fault` judges the text of one side.
        """
        sources, targets = self.texts
        return self.chosen(place for place in places if has_fault(sources[place]) or has_fault(targets[place]))

    def differing(self, places: Iterable[int], differ: Callable[[str, str], bool]) -> Chosen:
        """Returns a mask, (L), of those pairs among the indices `places` for which `differ(source, target)` is true."""
        sources, targets = self.texts
        return self.chosen(place for place in places if differ(sources[place], targets[place]))


def judge(sides: Sides, learned: Learned) -> dict[str, Chosen]:
    """Returns, for each kind of fault that can be seen in a single pair, a mask of the pairs that have it, (L).

    A pair with a blank side has no other fault.
    """
    letters = [block.count(LETTER | MARK) for block in sides.raw]
    visible = [block.lengths - block.count(SPACE | CONTROL) for block in sides.raw]
    is_blank = (visible[0] == 0) | (visible[1] == 0)
    found = {**_faults_of_characters(sides, learned), **_faults_of_content(sides)}
    foreign = [block.count_foreign(scripts) for block, scripts in zip(sides.raw, learned.scripts, strict=True)]
    are_foreign = [
        (2 * number > all_letters) & (all_letters >= LEAST_SCRIPT_LETTERS)
        for number, all_letters in zip(foreign, letters, strict=True)
    ]
    found["wrong script"] = _with_foreign_words(sides, learned, are_foreign)
    have_few = [number < FEW_LETTERS * seen for number, seen in zip(letters, visible, strict=True)]
    found["no words"] |= sides.differing(np.flatnonzero(have_few[0] | have_few[1]).tolist(), _lacks_translated_words)
    is_sentence = ~(is_blank | found["no words"] | found["identical"] | found["wrong script"])
    found["swapped"], found["wrong language"] = _languages(sides, learned, is_sentence)
    # Texts in another language, or with tags, have other lengths for a reason of their own.
    is_judged = is_sentence & ~found["wrong language"] & ~found["markup"]
    found["length ratio"] = _far_longer(sides, learned, is_judged)
    return {"blank side": is_blank, **{name: chosen & ~is_blank for name, chosen in found.items()}}


def _faults_of_characters(sides: Sides, learned: Learned) -> dict[str, Chosen]:
    return {
        "replacement characters": sides.chosen(sides.where(REPLACED)),
        "mojibake": sides.having(sides.with_next(LEAD, TAIL), _has_mojibake),
        "private-use characters": sides.chosen(sides.where(PRIVATE)),
        "control characters": sides.chosen(_with_controls(sides, learned)),
        "spaces": sides.chosen(_with_odd_spaces(sides)),
        "not NFC": sides.having(sides.where(UNSTABLE), _is_decomposed),
        "markup": sides.having(sides.where(ANGLE), _has_markup),
    }


def _faults_of_content(sides: Sides) -> dict[str, Chosen]:
    with_digits = np.flatnonzero(sides.flags[0] & sides.flags[1] & DIGIT).tolist()
    with_addresses = sides.with_next(DOT, LETTER | DIGIT | DOT)
    with_same_content = np.flatnonzero(sides.lower[0].content_keys == sides.lower[1].content_keys).tolist()
    return {
        "identical": sides.differing(with_same_content, _are_same),
        "no words": sides.having(with_addresses, _is_address),
        "addresses differ": sides.differing(with_addresses, _addresses_differ),
        "numbers differ": sides.differing(with_digits, _numbers_differ),
    }


def _with_foreign_words(sides: Sides, learned: Learned, are_foreign: Sequence[Chosen]) -> Chosen:
    """Returns a mask, (L), of the pairs with a side on which most letters and most words are of a foreign script.

    A script is foreign if it is not usual on that side (`learned.scripts`). `are_foreign` has, for each side, a mask of
    the pairs in which most letters of that side are of a foreign script. Letters alone mislead: a name in Latin letters
    can have more letters than the Chinese sentence around it, in which each character is a word.
    """
    found = np.zeros(len(sides.texts[0]), dtype=np.bool_)
    for texts, scripts, chosen in zip(sides.texts, learned.scripts, are_foreign, strict=True):
        is_known = ALPHABET.is_of(scripts)
        for place in np.flatnonzero(chosen).tolist():
            foreign = [not is_known[ALPHABET.scripts[ord(word[0])]] for word in _words(texts[place])]
            found[place] |= 2 * sum(foreign) > len(foreign)
    return found


def _words(text: str) -> list[str]:
    """The words of a text that begin with a letter; in scripts without spaces, each character is a word."""
    characters = [f" {character} " if class_of(character) & ALONE else character for character in text]
    return [word for word in WORD.findall("".join(characters)) if class_of(word[0]) & LETTER]


def _languages(sides: Sides, learned: Learned, is_judged: Chosen) -> tuple[Chosen, Chosen]:
    """Returns masks, (L): pairs with source and target swapped, and pairs with exactly one side in a wrong language.

    Only the pairs of the mask `is_judged` are looked at. Words that occur on both sides, such as names and code, say
    nothing about the language. So a fault counts only if it is found both with and without these words.
    """
    is_swapped, is_foreign = np.zeros_like(is_judged), np.zeros_like(is_judged)
    if learned.languages is not None:
        swapped, foreign = _judged_languages(sides.lower, learned.languages)
        places = np.flatnonzero(is_judged & (swapped | foreign))
        if len(places):
            pairs = [_without_common_words(*(side[place].lower() for side in sides.texts)) for place in places.tolist()]
            sources, targets = (Block(side) for side in zip(*pairs, strict=True))
            swapped_still, foreign_still = _judged_languages((sources, targets), learned.languages)
            is_swapped[places] = swapped[places] & swapped_still
            is_foreign[places] = foreign[places] & (foreign_still | swapped_still) & ~is_swapped[places]
    return is_swapped, is_foreign


def _judged_languages(lower: tuple[Block, Block], languages: Languages) -> tuple[Chosen, Chosen]:
    """Returns masks, (L), of pairs with swapped sides and of pairs with exactly one side in a wrong language.

    `lower` are the sources and the targets in lower case.
    """
    opposite, third = zip(*(languages.foreign(side, Letters(block)) for side, block in enumerate(lower)), strict=True)
    # If both sides are in a third language, they are names or program code rather than sentences of it.
    return opposite[0] & opposite[1], (opposite[0] ^ opposite[1]) | (third[0] ^ third[1])


def _without_common_words(source: str, target: str) -> tuple[str, str]:
    """Returns both texts without the words that occur in both."""
    common = set(WORD.findall(source)) & set(WORD.findall(target))
    source, target = (WORD.sub(lambda m: "" if m[0] in common else m[0], text) for text in (source, target))
    return source, target


def _far_longer(sides: Sides, learned: Learned, is_judged: Chosen) -> Chosen:
    """Returns a mask, (L), of the judged pairs of which one side is far longer than is usual for the other.

    The ratio of the lengths must differ from the usual one by a factor of more than FREE_FACTOR. If only one side ends
    like a sentence, the other may be cut off, so a factor of more than LEAST_FACTOR is enough. In both cases, the ratio
    must also be an outlier by its standard deviation; see `Lengths.outliers`. `is_judged` is a mask of the pairs to
    judge, (L).
    """
    lengths = sides.lower[0].lengths, sides.lower[1].lengths
    is_longest = learned.lengths.outliers(*lengths, FREE_FACTOR)
    places = np.flatnonzero(is_judged & learned.lengths.outliers(*lengths) & ~is_longest).tolist()
    return (is_judged & is_longest) | sides.differing(places, lambda a, b: bool(END.search(a)) != bool(END.search(b)))


def _with_controls(sides: Sides, learned: Learned) -> list[int]:
    """Returns the indices of pairs with control characters; zero-width spaces are allowed in scripts without spaces."""
    places = sides.where(CONTROL)
    has_zero_width = [any(script in UNSPACED for script in scripts) for scripts in learned.scripts]

    def is_wrong(text: str, is_usual: bool) -> bool:
        text = mend_mojibake(text)  # mojibake may contain control characters
        text = text.replace("\u200b", "") if is_usual else text
        return text != mend_controls(text)

    return [
        p for p in places if any(is_wrong(t[p], usual) for t, usual in zip(sides.texts, has_zero_width, strict=True))
    ]


def _with_odd_spaces(sides: Sides) -> list[int]:
    odd: set[int] = set(sides.where(ODD_SPACE))
    for block in sides.raw:
        is_space = block.codes == 32
        after = np.concatenate([is_space[1:], [False]])
        ends = np.concatenate([block.codes[1:] == 10, [False]])
        begins = np.concatenate([[True], block.codes[:-1] == 10])
        bad = is_space & (after | ends | begins)
        odd.update(block.lines_of(np.flatnonzero(bad)).tolist())
    return sorted(odd)


def _is_decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def _has_markup(text: str) -> bool:
    return mend_markup(text) != text


def _are_same(source: str, target: str) -> bool:
    source, target = source.strip(), target.strip()
    return source == target or source.casefold() == target.casefold()


def _is_address(text: str) -> bool:
    """Whether a text consists of addresses (URLs or e-mail addresses), with no letters beside them."""
    return bool(ADDRESS.search(text)) and not any(map(str.isalpha, ADDRESS.sub("", text)))


def _lacks_translated_words(source: str, target: str) -> bool:
    """Whether two sides with few letters have no words that translate each other.

    This is so if the sides have different numbers of words, or the same words. Otherwise, the words may translate each
    other, as "à" and "to" do in "1.3 à 1.5" and "1.3 to 1.5".
    """
    words, others = _words(source.casefold()), _words(target.casefold())
    return len(words) != len(others) or set(words) == set(others)


def _addresses_differ(source: str, target: str) -> bool:
    """Whether at least one side has an address (URL or e-mail), but no address is on both sides."""
    first, second = (set(map(_site_or_address, ADDRESS.findall(text))) for text in (source, target))
    return bool(first or second) and not first & second


def _site_or_address(address: str) -> str:
    """The part of a URL or e-mail address that a translation must keep: all of it, or only its site (example.org).

    Returns only the site if the rest of the address contains a language code, since a translation may then lead to the
    page in its own language.
    """
    address = address.rstrip(".,;:!?)]'`_").lower()
    if "@" in address:
        return address
    address = re.sub(r"^(?:https?://)?(?:www\.)?", "", address).rstrip("/")
    host, _, path = address.partition("/")
    site = ".".join(host.split(".")[-2:])
    has_language = LANGUAGE_CODE.search(host.removesuffix(site)) or LANGUAGE_CODE.search(f"/{path}")
    return site if has_language else address


def _numbers_differ(source: str, target: str) -> bool:
    """Whether each side has a number of LEAST_DIGITS or more digits that the other side lacks; ignores separators."""
    return _has_other_numbers(source, target) and _has_other_numbers(target, source)


def _has_other_numbers(text: str, other: str) -> bool:
    numbers = list(map(_digits, NUMBER.findall(text)))
    if all(len(number) < LEAST_DIGITS for number in numbers):
        return False
    known = _digits(other)
    return any(len(number) >= LEAST_DIGITS and number not in known for number in numbers)


def _digits(text: str) -> str:
    """The decimal digits of a text as ASCII digits, whatever script they are written in."""
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


# Mending.


_BYTES = {chr(code): byte for code in range(0x80, 0x2123) if (byte := byte_of(chr(code))) is not None}
_LEADS = "".join(re.escape(character) for character, byte in _BYTES.items() if 0xC2 <= byte <= 0xF4)
_TAILS = "".join(re.escape(character) for character, byte in _BYTES.items() if 0x80 <= byte <= 0xBF)
BROKEN = re.compile(f"(?:[{_LEADS}][{_TAILS}]{{1,3}})+")
# A letter other than Ã and Â, followed by one of these, is more likely plain text than mojibake, unless a lower-case
# letter comes next.
QUOTES = "“”‘’…–—"


def mend_mojibake(text: str) -> str:
    """Restores characters whose UTF-8 bytes were decoded as Windows-1252 or Latin-1, once or twice; returns the text.

    Characters that look like mojibake stay as they are in three cases:

    - their bytes are not valid UTF-8
    - they would become a single character that is neither a Latin letter nor a common symbol
    - they are more likely a letter followed by a quotation mark or dash
    """
    for _ in range(2):
        mended = BROKEN.sub(_restored, text)
        if mended == text:
            break
        text = mended
    return text


def _has_mojibake(text: str) -> bool:
    return mend_mojibake(text) != text


def _restored(match: re.Match[str]) -> str:
    broken = match[0]
    try:
        restored = bytes(_BYTES[character] for character in broken).decode("utf-8")
    except UnicodeDecodeError:
        return broken
    is_likely = len(restored) > 1 or "\u00a0" <= restored < "\u0180" or "\u2010" <= restored < "\u2200"
    goes_on = match.string[match.end() : match.end() + 1].islower()
    is_quoted = len(broken) == 2 and broken[1] in QUOTES and broken[0] not in "ÃÂ" and not goes_on
    return restored if is_likely and not is_quoted else broken


def mend_markup(text: str) -> str:
    """Removes tags, and replaces entities by the characters that they stand for; leaves code in backticks unchanged.

    <name> counts as a tag if it is a common element of HTML, has attributes, or is closed by </name> or as <name/>.
    """
    ended = {match["name"] for match in TAG.finditer(text) if match["end"]} if "</" in text else set()

    def without(match: re.Match[str]) -> str:
        name = match["name"]
        is_tag = not name or match["end"] or match["empty"] or match["attributes"]
        return "" if is_tag or name in ended or ELEMENT.fullmatch(name) else match[0]

    parts = CODE.split(text)  # every second one is code
    parts[::2] = [ENTITY.sub(_unescaped, TAG.sub(without, part)) for part in parts[::2]]
    return "".join(parts)


def _unescaped(match: re.Match[str]) -> str:
    return html.unescape(match[0]).replace("\r", " ").replace("\n", " ")  # a line stays one line


def mend_controls(text: str) -> str:
    """Removes control characters, terminal codes and other invisible characters; replaces line separators by spaces."""
    text = TERMINAL_CODE.sub("", text)
    text = text.replace("\u2028", " ").replace("\u2029", " ").replace("\r", " ").replace("\x85", " ")
    return "".join(character for character in text if not class_of(character) & CONTROL)


def mend_spaces(text: str) -> str:
    """Replaces unusual spaces by plain ones, reduces several spaces to one, and removes spaces at both ends."""
    plain = "".join(" " if class_of(character) & ODD_SPACE else character for character in text)
    return re.sub(" {2,}", " ", plain).strip(" ")


MENDS: dict[str, Callable[[str], str]] = {
    "mojibake": mend_mojibake,
    "markup": mend_markup,
    "control characters": mend_controls,
    "spaces": mend_spaces,
    "not NFC": lambda text: unicodedata.normalize("NFC", text),
}


# Array shapes: L pairs of a block, B bands of their signatures.

ROWS = 4  # entries of a signature in each band, when pairs of the training text are compared with each other
LEAST_LENGTH = 30  # characters; pairs with a shorter side are not compared by signatures
NUM_BANDS = NUM_MINIMA // ROWS
LEAST_FILTER = 16  # a Bloom filter has at least 2 ** 16 bits
SPARSE = 4  # a Bloom filter has at least so many bits for each hash
# A pair is similar to earlier text if it shares so many bands with it. Pairs of similarity 0.9 are to be found; two
# bands find more than half of them, and one in eight of the pairs of similarity 0.8. One band would find half of those.
LEAST_BANDS = 2


class Seen:
    """A set of hashes, in sorted arrays.

    Most hashes that are looked up are new, and a search in arrays of many megabytes is slow. So a Bloom filter with one
    hash function (Bloom, 1970) is consulted first. It divides the possible hashes into equal ranges, with one bit for
    each range. If the bit is 0, the set has no hash in that range, and the arrays are not searched. There are at least
    SPARSE times as many ranges as hashes in the set.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[Any]] = []
        self._count = 0
        self._bits = np.zeros(1 << LEAST_FILTER - 3, dtype=np.uint8)

    def add(self, keys: NDArray[Any]) -> Chosen:
        """Adds the hashes `keys`; returns a mask of those hashes that were in the set or occur earlier in `keys`."""
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
        """Returns the position of the Bloom filter's bit for each hash: the index of its byte, and a mask of that byte.

        The mask is a byte in which only the bit for the hash is set.
        """
        unused = 8 * keys.itemsize - (len(self._bits).bit_length() - 1) - 3  # bits of a hash
        ranges = (keys >> keys.dtype.type(unused)).astype(np.intp)
        return ranges >> 3, np.left_shift(1, ranges & 7).astype(np.uint8)


def _joined(source: Ids, target: Ids) -> Ids:
    """Combines the hashes of the sources and targets into a hash of each pair, (L)."""
    return source * np.uint64(0x9E3779B97F4A7C15) + (target ^ (target >> np.uint64(32)))


def _content(sides: Sequence[Block]) -> tuple[Ids, Chosen]:
    """Returns, for each pair, a hash of its letters, numbers and symbols, (L), and whether it has any of them, (L)."""
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
        """Returns masks, (L), of the pairs that have occurred before: exactly, nearly, and in a similar form.

        A pair nearly repeats another one if both sides are the same but for case, punctuation and spaces. Pairs are
        similar if they are long and share most sequences of four characters on both sides. No pair is in two masks.

        Only the pairs of the mask `is_judged`, (L), are compared; they are remembered for later calls. `signatures` are
        the MinHash signatures of the sources and of the targets.
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
EDITS = 0.1  # the edit distance, relative to the length of a side, up to which a pair counts as nearly the same


class HeldOutPair(NamedTuple):
    """A validation or test pair; a source with several references makes one pair with each of them."""

    name: str  # of its set
    number: int  # of its line
    source: str
    target: str


class HeldOut:
    """Finds validation and test pairs in training text, even if they were slightly edited."""

    def __init__(self, pairs: Iterable[HeldOutPair]) -> None:
        self._pairs = [pair for pair in pairs if pair.source.strip() and pair.target.strip()]
        self._words: list[Pair] = []  # in lower case, without punctuation
        self._exact: dict[int, list[int]] = {}
        self._bands: dict[int, list[int]] = {}
        self.found: set[tuple[str, int]] = set()  # those in the training text: (name of set, number of line)
        self.nearly_found: set[tuple[str, int]] = set()
        if self._pairs:
            self._index()
        self._exact_keys = np.array(sorted(self._exact), dtype=np.uint64)
        self._band_keys = np.array(sorted(self._bands), dtype=np.uint64)

    @property
    def num_pairs(self) -> int:
        """The number of held-out lines without a blank side; a line with several references counts once."""
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
        """Returns two masks, (L): pairs that match a held-out pair, and pairs that would match one after small edits.

        Pairs match if they differ at most in case, punctuation and spaces. Adds the held-out pairs that are matched to
        the attribute `found`, and those that are matched after edits to `nearly_found`, as (name of set, line number).

        Only the pairs of the mask `is_judged`, (L), are compared. `signatures` are the MinHash signatures of the
        sources and of the targets.
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
    """The words of a text, joined by single spaces."""
    return " ".join(WORD.findall(text))


def _are_exchanged(pair: Pair, other: Pair) -> bool:
    """Whether two similar pairs differ in a number, name or piece of code, and so are no edits of each other.

    A word that is on both sides of a pair is taken for a number, name or code. Returns `True` if each pair has such a
    word that the other pair lacks, or has less often. For example, a sentence about "Python 3.3" and its translation
    are no edit of a pair about "Python 3.4", nor is an entry of a list an edit of the next entry.
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
    """The edit distance (insertions, deletions and substitutions) of two texts, if it is at most `limit`.

    For a larger distance, returns some number above `limit`. For speed, fills in only the diagonal band of the table of
    distances that is 2 x `limit` + 1 wide.
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


# Sides that slip out of alignment.

# Array shapes: L lines of a block, W words of a block, B buckets of hashed words, D width of the vectors, S shifts.

WIDTH = 128
BUCKETS = 1 << 14
# The pairs are divided into folds. A line is compared by vectors learnt from the other folds only; otherwise, every
# pair would confirm itself.
FOLDS = 4
MOST_WORDS = 500  # of a line; further words are ignored
SHRINKAGE = 3.0  # so many zero vectors are included in the mean of each source word, so that rare words weigh less

MOST_SHIFT = 8  # lines
LEAST_LINES = 400  # from a smaller sample, nothing is learnt
LEAST_GAIN = 0.06  # vectors are used only if the mean cosine of aligned pairs exceeds that of others by so much
# The usual gain is the mean cosine of aligned pairs minus that of other pairs. A slip is reported when the evidence for
# another shift, a sum of differences of cosines, reaches EVIDENCE times the usual gain. For source lines that fit no
# target line, the limit is EVIDENCE_LOST times LOST_GAIN times the usual gain.
EVIDENCE, EVIDENCE_LOST = 14.0, 25.0
LOST_GAIN = 0.3  # share of the usual gain; a source line that fits by less belongs to no target line

Vectors = NDArray[np.float32]

# If pairs do not seem to be aligned, these shifts of the whole text, in lines, are tried. The sides are unrelated if
# the gain is below UNRELATED_GAIN at every shift, and if the sample has at least UNRELATED_LINES pairs.
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
    """Word vectors, learnt from pairs most of which are aligned."""

    def __init__(self, source: Block, target: Block, numbers: NDArray[np.int64]) -> None:
        """Learns from the lines of a sample; `numbers` are the indices of these lines in the whole text, from 0."""
        random = np.random.default_rng(1).integers(0, 2, (BUCKETS, WIDTH), dtype=np.int8).astype(np.float32) * 2 - 1
        self._random = random * _weights(target)[:, None]  # (B, D)
        self._mean = np.zeros(WIDTH, dtype=np.float32)
        targets = self._target_vectors(target, center=False)
        self._mean = targets.mean(axis=0)
        targets = _unit(targets - self._mean)
        sums = np.zeros((FOLDS, BUCKETS, WIDTH), dtype=np.float32)
        counts = np.zeros((FOLDS, BUCKETS), dtype=np.float32)
        words, starts = _words_of(source)
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
        """Returns the mean cosine of aligned pairs of lines minus the mean cosine of unrelated lines.

        `numbers` are the indices of the lines in the whole text, (L).
        """
        sources, targets = self.vectors(source, target, numbers)
        shifted = [np.roll(targets, shift, axis=0) for shift in (MOST_SHIFT + 3, -MOST_SHIFT - 5)]
        return float((sources * targets).sum(1).mean() - np.mean([(sources * each).sum(1).mean() for each in shifted]))

    def vectors(self, source: Block, target: Block, numbers: NDArray[np.int64]) -> tuple[Vectors, Vectors]:
        """Returns unit vectors of the source lines and of the target lines, (L, D) each.

        `numbers` are the indices of the lines in the whole text, (L). The vector of a source line is learnt only from
        lines whose index differs from its own modulo FOLDS, so that no pair confirms itself.
        """
        words, starts = _words_of(source)
        words = words + np.repeat(numbers % FOLDS * BUCKETS, np.diff(starts))
        return _unit(_sums(self._learnt, words, starts)), self._target_vectors(target, center=True)

    def _target_vectors(self, target: Block, center: bool) -> Vectors:
        vectors = _unit(_sums(self._random, *_words_of(target)))
        return _unit(vectors - self._mean) if center else vectors


def associate(
    sources: Sequence[str], targets: Sequence[str], numbers: Sequence[int]
) -> "tuple[Associations | None, bool]":
    """Learns word vectors from a sample of lower-cased pairs; returns them, and whether the sides are unrelated.

    `numbers` are the indices of the pairs in the whole text. If the pairs do not seem to be aligned, small shifts of
    one side are tried, in case the whole text is shifted. Returns `None` in place of vectors if the sample is too small
    or the vectors do not tell aligned pairs from others.
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


def _words_of(block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the bucket of each word, (W), and offsets, (L + 1): the index of the first word of each line, then W.

    A bucket is a number below BUCKETS, the first bits of the word's hash, so equal words have equal buckets. Of each
    line, only the first MOST_WORDS words count.
    """
    hashes, starts = block.words()
    sizes = np.diff(starts)
    if sizes.max(initial=0) > MOST_WORDS:
        hashes = hashes[np.arange(len(hashes)) - np.repeat(starts[:-1], sizes) < MOST_WORDS]
        starts = np.concatenate([[0], np.cumsum(np.minimum(sizes, MOST_WORDS))])
    return (hashes >> np.uint64(50)).astype(np.int64), starts


def _weights(block: Block) -> NDArray[np.float32]:
    """The inverse document frequency of each bucket of words, (B); 0 for buckets that do not occur."""
    words, starts = _words_of(block)
    lines = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    number = np.bincount(np.unique(np.stack([words, lines]), axis=1)[0], minlength=BUCKETS)
    idf = np.log((len(block.starts) + 1) / np.maximum(number, 1))
    return np.where(number > 0, idf, 0).astype(np.float32)


CHUNK = 500  # lines; their vectors fit into a processor's cache


def _sums(table: Vectors, words: NDArray[np.int64], starts: NDArray[np.int64]) -> Vectors:
    """The sum of the vectors of the words of each line, (L, D).

    `words` has, for each word, the index of the row of `table` with its vector, (W). The words of line i are
    words[starts[i]:starts[i + 1]], so `starts` has L + 1 entries. For speed, lines are sorted by length and divided
    into chunks; in a chunk, the vectors of the n-th words of all lines are added at once.
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
    """Reads blocks of pairs in order, and collects in `slips` the lines at which the alignment changes."""

    def __init__(self, associations: Associations) -> None:
        self._associations = associations
        self._sources = np.zeros((0, WIDTH), dtype=np.float32)
        self._targets = np.zeros((0, WIDTH), dtype=np.float32)
        self._first = 0  # number of the first line that is held, from 0
        self._next = 0  # the number of the first line that has not been judged yet, from 0
        self._shifts: list[int] = list(range(-MOST_SHIFT, MOST_SHIFT + 1))
        self._current: int | None = 0
        self._sums = np.zeros(len(self._shifts) + 1)  # evidence for each shift; the last is for "no target line fits"
        self._since = np.zeros(len(self._shifts) + 1, dtype=np.int64)
        self.slips: list[Slip] = []

    def add(self, source: Block, target: Block) -> None:
        """Judges the next lines of the text, and adds the slips found to `slips`.

        The last MOST_SHIFT lines are judged only once further lines have been added.
        """
        end = self._first + len(self._sources)
        sources, targets = self._associations.vectors(source, target, np.arange(end, end + len(source.starts)))
        self._sources = np.concatenate([self._sources, sources])
        self._targets = np.concatenate([self._targets, targets])
        self._judge(end + len(sources) - MOST_SHIFT)
        kept = max(self._next - self._first - MOST_SHIFT, 0)
        self._sources, self._targets = self._sources[kept:], self._targets[kept:]
        self._first += kept

    def _judge(self, end: int) -> None:
        """Judges the lines from the first that is not judged yet to `end` - 1; adds the slips found to `slips`."""
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
        """Returns, for each alignment, the index of the line from which the evidence for it has been growing, (S + 1).

        The first S alignments are the shifts; in the last one, source lines belong to no target line. `totals` has, for
        each judged line, the sum of the gains up to that line; `lowest` has the lowest such sum up to that line, at
        most 0. Both are (L, S + 1).
        """
        is_low = totals <= lowest
        place = len(totals) - np.argmax(is_low[::-1], axis=0)  # after the last line with no evidence
        return np.where(is_low.any(axis=0), self._next + place, self._since)

    def _gains(self, begin: int, end: int) -> NDArray[np.float64]:
        """Returns how much better each alignment fits each line than the current alignment does, (L, S + 1).

        The values are differences of cosines, for the lines from `begin` to `end` - 1. The first S columns are the
        shifts from -MOST_SHIFT to MOST_SHIFT. The last column is for source lines that belong to no target line.
        """
        first = begin - self._first
        fits = _banded(self._sources[first : first + end - begin], self._targets, first)
        is_other = np.array([shift != self._current for shift in self._shifts])
        usual = np.median(fits[:, is_other], axis=1)
        lost = usual + LOST_GAIN * self._associations.gain
        current = lost if self._current is None else fits[:, self._shifts.index(self._current)]
        gains: NDArray[np.float64] = np.concatenate([fits, lost[:, None]], axis=1) - current[:, None]
        return gains


STRIP = 32  # source lines whose cosines with the target lines near them are computed by one matrix product


def _banded(sources: Vectors, targets: Vectors, first: int) -> NDArray[np.float32]:
    """The cosines of each source line with the target lines near it, (L, S).

    For source line n, these are the target lines from `first` + n - MOST_SHIFT to `first` + n + MOST_SHIFT. The cosine
    is 0 where there is no such target line. Each strip of lines is multiplied with all targets near it, and the
    diagonals of the products are kept.
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
