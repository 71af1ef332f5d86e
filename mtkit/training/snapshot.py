"""A checkpoint as a reader finds it who does not train.

Training may go on meanwhile, in another process or on another machine, and may delete or replace a checkpoint at any
time. So a reader writes nothing, takes no lock, and has each file whole in memory before it is used.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mtkit.errors import CheckpointError
from mtkit.files import standing
from mtkit.training.checkpoint import AVERAGE, PROGRESS, STEP, WEIGHTS, Progress, parse_progress, step_directory

TRIES, PAUSE_SECONDS = 20, 0.05

Found = TypeVar("Found")


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint says, and the weights that validation measured: the moving average where there is one."""

    progress: Progress
    identity: dict[str, Any]
    weights: bytearray  # a safetensors file
    sha256: str  # of these bytes, which is that of the file as it was saved


def readable_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that a reader finds, ascending, though one may just be put in the place of an older."""
    names = {path.name for path in checkpoints.glob("step-*")}
    names |= {path.name[1:].removesuffix(".old") for path in checkpoints.glob(".step-*.old")}
    steps = {int(name[1]) for name in map(STEP.fullmatch, names) if name}
    return sorted(step for step in steps if is_checkpoint(step_directory(checkpoints, step)))


def is_checkpoint(directory: Path) -> bool:
    """Whether a checkpoint lies there."""
    return (standing(directory) / PROGRESS).is_file()


def read_progress_at(directory: Path) -> Progress:
    """How far a checkpoint is; FileNotFoundError if training has just deleted it."""
    path = standing(directory) / PROGRESS
    return _parsed(_read(path), path)[0]


def read_snapshot(directory: Path) -> Snapshot:
    """The checkpoint in a directory, its checksums verified; FileNotFoundError if training has just deleted it."""
    directory = standing(directory)
    told = _read(directory / PROGRESS)
    progress, identity, checksums = _parsed(told, directory / PROGRESS)
    path = directory / (AVERAGE if AVERAGE in checksums else WEIGHTS)
    try:
        weights = _read(path)
        found = hashlib.sha256(weights).hexdigest()
        fault = "" if found == checksums[path.name] else "damaged, its checksum is not the one it was saved with"
    except FileNotFoundError:
        fault = "missing"
    if not fault:
        return Snapshot(progress, identity, weights, found)
    if _read(directory / PROGRESS) != told:  # training writes it last, and deletes it first
        raise FileNotFoundError(errno.ENOENT, "replaced while it was read", str(path))
    raise CheckpointError(f"{path}: {fault}; use another checkpoint")


def retried(read: Callable[[], Found]) -> Found:
    """What read returns; it is called again, a few times, if training deletes what it was reading."""
    for _ in range(TRIES - 1):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(PAUSE_SECONDS)
    try:
        return read()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: deleted by training while it was read; try again") from None


def _parsed(data: bytearray, path: Path) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    try:
        return parse_progress(bytes(data), path)
    except ValueError:
        raise CheckpointError(f"{path}: damaged; use another checkpoint") from None


def _read(path: Path) -> bytearray:
    """The bytes of a file; FileNotFoundError, too, if a network disk says that it was deleted while it was read."""
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(path)) from None
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return data
