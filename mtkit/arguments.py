"""What callers from Python give: wrong types are a TypeError that says what was found and what is wanted."""

import operator
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mtkit.errors import MtkitError

LONGEST_SHOWN = 40  # characters of a value that a message shows
MOST_DIGITS = 100  # Python itself refuses more than 4,300


def shown(value: object) -> str:
    """A value as a message tells it, with its type."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]}…'}"


def whole_number(text: str) -> int | None:
    """The number that digits write; None for any other text, and for more digits than anybody needs."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def require_list(value: object, name: str, wanted: str = "a list of lines; give it [line] for a single one") -> None:
    """Refuse what has no items, and a single text, whose items would be its letters."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: found {shown(value)}, wants {wanted}")


def checked_lines(lines: Iterable[Any], name: str) -> Iterator[str]:
    """The lines; one that is no text is a TypeError that names its place."""
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise TypeError(f"{name}: item {number:,} is {shown(line)}, wants a str")
        yield line


def checked_pairs(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The pairs; one that is not two texts is a TypeError that names its place."""
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs: item {number:,} is {shown(pair)}, wants a source and a translation, both str")
        yield pair[0], pair[1]


def require_count(value: Any, name: str) -> int:
    """The value if it is a whole number, at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: found {shown(value)}, wants a whole number, at least 1") from None
    if isinstance(value, bool):
        raise TypeError(f"{name}: found {value}, wants a whole number, at least 1")
    if count < 1:
        raise MtkitError(f"{name}: found {count}, wants a whole number, at least 1")
    return count


def require_path(value: object, name: str) -> None:
    """Refuse what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: found {shown(value)}, wants the path of a model, a str or a Path")


def require_texts(values: Iterable[Any], name: str, wanted: str) -> None:
    """Refuse a single text in the place of a list, and items that are no texts."""
    require_list(values, name, wanted)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name}: found {shown(value)} in it, wants {wanted}")
