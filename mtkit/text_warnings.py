"""Warns before training where text is not plain, which would otherwise show only in the scores."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mtkit.config.data_settings import CorpusConfig
from mtkit.config.settings import Config
from mtkit.messages import counted, say
from mtkit.testsets import local_test_sets
from mtkit.text.columns import advice_on_labels, advice_on_table
from mtkit.text.lines import read_lines, require_file
from mtkit.text.parallel import files_of, read_source, read_target
from mtkit.text.processed import (
    CASED,
    FIRST_LINES,
    LOWER_CASED,
    MOSES,
    MOST_LINES,
    Finding,
    Sign,
    capitals,
    findings,
    sample,
)
from mtkit.text.shell import undoing

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
        most = max(FIRST_LINES, MOST_LINES // len(corpus.parts))
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
    first = [line for _, line in sampled[:FIRST_LINES]]
    table = advice_on_table(file, first, is_test_set) if column is None else None
    rows = list(islice(read_lines(file), ROWS)) if column is not None else []
    advice = table or advice_on_labels(column, [line for _, line in sampled], rows)
    signs = [] if table else findings(sampled)
    return _Text(file, column, language, signs, share, advice, (example[0], shown))
