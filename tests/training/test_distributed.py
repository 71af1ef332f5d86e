"""Law: several ranks train as one process does that accumulates as many batches, and begin, fail and end together."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mtkit.bundle.opening import checkpoint_steps
from mtkit.config.settings import Config, config_text
from mtkit.data.batches import Share, micro_batches
from mtkit.data.corpus import Corpus
from mtkit.errors import DataError, MtkitError
from mtkit.preparation.prepare import read_validation
from mtkit.training import distributed
from mtkit.training.distributed import AGENT_STORE, ALONE, Place, Ranks, started
from mtkit.training.train import Trainer, train
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.forked import MTKIT, Forked
from tests.runs import MODEL, TRAINING, doing, events, interrupt, trainer_of

pytestmark = pytest.mark.skipif(not (hasattr(os, "fork") and dist.is_available()), reason="ranks are forked here")

LONGEST_WAIT = 300  # seconds; a machine may be busy
NAMES = [*Place(0, 2, 0, 2, "", 0).variables(), AGENT_STORE]


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> Callable[..., Config]:
    """A function that copies the prepared run, with settings by which its data is up to date for every command."""

    def made(name: str = "run", model: dict[str, Any] | None = None, **training: Any) -> Config:
        if not (tmp_path / name).exists():
            shutil.copytree(prepared, tmp_path / name)
        settings = {**TRAINING, "accumulate": 1, **training}
        return config_with(
            toy_settings(CorpusFiles(prepared.parent), tmp_path / name),
            tokenizer={"vocab_size": 330},
            model={**MODEL, **(model or {})},
            training=settings,
        )

    return made


@contextmanager
def environments(count: int = 2) -> Iterator[list[dict[str, str]]]:
    """The environments of ranks that this process starts, as torchrun does, with a store that this process has."""
    store = distributed._tcp_store("127.0.0.1", 0, is_first=True)
    places = [Place(rank, count, rank, count, "127.0.0.1", store.port) for rank in range(count)]
    yield [{**place.variables(), AGENT_STORE: "True"} for place in places]


def finished(
    commands: Sequence[Sequence[str]], folder: Path, timeout: float = LONGEST_WAIT
) -> list[tuple[int, list[str]]]:
    """Run one mtkit command for each rank; returns their exit codes, and the lines that they print on stderr."""
    ranks = []
    with ExitStack() as stack, environments(len(commands)) as variables:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for rank, command in enumerate(commands):
            for name, value in variables[rank].items():
                patch.setenv(name, value)
            stderr = stack.enter_context((folder / f"stderr-{rank}").open("wb"))
            ranks.append(Forked([*MTKIT, *command], stderr=stderr))
        try:
            codes = [rank.wait(timeout) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return [(code, (folder / f"stderr-{rank}").read_text("utf-8").splitlines()) for rank, code in enumerate(codes)]


def trained_by_two(config: Config, *overrides: str) -> list[tuple[int, list[str]]]:
    """Train with two ranks; returns their exit codes and messages."""
    path = config.run_path.with_suffix(".yaml")
    path.write_text(config_text(config), "utf-8")
    return finished([["train", str(path), *overrides]] * 2, path.parent)


def errors(found: list[tuple[int, list[str]]]) -> list[str]:
    """The error messages of all ranks."""
    return [line for _, lines in found for line in lines if "error" in line.lower() or "Traceback" in line]


# The batches and the gradient of an update.


@pytest.mark.parametrize("consumed", [0, 17])
def test_the_shares_of_the_ranks_are_the_batches_of_one_process_in_turn(prepared, make, consumed):
    corpus, config = Corpus.open(prepared / "data" / "train"), make().training
    consumed = sum(batch.num_pairs for _, (batch,) in islice(micro_batches(corpus, config, 0), consumed))
    whole, *shares = (
        [(epoch, batch.labels.tolist()) for epoch, (batch,) in islice(stream, number)]
        for stream, number in [
            (micro_batches(corpus, config, consumed), 30),
            *((micro_batches(corpus, config, consumed, share=Share(rank, 3)), 10) for rank in range(3)),
        ]
    )
    assert list(chain.from_iterable(zip(*shares, strict=True))) == whole


def gradients(config: Config, ranks: Ranks, name: str, disturb: Callable[[Trainer], None] | None = None) -> None:
    """Save the gradient of the first update of a run, and what the update tells; name is that of the file."""
    trainer = trainer_of(config, ranks)
    if disturb:
        disturb(trainer)
    trainer.log.close()
    found: dict[str, torch.Tensor] = {}
    trainer.state.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    )
    trainer.model.train()
    with trainer.feed.batches(0, 0, share=Share(ranks.rank, ranks.count)) as stream:
        trainer._update(stream)
    progress = trainer.state.progress
    told = [progress.pairs, progress.target_tokens, progress.window.loss, progress.window.norm, progress.window.padding]
    found = {name: gradient.clone() for name, gradient in found.items()}
    save_file({**found, "told": torch.tensor(told, dtype=torch.float64)}, config.run_path / name)


VARIANTS: dict[str, dict[str, Any]] = {
    "one batch each": {},
    "three batches each": {"accumulate": 3},
    "packed": {"accumulate": 3, "batching": "packed", "model": {"dropout": 0.3}},
    # With dropout, too, since the random numbers depend on the place of a batch in the update.
    "dropout": {"accumulate": 2, "model": {"dropout": 0.3}},
    # A layer that one rank leaves out has a gradient in the other.
    "layers left out": {"model": {"layer_dropout": 0.6, "encoder_layers": 2}},
    "rdrop in fp16": {"consistency": "rdrop", "precision": "fp16", "model": {"dropout": 0.3}},
    "clipped": {"clip_norm": 0.01},
    "no memory for a forward pass": {"accumulate": 2},
    "no memory for a backward pass": {"accumulate": 2},
}


def run_out_of_memory() -> None:
    """Raises the error of a GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def without_memory_forward(trainer: Trainer) -> None:
    """From now on, the second forward pass of the trainer runs out of memory."""
    decode, calls = trainer.model.decode, iter(range(100))
    trainer.model.decode = lambda *given: run_out_of_memory() if next(calls) == 1 else decode(*given)  # type: ignore


def without_memory_backward(trainer: Trainer) -> None:
    """From now on, the second backward pass of the trainer runs out of memory, when most gradients have been sent."""
    calls = iter(range(100))

    def fail(_: torch.Tensor) -> None:
        if next(calls) == 1:
            found.append(len(trainer.updater._gradients._sent))  # type: ignore[union-attr]
            run_out_of_memory()

    found: list[int] = []
    next(trainer.model.parameters()).register_post_accumulate_grad_hook(fail)
    trainer.state.optimizer.register_step_pre_hook(lambda *_: assert_positive(found))


def assert_positive(found: list[int]) -> None:
    """Assert that there is one number, above 0."""
    assert len(found) == 1
    assert found[0] > 0


DISTURBED = {
    "no memory for a forward pass": without_memory_forward,
    "no memory for a backward pass": without_memory_backward,
}


def test_two_ranks_give_the_gradient_of_one_process_that_accumulates_twice_as_much(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 2000)  # so that there are several buckets
    configs = {name: recipe(**{"model": {"dropout": 0.0}, **options}) for name, options in VARIANTS.items()}
    for name, config in configs.items():
        settings = config.training
        alone = settings.model_copy(update={"accumulate": 2 * settings.accumulate})
        gradients(config.model_copy(update={"training": alone}), ALONE, name)

    def rank(variables: dict[str, str]) -> None:
        os.environ.update(variables)
        with started("cpu", None, []) as ranks:
            for name, config in configs.items():
                gradients(config, ranks, f"{name}-{ranks.rank}", DISTURBED.get(name) if ranks.rank else None)

    with environments() as variables:
        children = [forked(rank, each) for each in variables]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    for name, config in configs.items():
        wanted, first, second = (load_file(config.run_path / each) for each in (name, f"{name}-0", f"{name}-1"))
        assert all(torch.equal(first[each], second[each]) for each in {**first, **second}), name
        assert first.keys() == wanted.keys(), name
        told = slice(4 if name in DISTURBED else 5)  # halves of batches have other padding
        assert first["told"].tolist()[told] == pytest.approx(wanted["told"].tolist()[told], rel=1e-5), name
        distance = sum((first[each] - wanted[each]).square().sum() for each in wanted if each != "told") ** 0.5
        norm = sum(wanted[each].square().sum() for each in wanted if each != "told") ** 0.5
        assert norm > 1e-3, name
        assert distance < (1e-3 if config.training.precision == "fp16" else 1e-5) * norm, name


def forked(function: Callable[[dict[str, str]], None], variables: dict[str, str]) -> int:
    """Start a child that calls the function; returns its process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function(variables)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


# Whole runs.


@pytest.fixture
def nobody_is_shown(monkeypatch):
    """Ranks do not wait until one of them has shown its error: here none ends another before it has."""
    monkeypatch.setattr(distributed, "SHOW_SECONDS", 0.05)


@pytest.mark.usefixtures("nobody_is_shown")
def test_a_run_goes_on_with_one_rank_after_another_was_killed_and_then_with_two(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "NEWS_SECONDS", 0.05)  # of a rank that is killed there are none
    options = {"update_tokens": 192, "batching": "packed", "keep_checkpoints": 9, "log_every": 1, "max_steps": 16}
    wanted = recipe("wanted", **options)
    train(wanted, read_validation(wanted))
    config = recipe(**options)

    def is_time(trainer: Trainer) -> bool:
        return trainer.ranks.rank == 1 and trainer.state.progress.step == 10

    with doing(lambda: os.kill(os.getpid(), signal.SIGKILL), Trainer, "_update", is_time):
        (code, said), (killed, _) = found = trained_by_two(config)
    assert (code, killed) == (1, -signal.SIGKILL)
    (error,) = errors(found)
    assert error == f"mtkit: error: another rank of the 2 is gone; {distributed.GONE}"
    assert "training on 2 devices; an update takes 2 batches" in said
    assert checkpoint_steps(config.run_path / "checkpoints") == [4, 8]

    with (
        doing(interrupt, Trainer, "_update", lambda trainer: trainer.state.progress.step == 12),
        pytest.raises(MtkitError, match="stopped at step 13"),
    ):
        train(config, read_validation(config))

    (code, said), (other, nothing) = trained_by_two(config)
    assert (code, other) == (0, 0)
    assert f"going on from step 13 in {config.run_path}" in said
    assert nothing == []
    assert json.loads((config.run_path / "run.json").read_text())["devices"] == 2
    for kind in ("train", "validation", "average"):
        pairs = list(zip(events(config.run_path, kind), events(wanted.run_path, kind), strict=True))
        assert pairs
        for ours, theirs in pairs:
            assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-3), kind
    assert events(config.run_path, "sample") == events(wanted.run_path, "sample")
    ours, theirs = (load_file(each.run_path / "model" / "weights.safetensors") for each in (config, wanted))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, atol=1e-3), name


def numbers(event: dict[str, Any]) -> dict[str, float]:
    """Those values of an event that are numbers."""
    return {name: value for name, value in event.items() if isinstance(value, int | float)}


# Failures.


@pytest.mark.usefixtures("nobody_is_shown")
def test_the_error_of_a_rank_is_the_one_that_is_shown(recipe, monkeypatch):
    monkeypatch.setattr(distributed, "ALIKE_SECONDS", 0.05)  # rank 0 does not fail

    def fail() -> None:
        raise DataError("the disk of this machine is gone")

    with doing(fail, Trainer, "_update", lambda trainer: trainer.ranks.rank == 1 and trainer.state.progress.step == 2):
        found = trained_by_two(recipe())
    assert [code for code, _ in found] == [1, 1]
    assert errors(found) == ["mtkit: error: the disk of this machine is gone"]


@pytest.mark.usefixtures("nobody_is_shown")
def test_where_all_ranks_fail_alike_one_shows_the_error(recipe):
    config = recipe(learning_rate=1e30, max_skipped=3, warmup_steps=1)
    found = trained_by_two(config)
    assert [code for code, _ in found] == [1, 1]
    (error,) = errors(found)
    assert "3 updates in a row" in error
    assert error in found[0][1]


@pytest.mark.usefixtures("nobody_is_shown")
def test_ranks_that_do_not_train_the_same_are_told_apart_before_the_first_update(recipe):
    config = recipe()
    path = config.run_path.with_suffix(".yaml")
    path.write_text(config_text(config), "utf-8")
    found = finished([["train", str(path)], ["train", str(path), "training.seed=7"]], path.parent)
    assert [code for code, _ in found] == [1, 1]
    (error,) = errors(found)
    assert "rank 1 does not train the same: training.seed is 1 in rank 0, 7 there" in error


def test_a_signal_to_any_rank_stops_all_and_saves_the_state_once(recipe):
    config = recipe()
    with doing(
        interrupt, Trainer, "_update", lambda trainer: trainer.ranks.rank == 1 and trainer.state.progress.step == 5
    ):
        found = trained_by_two(config)
    assert [code for code, _ in found] == [130, 130]
    (error,) = errors(found)
    assert error.startswith("mtkit: error: stopped at step 6 by SIGINT; the state is saved in ")
    assert found[1][1] == []
    assert checkpoint_steps(config.run_path / "checkpoints") == [4, 6]


# Starting.


def start(command: Sequence[str], stdin: int, env: dict[str, str], start_new_session: bool) -> Forked:
    """As subprocess.Popen, but by fork."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setenv(name, env.get(name, ""))
        return Forked(command, stdin=stdin, stderr=2)


def test_devices_starts_the_ranks_on_this_machine(recipe, monkeypatch):
    monkeypatch.setattr(distributed.subprocess, "Popen", start)
    config = recipe(max_steps=4, batch_tokens="auto", update_tokens=192, select_by="loss", target_score=100)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    path, messages = config.run_path.with_suffix(".yaml"), config.run_path.with_suffix(".stderr")
    path.write_text(config_text(config), "utf-8")
    with messages.open("wb") as stderr:
        process = Forked([*MTKIT, "run", str(path), "--devices", "2"], stderr=stderr)
        assert process.wait(LONGEST_WAIT) == 0
    said = messages.read_text("utf-8").splitlines()
    assert any(line.startswith("training.batch_tokens auto: 96") for line in said)
    assert "training on 2 devices; an update takes 2 batches" in said
    assert said.count(f"model: {config.run_path / 'model'}") == 1
    assert (config.run_path / "model" / "scores.json").exists()
    assert errors([(0, said)]) == []

    # There is nothing to train now, so that all ranks end at once.
    with messages.open("wb") as stderr:
        for command in (["train", str(path)], ["race", str(path), "--target", "100"]):
            assert Forked([*MTKIT, *command, "--devices", "2"], stderr=stderr).wait(LONGEST_WAIT) == 0
    assert messages.read_text("utf-8").splitlines() == [f"training: {config.run_path / 'model'} is up to date"] * 2
    assert json.loads((config.run_path / "race.json").read_text("utf-8"))["devices"] == 2


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        ({"WORLD_SIZE": "4"}, None, "WORLD_SIZE is 4 in the environment, but RANK is missing; start several processes"),
        (Place(0, 4, 0, 4, "here", 1).variables(), 2, "--devices 2: torchrun has started 4; leave --devices out"),
        ({}, 3, "3 devices are asked for, and this machine has 1 of type mps"),
    ],
    ids=["environment", "contradiction", "too many"],
)
def test_ranks_that_cannot_start_are_told(monkeypatch, variables, devices, message):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device(name))
    with pytest.raises(MtkitError) as error, started("mps", devices, []):
        pass
    assert str(error.value).startswith(message)


# The size of an update.


@pytest.mark.parametrize(
    ("settings", "devices", "batches"),
    [
        ({"accumulate": 3}, 4, 3),
        ({"update_tokens": 32768}, 1, 8),
        ({"update_tokens": 32768}, 4, 2),
        ({"update_tokens": 32768}, 16, 1),
        ({"update_tokens": 25000}, 1, 6),
        ({"update_tokens": 25000}, 4, 2),
        ({"update_tokens": 1}, 1, 1),
    ],
)
def test_update_tokens_keeps_the_size_of_an_update_on_any_number_of_devices(settings, devices, batches, make_config):
    assert make_config(training={"batch_tokens": 4096, **settings}).training.batches_per_update(devices) == batches


def test_update_tokens_and_accumulate_are_not_given_both(make_config):
    with pytest.raises(ValueError, match="accumulate 2 and update_tokens 8192 both say how large an update is"):
        make_config(training={"accumulate": 2, "update_tokens": 8192})
