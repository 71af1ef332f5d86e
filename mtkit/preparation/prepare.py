"""The stages train-tokenizer and binarize, and checks whether their results are up to date.

A stage checks all of its input before it replaces any file. The results of a stage are up to date if neither the
settings nor the content of the text files have changed since; modification times of files are not used.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from mtkit.config.data_and_model_settings import CorpusConfig, DataConfig, Rule, Side, TokenizerConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import (
    MANIFEST,
    VALIDATION_FORMAT,
    Corpus,
    CorpusWriter,
    Manifest,
    RawFile,
    is_proportional,
    mix,
    read_json_object,
    read_manifest,
    read_validation_text,
    validation_checksum,
    write_manifest,
)
from mtkit.errors import CheckpointError, DataError, Meter, counted, say, working
from mtkit.files import link_or_copy, replaced_directory, settle, standing, undone_when_ended
from mtkit.preparation.encoding import (
    REASONS,
    Drops,
    Encoder,
    UnknownShares,
    count_unknown_in_validation,
    describe_unknown,
    settings_behind,
)
from mtkit.preparation.sources import (
    HeldOutSearch,
    check_held_out,
    describe_files,
    fingerprint_files,
    has_files,
    new_oversights,
    read_held_out,
    report_oversights,
    resolve_corpora,
    setting_changes,
    string_list,
    tag_changes,
    tags_by_corpus,
    text_changes,
    training_corpora,
    warn_of_processed_text,
    watching_reader,
)
from mtkit.text.lines import fingerprint, read_lines, require_file
from mtkit.text.parallel import (
    Pair,
    data_file,
    pairs_in_turn,
    read_corpus,
    read_source,
    read_target,
    tagged_pairs,
    without_source,
)
from mtkit.text.tokenizer import (
    Tokenizer,
    VocabularyReport,
    check_sampling,
    existing_tokenizer,
    read_model,
    train_tokenizer,
)
from mtkit.translation.alignments import AlignmentLines

# The stage train-tokenizer.


def make_tokenizer(config: Config) -> list[str]:
    """Makes the run's tokenizer; prints and returns warnings about likely mistakes in the text.

    If `training.start_from` names a model, the tokenizer is copied from that model. Otherwise, if `tokenizer.model`
    names SentencePiece models, the tokenizer is made from them. Otherwise, it is trained on the training corpora. The
    warnings are about header lines that are read as pairs, and pairs whose source and target are identical.
    """
    oversights = new_oversights(config)
    check_held_out(config, oversights)
    _warn_of_text(config)
    if config.training.start_from is not None:
        _copy_tokenizer(config)
        return report_oversights(oversights)
    if config.tokenizer.model is not None:
        _take_given_models(config)
        return report_oversights(oversights)
    corpora = training_corpora(config)
    with _writing(config):
        provenance = _trained_provenance(config)
        # All pairs are read once before training, so that bad data raises an error immediately.
        read = watching_reader(oversights, "data.train")
        pairs = chain.from_iterable(read(part) for corpus in corpora for part in corpus.parts)
        with Meter("reading", "pairs") as meter:
            num_pairs = sum(1 for _ in meter.counting(pairs))
        if not num_pairs:
            raise _no_training_pairs(corpora)
        warnings = report_oversights(oversights)
        more = " and the text of tokenizer.text" if config.tokenizer.text else ""
        what = f"training the {config.tokenizer.type} tokenizer on {counted(num_pairs, 'pair')}{more}"
        with working(what), replaced_directory(_tokenizer_directory(config)) as directory:
            vocabularies = train_tokenizer(
                lambda: chain(chain.from_iterable(map(read_source, corpora)), _more_text(config, "source")),
                lambda: chain(chain.from_iterable(map(read_target, corpora)), _more_text(config, "target")),
                config.tokenizer,
                directory,
                config.data.train_tags,
            )
            _write_json(directory / PROVENANCE, provenance)
    for vocabulary in vocabularies:
        say(_describe_vocabulary(vocabulary))
    return warnings


def _copy_tokenizer(config: Config) -> None:
    """Copies the tokenizer of the model named by `training.start_from` into the run directory."""
    from mtkit.bundle.opening import start_bundle  # imported here, since only this needs torch

    bundle = start_bundle(config)
    assert bundle is not None
    path = bundle.tokenizer_path
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), path)
    with _writing(config), replaced_directory(_tokenizer_directory(config)) as directory:
        tokenizer.save(directory)
        _write_json(directory / PROVENANCE, _copied_provenance(tokenizer))
    sizes = {"source": tokenizer.source_vocab_size, "target": tokenizer.target_vocab_size}
    say(f"tokenizer: copied from {path}; " + ", ".join(f"{size:,} {side} pieces" for side, size in sizes.items()))


def _take_given_models(config: Config) -> None:
    """Makes the run's tokenizer from the SentencePiece models named by `tokenizer.model`."""
    paths = _given_models(config)
    tokenizer = existing_tokenizer(
        paths["source"], paths["target"], config.tokenizer.shared, config.data.train_tags, config.tokenizer.symbols
    )
    _check_sampling(config, tokenizer)
    with _writing(config), replaced_directory(_tokenizer_directory(config)) as directory:
        tokenizer.save(directory)
        _write_json(directory / PROVENANCE, _given_provenance(config, _given_fingerprints(config)))
    where = ", ".join(dict.fromkeys(map(str, paths.values())))
    say(
        f"tokenizer: {where}, of type {tokenizer.type}; {tokenizer.source_vocab_size:,} source pieces, "
        f"{tokenizer.target_vocab_size:,} target pieces"
    )


def _more_text(config: Config, side: Side) -> Iterator[str]:
    """Yields the lines of one side of `tokenizer.text`, additional text that only the tokenizer is trained on."""
    paths = (getattr(text, side) for text in config.tokenizer.text)
    return chain.from_iterable(read_lines(data_file(config, path)) for path in paths if path is not None)


def _describe_vocabulary(vocabulary: VocabularyReport) -> str:
    return (
        f"{vocabulary.side} {vocabulary.type} vocabulary: {counted(vocabulary.pieces_made, 'piece')} of "
        f"{vocabulary.pieces_asked:,} asked for, "
        f"trained on {vocabulary.lines_seen:,} of {counted(vocabulary.lines_offered, 'line')}"
    )


def _check_sampling(config: Config, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if the training settings ask for random segmentations that the tokenizer cannot produce."""
    check_sampling(tokenizer, config.tokenizer, config.training.bpe_dropout, config.training.unigram_alpha)


def _warn_of_text(config: Config) -> None:
    warn_of_processed_text(config, resolve_corpora(config, (*config.data.train, *config.data.valid)))


def _no_training_pairs(corpora: Iterable[CorpusConfig]) -> DataError:
    return DataError(f"{describe_files(corpora)}: the training corpora hold no pairs")


# The stage binarize.


def binarize(config: Config, warned: Sequence[str] | None = None) -> None:
    """Encodes the training corpora; stores the result and the validation text in the run directory.

    Reports how many pairs are left out and why, and warns if validation or test sentences occur in the training text.
    If `make_tokenizer` has just been called, pass its result as `warned`; then the validation and test text is not
    checked again, and the warnings in `warned` are not repeated. Raises DataError if no pair passes the cleaning rules.
    """
    corpora, oversights = training_corpora(config), new_oversights(config)
    if warned is None:
        check_held_out(config, oversights)
        _warn_of_text(config)
    settle(_tokenizer_directory(config))
    tokenizer = Tokenizer.load(_tokenizer_directory(config))
    _check_sampling(config, tokenizer)
    with _writing(config):
        raw_files = fingerprint_files(corpora)
        search = HeldOutSearch(read_held_out(config))
        with CorpusWriter(
            _train_directory(config),
            tokenizer.source_vocab_size,
            tokenizer.target_vocab_size,
            tokenizer.hash,
            keeps_text=config.training.samples_subwords,
            keeps_links=config.training.guided_alignment is not None,
        ) as writer:
            unknown = UnknownShares()
            reader, alignments = watching_reader(oversights, "data.train"), _alignments(config, corpora)
            encoder = Encoder(config, tokenizer, writer, search, unknown, reader, alignments)
            counts = [encoder.encode(corpus) for corpus in corpora]
            if alignments:
                alignments.finish()
            drops = encoder.drops
            num_pairs = writer.num_pairs + drops.counts.total()
            if not num_pairs:
                raise _no_training_pairs(corpora)
            if not writer.num_pairs:
                raise _nothing_left(config, num_pairs, drops)
            with replaced_directory(_validation_directory(config)) as directory:
                _write_validation(config, directory)
                valid = _read_pairs(config, tagged_pairs(resolve_corpora(config, config.data.valid)))
                count_unknown_in_validation(valid, tokenizer, unknown)
                manifest = writer.commit(
                    drops.counts,
                    raw_files,
                    _corpus_settings(config),
                    counts,
                    unknown.shares(),
                    RawFile(str(alignments.path), fingerprint(alignments.path)) if alignments else None,
                )
    _report_corpus(manifest, drops)
    _report_shares(config, manifest)
    for warning in (*search.warnings(), *(each for each in oversights.warnings() if each not in (warned or ()))):
        say(warning)


def _alignments(config: Config, corpora: Sequence[CorpusConfig]) -> AlignmentLines | None:
    """Returns the lines of the file `training.guided_alignment`; `None` if it is not given.

    Raises DataError if the file is missing or is a pipe.
    """
    path = config.training.guided_alignment
    if path is None:
        return None
    path = data_file(config, path)
    require_file(path)
    return AlignmentLines(path, lambda: sum(1 for corpus in corpora for _ in read_corpus(corpus)))


def _nothing_left(config: Config, num_pairs: int, drops: Drops) -> DataError:
    length = "max_length" if config.data.max_training_length is None else "max_training_length"
    names = [length if name == "max_length" else name for name in settings_behind(drops.counts)]
    # No setting controls which pairs are blank, so there may be none to name.
    advice = " and ".join(f"data.{name}" for name in names) or "the files of data.train"
    return DataError(f"every one of {counted(num_pairs, 'training pair')} is left out: {drops}; see {advice}")


def _report_corpus(manifest: Manifest, drops: Drops) -> None:
    """Prints how many pairs were kept and left out, examples of those left out, and fractions of unknown tokens."""
    say(
        f"kept {counted(manifest.num_pairs, 'pair')}: {manifest.source.num_tokens:,} source and "
        f"{counted(manifest.target.num_tokens, 'target token')}; the longest have {manifest.source.longest:,} "
        f"and {manifest.target.longest:,}"
    )
    if num_drops := drops.counts.total():
        say(f"dropped {num_drops:,} of {counted(manifest.num_pairs + num_drops, 'pair')}: {drops}")
        for line in drops.examples():
            say(line)
    if manifest.unknown:
        say(f"unknown tokens: {describe_unknown(manifest.unknown)}")


def _report_shares(config: Config, manifest: Manifest) -> None:
    """Prints the fraction of an epoch that each corpus makes up; prints nothing if every pair occurs once per epoch."""
    weights = [corpus.weight for corpus in config.data.train]
    if not is_proportional(weights, config.data.temperature):
        mixture = mix(manifest.corpora, weights, config.data.temperature)
        for corpus, share, repeats in zip(config.data.train, mixture.shares, mixture.repeats, strict=True):
            say(f"{describe_files([corpus])}: {share:.1%} of an epoch, each pair {repeats:.4g} times")


# The validation text, which binarize stores as plain text.

# The name of an order of lines. In this order, the first n lines are spread evenly over the original text, for any n.
SPREAD = "spread"


def read_validation(config: Config) -> tuple[list[str], list[str]]:
    """Returns the sources and the references of the run's validation text.

    Raises DataError if the files of this text are missing or have changed since they were written.
    """
    directory = _validation_directory(config)
    settle(directory)
    return read_validation_text(directory)


def renew_validation(config: Config) -> None:
    """Checks the text of `data.valid` and stores it as the run's validation text; leaves the corpora unchanged."""
    oversights = new_oversights(config)
    check_held_out(config, oversights)
    warn_of_processed_text(config, resolve_corpora(config, config.data.valid))
    report_oversights(oversights)
    with _writing(config), replaced_directory(_validation_directory(config)) as directory:
        _write_validation(config, directory)


def validation_is_spread(config: Config) -> bool:
    """Whether the run keeps the lines of its validation text in the order `SPREAD`, not in that of the files.

    In the order `SPREAD`, the first n lines, for any n, come from places spread evenly over the files.
    """
    return read_json_object(_validation_directory(config) / MANIFEST).get("order") == SPREAD


def _write_validation(config: Config, directory: Path) -> None:
    """Writes the text of `data.valid` and its manifest to a directory.

    Validation may translate only the first n lines. So the lines are in the order called `SPREAD`, in which the first n
    lines are spread evenly over the text. Earlier versions of mtkit kept the order of the files; a run that was begun
    with one of them keeps that order.
    """
    corpora = resolve_corpora(config, config.data.valid)
    sides, order = _sides(_read_pairs(config, pairs_in_turn(corpora))), {"order": SPREAD}
    noted = _noted_validation(config)
    if noted is not None and noted != validation_checksum(_checksums(sides)):
        in_file_order = _sides(_read_pairs(config, pairs_in_turn(corpora, is_spread=False)))
        if noted in ("", validation_checksum(_checksums(in_file_order))):
            sides, order = in_file_order, {}
    for name, text in sides.items():
        (directory / name).write_bytes(text)
    _write_json(
        directory / MANIFEST,
        {"format": VALIDATION_FORMAT, **order, **_validation_provenance(config), **_checksums(sides)},
    )


def _read_pairs(config: Config, pairs: Iterable[Pair]) -> Iterable[Pair]:
    """Returns the pairs as the model reads them: with blank sources for a language model, otherwise unchanged."""
    return pairs if config.task == "translation" else without_source(pairs)


def _noted_validation(config: Config) -> str | None:
    """Returns the checksum of the validation text that the run was trained with.

    Returns "" if the run recorded no checksum, and `None` if its training has not begun or left nothing that can be
    read.
    """
    if not any((config.run_path / name).exists() for name in ("checkpoints", "trained.json")):
        return None
    from mtkit.bundle.opening import noted_validation  # imported here, since only this needs torch

    return noted_validation(config.run_path)


def _sides(pairs: Iterable[Pair]) -> dict[str, bytes]:
    """Returns the contents of source.txt and target.txt for these pairs, by file name."""
    kept = list(pairs)
    return {
        f"{side}.txt": "".join(f"{pair[place]}\n" for pair in kept).encode()
        for place, side in enumerate(get_args(Side))
    }


def _checksums(sides: dict[str, bytes]) -> dict[str, str]:
    """Returns the SHA-256 checksum of each file's content, by file name."""
    return {name: hashlib.sha256(text).hexdigest() for name, text in sides.items()}


# Whether the tokenizer is up to date.


def tokenizer_is_current(config: Config) -> bool:
    """Whether the run's tokenizer is what `make_tokenizer` would make now, with these settings.

    Raises CheckpointError if the run's tokenizer is damaged.
    """
    return not tokenizer_changes(config)


def tokenizer_changes(config: Config) -> list[str]:
    """Returns a line of text for each file or setting that changed since the run's tokenizer was made.

    If the run has no tokenizer, the only line says so. The files named by `tokenizer.text`, by `tokenizer.model` or by
    `training.start_from` count as unchanged if none of them exists any longer. Raises CheckpointError if the run's
    tokenizer is damaged.
    """
    directory = _tokenizer_directory(config)
    settle(directory)
    if not has_files(directory):
        return [f"{directory} is missing"]
    Tokenizer.load(directory)
    provenance = _read_provenance(directory / PROVENANCE)
    if config.training.start_from is None and config.tokenizer.model is not None:
        return _given_changes(config, provenance)
    if config.training.start_from is None:
        return _trained_changes(config, provenance)
    from mtkit.bundle.opening import start_tokenizer  # imported here, since only this needs torch

    tokenizer = start_tokenizer(config)
    is_current = provenance == _copied_provenance(tokenizer) if tokenizer else "copied" in provenance
    return [] if is_current else [f"training.start_from: {config.training.start_from} has another tokenizer"]


def _trained_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """Returns what has changed since the run's tokenizer was made, a line of text for each change.

    This is for settings that ask for a tokenizer trained on the corpora. `before` is the stored provenance of the run's
    tokenizer: the record of what it was made from.
    """
    if "copied" in before:
        return ["training.start_from was a model, whose tokenizer was copied, is null"]
    if "models" in before:
        return ["tokenizer.model was a SentencePiece model, is null"]
    # A setting that is not stored, since an earlier version of mtkit did not have it, counts as today's default.
    settings = {**_tokenizer_settings(TokenizerConfig()), **before.get("settings", {})}
    known = string_list(before.get("fingerprints"))
    texts = [config.data_path(path) for text in config.tokenizer.text for path in text.paths]
    is_text_gone = bool(texts) and not any(path.exists() for path in texts)
    now = _trained_provenance(config, before.get("text") if is_text_gone else None)
    changes = setting_changes("tokenizer", settings, now["settings"])
    if known != now["fingerprints"]:
        changes += text_changes("data.train", resolve_corpora(config, config.data.train), known)
    changes += _train_tag_changes(config, before)
    if before.get("text", []) != now.get("text", []):
        changes.append("tokenizer.text lists other files, or they hold other text")
    named = {"settings", "fingerprints", "tags", "text"}
    others = [{name: value for name, value in found.items() if name not in named} for found in (before, now)]
    return changes + setting_changes("provenance", *others)


def _given_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """Returns what has changed since the run's tokenizer was made, a line of text for each change.

    This is for settings that ask for a tokenizer made from the SentencePiece models that `tokenizer.model` names.
    `before` is the stored provenance of the run's tokenizer: the record of what it was made from.
    """
    paths = _given_models(config)
    models = before.get("models")
    if not models:
        return ["tokenizer.model names a model, and the run's tokenizer was made without one"]
    now = _given_fingerprints(config) if any(path.exists() for path in paths.values()) else models
    changes = setting_changes("tokenizer", before.get("settings", {}), _given_provenance(config, now)["settings"])
    if now != models:
        names = ", ".join(dict.fromkeys(map(str, paths.values())))
        changes.append(f"tokenizer.model: {names} holds another model")
    return changes + _train_tag_changes(config, before)


def _train_tag_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """Returns a line of text if the tags of `data.train` differ from those in the provenance `before`, else []."""
    then, now = string_list(before.get("tags")), config.data.train_tags
    if then == now:
        return []
    return [f"the tags of data.train were {', '.join(then) or 'none'}, are {', '.join(now) or 'none'}"]


# Whether the binarized corpora and the stored validation text are up to date.


def binarized_is_current(config: Config) -> bool:
    """Whether the run's binarized corpora and validation text are what `binarize` would make now.

    Raises DataError if the stored corpora or text are damaged, or if the corpora were encoded by a tokenizer other than
    the run's. Such corpora must not be used for training, nor be replaced without notice.
    """
    return not binarized_changes(config)


def binarized_changes(config: Config) -> list[str]:
    """Returns a line of text for each file or setting that changed since the corpora were binarized.

    If the binarized corpora or the validation text are missing, the lines say only that. Raises DataError if the
    corpora or the text are damaged, or if the corpora were encoded by a tokenizer other than the run's.
    """
    directories = (_train_directory(config), _validation_directory(config))
    for directory in directories:
        settle(directory)
    if missing := [f"{directory} is missing" for directory in directories if not has_files(directory)]:
        return missing
    return training_text_changes(config) + validation_text_changes(config)


def training_text_changes(config: Config) -> list[str]:
    """Returns a line of text for each change of the training text or its settings since the corpora were binarized.

    If the binarized corpora are missing, the only line says so.

    Raises DataError if the corpora are damaged or were encoded by a tokenizer other than the run's.
    """
    directory = _train_directory(config)
    for each in (_tokenizer_directory(config), directory):
        settle(each)
    if not has_files(directory):
        return [f"{directory} is missing"]
    corpus = Corpus.open(directory)
    corpus.require_tokenizer(Tokenizer.load(_tokenizer_directory(config)).hash)
    corpora, manifest = training_corpora(config), corpus.manifest
    known, paths = [raw.fingerprint for raw in manifest.raw_files], [raw.path for raw in manifest.raw_files]
    return [
        *text_changes("data.train", corpora, known, paths),
        *tag_changes("data.train", corpora, manifest.settings),
        *_corpus_setting_changes(config, manifest.settings),
        *_alignment_changes(config, manifest),
    ]


def _alignment_changes(config: Config, manifest: Manifest) -> list[str]:
    """Returns what changed in `training.guided_alignment` since binarizing: one line of text, or [] if nothing did.

    The file of word alignments may have been named, no longer named, or given other content.
    """
    path, before = config.training.guided_alignment, manifest.alignment
    if path is None:
        return ["training.guided_alignment was given, and is null now"] if before else []
    if before is None:
        return ["training.guided_alignment was null, and is given now"]
    path = data_file(config, path)
    same = fingerprint(path) == before.raw_file.fingerprint
    return [] if same else [f"training.guided_alignment: {path} holds other alignments"]


def validation_text_changes(config: Config) -> list[str]:
    """Returns a line of text for each change of the files or tags of `data.valid` since the validation text was stored.

    If the stored validation text is missing, the only line says so.

    Raises DataError if the validation text is damaged.
    """
    directory = _validation_directory(config)
    settle(directory)
    if not has_files(directory):
        return [f"{directory} is missing"]
    read_validation(config)
    manifest = read_json_object(directory / MANIFEST)
    corpora = resolve_corpora(config, config.data.valid)
    known, paths = string_list(manifest.get("fingerprints")), string_list(manifest.get("paths"))
    return [*text_changes("data.valid", corpora, known, paths), *tag_changes("data.valid", corpora, manifest)]


def _corpus_setting_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """Returns a line of text for each setting that differs from its value in `before`.

    `before` holds the settings stored in the manifest of the corpora: those that decide which pairs are kept and how
    the pairs are stored. Tags are not compared here.
    """
    rules = DataConfig().model_dump(mode="json", include={*settings_behind(REASONS), *SELECTION})
    named = {"tags", "text", "alignment", "task"}
    old, new = (
        {**rules, **{name: value for name, value in settings.items() if name not in named}}
        for settings in (before, _corpus_settings(config))
    )
    changes = setting_changes("data", old, new)
    if config.task != (was := before.get("task", "translation")):
        changes.append(f"task was {was}, is {config.task}")
    if config.training.samples_subwords != before.get("text", False):
        was, is_now = ("yes", "no") if before.get("text", False) else ("no", "yes")
        changes.append(
            f"whether segmentations are sampled (training.bpe_dropout, training.unigram_alpha): was {was}, is {is_now}"
        )
    return changes


# Reusing earlier results: runs of earlier versions of mtkit, and the tokenizer and corpora of another run.


def keep_normalization(config: Config) -> Config:
    """Returns the settings, with `source_normalization` as in the run's tokenizer unless it is set explicitly.

    So a run that was begun with an earlier version of mtkit keeps the default of that version. Settings with
    `tokenizer.model` are returned unchanged. A damaged tokenizer raises no error here, only later, when it is loaded.
    """
    directory = _tokenizer_directory(config)
    settle(directory)
    path = directory / PROVENANCE
    explicit = config.tokenizer.model_fields_set
    if "source_normalization" in explicit or config.tokenizer.model is not None or not path.exists():
        return config
    try:
        kept = _read_provenance(path).get("settings", {}).get("source_normalization")
    except CheckpointError:
        return config
    if kept not in get_args(Rule) or kept == config.tokenizer.source_normalization:
        return config
    say(
        f"tokenizer.source_normalization stays {kept}, by which this run's tokenizer was made; for new runs it is "
        f"{config.tokenizer.source_normalization} now"
    )
    tokenizer = config.tokenizer.model_copy(update={"source_normalization": kept})
    return config.model_copy(update={"tokenizer": tokenizer})


def is_prepared(config: Config) -> bool:
    """Whether the run has a tokenizer, binarized corpora and validation text that were made with these settings.

    Does not check whether the text files have changed since; writes nothing. Raises CheckpointError if the provenance
    of the tokenizer is missing or damaged; raises DataError if the manifest of the corpora is missing or damaged.
    """
    directories = _tokenizer_directory(config), _train_directory(config), _validation_directory(config)
    tokenizer, train, validation = map(standing, directories)
    if not (tokenizer.exists() and train.exists() and validation.exists()):
        return False
    provenance = _read_provenance(tokenizer / PROVENANCE)
    settings = {**_tokenizer_settings(TokenizerConfig()), **provenance.get("settings", {})}
    manifest = read_manifest(train / MANIFEST)
    return (
        (config.training.start_from is not None or settings == _tokenizer_settings(config.tokenizer))
        and manifest.settings == _corpus_settings(config)
        and len(manifest.corpora or config.data.train) == len(config.data.train)
    )


def adopt(config: Config, run: Path) -> None:
    """Copies the tokenizer and the binarized training corpora from the run directory `run` into that of `config`.

    The copies are recorded as if they had been made from the text that `config` names. Where possible, the files of the
    corpora are linked instead of copied. The validation text is not copied but written anew from `data.valid`.
    """
    tokenizer, train = _tokenizer_directory(config), _train_directory(config)
    tokenizer.mkdir(parents=True)
    for path in standing(run / "tokenizer").iterdir():
        shutil.copyfile(path, tokenizer / path.name)
    if config.training.start_from is None:
        _write_json(tokenizer / PROVENANCE, _trained_provenance(config))
    theirs = standing(run / "data" / "train")
    manifest = read_manifest(theirs / MANIFEST)
    train.mkdir(parents=True)
    for name in manifest.files():
        link_or_copy(theirs / name, train / name)
    raw_files = fingerprint_files(training_corpora(config))
    write_manifest(train / MANIFEST, replace(manifest, raw_files=raw_files, settings=_corpus_settings(config)))
    with replaced_directory(_validation_directory(config)) as directory:
        _write_validation(config, directory)


# Provenance: a record of what a tokenizer, the corpora or the validation text were made from, stored beside them.

PROVENANCE = "provenance.json"
PROVENANCE_FORMAT = 1


def _trained_provenance(config: Config, text: Any = None) -> dict[str, Any]:
    """Returns the provenance of a tokenizer trained with these settings: everything that the tokenizer depends on.

    If the files of `tokenizer.text` no longer exist, `text` must be the entry "text" of the provenance stored earlier.
    """
    raw_files = fingerprint_files(resolve_corpora(config, config.data.train))
    tags, text = config.data.train_tags, text or _more_text_fingerprints(config)
    return {
        "format": PROVENANCE_FORMAT,
        "settings": _tokenizer_settings(config.tokenizer),
        "fingerprints": [raw.fingerprint for raw in raw_files],
        **({"tags": tags} if tags else {}),
        **({"text": text} if text else {}),
    }


def _tokenizer_settings(settings: TokenizerConfig) -> dict[str, Any]:
    """Returns all tokenizer settings except `text` and `model`, whose files are recorded by their content instead."""
    return settings.model_dump(mode="json", exclude={"text", "model"})


def _more_text_fingerprints(config: Config) -> list[dict[str, str]]:
    """Returns, for each entry of `tokenizer.text`, a dict from each side to the fingerprint of its file."""
    return [
        {side: fingerprint(data_file(config, path)) for side, path in text if path is not None}
        for text in config.tokenizer.text
    ]


def _given_provenance(config: Config, models: list[str]) -> dict[str, Any]:
    """Returns the provenance of a tokenizer made from SentencePiece models whose checksums are `models`."""
    tags, settings = config.data.train_tags, config.tokenizer
    return {
        "format": PROVENANCE_FORMAT,
        "settings": {"shared": settings.shared, "symbols": list(settings.symbols)},
        "models": models,
        **({"tags": tags} if tags else {}),
    }


def _given_models(config: Config) -> dict[Side, Path]:
    """Returns the paths of the SentencePiece models that `tokenizer.model` names, by side."""
    return {side: config.data_path(path) for side, path in config.tokenizer.models().items()}


def _given_fingerprints(config: Config) -> list[str]:
    """Returns the checksums of the SentencePiece models that `tokenizer.model` names.

    Raises ConfigError if one of the files is missing or is not a SentencePiece model.
    """
    models = map(read_model, _given_models(config).values())
    return [f"sha256:{hashlib.sha256(model).hexdigest()}" for model in models]


def _copied_provenance(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the provenance of a tokenizer copied from the model named by `training.start_from`."""
    return {"format": PROVENANCE_FORMAT, "copied": tokenizer.hash}


def _read_provenance(path: Path) -> dict[str, Any]:
    """Reads the provenance of a tokenizer from a file. Raises CheckpointError if the file is missing or damaged."""
    try:
        provenance = read_json_object(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(provenance.get("settings", {}), dict):
        raise CheckpointError(f"{path}: damaged; make it again")
    return provenance


# Settings of the data section that decide what the training pairs are, besides the cleaning rules.
SELECTION = ("max_training_length", "join", "seed")


def _corpus_settings(config: Config) -> dict[str, Any]:
    """Returns the settings to store in the manifest of the corpora.

    These settings decide which pairs are kept and how the pairs are stored. Settings of cleaning rules that the first
    version of mtkit did not have are included only if they differ from their defaults.
    """
    rules = config.data.model_dump(mode="json", include={*settings_behind(REASONS), *SELECTION})
    defaults = DataConfig().model_dump(mode="json")
    always = ("max_length", "max_length_ratio")
    changed = {name: value for name, value in rules.items() if name in always or value != defaults[name]}
    text = {"text": True} if config.training.samples_subwords else {}
    links = {"alignment": True} if config.training.guided_alignment is not None else {}
    task = {} if config.task == "translation" else {"task": config.task}
    return {**changed, **tags_by_corpus(config.data.train), **text, **links, **task}


def _validation_provenance(config: Config) -> dict[str, Any]:
    """Returns what the validation text was made from: fingerprints and paths of the files of `data.valid`, and tags.

    The paths are used only in messages.
    """
    corpora = resolve_corpora(config, config.data.valid)
    raw_files = fingerprint_files(corpora)
    return {
        "fingerprints": [raw.fingerprint for raw in raw_files],
        "paths": [raw.path for raw in raw_files],
        **tags_by_corpus(corpora),
    }


# The run directory.


def _tokenizer_directory(config: Config) -> Path:
    return config.run_path / "tokenizer"


def _train_directory(config: Config) -> Path:
    return config.run_path / "data" / "train"


def _validation_directory(config: Config) -> Path:
    return config.run_path / "data" / "valid"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _writing(config: Config) -> Iterator[None]:
    """Context manager that turns an OSError into a DataError that names the file, and a signal into an exception.

    If a signal ends the command, the exception lets the code inside the `with` statement undo its work first.
    """
    try:
        with undone_when_ended():
            yield
    except OSError as error:
        raise DataError(f"{error.filename or config.run_path}: cannot be written: {error.strerror or error}") from None
