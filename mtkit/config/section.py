"""Base classes of the sections of settings, and functions that read and write YAML; only this module imports PyYAML."""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from mtkit.errors import ConfigError

Keys = tuple[str | int, ...]  # the path to a setting, such as ("data", "train", 0, "source")

MOST_VALUES = 100_000  # in one YAML text; aliases of aliases could expand a few lines to billions of values


@dataclass(frozen=True)
class Document:
    """The data of a YAML text, and the number of the line, from 1, on which each key or item stands."""

    data: Any
    lines: dict[Keys, int]


def _use_yaml_1_2_scalars(base: type) -> None:
    """Make a loader or dumper recognise numbers by the rules of YAML 1.2, and treat dates as text."""
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
    """A safe loader that recognises numbers by the rules of YAML 1.2, and treats dates as text."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader like `_Loader`, but some twenty times as fast: it uses libyaml, if PyYAML was built with it."""


class _ValueLoader(_Loader):
    """A loader for values from the command line, in which `#` does not begin a comment.

    Anchors (`&name`) are accepted only within [] and {}.
    """

    def peek(self, index: int = 0) -> str:
        """Returns the character `index` places ahead, but "x" in place of `#`, so that no comment begins.

        PyYAML reads the text of the value with another method, `prefix`, so the text still contains the `#`.
        """
        character = super().peek(index)
        return "x" if character == "#" else character

    def fetch_anchor(self) -> None:
        """Raise a ScannerError for a YAML anchor (`&name`) outside [] and {}.

        In a single value, no alias could refer to such an anchor, so the `&` was meant as text.
        """
        if not self.flow_level:
            raise yaml.scanner.ScannerError(None, None, "found text that begins with &; quote it", self.get_mark())
        super().fetch_anchor()


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text if `_Loader` would otherwise read it as another type."""


_use_yaml_1_2_scalars(_Loader)
_use_yaml_1_2_scalars(_FastLoader)
_use_yaml_1_2_scalars(_Dumper)


def _text_on_one_line(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 or text != text.rstrip("\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text_on_one_line)


def read_yaml(text: str, name: str) -> Document:
    """Parse a YAML text. Raises ConfigError if the text is not valid; the message begins with `name`."""
    document = _read(_FastLoader if _is_plain(text) else _Loader, text, name)
    return Document(deepcopy(document.data), document.lines)


def read_value(text: str, name: str) -> Any:
    """Parse a value from the command line: YAML without comments. Raises ConfigError if it is not valid.

    The message begins with `name`.
    """
    return deepcopy(_read(_ValueLoader, text, name).data)


# Text with these may be accepted by libyaml but not by PyYAML's own parser, or may be read differently by the two.
_READ_DIFFERENTLY = re.compile(r"[\t?!|>\ufeff]|---")
_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n\r\x85\u2028\u2029]*", re.MULTILINE)


def _is_plain(text: str) -> bool:
    """Whether it is certain that libyaml reads the text as PyYAML's own parser does, and does not crash.

    Deeply nested lists and sections overflow the stack of libyaml, which crashes the process. So the text may have only
    a limited number of the things that begin a level of nesting: brackets, hyphens, and lines with more indentation.
    """
    if len(text) > 1_000_000:  # in a shorter text, indentation can increase from line to line at most 1,400 times
        return False
    # All brackets count, since what looks like a comment may stand within quotes: "a # ": [[[
    return sum(map(text.count, "[{-")) < 2_000 and not _READ_DIFFERENTLY.search(_COMMENT.sub("", text))


@lru_cache(maxsize=32)  # PyYAML's own parser takes 20 ms for the settings of a run, which commands read several times
def _read(make_loader: type[Any], text: str, name: str) -> Document:
    if make_loader is _FastLoader:
        try:
            return _parsed(make_loader, text, name)
        except ConfigError:  # parse again, to report the error message of PyYAML's own parser
            make_loader = _Loader
    return _parsed(make_loader, text, name)


def _parsed(make_loader: type[Any], text: str, name: str) -> Document:
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
    """Returns advice to quote a file pattern if missing quotes caused the error, else `None`.

    To YAML, the `*` of `*.en.gz` begins an alias; within [] or {}, the `?` of `part-?.en` begins a key.
    """
    if isinstance(error, yaml.scanner.ScannerError) and error.context_mark:
        found = re.match(r"\*[^\s,\]}]*", text[error.context_mark.index :])
        return f"text that begins with * needs quotes, '{found[0]}'" if found else None
    if isinstance(error, yaml.parser.ParserError) and error.problem_mark:
        # Within [] and {}, the characters ?, { and [ are special even in the middle of a word.
        start = re.search(r"[^\s,\[\]{}]*$", text[: error.problem_mark.index])
        found = re.match(r"[?{\[][^\s,]*", text[error.problem_mark.index :])
        if start and start[0] and found:
            return f"{error.problem}; text with {found[0][0]} in it needs quotes"
    return None


def _build(loader: Any, node: yaml.Node, keys: Keys, lines: dict[Keys, int], name: str) -> Any:
    lines.setdefault(keys, node.start_mark.line + 1)
    if len(lines) > MOST_VALUES:
        raise ConfigError(f"{name}: more than {MOST_VALUES:,} values; do its aliases repeat each other?")
    if isinstance(node, yaml.MappingNode):
        return dict(_build_pairs(loader, node, keys, lines, name))
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*keys, i), lines, name) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (LookupError, AttributeError):  # the text does not fit its tag, such as !!int
        kind = node.tag.rpartition(":")[2]
        raise ConfigError(f"{name}:{node.start_mark.line + 1}: not valid YAML: found text that is no {kind}") from None


def _build_pairs(
    loader: Any, node: yaml.MappingNode, keys: Keys, lines: dict[Keys, int], name: str
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
    """Returns the value as one line of YAML, without a newline; when read again, it gives an equal value."""
    key = repr(value)  # in which 1, 1.0, True and "1" differ
    if key not in _WRITTEN:
        if len(_WRITTEN) >= 1024:
            _WRITTEN.clear()
        _WRITTEN[key] = _dumped(value)
    return _WRITTEN[key]


_WRITTEN: dict[str, str] = {}  # by the repr of a value; PyYAML is slow, and settings are written again and again


def _dumped(value: Any) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


# Sections.

# Tags by which pydantic distinguishes the forms that a setting may have.
# One value for both sides, or one value for each side:
FOR_BOTH, FOR_EACH = ("one for both sides", "one for each side")
# One file, or a list of files:
ONE_FILE, MANY_FILES = ("one file", "several files")
# A number, or the word "auto", which mtkit replaces by a number:
NUMBER, AUTO = ("a number", "auto")

FORMS = (FOR_BOTH, FOR_EACH, ONE_FILE, MANY_FILES, NUMBER, AUTO)


def form_of(value: object) -> str:
    """Returns "one for each side" if the value is a mapping or section, else "one for both sides"."""
    return FOR_EACH if isinstance(value, dict | BaseModel) else FOR_BOTH


def number_or_auto(value: object) -> str:
    """Returns "auto" if the value is "auto", else "a number"."""
    return AUTO if value == "auto" else NUMBER


def number_of_files(value: object) -> str:
    """Returns "several files" if the value is a list or tuple, else "one file"."""
    return MANY_FILES if isinstance(value, list | tuple) else ONE_FILE


class Section(BaseModel):
    """Base class of a group of settings; a group is immutable, is strict about types, and rejects unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def paths_may_begin_at_home(cls, value: object) -> object:
        """Expand `~` or `~name` at the beginning of a path to a home folder.

        Raises ValueError if it is not known where the home folder is.
        """
        if isinstance(value, tuple):
            return tuple(map(_expanded, value))
        return _expanded(value)

    def first_changed(self, *names: str) -> str | None:
        """Returns the first of the settings `names` that differs from its default, as text such as "beam_size 4".

        Returns `None` if all have their defaults. Checks use this method to reject settings that have no effect. They
        must not reject default values: a printed config contains all settings, and must be valid when loaded again.
        """
        changed = (name for name in names if getattr(self, name) != type(self).model_fields[name].default)
        return next((f"{name} {write_yaml(self.model_dump(mode='json')[name])}" for name in changed), None)


# The validation context for settings that will be completed later by the model that training.start_from names.
INCOMPLETE = {"incomplete": True}


def is_incomplete(info: ValidationInfo) -> bool:
    """Whether settings that are not given will be taken later from the model named by `training.start_from`."""
    return info.context == INCOMPLETE


class CarriedSection(Section):
    """A section whose missing settings are taken from the model that `training.start_from` names, if it names one.

    In that case, the settings are checked for compatibility only once all of them are known.
    """

    @model_validator(mode="after")
    def settings_fit(self, info: ValidationInfo) -> Self:
        """Call `check`, unless some settings are still to be taken from another model."""
        if not is_incomplete(info):
            self.check()
        return self

    def check(self) -> None:
        """Raise ValueError if settings of this section are incompatible; subclasses override this method."""


def _expanded(value: object) -> object:
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError(f"found {value}, but it is not known where the home folder {value.parts[0]} is") from None
