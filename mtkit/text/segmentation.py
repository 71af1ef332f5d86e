"""Segmentations drawn by chance: BPE-dropout (Provilkov et al. 2020) and unigram sampling (Kudo 2018).

SentencePiece draws them too, but since its version 0.2.3 otherwise in each process, whatever its seed, and a run that
goes on must draw what it would have drawn. No piece reaches beyond a space, so each word is drawn by itself.
"""

import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import nlargest
from itertools import accumulate, pairwise

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
