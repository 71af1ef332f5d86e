"""From pairs of text to pairs of ids: cleaning rules, duplicates, shares of unknown tokens, and the encoder."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

from mtkit.config.data_settings import CorpusConfig, DataConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import CorpusWriter
from mtkit.errors import Meter, is_shown
from mtkit.preparation.sources import HeldOutSearch
from mtkit.text.lines import count_lines
from mtkit.text.parallel import Pair, read_part, tagged
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import UNKNOWN

# Cleaning rules: which pairs are left out, and why.

# The reasons to leave a pair out, in the order in which they are tried, each with the settings that decide it.
RULES: dict[str, tuple[str, ...]] = {
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

NUM_EXAMPLES = 3  # pairs shown for each reason
EXAMPLE_WIDTH = 110  # characters of a line that shows one
LEAST_WIDTH = 20  # characters of each side, however long the file's path

_LETTER = regex.compile(r"\p{L}")
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")
_NOT_SPACE = regex.compile(r"\S")


def drop_reason(source: str, target: str, source_length: int, target_length: int, rules: DataConfig) -> str | None:
    """The first of REASONS for which a pair is left out, or None if it is kept; duplicates are not looked for here.

    Lengths are in tokens, without end marks. A side is blank if it holds only white space, or only characters that
    normalisation removes. The length ratio is that of the longer side to the shorter.
    """
    if not source_length or not source.strip():
        return "blank source"
    if not target_length or not target.strip():
        return "blank target"
    shorter, longer = sorted((source_length, target_length))
    if shorter < rules.min_length:
        return "too short"
    if longer > rules.max_length:
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


def _is_written_in(text: str, scripts: Sequence[str] | None) -> bool:
    """Whether at least half of the letters are of these scripts or common to all scripts; None allows any script."""
    if not scripts:
        return True
    num_letters = len(_LETTER.findall(text))
    return 2 * len(_foreign_letter(tuple(scripts)).findall(text)) <= num_letters


@cache
def _foreign_letter(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    """Matches a letter of another script. Letters that scripts share (Common), such as the kana's ー, do not match."""
    known = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[\p{{L}}--[{known}\p{{Script=Common}}\p{{Script=Inherited}}]]", regex.VERSION1)


def share_of_letters(text: str) -> float:
    """Share of letters, and the marks on them, among the characters that are not white space, 0 to 1."""
    return len(_LETTER_OR_MARK.findall(text)) / max(len(_NOT_SPACE.findall(text)), 1)


def settings_behind(reasons: Iterable[str]) -> list[str]:
    """The names of the settings of the data section that decide these reasons."""
    return [name for reason in REASONS if reason in set(reasons) for name in RULES[reason]]


class Drops:
    """Counts the pairs left out for each reason, and keeps the first few as examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path, line: int, source: str, target: str) -> None:
        """Count a pair; path and line say where its source is."""
        self.counts[reason] += 1
        if self.counts[reason] <= NUM_EXAMPLES:
            place = f"  {reason}: {path}:{line}: "
            width = max(LEAST_WIDTH, (EXAMPLE_WIDTH - len(place)) // 2)
            text = " ||| ".join(_on_one_line(side, width) for side in (source, target))
            self._examples.setdefault(reason, []).append(f"{place}{text}")

    def examples(self) -> list[str]:
        """A line for each example, in the order of the rules."""
        return [line for reason in REASONS for line in self._examples.get(reason, [])]

    def __str__(self) -> str:
        """The counts, in the order of the rules."""
        return ", ".join(f"{self.counts[reason]:,} {reason}" for reason in REASONS if self.counts[reason])


def _on_one_line(text: str, width: int) -> str:
    """The text in at most so many printable characters."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


# Duplicates: pairs that occurred before, recognised by digests of 128 bits, that is 16 bytes of memory for each pair.

NUM_SHARDS = 64  # chosen by the first bits of a digest, so that each merge copies little
DIGEST_BYTES = 16  # two of a hundred million different pairs share a digest with probability below 10^-22

# Sorted digests. NumPy drops trailing zero bytes of such strings, but on both sides of every comparison.
Digests = NDArray[np.bytes_]


class SeenPairs:
    """Detects duplicate pairs."""

    def __init__(self) -> None:
        self._shards: list[list[Digests]] = [[] for _ in range(NUM_SHARDS)]  # each: levels, the largest first

    def add(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Remember these pairs; returns which of them are new, counting only the first of equal pairs as new."""
        digests = np.array([_digest(*pair) for pair in pairs], dtype=f"S{DIGEST_BYTES}")
        found, places = np.unique(digests, return_index=True)
        bounds = np.array([bytes([256 // NUM_SHARDS * shard]) for shard in range(NUM_SHARDS)], dtype=found.dtype)
        starts = [*np.searchsorted(found, bounds).tolist(), len(found)]
        is_new = np.zeros(len(pairs), dtype=np.bool_)
        for shard, levels in enumerate(self._shards):
            here = slice(starts[shard], starts[shard + 1])
            fresh = _unknown(found[here], levels)
            is_new[places[here][fresh]] = True
            _insert(found[here][fresh], levels)
        return is_new.tolist()


def _digest(source: str, target: str) -> bytes:
    # A line holds no line feed, so different pairs give different texts.
    return blake2b(f"{source}\n{target}".encode(), digest_size=DIGEST_BYTES).digest()


def _unknown(digests: Digests, levels: Sequence[Digests]) -> NDArray[np.bool_]:
    """(len(digests),) bool: which of these digests are in none of the levels."""
    unknown = np.ones(len(digests), dtype=np.bool_)
    for level in levels:
        places = np.searchsorted(level, digests)
        unknown &= level[np.minimum(places, len(level) - 1)] != digests
    return unknown


def _insert(digests: Digests, levels: list[Digests]) -> None:
    """Add sorted digests as a new level, then merge levels of similar size: each digest is copied O(log n) times."""
    if not len(digests):
        return
    levels.append(digests)
    while len(levels) > 1 and len(levels[-2]) < 2 * len(levels[-1]):
        merged = np.concatenate([levels.pop(), levels.pop()])
        merged.sort(kind="stable")  # recognises the two sorted runs and merges them
        levels.append(merged)


# Shares of unknown tokens.


class UnknownShares:
    """Counts tokens and unknown tokens of several texts."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def add(self, name: str, rows: Iterable[Sequence[int]], unknown: int = UNKNOWN) -> None:
        """Count sentences, given as ids, of the text of that name; unknown is the id of the unknown token."""
        for row in rows:
            self._tokens[name] += len(row)
            self._unknown[name] += row.count(unknown)

    def shares(self) -> dict[str, float]:
        """Share of unknown tokens in each text, 0 to 1; the texts come in the order in which they were first added."""
        return {name: self._unknown[name] / max(count, 1) for name, count in self._tokens.items()}


def describe_unknown(shares: dict[str, float]) -> str:
    """The shares in words: 1.20% of the training source, 0.50% of the training target."""
    return ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())


# The encoder.

CHUNK_PAIRS = 10_000  # pairs encoded at once
CHUNK_CHARACTERS = 4_000_000  # so that a chunk of very long lines fits into memory, too


class Encoder:
    """Encodes training corpora, writes the pairs that pass all rules, and counts the others in drops."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        writer: CorpusWriter,
        search: HeldOutSearch,
        unknown: UnknownShares,
        read: Callable[[CorpusConfig], Iterable[Pair]] = read_part,
    ) -> None:
        """Read gives the pairs of a part of a corpus; pairs that are kept go to writer, search and unknown."""
        self._read = read
        self.drops = Drops()
        self._rules = config.data
        self._keeps_text = config.training.samples_subwords
        self._unknown = unknown
        self._tokenizer = tokenizer
        self._writer = writer
        self._search = search
        self._seen = SeenPairs() if config.data.drop_duplicates else None
        self._num_threads = _num_threads()

    def encode(self, corpus: CorpusConfig) -> int:
        """Encode and write a corpus; returns the number of pairs kept."""
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

    def _encode_chunk(self, raw: list[Pair], part: CorpusConfig, first_line: int) -> None:
        """Encode and write pairs of consecutive lines of a part; the rules see the source without its tag."""
        pairs = [(tagged(source, part.tag), target) for source, target in raw]
        sources = self._tokenizer.encode_source([source for source, _ in pairs], self._num_threads)
        targets = self._tokenizer.encode_target([target for _, target in pairs], self._num_threads)
        tag_length = len(self._tokenizer.encode_source([part.tag])[0]) if part.tag else 0
        reasons: list[str | None] = []
        for place, (source, target) in enumerate(raw):
            source_length = len(sources[place]) if len(sources[place]) > tag_length else 0
            reasons.append(drop_reason(source, target, source_length, len(targets[place]), self._rules))
        if self._seen:
            passed = [place for place, reason in enumerate(reasons) if not reason]
            for place, is_new in zip(passed, self._seen.add([pairs[place] for place in passed]), strict=True):
                reasons[place] = None if is_new else "duplicate"
        for place, reason in enumerate(reasons):
            if reason:
                self.drops.add(reason, part.paths[0], first_line + place, *raw[place])
            else:
                self._search.add_training_pair(*pairs[place])
        kept = [place for place, reason in enumerate(reasons) if not reason]
        kept_sources, kept_targets = [sources[place] for place in kept], [targets[place] for place in kept]
        _count_unknown(self._unknown, "training", self._tokenizer, kept_sources, kept_targets)
        texts = _normalized([pairs[place] for place in kept], self._tokenizer) if self._keeps_text else ()
        self._writer.add(kept_sources, kept_targets, *texts)


def _normalized(pairs: Sequence[Pair], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Sources and targets, normalised as the tokenizer does it before segmentation."""
    return (
        [tokenizer.normalize_source(source) for source, _ in pairs],
        [tokenizer.normalize_target(target) for _, target in pairs],
    )


def count_unknown_in_validation(pairs: Iterable[Pair], tokenizer: Tokenizer, unknown: UnknownShares) -> None:
    """Encode the validation text, to count its unknown tokens."""
    for chunk in _chunks(pairs):
        sources = tokenizer.encode_source([source for source, _ in chunk], _num_threads())
        targets = tokenizer.encode_target([target for _, target in chunk], _num_threads())
        _count_unknown(unknown, "validation", tokenizer, sources, targets)


def _count_unknown(
    unknown: UnknownShares, name: str, tokenizer: Tokenizer, sources: list[list[int]], targets: list[list[int]]
) -> None:
    """Count the unknown tokens of each side whose tokenizer has an unknown token."""
    if tokenizer.source_shows_unknown:
        unknown.add(f"{name} source", sources, tokenizer.specials.source.unknown)
    if tokenizer.target_shows_unknown:
        unknown.add(f"{name} target", targets, tokenizer.specials.target.unknown)


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """The pairs in lists of at most CHUNK_PAIRS, each ended early once it holds CHUNK_CHARACTERS."""
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
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
