"""Word alignments: links from attention weights, files in Pharaoh form, and the alignment error rate.

A link (i, j) says that unit i of a source line and unit j of its translation belong together. Units are words or
pieces, counted from 0. Shapes: S source tokens, T target tokens, I source units, J target units, R rows, H heads.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtkit.errors import DataError, MtkitError, counted, whole_number
from mtkit.text.lines import named, read_lines

if TYPE_CHECKING:
    from torch import Tensor

Link = tuple[int, int]
Links = tuple[Link, ...]  # sorted, none twice

UNITS = ("words", "pieces")
STEPS = ("predicted", "read")
MEAN = "mean"

# Which attention weights are read, and how links are made from them.

Number = int | str  # a number from 1, or MEAN


@dataclass(frozen=True)
class AlignmentSettings:
    """How alignments are read off the attention of target tokens to source tokens.

    Layers and heads are numbered from 1; "mean" stands for the mean over all layers or all heads. If only one of
    `layer` and `head` is given, the other defaults to "mean". If neither is given, the head that guided alignment
    trained is used; without guided alignment, both default to "mean".

    `step` selects the decoding step whose weights count for a target token. "predicted" is the step that predicts the
    token. "read" is the next step, which reads the token (Chen et al. 2020).

    The default settings have the lowest alignment error rates on the demo corpus (configs/README.md, "Word
    alignments").
    """

    units: Literal["words", "pieces"] = "words"
    layer: Number | None = None
    head: Number | None = None
    threshold: float | None = None  # None: each target unit is linked to the source unit with the largest weight
    step: Literal["predicted", "read"] = "predicted"


@dataclass(frozen=True)
class Heads:
    """The layer and the attention head from which alignments are read, as indices from 0.

    A `layer` or `head` of `None` stands for the mean over all layers or all heads.
    """

    layer: int | None  # an index; None: the mean over all layers
    head: int | None  # an index; None: the mean over all heads

    def weights(self, attention: "Sequence[Tensor]") -> "Tensor":
        """Returns the attention weights (R, T, S) of this layer and head, or the mean over all where one is `None`.

        `attention` holds the weights (R, H, T, S) of each layer.
        """
        layers = list(attention) if self.layer is None else [attention[self.layer]]
        chosen = [layer.mean(1) if self.head is None else layer[:, self.head] for layer in layers]
        return chosen[0] if len(chosen) == 1 else sum(chosen[1:], chosen[0]) / len(chosen)


def choose_heads(settings: AlignmentSettings, shape: tuple[int, int], guided: tuple[int, int] | None) -> Heads:
    """Returns the layer and the head that `settings` ask for; each may also be the mean over all.

    `shape` is (number of layers with attention to the source, number of heads in each of these layers). `guided` is the
    (layer, head), numbered from 1, that guided alignment trained, or `None`; it is used only if `settings` name neither
    a layer nor a head. Raises MtkitError if the model has no attention to the source, or lacks the layer or head that
    `settings` name.
    """
    num_layers, num_heads = shape
    if not num_layers:
        raise MtkitError("this model has no attention to the source, from which alignments could be read")
    is_default = settings.layer is None and settings.head is None
    layer, head = guided if guided and is_default else (settings.layer, settings.head)
    return Heads(
        _index("--alignment-layer", MEAN if layer is None else layer, num_layers),
        _index("--alignment-head", MEAN if head is None else head, num_heads),
    )


def _index(name: str, number: Number, count: int) -> int | None:
    """Returns the index, from 0, of layer or head `number` (from 1); returns `None` if `number` is "mean".

    Raises MtkitError, which names the option `name`, if `number` is not between 1 and `count`.
    """
    if isinstance(number, str):
        return None
    if not 1 <= number <= count:
        raise MtkitError(f"{name}: found {number}, wants mean or a number from 1 to {count}")
    return number - 1


def parse_settings(
    units: str, layer: str | None, head: str | None, threshold: str | None, step: str
) -> AlignmentSettings:
    """Returns the settings, given the values of the command-line options; raises MtkitError if a value is invalid."""
    for name, found, choices in (("units", units, UNITS), ("step", step, STEPS)):
        if found not in choices:
            raise MtkitError(f"--alignment-{name}: found {found}, wants one of {', '.join(choices)}")
    share = None
    if threshold is not None:
        try:
            share = float(threshold)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise MtkitError(f"--alignment-threshold: found {threshold}, wants a number above 0, at most 1")
    choices_made: dict[str, Any] = {"units": units, "step": step}
    layer_number, head_number = _number("--alignment-layer", layer), _number("--alignment-head", head)
    return AlignmentSettings(layer=layer_number, head=head_number, threshold=share, **choices_made)


def _number(name: str, text: str | None) -> Number | None:
    if text is None or text == MEAN:
        return text
    number = whole_number(text)
    if not number:
        raise MtkitError(f"{name}: found {text}, wants mean or a number from 1")
    return number


# From attention weights to links.


@dataclass(frozen=True)
class Side:
    """One side of a sentence pair: its token ids, and for each token the index of the unit that it belongs to.

    A token with the index -1, for example a tag, belongs to no unit, and is linked to nothing.
    """

    tokens: Sequence[int]
    units: Sequence[int]


def links_of(
    weights: NDArray[np.floating], source: Sequence[int], target: Sequence[int], threshold: float | None = None
) -> Links:
    """Returns the links of a sentence pair, made from its attention weights.

    `source` and `target` hold, for each token, the index of the unit that it belongs to; -1 if it belongs to none.
    `weights`, (T, S), are attention weights. To get one weight for each pair of a target unit and a source unit,
    weights are summed over the tokens of the source unit and averaged over the tokens of the target unit.

    Without `threshold`, each target unit is linked to the source unit with the largest weight (the first, if several
    are equal). With `threshold`, it is linked to every source unit whose weight is at least `threshold`, perhaps to
    none.
    """
    columns, rows = ([place for place, unit in enumerate(units) if unit >= 0] for units in (source, target))
    if not columns or not rows:
        return ()
    i, j = np.array(source)[columns], np.array(target)[rows]
    by_unit = np.zeros((j.max() + 1, i.max() + 1))  # (J, I)
    np.add.at(by_unit, (j[:, None], i[None, :]), weights[np.ix_(rows, columns)])
    by_unit /= np.maximum(np.bincount(j), 1)[:, None]
    if threshold is not None:
        return tuple(sorted((int(a), int(b)) for b, a in zip(*np.nonzero(by_unit >= threshold), strict=True)))
    by_unit[:, np.bincount(i) == 0] = -1
    return tuple(sorted((int(by_unit[unit].argmax()), int(unit)) for unit in np.unique(j)))


def raw_words(words: Sequence[int], text: str, normalize: Callable[[str], str]) -> list[int]:
    """Returns, for each token of a line, the index of the word of `text` that it belongs to.

    `text` is the line, normalised or not; its words are separated by white space. `words` holds, for each token, the
    index of its word in the normalised line.

    If `text` and the normalised line have the same number of words, returns `words` unchanged. Otherwise, each word of
    `text` is normalised alone, to count the normalised words that it becomes (0 if it is removed). These counts map
    each normalised word to a word of `text`. If the counts do not add up to the number of words in the normalised line,
    returns `words` with each index limited to that of the last word of `text`.
    """
    raw = text.split()
    found = max(words, default=-1) + 1
    if found == len(raw):
        return list(words)
    counts = [len(normalize(word).split()) for word in raw]
    owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
    if len(owners) == found:
        return [owners[word] for word in words]
    return [min(word, len(raw) - 1) for word in words]


def shifted(links: Links, source: int = 0, target: int = 0) -> Links:
    """Returns the links with `source` added to each source unit and `target` to each target unit.

    Links whose source unit is then below 0 are dropped.
    """
    return tuple((i + source, j + target) for i, j in links if i + source >= 0)


# Pharaoh form: a line of links such as 0-0 1-2. In gold alignments, 1-2 is a sure link; 1p2 or 1?2 is only possible.

_LINK = re.compile(r"(\d{1,9})([-p?])(\d{1,9})")
LONGEST_SHOWN = 20  # messages quote at most this many characters


@dataclass(frozen=True)
class Gold:
    """The gold alignment of a sentence pair (Och & Ney 2003): `possible` includes all links in `sure`."""

    sure: frozenset[Link]
    possible: frozenset[Link]


def pharaoh(links: Links) -> str:
    """Returns the links in Pharaoh form, such as "0-0 1-2"."""
    return " ".join(f"{i}-{j}" for i, j in links)


def parse_gold(line: str, where: str, num_source: int, num_target: int) -> Gold:
    """Returns the gold alignment that a line in Pharaoh form describes; `p` or `?` marks links that are only possible.

    Raises DataError, with a message that begins with `where`, if the line is not in this form, or if the index of a
    source unit is not below `num_source` or that of a target unit is not below `num_target`.
    """
    sure, possible = set(), set()
    for text in line.split():
        match = _LINK.fullmatch(text)
        if match is None:
            raise DataError(
                f"{where}: found '{text[:LONGEST_SHOWN]}', wants pairs such as 0-0 1-2: source-target, from 0"
            )
        link = (int(match[1]), int(match[3]))
        for number, count, side in ((link[0], num_source, "source"), (link[1], num_target, "target")):
            if number >= count:
                raise DataError(
                    f"{where}: found {text}, but the {side} has {counted(count, 'word')}, counted from 0 and separated "
                    "by white space"
                )
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return Gold(frozenset(sure), frozenset(possible))


def parse_links(line: str, where: str, num_source: int, num_target: int) -> Links:
    """Returns all links of a line in Pharaoh form, such as "0-0 1p2", both sure and possible.

    Raises DataError, with a message that begins with `where`, if the line is malformed, or if the index of a source
    unit is not below `num_source` or that of a target unit is not below `num_target`.
    """
    return tuple(sorted(parse_gold(line, where, num_source, num_target).possible))


def read_gold(path: Path, pairs: Sequence[tuple[str, str]]) -> list[Gold]:
    """Returns the gold alignment of each pair, from a file whose line n aligns the words of pair n.

    Raises DataError if the file has more or fewer lines than there are pairs, or if a line is malformed.
    """
    lines = list(read_lines(path))
    if len(lines) != len(pairs):
        raise DataError(
            f"{named(path)} has {counted(len(lines), 'line')}, wants {len(pairs):,}, one for each pair; a pair without "
            "links has a blank line"
        )
    return [
        parse_gold(line, f"{named(path)}:{number}", len(source.split()), len(target.split()))
        for number, (line, (source, target)) in enumerate(zip(lines, pairs, strict=True), start=1)
    ]


# Training with given alignments.


class AlignmentLines:
    """Reads a file of alignments, whose line n aligns training pair n, alongside the pairs."""

    def __init__(self, path: Path, count_pairs: Callable[[], int]) -> None:
        """`count_pairs` returns the number of training pairs; it is called only for an error message."""
        self.path = path
        self._lines = read_lines(path)
        self._count_pairs = count_pairs
        self._number = 0

    def next_lines(self, count: int) -> Iterator[tuple[str, str]]:
        """Yields (where, line) for the next `count` lines; raises DataError if the file ends before that.

        `where` is the file and the line number, such as "train.align:7", for error messages.
        """
        for _ in repeat(None, count):
            line = next(self._lines, None)
            if line is None:
                self._raise_wrong_number()
            assert line is not None
            self._number += 1
            yield f"{self.path}:{self._number}", line

    def finish(self) -> None:
        """Raises DataError if the file has more lines than were read."""
        more = sum(1 for _ in self._lines)
        if more:
            self._number += more
            self._raise_wrong_number()

    def _raise_wrong_number(self) -> None:
        raise DataError(
            f"{self.path} has {counted(self._number, 'line')}, wants {self._count_pairs():,}: one for each pair of "
            "data.train, of all its corpora in order; a pair without links has a blank line"
        )


def piece_links(links: Links, source: Sequence[int], target: Sequence[int]) -> list[Link]:
    """Converts links between words to links between tokens: all tokens of two linked words are linked to each other.

    `source` and `target` hold, for each token, the index of its word. The links that are returned are pairs (index of a
    source token, index of a target token), sorted by target token, then by source token.
    """
    tokens_of: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for tokens, words in zip(tokens_of, (source, target), strict=True):
        for place, word in enumerate(words):
            tokens.setdefault(word, []).append(place)
    pairs = ((s, t) for i, j in links for s in tokens_of[0].get(i, ()) for t in tokens_of[1].get(j, ()))
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


# Scores.


@dataclass(frozen=True)
class AlignmentScores:
    """Scores of alignments, from 0 to 100."""

    error_rate: float
    precision: float
    recall: float


def alignment_scores(found: Sequence[Links], gold: Sequence[Gold]) -> AlignmentScores:
    """Returns the alignment error rate, precision and recall of `found`, from 0 to 100.

    The links of all pairs are counted together (Och & Ney 2003). With links A, sure links S and possible links P, which
    include S, the error rate is 100 (1 - (|A and S| + |A and P|) / (|A| + |S|)), precision is 100 |A and P| / |A|, and
    recall is 100 |A and S| / |S|.

    If a denominator is 0, a case that the paper does not define, the score is 0. For the error rate, this is the best
    score: nothing was linked, so no link is wrong, and there are no sure links that could be missing.
    """
    num_found = sum(len(links) for links in found)
    num_sure = sum(len(each.sure) for each in gold)
    in_sure = sum(len(each.sure.intersection(links)) for links, each in zip(found, gold, strict=True))
    in_possible = sum(len(each.possible.intersection(links)) for links, each in zip(found, gold, strict=True))
    return AlignmentScores(
        error_rate=100 * (num_found + num_sure - in_sure - in_possible) / max(num_found + num_sure, 1),
        precision=100 * in_possible / max(num_found, 1),
        recall=100 * in_sure / max(num_sure, 1),
    )


def diagonal(num_source: int, num_target: int) -> Links:
    """Returns the diagonal alignment, which links each target word to the source word at the same relative position.

    It serves as a baseline. `num_source` and `num_target` are the numbers of words; if one is 0, there are no links.
    """
    if not num_source:
        return ()
    return tuple(sorted(((2 * j + 1) * num_source // (2 * num_target), j) for j in range(num_target)))
