"""CSV, which mtkit does not read: how to know it, and how to make columns with tabs between them of it."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

SEPARATORS = (",", ";", "|")

# Modules of Python whose open() unpacks a file, by the ending of its name.
UNPACKERS = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}

FIRST_LINES = 100  # lines that tell whether a file is a table
LEAST_ROWS = 10  # with as many fields; fewer lines of prose may have as many commas by chance

# Tabs and line ends within a field, which separate columns and lines in what is written, become spaces.
PROGRAM = (
    "import csv, {module}; [print(*(field.translate({{9: 32, 10: 32, 13: 32}}) for field in row), sep=chr(9)) "
    "for row in csv.reader({module}.open({path}, {mode}, encoding={encoding}, newline={newline}){separator})]"
)


def conversion(path: Path, lines: Sequence[str]) -> str | None:
    """Advice for the first lines of a text that are no columns, if they are CSV or its file is called so; else None."""
    separator = separator_of(lines) or _separator_of_line(lines[0])
    is_called_so = is_called_csv(path)
    if separator is None and not is_called_so:
        return None
    if not is_called_so and separator_of(lines) is None and not (lines[0].startswith('"') and lines[0].endswith('"')):
        return None  # a sentence with a comma is no sign of it
    name = path.name[: -len(path.suffix)] if path.suffix in UNPACKERS else path.name
    table = path.with_name(f"{name.removesuffix('.csv')}.tsv")
    command = f"python3 -c {shlex.quote(_program(path, separator or ','))} > {shlex.quote(str(table))}"
    return f"this is CSV, which is not read. Make columns with tabs of it, and name {table} instead: {command}"


def is_called_csv(path: Path) -> bool:
    """Whether a file's name ends in .csv, packed or not."""
    return ".csv" in (path.suffix.lower(), Path(path.stem).suffix.lower())


def separator_of(lines: Sequence[str]) -> str | None:
    """What separates the fields of the first lines of a text, if all have as many, two or more; else None."""
    distinct = list(dict.fromkeys(lines[:FIRST_LINES]))  # a line that is repeated has as many commas each time
    for separator in SEPARATORS:
        counts = _nums_of_fields(distinct, separator)
        if len(counts) >= LEAST_ROWS and len(set(counts)) == 1 and counts[0] > 1:
            return separator
    return None


def _separator_of_line(line: str) -> str | None:
    """The same of one line alone, where it may also be prose."""
    return next((each for each in SEPARATORS if max(_nums_of_fields([line], each), default=0) > 1), None)


def _nums_of_fields(lines: Sequence[str], separator: str) -> list[int]:
    """The number of fields in each row, up to where the lines are no CSV, or end within a field."""
    rows = csv.reader([f"{line}\n" for line in lines], delimiter=separator, strict=True)
    counts: list[int] = []
    while True:
        try:
            counts.append(len(next(rows)))
        except (csv.Error, StopIteration):
            return counts


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
