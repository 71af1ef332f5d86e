"""The base classes of the sections of the settings, and YAML as mtkit reads and writes it; the home of PyYAML."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from mtkit.errors import ConfigError

Keys = tuple[str | int, ...]

MOST_VALUES = 100_000  # a few lines of aliases of aliases could expand to billions


@dataclass(frozen=True)
class Document:
    """Plain data, and the line of each of its keys."""

    data: Any
    lines: dict[Keys, int]


def _use_yaml_1_2_scalars(base: type) -> None:
    """Recognise numbers as YAML 1.2 does, and no dates, so that text that looks like a date stays text."""
    kept = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":timestamp", ":int"))]
        for first, rules in base.yaml_implicit_resolvers.items()  # type: ignore[attr-defined]
    }
    base.yaml_implicit_resolvers = kept  # type: ignore[attr-defined]
    integer = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$|^0o[0-7]+$|^0x[0-9a-fA-F]+$")
    number = re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    )
    base.add_implicit_resolver("tag:yaml.org,2002:int", integer, list("-+0123456789"))  # type: ignore[attr-defined]
    base.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))  # type: ignore[attr-defined]


class _Loader(yaml.SafeLoader):
    """Reads YAML with the scalars of YAML 1.2."""


class _ValueLoader(_Loader):
    """Reads a value from the command line, which has no comments: `#` is a character like any other."""

    def peek(self, index: int = 0) -> str:
        """The next character, with `#` as x, so that the parser takes it for text; it then reads the text itself."""
        character = super().peek(index)
        return "x" if character == "#" else character

    def fetch_anchor(self) -> None:
        """Refuse an anchor outside a list or table, where nothing can refer to it: it was meant as text."""
        if not self.flow_level:
            raise yaml.scanner.ScannerError(None, None, "found text that begins with &; quote it", self.get_mark())
        super().fetch_anchor()


class _Dumper(yaml.SafeDumper):
    """Writes YAML, quoting text that the loader would take for something else."""


_use_yaml_1_2_scalars(_Loader)
_use_yaml_1_2_scalars(_Dumper)


def _text_on_one_line(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 or text != text.rstrip("\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text_on_one_line)


def read_yaml(text: str, name: str) -> Document:
    """The data of a YAML text, which messages call name; raises a ConfigError if it is not valid."""
    return _read(_Loader, text, name)


def read_value(text: str, name: str) -> Any:
    """The data of a value from the command line, which is YAML without comments; see read_yaml."""
    return _read(_ValueLoader, text, name).data


def _read(make_loader: type[_Loader], text: str, name: str) -> Document:
    try:
        loader = make_loader(text)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        data = None if node is None else _build(loader, node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = _unquoted_pattern(error, text) or error.problem or error.context
        raise ConfigError(f"{name}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: lists or sections are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    return Document(data, lines)


def _unquoted_pattern(error: yaml.MarkedYAMLError, text: str) -> str | None:
    """Advice where a pattern lacks quotes: to YAML, *.en.gz begins an alias, and {part-?.en} a key."""
    if isinstance(error, yaml.scanner.ScannerError) and error.context_mark:
        found = re.match(r"\*[^\s,\]}]*", text[error.context_mark.index :])
        return f"text that begins with * needs quotes, '{found[0]}'" if found else None
    if isinstance(error, yaml.parser.ParserError) and error.problem_mark:
        # Within [] and {} these characters begin something else, even in the middle of a word.
        start = re.search(r"[^\s,\[\]{}]*$", text[: error.problem_mark.index])
        found = re.match(r"[?{\[][^\s,]*", text[error.problem_mark.index :])
        if start and start[0] and found:
            return f"{error.problem}; text with {found[0][0]} in it needs quotes"
    return None


def _build(loader: _Loader, node: yaml.Node, keys: Keys, lines: dict[Keys, int], name: str) -> Any:
    lines.setdefault(keys, node.start_mark.line + 1)
    if len(lines) > MOST_VALUES:
        raise ConfigError(f"{name}: more than {MOST_VALUES:,} values; do its aliases repeat each other?")
    if isinstance(node, yaml.MappingNode):
        return dict(_build_pairs(loader, node, keys, lines, name))
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*keys, i), lines, name) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (LookupError, AttributeError):  # the text is not of the type that its tag says
        kind = node.tag.rpartition(":")[2]
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: not valid YAML: found text that is no {kind}") from None


def _build_pairs(
    loader: _Loader, node: yaml.MappingNode, keys: Keys, lines: dict[Keys, int], name: str
) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key must be a plain word")
        key = key_node.value
        if key in seen:
            raise ConfigError(f"{name}:{line}: key '{key}' is given twice; first on line {seen[key]}")
        seen[key] = line
        lines[(*keys, key)] = line
        yield key, _build(loader, value_node, (*keys, key), lines, name)


def write_yaml(value: Any) -> str:
    """One line of YAML that reads back as the same value."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


# Sections.

# Tags by which pydantic tells apart the forms of a setting that has one value for both sides, or one for each;
FOR_BOTH, FOR_EACH = ("one for both sides", "one for each side")
# of one that is a file, or a list of files;
ONE_FILE, MANY_FILES = ("one file", "several files")
# and of one that is a number, or worked out by mtkit.
NUMBER, AUTO = ("a number", "auto")

FORMS = (FOR_BOTH, FOR_EACH, ONE_FILE, MANY_FILES, NUMBER, AUTO)


def form_of(value: object) -> str:
    """Whether a value is for both sides or has a part for each."""
    return FOR_EACH if isinstance(value, dict | BaseModel) else FOR_BOTH


def number_or_auto(value: object) -> str:
    """Whether a value is a number or auto."""
    return AUTO if value == "auto" else NUMBER


def number_of_files(value: object) -> str:
    """Whether a value is one file or a list of them."""
    return MANY_FILES if isinstance(value, list | tuple) else ONE_FILE


class Section(BaseModel):
    """Settings that belong together: immutable, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def paths_may_begin_at_home(cls, value: object) -> object:
        """Expand `~` at the beginning of a path to the user's home folder, and `~name` to another user's."""
        if isinstance(value, tuple):
            return tuple(map(_expanded, value))
        return _expanded(value)

    def first_changed(self, *names: str) -> str | None:
        """The first of these settings that is not at its default, as its name and value for a message; None if all are.

        Settings that others make useless are refused only then, so that a printed config can hold all settings.
        """
        changed = (name for name in names if getattr(self, name) != type(self).model_fields[name].default)
        return next((f"{name} {write_yaml(self.model_dump(mode='json')[name])}" for name in changed), None)


# Validation context of settings whose unstated values will be those of the model that training.start_from names.
INCOMPLETE = {"incomplete": True}


def is_incomplete(info: ValidationInfo) -> bool:
    """Whether unstated settings are not known yet."""
    return info.context == INCOMPLETE


class CarriedSection(Section):
    """A section whose unstated settings are those of the model that training.start_from names, if it names one.

    Whether its settings go together is then checked once those are known.
    """

    @model_validator(mode="after")
    def settings_fit(self, info: ValidationInfo) -> Self:
        """Check complete settings."""
        if not is_incomplete(info):
            self.check()
        return self

    def check(self) -> None:
        """Raise a ValueError if settings do not go together."""


def _expanded(value: object) -> object:
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError(f"found {value}, but it is not known where the home folder {value.parts[0]} is") from None
