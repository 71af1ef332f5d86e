"""A bundle packed into one file: an archive whose weights can be used where they lie."""

from collections.abc import Mapping
from pathlib import Path

from mtkit.errors import CheckpointError
from mtkit.files import replaced_file
from mtkit.formats.archive import Member, lay_out
from mtkit.formats.bundle import DESCRIPTION, WEIGHTS
from mtkit.formats.storage import Storage
from mtkit.formats.sums import Sums
from mtkit.formats.tensors import numbers_begin


def members_of(storage: Storage, sums: Mapping[str, Sums]) -> list[Member]:
    """The files in the order in which they are packed: what tells of the others first, the weights last."""
    names = sorted(sums, key=lambda name: (name == WEIGHTS, name != DESCRIPTION, name))
    return [Member(name, sums[name].size, sums[name].crc, align_at=_align_at(storage, name)) for name in names]


def _align_at(storage: Storage, name: str) -> int | None:
    if name != WEIGHTS:
        return None
    try:
        return numbers_begin(storage.view(name))
    except ValueError:  # it is told elsewhere that they are damaged
        return 0


def write_packed(storage: Storage, sums: Mapping[str, Sums], output: Path) -> None:
    """Pack the files into one, which takes the place of an older one when it is whole."""
    members = members_of(storage, sums)
    contents = [storage.view(member.name) for member in members]
    try:
        with replaced_file(output) as file:
            lay_out(members).write(file, contents)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from None
