"""The format of experiment files."""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from mtkit.config.section import Section, write_yaml
from mtkit.errors import ConfigError

Size = Literal["toy", "small", "full"]
SIZES: tuple[Size, ...] = get_args(Size)
Changes = dict[str, Any]  # settings that differ, nested as in a settings file


class Prediction(Section):
    """A prediction that is made only under a condition; the verdict may name this condition."""

    condition: str = Field(alias="if", min_length=1, description="The condition, in words.")
    expression: str = Field(alias="then", description="What is expected under it.")


class Picture(Section):
    """What the page draws."""

    kind: Literal["bars", "lines", "table"] = Field("bars", description="A bar or a line for each variant.")
    y: str = Field(description="A measure, or the name of a board.")
    x: str = Field("update", description="Of lines: update, length or joined.")


class CardFile(Section):
    """An experiment file as it is written."""

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
    """Returns the experiment in the YAML data of the file `where`. Raises ConfigError with a line for each mistake."""
    try:
        return CardFile.model_validate_json(json.dumps(data), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _messages(error, data))) from None


def _messages(error: Exception, data: Changes) -> Iterator[str]:
    """Messages for mistakes in the format."""
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    seen = set()
    for problem in error.errors(include_url=False):
        # pydantic names the forms that an item may have; only keys and numbers of items are told.
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
    """All keys in nested data."""
    if isinstance(data, dict):
        return {*data, *(key for value in data.values() for key in _keys_of(value))}
    return {key for item in data for key in _keys_of(item)} if isinstance(data, list) else set()
