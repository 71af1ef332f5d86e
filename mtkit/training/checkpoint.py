"""Writes checkpoints and goes on from them; and starts a run anew."""

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
    STEP,
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
from mtkit.training.update import TrainState, optimizer_tensors, remembers_alike, restore_optimizer

LEFTOVER = re.compile(r"\.(step-\d{8,})\.(new|old)")


def clear_leftovers(checkpoints: Path) -> None:
    """Mend what a kill left, so that all that is there is whole; for the one who may write there."""
    for leftover in list(checkpoints.glob(".step-*")):
        if name := LEFTOVER.fullmatch(leftover.name):
            settle(leftover.with_name(name[1]))
            remove(leftover)
    for directory in step_directories(checkpoints):
        if not (directory / PROGRESS).exists():  # written last and deleted first
            remove(directory)


def save_checkpoint(checkpoints: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write the checkpoint of this step; identity is what a run must share with it to go on from it."""
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
            content = {"format": FORMAT, "progress": _told(state.progress), "identity": identity, "files": files}
            text = json.dumps({**content, "sha256": content_checksum(content)}, indent=1)
            (new / PROGRESS).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; the checkpoints before it are untouched: make room and start again"
        ) from None


def _told(progress: Progress) -> dict[str, Any]:
    """Progress as JSON has it; changes and plan only where there are some, so that earlier versions read the others."""
    return {name: value for name, value in asdict(progress).items() if value or name not in ("changes", "plan")}


def load_checkpoint(checkpoints: Path, step: int, state: TrainState) -> None:
    """Put model, average, optimizer and progress where they were.

    An average begins at the weights where the checkpoint has none. The optimizer starts with empty memory where its
    own is of another kind, such as sgd's beside Adam's.
    """
    progress, _, files = read_progress(checkpoints, step)
    weights = read_weights(checkpoints, step)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(weights[name])
    if state.average is not None:
        state.average.restore(read_tensors_of(checkpoints, step, AVERAGE) if AVERAGE in files else weights)
    memory = read_tensors_of(checkpoints, step, OPTIMIZER)
    if remembers_alike(state.optimizer, memory):
        restore_optimizer(state.optimizer, state.model, memory)
    state.progress = progress


def delete_old(checkpoints: Path, scheduled: list[int], best_step: int, average: int, keep: int) -> None:
    """Drop weights that no average can need, and the optimizer's memory of all but the newest checkpoints.

    Call it when the newest is safe. What the best one averages stays, and so does what a future best one will.
    """
    steps = checkpoint_steps(checkpoints)
    newest = set(checkpoint_steps(checkpoints, resumable=True)[-keep:])
    needed = newest | set(averaged_steps(scheduled, best_step, average)) | set(scheduled[-average:])
    for step in steps:
        directory = step_directory(checkpoints, step)
        if step not in needed:
            if not directory.is_symlink():
                (directory / PROGRESS).unlink()  # first, so that a kill leaves nothing that looks like a checkpoint
            remove(directory)
        elif step not in newest:
            (directory / OPTIMIZER).unlink(missing_ok=True)


# Starting a run anew: the old run goes only when the new one has a checkpoint to put in its place.

MARKER = ".fresh.json"  # there while an old run stands aside; tells how far that is

NAMES = (
    "log.jsonl",
    "trained.json",
    "evaluated.json",
    "config.yaml",
    "run.json",
    "tensorboard",
)  # all that training left
PREPARED = ("tokenizer", "data/train", "data/valid")  # what it was prepared from, put aside only to be made anew


class FreshStart:
    """An old run that stands aside for a new one."""

    def __init__(self, run: Path) -> None:
        """Nothing is done yet; begin() does."""
        self.run = run
        self.is_over = False

    def begin(self) -> None:
        """Put the old run aside, but for its model and for what it was prepared from."""
        _write_marker(self.run, "begun")
        for directory in step_directories(self.run / "checkpoints"):
            directory.rename(_hidden(directory))
        for name in NAMES:
            put_aside(self.run / name)
        if (tensorboard := self.run / "tensorboard").is_symlink():
            tensorboard.resolve().mkdir(exist_ok=True)  # TensorBoard cannot write to a link that leads nowhere
        _write_marker(self.run, "aside")

    def put_aside(self, *names: str) -> None:
        """Put aside what is going to be made anew: some of PREPARED."""
        for name in names:
            put_aside(self.run / name)

    def keep_new(self) -> None:
        """The new run has a checkpoint: the old one goes."""
        if not self.is_over:
            _keep_new(self.run)
            self.is_over = True


@contextmanager
def fresh_start(run: Path) -> Iterator[FreshStart]:
    """The old run stands aside within the block; at its end it is back, unless the new one was kept."""
    start = FreshStart(run)
    with undone_when_ended():
        try:
            start.begin()
            yield start
        finally:
            if not start.is_over:
                settle_fresh(run)


def settle_fresh(run: Path) -> None:
    """Bring back the old run, or drop it if the new one has a checkpoint; for the one who may write there.

    Does nothing where no fresh start was interrupted.
    """
    marker = run / MARKER
    if not marker.exists():
        return
    # Before all of it stood aside, the checkpoints there are may be the old ones.
    if _state(marker) == "aside" and checkpoint_steps(run / "checkpoints"):
        _keep_new(run)
    else:
        _bring_back(run)


def _bring_back(run: Path) -> None:
    """Return the old run to its place; a kill on the way is made good by the next call."""
    for hidden in _hidden_steps(run / "checkpoints"):
        directory = hidden.with_name(_visible(hidden))
        remove(directory)
        hidden.rename(directory)
    for name in (*PREPARED, *NAMES):
        bring_back(run / name)
    (run / MARKER).unlink()


def _keep_new(run: Path) -> None:
    """Drop the old run; a kill on the way is made good by the next call."""
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
    """How far the old run stands aside; "begun" where the marker cannot be read, so that it is brought back."""
    try:
        content = json.loads(marker.read_bytes())
    except ValueError:
        return "begun"
    return str(content.get("old_run")) if isinstance(content, dict) else "begun"
