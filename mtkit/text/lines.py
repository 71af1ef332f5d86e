r"""Lines of text, from files and from pipes: split at \n alone, with line numbers in errors."""

import csv
import hashlib
import shlex
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import islice, zip_longest
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar, cast

from mtkit.errors import DataError, counted
from mtkit.text.compressed import PACKERS, STANDARD_INPUT, is_misnamed, open_to_read

SEPARATORS = (",", ";", "|")

# Modules of Python whose open() unpacks a file, by the ending of its name.
UNPACKERS = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}

FIRST_LINES = 100  # lines that tell whether a file is a table
LEAST_ROWS = 10  # with as many fields; fewer lines of prose may have as many commas by chance

# Tabs and line ends within a field, which separate columns and lines in what is written, become spaces.
PROGRAM = (
    "import csv, {module}; [print(*(field.translate({{9: 32, 10: 32, 13: 32}}) for field in row), sep=chr(9)) "
    "for row in csv.reader({module}.open({path}, {mode}, encoding={encoding}, newline={newline}){separator})]"
)


def conversion(path: Path, lines: Sequence[str]) -> str | None:
    """Advice for the first lines of a text that are no columns, if they are CSV or its file is called so; else None."""
    separator = separator_of(lines) or _separator_of_line(lines[0])
    is_called_so = is_called_csv(path)
    if separator is None and not is_called_so:
        return None
    if not is_called_so and separator_of(lines) is None and not (lines[0].startswith('"') and lines[0].endswith('"')):
        return None  # a sentence with a comma is no sign of it
    name = path.name[: -len(path.suffix)] if path.suffix in UNPACKERS else path.name
    table = path.with_name(f"{name.removesuffix('.csv')}.tsv")
    command = f"python3 -c {shlex.quote(_program(path, separator or ','))} > {shlex.quote(str(table))}"
    return f"this is CSV, which is not read. Make columns with tabs of it, and name {table} instead: {command}"


def is_called_csv(path: Path) -> bool:
    """Whether a file's name ends in .csv, packed or not."""
    return ".csv" in (path.suffix.lower(), Path(path.stem).suffix.lower())


def separator_of(lines: Sequence[str]) -> str | None:
    """What separates the fields of the first lines of a text, if all have as many, two or more; else None."""
    distinct = list(dict.fromkeys(lines[:FIRST_LINES]))  # a line that is repeated has as many commas each time
    for separator in SEPARATORS:
        counts = _nums_of_fields(distinct, separator)
        if len(counts) >= LEAST_ROWS and len(set(counts)) == 1 and counts[0] > 1:
            return separator
    return None


def _separator_of_line(line: str) -> str | None:
    """The same of one line alone, where it may also be prose."""
    return next((each for each in SEPARATORS if max(_nums_of_fields([line], each), default=0) > 1), None)


def _nums_of_fields(lines: Sequence[str], separator: str) -> list[int]:
    """The number of fields in each row, up to where the lines are no CSV, or end within a field."""
    rows = csv.reader([f"{line}\n" for line in lines], delimiter=separator, strict=True)
    counts: list[int] = []
    while True:
        try:
            counts.append(len(next(rows)))
        except (csv.Error, StopIteration):
            return counts


def _program(path: Path, separator: str) -> str:
    return PROGRAM.format(
        module=UNPACKERS.get(path.suffix, "io"),
        path=_quoted(str(path)),
        mode=_quoted("rt"),
        encoding=_quoted("utf-8-sig"),
        newline=_quoted(""),
        separator="" if separator == "," else f", delimiter={_quoted(separator)}",
    )


def _quoted(text: str) -> str:
    """Python's text in double quotes, since the shell's are single ones."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Exact line reading: N lines are N lines, whatever is in them.

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


# Lines that come through pipes: whoever writes them may wait for an answer before the next one.

T = TypeVar("T")

PAUSE_SECONDS = 0.1  # without a new line, after which the lines so far are answered
PATIENCE_SECONDS = 1.0  # the longest that a line waits for others, however steadily they trickle in
MOST_ITEMS = 4000  # that are read ahead
MOST_CHARACTERS = 1_000_000


class Arriving(Generic[T]):
    """The same items, read ahead in a thread within limits; an error is raised where the item would have come.

    The thread does not keep the process alive, since it may wait for a line that never comes.
    """

    def __init__(self, items: Iterable[T], size: Callable[[T], int]) -> None:
        """Size is the number of characters of an item."""
        self._source = items
        self._size = size
        self._items: deque[T] = deque()
        self._num_characters = 0
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = Condition()
        self._first_taken: float | None = None  # when the first of the items was taken that are not answered yet
        Thread(target=self._read, name="arriving", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if not self._items:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            item = self._items.popleft()
            self._num_characters -= self._size(item)
            self._changed.notify_all()
        return item

    @property
    def is_ready(self) -> bool:
        """Whether the next item, or the end, is there."""
        return bool(self._items) or self._ended

    def pauses(self) -> bool:
        """Whether nothing comes for a moment, so that what was taken is to be answered; it waits to see."""
        now = monotonic()
        if self._first_taken is None:
            self._first_taken = now
        wait = max(0.0, min(PAUSE_SECONDS, self._first_taken + PATIENCE_SECONDS - now))
        with self._changed:
            if self._changed.wait_for(lambda: self.is_ready, wait):
                return False
        self._first_taken = None
        return True

    def close(self) -> None:
        """End the thread after the item that it waits for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: self._has_room or self._closed)
                    if self._closed:
                        return
                    self._items.append(item)
                    self._num_characters += self._size(item)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it is raised where the item would have come
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def _has_room(self) -> bool:
        return len(self._items) < MOST_ITEMS and self._num_characters < MOST_CHARACTERS


class Arrivals:
    """The streams that lines come from, as a context: tells when those that have come are to be answered.

    Where line_buffered is true each line is answered as it comes, and nothing is read ahead.
    """

    def __init__(self, before_waiting: Callable[[], object], line_buffered: bool) -> None:
        """Calls before_waiting, which flushes the answers, before it waits for a line."""
        self._before_waiting = before_waiting
        self._line_buffered = line_buffered
        self._streams: list[Arriving[Any]] = []

    def __enter__(self) -> "Arrivals":
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()

    def of(self, items: Iterable[T], may_pause: bool, size: Callable[[T], int]) -> Iterable[T]:
        """The items, read ahead where their stream may pause; size is the number of characters of an item."""
        if self._line_buffered or not may_pause:
            return items
        stream = Arriving(items, size)
        self._streams.append(stream)
        return self._flushing(stream)

    def answer_now(self) -> bool:
        """Whether the lines that were taken are to be answered before more are read."""
        return self._line_buffered or any(stream.pauses() for stream in self._streams)

    def _flushing(self, stream: Arriving[T]) -> Iterator[T]:
        while True:
            if not stream.is_ready:
                self._before_waiting()
            try:
                yield next(stream)
            except StopIteration:
                return
