"""Where training starts from: nothing, or the weights and the tokenizer of a model that was trained before."""

import shlex
from collections.abc import Iterator
from typing import Any

from mtkit.config.load import check_tags, config_from_text, with_sections
from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError
from mtkit.formats.bundle import TOKENIZER, WEIGHTS, Bundle, tokenizer_files
from mtkit.formats.storage import Storage
from mtkit.formats.sums import sums_of
from mtkit.opening import CheckpointStorage, find_model, is_begun, open_model
from mtkit.text.parallel import describe_tags, extend_command
from mtkit.text.tokenizer import Tokenizer

# Ends what is noted of a start from a run that was not finished, whose best checkpoint is another one later.
UNFINISHED = "of a run that was not finished"


def start_bundle(config: Config) -> Bundle | None:
    """The model that a new run starts from; None if it starts from nothing. What does not fit is an error."""
    path = config.training.start_from
    if path is None:
        return None
    try:
        bundle = open_model(path)
        bundle.require_own_tokenizer()
        tokenizer = Tokenizer.from_files(bundle.tokenizer_files(), bundle.tokenizer_path)
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from None
    if _belongs_to(bundle.storage, config):
        raise _own_run(config)
    found = config.model_dump(mode="json", include={"model", "tokenizer"})
    wanted = bundle.config.model_dump(mode="json", include={"model", "tokenizer"})
    if different := list(_different("model", wanted["model"], found["model"])):
        raise _other_model(config, different)
    if different := list(_different("tokenizer", wanted["tokenizer"], found["tokenizer"])):
        raise ConfigError(
            f"training.start_from {path}: its tokenizer goes with its weights and is another one; leave these out of "
            f"your settings, or copy them: {', '.join(different)}"
        )
    _require_train_tags(config, tokenizer)
    return bundle


def carried_over(config: Config) -> Config:
    """The settings, and where they start from another model its own for all that they do not say of these sections.

    The model's settings and its tokenizer's must then be its own, but for dropout, which is no part of the weights, and
    what suited much data seldom suits little. If the model is gone, the run's own config.yaml tells what was taken.

    Tags that the model does not know are a ConfigError; see _check_tags.
    """
    if config.training.start_from is None:
        check_tags(config)
        return config
    carried = _carried_over(config)
    _check_tags(carried)
    return carried


def _carried_over(config: Config) -> Config:
    assert config.training.start_from is not None
    try:
        bundle = open_model(config.training.start_from)
        if isinstance(bundle.storage, CheckpointStorage) and _belongs_to(bundle.storage, config):
            raise _own_run(config)
        carried = bundle.config
    except CheckpointError:
        resolved = config.run_path / "config.yaml"
        if not resolved.is_file():
            return config  # told when it is to be opened
        carried = config_from_text(resolved.read_text(encoding="utf-8"), str(resolved))
    names = ("model", "tokenizer", "languages", "decoding")
    if different := list(_other_kinds("model", carried.model, config.model)):
        raise _other_model(config, different)
    sections = {name: _merged(getattr(carried, name).model_dump(mode="json"), getattr(config, name)) for name in names}
    return with_sections(config, sections, f"training.start_from {config.training.start_from}")


def _belongs_to(storage: Storage, config: Config) -> bool:
    """Whether a model is the run's own, or a checkpoint of the run, which may lie elsewhere by a link."""
    place = storage.run if isinstance(storage, CheckpointStorage) else storage.path
    return place.resolve().is_relative_to(config.run_path.resolve())


def _own_run(config: Config) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from} is this run itself; give the run another name"
    )


def _check_tags(config: Config) -> None:
    """Refuse tags that neither training sees nor the model to start from knows.

    A run that has begun keeps those that it is trained with: earlier versions read unknown ones as several pieces.
    """
    if not config.data.train_tags and not any(config.data.untrained_tags(())):
        return
    tokenizer = _known_tokenizer(config)
    if tokenizer is None:
        return  # told when it is to be opened
    if not is_begun(config.run_path):
        _require_train_tags(config, tokenizer)
    check_tags(config, tokenizer.tags)


def _require_train_tags(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse tags of data.train that the tokenizer would cut into pieces."""
    unknown = [tag for tag in config.data.train_tags if tag not in tokenizer.tags]
    if not unknown:
        return
    start = config.training.start_from
    told = f"training.start_from {start}: the model does not know tag {', '.join(unknown)} of data.train"
    pieces = set(tokenizer.source_pieces(range(tokenizer.source_vocab_size)))
    if taken := [tag for tag in unknown if tag in pieces]:
        raise ConfigError(
            f"{told}, and {', '.join(taken)} is a piece of its vocabulary that other words are made of; take another "
            "tag, such as <2de>"
        )
    raise ConfigError(
        f"{told}; {describe_tags(tokenizer.tags)}. Add what is missing by "
        f"`{extend_command(shlex.quote(str(start)), unknown)}`, and start from LARGER"
    )


def _known_tokenizer(config: Config) -> Tokenizer | None:
    """That of the model to start from, or the run's own copy of it; None if neither can be read."""
    try:
        if tokenizer := start_tokenizer(config):
            return tokenizer
        return Tokenizer.load(config.run_path / "tokenizer")
    except CheckpointError:
        return None


def _other_model(config: Config, different: list[str]) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from}: its model has other settings; leave these out of yours, or "
        f"copy them: {', '.join(different)}"
    )


def _other_kinds(section: str, carried: Section, ours: Section) -> Iterator[str]:
    """Architectures that are said and are not those of the model to start from; their settings have nothing in common.

    Where a model is mixed its halves are looked at, too.
    """
    if "architecture" in ours.model_fields_set and type(carried) is not type(ours):
        theirs, said = (kind.model_dump()["architecture"] for kind in (carried, ours))
        yield f"{section}.architecture: {theirs} (found {said})"
        return
    for name, half in ours:
        before = getattr(carried, name, None)
        if isinstance(half, Section) and isinstance(before, Section):
            yield from _other_kinds(f"{section}.{name}", before, half)


def _merged(carried: dict[str, Any], ours: Section) -> dict[str, Any]:
    """What was carried over, with what our settings say over it."""
    merged = dict(carried)
    for name in ours.model_fields_set:
        value, before = getattr(ours, name), carried.get(name)
        if isinstance(value, Section) and isinstance(before, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = ours.model_dump(mode="json")[name]
    return merged


def _different(section: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Settings that are not those of the model to start from, dropout aside."""
    for key in {**wanted, **found}:
        theirs, ours = wanted.get(key), found.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            yield from _different(f"{section}.{key}", theirs, ours)
        elif theirs != ours and not key.endswith("dropout"):
            yield f"{section}.{key}: {theirs} (found {ours})"


def start_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the model to start from; None if none is named, or if it is gone."""
    storage = _start_storage(config)
    return None if storage is None else Tokenizer.from_files(tokenizer_files(storage), storage.place(TOKENIZER))


def start_checksum(config: Config, noted: object = None) -> str | None:
    """One over the weights to start from; None if none are named, or if they are gone: only step 0 needs them.

    noted is what was noted at step 0. A run that was not finished then has other weights by now, though it may be
    finished, and what was noted of it comes back. None, too, while the run is not finished.
    """
    if config.training.start_from is not None and isinstance(noted, str) and noted.endswith(UNFINISHED):
        return noted
    storage = _start_storage(config)
    if storage is None or WEIGHTS not in storage.names() or _stands_for_its_run(storage):
        return None
    return _checksum_of(storage)


def noted_start(bundle: Bundle) -> str:
    """What is noted of the weights that training starts from: their checksum."""
    storage = bundle.storage
    if isinstance(storage, CheckpointStorage) and _stands_for_its_run(storage):
        return f"{_checksum_of(storage)}, step {storage.step:,} {UNFINISHED}"
    return _checksum_of(storage)


def _checksum_of(storage: Storage) -> str:
    return f"sha256:{sums_of(storage.view(WEIGHTS)).sha256}"


def _stands_for_its_run(storage: Storage) -> bool:
    return isinstance(storage, CheckpointStorage) and storage.choice is not None


def _start_storage(config: Config) -> Storage | None:
    if config.training.start_from is None:
        return None
    try:
        return find_model(config.training.start_from)
    except CheckpointError:
        return None
