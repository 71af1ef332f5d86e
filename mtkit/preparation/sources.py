"""The text that preparation reads: what is suspicious in it, what is held out of it, and what changed since."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from mtkit.config.data_settings import CorpusConfig, listed
from mtkit.config.section import write_yaml
from mtkit.config.settings import Config
from mtkit.data.corpus import RawFile
from mtkit.errors import ConfigError, DataError, counted, say
from mtkit.text.lines import read_lines, read_pairs, require_file
from mtkit.text.oddities import (
    CASED,
    LOWER_CASED,
    MOSES,
    MOST_LINES,
    PROCESSED_LINES,
    Finding,
    Oversights,
    Sign,
    advice_on_labels,
    advice_on_table,
    capitals,
    findings,
    sample,
    undoing,
)
from mtkit.text.parallel import (
    COLUMN,
    Pair,
    data_file,
    files_of,
    fingerprints,
    known_fingerprints,
    read_corpus,
    read_part,
    read_source,
    read_target,
)
from mtkit.text.testsets import local_test_sets

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
                    f"mtkit: warning: {num_found:,} of {one.num_lines:,} sources of {one.name} stand in the training "
                    f"data, {num_pairs:,} of them with the same translation"
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


MOST_FILES = 6  # files of a corpus that a message lists


def oversights_of(config: Config) -> Oversights:
    return Oversights(config.languages, config.data.drop_identical)


def reported(oversights: Oversights) -> list[str]:
    """Tell what was seen so far; returns the lines."""
    warnings = list(oversights.warnings())
    for warning in warnings:
        report(warning)
    return warnings


def watched(oversights: Oversights, name: str) -> Callable[[CorpusConfig], Iterator[Pair]]:
    """Reads a part of the corpora of that name as oversights watches."""
    return lambda part: oversights.watched(name, part.paths, read_part(part), name == "data.train")


def _no_validation_pairs(corpora: Iterable[CorpusConfig]) -> DataError:
    return DataError(
        f"{names_of(corpora)}: the validation corpora hold no pairs; list others in data.valid, since training chooses "
        "checkpoints by them"
    )


def names_of(corpora: Iterable[CorpusConfig]) -> str:
    paths = [str(path) for corpus in corpora for path in corpus.paths]
    more = len(paths) - MOST_FILES
    return ", ".join(paths[:MOST_FILES]) + (f" and {more:,} more" if more > 0 else "")


def is_there(directory: Path) -> bool:
    """Whether there is something in a directory; an empty one is what a link to another disk leads to at first."""
    return directory.exists() and any(directory.iterdir())


def setting_changes(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{name} was {write_yaml(before.get(name))}, is {write_yaml(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def tag_changes(section: str, corpora: Sequence[CorpusConfig], before: dict[str, Any]) -> list[str]:
    """Tags that changed; where the number of corpora changed, that is told instead."""
    tags = before.get("tags") or [None] * len(corpora)
    if not isinstance(tags, list) or len(tags) != len(corpora):
        return []
    return [
        f"{section}[{place}].tag was {write_yaml(tag)}, is {write_yaml(corpus.tag)}"
        for place, (tag, corpus) in enumerate(zip(tags, corpora, strict=True))
        if tag != corpus.tag
    ]


def text_changes(
    section: str, corpora: Sequence[CorpusConfig], known: Sequence[str], paths: Sequence[str] = ()
) -> list[str]:
    """Which files of a list of corpora changed; known are their fingerprints, and paths where they lay, if it is known.

    Both go source, target, source, target, …
    """
    parts = [(place, part) for place, corpus in enumerate(corpora) for part in corpus.parts]
    now = [known_fingerprints(part, known) for _, part in parts]
    before = list(zip(known[::2], known[1::2], strict=False))
    found = [(source[1], target[1]) for source, target in now]
    if found == before:
        return []
    if len(found) != len(before):
        places = zip_longest(before, zip(paths[::2], paths[1::2], strict=False))
        gone = [set(names or ()) for pair, names in places if pair is not None and pair not in found]
        new = [{source[0], target[0]} for source, target in now if (source[1], target[1]) not in before]
        changes = [f"{section}: {_listed(names) or 'a corpus'} is listed no more" for names in gone]
        changes += [f"{section}: {_listed(names)} is new" for names in new]
        return changes or [f"{section} listed {len(before):,} corpora, lists {len(found):,}"]
    if sorted(found) == sorted(before):
        return [f"{section} lists its corpora in another order"]
    changes = []
    for (place, _), sides, pair in zip(parts, now, before, strict=True):
        wholes = [fingerprint.partition(COLUMN)[0] for fingerprint in (*pair, sides[0][1], sides[1][1])]
        if len(set(wholes)) == 1 and (sides[0][1], sides[1][1]) != pair:
            changes.append(f"{section}[{place}].columns changed")
            continue
        changes += [
            f"{section}: {path} holds other text"
            for (path, is_now), was in zip(sides, pair, strict=True)
            if is_now != was
        ]
    return list(dict.fromkeys(changes))


def stored_texts(stored: object) -> list[str]:
    """A list of texts from a file that may have been changed by hand."""
    return list(map(str, stored)) if isinstance(stored, list) else []


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(name for name in names if name))


def check_held_out(config: Config, oversights: Oversights) -> None:
    """Read the validation and test texts, so that what is wrong with them is told before anything is made."""
    valid = corpora_at_hand(config, config.data.valid)
    tests = [files for files in local_test_sets(config).values() if files is not None]
    for path in (*(path for corpus in valid for path in corpus.paths), *chain(*((t.source, *t.target) for t in tests))):
        require_file(path)
    read = watched(oversights, "data.valid")
    if valid and not sum(1 for corpus in valid for part in corpus.parts for _ in read(part)):
        raise _no_validation_pairs(config.data.valid)
    for files in tests:
        for path in files.target:
            paths = (files.source, path)
            deque(oversights.watched("data.test", paths, read_pairs(*paths), trains=False), maxlen=0)


def first_pairs(config: Config, corpora: Iterable[CorpusConfig], most: int) -> list[list[Pair]]:
    """Up to so many pairs of each of these corpora, without their tags."""
    return [list(islice(read_corpus(corpus), most)) for corpus in corpora_at_hand(config, corpora)]


def training_corpora(config: Config) -> list[CorpusConfig]:
    if not config.data.train:
        raise ConfigError("data.train is empty; list at least one {source: FILE, target: FILE}")
    return corpora_at_hand(config, config.data.train)


def corpora_at_hand(config: Config, corpora: Iterable[CorpusConfig]) -> list[CorpusConfig]:
    """The same corpora with the paths where their files lie; one that is missing is a DataError."""
    sides = ("source", "target", "tsv")
    found = []
    for corpus in corpora:
        here: dict[str, Path | tuple[Path, ...]] = {}
        for side in sides:
            files = getattr(corpus, side)
            paths = tuple(data_file(config, path) for path in listed(files))
            here |= {} if files is None else {side: paths[0] if isinstance(files, Path) else paths}
        found.append(corpus.model_copy(update=here))
    return found


def raw_files_of(corpora: Iterable[CorpusConfig]) -> tuple[RawFile, ...]:
    return tuple(RawFile(*known) for corpus in corpora for part in corpus.parts for known in fingerprints(part))


def fingerprints_of(raw_files: Iterable[RawFile]) -> list[str]:
    """What the files hold, wherever they lie."""
    return [raw.fingerprint for raw in raw_files]


def tags_by_corpus(corpora: Iterable[CorpusConfig]) -> dict[str, list[str | None]]:
    tags = [corpus.tag for corpus in corpora]
    return {"tags": tags} if any(tags) else {}


def report(line: str) -> None:
    say(line)
