"""Checkpoints on disk: what they hold, and how they are read, also while training continues."""

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

from mtkit.errors import CheckpointError
from mtkit.files import standing

# Progress: what a checkpoint holds besides weights and optimizer.

FIRST_SCALE = 2.0**16  # PyTorch's; too high for many models, so the first updates lower it to what fits


@dataclass(frozen=True)
class Update:
    """Statistics of one update."""

    loss: float  # summed over its target tokens, in nats
    nll: float
    tokens: int
    norm: float  # of the gradient, before clipping
    rate: float  # learning rate
    padding: float  # share of positions without a token
    consistency: float | None = None  # divergence of two passes, summed likewise

    @property
    def is_finite(self) -> bool:
        """Whether the update may be made."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass
class Window:
    """Sums over the updates since the last line of the log; in the checkpoint, so that a resumed run logs the same."""

    updates: int = 0
    loss: float = 0.0
    likelihood: float = 0.0  # negative log-likelihoods, under the name that checkpoints have
    tokens: int = 0
    norm: float = 0.0
    padding: float = 0.0
    rate: float = 0.0  # of the last update
    since: float = 0.0  # seconds of training when the window began
    consistency: float | None = None

    def add(self, update: Update) -> None:
        """Add an update."""
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
        """Means over the updates, at least one, after so many seconds of training; losses in nats per token."""
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


Change = dict[str, Any]  # step and pairs at which settings changed, and settings: {name: [before, after]}


@dataclass
class Progress:
    """How far training is, and what `auto` settings were resolved to."""

    step: int = 0  # updates done
    pairs: int = 0  # pairs consumed: the position in the plan
    seconds: float = 0.0  # of training, over all processes of the run
    precision: str = ""
    validated_step: int = 0  # the last step that was validated
    best_step: int = 0  # of the best validation; 0, if has_best, is the model that training started from
    best_score: float = float("-inf")  # higher is better; -inf: none yet
    bad_validations: int = 0  # since the best step
    stale_validations: int = 0  # since the best step, or since the learning rate was lowered
    rate_lowered: int = 0  # how many times the learning rate was lowered after validation
    skipped: int = 0  # updates that were not finite
    skipped_in_row: int = 0
    overflows: int = 0  # updates in fp16 that only lowered the loss scale
    loss_scale: float = FIRST_SCALE
    scale_updates: int = 0  # since the loss scale changed
    log_bytes: int = 0  # length of log.jsonl, which is cut back to it
    changes: list[Change] = field(default_factory=list)  # of settings, by step
    plan: dict[str, Any] | None = None  # what auto settings were resolved to
    window: Window = field(default_factory=Window)  # the updates since the last line of the log

    @property
    def has_best(self) -> bool:
        """Whether any validation has been the best one so far."""
        return self.best_step > 0 or self.best_score > float("-inf")


def setting_at(chain: Sequence[Change], name: str, step: int, now: Any) -> Any:
    """The value of a setting when the update of a step was made; now is its value after all changes."""
    later = (change["settings"] for change in chain if change["step"] >= step)
    return next((settings[name][0] for settings in later if name in settings), now)


# The files of checkpoints, as training reads them.

FORMAT = 1

# The names that mtkit gives to checkpoints; everything else beside them is the user's.
STEP = re.compile(r"step-(\d{8,})")

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
AVERAGE = "average.safetensors"  # the moving average of the weights, where there is one


def step_directory(checkpoints: Path, step: int) -> Path:
    """The directory of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories with the name of a checkpoint, complete or not, by step."""
    found = (path for path in checkpoints.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=_step_of)


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def checkpoint_steps(checkpoints: Path, resumable: bool = False) -> list[int]:
    """The steps of all checkpoints, or of those that training can resume from, ascending."""
    needed = (PROGRESS, OPTIMIZER) if resumable else (PROGRESS,)
    return [
        _step_of(directory)
        for directory in step_directories(checkpoints)
        if all((directory / name).exists() for name in needed)
    ]


def read_progress(checkpoints: Path, step: int) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """The progress in a checkpoint, the identity of its run, and the checksums of its files."""
    path = step_directory(checkpoints, step) / PROGRESS
    try:
        return parse_progress(path.read_bytes(), path)
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: damaged or missing; {remedy(checkpoints, step)}") from None


def parse_progress(data: bytes, path: Path) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """The progress, identity and checksums in a progress.json; raises ValueError if it is damaged."""
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) != content_checksum(content):
        raise ValueError("its checksum is not the one it was saved with")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}, but this version of mtkit reads {FORMAT}")
    values = content["progress"]
    progress = Progress(**{**values, "window": Window(**values["window"])})
    return progress, content["identity"], content["files"]


def read_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights of a checkpoint."""
    return read_tensors_of(checkpoints, step, WEIGHTS)


def measured_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights of a checkpoint that validation measured: their moving average where there is one."""
    _, _, checksums = read_progress(checkpoints, step)
    return read_tensors_of(checkpoints, step, AVERAGE if AVERAGE in checksums else WEIGHTS)


def average_weights(checkpoints: Path, steps: Iterable[int]) -> dict[str, Tensor]:
    """The mean of the measured weights of several checkpoints (Junczys-Dowmunt et al. 2016), summed in fp64."""
    return mean_weights(measured_weights(checkpoints, step) for step in steps)


def mean_weights(checkpoints: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several sets of weights, read one at a time and summed in fp64."""
    total: dict[str, Tensor] = {}
    count = 0
    for weights in checkpoints:
        count += 1
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / count).float() for name, tensor in total.items()}


def averaged_steps(scheduled: list[int], best_step: int, count: int) -> list[int]:
    """The steps to average: the last count of the scheduled ones up to the best step, with the best step.

    scheduled leaves out checkpoints that were only saved because a run was stopped. The best step may be one of those,
    where a lower limit ended the run before. Step 0, the model that training started from, is only ever taken alone:
    averaging evens out the noise of updates, of which it has none, and would pull the average back to the start.
    """
    if best_step == 0:
        return [0]
    return sorted(step for step in {*scheduled, best_step} if 0 < step <= best_step)[-count:]


def read_tensors_of(checkpoints: Path, step: int, name: str) -> dict[str, Tensor]:
    """The tensors in a file of a checkpoint, its checksum verified."""
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
    """What the user can do about a damaged checkpoint."""
    others = [other for other in checkpoint_steps(checkpoints, resumable=True) if other != step]
    if not others:
        return "start anew with --fresh"
    if others[-1] < step:
        return f"delete {step_directory(checkpoints, step)} to go on from step {others[-1]:,}"
    return f"delete {step_directory(checkpoints, step)} to go on without it"


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Reading while training may continue, and may delete or replace what is read.

TRIES, PAUSE_SECONDS = 20, 0.05

Found = TypeVar("Found")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, with the weights that validation measured: their moving average where there is one."""

    progress: Progress
    identity: dict[str, Any]
    weights: bytearray  # the content of a safetensors file
    sha256: str  # of weights


def readable_steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints that can be read, ascending, also while one of them is being replaced."""
    names = {path.name for path in checkpoints.glob("step-*")}
    names |= {path.name[1:].removesuffix(".old") for path in checkpoints.glob(".step-*.old")}
    steps = {int(name[1]) for name in map(STEP.fullmatch, names) if name}
    return sorted(step for step in steps if is_checkpoint(step_directory(checkpoints, step)))


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is a checkpoint."""
    return (standing(directory) / PROGRESS).is_file()


def read_progress_at(directory: Path) -> Progress:
    """The progress in a checkpoint; raises FileNotFoundError if training has just deleted it."""
    path = standing(directory) / PROGRESS
    return _parsed(_read(path), path)[0]


def read_snapshot(directory: Path) -> Snapshot:
    """The checkpoint in a directory, verified; raises FileNotFoundError if training has just deleted it."""
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
    if _read(directory / PROGRESS) != noted:  # training writes it last, and deletes it first
        raise FileNotFoundError(errno.ENOENT, "replaced while it was read", str(path))
    raise CheckpointError(f"{path}: {fault}; use another checkpoint")


def retried(read: Callable[[], Found]) -> Found:
    """The result of read, which is called again, a few times, if training deletes what it was reading."""
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
    """The content of a file; raises FileNotFoundError also if a network disk reports it as deleted meanwhile."""
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(path)) from None
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return data


TRAINED = "trained.json"  # in a run directory: its training is finished


def noted_validation(run: Path) -> str | None:
    """The checksum of the validation text that a run was trained with; "" if an earlier version did not note it.

    It is from the newest readable checkpoint, or else from the finished training; None if there is neither.
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
