"""Experiments: folders of their files, and the settings of the trainings that they ask for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mtkit.config.experiment_settings import SIZES, CardFile, Changes, Size, card_file
from mtkit.config.load import config_from_data, read_text
from mtkit.config.section import read_yaml, write_yaml
from mtkit.config.settings import Config, setting_schema
from mtkit.errors import ConfigError
from mtkit.experiment.boards import BOARDS
from mtkit.experiment.measures import ALWAYS, MEASURES
from mtkit.experiment.verdict import BOARD, Expression, parse

DEMO = "demo"  # the value of --data that stands for the text that the base names


@dataclass(frozen=True)
class Predicted:
    """A prediction: an expression, and the condition under which it is expected, if there is one."""

    expression: str
    condition: str | None = None


@dataclass(frozen=True)
class Card:
    """An experiment."""

    name: str  # the name of the file without .yaml
    path: Path
    file: CardFile
    base: Changes  # the settings in the file `base`; empty without one
    overlay: Changes | None  # the settings that go with --data FOLDER; None if there are none
    of_size: dict[Size, Changes] = field(default_factory=dict)  # what sizes add for all experiments with this base

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
        """The conditions of validity."""
        return self.file.valid_if

    @property
    def variants(self) -> dict[str, Changes]:
        """The settings in which variants and controls differ from the base, by name."""
        return {name: changes or {} for name, changes in (*self.file.variants.items(), *self.file.controls.items())}

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures, without their subsets; parameters and minutes are always among them."""
        names = [split_measure(each)[0] for each in self.file.measure]
        return tuple(dict.fromkeys([*names, *ALWAYS]))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of measures that must be computed for each variant."""
        found = [MEASURES[name].group for name in self.measures]
        for name, how in map(split_measure, self.file.measure):
            found += [group for group, _ in MEASURES[name].by[how].values()] if how else []
        return tuple(dict.fromkeys(found))

    def runs_at(self, size: Size) -> list[str]:
        """The variants and controls that run at a size; none if the experiment does not have it."""
        if size not in self.file.sizes:
            return []
        late = {
            name for least, names in self.file.only.items() if SIZES.index(least) > SIZES.index(size) for name in names
        }
        return [name for name in self.variants if name not in late]

    def settings(self, size: Size, data: str = DEMO) -> Changes:
        """Returns the settings of the base at a size, for the data that `data` names.

        `data` is the value of --data: "demo", or a folder, which becomes `data.root`. For a folder, raises ConfigError
        if the base comes without a file of settings for other data (see `overlay_path`).
        """
        settings = self.base
        if data != DEMO:
            if self.overlay is None:
                base = self.path.parent / str(self.file.base)
                raise ConfigError(f"--data {data}: wants {overlay_path(base)}, which names the files in that folder")
            settings = merged(merged(settings, self.overlay), {"data": {"root": str(Path(data).expanduser())}})
        return merged(merged(settings, self.of_size.get(size, {})), self.file.sizes[size] or {})

    def config(self, variant: str, size: Size, seed: int, data: str = DEMO) -> Config:
        """Returns the settings of a variant or control. Raises ConfigError if they are wrong.

        `seed` counts from 1: 2 stands for the seed that follows the one in the settings.
        """
        settings = merged(self.settings(size, data), self.variants[variant])
        first = (settings.get("training") or {}).get("seed", 1)
        if seed > 1 and isinstance(first, int):
            settings = merged(settings, {"training": {"seed": first + seed - 1}})
        return config_from_data(settings, f"{self.path}: {variant}, size {size}")


def split_measure(text: str) -> tuple[str, str | None]:
    """Splits an entry of `measure`: "bleu[by length]" gives "bleu" and "length", "bleu" gives "bleu" and None."""
    found = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*by\s+([\w ]+?)\s*\])?\s*", text)
    return (found[1], found[2]) if found else (text, None)


def merged(base: Changes, changes: Changes) -> Changes:
    """Returns `base` with `changes` put over it; lists and values are replaced as a whole.

    Sections are merged key by key. If `changes` names another architecture, the settings in the model section of `base`
    that the new architecture lacks are left out. If one of the two architectures is cmlm, which has a search of its
    own, only the decoding settings of `base` in FOR_ANY_SEARCH stay.
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
    """The architecture that settings name; `None` if they name none."""
    model = settings.get("model")
    return model.get("architecture") if isinstance(model, dict) else None


def _fitting(model: Changes, changes: Changes) -> Changes:
    """Returns the settings in `model` that the architecture named in `changes` has, too.

    Both arguments are model sections. If `changes` names no other architecture, returns all of `model`.
    """
    architecture = changes.get("architecture", model.get("architecture"))
    if architecture == model.get("architecture"):
        return model
    whole = {"model": {"architecture": architecture}}
    return {key: value for key, value in model.items() if setting_schema(("model", key), whole) is not None}


def differing_yaml(changes: Changes) -> str:
    """Returns settings as YAML, a line for each."""
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

    A YAML file in the folder is an experiment if it has the key `experiment`; the others are bases. Raises ConfigError
    that lists all mistakes in all files.
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
    """Returns the experiment that `name` names: a file, or the name or its short form in `folder`."""
    path = Path(name)
    if path.suffix == ".yaml" and path.is_file():
        return load_folder(path)[0]
    return chosen_cards(load_folder(folder), [name], folder)[0]


def chosen_cards(cards: list[Card], names: list[str], folder: Path) -> list[Card]:
    """Returns the cards with these names or short forms, all of them if `names` is empty."""
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
    """The file with the settings that go with --data FOLDER: base-data.yaml for base.yaml."""
    return base.with_name(f"{base.stem}-data.yaml")


def size_paths(base: Path) -> dict[Size, Path]:
    """The files with what each size adds for all experiments with this base: base-toy.yaml and so on for base.yaml."""
    return {size: base.with_name(f"{base.stem}-{size}.yaml") for size in SIZES}


def _read(path: Path) -> Changes:
    data = read_yaml(read_text(path), str(path)).data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: found {write_yaml(data)[:60]}, wants keys and values")
    return data


def _card(path: Path, data: Changes) -> Card:
    """Returns the experiment in `data`, the content of the file at `path`. Raises ConfigError."""
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
    """What is wrong with an experiment, apart from the settings of its variants."""
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
    """What an expression refers to but the card does not have."""
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
    """Mistakes in the settings of a variant, at any size."""
    for size in card.file.sizes:
        for name in card.runs_at(size):
            try:
                card.config(name, size, 1)
            except ConfigError as error:
                yield from str(error).splitlines()
