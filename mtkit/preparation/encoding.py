"""Encodes sentence pairs as token ids: cleaning rules, detection of duplicates, fractions of unknown tokens."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from mtkit.config.data_and_model_settings import CorpusConfig, DataConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import CorpusWriter
from mtkit.errors import Meter, is_shown
from mtkit.preparation.sources import HeldOutSearch
from mtkit.text.lines import count_lines
from mtkit.text.parallel import Pair, tagged
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import Encoded, word_of_each_piece
from mtkit.translation.alignments import AlignmentLines, Link, parse_links, piece_links, raw_words

# Cleaning rules: which pairs are left out, and why.

# The reasons to leave a pair out, in the order in which they are checked. Each reason comes with the settings of the
# data section that control it.
RULES: dict[str, tuple[str, ...]] = {
    "not drawn": ("fraction",),  # by `Encoder`, before the other rules
    "blank source": (),
    "blank target": (),
    "too short": ("min_length",),
    "too long": ("max_length",),
    "length ratio": ("max_length_ratio",),
    "identical": ("drop_identical",),
    "wrong script": ("source_script", "target_script"),
    "few letters": ("min_letters",),
    "duplicate": ("drop_duplicates",),  # found by SeenPairs among the pairs that pass the other rules
}
REASONS = tuple(RULES)

NUM_EXAMPLES = 3  # the number of example pairs shown for each reason
EXAMPLE_WIDTH = 110  # the width of the line that shows an example, in characters
LEAST_WIDTH = 20  # each side gets at least so many characters, even if the line becomes wider

Lengths = NDArray[np.int64]

_LETTER = regex.compile(r"\p{L}")
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")
_NOT_SPACE = regex.compile(r"\S")


def drop_reason(source: str, target: str, source_length: int, target_length: int, rules: DataConfig) -> str | None:
    """Returns the reason to leave a pair out, or `None` if the pair passes; does not check for duplicates.

    If several reasons apply, the first one in `REASONS` is returned. `source_length` and `target_length` are in tokens,
    without end marks. The reason "blank source" means that the source consists only of white space or of characters
    that normalisation removes; "blank target" means the same of the target. "length ratio" means that the length of the
    longer side, divided by the length of the shorter side, exceeds `rules.max_length_ratio`.
    """
    if not source_length or not source.strip():
        return "blank source"
    if not target_length or not target.strip():
        return "blank target"
    shorter, longer = sorted((source_length, target_length))
    if shorter < rules.min_length:
        return "too short"
    if longer > rules.longest_training_side:
        return "too long"
    if rules.max_length_ratio is not None and longer > rules.max_length_ratio * shorter:
        return "length ratio"
    if rules.drop_identical and source.strip().casefold() == target.strip().casefold():
        return "identical"
    if not (_is_written_in(source, rules.source_script) and _is_written_in(target, rules.target_script)):
        return "wrong script"
    if rules.min_letters and min(share_of_letters(source), share_of_letters(target)) < rules.min_letters:
        return "few letters"
    return None


def passes_lengths(source_lengths: Lengths, target_lengths: Lengths, rules: DataConfig) -> NDArray[np.bool_]:
    """Returns a mask of the pairs that pass all rules about lengths, which are in tokens.

    A pair of which a side has no tokens does not pass.
    """
    shorter, longer = np.minimum(source_lengths, target_lengths), np.maximum(source_lengths, target_lengths)
    passes: NDArray[np.bool_] = (shorter >= max(1, rules.min_length)) & (longer <= rules.longest_training_side)
    if rules.max_length_ratio is not None:
        passes &= longer <= rules.max_length_ratio * shorter
    return passes


def has_text_rules(rules: DataConfig) -> bool:
    """Whether any of `rules` looks at the text of a pair, not just at its lengths; ignores the rule on blank sides."""
    return bool(rules.drop_identical or rules.source_script or rules.target_script or rules.min_letters)


def _is_written_in(text: str, scripts: Sequence[str] | None) -> bool:
    """Whether at least half of the letters in `text` belong to one of `scripts` or are shared by several scripts.

    If `scripts` is `None`, every text passes.
    """
    if not scripts:
        return True
    num_letters = len(_LETTER.findall(text))
    return 2 * len(_foreign_letter(tuple(scripts)).findall(text)) <= num_letters


@cache
def _foreign_letter(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    """Returns a pattern that matches a letter of any script other than `scripts`.

    Letters shared by several scripts, such as ー (which occurs in Hiragana and Katakana), do not match.
    """
    known = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[\p{{L}}--[{known}\p{{Script=Common}}\p{{Script=Inherited}}]]", regex.VERSION1)


def share_of_letters(text: str) -> float:
    """Returns the fraction of the characters in `text` that are letters or combining marks, between 0 and 1.

    White space is not counted.
    """
    return len(_LETTER_OR_MARK.findall(text)) / max(len(_NOT_SPACE.findall(text)), 1)


def settings_behind(reasons: Iterable[str]) -> list[str]:
    """Returns the names of the settings in the data section that control the given reasons to leave pairs out.

    For example, ["max_length"] for the reason "too long".
    """
    return [name for reason in REASONS if reason in set(reasons) for name in RULES[reason]]


class Drops:
    """Counts the pairs left out for each reason, and keeps up to `NUM_EXAMPLES` examples of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path, line: int, source: str, target: str) -> None:
        """Counts one more pair that is left out; the source of the pair is line number `line` of the file `path`."""
        self.counts[reason] += 1
        if self.counts[reason] <= NUM_EXAMPLES:
            place = f"  {reason}: {path}:{line}: "
            width = max(LEAST_WIDTH, (EXAMPLE_WIDTH - len(place)) // 2)
            text = " ||| ".join(_on_one_line(side, width) for side in (source, target))
            self._examples.setdefault(reason, []).append(f"{place}{text}")

    def examples(self) -> list[str]:
        """Returns a line of text for each example, sorted by reason in the order of `REASONS`."""
        return [line for reason in REASONS for line in self._examples.get(reason, [])]

    def __str__(self) -> str:
        """Returns the counts as text, such as "2 too long, 1 duplicate", in the order of `REASONS`."""
        return ", ".join(f"{self.counts[reason]:,} {reason}" for reason in REASONS if self.counts[reason])


def _on_one_line(text: str, width: int) -> str:
    """Returns the text, shortened to `width` characters, with unprintable characters replaced by spaces."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


# Duplicates: pairs that occurred before. They are recognised by digests of 128 bits, so each pair takes 16 bytes of
# memory.

NUM_SHARDS = 64  # digests are divided into shards by their first bits, so that each merge copies little
DIGEST_BYTES = 16  # among a hundred million different pairs, any two share a digest with probability below 10^-22

# An array of digests as byte strings, in ascending order. NumPy ignores zero bytes at the end of a byte string. That
# does no harm: all digests have the same length, so two different digests still compare as different.
Digests = NDArray[np.bytes_]


class SeenPairs:
    """The set of all sentence pairs seen so far, for detecting duplicates; stores a digest of each pair."""

    def __init__(self) -> None:
        self._shards: list[list[NDArray[Any]]] = [
            [] for _ in range(NUM_SHARDS)
        ]  # the levels of each shard, largest first

    def add(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Adds pairs; returns for each pair whether it is new.

        If `pairs` contains a pair several times, only the first is new.
        """
        digests = np.array([_digest(*pair) for pair in pairs], dtype=f"S{DIGEST_BYTES}")
        found, places = np.unique(digests, return_index=True)
        bounds = np.array([bytes([256 // NUM_SHARDS * shard]) for shard in range(NUM_SHARDS)], dtype=found.dtype)
        starts = [*np.searchsorted(found, bounds).tolist(), len(found)]
        is_new = np.zeros(len(pairs), dtype=np.bool_)
        for shard, levels in enumerate(self._shards):
            here = slice(starts[shard], starts[shard + 1])
            fresh = unknown_among(found[here], levels)
            is_new[places[here][fresh]] = True
            insert_sorted(found[here][fresh], levels)
        return is_new.tolist()


def _digest(source: str, target: str) -> bytes:
    # Lines contain no line feed, so different pairs give different strings.
    return blake2b(f"{source}\n{target}".encode(), digest_size=DIGEST_BYTES).digest()


def unknown_among(digests: NDArray[Any], levels: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Returns a bool array that is `True` for each digest that is in none of `levels`, the arrays of known digests."""
    unknown = np.ones(len(digests), dtype=np.bool_)
    for level in levels:
        places = np.searchsorted(level, digests)
        unknown &= level[np.minimum(places, len(level) - 1)] != digests
    return unknown


def insert_sorted(digests: NDArray[Any], levels: list[NDArray[Any]]) -> None:
    """Appends sorted digests to `levels`, the list of the arrays of known digests; then merges arrays of similar size.

    Because of this merging, each of n digests is copied only O(log n) times, however many calls insert them.
    """
    if not len(digests):
        return
    levels.append(digests)
    while len(levels) > 1 and len(levels[-2]) < 2 * len(levels[-1]):
        merged = np.concatenate([levels.pop(), levels.pop()])
        merged.sort(kind="stable")  # NumPy's stable sort merges the two sorted runs
        levels.append(merged)


# Shares of unknown tokens.


class UnknownShares:
    """Counts the tokens of several named texts, and how many of these tokens are unknown."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def add(self, name: str, ids: NDArray[Any], unknown: int) -> None:
        """Counts `ids`, further tokens of the text called `name`; `unknown` is the id of the unknown token."""
        self._tokens[name] += len(ids)
        self._unknown[name] += int(np.count_nonzero(ids == unknown))

    def shares(self) -> dict[str, float]:
        """Returns a dict from the name of each text to the fraction of its tokens that are unknown, between 0 and 1.

        The texts are in the order in which they were first added.
        """
        return {name: self._unknown[name] / max(count, 1) for name, count in self._tokens.items()}


def describe_unknown(shares: dict[str, float]) -> str:
    """Describes fractions of unknown tokens, for example: "1.20% of the training source"."""
    return ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())


# The encoder.

CHUNK_PAIRS = 10_000  # the number of pairs that are encoded together
CHUNK_CHARACTERS = 4_000_000  # a chunk ends after this many characters, so that very long lines fit into memory


class Encoder:
    """Encodes training corpora and writes the pairs that pass all rules; counts the other pairs in `drops`."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        writer: CorpusWriter,
        search: HeldOutSearch,
        unknown: UnknownShares,
        read: Callable[[CorpusConfig], Iterable[Pair]],
        alignments: AlignmentLines | None = None,
    ) -> None:
        """Initialises the encoder.

        `writer` stores the pairs that pass all rules, and `unknown` counts the unknown tokens in these pairs. `search`
        looks for validation and test sentences in the stored pairs (with `data.join`, in all pairs read). `read`
        returns the pairs of one part of a corpus; a part is a source file with its target file, or one tab-separated
        file. `alignments` has a line for each pair read.
        """
        self._alignments = alignments
        self._read = read
        self.drops = Drops()
        self._rules = config.data
        # Joining and drawing have separate random generators. So the pairs drawn with a larger `data.fraction` include
        # those drawn with a smaller one.
        self._join_rng, self._draw_rng = (np.random.default_rng([config.data.seed, n]) for n in range(2))
        self._has_source = config.task == "translation"
        self._keeps_text = config.training.samples_subwords
        self._unknown = unknown
        self._tokenizer = tokenizer
        self._writer = writer
        self._search = search
        self._seen = SeenPairs() if config.data.drop_duplicates else None
        self._num_threads = _num_threads()

    def encode(self, corpus: CorpusConfig) -> int:
        """Encodes a corpus and writes the pairs that pass all rules; returns the number of these pairs."""
        before = self._writer.num_pairs
        paths = [part.paths[0] for part in corpus.parts]
        more = f" and {len(paths) - 1:,} more files" if len(paths) > 1 else ""
        num_lines = sum(map(count_lines, paths)) if is_shown() else None
        with Meter("encoding", f"pairs of {paths[0]}{more}", num_lines, announced=True) as meter:
            for part in corpus.parts:
                line = 1
                for chunk in _chunks(self._read(part)):
                    self._encode_chunk(chunk, part, line)
                    line += len(chunk)
                    meter.add(len(chunk))
        return self._writer.num_pairs - before

    def _training_pairs(self, read: list[Pair]) -> tuple[list[int], list[Pair]]:
        """Joins consecutive pairs of `read`, as `data.join` says; then draws some of the results at random.

        Each is drawn with the probability `data.fraction`. Returns (indices, pairs): the pairs drawn and, for each, the
        index in `read` of the first pair joined in it.
        """
        places, pairs = list(range(len(read))), read
        if (most := self._rules.join.max) > 1:
            places, pairs = joined(read, most, self._join_rng)
        if self._rules.fraction < 1:
            drawn = (self._draw_rng.random(len(pairs)) < self._rules.fraction).nonzero()[0].tolist()
            if len(drawn) < len(pairs):
                self.drops.counts["not drawn"] += len(pairs) - len(drawn)
            places, pairs = [places[n] for n in drawn], [pairs[n] for n in drawn]
        return places, pairs

    def _encode_chunk(self, read: list[Pair], part: CorpusConfig, first_line: int) -> None:
        """Encodes the pairs `read`, which begin at line `first_line` of `part`; writes those that pass all rules.

        If the part has a tag, the source is encoded with the tag, but the cleaning rules see the source without the
        tag. For a language model, the rules are applied to the target alone, and the sources written are empty.
        """
        if not self._has_source:
            read = [(target, target) for _, target in read]
        if self._rules.join.max > 1:  # held-out sentences are looked for one by one
            for source, target in read:
                self._search.add_training_pair(tagged(source, part.tag), target)
        lines, raw = self._training_pairs(read)
        pairs = [(tagged(source, part.tag), target) for source, target in raw]
        targets = self._tokenizer.bulk_encode_target([target for _, target in pairs], self._num_threads)
        sources = targets
        if self._has_source:
            sources = self._tokenizer.bulk_encode_source([source for source, _ in pairs], self._num_threads)
        tag_length = len(self._tokenizer.encode_source([part.tag])[0]) if part.tag else 0
        reasons = self._drop_reasons(raw, sources.lengths, targets.lengths, tag_length)
        if self._seen:
            passed = [place for place, reason in enumerate(reasons) if not reason]
            for place, is_new in zip(passed, self._seen.add([pairs[place] for place in passed]), strict=True):
                reasons[place] = None if is_new else "duplicate"
        for place, reason in enumerate(reasons):
            if reason:
                self.drops.add(reason, part.paths[0], first_line + lines[place], *raw[place])
            elif self._rules.join.max == 1:
                self._search.add_training_pair(*pairs[place])
        is_kept = np.array([reason is None for reason in reasons], dtype=np.bool_)
        kept = is_kept.nonzero()[0].tolist()
        kept_targets = targets.only(is_kept)
        kept_sources = sources.only(is_kept) if self._has_source else Encoded.of([[]] * len(kept), targets.ids.dtype)
        _count_unknown(self._unknown, "training", self._tokenizer, kept_sources, kept_targets)
        texts: tuple[Sequence[str], Sequence[str]] = ((), ())
        if self._keeps_text:
            kept_pairs = [pairs[place] if self._has_source else ("", pairs[place][1]) for place in kept]
            texts = _normalized(kept_pairs, self._tokenizer)
        links: list[list[Link]] = []
        if self._alignments:
            aligned = list(self._alignments.next_lines(len(raw)))
            for place, source_ids, target_ids in zip(kept, kept_sources, kept_targets, strict=True):
                links.append(self._links(raw[place], source_ids, target_ids, tag_length, *aligned[place]))
        self._writer.add(kept_sources, kept_targets, *texts, links)

    def _drop_reasons(
        self, pairs: list[Pair], source_lengths: Lengths, target_lengths: Lengths, tag_length: int
    ) -> list[str | None]:
        """Returns for each pair the reason to leave it out, or `None` if the pair passes.

        Does not check for duplicates. `pairs` are without tags. The lengths are in tokens; the source lengths include
        the `tag_length` tokens of the tag.
        """
        source_lengths = np.where(source_lengths > tag_length, source_lengths, 0)
        reasons: list[str | None] = [None] * len(pairs)
        passes = passes_lengths(source_lengths, target_lengths, self._rules)
        checks_text = has_text_rules(self._rules)
        for place, (source, target) in enumerate(pairs):
            if checks_text or not passes[place] or source.isspace() or target.isspace():
                lengths = int(source_lengths[place]), int(target_lengths[place])
                reason = drop_reason(source, target, *lengths, self._rules)
                reasons[place] = "blank target" if reason == "blank source" and not self._has_source else reason
        return reasons

    def _links(
        self, pair: Pair, source: list[int], target: list[int], tag_length: int, where: str, line: str
    ) -> list[Link]:
        """Returns the alignment links between the tokens of a pair; `source` and `target` are the token ids.

        The first `tag_length` source tokens, which are the tag, have no links. `line` has the links between the words
        of the pair. If it is malformed, raises DataError with a message that begins with `where`.
        """
        tokenizer = self._tokenizer
        words = parse_links(line, where, *(len(text.split()) for text in pair))
        source_words = word_of_each_piece(tokenizer.source_pieces(source[tag_length:]))
        target_words = word_of_each_piece(tokenizer.target_pieces(target))
        return piece_links(
            words,
            [-1] * tag_length + raw_words(source_words, pair[0], tokenizer.normalize_source),
            raw_words(target_words, pair[1], tokenizer.normalize_target),
        )


def joined(pairs: Sequence[Pair], most: int, rng: np.random.Generator) -> tuple[list[int], list[Pair]]:
    """Joins runs of 1 to `most` consecutive pairs; returns the index of each run's first pair, and the joined pairs.

    The length of each run is drawn from `rng`. A pair with a blank side is not joined with others, so that the rules
    for blank sides can still drop it.
    """
    starts: list[int] = []
    results: list[Pair] = []
    is_blank = [not source.strip() or not target.strip() for source, target in pairs]
    start = 0
    while start < len(pairs):
        end = min(start + int(rng.integers(1, most + 1)), len(pairs))
        end = next((n for n in range(start, end) if is_blank[n]), end) if not is_blank[start] else start + 1
        starts.append(start)
        sources, targets = zip(*pairs[start:end], strict=True)
        results.append((" ".join(sources), " ".join(targets)))
        start = end
    return starts, results


def _normalized(pairs: Sequence[Pair], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Returns the sources and the targets of the pairs, normalised by the tokenizer."""
    return (
        [tokenizer.normalize_source(source) for source, _ in pairs],
        [tokenizer.normalize_target(target) for _, target in pairs],
    )


def count_unknown_in_validation(pairs: Iterable[Pair], tokenizer: Tokenizer, unknown: UnknownShares) -> None:
    """Encodes the validation text `pairs`; adds the numbers of its tokens and of its unknown tokens to `unknown`."""
    for chunk in _chunks(pairs):
        sources = tokenizer.bulk_encode_source([source for source, _ in chunk], _num_threads())
        targets = tokenizer.bulk_encode_target([target for _, target in chunk], _num_threads())
        _count_unknown(unknown, "validation", tokenizer, sources, targets)


def _count_unknown(unknown: UnknownShares, name: str, tokenizer: Tokenizer, sources: Encoded, targets: Encoded) -> None:
    """Adds the number of tokens of each side, and how many of these tokens are unknown, to `unknown`.

    In `unknown`, the two sides are the texts called "NAME source" and "NAME target", where NAME is the argument `name`.
    A side whose tokenizer never produces unknown tokens is not counted.
    """
    if tokenizer.source_shows_unknown and len(sources.ids):
        unknown.add(f"{name} source", sources.ids, tokenizer.specials.source.unknown)
    if tokenizer.target_shows_unknown:
        unknown.add(f"{name} target", targets.ids, tokenizer.specials.target.unknown)


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Yields lists of consecutive pairs.

    A list ends once it has `CHUNK_PAIRS` pairs or at least `CHUNK_CHARACTERS` characters.
    """
    chunk: list[Pair] = []
    num_characters = 0
    for source, target in pairs:
        chunk.append((source, target))
        num_characters += len(source) + len(target)
        if len(chunk) == CHUNK_PAIRS or num_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def _num_threads() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
