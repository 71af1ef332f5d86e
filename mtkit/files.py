"""Files that are written whole or not at all, whatever ends the command, signals among it."""

import json
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, BinaryIO

from mtkit.errors import CheckpointError, SignalError, StoppedError, on_terminal


def finite(value: Any) -> Any:
    """The same value; numbers in it that are not finite, which JSON cannot say, are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """The value as JSON, letters of all scripts as they are; numbers that are not finite are null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


# How a signal ends the program: at once, or, where something is half written, after that is removed.

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


# Ending a run from outside with its state saved, or saving it and going on.

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


# What must hold on disk: a directory is there whole or not at all, and a run has one writer at a time.

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a directory."""
    if path.is_dir() and sys.platform == "win32":
        return  # a directory cannot be opened there
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A fresh directory to fill, which takes the place of path when the block ends without an error."""
    with undone_when_ended():
        try:
            new = new_directory(path)
            yield new
            put_in_place(path)
        finally:
            shutil.rmtree(_beside(path, "new"), ignore_errors=True)


def new_directory(path: Path) -> Path:
    """An empty directory beside path, to be filled and put in its place; what a kill left of earlier ones goes."""
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_beside(path)
    _beside(path, "new").mkdir()
    return _beside(path, "new")


def put_in_place(path: Path) -> None:
    """Put what new_directory began in the place of path, once the disk holds it; only then the old one goes."""
    path = followed(path)
    new, old = _beside(path, "new"), _beside(path, "old")
    for part in [*new.rglob("*"), new]:
        sync(part)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync(path.parent)
    remove(old)


def settle(path: Path) -> None:
    """Put the old directory back if a kill came between the two renames; for the one who may write there."""
    path = followed(path)
    if not path.exists() and _beside(path, "old").exists():
        _beside(path, "old").rename(path)


def clear_beside(path: Path) -> None:
    """Remove what a kill left of putting directories in the place of path; for the one who may write there."""
    settle(path)
    for kind in ("new", "old"):
        remove(_beside(path, kind))


def standing(path: Path) -> Path:
    """Where a reader finds the directory, though it is just being replaced or a kill came between the two renames."""
    if not path.name:  # the working directory, or the root: neither is ever replaced
        return path
    old = _beside(path, "old")
    return old if old.exists() and not path.exists() else path


def put_aside(path: Path) -> None:
    """Rename a file or directory to a hidden name beside it, from which bring_back returns it."""
    path = followed(path)
    if path.exists():
        path.rename(_beside(path, "before"))


def bring_back(path: Path) -> None:
    """Undo put_aside: what has taken the place meanwhile goes. Does nothing where nothing stands aside."""
    path = followed(path)
    before = _beside(path, "before")
    if before.exists():
        remove(path)
        before.rename(path)


def drop_aside(path: Path) -> None:
    """Delete what put_aside renamed."""
    remove(_beside(path, "before"))


def remove(path: Path) -> None:
    """Delete a file, a directory with all it holds, or a link but not what it leads to; or nothing."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def followed(path: Path) -> Path:
    """Where a link leads, which need not be there yet; any other path as it is."""
    return path.resolve() if path.is_symlink() else path


def require_folder(path: Path, replaced: bool = True) -> None:
    """Refuse a path at which no folder can be written; a missing one can. Ask before any work is done.

    replaced tells that the whole folder is going to be exchanged for another, by a rename beside it.
    """
    place = followed(path)
    link = f" (a link to {place})" if path.is_symlink() else ""
    if path.is_symlink() and not (
        place.exists() or _beside(place, "old").exists() or _beside(place, "before").exists()
    ):
        raise CheckpointError(
            f"{path}: a link to {place}, which is not there; mount its disk, make that folder, or remove the link"
        )
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"{path}{link}: found a file, wants a folder; move the file away")
    if not place.exists():
        return
    if replaced and os.path.ismount(place):
        raise CheckpointError(
            f"{path}{link}: is a whole disk, which cannot be replaced by a rename; link to a folder on that disk"
        )
    for folder in {place, place.parent if replaced else place}:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CheckpointError(f"{path}{link}: {folder} cannot be written; give yourself write access to it")


def _beside(path: Path, kind: str) -> Path:
    path = followed(path)
    return path.with_name(f".{path.name}.{kind}")


def link_or_copy(path: Path, copy: Path) -> None:
    """The same file in another place: a link where the system makes one, else a copy. It is not to be written to."""
    whole = path.resolve()
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(whole, copy)
            return
        except OSError:
            if make is shutil.copyfile:
                raise


def write_file(path: Path, data: bytes) -> None:
    """Replace a file whole."""
    with replaced_file(path) as file:
        file.write(data)


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A fresh file to fill, which takes the place of path when the block ends without an error."""
    path = followed(path)
    new = _beside(path, "new")
    with undone_when_ended():
        try:
            with _naming(path), new.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the path to an error that does not tell which file it is about, as where the disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold a lock of the operating system on a directory; it goes with its holder, however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as file:
        try:
            _lock(file.fileno())
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CheckpointError(
                f"{directory}: in use by {holder}; wait for it, or stop it, then start again"
            ) from None
        file.truncate(0)
        with suppress(OSError):  # on a full disk the lock holds all the same, and nobody learns who has it
            os.write(file.fileno(), f"process {os.getpid()}".encode())
        yield
