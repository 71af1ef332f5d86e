"""What must hold on disk: a directory is there whole or not at all, and a run has one writer at a time."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtkit.errors import CheckpointError

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
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A fresh directory that takes the place of path when the block ends without an error.

    The old one goes only when the new one is safe; a kill leaves the old or the new, and settle() puts it in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path)
    new, old = _beside(path, "new"), _beside(path, "old")
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            sync(file)
        sync(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def settle(path: Path) -> None:
    """Mend what a kill in replaced_directory left: the directory is in place if it ever was, with nothing beside it."""
    new, old = _beside(path, "new"), _beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def write_file(path: Path, data: bytes) -> None:
    """Replace a file whole."""
    new = _beside(path, "new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


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
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
