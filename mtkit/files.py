"""JSON text, atomic writing of files and folders, and signals that end a command or stop training cleanly."""

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

# JSON text.


def finite(value: Any) -> Any:
    """A copy of `value` with `None` in place of infinities and NaN, which JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text: infinities and NaN become null, and characters beyond ASCII are not escaped."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


# Signals that end the program: at once, or after removing half-written files.

NOTHING_HALF = "before the end; no file is left half written"
SOON = 5.0  # seconds after the first signal in which SIGTERM and SIGHUP are ignored: a closed terminal sends several

_num_open = 0  # number of undone_when_ended blocks being executed


@contextmanager
def undone_when_ended() -> Iterator[None]:
    """Within the block, Ctrl-C, SIGTERM and SIGHUP raise SignalError, so that the block can undo its work.

    This has an effect only inside an `ended_by_signal` block, which handles the signals.
    """
    global _num_open
    _num_open += 1
    try:
        yield
    finally:
        _num_open -= 1


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Within the block, let Ctrl-C, SIGTERM and SIGHUP end the program with a one-line message.

    Within an `undone_when_ended` block, the signal raises SignalError, so that the block can remove half-written files.
    Outside of such blocks, the program ends at once, without an exception: while PyTorch is being imported, an
    exception might get lost, or even abort the process. A second Ctrl-C always ends the program at once. A signal that
    was ignored before, such as SIGHUP under nohup, stays ignored.
    """
    first: float | None = None  # time of the first signal

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
    # Not by print, which is not reentrant: the signal may have interrupted another print.
    line = f"mtkit: error: stopped by {error.name} {how}\n"
    with suppress(OSError):
        os.write(2, (f"\n{line}" if on_terminal() else line).encode())
    os._exit(error.code)


@dataclass
class Written:
    """The number of lines written so far."""

    number: int = 0


@contextmanager
def counted_when_ended(done: str) -> Iterator[Written]:
    """Yields a counter of lines for the block to update; if a signal ends the block, raises StoppedError.

    The message of the error has the count, followed by `done`, a past participle such as "translated" in "5 lines are
    translated".
    """
    written = Written()
    try:
        with undone_when_ended():
            yield written
    except SignalError as error:
        lines = "1 line is" if written.number == 1 else f"{written.number:,} lines are"
        raise StoppedError(f"stopped by {error.name}; {lines} {done}", error.code) from None


# Signals during training: save the state and stop, or save it and continue.

Handler = Callable[[int, FrameType | None], None]


@dataclass
class Stop:
    """Records what signals ask training to do; training looks at the record between batches."""

    signal: int = 0  # number of the signal that asked training to stop; 0: none
    deadline: float = math.inf  # time, by time.monotonic(), at which training stops
    save: bool = False  # whether SIGUSR1 asked for a checkpoint; training continues after it
    watched: list[Callable[[], None]] = field(default_factory=list)  # each raises an error if the run must not continue

    def check(self) -> None:
        """Raise StoppedError if a signal asked training to stop or if the deadline has passed.

        Otherwise, call each function in the list `self.watched`; such a function raises an error if the run must not
        continue.
        """
        if self.signal or monotonic() >= self.deadline:
            raise StoppedError
        for check in self.watched:
            check()

    @property
    def reason(self) -> str:
        """What stopped training, for messages: the name of a signal, such as SIGINT, or "the end of its time"."""
        return signal.Signals(self.signal).name if self.signal else "the end of its time"


@contextmanager
def stopping_by_signal(silent: bool = False) -> Iterator[Stop]:
    """Yields a Stop that records Ctrl-C, SIGTERM and SIGHUP, so that training can end after the current update.

    A Ctrl-C after any of these signals raises KeyboardInterrupt. SIGUSR1 asks for a checkpoint, after which training
    continues; job queues send it some time before they stop a job. If SIGHUP was ignored before, as under nohup, it
    stays ignored. With `silent=True`, nothing is printed, since another process tells the user.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signal:
            return  # a closed terminal sends several SIGHUP, and a job queue may send SIGTERM after them
        stop.signal = number
        if silent:
            return
        # Not by print, which is not reentrant: the signal may have interrupted another print.
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
    """Within the block, SIGUSR1 only prints a message: outside of training, there is nothing to save.

    Without this, SIGUSR1 would end the process.
    """

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


# Atomic replacement of directories and files, and a lock so that only one process at a time writes to a run.


def sync(path: Path) -> None:
    """Flush the file at `path` to disk; for a directory, flush the list of its entries."""
    if path.is_dir() and sys.platform == "win32":
        return  # Windows cannot open a directory
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yields a new directory for the block to fill.

    If the block ends without an error, the new directory replaces the one at `path`; otherwise, the new directory is
    deleted.
    """
    with undone_when_ended():
        try:
            new = new_directory(path)
            yield new
            put_in_place(path)
        finally:
            shutil.rmtree(_beside(path, "new"), ignore_errors=True)


def new_directory(path: Path) -> Path:
    """Create an empty directory next to `path` and return its path; `put_in_place(path)` moves it to `path`.

    Leftovers of a killed process are removed first.
    """
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_beside(path)
    _beside(path, "new").mkdir()
    return _beside(path, "new")


def put_in_place(path: Path) -> None:
    """Replace the directory at `path` by the one that `new_directory(path)` created.

    The new directory is flushed to disk and then renamed to `path`; at the end, the old directory is deleted.
    """
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
    """If `put_in_place` was killed between its two renames, rename the old directory back to `path`.

    Only the process that holds the lock for writing (see `only_writer`) may call this.
    """
    path = followed(path)
    if not path.exists() and _beside(path, "old").exists():
        _beside(path, "old").rename(path)


def clear_beside(path: Path) -> None:
    """Remove the leftovers of a process that was killed while it replaced `path`; calls `settle` first.

    Only the process that holds the lock for writing (see `only_writer`) may call this.
    """
    settle(path)
    for kind in ("new", "old"):
        remove(_beside(path, kind))


def standing(path: Path) -> Path:
    """The path at which the directory `path` can be read now, even while `put_in_place` is replacing it.

    Normally, the result is `path` itself. Between the two renames of `put_in_place`, nothing is at `path`. The result
    is then the path of the old directory, which is next to `path` under a hidden name.
    """
    if not path.name:  # the working directory, or the root: neither is ever replaced
        return path
    old = _beside(path, "old")
    return old if old.exists() and not path.exists() else path


def put_aside(path: Path) -> None:
    """Rename the file or directory at `path`, if there is one, to a hidden name; `bring_back` undoes this."""
    path = followed(path)
    if path.exists():
        path.rename(_beside(path, "before"))


def bring_back(path: Path) -> None:
    """Undo `put_aside`, deleting anything that is at `path` now; do nothing if nothing was put aside."""
    path = followed(path)
    before = _beside(path, "before")
    if before.exists():
        remove(path)
        before.rename(path)


def drop_aside(path: Path) -> None:
    """Delete the file or directory that `put_aside` renamed, if there is one."""
    remove(_beside(path, "before"))


def remove(path: Path) -> None:
    """Delete a file, a directory with its contents, or a link (not its target); do nothing if `path` does not exist."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def followed(path: Path) -> Path:
    """`path` itself or, if it is a symbolic link, the path of its target, which need not exist."""
    return path.resolve() if path.is_symlink() else path


def require_folder(path: Path, replaced: bool = True) -> None:
    """Raise CheckpointError if a folder cannot be written at `path`; called before any work is done.

    A path that does not exist yet is accepted if the folders above it can be made. A link whose target is missing is
    refused, since the target may be on a disk that is not mounted. Such a link is accepted, however, if an interrupted
    rename has left the target under a hidden name.

    `replaced=True` means that a new folder will later be renamed to `path`. The parent of `path` must then be writable
    too, and `path` must not be a mount point.
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
        above = next(parent for parent in place.parents if parent.exists())
        if not above.is_dir():
            raise CheckpointError(f"{path}{link}: {above} is a file, wants a folder; name another place")
        require_writable(above, f"{path}{link}")
        return
    if replaced and os.path.ismount(place):
        raise CheckpointError(
            f"{path}{link}: is a whole disk, which cannot be replaced by a rename; link to a folder on that disk"
        )
    for folder in {place, place.parent if replaced else place}:
        require_writable(folder, f"{path}{link}")


def require_writable(folder: Path, name: str) -> None:
    """Raise CheckpointError, with a message that begins with `name`, if no files can be created in `folder`."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{name}: {folder} cannot be written; give yourself write access to it")


def _beside(path: Path, kind: str) -> Path:
    """Returns a hidden path next to `path`, such as .model.new if `path` is model and `kind` is "new".

    If `path` is a link, the hidden path is next to the target of the link.
    """
    path = followed(path)
    return path.with_name(f".{path.name}.{kind}")


def link_or_copy(path: Path, copy: Path) -> None:
    """Make the file at `path` available at `copy` too: as a hard link, else a symbolic link, else a copy.

    Only read the file at `copy`: writing to it may change the original.
    """
    whole = path.resolve()
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(whole, copy)
            return
        except OSError:
            if make is shutil.copyfile:
                raise


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to a file atomically, replacing any file at `path`."""
    with replaced_file(path) as file:
        file.write(data)


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a new binary file for the block to write.

    If the block ends without an error, the new file replaces the one at `path`; otherwise, the new file is deleted.
    """
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
    """Within the block, add `path` to any OSError that names no file, for example the error of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Within the block, hold an operating-system lock on `directory`, which is created if it is missing.

    The lock is released even if the process is killed. Raises CheckpointError if another process holds the lock.
    """
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
        with suppress(OSError):  # on a full disk the lock still works, but its file does not name the process
            os.write(file.fileno(), f"process {os.getpid()}".encode())
        yield
