"""Translates and scores streams of lines: N lines in, N lines out."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mtkit.errors import DataError, Meter, MtkitError, StoppedError, Warnings, is_shown
from mtkit.files import counted_when_ended, json_text, undone_when_ended
from mtkit.text.compressed import STANDARD_INPUT, may_pause, open_to_read, open_to_write, path_may_pause
from mtkit.text.lines import InputStreams, count_lines, decode_lines, named, read_lines, read_pairs
from mtkit.translation.decode import ScoredTranslation
from mtkit.translation.translator import TranslatedLine, Translator


def translate(
    translator: Translator,
    source: BinaryIO,
    out: BinaryIO,
    num_best: int = 1,
    with_scores: bool = False,
    at_once: bool = False,
    tag: str | None = None,
    prefixes: Path | Iterable[str] | None = None,
    num_lines: int | None = None,
) -> None:
    """Translate each line of one stream to a line of the other, line n beginning with the n-th prefix if there are any.

    With scores, a line is `score TAB text`; with num_best over 1, each line gives several `number TAB score TAB text`.
    Undecodable bytes are replaced and lines too long for the model are translated in parts, with a warning. Lines that
    lack the tag that the model was trained with are warned of, too.

    Lines are answered in large groups, at_once one by one. Where a pipe pauses, the lines that have come are answered
    and flushed. How lines are grouped changes no translation. num_lines, if it is known, tells the progress how many
    there are. A signal that ends the program is a StoppedError here, which says how many lines were written.
    """
    warnings = Warnings()
    with InputStreams(out.flush, at_once) as streams:
        decoded = streams.read(decode_lines(source), may_pause(source), lambda line: len(line[0]))
        lines = _readable(decoded, str(getattr(source, "name", "source")), warnings)
        if tag is None:
            lines = _watched(lines, translator, warnings)
        if isinstance(prefixes, Path):
            prefixes = streams.read(read_lines(prefixes), path_may_pause(prefixes), len)
        with (
            counted_when_ended("translated") as written,
            Meter("translating", "lines", num_lines, hidden=at_once) as meter,
        ):
            translated = translator.translate_lines(lines, num_best, streams.answer_now, tag, prefixes, meter.add)
            for number, line in enumerate(translated, start=1):
                if line.num_parts > 1:
                    warnings.add("was too long for the model; translated in parts", number)
                for note in line.notes:
                    warnings.add(note, number)
                out.write(_written(line, number, num_best, with_scores).encode("utf-8"))
                written.number = number
                if at_once:
                    out.flush()
    out.flush()
    warnings.close()


def lines_to_come(file: Path | None) -> int | None:
    """How many lines a file has, for the progress; None where none is shown, and for what can be read but once."""
    if file is None or file == STANDARD_INPUT or path_may_pause(file) or not is_shown():
        return None
    return count_lines(file)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A text file, or a packed one, to be translated."""
    try:
        stream = open_to_read(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if may_pause(stream):
        yield stream  # closing it would wait for a thread that waits for a line
        return
    with stream:
        yield stream


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of path when the block ends without an error; packed as its name tells.

    Until then all that was written stands in PATH.part, which stays if the block is left by an error and anything was
    written. A path that is a device or a pipe is written to as it is.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                yield stream
            return
        if path.is_dir():
            raise MtkitError(f"{path}: is a directory; a file to write is wanted")
        whole = path.resolve()  # what a link points at is replaced, not the link
        part = whole.with_name(f"{whole.name}.part")
        with _kept_if_it_holds_text(part), open_to_write(part, whole) as stream:
            if whole.exists():
                shutil.copymode(whole, part)
            yield stream
        part.replace(whole)
    except OSError as error:
        raise MtkitError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _kept_if_it_holds_text(part: Path) -> Iterator[None]:
    """After an error removes a file to which nothing was written; one who stopped the program learns of any other."""
    try:
        with undone_when_ended():
            yield
    except BaseException as error:
        if not part.exists():
            raise
        if _is_empty(part):
            part.unlink()
        elif isinstance(error, StoppedError):
            raise StoppedError(f"{error}, and stand in {part}", error.code) from None
        raise


def _is_empty(part: Path) -> bool:
    """Whether a file, packed or not, holds no text; one that is packed has some bytes all the same."""
    try:
        with reading(part) as stream:
            return not stream.read(1)
    except DataError:  # it was cut off in the middle of something
        return False


def _readable(lines: Iterable[tuple[str, bool]], name: str, warnings: Warnings) -> Iterator[str]:
    """The lines; where bytes were replaced, a warning tells so, and a file that cannot be read on is an error."""
    try:
        for number, (line, damaged) in enumerate(lines, start=1):
            if damaged:
                warnings.add("is not valid UTF-8; what could not be read was replaced", number)
            if "\r" in line.rstrip("\r"):
                warnings.add(
                    "has carriage returns within it, which end no line; text with the line ends of an old Mac must be "
                    "converted, for example with mac2unix",
                    number,
                )
            yield line
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None


def _watched(lines: Iterable[str], translator: Translator, warnings: Warnings) -> Iterator[str]:
    """The lines; those that do not begin with a tag as they should are warned of."""
    for number, line in enumerate(lines, start=1):
        if fault := translator.tag_fault(line):
            warnings.add(fault, number)
        yield line


def _written(line: TranslatedLine, number: int, num_best: int, with_scores: bool) -> str:
    if num_best > 1:
        return "".join(f"{number}\t{best.score:.4f}\t{best.text}\n" for best in line.translations)
    if with_scores:
        return f"{line.translations[0].score:.4f}\t{line.text}\n"
    return f"{line.text}\n"


# Scoring given translations with a model: N translations in, N lines out.

LONGEST_SHOWN = 40  # characters of a line that a message shows
MOST_DIGITS = 18  # of a line number

LinesOf = Callable[[Path], Iterator[str]]


@dataclass(frozen=True)
class ParallelFiles:
    """Line n of target translates line n of source."""

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations."""
        return read_pairs(self.source, self.target, lines_of)


@dataclass(frozen=True)
class NBestList:
    """Lines of target are `number TAB score TAB text`, as `translate --n-best` writes them, or `number TAB text`.

    The number is that of the source line, from 1. A source may have any number of translations, in any order; the
    scores are not looked at.
    """

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read; the source is held in memory."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations, in the order of the list."""
        sources = list(lines_of(self.source))
        for number, line in enumerate(lines_of(self.target), start=1):
            yield self._pair(sources, f"{named(self.target)}:{number}", line)

    def _pair(self, sources: Sequence[str], where: str, line: str) -> tuple[str, str]:
        place, *rest = line.split("\t", 2)
        is_number = place.isascii() and place.isdigit() and len(place) <= MOST_DIGITS
        if not is_number or not rest or (len(rest) == 2 and not _is_number(rest[0])):
            raise DataError(
                f"{where}: found '{line[:LONGEST_SHOWN]}', wants the number of a source line, a score and a "
                "translation with tabs between, as translate --n-best writes them"
            )
        if not 1 <= int(place) <= len(sources):
            raise DataError(
                f"{where}: names source line {place}, and {named(self.source)} has lines 1 to {len(sources):,}"
            )
        return sources[int(place) - 1], rest[-1]


@dataclass(frozen=True)
class PairsFile:
    """Each line is a source, a tab and its translation; further columns are not looked at. A blank line is a pair."""

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.path,)

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations."""
        for number, line in enumerate(lines_of(self.path), start=1):
            source, *rest = line.split("\t")
            if not rest and source.strip():
                raise DataError(f"{named(self.path)}:{number}: found no tab, wants a source, a tab and its translation")
            yield source, rest[0] if rest else ""


def score(
    translator: Translator,
    texts: ParallelFiles | NBestList | PairsFile,
    out: BinaryIO,
    by_token: bool = False,
    tag: str | None = None,
    line_buffered: bool = False,
) -> None:
    """Write how likely each translation is; a path of the texts may be `-`, standard input.

    A line is `log_prob TAB tokens TAB log_prob a token`, the end mark counted; by token it is a JSON list of
    [piece, log_prob], where null is the log-probability of what is impossible. A tag is put before each source line.
    Translations from a pipe are scored as translate() translates lines from there.
    """
    if tag is not None:
        translator.require_tag(tag)
    warnings = Warnings()
    num_lines = None
    if not any(path == STANDARD_INPUT or path_may_pause(path) for path in texts.paths):  # those can be read but once
        num_lines = sum(1 for _ in texts.pairs(read_lines))  # what is wrong with them is told before work starts
    with InputStreams(out.flush, line_buffered) as streams:
        pairs = texts.pairs(lambda path: iter(streams.read(read_lines(path), path_may_pause(path), len)))
        if tag is None:
            pairs = _watched_pairs(pairs, translator, warnings)
        scored = translator.score_lines(pairs, tag, streams.answer_now)
        with (
            counted_when_ended("scored") as written,
            Meter("scoring", "lines", num_lines, hidden=line_buffered) as meter,
        ):
            for written.number, line in enumerate(_written_score(meter.counting(scored), by_token), start=1):
                out.write(line.encode("utf-8"))
                if line_buffered:
                    out.flush()
    out.flush()
    warnings.close()


def _watched_pairs(
    pairs: Iterable[tuple[str, str]], translator: Translator, warnings: Warnings
) -> Iterator[tuple[str, str]]:
    """The pairs; sources that do not begin with a tag as they should are warned of."""
    for number, (source, target) in enumerate(pairs, start=1):
        if fault := translator.tag_fault(source):
            warnings.add(fault, number)
        yield source, target


def _written_score(lines: Iterable[ScoredTranslation], by_token: bool) -> Iterator[str]:
    for line in lines:
        if by_token:
            pairs = [[piece, round(value, 4)] for piece, value in zip(line.pieces, line.log_probs, strict=True)]
            yield f"{json_text(pairs)}\n"
        else:
            yield f"{line.log_prob:.4f}\t{line.num_tokens}\t{line.mean:.4f}\n"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
