"""`mtkit bundle`: a bundle of what training has found so far, while it goes on."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from mtkit.arguments import whole_number
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.files import standing
from mtkit.formats.bundle import DESCRIPTION, bundle_at, no_model, open_bundle, save_scores
from mtkit.formats.card import card_text, weights_text
from mtkit.formats.storage import is_packed
from mtkit.opening import best_step, run_config, run_tokenizer, training_of, weights_of
from mtkit.prepare import kept_validation
from mtkit.records import write_model
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import averaged_steps, mean_weights, step_directory
from mtkit.training.limits import saves_at
from mtkit.training.snapshot import Snapshot, is_checkpoint, read_progress_at, read_snapshot, readable_steps, retried

BEST, AVERAGE = "best", "average"  # what may be asked for beside a step


@dataclass(frozen=True)
class Chosen:
    """The weights of one checkpoint, or their mean over several."""

    steps: list[int]
    choice: str | None  # why these, in words; None for a step that was asked for
    newest: Snapshot  # the last one
    weights: dict[str, Tensor]
    config: Config
    tokenizer: Tokenizer


def bundle(run: Path, wanted: str = BEST, output: Path | None = None) -> str:
    """Write a bundle of a run's checkpoints, and return a line that says where it lies and what it holds.

    wanted is a step, best or average. Nothing of the run is changed; a checkpoint that training deletes meanwhile is
    chosen anew.
    """
    _require_run(run)
    if wanted not in (BEST, AVERAGE) and whole_number(wanted) is None:
        raise MtkitError(f"--step: found {wanted}, wants a step such as 1000, best or average")
    chosen = retried(partial(_read, run, wanted))
    name = AVERAGE if wanted == AVERAGE else step_directory(Path(), chosen.steps[-1]).name
    target = output or run / "bundles" / name
    _require_free(target, run)
    config = chosen.config
    sources, _ = kept_validation(standing(run / "data" / "valid"))
    training = training_of(run, chosen.newest, chosen.steps, chosen.choice)
    lines = sources[: config.training.validation_sentences]
    write_model(target, config, chosen.tokenizer, chosen.weights, lines, training)
    written = open_bundle(target)
    save_scores(written, [], card_text(written, []))
    why = f", {chosen.choice}" if chosen.choice else ""
    return f"model: {target}: {weights_text(chosen.steps, config.training.ema_decay)}{why}"


def _require_run(run: Path) -> None:
    if is_packed(run) or (standing(run) / DESCRIPTION).is_file():
        raise CheckpointError(f"{run}: is a bundle already; mtkit bundle wants a run directory")
    if is_checkpoint(run):
        raise CheckpointError(f"{run}: is a checkpoint; name its run directory, and the step by --step")
    if not readable_steps(run / "checkpoints"):
        if model := bundle_at(run):
            raise CheckpointError(f"{run}: has no checkpoints any more, only its finished model, {model}")
        raise no_model(run)


def _require_free(target: Path, run: Path) -> None:
    """Nothing that somebody else put there is lost, and nothing that training writes is touched."""
    if any(target.resolve().is_relative_to((run / name).resolve()) for name in ("model", "checkpoints")):
        raise MtkitError(f"{target}: is where training writes; name a folder elsewhere")
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise MtkitError(f"{target}: is there already and is no bundle; name a new folder")


def _read(run: Path, wanted: str) -> Chosen:
    """The checkpoints that are wanted; FileNotFoundError if training deletes one meanwhile."""
    steps, choice = _choose(run, wanted)
    directories = [step_directory(run / "checkpoints", step) for step in steps]
    newest = read_snapshot(directories[-1])
    if len(steps) == 1:
        weights = weights_of(newest, directories[-1])
    else:
        weights = mean_weights(weights_of(read_snapshot(directory), directory) for directory in directories)
    tokenizer = run_tokenizer(run, directories[-1], newest.identity)
    return Chosen(steps, choice, newest, weights, run_config(run, newest.identity), tokenizer)


def _choose(run: Path, wanted: str) -> tuple[list[int], str | None]:
    """Steps, ascending, and why these."""
    steps = readable_steps(run / "checkpoints")
    if wanted not in (BEST, AVERAGE):
        if int(wanted) not in steps:
            there = ", ".join(f"{step:,}" for step in steps)
            raise CheckpointError(f"{run}: has no checkpoint of step {int(wanted):,}; there are those of steps {there}")
        return [int(wanted)], None
    best, choice = best_step(run)
    if wanted == BEST:
        return [best], choice
    settings = run_config(run).training
    changes = read_progress_at(step_directory(run / "checkpoints", steps[-1])).changes
    scheduled = [step for step in steps if saves_at(step, settings, changes)]
    averaged = averaged_steps(scheduled, best, settings.average_checkpoints)
    return averaged, choice if len(averaged) == 1 else f"which ends at {choice}"
