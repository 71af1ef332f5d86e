"""Splits long lines, samples subword segmentations, groups pieces into words, and encodes large amounts of text."""

import codecs
import math
import random
import re
import unicodedata
from bisect import bisect, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import nlargest
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Splitting long lines.

WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"  # characters mostly written without spaces
_CLOSING = "\"'”’»›)\\]}」』）】》〉"
_SENTENCE_MARKS = re.compile(rf"[.!?…؟।۔。！？｡]+[{_CLOSING}]*(?:\s»(?!\S))?")  # French puts a space before »
_CLAUSE_MARKS = re.compile(rf"[,;:–—،؛、，；：]+[{_CLOSING}]*(?:\s»(?!\S))?")
_ALWAYS_END = frozenset("。！？｡—、，；：")  # always end one, unlike a full stop, which may be a decimal point
_MAY_FOLLOW = re.compile(rf"\s|[{WIDE}]|\Z")
_BREAKING_SPACE = re.compile(r"[^\S\u00a0\u202f\u2007]+")
_NOT_SPACE = re.compile(r"\S")
_ENDS_LIKE_A_SENTENCE = re.compile(rf"[.!?…][{_CLOSING}]*\Z")
_WIDE_CHARACTER = re.compile(rf"[{WIDE}]")
_FIRST_TRY = 256  # number of characters; the search for the longest text that fits starts with it
_WORD = re.compile(r"(\S+)\s*")
_JOINER = "\u200d"  # joins several emoji into one


@dataclass(frozen=True)
class Part:
    """One of the parts into which a line was split."""

    text: str
    separator: str  # joins the part to the next one: a space if white space was between them, else ""


def split_line(line: str, fits: Callable[[str], bool]) -> list[Part]:
    """Split `line` into parts for which `fits` is true, each as long as possible.

    The line is cut after a sentence if possible, else after a clause, else at a space, else between any two visible
    characters. Nothing is lost except white space at the cuts and at the ends of the line; a blank line has no parts. A
    part that does not fit can only be a single character. If a text fits, any shorter text with the same beginning is
    assumed to fit, too. For a line of n characters, all texts passed to `fits` have O(n log n) characters in total.
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
    """Returns (the tags at the beginning of `line`, as one string; the rest of the line)."""
    begin = position = len(line) - len(line.lstrip())
    while tags and (word := _WORD.match(line, position)) and word[1] in tags:
        position = word.end()
    return line[begin:position].rstrip(), line[position:]


def join_parts(parts: Sequence[str], separators: Sequence[str]) -> str:
    """Join `parts`, the translations of the parts of a line; `separators[i]` follows `parts[i]`.

    The separators are those of the source (`Part.separator`); the last one is not used. A source without spaces may be
    translated into a language with spaces. So if a separator is empty but the translation before it ends like a
    sentence, a space is inserted, unless the next translation is in a script without spaces.
    """
    joined = ""
    separator = ""
    for part, after in zip(parts, separators, strict=True):
        if not separator and part and _ENDS_LIKE_A_SENTENCE.search(joined[-8:]) and not _WIDE_CHARACTER.match(part):
            separator = " "
        joined += (separator if joined and part else "") + part
        separator = after if part else separator or after
    return joined


def _ends(marks: re.Pattern[str], line: str) -> Iterator[int]:
    """Yields the positions directly after the punctuation marks that end a sentence or a clause."""
    for match in marks.finditer(line):
        if _MAY_FOLLOW.match(line, match.end()) or not _ALWAYS_END.isdisjoint(match.group()):
            yield match.end()


def _best_end(line: str, begin: int, last: int, cuts: Sequence[list[int]], fits: Callable[[str], bool]) -> int:
    """The position in `line` at which to end the part that starts at `begin`.

    `cuts` are lists of possible positions, the preferred list first; `last` is the position where the trailing white
    space of the line begins.
    """
    reach = _reach(line, begin, last, fits)
    if reach == last:
        return last
    for positions in cuts:
        position = bisect_right(positions, reach) - 1
        # A longer text fits, so this one should fit, too, but tokenizers have quirks.
        while position >= 0 and positions[position] > begin:
            if fits(line[begin : positions[position]].rstrip()):
                return positions[position]
            position -= 1
    end = reach
    while end > begin and _inside_a_character(line, begin, end):
        end -= 1
    return end if end > begin and fits(line[begin:end].rstrip()) else reach


def _reach(line: str, begin: int, last: int, fits: Callable[[str], bool]) -> int:
    """The end position of the longest text from `begin` that fits; `begin + 1` if no text fits."""

    def fits_to(end: int) -> bool:
        return fits(line[begin:end].rstrip())

    low, high = begin + 1, min(begin + _FIRST_TRY, last)  # the text up to low fits or is one character
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


def _inside_a_character(line: str, begin: int, position: int) -> bool:
    """Whether a cut at `position` would split a visible character.

    For example, such a cut would separate an accent from its letter, or one half of a flag from the other.
    """
    after = line[position]
    if after == _JOINER or line[position - 1] == _JOINER or "\U0001f3fb" <= after <= "\U0001f3ff":  # skin tones
        return True
    if _is_flag_letter(after):
        start = position
        while start > begin and _is_flag_letter(line[start - 1]):
            start -= 1
        return (position - start) % 2 == 1
    return unicodedata.category(after).startswith("M")


def _is_flag_letter(character: str) -> bool:
    """Whether `character` is a regional indicator symbol; two of these make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


# Sampling segmentations: BPE-dropout (Provilkov et al. 2020) and unigram sampling (Kudo 2018).

SPACE_MARK = "\u2581"  # ▁, which SentencePiece writes before each word, in place of a space
MOST_WORDS = 1 << 17  # number of words whose samplers are cached


@dataclass(frozen=True)
class SubwordModel:
    """The pieces of a BPE or unigram model, for sampling segmentations."""

    ids: dict[str, int]
    scores: dict[str, float]  # BPE: pieces with higher scores are merged first; unigram: log-probabilities
    symbols: tuple[str, ...]  # pieces that are never split
    encode: Callable[[str], list[int]]  # takes a word without its space mark; returns the ids of its best segmentation

    def can_vary(self, word: str) -> bool:
        """Whether `word` may have several segmentations.

        A word may have several if each of its characters is a piece of the model and none of `symbols` occurs in the
        word. A character that is not a piece has only one segmentation: the unknown token or its bytes.
        """
        return all(character in self.ids for character in word) and not any(symbol in word for symbol in self.symbols)


WordSampler = Callable[[random.Random], Sequence[int]]  # returns the ids of a random segmentation of one word
MakeWordSampler = Callable[[str], WordSampler]  # takes a word without its space mark


class SegmentationSampler:
    """Encodes texts with a random segmentation of each word."""

    def __init__(self, make_sampler: MakeWordSampler) -> None:
        self._sampler_of = lru_cache(MOST_WORDS)(make_sampler)

    def __call__(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        """Returns the ids of each text; the words of a text must be separated by spaces.

        The same seed gives the same ids on every machine.
        """
        rng = random.Random(seed)
        sampler_of = self._sampler_of
        return [[id_ for word in text.split(" ") if word for id_ in sampler_of(word)(rng)] for text in texts]


def bpe_dropout(model: SubwordModel, dropout: float) -> MakeWordSampler:
    """Returns a function that makes, for a given word, a sampler of its segmentations by BPE-dropout.

    At each step of BPE, each possible merge is skipped with probability `dropout` (Provilkov et al. 2020, algorithm 1).
    """

    def make_sampler(word: str) -> WordSampler:
        if not dropout or not model.can_vary(SPACE_MARK + word):
            return partial(_only_segmentation, model.encode(word))
        stages = [list(SPACE_MARK + word)]  # the word after 0, 1, … merges of ordinary BPE
        while positions := _merges(stages[-1], model):
            stages.append(_merged(stages[-1], positions[0]))
        whole = [model.ids[piece] for piece in stages[-1]]
        return partial(_sample_merges, model, dropout, stages, whole)

    return make_sampler


def _only_segmentation(ids: list[int], rng: random.Random) -> list[int]:
    return ids


def _sample_merges(
    model: SubwordModel, dropout: float, stages: list[list[str]], whole: list[int], rng: random.Random
) -> list[int]:
    # Number of steps before the best merge is first skipped; skipping other merges until then has no effect.
    num_merges = int(math.log(1.0 - rng.random()) / math.log(1.0 - dropout))
    if num_merges >= len(stages) - 1:
        return whole
    symbols = stages[num_merges]
    positions = _merges(symbols, model)[1:]
    while (position := next((position for position in positions if rng.random() >= dropout), None)) is not None:
        symbols = _merged(symbols, position)
        positions = _merges(symbols, model)
    return [model.ids[piece] for piece in symbols]


def _merges(symbols: list[str], model: SubwordModel) -> list[int]:
    """The positions of symbols that can be merged with the next symbol, best merge first; ties go to the leftmost."""
    scores = model.scores
    pairs = [(scores.get(left + right), position) for position, (left, right) in enumerate(pairwise(symbols))]
    return [position for _, position in sorted((-score, position) for score, position in pairs if score is not None)]


def _merged(symbols: list[str], position: int) -> list[str]:
    return [*symbols[:position], symbols[position] + symbols[position + 1], *symbols[position + 2 :]]


def unigram_sampling(model: SubwordModel, alpha: float, num_best: int) -> MakeWordSampler:
    """Returns a function that makes, for a given word, a sampler of its segmentations under a unigram model.

    A segmentation is sampled in proportion to p ** `alpha`, where p is its probability under the model (Kudo 2018,
    section 3.2). Words are sampled separately: each from its `num_best` best segmentations or, with `num_best=-1`, from
    all of its segmentations (by forward filtering and backward sampling).
    """
    longest = max(map(len, model.ids), default=1)

    def make_sampler(word: str) -> WordSampler:
        marked = SPACE_MARK + word
        if not model.can_vary(marked):
            return partial(_only_segmentation, model.encode(word))
        edges = [_edges(marked, end, longest, model) for end in range(len(marked) + 1)]
        if num_best == -1:
            return partial(_backward_sample, _forward_filter(edges, alpha))
        return _choice_among(_best_paths(edges, num_best), alpha)

    return make_sampler


Edge = tuple[int, int, float]  # a piece in the lattice of a word: start position, id and score


def _edges(word: str, end: int, longest: int, model: SubwordModel) -> list[Edge]:
    """The pieces of `word` that end at position `end`; `longest` is the number of characters of the longest piece."""
    starts = range(max(0, end - longest), end)
    found = ((start, word[start:end]) for start in starts)
    return [(start, model.ids[piece], model.scores[piece]) for start, piece in found if piece in model.ids]


def _forward_filter(edges: list[list[Edge]], alpha: float) -> list[tuple[list[float], list[tuple[int, int]]]]:
    """For each position in a word, the pieces that end there and their probabilities.

    The entry for a position is (the cumulative probabilities of these pieces, the list of their start positions and
    ids).
    """
    forward = [0.0]  # by position: log of the summed weights of all segmentations of the text before it
    steps: list[tuple[list[float], list[tuple[int, int]]]] = [([], [])]
    for here in edges[1:]:
        weights = [forward[start] + alpha * score for start, _, score in here]
        highest = max(weights)
        total = highest + math.log(sum(math.exp(weight - highest) for weight in weights))
        forward.append(total)
        cumulative = list(accumulate(math.exp(weight - total) for weight in weights))
        steps.append((cumulative, [(start, id_) for start, id_, _ in here]))
    return steps


def _backward_sample(steps: list[tuple[list[float], list[tuple[int, int]]]], rng: random.Random) -> list[int]:
    end, ids = len(steps) - 1, []
    while end:
        cumulative, pieces = steps[end]
        end, id_ = pieces[min(bisect(cumulative, rng.random()), len(pieces) - 1)]
        ids.append(id_)
    return ids[::-1]


def _best_paths(edges: list[list[Edge]], num_best: int) -> list[tuple[float, list[int]]]:
    """The `num_best` best segmentations of a word, as (score, ids), best first."""
    best: list[list[tuple[float, list[int]]]] = [[(0.0, [])]]
    for here in edges[1:]:
        paths = ((total + score, [*ids, id_]) for start, id_, score in here for total, ids in best[start])
        best.append(nlargest(num_best, paths))
    return best[-1]


def _choice_among(paths: list[tuple[float, list[int]]], alpha: float) -> WordSampler:
    highest = paths[0][0]
    cumulative = list(accumulate(math.exp(alpha * (score - highest)) for score, _ in paths))

    def sample(rng: random.Random) -> list[int]:
        position = bisect(cumulative, rng.random() * cumulative[-1])
        return paths[min(position, len(paths) - 1)][1]

    return sample


# Grouping pieces into words.


def group_by_word(pieces: Sequence[str]) -> list[int]:
    """For each piece of a line, the number of the word that the piece belongs to; numbers begin at 0.

    A word begins at a space mark (▁), or after a piece that ends in a space mark. In scripts written without spaces,
    each piece is a word.
    """
    groups: list[int] = []
    number, new = -1, True
    for piece in pieces:
        wide = _WIDE_CHARACTER.search(piece) is not None
        # A lone space mark belongs to the piece after it.
        is_continued_mark = groups and pieces[len(groups) - 1] == SPACE_MARK
        if new or piece.startswith(SPACE_MARK) or (wide and not is_continued_mark):
            number += 1
        groups.append(number)
        new = wide or (len(piece) > 1 and piece.endswith(SPACE_MARK))
    return groups


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def word_of_each_piece(pieces: Sequence[str]) -> list[int]:
    """Returns, for each piece of a line, the index of the word in which it begins.

    White space separates words. So, unlike in `group_by_word`, text of a script without spaces is one word. A piece
    that shows no text counts with the next piece that does, or with the last word at the end of the line: such a piece
    is a lone space mark, or any byte of a character but the last.
    """
    words: list[int] = []
    number, inside, num_invisible = -1, False, 0
    for text in _texts_of(pieces):
        first = None
        for character in text:
            if character.isspace() or character == "\0":
                inside = False
                continue
            number += not inside
            inside = True
            first = number if first is None else first
        if first is None:
            num_invisible += 1
        else:
            words += [first] * (num_invisible + 1)
            num_invisible = 0
    return words + [max(number, 0)] * num_invisible


def _texts_of(pieces: Sequence[str]) -> Iterator[str]:
    """Yields the text of each piece; the text of a character spelled in bytes comes with the last of its bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        if byte:
            yield decoder.decode(bytes([int(byte[1], 16)]))
        else:
            yield decoder.decode(b"", final=True) + piece.replace(SPACE_MARK, " ")
            decoder.reset()


# Large amounts of text.

# What `BulkEncoder` remembers: the ids of words, in at most some 30 MB for each side.
MOST_WORDS = 1 << 17
LONGEST_WORD = 40  # characters; in scripts without spaces, longer words are sentences, which hardly ever come again


@dataclass(frozen=True)
class Encoded:
    """The token ids of lines, one line after the other in one array; iterating over it gives a list for each line.

    `ids` has the ids, as uint16 or uint32, and `lengths` the number of ids of each line, as int64.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]

    @staticmethod
    def of(rows: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> "Encoded":
        """Converts a list of ids for each line."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Encoded(np.fromiter(chain.from_iterable(rows), dtype, int(lengths.sum())), lengths)

    def only(self, kept: NDArray[np.bool_]) -> "Encoded":
        """Returns the lines for which `kept` is true."""
        if kept.all():
            return self
        return Encoded(self.ids[np.repeat(kept, self.lengths)], self.lengths[kept])

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[list[int]]:
        ends = np.cumsum(self.lengths).tolist()
        ids = self.ids.tolist()
        return (ids[start:end] for start, end in zip([0, *ends], ends, strict=False))


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest type of NumPy, of two or four bytes, that holds all ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class BulkEncoder:
    """Encodes large amounts of text, word by word where that gives the same ids, and remembers the ids of words.

    Text repeats its words, so looking them up takes a fraction of the time of segmenting them again.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str], int], list[list[int]]],
        vocab_size: int,
        segments_words_alone: bool,
    ) -> None:
        """`encode(lines, num_threads)` returns the ids of each line.

        `segments_words_alone` tells whether it segments each word of a line as if the word were the whole line.
        """
        self._encode = encode
        self._segments_words_alone = segments_words_alone
        self._dtype = id_dtype(vocab_size)
        self._known: dict[str, bytes] = {}  # the ids of each word, as bytes

    def encode(self, lines: Sequence[str], num_threads: int) -> Encoded:
        """Returns the ids of the lines, which are those that the function given as `encode` returns."""
        if not self._segments_words_alone or not lines:
            return Encoded.of(self._encode(lines, num_threads), self._dtype)
        words = " ".join(lines).split(" ")
        known = self._known_words(set(words), num_threads)
        found = list(map(known.__getitem__, words))
        ends = np.cumsum(np.fromiter(map(len, found), np.int64, len(found))) // self._dtype.itemsize
        last_words = np.cumsum([line.count(" ") + 1 for line in lines]) - 1
        return Encoded(np.frombuffer(b"".join(found), self._dtype), np.diff(ends[last_words], prepend=0))

    def _known_words(self, words: set[str], num_threads: int) -> dict[str, bytes]:
        """Returns, by word, the ids of `words`, and perhaps those of other words.

        The ids are an array as bytes. Those of new words are remembered, except for very long words. If there would be
        more than MOST_WORDS, all words remembered before are forgotten.
        """
        known = self._known
        new = [word for word in words if word not in known]
        if len(known) + len(new) > MOST_WORDS:
            known, new = {}, list(words)
        rows = self._encode(new, num_threads) if new else []
        fresh = {word: np.array(row, self._dtype).tobytes() for word, row in zip(new, rows, strict=True)}
        self._known = known
        known.update((word, ids) for word, ids in fresh.items() if len(word) <= LONGEST_WORD)
        return known if all(word in known for word in fresh) else {**known, **fresh}
