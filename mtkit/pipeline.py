"""The stages of a run: tokenizer, data, training and evaluation.

A stage is executed if its result is missing or out of date. Whether a result is out of date is judged by the content of
files, not by their times.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtkit.bundle.bundle import open_bundle, read_scores, save_scores
from mtkit.bundle.info import card_text
from mtkit.bundle.opening import RACE, carried_over, checkpoint_steps, has_model, is_begun, run_config, start_bundle
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, ConfigError, DataError, say
from mtkit.evaluation.evaluate import ScoredSet, evaluate
from mtkit.files import (
    clear_beside,
    followed,
    only_writer,
    remove,
    require_folder,
    stopping_by_signal,
    without_usr1,
    write_file,
)
from mtkit.models.registry import pick_device
from mtkit.preparation.prepare import (
    binarize,
    binarized_is_current,
    keep_normalization,
    make_tokenizer,
    read_validation,
    renew_validation,
    tokenizer_changes,
    tokenizer_is_current,
    training_text_changes,
    validation_is_spread,
    validation_text_changes,
)
from mtkit.preparation.sources import SetFiles, check_names, has_files, test_sets
from mtkit.text.lines import compressed_fingerprint, fingerprint
from mtkit.text.parallel import with_patterns_expanded
from mtkit.training.checkpoint import FreshStart, fresh_start, settle_fresh
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.records import (
    changed_since_trained,
    complete_shortlist,
    ending_of,
    is_trained,
    note_scores,
    nothing_to_end,
    read_race,
    require_tensorboard,
    write_race,
)
from mtkit.training.train import train
from mtkit.translation.scores import check_language
from mtkit.translation.translator import load

REPLACED = ("tokenizer", "data/train", "data/valid", "model")  # folders of a run that are replaced atomically


def run_tokenizer(config: Config) -> None:
    """`mtkit train-tokenizer`: train the tokenizer unless it is up to date.

    If the tokenizer is damaged, prints a warning and makes a new tokenizer. Once training has begun, however, the
    tokenizer is not replaced: a damaged tokenizer then leads to CheckpointError, and an outdated one to DataError.
    """
    config = with_patterns_expanded(carried_over(config))
    with _opened(config):
        config = keep_normalization(config)
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
    """`mtkit binarize`: train the tokenizer if it is out of date, then encode the corpora even if they are up to date.

    The same text and settings always give the same token ids. So this command repairs damaged data, and training can
    resume with the repaired data.
    """
    config = with_patterns_expanded(carried_over(config))
    with _opened(config):
        config = keep_normalization(config)
        told: list[str] | None = None
        if changes := tokenizer_changes(config):
            _refuse_if_begun(config, "tokenizer", changes)
            told = _renew_tokenizer(config)
        try:
            changes = training_text_changes(config)
        except DataError:  # damaged data is encoded again below
            changes = []
        _refuse_if_begun(config, "data/train", changes)
        binarize(config, told)


def run_train(
    config: Config,
    fresh: bool = False,
    change: bool = False,
    end_in: int | None = None,
    ranks: Ranks = ALONE,
    deadline: float = math.inf,
) -> None:
    """`mtkit train`: make the tokenizer and the data if they are out of date, then start or resume training.

    With `fresh=True`, the run is started anew. With `change=True`, training may resume although settings that affect
    the weights have changed. If `end_in` is given, the learning rate decays over the next `end_in` updates, and the run
    then ends. If several processes train together, each of them calls this function; `ranks` has the rank of the
    calling process. At `deadline`, a time by time.monotonic(), training saves its state and raises StoppedError.
    """
    config = with_patterns_expanded(carried_over(config))
    if not ranks.is_first:
        _follow(config, ranks, fresh, change, end_in)
        return
    with _opened(config):
        config = config if fresh else keep_normalization(config)
        _train(config, fresh, change, end_in, ranks, deadline)


def run_all(config: Config, fresh: bool = False, change: bool = False, ranks: Ranks = ALONE) -> list[ScoredSet]:
    """`mtkit run`: execute every stage that is out of date; returns the scores on the test sets.

    With `fresh=True`, the run is started anew. With `change=True`, training may resume although settings that affect
    the weights have changed. If several processes train together, each calls this function with its `ranks`; only rank
    0 evaluates, and all other ranks return an empty list.
    """
    config = with_patterns_expanded(carried_over(config))
    if not ranks.is_first:
        _follow(config, ranks, fresh, change)
        return []
    with _opened(config):
        config = config if fresh else keep_normalization(config)
        _train(config, fresh, change, ranks=ranks)
        return _evaluate(config)


def _follow(config: Config, ranks: Ranks, fresh: bool, change: bool, end_in: int | None = None) -> None:
    """Train in a rank other than rank 0: wait until rank 0 has prepared the data, then train with it.

    Does nothing if rank 0 finds that there is nothing to train. `run_train` explains `fresh`, `change` and `end_in`.
    """
    with stopping_by_signal(silent=True) as stop:
        trains = ranks.are_to_train(stop)
    if trains:
        config = config if fresh else keep_normalization(config)
        train(config, read_validation(config), change, end_in=end_in, ranks=ranks)
    ranks.part()


def run_race(
    config: Config, begun: float, fresh: bool = False, test: bool = False, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """`mtkit race`: train until a validation reaches training.target_score; returns the content of race.json.

    `begun` is the time at which the command started, by time.monotonic(). With `fresh=True`, the run is started anew.
    With `test=True`, the model is evaluated on the test sets after training, and the scores are added to race.json. If
    training has already ended with these settings, it is not repeated, and the measurements in race.json are kept. If
    several processes train together, each calls this function with its `ranks`; all ranks but rank 0 return {}.

    A run that began with another target score, or with none, might have reached the present target long ago. For such a
    run, CheckpointError is raised, unless `fresh` is true.
    """
    config = with_patterns_expanded(carried_over(config))
    run = config.run_path
    if not ranks.is_first:
        _follow(config, ranks, fresh, change=False)
        return {}
    with _opened(config):
        config = config if fresh else keep_normalization(config)
        if not fresh:
            _require_race(config)
        has_trained = _train(config, fresh, change=False, ranks=ranks)
        is_noted = not has_trained and (run / RACE).exists()
        record = read_race(run) if is_noted else write_race(config, time.monotonic() - begun)
        if test:
            record = note_scores(run, record, [score.as_json() for score in _evaluate(config)])
    return record


def _require_race(config: Config) -> None:
    """Raise CheckpointError if the run began with another `target_score` than the present one, or with none."""
    run, target = config.run_path, config.training.target_score
    if is_begun(run) and (noted := run_config(run).training.target_score) != target:
        found = "no training.target_score" if noted is None else f"training.target_score {noted:g}"
        raise CheckpointError(
            f"{run}: was begun with {found}, wants {target:g} from the start, since it may have been better before; "
            "give the race another name (run_dir), or start anew with --fresh"
        )


@contextmanager
def _opened(config: Config) -> Iterator[None]:
    """Context manager that holds the lock of the run directory, so that no other process writes there.

    Half-written files that a killed process left are removed first: such files may be large, and the stage that wrote
    them may never be repeated. Users may keep other files in the run directory, so only files with names that mtkit
    uses are removed. Half-written checkpoints are not removed here, but by training.
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


def _train(
    config: Config,
    fresh: bool,
    change: bool,
    end_in: int | None = None,
    ranks: Ranks = ALONE,
    deadline: float = math.inf,
) -> bool:
    """Make the tokenizer and the data if they are out of date, then train; returns False if training was skipped.

    Training is skipped if the model is up to date and `fresh` is false. If `end_in` is given, the run must also have
    ended with the same `end_in`. `run_train` explains the arguments.
    """
    if not config.data.valid:
        raise ConfigError(
            "data.valid is empty; list at least one {source: FILE, target: FILE}: checkpoints are chosen by it"
        )
    check_language(config.languages.target)
    check_names(config)
    pick_device(config.device)  # called here to report a missing device before the data is prepared
    if config.training.tensorboard:
        require_tensorboard()
    if end_in is not None and not is_begun(config.run_path):
        raise nothing_to_end(config.run_path)
    if fresh or not is_begun(config.run_path):
        start_bundle(config)  # called here to report early that the model in training.start_from does not fit
    if fresh:
        with fresh_start(config.run_path) as start:
            _prepare_anew(config, start)
            train(config, read_validation(config), after_save=start.keep_new, ranks=ranks, deadline=deadline)
        return True
    _prepare(config)
    ended = ending_of(config.run_path)
    if is_trained(config) and (end_in is None or (ended and ended.steps == end_in)):
        write_file(config.run_path / "config.yaml", config_text(config).encode())
        how = f"; --end-in {ended.steps} ended the run at step {ended.last_step:,}" if ended else ""
        if ranks.is_first and config.decoding.shortlist is not None:
            most = config.training.validation_sentences
            sources, references = read_validation(config)
            complete_shortlist(config, sources[:most], references[:most])
        say(f"training: {config.run_path / 'model'} is up to date{how}")
        ranks.begin(trains=False)
        ranks.part()
        return False
    if has_model(config.run_path) and not checkpoint_steps(config.run_path / "checkpoints"):
        if end_in is not None:
            raise nothing_to_end(config.run_path)
        raise CheckpointError(
            f"{config.run_path}: holds a finished model, but no checkpoints that training could go on from, and this "
            f"changed: {'; '.join(changed_since_trained(config))}. Change it back, give the run another name "
            f"(training.start_from={config.run_path} starts it from this model), or replace the model with --fresh"
        )
    train(config, read_validation(config), change, end_in=end_in, ranks=ranks, deadline=deadline)
    return True


def _prepare(config: Config) -> None:
    """Make the tokenizer and the data again if they are out of date.

    Raises DataError if the run has begun and its tokenizer or training data would change. However, if the run has begun
    and the files of its training text no longer exist, nothing is made again, and no error is raised.
    """
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
        # An earlier version stored the lines in the order of the files. But a validation may translate only the first
        # lines, so these should come from all parts of the files.
        renew_validation(config)


def _prepare_anew(config: Config, start: FreshStart) -> None:
    """For a fresh start, make the tokenizer and the data again if they are out of date or damaged.

    Before the tokenizer or the data are made again, `start` sets the old version aside, and keeps it until the new run
    has a checkpoint.
    """
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
    """Whether the result of a stage is up to date and not damaged; prints a warning if the result is damaged.

    `is_current(config)` tells whether the result is up to date, and raises an error if it is damaged.
    """
    try:
        return is_current(config)
    except (CheckpointError, DataError) as error:
        say(f"mtkit: warning: {error}")
        return False


def _renew_tokenizer(config: Config) -> list[str]:
    """Make the tokenizer again; returns the warnings about the text that were printed.

    Unless training has begun, also deletes the data that was encoded with the old tokenizer.
    """
    has_begun = is_begun(config.run_path)
    told = make_tokenizer(config)
    if has_begun:
        return told  # the tokenizer was missing; if the new one differs, training reports that the data does not fit
    for name in ("train", "valid"):
        remove(followed(config.run_path / "data" / name))  # encoded with the old tokenizer
    return told


def _raw_text_is_gone(config: Config) -> bool:
    """Whether the run has begun, but none of the files of its training text exists any more.

    This happens if the run was moved to another machine, for example. Such a run continues with its binarized data.
    """
    raw = [config.data_path(path) for corpus in config.data.train for path in corpus.paths]
    return is_begun(config.run_path) and bool(raw) and not any(path.exists() for path in raw)


def _refuse_if_begun(config: Config, folder: str, changes: Sequence[str]) -> None:
    """Raise DataError if training has begun, but a folder of the run was made from settings or texts that have changed.

    `folder` is "tokenizer" or "data/train". `changes` lists in words what has changed, for the error message; the list
    is empty if nothing has changed. If the folder is missing or empty, the user has deleted its files; it may then be
    made again, so no error is raised.
    """
    if changes and has_files(config.run_path / folder) and is_begun(config.run_path):
        raise DataError(
            f"{config.run_path}: cannot go on, since what it was prepared from changed since training began: "
            f"{'; '.join(changes)}. Change that back, give the run another name, or start anew with --fresh"
        )


def _evaluate(config: Config) -> list[ScoredSet]:
    """Score the model on the test sets, store the scores in the model's bundle, and return the scores.

    If nothing has changed since the stored scores were computed, the stored scores are returned. The list is empty for
    a language model, and if the settings name no test sets.
    """
    bundle = open_bundle(config.run_path)
    if config.task == "language_model" or not config.data.test:
        if config.data.test:
            say("scores: a language model makes no translations to score; mtkit score gives its perplexity")
        save_scores(bundle, [], card_text(bundle, []))
        return []
    sets = test_sets(config)
    # Numbers replace "auto" in the length limit, since earlier versions recorded these numbers.
    settled = bundle.with_length_limit(config)
    inputs = _evaluation_inputs(settled, bundle.path, sets)
    record = config.run_path / "evaluated.json"
    stored = read_scores(bundle)
    known = record.read_text(encoding="utf-8") if stored and record.exists() else None
    # Earlier versions took fingerprints of compressed files, not of their uncompressed text.
    if known == inputs or (known and known == _evaluation_inputs(settled, bundle.path, sets, compressed_fingerprint)):
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
    """Returns, as JSON text, everything that the scores on the test sets in `sets` depend on.

    The text has a checksum of the weights in the model folder `bundle`, the decoding settings, the target language, and
    the tags and checksums of the test sets. `fingerprint_of` computes the checksum of a text file.
    """
    with (bundle / "weights.safetensors").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    content = {
        name: [fingerprint_of(files.source), *map(fingerprint_of, files.target), *([files.tag] if files.tag else [])]
        for name, files in sets.items()
    }
    # Earlier versions did not have these two settings. `refill` changes no translation, and `shortlist` changes none if
    # it is not set; leaving them out keeps the text equal to that of earlier versions.
    newer = {"refill", "shortlist"} if config.decoding.shortlist is None else {"refill"}
    return json.dumps(
        {
            "weights": weights,
            "decoding": config.decoding.model_dump(mode="json", exclude=newer),
            "language": config.languages.target,
            "test": content,
        },
        sort_keys=True,
    )
