"""A fresh start costs nothing until the new run has a checkpoint; links and files of the user stay what they are."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from mtkit import pipeline
from mtkit.bundle.opening import checkpoint_steps
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError, DataError, MtkitError, StoppedError
from mtkit.files import require_folder
from mtkit.pipeline import run_all, run_binarize, run_tokenizer, run_train
from mtkit.training.checkpoint import MARKER, FreshStart, fresh_start
from mtkit.training.train import Trainer
from tests.runs import Killed, at_step, doing, done_once, interrupt, kill, with_settings


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory but its lock."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != ".lock"
    }


def missing_file(config: Config) -> Config:
    (config.data.root / "train.tgt").unlink()
    return config


def unequal_files(config: Config) -> Config:
    (config.data.root / "train.tgt").write_bytes(b"1 2\n")
    return config


def no_utf8(config: Config) -> Config:
    (config.data.root / "train.src").write_bytes(b"\xff\n" * 1500)
    return config


def bad_validation(config: Config) -> Config:
    (config.data.root / "valid.src").write_bytes(b"\n" * 24)
    return config


MISTAKES = {
    "vocabulary": lambda config: with_settings(config, "tokenizer.vocab_size=265"),
    "missing file": missing_file,
    "unequal files": unequal_files,
    "no UTF-8": no_utf8,
    "another folder": lambda config: with_settings(config, "data.root=/nowhere"),
    "no validation pair": bad_validation,
    "all too long": lambda config: with_settings(config, "data.max_length=1"),
    "start that is not there": lambda config: with_settings(config, "training.start_from=/nowhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("run", [run_train, run_all])
def test_a_mistake_costs_nothing_of_the_old_run(config, mistake, run):
    done_once(run_all, config)
    before = contents(config.run_path)
    wrong = MISTAKES[mistake](config)
    with pytest.raises((ConfigError, DataError, CheckpointError)):
        run(wrong, fresh=True)
    assert contents(config.run_path) == before


def test_the_finished_model_stays_until_the_new_one_takes_its_place(config):
    done_once(run_all, config)
    model = contents(config.run_path / "model")
    anew = with_settings(config, "training.seed=7")
    with doing(interrupt, Trainer, "_update", at_step(3)), pytest.raises(StoppedError):
        run_train(anew, fresh=True)
    assert contents(config.run_path / "model") == model
    assert checkpoint_steps(config.run_path / "checkpoints") == [2, 4]
    assert not list(config.run_path.rglob("*.before"))
    run_train(anew)
    assert contents(config.run_path / "model") != model


@pytest.mark.parametrize(
    ("owner", "name", "is_time"),
    [
        (FreshStart, "begin", lambda _: True),
        (pipeline, "_prepare_anew", lambda _: True),
        (pipeline, "binarize", lambda _: True),
        (Trainer, "__init__", lambda _: True),
        (Trainer, "_update", at_step(0)),
        (Trainer, "_update", at_step(1)),
        (Trainer, "_save", at_step(2)),
    ],
    ids=["begin", "prepare", "binarize", "trainer", "first update", "second update", "saving"],
)
@pytest.mark.parametrize("ends_in_order", [True, False], ids=["error", "kill"])
def test_an_end_before_the_first_checkpoint_brings_the_old_run_back(
    config, monkeypatch, owner, name, is_time, ends_in_order
):
    done_once(run_all, config)
    before = contents(config.run_path)
    anew = with_settings(config, "training.seed=7", "tokenizer.vocab_size=380")
    if not ends_in_order:  # nothing of the process tidies up
        monkeypatch.setattr("mtkit.training.checkpoint.settle_fresh", lambda run: None)
    with doing(kill, owner, name, is_time), pytest.raises(Killed):
        run_train(anew, fresh=True)
    monkeypatch.undo()
    assert (config.run_path / "model" / "bundle.json").exists()
    run_tokenizer(config)  # the next command that opens the run
    assert contents(config.run_path) == before


def test_a_kill_between_any_two_renames_of_a_fresh_start_loses_nothing(config, monkeypatch):
    done_once(run_all, config)
    before = contents(config.run_path)
    rename, calls = Path.rename, 0
    for last in range(1, 30):
        calls = 0

        def counted(self: Path, target: Path, last: int = last) -> Path:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return rename(self, target)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "rename", counted)
            patch.setattr("mtkit.training.checkpoint.settle_fresh", lambda run: None)
            with fresh_start(config.run_path) as start:
                start.put_aside("tokenizer", "data/train", "data/valid")
        ended = calls < last
        run_tokenizer(config)
        assert contents(config.run_path) == before
        if ended:
            break
    assert 8 < last < 29


def test_a_kill_after_the_new_checkpoint_leaves_the_new_run_alone(config, monkeypatch):
    done_once(run_all, config)
    anew = with_settings(config, "training.seed=7")
    monkeypatch.setattr("mtkit.training.checkpoint.settle_fresh", lambda run: None)
    with doing(kill, FreshStart, "keep_new", lambda _: True), pytest.raises(Killed):
        run_train(anew, fresh=True)
    monkeypatch.undo()
    assert (config.run_path / MARKER).exists()
    run_train(anew)
    assert not (config.run_path / MARKER).exists()
    assert not list(config.run_path.rglob("*.before"))
    assert load_config(config.run_path / "config.yaml").training.seed == 7


def test_a_fresh_start_makes_anew_what_is_damaged(config):
    done_once(run_all, config)
    (config.run_path / "tokenizer" / "tokenizer.model").write_bytes(b"damaged")
    (config.run_path / "data" / "train" / "source.tokens").write_bytes(b"")
    scores = run_all(config, fresh=True)
    assert (config.run_path / "tokenizer" / "tokenizer.model").read_bytes() != b"damaged"
    assert run_all(config) == scores


# A finished model whose checkpoints are gone.


@pytest.mark.parametrize("settings", [["training.seed=7"], ["training.max_steps=9"], ["model.dropout=0.3"]])
@pytest.mark.parametrize("run", [run_train, run_all])
def test_a_finished_model_without_checkpoints_is_not_trained_over(config, settings, run):
    done_once(run_all, config)
    shutil.rmtree(config.run_path / "checkpoints")
    before = contents(config.run_path)
    name = settings[0].partition("=")[0]
    with pytest.raises(CheckpointError, match=rf"finished model.*{name} was .*--fresh"):
        run(with_settings(config, *settings))
    assert contents(config.run_path) == before
    run(config)
    assert contents(config.run_path / "model") == {n[6:]: c for n, c in before.items() if n.startswith("model/")}


def test_a_finished_model_without_checkpoints_keeps_its_tokenizer_and_data(config):
    done_once(run_all, config)
    shutil.rmtree(config.run_path / "checkpoints")
    before = contents(config.run_path)
    for run in (run_tokenizer, run_binarize, run_train):
        with pytest.raises(DataError, match="changed since training began"):
            run(with_settings(config, "tokenizer.vocab_size=380"))
    assert contents(config.run_path) == before


# Links, and what the user keeps beside.


@pytest.mark.parametrize(
    "names",
    [["checkpoints", "model", "tokenizer", "data/train", "tensorboard", "translations"], ["data"]],
    ids=" ".join,
)
def test_links_to_another_disk_are_followed_and_kept(config, tmp_path, names):
    places = {config.run_path / name: tmp_path / "disk" / name.replace("/", "-") / "place" for name in names}
    for link, place in places.items():
        place.mkdir(parents=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
    run_all(config)
    assert all(link.is_symlink() for link in places)
    assert all(link.name == "tensorboard" or list(place.iterdir()) for link, place in places.items())
    run_all(with_settings(config, "training.seed=7"), fresh=True)
    assert all(link.is_symlink() for link in places)
    assert not [path for place in places.values() for path in place.parent.iterdir() if path.name.startswith(".")]
    run_all(with_settings(config, "training.seed=7", "training.max_steps=6"))
    assert all(link.is_symlink() for link in places)


def test_a_checkpoint_that_is_a_link_is_followed_and_its_target_is_never_deleted(config, tmp_path):
    done_once(run_train, config)
    checkpoints = config.run_path / "checkpoints"
    for step in checkpoint_steps(checkpoints):
        path = checkpoints / f"step-{step:08d}"
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    run_train(with_settings(config, "training.max_steps=20", "training.average_checkpoints=1"))
    assert checkpoint_steps(checkpoints)[-1] == 20
    assert (tmp_path / "step-00000002" / "progress.json").exists()
    assert not (checkpoints / "step-00000002").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "model", "tokenizer", "data/train"])
@pytest.mark.parametrize("kind", ["dangling", "file", "plain file"])
def test_a_place_that_cannot_be_written_is_told_before_training(config, tmp_path, name, kind):
    link = config.run_path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "file").write_text("mine")
    if kind == "plain file":
        link.write_text("mine")
    else:
        link.symlink_to(tmp_path / ("file" if kind == "file" else "nowhere"))
    with pytest.raises(CheckpointError, match=rf"{name}.*(which is not there|found a file, wants a folder)"):
        run_all(config)
    assert not (config.run_path / "log.jsonl").exists()


def test_a_disk_itself_cannot_be_replaced_by_a_rename(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(CheckpointError, match="is a whole disk"):
        require_folder(tmp_path / "model")
    require_folder(tmp_path / "model", replaced=False)


def test_what_the_user_keeps_among_the_checkpoints_stays(config):
    done_once(run_train, config)
    checkpoints = config.run_path / "checkpoints"
    for name in ("step-best-of-may", "step-00000004.bak", "step-1", ".step-mine.new", "mine"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "kept").write_text("kept")
    for name in ("step-00000002.tar", "step-00000099"):
        (checkpoints / name).write_text("kept")
    mine = {name: content for name, content in contents(checkpoints).items() if content == b"kept"}
    assert len(mine) == 7
    run_train(with_settings(config, "training.max_steps=8"))
    run_train(with_settings(config, "training.max_steps=8"), fresh=True)
    assert {name: c for name, c in contents(checkpoints).items() if c == b"kept"} == mine
    assert checkpoint_steps(checkpoints)[-1] == 8


def test_a_tokenizer_that_cannot_be_made_leaves_the_old_data(config):
    run_binarize(config)
    before = contents(config.run_path)
    config.run_path.joinpath("config.yaml").write_text("")
    wrong = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 265})})
    with pytest.raises(MtkitError, match="too small"):
        run_train(wrong)
    config.run_path.joinpath("config.yaml").unlink()
    assert contents(config.run_path) == before


def test_a_fresh_start_that_is_stopped_before_its_first_update_brings_the_old_run_back(config):
    done_once(run_all, config)
    before = contents(config.run_path)
    anew = with_settings(config, "training.seed=7")
    with (
        doing(interrupt, Trainer, "_write_facts", lambda _: True),
        pytest.raises(StoppedError, match="before there was anything to save"),
    ):
        run_train(anew, fresh=True)
    run_tokenizer(config)
    assert contents(config.run_path) == before
