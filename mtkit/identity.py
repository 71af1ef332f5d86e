"""What identifies a run: what must match its checkpoints for the run to resume, and what may be changed on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.data.mixing import is_natural
from mtkit.training.schedule import ENDING

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
    if is_natural(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}
