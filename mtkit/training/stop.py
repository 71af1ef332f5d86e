"""Ending a run from outside, with its state saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from mtkit.errors import StoppedError


@dataclass
class Stop:
    """Set by a signal; looked at between batches."""

    signal: int = 0
    watched: list[Callable[[], None]] = field(default_factory=list)  # what raises if the run must not go on

    def check(self) -> None:
        """Raise if a signal came, or for what is watched."""
        if self.signal:
            raise StoppedError
        for check in self.watched:
            check()


@contextmanager
def stopping_by_signal() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM end the run after the update at hand; a second Ctrl-C ends it at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number
        # Not by print, which a signal must not enter a second time while it writes a line.
        with suppress(OSError):
            os.write(2, "\nstopping: saving the state (again to stop at once) …\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
