"""Records of a run: its identity (settings and checksums), changes of its settings, its facts, and its bundle.

A run may resume from a checkpoint only if the run's identity matches the identity in the checkpoint.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import DESCRIPTION, bundle_at, no_model, open_bundle, save_bundle, save_scores
from mtkit.bundle.checkpoints import (
    RACE,
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
from mtkit.config.training_settings import ENDING, TrainingConfig, settled
from mtkit.data.batches import EarlierBudget, batching_of
from mtkit.data.corpus import Corpus, is_proportional, read_validation_text, validation_checksum
from mtkit.errors import CheckpointError, MtkitError, duration, whole_number
from mtkit.files import standing, write_file
from mtkit.models.interface import TranslationModel
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import bundled_settings
from mtkit.training.schedule import Ending, decay_start, has_reached_target, saves_at
from mtkit.translation.canaries import make_canaries
from mtkit.translation.translator import translator_of

# Training settings that are not part of the identity, since neither the weights nor the choice of a checkpoint depend
# on them. With compiled layers, as on another device, products are rounded otherwise and dropout draws other numbers;
# nothing else differs.
UNNOTED = {"start_from", "max_minutes", "patience", "target_score", "max_skipped"}
UNNOTED |= {"log_every", "tensorboard", "keep_checkpoints", "recompute", "compile"}
UNNOTED |= {"guided_alignment"}  # its content is in the checksum of the data, and the file may be moved

# If a setting in MEASURES changes, the scores of earlier and later checkpoints cannot be compared. If a setting in
# VALIDATES changes, validations have other results or come at other times. Settings in FREE may change without
# --change, since the weights do not depend on them. With the schedule "plateau", however, validations lower the
# learning rate, so that the settings in VALIDATES are not free.
MEASURES = {"validation", "training.validation_sentences", "training.select_by"}
VALIDATES = {*MEASURES, "training.validate_every"}
FREE = {*VALIDATES, "training.save_every", "training.average_checkpoints"}


@dataclass(frozen=True)
class Difference:
    """A setting that has changed, or data whose checksum has changed; with the old and the new value."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Returns text for messages: a setting with both values, or the name of the data whose checksum changed."""
        if "." in self.name:
            return f"{self.name} was {self.before}, is {self.after}"
        named = {
            "validation": "the validation text (data.valid)",
            "data": "the training text (data.train) or its alignments (training.guided_alignment)",
        }
        return named.get(self.name, f"the {self.name}")


@dataclass(frozen=True)
class Changes:
    """All that has changed since a checkpoint was written, grouped by whether training may resume nevertheless."""

    free: list[Difference]  # always allowed, since the weights do not depend on them
    asked: list[Difference]  # allowed only with --change, since later weights depend on them
    fixed: list[Difference]  # never allowed

    @property
    def all(self) -> list[Difference]:
        """All differences: first those in `fixed`, then those in `asked`, then those in `free`."""
        return [*self.fixed, *self.asked, *self.free]


def identity_of(config: Config, data: str, tokenizer: str, validation: str, started_from: str | None) -> dict[str, Any]:
    """Returns the identity of a run: settings and checksums to compare with a checkpoint before the run resumes.

    `data`, `tokenizer` and `validation` are checksums. `started_from` is the checksum of the weights that training
    started from; `None` if the weights were random.
    """
    schedule = config.training.schedule
    without_effect = {"max_steps": schedule not in ENDING, "decay_steps": schedule != "wsd"}
    free = UNNOTED | {name for name, has_none in without_effect.items() if has_none}
    return {
        "data": data,
        "tokenizer": tokenizer,
        "validation": validation,
        "model": config.model.model_dump(mode="json"),
        "training": {
            # A checksum instead of the path, since the model may be moved.
            "start_from": started_from,
            **{k: v for k, v in config.training.model_dump(mode="json").items() if k not in free},
        },
        **_mixing(config),
    }


# Training settings that the finished model does not depend on. Of guided_alignment, only the path is meant: what the
# file holds is in the checksum of the data.
WITHOUT_EFFECT = {"start_from", "log_every", "tensorboard", "keep_checkpoints", "recompute", "compile"}
WITHOUT_EFFECT |= {"guided_alignment"}


def completion_of(config: Config, data: str, validation: str, started_from: str | None) -> dict[str, Any]:
    """Returns the settings and checksums that a finished model depends on.

    As long as none of them changes, training again would give the same model. `data` and `validation` are checksums.
    `started_from` is the checksum of the weights that training started from; `None` if the weights were random.
    """
    return {
        **({"start_from": started_from} if started_from else {}),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "data": data,
        "validation": validation,
        **_mixing(config),
    }


def with_defaults(saved: dict[str, Any], now: dict[str, Any], config: Config) -> dict[str, Any]:
    """Returns `saved`, a stored result of `identity_of` or `completion_of`, completed by defaults.

    If an earlier version of mtkit wrote `saved`, newer settings of the model or of training may be missing in it.
    Missing settings that `now`, the current result, contains are added with their defaults.
    """
    return _filled(saved, now, {"model": _defaults(config.model), "training": _defaults(config.training)})


def changes_since(found: dict[str, Any], now: dict[str, Any], config: Config, step: int) -> Changes:
    """Returns the differences between `found`, the identity in a checkpoint, and `now`, the present identity.

    `step` is the step of the checkpoint. The differences are grouped by whether training may resume. If an earlier
    version of mtkit wrote the checkpoint, `found` may lack some entries: a missing setting counts as having had its
    default, and a missing checksum of the validation text counts as unchanged.
    """
    had_max_steps = "max_steps" in found["training"]
    found = {"validation": now["validation"], **with_defaults(found, now, config)}
    # Unless both the earlier and the current schedule end at max_steps, max_steps may change freely.
    if not had_max_steps or "max_steps" not in now["training"]:
        found["training"] = {**found["training"], "max_steps": now["training"].get("max_steps")}
    if "decay_steps" not in now["training"]:
        found["training"].pop("decay_steps", None)
    free = FREE - (VALIDATES if "plateau" in (found["training"]["schedule"], config.training.schedule) else set())
    if all(_is_stable(step, each) for each in (config.training, config.training.model_copy(update=found["training"]))):
        free |= {"training.max_steps", "training.decay_steps"}
    changes = Changes([], [], [])
    for difference in differences(found, now):
        if difference.name in free:
            changes.free.append(difference)
        elif difference.name in VALIDATES or _may_be_asked_for(difference.name):
            changes.asked.append(difference)
        else:
            changes.fixed.append(difference)
    return changes


def _is_stable(step: int, settings: TrainingConfig) -> bool:
    """Whether the schedule is wsd and its decay has not begun at `step`.

    If so, no learning rate up to `step` depended on when the decay begins or ends.
    """
    return settings.schedule == "wsd" and step <= decay_start(settings)


def _may_be_asked_for(name: str) -> bool:
    """Whether the option --change allows a setting to change when training resumes.

    --change allows all training settings except `start_from` and `seed`, and all dropout rates of the model. Other
    settings must not change, since the weights must still fit and the order of the sentence pairs must stay the same.
    """
    if name.startswith("training."):
        return name not in ("training.start_from", "training.seed")
    return name.startswith("model.") and name.endswith("dropout")


def _filled(saved: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns `saved` plus the keys that only `now` has, with values from `defaults`; nested dicts likewise."""
    filled = {key: default for key, default in defaults.items() if key in now} | saved
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled.get(key), dict):
            filled[key] = _filled(filled[key], now[key], default)
    return filled


def _defaults(section: Section) -> dict[str, Any]:
    """Returns the defaults of the settings of a section; a nested section gets the defaults of its own class."""
    inside = {name: _defaults(value) for name, value in section if isinstance(value, Section)}
    return type(section)().model_dump(mode="json") | inside


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Yields a Difference for each setting or checksum whose values in `old` and `new` differ, also in nested dicts."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield Difference(f"{prefix}{key}", before, after)


def _mixing(config: Config) -> dict[str, Any]:
    """Returns a dict whose key "mixing" holds the weights of the corpora and the sampling temperature.

    The dict is empty if every sentence pair occurs exactly once in an epoch.
    """
    weights = [text.weight for text in config.data.train]
    if is_proportional(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}


# Changes of settings during a run, in the order of their steps.


def require_allowed(changes: Changes, run: Path, step: int, are_asked_for: bool) -> None:
    """Raise CheckpointError if one of the changes is not allowed.

    Changes that need the option --change are allowed only if `are_asked_for` is true.
    """
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
    """Returns `chain`, the list of changes of a run, extended by the `differences` found at `step`.

    `pairs` is the number of sentence pairs trained on up to `step`. If a setting changed twice at `step`, its first and
    its last value are recorded; if the first and the last value are equal, nothing is recorded.
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


def earlier_budgets(progress: Progress, settings: TrainingConfig) -> list[EarlierBudget]:
    """Returns the earlier values of `batch_tokens` and `batching`, with the pairs trained on before they changed.

    `settings` are the current ones.
    """
    values = {"training.batch_tokens": settled(settings.batch_tokens), "training.batching": settings.batching}
    budgets = []
    for change in reversed(progress.changes):
        changed = {name: sides[0] for name, sides in change["settings"].items() if name in values}
        if changed:
            values |= changed
            tokens, batching = values.values()
            budgets.append(EarlierBudget(change["pairs"], int(tokens), batching_of(str(batching), progress.order)))
    return budgets[::-1]


# What training writes besides checkpoints and log: config.yaml, run.json, the bundle, and trained.json at the end.


def write_facts(
    config: Config,
    corpus: Corpus,
    model: TranslationModel,
    progress: Progress,
    started_from: str | None,
    num_devices: int = 1,
    batch_tokens: int = 0,
) -> dict[str, Any]:
    """Write config.yaml, and run.json with versions, device, command, data and more; returns the content of run.json.

    `started_from` is the checksum of the weights that training started from; `None` if the weights were random.
    `batch_tokens` is the number that stands for "auto", where `config` has that.
    """
    facts = {
        "mtkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        **({"devices": num_devices} if num_devices > 1 else {}),
        "threads": torch.get_num_threads(),
        "precision": progress.precision,
        "start_from": started_from,
        **({"batch_tokens": batch_tokens} if config.training.batch_tokens == "auto" else {}),
        **({"changes": progress.changes} if progress.changes else {}),
        **({"plan": progress.plan} if progress.plan else {}),
        **({"ending": progress.ending} if progress.ending else {}),
        "parameters": model.num_parameters,
        "command": sys.argv,
        "data": facts_of(corpus, started_from),
    }
    write_file(config.run_path / "config.yaml", config_text(config).encode())
    _write_json(config.run_path / "run.json", facts)
    return facts


def facts_of(corpus: Corpus, started_from: str | None) -> dict[str, Any]:
    """Returns the facts of the training data, which run.json and the bundle hold.

    The limit of the lengths of translations is left out if training started from another model. The new model then also
    translates text like that of the other model, in which sentences may be longer.
    """
    facts = corpus.facts()
    if started_from is not None:
        del facts["length_limit"]
    return facts


def write_model(
    path: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    lines: Sequence[str],
    training: dict[str, Any],
) -> None:
    """Write a bundle to `path`.

    `training` holds facts for the description of the bundle. `lines` are source sentences. Some of these sentences are
    stored in the bundle, with the model's translations of them, so that the model can be checked on other machines.
    """
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


def write_trained(config: Config, started_from: str | None, ending: dict[str, Any] | None = None) -> None:
    """Write trained.json, which records that training with these settings is finished.

    `started_from` is the checksum of the weights that training started from, even if the file of these weights has been
    deleted since; `None` if the weights were random. `ending` is `Progress.ending`: it describes the decay of the
    learning rate if --end-in ended the run.
    """
    noted = {"ending": ending} if ending else {}
    _write_json(config.run_path / TRAINED, {**_completion(config, started_from), **noted})


def ending_of(run: Path) -> Ending | None:
    """Returns how --end-in lowered the learning rate to end a finished run; `None` if the run ended otherwise."""
    ending = _trained(run).get("ending")
    return Ending(**ending) if ending else None


def nothing_to_end(run: Path) -> CheckpointError:
    """Returns the error to raise if --end-in is given for a run that has no checkpoint."""
    return CheckpointError(
        f"{run}: --end-in ends a run from its newest checkpoint, but there is none; train without it"
    )


def is_trained(config: Config) -> bool:
    """Whether training with these settings is finished and the bundle exists."""
    return has_model(config.run_path) and not changed_since_trained(config)


def changed_since_trained(config: Config) -> list[str]:
    """Returns the changes since training finished, in words; [] if training again would give the same model.

    If the model that training started from was replaced by another model, that counts as a change; if the model was
    only moved or deleted, that does not count.
    """
    found = _trained(config.run_path)
    training = found.get("training")
    if not isinstance(training, dict):
        return [f"{config.run_path / TRAINED} does not tell what it was trained with"]
    found.pop("ending", None)
    # Earlier versions recorded more settings, and the path of the model to start from, sometimes without its checksum.
    path = training.pop("start_from", None)
    found["training"] = {name: value for name, value in training.items() if name not in WITHOUT_EFFECT}
    started_from = None
    if config.training.start_from is not None:
        noted = found.get("start_from")
        started_from = start_checksum(config, noted) or noted or (None if path else "a model that is not there")
    now = _completion(config, started_from)
    found.setdefault("validation", now["validation"])
    return list(map(str, differences(with_defaults(found, now, config), now)))


def _trained(run: Path) -> dict[str, Any]:
    """Returns the content of trained.json; {} if the file is missing or damaged."""
    try:
        found = json.loads((run / TRAINED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _completion(config: Config, started_from: str | None) -> dict[str, Any]:
    data = Corpus.open(config.run_path / "data" / "train").digest
    return completion_of(config, data, validation_digest(config), started_from)


def validation_digest(config: Config) -> str:
    """Returns the checksum of the validation text, from the manifest in data/valid of the run directory.

    Returns "" if the manifest cannot be read.
    """
    try:
        manifest = json.loads((config.run_path / "data" / "valid" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return validation_checksum(manifest)


def _write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically. Raises CheckpointError if the file cannot be written."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None


# `mtkit race`: records how long training took to reach a score.

MEASURED = ("bleu", "chrf", "nll")  # measures of each validation in race.json


def write_race(config: Config, command_seconds: float) -> dict[str, Any]:
    """Write race.json, the record of a race (`mtkit race`) whose training has ended; returns the record.

    `command_seconds` is the time since the command started. The recorded times of training and of validation are those
    of the whole run up to its last validation, even if the run was interrupted and resumed.
    """
    run = config.run_path
    checkpoints = run / "checkpoints"
    progress = read_progress_at(step_directory(checkpoints, readable_steps(checkpoints)[-1]))
    lines = (run / "log.jsonl").read_bytes().splitlines()
    validations = [event for event in map(json.loads, lines) if event["event"] == "validation"]
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    curve, validating = [], 0.0
    for event in validations:
        seconds = round(60 * event["minutes"] - validating, 3)
        curve.append(
            {
                "step": event["step"],
                "training_seconds": seconds,
                **{name: event[name] for name in MEASURED if name in event},
            }
        )
        validating += event["seconds"]
    record = {
        "target": config.training.target_score,
        "select_by": config.training.select_by,
        "reached": has_reached_target(progress, config.training),
        "best_score": abs(progress.best_score) if progress.has_best else None,
        "best_step": progress.best_step,
        "training_seconds": curve[-1]["training_seconds"],
        "validation_seconds": round(validating, 3),
        "command_seconds": round(command_seconds, 1),
        "updates": progress.step,
        "target_tokens": progress.target_tokens,
        "processor": processor(),
        "cores": available_cores(),
        "devices": facts.get("devices", 1),
        **{name: facts[name] for name in ("device", "threads", "precision", "parameters", "machine")},
        **{name: facts[name] for name in ("mtkit", "torch", "python", "command")},
        "date": datetime.now(UTC).date().isoformat(),
        "curve": curve,
        "test": [],
        "config": config.model_dump(mode="json"),
    }
    _write_json(run / RACE, record)
    return record


def read_race(run: Path) -> dict[str, Any]:
    """Returns the record that `write_race` wrote; raises CheckpointError if race.json is damaged or missing."""
    try:
        record = json.loads((run / RACE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{run / RACE}: damaged or missing; start the race anew with --fresh") from None
    assert isinstance(record, dict)
    return record


def note_scores(run: Path, record: dict[str, Any], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Add `scores`, the scores on the test sets, to the record of a race and to race.json; returns the new record."""
    record = {**record, "test": scores}
    _write_json(run / RACE, record)
    return record


def processor() -> str:
    """Returns the model name of the CPU or, if the system does not tell the name, the kind of CPU."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = ""
    names = (line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def race_text(record: dict[str, Any], run: Path) -> str:
    """Returns one line that sums up the record of a race."""
    score = "no score" if record["best_score"] is None else f"{record['select_by']} {record['best_score']:.2f}"
    verdict = "reached" if record["reached"] else "did not reach"
    return (
        f"{score} at step {record['best_step']:,} {verdict} the target {record['target']:g}: "
        f"{record['updates']:,} updates and {record['target_tokens']:,} target tokens in "
        f"{duration(record['training_seconds'])} of training, besides {duration(record['validation_seconds'])} of "
        f"validation; {duration(record['command_seconds'])} since the command started; {run / RACE}"
    )


# `mtkit bundle`: makes a bundle from the checkpoints of a run, which may still be training.

BEST, AVERAGE = "best", "average"  # the values of --step that are not numbers


@dataclass(frozen=True)
class Chosen:
    """The weights of one checkpoint, or the mean weights of several, and all else that goes into a bundle with them."""

    steps: list[int]  # the steps of the checkpoints
    choice: str | None  # why these steps were chosen, in words; None if the user named the step
    newest: Snapshot  # the checkpoint of the last step
    weights: dict[str, Tensor]
    config: Config
    tokenizer: Tokenizer


def bundle(run: Path, wanted: str = BEST, output: Path | None = None) -> str:
    """Write a bundle from the checkpoints of a run; returns a line that says where the bundle is and what it holds.

    `wanted` is "best", "average" or a step. `output` is the path of the bundle, by default in the folder `bundles` of
    the run directory; all other files of the run stay unchanged. If training deletes a checkpoint while this function
    reads it, the checkpoints are chosen and read again. Raises MtkitError if the wanted checkpoint does not exist, or
    if a bundle must not be written to `output`.
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
    return f"model: {target}: {weights_text(chosen.steps, config.training)}{why}"


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
    """Raise MtkitError if `target` is in a folder that training writes to, or exists already and is not a bundle."""
    if any(target.resolve().is_relative_to((run / name).resolve()) for name in ("model", "checkpoints")):
        raise MtkitError(f"{target}: is where training writes; name a folder elsewhere")
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise MtkitError(f"{target}: is there already and is no bundle; name a new folder")


def _read(run: Path, wanted: str) -> Chosen:
    """Choose the checkpoints and read what a bundle needs from them.

    Raises FileNotFoundError if training deletes one of these checkpoints meanwhile.
    """
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
    """Returns the steps of the checkpoints to read, in ascending order, and the reason for this choice, in words.

    The reason is `None` if `wanted` is a step.
    """
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
