"""What MODEL names: a bundle, or a checkpoint of a run, which then is presented as a bundle.

A run directory is its bundle or, while training has not written that, its best checkpoint so far, else the newest.
"""

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mtkit import __version__
from mtkit.config.load import config_from_text, with_sections
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.files import standing
from mtkit.formats.archive import Member
from mtkit.formats.bundle import (
    CANARIES,
    CONFIG,
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    bundle_at,
    bundle_of,
    carried_config,
    description_of,
    no_model,
)
from mtkit.formats.canary import canaries_text
from mtkit.formats.storage import Storage, open_storage
from mtkit.formats.sums import sums_of
from mtkit.formats.tensors import read_tensors
from mtkit.messages import say
from mtkit.text.existing import handed_on
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import STEP, step_directories, step_directory
from mtkit.training.snapshot import Snapshot, is_checkpoint, read_progress_at, read_snapshot, readable_steps, retried

TRAINED = "trained.json"  # in a run directory: training has come to its end, and does not go on


@dataclass(frozen=True)
class CheckpointStorage:
    """The files of the bundle that a checkpoint makes, all in memory: training may delete the checkpoint meanwhile."""

    path: Path  # of the checkpoint
    run: Path
    step: int
    choice: str | None  # why it stands for its run; None if it was named itself
    files: Mapping[str, memoryview]

    def place(self, name: str) -> Path:
        """The weights lie in the checkpoint, all else in its run."""
        return self.path / name if name == WEIGHTS else self.run / name

    def names(self) -> list[str]:
        """Those of all files."""
        return sorted(self.files)

    @property
    def num_bytes(self) -> int:
        """Of all files; the optimizer's memory is none of them."""
        return sum(map(len, self.files.values()))

    def view(self, name: str) -> memoryview:
        """A file as it is in memory."""
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def strange(self, members: Sequence[Member]) -> str | None:
        """There is nothing around the files."""
        return None


def has_model(run: Path) -> bool:
    """Whether a run directory holds a model that training finished."""
    return (standing(run / "model") / DESCRIPTION).exists()


def is_begun(run: Path) -> bool:
    """Whether a run has something to lose: a checkpoint, or a finished model whose checkpoints were deleted."""
    return bool(step_directories(run / "checkpoints")) or has_model(run)


def find_model(path: Path) -> Storage:
    """The files of the model that a path names."""
    if bundle := bundle_at(path):
        return open_storage(bundle)
    return retried(partial(_find_checkpoint, path))


def open_model(path: Path) -> Bundle:
    """The model at a path, its parts checked for being there and readable."""
    return bundle_of(find_model(path))


def open_and_tell(path: Path) -> Bundle:
    """The same; tells the user if a checkpoint stands for its run."""
    bundle = open_model(path)
    tell(bundle.storage)
    return bundle


def tell(storage: Storage) -> None:
    """Say on standard error which checkpoint stands for its run, if one does."""
    if isinstance(storage, CheckpointStorage) and storage.choice:
        say(f"{storage.run}: not finished; using step {storage.step:,}, {storage.choice}")


def newest_step(run: Path) -> int | None:
    """The newest checkpoint of a run whose training is not finished; None if it is, or if there is none."""
    return None if is_finished(run) else max(readable_steps(run / "checkpoints"), default=None)


def is_finished(run: Path) -> bool:
    """Whether training has come to its end."""
    return (run / TRAINED).exists()


# A checkpoint as a bundle.


def _find_checkpoint(path: Path) -> CheckpointStorage:
    """The checkpoint that a path names; FileNotFoundError if training deletes it meanwhile."""
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
    """The run directory that a checkpoint lies in; either may be named by a link."""
    for place in (checkpoint.absolute(), checkpoint.resolve()):
        if (place.parent.parent / CONFIG).is_file():
            return place.parent.parent
    return None


def _checkpoint(run: Path, directory: Path, choice: str | None) -> CheckpointStorage:
    snapshot = read_snapshot(directory)
    tokenizer = run_tokenizer(run, directory, snapshot.identity)
    config = run_config(run, snapshot.identity)
    config = config.model_copy(update={"tokenizer": handed_on(config.tokenizer, tokenizer)})
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
    """The weights of a checkpoint, by the names of the parameters."""
    return read_tensors(memoryview(snapshot.weights), str(directory))


def best_step(run: Path) -> tuple[int, str]:
    """The best checkpoint so far, or the newest if there is none, and which of these it is, in words."""
    checkpoints = run / "checkpoints"
    select_by = run_config(run).training.select_by
    # From here on as fast as can be: training may delete what is chosen.
    steps = readable_steps(checkpoints)
    if not steps:
        raise no_model(run)
    progress = read_progress_at(step_directory(checkpoints, steps[-1]))
    if not progress.best_step:
        return steps[-1], "the newest (none is validated yet)"
    if progress.best_step not in steps:
        return steps[-1], f"the newest (the best, step {progress.best_step:,}, is gone)"
    score = _score_text(select_by, progress.best_score)
    return progress.best_step, f"the best{'' if is_finished(run) else ' so far'} ({score})"


def _score_text(select_by: str, score: float) -> str:
    """What a checkpoint is best at; a loss is told without its sign."""
    if select_by == "loss":
        return f"nll {-score:.4f}"
    return f"{ {'bleu': 'BLEU', 'chrf': 'chrF'}[select_by] } {score:.2f}"


# What a run directory tells of its checkpoints.


def run_config(run: Path, identity: Mapping[str, Any] | None = None) -> Config:
    """The settings of a run; those of the model are what a checkpoint says, where its identity is given."""
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
    """The tokenizer of a run, which must be the one that the checkpoint in a directory was trained with."""
    place = standing(run / TOKENIZER)
    tokenizer = Tokenizer.load(place)
    if tokenizer.hash != identity["tokenizer"]:
        if not is_checkpoint(directory):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(directory))  # the run was started anew
        raise CheckpointError(f"{place}: not the tokenizer that {directory} was trained with; copy the run again")
    return tokenizer


def training_of(run: Path, newest: Snapshot, steps: Sequence[int], choice: str | None) -> dict[str, Any]:
    """What a bundle tells of its training: newest is the last of the checkpoints whose weights it averages."""
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
    """What training noted in run.json when it began; nothing where that is missing."""
    try:
        content = json.loads((run / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
