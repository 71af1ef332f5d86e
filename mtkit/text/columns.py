"""Tables that are read as plain text, and columns that hold numbers or names instead of sentences."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mtkit.text.comma_separated import FIRST_LINES, LEAST_ROWS, conversion, is_called_csv, separator_of
from mtkit.text.shell import reading, unpacked

LARGE_SHARE = 0.5  # of lines that are no sentences
LONGEST_SHOWN = 20  # characters of a column

# Without spaces, and with a digit, since many languages write sentences without spaces.
LABEL = re.compile(r"[!-~]*[0-9][!-~]*|https?://[!-~]+")


def advice_on_table(file: Path, lines: Sequence[str], is_test_set: bool) -> str | None:
    """What to do where the first lines of a text are rows of a table, and each is read as a sentence."""
    lines = lines[:FIRST_LINES]
    num_columns = lines[0].count("\t") + 1 if lines else 0
    if len(lines) >= LEAST_ROWS and num_columns > 1 and {line.count("\t") + 1 for line in lines} == {num_columns}:
        found = f"has {num_columns} columns in each line, which is read as one sentence: {_shown(lines[-1])}"
        first, second = sentence_columns(lines) or (1, 2)
        if is_test_set:
            commands = "; ".join(
                f"{reading(file, column)} > {_column_file(file, column)}" for column in (first, second)
            )
            return f"{found}; make a file of each column that is wanted: {commands}"
        return f"{found}; for columns {first} and {second} say {{tsv: {file}, columns: [{first}, {second}]}}"
    if lines and (is_called_csv(file) or separator_of(lines)):
        return conversion(file, lines)
    return None


def advice_on_labels(column: int | None, lines: Sequence[str], rows: Sequence[str]) -> str | None:
    """What to do where most lines of a text are numbers or names; rows are those of the file, where it is a column."""
    written = [line.strip() for line in lines if line.strip()]
    labels = [line for line in written if LABEL.fullmatch(line)]
    if len(written) < LEAST_ROWS or len(labels) <= LARGE_SHARE * len(written):
        return None
    found = f'{len(labels):,} of the {len(written):,} lines looked at are numbers or names such as "{labels[0]}"'
    if column is None:
        return f"{found}; name a file of sentences"
    others = sentence_columns(rows)
    example = f", such as columns: [{others[0]}, {others[1]}]" if others else ""
    return f"{found}; choose the columns of source and target{example}; a row is {_shown(rows[-1])}"


def sentence_columns(rows: Sequence[str]) -> tuple[int, int] | None:
    """The first two columns, numbered from 1, that hold sentences in most rows; None where there are not two."""
    columns = list(zip(*(row.split("\t") for row in rows), strict=False))
    found = [
        number
        for number, texts in enumerate(columns, start=1)
        if sum(bool(LABEL.fullmatch(text.strip())) for text in texts) <= LARGE_SHARE * len(texts)
    ]
    return (found[0], found[1]) if len(found) > 1 else None


def _column_file(file: Path, column: int) -> str:
    return shlex.quote(str(file.with_name(f"{unpacked(file).stem}.column{column}")))


def _shown(row: str) -> str:
    """The columns of a row, each cut where it is long."""
    texts = [text.strip() for text in row.split("\t")]
    return " | ".join(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…" for text in texts)
