"""The model card: what a stranger should know of a bundle, as its README.md."""

from collections.abc import Iterator, Sequence
from typing import Any

from mtkit.config.decoding_settings import DecodingConfig
from mtkit.formats.bundle import Bundle


def card_text(bundle: Bundle, scores: Sequence[tuple[str, str, float, str]]) -> str:
    """The card; scores are rows of test set, metric, figure, signature."""
    config, about = bundle.config, bundle.description
    training = about["training"]
    data = training["data"]
    model = ", ".join(f"{key} {value}" for key, value in _settings(config.model.model_dump(mode="json")))
    drops = ", ".join(f"{count:,} {reason}" for reason, count in data["dropped"].items() if count) or "none"
    files = "\n".join(f"- {entry['name']}: {entry['fingerprint']}" for entry in data["files"])
    rows = "\n".join(
        f"| {_cell(name)} | {metric} | {score:.2f} | {_cell(signature)} |" for name, metric, score, signature in scores
    )
    return f"""# {config.name}: {config.languages.source} to {config.languages.target}

A translation model of {about["num_parameters"]:,} parameters, trained with mtkit {about["mtkit"]}.

## Scores

Raw text in, raw text out; {_decoding(config.decoding)}.

| test set | metric | score | signature |
|---|---|---:|---|
{rows}

## Data

{data["num_pairs"]:,} sentence pairs, {data["source_tokens"]:,} source and {data["target_tokens"]:,} target tokens. \
Left out: {drops}.{_unknown(data.get("unknown", {}))}

{files}

## Model and training

{model}.

{training["steps"]:,} updates in {training["minutes"]} minutes; the weights are \
{_weights(training["averaged_steps"], config.training.ema_decay)}. All settings are in config.yaml.

## Use

    mtkit translate MODEL < text.{config.languages.source} > text.{config.languages.target}

where MODEL is this directory; or in Python, `mtkit.load(MODEL).translate(lines)`.
"""


def _decoding(decoding: DecodingConfig) -> str:
    """How the scored translations were made: a beam and its penalty, or samples, and what else is not as usual."""
    search = f"beam {decoding.beam_size}, length penalty {decoding.length_penalty:g} ({decoding.length_penalty_form})"
    told = {"method", "beam_size", "length_penalty", "length_penalty_form", "batch_tokens"}
    others = decoding.model_dump(mode="json", exclude_defaults=True, exclude=told)
    return ", ".join(["samples" if decoding.draws else search, *(f"{name} {value}" for name, value in others.items())])


def _settings(section: dict[str, Any], around: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of a section inside as encoder.d_model."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{around}{key}.")
        else:
            yield f"{around}{key}", value


def _unknown(shares: dict[str, float]) -> str:
    """A sentence, where there may be unknown tokens."""
    described = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
    return f" Unknown tokens: {described}." if shares else ""


def _cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return text.replace("|", "\\|")


def _weights(steps: Sequence[int], ema_decay: float | None) -> str:
    what = "those" if ema_decay is None else f"the moving average (decay {ema_decay:g})"
    if len(steps) == 1:
        return f"{what} after update {steps[0]:,}"
    return f"the average of {what} after updates {', '.join(f'{step:,}' for step in steps)}"
