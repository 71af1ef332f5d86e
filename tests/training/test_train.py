"""Training goes on to the bit from any kill, and ends with the best model that validation saw."""

import copy
import json
import math
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, reduce
from itertools import islice, pairwise, takewhile
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.opening import Update, Window, checkpoint_steps, read_progress, read_weights, step_directory
from mtkit.config.settings import Config
from mtkit.data.batches import NO_LABEL, gather, micro_batches, padded_batch, ragged
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, MtkitError, StoppedError
from mtkit.files import Stop, stopping_by_signal
from mtkit.models.interface import TranslationModel
from mtkit.pipeline import run_binarize, run_train
from mtkit.preparation.prepare import adopt, read_validation
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import DEFAULT_IDS, START_TOKENS, BoundaryTokens
from mtkit.training.checkpoint import save_checkpoint
from mtkit.training.records import Log, Validation, is_trained, selection_score
from mtkit.training.train import NUM_SAMPLES, Trainer
from mtkit.training.update import OBJECTIVES, LossScaler, random_seed
from mtkit.translation.translator import load
from tests.conftest import LEARNING, CorpusFiles, config_with, toy_pairs, toy_settings, write_lines
from tests.runs import (
    DEVICES,
    MASKED,
    MIXED,
    MODEL,
    RECURRENT,
    TRAINING,
    Killed,
    Make,
    always,
    at_step,
    doing,
    events,
    interrupt,
    kill,
    outcome,
    trained,
    trainer_of,
    whole_and_killed,
)

# Law: a run that was killed and resumed equals one that was not.


@pytest.fixture
def uninterrupted(finished_toy: Path) -> dict[str, Any]:
    """What is left by a run that nothing interrupted."""
    return outcome(finished_toy)


def test_a_run_killed_again_and_again_equals_one_that_was_not(make, uninterrupted):
    config = make()
    places = []
    for step in (3, 6, 9, 15, 23):
        with doing(kill, Trainer, "_update", at_step(step)), pytest.raises(Killed):
            trained(config)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
        places += [
            read_progress(config.run_path / "checkpoints", s)[0].pairs % 120
            for s in checkpoint_steps(config.run_path / "checkpoints")
        ]
    assert any(places), "some checkpoints are in the middle of an epoch"
    assert outcome(trained(config)) == uninterrupted
    assert len(events(config.run_path, "start")) > 1


def test_a_run_killed_in_the_middle_of_something_else_equals_one_that_was_not(make, uninterrupted):
    config = make()
    for owner, name, is_time in (
        (Validation, "measure", always),
        (Trainer, "_show_samples", at_step(16)),
        (Trainer, "_save", at_step(16)),
        (Trainer, "_finish", always),
        (Trainer, "_set_weights", always),
        (Trainer, "_write_bundle", always),
    ):
        with doing(kill, owner, name, is_time), pytest.raises(Killed):
            trained(config)
    assert outcome(trained(config)) == uninterrupted


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 23), (signal.SIGTERM, 5), (signal.SIGHUP, 8)],
)
def test_a_run_that_was_interrupted_saves_its_state_and_goes_on_as_if_it_had_not_been(
    make, uninterrupted, number, step, capfd
):
    config = make()
    with (
        doing(partial(signal.raise_signal, number), Trainer, "_update", at_step(step)),
        pytest.raises(StoppedError) as caught,
    ):
        trained(config)
    assert f"stopped at step {step + 1} by {number.name}; the state is saved" in str(caught.value)
    assert "stopping: saving the state" in capfd.readouterr().err
    assert checkpoint_steps(config.run_path / "checkpoints", resumable=True)[-1] == step + 1
    assert not (config.run_path / "model").exists()

    assert outcome(trained(config)) == uninterrupted


def test_a_checkpoint_made_off_schedule_is_not_averaged(make):
    config = make(max_steps=12, average_checkpoints=9, select_by="loss", keep_checkpoints=9)
    with doing(interrupt, Trainer, "_update", at_step(6)), pytest.raises(StoppedError):
        trained(config)
    run = trained(config)
    assert 7 in checkpoint_steps(run / "checkpoints")
    (average,) = events(run, "average")
    assert average["steps"] == [4, 8, 12]


def test_an_interrupted_validation_is_done_again(make, uninterrupted):
    config = make()
    with doing(interrupt, Validation, "measure", always), pytest.raises(StoppedError, match="at step 8"):
        trained(config)
    assert outcome(trained(config)) == uninterrupted


def test_the_random_state_of_the_process_changes_nothing(make, uninterrupted):
    torch.manual_seed(1)
    torch.rand(7)
    assert outcome(trained(make())) == uninterrupted


def test_another_seed_gives_another_run(make):
    weights = [read_weights(trained(make(f"seed{seed}", seed=seed, max_steps=2)) / "checkpoints", 2) for seed in (1, 2)]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if weights[0][name].any())


def test_chance_differs_with_seed_step_and_micro_batch():
    places = [(seed, step, batch) for seed in range(3) for step in range(20) for batch in range(3)]
    assert len({random_seed(*place) for place in places}) == len(places)


def test_the_log_is_cut_back_to_the_checkpoint(make):
    config = make()
    with doing(kill, Trainer, "_update", at_step(11)), pytest.raises(Killed):
        trained(config)
    assert [event["step"] for event in events(config.run_path, "train")] == [5, 10]
    trainer = trainer_of(config)
    trainer.log.close()
    assert trainer.state.progress.step == 8
    assert [event["step"] for event in events(config.run_path, "train")] == [5]


GRU = {**RECURRENT, "cell": "gru", "attention": "additive", "input_feeding": True}


MODELS = {"transformer": MODEL, "lstm": RECURRENT, "gru": GRU, "mixed": MIXED, "cmlm": MASKED}


# On the CPU, the mixed model, which has layers of both kinds, stands for the others in half precision.
@pytest.mark.parametrize(
    ("precision", "model"),
    [
        *(("fp32", name) for name in MODELS),
        *((half, name) for half in ("bf16", "fp16") for name in (MODELS if torch.cuda.is_available() else ["mixed"])),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_every_architecture_in_any_precision_resumes_to_the_bit_on_every_device(
    make, device, precision, model
):
    options = {"device": device, "precision": precision, "model": MODELS[model], "ema_decay": 0.9}
    options |= {"max_steps": 8, "accumulate": 2}
    whole, killed = whole_and_killed(make, 6, **options)
    assert outcome(killed) == outcome(whole)


@pytest.mark.parametrize(
    ("precision", "consistency", "model"),
    [
        (precision, consistency, name)
        for precision, consistency in (("bf16", "none"), ("fp16", "none"), ("bf16", "rdrop"))
        for name in (("transformer", "lstm", "mixed") if torch.cuda.is_available() else ("mixed",))
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_falls_in_every_precision_on_every_device(make, device, precision, consistency, model):
    options = {"precision": precision, "consistency": consistency, "max_steps": 40, "log_every": 8, "accumulate": 1}
    config = make(device=device, model=MODELS[model], **options, validate_every=40)
    losses = [event["nll"] for event in events(trained(config), "train")]
    assert losses[-1] < losses[0] - 0.5


PLATEAU = {"schedule": "plateau", "warmup_steps": 1, "plateau_factor": 0.5, "plateau_patience": 2, "validate_every": 2}


@pytest.mark.parametrize(
    "options",
    [
        {
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 0.01,
            "learning_rate": 0.3,
            "schedule": "cosine",
            "final_learning_rate": 0.001,
        },
        {"optimizer": "sgd", "learning_rate": 0.3, "schedule": "linear"},
        {"optimizer": "schedule_free", "schedule": "constant", "weight_decay": 0.01},
        {
            "optimizer": "muon",
            "matrix_learning_rate": 0.02,
            "weight_decay": 0.1,
            "weight_decay_of": "matrices",
            "schedule": "wsd",
            "decay_steps": 3,
            "final_learning_rate": 0.001,
        },
        {**PLATEAU, "learning_rate": 1e-12, "final_learning_rate": 2e-13},
    ],
    ids=["momentum-cosine", "sgd-linear", "schedule_free", "muon-wsd", "plateau"],
)
def test_every_optimizer_and_schedule_resumes_to_the_bit(make, options):
    whole, killed = whole_and_killed(make, 10, **options, max_steps=12)
    assert outcome(killed) == outcome(whole)


def test_plateau_lowers_the_rate_each_time_nothing_better_came_down_to_the_final_rate(make, capsys):
    # With a rate this small nothing is learnt, so the first validation stays the best.
    config = make(**PLATEAU, learning_rate=1e-12, final_learning_rate=2e-13, log_every=1, max_steps=18)
    rates = {event["step"]: event["lr"] for event in events(trained(config), "train")}
    falls = {step: rates[step] for step in rates if rates[step] != rates.get(step - 1)}
    assert falls == pytest.approx({1: 1e-12, 7: 5e-13, 11: 2.5e-13, 15: 2e-13})
    told = [line for line in capsys.readouterr().err.splitlines() if "is lowered" in line]
    assert told == ["nothing better in 2 validations: the learning rate is lowered"] * 3


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_run_that_leaves_layers_out_resumes_to_the_bit_and_every_weight_has_seen_every_update(make, optimizer):
    model = {"encoder_layers": 2, "decoder_layers": 1, "layer_dropout": 0.6}
    options = {"model": model, "max_steps": 12, "accumulate": 1, "optimizer": optimizer, "weight_decay": 0.01}
    whole, killed = whole_and_killed(make, 10, **options)
    assert outcome(killed) == outcome(whole)
    memory = load_file(step_directory(killed / "checkpoints", 12) / "optimizer.safetensors")
    counts = [count.item() for name, count in memory.items() if name.startswith("step/")]
    assert len(counts) == len(read_weights(killed / "checkpoints", 12))
    assert set(counts) == {12}


# A model starts from its own token wherever it reads a target.


@pytest.mark.parametrize("name", START_TOKENS)
def test_training_and_validation_start_from_the_models_token(make, name):
    config = make(model={"start_token": name, "dropout": 0.0})
    trainer = trainer_of(config)
    trainer.log.close()
    boundaries = BoundaryTokens(start=START_TOKENS[name](DEFAULT_IDS))
    with trainer.feed.batches(trainer.state.progress.step, trainer.state.progress.pairs) as stream:
        for _, (batch,) in islice(stream, 9):
            assert (batch.target.ids[:, 0] == boundaries.start).all()
    sources, references = read_validation(config)
    tokenizer = trainer.tokenizer
    batch = padded_batch(
        ragged(tokenizer.encode_source(sources)), ragged(tokenizer.encode_target(references)), boundaries
    )
    model = trainer.model.eval()
    with torch.no_grad():
        log_probs = model.output(model(batch.source, batch.target)).log_softmax(-1)
    nll = -log_probs.gather(2, batch.labels.clamp(min=0)[:, :, None])[:, :, 0][batch.target.mask].mean().item()
    assert measured(config, model)["nll"] == pytest.approx(nll, rel=1e-5)


def learning_in(max_steps: int) -> dict[str, object]:
    """Settings to learn the toy language in so many updates, with one validation."""
    once = {"validate_every": max_steps, "save_every": max_steps, "average_checkpoints": 1}
    return {**LEARNING, **once, "max_steps": max_steps, "warmup_steps": 20}


@pytest.fixture(scope="module")
def short_numbers(tmp_path_factory) -> CorpusFiles:
    """Numbers of two or three digits, which are learnt in half the updates, and a run that is binarized beside them."""
    root = tmp_path_factory.mktemp("short")
    pairs = [pair for pair in toy_pairs(6000) if len(pair[1].split()) <= 3][:700]
    for name, chosen in (("train", pairs[48:]), ("valid", pairs[:24]), ("test", pairs[24:48])):
        write_lines(root / f"{name}.src", [source for source, _ in chosen])
        write_lines(root / f"{name}.tgt", [target for _, target in chosen])
    run_binarize(config_with(toy_settings(CorpusFiles(root), root / "run")))
    return CorpusFiles(root)


def num_right(config: Config, numbers: CorpusFiles) -> int:
    """How many of 24 new numbers are right after training."""
    adopt(config, numbers.root / "run")
    run_train(config)
    sources, targets = numbers.lines("test")
    found = load(config.run_path, ["device=cpu"]).translate(sources)
    return sum(one == other for one, other in zip(found, targets, strict=True))


def test_a_model_that_starts_from_another_token_learns_to_read_numbers_too(make_config, short_numbers):
    # Those that start from the end and from zero are tested where they are exported.
    model = {"start_token": "pad", "output_bias": True, "activation": "swiglu", "norm": "rms", "positions": "rotary"}
    data = {"root": str(short_numbers.root)}
    config = make_config(model={**model, "d_ff": 64}, training=learning_in(140), data=data)
    assert num_right(config, short_numbers) >= 6
    assert load(config.run_path, ["device=cpu"]).model.boundaries.start == DEFAULT_IDS.pad


@pytest.mark.parametrize(
    "options", [{"consistency": "rdrop"}, {"consistency": "simcut", "ema_decay": 0.9}], ids=["rdrop", "simcut and ema"]
)
def test_a_run_whose_two_passes_must_agree_resumes_to_the_bit(make, options):
    whole, killed = whole_and_killed(make, 10, **options, max_steps=12)
    assert outcome(killed) == outcome(whole)
    assert all(line["consistency"] > 0 for line in events(killed, "train"))


# Law: accumulated small batches are one large one.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batching", ["bucketed", "packed"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "learned", "alibi"])
def test_small_batches_bucketed_or_packed_give_the_gradient_of_one_large_batch(make, device, batching, positions):
    limit = {"max_positions": 45} if positions == "learned" else {}
    config = make(
        device=device,
        precision="fp32",
        model={"dropout": 0.0, "positions": positions, **limit},
        batch_tokens=100 if batching == "packed" else 40,
        accumulate=1000,
        batching=batching,
    )
    corpus = Corpus.open(config.run_path / "data" / "train")
    stream = takewhile(lambda item: item[0] == 0, micro_batches(corpus, config.training, 0))
    small = [batch for _, (batch,) in stream]
    sides = ((corpus.source_tokens, corpus.source_offsets), (corpus.target_tokens, corpus.target_offsets))
    large = [padded_batch(*(gather(*side, np.arange(len(corpus))) for side in sides))]
    found: list[dict[str, Tensor]] = []
    for batches in (large, small):
        trainer = trainer_of(config)
        trainer.log.close()
        gradients = {}
        trainer.state.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, gradients=gradients: gradients.update(
                {name: p.grad.double() for name, p in trainer.model.named_parameters()}
            )
        )
        trainer._update((0, (batch,)) for batch in batches)
        assert trainer.state.progress.pairs == len(corpus)
        found.append(gradients)
    assert len(small) > 5
    assert {batch.source.packed for batch in small} == {batching == "packed"}

    distance, norm = (
        sum(gradient.square().sum() for gradient in each).sqrt()
        for each in ([found[0][name] - found[1][name] for name in found[0]], found[0].values())
    )
    assert norm > 0.1
    assert distance < 1e-5 * norm


@pytest.mark.parametrize("consistency", ["none", "rdrop"])
@pytest.mark.parametrize("model", [{}, MIXED, MASKED], ids=["transformer", "mixed", "masked"])
def test_layers_that_are_computed_again_give_the_same_gradient_and_keep_less(make, model, consistency):
    if model is MASKED:
        consistency = "none"
    config = make(consistency=consistency, precision="fp32", model=model)
    found = []
    for recompute in (False, True):
        settings = config.training.model_copy(update={"recompute": recompute})
        trainer = trainer_of(config.model_copy(update={"training": settings}))
        trainer.log.close()
        gradient: list[Tensor] = []
        trainer.state.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, gradient=gradient: gradient.extend(
                p.grad.clone() for p in trainer.model.parameters() if p.grad is not None
            )
        )
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        trainer.model.train()
        with trainer.feed.batches(0, 0) as stream, torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
            trainer._update(stream)
        found.append((torch.cat([each.flatten() for each in gradient]), kept))
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1] < (0.95 if model is MIXED else 0.8) * found[0][1]


@pytest.mark.parametrize("consistency", ["none", "rdrop", "simcut"])
def test_the_gradient_of_an_update_is_the_sum_of_its_batches_divided_by_all_their_tokens(make, consistency):
    config = make(batch_tokens=40, accumulate=3, consistency=consistency)
    trainer = trainer_of(config)
    trainer.log.close()
    stream = micro_batches(trainer.corpus, config.training, 0)
    batches = [batch for _, (batch,) in islice(stream, 3)]
    assert len({batch.target_tokens for batch in batches}) > 1
    parameters = dict(trainer.model.named_parameters())
    total = torch.zeros(())
    sums = []
    trainer.model.train()
    for number, batch in enumerate(batches):
        torch.manual_seed(random_seed(config.training.seed, 1, number))
        loss = OBJECTIVES[consistency](trainer.model, batch, config.training)
        total = total + loss.total
        sums.append(loss.sums)
    tokens = sum(batch.target_tokens for batch in batches)
    wanted = torch.autograd.grad(total / tokens, list(parameters.values()))
    found = {}
    trainer.state.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: parameter.grad.clone() for name, parameter in parameters.items()})
    )
    trainer._update((0, (batch,)) for batch in batches)
    for name, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    record = trainer.state.progress.window.record(1.0)
    names = ["loss", "nll", "consistency"][: len(sums[0])]
    assert [record[name] for name in names] == [round(value / tokens, 5) for value in sum(sums).tolist()]
    assert ("consistency" in record) == (consistency != "none")


# What must not change, and what may.


@pytest.fixture
def stopped(make: Make, stopped_toy: Path) -> Config:
    """Settings of a run that has come to step 8 of 8."""
    config = make(max_steps=8)
    shutil.rmtree(config.run_path)
    shutil.copytree(stopped_toy, config.run_path)
    return config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 7}, "training.seed was 1, is 7"),
        ({"batch_tokens": 100}, "training.batch_tokens was 96, is 100"),
        (
            {"accumulate": 2, "select_by": "loss"},
            "training.accumulate was 1, is 2; training.select_by was bleu, is loss",
        ),
        ({"model": {"dropout": 0.1}}, "model.dropout was 0.3, is 0.1"),
    ],
)
def test_changed_settings_are_named_and_refused(make, stopped, changes, told):
    before = outcome(stopped.run_path)
    with pytest.raises(CheckpointError) as caught:
        trained(make(**{"max_steps": 16, **changes}))
    assert told in str(caught.value)
    assert "cannot go on from step 8" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert outcome(stopped.run_path) == before


def test_limits_and_what_is_logged_and_kept_may_change(make, stopped):
    config = make(max_steps=16, max_minutes=60.0, patience=50, log_every=3, keep_checkpoints=3, max_skipped=4)
    assert not is_trained(config)
    run = trained(config)
    assert checkpoint_steps(run / "checkpoints")[-1] == 16
    assert is_trained(config)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_where_the_schedule_ends_at_max_steps_they_may_not_change(make, schedule):
    trained(make(max_steps=9, schedule=schedule))
    with pytest.raises(CheckpointError, match=r"cannot go on from step 9.*: training\.max_steps was 9, is 16\."):
        trained(make(max_steps=16, schedule=schedule))


def test_a_run_that_is_older_than_a_setting_goes_on_where_the_setting_is_its_default(make, stopped):
    folder = stopped.run_path / "checkpoints"
    trainer = trainer_of(stopped)
    trainer.log.close()
    identity = trainer._identity()
    del identity["training"]["momentum"], identity["model"]["activation"]
    save_checkpoint(folder, trainer.state, identity)
    with pytest.raises(CheckpointError, match=r"these changed: model\.activation was relu, is gelu\."):
        trainer_of(make(max_steps=8, model={"activation": "gelu"}))
    assert checkpoint_steps(trained(make(max_steps=12)) / "checkpoints")[-1] == 12


@pytest.mark.parametrize(("model", "inside"), [(MODEL, ()), (MIXED, ("encoder",))], ids=["transformer", "mixed"])
def test_a_finished_run_that_is_older_than_a_setting_is_up_to_date_where_the_setting_is_its_default(
    make, model, inside
):
    config = make(max_steps=4, model=model)
    trained(config)
    done = config.run_path / "trained.json"
    written = json.loads(done.read_text("utf-8"))

    def is_trained_without(*path: str) -> bool:
        older = copy.deepcopy(written)
        *sections, setting = path
        del reduce(getitem, sections, older)[setting]
        done.write_text(json.dumps(older), "utf-8")
        return is_trained(config)

    assert is_trained_without("training", "momentum")
    assert is_trained_without("model", *inside, "activation")
    assert not is_trained_without("training", "save_every")
    assert not is_trained_without("model", *inside, "d_ff")
    assert not is_trained_without("data")


def test_what_does_not_tell_that_training_ended_is_not_taken_for_it(make):
    config = make(max_steps=1)
    run = trained(config)
    assert is_trained(config)
    for content in ("", "[]", "{}", '{"model": 1, "training": null}', "{"):
        (run / "trained.json").write_text(content)
        assert not is_trained(config), content


def test_other_data_is_refused(make, stopped, corpus_files, make_config):
    other = make_config(stopped.run_path.parent / "other", model=MODEL, training=TRAINING)
    run_binarize(other)
    shutil.copytree(stopped.run_path / "checkpoints", other.run_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"changed: the training text \(data.train\) or its .*; the tokenizer"):
        trained(other)


def test_a_changed_byte_of_the_newest_checkpoint_is_noticed_and_what_the_message_says_helps(
    make, stopped, uninterrupted
):
    newest = step_directory(stopped.run_path / "checkpoints", 8)
    for name in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
        whole = (newest / name).read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        (newest / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}: damaged.*; delete {newest} to go on from step 4"):
            trained(make())
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)
    assert outcome(trained(make())) == uninterrupted


def test_an_optimizer_file_that_is_gone_from_the_newest_checkpoint_is_noticed(make, stopped):
    newest = step_directory(stopped.run_path / "checkpoints", 8)
    (newest / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"missing; delete {newest} to go on from step 4"):
        trained(make())


def test_where_the_best_checkpoint_is_gone_the_search_for_the_best_starts_again(make, stopped, capsys):
    run = stopped.run_path
    trained(make(max_steps=20, select_by="bleu"))
    progress, _, _ = read_progress(run / "checkpoints", 20)
    config = make(max_steps=24)
    shutil.rmtree(step_directory(run / "checkpoints", progress.best_step))
    capsys.readouterr()
    trained(config)
    assert "is gone: the search for the best one starts again" in capsys.readouterr().err
    assert read_progress(run / "checkpoints", 24)[0].best_step in (20, 24)
    assert is_trained(config)


def test_a_place_where_no_batch_ends_is_told_and_not_passed_over(make, stopped):
    trainer = trainer_of(stopped)
    for _, (batch,) in micro_batches(trainer.corpus, trainer.settings, trainer.state.progress.pairs):
        if batch.num_pairs > 1:
            break
        trainer.state.progress.pairs += 1
    trainer.state.progress.pairs += batch.num_pairs - 1  # as if an earlier version had cut other batches
    trainer._save()
    trainer.log.close()
    with pytest.raises(CheckpointError, match=r"from step 8: no batch ends after .* pairs, so another version"):
        trained(make(max_steps=12))


def test_what_a_kill_left_is_cleared_when_the_run_goes_on(make, stopped):
    folder = stopped.run_path / "checkpoints"
    shutil.copytree(folder / "step-00000008", folder / "step-00000006")
    (folder / "step-00000006" / "progress.json").unlink()
    shutil.copytree(folder / "step-00000008", folder / ".step-00000007.new")
    trained(make(max_steps=12))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000008", "step-00000012"]


# Numbers that are not finite.


def test_an_update_that_is_not_finite_is_skipped_and_counted_and_poisons_nothing(make, monkeypatch, capsys):
    config = make(max_steps=12, log_every=1)
    update = Trainer._update

    def disturbed(trainer: Trainer, stream: Iterator[Any]) -> int:
        """Weights that overflow in step 6, and a gradient that does in step 9."""
        weight = trainer.model.output.weight
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        step, skipped = trainer.state.progress.step + 1, trainer.state.progress.skipped
        memory = str(trainer.state.optimizer.state_dict()["state"]) if step in (6, 9) else ""
        hook = weight.register_hook(lambda gradient: gradient * math.inf) if step == 9 else None
        if step == 6:
            with torch.no_grad():
                weight[5, 0] = math.inf
        epoch = update(trainer, stream)
        if hook is not None:
            hook.remove()
        if step == 6:
            with torch.no_grad():
                weight[5, 0] = before[
                    "decoder.output.table.weight"
                    if "decoder.output.table.weight" in before
                    else _name(trainer.model, weight)
                ][5, 0]
        if step in (6, 9):
            assert trainer.state.progress.skipped == skipped + 1
            assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
            assert str(trainer.state.optimizer.state_dict()["state"]) == memory
        return epoch

    monkeypatch.setattr(Trainer, "_update", disturbed)
    run = trained(config)
    progress, _, _ = read_progress(run / "checkpoints", 12)
    assert (progress.skipped, progress.skipped_in_row) == (2, 0)
    assert events(run, "skipped") == [
        {"event": "skipped", "step": 6, "what": "loss"},
        {"event": "skipped", "step": 9, "what": "gradient"},
    ]
    told = capsys.readouterr().err
    assert "step 6: the loss is not finite; the update is skipped (1 so far)" in told
    assert "step 9: the gradient is not finite; the update is skipped (2 so far)" in told
    assert [event["step"] for event in events(run, "train")] == [1, 2, 3, 4, 5, 7, 8, 10, 11, 12]
    assert all(tensor.isfinite().all() for tensor in read_weights(run / "checkpoints", 12).values())


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_fp16_is_that_of_fp32_clipped_after_unscaling(make, device):
    found = {}
    for precision in ("fp32", "fp16"):
        config = make(device=device, precision=precision, model={"dropout": 0.0}, clip_norm=0.25)
        trainer = trainer_of(config)
        trainer.log.close()
        gradients = found[precision] = {}
        trainer.state.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, gradients=gradients: gradients.update(
                {name: p.grad.double() for name, p in trainer.model.named_parameters()}
            )
        )
        trainer.updater.scaler = LossScaler(trainer.device, precision, 256.0, 0)
        with trainer.feed.batches(trainer.state.progress.step, trainer.state.progress.pairs) as stream:
            trainer._update(stream)
    norms = {p: sum(g.square().sum() for g in found[p].values()).sqrt().item() for p in found}
    assert norms == pytest.approx({"fp32": 0.25, "fp16": 0.25}, rel=1e-4)
    distance = sum((found["fp32"][name] - found["fp16"][name]).square().sum() for name in found["fp32"]).sqrt()
    assert 0 < distance < 0.01 * norms["fp32"]


def overflowing(steps: Iterable[int]) -> AbstractContextManager[None]:
    """The gradients of these steps are infinite though their losses are not."""
    steps = set(steps)
    update = Trainer._update

    def disturbed(trainer: Trainer, stream: Iterator[Any]) -> int:
        if trainer.state.progress.step + 1 not in steps:
            return update(trainer, stream)
        hook = trainer.model.output.weight.register_hook(lambda gradient: gradient * math.inf)
        epoch = update(trainer, stream)
        hook.remove()
        return epoch

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_update", disturbed)
            yield

    return patched()


def test_overflows_of_fp16_lower_the_scale_and_end_nothing_and_resume_to_the_bit(make, capsys):
    options = {"precision": "fp16", "max_skipped": 2, "max_steps": 12, "keep_checkpoints": 9}
    steps = [2, 3, 4, 5, 9]
    with overflowing(steps):
        whole, run = whole_and_killed(make, 10, **options)
    assert outcome(run) == outcome(whole)
    progress, _, _ = read_progress(run / "checkpoints", 12)
    found = events(run, "overflow")
    assert set(steps) <= {event["step"] for event in found}
    assert (progress.skipped, progress.overflows) == (0, len(found))
    assert [event["loss_scale"] for event in found] == [2.0 ** (15 - n) for n in range(len(found))]
    assert progress.loss_scale == found[-1]["loss_scale"]
    assert progress.scale_updates == 12 - found[-1]["step"]
    told = "the gradient overflows fp16; the update is skipped and the loss scale lowered to"
    assert f"step 9: {told} {found[-1]['loss_scale']:g} ({len(found)} so far)\n" in capsys.readouterr().err


def test_a_gradient_that_overflows_at_any_scale_ends_training(make):
    config = make(precision="fp16", max_skipped=2, save_every=1, validate_every=50)
    with overflowing(range(1, 99)), pytest.raises(MtkitError) as caught:
        trained(config)
    message = str(caught.value)
    assert "the gradient of step 17 overflows fp16 at any loss scale; the last good checkpoint is that of" in message
    assert "training.precision fp32" in message
    assert "\n" not in message


def test_a_loss_of_fp16_that_is_not_finite_counts_as_in_other_precisions(make):
    config = make(precision="fp16", max_skipped=2, save_every=1, validate_every=50)
    trainer = trainer_of(config)
    with torch.no_grad():
        trainer.model.output.weight[5, 0] = math.inf
    with pytest.raises(MtkitError, match="2 updates in a row, the last at step 2, were not finite"):
        trainer.run(Stop())


def _name(model: torch.nn.Module, weight: Tensor) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def test_many_updates_in_a_row_that_are_not_finite_end_training_with_a_good_checkpoint_in_place(
    make, capsys, monkeypatch
):
    update = Trainer._update

    def diverging(trainer: Trainer, stream: Iterator[Any]) -> int:
        """Gradients that overflow from step 7 on, unless the rate is low."""
        bad = trainer.state.progress.step >= 6 and trainer.settings.learning_rate > 0.005
        hook = trainer.model.output.weight.register_hook(lambda gradient: gradient * math.inf) if bad else None
        epoch = update(trainer, stream)
        if hook is not None:
            hook.remove()
        return epoch

    monkeypatch.setattr(Trainer, "_update", diverging)
    config = make(max_skipped=4, save_every=1)
    with pytest.raises(MtkitError) as caught:
        trained(config)
    message = str(caught.value)
    assert "4 updates in a row" in message
    assert "training.learning_rate" in message
    assert "\n" not in message
    skipped = r"step ([\d,]+): the \w+ is not finite"
    first_bad = int(re.findall(skipped, capsys.readouterr().err)[-4])
    last = checkpoint_steps(config.run_path / "checkpoints")[-1]
    assert last == first_bad - 1, "a checkpoint of the bad stretch would take the place of a good one"
    assert f"the last good checkpoint is that of step {last}" in message
    trainer = trainer_of(config)
    trainer.log.close()
    assert trainer.state.progress.step == last
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    for event in events(config.run_path):
        json.dumps(event, allow_nan=False)
    with pytest.raises(MtkitError, match="4 updates in a row"):
        trained(config)
    run = trained(make(max_skipped=4, save_every=1, learning_rate=0.001), change=True)
    assert checkpoint_steps(run / "checkpoints")[-1] == 24


# The end of training, and what is chosen.


def test_training_ends_after_max_steps(make):
    run = trained(make(max_steps=5))
    assert checkpoint_steps(run / "checkpoints") == [4, 5]
    assert [event["step"] for event in events(run, "validation")] == [5]
    assert open_bundle(run).description["training"]["steps"] == 5


def test_training_ends_after_max_minutes(make, capsys):
    run = trained(make(max_minutes=1e-6))
    assert "training.max_minutes 1e-06 is reached" in capsys.readouterr().err
    assert (run / "model" / "bundle.json").exists()
    assert checkpoint_steps(run / "checkpoints")[-1] < 24


def test_training_ends_when_validations_stop_getting_better(make, capsys):
    # With a rate this small nothing is learnt, so the first validation stays the best.
    run = trained(make(learning_rate=1e-12, validate_every=2, patience=3))
    told = "no better bleu in 3 validations (training.patience) than that of step 2"
    said = capsys.readouterr().err
    assert f"training ends at step 8: {told}\n" in said
    # Eight updates of two batches read these pairs, of 120.
    assert f"step 8, epoch {read_progress(run / 'checkpoints', 8)[0].pairs / 120:.1f}: loss" in said
    assert [event["best"] for event in events(run, "validation")] == [True, False, False, False]
    assert checkpoint_steps(run / "checkpoints")[-1] == 8


@pytest.mark.parametrize("metric", ["bleu", "chrf", "loss"])
def test_the_best_checkpoint_is_the_first_with_the_best_figure(make, metric):
    config = make(select_by=metric, validate_every=2, learning_rate=0.03, max_steps=16)
    run = trained(config)
    validations = events(run, "validation")
    best = max(validations, key=lambda event: (selection_score(event, config.training), -event["step"]))
    last = checkpoint_steps(run / "checkpoints")[-1]
    progress, _, _ = read_progress(run / "checkpoints", last)
    assert progress.best_step == best["step"]
    assert [event["step"] for event in validations if event["best"]][-1] == best["step"]
    scores = [selection_score(event, config.training) for event in validations if event["best"]]
    assert all(one < other for one, other in pairwise(scores))
    assert best["step"] in checkpoint_steps(run / "checkpoints")


def measured(config: Config, model: TranslationModel) -> dict[str, float]:
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    validation = Validation.prepare(config, tokenizer, *read_validation(config))
    return validation.measure(model, tokenizer, Stop())[0]


@pytest.mark.parametrize(("learning_rate", "count", "taken"), [(0.003, 3, False), (0.03, 3, True)])
def test_the_average_is_taken_if_it_validates_better_and_the_bundle_is_what_was_measured(
    make, learning_rate, count, taken
):
    config = make(
        select_by="loss",
        schedule="constant",
        warmup_steps=0,
        learning_rate=learning_rate,
        max_steps=48,
        average_checkpoints=count,
        seed=2,
    )
    run = trained(config)
    (average,) = events(run, "average")
    best = min(event["nll"] for event in events(run, "validation"))
    assert average["better"] == (average["nll"] < best) == taken
    steps = open_bundle(run).description["training"]["averaged_steps"]
    assert steps == (average["steps"] if taken else average["steps"][-1:])
    found = measured(config, load(run, ["device=cpu"]).model)
    wanted = average if taken else next(e for e in events(run, "validation") if e["nll"] == best)
    assert {key: wanted[key] for key in found} == found


def test_a_moving_average_changes_no_weights_but_is_what_is_measured_averaged_and_kept(make):
    options = {"save_every": 8, "select_by": "loss", "learning_rate": 0.03, "average_checkpoints": 1}
    alone, config = trained(make("alone", **options)), make(**options, ema_decay=0.9)
    run = trained(config)
    validations = events(run, "validation")
    others = {event["step"]: event["nll"] for event in events(alone, "validation")}
    for step in checkpoint_steps(run / "checkpoints"):
        weights, without = (read_weights(each / "checkpoints", step) for each in (run, alone))
        assert all(torch.equal(weights[name], without[name]) for name in weights)
        assert next(event["nll"] for event in validations if event["step"] == step) != others[step]
    (best,) = open_bundle(run).description["training"]["averaged_steps"]
    average = load_file(step_directory(run / "checkpoints", best) / "average.safetensors")
    kept = open_bundle(run).weights()
    assert all(torch.equal(kept[name], average[name]) for name in average)
    assert [event["step"] for event in validations if event["best"]][-1] == best
    found = measured(config, load(run, ["device=cpu"]).model)
    assert found == {key: next(event[key] for event in validations if event["step"] == best) for key in found}


def test_a_skipped_update_is_not_averaged(make, monkeypatch):
    config = make(max_steps=8, log_every=1, ema_decay=0.9, save_every=1, keep_checkpoints=9, average_checkpoints=9)
    update = Trainer._update

    def disturbed(trainer: Trainer, stream: Iterator[Any]) -> int:
        """A gradient that overflows in step 6."""
        weight = trainer.model.output.weight
        hook = weight.register_hook(lambda gradient: gradient * math.inf) if trainer.state.progress.step == 5 else None
        epoch = update(trainer, stream)
        if hook is not None:
            hook.remove()
        return epoch

    monkeypatch.setattr(Trainer, "_update", disturbed)
    run = trained(config)
    assert checkpoint_steps(run / "checkpoints") == [1, 2, 3, 4, 5, 7, 8]
    averages = [load_file(step_directory(run / "checkpoints", step) / "average.safetensors") for step in (4, 5, 7, 8)]
    changed = [any(not torch.equal(one[name], other[name]) for name in one) for one, other in pairwise(averages)]
    assert changed == [True, True, True]
    weights = read_weights(run / "checkpoints", 7)
    decay = (1 + 7) / (10 + 7)
    for name, average in averages[2].items():  # as if the sixth update had not been
        wanted = averages[1][name] * decay + weights[name] * (1 - decay)
        torch.testing.assert_close(average, wanted)
    assert all(tensor.isfinite().all() for average in averages for tensor in average.values())


@pytest.mark.parametrize("agreements", [[1.0, 3.0], [None, None]])
def test_a_line_of_the_log_is_the_mean_over_all_tokens_of_its_updates(agreements):
    window = Window()
    for tokens, consistency in zip((2, 6), agreements, strict=True):
        window.add(Update(4.0 * tokens, 2.0 * tokens, tokens, 1.0, 0.1, 0.5, consistency))
    record = window.record(1.0)
    assert (record["loss"], record["nll"], record.get("consistency")) == (4.0, 2.0, 0.5 if agreements[0] else None)


def test_validation_tells_the_loss_of_training_and_the_likelihood_apart(make):
    config = make(max_steps=3, label_smoothing=0.3)
    trainer = trainer_of(config)
    trainer.log.close()
    found, _ = trainer.validation.measure(trainer.model, trainer.tokenizer, Stop())
    model, sums, tokens = trainer.model.eval(), np.zeros(2), 0
    with torch.no_grad():
        for source, target in trainer.validation.batches:
            batch = padded_batch(source, target)
            logits, labels = model.output(model(batch.source, batch.target)), batch.labels
            flat = (logits.flatten(0, 1), labels.flatten())
            sums += [
                float(cross_entropy(*flat, ignore_index=NO_LABEL, reduction="sum", label_smoothing=s))
                for s in (0.3, 0.0)
            ]
            tokens += batch.target_tokens
    assert [found["loss"], found["nll"]] == pytest.approx(list(sums / tokens), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-12)
    assert found["loss"] != pytest.approx(found["nll"], rel=1e-3)
    settings = config.training.model_copy(update={"select_by": "loss"})
    assert selection_score(found, settings) == -found["nll"]
    run = trained(config)
    (line,) = events(run, "validation")
    assert {"loss", "nll", "perplexity", "bleu", "chrf"} <= line.keys()


def test_what_training_logs_is_what_it_did(make, corpus_files):
    config = make(log_every=4)
    run = trained(config)
    (start,) = events(run, "start")
    assert start["precision"] == "fp32"
    assert start["data"]["num_pairs"] == 120
    lines = events(run, "train")
    assert [line["step"] for line in lines] == list(range(4, 25, 4))
    assert all(0 < line["nll"] <= line["loss"] * 1.2 and 0 <= line["padding"] < 1 for line in lines)
    assert lines[-1]["nll"] < lines[0]["nll"]
    assert lines[-1]["epoch"] > 0
    samples = events(run, "sample")
    assert len(samples) == NUM_SAMPLES * 3
    sources, references = read_validation(config)
    assert all((sample["source"], sample["reference"]) in zip(sources, references, strict=True) for sample in samples)


def test_the_run_directory_holds_what_users_rely_on(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "tokenizer", "data", "checkpoints", "model", "log.jsonl"} <= names


def test_a_small_model_learns_to_read_numbers(tiny_run, corpus_files):
    sources, targets = corpus_files.lines("test")
    found = load(tiny_run, ["device=cpu"]).translate(sources)
    assert sum(one == other for one, other in zip(found, targets, strict=True)) >= 0.9 * len(targets)


NARROW = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
RNN = {"architecture": "rnn", **NARROW}
TRANSFORMER = {"architecture": "transformer", **NARROW, "num_heads": 4, "d_ff": 64}


# A model that has learnt nothing gets none of the lines right; 11 to 23 of 24 are right after these updates. The mixed
# models have the LSTM and its attention.
@pytest.mark.parametrize(
    ("model", "max_steps"),
    [
        ({**RNN, "cell": "tanh", "attention": "dot", "input_feeding": True}, 80),
        ({**RNN, "cell": "gru", "attention": "none", "context": "every_step", "d_model": 64}, 100),
        ({"architecture": "mixed", "encoder": TRANSFORMER, "decoder": RNN}, 120),
        ({"architecture": "mixed", "encoder": RNN, "decoder": TRANSFORMER}, 140),
    ],
    ids=["tanh", "gru without attention", "recurrent decoder", "recurrent encoder"],
)
def test_every_architecture_learns_to_read_numbers(make_config, short_numbers, model, max_steps):
    config = make_config(model=model, training=learning_in(max_steps), data={"root": str(short_numbers.root)})
    assert num_right(config, short_numbers) >= 6


# Signals.


def test_signals_are_as_they_were_when_training_ends(make):
    def mine(*_: object) -> None:
        """Another program's handler."""

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Killed), stopping_by_signal():
            kill()
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_ctrl_c_ends_the_run_at_once(first):
    with stopping_by_signal() as stop:
        signal.raise_signal(first)
        assert stop.signal == first
        with pytest.raises(StoppedError):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_that_no_person_sends_lets_the_state_be_saved(second):
    with stopping_by_signal() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(second)
        assert stop.signal == signal.SIGHUP


def test_a_run_that_was_ended_at_once_goes_on_as_if_it_had_not_been(make, uninterrupted):
    config = make()

    def interrupt_twice() -> None:
        interrupt()
        interrupt()

    with doing(interrupt_twice, Trainer, "_update", at_step(6)), pytest.raises(KeyboardInterrupt):
        trained(config)
    assert outcome(trained(config)) == uninterrupted


# A disk that is full.


def test_a_log_that_cannot_be_written_is_told_in_one_line(tmp_path):
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    log = Log(tmp_path / "log.jsonl", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for step in range(3):
            log.write("train", step=step)
        with pytest.raises(CheckpointError, match=r"log\.jsonl: cannot be written: .*make room") as caught:
            log.write("train", step=3)  # a part of it fits
        with pytest.raises(CheckpointError, match=r"log\.jsonl: cannot be written: .*make room"):
            log.write("train", step=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.close()
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that little fits on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("a small disk can only be made by one who may mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_in_one_line_and_what_is_there_goes_on_when_there_is_room(
    make, small_disk, prepared, uninterrupted
):
    shutil.copytree(prepared, small_disk / "run")
    config = make().model_copy(update={"run_dir": small_disk / "run"})
    told = []
    for free in range(100, 900, 100):  # KiB; the run wants more and more
        (small_disk / "filler").write_bytes(bytes((900 - free) << 10))
        try:
            trained(config)
            break
        except CheckpointError as error:
            told.append(str(error))
        (small_disk / "filler").unlink()
        if steps := checkpoint_steps(config.run_path / "checkpoints"):
            trainer = trainer_of(config)
            trainer.log.close()
            assert trainer.state.progress.step == steps[-1]
    assert told
    assert all("cannot be written" in message and "\n" not in message for message in told)
    assert outcome(config.run_path) == uninterrupted
