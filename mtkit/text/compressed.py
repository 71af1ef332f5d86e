"""Reads and writes compressed text files; when reading, recognises the compression by content, not by file name.

No other module uses the package zstandard.
"""

import bz2
import gzip
import lzma
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast
from zipfile import BadZipFile, ZipFile, ZipInfo

from mtkit.errors import DataError

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
        """The bytes that were given to `decompress` but come after the end of the frame."""

    def decompress(self, data: bytes, /) -> bytes:
        """Decompress `data`, the next part of the frame; may return b"" until it has been given more data."""


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
    """Whether reading `stream` may have to wait for more data, as with a pipe or a terminal.

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

    A read returns as soon as it has some decompressed bytes, since a pipe may not deliver more data for a while.
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
    """A stream of the decompressed bytes of another stream, which may have been compressed several times.

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
        """Open the only file in a zip archive for reading.

        Raises DataError if the archive does not contain exactly one file, is encrypted, comes from a pipe, or is itself
        compressed.
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
        """Raise _DamageError if a file is cut off within the fixed bytes with which its compression format begins.

        The format is known from the file name. `head` is the beginning of the file. An empty file is accepted.
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
