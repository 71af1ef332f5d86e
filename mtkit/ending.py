"""How a signal ends the program: at once, or, where something is half written, after that is removed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Any

from mtkit.errors import SignalError, StoppedError
from mtkit.messages import on_terminal

NOTHING_HALF = "before the end; no file is left half written"
SOON = 5.0  # seconds in which another SIGTERM or SIGHUP belongs to the first: a closed terminal sends several

_num_open = 0  # blocks that something is to be undone after


@contextmanager
def undone_when_ended() -> Iterator[None]:
    """A block that undoes what it did when an exception leaves it; a signal within it raises SignalError."""
    global _num_open
    _num_open += 1
    try:
        yield
    finally:
        _num_open -= 1


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program with one line, and leave nothing half written.

    Outside of blocks that have something to undo, it ends where it stands: while PyTorch is imported, an exception
    might get lost there or even abort the process. A second Ctrl-C ends it at once anywhere. A signal that is ignored,
    as nohup has SIGHUP, stays ignored.
    """
    first: float | None = None  # when the first signal came

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal first
        is_first, now = first is None, monotonic()
        if is_first and _num_open:
            first = now
            raise SignalError(number)
        if is_first or number == signal.SIGINT or (first is not None and now > first + SOON):
            _end_at_once(SignalError(number), NOTHING_HALF if is_first else "at once")

    names = ("SIGINT", "SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(error: SignalError, how: str) -> None:
    # Not by print, which a signal must not enter a second time while it writes a line.
    line = f"mtkit: error: stopped by {error.name} {how}\n"
    with suppress(OSError):
        os.write(2, (f"\n{line}" if on_terminal() else line).encode())
    os._exit(error.code)


@dataclass
class Written:
    """How many lines have been answered."""

    number: int = 0


@contextmanager
def counted_when_ended(done: str) -> Iterator[Written]:
    """A block that writes lines and keeps count of those that are done; the error of a signal says how many."""
    written = Written()
    try:
        with undone_when_ended():
            yield written
    except SignalError as error:
        lines = "1 line is" if written.number == 1 else f"{written.number:,} lines are"
        raise StoppedError(f"stopped by {error.name}; {lines} {done}", error.code) from None
