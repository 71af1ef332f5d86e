"""Settings may change on the way: freely where no weight depends on them, else when that is asked for."""

import json
import shutil
from itertools import accumulate, islice

import numpy as np
import pytest
import torch

from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.info import card_text, info_of, info_text
from mtkit.bundle.opening import (
    Progress,
    checkpoint_steps,
    content_checksum,
    measured_weights,
    parse_progress,
    read_progress,
    read_weights,
    setting_at,
)
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import ORDER, EarlierBudget, batches_from
from mtkit.errors import CheckpointError, StoppedError
from mtkit.files import Stop
from mtkit.training.optimizers import learning_rate
from mtkit.training.records import Changes, Difference, Log, best_logged, earlier_budgets, require_allowed, with_changes
from mtkit.training.train import Trainer
from tests.runs import (
    Killed,
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

RATE = Difference("training.learning_rate", 0.1, 0.2)


def stopped_at(config: Config, step: int, change: bool = False) -> None:
    """Train until so many updates are done, and stop with the state saved."""
    with doing(interrupt, Trainer, "_update", at_step(step - 1)), pytest.raises(StoppedError):
        trained(config, change)
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == step


# The chain of settings.


def test_what_changes_twice_at_a_step_counts_once_and_what_changes_back_not_at_all():
    once = with_changes([], 4, 90, [RATE])
    assert once == [{"step": 4, "pairs": 90, "settings": {"training.learning_rate": [0.1, 0.2]}}]
    again = with_changes(once, 4, 90, [Difference("training.learning_rate", 0.2, 0.4)])
    assert again == [{"step": 4, "pairs": 90, "settings": {"training.learning_rate": [0.1, 0.4]}}]
    assert with_changes(once, 4, 90, [Difference("training.learning_rate", 0.2, 0.1)]) == []
    assert len(with_changes(once, 5, 95, [Difference("training.learning_rate", 0.2, 0.1)])) == 2
    assert once == [{"step": 4, "pairs": 90, "settings": {"training.learning_rate": [0.1, 0.2]}}], (
        "it is left as it was"
    )


def test_a_setting_has_at_each_step_the_value_that_it_had_then():
    chain = with_changes([], 4, 90, [Difference("training.save_every", 2, 3)])
    chain = with_changes(chain, 9, 200, [Difference("training.save_every", 3, 5)])
    assert [setting_at(chain, "training.save_every", step, 5) for step in (1, 4, 5, 9, 10)] == [2, 2, 3, 3, 5]
    assert setting_at(chain, "training.validate_every", 1, 7) == 7


@pytest.mark.parametrize("name", ["training.seed", "training.start_from", "model.d_model", "mixing.weights", "data"])
def test_what_would_be_another_run_is_refused_though_it_is_asked_for(name, tmp_path):
    changes = Changes([], [], [Difference(name, 1, 2)])
    with pytest.raises(CheckpointError, match=rf"cannot go on from step 8.*{name}.*training\.start_from=.*--fresh"):
        require_allowed(changes, tmp_path, 8, True)


# The order of the pairs.


def test_after_a_change_of_the_budget_every_pair_still_comes_once_an_epoch():
    chance = np.random.default_rng(0)
    lengths = chance.integers(2, 30, 500)
    before = list(islice(batches_from(0, lengths, lengths, 64, 1), 40))
    consumed = sum(len(pairs) for _, pairs in before)
    middle = list(islice(batches_from(consumed, lengths, lengths, 200, 1, earlier=[EarlierBudget(consumed, 64)]), 12))
    twice = consumed + sum(len(pairs) for _, pairs in middle)
    earlier = [EarlierBudget(consumed, 64), EarlierBudget(twice, 200)]
    rest = list(islice(batches_from(twice, lengths, lengths, 100, 1, earlier=earlier), 120))
    seen = [pair for epoch, batch in [*before, *middle, *rest] for pair in batch.pairs if epoch == 0]
    assert sorted(seen) == list(range(500))
    assert 0 < twice < 500, "both changes are in the middle of the first epoch"
    for budget, batches in ((64, before), (200, middle), (100, rest)):
        assert all(len(batch) * lengths[batch.pairs].max() <= budget for _, batch in batches)
    for done in range(60):  # from every boundary the stream goes on as if it had not stopped
        place = twice + sum(len(pairs) for _, pairs in rest[:done])
        found = list(islice(batches_from(place, lengths, lengths, 100, 1, earlier=earlier), 5))
        assert [(e, b.pairs.tolist()) for e, b in found] == [(e, b.pairs.tolist()) for e, b in rest[done : done + 5]]


def test_rows_may_be_packed_from_some_update_on():
    lengths = np.random.default_rng(0).integers(2, 30, 500)
    before = [batch for _, batch in islice(batches_from(0, lengths, lengths, 64, 1), 20)]
    consumed = sum(map(len, before))
    chain = [{"step": 4, "pairs": consumed, "settings": {"training.batching": ["auto", "packed"]}}]
    settings = TrainingConfig(batch_tokens=64, batching="packed")
    earlier = earlier_budgets(Progress(changes=chain), settings)
    assert earlier == [EarlierBudget(consumed, 64, "bucketed")]
    assert earlier_budgets(Progress(changes=chain, order=1), settings) == [EarlierBudget(consumed, 64, "by length")]
    chain.append({"step": 9, "pairs": 450, "settings": {"training.batch_tokens": [64, 80]}})
    settings = TrainingConfig(batch_tokens=80, batching="packed")
    assert earlier_budgets(Progress(changes=chain), settings) == [*earlier, EarlierBudget(450, 64, "packed")]
    rest = [
        b for e, b in islice(batches_from(consumed, lengths, lengths, 64, 1, None, earlier, "packed"), 200) if not e
    ]
    assert all(batch.is_packed for batch in rest[:-1])
    assert sorted(pair for batch in [*before, *rest] for pair in batch.pairs) == list(range(500))


def test_a_checkpoint_of_a_version_that_knew_one_order_only_has_that_order(make):
    config = make()
    stopped_at(config, 6)
    path = config.run_path / "checkpoints" / "step-00000006" / "progress.json"
    content = json.loads(path.read_text("utf-8"))
    assert parse_progress(path.read_bytes(), path)[0].order == content["progress"].pop("order") == ORDER
    del content["sha256"]
    content["sha256"] = content_checksum(content)
    assert parse_progress(json.dumps(content).encode(), path)[0].order == 1


def test_a_change_where_no_batch_ends_is_refused():
    lengths = np.full(100, 10)
    ends = list(accumulate(len(pairs) for _, pairs in islice(batches_from(0, lengths, lengths, 50, 1), 4)))
    place = next(place for place in range(1, 20) if place not in ends)
    with pytest.raises(
        ValueError, match=rf"no batch ends after {place} pairs, where training\.batch_tokens or batching changed"
    ):
        list(islice(batches_from(0, lengths, lengths, 100, 1, earlier=[EarlierBudget(place, 50)]), 5))


# A run that is changed.


def test_a_change_is_told_logged_kept_and_shown_on_the_card(make, capsys):
    stopped_at(make(accumulate=2), 6)
    config = make(learning_rate=0.02, batch_tokens=64, accumulate=3)
    capsys.readouterr()
    run = trained(config, change=True)
    said = capsys.readouterr().err
    wanted = {"training.batch_tokens": [96, 64], "training.accumulate": [2, 3], "training.learning_rate": [0.01, 0.02]}
    assert "from step 7 on: training.batch_tokens was 96, is 64; training.accumulate was 2, is 3" in said
    rates = [learning_rate(7, make(learning_rate=rate).training, 16) for rate in (0.02, 0.01)]
    assert f"the learning rate of step 7 is {rates[0]:.3e} (it would have been {rates[1]:.3e})" in said
    (event,) = events(run, "change")
    assert event == {"event": "change", "step": 6, "settings": wanted}
    pairs = read_progress(run / "checkpoints", 8)[0].changes[0]["pairs"]
    chain = [{"step": 6, "pairs": pairs, "settings": wanted}]
    assert json.loads((run / "run.json").read_text())["changes"] == chain
    bundle = open_bundle(run)
    assert bundle.description["training"]["changes"] == chain
    assert "after update 6 training.batch_tokens from 96 to 64" in card_text(bundle, [])
    assert "training.learning_rate from 0.01 to 0.02" in " ".join(info_text(info_of(run)).split())
    assert earlier_budgets(Progress(changes=chain), config.training) == [EarlierBudget(pairs, 96)]


def test_what_was_changed_once_need_not_be_asked_for_again_and_going_back_must(make):
    stopped_at(make(), 6)
    config = make(learning_rate=0.02)
    with doing(kill, Trainer, "_update", at_step(6)), pytest.raises(Killed):
        trained(config, change=True)
    with doing(kill, Trainer, "_update", at_step(7)), pytest.raises(Killed):
        trained(config)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.02, is 0\.01.*--change"):
        trained(make())
    assert len(events(config.run_path, "change")) == 1


# Each entry: the settings of the run from the step on at which it is changed.
CHAIN = [
    (5, {"learning_rate": 0.02}),
    (10, {"learning_rate": 0.02, "batch_tokens": 64, "accumulate": 3}),
    (15, {"learning_rate": 0.02, "batch_tokens": 64, "accumulate": 3, "schedule": "linear", "max_steps": 20}),
    (20, {"learning_rate": 0.02, "batch_tokens": 64, "accumulate": 3, "schedule": "linear", "max_steps": 27}),
]


def test_a_run_that_is_changed_and_killed_equals_the_same_changes_without_kills(make):
    found = []
    for name, kills in (("whole", ()), ("killed", (6, 12, 18))):
        settings: dict = {}
        for step, following in [*CHAIN, (27, {})]:
            config = make(name, ema_decay=0.9, **settings)
            for at in (at for at in kills if at < step and at >= step - 5):
                with doing(kill, Trainer, "_update", at_step(at)), pytest.raises(Killed):
                    trained(config, change=True)
            if config.training.max_steps == step:
                trained(config, change=True)
            else:
                stopped_at(config, step, change=True)
            settings = following
        checkpoints = config.run_path / "checkpoints"
        found.append([weight for read in (read_weights, measured_weights) for weight in read(checkpoints, 27).values()])
        assert len(read_progress(checkpoints, 27)[0].changes) == 4
    assert len(found[0]) == 2 * len(read_weights(checkpoints, 27))
    for weight, other in zip(*found, strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing": 0.2, "clip_norm": 1.0, "warmup_steps": 20, "model": {"dropout": 0.1}},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "muon", "weight_decay": 0.1, "ema_decay": 0.9},
        {"precision": "bf16", "consistency": "rdrop"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_may_be_asked_for_resumes_to_the_bit_afterwards(make, stopped_toy, changes):
    shutil.copytree(stopped_toy, make("uninterrupted").run_path, dirs_exist_ok=True)
    whole, killed = whole_and_killed(make, 14, change=True, max_steps=16, **changes)
    assert outcome(killed) == outcome(whole)


# What is free.


@pytest.mark.parametrize(
    "changes",
    [
        {"validate_every": 3, "validation_sentences": 2, "select_by": "loss"},
        {"save_every": 5, "average_checkpoints": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_no_weight_depends_on_is_free_and_changes_no_weight(make, finished_toy, stopped_toy, changes):
    wanted = read_weights(finished_toy / "checkpoints", 24)
    config = make(**changes)
    shutil.copytree(stopped_toy, config.run_path, dirs_exist_ok=True)
    run = trained(config)
    found = read_weights(run / "checkpoints", 24)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [set(change["settings"]) for change in read_progress(run / "checkpoints", 24)[0].changes] == [
        {f"training.{name}" for name in changes}
    ]


WSD = {"schedule": "wsd", "final_learning_rate": 0.001}


@pytest.mark.parametrize("longer", [{"decay_steps": 8}, {"decay_steps": "auto"}], ids=["given", "auto"])
def test_before_the_decay_of_wsd_its_place_is_free_and_changes_no_weight_before_it(make, longer):
    wanted = trained(make("wanted", **WSD, max_steps=24, **longer))
    stopped_at(make(**WSD, max_steps=20, decay_steps=9), 11)
    run = trained(make(**WSD, max_steps=24, **longer))
    found = read_weights(run / "checkpoints", 24)
    assert all(torch.equal(found[name], weight) for name, weight in read_weights(wanted / "checkpoints", 24).items())
    (change,) = read_progress(run / "checkpoints", 24)[0].changes
    assert change["settings"]["training.max_steps"] == [20, 24]


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [
        ({"max_steps": 20, "decay_steps": 9}, {"max_steps": 24, "decay_steps": 9}, 12),  # it falls already
        ({"max_steps": 24, "decay_steps": 9}, {"max_steps": 20, "decay_steps": 9}, 12),  # it should fall already
        ({"max_steps": 20, "decay_steps": 9}, {"max_steps": 20, "decay_steps": 4}, 12),
    ],
)
def test_once_wsd_falls_its_place_must_be_asked_for(make, before, after, step):
    stopped_at(make(**WSD, **before), step)
    with pytest.raises(CheckpointError, match=r"training\.(max|decay)_steps was .*--change"):
        trained(make(**WSD, **after))
    stopped_at(make(**WSD, **after), step + 1, change=True)


@pytest.mark.parametrize("schedules", [("constant", "wsd"), ("wsd", "constant")])
def test_to_and_from_wsd_is_asked_for(make, schedules):
    first, second = ({"schedule": name, **({"decay_steps": 9} if name == "wsd" else {})} for name in schedules)
    stopped_at(make(**first), 10)
    with pytest.raises(CheckpointError, match=r"training\.schedule was (\w+), is (?!\1)\w+.*--change"):
        trained(make(**second))
    stopped_at(make(**second), 11, change=True)


def test_where_validations_lower_the_rate_how_they_measure_is_not_free(make):
    stopped_at(make(schedule="plateau"), 10)
    with pytest.raises(CheckpointError, match=r"validate_every was 8, is 3.*--change"):
        trained(make(schedule="plateau", validate_every=3))
    stopped_at(make(schedule="plateau", save_every=5), 11)


def test_checkpoints_of_another_rhythm_are_averaged_all_the_same(make):
    settings = {"max_steps": 12, "average_checkpoints": 9, "select_by": "loss", "validate_every": 100}
    stopped_at(make(**settings), 8)
    run = trained(make(**{**settings, "save_every": 5}))
    (average,) = events(run, "average")
    assert average["steps"] == [4, 8, 10, 12]


def test_the_best_checkpoint_is_chosen_by_the_measure_of_now(make):
    settings = {"validate_every": 2, "save_every": 2, "average_checkpoints": 9, "keep_checkpoints": 9}
    stopped_at(make(**settings), 12)
    trainer = trainer_of(make(**{**settings, "select_by": "loss"}))
    losses = {event["step"]: event["nll"] for event in events(trainer.run_path, "validation")}
    best = min(losses, key=losses.__getitem__)
    progress = trainer.state.progress
    assert (progress.best_step, progress.best_score) == (best, -losses[best])
    assert progress.bad_validations == sum(step > best for step in losses)
    trainer.log.close()


def test_samples_that_hold_other_ends_of_lines_do_not_hide_the_figures_of_the_log(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    for step, nll in ((2, 3.0), (4, 1.0), (6, 2.0)):
        log.write("sample", step=step, source="one\u2028two\u0085three\u2029\x0b\x0c\x1c four\r")
        log.write("validation", step=step, nll=nll)
    log.close()
    settings = TrainingConfig(select_by="loss")
    assert best_logged(tmp_path / "log.jsonl", Progress(log_bytes=log.length), settings, [2, 4, 6]) == (4, -1.0, 1)


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten", "older"])
def test_where_the_log_does_not_tell_the_best_checkpoint_is_measured_again(make, damage, capsys):
    settings = {"validate_every": 2, "save_every": 2, "keep_checkpoints": 9}
    stopped_at(make(**settings), 6)
    path = make().run_path / "log.jsonl"
    log = path.read_bytes()
    damaged = {"cut": log[:-30], "overwritten": b"\xff\n" * 40, "older": log.replace(b'"nll"', b'"old"')}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    trainer = trainer_of(make(**settings, select_by="loss"))
    assert "the best checkpoint so far by the new measure is that of step" in capsys.readouterr().err
    assert trainer.state.progress.best_step
    trainer.log.close()


def test_a_best_score_of_other_sentences_is_measured_again(make):
    stopped_at(make(validation_sentences=5, select_by="chrf"), 12)
    trainer = trainer_of(make(validation_sentences=2, select_by="chrf"))
    progress = trainer.state.progress
    kept = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    assert all(torch.equal(kept[name], weight) for name, weight in read_weights(trainer.checkpoints, 12).items())
    trainer._set_weights(read_weights(trainer.checkpoints, progress.best_step))
    assert len(trainer.validation.sources) == 2
    measured, _ = trainer.validation.measure(trainer.model, trainer.tokenizer, Stop())
    assert progress.best_score == measured["chrf"]
    trainer.log.close()


def test_signals_that_come_during_a_change_find_it_done_or_not_begun(make):
    stopped_at(make(), 6)
    config = make(learning_rate=0.02)
    with doing(interrupt, Trainer, "_write_facts", always), pytest.raises(StoppedError):
        trained(config, change=True)
    assert read_progress(config.run_path / "checkpoints", 6)[0].changes
    trained(config)


def test_a_run_that_was_not_changed_has_nothing_in_its_checkpoints_that_earlier_versions_cannot_read(make):
    config = make()
    stopped_at(config, 6)
    path = config.run_path / "checkpoints" / "step-00000006" / "progress.json"
    assert "changes" not in json.loads(path.read_text())["progress"]
    stopped_at(make(learning_rate=0.02), 7, change=True)
    path = config.run_path / "checkpoints" / "step-00000007" / "progress.json"
    assert len(json.loads(path.read_text())["progress"]["changes"]) == 1
