"""Loads settings: a YAML file overrides the defaults, and `section.key=value` arguments override both.

All faults are reported together. For each fault, a line says where the fault is, what was found there, and what is
wanted. This module also explains single settings, compares two sets of settings (`mtkit config --explain`, `--diff`),
and declares the format of experiment files.
"""

import json
import re
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from mtkit.config.data_and_model_settings import listed_tags
from mtkit.config.section import INCOMPLETE, Keys, Section, read_value, read_yaml, write_yaml
from mtkit.config.settings import (
    Config,
    Schema,
    as_said,
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
from mtkit.errors import ConfigError, MtkitError

# For each setting that the user gave, the place where it was given, such as "recipe.yaml:12" or
# "training.max_steps=100". The settings are in the order in which they were given.
Places = dict[Keys, str]

ALIASES = Path(__file__).with_name("aliases.yaml")  # names of settings in other toolkits, used only for advice
LONGEST_SHOWN = 60  # messages and explanations shorten values and overrides that have more than this many characters


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the settings of a YAML file, with overrides applied.

    If `path` is `-`, standard input is read; if `path` is `None`, the overrides are applied to the defaults. An
    override is `key=value` or `section.key=value`. The value is parsed as YAML. If the setting is a section, list or
    table, the value replaces the whole of it. Raises a ConfigError that lists all faults.

    If `training.start_from` names a model, two checks are left to `carried_over` in `mtkit.bundle.opening`, which reads
    that model. First, the sections that take missing settings from the model (subclasses of CarriedSection) may have
    incompatible settings. Second, validation corpora and test sets may have tags that `data.train` lacks, since the
    model may know them.
    """
    config, places = _read_settings(read_text(path) if path else "", _named(path) if path else "", overrides)
    if config.training.start_from is None:
        _check_tags(config, places)
    return config


def config_from_text(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the settings in a YAML text, changed by `overrides`, such as "decoding.beam_size=1".

    In error messages, the text is called `name`. Tags are not checked, since a model may know tags that no corpus in
    its settings has.
    """
    return _read_settings(text, name, overrides)[0]


def with_sections(config: Config, sections: dict[str, Any], name: str) -> Config:
    """Returns a validated copy of `config` in which the given sections are replaced.

    `sections` maps the name of a section, such as "model", to its new content, as parsed from YAML. Raises ConfigError
    if the new settings are invalid; each line of the message begins with `name`.
    """
    return _checked({**config.model_dump(mode="json"), **sections}, name, None)


def config_from_data(data: dict[str, Any], name: str) -> Config:
    """Returns the settings in `data`, the parsed content of a YAML file.

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

    A place is text such as "recipe.yaml:12", or the override. Raises a ConfigError that lists all faults.
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


# Settings that earlier versions of mtkit had and this version lacks. With the value given here, the earlier versions
# behaved as this version always does, so a setting with this value can be ignored.
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
    """Parse a `key=value` argument; returns (place, keys, value).

    For example, the keys in "training.max_steps=5" are ("training", "max_steps"). The place is the argument itself,
    shortened for messages. Raises ConfigError if the argument is malformed.
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

    If `data` is `None`, a new mapping takes its place. The same happens if `data` is another type of value that the
    section may have; for example, `tokenizer.vocab_size` may be a number. Any other `data` that is not a mapping is
    returned unchanged; validation will report the fault.
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
    """Returns a copy of `data` in which {} or [] replaces each null that stands for an empty section, table or list.

    In YAML, a section, table or list is null if all of its lines are comments. Null becomes {} for a section or table,
    and [] for a list that is empty by default. For other settings, null is a value and stays.

    `settings` has all settings that were given, and `data` is the value at `keys` in `settings`. Some settings have a
    type that depends on the architecture, which is looked up in `settings`.
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

    Such values are text with NUL characters or surrogates, and values of types that only a YAML tag can give, such as
    dates (`!!timestamp`) and bytes (`!!binary`). `data` is the value of the setting at `keys`. `places` tells where
    each setting was given.
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
    """Converts `problem`, an error of pydantic, into a `_Fault` with mtkit's own message.

    `data` holds the settings that pydantic was given, and `places` tells where each of them was given.
    """
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
    """Returns the place where the setting at `keys` was given, such as "recipe.yaml:12".

    If the setting was not given, returns the place of the innermost given section around the setting. If no such
    section was given, returns "".
    """
    return next((places[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in places), "")


def _place_of_named(message: str, section: Keys, places: Places) -> str:
    """Returns the place where the user gave the setting that `message` names, such as "recipe.yaml:12".

    If `message` names several settings, returns the place of the setting that was given last. If none of the settings
    was given, returns the place of the section at the keys `section`.
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
    """Returns the entry of aliases.yaml for a key or option of another toolkit, ignoring case; else `None`."""
    return aliases().get(key.lower().lstrip("-").replace("-", "_"))


def advice_on_option(option: str) -> str:
    """Returns advice on an unknown option, such as "; settings are given without dashes: training.max_steps=…".

    Returns "" unless the option has the name of a setting, in mtkit or in another toolkit.
    """
    key = option.lstrip("-").replace("-", "_")
    names = [name for name in setting_names() if key in (name[-1], _dotted(name))]
    if names:
        return f"; settings are given without dashes: {' or '.join(f'{_dotted(name)}=…' for name in names)}"
    alias = alias_of(key)
    return f"; settings are given without dashes, as section.key=value: {alias.hint}" if alias else ""


# Explaining and comparing settings.

ARCHITECTURES = tuple(kinds_with(("model", "architecture")))
WIDTH = 100  # of the text, in characters

# Why defaults are what they are, and when another value is better. configs/README.md has the measurements behind the
# numbers.
REASONS = {
    "training.optimizer": "Adam is what the papers used. Muon needs less than half of the updates on small data.",
    "training.schedule": "noam is the paper's, and needs no end. With a known end, linear gives better models.",
    "training.learning_rate": "The best peak falls as d_model grows: 0.016 with muon at width 128.",
    "training.warmup_steps": "4000 is the paper's. Short trainings want a tenth of max_steps, as auto has it.",
    "training.batch_tokens": "On a CPU with little data, 1024 reaches the same score earlier; GPUs want 4096 and more. "
    "auto finds what fits.",
    "training.label_smoothing": "0.1 is the paper's; it costs perplexity and gains BLEU.",
    "training.ema_decay": "0.997 gained about half a BLEU in 1,600 updates on Multi30k, with few seeds.",
    "training.average_checkpoints": "5 is the paper's. The average is used only if it validates better.",
    "training.precision": "auto takes bf16 only where it is faster than fp32.",
    "tokenizer.vocab_size": "8000 suits some 100,000 pairs. Fewer pairs want fewer pieces, millions of pairs 32000.",
    "tokenizer.type": "BPE and unigram models give about the same scores.",
    "tokenizer.shared": "One vocabulary lets all three embedding matrices be one, and copies names as they are.",
    "model.d_model": "512 is the paper's base model, for millions of pairs; 128 to 256 suit up to 300,000.",
    "model.dropout": "0.1 is the paper's. The more often each pair is seen, the more dropout: 0 for less than two "
    "epochs, 0.3 for more than fifty.",
    "model.positions": "Sinusoids are the paper's. Rotary positions gained 2 BLEU in nine minutes on Multi30k.",
    "model.norm_placement": "Norms before each sublayer train stably without long warm-up.",
    "model.residual_init": "Zero makes the first hundred updates better, and no difference in the end.",
    "model.query_key_norm": "Gains a little in small batches; layer costs less time than true. CTranslate2 has no such "
    "models.",
    "decoding.beam_size": "5 gains 1 to 2 BLEU over greedy search; larger beams rarely gain more.",
    "decoding.method": "With architecture cmlm, the default is mask_predict, the only search for its models.",
    "decoding.length_penalty": "1 divides scores by length, so that short translations get no advantage.",
}


# Comparison.


def settings_by_name(config: Config) -> dict[str, Any]:
    """Returns the value of each setting by its full name, such as "training.max_steps".

    A list or a table counts as one value. If its items are sections, their settings at default values are left out.
    """
    data = config.model_dump(mode="json")
    found = {}
    for keys in setting_names(data):
        schema = setting_schema(keys, data)
        assert schema is not None
        if "properties" not in schema:
            found[".".join(keys)] = as_said(_item(data, keys), schema)
    return found


def differences(config: Config, other: Config) -> dict[str, tuple[str, str]]:
    """Returns a dict from the full name of each setting that differs to its two values as YAML.

    The value in `config` comes first, and the value in `other` second. If the architecture of one of the two does not
    have the setting, its value is "-".
    """
    here, there = settings_by_name(config), settings_by_name(other)
    return {
        name: (_written(here, name), _written(there, name))
        for name in {**here, **there}
        if _written(here, name) != _written(there, name)
    }


def differences_text(config: Config, other: Config, names: tuple[str, str]) -> str:
    """Returns the differences of two sets of settings as text, in which the two are called `names`."""
    found = differences(config, other)
    if not found:
        return f"{names[0]} and {names[1]} have the same settings\n"
    lines = [f"# setting: {names[0]} | {names[1]}", *(f"{name}: {a} | {b}" for name, (a, b) in found.items())]
    return "\n".join(lines) + "\n"


def _item(data: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        data = data[key]
    return data


def _written(values: dict[str, Any], name: str) -> str:
    return write_yaml(values[name]) if name in values else "-"


# Explanation.


def explanation(key: str, config: Config | None = None) -> str:
    """Returns an explanation of a setting (meaning, limits, default, values in recipes) or of a section.

    `key` is a full name, such as "training.max_steps", or its last part if only one setting has it. With `config`, the
    text also gives the value of the setting in `config`. Raises ConfigError if no setting or several settings match.
    """
    keys, data = _found(key)
    schema = setting_schema(keys, data)
    assert schema is not None
    name = ".".join(keys)
    if "properties" in schema:
        return f"{name}: {schema['description']}\n\n" + "".join(_summary(keys, data))
    lines = [schema["description"], f"Takes {wanted(schema)}. Default: {_defaults(keys)}."]
    if reason := REASONS.get(name):
        lines.append(f"Why: {reason}")
    if kinds := kinds_with(keys):
        lines.append(f"Architectures that have it: {', '.join(kinds)}.")
    if config is not None:
        lines.append(f"Here: {_written(settings_by_name(config), name)}")
    text = "".join(_wrapped(line) for line in lines)
    return f"{name}\n{text}{''.join(_recipe_lines(name))}"


# The end of a clause or sentence outside brackets; the full stop in "et al. 2016" does not count.
_CLAUSE_END = re.compile(r"(;|(?<! al)\. )(?![^(]*\))")


def _summary(keys: tuple[str, ...], data: Any) -> list[str]:
    """Returns a line for each setting of the section at `keys`: its name and the beginning of its description.

    `data` names the architecture, for example {"model": {"architecture": "rnn"}}.
    """
    section = setting_schema(keys, data)
    assert section is not None
    rows = []
    for key in section["properties"]:
        child = setting_schema((*keys, key), data)
        assert child is not None
        first = _CLAUSE_END.split(child["description"], maxsplit=1)[0].rstrip(".")
        rows.append(f"{'.'.join((*keys, key))}: {first}\n")
    return rows


def _defaults(keys: Keys) -> str:
    """Returns the default of the setting at `keys` as YAML, such as "512".

    If the default depends on the architecture, the text has each default with its architectures: "512 with rnn, …".
    """
    names: dict[str, list[str]] = {}
    for architecture in kinds_with(keys) or ARCHITECTURES:
        data: Any = {"architecture": architecture}
        for half in reversed(keys[1:-1]):  # of a mixed model
            data = {"architecture": "mixed", half: data}
        schema = setting_schema(keys, {"model": data})
        if schema is not None:
            names.setdefault(write_yaml(schema.get("default")), []).append(architecture)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{default} with {' and '.join(each)}" for default, each in names.items())


def _found(key: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the keys of the setting called `key`, and data that names an architecture with this setting.

    The data has the form of a settings file: {"model": {"architecture": NAME}}. `key` is a full name, such as
    "training.max_steps", or its last part. If several settings have this last part, only the least nested ones count.
    Raises ConfigError if no setting or several settings match.
    """
    candidates: dict[tuple[str, ...], dict[str, Any]] = {}
    known: set[str] = set()
    for architecture in ARCHITECTURES:
        data = {"model": {"architecture": architecture}}
        for keys in setting_names(data):
            name = ".".join(keys)
            known |= {name, keys[-1]}
            if key == name:
                return keys, data
            if keys[-1] == key:
                candidates.setdefault(keys, data)
    least = min(map(len, candidates), default=0)  # model.dropout, not that of an encoder of a mixed model
    candidates = {keys: data for keys, data in candidates.items() if len(keys) == least}
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    if candidates:
        names = " or ".join(".".join(keys) for keys in candidates)
        raise ConfigError(f"--explain: found {key}, which several settings have; say {names}")
    alias, near = alias_of(key), get_close_matches(key, sorted(known), n=3)
    hint = alias.hint if alias else f"did you mean {' or '.join(near)}?" if near else "mtkit config lists all"
    raise ConfigError(f"--explain: found {key}, which is no setting; {hint}")


def _recipe_lines(name: str) -> list[str]:
    """Returns a heading, and a line for each value of the setting `name` in recipes; [] if no recipe has the setting.

    Recipes are the settings files of the folder configs. A line has a value and the names of the recipes with this
    value. The most common value comes first.
    """
    recipes = recipes_by_value(name)
    if not recipes:
        return []
    lines = ["  Recipes:\n"]
    for value, names in sorted(recipes.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(_wrapped(f"  {_short(value)}: {', '.join(names)}", "      "))
    return lines


def recipes_by_value(name: str) -> dict[str, list[str]]:
    """Returns a dict from each value of the setting `name`, as YAML, to the names of the recipes that have this value.

    The recipes are the YAML files in the folder configs of the working directory. If there is no such folder and mtkit
    runs from a clone of its repository, the folder configs of the repository is used. Recipes that are not valid or
    cannot be read are left out.
    """
    folders = (Path("configs"), Path(__file__).parents[2] / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.yaml")) if folder else ():
        try:
            values = settings_by_name(load_config(path))
        except MtkitError:
            continue
        if name in values:
            found.setdefault(_written(values, name), []).append(path.stem)
    return found


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent=indent, break_long_words=False) + "\n"


# Experiment files.

Size = Literal["toy", "small", "full"]
SIZES: tuple[Size, ...] = get_args(Size)
Changes = dict[str, Any]  # settings that differ, nested as in a settings file


class Prediction(Section):
    """A prediction with a condition: an item of `predict` that has the keys `if` and `then`.

    The condition is text that mtkit only quotes, for example in the verdict "holds, but not if ...".
    """

    condition: str = Field(alias="if", min_length=1, description="The condition, in words.")
    expression: str = Field(alias="then", description="What is expected under it.")


class Picture(Section):
    """The picture of an experiment on the page of results: its kind and its axes."""

    kind: Literal["bars", "lines", "table"] = Field("bars", description="A bar or a line for each variant.")
    y: str = Field(description="A measure, or the name of a board.")
    x: str = Field("update", description="Of lines: update, length or joined.")


class CardFile(Section):
    """The content of an experiment file, as it is written."""

    experiment: str = Field(min_length=1, description="A name in a word or two.")
    claim: str = Field(min_length=1, description="What is claimed, in one sentence.")
    rank: int = Field(ge=1, description="Teaching value, 1 for the highest: what is worth most is run first.")
    base: Path | None = Field(None, description="Settings that every variant starts from, relative to this file.")
    board: tuple[str, ...] = Field((), description="Checks without training.")
    variants: dict[str, Changes | None] = Field({}, description="Settings in which each variant differs from base.")
    controls: dict[str, Changes | None] = Field(
        {}, description="Variants that show whether the experiment can show what it claims."
    )
    measure: tuple[str, ...] = Field((), description="Measures, such as bleu or bleu[by length].")
    predict: tuple[str | Prediction, ...] = Field(min_length=1, description="What the claim leads one to expect.")
    valid_if: tuple[str, ...] = Field((), description="What must be true for the experiment to mean anything.")
    sizes: dict[Size, Changes | None] = Field({}, description="What each size adds to base; no other can run.")
    only: dict[Size, tuple[str, ...]] = Field({}, description="Variants that need at least this size.")
    picture: Picture | None = Field(None, description="What is drawn.")
    wrong: str = Field("", description="How the experiment could be wrong.")
    known: str = Field("", description="What is known today.")
    references: tuple[str, ...] = Field((), description="Papers.")
    exercises: tuple[str, ...] = Field((), description="Exercises for the reader.")


def card_file(data: Changes, where: str) -> CardFile:
    """Returns the experiment in `data`, the parsed content of an experiment file, after checking it.

    Raises ConfigError if there are mistakes. The message has a line for each mistake, and each line begins with
    `where`, the name of the file.
    """
    try:
        return CardFile.model_validate_json(json.dumps(data), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _messages(error, data))) from None


def _messages(error: Exception, data: Changes) -> Iterator[str]:
    """Yields a message for each mistake in the experiment `data` that `error` reports."""
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    seen = set()
    for problem in error.errors(include_url=False):
        # pydantic also names the forms that an item may have; messages name only keys and indices of items.
        keys = [key for key in problem["loc"] if isinstance(key, int) or key in _keys_of(data)]
        where = ".".join(map(str, keys)) or "the file"
        if where in seen:
            continue
        seen.add(where)
        match problem["type"]:
            case "extra_forbidden":
                key = str(problem["loc"][-1])
                near = get_close_matches(key, CardFile.model_fields, n=1)
                yield f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
            case "missing":
                yield f"{'.'.join(map(str, problem['loc']))}: missing"
            case _:
                wanted = problem["msg"].removeprefix("Input should be ")
                yield f"{where}: found {write_yaml(problem.get('input'))[:60]}, wants {wanted}"


def _keys_of(data: Any) -> set[Any]:
    """Returns the keys of all dicts in nested data."""
    if isinstance(data, dict):
        return {*data, *(key for value in data.values() for key in _keys_of(value))}
    return {key for item in data for key in _keys_of(item)} if isinstance(data, list) else set()
