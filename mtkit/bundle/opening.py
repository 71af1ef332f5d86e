"""Opens the model at a path (a bundle, or a checkpoint read as one) and the model that training starts from.

Checkpoints may be read even while training continues.
"""

import errno
import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import (
    CANARIES,
    CONFIG,
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    Member,
    Storage,
    bundle_at,
    bundle_of,
    canaries_text,
    carried_config,
    description_of,
    no_model,
    open_storage,
    read_tensors,
    sums_of,
    tokenizer_files,
)
from mtkit.config.load import check_tags, config_from_text, with_sections
from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.data.batches import ORDER
from mtkit.errors import CheckpointError, ConfigError, say
from mtkit.files import standing
from mtkit.text.parallel import describe_tags, extend_command
from mtkit.text.tokenizer import Tokenizer, bundled_settings

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
        """The fields of a log line for this window, with means over its updates.

        Losses are in nats per target token. The field `lr` is the learning rate of the last update only. `seconds` is
        the training time so far; the field `minutes` has the same time in minutes. The window must contain at least one
        update.
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
    order: int = ORDER  # number of the rule that sorts pairs into batches; lower in runs begun by earlier versions
    target_tokens: int = 0  # target tokens of these pairs, with end marks; mtkit 0.1.0 did not count them
    seconds: float = 0.0  # training time, summed over all sessions of the run
    precision: str = ""  # fp32, bf16 or fp16
    validated_step: int = 0  # the last step that was validated
    # Step of the best validation. 0 means that there is none yet or, if has_best is true, that the best is the model
    # that training started from.
    best_step: int = 0
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
    ending: dict[str, Any] | None = None  # the decay of --end-in: the fields of Ending in training/optimizers.py
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

CHECKPOINT_WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
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
    """The steps of all complete checkpoints in the folder `checkpoints`, in ascending order.

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
    progress.json is damaged or missing, or has a format that this version of mtkit does not read.
    """
    path = step_directory(checkpoints, step) / PROGRESS
    try:
        return parse_progress(path.read_bytes(), path)
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: damaged or missing; {remedy(checkpoints, step)}") from None


def parse_progress(data: bytes, path: Path) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """Parses `data`, the content of the progress.json at `path`, which belongs to a checkpoint.

    Returns the progress, the identity of the run (the settings and checksums that must match for the run to resume),
    and {file name: SHA-256} for the checkpoint's files. Raises ValueError if `data` is damaged, and CheckpointError if
    its format is not the one that this version of mtkit reads.
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
    return read_tensors_of(checkpoints, step, CHECKPOINT_WEIGHTS)


def measured_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights that validation evaluated at `step`.

    If the checkpoint has an average of the weights over updates, validation evaluated this average.
    """
    _, _, checksums = read_progress(checkpoints, step)
    return read_tensors_of(checkpoints, step, AVERAGE if AVERAGE in checksums else CHECKPOINT_WEIGHTS)


def average_weights(checkpoints: Path, steps: Iterable[int]) -> dict[str, Tensor]:
    """The mean of the weights that validation evaluated at several steps (Junczys-Dowmunt et al. 2016).

    `steps` are the steps of checkpoints, and `measured_weights` reads the weights of each. The mean is computed in fp64
    and returned in fp32.
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
    because the run was stopped. `best_step` may be missing from `scheduled`, if the run was once stopped at that step
    and later resumed.

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
    """A checkpoint in memory, with the weights that validation evaluated: an average over updates, if there is one."""

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
    path = directory / (AVERAGE if AVERAGE in checksums else CHECKPOINT_WEIGHTS)
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
    """Calls `read` and returns the result; if `read` raises FileNotFoundError, waits and tries again.

    `read` reads a checkpoint, which training may delete at the same moment. Raises CheckpointError after TRIES failed
    calls.
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
    """Parses `data`, the content of the progress.json at `path`; returns progress, identity and checksums.

    The values are those that `parse_progress` returns. Raises CheckpointError if `data` is damaged or has another
    format.
    """
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


# Opening models.

# The model at a path: a bundle, a run directory or a checkpoint.


@dataclass(frozen=True)
class CheckpointStorage:
    """A checkpoint presented as the files of a bundle.

    The tokenizer and the settings come from the run that the checkpoint belongs to. Training may delete the checkpoint,
    so all files are held in memory.
    """

    path: Path  # of the checkpoint
    run: Path  # the run directory
    step: int
    choice: str | None  # a phrase on why mtkit chose this checkpoint of its run; None if the user named it
    files: Mapping[str, memoryview]  # contents by name

    def place(self, name: str) -> Path:
        """The path of a file, for messages: weights are in the checkpoint, all other files in the run directory."""
        return self.path / name if name == WEIGHTS else self.run / name

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return sorted(self.files)

    @property
    def num_bytes(self) -> int:
        """The total size of all files in bytes; the optimizer state of the checkpoint is not among them."""
        return sum(map(len, self.files.values()))

    def view(self, name: str) -> memoryview:
        """The content of the file called `name`; raises FileNotFoundError if there is no such file."""
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def strange(self, members: Sequence[Member]) -> str | None:
        """Always `None`: only an archive can differ from what `mtkit pack` writes, and this is no archive."""
        return None


def has_model(run: Path) -> bool:
    """Whether the run directory `run` contains the bundle that training writes when it is finished."""
    return (standing(run / "model") / DESCRIPTION).exists()


def is_begun(run: Path) -> bool:
    """Whether a run has a checkpoint or a finished model, that is, progress that could be lost."""
    return bool(step_directories(run / "checkpoints")) or has_model(run)


def find_model(path: Path) -> Storage:
    """The storage of the model at `path`, which is a bundle, a run directory or a checkpoint.

    For an unfinished run, the model is a checkpoint: the best so far, or the newest if the best is not known. Raises
    CheckpointError if there is no model or if the model is damaged.
    """
    if bundle := bundle_at(path):
        return open_storage(bundle)
    return retried(partial(_find_checkpoint, path))


def open_model(path: Path) -> Bundle:
    """Opens the model at `path`, which is a bundle, a run directory or a checkpoint.

    Raises CheckpointError if there is no model or the model's files are damaged, and ConfigError if the model's
    settings are not valid.
    """
    return bundle_of(find_model(path))


def open_and_tell(path: Path) -> Bundle:
    """Opens the model at `path` as `open_model` does.

    If mtkit chose a checkpoint from an unfinished run, prints on stderr which checkpoint.
    """
    bundle = open_model(path)
    tell(bundle.storage)
    return bundle


def tell(storage: Storage) -> None:
    """If mtkit chose a checkpoint from an unfinished run, prints on stderr which checkpoint; else does nothing."""
    if isinstance(storage, CheckpointStorage) and storage.choice:
        say(f"{storage.run}: not finished; using step {storage.step:,}, {storage.choice}")


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint of a run; `None` if the run is finished or has no checkpoint."""
    return None if is_finished(run) else max(readable_steps(run / "checkpoints"), default=None)


def is_finished(run: Path) -> bool:
    """Whether the training of a run is finished."""
    return (run / TRAINED).exists()


# A checkpoint read as a bundle.


def _find_checkpoint(path: Path) -> CheckpointStorage:
    """Reads the checkpoint at `path`; if `path` is a run directory, reads the checkpoint that `best_step` chooses.

    That is the best checkpoint so far, or the newest if the best is not known. Raises CheckpointError if there is no
    checkpoint, and FileNotFoundError if training deletes the checkpoint meanwhile.
    """
    if is_checkpoint(path):
        run = _run_around(path)
        if run is None:
            raise CheckpointError(
                f"{path}: a checkpoint without its run, which has its tokenizer and its settings; name it where "
                "training wrote it, as RUN/checkpoints/step-…"
            )
        return _checkpoint(run, path, None)
    if readable_steps(path / "checkpoints"):
        step, choice = best_step(path)
        return _checkpoint(path, step_directory(path / "checkpoints", step), choice)
    if steps := readable_steps(path):
        newest = step_directory(path, steps[-1])
        raise CheckpointError(f"{path}: holds checkpoints; name the run directory, or one of them, such as {newest}")
    if STEP.fullmatch(path.name) and (steps := readable_steps(path.parent)):
        shown = ", ".join(f"{step:,}" for step in steps)
        raise CheckpointError(f"{path}: no such checkpoint; there are those of steps {shown}")
    raise no_model(path)


def _run_around(checkpoint: Path) -> Path | None:
    """The run directory that contains `checkpoint`, or `None` if `checkpoint` is not in a run directory.

    Both the checkpoint and the folder that contains it may be symbolic links.
    """
    for place in (checkpoint.absolute(), checkpoint.resolve()):
        if (place.parent.parent / CONFIG).is_file():
            return place.parent.parent
    return None


def _checkpoint(run: Path, directory: Path, choice: str | None) -> CheckpointStorage:
    """Reads the checkpoint in `directory`, which belongs to the run directory `run`.

    `choice` is a phrase on why mtkit chose this checkpoint; `None` if the user named the checkpoint.
    """
    snapshot = read_snapshot(directory)
    tokenizer = run_tokenizer(run, directory, snapshot.identity)
    config = run_config(run, snapshot.identity)
    # A shortlist is made when training ends.
    decoding = config.decoding.model_copy(update={"shortlist": None})
    settings = bundled_settings(config.tokenizer, tokenizer)
    config = config.model_copy(update={"tokenizer": settings, "decoding": decoding})
    tokenizer_files = tokenizer.files()
    files = {
        CONFIG: carried_config(config),
        CANARIES: canaries_text([]),
        **{f"{TOKENIZER}/{name}": content for name, content in tokenizer_files.items()},
    }
    sums = {name: sums_of(memoryview(content)).told for name, content in files.items()}
    sums[WEIGHTS] = {"bytes": len(snapshot.weights), "sha256": snapshot.sha256}
    step = snapshot.progress.step
    about = {
        "mtkit": _noted(run).get("mtkit", __version__),
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights_of(snapshot, directory).values())),
        "training": training_of(run, snapshot, [step], choice),
    }
    description = description_of(config, tokenizer_files, sums, about)
    views = {name: memoryview(content) for name, content in {**files, DESCRIPTION: description}.items()}
    return CheckpointStorage(directory, run, step, choice, {**views, WEIGHTS: memoryview(snapshot.weights)})


def weights_of(snapshot: Snapshot, directory: Path) -> dict[str, Tensor]:
    """The weights in `snapshot`, by parameter name.

    Raises CheckpointError if the weights are damaged; the message begins with `directory`.
    """
    return read_tensors(memoryview(snapshot.weights), str(directory))


def best_step(run: Path) -> tuple[int, str]:
    """The step of the checkpoint to use for a run, and a phrase that gives the reason for this choice.

    The best checkpoint so far is chosen. If no checkpoint has been validated yet, or if the best one has been deleted,
    the newest checkpoint is chosen.

    Raises CheckpointError if the run has no checkpoint.
    """
    checkpoints = run / "checkpoints"
    select_by = run_config(run).training.select_by
    # From here on, nothing may take long, since training may delete the checkpoint that is chosen.
    steps = readable_steps(checkpoints)
    if not steps:
        raise no_model(run)
    progress = read_progress_at(step_directory(checkpoints, steps[-1]))
    if not progress.has_best:
        return steps[-1], "the newest (none is validated yet)"
    if progress.best_step not in steps:
        return steps[-1], f"the newest (the best, step {progress.best_step:,}, is gone)"
    score = _score_text(select_by, progress.best_score)
    return progress.best_step, f"the best{'' if is_finished(run) else ' so far'} ({score})"


def _score_text(select_by: str, score: float) -> str:
    """A validation score with the name of the metric, for example "BLEU 31.20".

    If `select_by` is "loss", `score` is the negative of the loss, and the text has the loss itself: "nll 2.1000" for a
    score of -2.1.
    """
    if select_by == "loss":
        return f"nll {-score:.4f}"
    return f"{ {'bleu': 'BLEU', 'chrf': 'chrF'}[select_by] } {score:.2f}"


# Parts of a run directory that its checkpoints need: settings, tokenizer, facts about the training data.


def run_config(run: Path, identity: Mapping[str, Any] | None = None) -> Config:
    """The settings in the config.yaml of a run.

    `identity` comes from a checkpoint of the run and has the settings and checksums that must match for the run to
    resume. If `identity` is given, the section `model` is taken from `identity` instead of config.yaml. Raises
    CheckpointError if config.yaml is damaged or missing, and ConfigError if the settings are not valid.
    """
    path = standing(run / CONFIG)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path}: damaged or missing; it has the settings of the run: go on with mtkit train, which writes it"
        ) from None
    config = config_from_text(text, str(path)).model_copy(update={"run_dir": run})
    return with_sections(config, {"model": identity["model"]}, str(path)) if identity else config


def run_tokenizer(run: Path, directory: Path, identity: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a run.

    `identity` has the settings and checksums that were stored in the checkpoint in `directory`. Raises CheckpointError
    if that checkpoint was trained with another tokenizer. If the checkpoint has been deleted meanwhile, raises
    FileNotFoundError instead.
    """
    place = standing(run / TOKENIZER)
    tokenizer = Tokenizer.load(place)
    if tokenizer.hash != identity["tokenizer"]:
        if not is_checkpoint(directory):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(directory))  # the run was started anew
        raise CheckpointError(f"{place}: not the tokenizer that {directory} was trained with; copy the run again")
    return tokenizer


def training_of(run: Path, newest: Snapshot, steps: Sequence[int], choice: str | None) -> dict[str, Any]:
    """The value of the key `training` in bundle.json: facts about the training of the model.

    `steps` are the steps of the averaged checkpoints, and `newest` is the checkpoint of the last of these steps.
    `choice` is a phrase on why mtkit chose these checkpoints; `None` if the user named a checkpoint.
    """
    progress, data = newest.progress, _noted(run).get("data")
    return {
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "pairs_seen": progress.pairs,
        "averaged_steps": list(steps),
        "start_from": newest.identity["training"].get("start_from"),
        **({"data": data} if data else {}),
        "finished": is_finished(run),
        **({"choice": choice} if choice else {}),
    }


def _noted(run: Path) -> dict[str, Any]:
    """The content of run.json, which training writes when it starts; empty if the file is missing or damaged."""
    try:
        content = json.loads((run / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# The model that training starts from (training.start_from): its weights, its tokenizer and its settings.

# The end of the text that noted_start returns for a checkpoint that mtkit chose from an unfinished run. Later, another
# checkpoint of that run may be the best.
UNFINISHED = "of a run that was not finished"


def start_bundle(config: Config) -> Bundle | None:
    """Opens the model that training.start_from names; `None` if training.start_from is not set.

    Raises CheckpointError if the model is missing or damaged, and ConfigError if the model does not fit the settings.
    """
    path = config.training.start_from
    if path is None:
        return None
    try:
        bundle = open_model(path)
        bundle.require_own_tokenizer()
        bundle.weights()  # checked here, since training builds the model before it reads the weights
        tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from None
    if _belongs_to(bundle.storage, config):
        raise _own_run(config)
    found = config.model_dump(mode="json", include={"model", "tokenizer"})
    wanted = bundle.config.model_dump(mode="json", include={"model", "tokenizer"})
    if different := list(_different("model", wanted["model"], found["model"])):
        raise _other_model(config, different)
    if different := list(_different("tokenizer", wanted["tokenizer"], found["tokenizer"])):
        raise ConfigError(
            f"training.start_from {path}: its tokenizer goes with its weights and is another one; leave these out of "
            f"your settings, or copy them: {', '.join(different)}"
        )
    _require_train_tags(config, tokenizer)
    return bundle


def carried_over(config: Config) -> Config:
    """Returns `config`, completed with settings of the model that training.start_from names.

    Without training.start_from, `config` is returned unchanged. Otherwise, the sections model, tokenizer, languages and
    decoding are filled in. Settings that `config` gives explicitly take precedence. However, explicit settings in the
    sections model and tokenizer must equal those of the model to start from; `start_bundle` checks this. Only dropout
    may differ: it is not part of the weights, and the best dropout depends on the amount of data.

    If the model to start from cannot be opened, the four sections are read from the run's own config.yaml. If
    config.yaml does not exist either, `config` is returned unchanged, provided that it is valid without the model's
    settings; otherwise, CheckpointError is raised.

    Raises ConfigError if `config` gives another architecture than that of the model to start from. Also raises
    ConfigError if `config` uses an unknown tag, such as <2de>; `_check_tags` says which tags are known.
    """
    if config.training.start_from is None:
        check_tags(config)
        return config
    carried = _carried_over(config)
    _check_tags(carried)
    return carried


def _carried_over(config: Config) -> Config:
    """Returns `config`, completed with settings of the model that training.start_from names; checks no tags.

    The sections model, tokenizer, languages and decoding are filled in, as `carried_over` explains. training.start_from
    must be set.
    """
    assert config.training.start_from is not None
    try:
        bundle = open_model(config.training.start_from)
        if isinstance(bundle.storage, CheckpointStorage) and _belongs_to(bundle.storage, config):
            raise _own_run(config)
        carried = bundle.config
    except CheckpointError as error:
        resolved = config.run_path / CONFIG
        if not resolved.is_file():
            _require_complete(config, error)
            return config  # reported when the model is opened
        carried = config_from_text(resolved.read_text(encoding="utf-8"), str(resolved))
    names = ("model", "tokenizer", "languages", "decoding")
    if different := list(_other_kinds("model", carried.model, config.model)):
        raise _other_model(config, different)
    sections = {name: _merged(getattr(carried, name).model_dump(mode="json"), getattr(config, name)) for name in names}
    return with_sections(config, sections, f"training.start_from {config.training.start_from} with your settings")


def _require_complete(config: Config, error: CheckpointError) -> None:
    """Raises CheckpointError if `config` is not valid without the settings of the model to start from.

    `error` says why that model cannot be opened, and becomes part of the message.
    """
    try:
        with_sections(config, {}, "")
    except ConfigError:
        raise CheckpointError(f"training.start_from: {error}") from None


def _belongs_to(storage: Storage, config: Config) -> bool:
    """Whether the model in `storage` is inside the run directory that `config` names; symbolic links are followed."""
    place = storage.run if isinstance(storage, CheckpointStorage) else storage.path
    return place.resolve().is_relative_to(config.run_path.resolve())


def _own_run(config: Config) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from} is this run itself; give the run another name"
    )


def _check_tags(config: Config) -> None:
    """Raises ConfigError if the settings use a tag, such as <2de>, that the model to start from does not know.

    A tag of a validation or test set is also accepted if it is a tag of data.train.

    Tags of data.train are checked only before the run begins. Earlier versions of mtkit accepted unknown tags, which
    the tokenizer splits into pieces, and a run that began with one of these versions must be able to continue.
    """
    if not config.data.train_tags and not any(config.data.untrained_tags(())):
        return
    tokenizer = _known_tokenizer(config)
    if tokenizer is None:
        return  # reported when the model is opened
    if not is_begun(config.run_path):
        _require_train_tags(config, tokenizer)
    check_tags(config, tokenizer.tags)


def _require_train_tags(config: Config, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if data.train has a tag that `tokenizer` would split into pieces."""
    unknown = [tag for tag in config.data.train_tags if tag not in tokenizer.tags]
    if not unknown:
        return
    start = config.training.start_from
    told = f"training.start_from {start}: the model does not know tag {', '.join(unknown)} of data.train"
    pieces = set(tokenizer.source_pieces(range(tokenizer.source_vocab_size)))
    if taken := [tag for tag in unknown if tag in pieces]:
        raise ConfigError(
            f"{told}, and {', '.join(taken)} is a piece of its vocabulary that other words are made of; take another "
            "tag, such as <2de>"
        )
    raise ConfigError(
        f"{told}; {describe_tags(tokenizer.tags)}. Add what is missing by "
        f"`{extend_command(shlex.quote(str(start)), unknown)}`, and start from LARGER"
    )


def _known_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the model to start from, or else the copy of the tokenizer in the run directory.

    Returns `None` if the tokenizer cannot be read.
    """
    try:
        if tokenizer := start_tokenizer(config):
            return tokenizer
        return Tokenizer.load(config.run_path / TOKENIZER)
    except CheckpointError:
        return None


def _other_model(config: Config, different: list[str]) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from}: its model has other settings; leave these out of yours, or "
        f"copy them: {', '.join(different)}"
    )


def _other_kinds(section: str, carried: Section, ours: Section) -> Iterator[str]:
    """Yields a message for each architecture in `ours` that differs from the one in `carried`.

    `ours` has the settings of the run, and `carried` has those of the model to start from. An architecture that `ours`
    does not give explicitly is not compared. In a mixed model, encoder and decoder are compared separately. `section`
    is the name of both sections in the messages, such as model.encoder.

    Models of different architectures have different settings, so architectures are compared before all other settings.
    """
    if "architecture" in ours.model_fields_set and type(carried) is not type(ours):
        theirs, said = (kind.model_dump()["architecture"] for kind in (carried, ours))
        yield f"{section}.architecture: {theirs} (found {said})"
        return
    for name, half in ours:
        before = getattr(carried, name, None)
        if isinstance(half, Section) and isinstance(before, Section):
            yield from _other_kinds(f"{section}.{name}", before, half)


def _merged(carried: dict[str, Any], ours: Section) -> dict[str, Any]:
    """Returns `carried`, overridden by the settings that `ours` gives explicitly; nested sections are merged too."""
    merged = dict(carried)
    for name in ours.model_fields_set:
        value, before = getattr(ours, name), carried.get(name)
        if isinstance(value, Section) and isinstance(before, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = ours.model_dump(mode="json")[name]
    return merged


def _different(section: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yields a message for each setting, except dropout, whose values in `wanted` and `found` differ.

    `wanted` has the settings of the model to start from, and `found` has those of the run. `section` is the name of
    both sections in the messages, such as model.encoder.
    """
    for key in {**wanted, **found}:
        theirs, ours = wanted.get(key), found.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            yield from _different(f"{section}.{key}", theirs, ours)
        elif theirs != ours and not key.endswith("dropout"):
            yield f"{section}.{key}: {theirs} (found {ours})"


def start_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the model to start from.

    Returns `None` if training.start_from is not set, or if the model that it names is missing or damaged.

    Raises CheckpointError if the tokenizer itself is damaged.
    """
    storage = _start_storage(config)
    return None if storage is None else Tokenizer.from_files(tokenizer_files(storage), storage.place(TOKENIZER))


def start_checksum(config: Config, noted: object = None) -> str | None:
    """The checksum of the weights at training.start_from, to tell whether they have changed since the run started.

    `noted` is the text that `noted_start` returned at step 0. If training started from a checkpoint that mtkit chose
    from an unfinished run, `noted` is returned unchanged: mtkit may choose another checkpoint by now, so there is
    nothing to compare.

    Otherwise, returns `None` if training.start_from is not set or names an unfinished run, or if the model is missing
    or damaged. A missing model is no error, since training needs the model only at step 0.
    """
    if config.training.start_from is not None and isinstance(noted, str) and noted.endswith(UNFINISHED):
        return noted
    storage = _start_storage(config)
    if storage is None or WEIGHTS not in storage.names() or _was_chosen(storage):
        return None
    return _checksum_of(storage)


def noted_start(bundle: Bundle) -> str:
    """The text that training records about the weights that it starts from: a checksum of these weights.

    If mtkit chose a checkpoint of an unfinished run, the step of the checkpoint and the phrase in UNFINISHED follow:
    "sha256:…, step 1,000 of a run that was not finished".
    """
    storage = bundle.storage
    if isinstance(storage, CheckpointStorage) and _was_chosen(storage):
        return f"{_checksum_of(storage)}, step {storage.step:,} {UNFINISHED}"
    return _checksum_of(storage)


def _checksum_of(storage: Storage) -> str:
    """The checksum of the weights, as "sha256:" and hexadecimal digits."""
    return f"sha256:{sums_of(storage.view(WEIGHTS)).sha256}"


def _was_chosen(storage: Storage) -> bool:
    """Whether `storage` is a checkpoint that mtkit chose from its run, not one that the user named."""
    return isinstance(storage, CheckpointStorage) and storage.choice is not None


def _start_storage(config: Config) -> Storage | None:
    """The storage of the model to start from.

    Returns `None` if training.start_from is not set, or if the model that it names is missing or damaged.
    """
    if config.training.start_from is None:
        return None
    try:
        return find_model(config.training.start_from)
    except CheckpointError:
        return None
