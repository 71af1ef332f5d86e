"""Many files in one: a zip that stores them as they are, so that they can be used where they lie.

Every byte of what is written here follows from the names and the contents, so the same files give the same archive, and
one that was changed anywhere can be told. Other zips are read, too, if they store plain files and nothing else.
"""

import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

LOCAL = struct.Struct("<4s5H3I2H")  # the head before each file
CENTRAL = struct.Struct("<4s6H3I5H2I")  # its entry in the directory at the end
END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR_64 = struct.Struct("<4sIQI")

VERSION, VERSION_64 = 20, 45
DATE = (1 << 5) | 1  # 1 January 1980, the first that a zip can tell
PLAIN_FILE = (stat.S_IFREG | 0o644) << 16
LIMIT = 0xFFFFFFFF  # sizes and places from here on stand in a field of their own
LIMIT_COUNT = 0xFFFF
ZIP64 = 0x0001
PADDING = 0xD935  # the field by which zips align files: the alignment, then zeros

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size: int
    crc: int
    begin: int = 0  # of its content, in bytes from the begin of the archive
    align_at: int | None = None  # this byte of its content lies at a multiple of the alignment


@dataclass(frozen=True)
class Layout:
    """The bytes of an archive that are not those of its files."""

    heads: list[bytes]  # one before each file
    tail: bytes

    def write(self, file: BinaryIO, contents: Sequence[memoryview]) -> None:
        """The whole archive."""
        for head, content in zip(self.heads, contents, strict=True):
            file.write(head)
            file.write(content)
        file.write(self.tail)


def lay_out(members: Sequence[Member], alignment: int = 64) -> Layout:
    """The bytes around files in that order."""
    heads, entries, place = [], [], 0
    for member in members:
        name = member.name.encode("ascii")
        is_big = member.size >= LIMIT
        extra = struct.pack("<2H2Q", ZIP64, 16, member.size, member.size) if is_big else b""
        if member.align_at is not None:
            extra += _padding(place + LOCAL.size + len(name) + len(extra) + member.align_at, alignment)
        size = LIMIT if is_big else member.size
        common = (0, 0, 0, DATE, member.crc, size, size, len(name))  # no flags, stored, midnight
        head = LOCAL.pack(b"PK\3\4", VERSION_64 if is_big else VERSION, *common, len(extra)) + name + extra
        entries.append(_entry(member, name, common, place))
        heads.append(head)
        place += len(head) + member.size
    return Layout(heads, b"".join(entries) + _end(len(members), sum(map(len, entries)), place))


def _padding(place: int, alignment: int) -> bytes:
    """A field so long that what stands at a place without it stands at a multiple of the alignment."""
    least = 6  # id, length and alignment
    zeros = -(place + least) % alignment
    return struct.pack("<3H", PADDING, 2 + zeros, alignment) + bytes(zeros)


def _entry(member: Member, name: bytes, common: tuple[int, ...], place: int) -> bytes:
    wide = [member.size] * 2 if member.size >= LIMIT else []
    wide += [place] if place >= LIMIT else []
    extra = struct.pack(f"<2H{len(wide)}Q", ZIP64, 8 * len(wide), *wide) if wide else b""
    version = VERSION_64 if wide else VERSION
    made_by = (3 << 8) | version  # on Unix, so that the kind of file is told
    return (
        CENTRAL.pack(b"PK\1\2", made_by, version, *common, len(extra), 0, 0, 0, PLAIN_FILE, min(place, LIMIT))
        + name
        + extra
    )


def _end(count: int, size: int, place: int) -> bytes:
    """What stands after a directory of so many entries and bytes that begins at a place."""
    wide = b""
    if place >= LIMIT or count >= LIMIT_COUNT:
        wide = END_64.pack(
            b"PK\6\6", END_64.size - 12, (3 << 8) | VERSION_64, VERSION_64, 0, 0, count, count, size, place
        )
        wide += LOCATOR_64.pack(b"PK\6\7", 0, place + size, 1)
    few = min(count, LIMIT_COUNT)
    return wide + END.pack(b"PK\5\6", 0, 0, few, few, size, min(place, LIMIT), 0)


def read_members(file: BinaryIO, data: memoryview) -> dict[str, Member]:
    """The files of an archive by their names, in their order; data is what is in file.

    A ValueError says in one line what it holds that it should not, or how it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, struct.error) as error:
        raise ValueError(f"not a whole zip ({error})") from None
    members: dict[str, Member] = {}
    for info in infos:
        member = _member(info, data)
        if member.name in members:
            raise ValueError(f"it holds {member.name} twice")
        members[member.name] = member
    end = 0
    for member in sorted(members.values(), key=lambda member: member.begin):
        if member.begin - LOCAL.size - len(member.name) < end or member.begin + member.size > len(data):
            raise ValueError(f"{member.name} lies where something else does")
        end = member.begin + member.size
    return members


def _member(info: zipfile.ZipInfo, data: memoryview) -> Member:
    name = info.orig_filename
    if not NAME.fullmatch(name):
        raise ValueError(f"it holds {name[:100]!r}, which no file of a model is called")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ValueError(f"{name} is not a plain file")
    if info.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{name} is compressed; a model is stored as it is")
    head = data[info.header_offset : info.header_offset + LOCAL.size] if info.header_offset >= 0 else b""
    if len(head) < LOCAL.size:
        raise ValueError(f"{name} is not where the directory says")
    signature, _, flags, method, *_, name_length, extra_length = LOCAL.unpack(head)
    begin = info.header_offset + LOCAL.size + name_length + extra_length
    own_name = bytes(data[info.header_offset + LOCAL.size :][:name_length])
    if (signature, flags & 1, method, own_name) != (b"PK\3\4", 0, zipfile.ZIP_STORED, name.encode()):
        raise ValueError(f"{name} is not where the directory says")
    return Member(name, info.file_size, info.CRC, begin)


def first_difference(data: memoryview, members: Sequence[Member]) -> int | None:
    """The first byte around the files that is not as lay_out makes it; None if all are, and nothing is left over."""
    layout, place = lay_out(members), 0
    for head, size in zip([*layout.heads, layout.tail], [*(member.size for member in members), 0], strict=True):
        found = bytes(data[place : place + len(head)])
        if found != head:
            return place + next((i for i, (a, b) in enumerate(zip(found, head, strict=False)) if a != b), len(found))
        place += len(head) + size
    return None if place == len(data) else place
