"""What must hold on disk: a directory is there whole or not at all, and a run has one writer at a time.

A path may be a symbolic link, by which people keep large things on another disk: the link is followed and stays.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mtkit.ending import undone_when_ended
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
