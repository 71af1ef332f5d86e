"""Errors that the user can mend, checks of values given from Python, and lines and progress on standard error."""

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


class MtkitError(Exception):
    """An error that the user can mend: where, what was found, what is wanted, what to do; a line for each fault."""


class ConfigError(MtkitError):
    """A setting is wrong."""


class DataError(MtkitError):
    """Text or binarized data is missing, damaged or does not fit."""


class CheckpointError(MtkitError):
    """A checkpoint or model is missing, damaged, in use or does not fit."""


class StoppedError(MtkitError):
    """The user stopped the run; what was done so far is safe. code is the exit code of the program."""

    def __init__(self, message: str = "", code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class SignalError(BaseException):
    """A signal asks the program to end. Like KeyboardInterrupt, it is no Exception, so that no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = Signals(number).name
        self.code = 128 + number  # the exit code that shells report for a program ended by a signal


# What PyTorch, its libraries and the C++ library say when memory runs out, in lower case.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator ran out of memory, which PyTorch may raise as a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


# Values given from Python. A wrong type is a TypeError that says what was found and what is wanted.

LONGEST_SHOWN = 40  # characters of a value that a message shows
MOST_DIGITS = 100  # Python itself refuses more than 4,300


def shown(value: object) -> str:
    """A value with its type, as messages show it."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]}…'}"


def whole_number(text: str) -> int | None:
    """The number that a text of digits stands for; None for any other text, and for more than MOST_DIGITS digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def require_list(value: object, name: str, wanted: str = "a list of lines; give it [line] for a single one") -> None:
    """Raise a TypeError for what has no items, and for a single text, whose items would be its characters."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: found {shown(value)}, wants {wanted}")


def checked_lines(lines: Iterable[Any], name: str) -> Iterator[str]:
    """The lines; raises a TypeError that gives the number of one that is not text."""
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise TypeError(f"{name}: item {number:,} is {shown(line)}, wants a str")
        yield line


def checked_pairs(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The pairs; raises a TypeError that gives the number of one that is not two texts."""
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs: item {number:,} is {shown(pair)}, wants a source and a translation, both str")
        yield pair[0], pair[1]


def require_count(value: Any, name: str) -> int:
    """The value as an int; raises a TypeError if it is no whole number, and an MtkitError if it is below 1."""
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
    """Raise a TypeError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: found {shown(value)}, wants the path of a model, a str or a Path")


def require_texts(values: Iterable[Any], name: str, wanted: str) -> None:
    """Raise a TypeError for a single text in place of a list, and for items that are not text."""
    require_list(values, name, wanted)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name}: found {shown(value)} in it, wants {wanted}")


# Lines on stderr.

NUM_NAMED = 10  # lines of each kind that a warning names; the rest are counted


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
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
    """A number and what it counts, a noun whose plural ends in s: 1 pair, 2,000 pairs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Warnings:
    """Warnings about numbered lines: of each kind, the first NUM_NAMED are printed and the rest are counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> None:
        """Warn that the line with this number, from 1, is as what says."""
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= NUM_NAMED:
            say(f"mtkit: warning: line {number:,} {what}")

    def close(self) -> None:
        """Print how many more lines of each kind there were."""
        for what, count in self.counts.items():
            if count > NUM_NAMED:
                say(f"mtkit: warning: the same for {counted(count - NUM_NAMED, 'more line')}: it {what}")


# Progress of long work: a bar where stderr is a terminal, else a line now and then; neither with --quiet.

EVERY_SECONDS = 10.0  # between two lines of progress

T = TypeVar("T")

_is_shown = True


def show_progress(wanted: bool) -> None:
    """Turn progress on or off for this process; --quiet turns it off."""
    global _is_shown
    _is_shown = wanted


def is_shown() -> bool:
    """Whether progress is shown at all."""
    return _is_shown


def shows_bars() -> bool:
    """Whether progress is shown as bars."""
    return _is_shown and on_terminal()


def bar_size() -> tuple[int | None, int | None]:
    """Columns and rows of a bar on a terminal that reports no size; None where tqdm finds them by itself.

    `script` in a queue, `docker exec -t` and some CI have terminals without a size, on which tqdm would show nothing.
    """
    if not shows_bars():
        return None, None
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # ValueError: stderr has no descriptor
        return None, None
    return None if columns else 80, None if rows else 24


def inform(text: str) -> None:
    """Print a line of progress on stderr, unless --quiet was given."""
    if _is_shown:
        say(text)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Print what begins and, at its end, how long it took; for work that cannot be counted."""
    begun = monotonic()
    inform(f"{what} …")
    yield
    inform(f"{what} took {duration(monotonic() - begun)}")


class Meter:
    """Counts finished items and shows progress: `translating 200 of 500 lines, 12 a second, 25 s left`.

    On a terminal, progress is a bar, which disappears when the work is done. Elsewhere it is a line every EVERY_SECONDS
    and a last one with the time taken. Announced work always has a line at its beginning and its end; other work that
    takes less than EVERY_SECONDS prints nothing. After an error or a signal there is no last line.
    """

    def __init__(
        self, what: str, unit: str, total: int | None = None, announced: bool = False, hidden: bool = False
    ) -> None:
        """Begin the work called what, such as translating, on total (if known) items called unit, such as lines."""
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
        """Count this many more as done."""
        self.done += count
        self._bar.update(count)
        if self._has_lines and monotonic() - self._told >= EVERY_SECONDS:
            self._told = monotonic()
            say(self._line(self._told - self._begun))

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting each as done when the next one is asked for."""
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
    """1 line of a file, 2 lines of a file, where unit is lines of a file."""
    nouns, space, rest = unit.partition(" ")
    return f"{counted(number, nouns.removesuffix('s'))}{space}{rest}"


def duration(seconds: float) -> str:
    """A time span in words: 0.4 s, 51 s, 4 min 30 s, 2 h 10 min."""
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
