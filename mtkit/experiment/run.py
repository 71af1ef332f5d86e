"""Runs experiments: reads a folder of experiment files, and runs the trainings that they need, within a time budget.

This is `mtkit experiment run`. A training that several experiments need is run once. The folder of results contains:

- `runs/KEY`, the run directory of a training, with the measures in its subfolder `measures`;
- `prepared`, the tokenizers and data that several runs share;
- `boards`, the results of checks that need no training;
- `predictions`, what readers predicted before there were results.
"""

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtkit import __version__
from mtkit.bundle.opening import checkpoint_steps, has_model, start_checksum
from mtkit.config.data_and_model_settings import AnyModelConfig
from mtkit.config.load import SIZES, CardFile, Changes, Size, card_file, config_from_data, read_text
from mtkit.config.section import read_yaml, write_yaml
from mtkit.config.settings import Config, setting_schema
from mtkit.config.training_settings import settled
from mtkit.errors import ConfigError, DivergedError, MtkitError, StoppedError, counted, duration, inform, say
from mtkit.experiment.boards import BOARDS
from mtkit.experiment.measures import (
    ALWAYS,
    BOARD,
    IF_DIVERGED,
    MEASURES,
    NOT_HERE,
    NOT_RUN,
    UNMODELLED,
    Expression,
    MissingError,
    Reference,
    Subject,
    Values,
    Verdict,
    constant,
    judge,
    known_fingerprint,
    measured,
    parse,
    parsed_record,
    record_name,
    rows_of,
    values_of,
)
from mtkit.files import json_text, only_writer, write_file
from mtkit.models.registry import empty_model
from mtkit.pipeline import run_binarize, run_train
from mtkit.preparation.prepare import adopt, is_prepared
from mtkit.text.parallel import with_patterns_expanded
from mtkit.training.records import WITHOUT_EFFECT

DEMO = "demo"  # the value of --data that stands for the text that the base names


@dataclass(frozen=True)
class Predicted:
    """A prediction: an expression such as `bleu["a"] > bleu["b"]`, and its condition in words, or `None`."""

    expression: str
    condition: str | None = None


@dataclass(frozen=True)
class Card:
    """An experiment, as its file and the settings files beside it describe it."""

    name: str  # the name of the file without .yaml
    path: Path
    file: CardFile
    base: Changes  # the settings in the file that `base` names; empty if it names none
    overlay: Changes | None  # changes to the settings for --data FOLDER; None if there are none
    of_size: dict[Size, Changes] = field(default_factory=dict)  # changes by size, for all experiments with this base

    @property
    def short(self) -> str:
        """The part of the name before the first hyphen, such as 02."""
        return self.name.split("-")[0]

    @property
    def predict(self) -> tuple[Predicted, ...]:
        """The predictions."""
        return tuple(
            Predicted(each) if isinstance(each, str) else Predicted(each.expression, each.condition)
            for each in self.file.predict
        )

    @property
    def valid_if(self) -> tuple[str, ...]:
        """The expressions that must hold for the experiment to be valid."""
        return self.file.valid_if

    @property
    def variants(self) -> dict[str, Changes]:
        """The settings in which each variant or control differs from the base, by the name of the variant."""
        return {name: changes or {} for name, changes in (*self.file.variants.items(), *self.file.controls.items())}

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, such as `bleu` for "bleu[by length]".

        The measures `parameters` and `minutes` are always among them.
        """
        names = [split_measure(each)[0] for each in self.file.measure]
        return tuple(dict.fromkeys([*names, *ALWAYS]))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of measures that must be computed for each variant.

        The measures of a group, such as "translations", are computed together, in one pass over the text or the log.
        """
        found = [MEASURES[name].group for name in self.measures]
        for name, how in map(split_measure, self.file.measure):
            found += [group for group, _ in MEASURES[name].by[how].values()] if how else []
        return tuple(dict.fromkeys(found))

    def runs_at(self, size: Size) -> list[str]:
        """Returns the names of variants and controls that run at `size`, such as "toy"; [] if none has this size."""
        if size not in self.file.sizes:
            return []
        late = {
            name for least, names in self.file.only.items() if SIZES.index(least) > SIZES.index(size) for name in names
        }
        return [name for name in self.variants if name not in late]

    def settings(self, size: Size, data: str = DEMO) -> Changes:
        """Returns the settings that all variants start from, for a size and for the data that `data` names.

        These are the settings in the file `base`, with the changes for the data and then those for the size. `data` is
        the value of --data: "demo", or a folder, which becomes `data.root`. Raises ConfigError if `data` is a folder
        and there is no file with the changes for other data (see `overlay_path`).
        """
        settings = self.base
        if data != DEMO:
            if self.overlay is None:
                base = self.path.parent / str(self.file.base)
                raise ConfigError(f"--data {data}: wants {overlay_path(base)}, which names the files in that folder")
            settings = merged(merged(settings, self.overlay), {"data": {"root": str(Path(data).expanduser())}})
        return merged(merged(settings, self.of_size.get(size, {})), self.file.sizes[size] or {})

    def config(self, variant: str, size: Size, seed: int, data: str = DEMO) -> Config:
        """Returns the settings of a variant or control; raises ConfigError if they are wrong.

        `seed` counts from 1: 1 means the seed in the settings, 2 the next higher seed, and so on.
        """
        settings = merged(self.settings(size, data), self.variants[variant])
        first = (settings.get("training") or {}).get("seed", 1)
        if seed > 1 and isinstance(first, int):
            settings = merged(settings, {"training": {"seed": first + seed - 1}})
        return config_from_data(settings, f"{self.path}: {variant}, size {size}")


def split_measure(text: str) -> tuple[str, str | None]:
    """Splits an entry of `measure`: "bleu[by length]" gives "bleu" and "length", "bleu" gives "bleu" and None.

    Text of another form is returned as it is, with None.
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*by\s+([\w ]+?)\s*\])?\s*", text)
    return (found[1], found[2]) if found else (text, None)


def merged(base: Changes, changes: Changes) -> Changes:
    """Returns the settings `base` with `changes` applied: sections key by key, lists and values as a whole.

    If `changes` names another architecture than `base`, some settings of `base` are left out. In the section model,
    these are the settings that the new architecture lacks. If the old or the new architecture is cmlm, which is decoded
    by a search of its own, all decoding settings are left out except those in FOR_ANY_SEARCH.
    """
    found = dict(base)
    before, after = _architecture(base) or "transformer", _architecture(changes)
    if after not in (None, before) and "cmlm" in (before, after) and isinstance(base.get("decoding"), dict):
        found["decoding"] = {key: value for key, value in base["decoding"].items() if key in FOR_ANY_SEARCH}
    for key, value in changes.items():
        there = found.get(key)
        if key == "model" and isinstance(there, dict) and isinstance(value, dict):
            there = _fitting(there, value)
        found[key] = merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return found


FOR_ANY_SEARCH = ("batch_tokens", "max_length_ratio", "max_length_extra", "unknown")


def _architecture(settings: Changes) -> str | None:
    """Returns the architecture that the settings name; `None` if they name none."""
    model = settings.get("model")
    return model.get("architecture") if isinstance(model, dict) else None


def _fitting(model: Changes, changes: Changes) -> Changes:
    """Returns the settings in `model` that also exist for the architecture that `changes` names.

    Both arguments are model sections. If `changes` names no other architecture, returns all of `model`.
    """
    architecture = changes.get("architecture", model.get("architecture"))
    if architecture == model.get("architecture"):
        return model
    whole = {"model": {"architecture": architecture}}
    return {key: value for key, value in model.items() if setting_schema(("model", key), whole) is not None}


def differing_yaml(changes: Changes) -> str:
    """Returns settings as YAML, with one setting per line."""
    return "\n".join(_lines(changes, "")) or "{}"


def _lines(changes: Changes, indent: str) -> Iterator[str]:
    for key, value in changes.items():
        name = write_yaml([key])[1:-1]
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {write_yaml(value)}"


# Reading.


def load_folder(folder: Path) -> list[Card]:
    """Returns the experiments in a folder, or the one in a file, highest teaching value first.

    A YAML file in the folder is an experiment if it has the key `experiment`; other YAML files have the settings that
    experiments start from. If there are mistakes, raises ConfigError, whose message names the mistakes in all files.
    """
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder; wants a folder of experiments, such as configs/lecture")
    paths = sorted(folder.glob("*.yaml")) if folder.is_dir() else [folder]
    cards: list[Card] = []
    faults: list[str] = []
    others: list[Path] = []
    for path in paths:
        try:
            data = _read(path)
            if folder.is_dir() and "experiment" not in data:
                others.append(path)
            else:
                cards.append(_card(path, data))
        except ConfigError as error:
            faults += str(error).splitlines()
    bases = {card.path.parent / card.file.base for card in cards if card.file.base is not None}
    used = {path.resolve() for base in bases for path in (base, overlay_path(base), *size_paths(base).values())}
    if not faults:
        faults += [
            f"{path}: has no key experiment, and is the base of none" for path in others if path.resolve() not in used
        ]
    if not cards and not faults:
        faults = [f"{folder}: has no experiment; wants YAML files with the key experiment"]
    if faults:
        raise ConfigError("\n".join(faults))
    return sorted(cards, key=lambda card: (card.file.rank, card.name))


def card_named(name: str, folder: Path) -> Card:
    """Returns the experiment that `name` names: a YAML file, or an experiment in `folder`, as 02-bottleneck or 02.

    Raises ConfigError if there is no such experiment, or if there are several.
    """
    path = Path(name)
    if path.suffix == ".yaml" and path.is_file():
        return load_folder(path)[0]
    return chosen_cards(load_folder(folder), [name], folder)[0]


def chosen_cards(cards: list[Card], names: list[str], folder: Path) -> list[Card]:
    """Returns the experiments with these names or short forms, such as 02, in the order of `cards`.

    If `names` is empty, returns all of them. Raises ConfigError, whose message names `folder`, if a name fits no
    experiment, or more than one.
    """
    found = []
    for name in names:
        these = [card for card in cards if name in (card.name, card.short, card.file.experiment)]
        if len(these) != 1:
            known = ", ".join(sorted(card.name for card in cards))
            which = "is no experiment" if not these else "names several"
            raise ConfigError(f"found {name}, which {which} in {folder}; wants one of {known}")
        found += these
    return [card for card in cards if card in found] if names else cards


def overlay_path(base: Path) -> Path:
    """Returns the path of the file that changes the settings in `base` for --data FOLDER: base-data.yaml for base.yaml.

    There need not be such a file.
    """
    return base.with_name(f"{base.stem}-data.yaml")


def size_paths(base: Path) -> dict[Size, Path]:
    """Returns, for each size, the path of the file with changes to the settings in `base`, such as base-toy.yaml.

    There need not be such files.
    """
    return {size: base.with_name(f"{base.stem}-{size}.yaml") for size in SIZES}


def _read(path: Path) -> Changes:
    data = read_yaml(read_text(path), str(path)).data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: found {write_yaml(data)[:60]}, wants keys and values")
    return data


def _card(path: Path, data: Changes) -> Card:
    """Returns the experiment in `data`, the content of the file at `path`; raises ConfigError if it is wrong."""
    file = card_file(data, str(path))
    base: Changes = {}
    overlay = None
    of_size: dict[Size, Changes] = {}
    if file.base is not None:
        base = _read(path.parent / file.base)
        extra = overlay_path(path.parent / file.base)
        overlay = _read(extra) if extra.exists() else None
        sizes = size_paths(path.parent / file.base)
        of_size = {size: _read(sizes[size]) for size in file.sizes if sizes[size].exists()}
    card = Card(path.stem, path, file, base, overlay, of_size)
    if faults := [f"{path}: {fault}" for fault in _faults(card)] or list(_setting_faults(card)):
        raise ConfigError("\n".join(faults))
    return card


def _faults(card: Card) -> Iterator[str]:
    """Yields the mistakes in an experiment, apart from those in the settings of its variants."""
    file = card.file
    if file.variants or file.controls:
        if file.base is None:
            yield "base: missing; variants start from a settings file"
        if not file.sizes:
            yield f"sizes: missing; variants want one of {', '.join(SIZES)}"
        if not file.measure:
            yield f"measure: missing; variants want some of {', '.join(MEASURES)}"
    elif not file.board:
        yield "found neither variants nor board; wants one of them"
    if both := sorted(set(file.variants) & set(file.controls)):
        yield f"controls: {both[0]} is a variant, too"
    for name in file.board:
        if name not in BOARDS:
            yield f"board: found {name}{_meant(name, BOARDS)}, wants some of {', '.join(BOARDS)}"
    for text in file.measure:
        name, how = split_measure(text)
        if name not in MEASURES:
            yield f"measure: found {text}{_meant(name, MEASURES)}, wants some of {', '.join(MEASURES)}"
        elif how is not None and how not in MEASURES[name].by:
            kinds = " or ".join(f"{name}[by {kind}]" for kind in MEASURES[name].by)
            yield f"measure: found {text}, wants {name}{' or ' if kinds else ''}{kinds}"
    for size, names in file.only.items():
        for name in names:
            if name not in card.variants:
                yield f"only.{size}: {name} is neither a variant nor a control"
    yield from _picture_faults(card)
    texts = [("predict", each.expression) for each in card.predict]
    for where, text in [*texts, *(("valid_if", text) for text in card.valid_if)]:
        try:
            expression = parse(text)
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        yield from (f"{where}: {fault}" for fault in _reference_faults(card, expression))


def _picture_faults(card: Card) -> Iterator[str]:
    picture = card.file.picture
    if picture is None:
        return
    known = [*card.measures, *card.file.board] if card.variants else list(card.file.board)
    if picture.y not in known and not (picture.y == "loss" and card.variants):
        yield f"picture.y: found {picture.y}, wants one of {', '.join(known)}"
    elif picture.kind == "lines" and picture.y in MEASURES and picture.x not in ("update", *MEASURES[picture.y].by):
        yield f"picture.x: found {picture.x}, wants one of {', '.join(('update', *MEASURES[picture.y].by))}"


def _reference_faults(card: Card, expression: Expression) -> Iterator[str]:
    """Yields a message for each reference in an expression to something that the experiment does not have.

    A reference is, for example, `bleu["post"]`, which has the measure "bleu" and the variant "post".
    """
    asked = {split_measure(text) for text in card.file.measure}
    for reference in expression.references:
        said = f"found {reference} in {expression.text}"
        if reference.measure == BOARD:
            if reference.variant not in card.file.board:
                yield f"{said}, but board does not list {reference.variant}"
            elif reference.subset is None:
                yield f'{said}; a result of a board has two names, board["{reference.variant}", "…"]'
        elif reference.measure not in card.measures or not card.variants:
            yield f"{said}, but measure does not list {reference.measure}"
        elif reference.variant not in card.variants:
            near = _meant(reference.variant, card.variants)
            yield f"{said}, but {reference.variant} is neither a variant nor a control{near}"
        elif reference.subset is not None:
            by = MEASURES[reference.measure].by
            how = next((kind for kind in by if reference.subset in by[kind]), None)
            if how is None or (reference.measure, how) not in asked:
                names = [f"{name} ({reference.measure}[by {kind}])" for kind in by for name in by[kind]]
                yield f"{said}; wants one of {', '.join(names) or 'no subset'}, and measure must list it"


def _meant(name: str, known: Any) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _setting_faults(card: Card) -> Iterator[str]:
    """Yields the mistakes in the settings of all variants, at all sizes."""
    for size in card.file.sizes:
        for name in card.runs_at(size):
            try:
                card.config(name, size, 1)
            except ConfigError as error:
                yield from str(error).splitlines()


# The choice of size, seeds and data.


@dataclass(frozen=True)
class Choice:
    """Which experiments are run or shown: their size (such as "toy"), their number of seeds, and their data."""

    size: Size = "toy"
    seeds: int = 1
    data: str = DEMO


LAST = "last.json"  # in the folder of results: the Choice of the last `run`


def last_choice(results: Path) -> Choice:
    """Returns the choice of the last `mtkit experiment run` into the folder `results`.

    If there was none, or its record is damaged, returns the defaults.
    """
    try:
        found = json.loads((results / LAST).read_text(encoding="utf-8"))
        choice = Choice(found["size"], found["seeds"], found["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return Choice()
    return choice if choice.size in SIZES else Choice()


# Trainings.

# Settings that a trained model does not depend on, or that fingerprints of files stand for.
LEFT_OUT = ("name", "run_dir", "device", "data", "decoding")
UNTRAINED = WITHOUT_EFFECT - {"log_every"}  # log_every matters: some measures read the log


@dataclass(frozen=True)
class Training:
    """A training that variants of experiments need; variants with equal settings and data share one."""

    key: str
    config: Config  # its run directory is runs/KEY of the folder of results


def training_key(config: Config) -> str:
    """Returns a checksum of the settings and of the text that a trained model depends on."""
    config = with_patterns_expanded(config)
    settings = config.model_dump(mode="json")
    told: dict[str, Any] = {name: value for name, value in settings.items() if name not in LEFT_OUT}
    told["training"] = {name: value for name, value in told["training"].items() if name not in UNTRAINED}
    told["data"] = {
        name: value for name, value in settings["data"].items() if name not in ("root", "train", "valid", "test")
    }
    # These settings affect the translation of the validation text, and so which checkpoint is the best.
    told["decoding"] = [settings["decoding"][name] for name in ("method", "batch_tokens")]
    for name in ("train", "valid"):
        corpora = getattr(config.data, name)
        told[name] = [
            [
                *(known_fingerprint(config.data_path(path)) for path in corpus.paths),
                corpus.columns,
                corpus.weight,
                corpus.tag,
            ]
            for corpus in corpora
        ]
    files = [*config.tokenizer.models().values(), *(path for text in config.tokenizer.text for path in text.paths)]
    if config.training.guided_alignment is not None:
        files.append(config.training.guided_alignment)
    told["files"] = [known_fingerprint(config.data_path(path)) for path in files]
    if config.training.start_from is not None:
        told["start_from"] = start_checksum(config) or "a model that is not there"
    return _digest(told)


def _prepared_key(config: Config) -> str:
    """Returns a checksum of all settings and text that the tokenizer and the binarized data depend on."""
    settings = config.model_dump(mode="json")
    paths = [config.data_path(path) for corpus in config.data.train for path in corpus.paths]
    told = [settings[name] for name in ("task", "languages", "tokenizer", "data")]
    del settings["data"]["test"]
    return _digest([*told, config.training.samples_subwords, [known_fingerprint(path) for path in paths]])


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_checksum() -> str:
    """Returns a checksum of all code of mtkit; boards (checks without training) are run again if it changes."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


# The folder of results.

MEASURES_FOLDER = "measures"
DIVERGED = "diverged.json"
COST = "cost.json"


class Lab:
    """The folder of results, read for one choice of size, number of seeds and data."""

    def __init__(self, results: Path, choice: Choice) -> None:
        self.results = results
        self.choice = choice
        self._trainings: dict[tuple[str, str, int], Training] = {}
        self._records: dict[Path, dict[str, Any]] = {}
        self._values: dict[tuple[str, Reference, int], np.ndarray[Any, Any] | None] = {}

    # Trainings.

    def training(self, card: Card, variant: str, seed: int) -> Training:
        """Returns the training that a variant needs; raises MtkitError if settings or text are wrong."""
        known = (str(card.path), variant, seed)
        if known not in self._trainings:
            config = card.config(variant, self.choice.size, seed, self.choice.data)
            key = training_key(config)
            update = {"run_dir": self.results / "runs" / key, "name": key}
            self._trainings[known] = Training(key, config.model_copy(update=update))
        return self._trainings[known]

    def trainings(self, card: Card, seed: int) -> dict[str, Training]:
        """Returns the trainings of the variants and controls that run at the chosen size, by the variant's name."""
        return {name: self.training(card, name, seed) for name in card.runs_at(self.choice.size)}

    def is_done(self, training: Training) -> bool:
        """Whether a training has ended, with a model or by diverging."""
        return has_model(training.config.run_path) or self.has_diverged(training)

    def has_diverged(self, training: Training) -> bool:
        """Whether a training has diverged, and so ended without a model."""
        return (training.config.run_path / DIVERGED).exists()

    def record(self, training: Training, group: str) -> dict[str, Any] | None:
        """Returns the record of a group of measures, such as "translations", for a training.

        `None` if the group was not measured. Raises MtkitError if the record is damaged.
        """
        path = self._record_path(training, group)
        if path not in self._records:
            try:
                self._records[path] = parsed_record(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            except ValueError:
                raise MtkitError(f"{path}: is damaged; delete it, and mtkit experiment run measures again") from None
        return self._records[path]

    def _record_path(self, training: Training, group: str) -> Path:
        return training.config.run_path / MEASURES_FOLDER / record_name(group, training.config)

    def missing_groups(self, card: Card, training: Training) -> list[str]:
        """Returns the groups of measures that an experiment needs and that were not measured yet for `training`."""
        return [group for group in card.groups if not self._record_path(training, group).exists()]

    def unfinished(self, card: Card, seed: int) -> dict[str, Training]:
        """Returns the trainings of an experiment that have not ended or lack some measures, by the variant's name."""
        return {
            name: training
            for name, training in self.trainings(card, seed).items()
            if not self.is_done(training) or self.missing_groups(card, training)
        }

    # Boards.

    def board_path(self, name: str) -> Path:
        """The file with the results of a board."""
        return self.results / "boards" / f"{name}.json"

    def board(self, name: str) -> dict[str, float] | None:
        """Returns the results of the board `name`, such as "leaks": numbers by name, such as "encoder".

        `None` if the board was not run with this code of mtkit, or if the file of its results is damaged.
        """
        try:
            found = json.loads(self.board_path(name).read_text(encoding="utf-8"))
            code, results = found["code"], found["results"]
            values = {key: math.nan if value is None else float(value) for key, value in results.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return values if code == code_checksum() else None

    # Measures.

    def values(self, card: Card, reference: Reference) -> Values:
        """Returns a measure of a variant, (S, 1 + B), or a result of a board, (1, 1).

        A row is a seed; its columns are the measure on the test sentences and on B resamples of them. Because variants
        are compared seed by seed, the rows end before the first seed without a value. Raises MissingError if there is
        no value, and ConfigError if the board has no such result.
        """
        if reference.measure == BOARD:
            return self._board_value(card, reference)
        if reference.variant not in card.runs_at(self.choice.size):
            raise MissingError(NOT_HERE)
        found = []
        for seed in range(1, self.choice.seeds + 1):
            known = (str(card.path), reference, seed)
            if known not in self._values:
                self._values[known] = self._value(card, reference, seed)
            value = self._values[known]
            if value is None:  # seeds are compared in pairs, so a later one does not count either
                break
            found.append(value)
        if not found:
            raise MissingError(NOT_RUN)
        return np.stack(found)

    def _value(self, card: Card, reference: Reference, seed: int) -> "np.ndarray[Any, Any] | None":
        measure = MEASURES[reference.measure]
        group, name = measure.group, measure.rows
        if reference.subset is not None:
            group, name = next(names[reference.subset] for names in measure.by.values() if reference.subset in names)
        training = self.training(card, reference.variant, seed)
        record = self.record(training, group) if self.is_done(training) else None
        if record is None:
            return None
        if measure.group not in UNMODELLED and self.has_diverged(training):
            return constant(IF_DIVERGED.get(reference.measure, math.nan))
        rows = rows_of(record, name)
        if rows is None:
            raise MissingError(NOT_HERE)
        return values_of(measure, rows)

    def _board_value(self, card: Card, reference: Reference) -> Values:
        results = self.board(reference.variant)
        if results is None:
            raise MissingError(NOT_RUN)
        if reference.subset not in results:
            raise ConfigError(
                f"{card.path}: found {reference}, but the board {reference.variant} has no such result; it has "
                f"{', '.join(results)}"
            )
        return np.full((1, 1), results[str(reference.subset)])

    def verdict(self, card: Card) -> Verdict:
        """Returns the verdict on an experiment, from what is measured so far."""
        return judge(card, lambda reference: self.values(card, reference))

    # Cost.

    @cached_property
    def _costs(self) -> list[dict[str, Any]]:
        """A record for each finished training with known cost: work, minutes, and minutes of measuring by group."""
        found = map(_read_cost, sorted(self.results.glob(f"runs/*/{COST}")))
        return [cost for cost in found if cost is not None]

    def forget_costs(self) -> None:
        """Make the lab read the costs anew; called after a training has ended."""
        self.__dict__.pop("_costs", None)

    @cached_property
    def _guess(self) -> float:
        """Minutes per unit of work (see `work_of`), guessed from the speed of a matrix product.

        Used until a training has ended.
        """
        matrix, seconds = torch.ones(384, 384), []
        for _ in range(20):
            begun = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - begun)
        return 6 / (GUESSED_USE * 2 * 384**3 / min(seconds)) / 60

    @property
    def is_guessing(self) -> bool:
        """Whether times are only guessed, since no training with a known cost has ended yet."""
        return not self._costs

    def minutes_left(self, card: Card, trainings: Iterable[Training]) -> dict[str, float]:
        """Estimates the minutes that trainings and their measures still take on this machine, by the training's key.

        The measures are those that the experiment needs. Variants that differ only in decoding share a training, but
        each of them is measured.
        """
        found: dict[str, float] = {}
        seen: set[Path] = set()
        for training in trainings:
            if training.key not in found:
                found[training.key] = self._training_minutes(training)
            for group in self.missing_groups(card, training):
                path = self._record_path(training, group)
                found[training.key] += self._measuring(group) if path not in seen else 0.0
                seen.add(path)
        return found

    def _training_minutes(self, training: Training) -> float:
        """Estimates how many minutes a training still takes on this machine."""
        config = training.config
        settings = config.training
        if self.is_done(training):
            return 0.0
        if settings.max_steps == "auto":
            return settings.max_minutes or 0.0
        # Minutes per unit of work of trainings of the same architecture, and of all trainings.
        rates: dict[str, list[float]] = {config.model.architecture: [], "": []}
        for cost in self._costs:
            for kind in {cost["architecture"], ""} & rates.keys():
                rates[kind].append(cost["minutes"] / cost["work"])
        known = rates[config.model.architecture] or rates[""]
        rate = float(np.median(known)) if known else self._guess
        steps = checkpoint_steps(config.run_path / "checkpoints")
        share = 1 - (steps[-1] if steps else 0) / settings.max_steps
        return float(min(work_of(config) * rate * max(share, 0.0), settings.max_minutes or math.inf))

    def _measuring(self, group: str) -> float:
        """Estimates the minutes that measuring a group of measures takes for one training."""
        known = [cost["measuring"][group] for cost in self._costs if group in cost.get("measuring", {})]
        return float(np.median(known)) if known else GUESSED_MEASURING.get(group, 0.0)


GUESSED_USE = 0.3  # the fraction of the speed of matrix products that training small models reaches
# Guesses of the minutes that measuring takes, for use until a model has been measured.
GUESSED_MEASURING = {"translations": 0.1, "joined": 0.2, "likelihood": 0.05, "wrong source": 0.05, "shuffled": 0.1}


@cache
def _num_parameters(model: AnyModelConfig, source_vocab_size: int, target_vocab_size: int) -> int:
    """Returns the number of parameters of a model; cached, since costs are estimated again after every training."""
    return empty_model(model, source_vocab_size, target_vocab_size).num_parameters


def work_of(config: Config) -> float:
    """Returns the work of a training: the number of parameters times the number of tokens in all updates."""
    source, target = (config.tokenizer.size_of(side)[1] for side in ("source", "target"))
    settings = config.training
    return float(
        _num_parameters(config.model, source, target) * settings.tokens_per_update * settled(settings.max_steps)
    )


# Running.


def run(cards: Sequence[Card], lab: Lab, minutes: float, begun: float) -> None:
    """Run what experiments need, until `minutes` minutes after `begun`, a time of time.monotonic().

    Boards, which are checks without training, come first. Then come all trainings of the first seed, then those of the
    second, and so on. Within a seed, the experiment with the most teaching value per minute of remaining work comes
    first.

    Once a training has ended, the times of the others are estimated from its speed. From then on, a training is not
    begun if it does not fit into the time left. A training that takes longer than estimated is stopped in time, with a
    checkpoint from which the next call resumes. Raises MtkitError at the end if boards or trainings failed. Raises
    StoppedError if a signal stops the run.
    """
    lab.results.mkdir(parents=True, exist_ok=True)
    _warn_of_equals(cards, lab)  # raises an error for text that is not there, before the choice is noted
    write_file(lab.results / LAST, (json_text(asdict(lab.choice)) + "\n").encode())
    clock = Clock(begun + 60 * minutes)
    failed: dict[str, str] = {}
    with only_writer(lab.results):
        try:
            _run_boards(cards, lab, clock, failed)
            for seed in range(1, lab.choice.seeds + 1):
                for card, name, training in _in_order(cards, lab, seed, clock, failed):
                    try:
                        _run_one(card, name, training, lab, clock)
                    except StoppedError:
                        raise
                    except MtkitError as error:
                        failed[training.key] = f"{card.name}, {name}: {error}"
                        say(f"mtkit: error: {failed[training.key]}")
                    lab.forget_costs()
        except StoppedError:
            if not clock.is_over:
                raise
            say(f"the {minutes:g} minutes are over; the same command goes on from here")
    if failed:
        raise MtkitError("\n".join(failed.values()))


def _warn_of_equals(cards: Sequence[Card], lab: Lab) -> None:
    """Warn if variants of one experiment have equal settings, since their results cannot differ.

    Raises MtkitError if the settings or the text of a variant are wrong.
    """
    for card in cards:
        seen: dict[tuple[str, str], str] = {}
        for name, training in lab.trainings(card, 1).items():
            settings = training.key, training.config.decoding.model_dump_json()
            if settings in seen:
                say(
                    f"mtkit: warning: {card.path}: {seen[settings]} and {name} have the same settings at size "
                    f"{lab.choice.size}"
                )
            seen.setdefault(settings, name)


@dataclass(frozen=True)
class Clock:
    """The time at which a command has to end."""

    deadline: float  # by time.monotonic()

    @property
    def minutes_left(self) -> float:
        """Minutes until the deadline; negative after it."""
        return (self.deadline - time.monotonic()) / 60

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.minutes_left <= 0

    def check(self) -> None:
        """Raises StoppedError if the deadline has passed."""
        if self.is_over:
            raise StoppedError("the time is over")


def _run_boards(cards: Sequence[Card], lab: Lab, clock: Clock, failed: dict[str, str]) -> None:
    """Run the boards (checks without training) that experiments name, except those that this code of mtkit has run.

    The results are written to `lab.board_path(name)`. The error of a board that fails is printed, and stored in
    `failed` under the board's name. Raises StoppedError if the time is over.
    """
    for name in dict.fromkeys(name for card in cards for name in card.file.board):
        if lab.board(name) is not None:
            continue
        path = lab.board_path(name)
        path.unlink(missing_ok=True)
        clock.check()
        begun = time.monotonic()
        try:
            results = BOARDS[name]()
        except MtkitError as error:
            failed[name] = f"board {name}: {error}"
            say(f"mtkit: error: {failed[name]}")
            continue
        seconds = round(time.monotonic() - begun, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"board": name, "mtkit": __version__, "code": code_checksum(), "seconds": seconds}
        write_file(path, (json_text({**told, "results": results}, indent=1) + "\n").encode())
        inform(f"board {name}: {duration(seconds)}")


def _in_order(
    cards: Sequence[Card], lab: Lab, seed: int, clock: Clock, failed: dict[str, str]
) -> Iterator[tuple[Card, str, Training]]:
    """Yields the trainings of one seed in the order to run them, as (experiment, variant, training), while any fits.

    A training fits if it is expected to end in time; as long as the lab is guessing, every training fits. The caller
    must run each training, or add its key to `failed`, before it asks for the next one. If trainings are left but none
    fits, prints how many must wait.
    """
    while True:
        waiting = {}
        for card in cards:
            left = {
                name: training for name, training in lab.unfinished(card, seed).items() if training.key not in failed
            }
            if left:
                waiting[card.name] = card, left
        if not waiting:
            return
        costs = {name: sum(lab.minutes_left(card, left.values()).values()) for name, (card, left) in waiting.items()}
        best = sorted(waiting, key=lambda name: waiting[name][0].file.rank * costs[name])
        # The first training is begun in any case, since how long it takes is only guessed.
        most = math.inf if lab.is_guessing else clock.minutes_left
        whole = [name for name in best if costs[name] <= most]
        # If no experiment fits as a whole, single trainings that fit still save time in the next call.
        chosen = next(
            (
                (card, variant, training)
                for card, left in (waiting[name] for name in whole or best)
                for variant, training in left.items()
                if sum(lab.minutes_left(card, [training]).values()) <= most
            ),
            None,
        )
        if chosen is None:
            minutes = {
                key: cost
                for card, left in waiting.values()
                for key, cost in lab.minutes_left(card, left.values()).items()
            }
            told = duration(60 * min(minutes.values()))
            trainings = counted(len(minutes), "training")
            say(f"{trainings} of seed {seed} must wait: the shortest takes about {told}, and less is left")
            return
        yield chosen


def _run_one(card: Card, name: str, training: Training, lab: Lab, clock: Clock) -> None:
    """Train variant `name` of an experiment, unless that has been done, and take the measures that are missing.

    A training that diverges is noted, and raises no error. Raises StoppedError if the time is over.
    """
    config, run_dir = training.config, training.config.run_path
    clock.check()
    if not lab.is_done(training):
        about = duration(60 * sum(lab.minutes_left(card, [training]).values()))
        inform(
            f"{card.name}, {name}: training {training.key} in about {about}, {duration(60 * clock.minutes_left)} left"
        )
        _share_data(config, lab.results)
        try:
            run_train(config, deadline=clock.deadline)
        except DivergedError as error:
            say(f"{card.name}, {name}: {error}")
            write_file(run_dir / DIVERGED, (json_text({"error": str(error)}) + "\n").encode())
    subject = Subject(config, run_dir, clock.check, (run_dir / DIVERGED).exists())
    (run_dir / MEASURES_FOLDER).mkdir(exist_ok=True)
    took: dict[str, float] = {}
    for group in lab.missing_groups(card, training):
        clock.check()
        begun = time.monotonic()
        record = {"group": group, "run": training.key, **measured(group, subject)}
        path = run_dir / MEASURES_FOLDER / record_name(group, config)
        write_file(path, (json_text(record) + "\n").encode())
        took[group] = (time.monotonic() - begun) / 60
    _note_cost(training, lab, took)


def _note_cost(training: Training, lab: Lab, took: dict[str, float]) -> None:
    """Write to a run directory how many minutes the training and its measures took, to estimate other trainings.

    `took` holds the minutes of measuring by group. Nothing is written if the training diverged, or if it has no fixed
    number of updates.
    """
    config, path = training.config, training.config.run_path / COST
    record = lab.record(training, "training")
    if record is None or config.training.max_steps == "auto" or (config.run_path / DIVERGED).exists():
        return
    before = _read_cost(path) or {}
    cost = {
        "architecture": config.model.architecture,
        "work": work_of(config),
        "minutes": record["sets"]["all"][0][1],
        "measuring": {**before.get("measuring", {}), **took},
    }
    write_file(path, (json_text(cost) + "\n").encode())


def _read_cost(path: Path) -> dict[str, Any] | None:
    """Returns the cost of a training that `_note_cost` wrote to `path`; `None` if the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
        work, minutes = float(found["work"]), float(found["minutes"])
        measuring = {str(group): float(each) for group, each in found["measuring"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    cost = {"architecture": str(found.get("architecture")), "work": work, "minutes": minutes, "measuring": measuring}
    return cost if work > 0 else None


def _share_data(config: Config, results: Path) -> None:
    """Copy tokenizer and data into a new run; they are prepared once for all runs with the same text settings.

    Does nothing if the run has begun, starts from a model, has a given tokenizer, or is trained with guided alignment.
    """
    if config.tokenizer.model is not None or config.training.start_from is not None:
        return
    run = config.run_path
    has_begun = any((run / name).exists() for name in ("log.jsonl", "checkpoints"))
    if config.training.guided_alignment is not None or has_begun:
        return
    key = _prepared_key(config)
    shared = config.model_copy(update={"run_dir": results / "prepared" / key})
    if not is_prepared(shared):
        run_binarize(shared)
    for name in ("tokenizer", "data"):  # remains of a call that was killed while it copied
        shutil.rmtree(run / name, ignore_errors=True)
    adopt(with_patterns_expanded(config), shared.run_path)


# Predictions of readers.


def add_prediction(card: Card, lab: Lab, text: str, sizes: Sequence[Size] = SIZES) -> Path:
    """Write a reader's prediction, with the date, to a file, and return the file.

    Raises MtkitError if the prediction is empty, or if the experiment has results at any of `sizes`.
    """
    if not text.strip():
        raise MtkitError("found an empty prediction, wants a sentence")
    for size in sizes:
        if _has_results(card, Lab(lab.results, Choice(size, 1, lab.choice.data))):
            raise MtkitError(f"{card.name}: has results already (size {size}), so predictions are closed")
    path = lab.results / "predictions" / f"{card.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = read_predictions(card, lab.results)
    found.append({"text": text.strip(), "date": datetime.now(UTC).date().isoformat()})
    write_file(path, (json_text(found, indent=1) + "\n").encode())
    return path


def _has_results(card: Card, lab: Lab) -> bool:
    """Whether a prediction can be judged already, or a training that differs from the base has ended.

    The training of the base does not count: most experiments of a folder share it, and it reveals no difference.
    """
    if any(finding.state not in (NOT_RUN, NOT_HERE) for finding in lab.verdict(card).predictions):
        return True
    return any(lab.is_done(training) for name, training in lab.trainings(card, 1).items() if card.variants[name])


def read_predictions(card: Card, results: Path) -> list[dict[str, str]]:
    """Returns the predictions that readers wrote down for an experiment, each with `text` and `date`.

    Raises MtkitError if the file of the predictions is damaged.
    """
    path = results / "predictions" / f"{card.name}.json"
    try:
        found = json.loads(path.read_bytes())
        return [{"text": str(each["text"]), "date": str(each["date"])} for each in found]
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError):
        raise MtkitError(f"{path}: is damaged; mend or delete it") from None


# Tables for the terminal.


def listing(cards: Sequence[Card], lab: Lab) -> list[dict[str, str]]:
    """Returns a row for each experiment: name, claim, verdict, and for the first seed the state of its trainings.

    "done" tells how many trainings are finished, such as "2 of 5". "minutes left" is an estimate for the unfinished
    trainings on this machine. "shared" is how many of the trainings are also needed by other experiments of `cards`.
    """
    uses: dict[str, set[str]] = {}
    for card in cards:
        for training in lab.trainings(card, 1).values():
            uses.setdefault(training.key, set()).add(card.name)
    rows = []
    for card in cards:
        trainings = lab.trainings(card, 1)
        keys = {training.key: training for training in trainings.values()}
        left = lab.unfinished(card, 1)
        minutes = sum(lab.minutes_left(card, left.values()).values())
        shared = sum(len(uses[key]) > 1 for key in keys)
        rows.append(
            {
                "name": card.name,
                "claim": card.file.claim,
                "verdict": lab.verdict(card).text,
                "done": f"{len(keys) - len({t.key for t in left.values()})} of {len(keys)}" if keys else "board",
                "minutes left": f"{minutes:.1f}" if left else "0",
                "shared": str(shared),
            }
        )
    return rows
