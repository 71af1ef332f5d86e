"""Ending a run from outside with its state saved, or saving it and going on."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from mtkit.errors import StoppedError

Handler = Callable[[int, FrameType | None], None]


@dataclass
class Stop:
    """Set by a signal; looked at between batches."""

    signal: int = 0
    save: bool = False  # asked for by SIGUSR1; training goes on
    watched: list[Callable[[], None]] = field(default_factory=list)  # what raises if the run must not go on

    def check(self) -> None:
        """Raise if a signal came, or for what is watched."""
        if self.signal:
            raise StoppedError
        for check in self.watched:
            check()


@contextmanager
def stopping_by_signal() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and SIGHUP end the run after the update at hand; a Ctrl-C after one of them ends it at once.

    SIGUSR1 asks for a checkpoint: queues send it some time before they stop a job. A SIGHUP that is ignored, as nohup
    has it, stays ignored.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signal:
            return  # a closed terminal sends SIGHUP more than once, and queues SIGTERM after it
        stop.signal = number
        # Not by print, which a signal must not enter a second time while it writes a line.
        with suppress(OSError):
            os.write(2, "\nstopping: saving the state (Ctrl-C to stop at once) …\n".encode())

    def ask_to_save(number: int, frame: FrameType | None) -> None:
        stop.save = True

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    handlers: dict[int, Handler] = {signal.SIGINT: handle, signal.SIGTERM: handle}
    if sys.platform != "win32":
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = handle
        handlers[signal.SIGUSR1] = ask_to_save
    with _handled_by(handlers):
        yield stop


@contextmanager
def without_usr1() -> Iterator[None]:
    """Ignore SIGUSR1, which would end the process: outside of training there is nothing to save."""

    def ignore(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(2, b"SIGUSR1: there is nothing to save outside of training; going on\n")

    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by({signal.SIGUSR1: ignore}):
        yield


@contextmanager
def _handled_by(handlers: dict[int, Handler]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
