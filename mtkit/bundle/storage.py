"""The files of a bundle, in a folder or in one archive: memory-mapped access, checksums, and reading of tensors."""

import hashlib
import json
import math
import mmap
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from mtkit.errors import CheckpointError

# The archive: a zip whose files are stored uncompressed, so that they can be mapped into memory.

LOCAL = struct.Struct("<4s5H3I2H")  # the header before each file
CENTRAL = struct.Struct("<4s6H3I5H2I")  # the entry of a file in the central directory, after all files
END = struct.Struct("<4s4H2IH")  # the end of the central directory
END_64 = struct.Struct("<4sQ2H2I4Q")  # the end of the central directory in Zip64
LOCATOR_64 = struct.Struct("<4sIQI")  # gives the offset of END_64

VERSION, VERSION_64 = 20, 45  # version of the zip format that is needed to read an entry, without and with Zip64
DATE = (1 << 5) | 1  # 1 January 1980, the earliest date that a zip can represent
PLAIN_FILE = (stat.S_IFREG | 0o644) << 16  # external attributes of a regular file
LIMIT = 0xFFFFFFFF  # sizes and offsets of this or more are written in a Zip64 extra field
LIMIT_COUNT = 0xFFFF  # this many files or more need Zip64
ZIP64 = 0x0001  # id of the Zip64 extra field
PADDING = 0xD935  # id of the extra field that aligns a file; it contains the alignment, then zeros

# The names that a file of a bundle may have.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    name: str
    size: int  # in bytes
    crc: int  # CRC-32
    begin: int = 0  # offset of the content in the archive, in bytes; not used by lay_out
    align_at: int | None = None  # offset in the content of the byte that lay_out aligns; None: aligns none


@dataclass(frozen=True)
class Layout:
    """All bytes of an archive except the contents of its files."""

    heads: list[bytes]  # the header before each file
    tail: bytes  # the central directory and its end record

    def write(self, file: BinaryIO, contents: Sequence[memoryview]) -> None:
        """Writes the archive to `file`; `contents` are the contents of the archive's files, in order."""
        for head, content in zip(self.heads, contents, strict=True):
            file.write(head)
            file.write(content)
        file.write(self.tail)


def lay_out(members: Sequence[Member], alignment: int = 64) -> Layout:
    """The layout of an archive with the files `members`, in this order.

    `Member.align_at` is the offset of a byte within a file. The header before each file is padded so that this byte's
    offset in the archive is a multiple of `alignment`.
    """
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
    """An extra field for the header of a file, which moves a byte of the archive to an aligned offset.

    Without the field, the byte is at offset `place`; with the field, its offset is a multiple of `alignment`.
    """
    least = 6  # id, length and alignment
    zeros = -(place + least) % alignment
    return struct.pack("<3H", PADDING, 2 + zeros, alignment) + bytes(zeros)


def _entry(member: Member, name: bytes, common: tuple[int, ...], place: int) -> bytes:
    """The entry in the central directory for `member`, whose header is at offset `place`.

    `common` has the values of the fields that the header and the entry have in common.
    """
    wide = [member.size] * 2 if member.size >= LIMIT else []
    wide += [place] if place >= LIMIT else []
    extra = struct.pack(f"<2H{len(wide)}Q", ZIP64, 8 * len(wide), *wide) if wide else b""
    version = VERSION_64 if wide else VERSION
    made_by = (3 << 8) | version  # 3 means Unix, where the external attributes include the type of file
    return (
        CENTRAL.pack(b"PK\1\2", made_by, version, *common, len(extra), 0, 0, 0, PLAIN_FILE, min(place, LIMIT))
        + name
        + extra
    )


def _end(count: int, size: int, place: int) -> bytes:
    """The end records of an archive whose central directory begins at offset `place`.

    The directory has `count` entries and a length of `size` bytes.
    """
    wide = b""
    if place >= LIMIT or count >= LIMIT_COUNT:
        wide = END_64.pack(
            b"PK\6\6", END_64.size - 12, (3 << 8) | VERSION_64, VERSION_64, 0, 0, count, count, size, place
        )
        wide += LOCATOR_64.pack(b"PK\6\7", 0, place + size, 1)
    few = min(count, LIMIT_COUNT)
    return wide + END.pack(b"PK\5\6", 0, 0, few, few, size, min(place, LIMIT), 0)


def read_members(file: BinaryIO, data: memoryview) -> dict[str, Member]:
    """The files of an archive by name, in the order of its central directory; `data` is the content of `file`.

    Raises ValueError, with a message of one line, if the archive is damaged or has something that `mtkit pack` never
    writes, such as a compressed file.
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
    """The member that the directory entry `info` describes; raises ValueError as `read_members` does."""
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
    """The offset of the first byte that `lay_out` would not have written; `None` if there is no such byte.

    `data` is the content of an archive with the files `members`. The contents of these files are not compared.
    """
    layout, place = lay_out(members), 0
    for head, size in zip([*layout.heads, layout.tail], [*(member.size for member in members), 0], strict=True):
        found = bytes(data[place : place + len(head)])
        if found != head:
            return place + next((i for i, (a, b) in enumerate(zip(found, head, strict=False)) if a != b), len(found))
        place += len(head) + size
    return None if place == len(data) else place


# The storage of a bundle: a folder, or one archive.

ZIP_BEGINS = b"PK\3\4"  # the first bytes of an archive


class Storage(Protocol):
    """Access to the files of a bundle, by names such as tokenizer/tokenizer.json."""

    @property
    def path(self) -> Path:
        """The path of the folder or of the archive."""

    def place(self, name: str) -> Path:
        """The path of a file or folder in the bundle, for messages only: nothing need exist at this path."""

    def names(self) -> list[str]:
        """The names of all files, sorted."""

    @property
    def num_bytes(self) -> int:
        """The total size in bytes."""

    def view(self, name: str) -> memoryview:
        """The content of the file called `name`, not copied; raises FileNotFoundError if there is no such file."""

    def strange(self, members: Sequence[Member]) -> str | None:
        """A message if an archive differs from what `mtkit pack` would write; else `None`.

        `members` are the files in the archive. The contents of these files are not compared, only the bytes before,
        between and after the contents.
        """


@dataclass(frozen=True)
class Folder:
    """A bundle in a folder."""

    path: Path

    def place(self, name: str) -> Path:
        """The path of the file called `name` in the folder."""
        return self.path / name

    def names(self) -> list[str]:
        """The names of all files in the folder and its subfolders, sorted."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if not path.is_dir())

    @property
    def num_bytes(self) -> int:
        """The total size of all files in bytes."""
        return sum((self.path / name).stat().st_size for name in self.names())

    def view(self, name: str) -> memoryview:
        """The content of the file called `name`, memory-mapped; raises FileNotFoundError if there is no such file."""
        with (self.path / name).open("rb") as file:
            return _mapped(file)

    def strange(self, members: Sequence[Member]) -> str | None:
        """Always `None`: only an archive can differ from what `mtkit pack` writes, and this is no archive."""
        return None


@dataclass(frozen=True)
class Packed:
    """A bundle in a single archive; the whole archive is mapped into memory."""

    path: Path
    data: memoryview  # the content of the archive
    members: Mapping[str, Member]  # by name

    @staticmethod
    def open(path: Path) -> "Packed":
        """Opens the archive at `path`.

        Raises CheckpointError if the archive is damaged or has something that no bundle has.
        """
        with path.open("rb") as file:
            data = _mapped(file)
            try:
                return Packed(path, data, read_members(file, data))
            except ValueError as error:
                raise CheckpointError(f"{path}: damaged: {error}; copy or pack the model again") from None

    def place(self, name: str) -> Path:
        """The path that the file called `name` would have if the archive were a folder."""
        return self.path / name

    def names(self) -> list[str]:
        """The names of all files in the archive, sorted."""
        return sorted(self.members)

    @property
    def num_bytes(self) -> int:
        """The size of the archive in bytes."""
        return len(self.data)

    def view(self, name: str) -> memoryview:
        """The content of the file called `name`, not copied; raises FileNotFoundError if there is no such file."""
        if name not in self.members:
            raise FileNotFoundError(name)
        member = self.members[name]
        return self.data[member.begin : member.begin + member.size]

    def strange(self, members: Sequence[Member]) -> str | None:
        """A message if the archive differs from what `mtkit pack` would write; else `None`.

        `members` are the files in the archive. The contents of these files are not compared, only the bytes before,
        between and after the contents. The message gives the offset of the first byte that differs.
        """
        place = first_difference(self.data, members)
        return None if place is None else f"byte {place:,}, between its files, is not what mtkit pack writes"


def open_storage(path: Path) -> Storage:
    """The storage at `path`: Folder for a folder, else Packed; raises CheckpointError if an archive is damaged."""
    return Folder(path) if path.is_dir() else Packed.open(path)


def is_packed(path: Path) -> bool:
    """Whether `path` is a file that begins with the signature of a zip archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ZIP_BEGINS)) == ZIP_BEGINS


def _mapped(file: BinaryIO) -> memoryview:
    """The content of a file, mapped into memory; writing to the memory does not change the file."""
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except ValueError:  # an empty file cannot be mapped
        return memoryview(b"")


# Checksums.

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Sums:
    """Size and checksums of one file."""

    size: int  # in bytes
    sha256: str  # hexadecimal
    crc: int  # CRC-32

    @property
    def told(self) -> dict[str, Any]:
        """The size and the SHA-256, in the form in which bundle.json lists them."""
        return {"bytes": self.size, "sha256": self.sha256}


def sums_of(content: memoryview) -> Sums:
    """The size and checksums of the content of a file."""
    digest, crc = hashlib.sha256(), 0
    for begin in range(0, len(content), CHUNK_BYTES):
        chunk = content[begin : begin + CHUNK_BYTES]
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
    return Sums(len(content), digest.hexdigest(), crc)


def all_sums(storage: Storage) -> dict[str, Sums]:
    """The sizes and checksums of all files by name; files that cannot be read are left out."""
    found = {}
    for name in storage.names():
        try:
            found[name] = sums_of(storage.view(name))
        except OSError:
            continue  # the code that needs the file reports that it is missing
    return found


# Reading the tensors of a safetensors file without copying them.

LENGTH_BYTES = 8  # size of the number at the start that gives the length of the header
LONGEST_HEADER = 1 << 24  # in bytes; the header for a thousand tensors has about a hundred thousand
MOST_DIMENSIONS = 8

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Entry:
    """The entry of one tensor in the header of a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # offset of the first byte, from the end of the header
    end: int  # offset of the byte after the last one


def numbers_begin(data: memoryview) -> int:
    """The offset at which the first tensor begins in `data`, the content of a safetensors file.

    The header ends at this offset. The file begins with the length of the header. Raises ValueError if the header would
    be longer than the rest of the file or than LONGEST_HEADER.
    """
    if len(data) < LENGTH_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    most = min(len(data) - LENGTH_BYTES, LONGEST_HEADER)
    if length > most:
        raise ValueError(f"its header would have {length:,} bytes, and can have {most:,}")
    return LENGTH_BYTES + int(length)


def read_tensors(data: memoryview, where: str) -> dict[str, Tensor]:
    """Returns {name: tensor} from `data`, the content of a safetensors file.

    The tensors share the memory of `data`, which must be writable. Raises CheckpointError if `data` is damaged; for
    example, if a byte after the header belongs to no tensor, or to more than one. The message begins with `where`.
    """
    try:
        begin = numbers_begin(data)
        entries = _entries(bytes(data[LENGTH_BYTES:begin]))
        numbers = data[begin:]
        place = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if entry.begin != place:
                raise ValueError(f"tensor {name} begins at byte {entry.begin:,}, not at {place:,}")
            place = entry.end
        if place != len(numbers):
            raise ValueError(f"its tensors have {place:,} bytes, and {len(numbers):,} are there")
        return {name: _tensor(name, entry, numbers) for name, entry in entries.items()}
    except ValueError as error:
        raise CheckpointError(f"{where}: damaged: {error}; copy it again") from None
    except RecursionError:
        raise CheckpointError(f"{where}: damaged: its header is nested too deeply; copy it again") from None


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """A message about the first tensor that has infinite values or NaN; `None` if all values are finite."""
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            count = weight.numel() - int(weight.isfinite().sum())
            return f"weight {name} holds {count:,} values of {weight.numel():,} that are infinite or no number"
    return None


def _entries(header: bytes) -> dict[str, _Entry]:
    """Parses `header`, the header of a safetensors file, and returns its entries by tensor name.

    Raises ValueError if the header is damaged.
    """
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        raise ValueError("its header is not UTF-8") from None
    except json.JSONDecodeError:
        raise ValueError("its header is not JSON") from None
    if not isinstance(content, dict):
        raise ValueError("its header is not a table of tensors")
    content.pop("__metadata__", None)  # free text, not used here
    return {name: _tensor_entry(name, value) for name, value in content.items()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _tensor_entry(name: str, value: Any) -> _Entry:
    """The entry of the tensor called `name`, parsed from `value`; raises ValueError if `value` is not valid."""
    told = f"tensor {name[:100]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{told} is not told by dtype, shape and data_offsets")
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{told} is of no type that is known: {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"{told} has no shape that a tensor can have")
    if not _are_counts(span) or len(span) != 2 or span[1] - span[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{told} has not the bytes that its shape wants")
    return _Entry(DTYPES[dtype], tuple(shape), *span)


def _are_counts(values: Any) -> bool:
    """Whether `values` is a list of integers, none of them negative."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _tensor(name: str, entry: _Entry, numbers: memoryview) -> Tensor:
    """The tensor that `entry` describes, as a view into `numbers`, which are the bytes after the header.

    Raises ValueError if the tensor's address in memory is not a multiple of the size of its elements.
    """
    tensor = torch.frombuffer(numbers, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.begin)
    if tensor.data_ptr() % entry.dtype.itemsize:
        raise ValueError(f"tensor {name} lies where the processor cannot read its numbers")
    return tensor.view(entry.shape)
