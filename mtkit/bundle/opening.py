"""Opens the model at a path (a bundle, or a checkpoint read as one) and the model that training starts from."""

import errno
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mtkit import __version__
from mtkit.bundle.bundle import (
    CANARIES,
    CONFIG,
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    bundle_at,
    bundle_of,
    canaries_text,
    carried_config,
    description_of,
    no_model,
    tokenizer_files,
)
from mtkit.bundle.checkpoints import (
    STEP,
    TRAINED,
    Snapshot,
    is_checkpoint,
    read_progress_at,
    read_snapshot,
    readable_steps,
    retried,
    step_directories,
    step_directory,
)
from mtkit.bundle.storage import Member, Storage, open_storage, read_tensors, sums_of
from mtkit.config.load import check_tags, config_from_text, with_sections
from mtkit.config.section import Section
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError, say
from mtkit.files import standing
from mtkit.text.parallel import describe_tags, extend_command
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.tokenizer_training import bundled_settings

# The model at a path: a bundle, a run directory or a checkpoint.


@dataclass(frozen=True)
class CheckpointStorage:
    """A checkpoint presented as the files of a bundle.

    The tokenizer and the settings come from the run that the checkpoint belongs to. Training may delete the checkpoint,
    so all files are held in memory.
    """

    path: Path  # of the checkpoint
    run: Path  # the run directory
    step: int
    choice: str | None  # a phrase on why mtkit chose this checkpoint of its run; None if the user named it
    files: Mapping[str, memoryview]  # contents by name

    def place(self, name: str) -> Path:
        """The path of a file, for messages: in the checkpoint for the weights, in the run directory for other files."""
        return self.path / name if name == WEIGHTS else self.run / name

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        return sorted(self.files)

    @property
    def num_bytes(self) -> int:
        """The total size of all files in bytes; the optimizer state of the checkpoint is not among them."""
        return sum(map(len, self.files.values()))

    def view(self, name: str) -> memoryview:
        """The content of the file called `name`; raises FileNotFoundError if there is no such file."""
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def strange(self, members: Sequence[Member]) -> str | None:
        """Always `None`: only an archive can differ from what `mtkit pack` writes, and this is no archive."""
        return None


def has_model(run: Path) -> bool:
    """Whether the run directory `run` contains the bundle that training writes when it is finished."""
    return (standing(run / "model") / DESCRIPTION).exists()


def is_begun(run: Path) -> bool:
    """Whether a run has a checkpoint or a finished model, that is, progress that could be lost."""
    return bool(step_directories(run / "checkpoints")) or has_model(run)


def find_model(path: Path) -> Storage:
    """The storage of the model at `path`, which is a bundle, a run directory or a checkpoint.

    For an unfinished run, the model is the checkpoint that `best_step` chooses. Raises CheckpointError if there is no
    model or if the model is damaged.
    """
    if bundle := bundle_at(path):
        return open_storage(bundle)
    return retried(partial(_find_checkpoint, path))


def open_model(path: Path) -> Bundle:
    """Opens the model at `path`, which is a bundle, a run directory or a checkpoint.

    Raises CheckpointError if there is no model or the model's files are damaged, and ConfigError if the model's
    settings are not valid.
    """
    return bundle_of(find_model(path))


def open_and_tell(path: Path) -> Bundle:
    """Opens the model at `path` as `open_model` does.

    If mtkit chose a checkpoint from an unfinished run, prints on stderr which checkpoint.
    """
    bundle = open_model(path)
    tell(bundle.storage)
    return bundle


def tell(storage: Storage) -> None:
    """If mtkit chose a checkpoint from an unfinished run, prints on stderr which checkpoint; else does nothing."""
    if isinstance(storage, CheckpointStorage) and storage.choice:
        say(f"{storage.run}: not finished; using step {storage.step:,}, {storage.choice}")


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint of a run; `None` if the run is finished or has no checkpoint."""
    return None if is_finished(run) else max(readable_steps(run / "checkpoints"), default=None)


def is_finished(run: Path) -> bool:
    """Whether the training of a run is finished."""
    return (run / TRAINED).exists()


# A checkpoint read as a bundle.


def _find_checkpoint(path: Path) -> CheckpointStorage:
    """Reads the checkpoint at `path` or, if `path` is a run directory, the checkpoint that `best_step` chooses.

    Raises CheckpointError if there is no checkpoint, and FileNotFoundError if training deletes the checkpoint
    meanwhile.
    """
    if is_checkpoint(path):
        run = _run_around(path)
        if run is None:
            raise CheckpointError(
                f"{path}: a checkpoint without its run, which has its tokenizer and its settings; name it where "
                "training wrote it, as RUN/checkpoints/step-…"
            )
        return _checkpoint(run, path, None)
    if readable_steps(path / "checkpoints"):
        step, choice = best_step(path)
        return _checkpoint(path, step_directory(path / "checkpoints", step), choice)
    if steps := readable_steps(path):
        newest = step_directory(path, steps[-1])
        raise CheckpointError(f"{path}: holds checkpoints; name the run directory, or one of them, such as {newest}")
    if STEP.fullmatch(path.name) and (steps := readable_steps(path.parent)):
        shown = ", ".join(f"{step:,}" for step in steps)
        raise CheckpointError(f"{path}: no such checkpoint; there are those of steps {shown}")
    raise no_model(path)


def _run_around(checkpoint: Path) -> Path | None:
    """The run directory that contains `checkpoint`, or `None` if `checkpoint` is not in a run directory.

    Both the checkpoint and the folder that contains it may be symbolic links.
    """
    for place in (checkpoint.absolute(), checkpoint.resolve()):
        if (place.parent.parent / CONFIG).is_file():
            return place.parent.parent
    return None


def _checkpoint(run: Path, directory: Path, choice: str | None) -> CheckpointStorage:
    """Reads the checkpoint in `directory`, which belongs to the run directory `run`.

    `choice` is a phrase on why mtkit chose this checkpoint; `None` if the user named the checkpoint.
    """
    snapshot = read_snapshot(directory)
    tokenizer = run_tokenizer(run, directory, snapshot.identity)
    config = run_config(run, snapshot.identity)
    config = config.model_copy(update={"tokenizer": bundled_settings(config.tokenizer, tokenizer)})
    tokenizer_files = tokenizer.files()
    files = {
        CONFIG: carried_config(config),
        CANARIES: canaries_text([]),
        **{f"{TOKENIZER}/{name}": content for name, content in tokenizer_files.items()},
    }
    sums = {name: sums_of(memoryview(content)).told for name, content in files.items()}
    sums[WEIGHTS] = {"bytes": len(snapshot.weights), "sha256": snapshot.sha256}
    step = snapshot.progress.step
    about = {
        "mtkit": _noted(run).get("mtkit", __version__),
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights_of(snapshot, directory).values())),
        "training": training_of(run, snapshot, [step], choice),
    }
    description = description_of(config, tokenizer_files, sums, about)
    views = {name: memoryview(content) for name, content in {**files, DESCRIPTION: description}.items()}
    return CheckpointStorage(directory, run, step, choice, {**views, WEIGHTS: memoryview(snapshot.weights)})


def weights_of(snapshot: Snapshot, directory: Path) -> dict[str, Tensor]:
    """The weights in `snapshot`, by parameter name.

    Raises CheckpointError if the weights are damaged; the message begins with `directory`.
    """
    return read_tensors(memoryview(snapshot.weights), str(directory))


def best_step(run: Path) -> tuple[int, str]:
    """The step of the checkpoint to use for a run, and a phrase that gives the reason for this choice.

    The best checkpoint so far is chosen, or the newest checkpoint if no checkpoint is the best yet or if the best one
    has been deleted.

    Raises CheckpointError if the run has no checkpoint.
    """
    checkpoints = run / "checkpoints"
    select_by = run_config(run).training.select_by
    # From here on, nothing may take long, since training may delete the checkpoint that is chosen.
    steps = readable_steps(checkpoints)
    if not steps:
        raise no_model(run)
    progress = read_progress_at(step_directory(checkpoints, steps[-1]))
    if not progress.has_best:
        return steps[-1], "the newest (none is validated yet)"
    if progress.best_step not in steps:
        return steps[-1], f"the newest (the best, step {progress.best_step:,}, is gone)"
    score = _score_text(select_by, progress.best_score)
    return progress.best_step, f"the best{'' if is_finished(run) else ' so far'} ({score})"


def _score_text(select_by: str, score: float) -> str:
    """A validation score with the name of the metric, for example "BLEU 31.20".

    If `select_by` is "loss", `score` is the negative of the loss, and the text has the loss itself: "nll 2.1000" for a
    score of -2.1.
    """
    if select_by == "loss":
        return f"nll {-score:.4f}"
    return f"{ {'bleu': 'BLEU', 'chrf': 'chrF'}[select_by] } {score:.2f}"


# Parts of a run directory that its checkpoints need: settings, tokenizer, facts about the training data.


def run_config(run: Path, identity: Mapping[str, Any] | None = None) -> Config:
    """The settings in the config.yaml of a run.

    `identity` is the identity stored in a checkpoint (see `read_progress`). If `identity` is given, the section `model`
    is taken from `identity` instead of config.yaml. Raises CheckpointError if config.yaml is damaged or missing, and
    ConfigError if the settings are not valid.
    """
    path = standing(run / CONFIG)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path}: damaged or missing; it has the settings of the run: go on with mtkit train, which writes it"
        ) from None
    config = config_from_text(text, str(path)).model_copy(update={"run_dir": run})
    return with_sections(config, {"model": identity["model"]}, str(path)) if identity else config


def run_tokenizer(run: Path, directory: Path, identity: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a run.

    `identity` is the identity (see `read_progress`) stored in the checkpoint in `directory`. Raises CheckpointError if
    that checkpoint was trained with another tokenizer. If the checkpoint has been deleted meanwhile, raises
    FileNotFoundError instead.
    """
    place = standing(run / TOKENIZER)
    tokenizer = Tokenizer.load(place)
    if tokenizer.hash != identity["tokenizer"]:
        if not is_checkpoint(directory):
            raise FileNotFoundError(errno.ENOENT, "deleted", str(directory))  # the run was started anew
        raise CheckpointError(f"{place}: not the tokenizer that {directory} was trained with; copy the run again")
    return tokenizer


def training_of(run: Path, newest: Snapshot, steps: Sequence[int], choice: str | None) -> dict[str, Any]:
    """The value of the key `training` in bundle.json: facts about the training of the model.

    `steps` are the steps of the averaged checkpoints, and `newest` is the checkpoint of the last of these steps.
    `choice` is a phrase on why mtkit chose the checkpoint, or `None`.
    """
    progress, data = newest.progress, _noted(run).get("data")
    return {
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "pairs_seen": progress.pairs,
        "averaged_steps": list(steps),
        "start_from": newest.identity["training"].get("start_from"),
        **({"data": data} if data else {}),
        "finished": is_finished(run),
        **({"choice": choice} if choice else {}),
    }


def _noted(run: Path) -> dict[str, Any]:
    """The content of run.json, which training writes when it starts; empty if the file is missing or damaged."""
    try:
        content = json.loads((run / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# The model that training starts from (training.start_from): its weights, its tokenizer and its settings.

# The end of the text that noted_start returns for a checkpoint that mtkit chose from an unfinished run. Later, another
# checkpoint of that run may be the best.
UNFINISHED = "of a run that was not finished"


def start_bundle(config: Config) -> Bundle | None:
    """Opens the model that training.start_from names; `None` if training.start_from is not set.

    Raises CheckpointError if the model is missing or damaged, and ConfigError if the model does not fit the settings.
    """
    path = config.training.start_from
    if path is None:
        return None
    try:
        bundle = open_model(path)
        bundle.require_own_tokenizer()
        bundle.weights()  # checked here, since training builds the model before it reads the weights
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
    """Returns `config`, completed with settings of the model that training.start_from names.

    The sections model, tokenizer, languages and decoding are filled in. Settings that `config` gives explicitly take
    precedence. However, explicit settings in the sections model and tokenizer must equal those of the model to start
    from; `start_bundle` checks this. Only dropout may differ: it is not part of the weights, and the best dropout
    depends on the amount of data.

    If the model to start from no longer exists, the four sections are read from the run's own config.yaml. Without
    training.start_from, `config` is returned unchanged. Raises ConfigError if the architecture differs or a tag is
    unknown (see `_check_tags`).
    """
    if config.training.start_from is None:
        check_tags(config)
        return config
    carried = _carried_over(config)
    _check_tags(carried)
    return carried


def _carried_over(config: Config) -> Config:
    """Does what `carried_over` does, without the check of tags; training.start_from must be set."""
    assert config.training.start_from is not None
    try:
        bundle = open_model(config.training.start_from)
        if isinstance(bundle.storage, CheckpointStorage) and _belongs_to(bundle.storage, config):
            raise _own_run(config)
        carried = bundle.config
    except CheckpointError as error:
        resolved = config.run_path / CONFIG
        if not resolved.is_file():
            _require_complete(config, error)
            return config  # reported when the model is opened
        carried = config_from_text(resolved.read_text(encoding="utf-8"), str(resolved))
    names = ("model", "tokenizer", "languages", "decoding")
    if different := list(_other_kinds("model", carried.model, config.model)):
        raise _other_model(config, different)
    sections = {name: _merged(getattr(carried, name).model_dump(mode="json"), getattr(config, name)) for name in names}
    return with_sections(config, sections, f"training.start_from {config.training.start_from} with your settings")


def _require_complete(config: Config, error: CheckpointError) -> None:
    """Raises CheckpointError if `config` is not valid without the settings of the model to start from.

    `error` says why that model cannot be opened, and becomes part of the message.
    """
    try:
        with_sections(config, {}, "")
    except ConfigError:
        raise CheckpointError(f"training.start_from: {error}") from None


def _belongs_to(storage: Storage, config: Config) -> bool:
    """Whether the model in `storage` is inside the run directory that `config` names; symbolic links are followed."""
    place = storage.run if isinstance(storage, CheckpointStorage) else storage.path
    return place.resolve().is_relative_to(config.run_path.resolve())


def _own_run(config: Config) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from} is this run itself; give the run another name"
    )


def _check_tags(config: Config) -> None:
    """Raises ConfigError if the settings use a tag that the model to start from does not know.

    A tag of a validation or test set is also accepted if it is a tag of data.train.

    Tags of data.train are checked only before the run begins. Earlier versions of mtkit accepted unknown tags, which
    the tokenizer splits into pieces, and a run that began with one of these versions must be able to continue.
    """
    if not config.data.train_tags and not any(config.data.untrained_tags(())):
        return
    tokenizer = _known_tokenizer(config)
    if tokenizer is None:
        return  # reported when the model is opened
    if not is_begun(config.run_path):
        _require_train_tags(config, tokenizer)
    check_tags(config, tokenizer.tags)


def _require_train_tags(config: Config, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if data.train has a tag that `tokenizer` would split into pieces."""
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
    """The tokenizer of the model to start from, or else the copy of the tokenizer in the run directory.

    Returns `None` if the tokenizer cannot be read.
    """
    try:
        if tokenizer := start_tokenizer(config):
            return tokenizer
        return Tokenizer.load(config.run_path / TOKENIZER)
    except CheckpointError:
        return None


def _other_model(config: Config, different: list[str]) -> ConfigError:
    return ConfigError(
        f"training.start_from {config.training.start_from}: its model has other settings; leave these out of yours, or "
        f"copy them: {', '.join(different)}"
    )


def _other_kinds(section: str, carried: Section, ours: Section) -> Iterator[str]:
    """Yields a message for each architecture in `ours` that differs from the one in `carried`.

    `ours` has the settings of the run, and `carried` has those of the model to start from. An architecture that `ours`
    does not give explicitly is not compared. In a mixed model, encoder and decoder are compared separately.

    Models of different architectures have different settings, so architectures are compared before all other settings.
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
    """Returns `carried`, overridden by the settings that `ours` gives explicitly; nested sections are merged too."""
    merged = dict(carried)
    for name in ours.model_fields_set:
        value, before = getattr(ours, name), carried.get(name)
        if isinstance(value, Section) and isinstance(before, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = ours.model_dump(mode="json")[name]
    return merged


def _different(section: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yields a message for each setting, except dropout, whose values in `wanted` and `found` differ.

    `wanted` has the settings of the model to start from, and `found` has those of the run.
    """
    for key in {**wanted, **found}:
        theirs, ours = wanted.get(key), found.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            yield from _different(f"{section}.{key}", theirs, ours)
        elif theirs != ours and not key.endswith("dropout"):
            yield f"{section}.{key}: {theirs} (found {ours})"


def start_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the model to start from.

    Returns `None` if training.start_from is not set, or if the model that it names is missing or damaged.

    Raises CheckpointError if the tokenizer itself is damaged.
    """
    storage = _start_storage(config)
    return None if storage is None else Tokenizer.from_files(tokenizer_files(storage), storage.place(TOKENIZER))


def start_checksum(config: Config, noted: object = None) -> str | None:
    """The checksum of the weights at training.start_from, to tell whether they have changed since the run started.

    Returns `None` if training.start_from is not set or names an unfinished run, or if the model no longer exists.
    Training needs the model only at step 0, so a missing model is no error.

    `noted` is the text that `noted_start` returned at step 0. If that text is about a checkpoint of an unfinished run,
    another checkpoint of that run may be the best by now, so `noted` is returned unchanged.
    """
    if config.training.start_from is not None and isinstance(noted, str) and noted.endswith(UNFINISHED):
        return noted
    storage = _start_storage(config)
    if storage is None or WEIGHTS not in storage.names() or _was_chosen(storage):
        return None
    return _checksum_of(storage)


def noted_start(bundle: Bundle) -> str:
    """The text that training records about the weights that it starts from: a checksum of these weights.

    For a checkpoint that mtkit chose from an unfinished run, the step and UNFINISHED are appended.
    """
    storage = bundle.storage
    if isinstance(storage, CheckpointStorage) and _was_chosen(storage):
        return f"{_checksum_of(storage)}, step {storage.step:,} {UNFINISHED}"
    return _checksum_of(storage)


def _checksum_of(storage: Storage) -> str:
    """The checksum of the weights, as "sha256:" and hexadecimal digits."""
    return f"sha256:{sums_of(storage.view(WEIGHTS)).sha256}"


def _was_chosen(storage: Storage) -> bool:
    """Whether `storage` is a checkpoint that mtkit chose from its run, not one that the user named."""
    return isinstance(storage, CheckpointStorage) and storage.choice is not None


def _start_storage(config: Config) -> Storage | None:
    """The storage of the model to start from.

    Returns `None` if training.start_from is not set, or if the model that it names is missing or damaged.
    """
    if config.training.start_from is None:
        return None
    try:
        return find_model(config.training.start_from)
    except CheckpointError:
        return None
