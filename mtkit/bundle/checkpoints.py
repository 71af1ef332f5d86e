"""Checkpoints on disk: what they contain, and how to read them, even while training continues."""

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor

from mtkit.data.batches import ORDER
from mtkit.errors import CheckpointError
from mtkit.files import standing

# Progress: the content of a checkpoint besides weights and optimizer state.

FIRST_SCALE = 2.0**16  # PyTorch's initial loss scale; too high for many models, whose first updates then lower it


@dataclass(frozen=True)
class Update:
    """Statistics of one training update."""

    loss: float  # summed over the target tokens, in nats
    nll: float  # negative log-likelihood, summed like the loss
    tokens: int  # target tokens
    norm: float  # of the gradient, before clipping
    rate: float  # learning rate
    padding: float  # fraction of positions without a token
    consistency: float | None = None  # divergence of the two passes, summed like the loss; None without a second pass

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient norm are finite; if not, training skips the update."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass
class Window:
    """Statistics summed over the training updates since the last line of the log.

    A checkpoint includes these sums, so that a resumed run logs the same values as an uninterrupted one.
    """

    updates: int = 0
    loss: float = 0.0
    likelihood: float = 0.0  # sum of Update.nll; checkpoints on disk use this name
    tokens: int = 0
    norm: float = 0.0
    padding: float = 0.0
    rate: float = 0.0  # of the last update
    since: float = 0.0  # seconds of training when the window began
    consistency: float | None = None

    def add(self, update: Update) -> None:
        """Adds the statistics of `update` to the sums."""
        self.updates += 1
        self.loss += update.loss
        self.likelihood += update.nll
        self.tokens += update.tokens
        self.norm += update.norm
        self.padding += update.padding
        self.rate = update.rate
        if update.consistency is not None:
            self.consistency = (self.consistency or 0.0) + update.consistency

    def record(self, seconds: float) -> dict[str, float]:
        """The fields of a log line: means over the updates of this window, with losses in nats per token.

        `seconds` is the training time so far. The window must contain at least one update.
        """
        agreement = {} if self.consistency is None else {"consistency": round(self.consistency / self.tokens, 5)}
        return {
            "loss": round(self.loss / self.tokens, 5),
            "nll": round(self.likelihood / self.tokens, 5),
            **agreement,
            "lr": self.rate,
            "gradient_norm": round(self.norm / self.updates, 5),
            "tokens_per_second": round(self.tokens / max(seconds - self.since, 1e-9), 1),
            "padding": round(self.padding / self.updates, 4),
            "minutes": round(seconds / 60, 4),
        }


# Settings that changed when a run was resumed: {"step": last update before the change, "pairs": pairs consumed until
# then, "settings": {name: [old value, new value]}}.
Change = dict[str, Any]


@dataclass
class Progress:
    """How far training has come, and the values that mtkit chose for settings given as `auto`."""

    step: int = 0  # updates done
    pairs: int = 0  # sentence pairs consumed, which is the position in the order of training
    order: int = ORDER  # how pairs are sorted into batches; lower in runs begun by earlier versions
    target_tokens: int = 0  # of these pairs, with end marks; those of mtkit 0.1.0 are not counted
    seconds: float = 0.0  # training time, summed over all sessions of the run
    precision: str = ""  # fp32, bf16 or fp16
    validated_step: int = 0  # the last step that was validated
    best_step: int = 0  # step of the best validation; if it is 0 and has_best, the model that training started from
    best_score: float = float("-inf")  # of the best validation; higher is better; -inf before the first one
    bad_validations: int = 0  # validations since the best step
    stale_validations: int = 0  # like bad_validations, but only after warmup; reset when the rate is lowered
    rate_lowered: int = 0  # how many times the learning rate was lowered because validation did not improve
    skipped: int = 0  # updates that were skipped because loss or gradient norm was not finite
    skipped_in_row: int = 0  # skipped updates since the last one that was made
    overflows: int = 0  # fp16 updates that overflowed, so that they only lowered the loss scale
    loss_scale: float = FIRST_SCALE
    scale_updates: int = 0  # updates since the loss scale changed
    log_bytes: int = 0  # length of log.jsonl, which resuming truncates to this length
    changes: list[Change] = field(default_factory=list)  # changes of settings, ordered by step
    plan: dict[str, Any] | None = None  # the values that auto settings were resolved to
    ending: dict[str, Any] | None = None  # the decay that --end-in began: the fields of Ending, in schedule.py
    window: Window = field(default_factory=Window)  # the updates since the last line of the log

    @property
    def has_best(self) -> bool:
        """Whether training has found a best model, that is, whether any validation so far had a score above -inf."""
        return self.best_step > 0 or self.best_score > float("-inf")


def setting_at(chain: Sequence[Change], name: str, step: int, now: Any) -> Any:
    """The value that the setting called `name` had during update number `step`.

    `chain` lists all changes of settings, in order; `now` is the current value of the setting.
    """
    later = (change["settings"] for change in chain if change["step"] >= step)
    return next((settings[name][0] for settings in later if name in settings), now)


# The files of checkpoints, and reading them in the process that trains.

FORMAT = 1

# The names of checkpoint folders. Any other file or folder next to them belongs to the user.
STEP = re.compile(r"step-(\d{8,})")

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
AVERAGE = "average.safetensors"  # the average of the weights that validation used, if the run keeps one


def step_directory(checkpoints: Path, step: int) -> Path:
    """The path of the checkpoint of `step`; `checkpoints` is the folder of all checkpoints of a run."""
    return checkpoints / f"step-{step:08d}"


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories in `checkpoints` with names of checkpoints, complete or not, in ascending order of step."""
    found = (path for path in checkpoints.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=_step_of)


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def checkpoint_steps(checkpoints: Path, resumable: bool = False) -> list[int]:
    """The steps of all checkpoints, in ascending order.

    With `resumable=True`, only the steps of checkpoints that have an optimizer state.
    """
    needed = (PROGRESS, OPTIMIZER) if resumable else (PROGRESS,)
    return [
        _step_of(directory)
        for directory in step_directories(checkpoints)
        if all((directory / name).exists() for name in needed)
    ]


def read_progress(checkpoints: Path, step: int) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """The progress in a checkpoint, the identity of its run, and {file name: SHA-256} for the checkpoint's files.

    The identity consists of the settings and checksums that must match for the run to resume. Raises CheckpointError if
    progress.json is damaged or missing.
    """
    path = step_directory(checkpoints, step) / PROGRESS
    try:
        return parse_progress(path.read_bytes(), path)
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: damaged or missing; {remedy(checkpoints, step)}") from None


def parse_progress(data: bytes, path: Path) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """Parses `data`, the content of a progress.json; returns progress, identity and checksums, as `read_progress` does.

    Raises ValueError if `data` is damaged, and CheckpointError if its format is not the one that this version reads.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) != content_checksum(content):
        raise ValueError("its checksum is not the one it was saved with")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}, but this version of mtkit reads {FORMAT}")
    values = content["progress"]
    progress = Progress(**{"order": 1, **values, "window": Window(**values["window"])})
    return progress, content["identity"], content["files"]


def read_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights of a checkpoint as they were after update `step`, by parameter name.

    A checkpoint may also have an average of the weights over updates, which this function does not read.
    """
    return read_tensors_of(checkpoints, step, WEIGHTS)


def measured_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights that validation evaluated at `step`.

    If the checkpoint has an average of the weights over updates, validation evaluated this average.
    """
    _, _, checksums = read_progress(checkpoints, step)
    return read_tensors_of(checkpoints, step, AVERAGE if AVERAGE in checksums else WEIGHTS)


def average_weights(checkpoints: Path, steps: Iterable[int]) -> dict[str, Tensor]:
    """The mean of the `measured_weights` of several checkpoints (Junczys-Dowmunt et al. 2016).

    The mean is computed in fp64 and returned in fp32.
    """
    return mean_weights(measured_weights(checkpoints, step) for step in steps)


def mean_weights(checkpoints: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several sets of weights, computed in fp64 and returned in fp32.

    Only one set of weights is needed in memory at a time, so `checkpoints` may be a generator.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for weights in checkpoints:
        count += 1
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / count).float() for name, tensor in total.items()}


def averaged_steps(scheduled: list[int], best_step: int, count: int) -> list[int]:
    """The steps of the checkpoints to average: `best_step` and up to `count - 1` scheduled steps immediately before it.

    The steps are in ascending order. `scheduled` has the steps of all checkpoints except those that were saved only
    because the run was stopped. `best_step` may be missing from `scheduled`: the run may once have been stopped at that
    step, and then gone on.

    Step 0 is the model that training started from. If `best_step` is 0, only step 0 is returned; else step 0 is left
    out. Averaging evens out the noise of updates. The model at step 0 has no such noise, so it would only pull the
    average back towards the start.
    """
    if best_step == 0:
        return [0]
    return sorted(step for step in {*scheduled, best_step} if 0 < step <= best_step)[-count:]


def read_tensors_of(checkpoints: Path, step: int, name: str) -> dict[str, Tensor]:
    """The tensors in the file called `name` of a checkpoint, by tensor name.

    Raises CheckpointError if the file is missing or its checksum is wrong.
    """
    path = step_directory(checkpoints, step) / name
    _, _, checksums = read_progress(checkpoints, step)
    if not path.exists():
        raise CheckpointError(f"{path}: missing; {remedy(checkpoints, step)}")
    if file_checksum(path) != checksums[name]:
        raise CheckpointError(
            f"{path}: damaged, its checksum is not the one it was saved with; {remedy(checkpoints, step)}"
        )
    return load_file(path)


def remedy(checkpoints: Path, step: int) -> str:
    """Advice for an error message: what the user can do about the damaged checkpoint of `step`."""
    others = [other for other in checkpoint_steps(checkpoints, resumable=True) if other != step]
    if not others:
        return "start anew with --fresh"
    if others[-1] < step:
        return f"delete {step_directory(checkpoints, step)} to go on from step {others[-1]:,}"
    return f"delete {step_directory(checkpoints, step)} to go on without it"


def file_checksum(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_checksum(content: dict[str, Any]) -> str:
    """The hexadecimal SHA-256 of `content` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Reading in another process, while training may delete or replace the files.

TRIES, PAUSE_SECONDS = 20, 0.05

Found = TypeVar("Found")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, with the weights that validation evaluated (see `measured_weights`)."""

    progress: Progress
    identity: dict[str, Any]
    weights: bytearray  # the content of a safetensors file
    sha256: str  # of the weights


def readable_steps(checkpoints: Path) -> list[int]:
    """The steps of all complete checkpoints, ascending, including one that training is replacing at this moment.

    While a checkpoint is being replaced, its old files are in a folder with a hidden name.
    """
    names = {path.name for path in checkpoints.glob("step-*")}
    names |= {path.name[1:].removesuffix(".old") for path in checkpoints.glob(".step-*.old")}
    steps = {int(name[1]) for name in map(STEP.fullmatch, names) if name}
    return sorted(step for step in steps if is_checkpoint(step_directory(checkpoints, step)))


def is_checkpoint(directory: Path) -> bool:
    """Whether `directory` is a complete checkpoint, that is, has a progress.json."""
    return (standing(directory) / PROGRESS).is_file()


def read_progress_at(directory: Path) -> Progress:
    """The progress in the checkpoint at `directory`.

    Raises FileNotFoundError if training has just deleted the checkpoint, and CheckpointError if the checkpoint is
    damaged.
    """
    path = standing(directory) / PROGRESS
    return _parsed(_read(path), path)[0]


def read_snapshot(directory: Path) -> Snapshot:
    """Reads the checkpoint in `directory` and verifies its checksums.

    Raises FileNotFoundError if training has just deleted or replaced the checkpoint, and CheckpointError if the
    checkpoint is damaged.
    """
    directory = standing(directory)
    noted = _read(directory / PROGRESS)
    progress, identity, checksums = _parsed(noted, directory / PROGRESS)
    path = directory / (AVERAGE if AVERAGE in checksums else WEIGHTS)
    try:
        weights = _read(path)
        found = hashlib.sha256(weights).hexdigest()
        fault = "" if found == checksums[path.name] else "damaged, its checksum is not the one it was saved with"
    except FileNotFoundError:
        fault = "missing"
    if not fault:
        return Snapshot(progress, identity, weights, found)
    if _read(directory / PROGRESS) != noted:  # training writes progress.json last, and deletes it first
        raise FileNotFoundError(errno.ENOENT, "replaced while it was read", str(path))
    raise CheckpointError(f"{path}: {fault}; use another checkpoint")


def retried(read: Callable[[], Found]) -> Found:
    """Calls `read` and returns the result; if `read` raises FileNotFoundError, tries again.

    `read` reads a checkpoint, which training may delete meanwhile. Raises CheckpointError after TRIES failed calls.
    """
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
    """Returns what `parse_progress` returns, but raises CheckpointError if `data` is damaged."""
    try:
        return parse_progress(bytes(data), path)
    except ValueError:
        raise CheckpointError(f"{path}: damaged; use another checkpoint") from None


def _read(path: Path) -> bytearray:
    """The content of a file.

    Raises FileNotFoundError if the file is missing, or if a network disk reports that the file has been deleted
    meanwhile. Raises CheckpointError for any other error.
    """
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(path)) from None
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return data


# What a run directory records about its training.

TRAINED = "trained.json"  # a run directory has this file once its training is finished
RACE = "race.json"  # the record of `mtkit race`


def noted_validation(run: Path) -> str | None:
    """The checksum of the validation text of a run, as recorded in the run's newest readable checkpoint.

    If no checkpoint can be read, the checksum in trained.json is returned instead. Returns "" if an earlier version of
    mtkit recorded no checksum, and `None` if neither a checkpoint nor trained.json can be read.
    """
    for step in reversed(checkpoint_steps(run / "checkpoints")):
        try:
            _, identity, _ = read_progress(run / "checkpoints", step)
        except CheckpointError:
            continue
        return str(identity.get("validation", ""))
    try:
        found = json.loads((run / TRAINED).read_bytes())
    except (OSError, ValueError):
        return None
    return str(found.get("validation", "")) if isinstance(found, dict) else None
