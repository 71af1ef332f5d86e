"""Translating a stream of lines: N lines in, N lines out, whatever is in them."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mtkit.ending import counted_when_ended, undone_when_ended
from mtkit.errors import DataError, MtkitError, StoppedError
from mtkit.messages import Warnings
from mtkit.progress import Meter, is_shown
from mtkit.text.arriving import Arrivals
from mtkit.text.lines import count_lines, decode_lines, read_lines
from mtkit.text.packing import STANDARD_INPUT, may_pause, open_to_read, open_to_write, path_may_pause
from mtkit.translator import TranslatedLine, Translator


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
    with Arrivals(out.flush, at_once) as arrivals:
        decoded = arrivals.of(decode_lines(source), may_pause(source), lambda line: len(line[0]))
        lines = _readable(decoded, str(getattr(source, "name", "source")), warnings)
        if tag is None:
            lines = _watched(lines, translator, warnings)
        if isinstance(prefixes, Path):
            prefixes = arrivals.of(read_lines(prefixes), path_may_pause(prefixes), len)
        with (
            counted_when_ended("translated") as written,
            Meter("translating", "lines", num_lines, hidden=at_once) as meter,
        ):
            translated = translator.translate_lines(lines, num_best, arrivals.answer_now, tag, prefixes, meter.add)
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
