"""A file that is known by the checksums of its pieces, so that damage is noticed and its place told."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtkit.errors import DataError

PIECE_BYTES = 64 * 1024 * 1024  # what one checksum is of


@dataclass(frozen=True)
class StoredFile:
    """A file as it was written."""

    size: int
    sha256: tuple[str, ...]  # of each 64 MiB


class FileWriter:
    """A file, and the checksums of its pieces as they go by."""

    def __init__(self, path: Path) -> None:
        """Makes the file, or empties it."""
        self._stream = path.open("wb")
        self._size = 0
        self._sha256: list[str] = []
        self._piece = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Append."""
        self._stream.write(content)
        while content:
            left = PIECE_BYTES - self._size % PIECE_BYTES
            head, content = content[:left], content[left:]
            self._piece.update(head)
            self._size += len(head)
            if len(head) == left:
                self._end_piece()

    def _end_piece(self) -> None:
        self._sha256.append(self._piece.hexdigest())
        self._piece = hashlib.sha256()

    def finish(self) -> StoredFile:
        """The file, closed."""
        if self._size % PIECE_BYTES:
            self._end_piece()
        self._stream.close()
        return StoredFile(self._size, tuple(self._sha256))

    def discard(self) -> None:
        """Close it unfinished, though the disk may be too full for what was still to be written."""
        with suppress(OSError):
            self._stream.close()


def check_size(path: Path, stored: StoredFile) -> None:
    """DataError if a file is gone or has another size."""
    if not path.is_file():
        raise DataError(f"{path}: missing; binarize the corpora again")
    found = path.stat().st_size
    if found != stored.size:
        raise DataError(f"{path}: has {found:,} bytes but {stored.size:,} were written; binarize the corpora again")


def check_content(path: Path, stored: StoredFile, give_up: Callable[[], bool]) -> None:
    """DataError if a file does not hold what was written; give_up is asked at each piece."""
    with path.open("rb") as stream:
        for number, sha256 in enumerate(stored.sha256, start=1):
            if give_up():
                return
            if hashlib.sha256(stream.read(PIECE_BYTES)).hexdigest() != sha256:
                place = f"piece {number} of {len(stored.sha256)} ({PIECE_BYTES >> 20} MiB each)"
                raise DataError(f"{path}: damaged in {place}; binarize the corpora again")
