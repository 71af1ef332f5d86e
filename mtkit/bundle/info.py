"""The model card of a bundle, the facts of `mtkit info`, faults in the files of a bundle, and `mtkit pack`."""

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
    SHORTLIST,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    Member,
    Packed,
    Storage,
    Sums,
    all_sums,
    bundle_of,
    describe,
    lay_out,
    not_finite,
    numbers_begin,
    read_scores,
)
from mtkit.bundle.opening import CheckpointStorage, find_model, newest_step, open_model, tell
from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.errors import CheckpointError, counted
from mtkit.files import replaced_file

# The model card.


def card_text(bundle: Bundle, scores: Sequence[tuple[str, str, float, str]]) -> str:
    """The model card, which is the README.md of a bundle.

    Each item of `scores` is (test set, metric, value, signature).
    """
    config, about = bundle.config, bundle.description
    source, target = config.languages.source, config.languages.target
    translates = config.task == "translation"
    kind, does = ("translation", "translates") if translates else ("language", "generates")
    use = f"translate MODEL < text.{source} > text.{target}" if translates else "generate MODEL < beginnings.txt"
    python = 'translate(["one line", "another"])' if translates else 'generate(["a beginning", ""])'
    training = about.get("training", {})
    model = ", ".join(f"{key} {value}" for key, value in settings_of(config.model.model_dump(mode="json")))
    rows = "\n".join(
        f"| {_cell(name)} | {metric} | {score:.2f} | {_cell(signature)} |" for name, metric, score, signature in scores
    )
    table = f"""
## Scores

Raw text in, raw text out; {decoding_text(config.decoding)}.

| test set | metric | score | signature |
|---|---|---:|---|
{rows}
"""
    return f"""# {config.name}: {_languages_text(config)}

A {kind} model with {about["num_parameters"]:,} parameters, made with mtkit {about["mtkit"]}.

## Use

MODEL is this directory, or the single file that `mtkit pack` makes of it.

    mtkit {use}
    mtkit info MODEL     # the facts on this card; --json gives more
    mtkit check MODEL    # whether its files are intact and it {does} the same on this machine
    mtkit pack MODEL {config.name.split()[0]}.mtkit

In Python:

    import mtkit

    translator = mtkit.load("MODEL")
    print(translator.{python})
{table if translates else ""}{_shortlist(about)}{_data(config, training.get("data", {}))}
## Model{" and training" if training else ""}

{model}.

{_training(config, training)}All settings are in config.yaml, checksums of all files in bundle.json.
"""


def _shortlist(about: dict[str, Any]) -> str:
    """The section of the model card on the shortlist, the target tokens to which a translation can be limited.

    Returns an empty string if the model has no shortlist. `about` is the content of bundle.json.
    """
    if "shortlist" not in about:
        return ""
    return f"""
## Shortlist

With `--shortlist auto`, a translation has only tokens that are frequent or that translate a token of its source:
{shortlist_text(about["shortlist"])}. `--shortlist null` allows all tokens.
"""


def shortlist_text(told: dict[str, Any]) -> str:
    """A phrase with the mean number of tokens on a sentence's shortlist, and BLEU with and without shortlists.

    A shortlist has the target tokens that a translation may contain. `told` is the value of the key shortlist in
    bundle.json, with the figures that were measured when the shortlist was made. If BLEU was not measured, the phrase
    is "not measured".
    """
    if "bleu" not in told:
        return "not measured"
    return (
        f"{told['tokens']:.0f} tokens a sentence, and BLEU {told['bleu']:.2f} instead of {told['bleu_without']:.2f}, "
        f"by greedy search on {counted(told['sentences'], 'validation sentence')} with lists of size {told['size']}"
    )


def _data(config: Config, data: dict[str, Any]) -> str:
    """The section of the card that describes the training data; an empty string if `data` is empty.

    `data` is the value of training.data in bundle.json, and `config` has the model's settings.
    """
    if not data:
        return ""
    drops = ", ".join(f"{count:,} {reason}" for reason, count in data["dropped"].items() if count) or "none"
    lengths = "\n\n" + _lengths(data["lengths"]) if "lengths" in data else ""
    return f"""
## Data

{counted(data["num_pairs"], "sentence pair" if data["source_tokens"] else "sentence")}, \
{f"{data['source_tokens']:,} source and " if data["source_tokens"] else ""}\
{counted(data["target_tokens"], "target token")}. \
Left out: {drops}.{_unknown(data.get("unknown", {}))}

| file | pairs | checksum |
|---|---:|---|
{_files(config, data)}{lengths}
"""


def _files(config: Config, data: dict[str, Any]) -> str:
    """The rows of a Markdown table of training files: name, number of pairs and checksum.

    `data` is the value of training.data in bundle.json; the settings in `config` tell which files belong to the same
    corpus. The number of pairs is known only for a corpus that consists of one part (a pair of files, or one
    tab-separated file). For all other corpora, and for bundles of earlier versions of mtkit, the cell is empty.
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
    """A Markdown table of sentence lengths in tokens.

    It has a row for the source, unless all sources are empty, and a row for the target; each row has the mean, the
    quantiles and the maximum. `lengths` is the value of training.data.lengths in bundle.json.
    """
    quantiles = list(lengths["source"]["quantiles"])
    sample = "" if lengths["measured"] == lengths["pairs"] else f"; quantiles of {lengths['measured']:,} pairs"
    rows = [
        f"| {side} | {lengths[side]['mean']} | "
        + "".join(f"{lengths[side]['quantiles'].get(name, '')} | " for name in quantiles)
        + f"{lengths[side]['longest']} |"
        for side in ("source", "target")
        if lengths[side]["longest"] or side == "target"
    ]
    head = f"| tokens per sentence{sample} | mean | {''.join(f'{name} | ' for name in quantiles)}longest |"
    return "\n".join([head, f"|---|{'---:|' * (len(quantiles) + 2)}", *rows])


def _training(config: Config, training: dict[str, Any]) -> str:
    """The paragraph of the card on training, ending with a space; an empty string if `training` is empty.

    `training` is the value of the key training in bundle.json, and `config` has the model's settings.
    """
    if not training:
        return ""
    weights = weights_text(training["averaged_steps"], config.training)
    choice = f", {training['choice']}" if "choice" in training else ""
    unfinished = "" if training.get("finished", True) else "Training was not finished. "
    changed = changes_text(training)
    changes = f"Settings changed during training: {changed}. " if changed else ""
    return (
        f"{counted(training['steps'], 'update')} in {training['minutes']} minutes; the weights are {weights}{choice}. "
        f"{unfinished}{changes}"
    )


def _unknown(shares: dict[str, float]) -> str:
    """A sentence, with a space before it, on the fractions of unknown tokens; an empty string if `shares` is empty.

    `shares` maps phrases such as "source tokens" to the fraction of these tokens that is unknown.
    """
    described = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
    return f" Unknown tokens: {described}." if shares else ""


def _cell(text: str) -> str:
    """`text` with every | escaped, because an unescaped one would end the cell of a Markdown table."""
    return text.replace("|", "\\|")


# Phrases that the card and `mtkit info` share.


def _languages_text(config: Config) -> str:
    """A phrase on the languages, such as "en to de" or, for a language model, "language model of de"."""
    if config.task == "language_model":
        return f"language model of {config.languages.target}"
    return f"{config.languages.source} to {config.languages.target}"


def changes_text(training: dict[str, Any]) -> str:
    """A phrase that tells which settings changed during training, and after which update; empty if none changed.

    `training` is the value of the key training in bundle.json.
    """
    return "; ".join(
        f"after update {change['step']:,} "
        + ", ".join(_change(name, sides) for name, sides in change["settings"].items())
        for change in training.get("changes", [])
    )


def _change(name: str, sides: list[Any]) -> str:
    """A phrase on one change, such as "training.learning_rate from 0.001 to 0.002"; `sides` has the old and new value.

    A `name` without a dot is not a setting but a text that changed, such as the validation text. The values are then
    checksums, which the phrase leaves out.
    """
    return f"{name} from {sides[0]} to {sides[1]}" if "." in name else f"the {name} text"


def decoding_text(decoding: DecodingConfig) -> str:
    """A phrase on how translations are found, such as "beam 5, length penalty 1 (power), min_length 3".

    It begins with the beam size and the length penalty. For mask-predict, it begins with the numbers of iterations and
    length candidates; for sampling, with "samples". Other settings follow if they are not at their defaults. Four
    settings are never mentioned: batch_tokens and refill, which do not affect translations, and max_length_ratio and
    max_length_extra.
    """
    search = f"beam {decoding.beam_size}, length penalty {decoding.length_penalty:g} ({decoding.length_penalty_form})"
    if decoding.method == "mask_predict":
        search = f"mask-predict, iterations {decoding.iterations}, length candidates {decoding.length_candidates}"
    shown = {"method", "beam_size", "length_penalty", "length_penalty_form", "batch_tokens", "refill"}
    shown |= {"iterations", "length_candidates"}
    shown |= {"max_length_ratio", "max_length_extra"}  # few translations are that long
    others = decoding.model_dump(mode="json", exclude_defaults=True, exclude=shown)
    return ", ".join(["samples" if decoding.draws else search, *(f"{name} {value}" for name, value in others.items())])


def settings_of(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, value) for every setting in `section`; nested settings have names such as encoder.d_model."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from settings_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def weights_text(steps: Sequence[int], settings: TrainingConfig) -> str:
    """A phrase on the origin of the weights, such as "the average of those after updates 1,000, 2,000".

    `steps` are the steps of the checkpoints that were averaged. If there is only one step, nothing was averaged; step 0
    is the model that training started from. `settings` tells whether training itself averaged the weights over updates.
    """
    what = "those" if settings.ema_decay is None else f"the moving average (decay {settings.ema_decay:g})"
    if settings.optimizer == "schedule_free":
        what = "the average of schedule_free"
    if list(steps) == [0]:
        return "those that training started from"
    if len(steps) == 1:
        return f"{what} after update {steps[0]:,}"
    return f"the average of {what} after updates {', '.join(f'{step:,}' for step in steps)}"


# `mtkit info`.

# Settings of a model that `mtkit info` always shows; it shows others only if they are not the default.
SIZES = ("architecture", "d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers", "cell", "attention")
WIDTH = 100  # of a line, in characters
INDENT = 16  # of the values, in characters

REPEATED = ("weights_bytes", "tokenizer_sha256")  # keys of bundle.json that repeat what its list of files says


@dataclass(frozen=True)
class Info:
    """A bundle, together with the other facts that `mtkit info` shows."""

    bundle: Bundle
    scores: list[dict[str, Any]]
    num_bytes: int  # size of all files of the bundle
    num_parameters: int
    newest_step: int | None = None  # newest checkpoint of the run, if training continued after the bundle was written


def info_of(model: Path) -> Info:
    """Opens the model at the path `model` and returns the facts about it.

    Of the file of weights, only the header is read. Raises MtkitError if the model cannot be read.
    """
    bundle = open_model(model)
    num_parameters = sum(tensor.numel() for tensor in bundle.weights().values())
    newest = None if isinstance(bundle.storage, CheckpointStorage) else newest_step(model)
    if newest == bundle.description.get("training", {}).get("steps"):
        newest = None
    return Info(bundle, read_scores(bundle), bundle.storage.num_bytes, num_parameters, newest)


def info_json(info: Info) -> dict[str, Any]:
    """All facts in `info` as a dict that can be written as JSON, for `mtkit info --json`."""
    bundle, config = info.bundle, info.bundle.config
    return {
        "path": str(bundle.path),
        "packed": isinstance(bundle.storage, Packed),
        "checkpoint": isinstance(bundle.storage, CheckpointStorage),
        "bytes": info.num_bytes,
        **{key: value for key, value in bundle.description.items() if key not in REPEATED},
        "name": config.name,
        "languages": config.languages.model_dump(mode="json"),
        "num_parameters": info.num_parameters,
        "config": config.model_dump(mode="json"),
        "scores": info.scores,
        **({} if info.newest_step is None else {"newest_step": info.newest_step}),
    }


def info_text(info: Info) -> str:
    """The main facts in `info` as text, for `mtkit info`.

    Lines have at most WIDTH characters, except lines with a long path or signature.
    """
    bundle, config = info.bundle, info.bundle.config
    lines = [f"{config.name}: {_languages_text(config)}"]
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
    """Yields (label, text) for each fact that `info_text` shows between the path and the scores."""
    bundle, config, about = info.bundle, info.bundle.config, info.bundle.description
    kinds = {Packed: "in one file", CheckpointStorage: "without the state that training resumes from"}
    yield "size", f"{info.num_bytes:,} bytes, {kinds.get(type(bundle.storage), 'in a folder')}"
    format_ = "a checkpoint" if isinstance(bundle.storage, CheckpointStorage) else about["format"]
    yield "format", f"{format_}, written by mtkit {about.get('mtkit', '?')}"
    yield "architecture", ", ".join([config.model.architecture, *_sizes(config.model)])
    yield "parameters", f"{info.num_parameters:,}"
    shared = "one vocabulary for both sides" if config.tokenizer.shared else "a vocabulary for each side"
    sizes = f"{about['source_vocab_size']:,} source pieces, {about['target_vocab_size']:,} target pieces"
    yield "tokenizer", f"{config.tokenizer.type}, {shared}: {sizes}"
    if "shortlist" in about:
        yield "shortlist", shortlist_text(about["shortlist"])
    training = about.get("training", {})
    if data := training.get("data"):
        left_out = sum(data.get("dropped", {}).values())
        yield "data", f"{_counted(data, 'num_pairs', 'pair')}, {left_out:,} left out"
        yield from _length_statistics(data)
    if training:
        unfinished = "" if training.get("finished", True) else "; training was not finished"
        updates = f"{_counted(training, 'steps', 'update')} in {training.get('minutes', '?')} minutes"
        yield "training", f"{updates}{unfinished}"
        if info.newest_step is not None:
            yield "since then", f"training has continued; its newest checkpoint is step {info.newest_step:,}"
        if changed := changes_text(training):
            yield "changed", changed
        if steps := training.get("averaged_steps"):
            yield "weights", f"{weights_text(steps, config.training)}{_chosen(training, config.training)}"


def _chosen(training: dict[str, Any], settings: TrainingConfig) -> str:
    """A phrase, beginning with a comma, on how the weights were chosen, such as ", chosen by validation bleu".

    If the model is a checkpoint that the user named, returns an empty string. `training` is the value of the key
    training in bundle.json.
    """
    if "choice" in training:
        return f", {training['choice']}"
    is_checkpoint = "finished" in training
    return "" if is_checkpoint else f", chosen by validation {settings.select_by}"


def _length_statistics(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (side, text) for source and target, where the text has the number of tokens and statistics of lengths.

    The source is left out if it has no tokens, and the statistics are left out if they are not known. `data` is the
    value of training.data in bundle.json.
    """
    for side in ("source", "target") if data.get("source_tokens", True) else ("target",):
        if lengths := data.get("lengths", {}).get(side):
            quantiles = ", ".join(f"{name} {value}" for name, value in lengths.get("quantiles", {}).items())
            yield (
                side,
                (
                    f"{_number(data, f'{side}_tokens')} tokens; per sentence: mean {lengths.get('mean', '?')}, "
                    f"{quantiles}, longest {lengths.get('longest', '?')}"
                ),
            )
        else:
            yield side, f"{_number(data, f'{side}_tokens')} tokens"


def _counted(facts: dict[str, Any], name: str, noun: str) -> str:
    """The number `facts[name]` followed by `noun`, for example "2,000 pairs".

    If `facts` has no such number, a question mark takes its place: "? pairs".
    """
    return counted(facts[name], noun) if name in facts else f"? {noun}s"


def _number(facts: dict[str, Any], name: str) -> str:
    """The number `facts[name]` with thousands separators, or "?" if it is missing."""
    return f"{facts[name]:,}" if name in facts else "?"


def _sizes(section: Section) -> Iterator[str]:
    """Yields texts such as "d_model 256", for the settings of a model that `mtkit info` shows.

    These are the settings in SIZES, and any other setting that differs from its default. The setting `architecture` is
    left out, since `mtkit info` shows it separately.
    """
    given = dict(settings_of(section.model_dump(mode="json")))
    unusual = dict(settings_of(section.model_dump(mode="json", exclude_defaults=True)))
    for name, value in given.items():
        if name != "architecture" and (name in unusual or name.split(".")[-1] in SIZES):
            yield f"{name} {value}"


# The files of a bundle: finding faults in them, and packing them into one file, whose weights can be memory-mapped.

# The files of a bundle, apart from those of its tokenizer.
PARTS = (DESCRIPTION, CONFIG, CANARIES, SCORES, CARD, WEIGHTS, SHORTLIST)


def faults_of_files(storage: Storage, description: Mapping[str, Any], sums: Mapping[str, Sums]) -> list[str]:
    """A line for each file that is missing, changed, or not part of the bundle; an empty list if there is no fault.

    If an archive differs from what `mtkit pack` writes, a line says so. `description` is the content of bundle.json,
    and `sums` has the checksums of the files in `storage`. A description of format 1 lists no files, so missing and
    changed files are not noticed.
    """
    faults = []
    listed: Mapping[str, Any] = description.get("files", {})
    for name, wanted in listed.items():
        if name not in sums:
            faults.append(f"{storage.path / name}: missing; copy the model again")
        elif sums[name].told != wanted:
            faults.append(
                f"{storage.path / name}: changed since it was written ({sums[name].size:,} bytes, "
                f"{wanted['bytes']:,} were written); copy the model again"
            )
    for name in sorted({*storage.names(), *sums} - listed.keys() - {DESCRIPTION}):
        is_part = name in PARTS or name.startswith(f"{TOKENIZER}/")
        if "files" in description or not is_part:
            faults.append(f"{storage.path / name}: not part of the model; remove it, or copy the model again")
    if strange := storage.strange(members_of(storage, sums)):
        faults.append(f"{storage.path}: {strange}; copy the model again")
    return faults


def members_of(storage: Storage, sums: Mapping[str, Sums]) -> list[Member]:
    """The files in `sums` as members of an archive, in packing order: bundle.json first, the weights last."""
    names = sorted(sums, key=lambda name: (name == WEIGHTS, name != DESCRIPTION, name))
    return [Member(name, sums[name].size, sums[name].crc, align_at=_align_at(storage, name)) for name in names]


def _align_at(storage: Storage, name: str) -> int | None:
    """The offset of the first tensor in the file called `name`; `None` if it is not a file of tensors.

    Returns 0 if the header of the tensors is damaged. The offset is the value of `Member.align_at` for this file.
    """
    if name not in (WEIGHTS, SHORTLIST):
        return None
    try:
        return numbers_begin(storage.view(name))
    except ValueError:  # damaged weights, which are reported elsewhere
        return 0


def pack(model: Path, output: Path) -> int:
    """Packs the bundle at the path `model` into the file `output`, and returns the size of that file in bytes.

    Only the bundle's files and their names are stored, without dates, so equal bundles give equal bytes. Raises
    CheckpointError if the bundle is damaged, if it has weights that are not finite, or if `output` cannot be written.
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
    if fault := not_finite(bundle.weights()):
        raise CheckpointError(f"{bundle.path}: {fault}; train the model again")
    _write_packed(storage, sums, output)
    return output.stat().st_size


def _write_packed(storage: Storage, sums: Mapping[str, Sums], output: Path) -> None:
    """Packs the files in `sums` into the file `output`, atomically.

    Raises CheckpointError if `output` cannot be written.
    """
    members = members_of(storage, sums)
    contents = [storage.view(member.name) for member in members]
    try:
        with replaced_file(output) as file:
            lay_out(members).write(file, contents)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from None
