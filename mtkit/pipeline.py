"""Every stage that is missing or out of date, by content and not by clock."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.errors import CheckpointError, ConfigError, DataError
from mtkit.evaluate import ScoredSet, evaluate
from mtkit.files import clear_beside, only_writer, write_file
from mtkit.formats.bundle import open_bundle, read_scores, save_scores
from mtkit.formats.card import card_text
from mtkit.models.device import pick_device
from mtkit.prepare import (
    as_begun,
    binarize,
    binarized_is_current,
    make_tokenizer,
    read_validation,
    tokenizer_is_current,
)
from mtkit.records import is_trained
from mtkit.scores import check_language
from mtkit.start import carried_over, start_bundle
from mtkit.testsets import SetFiles, check_names, test_sets
from mtkit.text.lines import fingerprint
from mtkit.train import train
from mtkit.training.board import require_tensorboard
from mtkit.translator import load


def run_tokenizer(config: Config) -> None:
    """`mtkit train-tokenizer`: train it, unless it is up to date; a damaged one is told and trained again."""
    config = carried_over(config)
    with only_writer(config.run_path):
        _clear_leftovers(config)
        config = as_begun(config)
        try:
            is_current = tokenizer_is_current(config)
        except CheckpointError as error:
            if _is_begun(config):
                raise
            is_current = False
            _say(f"warning: {error}")
        if is_current:
            _say(f"tokenizer: {config.run_path / 'tokenizer'} is up to date")
        else:
            _renew_tokenizer(config)


def run_binarize(config: Config) -> None:
    """`mtkit binarize`: encode the corpora, whatever is there, the tokenizer first if it is out of date.

    The same text and settings give the same ids, so this mends damaged ones, and training may go on from there.
    """
    config = carried_over(config)
    with only_writer(config.run_path):
        _clear_leftovers(config)
        config = as_begun(config)
        if not tokenizer_is_current(config):
            _renew_tokenizer(config)
        binarize(config)


def run_train(config: Config, fresh: bool = False) -> None:
    """`mtkit train`: what is missing above, then training, which goes on where it stopped."""
    config = carried_over(config)
    with only_writer(config.run_path):
        _clear_leftovers(config)
        config = config if fresh else as_begun(config)
        _train(config, fresh)


def run_all(config: Config, fresh: bool = False) -> list[ScoredSet]:
    """`mtkit run`: every stage that is out of date, then the scores of the test sets."""
    config = carried_over(config)
    with only_writer(config.run_path):
        _clear_leftovers(config)
        config = config if fresh else as_begun(config)
        _train(config, fresh)
        return _evaluate(config)


def _clear_leftovers(config: Config) -> None:
    """What a kill left half written of a stage may be large, and the stage may never be done again.

    Only names that mtkit gives are touched, since the run directory may hold files of the user. Training clears the
    checkpoints.
    """
    for name in ("tokenizer", "data/train", "data/valid", "model"):
        clear_beside(config.run_path / name)


def _train(config: Config, fresh: bool) -> None:
    if not config.data.valid:
        raise ConfigError(
            "data.valid is empty; list at least one {source: FILE, target: FILE}: checkpoints are chosen by it"
        )
    check_language(config.languages.target)
    check_names(config)
    pick_device(config.device)  # if there is none of that name, better told before the data is prepared
    if config.training.tensorboard:
        require_tensorboard()
    if fresh or not _is_begun(config):
        start_bundle(config)  # if it does not fit, that too
    if fresh:
        _forget(config)
    _prepare(config)
    if is_trained(config):
        write_file(config.run_path / "config.yaml", config_text(config).encode())
        _say(f"training: {config.run_path / 'model'} is up to date")
    else:
        train(config, read_validation(config))


def _forget(config: Config) -> None:
    """All that training left; the tokenizer and the data stay if they are up to date."""
    for name in ("checkpoints", "model", "tensorboard"):
        shutil.rmtree(config.run_path / name, ignore_errors=True)
    for name in ("log.jsonl", "trained.json", "evaluated.json"):
        (config.run_path / name).unlink(missing_ok=True)


def _prepare(config: Config) -> None:
    if _raw_text_is_gone(config):
        _say("the training text is not where the settings say; going on with what was binarized from it")
        return
    if not tokenizer_is_current(config):
        _renew_tokenizer(config)
    if not binarized_is_current(config):
        _refuse_if_trained(config)
        binarize(config)


def _renew_tokenizer(config: Config) -> None:
    _refuse_if_trained(config)
    shutil.rmtree(config.run_path / "data", ignore_errors=True)  # another tokenizer's ids mean nothing
    make_tokenizer(config)


def _raw_text_is_gone(config: Config) -> bool:
    """A run that was carried elsewhere has all it needs in its directory."""
    raw = [config.data_path(path) for corpus in config.data.train for path in corpus.paths]
    return _is_begun(config) and bool(raw) and not any(path.exists() for path in raw)


def _is_begun(config: Config) -> bool:
    return any((config.run_path / "checkpoints").glob("step-*"))


def _refuse_if_trained(config: Config) -> None:
    if _is_begun(config):
        raise DataError(
            f"{config.run_path}: cannot go on: the training or validation text, or the settings that it is prepared by "
            "(tokenizer, data, whether segmentations are sampled), changed since training began. Change them back, "
            "give the run another name, or start anew with --fresh"
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
    if stored and record.exists() and record.read_text(encoding="utf-8") == inputs:
        _say(f"scores: {bundle.path / 'scores.json'} is up to date")
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


def _evaluation_inputs(config: Config, bundle: Path, sets: dict[str, SetFiles]) -> str:
    """All that the scores depend on."""
    with (bundle / "weights.safetensors").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    content = {
        name: [fingerprint(files.source), *map(fingerprint, files.target), *([files.tag] if files.tag else [])]
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
