"""What makes a run this one and no other: what it must share with its checkpoints to be gone on with."""

from collections.abc import Iterator
from typing import Any

from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.data.mixing import is_natural
from mtkit.training.schedule import ENDING


def identity_of(config: Config, data: str, tokenizer: str, start: str | None) -> dict[str, Any]:
    """What must not change between the parts of one run, else it would be another run.

    data, tokenizer and start are checksums, start that of the weights that training started from.
    """
    free = {"start_from", "max_minutes", "patience", "log_every", "tensorboard", "keep_checkpoints", "max_skipped"}
    free |= set() if config.training.schedule in ENDING else {"max_steps"}
    return {
        "data": data,
        "tokenizer": tokenizer,
        "model": config.model.model_dump(mode="json"),
        "training": {
            # Where it lay does not matter; what it was does.
            "start_from": start,
            **{k: v for k, v in config.training.model_dump(mode="json").items() if k not in free},
        },
        **_mixing(config),
    }


def completion_of(config: Config, data: str, start: str | None) -> dict[str, Any]:
    """What training depends on: if none of it changed, training again would give the same.

    data and start are checksums, start that of the weights that training started from.
    """
    return {
        **({"start_from": start} if start else {}),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"start_from"}),  # where it lay does not matter
        "data": data,
        **_mixing(config),
    }


def with_defaults(saved: dict[str, Any], now: dict[str, Any], config: Config) -> dict[str, Any]:
    """What was saved, in which settings of now that were not there yet have their defaults."""
    return _filled(saved, now, {"model": _defaults(config.model), "training": _defaults(config.training)})


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


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What changed, one text for each setting."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after and prefix:
            yield f"{prefix}{key} was {before}, is {after}"
        elif before != after:
            yield f"the {key}"


def _mixing(config: Config) -> dict[str, Any]:
    """What the order of the pairs depends on beside the training settings; nothing where every pair comes once."""
    weights = [text.weight for text in config.data.train]
    if is_natural(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}
