"""What people get wrong: each mistake ends with exit code 1 and exactly the lines that say how to mend it."""

import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtkit.cli import main
from mtkit.config.settings import config_text
from mtkit.files import only_writer
from mtkit.models.registry import AVAILABLE
from tests.conftest import CorpusFiles, config_with, toy_settings


@dataclass(frozen=True)
class Place:
    """A corpus, a recipe and, where `trained`, a run that may be spoilt."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def run(self) -> Path:
        return self.root / "run"

    def write_recipe(self, **sections: Any) -> None:
        """The tiny settings with these over them; the corpus is the one that lies here."""
        settings = toy_settings(CorpusFiles(self.root), self.run)
        self.recipe.write_text(config_text(config_with(settings, **sections)), encoding="utf-8")


@pytest.fixture
def place(corpus_files: CorpusFiles, tmp_path: Path) -> Place:
    """The toy corpus and its recipe, nothing trained."""
    shutil.copytree(corpus_files.root, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path)
    place.write_recipe()
    return place


@pytest.fixture
def trained(place: Place, tiny_run: Path) -> Place:
    """The same with a run that has been trained by it."""
    shutil.copytree(tiny_run, place.run)
    return place


Told = Callable[..., list[str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Told:
    """What `mtkit ARGUMENTS` says when it fails: its lines without the mark that all of them must have."""

    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one two\n")))
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfdbinary.readouterr()
        assert (end.value.code, out) == (1, b"")
        *before, last = error.decode().splitlines()
        # Reports of stages that went well may come before, but nothing after, and no second complaint.
        assert not [line for line in before if "Traceback" in line or line.startswith("mtkit: ")]
        assert last.startswith("mtkit: error: ")
        return [last.removeprefix("mtkit: error: ")]

    return run


def test_a_misspelt_key_in_the_recipe(place: Place, told: Told) -> None:
    place.recipe.write_text("training:\n  learnign_rate: 0.1\n")
    assert told("run", place.recipe) == [
        f"{place.recipe}:2: unknown key 'training.learnign_rate'; did you mean 'learning_rate'?"
    ]


def test_a_misspelt_key_on_the_command_line(place: Place, told: Told) -> None:
    assert told("train", place.recipe, "training.max_stesp=3") == [
        "training.max_stesp=3: unknown key 'training.max_stesp'; did you mean 'max_steps'?"
    ]


def test_a_recipe_that_is_not_there(place: Place, told: Told) -> None:
    path = place.root / "recipes.yaml"
    assert told("run", path) == [f"{path}: no such file; wants a YAML file of settings"]
    assert told("run", place.root) == [f"{place.root}: found a folder, wants a YAML file of settings"]


@pytest.mark.parametrize("name", ["train.src", "valid.tgt", "test.src"])
def test_a_corpus_that_is_not_there(place: Place, told: Told, name: str) -> None:
    (place.root / name).unlink()
    where = f"relative paths start from data.root, {place.root}"
    assert told("run", place.recipe) == [f"{place.root / name}: no such file; {where}"]
    assert not (place.run / "checkpoints").exists()


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_corpora_of_unequal_length(place: Place, told: Told, name: str) -> None:
    source, target = place.root / f"{name}.src", place.root / f"{name}.tgt"
    num_lines = target.read_bytes().count(b"\n")
    target.write_bytes(target.read_bytes() + b"one more\n")
    assert told("run", place.recipe) == [
        f"{source} has {num_lines:,} lines but {target} has {num_lines + 1:,}; line n must translate line n"
    ]
    assert not (place.run / "checkpoints").exists()


def test_an_empty_corpus(place: Place, told: Told) -> None:
    for side in ("src", "tgt"):
        (place.root / f"train.{side}").write_bytes(b"")
    [line] = told("run", place.recipe)
    assert "empty" in line


def test_no_corpus(place: Place, told: Told) -> None:
    assert told("run", place.recipe, "data.train=[]") == [
        "data.train is empty; list at least one {source: FILE, target: FILE}"
    ]


def test_text_that_is_not_utf8(place: Place, told: Told) -> None:
    path = place.root / "train.src"
    path.write_bytes(b"one \xe9\n" + path.read_bytes().split(b"\n", 1)[1])
    assert told("binarize", place.recipe) == [
        f"{path}:1: not valid UTF-8 (byte 0xe9 at column 5); convert the file to UTF-8"
    ]


def test_a_beam_of_nothing(place: Place, told: Told, tiny_run: Path) -> None:
    assert told("run", place.recipe, "decoding.beam_size=0") == [
        "decoding.beam_size=0: found 0, wants a whole number, at least 1, at most 10000"
    ]
    assert told("translate", tiny_run, "--beam-size", "0") == [
        "decoding.beam_size=0: found 0, wants a whole number, at least 1, at most 10000"
    ]


def test_a_device_that_is_not_there(place: Place, told: Told, tiny_run: Path) -> None:
    missing = next(name for name in ("cuda", "mps") if not AVAILABLE[name]())
    for line in (
        told("translate", tiny_run, "--device", missing),
        told("evaluate", tiny_run, "--device", missing),
        told("train", place.recipe, f"device={missing}"),
    ):
        [text] = line
        assert text.startswith(f"device {missing}: none found on this machine; there is cpu")


@pytest.mark.parametrize("command", ["translate", "evaluate"])
def test_a_folder_that_is_no_model(place: Place, told: Told, command: str) -> None:
    assert told(command, place.root) == [f"{place.root}: not a model: it holds no bundle.json and no model/bundle.json"]
    missing = place.root / "none"
    assert told(command, missing) == [
        f"{missing}: no such directory; MODEL is a run directory, a checkpoint or a model bundle"
    ]


def test_text_to_translate_that_is_not_there(place: Place, told: Told, tiny_run: Path) -> None:
    assert told("translate", tiny_run, place.root / "none") == [f"{place.root / 'none'}: no such file"]
    out = place.root / "none" / "out"
    assert told("translate", tiny_run, place.root / "test.src", "-o", out) == [
        f"{out}: cannot be written: No such file or directory"
    ]
    assert told("evaluate", tiny_run, "--source", place.root / "none", "--reference", place.root / "test.tgt") == [
        f"{place.root / 'none'}: no such file"
    ]


def test_references_of_another_length(place: Place, told: Told, tiny_run: Path) -> None:
    source, reference = place.root / "test.src", place.root / "valid.tgt"
    reference.write_bytes(reference.read_bytes() + b"more\n")
    told_of = f"24 lines but {reference} has 25; line n must translate line n"
    assert told("evaluate", tiny_run, "--source", source, "--reference", reference) == [f"{source} has {told_of}"]
    assert told("evaluate", "--hypothesis", source, "--reference", reference) == [f"{source} has {told_of}"]


def test_a_test_set_that_is_not_there_is_told_before_the_first_is_translated(trained: Place, told: Told) -> None:
    corpus = CorpusFiles(trained.root)
    for side in ("src", "tgt"):  # once translated, it would be warned of
        (trained.root / f"long.{side}").write_text("one " * 100 + "\n")
    sets = {"long": corpus.pair("long"), "missing": corpus.pair("none")}
    settings = config_with(toy_settings(corpus, trained.run), data={"test": sets})
    (trained.run / "model" / "config.yaml").write_text(config_text(settings))
    where = f"relative paths start from data.root, {trained.root}"
    assert told("evaluate", trained.run, "--device", "cpu") == [f"{trained.root / 'none.src'}: no such file; {where}"]


def test_weights_that_are_cut_off(trained: Place, told: Told) -> None:
    path = trained.run / "model" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for command in (["translate", trained.run], ["evaluate", trained.run]):
        [line] = told(*command)
        assert line.startswith(f"{path}: ")
        assert line.endswith("the file is cut off or another model's, copy it again")


def test_data_that_is_cut_off(trained: Place, told: Told) -> None:
    path = max((trained.run / "data" / "train").rglob("*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-10])
    [line] = told("train", trained.recipe, "training.max_steps=601")
    assert str(path) in line


def test_the_tokenizer_of_another_run(trained: Place, told: Told) -> None:
    other = trained.root / "other"
    from mtkit.config.data_and_model_settings import TokenizerConfig
    from mtkit.text.tokenizer import train_tokenizer

    lines = ["quite another language", "with other words"] * 30
    train_tokenizer(lambda: lines, lambda: lines, TokenizerConfig(vocab_size=280), other)
    shutil.rmtree(trained.run / "model" / "tokenizer")
    shutil.copytree(other, trained.run / "model" / "tokenizer")
    assert told("translate", trained.run) == [
        f"{trained.run}/model/tokenizer: not the tokenizer that this model was trained with; copy the model again"
    ]
    for path in other.iterdir():
        shutil.copy(path, trained.run / "tokenizer" / path.name)
    [line] = told("train", trained.recipe, "training.max_steps=601")
    assert "tokenizer" in line


@pytest.mark.parametrize("command", ["train-tokenizer", "binarize", "train", "run"])
def test_a_second_training_of_the_same_run(place: Place, told: Told, command: str) -> None:
    with only_writer(place.run):
        [line] = told(command, place.recipe)
    assert line.startswith(f"{place.run}: in use by process ")
    assert line.endswith("; wait for it, or stop it, then start again")


def test_settings_that_change_on_the_way(trained: Place, told: Told) -> None:
    [line] = told("train", trained.recipe, "model.d_ff=32", "training.learning_rate=0.5")
    assert line.startswith(f"{trained.run}: cannot go on from step ")
    assert "model.d_ff was " in line
    assert "training.learning_rate was 0.01, is 0.5" in line
    assert "Change them back, give the run another name" in line
    assert line.endswith("or start anew with --fresh")


def test_a_corpus_that_changes_on_the_way(trained: Place, told: Told) -> None:
    for side in ("src", "tgt"):
        path = trained.root / f"train.{side}"
        path.write_bytes(path.read_bytes() + b"one more\n")
    [line] = told("train", trained.recipe)
    assert line.startswith(f"{trained.run}: cannot go on, since ")
    assert f"data.train: {trained.root}/train.src holds other text" in line
    assert "--fresh" in line
