"""The model bundle: weights, settings, tokenizer and description, in a folder or in one packed file.

Its files are memory-mapped and have checksums.
"""

import hashlib
import json
import math
import mmap
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtkit.config.load import config_from_text
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, say
from mtkit.files import replaced_directory, standing, write_file
from mtkit.models.registry import require_sizes_of

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

    A member's `align_at`, if it is not `None`, selects one byte of the file's content. The header before the file is
    then padded, so that this byte's offset in the archive is a multiple of `alignment`.
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
    """A zip extra field that pads the header of a file, so that a later byte gets an aligned offset.

    `place` is the offset that the byte would have in the archive without the field. With the field, the byte's offset
    is a multiple of `alignment`.
    """
    least = 6  # id, length and alignment
    zeros = -(place + least) % alignment
    return struct.pack("<3H", PADDING, 2 + zeros, alignment) + bytes(zeros)


def _entry(member: Member, name: bytes, common: tuple[int, ...], place: int) -> bytes:
    """The entry for `member` in the central directory of an archive; `place` is the offset of the member's header.

    `name` is the name of the member as bytes. `common` has the values of the fields that occur both in the header and
    in the entry.
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
    """The member that `info`, an entry of the central directory, describes; `data` is the content of the archive.

    Raises ValueError if the member has something that `mtkit pack` never writes, such as compression, or if `data` has
    no header for the member at the offset that `info` gives.
    """
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
    """The offset of the first byte in which an archive differs from the layout that `lay_out` gives.

    `data` is the content of an archive with the files `members`. The contents of these files are not compared. Returns
    `None` if the archive does not differ.
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
        """The size in bytes of the archive, or of all files in the folder together."""

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
WHOLE_DTYPES = {"I32": torch.int32}  # the integer dtype of a shortlist


@dataclass(frozen=True)
class _Entry:
    """The entry of one tensor in the header of a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # offset of the first byte, from the end of the header
    end: int  # offset of the byte after the last one


def numbers_begin(data: memoryview) -> int:
    """The offset at which the first tensor begins in `data`, the content of a safetensors file.

    The file begins with the length of its header, and the header ends at this offset. Raises ValueError if `data` is
    too short for its header, or if the header would have more than LONGEST_HEADER bytes.
    """
    if len(data) < LENGTH_BYTES:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    most = min(len(data) - LENGTH_BYTES, LONGEST_HEADER)
    if length > most:
        raise ValueError(f"its header would have {length:,} bytes, and can have {most:,}")
    return LENGTH_BYTES + int(length)


def read_tensors(data: memoryview, where: str, dtypes: Mapping[str, torch.dtype] = DTYPES) -> dict[str, Tensor]:
    """Returns {name: tensor} from `data`, the content of a safetensors file.

    The tensors share the memory of `data`, which must be writable. `dtypes` maps the name of each allowed dtype, such
    as F32, to the dtype of torch. Raises CheckpointError if a tensor has another dtype or `data` is damaged; for
    example, if a byte after the header belongs to no tensor, or to more than one. The message begins with `where`.
    """
    try:
        begin = numbers_begin(data)
        entries = _entries(bytes(data[LENGTH_BYTES:begin]), dtypes)
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


def _entries(header: bytes, dtypes: Mapping[str, torch.dtype]) -> dict[str, _Entry]:
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
    return {name: _tensor_entry(name, value, dtypes) for name, value in content.items()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _tensor_entry(name: str, value: Any, dtypes: Mapping[str, torch.dtype]) -> _Entry:
    """The entry of the tensor called `name`, parsed from `value`, which is its entry in the JSON of the header.

    Raises ValueError if `value` is not valid or has a dtype that is not in `dtypes`.
    """
    told = f"tensor {name[:100]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{told} is not told by dtype, shape and data_offsets")
    dtype, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"{told} is of no type that is known: {', '.join(dtypes)}")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or 0 in shape:
        raise ValueError(f"{told} has no shape that a tensor can have")
    if not _are_counts(span) or len(span) != 2 or span[1] - span[0] != math.prod(shape) * dtypes[dtype].itemsize:
        raise ValueError(f"{told} has not the bytes that its shape wants")
    return _Entry(dtypes[dtype], tuple(shape), *span)


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


# The description of a bundle: the file bundle.json.

FORMAT = 2  # format 1 had no checksum but the tokenizer's, no length statistics and no canaries

MOST_PIECES = 1 << 31


@dataclass(frozen=True)
class Table:
    """A structure that `_fits` can check: a dict with any keys, whose values all fit `of`, for example `int`."""

    of: Any


# The keys that every description must have.
NEEDED = {"weights_bytes", "tokenizer_sha256", "source_vocab_size", "target_vocab_size"}

LENGTHS = {"mean": float, "longest": int, "quantiles": Table(int)}

# Maps each known key of a description to the kind of its value; see _fits. Other keys may have any value. Numbers must
# be finite and not negative.
KINDS = {
    "mtkit": str,
    "name": str,
    "languages": {"source": str, "target": str},
    "num_parameters": int,
    "weights_bytes": int,
    "tokenizer_sha256": str,
    "source_vocab_size": int,
    "target_vocab_size": int,
    "training": {
        "steps": int,
        "minutes": float,
        "pairs_seen": int,
        "averaged_steps": [int],
        "changes": [{"step": int, "pairs": int, "settings": Table(list)}],
        "choice": str,
        "data": {
            "num_pairs": int,
            "source_tokens": int,
            "target_tokens": int,
            "dropped": Table(int),
            "unknown": Table(float),
            "files": [{"name": str, "fingerprint": str}],
            "corpora": [int],
            "lengths": {"pairs": int, "measured": int, "source": LENGTHS, "target": LENGTHS},
            "length_limit": {"ratio": float, "extra": int},
        },
    },
    "shortlist": {"sentences": int, "size": int, "bleu": float, "bleu_without": float, "tokens": float},
    "files": Table({"bytes": int, "sha256": str}),
}


def sealed(content: dict[str, Any]) -> bytes:
    """The bytes of bundle.json: `content` as JSON, with the SHA-256 of that JSON added under the key sha256."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def read_description(data: bytes, path: Path) -> dict[str, Any]:
    """Parses `data`, the bytes of bundle.json, and returns its content without the checksum.

    Raises CheckpointError if `data` is damaged, or if the bundle has a newer format than this version of mtkit can
    read. From format 2 on, `data` counts as damaged unless it is byte for byte what mtkit wrote. `path` is the path of
    bundle.json, for messages.
    """
    try:
        content = json.loads(data)
        found = content["format"]
        is_whole = type(found) is int and found > 0
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise _damaged(path)
    if found > FORMAT:
        raise CheckpointError(
            f"{path.parent}: a bundle of format {found}; this version of mtkit reads format {FORMAT} and older: "
            "install a newer one"
        )
    is_sealed = content.pop("sha256", None) is not None
    if is_sealed != (found > 1) or (is_sealed and sealed(content) != data):
        raise _damaged(path)
    if not content.keys() >= NEEDED or not _fits(content, KINDS) or not _are_sizes(content):
        raise _damaged(path)
    return dict(content)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: damaged; copy the model again")


def _are_sizes(content: dict[str, Any]) -> bool:
    """Whether both vocabulary sizes in `content`, the content of bundle.json, are positive and below MOST_PIECES."""
    return all(0 < content[f"{side}_vocab_size"] < MOST_PIECES for side in ("source", "target"))


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` has the structure that `kind` describes.

    `kind` is one of these:

    - a type (numbers must be finite and not negative, and an integer also counts as a float);
    - a list with one element, which is the kind of every item;
    - a dict that maps known keys to the kinds of their values; keys may be missing;
    - a Table.
    """
    if isinstance(kind, Table):
        return isinstance(value, dict) and all(_fits(each, kind.of) for each in value.values())
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value[key], kind[key]) for key in kind.keys() & value.keys())
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(each, kind[0]) for each in value)
    if kind in (str, list):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return math.isfinite(value) and value >= 0


# Canaries: sentences with their translations, to check that the model translates the same on another machine.


@dataclass(frozen=True)
class Canary:
    """A source line and the model's translation of it by greedy search, computed in fp32 on a CPU."""

    source: str
    source_tokens: list[int]
    target_tokens: list[int]  # without the end mark
    log_prob: float  # of target_tokens followed by the end mark
    text: str  # target_tokens decoded


def canaries_text(canaries: Sequence[Canary]) -> bytes:
    """The content of the file canaries.json, as bytes: source lines and their translations, given as `canaries`."""
    return (json.dumps([asdict(canary) for canary in canaries], indent=1) + "\n").encode()


def read_canaries(data: bytes, where: str, source_vocab_size: int, target_vocab_size: int) -> list[Canary]:
    """Parses `data`, the content of canaries.json: source lines with the model's translations of them.

    Raises CheckpointError if `data` is damaged, or if it has ids outside the source or target vocabulary. The message
    begins with `where`.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    names = {field.name for field in fields(Canary)}
    if not isinstance(content, list) or not all(isinstance(each, dict) and each.keys() == names for each in content):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    canaries = [Canary(**each) for each in content]
    if not all(
        isinstance(canary.source, str)
        and isinstance(canary.text, str)
        and isinstance(canary.log_prob, int | float)
        and math.isfinite(canary.log_prob)
        and _are_ids(canary.source_tokens, source_vocab_size)
        and _are_ids(canary.target_tokens, target_vocab_size)
        for canary in canaries
    ):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    return canaries


def _are_ids(tokens: Any, vocab_size: int) -> bool:
    """Whether `tokens` is a list of ids from 0 to `vocab_size - 1`."""
    return isinstance(tokens, list) and all(type(token) is int and 0 <= token < vocab_size for token in tokens)


# The files of a bundle, and the open bundle.

WEIGHTS, SHORTLIST, CONFIG, DESCRIPTION, CANARIES, SCORES, CARD, TOKENIZER = (
    "weights.safetensors",
    "shortlist.safetensors",  # optional
    "config.yaml",
    "bundle.json",
    "canaries.json",
    "scores.json",
    "README.md",
    "tokenizer",
)

# Two keys of bundle.json. The first lists the target ids that were added to the vocabulary and have not been trained
# since; these ids are never generated. The second lists the tags that were added and have not been trained since.
UNTRAINED, UNTRAINED_TAGS = "untrained", "untrained_tags"

# Files and folders that tell a run directory from a bundle, which has none of them. Training creates some of them as
# soon as it starts.
RUN_SIGNS = (".lock", "checkpoints", "run.json", "tokenizer/provenance.json")

SCORE = {"test_set", "metric", "score", "signature"}  # the keys of each score in scores.json


@dataclass(frozen=True)
class Bundle:
    """An open bundle; the method `weights` reads its weights."""

    storage: Storage
    config: Config
    description: dict[str, Any]  # content of bundle.json: format, mtkit version, vocabulary sizes, training, checksums

    @property
    def path(self) -> Path:
        """The path of the bundle, which is a folder or a packed file."""
        return self.storage.path

    @property
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer's folder, for messages only: a packed file has no such folder."""
        return self.storage.place(TOKENIZER)

    def read(self, name: str) -> bytes:
        """The content of the bundle's file called `name`, for example tokenizer/tokenizer.json.

        Raises CheckpointError if the file is missing or cannot be read.
        """
        return _read(self.storage, name)

    def config_with(self, overrides: Sequence[str]) -> Config:
        """The settings in the bundle's config.yaml, changed by `overrides`, for example decoding.beam_size=1."""
        return _config(self.storage, overrides) if overrides else self.config

    def with_length_limit(self, config: Config) -> Config:
        """Returns `config` with numbers in place of "auto" in decoding.max_length_ratio and decoding.max_length_extra.

        The numbers come from the lengths of the model's training pairs. If an older bundle does not have these numbers,
        the ratio becomes LENGTH_RATIO and the extra becomes EXTRA_TOKENS.
        """
        limit = self.description.get("training", {}).get("data", {}).get("length_limit", {})
        decoding = config.decoding
        if limit.keys() >= {"ratio", "extra"}:
            decoding = decoding.with_length_limit(min(limit["ratio"], 100.0), min(limit["extra"], 10_000))
        return config.model_copy(update={"decoding": decoding.with_length_limit()})

    def tokenizer_files(self) -> dict[str, bytes]:
        """The contents of the tokenizer's files, by file name."""
        return tokenizer_files(self.storage)

    def require_own_tokenizer(self) -> None:
        """Raises CheckpointError if the tokenizer is not the one that the model was trained with.

        A tokenizer with other ids would cause no error, only bad translations.
        """
        if _checksum(self.tokenizer_files()) != self.description["tokenizer_sha256"]:
            raise CheckpointError(
                f"{self.tokenizer_path}: not the tokenizer that this model was trained with; copy the model again"
            )

    def weights(self) -> dict[str, Tensor]:
        """The weights by parameter name, memory-mapped rather than copied.

        Raises CheckpointError if the file of weights is missing or damaged. Also raises CheckpointError if the settings
        describe a model with more layers or larger matrices than the weights have.
        """
        path = self.path / WEIGHTS
        try:
            content = self.storage.view(WEIGHTS)
        except OSError:
            raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None
        if len(content) != self.description["weights_bytes"]:
            raise CheckpointError(
                f"{path}: {len(content):,} bytes where {self.description['weights_bytes']:,} were written; "
                "the file is cut off or another model's, copy it again"
            )
        weights = read_tensors(content, str(path))
        require_sizes_of(self.config.model, weights, str(self.path))
        return weights

    @property
    def untrained_tags(self) -> tuple[str, ...]:
        """The tags, such as <2de>, that were added to the vocabulary and have not been trained since."""
        tags = self.description.get(UNTRAINED_TAGS, [])
        return tuple(map(str, tags)) if isinstance(tags, list) else ()

    @property
    def untrained(self) -> list[int]:
        """The ids that were added to the target vocabulary and have not been trained since.

        Raises CheckpointError if bundle.json has no valid list of ids under the key `untrained`.
        """
        ids = self.description.get(UNTRAINED, [])
        size = self.description["target_vocab_size"]
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < size for id_ in ids):
            raise CheckpointError(f"{self.path / DESCRIPTION}: damaged; copy the model again")
        return ids

    def shortlist(self) -> dict[str, Tensor] | None:
        """The tensors of shortlist.safetensors, by name; `None` if there is no such file.

        `of_source` (S, K) has at most K target ids for each of the S ids of the source vocabulary, padded with -1;
        `frequent` (F,) has the ids of F frequent target tokens. Both are int32. Raises CheckpointError if the file is
        damaged or has ids outside the vocabulary.
        """
        try:
            content = self.storage.view(SHORTLIST)
        except OSError:
            return None
        path = self.path / SHORTLIST
        tensors = read_tensors(content, str(path), WHOLE_DTYPES)
        rows, size = self.description["source_vocab_size"], self.description["target_vocab_size"]
        if tensors.keys() != {"of_source", "frequent"}:
            raise CheckpointError(f"{path}: damaged: wants the tensors of_source and frequent; copy it again")
        of_source, frequent = tensors["of_source"], tensors["frequent"]
        if of_source.dim() != 2 or len(of_source) != rows or frequent.dim() != 1:
            shapes = f"{tuple(of_source.shape)} and {tuple(frequent.shape)}"
            raise CheckpointError(f"{path}: its tensors are {shapes}, and want ({rows}, K) and (F,); copy it again")
        for name, tensor, least in (("of_source", of_source, -1), ("frequent", frequent, 0)):
            low, high = int(tensor.min()), int(tensor.max())
            if low < least or high >= size:
                raise CheckpointError(
                    f"{path}: {name} has the ids {low:,} to {high:,}; the target vocabulary has {size:,}; copy it again"
                )
        return tensors

    def canaries(self) -> list[Canary]:
        """The canaries in canaries.json; a bundle of format 1 has none.

        Raises CheckpointError if canaries.json is damaged or missing.
        """
        if self.description["format"] == 1:
            return []
        sizes = (self.description["source_vocab_size"], self.description["target_vocab_size"])
        return read_canaries(self.read(CANARIES), str(self.path / CANARIES), *sizes)


def bundle_at(path: Path) -> Path | None:
    """The path of the bundle at `path`: `path` itself or, if `path` is a run directory, the folder `model` in it.

    Returns `None` if there is no bundle. Any file that begins like a zip archive counts as a bundle.
    """
    if is_packed(path):
        return path
    candidates = map(standing, (path, path / "model"))
    return next((candidate for candidate in candidates if (candidate / DESCRIPTION).is_file()), None)


def no_model(path: Path) -> CheckpointError:
    """The error to raise for a `path` that is neither a bundle nor a checkpoint, with advice on what to do."""
    wanted = "MODEL is a run directory, a checkpoint or a model bundle"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return CheckpointError(f"{path}: is a file of settings; {wanted}, such as runs/NAME with the name in the file")
    if not path.is_dir():
        found = "is a file that mtkit pack did not write" if path.exists() else "no such directory"
        run = Path("runs") / path
        meant = f"; did you mean {run}?" if not path.exists() and _holds_model(run) else f"; {wanted}"
        return CheckpointError(f"{path}: {found}{meant}")
    if is_run(path):
        return CheckpointError(f"{path}: training has not found a first model yet; go on with mtkit train")
    inside = [below for below in sorted(path.iterdir()) if _holds_model(below)]
    more = f"; {inside[0]} is one" if inside else ""
    return CheckpointError(f"{path}: not a model: it holds no {DESCRIPTION} and no model/{DESCRIPTION}{more}")


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, even one whose training has only just started."""
    return any((path / name).exists() for name in RUN_SIGNS)


def _holds_model(path: Path) -> bool:
    """Whether `path` is a folder with a bundle, or a run directory that has checkpoints or a finished model."""
    return path.is_dir() and (bundle_at(path) is not None or (path / "checkpoints").is_dir())


def open_bundle(path: Path) -> Bundle:
    """Opens the bundle at `path`, which is a bundle or a run directory with a finished model.

    Raises CheckpointError if there is no bundle or its files are damaged, and ConfigError if its settings are not
    valid.
    """
    if (found := bundle_at(path)) is None:
        raise no_model(path)
    return bundle_of(open_storage(found))


def bundle_of(storage: Storage) -> Bundle:
    """Opens the bundle in `storage`.

    Raises CheckpointError if its description or settings are damaged, and ConfigError if its settings are not valid.
    """
    description = describe(storage)
    return Bundle(storage, _config(storage, ()), description)


def describe(storage: Storage) -> dict[str, Any]:
    """The content of bundle.json, without its checksum; raises CheckpointError if the file is damaged or missing."""
    path = storage.path / DESCRIPTION
    try:
        content = bytes(storage.view(DESCRIPTION))
    except OSError:
        raise CheckpointError(f"{path}: damaged or missing; copy the model again") from None
    return read_description(content, path)


def tokenizer_files(storage: Storage) -> dict[str, bytes]:
    """The contents of the files in the bundle's folder tokenizer, by file name."""
    names = (name for name in storage.names() if name.startswith(f"{TOKENIZER}/"))
    return {name.removeprefix(f"{TOKENIZER}/"): _read(storage, name) for name in names}


def _read(storage: Storage, name: str) -> bytes:
    """The content of the file called `name`; raises CheckpointError if the file is missing or cannot be read."""
    try:
        return bytes(storage.view(name))
    except OSError:
        raise CheckpointError(f"{storage.path / name}: damaged or missing; copy the model again") from None


def _config(storage: Storage, overrides: Sequence[str]) -> Config:
    """The settings in config.yaml, changed by `overrides`, for example decoding.beam_size=1.

    Raises CheckpointError if config.yaml is damaged or missing, and ConfigError if the settings are not valid.
    """
    path = storage.path / CONFIG
    try:
        text = _read(storage, CONFIG).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: damaged or missing; copy the model again") from None
    return config_from_text(text, str(path), overrides)


def save_bundle(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    save_tokenizer: Callable[[Path], None],
    about: dict[str, Any],
    canaries: Sequence[Canary] = (),
    shortlist: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a bundle to the folder `path`, replacing any older bundle there.

    `save_tokenizer` is called with the path of a folder and writes the tokenizer's files there. The keys and values in
    `about` are added to bundle.json. `canaries` are source lines with the model's translations, for the file
    canaries.json. `shortlist` has the tensors of the optional file shortlist.safetensors. Warns on stderr if weights
    are not finite. Raises CheckpointError if the bundle cannot be written.
    """
    try:
        with replaced_directory(path) as new:
            save_file(weights, new / WEIGHTS)
            save_tokenizer(new / TOKENIZER)
            (new / CONFIG).write_bytes(carried_config(config))
            shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes its file readable only by the owner
            (new / CANARIES).write_bytes(canaries_text(canaries))
            if shortlist is not None:
                _save_shortlist(new, shortlist)
            storage = Folder(new)
            files = {name: sums.told for name, sums in all_sums(storage).items()}
            (new / DESCRIPTION).write_bytes(description_of(config, tokenizer_files(storage), files, about))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; make room and start again") from None
    if fault := not_finite(weights):
        say(f"mtkit: warning: {path}: {fault}; it cannot translate")


def _save_shortlist(folder: Path, shortlist: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in shortlist.items()}, folder / SHORTLIST)
    shutil.copymode(folder / CONFIG, folder / SHORTLIST)


def add_shortlist(bundle: Bundle, config: Config, shortlist: Mapping[str, Tensor], told: dict[str, Any]) -> None:
    """Adds a shortlist to a bundle, which must be a folder, and replaces the bundle's settings by `config`.

    `shortlist` has the tensors of the file shortlist.safetensors. `told` becomes the value of the key shortlist in
    bundle.json. The folder is replaced as a whole. Raises CheckpointError if the folder cannot be written.
    """
    try:
        with replaced_directory(bundle.path) as new:
            shutil.copytree(bundle.path, new, dirs_exist_ok=True)
            (new / CONFIG).write_bytes(carried_config(config))
            _save_shortlist(new, shortlist)
            description = {**bundle.description, "shortlist": told}
            if "files" in description:
                changed = {name: sums_of(Folder(new).view(name)).told for name in (CONFIG, SHORTLIST)}
                description["files"] = dict(sorted({**description["files"], **changed}.items()))
            (new / DESCRIPTION).write_bytes(sealed(description))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{bundle.path}: cannot be written: {error}; make room and start again") from None


def carried_config(config: Config) -> bytes:
    """The content of a bundle's config.yaml.

    The file has the settings in `config`, except that run_dir, training.start_from and device have their default
    values.
    """
    training = config.training.model_copy(update={"start_from": None})
    return config_text(config.model_copy(update={"device": "auto", "run_dir": None, "training": training})).encode()


def description_of(
    config: Config, tokenizer: Mapping[str, bytes], files: Mapping[str, dict[str, Any]], about: Mapping[str, Any]
) -> bytes:
    """The content of a new bundle.json.

    `tokenizer` maps the names of the tokenizer's files to their contents. `files` maps the name of every file except
    bundle.json to its size and checksum, as in `Sums.told`. The keys and values in `about` are added to bundle.json.
    """
    return sealed(
        {
            "format": FORMAT,
            "name": config.name,
            "languages": config.languages.model_dump(mode="json"),
            "weights_bytes": files[WEIGHTS]["bytes"],
            "tokenizer_sha256": _checksum(tokenizer),
            **about,
            "files": files,
        }
    )


def save_scores(bundle: Bundle, scores: list[dict[str, Any]], card: str) -> None:
    """Writes `scores` to scores.json, `card` to README.md, and the checksums of these two files to bundle.json.

    The bundle must be a folder. The checksums are written last: if the process is killed before that, bundle.json keeps
    the checksums of the earlier scores.json and README.md until scores are saved again.
    """
    new = {SCORES: (json.dumps(scores, indent=1) + "\n").encode(), CARD: card.encode()}
    for name, content in new.items():
        write_file(bundle.path / name, content)
    if "files" in bundle.description:
        sums = {name: sums_of(memoryview(content)).told for name, content in new.items()}
        files = dict(sorted({**bundle.description["files"], **sums}.items()))
        write_file(bundle.path / DESCRIPTION, sealed({**bundle.description, "files": files}))


def read_scores(bundle: Bundle) -> list[dict[str, Any]]:
    """The scores in scores.json; an empty list if the file is missing, damaged or cannot be read.

    No error is raised, since scores can be measured again.
    """
    try:
        scores = json.loads(bytes(bundle.storage.view(SCORES)))
    except (OSError, ValueError, RecursionError):
        return []
    return scores if isinstance(scores, list) and all(map(_is_score, scores)) else []


def _is_score(score: Any) -> bool:
    """Whether `score` is a dict with exactly the keys in `SCORE`, and values of the right types."""
    return (
        isinstance(score, dict)
        and score.keys() == SCORE
        and all(isinstance(score[key], str) for key in SCORE - {"score"})
        and isinstance(score["score"], int | float)
    )


def _checksum(files: Mapping[str, bytes]) -> str:
    """A single SHA-256, in hexadecimal digits, over the names and contents of all `files`, sorted by name."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
