"""Compressed text, recognised by its content; the home of zstandard."""

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
HEAD_BYTES = 512  # what it takes to recognise a tar archive: its first block
LARGEST_WINDOW_LOG = 31  # what `zstd --long=31` makes can be read
STANDARD_INPUT = Path("-")  # what this path means where a command reads a FILE
ENCRYPTED = 0x1  # flag of a file in a zip archive


class _NoZstandardError(Exception):
    """The package zstandard is not installed."""


class _Decompressor(Protocol):
    """Unpacks one of the frames, members or streams that a packed file is made of."""

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""

    @property
    def unused_data(self) -> bytes:
        """What came after it."""

    def decompress(self, data: bytes, /) -> bytes:
        """The next piece of text, as far as the data goes."""


if sys.version_info >= (3, 14):
    from compression import zstd

    def _unpack_zst() -> _Decompressor:
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

    def _unpack_zst() -> _Decompressor:
        decompressor = _zstandard().ZstdDecompressor(max_window_size=1 << LARGEST_WINDOW_LOG)
        return cast("_Decompressor", decompressor.decompressobj())

    def _write_zst(path: Path) -> BinaryIO:
        compressor = _zstandard().ZstdCompressor(write_checksum=True)
        return cast("BinaryIO", compressor.stream_writer(path.open("wb")))

    def _zstd_error() -> type[Exception]:
        return cast("type[Exception]", _zstandard().ZstdError)


@dataclass(frozen=True)
class Packer:
    """A way to pack one file, the first bytes of what it makes, and what unpacking raises at damage."""

    name: str
    magic: tuple[bytes, ...]
    unpack: Callable[[], _Decompressor]
    error: Callable[[], type[Exception]]
    write: Callable[[Path], Any]


# By the endings of the names of files that are written.
PACKERS = {
    ".gz": Packer(
        "gzip",
        (b"\x1f\x8b\x08",),
        partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS),  # 16 more: with gzip's header and checksum
        lambda: zlib.error,
        partial(gzip.open, mode="wb"),
    ),
    ".bz2": Packer(
        "bzip2",
        tuple(b"BZh%d%b" % (level, block) for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
        bz2.BZ2Decompressor,
        lambda: OSError,
        partial(bz2.BZ2File, mode="wb"),
    ),
    ".xz": Packer(
        "xz",
        (b"\xfd7zXZ\x00", b"]\x00\x00"),  # the second is of the older format .lzma
        lzma.LZMADecompressor,
        lambda: lzma.LZMAError,
        partial(lzma.LZMAFile, mode="wb"),
    ),
    ".zst": Packer(
        "zstd",
        (b"\x28\xb5\x2f\xfd", *(b"%c\x2a\x4d\x18" % kind for kind in range(0x50, 0x60))),  # and frames to skip
        _unpack_zst,
        _zstd_error,
        _write_zst,
    ),
}

ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
REFUSED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"MSCF\x00\x00\x00\x00": "a cabinet archive",
    b"!<arch>\n": "an ar archive",
    b"\x04\x22\x4d\x18": "packed by lz4",
    b"LZIP\x01": "packed by lzip",
    b"\x89LZO\x00\r\n\x1a\n": "packed by lzop",
    b"\x1f\x9d": "packed by compress",
}
KNOWN = (*ZIP, *REFUSED, *(magic for packer in PACKERS.values() for magic in packer.magic))


def open_to_read(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked; `-` is standard input, which closing leaves open."""
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed; give it some text, or a FILE")
        return BufferedReader(_Unpacked(_standard_input(), "standard input"), CHUNK_BYTES)
    return BufferedReader(_UnpackedFile(path.open("rb"), str(path)), CHUNK_BYTES)


def _standard_input() -> IO[bytes]:
    """A reader of its own: a thread may still wait in it when Python ends, which then could not close sys.stdin."""
    try:
        descriptor = sys.stdin.fileno()
    except OSError:  # it is no file of the system
        return sys.stdin.buffer
    return open(descriptor, "rb", closefd=False)


def may_pause(stream: BinaryIO) -> bool:
    """Whether more may come later, as from a pipe: no regular file, and nothing that is in memory."""
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # there is no file of the system
        return False


def path_may_pause(path: Path) -> bool:
    """The same of what open_to_read would open."""
    if path != STANDARD_INPUT:
        return path.exists() and not path.is_file()
    return sys.stdin is not None and may_pause(sys.stdin.buffer)


def open_to_write(path: Path, name: Path) -> BinaryIO:
    """A file to write, packed as the end of name says."""
    packer = PACKERS.get(name.suffix.lower())
    try:
        return cast("BinaryIO", packer.write(path)) if packer else path.open("wb")
    except _NoZstandardError:
        raise _no_zstandard(str(name)) from None


def is_misnamed(path: Path) -> bool:
    """Whether a file is named as a packed one and is none."""
    if path.suffix.lower() not in PACKERS or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    return not any(head.startswith(packer.magic) for packer in PACKERS.values())


class _DamageError(Exception):
    """What is packed cannot be unpacked."""


class _Frames(RawIOBase):
    """What a packed stream holds, frame after frame; it waits for no more bytes than the next piece of text takes."""

    def __init__(self, stream: RawIOBase, packer: Packer) -> None:
        self._stream = stream
        self._packer = packer
        self._frame: _Decompressor | None = None  # the one that is being unpacked
        self._packed = b""  # read and not yet unpacked
        self._text = memoryview(b"")  # unpacked and not yet asked for

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text and self._unpack():
            pass
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count

    def _unpack(self) -> bool:
        """Take the next piece of the stream; False at its end."""
        packed = self._packed or self._read()
        self._packed = b""
        if self._frame is None:  # zeros may stand between frames, to fill a block
            while packed and not (packed := packed.lstrip(b"\0")):
                packed = self._read()
        if not packed:
            if self._frame is not None:
                raise _DamageError("it ends too soon")
            return False
        self._frame = self._frame or self._packer.unpack()
        try:
            self._text = memoryview(self._frame.decompress(packed))
        except self._packer.error() as error:
            raise _DamageError(str(error)) from None
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True

    def _read(self) -> bytes:
        return self._stream.read(CHUNK_BYTES) or b""


class _Unpacked(RawIOBase):
    """The bytes of a stream, unpacked, however often it was packed.

    What the stream is shows at the first read, since a pipe may hold nothing before. What is wrong with it is a
    DataError.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self._stream = stream
        self._text: Any = None  # what is read, once it is known how
        self._packers: list[str] = []  # that were found, the outermost first

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def readinto(self, buffer: Any) -> int:
        try:
            if self._text is None:
                self._text = self._unpack()
            count: int = self._text.readinto1(buffer)
        except (_DamageError, EOFError, BadZipFile, zlib.error) as error:  # the last three come of zip archives
            raise self._damage(error) from None
        except _NoZstandardError:
            raise _no_zstandard(self.name) from None
        return count

    def _unpack(self) -> Any:
        """The stream below all packers, as one that has readinto1."""
        text: Any = self._stream
        while True:
            head = _head(text)
            if head.startswith(ZIP):
                text = self._member(text)
                continue
            self._refuse_archives(head)
            rest = _Rejoined(head, text)
            packer = next((packer for packer in PACKERS.values() if head.startswith(packer.magic)), None)
            if packer is None:
                self._refuse_stumps(head)
                return BufferedReader(rest, CHUNK_BYTES)
            self._packers.append(packer.name)
            text = BufferedReader(_Frames(rest, packer), CHUNK_BYTES)

    def _member(self, stream: Any) -> Any:
        """The one file of a zip archive."""
        if stream is not self._stream or not stream.seekable():  # its list of files is at its end
            raise self._refusal("a zip archive" if self._packers else "a zip archive in a pipe")
        self._packers.append("zip")
        archive = ZipFile(stream)
        members = [member for member in archive.infolist() if _is_text(member)]
        if len(members) != 1:
            self._packers.pop()
            raise self._refusal(f"a zip archive of {len(members):,} files")
        if members[0].flag_bits & ENCRYPTED:
            self._packers.pop()
            raise self._refusal("an encrypted zip archive")
        try:
            return archive.open(members[0])
        except NotImplementedError as error:
            raise DataError(f"{self.name}: {error}; unpack it, and name the text file in it") from None

    def _refuse_archives(self, head: bytes) -> None:
        """Raise DataError if this is the beginning of something that holds text in a way that is not read."""
        for magic, what in REFUSED.items():
            if head.startswith(magic):
                raise self._refusal(what)
        if _is_tar(head):
            raise self._refusal("a tar archive")

    def _refuse_stumps(self, head: bytes) -> None:
        """Raise DataError if a file that is named as a packed one was cut off within its first few bytes."""
        packer = PACKERS.get(Path(self.name).suffix.lower())
        if packer and not self._packers and head and any(magic.startswith(head) for magic in packer.magic):
            self._packers.append(packer.name)
            raise _DamageError("it ends within its first bytes")

    def _refusal(self, what: str) -> DataError:
        packed = "".join(f", packed by {packer}" for packer in reversed(self._packers))
        return DataError(f"{self.name}: is {what}{packed}, no text file; unpack it, and name the text files in it")

    def _damage(self, error: Exception) -> DataError:
        what = " in ".join(reversed(self._packers))
        return DataError(f"{self.name}: damaged {what} ({error or 'it ends too soon'}); make or fetch it again")


class _UnpackedFile(_Unpacked):
    """The same of a file, which is closed with it."""

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Rejoined(RawIOBase):
    """The bytes that were read to see what a stream is, then the rest of it."""

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
    """The first bytes of a stream, no more of them than reading its first line takes: it may be a pipe."""
    head = b""
    while len(head) < HEAD_BYTES and b"\n" not in head and not head.startswith(KNOWN):
        more = stream.read1(HEAD_BYTES - len(head))
        if not more:
            break
        head += more
    return head


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # it compares a checksum
    except tarfile.HeaderError:
        return False
    return True


def _is_text(member: ZipInfo) -> bool:
    """Neither a folder nor what macOS adds to a file."""
    return not member.is_dir() and not member.filename.startswith("__MACOSX/")


def _no_zstandard(name: str) -> DataError:
    return DataError(f"{name}: .zst files want the package zstandard; install it with pip install 'mtkit[zstd]'")
