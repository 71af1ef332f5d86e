"""Which pairs training leaves out, and what the user is warned of in the text; the home of regex."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

from mtkit.config.data_settings import CorpusConfig, DataConfig
from mtkit.config.settings import Config
from mtkit.errors import counted, say
from mtkit.text.lines import read_lines, require_file
from mtkit.text.oddities import (
    CASED,
    LOWER_CASED,
    MOSES,
    MOST_LINES,
    PROCESSED_LINES,
    Finding,
    Sign,
    advice_on_labels,
    advice_on_table,
    capitals,
    findings,
    sample,
    undoing,
)
from mtkit.text.parallel import files_of, read_source, read_target
from mtkit.text.symbols import UNKNOWN
from mtkit.text.testsets import local_test_sets

# Each with the settings that decide it.
RULES: dict[str, tuple[str, ...]] = {
    "blank source": (),
    "blank target": (),
    "too short": ("min_length",),
    "too long": ("max_length",),
    "length ratio": ("max_length_ratio",),
    "identical": ("drop_identical",),
    "wrong script": ("source_script", "target_script"),
    "few letters": ("min_letters",),
    "duplicate": ("drop_duplicates",),  # found in mtkit.text.duplicates, among the pairs that stay
}
REASONS = tuple(RULES)

NUM_EXAMPLES = 3  # of each reason
EXAMPLE_WIDTH = 110
LEAST_WIDTH = 20  # of a side, though the names of files are long

_LETTER = regex.compile(r"\p{L}")
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")
_NOT_SPACE = regex.compile(r"\S")


def drop_reason(source: str, target: str, source_length: int, target_length: int, rules: DataConfig) -> str | None:
    """The first of REASONS to leave a pair out, or None to keep it.

    Lengths are in tokens, end marks not counted. A side of white space, or of nothing but what normalisation removes,
    is blank. The ratio is of the longer side to the shorter.
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
    """Whether half of the letters at least are of these scripts, or of those that all scripts share."""
    if not scripts:
        return True
    num_letters = len(_LETTER.findall(text))
    return 2 * len(_foreign_letter(tuple(scripts)).findall(text)) <= num_letters


@cache
def _foreign_letter(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    """A letter of another script; such as the long vowel mark of both kana are Common and foreign to none."""
    known = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[\p{{L}}--[{known}\p{{Script=Common}}\p{{Script=Inherited}}]]", regex.VERSION1)


def share_of_letters(text: str) -> float:
    """Letters, and the marks on them, among the characters that are not white space."""
    return len(_LETTER_OR_MARK.findall(text)) / max(len(_NOT_SPACE.findall(text)), 1)


def settings_behind(reasons: Iterable[str]) -> list[str]:
    """The names of the settings, in the data section, that decide these reasons."""
    return [name for reason in REASONS if reason in set(reasons) for name in RULES[reason]]


class Drops:
    """The pairs that were left out: how many for each reason, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path, line: int, source: str, target: str) -> None:
        """One more."""
        self.counts[reason] += 1
        if self.counts[reason] <= NUM_EXAMPLES:
            place = f"  {reason}: {path}:{line}: "
            width = max(LEAST_WIDTH, (EXAMPLE_WIDTH - len(place)) // 2)
            text = " ||| ".join(_on_one_line(side, width) for side in (source, target))
            self._examples.setdefault(reason, []).append(f"{place}{text}")

    def examples(self) -> list[str]:
        """A line for each of the first ones."""
        return [line for reason in REASONS for line in self._examples.get(reason, [])]

    def __str__(self) -> str:
        """The counts, in the order of the rules."""
        return ", ".join(f"{self.counts[reason]:,} {reason}" for reason in REASONS if self.counts[reason])


def _on_one_line(text: str, width: int) -> str:
    """What a terminal can show of it in so many characters."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


# Pairs that stood before, known by digests of 128 bits: 16 bytes of memory for each pair seen.

NUM_SHARDS = 64  # by the first bits of a digest, so that merging copies little at a time
DIGEST_BYTES = 16  # two of a hundred million pairs fall together once in 10^22 corpora

# Sorted digests; NumPy leaves out zeros at the end of such texts, and so it does on both sides of a comparison.
Digests = NDArray[np.bytes_]


class Seen:
    """The pairs seen so far."""

    def __init__(self) -> None:
        self._shards: list[list[Digests]] = [[] for _ in range(NUM_SHARDS)]  # each of fewer arrays the longer they are

    def add(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """See these pairs; which of them were new, the first of equal ones among them."""
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
    # No line holds a line feed, so no two pairs make the same text.
    return blake2b(f"{source}\n{target}".encode(), digest_size=DIGEST_BYTES).digest()


def _unknown(digests: Digests, levels: Sequence[Digests]) -> NDArray[np.bool_]:
    """Which of some digests stand in no level."""
    unknown = np.ones(len(digests), dtype=np.bool_)
    for level in levels:
        places = np.searchsorted(level, digests)
        unknown &= level[np.minimum(places, len(level) - 1)] != digests
    return unknown


def _insert(digests: Digests, levels: list[Digests]) -> None:
    """Add sorted digests; levels of like size become one, so that each digest is copied a logarithm of times."""
    if not len(digests):
        return
    levels.append(digests)
    while len(levels) > 1 and len(levels[-2]) < 2 * len(levels[-1]):
        merged = np.concatenate([levels.pop(), levels.pop()])
        merged.sort(kind="stable")  # finds the two runs, and merges them
        levels.append(merged)


# Validation and test sentences that stand in the training text.


@dataclass(frozen=True)
class HeldOut:
    """A validation or test set, its lines known by their hashes; blank sources are not looked for."""

    name: str
    num_lines: int
    sources: list[int]
    pairs: list[tuple[int, ...]]  # for each source, one hash per reference


class Search:
    """Looks for held-out lines among those of the training text, in memory that the held-out lines decide."""

    def __init__(self, sets: list[HeldOut]) -> None:
        self._held_out = sets
        self._wanted = {digest for one in sets for digest in one.sources}
        self._wanted_pairs = {digest for one in sets for pair in one.pairs for digest in pair}
        self._found: set[int] = set()
        self._found_pairs: set[int] = set()

    def see(self, source: str, target: str) -> None:
        """A pair of the training text."""
        digest = hash(source)
        if digest in self._wanted:
            self._found.add(digest)
            self._found_pairs |= {hash((source, target))} & self._wanted_pairs

    def warnings(self) -> Iterator[str]:
        """A line for each set of which something was seen."""
        for one in self._held_out:
            num_found = sum(digest in self._found for digest in one.sources)
            num_pairs = sum(not self._found_pairs.isdisjoint(pair) for pair in one.pairs)
            if num_found:
                yield (
                    f"warning: {num_found:,} of {one.num_lines:,} sources of {one.name} stand in the training data, "
                    f"{num_pairs:,} of them with the same translation"
                )


def held_out(name: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> HeldOut:
    """A set from its sources and the references of each."""
    num_lines = 0
    sources, pairs = [], []
    for source, references in rows:
        num_lines += 1
        if source.strip():
            sources.append(hash(source))
            pairs.append(tuple(hash((source, reference)) for reference in references))
    return HeldOut(name, num_lines, sources, pairs)


# How much of a text a tokenizer does not know.


class UnknownShares:
    """Counts the unknown among the tokens of several texts."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def see(self, name: str, rows: Iterable[Sequence[int]], unknown: int = UNKNOWN) -> None:
        """Sentences of the text of that name; unknown is the id of what is."""
        for row in rows:
            self._tokens[name] += len(row)
            self._unknown[name] += row.count(unknown)

    def shares(self) -> dict[str, float]:
        """The share of each text, in the order in which they were first seen."""
        return {name: self._unknown[name] / max(count, 1) for name, count in self._tokens.items()}


def describe_unknown(shares: dict[str, float]) -> str:
    """The shares in words: "1.2% of the training source, 0.5% of the training target"."""
    return ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())


# Warns before training where text is not plain, which would otherwise show only in the scores.

MOST_NAMED = 3  # other files that a warning names
ROWS = 100  # first rows of a table by which columns of sentences are found
LONGEST_SHOWN = 40  # characters of a line that a warning shows


@dataclass(frozen=True)
class _Text:
    """One side of a corpus or of a test set, and what was found in it."""

    file: Path
    column: int | None  # of a file that holds both sides
    language: str
    findings: list[Finding]
    capitals: float | None
    advice: str | None  # where its lines are no sentences
    example: tuple[int, str]  # number and text of a line, with a capital if there is one

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.file}{self._where}"

    @property
    def _where(self) -> str:
        return "" if self.column is None else f", column {self.column}"

    def at(self, line: int, excerpt: str) -> str:
        """A place in it, and what stands there."""
        return f'{self.file}:{line}{self._where}: "{excerpt}"'


def warn_of_processed_text(config: Config, corpora: Iterable[CorpusConfig]) -> None:
    """Warn of text that is cut into subwords, tokenised or escaped, and of lower-cased text beside cased text.

    corpora are those of data.train and data.valid with the paths where their files lie; the test sets are read, too. A
    sample of each file is looked at. The text is used as it is all the same.
    """
    texts = list({text.name: text for text in _texts(config, corpora)}.values())
    alike: dict[tuple[Sign, ...], list[_Text]] = {}
    for text in texts:
        if text.findings:
            alike.setdefault(tuple(finding.sign for finding in text.findings), []).append(text)
    advised = [text for text in texts if text.advice]
    for text in advised[:MOST_NAMED]:
        say(f"mtkit: warning: {text.name}: {text.advice}")
    if more := [text.name for text in advised[MOST_NAMED:]]:
        say(f"mtkit: warning: and so with {counted(len(more), 'more file')}{_others(more)}")
    for found in alike.values():
        say(f"mtkit: warning: {_told(found, config)}")
    if warning := _told_case(texts):
        say(f"mtkit: warning: {warning}")


def _told(alike: list[_Text], config: Config) -> str:
    """All files that show the same signs."""
    text = alike[0]
    finding = text.findings[0]
    signs = [each.sign for each in text.findings]
    how = " and ".join(f"{sign.kind} by {sign.by}" for sign in signs)
    what = (
        f"{text.at(finding.line, finding.excerpt)} looks {how}, "
        f"as do {finding.count:,} of the {finding.num_lines:,} lines looked at{_others([t.name for t in alike[1:]])}"
    )
    undo = undoing(text.file, text.column, [sign.cure.replace("LANG", text.language) for sign in signs], text.language)
    undo += " (pip install sacremoses brings that command)" if any(sign.by == MOSES for sign in signs) else ""
    if config.tokenizer.type == "word":
        return (
            f"{what}; tokenizer.type word keeps it so, but translations and scores will be of such text, too; this "
            f"undoes it, file by file: {undo}"
        )
    setting = f"; or {signs[0].setting}" if signs[0].setting and config.tokenizer.model is None else ""
    return (
        f"{what}; mtkit wants plain text and cuts it by itself, so undo that first, file by file, and name the new "
        f"files: {undo}{setting}"
    )


def _told_case(texts: list[_Text]) -> str | None:
    """Which texts are lower-cased, if others are not."""
    lower = [text for text in texts if text.capitals is not None and text.capitals <= LOWER_CASED]
    cased = [text for text in texts if text.capitals is not None and text.capitals >= CASED]
    if not lower or not cased:
        return None
    return (
        f"{lower[0].at(*lower[0].example)} is lower-cased like all of this file{_others([t.name for t in lower[1:]])}, "
        f"but {cased[0].at(*cased[0].example)} is not{_others([text.name for text in cased[1:]])}; use text in its "
        r"original case everywhere, or lower-case all of it: sed 's/.*/\L&/' FILE"
    )


def _others(names: list[str]) -> str:
    if not names:
        return ""
    more = len(names) - MOST_NAMED
    return f" (and {', '.join(names[:MOST_NAMED])}{f' and {more:,} more files' if more > 0 else ''})"


def _texts(config: Config, corpora: Iterable[CorpusConfig]) -> Iterator[_Text]:
    source, target = config.languages.source, config.languages.target
    for corpus in corpora:
        for path in corpus.paths:
            require_file(path)
        most = max(PROCESSED_LINES, MOST_LINES // len(corpus.parts))
        columns = corpus.columns if corpus.tsv is not None else (None, None)
        for part in corpus.parts:
            files = files_of(part)
            yield _looked_at(files[0], columns[0], source, read_source(part), most)
            yield _looked_at(files[1], columns[1], target, read_target(part), most)
    for test_set in local_test_sets(config).values():
        if test_set is not None:
            for file, language in ((test_set.source, source), *((path, target) for path in test_set.target)):
                yield _looked_at(file, None, language, read_lines(file), is_test_set=True)


def _looked_at(
    file: Path,
    column: int | None,
    language: str,
    lines: Iterable[str],
    most: int = MOST_LINES,
    is_test_set: bool = False,
) -> _Text:
    sampled = list(sample(lines, most))
    written = [(number, line.strip()) for number, line in sampled if line.strip()]
    example = next(((n, line) for n, line in written if any(map(str.isupper, line))), [*written, (1, "")][0])
    shown = example[1] if len(example[1]) <= LONGEST_SHOWN else f"{example[1][: LONGEST_SHOWN - 1]}…"
    share = capitals(line for _, line in sampled)
    first = [line for _, line in sampled[:PROCESSED_LINES]]
    table = advice_on_table(file, first, is_test_set) if column is None else None
    rows = list(islice(read_lines(file), ROWS)) if column is not None else []
    advice = table or advice_on_labels(column, [line for _, line in sampled], rows)
    signs = [] if table else findings(sampled)
    return _Text(file, column, language, signs, share, advice, (example[0], shown))
