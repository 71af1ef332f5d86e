"""Checksums of the files of a bundle."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

from mtkit.formats.storage import Storage

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Sums:
    """Checksums of one file."""

    size: int
    sha256: str
    crc: int

    @property
    def told(self) -> dict[str, Any]:
        """As bundle.json tells of a file."""
        return {"bytes": self.size, "sha256": self.sha256}


def sums_of(content: memoryview) -> Sums:
    """Both checksums in one reading."""
    digest, crc = hashlib.sha256(), 0
    for begin in range(0, len(content), CHUNK_BYTES):
        chunk = content[begin : begin + CHUNK_BYTES]
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
    return Sums(len(content), digest.hexdigest(), crc)


def all_sums(storage: Storage) -> dict[str, Sums]:
    """Those of every file that is there and can be read."""
    found = {}
    for name in storage.names():
        try:
            found[name] = sums_of(storage.view(name))
        except OSError:
            continue  # told as missing, if it belongs there
    return found
