"""What is usual in a parallel text, learnt from a sample of its pairs: scripts, languages, lengths.

Nothing is known of the languages beforehand, so that every language works the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtkit.doctor.characters import Block, LetterModel, Letters
from mtkit.text.parallel import Pair

# R lines of the sample, both sides; L lines of a block.

LONGEST = 1000  # characters of a line from which scripts and languages are learnt, so that no line outweighs all others
MAIN_SCRIPT = 0.05  # a script belongs to a side if it has at least this share of the side's letters
# A text in one of the scripts on the left uses those on the right, too, even if it is rare in the sample.
USED_TOGETHER = {
    "HIRAGANA": ("HIRAGANA", "KATAKANA", "CJK"),
    "KATAKANA": ("HIRAGANA", "KATAKANA", "CJK"),
    "HANGUL": ("HANGUL", "CJK"),
}


@dataclass(frozen=True)
class Learned:
    """Statistics of both sides, (source, target), and of the pairs."""

    scripts: tuple[tuple[str, ...], tuple[str, ...]]
    languages: "Languages | None"  # None: the sample is too small, or both sides are of one language
    lengths: "Lengths"


def learn(pairs: Sequence[Pair]) -> Learned:
    """Learn what is usual from a sample of pairs."""
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

LEAST_LINES = 200  # of a sample, to learn languages from
FEWEST_LETTERS = 10  # of a line whose language is judged
ROUNDS = 8
ODDEST = 0.03  # share of the lines of each side that the model of other languages starts from
MARGIN = 10.0  # nats by which another language must be more probable
GRAM_MARGIN = 0.4  # nats for each sequence of three letters
LEAST_OTHER = 8  # lines, for the model of other languages to be kept
MOST_COMMON = 0.5  # share of common sequences in the median line of another language, relative to other lines
APART = 1.3  # nats for each sequence of letters by which the median line of another language differs


@dataclass(frozen=True)
class Languages:
    """Letter models of the source, of the target and, if there are such lines, of a third language."""

    source: LetterModel
    target: LetterModel
    other: LetterModel | None

    def foreign(self, side: int, letters: Letters) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which lines of side 0 (source) or 1 (target) are in the other side's language, and which in a third one."""
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
    """Letter models of both sides, without the lines that turn out to be in another language.

    A third model starts from the oddest lines of both sides; lines move between the models until each is where it
    is most probable (a mixture of multinomials, fitted by hard EM). A third model that explains nothing is dropped.
    Returns `None` if there are too few lines, or if both sides are in one language.
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
    """Whether the third model is one of a language, rather than of names or of one topic.

    So it is if its lines fit it clearly better than the model of their side, and have far fewer of the letter sequences
    that are most common on that side.
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
    """The share of the sequences of each line, (L), that are common: the most frequent half of all that occur."""
    counts = np.sort(model.counts)[::-1]
    half = counts[np.searchsorted(np.cumsum(counts), counts.sum() / 2)]
    share: NDArray[np.float64] = letters.sums((model.counts >= half).astype(np.float32)) / np.maximum(letters.sizes, 1)
    return share


def _refitted(sides: Sequence[Letters], kinds: Sequence[NDArray[np.int8]]) -> list[LetterModel]:
    return [LetterModel(sides[0].counts(kinds[0] == kind) + sides[1].counts(kinds[1] == kind)) for kind in range(3)]


# Lengths.

SHORT = 8  # characters added to both sides, so that short lines vary less
DEVIATIONS = 4.5
# A line at most so many times as long as usual is never an outlier: of 340,000 short pairs (Multi30k, Tatoeba), 25 go
# beyond it, but beyond twice the usual length, 200.
LEAST_FACTOR = 2.25
# What was cut off no longer ends as its translation does. A side that does may say the same in a third of the words.
FREE_FACTOR = 3.0


@dataclass(frozen=True)
class Lengths:
    """The usual ratio of the lengths of target and source, in characters, as a logarithm, and its spread."""

    middle: float
    spread: float

    def outliers(
        self, source: NDArray[np.int64], target: NDArray[np.int64], least_factor: float = LEAST_FACTOR
    ) -> NDArray[np.bool_]:
        """Returns which pairs have a ratio of lengths far from the usual one.

        `source` and `target` are the lengths of the sides in characters, (L) each.

        Far means that the ratio differs from the usual one, in one direction or the other, at least by the factor
        `least_factor`, and by more than DEVIATIONS standard deviations.
        """
        distance = np.abs(_log_ratio(source, target) - self.middle)
        found: NDArray[np.bool_] = distance > max(DEVIATIONS * self.spread, np.log(least_factor))
        return found


def learn_lengths(source: Block, target: Block) -> Lengths:
    """The median of the logarithms of the length ratios, and their spread, by the median absolute deviation."""
    is_written = (source.lengths > 0) & (target.lengths > 0)
    ratios = _log_ratio(source.lengths[is_written], target.lengths[is_written])
    if not len(ratios):
        return Lengths(0.0, 1.0)
    middle = float(np.median(ratios))
    # 1.4826 makes the median absolute deviation the standard deviation of a normal distribution.
    return Lengths(middle, 1.4826 * float(np.median(np.abs(ratios - middle))))


def _log_ratio(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.log((target + SHORT) / (source + SHORT))
