"""Judges pairs one by one, against what is usual in the text; and mends texts."""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mtkit.doctor.characters import (
    ALONE,
    ALPHABET,
    ANGLE,
    CONTROL,
    DIGIT,
    DOT,
    LEAD,
    LETTER,
    MARK,
    ODD_SPACE,
    PRIVATE,
    REPLACED,
    SPACE,
    TAIL,
    UNSPACED,
    UNSTABLE,
    Block,
    Flags,
    Letters,
    byte_of,
    class_of,
)
from mtkit.doctor.learned import FREE_FACTOR, Languages, Learned

Chosen = NDArray[np.bool_]  # of the pairs of a block, (L)

FEW_LETTERS = 0.2  # share of the visible characters; a side with fewer letters has no words
LEAST_SCRIPT_LETTERS = 3  # of a line whose script is judged

NUMBER = re.compile(r"\d+(?:[ .,'’\u00a0\u202f，٬]\d{3}(?!\d))*")
LEAST_DIGITS = 3  # of the numbers that are compared; smaller ones are often written as words, or as times of day
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
    """A block of pairs with what is known of them: characters as they are and in lower case, and classes."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.texts = (sources, targets)
        self.raw = (Block(sources), Block(targets))
        self.lower = (self.raw[0].lowered(), self.raw[1].lowered())
        self.flags: tuple[Flags, Flags] = (self.raw[0].flags(), self.raw[1].flags())

    def where(self, bits: int) -> list[int]:
        """The places of the pairs with a character of these classes on a side."""
        places: list[int] = np.flatnonzero((self.flags[0] | self.flags[1]) & bits).tolist()
        return places

    def with_next(self, first: int, then: int) -> list[int]:
        """The places of the pairs with a character of the classes `first` before one of `then` on a side."""
        places: list[int] = np.union1d(*(block.with_next(first, then) for block in self.raw)).tolist()
        return places

    def chosen(self, places: Iterable[int]) -> Chosen:
        """The pairs at these places."""
        chosen = np.zeros(len(self.texts[0]), dtype=np.bool_)
        chosen[list(places)] = True
        return chosen

    def having(self, places: Iterable[int], has_fault: Callable[[str], bool]) -> Chosen:
        """Which pairs have a fault on at least one side, of the pairs at `places`; (L).

        `has_fault` judges the text of one side.
        """
        sources, targets = self.texts
        return self.chosen(place for place in places if has_fault(sources[place]) or has_fault(targets[place]))

    def differing(self, places: Iterable[int], differ: Callable[[str, str], bool]) -> Chosen:
        """Those of the pairs at these places whose sides differ in some way."""
        sources, targets = self.texts
        return self.chosen(place for place in places if differ(sources[place], targets[place]))


def judge(sides: Sides, learned: Learned) -> dict[str, Chosen]:
    """For each kind of fault that can be seen in a single pair: which pairs of the block have it.

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
    """Returns which of the pairs chosen by letters have mostly words of a foreign script, too, on the same side.

    `are_foreign` has, for each side, the pairs in which most letters are of a foreign script. Letters alone mislead: a
    name in Latin letters can have more of them than the Chinese sentence around it, in which each character is a word.
    """
    found = np.zeros(len(sides.texts[0]), dtype=np.bool_)
    for texts, scripts, chosen in zip(sides.texts, learned.scripts, are_foreign, strict=True):
        is_known = ALPHABET.is_of(scripts)
        for place in np.flatnonzero(chosen).tolist():
            foreign = [not is_known[ALPHABET.scripts[ord(word[0])]] for word in _words(texts[place])]
            found[place] |= 2 * sum(foreign) > len(foreign)
    return found


def _words(text: str) -> list[str]:
    """The words of a text that begin with a letter; each character of scripts without spaces is one."""
    characters = [f" {character} " if class_of(character) & ALONE else character for character in text]
    return [word for word in WORD.findall("".join(characters)) if class_of(word[0]) & LETTER]


def _languages(sides: Sides, learned: Learned, is_judged: Chosen) -> tuple[Chosen, Chosen]:
    """Which pairs have changed sides, and which have one side, and only one, in another language.

    Words on both sides, such as names and code, say nothing of the language: a pair is judged with and without them.
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
    """Which pairs have each side in the other's language, and which have one side alone in another language."""
    opposite, third = zip(*(languages.foreign(side, Letters(block)) for side, block in enumerate(lower)), strict=True)
    # If both sides are in a third language, they are names or program code rather than sentences of it.
    return opposite[0] & opposite[1], (opposite[0] ^ opposite[1]) | (third[0] ^ third[1])


def _without_common_words(source: str, target: str) -> tuple[str, str]:
    """Both texts without the words that they share."""
    common = set(WORD.findall(source)) & set(WORD.findall(target))
    source, target = (WORD.sub(lambda m: "" if m[0] in common else m[0], text) for text in (source, target))
    return source, target


def _far_longer(sides: Sides, learned: Learned, is_judged: Chosen) -> Chosen:
    """Which pairs have one side far longer than is usual for the other.

    If only one side ends as sentences do, the other may be cut off, so LEAST_FACTOR times the usual length is far.
    Otherwise, FREE_FACTOR times is. See `Lengths.outliers`.
    """
    lengths = sides.lower[0].lengths, sides.lower[1].lengths
    is_longest = learned.lengths.outliers(*lengths, FREE_FACTOR)
    places = np.flatnonzero(is_judged & learned.lengths.outliers(*lengths) & ~is_longest).tolist()
    return (is_judged & is_longest) | sides.differing(places, lambda a, b: bool(END.search(a)) != bool(END.search(b)))


def _with_controls(sides: Sides, learned: Learned) -> list[int]:
    """The pairs with control characters, other than zero-width spaces in scripts without spaces."""
    places = sides.where(CONTROL)
    has_zero_width = [any(script in UNSPACED for script in scripts) for scripts in learned.scripts]

    def is_wrong(text: str, is_usual: bool) -> bool:
        text = mend_mojibake(text)  # its parts may be controls
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
    """Whether a text consists of addresses, with no word beside them."""
    return bool(ADDRESS.search(text)) and not any(map(str.isalpha, ADDRESS.sub("", text)))


def _lacks_translated_words(source: str, target: str) -> bool:
    """Whether two sides with few letters have no words that translate each other.

    So it is if the sides have different numbers of words, or the same words. Otherwise the words may be translations,
    as those among figures in "1.3 à 1.5" for "1.3 to 1.5".
    """
    words, others = _words(source.casefold()), _words(target.casefold())
    return len(words) != len(others) or set(words) == set(others)


def _addresses_differ(source: str, target: str) -> bool:
    """Whether there are addresses on a side, but none that both sides have."""
    first, second = (set(map(_site_or_address, ADDRESS.findall(text))) for text in (source, target))
    return bool(first or second) and not first & second


def _site_or_address(address: str) -> str:
    """The part of an address that a translation must keep: the whole, or only its site.

    Only the site is kept if the rest has the code of a language, so that it leads to a page in that language.
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
    """Whether each side has a number that the other one lacks; separators of thousands do not count."""
    return _has_other_numbers(source, target) and _has_other_numbers(target, source)


def _has_other_numbers(text: str, other: str) -> bool:
    numbers = list(map(_digits, NUMBER.findall(text)))
    if all(len(number) < LEAST_DIGITS for number in numbers):
        return False
    known = _digits(other)
    return any(len(number) >= LEAST_DIGITS and number not in known for number in numbers)


def _digits(text: str) -> str:
    """The digits of a text, as ASCII whatever script they are of."""
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


# Mending.


_BYTES = {chr(code): byte for code in range(0x80, 0x2123) if (byte := byte_of(chr(code))) is not None}
_LEADS = "".join(re.escape(character) for character, byte in _BYTES.items() if 0xC2 <= byte <= 0xF4)
_TAILS = "".join(re.escape(character) for character, byte in _BYTES.items() if 0x80 <= byte <= 0xBF)
BROKEN = re.compile(f"(?:[{_LEADS}][{_TAILS}]{{1,3}})+")
QUOTES = "“”‘’…–—"  # as the last of two characters, these are more likely punctuation, unless the word goes on


def mend_mojibake(text: str) -> str:
    """The text with characters restored whose UTF-8 bytes were read as Windows-1252 or Latin-1, once or twice.

    Sequences that are not valid UTF-8, or would become an unlikely single character, stay as they are.
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
    """The text without tags, and with characters in place of entities; code in backticks stays as it is.

    <name> counts as a tag if it is a common element of HTML, has attributes, or has an end.
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
    """The text without controls and invisible characters; separators of lines become spaces."""
    text = TERMINAL_CODE.sub("", text)
    text = text.replace("\u2028", " ").replace("\u2029", " ").replace("\r", " ").replace("\x85", " ")
    return "".join(character for character in text if not class_of(character) & CONTROL)


def mend_spaces(text: str) -> str:
    """The text without spaces at its ends, with single spaces within, and plain ones in place of odd ones."""
    plain = "".join(" " if class_of(character) & ODD_SPACE else character for character in text)
    return re.sub(" {2,}", " ", plain).strip(" ")


MENDS: dict[str, Callable[[str], str]] = {
    "mojibake": mend_mojibake,
    "markup": mend_markup,
    "control characters": mend_controls,
    "spaces": mend_spaces,
    "not NFC": lambda text: unicodedata.normalize("NFC", text),
}
