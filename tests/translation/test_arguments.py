"""What callers from Python give wrong is told in one line that says what was found and what is wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mtkit
from mtkit.errors import MtkitError
from mtkit.translation.translator import Translator

LIST = "wants a list of lines; give it [line] for a single one"
LINE = "wants a str"
COUNT = "wants a whole number, at least 1"
SETTINGS = 'wants a list of settings such as ["decoding.beam_size=1"]'
PATH = "wants the path of a model, a str or a Path"


@pytest.fixture(scope="module")
def translator(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run, ["decoding.beam_size=2", "device=cpu"])


def told(call: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


LINES = [
    ("one", f"str 'one', {LIST}"),
    (b"one", f"bytes b'one', {LIST}"),
    (None, f"None, {LIST}"),
    (3, f"int 3, {LIST}"),
    (Path("one"), f"PosixPath PosixPath('one'), {LIST}"),
]
ITEMS = [
    (["one", None], f"item 2 is None, {LINE}"),
    ([b"one"], f"item 1 is bytes b'one', {LINE}"),
    ([["one"]], f"item 1 is list ['one'], {LINE}"),
    ([1.5], f"item 1 is float 1.5, {LINE}"),
    ((text for text in ("one", 2)), f"item 2 is int 2, {LINE}"),
]


@pytest.mark.parametrize(("lines", "problem"), LINES)
def test_what_is_no_list_of_lines_is_refused_everywhere(translator: Translator, lines: Any, problem: str) -> None:
    assert told(lambda: translator.translate(lines), TypeError) == f"lines: found {problem}"
    assert told(lambda: translator.translate_lines(lines), TypeError) == f"lines: found {problem}"
    assert told(lambda: translator.score(lines, ["1"]), TypeError) == f"sources: found {problem}"
    assert told(lambda: translator.score(["one"], lines), TypeError) == f"targets: found {problem}"
    assert told(lambda: translator.score_lines(lines), TypeError).startswith(f"pairs: found {problem.split(',')[0]}")
    if lines is not None:
        assert told(lambda: translator.translate(["one"], lines), TypeError) == f"prefixes: found {problem}"


@pytest.mark.parametrize(("lines", "problem"), ITEMS)
def test_an_item_that_is_no_line_is_named(translator: Translator, lines: Any, problem: str) -> None:
    lines = list(lines)
    assert told(lambda: translator.translate(lines), TypeError) == f"lines: {problem}"
    assert told(lambda: list(translator.translate_lines(iter(lines))), TypeError) == f"lines: {problem}"
    assert told(lambda: translator.translate(["one"] * len(lines), lines), TypeError) == f"prefixes: {problem}"
    assert told(lambda: translator.score(lines, ["1"] * len(lines)), TypeError) == f"sources: {problem}"
    assert told(lambda: translator.score(["one"] * len(lines), lines), TypeError) == f"targets: {problem}"


@pytest.mark.parametrize("pair", ["ab", ("one",), ("one", None), ("one", "1", "2"), None, 3])
def test_an_item_that_is_no_pair_is_named(translator: Translator, pair: Any) -> None:
    message = told(lambda: list(translator.score_lines([("one", "1"), pair])), TypeError)
    assert message.startswith("pairs: item 2 is ")
    assert message.endswith(", wants a source and a translation, both str")


def test_a_number_of_translations_is_a_whole_one_at_least_1(translator: Translator) -> None:
    for number in (0, -1):
        message = told(lambda n=number: translator.translate_lines(["one"], num_best=n), MtkitError)  # type: ignore[misc]
        assert message == f"num_best: found {number}, {COUNT}"
    for value, shown in ((None, "None"), ("2", "str '2'"), (1.5, "float 1.5"), (True, "True")):
        message = told(lambda v=value: translator.translate_lines(["one"], num_best=v), TypeError)  # type: ignore[misc]
        assert message == f"num_best: found {shown}, {COUNT}"
    [line] = translator.translate_lines(["one"], num_best=np.int64(2))  # type: ignore[arg-type]
    assert len(line.translations) == 2


def test_a_tag_is_a_text(translator: Translator) -> None:
    for call in (translator.translate, lambda lines, tag: translator.score(lines, lines, tag)):
        assert told(lambda c=call: c(["one"], tag=3), TypeError) == "tag: found int 3, wants a str such as '<2de>'"


def test_lines_may_come_from_anything_that_gives_texts(translator: Translator) -> None:
    wanted = translator.translate(["one two", "three"])
    lines = ["one two", "three"]
    for given in (tuple(lines), iter(lines), (line for line in lines), dict.fromkeys(lines), np.array(lines)):
        assert translator.translate(given) == wanted
    scores = translator.score(lines, wanted)
    assert translator.score(iter(lines), (line for line in wanted)) == scores
    assert list(translator.score_lines([list(pair) for pair in zip(lines, wanted, strict=True)])) == scores  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "kind", "problem"),
    [
        ({"path": None}, TypeError, f"path: found None, {PATH}"),
        ({"path": b"run"}, TypeError, f"path: found bytes b'run', {PATH}"),
        ({"overrides": "device=cpu"}, TypeError, f"overrides: found str 'device=cpu', {SETTINGS}"),
        ({"overrides": None}, TypeError, f"overrides: found None, {SETTINGS}"),
        ({"overrides": [("device", "cpu")]}, TypeError, f"overrides: found tuple ('device', 'cpu') in it, {SETTINGS}"),
        ({"ensemble": "run"}, TypeError, "ensemble: found str 'run', wants a list of paths of models"),
        ({"ensemble": [None]}, TypeError, f"ensemble: found None, {PATH}"),
        (
            {"precision": "fp8"},
            MtkitError,
            "precision: found str 'fp8', wants one of fp32, bf16, fp16, int8, auto, fp64",
        ),
        ({"precision": None}, MtkitError, "precision: found None, wants one of fp32, bf16, fp16, int8, auto, fp64"),
    ],
)
def test_load_tells_what_it_wants(tiny_run: Path, arguments: dict[str, Any], kind: Any, problem: str) -> None:
    assert told(lambda: mtkit.load(**{"path": tiny_run, **arguments}), kind) == problem
