"""Packed files, known by the ends of their names: .gz, .xz and .zst. The home of zstandard."""

import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from mtkit.errors import DataError

CHUNK_BYTES = 128 * 1024
LARGEST_WINDOW_LOG = 31  # what `zstd --long=31` makes can be read

Mode = Literal["rb", "wb"]


class _DamageError(Exception):
    """What zstandard found wrong."""


if sys.version_info >= (3, 14):
    from compression import zstd

    DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError)

    def _open_zst(path: Path, mode: Mode) -> BinaryIO:
        reading = {zstd.DecompressionParameter.window_log_max: LARGEST_WINDOW_LOG}
        writing = {zstd.CompressionParameter.checksum_flag: 1}
        return cast("BinaryIO", zstd.open(path, mode, options=reading if mode == "rb" else writing))
else:
    DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, _DamageError)

    def _open_zst(path: Path, mode: Mode) -> BinaryIO:
        try:
            import zstandard
        except ModuleNotFoundError:
            raise DataError(
                f"{path}: .zst files want the package zstandard; install it with pip install 'mtkit[zstd]'"
            ) from None
        if mode == "wb":
            return cast("BinaryIO", zstandard.ZstdCompressor(write_checksum=True).stream_writer(path.open("wb")))
        return cast("BinaryIO", BufferedReader(_ZstReader(path.open("rb")), CHUNK_BYTES))

    class _ZstReader(RawIOBase):
        """Unpacks frame after frame; zstandard's own reader takes a file that is cut off for a whole one."""

        def __init__(self, stream: BinaryIO) -> None:
            import zstandard

            self.name = stream.name
            self._stream = stream
            self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << LARGEST_WINDOW_LOG)
            self._error = zstandard.ZstdError
            self._frame: Any = None  # the one that is being unpacked
            self._packed = b""  # read and not yet unpacked
            self._text = b""  # unpacked and not yet asked for

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            while not self._text and self._unpack():
                pass
            count = min(len(buffer), len(self._text))
            buffer[:count], self._text = self._text[:count], self._text[count:]
            return count

        def _unpack(self) -> bool:
            """Take the next piece of the file; False at its end."""
            packed = self._packed or self._stream.read(CHUNK_BYTES)
            self._packed = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return False
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._text = self._frame.decompress(packed)
            except self._error as error:
                raise _DamageError(str(error)) from None
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
            return True

        def close(self) -> None:
            self._stream.close()
            super().close()


def _open_gz(path: Path, mode: Mode) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, mode))


class _XzFile(lzma.LZMAFile):
    name: str = ""  # as other files have one; Python's own from 3.13 on


def _open_xz(path: Path, mode: Mode) -> BinaryIO:
    file = _XzFile(path, mode)
    file.name = str(path)
    return cast("BinaryIO", file)


PACKERS: dict[str, Callable[[Path, Mode], BinaryIO]] = {".gz": _open_gz, ".xz": _open_xz, ".zst": _open_zst}
PACKER_NAMES = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}


def open_to_read(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked; only within telling_damage is damage told in one line."""
    return PACKERS[path.suffix](path, "rb") if path.suffix in PACKERS else path.open("rb")


def open_to_write(path: Path, name: Path) -> BinaryIO:
    """A file to write, packed as the end of name tells."""
    return PACKERS[name.suffix](path, "wb") if name.suffix in PACKERS else path.open("wb")


@contextmanager
def telling_damage(name: str) -> Iterator[None]:
    """Tells in one line that a packed file is damaged."""
    try:
        yield
    except DAMAGE as error:
        packer = PACKER_NAMES.get(Path(name).suffix, "packed")
        raise DataError(f"{name}: damaged or not {packer} ({error}); compress it again or rename it") from None
