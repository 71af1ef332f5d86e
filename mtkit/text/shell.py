"""Commands of the shell that messages advise, which work when they are copied."""

import shlex
from collections.abc import Sequence
from pathlib import Path

# What writes the text of a packed file to standard output, by the ending of its name.
UNPACKING = {".gz": "gzip -cd", ".bz2": "bzip2 -cd", ".xz": "xz -cd", ".zst": "zstd -cd", ".zip": "unzip -p"}


def reading(path: Path, column: int | None = None) -> str:
    """The command that writes a text, or a column of it, to standard output; "" where a filter can read the file."""
    file = shlex.quote(str(path))
    unpacking = UNPACKING.get(path.suffix.lower())
    unpacked = f"{unpacking} {file}" if unpacking else ""
    if column is None:
        return unpacked
    return f"{unpacked} | cut -f {column}" if unpacked else f"cut -f {column} {file}"


def undoing(path: Path, column: int | None, filters: Sequence[str], language: str) -> str:
    """The command that sends a text, or a column of it, through filters and writes a new file beside it."""
    plain = unpacked(path)
    name = f"{plain.stem}.plain{plain.suffix}" if column is None else f"{plain.stem}.plain.{language}"
    first = reading(path, column)
    piped = " | ".join([first, *filters] if first else [f"{filters[0]} < {shlex.quote(str(path))}", *filters[1:]])
    return f"{piped} > {shlex.quote(str(plain.with_name(name)))}"


def unpacked(path: Path) -> Path:
    """What a packed file is called once it is unpacked."""
    return path.with_suffix("") if path.suffix.lower() in UNPACKING else path
