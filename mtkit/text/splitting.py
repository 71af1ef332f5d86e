"""A line too long for the model is cut into parts that fit, and their translations are joined."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"  # written without spaces, or full-width
_CLOSING = "\"'”’»›)\\]}」』）】》〉"
_SENTENCE_MARKS = re.compile(rf"[.!?…؟।۔。！？｡]+[{_CLOSING}]*(?:\s»(?!\S))?")  # French puts a space before »
_CLAUSE_MARKS = re.compile(rf"[,;:–—،؛、，；：]+[{_CLOSING}]*(?:\s»(?!\S))?")
_ENOUGH_ALONE = frozenset("。！？｡—、，；：")  # these are an end whatever follows; a full stop may be a decimal point
_MAY_FOLLOW = re.compile(rf"\s|[{WIDE}]|\Z")
_BREAKING_SPACE = re.compile(r"[^\S\u00a0\u202f\u2007]+")
_NOT_SPACE = re.compile(r"\S")
_ENDS_LIKE_A_SENTENCE = re.compile(rf"[.!?…][{_CLOSING}]*\Z")
_WIDE_FIRST = re.compile(rf"[{WIDE}]")
_FIRST_TRY = 256  # characters; the search for what fits doubles or halves from here
_WORD = re.compile(r"(\S+)\s*")
_JOINER = "\u200d"  # makes one emoji of several


@dataclass(frozen=True)
class Part:
    """A part of a line."""

    text: str
    separator: str  # what joins it to the next part: a space where white space was cut, else nothing


def split_line(line: str, fits: Callable[[str], bool]) -> list[Part]:
    """The line in parts as long as fit, cut after sentences, else after clauses, else at spaces, else anywhere.

    Only white space is lost, at the cuts and the ends; a blank line has no parts. A part that does not fit is a single
    character. fits is asked about O(n log n) characters in all: a text fits, as a rule, where a longer one does.
    """
    cuts = (
        list(_ends(_SENTENCE_MARKS, line)),
        list(_ends(_CLAUSE_MARKS, line)),
        [space.start() for space in _BREAKING_SPACE.finditer(line)],
    )
    parts: list[Part] = []
    first = _NOT_SPACE.search(line)
    last = len(line.rstrip())
    while first:
        begin = first.start()
        text = line[begin : _best_end(line, begin, last, cuts, fits)].rstrip()
        end = begin + len(text)
        first = _NOT_SPACE.search(line, end)
        parts.append(Part(text, " " if first and first.start() > end else ""))
    return parts


def split_tags(line: str, tags: Collection[str]) -> tuple[str, str]:
    """The tags that a line begins with, and what follows them."""
    begin = place = len(line) - len(line.lstrip())
    while tags and (word := _WORD.match(line, place)) and word[1] in tags:
        place = word.end()
    return line[begin:place].rstrip(), line[place:]


def join_parts(parts: Sequence[str], separators: Sequence[str]) -> str:
    """The translations of a line's parts as one line; separators has those of the parts, the last of no use.

    Languages without spaces are translated into languages with them: a translation that ends like a sentence gets a
    space after it even where the source had none, unless what follows is written without spaces, too.
    """
    joined = ""
    separator = ""
    for part, after in zip(parts, separators, strict=True):
        if not separator and part and _ENDS_LIKE_A_SENTENCE.search(joined[-8:]) and not _WIDE_FIRST.match(part):
            separator = " "
        joined += (separator if joined and part else "") + part
        separator = after if part else separator or after
    return joined


def _ends(marks: re.Pattern[str], line: str) -> Iterator[int]:
    """The places after marks that end a sentence or a clause."""
    for match in marks.finditer(line):
        if _MAY_FOLLOW.match(line, match.end()) or not _ENOUGH_ALONE.isdisjoint(match.group()):
            yield match.end()


def _best_end(line: str, begin: int, last: int, cuts: Sequence[list[int]], fits: Callable[[str], bool]) -> int:
    """Where the part that starts at begin ends best."""
    reach = _reach(line, begin, last, fits)
    if reach == last:
        return last
    for places in cuts:
        place = bisect_right(places, reach) - 1
        # The longer text fitted, so the first one does but for the quirks of a tokenizer.
        while place >= 0 and places[place] > begin:
            if fits(line[begin : places[place]].rstrip()):
                return places[place]
            place -= 1
    end = reach
    while end > begin and _inside_a_character(line, begin, end):
        end -= 1
    return end if end > begin and fits(line[begin:end].rstrip()) else reach


def _reach(line: str, begin: int, last: int, fits: Callable[[str], bool]) -> int:
    """The end of the longest text from begin that fits; one character at least."""

    def fits_to(end: int) -> bool:
        return fits(line[begin:end].rstrip())

    low, high = begin + 1, min(begin + _FIRST_TRY, last)  # low fits, or is a single character; high is to be found
    while low < high and fits_to(high):
        if high == last:
            return last
        low, high = high, min(begin + 2 * (high - begin), last)
    while high - low > 1:
        middle = (low + high) // 2
        if fits_to(middle):
            low = middle
        else:
            high = middle
    return low


def _inside_a_character(line: str, begin: int, place: int) -> bool:
    """Whether a cut here would part what is seen as one character: an accent from its letter, one half of a flag."""
    after = line[place]
    if after == _JOINER or line[place - 1] == _JOINER or "\U0001f3fb" <= after <= "\U0001f3ff":  # tones of skin
        return True
    if _is_flag_letter(after):
        start = place
        while start > begin and _is_flag_letter(line[start - 1]):
            start -= 1
        return (place - start) % 2 == 1
    return unicodedata.category(after).startswith("M")


def _is_flag_letter(character: str) -> bool:
    """Two of these make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"
