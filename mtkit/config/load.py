"""Loads settings: a YAML file overrides the defaults, and `section.key=value` arguments override both.

All faults are reported together. For each fault, a line says where the fault is, what was found there, and what is
wanted.
"""

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mtkit.config.data_settings import listed_tags
from mtkit.config.section import INCOMPLETE, Keys, read_value, read_yaml, write_yaml
from mtkit.config.settings import (
    Config,
    Schema,
    is_setting,
    keys_of,
    kinds_with,
    may_be_no_section,
    setting_names,
    setting_schema,
    takes_text,
    wanted,
    without_kinds,
)
from mtkit.errors import ConfigError

# For each setting that the user gave, the place where it was given, such as "recipe.yaml:12" or
# "training.max_steps=100". The settings are in the order in which they were given.
Places = dict[Keys, str]

ALIASES = Path(__file__).with_name("aliases.yaml")  # names of settings in other toolkits, used only for advice
LONGEST_SHOWN = 60  # messages shorten wrong values and overrides that have more than this many characters


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the settings of a YAML file, with overrides applied.

    If `path` is `-`, standard input is read; if `path` is `None`, the overrides are applied to the defaults. An
    override is `key=value` or `section.key=value`. The value is parsed as YAML. If the setting is a section, list or
    table, the value replaces the whole of it. Raises a ConfigError that lists all faults.

    If `training.start_from` names a model, the settings of some sections (subclasses of CarriedSection) may still have
    to be taken from that model, so these sections are not checked yet. The model may also know tags that `data.train`
    lacks, so tags are not checked either. `carried_over` in `mtkit.bundle.opening` completes the sections and makes
    these checks.
    """
    config, places = _read_settings(read_text(path) if path else "", _named(path) if path else "", overrides)
    if config.training.start_from is None:
        _check_tags(config, places)
    return config


def config_from_text(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the settings in a YAML text, with overrides applied as by `load_config`.

    Error messages call the text `name`. A model may know tags that no corpus in its settings has, so tags are not
    checked.
    """
    return _read_settings(text, name, overrides)[0]


def with_sections(config: Config, sections: dict[str, Any], name: str) -> Config:
    """Returns a validated copy of `config` in which the given sections are replaced.

    Raises ConfigError if the new settings are invalid; each line of the message begins with `name`.
    """
    return _checked({**config.model_dump(mode="json"), **sections}, name, None)


def config_from_data(data: dict[str, Any], name: str) -> Config:
    """Returns the settings in `data`, which is as parsed from YAML.

    Raises ConfigError if the settings are invalid; each line of the message begins with `name`.
    """
    return _checked(data, name, INCOMPLETE if _starts_from_a_model(data) else None)


def _checked(data: dict[str, Any], name: str, context: dict[str, bool] | None) -> Config:
    places: Places = {(): name}
    faults = list(_faults_of_text(data, (), places))
    if not faults:
        try:
            return _validated(data, context)
        except ValidationError as error:
            faults = [_fault(problem, data, places) for problem in error.errors(include_url=False)]
    raise ConfigError("\n".join(_lines(faults, places)))


def check_tags(config: Config, known: Collection[str] | None = None) -> None:
    """Raise ConfigError if a validation corpus or test set has a tag that neither `data.train` nor `known` has.

    `known` holds the tags of the model to start from; `None` means that there is no such model.
    """
    _check_tags(config, {}, known)


def _check_tags(config: Config, places: Places, known: Collection[str] | None = None) -> None:
    trained = config.data.train_tags
    there = listed_tags(list(dict.fromkeys([*trained, *(known or ())])))
    who = "no corpus of data.train has" if known is None else "neither data.train nor the model to start from has"
    faults = [
        _Fault(_place(("data", *keys), places), ("data", *keys), f"found {tag}, which {who}; they have {there}")
        for keys, tag in config.data.untrained_tags({*trained, *(known or ())})
    ]
    if faults:
        raise ConfigError("\n".join(_lines(faults, places)))


def _read_settings(text: str, name: str, overrides: Sequence[str]) -> tuple[Config, Places]:
    """Returns the settings in a YAML text with overrides applied, and the place where each setting was given.

    Raises a ConfigError that lists all faults.
    """
    document = read_yaml(text, name)
    data = {} if document.data is None else _without_retired(document.data)
    places = {keys: f"{name}:{line}" for keys, line in document.lines.items()}
    if not isinstance(data, dict):
        raise ConfigError(f"{places[()]}: found {_shown(data)}, wants keys and values")

    refused: list[str] = []
    unknown: list[tuple[str, Keys]] = []
    for override in overrides:
        try:
            place, keys, value = _read_override(override)
        except ConfigError as error:
            refused.append(str(error))
            continue
        if wrong := next((keys[:end] for end in range(1, len(keys) + 1) if not is_setting(keys[:end])), None):
            unknown.append((place, wrong))
            continue
        data = _with_value(data, keys, value)
        places = {at: said for at, said in places.items() if at[: len(keys)] != keys} | {keys: place}
    # Unknown keys are described after all overrides are applied, since the keys that are known depend on the
    # architecture, which an override may change.
    refused += [f"{place}: {_unknown_key(keys, data)}" for place, keys in unknown]

    faults = list(_faults_of_text(data, (), places))
    if not faults:
        try:
            config = _validated(data, INCOMPLETE if _starts_from_a_model(data) else None)
        except ValidationError as error:
            faults = [_fault(problem, data, places) for problem in error.errors(include_url=False)]
    if faults or refused:
        raise ConfigError("\n".join([*_lines(faults, places), *refused]))
    return config, places


# Settings that earlier versions of mtkit had and this version lacks. Each has the value with which the earlier versions
# did what this version always does.
RETIRED: dict[str, dict[str, object]] = {
    "model": {"embedding_skip": False, "residual_scales": False, "logit_softcap": None},
    "training": {"z_loss": 0.0},
}


def _without_retired(data: Any, retired: Mapping[str, Any] = RETIRED) -> Any:
    """Returns `data` without retired settings: those whose name and value are listed in `retired`.

    Existing runs and models may still name such settings. A retired setting with another value stays in `data`, so that
    it is reported as unknown. Settings listed for the section `model` are also removed from its subsections `encoder`
    and `decoder`.
    """
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        if isinstance(value, dict):
            kept[name] = _without_retired(value, retired if name in ("encoder", "decoder") else retired.get(name, {}))
        elif name not in retired or value != retired[name]:
            kept[name] = value
    return kept


def read_text(path: Path) -> str:
    """Returns the text of a YAML file, or of standard input for "-". Raises ConfigError if it cannot be read."""
    try:
        content = sys.stdin.buffer.read() if _is_standard_input(path) else path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; wants a YAML file of settings") from None
    except IsADirectoryError:
        kept = path / "config.yaml"  # if path is a run directory
        such = f", such as {kept}" if kept.is_file() else ""
        raise ConfigError(f"{path}: found a folder, wants a YAML file of settings{such}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{_named(path)}:{line}: found byte 0x{error.object[error.start]:02x}, wants UTF-8") from None


def _is_standard_input(path: Path) -> bool:
    return str(path) == "-" and sys.stdin is not None


def _named(path: Path) -> str:
    return "standard input" if _is_standard_input(path) else str(path)


def _read_override(override: str) -> tuple[str, tuple[str, ...], Any]:
    """Parse a `key=value` argument; returns a short form of it for messages, its keys, and its value.

    Raises ConfigError if the argument is malformed.
    """
    name, equals, text = override.partition("=")
    place = _short(override)
    if not equals or not name:
        raise ConfigError(f"{place}: wants key=value, such as training.max_steps=1000")
    if any(text.strip().startswith(first) and not text.strip().endswith(last) for first, last in ("[]", "{}")):
        raise ConfigError(
            f"{place}: ends before its {text.strip()[0]} is closed; put quotes around all of it, '{name}=…', since the "
            "shell cuts at spaces"
        )
    return place, tuple(name.split(".")), read_value(text, place)


def _with_value(data: Any, keys: tuple[str, ...], value: Any, section: Keys = ()) -> Any:
    """Returns a copy of `data` with `value` as the setting at `keys`; `data` is the content of a section.

    `section` holds the keys that lead to the section; `keys` lead from the section to the setting.

    If `data` is not a mapping, no setting can be added to it. A mapping then replaces `data` if `data` is `None`, or if
    the section may also be given as a value of another type. Otherwise `data` is returned unchanged, and validation
    will report the fault.
    """
    if not keys:
        return value
    if data is None or (not isinstance(data, dict) and may_be_no_section(section)):
        data = {}
    if not isinstance(data, dict):
        return data
    return {**data, keys[0]: _with_value(data.get(keys[0]), keys[1:], value, (*section, keys[0]))}


def _starts_from_a_model(data: dict[str, Any]) -> bool:
    training = data.get("training")
    return isinstance(training, dict) and training.get("start_from") is not None


def _validated(data: dict[str, Any], context: dict[str, bool] | None = None) -> Config:
    # Validation is strict about types, but in JSON mode it accepts text for a Path, and a list for a tuple.
    return Config.model_validate_json(json.dumps(_without_nulls(data, (), data)), strict=True, context=context)


def _without_nulls(data: Any, keys: Keys, settings: dict[str, Any]) -> Any:
    """Returns a copy of `data` in which null sections and tables are replaced by {}, and null lists by [].

    `data` is the value at `keys` in the settings. In YAML, a section, list or table is null if all of its lines are
    comments.
    """
    if data is None and (schema := setting_schema(keys, settings)):
        return {} if schema.get("type") == "object" else [] if schema.get("default") == [] else None
    if isinstance(data, dict):
        return {key: _without_nulls(value, (*keys, key), settings) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_nulls(item, (*keys, i), settings) for i, item in enumerate(data)]
    return data


# Faults and their messages.


@dataclass(frozen=True)
class _Fault:
    """A faulty setting: the place where it was given, its keys, and what is wrong with it."""

    place: str  # empty if the setting was not given
    keys: Keys  # empty if problem already names the setting
    problem: str

    def __str__(self) -> str:
        name = _dotted(self.keys)
        said = self.place.startswith(f"{name}=")  # an override, which begins with the name of the setting
        return ": ".join(part for part in (self.place, "" if said else name, self.problem) if part)


def _faults_of_text(data: Any, keys: Keys, places: Places) -> Iterator[_Fault]:
    """Yields a fault for each value within `data` that is valid YAML but that no setting can hold.

    Such values are dates and bytes with a YAML tag, and text with NUL or surrogates. `data` is the value at `keys`.
    """
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            if isinstance(key, str):
                yield from _faults_of_text(key, (*keys, key), places)
            yield from _faults_of_text(value, (*keys, key), places)
    elif isinstance(data, str):
        if strange := re.search("[\0\ud800-\udfff]", data):
            yield _Fault(_place(keys, places), keys, f"found character U+{ord(strange[0]):04X}, which no text may have")
    elif not isinstance(data, bool | int | float | None):
        yield _Fault(
            _place(keys, places), keys, f"found {_shown(data)}, wants plain text, a number, true, false or null"
        )


def _fault(problem: ErrorDetails, data: dict[str, Any], places: Places) -> _Fault:
    """Convert an error of pydantic into a `_Fault` with mtkit's own message."""
    keys = without_kinds(problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return _Fault(_place(keys, places), (), _unknown_key(keys, data))
        case "value_error":  # raised by a validator of mtkit: settings are incompatible
            message = str(problem["ctx"]["error"])
            return _Fault(_place_of_named(message, keys, places), keys, message)
        case "json_invalid":  # mtkit wrote the JSON, so it can only be nested too deeply
            return _Fault(_place(keys, places), (), "lists or sections are nested too deeply")
        case "union_tag_invalid":
            keys = (*keys, "architecture")
        case "missing" if not isinstance(keys[-1], int):
            return _Fault(_place(keys, places), keys, f"missing; wants {wanted(_schema(keys, data))}")
        case "missing":  # the list is too short
            keys = keys[:-1]
    return _Fault(_place(keys, places), keys, _wrong_value(_value(data, keys), _schema(keys, data)))


def _wrong_value(value: Any, schema: Schema) -> str:
    if isinstance(value, bool | int | float) and takes_text(schema):
        word = {False: "no", True: "yes"}[value] if isinstance(value, bool) else write_yaml(value)
        return f'found {_shown(value)}; quote it, "{word}", if text is meant'
    return f"found {_shown(value)}, wants {wanted(schema)}"


def _unknown_key(keys: Keys, data: dict[str, Any]) -> str:
    """Returns the message about an unknown key, with advice if possible.

    The unknown key is the first of `keys` that does not exist for the architecture in `data`.
    """
    while setting_schema(keys[:-1], data) is None:
        keys = keys[:-1]
    section, key = keys[:-1], str(keys[-1])
    message = f"unknown key '{_dotted(keys)}'"
    schema = _schema(section, data)
    here = keys_of(schema)
    if here is None or ("properties" not in schema and not get_close_matches(key, here)):
        return f"{message}; '{_dotted(section)}' takes {wanted(schema)}"
    if (item := re.fullmatch(r"(\w+)\[\d+\]", key)) and item[1] in here:
        whole = _dotted((*section, item[1]))
        return f"{message}; items of a list are not set one by one: give the whole list, '{whole}=[…]'"
    if section[:2] == ("data", "test") and key in ("tsv", "columns"):
        return f"{message}; a test set has a file of each side: cut -f 1 FILE.tsv > SOURCE, cut -f 2 FILE.tsv > TARGET"
    around, dot, inner = key.rpartition(".")
    if dot and is_setting((*section, *key.split("."))):
        return f"{message}; write '{inner}' on a line of its own below '{around}:'"
    names = setting_names(data)
    below = any(name[-1] == key and name[: len(section)] == section for name in names)
    if not below and (kinds := kinds_with(keys)):
        return f"{message}; only architecture {' or '.join(kinds)} has it"
    spelled = key.lstrip("-").replace("-", "_")  # other toolkits write options with dashes
    if not any(name[-1] == spelled for name in names):
        if kinds := kinds_with(("model", spelled)):
            return f"{message}; did you mean 'model.{spelled}', which only architecture {' or '.join(kinds)} has?"
        if alias := alias_of(key):
            return f"{message}; {alias.hint}"
    meant = " or ".join(_nearest_names(spelled, here, names))
    return f"{message}; did you mean {meant}?" if meant else message


def _nearest_names(key: str, here: list[str], names: list[tuple[str, ...]]) -> list[str]:
    """Returns quoted suggestions for an unknown key: names of settings that may have been meant.

    If other sections have settings with this key, those settings are suggested. Otherwise, the most similar key in
    `here`, the keys of the section itself, is suggested. If no key in `here` is similar, the settings in `names` with
    the most similar key are suggested. If nothing is similar, the list is empty.
    """
    same = [name for name in names if name[-1] == key]
    if not same and (near := get_close_matches(key, here, n=1)):
        return [f"'{near[0]}'"]
    if not same and (near := get_close_matches(key, [name[-1] for name in names], n=1, cutoff=0.8)):
        same = [name for name in names if name[-1] == near[0]]
    return [f"'{_dotted(name)}'" + (" at the top level" if len(name) == 1 else "") for name in same]


def _lines(faults: list[_Fault], places: Places) -> list[str]:
    """Returns the messages of the faults, in the order in which the faulty settings were given."""
    order = {place: i for i, place in enumerate(places.values())}
    return [str(fault) for fault in sorted(faults, key=lambda fault: order.get(fault.place, -1))]


def _place(keys: Keys, places: Places) -> str:
    """Returns the place where the setting at `keys` was given.

    If the setting was not given, returns the place of the innermost given section around the setting. If no such
    section was given, returns "".
    """
    return next((places[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in places), "")


def _place_of_named(message: str, section: Keys, places: Places) -> str:
    """Returns the place of the setting that is named in a message.

    If the message names several settings, returns the place of the setting that was given last. If none of the settings
    was given, returns the place of `section`.
    """
    named = {(*section, *word.split(".")) for word in re.findall(r"[\w.]+", message)}
    return next((place for keys, place in reversed(places.items()) if keys in named), _place(section, places))


def _schema(keys: Keys, data: dict[str, Any]) -> Schema:
    schema = setting_schema(keys, data)
    assert schema is not None
    return schema


def _value(data: Any, keys: Keys) -> Any:
    for key in keys:
        data = data[key]
    return data


def _dotted(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _shown(value: Any) -> str:
    return _short(write_yaml(value))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


# Names of settings in other toolkits.


@dataclass(frozen=True)
class Alias:
    """The names of an option in other toolkits, the corresponding settings of mtkit, and advice on the differences."""

    names: str  # separated by spaces, without leading dashes, with _ for -
    settings: tuple[str, ...]  # full names; empty if mtkit has no such setting
    advice: str

    @property
    def hint(self) -> str:
        """The advice for a message about an unknown key, such as "did you mean 'training.max_steps'?"."""
        quoted = [f"'{name}'" for name in self.settings]
        if not self.advice:
            return f"did you mean {' or '.join(quoted)}?"
        return f"see {' and '.join(quoted)}: {self.advice}" if quoted else self.advice


@cache
def aliases() -> dict[str, Alias]:
    """Returns the entries of aliases.yaml by name; an entry with several names occurs under each of its names."""
    entries = read_yaml(ALIASES.read_text(encoding="utf-8"), str(ALIASES)).data
    known = [Alias(each["names"], tuple(each.get("settings", ())), each.get("advice", "")) for each in entries]
    return {name: alias for alias in known for name in alias.names.split()}


def alias_of(key: str) -> Alias | None:
    """Returns the entry of aliases.yaml for another toolkit's key or option, ignoring case; `None` if there is none."""
    return aliases().get(key.lower().lstrip("-").replace("-", "_"))


def advice_on_option(option: str) -> str:
    """Returns advice on an unknown option, as text that begins with a semicolon.

    Returns "" unless the option has the name of a setting, in mtkit or in another toolkit.
    """
    key = option.lstrip("-").replace("-", "_")
    names = [name for name in setting_names() if key in (name[-1], _dotted(name))]
    if names:
        return f"; settings are given without dashes: {' or '.join(f'{_dotted(name)}=…' for name in names)}"
    alias = alias_of(key)
    return f"; settings are given without dashes, as section.key=value: {alias.hint}" if alias else ""
