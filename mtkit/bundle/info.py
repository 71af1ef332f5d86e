"""What is told of a bundle (its card, mtkit info), and a bundle in one file."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mtkit.bundle.bundle import (
    CANARIES,
    CARD,
    CONFIG,
    DESCRIPTION,
    SCORES,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    bundle_of,
    describe,
    read_scores,
)
from mtkit.bundle.opening import CheckpointStorage, find_model, newest_step, open_model, tell
from mtkit.bundle.storage import Member, Packed, Storage, Sums, all_sums, lay_out, not_finite, numbers_begin
from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.errors import CheckpointError, counted
from mtkit.files import replaced_file


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


# `mtkit info`: what a bundle is, as its files tell.

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
        yield from _length_statistics(data)
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


def _length_statistics(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
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


# A bundle packed into one file: an archive whose weights can be used where they lie.


def members_of(storage: Storage, sums: Mapping[str, Sums]) -> list[Member]:
    """The files in the order in which they are packed: what tells of the others first, the weights last."""
    names = sorted(sums, key=lambda name: (name == WEIGHTS, name != DESCRIPTION, name))
    return [Member(name, sums[name].size, sums[name].crc, align_at=_align_at(storage, name)) for name in names]


def _align_at(storage: Storage, name: str) -> int | None:
    if name != WEIGHTS:
        return None
    try:
        return numbers_begin(storage.view(name))
    except ValueError:  # it is told elsewhere that they are damaged
        return 0


def write_packed(storage: Storage, sums: Mapping[str, Sums], output: Path) -> None:
    """Pack the files into one, which takes the place of an older one when it is whole."""
    members = members_of(storage, sums)
    contents = [storage.view(member.name) for member in members]
    try:
        with replaced_file(output) as file:
            lay_out(members).write(file, contents)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from None


# What became of the files of a bundle since it was written.

PARTS = (DESCRIPTION, CONFIG, CANARIES, SCORES, CARD, WEIGHTS)


def faults_of_files(storage: Storage, description: Mapping[str, Any], sums: Mapping[str, Sums]) -> list[str]:
    """A line for each file that is missing, changed, or none of the bundle's; sums are of those that are there.

    A bundle of format 1 tells nothing of most of its files.
    """
    return [*_faults(storage, description, sums)]


def _faults(storage: Storage, description: Mapping[str, Any], sums: Mapping[str, Sums]) -> Iterator[str]:
    told: Mapping[str, Any] = description.get("files", {})
    for name, wanted in told.items():
        if name not in sums:
            yield f"{storage.path / name}: missing; copy the model again"
        elif sums[name].told != wanted:
            yield (
                f"{storage.path / name}: changed since it was written ({sums[name].size:,} bytes, "
                f"{wanted['bytes']:,} were written); copy the model again"
            )
    for name in sorted({*storage.names(), *sums} - told.keys() - {DESCRIPTION}):
        is_part = name in PARTS or name.startswith(f"{TOKENIZER}/")
        if "files" in description or not is_part:
            yield f"{storage.path / name}: not part of the model; remove it, or copy the model again"
    if strange := storage.strange(members_of(storage, sums)):
        yield f"{storage.path}: {strange}; copy the model again"


# `mtkit pack`: a bundle into one file.


def pack(model: Path, output: Path) -> int:
    """Write the packed bundle, which is no more than its parts and their names, and return its size in bytes.

    The same bundle gives the same bytes. One that is damaged is refused.
    """
    if output.is_dir():
        raise CheckpointError(f"{output}: is a folder; wants the name of a file, such as model.mtkit")
    storage = find_model(model)
    tell(storage)
    sums = all_sums(storage)
    if faults := faults_of_files(storage, describe(storage), sums):
        raise CheckpointError("\n".join(faults))
    bundle = bundle_of(storage)
    bundle.require_own_tokenizer()
    if fault := not_finite(bundle.weights()):  # whose header is whole
        raise CheckpointError(f"{bundle.path}: {fault}; train the model again")
    write_packed(storage, sums, output)
    return output.stat().st_size
