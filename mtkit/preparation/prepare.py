"""From parallel text to what training reads: the tokenizer, the corpora as ids, the validation text.

Each stage checks all it reads before anything is put in its place, and knows by the content of files and settings
whether what is there is still what it would make.
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

from mtkit.config.data_settings import CorpusConfig, DataConfig, Rule, Side, TokenizerConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import (
    MANIFEST,
    VALIDATION_FORMAT,
    Corpus,
    CorpusWriter,
    Manifest,
    kept_validation,
    read_manifest,
    read_object,
    validation_sum,
    write_manifest,
)
from mtkit.data.plan import is_natural, mix
from mtkit.errors import CheckpointError, DataError, Meter, counted, working
from mtkit.files import link_or_copy, replaced_directory, settle, standing, undone_when_ended
from mtkit.preparation.encoding import (
    REASONS,
    Drops,
    Encoder,
    UnknownShares,
    describe_unknown,
    see_validation,
    settings_behind,
)
from mtkit.preparation.sources import (
    HeldOut,
    Search,
    _no_validation_pairs,
    check_held_out,
    corpora_at_hand,
    fingerprints_of,
    held_out,
    is_there,
    names_of,
    oversights_of,
    raw_files_of,
    report,
    reported,
    setting_changes,
    stored_texts,
    tag_changes,
    tags_by_corpus,
    text_changes,
    training_corpora,
    warn_of_processed_text,
    watched,
)
from mtkit.text.lines import fingerprint, read_lines, read_pairs
from mtkit.text.parallel import (
    Pair,
    data_file,
    pairs_in_turn,
    read_source,
    read_target,
    tagged,
    tagged_pairs,
)
from mtkit.text.testsets import local_test_sets
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import (
    VocabularyReport,
    check_sampling,
    existing_tokenizer,
    read_model,
    train_tokenizer,
)

SPREAD = "spread"  # the order of a validation text whose first lines are spread over all of it


def make_tokenizer(config: Config) -> list[str]:
    """Train the run's tokenizer on the training corpora, or take that of the settings or of the model to start from.

    Returns what the user was warned of in the text.
    """
    oversights = oversights_of(config)
    check_held_out(config, oversights)
    _warn_of_text(config)
    if config.training.start_from is not None:
        _copy_tokenizer(config)
        return reported(oversights)
    if config.tokenizer.model is not None:
        _take_tokenizer(config)
        return reported(oversights)
    corpora = training_corpora(config)
    with _writing(config):
        provenance = _tokenizer_provenance(config)
        # Bad data stops at the door.
        read = watched(oversights, "data.train")
        pairs = chain.from_iterable(read(part) for corpus in corpora for part in corpus.parts)
        with Meter("reading", "pairs") as meter:
            num_pairs = sum(1 for _ in meter.counting(pairs))
        if not num_pairs:
            raise _no_pairs(corpora)
        warnings = reported(oversights)
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
            _write_json(directory / "provenance.json", provenance)
    for vocabulary in vocabularies:
        report(_describe_vocabulary(vocabulary))
    return warnings


def as_begun(config: Config) -> Config:
    """The settings, and where they do not say a rule for the source, that of the tokenizer that the run has.

    Earlier versions of mtkit had another default, by which their runs go on. What is damaged tells nothing here; it is
    an error when the tokenizer is looked at.
    """
    directory = _tokenizer_directory(config)
    settle(directory)
    path = directory / "provenance.json"
    said = config.tokenizer.model_fields_set
    if "source_normalization" in said or config.tokenizer.model is not None or not path.exists():
        return config
    try:
        made = _read_provenance(path).get("settings", {}).get("source_normalization")
    except CheckpointError:
        return config
    if made not in get_args(Rule) or made == config.tokenizer.source_normalization:
        return config
    report(
        f"tokenizer.source_normalization stays {made}, by which this run's tokenizer was made; for new runs it is "
        f"{config.tokenizer.source_normalization} now"
    )
    tokenizer = config.tokenizer.model_copy(update={"source_normalization": made})
    return config.model_copy(update={"tokenizer": tokenizer})


def _copy_tokenizer(config: Config) -> None:
    from mtkit.bundle.opening import start_bundle  # here, since all else goes without torch

    bundle = start_bundle(config)
    assert bundle is not None
    path = bundle.tokenizer_path
    tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), path)
    with _writing(config), replaced_directory(_tokenizer_directory(config)) as directory:
        tokenizer.save(directory)
        _write_json(directory / "provenance.json", _copy_provenance(tokenizer))
    sizes = {"source": tokenizer.source_vocab_size, "target": tokenizer.target_vocab_size}
    report(f"tokenizer: copied from {path}; " + ", ".join(f"{size:,} {side} pieces" for side, size in sizes.items()))


def _take_tokenizer(config: Config) -> None:
    paths = _given_models(config)
    tokenizer = existing_tokenizer(
        paths["source"], paths["target"], config.tokenizer.shared, config.data.train_tags, config.tokenizer.symbols
    )
    _check_sampling(config, tokenizer)
    with _writing(config), replaced_directory(_tokenizer_directory(config)) as directory:
        tokenizer.save(directory)
        _write_json(directory / "provenance.json", _given_provenance(config, _given_fingerprints(config)))
    where = ", ".join(dict.fromkeys(map(str, paths.values())))
    report(
        f"tokenizer: {where}, of type {tokenizer.type}; {tokenizer.source_vocab_size:,} source pieces, "
        f"{tokenizer.target_vocab_size:,} target pieces"
    )


def _check_sampling(config: Config, tokenizer: Tokenizer) -> None:
    check_sampling(tokenizer, config.tokenizer, config.training.bpe_dropout, config.training.unigram_alpha)


def _warn_of_text(config: Config) -> None:
    warn_of_processed_text(config, corpora_at_hand(config, (*config.data.train, *config.data.valid)))


def _no_pairs(corpora: Iterable[CorpusConfig]) -> DataError:
    return DataError(f"{names_of(corpora)}: the training corpora hold no pairs")


def _nothing_left(num_pairs: int, drops: Drops) -> DataError:
    # No setting decides what is blank.
    advice = " and ".join(f"data.{name}" for name in settings_behind(drops.counts)) or "the files of data.train"
    return DataError(f"every one of {counted(num_pairs, 'training pair')} is left out: {drops}; see {advice}")


def tokenizer_is_current(config: Config) -> bool:
    """Whether the run's tokenizer is what make_tokenizer would make; a damaged one is an error."""
    return not tokenizer_changes(config)


def tokenizer_changes(config: Config) -> list[str]:
    """Why the run's tokenizer is not what make_tokenizer would make: each file and setting that changed.

    A damaged one is an error. It stays current when the files of tokenizer.text or tokenizer.model are gone, or the
    model that it was copied from.
    """
    directory = _tokenizer_directory(config)
    settle(directory)
    if not is_there(directory):
        return [f"{directory} is not there"]
    Tokenizer.load(directory)
    provenance = _read_provenance(directory / "provenance.json")
    if config.training.start_from is None and config.tokenizer.model is not None:
        return _given_changes(config, provenance)
    if config.training.start_from is None:
        return _provenance_changes(config, provenance)
    from mtkit.bundle.opening import start_tokenizer  # here, since all else goes without torch

    tokenizer = start_tokenizer(config)
    is_current = provenance == _copy_provenance(tokenizer) if tokenizer else "copied" in provenance
    return [] if is_current else [f"training.start_from: {config.training.start_from} has another tokenizer"]


def _given_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """What changed of all that decides the tokenizer, where SentencePiece models are taken; they may be gone since."""
    paths = _given_models(config)
    models = before.get("models")
    if not models:
        return ["tokenizer.model names a model, and the run's tokenizer was made without"]
    now = _given_fingerprints(config) if any(path.exists() for path in paths.values()) else models
    changes = setting_changes("tokenizer", before.get("settings", {}), _given_provenance(config, now)["settings"])
    if now != models:
        names = ", ".join(dict.fromkeys(map(str, paths.values())))
        changes.append(f"tokenizer.model: {names} holds another model")
    return changes + _train_tag_changes(config, before)


def _train_tag_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """Whether the tags that the tokenizer knows are others."""
    then, now = stored_texts(before.get("tags")), config.data.train_tags
    if then == now:
        return []
    return [f"the tags of data.train were {', '.join(then) or 'none'}, are {', '.join(now) or 'none'}"]


def _provenance_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """What changed of all that decides the tokenizer, where it is trained."""
    if "copied" in before:
        return ["training.start_from was a model, whose tokenizer was copied, is null"]
    if "models" in before:
        return ["tokenizer.model was a SentencePiece model, is null"]
    # A setting that an earlier version of mtkit did not have was what is now its default.
    settings = {**_tokenizer_settings(TokenizerConfig()), **before.get("settings", {})}
    known = stored_texts(before.get("fingerprints"))
    texts = [config.data_path(path) for text in config.tokenizer.text for path in text.paths]
    is_text_gone = bool(texts) and not any(path.exists() for path in texts)
    now = _tokenizer_provenance(config, before.get("text") if is_text_gone else None)
    changes = setting_changes("tokenizer", settings, now["settings"])
    if known != now["fingerprints"]:
        changes += text_changes("data.train", corpora_at_hand(config, config.data.train), known)
    changes += _train_tag_changes(config, before)
    if before.get("text", []) != now.get("text", []):
        changes.append("tokenizer.text lists other files, or they hold other text")
    named = {"settings", "fingerprints", "tags", "text"}
    others = [{name: value for name, value in found.items() if name not in named} for found in (before, now)]
    return changes + setting_changes("provenance", *others)


def binarize(config: Config, told: Sequence[str] | None = None) -> None:
    """Encode the training corpora with the run's tokenizer, and keep the validation text, in the run directory.

    Pairs that are left out are counted and told, and so are held-out sentences that stand in the training text. told
    is what make_tokenizer returned just before: it has read the validation and test text, and warned of all text.
    """
    corpora, oversights = training_corpora(config), oversights_of(config)
    if told is None:
        check_held_out(config, oversights)
        _warn_of_text(config)
    settle(_tokenizer_directory(config))
    tokenizer = Tokenizer.load(_tokenizer_directory(config))
    _check_sampling(config, tokenizer)
    with _writing(config):
        raw_files = raw_files_of(corpora)
        search = Search(_read_held_out(config))
        with CorpusWriter(
            _train_directory(config),
            tokenizer.source_vocab_size,
            tokenizer.target_vocab_size,
            tokenizer.hash,
            keeps_text=config.training.samples_subwords,
        ) as writer:
            unknown = UnknownShares()
            encoder = Encoder(config, tokenizer, writer, search, unknown, watched(oversights, "data.train"))
            counts = [encoder.encode(corpus) for corpus in corpora]
            drops = encoder.drops
            num_pairs = writer.num_pairs + drops.counts.total()
            if not num_pairs:
                raise _no_pairs(corpora)
            if not writer.num_pairs:
                raise _nothing_left(num_pairs, drops)
            with replaced_directory(_validation_directory(config)) as directory:
                _write_validation(config, directory)
                see_validation(tagged_pairs(corpora_at_hand(config, config.data.valid)), tokenizer, unknown)
                manifest = writer.commit(drops.counts, raw_files, _corpus_settings(config), counts, unknown.shares())
    _report_corpus(manifest, drops)
    _report_shares(config, manifest)
    for warning in (*search.warnings(), *(each for each in oversights.warnings() if each not in (told or ()))):
        report(warning)


def binarized_is_current(config: Config) -> bool:
    """Whether the run's corpora were made from these texts with these settings.

    Damaged ones, and ones that another tokenizer made, are an error: nobody should train on them, and nobody should
    find them mended in silence.
    """
    return not binarized_changes(config)


def binarized_changes(config: Config) -> list[str]:
    """Why the run's corpora are not what binarize would make: each file and setting that changed."""
    directories = (_train_directory(config), _validation_directory(config))
    for directory in directories:
        settle(directory)
    if missing := [f"{directory} is not there" for directory in directories if not is_there(directory)]:
        return missing
    return training_text_changes(config) + validation_text_changes(config)


def training_text_changes(config: Config) -> list[str]:
    """The same of the training text alone."""
    directory = _train_directory(config)
    for each in (_tokenizer_directory(config), directory):
        settle(each)
    if not is_there(directory):
        return [f"{directory} is not there"]
    corpus = Corpus.open(directory)
    corpus.require_tokenizer(Tokenizer.load(_tokenizer_directory(config)).hash)
    corpora, manifest = training_corpora(config), corpus.manifest
    paths = [raw.path for raw in manifest.raw_files]
    return [
        *text_changes("data.train", corpora, fingerprints_of(manifest.raw_files), paths),
        *tag_changes("data.train", corpora, manifest.settings),
        *_preparation_changes(config, manifest.settings),
    ]


def validation_text_changes(config: Config) -> list[str]:
    """The same of the validation text alone."""
    directory = _validation_directory(config)
    settle(directory)
    if not is_there(directory):
        return [f"{directory} is not there"]
    read_validation(config)
    kept = read_object(directory / "manifest.json")
    corpora = corpora_at_hand(config, config.data.valid)
    return [
        *text_changes("data.valid", corpora, stored_texts(kept.get("fingerprints")), stored_texts(kept.get("paths"))),
        *tag_changes("data.valid", corpora, kept),
    ]


def renew_validation(config: Config) -> None:
    """Keep the validation text of now, where it alone changed."""
    oversights = oversights_of(config)
    check_held_out(config, oversights)
    warn_of_processed_text(config, corpora_at_hand(config, config.data.valid))
    reported(oversights)
    with _writing(config), replaced_directory(_validation_directory(config)) as directory:
        _write_validation(config, directory)


def _preparation_changes(config: Config, before: dict[str, Any]) -> list[str]:
    """What changed of the settings that decide which pairs stay, and as what; tags aside."""
    rules = DataConfig().model_dump(mode="json", include=set(settings_behind(REASONS)))
    named = {"tags", "text"}
    old, new = (
        {**rules, **{name: value for name, value in settings.items() if name not in named}}
        for settings in (before, _corpus_settings(config))
    )
    changes = setting_changes("data", old, new)
    if config.training.samples_subwords != before.get("text", False):
        was, is_now = ("yes", "no") if before.get("text", False) else ("no", "yes")
        changes.append(
            f"whether segmentations are sampled (training.bpe_dropout, training.unigram_alpha): was {was}, is {is_now}"
        )
    return changes


def read_validation(config: Config) -> tuple[list[str], list[str]]:
    """The sources and the references that binarize kept; changed or missing ones are a DataError."""
    directory = _validation_directory(config)
    settle(directory)
    return kept_validation(directory)


def is_prepared(config: Config) -> bool:
    """Whether a tokenizer and corpora are there that such settings make, whatever has become of the text since.

    Nothing is written; what is damaged is an error.
    """
    directories = _tokenizer_directory(config), _train_directory(config), _validation_directory(config)
    tokenizer, train, validation = map(standing, directories)
    if not (tokenizer.exists() and train.exists() and validation.exists()):
        return False
    provenance = _read_provenance(tokenizer / "provenance.json")
    settings = {**_tokenizer_settings(TokenizerConfig()), **provenance.get("settings", {})}
    manifest = read_manifest(train / MANIFEST)
    return (
        (config.training.start_from is not None or settings == _tokenizer_settings(config.tokenizer))
        and manifest.settings == _corpus_settings(config)
        and len(manifest.corpora or config.data.train) == len(config.data.train)
    )


def adopt(config: Config, run: Path) -> None:
    """Take over the tokenizer and the corpora of another run, as if the texts of these settings had given them.

    Large files are linked. The validation text is that of data.valid.
    """
    tokenizer, train = _tokenizer_directory(config), _train_directory(config)
    tokenizer.mkdir(parents=True)
    for path in standing(run / "tokenizer").iterdir():
        shutil.copyfile(path, tokenizer / path.name)
    if config.training.start_from is None:
        _write_json(tokenizer / "provenance.json", _tokenizer_provenance(config))
    theirs = standing(run / "data" / "train")
    manifest = read_manifest(theirs / MANIFEST)
    train.mkdir(parents=True)
    for name in manifest.files():
        link_or_copy(theirs / name, train / name)
    raw_files = raw_files_of(training_corpora(config))
    write_manifest(train / MANIFEST, replace(manifest, raw_files=raw_files, settings=_corpus_settings(config)))
    with replaced_directory(_validation_directory(config)) as directory:
        _write_validation(config, directory)


def _read_held_out(config: Config) -> list[HeldOut]:
    """The validation corpora as one set, and each test set; all their files are read and checked."""
    found = []
    if config.data.valid:
        pairs = tagged_pairs(corpora_at_hand(config, config.data.valid))
        valid = held_out("data.valid", ((source, (target,)) for source, target in pairs))
        if not valid.num_lines:
            raise _no_validation_pairs(config.data.valid)
        found.append(valid)
    for name, files in local_test_sets(config).items():
        if files is None:
            report(f"data.test.{name} is not downloaded yet; the training data is not searched for its sentences")
            continue
        # Read one after the other, since there may be more references than files that a process may open.
        texts = [list(read_pairs(files.source, path)) for path in files.target]
        rows = zip(*texts, strict=True)
        pairs_of_rows = ((tagged(row[0][0], files.tag), tuple(pair[1] for pair in row)) for row in rows)
        found.append(held_out(f"data.test.{name}", pairs_of_rows))
    return found


def validation_is_spread(config: Config) -> bool:
    """Whether the validation text is kept so that its first lines are spread over all of it."""
    return read_object(_validation_directory(config) / "manifest.json").get("order") == SPREAD


def _write_validation(config: Config, directory: Path) -> None:
    """The validation text, so ordered that its first lines are spread over all of it: a validation may translate few.

    Earlier versions kept the lines of each corpus in their order, and a run that was validated by those keeps them so.
    """
    corpora = corpora_at_hand(config, config.data.valid)
    sides, order = _sides(pairs_in_turn(corpora)), {"order": SPREAD}
    noted = _noted_validation(config)
    if noted is not None and noted != validation_sum(_sums(sides)):
        in_file_order = _sides(pairs_in_turn(corpora, is_spread=False))
        if noted in ("", validation_sum(_sums(in_file_order))):
            sides, order = in_file_order, {}
    for name, text in sides.items():
        (directory / name).write_bytes(text)
    _write_json(
        directory / "manifest.json", {"format": VALIDATION_FORMAT, **order, **_what_is_to_keep(config), **_sums(sides)}
    )


def _noted_validation(config: Config) -> str | None:
    """A checksum of the text that validates a run which has begun, "" where that was not noted; None for a new run."""
    if not any((config.run_path / name).exists() for name in ("checkpoints", "trained.json")):
        return None
    from mtkit.bundle.checkpoints import noted_validation  # here, since all else goes without torch

    return noted_validation(config.run_path)


def _sides(pairs: Iterable[Pair]) -> dict[str, bytes]:
    """Both sides of the pairs, line for line, by the names of their files."""
    kept = list(pairs)
    return {
        f"{side}.txt": "".join(f"{pair[place]}\n" for pair in kept).encode()
        for place, side in enumerate(get_args(Side))
    }


def _sums(sides: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(text).hexdigest() for name, text in sides.items()}


def _what_is_to_keep(config: Config) -> dict[str, Any]:
    """All that decides the validation text, tags only where there are some; and where it lay, to tell of it."""
    corpora = corpora_at_hand(config, config.data.valid)
    raw_files = raw_files_of(corpora)
    paths = [raw.path for raw in raw_files]
    return {"fingerprints": fingerprints_of(raw_files), "paths": paths, **tags_by_corpus(corpora)}


def _tokenizer_directory(config: Config) -> Path:
    return config.run_path / "tokenizer"


def _train_directory(config: Config) -> Path:
    return config.run_path / "data" / "train"


def _validation_directory(config: Config) -> Path:
    return config.run_path / "data" / "valid"


def _tokenizer_provenance(config: Config, text: Any = None) -> dict[str, Any]:
    """All that decides what the tokenizer stage makes; text is what is known of tokenizer.text where it is gone."""
    raw_files = raw_files_of(corpora_at_hand(config, config.data.train))
    tags, text = config.data.train_tags, text or _fingerprints_of_more_text(config)
    return {
        "format": VALIDATION_FORMAT,
        "settings": _tokenizer_settings(config.tokenizer),
        "fingerprints": fingerprints_of(raw_files),
        **({"tags": tags} if tags else {}),
        **({"text": text} if text else {}),
    }


def _tokenizer_settings(settings: TokenizerConfig) -> dict[str, Any]:
    """Those that tell of no file, since what a file holds counts, and not where it lies."""
    return settings.model_dump(mode="json", exclude={"text", "model"})


def _given_models(config: Config) -> dict[Side, Path]:
    """The SentencePiece models to take, where they lie."""
    return {side: config.data_path(path) for side, path in config.tokenizer.models().items()}


def _given_fingerprints(config: Config) -> list[str]:
    """Of the SentencePiece models to take, each of which must be one."""
    models = map(read_model, _given_models(config).values())
    return [f"sha256:{hashlib.sha256(model).hexdigest()}" for model in models]


def _given_provenance(config: Config, models: list[str]) -> dict[str, Any]:
    """All that decides what is made of models with these checksums."""
    tags, settings = config.data.train_tags, config.tokenizer
    return {
        "format": VALIDATION_FORMAT,
        "settings": {"shared": settings.shared, "symbols": list(settings.symbols)},
        "models": models,
        **({"tags": tags} if tags else {}),
    }


def _more_text(config: Config, side: Side) -> Iterator[str]:
    """The lines of a side that only the tokenizer is trained on."""
    paths = (getattr(text, side) for text in config.tokenizer.text)
    return chain.from_iterable(read_lines(data_file(config, path)) for path in paths if path is not None)


def _fingerprints_of_more_text(config: Config) -> list[dict[str, str]]:
    return [
        {side: fingerprint(data_file(config, path)) for side, path in text if path is not None}
        for text in config.tokenizer.text
    ]


def _read_provenance(path: Path) -> dict[str, Any]:
    """What a stored tokenizer was made of."""
    try:
        provenance = read_object(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(provenance.get("settings", {}), dict):
        raise CheckpointError(f"{path}: damaged; make it again")
    return provenance


def _copy_provenance(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"format": VALIDATION_FORMAT, "copied": tokenizer.hash}


def _corpus_settings(config: Config) -> dict[str, Any]:
    """What decides which pairs stay, and as what; rules that are off are not told of, as older versions had none."""
    rules = config.data.model_dump(mode="json", include=set(settings_behind(REASONS)))
    defaults = DataConfig().model_dump(mode="json")
    always = ("max_length", "max_length_ratio")
    changed = {name: value for name, value in rules.items() if name in always or value != defaults[name]}
    text = {"text": True} if config.training.samples_subwords else {}
    return {**changed, **tags_by_corpus(config.data.train), **text}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _writing(config: Config) -> Iterator[None]:
    """Tells in one line when the run directory cannot be written; what fails in reading tells so itself."""
    try:
        with undone_when_ended():
            yield
    except OSError as error:
        raise DataError(f"{error.filename or config.run_path}: cannot be written: {error.strerror or error}") from None


def _describe_vocabulary(vocabulary: VocabularyReport) -> str:
    return (
        f"{vocabulary.side} {vocabulary.type} vocabulary: {counted(vocabulary.pieces_made, 'piece')} of "
        f"{vocabulary.pieces_asked:,} asked for, "
        f"trained on {vocabulary.lines_seen:,} of {counted(vocabulary.lines_offered, 'line')}"
    )


def _report_corpus(manifest: Manifest, drops: Drops) -> None:
    report(
        f"kept {counted(manifest.num_pairs, 'pair')}: {manifest.source.num_tokens:,} source and "
        f"{counted(manifest.target.num_tokens, 'target token')}; the longest have {manifest.source.longest:,} "
        f"and {manifest.target.longest:,}"
    )
    if num_drops := drops.counts.total():
        report(f"dropped {num_drops:,} of {counted(manifest.num_pairs + num_drops, 'pair')}: {drops}")
        for line in drops.examples():
            report(line)
    if manifest.unknown:
        report(f"unknown tokens: {describe_unknown(manifest.unknown)}")


def _report_shares(config: Config, manifest: Manifest) -> None:
    """Tell of corpora that an epoch does not go through just once."""
    weights = [corpus.weight for corpus in config.data.train]
    if not is_natural(weights, config.data.temperature):
        mixture = mix(manifest.corpora, weights, config.data.temperature)
        for corpus, share, repeats in zip(config.data.train, mixture.shares, mixture.repeats, strict=True):
            report(f"{names_of([corpus])}: {share:.1%} of an epoch, each pair {repeats:.4g} times")
