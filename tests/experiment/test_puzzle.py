"""Puzzles: the seed alone decides the fault, the page does not say it, and an answer can be checked."""

import re

import pytest

from mtkit.cli import _run
from mtkit.config.load import config_from_data
from mtkit.errors import ConfigError
from mtkit.experiment import page as puzzles
from mtkit.experiment.page import FAULTS, answered, fault_of, puzzle
from mtkit.experiment.run import merged
from tests.evaluation.reading import Reader

pytestmark = pytest.mark.usefixtures("quiet")


def test_every_fault_comes_up_and_is_settings_that_exist(folder):
    assert {fault_of(seed) for seed in range(60)} == set(FAULTS)
    base = folder.cards[0].settings("toy")
    for name, fault in FAULTS.items():
        changed = config_from_data(merged(base, fault.changes), name)
        assert fault.turns_source or name == "no fault" or changed != config_from_data(base, name)


def test_an_answer_is_checked_without_training(capsys):
    name = fault_of(7)
    assert answered(7, name).startswith(f"Yes, {name}.")
    other = next(other for other in FAULTS if other != name)
    assert answered(7, other).startswith("No, it is not that.")
    assert name not in answered(7, other)
    assert _run(["experiment", "puzzle", "--seed", "7", "--answer", name]) == 0
    assert capsys.readouterr().out.startswith("Yes")
    assert _run(["experiment", "puzzle", "--seed", "7", "--answer", "bad luck"]) == 1
    assert "--answer: found bad luck, wants one of no fault," in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wrong source", "no mask"])
def test_the_page_has_pictures_and_does_not_say_the_fault(folder, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(puzzles, "fault_of", lambda seed: name)
    puzzle(folder.cards, 7, tmp_path / "results", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    reader = Reader(page)
    assert page.count("<svg") >= 5 + 3
    assert len(reader.tables["Test sentences"]) == 1 + puzzles.NUM_SENTENCES
    assert "ablate" not in page + capsys.readouterr().err
    assert "".join(reader.text).count(name) == 1  # in the list of all answers


def test_a_puzzle_wants_a_test_set(folder, tmp_path):
    base = (folder.path / "base.yaml").read_text("utf-8")
    folder.write("base.yaml", re.sub(r"test: \{toy: \{.*?\}\}", "test: {}", base))
    with pytest.raises(ConfigError, match=r"01-mask\.yaml: data\.test is missing; a puzzle wants a test set"):
        puzzle(folder.cards, 7, tmp_path / "results", tmp_path / "page.html")


def test_turned_sources_are_those_of_other_pairs(folder, tmp_path):
    config = puzzles._config(folder.cards, FAULTS["wrong source"], "demo", tmp_path / "run")
    [corpus] = config.data.train
    sources = corpus.source.read_text("utf-8").splitlines()
    targets = corpus.target.read_text("utf-8").splitlines()
    root = folder.cards[0].config("base", "toy", 1).data.root
    pairs = list(
        zip(*((root / f"train.{side}").read_text("utf-8").splitlines() for side in ("src", "tgt")), strict=True)
    )
    assert sorted(sources) == sorted(source for source, _ in pairs)
    assert not set(zip(sources, targets, strict=True)) & set(pairs)
