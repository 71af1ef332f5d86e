"""The text that mtkit reads: corpora and changes in them, test sets, held-out sentences, and suspicious text.

A part of a corpus is one source file with its target file, or one tab-separated file.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from itertools import chain, islice, zip_longest
from pathlib import Path
from tarfile import TarError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from portalocker.exceptions import LockException

from mtkit.config.data_and_model_settings import CorpusConfig, LanguagesConfig, listed
from mtkit.config.section import write_yaml
from mtkit.config.settings import Config
from mtkit.data.corpus import RawFile
from mtkit.errors import ConfigError, DataError, counted, say
from mtkit.text.lines import read_lines, read_pairs, require_file
from mtkit.text.parallel import (
    CASED,
    COLUMN,
    LEADING_LINES,
    LOWER_CASED,
    MOSES,
    MOST_LINES,
    Finding,
    Oversights,
    Pair,
    Sign,
    advice_on_labels,
    advice_on_table,
    capitals,
    cleaning_command,
    data_file,
    files_of,
    findings,
    fingerprints,
    known_fingerprints,
    read_corpus,
    read_part,
    read_source,
    read_target,
    sample,
    tagged,
    tagged_pairs,
)

if TYPE_CHECKING:
    from sacrebleu.dataset.base import Dataset

# The corpora of the settings, with the actual paths of their files.

MOST_FILES = 6  # the number of files that a message names


def training_corpora(config: Config) -> list[CorpusConfig]:
    """Returns the corpora of `data.train`, with paths that include `data.root`.

    Raises ConfigError if `data.train` is empty, DataError if a file is missing.
    """
    if not config.data.train:
        raise ConfigError("data.train is empty; list at least one {source: FILE, target: FILE}")
    return resolve_corpora(config, config.data.train)


def resolve_corpora(config: Config, corpora: Iterable[CorpusConfig]) -> list[CorpusConfig]:
    """Returns the corpora with paths that include `data.root`. Raises DataError if a file is missing."""
    resolved = []
    for corpus in corpora:
        paths_of: dict[str, Path | tuple[Path, ...]] = {}
        for key in ("source", "target", "tsv"):
            files = getattr(corpus, key)
            if files is not None:
                paths = tuple(data_file(config, path) for path in listed(files))
                paths_of[key] = paths[0] if isinstance(files, Path) else paths
        resolved.append(corpus.model_copy(update=paths_of))
    return resolved


def first_pairs(config: Config, corpora: Iterable[CorpusConfig], most: int) -> list[list[Pair]]:
    """Returns up to `most` pairs from the beginning of each corpus, without tags."""
    return [list(islice(read_corpus(corpus), most)) for corpus in resolve_corpora(config, corpora)]


def fingerprint_files(corpora: Iterable[CorpusConfig]) -> tuple[RawFile, ...]:
    """Returns the path and fingerprint of each file of the corpora: for each part, its source and then its target."""
    return tuple(RawFile(*known) for corpus in corpora for part in corpus.parts for known in fingerprints(part))


def tags_by_corpus(corpora: Iterable[CorpusConfig]) -> dict[str, list[str | None]]:
    """Returns {"tags": LIST} for a manifest, or {} if no corpus has a tag.

    The list holds the tag of each corpus, or `None` for a corpus without a tag.
    """
    tags = [corpus.tag for corpus in corpora]
    return {"tags": tags} if any(tags) else {}


def describe_files(corpora: Iterable[CorpusConfig]) -> str:
    """Returns text for a message: the first `MOST_FILES` paths of the corpora, and how many more there are."""
    paths = [str(path) for corpus in corpora for path in corpus.paths]
    more = len(paths) - MOST_FILES
    return ", ".join(paths[:MOST_FILES]) + (f" and {more:,} more" if more > 0 else "")


# Changes in text and settings since a tokenizer or a corpus was made from them.


def has_files(directory: Path) -> bool:
    """Whether a directory exists and is not empty.

    An empty directory counts as missing: it may be a link to another disk, made before the first run.
    """
    return directory.exists() and any(directory.iterdir())


def string_list(stored: object) -> list[str]:
    """Returns the items of a list as strings, or [] if `stored` is not a list.

    `stored` was read from a file, which may have been edited by hand.
    """
    return list(map(str, stored)) if isinstance(stored, list) else []


def setting_changes(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns a line of text for each setting of a section that changed, such as "data.seed was 1, is 2".

    `before` and `now` map the names of the settings to their old and new values.
    """
    return [
        f"{section}.{name} was {write_yaml(before.get(name))}, is {write_yaml(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def tag_changes(section: str, corpora: Sequence[CorpusConfig], before: dict[str, Any]) -> list[str]:
    """Returns a line of text for each corpus whose tag differs from the stored tag in `before["tags"]`.

    `section` is the setting that lists the corpora. If the number of corpora has changed, the tags are not compared:
    `text_changes` already reports the files that were added or removed.
    """
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
    """Returns a line of text for each file of the corpora that changed, is new, or is no longer listed.

    `section` is the setting that lists the corpora. `known` holds the fingerprints stored earlier, in the order source,
    target, source, target, …; `paths` holds the paths of the same files in the same order, if the paths were stored
    too. If only the order of the corpora changed, a single line says so.
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
        changes = [f"{section}: {_joined(names) or 'a corpus'} is no longer listed" for names in gone]
        changes += [f"{section}: {_joined(names)} is new" for names in new]
        return changes or [f"{section} listed {len(before):,} corpora, lists {len(found):,}"]
    if sorted(found) == sorted(before):
        return [f"{section} lists its corpora in another order"]
    changes = []
    for (place, _), sides, pair in zip(parts, now, before, strict=True):
        whole_files = [fingerprint.partition(COLUMN)[0] for fingerprint in (*pair, sides[0][1], sides[1][1])]
        if len(set(whole_files)) == 1 and (sides[0][1], sides[1][1]) != pair:
            changes.append(f"{section}[{place}].columns changed")
            continue
        changes += [
            f"{section}: {path} holds other text"
            for (path, is_now), was in zip(sides, pair, strict=True)
            if is_now != was
        ]
    return list(dict.fromkeys(changes))


def _joined(names: Iterable[str]) -> str:
    return " and ".join(sorted(name for name in names if name))


# Oversights, which are detected while pairs are read: header lines, and pairs whose source and target are identical.


def new_oversights(config: Config) -> Oversights:
    """Returns an empty record of oversights (likely mistakes in text), to be filled while the text is read.

    Oversights are header lines that are read as pairs, and pairs whose source and target are identical.
    """
    return Oversights(config.languages, config.data.drop_identical)


def watching_reader(oversights: Oversights, section: str) -> Callable[[CorpusConfig], Iterator[Pair]]:
    """Returns a function that yields the pairs of a part of a corpus.

    While yielding the pairs, the function adds header lines, and pairs whose source and target are identical, to
    `oversights`. `section` is the setting that lists the corpus: "data.train" or "data.valid".
    """
    return lambda part: oversights.watched(section, part.paths, read_part(part), section == "data.train")


def report_oversights(oversights: Oversights) -> list[str]:
    """Prints a warning for each oversight (a likely mistake in the text) recorded so far; returns the warnings."""
    warnings = list(oversights.warnings())
    for warning in warnings:
        say(warning)
    return warnings


# Test sets: text files, or sets that sacreBLEU knows by name and downloads, such as wmt14/full (Post 2018).


@dataclass(frozen=True)
class SetFiles:
    """The files of a test set: one source text and one or more references."""

    source: Path
    target: tuple[Path, ...]
    tag: str | None = None  # put before each source line when the model translates it


def test_sets(config: Config) -> dict[str, SetFiles]:
    """The files of the test sets in the settings, by name; sacreBLEU's sets are downloaded if needed.

    Raises ConfigError if the settings name no test set, if sacreBLEU lacks a set that they name, or if it has that set
    only for other languages. Raises DataError if a file is missing or cannot be downloaded.
    """
    if not config.data.test:
        raise ConfigError("there is no test set: name one in data.test, or give --source and --reference")
    sets = {}
    for name, test_set in config.data.test.items():
        if test_set.sacrebleu is not None:
            sets[name] = fetch(test_set.sacrebleu, config.languages, test_set.tag)
        else:
            assert test_set.source is not None, "the settings check it"
            source, *targets = (data_file(config, path) for path in (test_set.source, *test_set.target))
            sets[name] = SetFiles(source, tuple(targets), test_set.tag)
    return sets


def local_test_sets(config: Config) -> dict[str, SetFiles | None]:
    """The files of the test sets in the settings, by name; `None` for sets of sacreBLEU that are not downloaded yet.

    Downloads nothing; returns {} if the settings have no test set. Raises ConfigError for sets and languages that
    sacreBLEU does not know, and DataError if a file is missing.
    """
    check_names(config)
    sets: dict[str, SetFiles | None] = {}
    for name, test_set in config.data.test.items():
        if test_set.sacrebleu is not None and not _is_cached(test_set.sacrebleu, config.languages):
            sets[name] = None
        else:
            sets |= test_sets(
                config.model_copy(update={"data": config.data.model_copy(update={"test": {name: test_set}})})
            )
    return sets


def check_names(config: Config) -> None:
    """Raise ConfigError if sacreBLEU lacks a test set that the settings name, or has that set only for other languages.

    Training calls this before it prepares data, so that a wrong name is found early.
    """
    for test_set in config.data.test.values():
        if test_set.sacrebleu is not None:
            _dataset(test_set.sacrebleu, config.languages)


def fetch(name: str, languages: LanguagesConfig, tag: str | None = None) -> SetFiles:
    """The files of the sacreBLEU test set called `name`, downloaded into sacreBLEU's cache if needed.

    `tag` becomes the tag of the result, which is put before each source line. Raises ConfigError if sacreBLEU does not
    know the set or its languages, and DataError if the download fails.
    """
    dataset, pair = _dataset(name, languages)
    if pair != _pair(languages):
        say(f"test set {name}: taken for {pair}, since it has none of '{_pair(languages)}'")
    with _downloading(dataset):
        source = Path(dataset.get_source_file(pair))
        references = tuple(map(Path, dataset.get_reference_files(pair)))
    return SetFiles(source, references, tag)


def _pair(languages: LanguagesConfig) -> str:
    return f"{languages.source}-{languages.target}"


def _dataset(name: str, languages: LanguagesConfig) -> "tuple[Dataset, str]":
    """Returns sacreBLEU's dataset called `name` and the language pair to use.

    First, the full language codes of the settings are tried as a pair, then the codes without script and region. Raises
    ConfigError if sacreBLEU has no such dataset, or if the dataset has neither pair.
    """
    from sacrebleu.dataset import DATASETS  # imported here, since test sets in files do not need it

    dataset = DATASETS.get(name)
    if dataset is None:
        near = _nearest(name, sorted(DATASETS))
        raise ConfigError(f"sacreBLEU knows no test set '{name}'; {near}; `sacrebleu --list` names them all")
    bare = "-".join(re.split("[-_]", code)[0].lower() for code in (languages.source, languages.target))
    pair = next((pair for pair in (_pair(languages), bare) if pair in dataset.langpairs), None)
    if pair is None:
        raise ConfigError(
            f"test set {name} is not there for '{_pair(languages)}', but for {', '.join(sorted(dataset.langpairs))}; "
            "see languages.source and languages.target, or --languages"
        )
    return dataset, pair


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.5)
    return f"near it are {', '.join(near)}" if near else f"among those it knows are {', '.join(names[:5])}"


def _is_cached(name: str, languages: LanguagesConfig) -> bool:
    """Whether the test set called `name` is in sacreBLEU's cache.

    Looks for a source file and a reference file only, since, for some test sets, sacreBLEU has no list of all files
    before it has downloaded them.
    """
    dataset, pair = _dataset(name, languages)
    start = Path(dataset._get_txt_file_path(pair, "src"))
    return start.exists() and any(start.parent.glob(f"{start.stem}.ref*"))


@contextmanager
def _downloading(dataset: "Dataset") -> Iterator[None]:
    """Context manager that turns errors of sacreBLEU into DataError.

    If sacreBLEU tries to end the program, the message of the DataError quotes the first message that sacreBLEU logged.
    """
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sacrebleu")
    logger.addHandler(handler)
    try:
        yield
    except SystemExit:  # sacreBLEU exits if it cannot continue, for example if a checksum is wrong
        raise DataError(
            f"test set {dataset.name} cannot be had: {logged[0] if logged else 'sacreBLEU gave up'}; "
            f"delete {dataset._outdir} and try again"
        ) from None
    except FileNotFoundError as error:  # an earlier download was interrupted between fetching and unpacking
        raise DataError(
            f"test set {dataset.name} is damaged: {error.filename} is missing; delete {dataset._outdir} and try again"
        ) from None
    except LockException:
        raise DataError(f"test set {dataset.name} is being downloaded by another process; try again later") from None
    except (EOFError, TarError, BadZipFile):
        raise DataError(
            f"test set {dataset.name} is damaged: what was downloaded from {', '.join(dataset.data or ())} cannot be "
            f"unpacked; delete {dataset._outdir} and try again"
        ) from None
    except (OSError, HTTPException) as error:
        raise DataError(
            f"test set {dataset.name} cannot be downloaded from {', '.join(dataset.data or ())}: {error}"
        ) from None
    finally:
        logger.removeHandler(handler)


# Held-out sentences (validation and test).


def check_held_out(config: Config, oversights: Oversights) -> None:
    """Reads all validation and test texts, and records in `oversights` the likely mistakes in these texts.

    Test sets that are not downloaded yet are left out. Raises DataError if a file is missing or cannot be read, or if
    the validation corpora have no pairs. The stages train-tokenizer and binarize call this first, so that such an error
    is raised before anything is written.
    """
    valid = resolve_corpora(config, config.data.valid)
    tests = [files for files in local_test_sets(config).values() if files is not None]
    for path in (*(path for corpus in valid for path in corpus.paths), *chain(*((t.source, *t.target) for t in tests))):
        require_file(path)
    read = watching_reader(oversights, "data.valid")
    if valid and not sum(1 for corpus in valid for part in corpus.parts for _ in read(part)):
        raise _no_validation_pairs(config.data.valid)
    for files in tests:
        for path in files.target:
            paths = (files.source, path)
            deque(oversights.watched("data.test", paths, read_pairs(*paths), trains=False), maxlen=0)


def _no_validation_pairs(corpora: Iterable[CorpusConfig]) -> DataError:
    return DataError(
        f"{describe_files(corpora)}: the validation corpora hold no pairs; list others in data.valid, since training "
        "chooses checkpoints by them"
    )


@dataclass(frozen=True)
class HeldOutSet:
    """A validation or test set, represented by hashes of its lines; lines with a blank source are left out.

    For a language model, a line of the target takes the place of a source, and there are no references.
    """

    name: str
    num_lines: int  # including lines with a blank source
    sources: list[int]  # the hash of each source
    pairs: list[tuple[int, ...]]  # for each source, one hash per reference: that of (source, reference)


def read_held_out(config: Config) -> list[HeldOutSet]:
    """Reads the validation and test text; returns one set for all validation corpora, then one for each test set.

    A test set that has not been downloaded yet is skipped with a message. Raises DataError if the validation corpora
    have no pairs, or if a file cannot be read.
    """
    found = []
    if config.data.valid:
        pairs = tagged_pairs(resolve_corpora(config, config.data.valid))
        valid = held_out_set("data.valid", _rows_of(config, ((source, (target,)) for source, target in pairs)))
        if not valid.num_lines:
            raise _no_validation_pairs(config.data.valid)
        found.append(valid)
    for name, files in local_test_sets(config).items():
        if files is None:
            say(f"data.test.{name} is not downloaded yet; the training data is not searched for its sentences")
            continue
        # One file at a time, since there may be more references than a process may have open files.
        texts = [list(read_pairs(files.source, path)) for path in files.target]
        rows = zip(*texts, strict=True)
        pairs_of_rows = ((tagged(row[0][0], files.tag), tuple(pair[1] for pair in row)) for row in rows)
        found.append(held_out_set(f"data.test.{name}", _rows_of(config, pairs_of_rows)))
    return found


def _rows_of(config: Config, rows: Iterable[tuple[str, tuple[str, ...]]]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Returns the rows as the model uses them; in `rows`, each row is (source, references).

    For translation, returns `rows` unchanged. For a language model, returns a row (reference, ()) for each reference.
    """
    if config.task == "translation":
        return rows
    return ((reference, ()) for _, references in rows for reference in references)


def held_out_set(name: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> HeldOutSet:
    """Makes a HeldOutSet from rows of text; a row consists of a source and its references."""
    num_lines = 0
    sources, pairs = [], []
    for source, references in rows:
        num_lines += 1
        if source.strip():
            sources.append(hash(source))
            pairs.append(tuple(hash((source, reference)) for reference in references))
    return HeldOutSet(name, num_lines, sources, pairs)


class HeldOutSearch:
    """Finds sentences of validation and test sets in the training text, without keeping the training text in memory."""

    def __init__(self, sets: list[HeldOutSet]) -> None:
        self._sets = sets
        self._wanted = {digest for one in sets for digest in one.sources}
        self._wanted_pairs = {digest for one in sets for pair in one.pairs for digest in pair}
        self._found: set[int] = set()
        self._found_pairs: set[int] = set()

    def add_training_pair(self, source: str, target: str) -> None:
        """Records whether the source of a training pair occurs in a held-out set, and whether the whole pair does."""
        digest = hash(source)
        if digest in self._wanted:
            self._found.add(digest)
            self._found_pairs |= {hash((source, target))} & self._wanted_pairs

    def warnings(self) -> Iterator[str]:
        """Yields a warning for each held-out set of which at least one source occurred in the training text."""
        for one in self._sets:
            num_found = sum(digest in self._found for digest in one.sources)
            num_pairs = sum(not self._found_pairs.isdisjoint(pair) for pair in one.pairs)
            if num_found and not any(one.pairs):
                yield f"mtkit: warning: {num_found:,} of {one.num_lines:,} lines of {one.name} are in the training data"
            elif num_found:
                yield (
                    f"mtkit: warning: {num_found:,} of {one.num_lines:,} sources of {one.name} are in the training "
                    f"data, {num_pairs:,} of them with the same translation"
                )


# Text that is not plain: tokenised, cut into subwords, lower-cased, or a table. Without a warning, users would notice
# such text only by bad scores.

MOST_NAMED = 3  # the number of other files that a warning names
ROWS = 100  # the number of rows of a table from which its columns of sentences are recognised
LONGEST_SHOWN = 40  # a warning shows at most so many characters of a line


@dataclass(frozen=True)
class _InspectedText:
    """One side of a corpus or test set, and the signs of earlier processing found in a sample of its lines."""

    file: Path
    column: int | None  # None if the file consists of this side only
    language: str
    findings: list[Finding]
    capitals: float | None  # what the function `capitals` returned for the sample
    advice: str | None  # what the user should do; None if the lines look like sentences
    example: tuple[int, str]  # the number and text of a line, preferably one with a capital letter

    @property
    def name(self) -> str:
        """The name of this text in messages: the path of the file and, for a table, the column."""
        return f"{self.file}{self._where}"

    @property
    def _where(self) -> str:
        return "" if self.column is None else f", column {self.column}"

    def at(self, line: int, excerpt: str) -> str:
        """Returns text for a message that names a line of the file and quotes an excerpt of it."""
        return f'{self.file}:{line}{self._where}: "{excerpt}"'


def warn_of_processed_text(config: Config, corpora: Iterable[CorpusConfig]) -> None:
    """Prints warnings about text that does not consist of plain sentences; such text is used nevertheless.

    Warns of text that is cut into subwords, tokenised or escaped, and of files that hold tables or labels (such as
    doc-12) instead of sentences. Warns of lower-cased files only if other files are not lower-cased. Looks at a sample
    of each file of the corpora and of the test sets. The corpora must come from `resolve_corpora`.
    """
    texts = list({text.name: text for text in _inspect_all(config, corpora)}.values())
    by_signs: dict[tuple[Sign, ...], list[_InspectedText]] = {}
    for text in texts:
        if text.findings:
            by_signs.setdefault(tuple(finding.sign for finding in text.findings), []).append(text)
    advised = [text for text in texts if text.advice]
    for text in advised[:MOST_NAMED]:
        say(f"mtkit: warning: {text.name}: {text.advice}")
    if more := [text.name for text in advised[MOST_NAMED:]]:
        say(f"mtkit: warning: the same holds for {counted(len(more), 'more file')}{_others(more)}")
    for alike in by_signs.values():
        say(f"mtkit: warning: {_processed_warning(alike, config)}")
    if warning := _case_warning(texts):
        say(f"mtkit: warning: {warning}")


def _inspect_all(config: Config, corpora: Iterable[CorpusConfig]) -> Iterator[_InspectedText]:
    """Inspects both sides of each part of the corpora, then all texts of each test set; yields a result for each."""
    source, target = config.languages.source, config.languages.target
    for corpus in corpora:
        for path in corpus.paths:
            require_file(path)
        most = max(LEADING_LINES, MOST_LINES // len(corpus.parts))
        columns = corpus.columns if corpus.tsv is not None else (None, None)
        for part in corpus.parts:
            files = files_of(part)
            if part.has_source:
                yield _inspect(files[0], columns[0], source, read_source(part), most)
            yield _inspect(files[1], columns[1], target, read_target(part), most)
    for test_set in local_test_sets(config).values():
        if test_set is not None:
            for file, language in ((test_set.source, source), *((path, target) for path in test_set.target)):
                yield _inspect(file, None, language, read_lines(file), is_test_set=True)


def _inspect(
    file: Path,
    column: int | None,
    language: str,
    lines: Iterable[str],
    most: int = MOST_LINES,
    is_test_set: bool = False,
) -> _InspectedText:
    """Inspects one text, by a sample of its first `most` lines, for signs of earlier processing.

    `column` is the number of the column that `lines` are from, if `file` is a table; `language` is a code such as "en".
    """
    sampled = list(sample(lines, most))
    written = [(number, line.strip()) for number, line in sampled if line.strip()]
    example = next(((n, line) for n, line in written if any(map(str.isupper, line))), [*written, (1, "")][0])
    shown = example[1] if len(example[1]) <= LONGEST_SHOWN else f"{example[1][: LONGEST_SHOWN - 1]}…"
    share = capitals(line for _, line in sampled)
    first = [line for _, line in sampled[:LEADING_LINES]]
    table = advice_on_table(file, first, is_test_set) if column is None else None
    rows = list(islice(read_lines(file), ROWS)) if column is not None else []
    advice = table or advice_on_labels(column, [line for _, line in sampled], rows)
    signs = [] if table else findings(sampled)
    return _InspectedText(file, column, language, signs, share, advice, (example[0], shown))


def _processed_warning(alike: list[_InspectedText], config: Config) -> str:
    """Returns a warning about texts that show the same signs of processing, with a command to restore plain text."""
    text = alike[0]
    finding = text.findings[0]
    signs = [each.sign for each in text.findings]
    how = " and ".join(f"{sign.kind} by {sign.by}" for sign in signs)
    what = (
        f"{text.at(finding.line, finding.excerpt)} looks {how}, "
        f"as do {finding.count:,} of the {finding.num_lines:,} lines looked at{_others([t.name for t in alike[1:]])}"
    )
    cures = [sign.cure.replace("LANG", text.language) for sign in signs]
    undo = cleaning_command(text.file, text.column, cures, text.language)
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


def _case_warning(texts: list[_InspectedText]) -> str | None:
    """Returns a warning if some texts are lower-cased and others are not, else `None`."""
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
    """Returns text such as " (and A, B, C and 2 more files)", which gives at most `MOST_NAMED` names.

    Returns "" if `names` is empty.
    """
    if not names:
        return ""
    more = len(names) - MOST_NAMED
    return f" (and {', '.join(names[:MOST_NAMED])}{f' and {more:,} more files' if more > 0 else ''})"
