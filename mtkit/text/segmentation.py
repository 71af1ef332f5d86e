"""How a line is cut: into parts that fit a model, into words, and at random into pieces."""

import math
import random
import re
import unicodedata
from bisect import bisect, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import nlargest
from itertools import accumulate, pairwise

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


# Segmentations drawn by chance: BPE-dropout (Provilkov et al. 2020) and unigram sampling (Kudo 2018).

SPACE_MARK = "\u2581"  # what SentencePiece writes spaces as, and before each word
MOST_WORDS = 1 << 17  # whose preparation is kept


@dataclass(frozen=True)
class Pieces:
    """The pieces of a subword model that stand for text."""

    ids: dict[str, int]
    scores: dict[str, float]  # in BPE the higher is merged first, in unigram they are log-probabilities
    symbols: tuple[str, ...]  # that are never split
    encode: Callable[[str], list[int]]  # the best segmentation of a word without its space mark

    def can_vary(self, word: str) -> bool:
        """Whether all is made of pieces: what is spelled in bytes, unknown or a symbol has but one segmentation."""
        return all(character in self.ids for character in word) and not any(symbol in word for symbol in self.symbols)


Draw = Callable[[random.Random], Sequence[int]]  # the ids of one segmentation of a word
Prepare = Callable[[str], Draw]  # of a word without its space mark


class Segmenter:
    """Turns texts into ids, word by word, by chance."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = lru_cache(MOST_WORDS)(prepare)

    def __call__(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        """The ids of texts whose words stand between single spaces; the same for the same seed, on every machine."""
        chance = random.Random(seed)
        prepare = self._prepare
        return [[id_ for word in text.split(" ") if word for id_ in prepare(word)(chance)] for text in texts]


def bpe_dropout(pieces: Pieces, dropout: float) -> Prepare:
    """At each step each merge is left out with this probability (Provilkov et al. 2020, algorithm 1)."""

    def prepare(word: str) -> Draw:
        if not dropout or not pieces.can_vary(SPACE_MARK + word):
            return partial(_certain, pieces.encode(word))
        stages = [list(SPACE_MARK + word)]  # the word after 0, 1, … of its merges, none of them left out
        while places := _merges(stages[-1], pieces):
            stages.append(_merged(stages[-1], places[0]))
        whole = [pieces.ids[piece] for piece in stages[-1]]
        return partial(_merge_some, pieces, dropout, stages, whole)

    return prepare


def _certain(ids: list[int], chance: random.Random) -> list[int]:
    return ids


def _merge_some(
    pieces: Pieces, dropout: float, stages: list[list[str]], whole: list[int], chance: random.Random
) -> list[int]:
    # How many best merges stay until one is left out; the others that are left out meanwhile change nothing.
    stay = int(math.log(1.0 - chance.random()) / math.log(1.0 - dropout))
    if stay >= len(stages) - 1:
        return whole
    symbols = stages[stay]
    places = _merges(symbols, pieces)[1:]
    while (place := next((place for place in places if chance.random() >= dropout), None)) is not None:
        symbols = _merged(symbols, place)
        places = _merges(symbols, pieces)
    return [pieces.ids[piece] for piece in symbols]


def _merges(symbols: list[str], pieces: Pieces) -> list[int]:
    """Places of the neighbours that can be merged, the best first, of equals the first."""
    scores = pieces.scores
    pairs = [(scores.get(left + right), place) for place, (left, right) in enumerate(pairwise(symbols))]
    return [place for _, place in sorted((-score, place) for score, place in pairs if score is not None)]


def _merged(symbols: list[str], place: int) -> list[str]:
    return [*symbols[:place], symbols[place] + symbols[place + 1], *symbols[place + 2 :]]


def unigram_sampling(pieces: Pieces, alpha: float, num_best: int) -> Prepare:
    """By the probability to the power of alpha (Kudo 2018, section 3.2), from the best ones, or from all if it is -1.

    From all: forward filtering, backward sampling. The best ones are those of each word, not of the sentence.
    """
    longest = max(map(len, pieces.ids), default=1)

    def prepare(word: str) -> Draw:
        marked = SPACE_MARK + word
        if not pieces.can_vary(marked):
            return partial(_certain, pieces.encode(word))
        edges = [_edges(marked, end, longest, pieces) for end in range(len(marked) + 1)]
        if num_best == -1:
            return partial(_walk_back, _arcs(edges, alpha))
        return _choice_of(_best_paths(edges, num_best), alpha)

    return prepare


Edge = tuple[int, int, float]  # where a piece begins, its id and its score


def _edges(word: str, end: int, longest: int, pieces: Pieces) -> list[Edge]:
    """The pieces that end at a place."""
    starts = range(max(0, end - longest), end)
    found = ((start, word[start:end]) for start in starts)
    return [(start, pieces.ids[piece], pieces.scores[piece]) for start, piece in found if piece in pieces.ids]


def _arcs(edges: list[list[Edge]], alpha: float) -> list[tuple[list[float], list[tuple[int, int]]]]:
    """For each place the cumulative probabilities of the pieces that end there, and where they begin, and their ids."""
    forward = [0.0]  # logarithm of the sum over all segmentations up to a place
    arcs: list[tuple[list[float], list[tuple[int, int]]]] = [([], [])]
    for here in edges[1:]:
        weights = [forward[start] + alpha * score for start, _, score in here]
        most = max(weights)
        total = most + math.log(sum(math.exp(weight - most) for weight in weights))
        forward.append(total)
        cumulative = list(accumulate(math.exp(weight - total) for weight in weights))
        arcs.append((cumulative, [(start, id_) for start, id_, _ in here]))
    return arcs


def _walk_back(arcs: list[tuple[list[float], list[tuple[int, int]]]], chance: random.Random) -> list[int]:
    end, ids = len(arcs) - 1, []
    while end:
        cumulative, ways = arcs[end]
        end, id_ = ways[min(bisect(cumulative, chance.random()), len(ways) - 1)]
        ids.append(id_)
    return ids[::-1]


def _best_paths(edges: list[list[Edge]], num_best: int) -> list[tuple[float, list[int]]]:
    """The segmentations of a word that score highest, and their scores."""
    best: list[list[tuple[float, list[int]]]] = [[(0.0, [])]]
    for here in edges[1:]:
        paths = ((total + score, [*ids, id_]) for start, id_, score in here for total, ids in best[start])
        best.append(nlargest(num_best, paths))
    return best[-1]


def _choice_of(paths: list[tuple[float, list[int]]], alpha: float) -> Draw:
    most = paths[0][0]
    cumulative = list(accumulate(math.exp(alpha * (score - most)) for score, _ in paths))

    def draw(chance: random.Random) -> list[int]:
        place = bisect(cumulative, chance.random() * cumulative[-1])
        return paths[min(place, len(paths) - 1)][1]

    return draw


# The words that pieces are parts of.

_WIDE_CHARACTER = re.compile(f"[{WIDE}]")


def group_by_word(pieces: Sequence[str]) -> list[int]:
    """For each piece of a line the number of its word, from 0.

    A word begins at a space mark. A piece of a script that is written without spaces is a word of its own.
    """
    groups: list[int] = []
    number, new = -1, True
    for piece in pieces:
        wide = _WIDE_CHARACTER.search(piece) is not None
        # A space mark alone belongs to the piece behind it.
        is_continued_mark = groups and pieces[len(groups) - 1] == SPACE_MARK
        if new or piece.startswith(SPACE_MARK) or (wide and not is_continued_mark):
            number += 1
        groups.append(number)
        new = wide or (len(piece) > 1 and piece.endswith(SPACE_MARK))
    return groups
