"""What identifies a run, what changed in it, and what training writes of it."""

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import DESCRIPTION, bundle_at, no_model, open_bundle, save_bundle, save_scores
from mtkit.bundle.checkpoints import (
    TRAINED,
    Change,
    Progress,
    Snapshot,
    averaged_steps,
    is_checkpoint,
    mean_weights,
    read_progress_at,
    read_snapshot,
    readable_steps,
    retried,
    step_directory,
)
from mtkit.bundle.info import card_text, weights_text
from mtkit.bundle.opening import (
    best_step,
    has_model,
    run_config,
    run_tokenizer,
    start_checksum,
    training_of,
    weights_of,
)
from mtkit.bundle.storage import is_packed
from mtkit.config.section import Section
from mtkit.config.settings import Config, config_text
from mtkit.data.corpus import Corpus, read_validation_text, validation_checksum
from mtkit.data.plan import EarlierBudget, is_proportional
from mtkit.errors import CheckpointError, MtkitError, whole_number
from mtkit.files import standing, write_file
from mtkit.models.interface import TranslationModel
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import bundled_settings
from mtkit.training.schedule import ENDING, saves_at
from mtkit.translation.canaries import make_canaries
from mtkit.translation.translator import translator_of

# Settings of training that decide neither weights nor which of them are kept.
UNNOTED = {"start_from", "max_minutes", "patience", "log_every", "tensorboard", "keep_checkpoints", "max_skipped"}

# What decides how checkpoints are measured, and of these what decides when; no weight depends on it, unless validations
# lower the learning rate.
MEASURES = {"validation", "training.validation_sentences", "training.select_by"}
VALIDATES = {*MEASURES, "training.validate_every"}
FREE = {*VALIDATES, "training.save_every", "training.average_checkpoints"}


@dataclass(frozen=True)
class Difference:
    """A setting, or a checksum of data, that is not what it was."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """As messages tell it; a checksum tells nobody anything."""
        if "." in self.name:
            return f"{self.name} was {self.before}, is {self.after}"
        named = {"validation": "the validation text (data.valid)", "data": "the training text (data.train)"}
        return named.get(self.name, f"the {self.name}")


@dataclass(frozen=True)
class Changes:
    """What changed since a checkpoint was made, by what that means for the run."""

    free: list[Difference]  # no weight depends on it
    asked: list[Difference]  # the run can go on with it, as another run than it would have been, if that is asked for
    fixed: list[Difference]  # it would be another run

    @property
    def all(self) -> list[Difference]:
        """In this order."""
        return [*self.fixed, *self.asked, *self.free]


def identity_of(config: Config, data: str, tokenizer: str, validation: str, start: str | None) -> dict[str, Any]:
    """What makes this run: its settings, and checksums of what it reads.

    start is the checksum of the weights that training started from, and validation that of the validation text.
    """
    free = UNNOTED | (set() if config.training.schedule in ENDING else {"max_steps"})
    return {
        "data": data,
        "tokenizer": tokenizer,
        "validation": validation,
        "model": config.model.model_dump(mode="json"),
        "training": {
            # Where it lay does not matter; what it was does.
            "start_from": start,
            **{k: v for k, v in config.training.model_dump(mode="json").items() if k not in free},
        },
        **_mixing(config),
    }


# Settings of training that change nothing of a model that is finished.
WITHOUT_EFFECT = {"start_from", "log_every", "tensorboard", "keep_checkpoints"}


def completion_of(config: Config, data: str, validation: str, start: str | None) -> dict[str, Any]:
    """What a finished model depends on: if none of it changed, training again would give the same.

    data, validation and start are checksums, start that of the weights that training started from.
    """
    return {
        **({"start_from": start} if start else {}),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "data": data,
        "validation": validation,
        **_mixing(config),
    }


def with_defaults(saved: dict[str, Any], now: dict[str, Any], config: Config) -> dict[str, Any]:
    """What was saved, in which settings of now that were not there yet have their defaults."""
    return _filled(saved, now, {"model": _defaults(config.model), "training": _defaults(config.training)})


def changes_since(found: dict[str, Any], now: dict[str, Any], config: Config) -> Changes:
    """What is not as the identity of a checkpoint tells; what earlier versions did not note counts as unchanged."""
    had_max_steps = "max_steps" in found["training"]
    found = {"validation": now["validation"], **with_defaults(found, now, config)}
    if not had_max_steps or "max_steps" not in now["training"]:  # a schedule that does not end there leaves it free
        found["training"] = {**found["training"], "max_steps": now["training"].get("max_steps")}
    free = FREE - (VALIDATES if "plateau" in (found["training"]["schedule"], config.training.schedule) else set())
    changes = Changes([], [], [])
    for difference in differences(found, now):
        if difference.name in free:
            changes.free.append(difference)
        elif difference.name in VALIDATES or _may_be_asked_for(difference.name):
            changes.asked.append(difference)
        else:
            changes.fixed.append(difference)
    return changes


def _may_be_asked_for(name: str) -> bool:
    """Whether a setting may change on the way: it fits the weights there are, and the order of the pairs."""
    if name.startswith("training."):
        return name not in ("training.start_from", "training.seed")
    return name.startswith("model.") and name.endswith("dropout")


def _filled(saved: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    filled = {key: default for key, default in defaults.items() if key in now} | saved
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled.get(key), dict):
            filled[key] = _filled(filled[key], now[key], default)
    return filled


def _defaults(section: Section) -> dict[str, Any]:
    """Those of its settings; a section inside stays of its kind."""
    inside = {name: _defaults(value) for name, value in section if isinstance(value, Section)}
    return type(section)().model_dump(mode="json") | inside


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[Difference]:
    """What changed, setting by setting."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield Difference(f"{prefix}{key}", before, after)


def _mixing(config: Config) -> dict[str, Any]:
    """What the order of the pairs depends on beside the training settings; nothing where every pair comes once."""
    weights = [text.weight for text in config.data.train]
    if is_proportional(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}


# The chain of settings of a run: what was changed on the way, from which step on.


def require_allowed(changes: Changes, run: Path, step: int, are_asked_for: bool) -> None:
    """Refuse changes that make it another run, and those that nobody asked for."""
    told = "; ".join(map(str, changes.all))
    if changes.fixed:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,}, since these changed: {told}. Change them back, give the run "
            f"another name (training.start_from={run} starts it from these weights), or start anew with --fresh"
        )
    if changes.asked and not are_asked_for:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,} with other settings unless that is asked for; these changed: "
            f"{told}. Change them back, add --change to go on with them, give the run another name, or start anew with "
            "--fresh"
        )


def with_changes(chain: Sequence[Change], step: int, pairs: int, differences: Sequence[Difference]) -> list[Change]:
    """The chain with these changes after so many updates, which consumed so many pairs.

    What is changed twice at one step counts once, and what is changed back not at all.
    """
    chain = list(chain)
    settings: dict[str, list[Any]] = {}
    if chain and chain[-1]["step"] == step:
        settings = dict(chain.pop()["settings"])
    for difference in differences:
        before = settings.get(difference.name, [difference.before])[0]
        settings[difference.name] = [before, difference.after]
    settings = {name: sides for name, sides in settings.items() if sides[0] != sides[1]}
    return [*chain, {"step": step, "pairs": pairs, "settings": settings}] if settings else chain


def earlier_budgets(chain: Sequence[Change]) -> list[EarlierBudget]:
    """Other values that training.batch_tokens had before, and until how many pairs were consumed."""
    name = "training.batch_tokens"
    return [
        EarlierBudget(change["pairs"], change["settings"][name][0]) for change in chain if name in change["settings"]
    ]


# What training writes of a run beside checkpoints and log: how it began, that it is done, and the bundle.


def write_start(
    config: Config, corpus: Corpus, model: TranslationModel, progress: Progress, start: str | None
) -> dict[str, Any]:
    """Write the settings, and the facts of this process, which come back.

    start is the checksum of the weights that training started from.
    """
    facts = {
        "mtkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        "threads": torch.get_num_threads(),
        "precision": progress.precision,
        "start_from": start,
        **({"changes": progress.changes} if progress.changes else {}),
        **({"plan": progress.plan} if progress.plan else {}),
        "parameters": model.num_parameters,
        "command": sys.argv,
        "data": corpus.facts(),
    }
    write_file(config.run_path / "config.yaml", config_text(config).encode())
    _write_json(config.run_path / "run.json", facts)
    return facts


def write_bundle(
    config: Config, tokenizer: Tokenizer, weights: dict[str, Tensor], lines: Sequence[str], training: dict[str, Any]
) -> Path:
    """Write the bundle of a run, with canaries among the lines, and return where it lies."""
    path = config.run_path / "model"
    write_model(path, config, tokenizer, weights, lines, training)
    return path


def write_model(
    path: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    lines: Sequence[str],
    training: dict[str, Any],
) -> None:
    """Write a bundle at a path, with what is told of its training and canaries among the lines."""
    translator = translator_of(config, tokenizer, weights)
    about = {
        "mtkit": __version__,
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        "training": training,
    }
    config = config.model_copy(update={"tokenizer": bundled_settings(config.tokenizer, tokenizer)})
    save_bundle(path, weights, config, tokenizer.save, about, make_canaries(translator, lines))


def write_trained(config: Config, start: str | None) -> None:
    """Note that training with these settings has come to its end.

    start is the checksum of the weights that training started from, which may be gone.
    """
    _write_json(config.run_path / TRAINED, _completion(config, start))


def is_trained(config: Config) -> bool:
    """Whether training with these settings has come to its end, and its bundle is there."""
    return has_model(config.run_path) and not changed_since_trained(config)


def changed_since_trained(config: Config) -> list[str]:
    """What is not as it was when training came to its end, in words; nothing if training again would give the same.

    A model that it started from and that is gone counts as the one that it was, and it may lie elsewhere now.
    """
    done = config.run_path / TRAINED
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    training = found.get("training") if isinstance(found, dict) else None
    if not isinstance(training, dict):
        return [f"{done} does not tell what it was trained with"]
    # Earlier versions noted where the start lay, and not always what it was; and settings without effect.
    lay = training.pop("start_from", None)
    found["training"] = {name: value for name, value in training.items() if name not in WITHOUT_EFFECT}
    start = None
    if config.training.start_from is not None:
        noted = found.get("start_from")
        start = start_checksum(config, noted) or noted or (None if lay else "a model that is not there")
    now = _completion(config, start)
    found.setdefault("validation", now["validation"])
    return list(map(str, differences(with_defaults(found, now, config), now)))


def _completion(config: Config, start: str | None) -> dict[str, Any]:
    data = Corpus.open(config.run_path / "data" / "train").digest
    return completion_of(config, data, validation_digest(config), start)


def validation_digest(config: Config) -> str:
    """A checksum of the validation text as it was kept when the data was binarized; empty where it cannot be told."""
    try:
        manifest = json.loads((config.run_path / "data" / "valid" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return validation_checksum(manifest)


def _write_json(path: Path, value: object) -> None:
    """One JSON file, replaced whole."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None


# `mtkit bundle`: a bundle of what training has found so far, while it goes on.

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
    sources, _ = read_validation_text(standing(run / "data" / "valid"))
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
