"""Where the files of a bundle lie: in a folder, or in one file. Whoever reads them need not care.

A file is mapped into memory, privately: it can be written to there, and on disk nothing changes.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mtkit.errors import CheckpointError
from mtkit.formats.archive import Member, first_difference, read_members

ZIP_BEGINS = b"PK\3\4"


class Storage(Protocol):
    """The files of a bundle, by names such as tokenizer/tokenizer.json."""

    @property
    def path(self) -> Path:
        """The folder, or the one file."""

    def place(self, name: str) -> Path:
        """Where messages say that a file or a folder of files lies."""

    def names(self) -> list[str]:
        """Of all files, in order."""

    @property
    def num_bytes(self) -> int:
        """What they take on the disk."""

    def view(self, name: str) -> memoryview:
        """The content, mapped into memory; FileNotFoundError if there is no such file."""

    def strange(self, members: Sequence[Member]) -> str | None:
        """What is wrong around the files, which are packed as these in that order; None if nothing is."""


@dataclass(frozen=True)
class Folder:
    """A file for each name."""

    path: Path

    def place(self, name: str) -> Path:
        """In the folder."""
        return self.path / name

    def names(self) -> list[str]:
        """Those of all files below the folder."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if not path.is_dir())

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum((self.path / name).stat().st_size for name in self.names())

    def view(self, name: str) -> memoryview:
        """A map of its own for each file."""
        with (self.path / name).open("rb") as file:
            return _mapped(file)

    def strange(self, members: Sequence[Member]) -> str | None:
        """There is nothing around the files of a folder."""
        return None


@dataclass(frozen=True)
class Packed:
    """One archive, mapped as a whole, once."""

    path: Path
    data: memoryview
    members: Mapping[str, Member]

    @staticmethod
    def open(path: Path) -> "Packed":
        """The archive in a file; CheckpointError if it is none, or holds what a bundle does not."""
        with path.open("rb") as file:
            data = _mapped(file)
            try:
                return Packed(path, data, read_members(file, data))
            except ValueError as error:
                raise CheckpointError(f"{path}: damaged: {error}; copy or pack the model again") from None

    def place(self, name: str) -> Path:
        """In the archive, as if it were a folder."""
        return self.path / name

    def names(self) -> list[str]:
        """Those of all members."""
        return sorted(self.members)

    @property
    def num_bytes(self) -> int:
        """Of the one file."""
        return len(self.data)

    def view(self, name: str) -> memoryview:
        """A part of the one map."""
        if name not in self.members:
            raise FileNotFoundError(name)
        member = self.members[name]
        return self.data[member.begin : member.begin + member.size]

    def strange(self, members: Sequence[Member]) -> str | None:
        """Whether the bytes around the files are those that packing writes."""
        place = first_difference(self.data, members)
        return None if place is None else f"byte {place:,}, between its files, is not what mtkit pack writes"


def open_storage(path: Path) -> Storage:
    """A folder, or a file that begins as an archive does."""
    return Folder(path) if path.is_dir() else Packed.open(path)


def is_packed(path: Path) -> bool:
    """Whether a file begins as an archive does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ZIP_BEGINS)) == ZIP_BEGINS


def _mapped(file: BinaryIO) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except ValueError:  # empty, which cannot be mapped
        return memoryview(b"")
