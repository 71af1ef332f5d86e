"""A run whose training is not finished is a model: its best checkpoint so far, or any checkpoint by its path."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mtkit
from mtkit.bundle import opening
from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.info import info_json, info_of, info_text, pack
from mtkit.bundle.opening import (
    average_weights,
    checkpoint_steps,
    content_checksum,
    find_model,
    measured_weights,
    open_model,
    read_progress,
    read_weights,
    step_directory,
)
from mtkit.cli import _run
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, MtkitError
from mtkit.files import only_writer
from mtkit.pipeline import run_binarize, run_train
from mtkit.training import records as bundling
from mtkit.training.records import bundle
from mtkit.translation.stream import check
from mtkit.translation.translator import load_bundle
from tests.conftest import CorpusFiles, config_with, toy_settings, write_toy_corpus

LINES = ["one two three", "nine", ""]

TRAINING = {
    "batch_tokens": 96,
    "max_steps": 12,
    "warmup_steps": 4,
    "validate_every": 4,
    "save_every": 4,
    "validation_sentences": 5,
    "average_checkpoints": 1,
    "keep_checkpoints": 3,
}
MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 16}


def train_small(root: Path, **training: object) -> Path:
    """A finished run over a hundred pairs; of 12 updates unless told otherwise."""
    corpus = CorpusFiles(write_toy_corpus(root / "corpus", 120))
    settings = toy_settings(corpus, root / "run")
    run_train(
        config_with(settings, tokenizer={"vocab_size": 330}, model=MODEL, training={**TRAINING, **training}),
    )
    return root / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; not to be changed."""
    return train_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same run as a kill leaves it before the model is written; it may be changed."""
    return unfinished(finished, tmp_path / "run")


def unfinished(finished: Path, place: Path) -> Path:
    shutil.copytree(finished, place)
    shutil.rmtree(place / "model")
    (place / "trained.json").unlink()
    return place


def steps_of(run: Path) -> list[int]:
    return checkpoint_steps(run / "checkpoints")


def best_of(run: Path) -> tuple[int, float]:
    progress, _, _ = read_progress(run / "checkpoints", steps_of(run)[-1])
    return progress.best_step, progress.best_score


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rewrite(directory: Path, change: Callable[[Any], object]) -> None:
    """Change what a checkpoint says, with the checksum that belongs to it."""
    path = directory / "progress.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps({**content, "sha256": content_checksum(content)}), "utf-8")


def make_best(run: Path, best: int) -> None:
    """Let all checkpoints say that one is the best, or for 0 that none is."""
    said = {"best_step": best} if best else {"best_step": 0, "best_score": float("-inf")}
    for step in steps_of(run):
        rewrite(step_directory(run / "checkpoints", step), lambda content: content["progress"].update(said))


def refusal(path: Path) -> str:
    """The one line that loading ends with."""
    with pytest.raises(MtkitError) as error:
        mtkit.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Which weights.


def test_an_unfinished_run_translates_as_its_best_checkpoint_and_says_so(finished, run, capsys):
    step, score = best_of(run)
    translator = mtkit.load(run)
    assert capsys.readouterr().err == f"{run}: not finished; using step {step}, the best so far (BLEU {score:.2f})\n"
    assert translator.translate(LINES) == mtkit.load(finished).translate(LINES)
    assert same(open_model(run).weights(), open_bundle(finished).weights())
    assert capsys.readouterr().err == "", "of a finished run there is nothing to say"


def test_a_checkpoint_is_a_model_by_its_path(run, capsys):
    for step in steps_of(run):
        path = step_directory(run / "checkpoints", step)
        assert same(open_model(path).weights(), read_weights(run / "checkpoints", step))
        assert len(mtkit.load(path).translate(LINES)) == len(LINES)
    assert capsys.readouterr().err == ""


def test_where_no_checkpoint_is_validated_yet_the_newest_is_taken(run, capsys):
    make_best(run, 0)
    newest = steps_of(run)[-1]
    assert same(open_model(run).weights(), read_weights(run / "checkpoints", newest))
    mtkit.load(run)
    assert capsys.readouterr().err == f"{run}: not finished; using step {newest}, the newest (none is validated yet)\n"


def test_where_the_best_checkpoint_is_gone_the_newest_is_taken(run, capsys):
    newest = steps_of(run)[-1]
    make_best(run, 3)
    assert same(open_model(run).weights(), read_weights(run / "checkpoints", newest))
    mtkit.load(run)
    assert capsys.readouterr().err.endswith(f"using step {newest}, the newest (the best, step 3, is gone)\n")


@pytest.mark.parametrize(("select_by", "told"), [("loss", "nll {:.4f}"), ("chrf", "chrF {:.2f}")])
def test_what_the_best_one_is_best_at_is_told_by_its_name(tmp_path, capsys, select_by, told):
    run = unfinished(train_small(tmp_path, select_by=select_by, max_steps=4), tmp_path / "unfinished")
    _, score = best_of(run)
    capsys.readouterr()
    mtkit.load(run)
    assert f"the best so far ({told.format(abs(score))})" in capsys.readouterr().err


def test_the_moving_average_is_taken_where_validation_measures_it(tmp_path):
    run = unfinished(train_small(tmp_path, ema_decay=0.9, max_steps=4), tmp_path / "unfinished")
    step, _ = best_of(run)
    assert same(open_model(run).weights(), measured_weights(run / "checkpoints", step))
    assert not same(open_model(run).weights(), read_weights(run / "checkpoints", step))


def test_a_finished_model_is_taken_though_training_goes_on(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "trained.json").unlink()
    shutil.copytree(step_directory(run / "checkpoints", 12), step_directory(run / "checkpoints", 16))
    mtkit.load(run)
    assert capsys.readouterr().err == ""
    assert open_model(run).path == run / "model"
    assert "\n  since then    training has continued; its newest checkpoint is step 16\n" in info_text(info_of(run))
    assert info_json(info_of(run))["newest_step"] == 16
    assert "since then" not in info_text(info_of(finished))


# Commands.


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000008"])
def test_every_command_that_takes_a_model_takes_a_run_that_trains_and_a_checkpoint(run, place, tmp_path, capsys):
    (tmp_path / "source").write_text("one two\nthree\n")
    (tmp_path / "target").write_text("1 2\n3\n")
    pair = ["--source", f"{tmp_path / 'source'}"]
    model = run / place
    commands = [
        ["translate", model, tmp_path / "source"],
        ["score", model, *pair, "--target", tmp_path / "target"],
        ["evaluate", model, *pair, "--reference", tmp_path / "target"],
        ["evaluate", model],
        ["info", model],
        ["info", model, "--json"],
        ["check", model],
        ["pack", model, tmp_path / "packed.mtkit"],
        ["translate", tmp_path / "packed.mtkit", tmp_path / "source"],
        ["check", tmp_path / "packed.mtkit"],
        ["export", model, "--to", "ctranslate2", "-o", tmp_path / "exported"],
        ["extend", model, "--piece", "Ĝ", "-o", tmp_path / "extended"],
        ["plot", "attention", model, "--source", "one two", "-o", tmp_path / "attention.png"],
    ]
    with only_writer(run):
        for command in commands:
            assert _run(list(map(str, command))) == 0, (command, capsys.readouterr().err)


def test_info_tells_that_training_was_not_finished(run):
    step, score = best_of(run)
    told = info_text(info_of(run))
    assert f"\n  model         {run / 'checkpoints'}/step-{step:08d}\n" in told
    assert "\n  format        a checkpoint, written by mtkit " in told
    assert f"\n  training      {step} updates in " in told
    assert "minutes; training was not finished\n" in told
    assert f"\n  weights       those after update {step}, the best so far (BLEU {score:.2f})" in told
    named = info_text(info_of(step_directory(run / "checkpoints", 8)))
    assert named.endswith("\n  weights       those after update 8")
    content = json.loads(json.dumps(info_json(info_of(run))))
    assert content["checkpoint"] is True
    assert content["training"]["data"]["num_pairs"] == 120


# Where a checkpoint may lie, and how it may be named.


def test_a_checkpoint_may_be_named_by_a_link_or_from_where_it_lies(run, tmp_path, monkeypatch):
    wanted = read_weights(run / "checkpoints", 8)
    (tmp_path / "best").symlink_to(step_directory(run / "checkpoints", 8))
    assert same(open_model(tmp_path / "best").weights(), wanted)
    monkeypatch.chdir(run / "checkpoints")
    assert same(open_model(Path("step-00000008")).weights(), wanted)
    monkeypatch.chdir("step-00000008")
    assert same(open_model(Path()).weights(), wanted)
    assert same(open_model(Path("../step-00000008")).weights(), wanted)


def test_the_checkpoints_may_lie_on_another_disk_by_a_link(run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert same(open_model(run / "checkpoints" / "step-00000008").weights(), read_weights(tmp_path / "elsewhere", 8))
    assert open_model(run).path.parent == run / "checkpoints"
    assert refusal(tmp_path / "elsewhere" / "step-00000008") == (
        f"{tmp_path / 'elsewhere' / 'step-00000008'}: a checkpoint without its run, which has its tokenizer and its "
        "settings; name it where training wrote it, as RUN/checkpoints/step-…"
    )


def test_a_checkpoint_that_is_being_replaced_is_found_where_it_stands_meanwhile(run):
    for step in steps_of(run)[:-1]:
        shutil.rmtree(step_directory(run / "checkpoints", step))
    [newest] = steps_of(run)
    directory = step_directory(run / "checkpoints", newest)
    wanted = read_weights(run / "checkpoints", newest)
    directory.rename(directory.with_name(f".{directory.name}.old"))
    assert same(open_model(run).weights(), wanted)
    assert same(open_model(directory).weights(), wanted)


def test_whatever_else_lies_among_the_checkpoints_is_no_checkpoint(run):
    step, _ = best_of(run)
    best, checkpoints = step_directory(run / "checkpoints", step), run / "checkpoints"
    for name in ("step-best-of-may", "step-00000020.bak", "step-99", "step-", "step-000000099", "step-0000009x"):
        shutil.copytree(best, checkpoints / name)
    (checkpoints / "step-00000099.tar").write_bytes(b"a tar")
    (checkpoints / "step-00000098").write_bytes(b"a file")
    (checkpoints / "step-00000097").mkdir()
    assert open_model(run).path == best
    assert open_model(checkpoints / "step-00000020.bak").weights(), "but by its own path it may be used"


# What is no model.


@pytest.mark.parametrize("names", [[".lock"], ["tokenizer/provenance.json"], ["run.json", "data/"], ["checkpoints/"]])
def test_before_the_first_checkpoint_there_is_one_message(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("{}")
    assert refusal(tmp_path) == f"{tmp_path}: training has not found a first model yet; go on with mtkit train"
    assert _run(["info", str(tmp_path)]) == 1


def test_a_run_that_is_only_prepared_has_not_found_a_model_yet(make_config, tmp_path, capsys):
    config: Config = make_config()
    run_binarize(config)
    assert refusal(config.run_path).endswith(": training has not found a first model yet; go on with mtkit train")


def test_a_checkpoint_that_is_not_there_and_the_folder_of_all_are_told(run):
    checkpoints = run / "checkpoints"
    there = ", ".join(map(str, steps_of(run)))
    assert refusal(checkpoints / "step-00000099") == (
        f"{checkpoints / 'step-00000099'}: no such checkpoint; there are those of steps {there}"
    )
    assert refusal(checkpoints) == (
        f"{checkpoints}: holds checkpoints; name the run directory, or one of them, such as "
        f"{step_directory(checkpoints, steps_of(run)[-1])}"
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "progress.json"])
def test_a_changed_byte_of_a_checkpoint_is_noticed(run, name):
    path = run / "checkpoints" / "step-00000008" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert refusal(path.parent).startswith(f"{path}: damaged")


def test_a_missing_part_is_told(run):
    directory = run / "checkpoints" / "step-00000008"
    (directory / "weights.safetensors").unlink()
    assert refusal(directory) == f"{directory / 'weights.safetensors'}: missing; use another checkpoint"
    (run / "config.yaml").rename(run / "settings.yaml")
    assert refusal(run) == (
        f"{run / 'config.yaml'}: damaged or missing; it has the settings of the run: go on with mtkit train, which "
        "writes it"
    )


def test_the_tokenizer_must_be_that_of_the_checkpoint(run):
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(Path(__file__).parents[1] / "bundles" / "format-2" / "tokenizer", run / "tokenizer")
    assert refusal(run).startswith(f"{run / 'tokenizer'}: not the tokenizer that {run / 'checkpoints'}/step-")


def test_the_model_is_built_as_the_checkpoint_says_whatever_became_of_config_yaml(run):
    wanted = mtkit.load(run).translate(LINES)
    text = (run / "config.yaml").read_text("utf-8")
    assert "num_heads: 2" in text
    (run / "config.yaml").write_text(text.replace("num_heads: 2", "num_heads: 4"), "utf-8")
    assert mtkit.load(run).config.model.num_heads == 2
    assert mtkit.load(run).translate(LINES) == wanted


def test_a_checkpoint_of_an_earlier_version_does_not_know_all_settings(run):
    wanted = mtkit.load(run).translate(LINES)
    for step in steps_of(run):
        directory = step_directory(run / "checkpoints", step)
        rewrite(directory, lambda content: content["identity"]["model"].pop("layer_dropout"))
    assert mtkit.load(run).translate(LINES) == wanted


# While it is being trained.


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file was written, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def test_reading_a_run_writes_nothing_there_and_clears_nothing(run):
    leftovers = (".step-00000016.new", ".step-00000008.old", "step-00000020")
    for name in leftovers:
        shutil.copytree(run / "checkpoints" / "step-00000012", run / "checkpoints" / name)
    (run / "checkpoints" / "step-00000020" / "progress.json").unlink()
    (run / "data" / "train").rename(run / "data" / ".train.old")
    (run / "data" / "valid").rename(run / "data" / ".valid.old")
    before = state_of(run)
    mtkit.load(run).translate(LINES)
    info_of(run)
    mtkit.load(run / "checkpoints" / "step-00000012")
    assert state_of(run) == before


def test_a_checkpoint_that_is_deleted_once_it_is_open_goes_on_being_a_model(run):
    wanted = mtkit.load(run).translate(LINES)
    bundle = open_model(run)
    shutil.rmtree(run / "checkpoints")
    assert load_bundle(bundle).translate(LINES) == wanted


def deleted_once_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint that is chosen first is deleted before it is read."""
    choose, deleted = opening.best_step, []

    def choosing(run: Path) -> tuple[int, str]:
        step, choice = choose(run)
        if not deleted:
            deleted.append(step)
            shutil.rmtree(step_directory(run / "checkpoints", step))
        return step, choice

    monkeypatch.setattr(opening, "best_step", choosing)
    monkeypatch.setattr(bundling, "best_step", choosing)


def test_another_checkpoint_is_chosen_where_the_chosen_one_is_deleted_before_it_is_read(run, monkeypatch, capsys):
    make_best(run, 8)
    deleted_once_chosen(monkeypatch)
    mtkit.load(run)
    assert capsys.readouterr().err == f"{run}: not finished; using step 12, the newest (the best, step 8, is gone)\n"


@pytest.fixture
def changing(run: Path) -> Iterator[Path]:
    """A run whose checkpoints are written and deleted all the time, as training does, while the test goes on."""
    checkpoints, ended = run / "checkpoints", threading.Event()
    original = shutil.copytree(step_directory(checkpoints, best_of(run)[0]), run / "original")

    def count(counted: dict[str, int], content: Any) -> None:
        content["progress"].update(counted)

    def train() -> None:
        step = 12
        while not ended.wait(0.02):
            step += 1
            new, counted = checkpoints / f".step-{step:08d}.new", {"step": step, "best_step": step}
            shutil.copytree(original, new)
            rewrite(new, partial(count, counted))
            new.rename(step_directory(checkpoints, step))
            for old in steps_of(run)[:-2]:
                (step_directory(checkpoints, old) / "progress.json").unlink()
                shutil.rmtree(step_directory(checkpoints, old))

    thread = threading.Thread(target=train)
    thread.start()
    yield run
    ended.set()
    thread.join()


def test_a_model_is_found_however_fast_checkpoints_come_and_go(changing):
    steps: list[int] = []
    while len(steps) < 15 or len(set(steps)) == 1:  # on a busy machine, the next checkpoint may take long to come
        storage = find_model(changing)
        assert storage.view("weights.safetensors")
        steps.append(storage.step)


# A start for another training.


@pytest.fixture
def child(run: Path, tmp_path: Path) -> Callable[..., Config]:
    """Makes the settings of a run that starts from the unfinished one, or from another place."""

    def make(start_from: Path = run, **training: object) -> Config:
        corpus = CorpusFiles(tmp_path / "corpus")
        if not corpus.root.exists():
            write_toy_corpus(corpus.root, 120)
        settings = toy_settings(corpus, tmp_path / "child")
        del settings["tokenizer"], settings["model"]
        training = {**TRAINING, "max_steps": 8, "start_from": str(start_from), **training}
        return config_with(settings, training=training)

    return make


def begun_from(config: Config) -> str:
    """What the newest checkpoint notes of its start."""
    checkpoints = config.run_path / "checkpoints"
    _, identity, _ = read_progress(checkpoints, checkpoint_steps(checkpoints)[-1])
    return str(identity["training"]["start_from"])


def checksum(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_training_starts_from_the_best_checkpoint_of_an_unfinished_run(run, child, capsys):
    step, _ = best_of(run)
    path = step_directory(run / "checkpoints", step)
    run_train(child())
    told = capsys.readouterr().err
    assert f"tokenizer: copied from {run / 'tokenizer'}; " in told
    assert f"starting from the weights of {path}\n" in told
    assert (
        begun_from(child()) == f"{checksum(path / 'weights.safetensors')}, step {step} of a run that was not finished"
    )
    assert open_bundle(child().run_path).description["training"]["start_from"] == begun_from(child())
    assert child().model.d_model != 16
    assert open_bundle(child().run_path).config.model.d_model == 16


def test_a_training_starts_from_a_checkpoint_by_its_path(run, child):
    path = step_directory(run / "checkpoints", 4)
    run_train(child(path))
    assert begun_from(child()) == checksum(path / "weights.safetensors")


@pytest.mark.parametrize("became", ["better", "gone", "finished", "elsewhere"])
def test_it_goes_on_whatever_has_become_of_what_it_started_from(run, finished, child, became, capsys):
    run_train(child(max_steps=4))
    noted = begun_from(child())
    if became == "better":
        make_best(run, 4 if best_of(run)[0] != 4 else 8)
    elif became == "gone":
        shutil.rmtree(run / "checkpoints")
    elif became == "finished":
        shutil.rmtree(run)
        shutil.copytree(finished, run)
        weights = run / "model" / "weights.safetensors"
        shutil.copy(run / "checkpoints" / "step-00000004" / "weights.safetensors", weights)
    else:
        run.rename(run.with_name("moved"))
    run_train(child(max_steps=8))
    assert checkpoint_steps(child().run_path / "checkpoints")[-1] == 8
    assert begun_from(child()) == noted
    capsys.readouterr()
    run_train(child(max_steps=8))
    assert "is up to date" in capsys.readouterr().err


def test_a_run_and_its_own_checkpoints_are_no_start_for_itself(run, child, tmp_path, capsys):
    own = child().model_copy(update={"run_dir": run})
    before = state_of(run / "checkpoints")
    for link in (False, True):
        if link:
            (run / "checkpoints").rename(tmp_path / "elsewhere")
            (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
        for path in (run, step_directory(run / "checkpoints", 8)):
            for fresh in (False, True):
                training = own.training.model_copy(update={"start_from": path})
                with pytest.raises(ConfigError, match="is this run itself; give the run another name"):
                    run_train(own.model_copy(update={"training": training}), fresh)
    assert state_of(tmp_path / "elsewhere") == before


# mtkit bundle.


def test_a_bundle_of_the_best_checkpoint_is_what_training_would_write(run, finished, capsys):
    step, score = best_of(run)
    told = bundle(run)
    place = run / "bundles" / f"step-{step:08d}"
    assert told == f"model: {place}: those after update {step}, the best so far (BLEU {score:.2f})"
    written, wanted = open_bundle(place), open_bundle(finished)
    assert same(written.weights(), wanted.weights())
    assert written.canaries() == wanted.canaries()
    assert written.config == wanted.config
    assert written.description["training"]["data"] == wanted.description["training"]["data"]
    assert check(place).faults == []


def test_the_card_and_info_of_a_bundle_tell_that_training_was_not_finished(run):
    step, score = best_of(run)
    other = next(each for each in steps_of(run) if each != step)
    bundle(run)
    bundle(run, str(other))
    best, named = (run / "bundles" / f"step-{number:08d}" for number in (step, other))
    card = (best / "README.md").read_text("utf-8")
    assert f"the weights are those after update {step}, the best so far (BLEU {score:.2f}). Training was not " in card
    assert "minutes; training was not finished\n" in info_text(info_of(best))
    card = (named / "README.md").read_text("utf-8")
    assert f"\n{other} updates in " in card
    assert f"minutes; the weights are those after update {other}. Training was not finished. All settings" in card
    assert same(open_bundle(named).weights(), read_weights(run / "checkpoints", other))


def test_of_a_finished_run_a_bundle_can_be_made_of_any_step(finished, tmp_path):
    bundle(finished, "8", tmp_path / "eight")
    assert same(open_bundle(tmp_path / "eight").weights(), read_weights(finished / "checkpoints", 8))
    card = (tmp_path / "eight" / "README.md").read_text("utf-8")
    assert "the weights are those after update 8. All settings" in card


def test_a_bundle_of_the_average_is_what_training_would_try_at_its_end(tmp_path):
    run = unfinished(train_small(tmp_path, average_checkpoints=3, select_by="loss"), tmp_path / "unfinished")
    best, score = best_of(run)
    steps = [step for step in (4, 8, 12) if step <= best]
    assert len(steps) > 1
    shutil.copytree(step_directory(run / "checkpoints", 4), step_directory(run / "checkpoints", 5))
    shown = ", ".join(map(str, steps))
    assert bundle(run, "average") == (
        f"model: {run / 'bundles' / 'average'}: the average of those after updates {shown}, which ends at the best so "
        f"far (nll {-score:.4f})"
    )
    written = open_bundle(run / "bundles" / "average")
    assert same(written.weights(), average_weights(run / "checkpoints", steps))
    assert written.description["training"]["averaged_steps"] == steps


def test_making_a_bundle_while_training_goes_on_touches_nothing_of_the_run(run):
    before = state_of(run)
    with only_writer(run):
        locked = state_of(run)
        bundle(run)
        bundle(run, "average")
        shutil.rmtree(run / "bundles")
        found = state_of(run)
    assert found == locked
    assert before.keys() == found.keys()


def test_a_bundle_is_made_of_another_checkpoint_where_the_chosen_one_is_deleted(run, monkeypatch):
    make_best(run, 8)
    deleted_once_chosen(monkeypatch)
    assert bundle(run).endswith("step-00000012: those after update 12, the newest (the best, step 8, is gone)")


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("7", "{run}: has no checkpoint of step 7; there are those of steps 4, 8, 12"),
        ("0", "{run}: has no checkpoint of step 0; there are those of steps 4, 8, 12"),
        ("newest", "--step: found newest, wants a step such as 1000, best or average"),
        ("9" * 5000, f"--step: found {'9' * 5000}, wants a step such as 1000, best or average"),
        ("-8", "--step: found -8, wants a step such as 1000, best or average"),
        ("", "--step: found , wants a step such as 1000, best or average"),
    ],
)
def test_a_step_that_is_not_there_is_told_with_those_that_are(run, capsys, step, told):
    assert _run(["bundle", str(run), f"--step={step}"]) == 1
    assert capsys.readouterr().err == f"mtkit: error: {told.format(run=run)}\n"
    assert not (run / "bundles").exists()


def test_what_is_no_run_with_checkpoints_gets_no_bundle(run, finished, tmp_path, capsys):
    pack(finished, tmp_path / "packed.mtkit")
    emptied = Path(shutil.copytree(finished, tmp_path / "emptied"))
    shutil.rmtree(emptied / "checkpoints")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    step = run / "checkpoints" / "step-00000008"
    wanted = {
        tmp_path / "packed.mtkit": "is a bundle already; mtkit bundle wants a run directory",
        finished / "model": "is a bundle already; mtkit bundle wants a run directory",
        step: "is a checkpoint; name its run directory, and the step by --step",
        emptied: f"has no checkpoints any more, only its finished model, {emptied / 'model'}",
        tmp_path / "begun": "training has not found a first model yet; go on with mtkit train",
        tmp_path / "none": "no such directory; MODEL is a run directory, a checkpoint or a model bundle",
    }
    for path, told in wanted.items():
        assert _run(["bundle", str(path), "-o", str(tmp_path / "new")]) == 1
        assert capsys.readouterr().err == f"mtkit: error: {path}: {told}\n"
    assert not (tmp_path / "new").exists()


def test_a_bundle_replaces_a_bundle_and_nothing_else(run, finished, tmp_path, capsys):
    kept = Path(shutil.copytree(finished, tmp_path / "kept"))
    before = state_of(kept)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes", kept, kept / "data"):
        assert _run(["bundle", str(kept), "-o", str(target)]) == 1
        assert (
            capsys.readouterr().err == f"mtkit: error: {target}: is there already and is no bundle; name a new folder\n"
        )
    for target in (kept / "model", kept / "checkpoints", kept / "checkpoints" / "best", kept / "model" / "new"):
        assert _run(["bundle", str(kept), "-o", str(target)]) == 1
        assert capsys.readouterr().err == f"mtkit: error: {target}: is where training writes; name a folder elsewhere\n"
    assert state_of(kept) == before
    for step in ("4", "8"):
        assert _run(["bundle", str(run), "--step", step, "-o", str(tmp_path / "new")]) == 0
        assert capsys.readouterr().err == f"model: {tmp_path / 'new'}: those after update {step}\n"
    assert same(open_bundle(tmp_path / "new").weights(), read_weights(run / "checkpoints", 8))


@pytest.mark.parametrize("stage", ["tokenizer", "data", "first updates"])
def test_every_command_says_the_same_of_a_run_without_a_model(run, stage, tmp_path, capsys):
    young = shutil.copytree(run, tmp_path / "young")
    gone = ["checkpoints", "model", "trained.json", "translations"]
    gone += [] if stage == "first updates" else ["log.jsonl", "run.json", "config.yaml"]
    gone += ["data"] if stage == "tokenizer" else []
    for name in gone:
        if (young / name).is_dir():
            shutil.rmtree(young / name)
        else:
            (young / name).unlink(missing_ok=True)
    (tmp_path / "source").write_text("one two\n")
    pair = ["--source", tmp_path / "source"]
    commands = [
        ["translate", young, tmp_path / "source"],
        ["score", young, *pair, "--target", tmp_path / "source"],
        ["evaluate", young],
        ["info", young],
        ["check", young],
        ["bundle", young],
        ["pack", young, tmp_path / "packed.mtkit"],
        ["export", young, "--to", "ctranslate2", "-o", tmp_path / "exported"],
        ["extend", young, "--piece", "Ĝ", "-o", tmp_path / "extended"],
        ["plot", "attention", young, "--source", "one two", "-o", tmp_path / "attention.png"],
    ]
    if stage != "first updates":  # whose log and settings are there
        commands += [["plot", "training", young, "-o", tmp_path / "training.png"], ["verify", young]]
    for command in commands:
        assert _run(list(map(str, command))) == 1, command
        message = f"mtkit: error: {young}: training has not found a first model yet; go on with mtkit train\n"
        assert capsys.readouterr().err == message, command
