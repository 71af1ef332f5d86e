"""Errors that the user can mend, warnings, and the progress of long work: all that is told on standard error."""

import operator
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from signal import Signals
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

# What PyTorch, its libraries and the C++ library say when there is no memory left, in any case of letters.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its accelerator; PyTorch tells some of it as a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


class MtkitError(Exception):
    """Says where, what was found, what is wanted and what to do next. A line each where there are several."""


class ConfigError(MtkitError):
    """A setting is wrong."""


class DataError(MtkitError):
    """Text or binarized data is missing, damaged or does not fit."""


class CheckpointError(MtkitError):
    """A checkpoint or a model is missing, damaged, in use or does not fit."""


class StoppedError(MtkitError):
    """The user stopped the run; what was done so far is safe. code is what the program exits with."""

    def __init__(self, message: str = "", code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class SignalError(BaseException):
    """A signal asks the program to end. Like KeyboardInterrupt it is no Exception, so that no library handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = Signals(number).name
        self.code = 128 + number  # what shells show of a program that a signal ended


# What callers from Python give: wrong types are a TypeError that says what was found and what is wanted.

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


# Lines for the user, on stderr.

NUM_NAMED = 10  # lines of each kind that a warning names; the rest are counted


def on_terminal() -> bool:
    """Whether somebody watches stderr, so that a progress bar is of use."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def say(text: str) -> None:
    """Print a line on stderr, above any progress bar.

    A line that cannot be printed is dropped: the reader of a pipe may have gone, a terminal may be closed, the disk of
    a log file may be full, and none of that is a reason to end.
    """
    if sys.stderr is None:
        return
    try:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: stderr is closed
        pass


def counted(number: int, noun: str) -> str:
    """A number with what it counts, whose plural ends in s: 1 pair, 2,000 pairs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Warnings:
    """Names the first lines of each kind on stderr, and counts the rest."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> None:
        """Line number, from 1, is so."""
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= NUM_NAMED:
            say(f"mtkit: warning: line {number:,} {what}")

    def close(self) -> None:
        """Tell of the lines that were not named."""
        for what, count in self.counts.items():
            if count > NUM_NAMED:
                say(f"mtkit: warning: and so with {count - NUM_NAMED:,} more: it {what}")


# How far long work is: a bar where stderr is a terminal, else a line now and then; neither with --quiet.

EVERY_SECONDS = 10.0  # between two lines that tell how far something is

T = TypeVar("T")

_is_shown = True


def show_progress(wanted: bool) -> None:
    """Whether this process shows any progress from here on; --quiet asks for none."""
    global _is_shown
    _is_shown = wanted


def is_shown() -> bool:
    """Whether progress is to be shown at all."""
    return _is_shown


def shows_bars() -> bool:
    """Whether progress is shown as bars: somebody watches stderr."""
    return _is_shown and on_terminal()


def bar_size() -> tuple[int | None, int | None]:
    """Columns and rows for a bar on a terminal that does not tell its size; None where tqdm finds them by itself.

    Terminals without a size are those of `script` in a queue, `docker exec -t` and some CI; tqdm shows nothing there.
    """
    if not shows_bars():
        return None, None
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # ValueError: stderr has no descriptor
        return None, None
    return None if columns else 80, None if rows else 24


def inform(text: str) -> None:
    """Print a line about the work at hand on stderr, unless --quiet was given."""
    if _is_shown:
        say(text)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Tell what is begun, and how long it took once it is done; for work that cannot be counted."""
    begun = monotonic()
    inform(f"{what} …")
    yield
    inform(f"{what} took {duration(monotonic() - begun)}")


class Meter:
    """Counts what is done of some work, and shows it: `translating 200 of 500 lines, 12 a second, 25 s left`.

    On a terminal that is a bar, which goes when the work is done. Elsewhere it is a line after EVERY_SECONDS, and again
    each time that as many have gone by, and a last one with the seconds of it all. Where the work is announced, there
    is a line at its beginning and its end however short it is; otherwise work that is done before EVERY_SECONDS is not
    told of. After an error or a signal there is no last line.
    """

    def __init__(
        self, what: str, unit: str, total: int | None = None, announced: bool = False, hidden: bool = False
    ) -> None:
        """What is done with what, such as translating and lines, and how many there are, if that is known."""
        self.done = 0
        self._what, self._unit, self._total = what, unit, total
        self._begun = self._told = monotonic()
        self._has_lines = is_shown() and not on_terminal() and not hidden
        self._is_announced = announced
        columns, rows = bar_size()
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=f" {unit}",
            unit_scale=True,
            leave=False,
            disable=not shows_bars() or hidden,
            ncols=columns,
            nrows=rows,
        )
        if announced and self._has_lines:
            say(f"{what} {unit if total is None else _counted(total, unit)} …")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        was_told = self._is_announced or self._told > self._begun
        if type_ is None and self._has_lines and was_told:
            say(f"{self._what} {_counted(self.done, self._unit)} took {duration(monotonic() - self._begun)}")

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        self._bar.update(count)
        if self._has_lines and monotonic() - self._told >= EVERY_SECONDS:
            self._told = monotonic()
            say(self._line(self._told - self._begun))

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.add()

    def _line(self, seconds: float) -> str:
        rate = self.done / seconds
        speed = f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"
        if self._total is None:
            return f"{self._what} {self._unit}: {self.done:,} so far, {speed}"
        left = f", {duration((self._total - self.done) / rate)} left" if 0 < self.done <= self._total else ""
        return f"{self._what} {self.done:,} of {self._total:,} {self._unit}, {speed}{left}"


def _counted(number: int, unit: str) -> str:
    """1 line of a file, 2 lines of a file; unit is the plural."""
    nouns, space, rest = unit.partition(" ")
    return f"{counted(number, nouns.removesuffix('s'))}{space}{rest}"


def duration(seconds: float) -> str:
    """A time span as people say it: 0.4 s, 51 s, 4 min 30 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
