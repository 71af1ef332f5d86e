r"""Exact line reading: N lines are N lines, whatever is in them.

A line ends at `\n` and nowhere else, so U+2028, U+0085, form feed and NUL stay inside it. One `\r` before the `\n` and
a byte-order mark at the start of a file are no part of the text. Files ending in .gz, .xz or .zst are unpacked on the
way.
"""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from mtkit.errors import DataError
from mtkit.text.packing import open_to_read, telling_damage


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time; a last line without an end counts."""
    with _reading(path), open_to_read(path) as stream:
        for number, raw in enumerate(_raw_lines(stream), start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                column = len(raw[: error.start].decode("utf-8")) + 1
                raise DataError(
                    f"{path}:{number}: not valid UTF-8 (byte 0x{raw[error.start]:02x} at column {column}); "
                    "convert the file to UTF-8"
                ) from None
            yield line


def decode_lines(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """Each line as soon as it is there, and whether it was damaged: bytes that are not UTF-8 become U+FFFD."""
    for raw in _raw_lines(stream):
        try:
            yield raw.decode("utf-8"), False
        except UnicodeDecodeError:
            yield raw.decode("utf-8", errors="replace"), True


def read_pairs(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Line n of the one file with line n of the other; files of unequal length are an error at their end."""
    source_lines, target_lines = read_lines(source), read_lines(target)
    for number, (source_line, target_line) in enumerate(zip_longest(source_lines, target_lines)):
        if source_line is None or target_line is None:
            rest = 1 + sum(1 for _ in (target_lines if source_line is None else source_lines))
            num_source = number if source_line is None else number + rest
            num_target = number if target_line is None else number + rest
            raise DataError(
                f"{source} has {num_source:,} lines but {target} has {num_target:,}; line n must translate line n"
            )
        yield source_line, target_line


def read_columns(path: Path, source: int, target: int) -> Iterator[tuple[str, str]]:
    """Two columns of a file whose columns are separated by tabs; they are numbered from 1, and quotes mean nothing."""
    least = max(source, target)
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) < least:
            raise DataError(
                f"{path}:{number}: has {len(columns)} of {least} columns; wants a tab between one and the next"
            )
        yield columns[source - 1], columns[target - 1]


def fingerprint(path: Path) -> str:
    """The checksum of a file's bytes, as "sha256:<hex>"; of a packed file, of the packed bytes."""
    if path.is_fifo():
        raise DataError(f"{path}: is a pipe; a file is wanted, which can be read more than once")
    with _reading(path), path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of bytes without their ends; readline waits for no more than the line it returns."""
    raw = stream.readline().removeprefix(BOM_UTF8)
    while raw:
        yield raw.removesuffix(b"\n").removesuffix(b"\r")
        raw = stream.readline()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tells what can go wrong with a file in one line."""
    try:
        with telling_damage(str(path)):
            yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; a text file is wanted") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
