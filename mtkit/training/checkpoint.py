"""Checkpoints: weights, the optimizer's memory, and how far training is; each whole or not there.

checkpoints/step-00001000/weights.safetensors  optimizer.safetensors  [average.safetensors]  progress.json
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtkit.errors import CheckpointError
from mtkit.files import remove, replaced_directory, settle
from mtkit.training.average import MovingAverage
from mtkit.training.log import Window
from mtkit.training.optimizer import optimizer_tensors, remembers_alike, restore_optimizer
from mtkit.training.scaler import FIRST_SCALE

FORMAT = 1

# What mtkit itself names so; all else that lies beside the checkpoints is the user's.
STEP = re.compile(r"step-(\d{8,})")
LEFTOVER = re.compile(r"\.(step-\d{8,})\.(new|old)")

Change = dict[str, Any]  # step and pairs at which settings changed, and settings: {name: [before, after]}

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"
AVERAGE = "average.safetensors"  # the moving average of the weights, where there is one


@dataclass
class Progress:
    """How far training is, and every choice that an `auto` setting made."""

    step: int = 0  # updates done
    pairs: int = 0  # pairs consumed: the place in the plan
    seconds: float = 0.0  # of training, over all the processes that took part
    precision: str = ""
    validated_step: int = 0  # the last step that was validated
    best_step: int = 0  # 0: none yet
    best_score: float = float("-inf")  # higher is better
    bad_validations: int = 0  # since the best one
    stale_validations: int = 0  # since the best one, or since the learning rate was lowered
    rate_lowered: int = 0  # how many times validations lowered the learning rate
    skipped: int = 0  # updates that were not finite
    skipped_in_row: int = 0
    overflows: int = 0  # updates of fp16 that only lowered the loss scale
    loss_scale: float = FIRST_SCALE
    scale_updates: int = 0  # since the loss scale changed
    log_bytes: int = 0  # length of log.jsonl, which is cut back to it
    changes: list[Change] = field(default_factory=list)  # of settings, in the order of their steps
    plan: dict[str, Any] | None = None  # what auto settings were fixed at, see budget.Plan
    window: Window = field(default_factory=Window)  # the updates since the last line of the log


@dataclass
class TrainState:
    """The one thing that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    average: MovingAverage | None = None


def setting_at(chain: Sequence[Change], name: str, step: int, now: Any) -> Any:
    """The value that a setting had when update number step was made; now is the one that it has at the end."""
    later = (change["settings"] for change in chain if change["step"] >= step)
    return next((settings[name][0] for settings in later if name in settings), now)


def step_directory(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:08d}"


def clear_leftovers(checkpoints: Path) -> None:
    """Mend what a kill left, so that all that is there is whole; for the one who may write there."""
    for leftover in list(checkpoints.glob(".step-*")):
        if name := LEFTOVER.fullmatch(leftover.name):
            settle(leftover.with_name(name[1]))
            remove(leftover)
    for directory in step_directories(checkpoints):
        if not (directory / PROGRESS).exists():  # written last and deleted first
            remove(directory)


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories that are named as checkpoints are, whole or not, in the order of their steps."""
    found = (path for path in checkpoints.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=_step_of)


def _step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def checkpoint_steps(checkpoints: Path, resumable: bool = False) -> list[int]:
    """Steps of the checkpoints there are, ascending; or of those that training can go on from."""
    needed = (PROGRESS, OPTIMIZER) if resumable else (PROGRESS,)
    return [
        _step_of(directory)
        for directory in step_directories(checkpoints)
        if all((directory / name).exists() for name in needed)
    ]


def save_checkpoint(checkpoints: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write the checkpoint of this step; identity is what a run must share with it to go on from it."""
    path = step_directory(checkpoints, state.progress.step)
    weights = {name: parameter.detach() for name, parameter in state.model.named_parameters()}
    tensors = {WEIGHTS: weights, OPTIMIZER: optimizer_tensors(state.optimizer, list(weights))}
    if state.average is not None:
        tensors[AVERAGE] = state.average.weights
    try:
        with replaced_directory(path) as new:
            for name in tensors:
                save_file(tensors[name], new / name)
            files = {name: _checksum(new / name) for name in tensors}
            content = {"format": FORMAT, "progress": _told(state.progress), "identity": identity, "files": files}
            text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
            (new / PROGRESS).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; the checkpoints before it are untouched: make room and start again"
        ) from None


def _told(progress: Progress) -> dict[str, Any]:
    """Progress as JSON has it; changes and plan only where there are some, so that earlier versions read the others."""
    return {name: value for name, value in asdict(progress).items() if value or name not in ("changes", "plan")}


def read_progress(checkpoints: Path, step: int) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """How far a checkpoint is, the identity of its run, and the checksums of its files."""
    path = step_directory(checkpoints, step) / PROGRESS
    try:
        return parse_progress(path.read_bytes(), path)
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: damaged or missing; {_remedy(checkpoints, step)}") from None


def parse_progress(data: bytes, path: Path) -> tuple[Progress, dict[str, Any], dict[str, str]]:
    """The same from the bytes of a progress.json that lies at path; a damaged one is a ValueError."""
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise ValueError("its checksum is not the one it was saved with")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}, but this version of mtkit reads {FORMAT}")
    values = content["progress"]
    progress = Progress(**{**values, "window": Window(**values["window"])})
    return progress, content["identity"], content["files"]


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
        state.average.restore(_read_tensors(checkpoints, step, AVERAGE) if AVERAGE in files else weights)
    memory = _read_tensors(checkpoints, step, OPTIMIZER)
    if remembers_alike(state.optimizer, memory):
        restore_optimizer(state.optimizer, [name for name, _ in state.model.named_parameters()], memory)
    state.progress = progress


def read_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """The weights of one checkpoint."""
    return _read_tensors(checkpoints, step, WEIGHTS)


def measured_weights(checkpoints: Path, step: int) -> dict[str, Tensor]:
    """What validation measured of one checkpoint: the moving average of its weights, or where none is kept, these."""
    _, _, checksums = read_progress(checkpoints, step)
    return _read_tensors(checkpoints, step, AVERAGE if AVERAGE in checksums else WEIGHTS)


def average_weights(checkpoints: Path, steps: Iterable[int]) -> dict[str, Tensor]:
    """The mean of what validation measured of several checkpoints (Junczys-Dowmunt et al. 2016).

    It is summed in double precision.
    """
    return mean_weights(measured_weights(checkpoints, step) for step in steps)


def mean_weights(checkpoints: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, which are read one at a time."""
    total: dict[str, Tensor] = {}
    count = 0
    for weights in checkpoints:
        count += 1
        for name, tensor in weights.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / count).float() for name, tensor in total.items()}


def averaged_steps(scheduled: list[int], best_step: int, count: int) -> list[int]:
    """The checkpoints that end at the best one; scheduled are those made on time, not because a run was stopped.

    The best one is among them in any case: it may be where an earlier, lower limit ended the run.
    """
    return sorted(step for step in {*scheduled, best_step} if 0 < step <= best_step)[-count:]


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


def _read_tensors(checkpoints: Path, step: int, name: str) -> dict[str, Tensor]:
    path = step_directory(checkpoints, step) / name
    _, _, checksums = read_progress(checkpoints, step)
    if not path.exists():
        raise CheckpointError(f"{path}: missing; {_remedy(checkpoints, step)}")
    if _checksum(path) != checksums[name]:
        raise CheckpointError(
            f"{path}: damaged, its checksum is not the one it was saved with; {_remedy(checkpoints, step)}"
        )
    return load_file(path)


def _remedy(checkpoints: Path, step: int) -> str:
    """What to do about a damaged checkpoint."""
    others = [other for other in checkpoint_steps(checkpoints, resumable=True) if other != step]
    if not others:
        return "start anew with --fresh"
    if others[-1] < step:
        return f"delete {step_directory(checkpoints, step)} to go on from step {others[-1]:,}"
    return f"delete {step_directory(checkpoints, step)} to go on without it"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
