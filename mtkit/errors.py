"""Exceptions for errors that the user can fix, checks of arguments in the Python API, and output on stderr."""

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
    """An error that the user can fix.

    The message has one line for each fault: where it is, what was found, what is wanted, and what to do.
    """


class ConfigError(MtkitError):
    """A setting or a settings file is not valid."""


class DataError(MtkitError):
    """Text or binarized data is missing, damaged or incompatible."""


class CheckpointError(MtkitError):
    """A checkpoint, model or run directory is missing, damaged, in use or incompatible."""


class DivergedError(MtkitError):
    """Training diverged: the loss or the gradient of too many updates in a row was not finite."""


class StoppedError(MtkitError):
    """The command was stopped by the user or reached its time limit; finished work, if any, is saved.

    `code` is the exit code of the program.
    """

    def __init__(self, message: str = "", code: int = 130) -> None:
        super().__init__(message)
        self.code = code


class SignalError(BaseException):
    """Raised when a signal asks the program to end.

    `code` is the exit code of the program. Like KeyboardInterrupt, SignalError is not a subclass of Exception, so that
    libraries do not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = Signals(number).name
        self.code = 128 + number  # the exit code that shells report for a program ended by a signal


# Substrings, in lower case, of the messages that PyTorch, its libraries and the C++ library give if memory runs out.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, such as a RuntimeError of PyTorch, means that the CPU or the accelerator ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


# Checks of arguments of the Python API. A wrong type raises a TypeError that says what was found and expected.

LONGEST_SHOWN = 40  # characters; messages shorten values that are longer
MOST_DIGITS = 100  # in a number that whole_number accepts; Python itself refuses more than 4,300


def shown(value: object) -> str:
    """Returns `value` as text for messages: its type and its repr, shortened if it is long, for example "int 5"."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]}…'}"


def whole_number(text: str) -> int | None:
    """`text` as an integer; `None` unless it consists of 1 to MOST_DIGITS ASCII digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def require_list(value: object, name: str, wanted: str = "a list of lines; give it [line] for a single one") -> None:
    """Raise TypeError if `value` is not iterable or is a single string.

    Iterating over a string would give characters. In the message, `name` is the name of the argument, and `wanted` says
    what the argument should be.
    """
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: found {shown(value)}, wants {wanted}")


def checked_lines(lines: Iterable[Any], name: str) -> Iterator[str]:
    """Yields `lines` unchanged; raises TypeError with the number (from 1) of the first item that is not a str.

    In the message, `name` is the name of the argument.
    """
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise TypeError(f"{name}: item {number:,} is {shown(line)}, wants a str")
        yield line


def checked_pairs(pairs: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Yields `pairs` as tuples; raises TypeError with the number (from 1) of the first item that is not two strings."""
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs: item {number:,} is {shown(pair)}, wants a source and a translation, both str")
        yield pair[0], pair[1]


def require_count(value: Any, name: str) -> int:
    """`value` as an int; raises TypeError if `value` is not an integer, and MtkitError if it is below 1.

    In the message, `name` is the name of the argument.
    """
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
    """Raise TypeError if `value` is neither a str nor a path; in the message, `name` is the name of the argument."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: found {shown(value)}, wants the path of a model, a str or a Path")


def require_texts(values: Iterable[Any], name: str, wanted: str) -> None:
    """Raise TypeError if `values` is a single string, is not iterable, or has an item that is not a str.

    In the message, `name` is the name of the argument, and `wanted` says what the argument should be.
    """
    require_list(values, name, wanted)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name}: found {shown(value)} in it, wants {wanted}")


# Messages on stderr.

ERROR = "mtkit: error: "  # the prefix of each line of an error message
_says_all = True

NUM_NAMED = 10  # warnings of each kind that are printed; further ones are counted


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def say(text: str, always: bool = False) -> None:
    """Print a line on stderr, above any progress bar; with `always`, also after `say_only_errors` was called.

    If printing fails, the line is dropped without an error: a closed pipe or terminal, or a log file on a full disk,
    should not end the program.
    """
    if sys.stderr is None or not (_says_all or always or text.startswith(ERROR)):
        return
    try:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: stderr is closed
        pass


def say_only_errors() -> None:
    """From now on, let `say` print only errors and lines that are printed with `always=True`.

    If several processes would print the same lines, all but one of them call this function.
    """
    global _says_all
    _says_all = False


def counted(number: int, noun: str) -> str:
    """`number` followed by `noun`, which gets an s unless the number is 1: "1 pair", "2,000 pairs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Warnings:
    """Prints warnings about numbered lines, at most NUM_NAMED of each kind; further warnings are only counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> None:
        """Warn about line `number`; lines are counted from 1.

        `what` is both the kind of warning and the end of the message. For example, if `what` is "is not valid UTF-8",
        the message is "line 5 is not valid UTF-8".
        """
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= NUM_NAMED:
            say(f"mtkit: warning: line {number:,} {what}")

    def close(self) -> None:
        """Print, for each kind, how many warnings were counted but not printed."""
        for what, count in self.counts.items():
            if count > NUM_NAMED:
                say(f"mtkit: warning: the same for {counted(count - NUM_NAMED, 'more line')}: it {what}")


# Progress of long work: a bar if stderr is a terminal, else lines from time to time; neither with --quiet.

EVERY_SECONDS = 10.0  # between two lines of progress

T = TypeVar("T")

_is_shown = True


def show_progress(wanted: bool) -> None:
    """Turn the output of progress on or off for the whole process; --quiet turns it off."""
    global _is_shown
    _is_shown = wanted


def is_shown() -> bool:
    """Whether progress is shown: always, except with --quiet."""
    return _is_shown


def shows_bars() -> bool:
    """Whether progress is shown as bars: only if stderr is a terminal, and never with --quiet."""
    return _is_shown and on_terminal()


def bar_size() -> tuple[int | None, int | None]:
    """The width and height of a progress bar, in characters, for tqdm; `None` where tqdm finds the size itself.

    Some terminals report no size, and tqdm would then show nothing, so the width is set to 80 and the height to 24.
    Terminals without a size are made by the command `script` when it runs in a job queue, by `docker exec -t`, and by
    some CI systems.
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
    """Print a line before the block to say that work begins, and a line after the block to say how long the work took.

    `what` names the work. Nothing is printed with --quiet. This is for work without items to count; Meter counts items.
    """
    begun = monotonic()
    inform(f"{what} …")
    yield
    inform(f"{what} took {duration(monotonic() - begun)}")


class Meter:
    """Counts finished items and shows progress: `translating 200 of 500 lines, 12 a second, 25 s left`.

    On a terminal, progress is a bar, which disappears when the work is done. Elsewhere, a line is printed every
    EVERY_SECONDS, and a last line gives the total time. The last line is left out if an error or a signal ended the
    work. For work that takes less than EVERY_SECONDS, nothing is printed. With `announced=True`, however, a first and a
    last line are printed even for short work.
    """

    def __init__(
        self, what: str, unit: str, total: int | None = None, announced: bool = False, hidden: bool = False
    ) -> None:
        """Start to show progress.

        `what` names the work, such as "translating"; `unit` names the items, in the plural, such as "lines"; `total` is
        the number of items, or `None` if it is unknown. With `announced=True`, a first and a last line are printed even
        for short work; with `hidden=True`, nothing is shown.
        """
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
        """Count `count` more items as done."""
        self.done += count
        self._bar.update(count)
        if self._has_lines and monotonic() - self._told >= EVERY_SECONDS:
            self._told = monotonic()
            say(self._line(self._told - self._begun))

    def counting(self, items: Iterable[T]) -> Iterator[T]:
        """Yields `items`, counting each as done when the next one is requested."""
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
    """`number` followed by `unit`; for 1, the first word loses its plural s: "1 line of a file"."""
    nouns, space, rest = unit.partition(" ")
    return f"{counted(number, nouns.removesuffix('s'))}{space}{rest}"


def duration(seconds: float) -> str:
    """`seconds` as text, such as 0.4 s, 51 s, 4 min 30 s or 2 h 10 min."""
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
