"""`mtkit info`: what a bundle is, as its files tell."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.config.section import Section
from mtkit.config.training_settings import TrainingConfig
from mtkit.formats.bundle import Bundle, read_scores
from mtkit.formats.card import changes_text, decoding_text, settings_of, weights_text
from mtkit.formats.storage import Packed
from mtkit.messages import counted
from mtkit.opening import CheckpointStorage, newest_step, open_model

SIZES = ("architecture", "d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers", "cell", "attention")
WIDTH = 100
INDENT = 16


@dataclass(frozen=True)
class Info:
    """A bundle, and what else its text tells."""

    bundle: Bundle
    scores: list[dict[str, Any]]
    num_bytes: int
    num_parameters: int
    newest_step: int | None = None  # of its run, if training has gone on since the bundle was written


def info_of(model: Path) -> Info:
    """What there is to tell; of the weights of a bundle only the header is read."""
    bundle = open_model(model)
    num_parameters = sum(tensor.numel() for tensor in bundle.weights().values())
    newest = None if isinstance(bundle.storage, CheckpointStorage) else newest_step(model)
    if newest == bundle.description.get("training", {}).get("steps"):
        newest = None
    return Info(bundle, read_scores(bundle), bundle.storage.num_bytes, num_parameters, newest)


def info_json(info: Info) -> dict[str, Any]:
    """All of it, for programs."""
    bundle, config = info.bundle, info.bundle.config
    return {
        "path": str(bundle.path),
        "packed": isinstance(bundle.storage, Packed),
        "checkpoint": isinstance(bundle.storage, CheckpointStorage),
        "bytes": info.num_bytes,
        **{key: value for key, value in bundle.description.items() if key not in _NOT_TOLD},
        "name": config.name,
        "languages": config.languages.model_dump(mode="json"),
        "num_parameters": info.num_parameters,
        "config": config.model_dump(mode="json"),
        "scores": info.scores,
        **({"newest_step": info.newest_step} if info.newest_step else {}),
    }


_NOT_TOLD = ("weights_bytes", "tokenizer_sha256")  # files tells both


def info_text(info: Info) -> str:
    """The same for people, on a screen."""
    bundle, config = info.bundle, info.bundle.config
    lines = [f"{config.name}: {config.languages.source} to {config.languages.target}"]
    lines.append(f"  {'model':<{INDENT - 2}}{bundle.path}")
    for name, text in _rows(info):
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"  {name:<{INDENT - 2}}",
            subsequent_indent=" " * INDENT,
            break_on_hyphens=False,
        )
    if info.scores:
        lines.append(f"  {'scores':<{INDENT - 2}}{decoding_text(bundle.config.decoding)}")
    for score in info.scores:
        lines.append(f"    {score['test_set']}  {score['metric']} {score['score']:.2f}  {score['signature']}")
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _rows(info: Info) -> Iterator[tuple[str, str]]:
    bundle, config, about = info.bundle, info.bundle.config, info.bundle.description
    kinds = {Packed: "in one file", CheckpointStorage: "without what training needs to go on"}
    yield "size", f"{info.num_bytes:,} bytes, {kinds.get(type(bundle.storage), 'in a folder')}"
    format_ = "a checkpoint" if isinstance(bundle.storage, CheckpointStorage) else about["format"]
    yield "format", f"{format_}, written by mtkit {about.get('mtkit', '?')}"
    yield "architecture", ", ".join([config.model.architecture, *_telling(config.model)])
    yield "parameters", f"{info.num_parameters:,}"
    shared = "one vocabulary for both sides" if config.tokenizer.shared else "a vocabulary for each side"
    sizes = f"{about['source_vocab_size']:,} source pieces, {about['target_vocab_size']:,} target pieces"
    yield "tokenizer", f"{config.tokenizer.type}, {shared}: {sizes}"
    training = about.get("training", {})
    if data := training.get("data"):
        left_out = sum(data.get("dropped", {}).values())
        yield "data", f"{_counted(data, 'num_pairs', 'pair')}, {left_out:,} left out"
        yield from _lengths(data)
    if training:
        unfinished = "" if training.get("finished", True) else "; training was not finished"
        updates = f"{_counted(training, 'steps', 'update')} in {training.get('minutes', '?')} minutes"
        yield "training", f"{updates}{unfinished}"
        if info.newest_step:
            yield "since then", f"training goes on; its newest checkpoint is step {info.newest_step:,}"
        if changed := changes_text(training):
            yield "changed", changed
        if steps := training.get("averaged_steps"):
            yield "weights", f"{weights_text(steps, config.training.ema_decay)}{_chosen(training, config.training)}"


def _chosen(training: dict[str, Any], settings: TrainingConfig) -> str:
    """By what the weights were chosen; nothing where they are those of a checkpoint that was named."""
    if "choice" in training:
        return f", {training['choice']}"
    is_checkpoint = "finished" in training
    return "" if is_checkpoint else f", chosen by {settings.select_by} of the validation text"


def _lengths(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for side in ("source", "target"):
        if told := data.get("lengths", {}).get(side):
            quantiles = ", ".join(f"{name} {value}" for name, value in told.get("quantiles", {}).items())
            yield (
                f"{side}",
                (
                    f"{_number(data, f'{side}_tokens')} tokens; sentences: mean {told.get('mean', '?')}, "
                    f"{quantiles}, longest {told.get('longest', '?')}"
                ),
            )
        else:
            yield f"{side}", f"{_number(data, f'{side}_tokens')} tokens"


def _counted(told: dict[str, Any], name: str, noun: str) -> str:
    return counted(told[name], noun) if name in told else f"? {noun}s"


def _number(told: dict[str, Any], name: str) -> str:
    return f"{told[name]:,}" if name in told else "?"


def _telling(section: Section) -> Iterator[str]:
    """The sizes of a model, and what is not as usual."""
    given = dict(settings_of(section.model_dump(mode="json")))
    unusual = dict(settings_of(section.model_dump(mode="json", exclude_defaults=True)))
    for name, value in given.items():
        if name != "architecture" and (name in unusual or name.split(".")[-1] in SIZES):
            yield f"{name} {value}"
