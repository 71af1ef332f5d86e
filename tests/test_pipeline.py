"""A run does what is missing or out of date, by content, and refuses what would mix two runs into one."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mtkit.bundle.opening import checkpoint_steps
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError, DataError, MtkitError
from mtkit.files import only_writer
from mtkit.pipeline import run_all, run_binarize, run_tokenizer, run_train
from mtkit.preparation.prepare import read_validation, validation_text_changes
from mtkit.text.lines import compressed_fingerprint, fingerprint
from mtkit.training.train import train
from tests.conftest import config_with
from tests.runs import done_once, with_settings


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def with_settings_of(config: Config, **data: object) -> Config:
    """The same with other settings of the data."""
    return config_with(config.model_dump(mode="json"), data=data)


def test_a_second_run_changes_nothing_and_gives_the_same_scores(config, capsys):
    first = done_once(run_all, config)
    before = contents(config.run_path)
    capsys.readouterr()
    assert run_all(config) == first
    assert contents(config.run_path) == before
    said = capsys.readouterr().err
    assert "training:" in said
    assert "up to date" in said
    assert "step 2" not in said


def test_the_run_directory_holds_what_a_user_carries(config):
    scores = done_once(run_all, config)
    run = config.run_path
    assert load_config(run / "config.yaml", []) == config
    names = {"config.yaml", "run.json", "log.jsonl", "tokenizer", "data", "checkpoints", "model", "translations"}
    assert names <= {path.name for path in run.iterdir()}
    assert len((run / "translations" / "toy.txt").read_text("utf-8").splitlines()) == 24
    card = (run / "model" / "README.md").read_text("utf-8")
    assert [score["metric"] for score in json.loads((run / "model" / "scores.json").read_text())] == [
        "BLEU",
        "chrF2",
        "TER",
    ]
    for score in scores:
        signature = score.signature.replace("|", "\\|")
        assert f"| toy | {score.metric} | {score.score:.2f} | {signature} |" in card
    facts = json.loads((run / "run.json").read_text())
    assert {"mtkit", "torch", "python", "device", "threads", "command", "precision", "data"} <= facts.keys()
    assert all(entry["fingerprint"].startswith("sha256:") for entry in facts["data"]["files"])


def test_a_run_without_test_sets_leaves_a_bundle_with_a_card(config):
    config = config.model_copy(update={"data": config.data.model_copy(update={"test": {}})})
    assert run_all(config) == []
    assert (config.run_path / "model" / "README.md").exists()


def test_new_decoding_settings_evaluate_again_but_train_nothing(config):
    done_once(run_all, config)
    trained = contents(config.run_path / "checkpoints")
    weights = (config.run_path / "model" / "weights.safetensors").read_bytes()
    greedy = with_settings(config, "decoding.beam_size=1")
    run_all(greedy)
    assert contents(config.run_path / "checkpoints") == trained
    assert (config.run_path / "model" / "weights.safetensors").read_bytes() == weights
    assert '"beam_size": 1' in (config.run_path / "evaluated.json").read_text()


def test_a_changed_test_set_is_scored_again(config):
    before = done_once(run_all, config)
    reference = config.data.root / "test.tgt"
    reference.write_bytes(b"".join(b"9\n" for _ in range(24)))
    assert [score.score for score in run_all(config)] != [score.score for score in before]


def test_a_test_set_that_was_only_packed_anew_is_not_scored_again(config, capsys):
    data = config.data.root
    for name in ("test.src", "test.tgt"):
        (data / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes(), 1))
    test_set = {"source": "test.src.gz", "target": "test.tgt.gz"}
    config = with_settings_of(config, test={"toy": test_set})
    scores = run_all(config)
    record = config.run_path / "evaluated.json"
    inputs = record.read_text()
    for name in ("test.src", "test.tgt"):  # as earlier versions wrote it
        inputs = inputs.replace(fingerprint(data / name), compressed_fingerprint(data / f"{name}.gz"))
    for known in (record.read_text(), inputs):
        record.write_text(known)
        capsys.readouterr()
        assert run_all(config) == scores
        assert "scores.json is up to date" in capsys.readouterr().err
    for name in ("test.src", "test.tgt"):
        (data / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes(), 9))
    run_all(config)
    assert "scores.json" not in capsys.readouterr().err  # what an earlier version wrote does not tell
    run_all(config)
    assert "scores.json is up to date" in capsys.readouterr().err


def test_more_steps_go_on_from_the_last_checkpoint(config, capsys):
    done_once(run_train, config)
    capsys.readouterr()
    run_train(with_settings(config, "training.max_steps=6"))
    assert "going on from step 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.src", "train.tgt"])
@pytest.mark.parametrize("stage", [run_tokenizer, run_binarize, run_train, run_all])
def test_changed_text_is_refused_once_training_began(config, name, stage):
    done_once(run_train, config)
    before = contents(config.run_path)
    path = config.data.root / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1).replace(b"one", b"two", 1))
    with pytest.raises(
        DataError, match=rf"changed since training began: data\.train: \S*{name} holds other text.*--fresh"
    ):
        stage(config)
    assert contents(config.run_path) == before


def test_other_validation_text_is_kept_anew_and_the_best_checkpoint_measured_again(config, capsys):
    done_once(run_train, config)
    weights = contents(config.run_path / "checkpoints" / "step-00000004")["weights.safetensors"]
    path = config.data.root / "valid.tgt"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    capsys.readouterr()
    run_train(with_settings(config, "training.max_steps=6"))
    said = capsys.readouterr().err
    assert "the validation text is kept anew: data.valid:" in said
    assert "changed from step 5 on: the validation text (data.valid)" in said
    assert "best checkpoint so far by the new measure" in said
    assert contents(config.run_path / "checkpoints" / "step-00000004")["weights.safetensors"] == weights
    assert not validation_text_changes(config)


@pytest.mark.parametrize("name", ["tokenizer", "data", "data/train", "data/valid"])
@pytest.mark.parametrize("stage", [run_binarize, run_train])
def test_what_was_deleted_of_a_run_is_made_again_and_the_run_goes_on(config, name, stage):
    done_once(run_train, config)
    before = contents(config.run_path / name)
    shutil.rmtree(config.run_path / name)
    more = with_settings(config, "training.max_steps=6")
    stage(more)
    assert contents(config.run_path / name) == before
    run_train(more)
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == 6


def test_a_tokenizer_that_was_deleted_and_whose_text_changed_costs_no_checkpoint(config):
    done_once(run_train, config)
    shutil.rmtree(config.run_path / "tokenizer")
    path = config.data.root / "train.src"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"one", b"twenty", 900))
    with pytest.raises((DataError, CheckpointError)):
        run_train(config)
    path.write_bytes(before)
    shutil.rmtree(config.run_path / "tokenizer")
    run_train(with_settings(config, "training.max_steps=6"))


def test_changed_text_before_training_is_prepared_again(config):
    run_binarize(config)
    before = contents(config.run_path / "data")
    path = config.data.root / "train.src"
    path.write_bytes(path.read_bytes().replace(b"one", b"two", 1))
    run_train(config)
    assert contents(config.run_path / "data") != before


def test_changed_settings_that_break_the_continuation_are_named_and_change_nothing(config):
    done_once(run_train, config)
    before = contents(config.run_path)
    with pytest.raises(CheckpointError, match=r"training\.label_smoothing was 0\.0, is 0\.1"):
        run_train(with_settings(config, "training.label_smoothing=0.1"))
    assert contents(config.run_path) == before


def test_fresh_starts_anew(config):
    done_once(run_train, config)
    changed = with_settings(config, "training.seed=7")
    run_train(changed, fresh=True)
    assert load_config(config.run_path / "config.yaml", []).training.seed == 7
    with pytest.raises(CheckpointError, match="seed"):
        run_train(config)


def test_training_goes_on_where_the_text_was_not_carried_along(config, capsys):
    done_once(run_train, config)
    for path in config.data.root.glob("train.*"):
        path.unlink()
    run_train(with_settings(config, "training.max_steps=6"))
    assert "going on with what was binarized" in capsys.readouterr().err


def test_without_validation_text_training_says_so(config):
    config = config.model_copy(update={"data": config.data.model_copy(update={"valid": ()})})
    with pytest.raises(ConfigError, match=r"data\.valid is empty"):
        run_train(config)


def test_a_language_whose_bleu_cannot_be_measured_is_told_before_training(config, without_mecab):
    languages = config.languages.model_copy(update={"target": "ja"})
    with pytest.raises(MtkitError, match=r"mtkit\[ja\]"):
        run_train(config.model_copy(update={"languages": languages}))
    assert not (config.run_path / "checkpoints").exists()


def test_one_run_has_one_writer(config):
    with only_writer(config.run_path), pytest.raises(CheckpointError, match="in use by process"):
        run_tokenizer(config)
    run_tokenizer(config)


@pytest.mark.parametrize("stage", [run_tokenizer, run_binarize, run_train, run_all])
def test_what_a_kill_left_goes_when_a_run_is_opened_for_writing(config, stage):
    done_once(run_all, config)
    before = contents(config.run_path)
    directories = [config.run_path / name for name in ("tokenizer", "data/train", "data/valid", "model")]
    for directory in directories:
        for kind in ("new", "old"):
            shutil.copytree(directory, directory.with_name(f".{directory.name}.{kind}"))
    (config.run_path / ".mine.new").mkdir()
    (config.run_path / ".mine.new" / "kept").write_text("kept")
    stage(config)
    assert contents(config.run_path) == before | {".mine.new/kept": b"kept"}


@pytest.mark.parametrize("name", ["tokenizer", "data/train", "data/valid", "model"])
def test_a_kill_between_two_renames_costs_nothing_of_a_run(config, name, capsys):
    done_once(run_train, config)
    before = contents(config.run_path)
    directory = config.run_path / name
    shutil.copytree(directory, directory.with_name(f".{directory.name}.new"))
    directory.rename(directory.with_name(f".{directory.name}.old"))
    capsys.readouterr()
    run_train(config)
    assert contents(config.run_path) == before
    assert "model is up to date" in capsys.readouterr().err


def test_a_run_that_another_process_writes_keeps_what_is_half_written(config):
    run_tokenizer(config)
    half = config.run_path / "data" / ".train.new"
    half.mkdir(parents=True)
    with only_writer(config.run_path), pytest.raises(CheckpointError, match="in use by process"):
        run_binarize(config)
    assert half.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "provenance.json"])
@pytest.mark.parametrize("content", ["[]", '{"settings": null}', None])
def test_a_damaged_tokenizer_is_told_and_trained_again_when_that_is_asked_for(config, capsys, name, content):
    run_tokenizer(config)
    before = contents(config.run_path)
    path = config.run_path / "tokenizer" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=name):
        run_binarize(config)
    capsys.readouterr()
    run_tokenizer(config)
    told, begun, took, trained = capsys.readouterr().err.splitlines()
    assert told.startswith("mtkit: warning: ")
    assert name in told
    assert begun.startswith("training the bpe tokenizer on ")
    assert took.startswith("training the bpe tokenizer on ")
    assert trained.startswith("shared bpe vocabulary: ")
    assert contents(config.run_path) == before


def test_a_damaged_tokenizer_stays_once_training_began(config):
    done_once(run_train, config)
    (config.run_path / "tokenizer" / "tokenizer.json").unlink()
    before = contents(config.run_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        run_tokenizer(config)
    assert contents(config.run_path) == before


def test_binarizing_mends_damaged_data_and_training_goes_on(config):
    done_once(run_train, config)
    before = contents(config.run_path / "data")
    path = config.run_path / "data" / "train" / "source.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"source\.tokens.*binarize"):
        run_train(with_settings(config, "training.max_steps=6"))
    run_binarize(config)
    assert contents(config.run_path / "data") == before
    run_train(with_settings(config, "training.max_steps=6"))


def test_a_small_model_learns_its_language_nearly_perfectly(tiny_run):
    scores = {score["metric"]: score["score"] for score in json.loads((tiny_run / "model" / "scores.json").read_text())}
    assert scores["BLEU"] > 90


def kept_by_an_earlier_version(config: Config) -> tuple[list[str], list[str]]:
    """Keep the validation text in the order of its files, as earlier versions did; its lines."""
    directory = config.run_path / "data" / "valid"
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["order"]
    for side, ending in (("source", "src"), ("target", "tgt")):
        text = (config.data.root / f"valid.{ending}").read_bytes()
        (directory / f"{side}.txt").write_bytes(text)
        manifest[f"{side}.txt"] = hashlib.sha256(text).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return read_validation(config)


def longer(config: Config) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 6})})


@pytest.mark.parametrize("gone", ["nothing", "the validation text", "all data", "checkpoints"])
def test_a_run_that_was_validated_by_the_first_lines_keeps_them(config, gone, capsys):
    run_binarize(config)
    kept = kept_by_an_earlier_version(config)
    train(config, kept)
    if gone != "nothing":
        places = {"the validation text": "data/valid", "all data": "data", "checkpoints": "checkpoints"}
        shutil.rmtree(config.run_path / places[gone])
    run_binarize(config)
    assert read_validation(config) == kept
    capsys.readouterr()
    run_train(config if gone == "checkpoints" else longer(config))
    assert "changed from" not in capsys.readouterr().err
    assert read_validation(config) == kept


def test_a_run_whose_checkpoints_do_not_tell_the_validation_text_keeps_the_first_lines(config):
    run_binarize(config)
    kept = kept_by_an_earlier_version(config)
    train(config, kept)
    for step in checkpoint_steps(config.run_path / "checkpoints"):
        path = config.run_path / "checkpoints" / f"step-{step:08d}" / "progress.json"
        content = json.loads(path.read_text())
        del content["identity"]["validation"]
        path.write_text(json.dumps(content))
    run_binarize(config)
    assert read_validation(config) == kept


def test_what_an_earlier_version_kept_is_spread_before_training_begins_and_by_a_fresh_start(config):
    run_binarize(config)
    spread_out = read_validation(config)
    assert kept_by_an_earlier_version(config) != spread_out
    run_train(config)
    assert read_validation(config) == spread_out
    kept_by_an_earlier_version(config)
    run_train(config, fresh=True)
    assert read_validation(config) == spread_out
