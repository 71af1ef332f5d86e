"""Explains single settings, and compares two sets of settings, for `mtkit config --explain` and `--diff`."""

import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mtkit.config.load import alias_of, load_config
from mtkit.config.section import Keys, write_yaml
from mtkit.config.settings import Config, Schema, as_said, kinds_with, setting_names, setting_schema, wanted
from mtkit.errors import ConfigError, MtkitError

ARCHITECTURES = tuple(kinds_with(("model", "architecture")))
WIDTH = 100  # of the text, in characters
LONGEST_SHOWN = 60  # characters of a value that --explain shows

# Why defaults are what they are, and when another value is better; where numbers are named, configs/README.md has the
# measurements.
REASONS = {
    "training.optimizer": "Adam is what the papers used. Muon needs less than half of the updates on small data.",
    "training.schedule": "noam is the paper's, and needs no end. With a known end, linear gives better models.",
    "training.learning_rate": "The best peak falls as d_model grows: 0.016 with muon at width 128.",
    "training.warmup_steps": "4000 is the paper's. Short trainings want a tenth of max_steps, as auto has it.",
    "training.batch_tokens": "On a CPU with little data, 1024 reaches the same score earlier; GPUs want 4096 and more. "
    "auto finds what fits.",
    "training.label_smoothing": "0.1 is the paper's; it costs perplexity and gains BLEU.",
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
    "model.query_key_norm": "Gains a little in small batches; CTranslate2 has no such models.",
    "decoding.beam_size": "5 gains 1 to 2 BLEU over greedy search; larger beams rarely gain more.",
    "decoding.method": "With architecture cmlm, the default is mask_predict, the only search for its models.",
    "decoding.length_penalty": "1 divides scores by length, so that short translations get no advantage.",
}


# Comparison.


def settings_by_name(config: Config) -> dict[str, Any]:
    """Returns the value of each setting by its full name, such as "training.max_steps".

    A list or a table is one value; from its items that are sections, settings at their defaults are left out.
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
    """Returns, for each setting that differs, both values as YAML; "-" where an architecture lacks the setting."""
    here, there = settings_by_name(config), settings_by_name(other)
    return {
        name: (_written(here, name), _written(there, name))
        for name in {**here, **there}
        if _written(here, name) != _written(there, name)
    }


def differences_text(config: Config, other: Config, names: tuple[str, str]) -> str:
    """Returns the differences of two sets of settings as text; `names` are the names of both."""
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
    """Returns what a setting or section means: limits, default and its reason, and which recipes have which value.

    `key` is a full name, such as "training.max_steps", or its last part if only one setting has it. With `config`, the
    value in these settings is told, too. Raises ConfigError if there is no such setting, or several.
    """
    keys, data = _found(key)
    schema = setting_schema(keys, data)
    assert schema is not None
    name = ".".join(keys)
    if "properties" in schema:
        return f"{name}: {schema['description']}\n\n" + "".join(_summary(name, schema))
    lines = [schema["description"], f"Takes {wanted(schema)}. Default: {_defaults(keys)}."]
    if reason := REASONS.get(name):
        lines.append(f"Why: {reason}")
    if kinds := kinds_with(keys):
        lines.append(f"Architectures that have it: {', '.join(kinds)}.")
    if config is not None:
        lines.append(f"Here: {_written(settings_by_name(config), name)}")
    text = "".join(_wrapped(line) for line in lines)
    return f"{name}\n{text}{''.join(_recipe_lines(name))}"


def _summary(name: str, schema: Schema) -> list[str]:
    """Returns a line for each setting of a section: its name and the beginning of its description."""
    rows = []
    for key in schema["properties"]:
        child = setting_schema((*name.split("."), key))
        first = child["description"].partition(";")[0].partition(". ")[0].rstrip(".") if child else ""
        rows.append(f"{name}.{key}: {first}\n")
    return rows


def _defaults(keys: Keys) -> str:
    """Returns the default of a setting as YAML; where it depends on the architecture, the default of each."""
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
    """Returns the keys of the setting called `key`, and settings that name an architecture with it.

    `key` is a full name, or its last part; of the settings with this last part, only the least nested ones count.
    The settings are as parsed from a settings file, and have only the architecture. Raises ConfigError if there is
    no such setting, or several.
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
    """Returns, below a heading, a line for each value of a setting in the recipes.

    The line has the value and the names of the recipes with this value. Returns [] if no recipe has the setting.
    """
    recipes = recipes_by_value(name)
    if not recipes:
        return []
    lines = ["  Recipes:\n"]
    for value, names in sorted(recipes.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = value if len(value) <= LONGEST_SHOWN else f"{value[: LONGEST_SHOWN - 1]}…"
        lines.append(_wrapped(f"  {shown}: {', '.join(names)}", "      "))
    return lines


def recipes_by_value(name: str) -> dict[str, list[str]]:
    """Returns, for each value of a setting as YAML, the names of the recipes that have it.

    The recipes are the YAML files in the folder configs of the working directory. If there is no such folder, they
    are those in the folder configs of the repository, if mtkit runs from a clone of it. Recipes that are not valid
    or cannot be read are left out.
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
