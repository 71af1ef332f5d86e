"""How far long work is: a bar where stderr is a terminal, else a line now and then; neither with --quiet."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

from mtkit.messages import counted, on_terminal, say

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
