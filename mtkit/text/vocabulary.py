"""Special tokens, SentencePiece model files, and functions that split lines, segment words and group pieces.

The sections are, in order: splitting long lines, sampling subword segmentations, grouping pieces into words, encoding
large amounts of text, special tokens, SentencePiece model files, and the models of tokenizers that mtkit did not train.
"""

import codecs
import math
import random
import re
import struct
import unicodedata
from bisect import bisect, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import nlargest
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

# Splitting long lines.

WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"  # characters mostly written without spaces
_CLOSING = "\"'”’»›)\\]}」』）】》〉"
_SENTENCE_MARKS = re.compile(rf"[.!?…؟।۔。！？｡]+[{_CLOSING}]*(?:\s»(?!\S))?")  # French puts a space before »
_CLAUSE_MARKS = re.compile(rf"[,;:–—،؛、，；：]+[{_CLOSING}]*(?:\s»(?!\S))?")
# These end a sentence or clause whatever follows them, unlike a full stop, which may be a decimal point.
_ALWAYS_END = frozenset("。！？｡—、，；：")
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
    """Split `line` into parts, each as long as possible, such that `fits(text)` is true for the text of each part.

    The line is cut after a sentence if possible, else after a clause, else at a space, else between any two visible
    characters. A single character becomes a part even if it does not fit. Nothing is lost except white space at the
    cuts and at the ends of the line; a blank line has no parts.

    If a text fits, every prefix of the text is assumed to fit, too. For a line of n characters, all texts passed to
    `fits` have O(n log n) characters in total.
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
    """Join `parts`, the translations of the parts of a line; `separators[i]` is put after `parts[i]`.

    The separators are those between the parts of the source line (`Part.separator`); the last separator is not used.

    A source without spaces may be translated into a language with spaces. So an empty separator becomes a space if the
    translation before it ends like a sentence. It stays empty if the translation after it begins in a script without
    spaces.
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
    """Yields the positions in `line` directly after punctuation that ends a sentence or a clause.

    `marks` matches such punctuation; a match inside a word or number, such as the full stop in 3.5, is skipped.
    """
    for match in marks.finditer(line):
        if _MAY_FOLLOW.match(line, match.end()) or not _ALWAYS_END.isdisjoint(match.group()):
            yield match.end()


def _best_end(line: str, begin: int, last: int, cuts: Sequence[list[int]], fits: Callable[[str], bool]) -> int:
    """The position in `line` at which to end the part that starts at `begin`.

    `cuts` are lists of possible positions, the preferred list first; `last` is the position where the trailing white
    space of the line begins. `fits(text)` tells whether a text is short enough for a part.
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
    """The end position of the longest text that starts at `begin` and fits; `begin + 1` if no text fits.

    `fits(text)` tells whether a text is short enough. The end position is at most `last`.
    """

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
    """Whether a cut of `line` at `position` would split a visible character.

    For example, a cut may separate an accent from its letter, or one half of a flag from the other half. The part to
    cut starts at `begin`.
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
MOST_SAMPLERS = 1 << 17  # words whose samplers are cached


@dataclass(frozen=True)
class SubwordModel:
    """The pieces of a BPE or unigram model, for sampling segmentations."""

    ids: dict[str, int]
    scores: dict[str, float]  # BPE: pieces with higher scores are merged first; unigram: log-probabilities
    symbols: tuple[str, ...]  # pieces that are never split
    encode: Callable[[str], list[int]]  # takes a word without its space mark; returns the ids of its best segmentation

    def can_vary(self, word: str) -> bool:
        """Whether `word` may have several segmentations.

        A word may have several segmentations if each of its characters is a piece of the model and the word contains
        none of `symbols`. A character that is not a piece has only one segmentation: the unknown token or its bytes.
        """
        return all(character in self.ids for character in word) and not any(symbol in word for symbol in self.symbols)


WordSampler = Callable[[random.Random], Sequence[int]]  # returns the ids of a random segmentation of one word
MakeWordSampler = Callable[[str], WordSampler]  # takes a word without its space mark


class SegmentationSampler:
    """Encodes texts with a random segmentation of each word."""

    def __init__(self, make_sampler: MakeWordSampler) -> None:
        self._sampler_of = lru_cache(MOST_SAMPLERS)(make_sampler)

    def __call__(self, texts: Sequence[str], seed: int) -> list[list[int]]:
        """Returns the ids of each text; the words of a text must be separated by spaces.

        The same seed gives the same ids on every machine.
        """
        rng = random.Random(seed)
        sampler_of = self._sampler_of
        return [[id_ for word in text.split(" ") if word for id_ in sampler_of(word)(rng)] for text in texts]


def bpe_dropout(model: SubwordModel, dropout: float) -> MakeWordSampler:
    """Returns a function from a word to a sampler; the sampler returns random segmentations of the word.

    Segmentations are drawn by BPE-dropout: at each step of BPE, each possible merge is skipped with probability
    `dropout` (Provilkov et al. 2020, algorithm 1).
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
    """The positions of the pieces in `symbols` that BPE can merge with the next piece, best merge first.

    `symbols` are the pieces of a word after some merges. Of equally good merges, the leftmost comes first.
    """
    scores = model.scores
    pairs = [(scores.get(left + right), position) for position, (left, right) in enumerate(pairwise(symbols))]
    return [position for _, position in sorted((-score, position) for score, position in pairs if score is not None)]


def _merged(symbols: list[str], position: int) -> list[str]:
    return [*symbols[:position], symbols[position] + symbols[position + 1], *symbols[position + 2 :]]


def unigram_sampling(model: SubwordModel, alpha: float, num_best: int) -> MakeWordSampler:
    """Returns a function from a word to a sampler; the sampler returns random segmentations of the word.

    A segmentation is drawn in proportion to p ** `alpha`, where p is its probability under the unigram model (Kudo
    2018, section 3.2). Segmentations are drawn from the `num_best` best of the word or, with `num_best=-1`, from all of
    them (by forward filtering and backward sampling).
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
    """The pieces of the model that end at position `end` of `word`, as (start position, id, score).

    `longest` is the number of characters of the longest piece in the model.
    """
    starts = range(max(0, end - longest), end)
    found = ((start, word[start:end]) for start in starts)
    return [(start, model.ids[piece], model.scores[piece]) for start, piece in found if piece in model.ids]


def _forward_filter(edges: list[list[Edge]], alpha: float) -> list[tuple[list[float], list[tuple[int, int]]]]:
    """For each position in a word, the cumulative probabilities of the pieces that end there, and these pieces.

    This is the forward pass of forward filtering and backward sampling. `edges[i]` has the pieces that end at position
    i. Item i of the result has two lists, with one item for each piece in `edges[i]`: the cumulative probabilities, and
    the pieces as (start position, id).

    Take a random segmentation of the first i characters of the word. The probability of a piece in `edges[i]` is the
    probability that it is the last piece of this segmentation. Segmentations are drawn in proportion to p ** `alpha`,
    where p is the probability of a segmentation under the model.
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
    """The `num_best` best segmentations of a word, as (score, ids), best first.

    `edges` has, for each position in the word, the pieces that end at this position.
    """
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
    """Returns, for each piece of a line, the index of the word in which the piece begins.

    Words are separated by white space, so a text in a script without spaces is one word. (In `group_by_word`, each
    piece of such a text is a word.) Some pieces have no text of their own: a lone space mark, and each byte of a
    character except the last byte. Such a piece belongs to the word of the next piece with text or, at the end of the
    line, to the last word.
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
    """Yields the text of each piece, with spaces in place of space marks.

    If a character is split into byte pieces, its text comes with the last of these pieces; the others have the text "".
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        if byte:
            yield decoder.decode(bytes([int(byte[1], 16)]))
        else:
            yield decoder.decode(b"", final=True) + piece.replace(SPACE_MARK, " ")
            decoder.reset()


# Large amounts of text.

# Limits of the cache in which `BulkEncoder` keeps the ids of words, which takes at most some 30 MB for each side.
MOST_WORDS = 1 << 17
LONGEST_WORD = 40  # characters; in scripts without spaces, longer words are sentences, which hardly ever come again


@dataclass(frozen=True)
class Encoded:
    """The token ids of several lines, concatenated in one array; iterating yields the ids of each line as a list.

    `ids` is a vector of all ids, uint16 or uint32; `lengths`, int64, has the number of ids of each line.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]

    @staticmethod
    def of(rows: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> "Encoded":
        """Creates an Encoded from `rows`, which has one list of ids for each line."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Encoded(np.fromiter(chain.from_iterable(rows), dtype, int(lengths.sum())), lengths)

    def only(self, kept: NDArray[np.bool_]) -> "Encoded":
        """Returns an Encoded with only those lines for which `kept` is true; `kept` has one value for each line."""
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
    """Returns the NumPy dtype for the ids of a vocabulary: uint16 if all ids fit into 16 bits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class BulkEncoder:
    """Encodes large amounts of text fast, by caching the ids of words.

    Looking up a word takes a fraction of the time of segmenting the word again. The cache is used only if the tokenizer
    segments each word of a line as if the word were the whole line; otherwise, whole lines are encoded.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str], int], list[list[int]]],
        vocab_size: int,
        segments_words_alone: bool,
    ) -> None:
        """`encode(lines, num_threads)` is a function that returns the ids of each line.

        `segments_words_alone` tells whether `encode` segments each word of a line as if the word were the whole line;
        if so, the ids of words are cached.
        """
        self._encode = encode
        self._segments_words_alone = segments_words_alone
        self._dtype = id_dtype(vocab_size)
        self._known: dict[str, bytes] = {}  # the ids of each word, as bytes

    def encode(self, lines: Sequence[str], num_threads: int) -> Encoded:
        """Returns the ids of each line, the same as the function passed to `__init__` returns."""
        if not self._segments_words_alone or not lines:
            return Encoded.of(self._encode(lines, num_threads), self._dtype)
        words = " ".join(lines).split(" ")
        known = self._known_words(set(words), num_threads)
        found = list(map(known.__getitem__, words))
        ends = np.cumsum(np.fromiter(map(len, found), np.int64, len(found))) // self._dtype.itemsize
        last_words = np.cumsum([line.count(" ") + 1 for line in lines]) - 1
        return Encoded(np.frombuffer(b"".join(found), self._dtype), np.diff(ends[last_words], prepend=0))

    def _known_words(self, words: set[str], num_threads: int) -> dict[str, bytes]:
        """Returns a dict from words to their ids; the ids of a word are the bytes of an array.

        The dict has all of `words`, and perhaps other words. New words are added to the cache, except those longer than
        LONGEST_WORD. If the cache would have more than MOST_WORDS words, it is emptied first.
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


# Vocabularies and special tokens.

PAD = 0  # fills up short rows; 0, so that an array of zeros is padding
UNKNOWN = 1  # replaces text that has no piece; not needed if the tokenizer falls back to bytes
BEGIN = 2  # first input of the decoder, unless the model has another start token
END = 3  # last token of every source and every target

NUM_SPECIAL = 4


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the special tokens of one side, source or target.

    The defaults are the ids in tokenizers that mtkit trained; other tokenizers may have other ids.
    """

    pad: int = PAD
    unknown: int = UNKNOWN
    begin: int | None = BEGIN  # None in Marian's vocabularies, which have no begin token
    end: int = END

    @property
    def all(self) -> tuple[int, ...]:
        """All special ids of this side; the begin id is left out if it is `None`."""
        return tuple(id_ for id_ in (self.pad, self.unknown, self.begin, self.end) if id_ is not None)

    @property
    def never_generated(self) -> tuple[int, ...]:
        """The special ids that search must never generate: all special ids except the end id."""
        return tuple(id_ for id_ in self.all if id_ != self.end)


DEFAULT_IDS = SpecialIds()  # the special ids of every tokenizer that mtkit trains


@dataclass(frozen=True)
class Specials:
    """The special ids of source and target."""

    source: SpecialIds = DEFAULT_IDS
    target: SpecialIds = DEFAULT_IDS


# For each start token of the decoder that the settings can name, a function that returns the token's id. "zero" is the
# padding token with an embedding that stays zero (Marian).
START_TOKENS: dict[str, Callable[[SpecialIds], int | None]] = {
    "begin": lambda special: special.begin,
    "pad": lambda special: special.pad,
    "end": lambda special: special.end,
    "zero": lambda special: special.pad,
}


@dataclass(frozen=True)
class BoundaryTokens:
    """The tokens that a model expects at the beginning and end of sentences.

    `source_end`, `start` and `target_end` are the ids of these tokens.
    """

    source_end: int = END
    start: int = BEGIN  # first input of the decoder
    target_end: int = END
    shifted: bool = True  # False: the decoder's input has no start token; position t holds the token to predict at t


# SentencePiece models, which are protobuf messages.

PieceType = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]
ModelType = Literal["unigram", "bpe", "word", "char"]

PIECE_TYPES: dict[int, PieceType] = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user_defined",
    5: "unused",
    6: "byte",
}
MODEL_TYPES: dict[int, ModelType] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# Field numbers in protobuf messages. Of the four lines below, the first has the fields of ModelProto, the second those
# of SentencePiece, the third those of TrainerSpec, and the fourth those of NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, VOCAB_SIZE, MARK_AS_SUFFIX = 3, 4, 24
RULE_NAME, CHARSMAP, MARK_FIRST, SINGLE_SPACES, MARK_SPACES = 1, 2, 3, 4, 5

CUSTOM_RULE = b"user_defined"  # SentencePiece's name for every normalisation rule that is not built in

HAS_LEAF = 1 << 8  # flag in a unit of a compiled rule: a sequence that the rule replaces ends here

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FIXED_WIDTH = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Piece:
    """A piece of a SentencePiece model."""

    text: str
    score: float
    type: PieceType = "normal"


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces of `model`, in the order of their ids; raises ValueError if the bytes are no SentencePiece model."""
    return [_decode_piece(field.value) for field in _fields(model) if field.number == PIECES]


def is_whole(model: bytes) -> bool:
    """Whether a model has pieces, a TrainerSpec and a NormalizerSpec; a truncated file may lack some of these."""
    return {PIECES, TRAINER, NORMALIZER} <= {field.number for field in _fields(model)}


def model_type_of(model: bytes) -> ModelType:
    """The segmentation algorithm of a model; raises ValueError if mtkit does not know the algorithm."""
    number = _last_number(_submessage(model, TRAINER), MODEL_TYPE, default=1)
    if number not in MODEL_TYPES:
        raise ValueError(f"model type {number} is unknown")
    return MODEL_TYPES[number]


def normalizer_of(model: bytes) -> bytes:
    """The encoded NormalizerSpec of a model, which defines how text is normalised; empty if there is none."""
    return _submessage(model, NORMALIZER)


def charsmap_of(model: bytes) -> bytes:
    """The compiled normalisation rule of a model, which maps characters to others; empty if there is none."""
    return _submessage(normalizer_of(model), CHARSMAP)


def rule_keeping(rule: bytes, text: str) -> bytes:
    """Returns the NormalizerSpec `rule`, changed so that it no longer replaces `text`.

    Raises ValueError if the rule does not replace `text` in the first place.

    A compiled rule consists of the size of a double-array trie (Darts-clone), the trie, and the replacements. The trie
    holds the texts that the rule replaces, as UTF-8. Each unit of the trie stands for one byte. The unit contains this
    byte, the offset of the units for the next bytes, and a flag (HAS_LEAF), which is set if a text ends at this byte.
    Clearing the flag disables the replacement of that text.
    """
    charsmap = bytearray(_submessage(rule, CHARSMAP))
    position = 0
    offset = _offset(_unit(charsmap, 0))
    for byte in text.encode():
        position = offset ^ byte
        unit = _unit(charsmap, position)
        if unit & 0xFF != byte:
            raise ValueError(f"the rule does not know {text!r}")
        offset = position ^ _offset(unit)
    if not _unit(charsmap, position) & HAS_LEAF:
        raise ValueError(f"the rule does not replace {text!r}")
    struct.pack_into("<I", charsmap, 4 * position + 4, _unit(charsmap, position) & ~HAS_LEAF)
    rule = _replace_fields(rule, RULE_NAME, _encode_field(RULE_NAME, CUSTOM_RULE))
    return _replace_fields(rule, CHARSMAP, _encode_field(CHARSMAP, bytes(charsmap)))


def rule_marking_spaces(rule: bytes) -> bytes:
    """Returns the NormalizerSpec `rule`, changed to collapse spaces and mark words.

    The changed rule replaces each space by a space mark (▁), and puts another space mark before the first word.
    """
    for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES):
        rule = _replace_fields(rule, number, _encode_field(number, 1))
    return rule


def _unit(charsmap: bytearray, position: int) -> int:
    """The 32-bit unit at `position` in the trie of a compiled normalisation rule; the trie starts at byte 4."""
    unit: int = struct.unpack_from("<I", charsmap, 4 * position + 4)[0]
    return unit


def _offset(unit: int) -> int:
    """The offset of the units for the next bytes, as encoded in `unit`, a unit of the trie."""
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def cuts_at_spaces(model: bytes) -> bool:
    """Whether a SentencePiece model segments each word separately.

    The model does so if its normaliser puts exactly one space mark (▁) before each word, and no piece has a space mark
    after its first character.
    """
    rule = normalizer_of(model)
    usual = all(_last_number(rule, number, default=1) for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES))
    usual &= not _last_number(_submessage(model, TRAINER), MARK_AS_SUFFIX, default=0)
    return usual and not any(SPACE_MARK in piece.text[1:] for piece in pieces_of(model) if piece.type == "normal")


def with_normalizer(model: bytes, rule: bytes) -> bytes:
    """Returns `model` with its NormalizerSpec replaced by `rule`."""
    return _replace_fields(model, NORMALIZER, _encode_field(NORMALIZER, rule))


def with_pieces(model: bytes, new: Sequence[Piece]) -> bytes:
    """Returns `model` with the pieces in `new` added after its own pieces."""
    old = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, [*old, *(_encode_field(PIECES, _encode_piece(piece)) for piece in new)])


def with_defined(model: bytes, texts: Sequence[str]) -> bytes:
    """Returns `model`, changed so that it never splits any of `texts`.

    Each text becomes a piece of type "user_defined": a text that is already a piece gets this type, and any other text
    is added after the last piece.
    """
    old = [field.encoded for field in _fields(model) if field.number == PIECES]
    pieces = pieces_of(model)
    positions = {piece.text: position for position, piece in enumerate(pieces)}
    for text in texts:
        if (position := positions.get(text)) is None:
            old.append(_encode_field(PIECES, _encode_piece(Piece(text, 0.0, "user_defined"))))
        elif pieces[position].type != "user_defined":
            old[position] = _encode_field(PIECES, _encode_piece(Piece(text, pieces[position].score, "user_defined")))
    return _with_encoded(model, old)


def _with_encoded(model: bytes, pieces: Sequence[bytes]) -> bytes:
    """Returns `model` with its pieces replaced by the encoded `pieces`, and its vocabulary size updated."""
    trainer = _replace_fields(_submessage(model, TRAINER), VOCAB_SIZE, _encode_field(VOCAB_SIZE, len(pieces)))
    return _replace_fields(_replace_fields(model, PIECES, b"".join(pieces)), TRAINER, _encode_field(TRAINER, trainer))


def without_last_pieces(model: bytes, count: int) -> bytes:
    """Returns `model` without its last `count` pieces, for example those that `with_pieces` added."""
    pieces = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, pieces[: len(pieces) - count])


# The protobuf encoding.


class _Field(NamedTuple):  # a model has tens of thousands, and a dataclass takes four times as long to make
    number: int
    value: int | bytes
    encoded: bytes  # the complete encoded field, with its number


def _fields(message: bytes) -> Iterator[_Field]:
    """Yields the fields of an encoded message in order; raises ValueError if the message is damaged."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, position = _read_varint(message, position)
        else:
            if kind == BYTES:
                width, position = _read_varint(message, position)
            elif kind in FIXED_WIDTH:
                width = FIXED_WIDTH[kind]
            else:
                raise ValueError(f"a field is written in way {kind}, which SentencePiece does not use")
            value = message[position : position + width]
            position += width
        if position > len(message) or not number:
            raise ValueError("the message is cut off or damaged")
        yield _Field(number, value, message[start:position])


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Reads the number stored as a varint at `position`; returns the number, and the position after the varint.

    A varint has seven bits of the number in each byte, lowest first. Raises ValueError if the varint does not end.
    """
    if position < len(message) and (first := message[position]) < 0x80:  # a shortcut for one byte, which is most common
        return first, position + 1
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position + shift + 1
    raise ValueError("a number has no end")


def _submessage(message: bytes, number: int) -> bytes:
    """The encoded submessage in field `number` of `message`.

    If the field occurs several times, its contents are concatenated.
    """
    return b"".join(_require_bytes(field.value) for field in _fields(message) if field.number == number)


def _last_number(message: bytes, number: int, default: int) -> int:
    """The integer in field `number` of an encoded message; `default` if the field is missing.

    If the field occurs several times, the last integer is returned.
    """
    *_, value = (default, *(field.value for field in _fields(message) if field.number == number))
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value


def _require_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes are wanted")
    return value


def _decode_piece(value: int | bytes) -> Piece:
    text, score = b"", 0.0
    type_: int | bytes = 1
    for field in _fields(_require_bytes(value)):
        if field.number == TEXT:
            text = _require_bytes(field.value)
        elif field.number == SCORE:
            encoded = _require_bytes(field.value)
            if len(encoded) != FIXED_WIDTH[FIXED32]:
                raise ValueError("a score is no number of 32 bits")
            (score,) = struct.unpack("<f", encoded)
        elif field.number == TYPE:
            type_ = field.value
    if not isinstance(type_, int):
        raise ValueError(f"field {TYPE} is no number")
    if type_ not in PIECE_TYPES:
        raise ValueError(f"piece type {type_} is unknown")
    return Piece(text.decode(), score, PIECE_TYPES[type_])


def _encode_piece(piece: Piece) -> bytes:
    """`piece` as an encoded message; the type "normal" is left out, as in SentencePiece's own files."""
    (type_,) = (number for number, name in PIECE_TYPES.items() if name == piece.type)
    score = _write_varint(SCORE << 3 | FIXED32) + struct.pack("<f", piece.score)
    return (
        _encode_field(TEXT, piece.text.encode())
        + score
        + (_encode_field(TYPE, type_) if piece.type != "normal" else b"")
    )


def _encode_field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _write_varint(number << 3 | VARINT) + _write_varint(value)
    return _write_varint(number << 3 | BYTES) + _write_varint(len(value)) + value


def _write_varint(value: int) -> bytes:
    """`value` encoded as a varint; `_read_varint` is the inverse."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _replace_fields(message: bytes, number: int, fields: bytes) -> bytes:
    """Returns `message` with `fields`, which are encoded already, in place of all fields that have the number `number`.

    If the message has no field with this number, `fields` are added at the end.
    """
    kept: list[bytes] = []
    position = None
    for field in _fields(message):
        if field.number != number:
            kept.append(field.encoded)
        elif position is None:
            position = len(kept)
    position = len(kept) if position is None else position
    return b"".join([*kept[:position], fields, *kept[position:]])


# Tokenizers that mtkit did not train: SentencePiece cuts text into pieces, and a separate vocabulary assigns
# ids to the pieces.

UNKNOWN_TEXT = "<unk>"  # what is shown for an unknown token


class MappedModel:
    """The source or target model of a tokenizer that mtkit did not train, such as Marian's.

    It consists of a SentencePiece model, which normalises text itself, and a vocabulary that assigns ids to the pieces.
    """

    def __init__(self, model: bytes, vocabulary: Sequence[str], special: SpecialIds, tags: Sequence[str]) -> None:
        """`model` is a SentencePiece model as bytes; `vocabulary` lists the pieces in the order of their ids.

        `special` has the ids of the special tokens. `tags` are pieces of the vocabulary that a line may begin with.
        """
        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._vocabulary = list(vocabulary)
        self._ids = {piece: id_ for id_, piece in enumerate(vocabulary)}
        self._special = special
        pieces = list(map(self._processor.id_to_piece, range(self._processor.vocab_size())))
        self._tags = tuple(tag for tag in tags if tag not in pieces)  # SentencePiece finds tags that are its own pieces
        self.vocab_size = len(self._vocabulary)
        # Maps SentencePiece's ids to those of the vocabulary, for the pieces that both have.
        self._known = {id_: self._ids[piece] for id_, piece in enumerate(pieces) if piece in self._ids}
        # If all pieces have the same ids in both and there are no tags to find, SentencePiece's ids are used.
        self._keeps_ids = self._vocabulary[: len(pieces)] == pieces and not self._tags
        self._blank_may_have_pieces = not cuts_at_spaces(model)
        self._hidden = {id_ for id_ in special.all if id_ != special.unknown}
        self.shows_unknown = not any(map(self._processor.is_byte, self._known))

    def normalizer(self, line: str) -> str:
        """Returns `line`, normalised; tags at the beginning of the line are not changed."""
        tags, text = ("", encodable(line)) if self._keeps_ids else split_tags(encodable(line), self._tags)
        normal: str = self._processor.normalize(text).replace(SPACE_MARK, " ").strip(" ")
        return f"{tags} {normal}".strip(" ") if tags else normal

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        """The ids of each line, those of its tags first; a piece without an id becomes the unknown token."""
        if self._keeps_ids:
            return self._own_ids(list(map(encodable, lines)), num_threads)
        split = [split_tags(encodable(line), self._tags) for line in lines]
        # Encode to pieces as text, not as ids: a character that is no piece of this side's model may still be in the
        # vocabulary, if both sides share it.
        pieces = self._processor.encode([text for _, text in split], out_type=str, num_threads=num_threads)
        unknown = self._special.unknown
        return [
            [self._ids[tag] for tag in tags.split()] + [self._ids.get(piece, unknown) for piece in row]
            for (tags, _), row in zip(split, pieces, strict=True)
        ]

    def _own_ids(self, texts: list[str], num_threads: int) -> list[list[int]]:
        rows: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        if self._blank_may_have_pieces:  # a blank line must have no ids, as with every tokenizer
            rows = [row if self.normalizer(text) else [] for text, row in zip(texts, rows, strict=True)]
        return rows

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line, its tags first; a token without a piece is given as its text, not as <unk>."""
        split = [split_tags(encodable(line), self._tags) for line in lines]
        rows = self._processor.encode([text for _, text in split], out_type=str)
        return [[*tags.split(), *row] for (tags, _), row in zip(split, rows, strict=True)]

    def sentencepiece_model(self) -> bytes:
        """The SentencePiece model as bytes, unchanged, with the model's own normalisation."""
        return self._model

    def scores(self) -> list[float]:
        """SentencePiece's scores of the pieces in the vocabulary, by id.

        A piece that is not in the SentencePiece model has the score 0.
        """
        known = {ours: self._processor.get_score(id_) for id_, ours in self._known.items()}
        return [known.get(id_, 0.0) for id_ in range(self.vocab_size)]

    def subword_model(self, symbols: tuple[str, ...]) -> SubwordModel:
        """The pieces for sampling segmentations, without special and byte pieces.

        `symbols` are pieces that must never be split.
        """
        processor, special = self._processor, set(self._special.all)
        own = {
            processor.id_to_piece(id_): id_
            for id_, ours in self._known.items()
            if ours not in special
            and not (processor.is_byte(id_) or processor.is_unused(id_) or processor.is_control(id_))
        }
        ids = {piece: self._known[id_] for piece, id_ in own.items()}
        scores = {piece: processor.get_score(id_) for piece, id_ in own.items()}
        return SubwordModel(ids, scores, symbols, lambda word: self.encode([word], 1)[0])

    def decode(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """The text of each row of ids; special tokens are left out, except unknown tokens.

        An unknown token is shown as <unk>. If `unknown_texts` is given, it has one list of texts for each row, and the
        n-th unknown token of a row is shown as the n-th text in the list for that row. A model with byte fallback never
        shows unknown tokens.
        """
        if not len(tokens):
            return []
        rows = [[piece for id_ in map(int, row) for piece in self._shown(id_)] for row in tokens]
        if unknown_texts is not None and self.shows_unknown:
            kept = [[id_ for id_ in map(int, row) if id_ not in self._hidden] for row in tokens]
            rows = [
                with_unknown(row, self.pieces(row), self._special.unknown, unknown)
                for row, unknown in zip(kept, unknown_texts, strict=True)
            ]
        # SentencePiece 0.2.1 cannot decode a list whose first row is empty.
        found = iter(self._processor.decode([row for row in rows if row]) if any(rows) else ())
        # SentencePiece copies pieces that it lacks to the text, with their space marks.
        return [next(found).replace(SPACE_MARK, " ").strip(" ") if row else "" for row in rows]

    def _shown(self, id_: int) -> Sequence[str]:
        """The pieces that stand for the id `id_` in decoding; none if `id_` is a special token to be left out.

        All special tokens are left out except the unknown token, which is shown if `shows_unknown` is true.
        """
        if id_ == self._special.unknown and self.shows_unknown:
            # In two pieces, since SentencePiece shows its own <unk> as a question mark.
            return UNKNOWN_TEXT[:1], UNKNOWN_TEXT[1:]
        return () if id_ in self._special.all else (self._vocabulary[id_],)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece of each id."""
        return [self._vocabulary[id_] for id_ in tokens]


def with_unknown(tokens: Sequence[int], pieces: Sequence[str], unknown: int, texts: Sequence[str]) -> list[str]:
    """Returns the pieces to decode, with `texts` in place of unknown tokens, in order.

    `tokens` are ids, `pieces` the piece of each id, and `unknown` is the id of the unknown token. If there are too few
    texts, the remaining unknown tokens become <unk>. Texts are inserted character by character, since a complete text
    might equal a piece that decoding hides, such as <unk>.
    """
    left = iter(texts)
    shown: list[str] = []
    for token, piece in zip(tokens, pieces, strict=True):
        shown += next(left, UNKNOWN_TEXT) if token == unknown else [piece]
    return shown


def encodable(line: str) -> str:
    """`line` with question marks in place of lone surrogates, which UTF-8 cannot encode."""
    return line.encode("utf-8", errors="replace").decode("utf-8")
