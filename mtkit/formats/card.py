"""The model card: what a stranger should know of a bundle, as its README.md."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from mtkit.config.decoding_settings import DecodingConfig
from mtkit.config.settings import Config
from mtkit.formats.bundle import Bundle
from mtkit.messages import counted


def card_text(bundle: Bundle, scores: Sequence[tuple[str, str, float, str]]) -> str:
    """The card; scores are rows of test set, metric, figure, signature."""
    config, about = bundle.config, bundle.description
    source, target = config.languages.source, config.languages.target
    training = about.get("training", {})
    model = ", ".join(f"{key} {value}" for key, value in settings_of(config.model.model_dump(mode="json")))
    rows = "\n".join(
        f"| {_cell(name)} | {metric} | {score:.2f} | {_cell(signature)} |" for name, metric, score, signature in scores
    )
    return f"""# {config.name}: {source} to {target}

A translation model of {about["num_parameters"]:,} parameters, made with mtkit {about["mtkit"]}.

## Use

MODEL is this directory, or the one file that `mtkit pack` makes of it.

    mtkit translate MODEL < text.{source} > text.{target}
    mtkit info MODEL     # what this card tells, and more with --json
    mtkit check MODEL    # whether it is whole, and says here what it said where it was made
    mtkit pack MODEL {config.name.split()[0]}.mtkit

In Python:

    import mtkit

    translator = mtkit.load("MODEL")
    print(translator.translate(["one line", "another"]))

## Scores

Raw text in, raw text out; {decoding_text(config.decoding)}.

| test set | metric | score | signature |
|---|---|---:|---|
{rows}
{_data(config, training.get("data", {}))}
## Model{" and training" if training else ""}

{model}.

{_training(config, training)}All settings are in config.yaml, checksums of all files in bundle.json.
"""


def _data(config: Config, data: dict[str, Any]) -> str:
    """What it learnt from; nothing where nobody knows."""
    if not data:
        return ""
    drops = ", ".join(f"{count:,} {reason}" for reason, count in data["dropped"].items() if count) or "none"
    lengths = "\n\n" + _lengths(data["lengths"]) if "lengths" in data else ""
    return f"""
## Data

{counted(data["num_pairs"], "sentence pair")}, {data["source_tokens"]:,} source and \
{counted(data["target_tokens"], "target token")}. \
Left out: {drops}.{_unknown(data.get("unknown", {}))}

| file | pairs | checksum |
|---|---:|---|
{_files(config, data)}{lengths}
"""


def _files(config: Config, data: dict[str, Any]) -> str:
    """A row for each file of text, with the pairs of it that were kept, where it is no part of a larger corpus.

    Older bundles do not tell these numbers.
    """
    corpora = zip(config.data.train, data.get("corpora", []), strict=False)
    counts = list(
        chain.from_iterable(
            [f"{pairs:,}" if len(corpus.parts) == 1 else ""] * len(corpus.paths) for corpus, pairs in corpora
        )
    )
    if len(counts) != len(data["files"]):
        counts = [""] * len(data["files"])
    return "\n".join(
        f"| {_cell(entry['name'])} | {count} | {entry['fingerprint']} |"
        for entry, count in zip(data["files"], counts, strict=True)
    )


def _lengths(lengths: dict[str, Any]) -> str:
    """A table of both sides."""
    quantiles = list(lengths["source"]["quantiles"])
    sample = "" if lengths["measured"] == lengths["pairs"] else f"; quantiles of {lengths['measured']:,} pairs"
    rows = [
        f"| {side} | {lengths[side]['mean']} | "
        + "".join(f"{lengths[side]['quantiles'].get(name, '')} | " for name in quantiles)
        + f"{lengths[side]['longest']} |"
        for side in ("source", "target")
    ]
    head = f"| tokens of a sentence{sample} | mean | {''.join(f'{name} | ' for name in quantiles)}longest |"
    return "\n".join([head, f"|---|{'---:|' * (len(quantiles) + 2)}", *rows])


def _training(config: Config, training: dict[str, Any]) -> str:
    if not training:
        return ""
    weights = weights_text(training["averaged_steps"], config.training.ema_decay)
    choice = f", {training['choice']}" if "choice" in training else ""
    unfinished = "" if training.get("finished", True) else "Training was not finished. "
    return (
        f"{counted(training['steps'], 'update')} in {training['minutes']} minutes; the weights are {weights}{choice}. "
        f"{unfinished}{_changes(training)}"
    )


def _changes(training: dict[str, Any]) -> str:
    """A sentence on settings that changed on the way, where some did."""
    told = changes_text(training)
    return f"Settings changed on the way: {told}. " if told else ""


def changes_text(training: dict[str, Any]) -> str:
    """Which settings of training changed on the way, and after which update."""
    return "; ".join(
        f"after update {change['step']:,} "
        + ", ".join(_change(name, sides) for name, sides in change["settings"].items())
        for change in training.get("changes", [])
    )


def _change(name: str, sides: list[Any]) -> str:
    """A setting that changed; of text that changed there is but a checksum, which tells nobody anything."""
    return f"{name} from {sides[0]} to {sides[1]}" if "." in name else f"the {name} text"


def decoding_text(decoding: DecodingConfig) -> str:
    """How translations are made: a beam and its penalty, or samples, and what else is not as usual."""
    search = f"beam {decoding.beam_size}, length penalty {decoding.length_penalty:g} ({decoding.length_penalty_form})"
    told = {"method", "beam_size", "length_penalty", "length_penalty_form", "batch_tokens"}
    others = decoding.model_dump(mode="json", exclude_defaults=True, exclude=told)
    return ", ".join(["samples" if decoding.draws else search, *(f"{name} {value}" for name, value in others.items())])


def settings_of(section: dict[str, Any], around: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of a section inside as encoder.d_model."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from settings_of(value, f"{around}{key}.")
        else:
            yield f"{around}{key}", value


def weights_text(steps: Sequence[int], ema_decay: float | None) -> str:
    """Which weights these are, of the updates of training."""
    what = "those" if ema_decay is None else f"the moving average (decay {ema_decay:g})"
    if len(steps) == 1:
        return f"{what} after update {steps[0]:,}"
    return f"the average of {what} after updates {', '.join(f'{step:,}' for step in steps)}"


def _unknown(shares: dict[str, float]) -> str:
    """A sentence, where there may be unknown tokens."""
    described = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
    return f" Unknown tokens: {described}." if shares else ""


def _cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return text.replace("|", "\\|")
