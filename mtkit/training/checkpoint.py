"""Writes, loads and deletes checkpoints, and replaces an old run by a new one (--fresh)."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mtkit.bundle.checkpoints import (
    AVERAGE,
    FORMAT,
    OPTIMIZER,
    PROGRESS,
    RACE,
    STEP,
    TRAINED,
    WEIGHTS,
    Progress,
    averaged_steps,
    checkpoint_steps,
    content_checksum,
    file_checksum,
    read_progress,
    read_tensors_of,
    read_weights,
    step_directories,
    step_directory,
)
from mtkit.errors import CheckpointError
from mtkit.files import (
    bring_back,
    drop_aside,
    put_aside,
    remove,
    replaced_directory,
    settle,
    undone_when_ended,
    write_file,
)
from mtkit.training.optimizers import ScheduleFree, optimizer_tensors, remembers_alike, restore_optimizer
from mtkit.training.update import TrainState

LEFTOVER = re.compile(r"\.(step-\d{8,})\.(new|old)")


def clear_leftovers(checkpoints: Path) -> None:
    """Restore or remove checkpoints that a killed process left half written or half deleted.

    Only the process that holds the lock of the run may call this function.
    """
    for leftover in list(checkpoints.glob(".step-*")):
        if name := LEFTOVER.fullmatch(leftover.name):
            settle(leftover.with_name(name[1]))
            remove(leftover)
    for directory in step_directories(checkpoints):
        if not (directory / PROGRESS).exists():  # written last and deleted first
            remove(directory)


def save_checkpoint(checkpoints: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write the checkpoint of the current step. Raises CheckpointError if a file cannot be written.

    `identity` holds settings and checksums (see `identity_of`). When a run resumes from the checkpoint, the run's
    settings and checksums are compared with these.
    """
    path = step_directory(checkpoints, state.progress.step)
    weights = {name: parameter.detach() for name, parameter in state.model.named_parameters()}
    tensors = {WEIGHTS: weights, OPTIMIZER: optimizer_tensors(state.optimizer, state.model)}
    if state.average is not None:
        tensors[AVERAGE] = state.average.weights
    try:
        with replaced_directory(path) as new:
            for name in tensors:
                save_file(tensors[name], new / name)
            files = {name: file_checksum(new / name) for name in tensors}
            content = {"format": FORMAT, "progress": _as_json(state.progress), "identity": identity, "files": files}
            text = json.dumps({**content, "sha256": content_checksum(content)}, indent=1)
            (new / PROGRESS).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; the checkpoints before it are untouched: make room and start again"
        ) from None


def _as_json(progress: Progress) -> dict[str, Any]:
    """Returns `progress` as a dict for JSON.

    Empty fields are left out if earlier versions of mtkit do not know them.
    """
    recent = ("changes", "plan", "ending")
    return {name: value for name, value in asdict(progress).items() if value or name not in recent}


def load_checkpoint(checkpoints: Path, step: int, state: TrainState) -> None:
    """Load the checkpoint of `step` into `state`: the weights, their average, the state of the optimizer, and progress.

    If the optimizer of the checkpoint is of another kind than the one in `state` (sgd instead of Adam, for example),
    the optimizer's state is not loaded. The average in `state` is set to the weights in two cases: if the
    checkpoint has no average, or if the optimizer is schedule_free and the optimizer's state is not loaded. Raises
    CheckpointError if a file is damaged or missing.
    """
    progress, _, files = read_progress(checkpoints, step)
    weights = read_weights(checkpoints, step)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(weights[name])
    memory = read_tensors_of(checkpoints, step, OPTIMIZER)
    if remembers_alike(state.optimizer, memory):
        restore_optimizer(state.optimizer, state.model, memory)
    if state.average is not None:
        begins_anew = isinstance(state.optimizer, ScheduleFree) and not state.optimizer.state
        is_kept = AVERAGE in files and not begins_anew
        state.average.restore(read_tensors_of(checkpoints, step, AVERAGE) if is_kept else weights)
    state.progress = progress


def delete_old(checkpoints: Path, scheduled: list[int], best_step: int, average: int, keep: int) -> None:
    """Delete checkpoints that are no longer needed, and the optimizer state of all but the newest `keep` checkpoints.

    Three kinds of checkpoints are needed. The first is the newest `keep` checkpoints. The second is the best checkpoint
    and the checkpoints to be averaged with the best one. The third is the last `average` checkpoints in `scheduled`: a
    later best checkpoint may be averaged with them. Call this function after the newest checkpoint is written.
    """
    steps = checkpoint_steps(checkpoints)
    newest = set(checkpoint_steps(checkpoints, resumable=True)[-keep:])
    needed = newest | set(averaged_steps(scheduled, best_step, average)) | set(scheduled[-average:])
    for step in steps:
        directory = step_directory(checkpoints, step)
        if step not in needed:
            if not directory.is_symlink():
                (directory / PROGRESS).unlink()  # first, so that what a kill leaves is not taken for a checkpoint
            remove(directory)
        elif step not in newest:
            (directory / OPTIMIZER).unlink(missing_ok=True)


# Fresh starts: the old run is deleted only when the new one has a checkpoint.

MARKER = ".fresh.json"  # exists while an old run is set aside; holds its state, "begun" or "aside"

NAMES = (
    "log.jsonl",
    TRAINED,
    RACE,
    "evaluated.json",
    "config.yaml",
    "run.json",
    "tensorboard",
)  # what training wrote, besides checkpoints and model
PREPARED = ("tokenizer", "data/train", "data/valid")  # what training read; set aside only if it is made again


class FreshStart:
    """The replacement of an old run by a new one in the same directory."""

    def __init__(self, run: Path) -> None:
        """Remember the run directory; no file is changed until `begin` is called."""
        self.run = run
        self.is_over = False

    def begin(self) -> None:
        """Rename the checkpoints and records of the old run to hidden names; the old model, tokenizer and data stay."""
        _write_marker(self.run, "begun")
        for directory in step_directories(self.run / "checkpoints"):
            directory.rename(_hidden(directory))
        for name in NAMES:
            put_aside(self.run / name)
        if (tensorboard := self.run / "tensorboard").is_symlink():
            tensorboard.resolve().mkdir(exist_ok=True)  # TensorBoard cannot write to a dangling link
        _write_marker(self.run, "aside")

    def put_aside(self, *names: str) -> None:
        """Set aside the old tokenizer or data before they are made again; `names` are items of `PREPARED`."""
        for name in names:
            put_aside(self.run / name)

    def keep_new(self) -> None:
        """Delete the old run, unless it is deleted already. To be called as soon as the new run has a checkpoint."""
        if not self.is_over:
            _keep_new(self.run)
            self.is_over = True


@contextmanager
def fresh_start(run: Path) -> Iterator[FreshStart]:
    """Context manager that sets the old run aside at the beginning, so that a new run can start in the same directory.

    At the end, the old run is brought back, unless `keep_new` was called.
    """
    start = FreshStart(run)
    with undone_when_ended():
        try:
            start.begin()
            yield start
        finally:
            if not start.is_over:
                settle_fresh(run)


def settle_fresh(run: Path) -> None:
    """Finish an interrupted fresh start: delete the old run if the new one has a checkpoint, else restore the old run.

    Does nothing if no fresh start was interrupted. Only the process that holds the lock of the run may call this
    function.
    """
    marker = run / MARKER
    if not marker.exists():
        return
    # If the old run was not set aside completely, the checkpoints may still be those of the old run.
    if _state(marker) == "aside" and checkpoint_steps(run / "checkpoints"):
        _keep_new(run)
    else:
        _bring_back(run)


def _bring_back(run: Path) -> None:
    """Give the files of the old run their names back, then delete the file `MARKER`.

    If a call is interrupted, another call does the rest.
    """
    for hidden in _hidden_steps(run / "checkpoints"):
        directory = hidden.with_name(_visible(hidden))
        remove(directory)
        hidden.rename(directory)
    for name in (*PREPARED, *NAMES):
        bring_back(run / name)
    (run / MARKER).unlink()


def _keep_new(run: Path) -> None:
    """Delete the hidden files of the old run, then the file `MARKER`.

    If a call is interrupted, another call does the rest.
    """
    for hidden in _hidden_steps(run / "checkpoints"):
        remove(hidden)
    for name in (*PREPARED, *NAMES):
        drop_aside(run / name)
    (run / MARKER).unlink()


def _hidden_steps(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob(".step-*.before") if STEP.fullmatch(_visible(path))]


def _hidden(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.before")


def _visible(hidden: Path) -> str:
    return hidden.name.removeprefix(".").removesuffix(".before")


def _write_marker(run: Path, state: str) -> None:
    write_file(run / MARKER, (json.dumps({"old_run": state}) + "\n").encode())


def _state(marker: Path) -> str:
    """Returns "begun" or "aside", read from the file `marker`: how far the old run has been set aside.

    If the file is damaged, returns "begun", so that the old run is brought back.
    """
    try:
        content = json.loads(marker.read_bytes())
    except ValueError:
        return "begun"
    return str(content.get("old_run")) if isinstance(content, dict) else "begun"
