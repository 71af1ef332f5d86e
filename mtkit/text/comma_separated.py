"""CSV, which mtkit does not read: how to know it, and how to make columns with tabs between them of it."""

import csv
import shlex
from pathlib import Path

SEPARATORS = (",", ";", "|")

# Modules of Python whose open() unpacks a file, by the ending of its name.
UNPACKERS = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}

# Tabs and line ends within a field, which separate columns and lines in what is written, become spaces.
PROGRAM = (
    "import csv, {module}; [print(*(field.translate({{9: 32, 10: 32, 13: 32}}) for field in row), sep=chr(9)) "
    "for row in csv.reader({module}.open({path}, {mode}, encoding={encoding}, newline={newline}){separator})]"
)


def conversion(path: Path, line: str) -> str | None:
    """Advice for a line without tabs that seems to be CSV, or whose file is called so; None if it does not."""
    separator = next((each for each in SEPARATORS if _num_fields(line, each) > 1), None)
    is_called_so = ".csv" in (path.suffix.lower(), Path(path.stem).suffix.lower())
    if separator is None and not is_called_so:
        return None
    if not is_called_so and not (line.startswith('"') and line.endswith('"')):
        return None  # a sentence with a comma is no sign of it
    name = path.name[: -len(path.suffix)] if path.suffix in UNPACKERS else path.name
    table = path.with_name(f"{name.removesuffix('.csv')}.tsv")
    command = f"python3 -c {shlex.quote(_program(path, separator or ','))} > {shlex.quote(str(table))}"
    return f"this is CSV, which is not read. Make columns with tabs of it, and name {table} instead: {command}"


def _num_fields(line: str, separator: str) -> int:
    try:
        return max(map(len, csv.reader([line], delimiter=separator, strict=True)), default=0)
    except csv.Error:
        return 0


def _program(path: Path, separator: str) -> str:
    return PROGRAM.format(
        module=UNPACKERS.get(path.suffix, "io"),
        path=_quoted(str(path)),
        mode=_quoted("rt"),
        encoding=_quoted("utf-8-sig"),
        newline=_quoted(""),
        separator="" if separator == "," else f", delimiter={_quoted(separator)}",
    )


def _quoted(text: str) -> str:
    """Python's text in double quotes, since the shell's are single ones."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
