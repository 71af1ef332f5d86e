"""A run may start from the weights and the tokenizer of a model that was trained before."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.bundle.bundle import open_bundle, sealed
from mtkit.bundle.opening import best_step, carried_over, checkpoint_steps, open_model, read_progress, read_weights
from mtkit.cli import _run
from mtkit.config.load import config_from_text, load_config
from mtkit.config.settings import Config
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, ConfigError, DataError, StoppedError
from mtkit.exchange.formats import extend
from mtkit.files import Stop
from mtkit.pipeline import run_binarize, run_tokenizer, run_train
from mtkit.preparation.prepare import read_validation
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.records import Validation, bundle, is_trained
from mtkit.training.train import Trainer, train
from mtkit.translation.translator import load
from tests.conftest import LEARNING, CorpusFiles, config_with, toy_settings, write_lines, write_toy_corpus
from tests.runs import Killed, as_if_killed, at_step, doing, events, kill

TRAINING = {
    "batch_tokens": 128,
    "max_steps": 8,
    "validate_every": 4,
    "save_every": 4,
    "validation_sentences": 4,
    "log_every": 1,
}

Make = Callable[..., Config]


@pytest.fixture
def parent(tiny_run: Path, tmp_path: Path) -> Path:
    """The bundle of a model that reads numbers, which may be changed."""
    shutil.copytree(tiny_run / "model", tmp_path / "parent")
    return tmp_path / "parent"


def write_reversed(root: Path, num_pairs: int) -> Path:
    """A corpus in which the digits are in reversed order."""
    for path in write_toy_corpus(root, num_pairs).glob("*.tgt"):
        write_lines(path, [line[::-1] for line in path.read_text("utf-8").splitlines()])
    return root


@pytest.fixture
def make(make_config: Make, parent: Path, tmp_path: Path) -> Make:
    """Makes the settings of a run that starts from the parent and reads numbers from right to left."""
    root = write_reversed(tmp_path / "reversed", 300)

    def made(name: str = "child", start_from: Path | None = parent, **sections: dict[str, object]) -> Config:
        training = {**TRAINING, "start_from": str(start_from) if start_from else None, **sections.pop("training", {})}
        return make_config(tmp_path / name, data={"root": str(root)}, training=training, **sections)

    return made


def trainer_of(config: Config) -> Trainer:
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    corpus = Corpus.open(config.run_path / "data" / "train")
    trainer = Trainer(config, tokenizer, corpus, Validation.prepare(config, tokenizer, *read_validation(config)))
    trainer.log.close()
    return trainer


def weights_of(config: Config) -> dict[str, torch.Tensor]:
    checkpoints = config.run_path / "checkpoints"
    return read_weights(checkpoints, checkpoint_steps(checkpoints)[-1])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is taken over.


def test_at_step_0_the_model_is_the_bundle(make, parent, capsys):
    config = make()
    run_binarize(config)
    trainer = trainer_of(config)
    assert f"starting from the weights of {parent}\n" in capsys.readouterr().err
    assert same(dict(trainer.model.named_parameters()), open_bundle(parent).weights())
    translator = load(parent, ["device=cpu"])
    found = trainer.validation.measure(trainer.model, trainer.tokenizer, Stop())
    assert found == trainer.validation.measure(translator.model, translator.tokenizer, Stop())
    assert trainer.state.progress.step == 0
    assert not trainer.state.optimizer.state_dict()["state"]


def test_training_learns_from_there_what_is_new(make, parent, tmp_path):
    write_reversed(tmp_path / "reversed", 1000)
    once = {"validate_every": 150, "save_every": 150, "batch_tokens": 512}
    config = make(training={**LEARNING, **once, "max_steps": 150})
    run_train(config)
    sources, targets = ((config.data.root / f"test.{side}").read_text("utf-8").splitlines() for side in ("src", "tgt"))
    before = load(parent, ["device=cpu"]).translate(sources)
    assert sum(one == other for one, other in zip(before, targets, strict=True)) <= 2
    after = load(config.run_path, ["device=cpu"]).translate(sources)
    assert sum(one == other for one, other in zip(after, targets, strict=True)) >= 10


def test_the_tokenizer_is_the_bundles(make, parent, capsys):
    config = make()
    run_tokenizer(config)
    tokenizer = Tokenizer.load(parent / "tokenizer")
    assert Tokenizer.load(config.run_path / "tokenizer").hash == tokenizer.hash
    sizes = f"{tokenizer.source_vocab_size:,} source pieces, {tokenizer.target_vocab_size:,} target pieces"
    assert f"tokenizer: copied from {parent / 'tokenizer'}; {sizes}\n" in capsys.readouterr().err
    run_tokenizer(config)
    assert "is up to date" in capsys.readouterr().err


def test_without_a_start_the_tokenizer_is_trained_again_and_with_one_copied_again(make, parent):
    config = make()
    alone = make(start_from=None, tokenizer={"vocab_size": 300})
    hashes = []
    for each in (config, alone, config):
        run_tokenizer(each)
        hashes.append(Tokenizer.load(each.run_path / "tokenizer").hash)
    assert hashes[0] == hashes[2] == Tokenizer.load(parent / "tokenizer").hash
    assert hashes[1] != hashes[0]


def test_dropout_may_differ_and_a_run_directory_may_be_named(make, parent, tiny_run):
    config = make(start_from=tiny_run, model={"dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.1})
    run_binarize(config)
    assert same(dict(trainer_of(config).model.named_parameters()), open_bundle(parent).weights())


def test_the_run_and_its_bundle_tell_what_they_started_from(make):
    config = make()
    run_train(config)
    run = config.run_path
    told = json.loads((run / "run.json").read_text())["start_from"]
    assert told.startswith("sha256:")
    bundle = open_bundle(run)
    assert bundle.description["training"]["start_from"] == told
    assert bundle.config.training.start_from is None


# What is carried over.


def little(make: Make, start_from: Path, **sections: Any) -> Config:
    """The settings of a run that says only its name, its data and its training."""
    whole = make(start_from=start_from).model_dump(mode="json")
    said = {name: whole[name] for name in ("name", "run_dir", "device", "data", "training")}
    for name, values in sections.items():
        said[name] = {**said.get(name, {}), **values}
    return config_from_text(json.dumps(said), "little.yaml")


def test_a_run_that_says_only_data_and_training_has_the_rest_of_the_model(make, parent):
    config = little(make, parent, model={"dropout": 0.25}, decoding={"length_penalty": 0.5})
    run_train(config)
    theirs, ours = open_bundle(parent).config, open_bundle(config.run_path).config
    assert ours.model == theirs.model.model_copy(update={"dropout": 0.25})
    assert ours.tokenizer == theirs.tokenizer
    assert ours.languages == theirs.languages
    assert ours.decoding == theirs.decoding.model_copy(update={"length_penalty": 0.5})
    assert is_trained(carried_over(config))
    assert load_config(config.run_path / "config.yaml") == carried_over(config)


def test_what_was_carried_over_stays_when_the_model_is_gone(make, parent, capsys):
    config = little(make, parent)
    killed_at(6, config)
    shutil.rmtree(parent)
    run_train(config)
    assert "going on from step 4" in capsys.readouterr().err
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == 8
    run_train(config)
    assert "is up to date" in capsys.readouterr().err


def test_carrying_over_twice_is_carrying_over_once(make, parent):
    once = carried_over(little(make, parent))
    assert carried_over(once) == once
    assert carried_over(make(start_from=None)) == make(start_from=None)


def test_mtkit_config_prints_what_is_carried_over(make, parent, capsys, tmp_path):
    path = tmp_path / "little.yaml"
    path.write_text(f"name: tuned\ntraining: {{start_from: {parent}}}\n")
    assert _run(["config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "  vocab_size: 400" in printed
    (tmp_path / "whole.yaml").write_text(printed)
    assert load_config(tmp_path / "whole.yaml") == carried_over(load_config(path))


def test_a_small_part_of_a_mixed_models_settings_may_be_said(make, make_config, tmp_path):
    half = {"architecture": "rnn", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    transformer = {"d_model": 16, "num_heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}
    mixed = {"architecture": "mixed", "encoder": transformer, "decoder": half}
    other = make_config(tmp_path / "mixed", model=mixed, training=TRAINING)
    run_train(other)
    said = {"architecture": "mixed", "decoder": {"architecture": "rnn", "dropout": 0.4}}
    config = carried_over(little(make, other.run_path, model=said))
    assert config.model.decoder == other.model.decoder.model_copy(update={"dropout": 0.4})
    assert config.model.encoder == other.model.encoder
    run_train(config)
    for half, theirs, said in (("encoder", "transformer", "rnn"), ("decoder", "rnn", "transformer")):
        with pytest.raises(ConfigError) as told:
            carried_over(little(make, other.run_path, model={"architecture": "mixed", half: {"architecture": said}}))
        assert str(told.value).endswith(f"or copy them: model.{half}.architecture: {theirs} (found {said})")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"tokenizer": {"vocab_size": 300}},
            "its tokenizer goes with its weights and is another one; leave these out of your settings, or copy them: "
            "tokenizer.vocab_size: 400 (found 300)",
        ),
        ({"tokenizer": {"type": "unigram"}}, "tokenizer.type: bpe (found unigram)"),
        (
            {"model": {"d_ff": 64}},
            "its model has other settings; leave these out of yours, or copy them: model.d_ff: 128",
        ),
        (
            {"model": {"architecture": "rnn"}},
            "its model has other settings; leave these out of yours, or copy them: "
            "model.architecture: transformer (found rnn)",
        ),
        ({"training": {"unigram_alpha": 0.1}}, "training.unigram_alpha 0.1 wants tokenizer.type unigram, not bpe"),
    ],
)
def test_what_contradicts_the_model_is_told(make, parent, sections, message):
    with pytest.raises(ConfigError) as told:
        run_train(little(make, parent, **sections))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_kind_of_sampling_that_the_models_tokenizer_knows_is_taken_without_a_word_of_it(make_config, make, tmp_path):
    other = make_config(tmp_path / "unigram", tokenizer={"type": "unigram", "vocab_size": 330}, training=TRAINING)
    run_train(other)
    config = little(make, other.run_path, training={"unigram_alpha": 0.2, "max_steps": 4})
    run_train(config)
    assert open_bundle(config.run_path).config.tokenizer.type == "unigram"
    with pytest.raises(ConfigError, match=r"training\.bpe_dropout 0\.1 wants tokenizer\.type bpe, not unigram"):
        run_train(little(make, other.run_path, training={"bpe_dropout": 0.1}))


# Settings that go together, or not, only with those of the model.


@pytest.fixture(scope="module")
def odd_parent(corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose width goes with its own number of heads, but not with the default."""
    run = tmp_path_factory.mktemp("odd") / "run"
    sections = {"model": {"d_model": 36, "num_heads": 6}, "decoding": {"beam_size": 4}, "training": TRAINING}
    run_train(config_with(toy_settings(corpus_files, run), **sections))
    return run


def from_file(path: Path, start_from: Path, **sections: Any) -> list[str]:
    """Writes settings that say only some sections; returns what `mtkit config` takes."""
    path.write_text(json.dumps({**sections, "training": {"start_from": str(start_from)}}))
    return ["config", str(path)]


def test_settings_that_only_fit_with_those_of_the_model_are_taken(make, odd_parent, tmp_path, capsys):
    sections = {"model": {"d_model": 36}, "decoding": {"diversity_groups": 2}}
    assert _run(from_file(tmp_path / "x.yaml", odd_parent, **sections)) == 0
    printed = capsys.readouterr().out
    assert all(f"  {line}\n" in printed for line in ("d_model: 36", "num_heads: 6", "beam_size: 4"))
    config = little(make, odd_parent, **sections)
    run_train(config)
    assert carried_over(config).model == open_bundle(odd_parent).config.model


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"d_model": 32}}, "model: d_model 32 is not a multiple of num_heads 6"),
        ({"decoding": {"diversity_groups": 5}}, "decoding: beam_size 4 is not a multiple of diversity_groups 5"),
        ({"decoding": {"top_k": 3}}, "decoding: top_k 3 is of samples; it goes with method sample or with mbr_samples"),
        ({"tokenizer": {"vocab_size": 9}}, "tokenizer: vocab_size 9 is too small for the 256 bytes of byte_fallback; "),
        (
            {"model": {"positions": "learned", "max_positions": 9}},
            "model.max_positions 9 must be more than data.max_length 256",
        ),
    ],
)
def test_settings_that_do_not_fit_those_of_the_model_are_told_in_a_line_that_names_it(
    odd_parent, tmp_path, capsys, sections, message
):
    assert _run(from_file(tmp_path / "x.yaml", odd_parent, **sections)) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"mtkit: error: training.start_from {odd_parent} with your settings: {message}")
    assert told.count("\n") == 1


def test_faults_that_no_model_can_mend_are_told_by_where_they_were_said(tmp_path, capsys):
    sections = {"model": {"d_model": 35, "cell": "gru"}, "data": {"min_length": 300}}
    assert _run(from_file(tmp_path / "x.yaml", tmp_path / "model", **sections)) == 1
    assert capsys.readouterr().err == (
        f"mtkit: error: {tmp_path / 'x.yaml'}:1: data: min_length 300 must be at most max_length 256\n"
        f"mtkit: error: {tmp_path / 'x.yaml'}:1: unknown key 'model.cell'; only architecture rnn has it\n"
    )


def test_settings_that_need_those_of_a_model_that_is_gone_are_told_by_its_place(tmp_path, capsys):
    gone = tmp_path / "gone"
    assert _run(from_file(tmp_path / "x.yaml", gone, model={"d_model": 36})) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"mtkit: error: training.start_from: {gone}: no such directory; MODEL is")
    assert told.count("\n") == 1
    assert _run(from_file(tmp_path / "x.yaml", gone, model={"d_model": 64})) == 0


# Going on.


def killed_at(step: int, config: Config) -> None:
    """Prepare and train until so many updates are done."""
    with doing(kill, Trainer, "_update", at_step(step)), pytest.raises(Killed):
        run_train(config)


def test_a_run_goes_on_to_the_bit_when_what_it_started_from_is_gone(make, parent, tiny_run):
    uninterrupted, config = make("uninterrupted"), make()
    with as_if_killed(6, uninterrupted, config):
        run_train(uninterrupted)
    shutil.rmtree(parent)
    run_train(config)
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == 8
    assert same(weights_of(config), weights_of(uninterrupted))
    assert same(open_bundle(config.run_path).weights(), open_bundle(uninterrupted.run_path).weights())
    assert is_trained(config)
    assert is_trained(uninterrupted)
    shutil.copytree(tiny_run / "model", parent)  # and comes back
    assert is_trained(config)


def test_a_run_killed_before_its_first_checkpoint_starts_from_there_again(make, parent):
    uninterrupted, config = make("uninterrupted"), make()
    with as_if_killed(2, uninterrupted, config):
        run_train(uninterrupted)
    run_train(config)
    assert same(weights_of(config), weights_of(uninterrupted))


def test_another_model_in_its_place_is_refused(make, parent):
    config = make()
    run_train(config)
    path = parent / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert not is_trained(config)
    with pytest.raises(CheckpointError, match=r"these changed: training\.start_from was sha256:\w+, is sha256:\w+\."):
        train(config, read_validation(config))


def test_the_place_it_lies_at_may_change(make, parent, tmp_path):
    run_train(make())
    parent.rename(tmp_path / "moved")
    config = make(start_from=tmp_path / "moved", training={"max_steps": 9})
    run_train(config)
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == 9


def test_a_trained_run_is_up_to_date_wherever_lies_what_it_started_from(make, parent, tmp_path, tiny_run, capsys):
    run_train(make())
    parent.rename(tmp_path / "moved")
    config = make(start_from=tmp_path / "moved")
    assert is_trained(config)
    assert is_trained(make(start_from=tmp_path / "nowhere"))  # it is gone, not another one
    assert not is_trained(make(start_from=None))
    note = config.run_path / "trained.json"
    found = json.loads(note.read_text())
    note.write_text(json.dumps({**found, "training": {**found["training"], "start_from": "where/it/lay"}}))
    capsys.readouterr()
    run_train(config)
    assert "model is up to date" in capsys.readouterr().err
    without = {name: value for name, value in found.items() if name != "start_from"}
    note.write_text(json.dumps({**without, "training": {**found["training"], "start_from": "where/it/lay"}}))
    assert is_trained(make(start_from=tmp_path / "nowhere"))
    alone = make("alone", start_from=None)
    run_train(alone)
    assert is_trained(alone)
    assert not is_trained(make("alone", start_from=tiny_run))
    assert not is_trained(make("alone", start_from=tmp_path / "nowhere"))


def test_a_run_with_another_start_is_another_run(make, tiny_run):
    with_start = make()
    run_train(with_start)
    with pytest.raises(CheckpointError, match=r"training\.start_from was sha256:\w+, is None"):
        train(make(start_from=None), read_validation(with_start))
    with pytest.raises(DataError, match="changed since training began"):
        run_train(make(start_from=None))
    alone = make("alone", start_from=None)
    run_train(alone)
    with pytest.raises(CheckpointError, match=r"training\.start_from was None, is a model that is not there"):
        train(make("alone", start_from=tiny_run / "nowhere"), read_validation(alone))


# The model that training starts from is validated, and is the best one if no update improves it.

WARNING = (
    "mtkit: warning: training made the model no better: no validation was better than that of step 0, so the bundle "
    "holds the weights that training started from; train again with --fresh and a lower training.learning_rate, or on "
    "text that is more like data.valid\n"
)


@pytest.fixture
def harmful(make_config: Make, corpus_files: CorpusFiles, parent: Path, tmp_path: Path) -> Make:
    """Makes the settings of a run that starts from the parent, and forgets all it knew at far too high a rate."""

    def made(name: str = "harmed", **training: object) -> Config:
        few = {**TRAINING, "start_from": str(parent), "learning_rate": 1.0, "warmup_steps": 1, "validate_every": 2}
        return make_config(tmp_path / name, training={**few, "save_every": 2, "keep_checkpoints": 1, **training})

    return made


def test_step_0_is_validated_and_saved_before_the_first_update(make, parent):
    config = make()
    run_train(config)
    logged = events(config.run_path, "validation", "sample", "train")
    assert [event["event"] for event in logged[:5]] == ["validation", *["sample"] * 3, "train"]
    assert [event["step"] for event in logged[:5]] == [0, 0, 0, 0, 1]
    translator = load(parent, ["device=cpu"])
    validation = Validation.prepare(config, translator.tokenizer, *read_validation(config))
    measured, translations = validation.measure(translator.model, translator.tokenizer, Stop())
    assert {name: logged[0][name] for name in measured} == measured
    assert [sample["hypothesis"] for sample in logged[1:4]] == translations[:3]
    assert same(read_weights(config.run_path / "checkpoints", 0), open_bundle(parent).weights())


def test_a_training_that_only_harms_leaves_the_weights_it_started_from_and_says_so(harmful, parent, capsys):
    config = harmful()
    run_train(config)
    assert WARNING in capsys.readouterr().err
    written = open_bundle(config.run_path)
    assert same(written.weights(), open_bundle(parent).weights())
    assert written.description["training"]["averaged_steps"] == [0]
    assert checkpoint_steps(config.run_path / "checkpoints") == [0, 6, 8]  # the last two might yet be averaged
    assert [event["best"] for event in events(config.run_path, "validation")] == [True, *[False] * 4]
    assert not events(config.run_path, "average")
    assert is_trained(config)
    assert _run(["info", str(config.run_path)]) == 0
    assert "those that training started from, chosen by validation bleu" in capsys.readouterr().out


def test_a_harmful_training_that_is_killed_and_resumed_ends_the_same(harmful, capsys):
    uninterrupted, *killed = (harmful(name, ema_decay=0.9) for name in ("uninterrupted", "at step 1", "at step 6"))
    with as_if_killed(1, uninterrupted, killed[0]), as_if_killed(6, uninterrupted, killed[1]):
        run_train(uninterrupted)
    for step, config in zip((0, 6), killed, strict=True):
        assert best_step(config.run_path)[0] == 0
        capsys.readouterr()
        run_train(config)
        told = capsys.readouterr().err
        assert f"going on from step {step} in" in told
        assert WARNING in told
        assert same(weights_of(config), weights_of(uninterrupted))
        assert same(open_bundle(config.run_path).weights(), open_bundle(uninterrupted.run_path).weights())
        kinds = ("train", "validation", "sample")
        assert events(config.run_path, *kinds) == events(uninterrupted.run_path, *kinds)


def test_a_run_that_is_stopped_while_step_0_is_validated_starts_again(harmful, parent, monkeypatch, capsys):
    config = harmful()

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        measure(*arguments)

    measure = Validation.measure
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", interrupted)
        with pytest.raises(StoppedError, match="stopped at step 0 by SIGINT, before there was anything to save"):
            run_train(config)
    assert not checkpoint_steps(config.run_path / "checkpoints")
    run_train(config)
    assert [event["step"] for event in events(config.run_path, "validation")] == [0, 2, 4, 6, 8]
    assert same(open_bundle(config.run_path).weights(), open_bundle(parent).weights())


def test_patience_counts_from_step_0(harmful, capsys):
    run_train(harmful(patience=2))
    told = capsys.readouterr().err
    assert "training ends at step 4: no better bleu in 2 validations (training.patience) than that of step 0\n" in told


def test_while_no_update_improves_it_a_run_in_training_is_the_model_it_started_from(harmful, parent):
    config = harmful()
    killed_at(6, config)
    step, choice = best_step(config.run_path)
    assert step == 0
    assert choice.startswith("the best so far (BLEU ")
    weights = open_bundle(parent).weights()
    assert same(open_model(config.run_path).weights(), weights)
    for wanted in ("0", "best", "average"):
        bundle(config.run_path, wanted, config.run_path / "bundles" / wanted)
        assert same(open_bundle(config.run_path / "bundles" / wanted).weights(), weights)


def test_other_measures_find_step_0_again(harmful, parent):
    config = harmful()
    killed_at(6, config)
    for changed in ({"select_by": "loss"}, {"select_by": "chrf", "validation_sentences": 9}):
        config = harmful(**changed)
        run_train(config)
        assert same(open_bundle(config.run_path).weights(), open_bundle(parent).weights())


def test_step_0_is_in_no_average_and_goes_when_a_later_one_is_better(make):
    few = {"average_checkpoints": 9, "keep_checkpoints": 1, "learning_rate": 0.003, "select_by": "loss"}
    config = make(training=few)
    run_train(config)
    assert 0 not in open_bundle(config.run_path).description["training"]["averaged_steps"]
    assert [event["steps"] for event in events(config.run_path, "average")] == [[4, 8]]
    assert checkpoint_steps(config.run_path / "checkpoints") == [4, 8]


def test_a_model_with_pieces_that_no_training_has_seen_is_no_candidate(harmful, parent, tmp_path, capsys):
    extend(parent, tmp_path / "larger", ["漢"], [])
    config = harmful(start_from=str(tmp_path / "larger"), max_steps=2)
    settings = config.model_dump(mode="json", exclude={"tokenizer", "model"})
    config = config_from_text(json.dumps(settings), "larger.yaml")
    run_train(config)
    assert [event["step"] for event in events(config.run_path, "validation")] == [2]
    assert open_bundle(config.run_path).description["training"]["averaged_steps"] == [2]
    assert "no better: no validation" not in capsys.readouterr().err


def test_a_run_that_an_earlier_version_began_goes_on_without_a_validation_of_step_0(harmful, monkeypatch, capsys):
    uninterrupted, config = harmful("uninterrupted"), harmful()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate_start", lambda *_: None)
        with as_if_killed(4, uninterrupted, config):
            run_train(uninterrupted)
    run_train(config)
    assert [event["step"] for event in events(config.run_path, "validation")] == [2, 4, 6, 8]
    assert read_progress(config.run_path / "checkpoints", 8)[0].best_step > 0
    assert "no better: no validation" not in capsys.readouterr().err
    assert same(weights_of(config), weights_of(uninterrupted))
    assert same(open_bundle(config.run_path).weights(), open_bundle(uninterrupted.run_path).weights())


# What does not fit is told before anything is made.


def test_other_model_settings_are_listed(make, parent):
    config = make(model={"d_ff": 64, "activation": "gelu", "dropout": 0.5})
    with pytest.raises(ConfigError) as caught:
        run_train(config)
    assert str(caught.value) == (
        f"training.start_from {parent}: its model has other settings; leave these out of yours, or copy them: "
        "model.d_ff: 128 (found 64), model.activation: relu (found gelu)"
    )
    assert not (config.run_path / "tokenizer").exists()


def test_a_place_without_a_model_is_told(make, tmp_path):
    config = make(start_from=tmp_path / "nowhere")
    for stage in (run_train, run_tokenizer):
        with pytest.raises(CheckpointError, match=r"^training\.start_from: .*nowhere: no such directory; MODEL is"):
            stage(config)


def test_the_run_itself_is_no_start(make):
    run_train(make())
    for path in (make().run_path, make().run_path / "model"):
        with pytest.raises(ConfigError, match=r"is this run itself; give the run another name"):
            run_train(make(start_from=path), fresh=True)
    assert (make().run_path / "model" / "bundle.json").exists()


def test_a_foreign_tokenizer_in_the_bundle_is_told(make, parent):
    (parent / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"^training\.start_from: .*not the tokenizer that this model was"):
        run_train(make())


def test_weights_of_another_model_are_told(make, parent, make_config, tmp_path):
    other = make_config(tmp_path / "other", model={"d_model": 16}, training=TRAINING)
    run_train(other)
    shutil.copy(other.run_path / "model" / "weights.safetensors", parent)
    description = json.loads((parent / "bundle.json").read_text())
    description["weights_bytes"] = (parent / "weights.safetensors").stat().st_size
    del description["sha256"]
    (parent / "bundle.json").write_bytes(sealed(description))
    config = make()
    with pytest.raises(CheckpointError, match=r"the weights belong to another model"):
        run_train(config)
    assert not checkpoint_steps(config.run_path / "checkpoints")
