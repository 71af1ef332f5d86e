r"""Exact line reading: N lines are N lines, whatever is in them.

A line ends at `\n` and nowhere else, so U+2028, U+0085, form feed and NUL stay inside it. One `\r` before the `\n` and
a byte-order mark at the start of a file are no part of the text. A `\r` within a line is text, unless there are so many
that they must be the line ends of an old Mac. Packed files are unpacked on the way.
"""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import islice, zip_longest
from pathlib import Path
from typing import BinaryIO, cast

from mtkit.errors import DataError
from mtkit.messages import counted
from mtkit.text.comma_separated import FIRST_LINES, conversion
from mtkit.text.packing import PACKERS, STANDARD_INPUT, is_misnamed, open_to_read

MANY_RETURNS = 100  # carriage returns in one line that are hardly text


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time; a last line without an end counts. `-` is standard input."""
    returns = _CarriageReturns(path)
    number = 0
    with _reading(path), open_to_read(path) as stream:
        for number, raw in enumerate(_raw_lines(stream), start=1):
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, line, error.start) from None
            if b"\r" in line:  # only in text: random bytes have carriage returns, too
                returns.see(number, line, is_last=not raw.endswith(b"\n"))
            yield text
        returns.check(number)


def count_lines(path: Path) -> int:
    """How many lines a file has, whatever is in them; `-` and pipes cannot be asked without being read."""
    with _reading(path), open_to_read(path) as stream:
        return sum(1 for _ in stream)


def decode_lines(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """Each line as soon as it is there, and whether it was damaged: bytes that are not UTF-8 become U+FFFD."""
    for line in map(_without_end, _raw_lines(stream)):
        try:
            yield line.decode("utf-8"), False
        except UnicodeDecodeError:
            yield line.decode("utf-8", errors="replace"), True


def read_pairs(
    source: Path, target: Path, lines_of: Callable[[Path], Iterator[str]] = read_lines
) -> Iterator[tuple[str, str]]:
    """Line n of the one file with line n of the other; files of unequal length are an error at their end."""
    source_lines, target_lines = lines_of(source), lines_of(target)
    for number, (source_line, target_line) in enumerate(zip_longest(source_lines, target_lines)):
        if source_line is None or target_line is None:
            rest = 1 + sum(1 for _ in (target_lines if source_line is None else source_lines))
            num_source = number if source_line is None else number + rest
            num_target = number if target_line is None else number + rest
            raise DataError(
                f"{named(source)} has {counted(num_source, 'line')} but {named(target)} has {num_target:,}; "
                "line n must translate line n"
            )
        yield source_line, target_line


def read_columns(path: Path, source: int, target: int) -> Iterator[tuple[str, str]]:
    """Two columns of a file whose columns are separated by tabs; they are numbered from 1, and quotes mean nothing.

    A blank line is a blank pair; at the end of the file it is nothing.
    """
    least = max(source, target)
    num_blank = 0  # lines without text and tabs before this one
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) < least and not line.strip():
            num_blank += 1
            continue
        if len(columns) < least:
            found = f"{named(path)}:{number}: has {len(columns)} of {least} columns"
            some = [line, *islice(lines, FIRST_LINES)]
            raise DataError(f"{found}; {conversion(path, some) or 'wants a tab between one and the next'}")
        yield from [("", "")] * num_blank
        num_blank = 0
        yield columns[source - 1], columns[target - 1]


def named(path: Path, name: str | None = None) -> str:
    """What messages and tables call a file: by its path, or the name that is given; `-` is standard input."""
    return "standard input" if path == STANDARD_INPUT else name or str(path)


def fingerprint(path: Path) -> str:
    """The checksum of a file's bytes, unpacked, as "sha256:<hex>"."""
    require_file(path)
    with _reading(path), open_to_read(path) as stream:
        return "sha256:" + hashlib.file_digest(cast("BufferedReader", stream), "sha256").hexdigest()


def packed_fingerprint(path: Path) -> str:
    """The same of the bytes as they lie on the disk: what earlier versions of mtkit took of packed files."""
    require_file(path)
    with _reading(path), path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def require_file(path: Path) -> None:
    """Raise a DataError if what is at path can be read only once."""
    if path == STANDARD_INPUT or path.is_fifo():
        raise DataError(f"{path}: is a pipe; a file is wanted, which can be read more than once")


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of bytes with their ends; readline waits for no more than the line it returns."""
    raw = stream.readline().removeprefix(BOM_UTF8)
    while raw:
        yield raw
        raw = stream.readline()


def _without_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def _not_utf8(path: Path, number: int, line: bytes, start: int) -> DataError:
    if is_misnamed(path):
        packer = PACKERS[path.suffix.lower()].name
        return DataError(f"{path}: neither {packer}, as its name says, nor UTF-8 text; make or fetch it again")
    column = len(line[:start].decode("utf-8")) + 1
    return DataError(
        f"{named(path)}:{number}: not valid UTF-8 (byte 0x{line[start]:02x} at column {column}); "
        "convert the file to UTF-8"
    )


class _CarriageReturns:
    """Tells a file with the line ends of an old Mac, where a carriage return alone ended a line, from any other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._total = 0
        self._most = 0  # in one line
        self._where = 0  # the number of that line

    def see(self, number: int, line: bytes, is_last: bool) -> None:
        """A line with some, its end removed; is_last where that was not a line feed but the end of the file."""
        count = line.rstrip(b"\r").count(b"\r")  # those within the line
        self._total += count
        if count > self._most:
            self._most, self._where = count, number
        if is_last:
            self.check(number, most=0 if number == 1 else number)

    def check(self, num_lines: int, most: int | None = None) -> None:
        """At the end of the file raise a DataError if carriage returns ended its lines, or those of a part of it.

        most is how many may be text; None: as many as lines.
        """
        remedy = "which must be the line ends of an old Mac; convert them to line feeds, for example with mac2unix"
        if self._total > (num_lines if most is None else most):
            returns = counted(self._total, "carriage return")
            lines = "one line" if num_lines == 1 else f"{num_lines:,} lines"
            raise DataError(f"{named(self._path)}: found {returns} within {lines}, {remedy}")
        if self._most >= MANY_RETURNS and self._most * 100 >= num_lines:
            where = f"{named(self._path)}:{self._where}"
            raise DataError(f"{where}: found {self._most:,} carriage returns within one line, {remedy}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells what can go wrong with a file in one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; a text file is wanted") from None
    except OSError as error:
        raise DataError(f"{named(path)}: cannot be read: {error.strerror or error}") from None
