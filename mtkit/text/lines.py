r"""Reads lines of text from files and pipes; only \n and \r\n end a line.

Error messages give the file and the line number. This module also gives advice on CSV files and reads ahead from pipes.
Compressed files are recognised by content, not by file name; no other module uses the package zstandard.
"""

import bz2
import csv
import gzip
import hashlib
import lzma
import os
import shlex
import stat
import sys
import tarfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, RawIOBase
from itertools import islice, zip_longest
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from types import TracebackType
from typing import IO, Any, BinaryIO, Generic, Protocol, TypeVar, cast
from zipfile import BadZipFile, ZipFile, ZipInfo

from mtkit.errors import DataError, counted

CHUNK_BYTES = 128 * 1024
HEAD_BYTES = 512  # the size of a tar archive's first block, which is needed to recognise the archive
LARGEST_WINDOW_LOG = 31  # log2 of the largest window; needed to read files that `zstd --long=31` writes
STANDARD_INPUT = Path("-")  # means standard input wherever a command takes a FILE to read
ENCRYPTED = 0x1  # bit of ZipInfo.flag_bits: the file is encrypted


# Compressions.


class _NoZstandardError(Exception):
    """Raised if the package zstandard is needed but not installed."""


class _Decompressor(Protocol):
    """Decompresses one frame.

    A compressed file consists of one or more frames, which gzip calls members and xz calls streams.
    """

    @property
    def eof(self) -> bool:
        """Whether the end of the frame has been reached."""

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the frame, if `decompress` was given more bytes than the frame has."""

    def decompress(self, data: bytes, /) -> bytes:
        """Decompress `data`, the next bytes of the frame, and return decompressed bytes.

        Returns b"" if more data is needed before anything can be decompressed.
        """


if sys.version_info >= (3, 14):
    from compression import zstd

    def _zst_decompressor() -> _Decompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: LARGEST_WINDOW_LOG})

    def _write_zst(path: Path) -> BinaryIO:
        return cast("BinaryIO", zstd.open(path, "wb", options={zstd.CompressionParameter.checksum_flag: 1}))

    def _zstd_error() -> type[Exception]:
        return zstd.ZstdError
else:

    def _zstandard() -> Any:
        try:
            import zstandard
        except ModuleNotFoundError:
            raise _NoZstandardError from None
        return zstandard

    def _zst_decompressor() -> _Decompressor:
        decompressor = _zstandard().ZstdDecompressor(max_window_size=1 << LARGEST_WINDOW_LOG)
        return cast("_Decompressor", decompressor.decompressobj())

    def _write_zst(path: Path) -> BinaryIO:
        compressor = _zstandard().ZstdCompressor(write_checksum=True)
        return cast("BinaryIO", compressor.stream_writer(path.open("wb")))

    def _zstd_error() -> type[Exception]:
        return cast("type[Exception]", _zstandard().ZstdError)


@dataclass(frozen=True)
class Compression:
    """A format that compresses a single file, such as gzip (not an archive format)."""

    name: str
    magic: tuple[bytes, ...]  # compressed data begins with one of these
    decompressor: Callable[[], _Decompressor]
    error: Callable[[], type[Exception]]  # returns the class of the errors that decompress raises for damaged data
    write: Callable[[Path], Any]  # opens a file for writing; returns a stream that compresses what is written to it


# The supported compressions, by file name extension.
COMPRESSIONS = {
    ".gz": Compression(
        "gzip",
        (b"\x1f\x8b\x08",),
        partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS),  # adding 16 selects the gzip format
        lambda: zlib.error,
        partial(gzip.open, mode="wb"),
    ),
    ".bz2": Compression(
        "bzip2",
        tuple(b"BZh%d%b" % (level, block) for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
        bz2.BZ2Decompressor,
        lambda: OSError,
        partial(bz2.BZ2File, mode="wb"),
    ),
    ".xz": Compression(
        "xz",
        (b"\xfd7zXZ\x00", b"]\x00\x00"),  # the second is the older .lzma format
        lzma.LZMADecompressor,
        lambda: lzma.LZMAError,
        partial(lzma.LZMAFile, mode="wb"),
    ),
    ".zst": Compression(
        "zstd",
        (
            b"\x28\xb5\x2f\xfd",
            *(b"%c\x2a\x4d\x18" % kind for kind in range(0x50, 0x60)),
        ),  # the last 16 begin skippable frames
        _zst_decompressor,
        _zstd_error,
        _write_zst,
    ),
}

# The first bytes of zip archives.
ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# For each format that is not supported, the bytes with which its files begin, and a description for messages.
REFUSED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"MSCF\x00\x00\x00\x00": "a cabinet archive",
    b"!<arch>\n": "an ar archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"LZIP\x01": "compressed with lzip",
    b"\x89LZO\x00\r\n\x1a\n": "compressed with lzop",
    b"\x1f\x9d": "compressed with compress (.Z)",
}
KNOWN = (*ZIP, *REFUSED, *(magic for compression in COMPRESSIONS.values() for magic in compression.magic))


# Opening.


def open_to_read(path: Path) -> BufferedReader:
    """Open the file at `path` to read its decompressed bytes; the path `-` means standard input.

    Closing the stream closes the file, but not standard input. Raises DataError if standard input is closed. Reading
    from the stream raises DataError if the data is damaged or in an unsupported format, such as a tar archive.
    """
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed; give it some text, or a FILE")
        return BufferedReader(_Decompressed(_standard_input(), "standard input"), CHUNK_BYTES)
    return BufferedReader(_DecompressedFile(path.open("rb"), str(path)), CHUNK_BYTES)


def _standard_input() -> IO[bytes]:
    """A stream of standard input.

    If standard input has a file descriptor, the stream is separate from sys.stdin, because Python cannot close
    sys.stdin at exit while a thread is still waiting to read from it.
    """
    try:
        descriptor = sys.stdin.fileno()
    except OSError:  # standard input has no file descriptor
        return sys.stdin.buffer
    return open(descriptor, "rb", closefd=False)


def may_pause(stream: BinaryIO) -> bool:
    """Whether a read from `stream` may have to wait for data, as with a pipe or a terminal.

    False for regular files and streams in memory.
    """
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # the stream has no file descriptor
        return False


def path_may_pause(path: Path) -> bool:
    """Whether reading `path` may have to wait for more data; the path `-` means standard input.

    The file is not opened.
    """
    if path != STANDARD_INPUT:
        return path.exists() and not path.is_file()
    return sys.stdin is not None and may_pause(sys.stdin.buffer)


def open_to_write(path: Path, name: Path) -> BinaryIO:
    """Open the file at `path` for writing bytes.

    `name` is the name that the file will have once it is complete. The bytes are compressed if `name` ends in .gz,
    .bz2, .xz or .zst, whatever `path` ends in. Raises DataError if the package zstandard is needed but not installed.
    """
    compression = COMPRESSIONS.get(name.suffix.lower())
    try:
        return cast("BinaryIO", compression.write(path)) if compression else path.open("wb")
    except _NoZstandardError:
        raise _no_zstandard(str(name)) from None


def is_misnamed(path: Path) -> bool:
    """Whether the file at `path` has the extension of a compression format but is not compressed."""
    if path.suffix.lower() not in COMPRESSIONS or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    return not any(head.startswith(compression.magic) for compression in COMPRESSIONS.values())


# Decompressing while reading.


class _DamageError(Exception):
    """Raised if compressed data is damaged or truncated."""


class _Frames(RawIOBase):
    """A stream of the decompressed bytes of all frames of a compressed stream.

    A compressed stream consists of one or more frames, such as the members of a gzip file. A read returns as soon as
    there are some decompressed bytes, since a pipe may not deliver more data for a while.
    """

    def __init__(self, stream: RawIOBase, compression: Compression) -> None:
        self._stream = stream
        self._compression = compression
        self._frame: _Decompressor | None = None  # the current frame; None between frames
        self._compressed = b""  # read, not yet decompressed
        self._text = memoryview(b"")  # decompressed, not yet returned

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text and self._decompress():
            pass
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count

    def _decompress(self) -> bool:
        """Decompress the next piece of the stream into `self._text`; returns `False` at the end of the stream."""
        compressed = self._compressed or self._read()
        self._compressed = b""
        if self._frame is None:  # skip zeros between frames, which may pad the file to a full block
            while compressed and not (compressed := compressed.lstrip(b"\0")):
                compressed = self._read()
        if not compressed:
            if self._frame is not None:
                raise _DamageError("it ends too soon")
            return False
        self._frame = self._frame or self._compression.decompressor()
        try:
            self._text = memoryview(self._frame.decompress(compressed))
        except self._compression.error() as error:
            raise _DamageError(str(error)) from None
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return True

    def _read(self) -> bytes:
        return self._stream.read(CHUNK_BYTES) or b""


class _Decompressed(RawIOBase):
    """A stream that decompresses another stream, even one that was compressed several times or not at all.

    The compression is detected at the first read, since a pipe may have no data yet when the stream is created. Reading
    raises DataError if the data is damaged or in a format that is not supported.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self._stream = stream
        self._text: Any = None  # the decompressed stream; None until the first read
        self._compressions: list[str] = []  # names of the compressions found, outermost first

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def readinto(self, buffer: Any) -> int:
        try:
            if self._text is None:
                self._text = self._decompress()
            count: int = self._text.readinto1(buffer)
        except (_DamageError, EOFError, BadZipFile, zlib.error) as error:  # zip archives raise the last three
            raise self._damage(error) from None
        except _NoZstandardError:
            raise _no_zstandard(self.name) from None
        return count

    def _decompress(self) -> Any:
        """Detect and undo all compressions; returns a stream (with the method readinto1) of the resulting bytes."""
        text: Any = self._stream
        while True:
            head = _head(text)
            if head.startswith(ZIP):
                text = self._member(text)
                continue
            self._refuse_archives(head)
            rest = _Rejoined(head, text)
            compression = next(
                (compression for compression in COMPRESSIONS.values() if head.startswith(compression.magic)), None
            )
            if compression is None:
                self._refuse_truncated(head)
                return BufferedReader(rest, CHUNK_BYTES)
            self._compressions.append(compression.name)
            text = BufferedReader(_Frames(rest, compression), CHUNK_BYTES)

    def _member(self, stream: Any) -> Any:
        """Open the file in `stream`, a zip archive that must contain only this file; returns a stream of its bytes.

        Raises DataError if the archive does not contain exactly one file, is encrypted, is itself compressed, or is
        read from a pipe.
        """
        if stream is not self._stream or not stream.seekable():  # the list of files is at the end
            raise self._refusal("a zip archive" if self._compressions else "a zip archive in a pipe")
        self._compressions.append("zip")
        archive = ZipFile(stream)
        members = [member for member in archive.infolist() if _is_text(member)]
        if len(members) != 1:
            self._compressions.pop()
            raise self._refusal(f"a zip archive of {len(members):,} files")
        if members[0].flag_bits & ENCRYPTED:
            self._compressions.pop()
            raise self._refusal("an encrypted zip archive")
        try:
            return archive.open(members[0])
        except NotImplementedError as error:
            raise DataError(f"{self.name}: {error}; unpack it, and name the text file in it") from None

    def _refuse_archives(self, head: bytes) -> None:
        """Raise DataError if `head` is the beginning of an archive or of a compression that is not supported."""
        for magic, what in REFUSED.items():
            if head.startswith(magic):
                raise self._refusal(what)
        if _is_tar(head):
            raise self._refusal("a tar archive")

    def _refuse_truncated(self, head: bytes) -> None:
        """Raise _DamageError if the file ends within the magic bytes at its beginning.

        Magic bytes identify a compression format; which format is expected depends on the extension of the file name.
        `head` is the beginning of the file. An empty file is accepted.
        """
        compression = COMPRESSIONS.get(Path(self.name).suffix.lower())
        if (
            compression
            and not self._compressions
            and head
            and any(magic.startswith(head) for magic in compression.magic)
        ):
            self._compressions.append(compression.name)
            raise _DamageError("it ends within its first bytes")

    def _refusal(self, what: str) -> DataError:
        outer = "".join(f", compressed with {compression}" for compression in reversed(self._compressions))
        return DataError(f"{self.name}: is {what}{outer}, no text file; unpack it, and name the text files in it")

    def _damage(self, error: Exception) -> DataError:
        what = " in ".join(reversed(self._compressions))
        return DataError(f"{self.name}: damaged {what} ({error or 'it ends too soon'}); make or fetch it again")


class _DecompressedFile(_Decompressed):
    """A stream of the decompressed bytes of a file; closing the stream closes the file."""

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Rejoined(RawIOBase):
    """A stream of `head`, the bytes already read to detect the compression, followed by the rest of `stream`."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count], self._head = self._head[:count], self._head[count:]
            return count
        read: int = self._stream.readinto1(buffer)
        return read


def _head(stream: Any) -> bytes:
    """The first bytes of `stream`, at most HEAD_BYTES.

    Reading stops as soon as the first line is complete or a known format is recognised, since a pipe may not deliver
    more data for a while.
    """
    head = b""
    while len(head) < HEAD_BYTES and b"\n" not in head and not head.startswith(KNOWN):
        more = stream.read1(HEAD_BYTES - len(head))
        if not more:
            break
        head += more
    return head


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # verifies the header's checksum
    except tarfile.HeaderError:
        return False
    return True


def _is_text(member: ZipInfo) -> bool:
    """Whether a member of a zip archive is neither a folder nor metadata added by macOS."""
    return not member.is_dir() and not member.filename.startswith("__MACOSX/")


def _no_zstandard(name: str) -> DataError:
    return DataError(f"{name}: .zst files want the package zstandard; install it with pip install 'mtkit[zstd]'")


# Lines.

BLOCK_BYTES = 1 << 18  # about the size of a block of lines that are decoded together
# Byte order marks of other encodings. UTF-32 comes first, since its little-endian mark begins with that of UTF-16.
MARKS = {BOM_UTF32_LE: "UTF-32", BOM_UTF32_BE: "UTF-32", BOM_UTF16_LE: "UTF-16", BOM_UTF16_BE: "UTF-16"}
LEAST_START = 20  # number of bytes needed to recognise UTF-16 without a byte order mark
MANY_RETURNS = 100  # number of carriage returns in one line that ordinary text is unlikely to have


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their line ends; the path `-` means standard input.

    If text follows the last line feed, this text counts as a line, too. Raises DataError if the file cannot be read, is
    not UTF-8 or has the line ends of an old Mac (carriage returns without line feeds).
    """
    returns = CarriageReturns(path)
    number = 0
    with reading_file(path), open_to_read(path) as stream:
        refuse_utf16(path, stream.peek(LEAST_START))
        for block in _raw_blocks(stream, waits=path == STANDARD_INPUT or path_may_pause(path)):
            if (texts := _decoded_at_once(block)) is not None:
                number += len(texts)
                yield from texts
                continue
            for raw in block:
                number += 1
                line = _without_end(raw)
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, number, line, error.start) from None
                if b"\r" in line:  # checked after decoding, since binary data may contain carriage returns, too
                    returns.see(number, line, is_last=not raw.endswith(b"\n"))
                yield text
        returns.check(number)


def count_lines(path: Path) -> int:
    """The number of lines in a file, which need not be UTF-8; standard input or a pipe is read to its end."""
    with reading_file(path), open_to_read(path) as stream:
        count, last = 0, b"\n"
        while block := stream.read(BLOCK_BYTES):
            count, last = count + block.count(b"\n"), block[-1:]
        return count + (last != b"\n")


def decode_lines(stream: BinaryIO) -> Iterator[tuple[str, bool]]:
    """Yields (line, is_replaced) for each line of `stream` as soon as the line arrives.

    `is_replaced` tells whether the line contained bytes that are not UTF-8; such bytes become U+FFFD.
    """
    for raw in _raw_lines(stream):
        yield _decoded(raw)


def decode_blocks(stream: BinaryIO) -> Iterator[tuple[list[str], list[int]]]:
    """Yields (lines, replaced) for each block of some thousand lines of `stream`.

    This is faster than `decode_lines`, but the first line of a block comes only once the whole block has been read.
    Bytes that are not UTF-8 become U+FFFD; `replaced` lists the indices in `lines` of the lines that contained such
    bytes.
    """
    is_first = True
    while raw := stream.readlines(BLOCK_BYTES):
        if is_first:
            raw[0] = raw[0].removeprefix(BOM_UTF8)
            is_first = False
        try:
            text = b"".join(raw).decode("utf-8")
        except UnicodeDecodeError:
            decoded = list(map(_decoded, raw))
            yield (
                [line for line, _ in decoded],
                [place for place, (_, is_replaced) in enumerate(decoded) if is_replaced],
            )
            continue
        lines = text.removesuffix("\n").split("\n") if text else []
        yield [line.removesuffix("\r") for line in lines] if "\r" in text else lines, []


def read_pairs(
    source: Path, target: Path, lines_of: Callable[[Path], Iterator[str]] = read_lines
) -> Iterator[tuple[str, str]]:
    """Yields (line n of `source`, line n of `target`) for n = 1, 2, …; `lines_of(path)` returns the lines of a file.

    If one file is longer than the other, raises DataError after the last complete pair.
    """
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
    """Yields (source text, target text) for each line of a tab-separated file.

    `source` and `target` are column numbers, starting from 1. Quotes have no special meaning. A blank line yields a
    pair of empty strings, but blank lines at the end of the file are ignored. Raises DataError if any other line has
    too few columns.
    """
    least = max(source, target)
    num_blank = 0  # blank lines directly before the current line
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) < least and not line.strip():
            num_blank += 1
            continue
        if len(columns) < least:
            found = f"{named(path)}:{number}: has {len(columns)} of {least} columns"
            some = [line, *islice(lines, FIRST_LINES)]
            raise DataError(f"{found}; {advice_on_csv(path, some) or 'wants a tab between one and the next'}")
        yield from [("", "")] * num_blank
        num_blank = 0
        yield columns[source - 1], columns[target - 1]


def named(path: Path, name: str | None = None) -> str:
    """The name of a file for messages and tables: `name` if given, else `path`.

    If `path` is `-`, the name is always "standard input".
    """
    return "standard input" if path == STANDARD_INPUT else name or str(path)


def fingerprint(path: Path) -> str:
    """SHA-256 checksum of a file's decompressed content, as "sha256:<hex>"; raises DataError for a pipe."""
    require_file(path)
    with reading_file(path), open_to_read(path) as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def compressed_fingerprint(path: Path) -> str:
    """SHA-256 checksum of a file as stored, not decompressed, as "sha256:<hex>"; raises DataError for a pipe.

    Earlier versions of mtkit recorded this checksum for compressed files.
    """
    require_file(path)
    with reading_file(path), path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def require_file(path: Path) -> None:
    """Raise DataError if `path` is standard input or a pipe, neither of which can be read twice."""
    if path == STANDARD_INPUT or path.is_fifo():
        raise DataError(f"{path}: is a pipe; a file is wanted, which can be read more than once")


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of `stream` as bytes, with their line ends; removes a byte order mark at the beginning.

    Each line is yielded as soon as it has arrived.
    """
    raw = stream.readline().removeprefix(BOM_UTF8)
    while raw:
        yield raw
        raw = stream.readline()


def _raw_blocks(stream: BinaryIO, waits: bool) -> Iterator[list[bytes]]:
    """Yields the lines of `stream` as bytes, with their line ends, in blocks of many lines.

    With `waits=True`, each block is a single line, yielded as soon as it has arrived. A byte order mark at the
    beginning is removed.
    """
    if waits:
        yield from ([raw] for raw in _raw_lines(stream))
        return
    block = stream.readlines(BLOCK_BYTES)
    if block:
        block[0] = block[0].removeprefix(BOM_UTF8)
        block = block if block[0] else block[1:]
    while block:
        yield block
        block = stream.readlines(BLOCK_BYTES)


def _decoded_at_once(block: list[bytes]) -> list[str] | None:
    """The lines of a block as text, without line ends; `None` if the block cannot be decoded as a whole.

    A block cannot be decoded as a whole if it has carriage returns or bytes that are not UTF-8.
    """
    raw = b"".join(block)
    if b"\r" in raw:
        return None
    try:
        return raw.removesuffix(b"\n").decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return None


def _decoded(raw: bytes) -> tuple[str, bool]:
    """Returns (`raw` as text without its line end, whether `raw` contained bytes that are not UTF-8).

    Bytes that are not UTF-8 become U+FFFD.
    """
    line = _without_end(raw)
    try:
        return line.decode("utf-8"), False
    except UnicodeDecodeError:
        return line.decode("utf-8", errors="replace"), True


def _without_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def refuse_utf16(path: Path, start: bytes) -> None:
    """Raises DataError if `start`, the first bytes of the file at `path`, is UTF-16 or UTF-32.

    Without a byte order mark, UTF-16 is recognised only if most letters are Latin: then most bytes at even positions,
    or most bytes at odd positions, are 0, and few of the other bytes are 0.
    """
    name = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    zeros = [2 * start[place::2].count(0) / max(len(start), 1) for place in (0, 1)]
    if name is None and len(start) >= LEAST_START and max(zeros) > 0.5 and min(zeros) < 0.1:
        name = "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"
    if name is not None:
        raise DataError(f"{named(path)}: is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8 FILE")


def _not_utf8(path: Path, number: int, line: bytes, start: int) -> DataError:
    if is_misnamed(path):
        compression = COMPRESSIONS[path.suffix.lower()].name
        return DataError(f"{path}: neither {compression}, as its name says, nor UTF-8 text; make or fetch it again")
    column = len(line[:start].decode("utf-8")) + 1
    return DataError(
        f"{named(path)}:{number}: not valid UTF-8 (byte 0x{line[start]:02x} at column {column}); "
        "convert the file to UTF-8"
    )


class CarriageReturns:
    """Detects old Mac line ends: carriage returns without line feeds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._total = 0
        self._most = 0  # largest number within one line
        self._most_at = 0  # number of that line

    def see(self, number: int, line: bytes, is_last: bool) -> None:
        """Count the carriage returns in `line`, which is given without its line end.

        `number` is the line number. `is_last` tells whether the file ends after this line without a line feed; if so,
        `check` is called, which may raise DataError.
        """
        count = line.rstrip(b"\r").count(b"\r")
        self._total += count
        if count > self._most:
            self._most, self._most_at = count, number
        if is_last:
            self.check(number, most=0 if number == 1 else number)

    def check(self, num_lines: int, most: int | None = None) -> None:
        """Raise DataError if carriage returns serve as line ends in all or part of the file.

        This method must be called at the end of the file. `num_lines` is the number of lines read. `most` is the number
        of carriage returns that ordinary text may contain; `None` means one per line.
        """
        remedy = "which must be the line ends of an old Mac; convert them to line feeds, for example with mac2unix"
        if self._total > (num_lines if most is None else most):
            returns = counted(self._total, "carriage return")
            lines = "one line" if num_lines == 1 else f"{num_lines:,} lines"
            raise DataError(f"{named(self._path)}: found {returns} within {lines}, {remedy}")
        if self._most >= MANY_RETURNS and self._most * 100 >= num_lines:
            where = f"{named(self._path)}:{self._most_at}"
            raise DataError(f"{where}: found {self._most:,} carriage returns within one line, {remedy}")


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Context manager that turns errors in reading the file at `path` into DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; a text file is wanted") from None
    except OSError as error:
        raise DataError(f"{named(path)}: cannot be read: {error.strerror or error}") from None


# Advice on CSV files, which mtkit does not read.

SEPARATORS = (",", ";", "|")

# Python modules whose open() decompresses a file, by file name extension.
OPENING_MODULES = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}

FIRST_LINES = 100  # number of lines inspected to decide whether a file is a table
LEAST_ROWS = 10  # rows needed to recognise a table; fewer lines of prose may have equal numbers of commas by chance

# Python program that converts CSV to tab-separated columns; tabs and line ends within a field become spaces.
CONVERTER = (
    "import csv, {module}; [print(*(field.translate({{9: 32, 10: 32, 13: 32}}) for field in row), sep=chr(9)) "
    "for row in csv.reader({module}.open({path}, {mode}, encoding={encoding}, newline={newline}){separator})]"
)


def advice_on_csv(path: Path, lines: Sequence[str]) -> str | None:
    """Advice on how to convert a CSV file to tab-separated columns; `None` if the file does not look like CSV.

    `lines` are the first lines of the file. A file looks like CSV if it is named like a.csv or a.csv.gz, if all of
    `lines` have the same number of fields, or if the first line is in quotes and contains a separator.
    """
    separator = csv_separator(lines) or _separator_in_line(lines[0])
    if separator is None and not is_named_csv(path):
        return None
    is_quoted = lines[0].startswith('"') and lines[0].endswith('"')
    if not is_named_csv(path) and csv_separator(lines) is None and not is_quoted:
        return None  # the first line may be a sentence with a comma
    name = path.name[: -len(path.suffix)] if path.suffix in OPENING_MODULES else path.name
    table = path.with_name(f"{name.removesuffix('.csv')}.tsv")
    command = f"python3 -c {shlex.quote(_converter(path, separator or ','))} > {shlex.quote(str(table))}"
    return f"this is CSV, which is not read. Make columns with tabs of it, and name {table} instead: {command}"


def is_named_csv(path: Path) -> bool:
    """Whether the name of a file ends in .csv, or in .csv and another extension, as in .csv.gz."""
    return ".csv" in (path.suffix.lower(), Path(path.stem).suffix.lower())


def csv_separator(lines: Sequence[str]) -> str | None:
    """The separator that splits each line into the same number of fields, at least two; `None` if none does.

    Each separator in SEPARATORS is tried on the distinct lines among the first FIRST_LINES. Reading stops at the
    first line that is not valid CSV. If fewer than LEAST_ROWS rows were read, the separator is not accepted.
    """
    distinct = list(dict.fromkeys(lines[:FIRST_LINES]))  # repetitions always have equal numbers of commas
    for separator in SEPARATORS:
        counts = _field_counts(distinct, separator)
        if len(counts) >= LEAST_ROWS and len(set(counts)) == 1 and counts[0] > 1:
            return separator
    return None


def _separator_in_line(line: str) -> str | None:
    """The first of SEPARATORS that splits `line` into two or more fields; `None` if none does.

    The line may still be prose that contains a comma.
    """
    return next((each for each in SEPARATORS if max(_field_counts([line], each), default=0) > 1), None)


def _field_counts(lines: Sequence[str], separator: str) -> list[int]:
    """The number of fields of each row, if `lines` are read as CSV with `separator`.

    Reading stops at the first row that is not valid CSV or in which a quoted field is not closed; this row is not
    counted.
    """
    rows = csv.reader([f"{line}\n" for line in lines], delimiter=separator, strict=True)
    counts: list[int] = []
    while True:
        try:
            counts.append(len(next(rows)))
        except (csv.Error, StopIteration):
            return counts


def _converter(path: Path, separator: str) -> str:
    return CONVERTER.format(
        module=OPENING_MODULES.get(path.suffix, "io"),
        path=_quoted(str(path)),
        mode=_quoted("rt"),
        encoding=_quoted("utf-8-sig"),
        newline=_quoted(""),
        separator="" if separator == "," else f", delimiter={_quoted(separator)}",
    )


def _quoted(text: str) -> str:
    """`text` as a Python string literal in double quotes, for a Python program in a shell command.

    The program itself is in single quotes in the shell command, so the literal must not contain single quotes.
    """
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Reading ahead from pipes. The program that writes to the pipe may wait for the answer to a line (its translation or
# score) before it sends the next line.

T = TypeVar("T")

PAUSE_SECONDS = 0.1  # if no new line arrives within this time, the lines read so far are answered
PATIENCE_SECONDS = 1.0  # after this time, a line no longer waits for lines that have not arrived
MOST_ITEMS = 4000  # number of items read ahead, at most
MOST_CHARACTERS = 1_000_000  # number of characters in the items read ahead, after which no more are read


class ReadAhead(Generic[T]):
    """Iterator over items that a thread reads ahead, up to MOST_ITEMS items or MOST_CHARACTERS characters.

    If reading an item fails, `__next__` raises the error in place of that item. The thread is a daemon: the process can
    end even while the thread waits for an item that never comes.
    """

    def __init__(self, items: Iterable[T], size: Callable[[T], int]) -> None:
        """Start a thread that reads `items` ahead; `size(item)` returns the number of characters of an item."""
        self._source = items
        self._size = size
        self._items: deque[T] = deque()
        self._num_characters = 0
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = Condition()
        self._first_taken: float | None = None  # time of the first call of `pauses` after one that returned True
        Thread(target=self._read, name="read-ahead", daemon=True).start()

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
        """Whether `__next__` would return at once: the next item, or the end of the items, has been read."""
        return bool(self._items) or self._ended

    def pauses(self) -> bool:
        """Wait up to PAUSE_SECONDS for the next item; returns `True` if the item did not come, but may come later.

        `True` means that the items taken so far should be answered now. The first call, and the first call after each
        `True`, begins a period of PATIENCE_SECONDS. No call waits beyond the end of this period, so that items that
        keep arriving one by one do not delay the answers for long.
        """
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
        """Tell the thread to end, and return at once.

        The thread ends only when the item that it is reading has arrived.
        """
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
        except BaseException as error:  # __next__ raises it in place of the missing item
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @property
    def _has_room(self) -> bool:
        return len(self._items) < MOST_ITEMS and self._num_characters < MOST_CHARACTERS


class InputStreams:
    """Context manager that reads streams of lines ahead and decides when the lines taken must be answered.

    The answer to a line is its translation or score. With `line_buffered=True`, each line is answered before the next
    line is read, and nothing is read ahead.
    """

    def __init__(self, before_waiting: Callable[[], object], line_buffered: bool) -> None:
        """Without `line_buffered`, lines are read ahead; with it, each line is answered before the next is read.

        `before_waiting` is a function that flushes the answers. It is called whenever the next line has not arrived
        yet.
        """
        self._before_waiting = before_waiting
        self._line_buffered = line_buffered
        self._streams: list[ReadAhead[Any]] = []

    def __enter__(self) -> "InputStreams":
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()

    def read(self, items: Iterable[T], may_pause: bool, size: Callable[[T], int]) -> Iterable[T]:
        """Returns an iterable over `items`, which a thread reads ahead if `may_pause` is true.

        `may_pause` means that the next item may come late, as from a pipe. If `InputStreams` was created with
        `line_buffered=True`, nothing is read ahead. `size(item)` is the number of characters of an item; the total size
        of the items read ahead is limited.
        """
        if self._line_buffered or not may_pause:
            return items
        stream = ReadAhead(items, size)
        self._streams.append(stream)
        return self._flushing(stream)

    def answer_now(self) -> bool:
        """Whether the lines taken so far should be answered before another line is taken.

        The method waits for a moment, and returns `True` if no further line comes in that time. With
        `line_buffered=True`, it returns `True` at once.
        """
        return self._line_buffered or any(stream.pauses() for stream in self._streams)

    def _flushing(self, stream: ReadAhead[T]) -> Iterator[T]:
        while True:
            if not stream.is_ready:
                self._before_waiting()
            try:
                yield next(stream)
            except StopIteration:
                return
