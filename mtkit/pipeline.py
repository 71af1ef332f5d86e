"""Every stage that is missing or out of date, by content and not by clock."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtkit.bundle.bundle import open_bundle, read_scores, save_scores
from mtkit.bundle.checkpoints import checkpoint_steps
from mtkit.bundle.info import card_text
from mtkit.bundle.opening import carried_over, has_model, is_begun, start_bundle
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, ConfigError, DataError, say
from mtkit.evaluation.evaluate import ScoredSet, evaluate
from mtkit.files import clear_beside, followed, only_writer, remove, require_folder, without_usr1, write_file
from mtkit.models.registry import pick_device
from mtkit.preparation.prepare import (
    as_begun,
    binarize,
    binarized_is_current,
    make_tokenizer,
    read_validation,
    renew_validation,
    tokenizer_changes,
    tokenizer_is_current,
    training_text_changes,
    validation_is_spread,
    validation_text_changes,
)
from mtkit.preparation.sources import is_there
from mtkit.text.lines import fingerprint, packed_fingerprint
from mtkit.text.parallel import with_plain_files
from mtkit.text.testsets import SetFiles, check_names, test_sets
from mtkit.training.checkpoint import FreshStart, fresh_start, settle_fresh
from mtkit.training.log import require_tensorboard
from mtkit.training.records import changed_since_trained, is_trained
from mtkit.training.train import train
from mtkit.translation.scores import check_language
from mtkit.translation.translator import load

REPLACED = ("tokenizer", "data/train", "data/valid", "model")  # folders that are exchanged for others as a whole


def run_tokenizer(config: Config) -> None:
    """`mtkit train-tokenizer`: train it, unless it is up to date; a damaged one is told and trained again."""
    config = with_plain_files(carried_over(config))
    with _opened(config):
        config = as_begun(config)
        try:
            changes = tokenizer_changes(config)
        except CheckpointError as error:
            if is_begun(config.run_path):
                raise
            changes = [str(error)]
            say(f"mtkit: warning: {error}")
        if changes:
            _refuse_if_begun(config, "tokenizer", changes)
            _renew_tokenizer(config)
        else:
            say(f"tokenizer: {config.run_path / 'tokenizer'} is up to date")


def run_binarize(config: Config) -> None:
    """`mtkit binarize`: encode the corpora, whatever is there, the tokenizer first if it is out of date.

    The same text and settings give the same ids, so this mends damaged ones, and training may go on from there.
    """
    config = with_plain_files(carried_over(config))
    with _opened(config):
        config = as_begun(config)
        told: list[str] | None = None
        if changes := tokenizer_changes(config):
            _refuse_if_begun(config, "tokenizer", changes)
            told = _renew_tokenizer(config)
        try:
            changes = training_text_changes(config)
        except DataError:  # damaged, which is what is to be mended
            changes = []
        _refuse_if_begun(config, "data/train", changes)
        binarize(config, told)


def run_train(config: Config, fresh: bool = False, change: bool = False) -> None:
    """`mtkit train`: what is missing above, then training, which goes on where it stopped.

    fresh starts it anew; change lets it go on with settings that make it another run than it would have been.
    """
    config = with_plain_files(carried_over(config))
    with _opened(config):
        config = config if fresh else as_begun(config)
        _train(config, fresh, change)


def run_all(config: Config, fresh: bool = False, change: bool = False) -> list[ScoredSet]:
    """`mtkit run`: every stage that is out of date, then the scores of the test sets."""
    config = with_plain_files(carried_over(config))
    with _opened(config):
        config = config if fresh else as_begun(config)
        _train(config, fresh, change)
        return _evaluate(config)


@contextmanager
def _opened(config: Config) -> Iterator[None]:
    """The run directory, for writing: nobody else writes there, it can be written, and what a kill left is gone.

    Leftovers may be large, and the stage that they are of may never be done again. Only names that mtkit gives are
    touched, since the run directory may hold files of the user. Training clears the checkpoints.
    """
    run = config.run_path
    require_folder(run, replaced=False)
    with only_writer(run), without_usr1():
        for name in REPLACED:
            clear_beside(run / name)
        settle_fresh(run)
        for name in REPLACED:
            require_folder(run / name)
        for name in ("data", "checkpoints", "tensorboard", "translations"):
            require_folder(run / name, replaced=False)
        yield


def _train(config: Config, fresh: bool, change: bool) -> None:
    if not config.data.valid:
        raise ConfigError(
            "data.valid is empty; list at least one {source: FILE, target: FILE}: checkpoints are chosen by it"
        )
    check_language(config.languages.target)
    check_names(config)
    pick_device(config.device)  # if there is none of that name, better told before the data is prepared
    if config.training.tensorboard:
        require_tensorboard()
    if fresh or not is_begun(config.run_path):
        start_bundle(config)  # if it does not fit, that too
    if fresh:
        with fresh_start(config.run_path) as start:
            _prepare_anew(config, start)
            train(config, read_validation(config), after_save=start.keep_new)
        return
    _prepare(config)
    if is_trained(config):
        write_file(config.run_path / "config.yaml", config_text(config).encode())
        say(f"training: {config.run_path / 'model'} is up to date")
        return
    if has_model(config.run_path) and not checkpoint_steps(config.run_path / "checkpoints"):
        raise CheckpointError(
            f"{config.run_path}: holds a finished model, but no checkpoints that training could go on from, and this "
            f"changed: {'; '.join(changed_since_trained(config))}. Change it back, give the run another name "
            f"(training.start_from={config.run_path} starts it from this model), or replace the model with --fresh"
        )
    train(config, read_validation(config), change)


def _prepare(config: Config) -> None:
    if _raw_text_is_gone(config):
        say("the training text is not where the settings say; going on with what was binarized from it")
        return
    has_begun = is_begun(config.run_path)
    told: list[str] | None = None
    if changes := tokenizer_changes(config):
        _refuse_if_begun(config, "tokenizer", changes)
        told = _renew_tokenizer(config)
    try:
        changes = training_text_changes(config)
    except DataError as error:
        if has_begun:
            raise
        changes = [str(error)]
        say(f"mtkit: warning: {error}")
    if changes:
        _refuse_if_begun(config, "data/train", changes)
        binarize(config, told)
    elif changes := validation_text_changes(config):
        say(f"the validation text is kept anew: {'; '.join(changes)}")
        renew_validation(config)
    elif not has_begun and not validation_is_spread(config):
        renew_validation(config)  # an earlier version kept it, and a validation would translate its beginning alone


def _prepare_anew(config: Config, start: FreshStart) -> None:
    """Make what is out of date or damaged of tokenizer and data; the old ones stand aside."""
    told: list[str] | None = None
    if not _is_sound(tokenizer_is_current, config):
        start.put_aside("tokenizer", "data/train", "data/valid")
        told = make_tokenizer(config)
    if not _is_sound(binarized_is_current, config):
        start.put_aside("data/train", "data/valid")
        binarize(config, told)
    elif not validation_is_spread(config):
        start.put_aside("data/valid")
        renew_validation(config)


def _is_sound(is_current: Callable[[Config], bool], config: Config) -> bool:
    """Whether a stage need not be done again; what is damaged needs it."""
    try:
        return is_current(config)
    except (CheckpointError, DataError) as error:
        say(f"mtkit: warning: {error}")
        return False


def _renew_tokenizer(config: Config) -> list[str]:
    """Make the tokenizer anew; returns what the user was warned of in the text."""
    has_begun = is_begun(config.run_path)
    told = make_tokenizer(config)
    if has_begun:
        return told  # it was gone and is the same again, or training says so and needs the data to be as it was
    for name in ("train", "valid"):
        remove(followed(config.run_path / "data" / name))  # another tokenizer's ids mean nothing
    return told


def _raw_text_is_gone(config: Config) -> bool:
    """A run that was carried elsewhere has all it needs in its directory."""
    raw = [config.data_path(path) for corpus in config.data.train for path in corpus.paths]
    return is_begun(config.run_path) and bool(raw) and not any(path.exists() for path in raw)


def _refuse_if_begun(config: Config, place: str, changes: Sequence[str]) -> None:
    """Refuse to make a tokenizer or data that a run began with into others; what was deleted may be made again."""
    if changes and is_there(config.run_path / place) and is_begun(config.run_path):
        raise DataError(
            f"{config.run_path}: cannot go on, since what it was prepared from changed since training began: "
            f"{'; '.join(changes)}. Change that back, give the run another name, or start anew with --fresh"
        )


def _evaluate(config: Config) -> list[ScoredSet]:
    """The scores of the test sets, from the bundle if nothing changed since they were measured."""
    bundle = open_bundle(config.run_path)
    if not config.data.test:
        save_scores(bundle, [], card_text(bundle, []))
        return []
    sets = test_sets(config)
    inputs = _evaluation_inputs(config, bundle.path, sets)
    record = config.run_path / "evaluated.json"
    stored = read_scores(bundle)
    known = record.read_text(encoding="utf-8") if stored and record.exists() else None
    # Earlier versions knew packed text by its packed bytes.
    if known == inputs or (known and known == _evaluation_inputs(config, bundle.path, sets, packed_fingerprint)):
        say(f"scores: {bundle.path / 'scores.json'} is up to date")
        return [ScoredSet(**score) for score in stored]
    decoding = [f"decoding.{key}={_yaml(value)}" for key, value in config.decoding.model_dump(mode="json").items()]
    translator = load(bundle.path, [f"device={config.device}", *decoding])
    scores = []
    for name, test_set in sets.items():
        scores += evaluate(translator, name, test_set, save_to=config.run_path / "translations" / f"{name}.txt")
    save_scores(bundle, [score.as_json() for score in scores], card_text(bundle, _rows(scores)))
    write_file(record, inputs.encode())
    return scores


def _yaml(value: Any) -> str:
    return json.dumps(value)


def _rows(scores: Sequence[ScoredSet]) -> list[tuple[str, str, float, str]]:
    return [(score.test_set, score.metric, score.score, score.signature) for score in scores]


def _evaluation_inputs(
    config: Config, bundle: Path, sets: dict[str, SetFiles], fingerprint_of: Callable[[Path], str] = fingerprint
) -> str:
    """All that the scores depend on."""
    with (bundle / "weights.safetensors").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    content = {
        name: [fingerprint_of(files.source), *map(fingerprint_of, files.target), *([files.tag] if files.tag else [])]
        for name, files in sets.items()
    }
    return json.dumps(
        {
            "weights": weights,
            "decoding": config.decoding.model_dump(mode="json"),
            "language": config.languages.target,
            "test": content,
        },
        sort_keys=True,
    )
