"""A checkpoint is whole or not there, whenever a kill comes, and a changed byte in it is noticed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtkit.bundle.opening import (
    AVERAGE,
    CHECKPOINT_WEIGHTS,
    OPTIMIZER,
    PROGRESS,
    Progress,
    Window,
    average_weights,
    averaged_steps,
    checkpoint_steps,
    content_checksum,
    measured_weights,
    read_progress,
    read_weights,
    step_directory,
)
from mtkit.config.training_settings import TrainingConfig
from mtkit.errors import CheckpointError
from mtkit.training import checkpoint
from mtkit.training.checkpoint import TrainState, clear_leftovers, delete_old, load_checkpoint, save_checkpoint
from mtkit.training.optimizers import MovingAverage, make_optimizer, optimizer_tensors

IDENTITY = {"data": "these"}


def state_at(step: int) -> TrainState:
    """A layer after so many updates; the same for the same step."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainingConfig(), torch.device("cpu"))
    state = TrainState(model, optimizer, Progress(precision="fp32"))
    for done in range(1, step + 1):
        optimizer.param_groups[0]["lr"] = 0.1
        model(torch.full((4, 3), float(done))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state.progress.step, state.progress.pairs = done, 4 * done
    state.progress.window = Window(updates=2, loss=0.1 + 0.2, tokens=7)
    return state


def same(state: TrainState, other: TrainState) -> bool:
    """Whether weights, the optimizer's memory and progress are equal to the bit."""
    memory, others = (optimizer_tensors(each.optimizer, each.model) for each in (state, other))
    return (
        all(torch.equal(a, b) for a, b in zip(state.model.parameters(), other.model.parameters(), strict=True))
        and memory.keys() == others.keys()
        and all(torch.equal(memory[name], others[name]) for name in memory)
        and state.progress == other.progress
    )


def test_a_checkpoint_brings_back_weights_memory_and_progress(tmp_path):
    saved = state_at(3)
    saved.progress.best_score, saved.progress.seconds = 1 / 3, 0.1 + 0.2
    save_checkpoint(tmp_path, saved, IDENTITY)
    found = state_at(0)
    assert not same(found, saved)
    load_checkpoint(tmp_path, 3, found)
    assert same(found, saved)
    assert read_progress(tmp_path, 3)[1] == IDENTITY


def test_a_checkpoint_of_a_first_step_without_a_best_score_can_be_read(tmp_path):
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    assert read_progress(tmp_path, 1)[0].best_score == float("-inf")


def test_the_files_of_a_checkpoint_have_the_names_that_users_rely_on(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", state_at(20), IDENTITY)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {"weights.safetensors", "optimizer.safetensors", "progress.json"}
    assert found == {f"checkpoints/step-00000020/{name}" for name in wanted}


def averaging_state_at(step: int) -> TrainState:
    """The same with a moving average, that of twice the weights."""
    state = state_at(step)
    state.average = MovingAverage(state.model, 0.9)
    state.average.restore({name: 2 * parameter.detach() for name, parameter in state.model.named_parameters()})
    return state


def test_a_checkpoint_brings_back_the_moving_average_beside_the_weights(tmp_path):
    saved = averaging_state_at(3)
    save_checkpoint(tmp_path, saved, IDENTITY)
    found = averaging_state_at(0)
    load_checkpoint(tmp_path, 3, found)
    assert same(found, saved)
    assert same(found, state_at(3))
    for name, parameter in found.model.named_parameters():
        assert torch.equal(found.average.weights[name], 2 * parameter)


def test_what_is_measured_and_averaged_is_the_moving_average_where_there_is_one(tmp_path):
    for step, make in ((1, state_at), (2, averaging_state_at), (3, averaging_state_at)):
        save_checkpoint(tmp_path, make(step), IDENTITY)
    for name in ("weight", "bias"):
        assert torch.equal(measured_weights(tmp_path, 1)[name], read_weights(tmp_path, 1)[name])
        assert torch.equal(measured_weights(tmp_path, 2)[name], 2 * read_weights(tmp_path, 2)[name])
        wanted = torch.stack([read_weights(tmp_path, step)[name].double() for step in (2, 3)]).sum(0).float()
        assert torch.equal(average_weights(tmp_path, [2, 3])[name], wanted)


def test_a_checkpoint_from_before_consistency_was_logged_can_be_read(tmp_path):
    saved = state_at(2)
    save_checkpoint(tmp_path, saved, IDENTITY)
    path = step_directory(tmp_path, 2) / PROGRESS
    content = json.loads(path.read_text("utf-8"))
    del content["sha256"], content["progress"]["window"]["consistency"]
    path.write_text(json.dumps({**content, "sha256": content_checksum(content)}), "utf-8")
    found = state_at(0)
    load_checkpoint(tmp_path, 2, found)
    assert same(found, saved)


# Damage.


@pytest.mark.parametrize("name", [CHECKPOINT_WEIGHTS, OPTIMIZER, AVERAGE, PROGRESS])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_a_changed_byte_is_noticed_and_the_message_says_what_to_do(tmp_path, name, where):
    for step in (1, 2):
        save_checkpoint(tmp_path, averaging_state_at(step), IDENTITY)
    path = step_directory(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    data[{"start": 0, "middle": len(data) // 2, "end": -1}[where]] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, 2, averaging_state_at(0))
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged")
    assert message.endswith(f"delete {step_directory(tmp_path, 2)} to go on from step 1")
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"{}", b'{"sha256": ""}', b"\xff"])
def test_a_progress_file_of_anything_else_is_noticed(tmp_path, content):
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    (step_directory(tmp_path, 1) / PROGRESS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"progress\.json: damaged or missing; start anew with --fresh"):
        load_checkpoint(tmp_path, 1, state_at(0))


@pytest.mark.parametrize("name", [CHECKPOINT_WEIGHTS, OPTIMIZER])
def test_a_missing_file_is_noticed(tmp_path, name):
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    (step_directory(tmp_path, 1) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing; start anew with --fresh"):
        load_checkpoint(tmp_path, 1, state_at(0))


def test_a_damaged_checkpoint_that_is_not_the_newest_can_be_done_without(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, state_at(step), IDENTITY)
    (step_directory(tmp_path, 1) / CHECKPOINT_WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="to go on without it"):
        average_weights(tmp_path, [1, 2])


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99, but this version of mtkit reads 1"):
        read_progress(tmp_path, 1)


# Averages, and what is kept for them.


def test_an_average_is_the_mean_in_double_precision(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state_at(step), IDENTITY)
    found = average_weights(tmp_path, [1, 2, 3])
    for name, tensor in found.items():
        wanted = torch.stack([read_weights(tmp_path, step)[name].double() for step in (1, 2, 3)]).mean(0)
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-7, atol=0)
        assert tensor.dtype == torch.float32


def test_an_average_of_one_is_that_one(tmp_path):
    save_checkpoint(tmp_path, state_at(2), IDENTITY)
    found, wanted = average_weights(tmp_path, [2]), read_weights(tmp_path, 2)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("scheduled", "best", "count", "wanted"),
    [
        ([10, 20, 30, 40], 30, 2, [20, 30]),
        ([10, 20, 30, 40], 40, 9, [10, 20, 30, 40]),
        ([10, 20, 30, 40], 10, 3, [10]),
        ([10, 20, 30, 40], 35, 2, [30, 35]),  # the best one stands where an earlier limit ended the run
        ([10, 20], 0, 2, [0]),  # the model that training started from is averaged with none
        ([], 7, 3, [7]),
    ],
)
def test_the_average_is_of_the_checkpoints_that_end_at_the_best_one(scheduled, best, count, wanted):
    assert averaged_steps(scheduled, best, count) == wanted


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_what_any_average_may_need_is_kept_and_nothing_else(tmp_path, keep):
    average, scheduled, best = 3, [], 0
    for step in range(1, 13):
        on_time = step % 2 == 0
        save_checkpoint(tmp_path, state_at(step), IDENTITY)
        scheduled += [step] if on_time else []
        best = step if step in (4, 5, 6) else best  # 5 is a best one that is not on time
        delete_old(tmp_path, [s for s in scheduled if s in checkpoint_steps(tmp_path)], best, average, keep)

        steps = checkpoint_steps(tmp_path)
        resumable = checkpoint_steps(tmp_path, resumable=True)
        assert resumable == list(range(max(1, step - keep + 1), step + 1))
        if best:
            assert set(averaged_steps(scheduled, best, average)) <= set(steps)
        assert set(averaged_steps(scheduled, step, average)) - {step} <= set(steps), "the next one may be the best"
        assert len(steps) <= keep + 2 * average
    assert [s for s in steps if s < 8] == [2, 4, 6], "what the best one averages stays to the end"


# Kills.


class Killed(BaseException):
    """The moment at which nothing runs any more."""


class Listing(list[Any]):
    """What os.scandir gives: to be gone through, as it is or in a block."""

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@contextmanager
def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """After so many changes, nothing changes on disk any more; the list names the changes that were made."""
    made: list[str] = []

    def stopping(name: str, change: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            if len(made) >= moment:
                raise Killed
            made.append(name)
            return change(*arguments, **options)

        return wrapped

    def half_written(path: Path, text: str, **options: object) -> None:
        """A kill may also come while a file is being written."""
        if len(made) + 1 >= moment:
            path.write_bytes(text.encode()[: len(text) // 2])
            made.append("half of write_text")
            raise Killed
        made.append("write_text")
        path.write_bytes(text.encode())

    scandir = os.scandir

    def worst_first(path: Any) -> Any:
        """A system may list, and so delete, files in any order; here what makes a checkpoint one comes last."""
        with scandir(path) as entries:
            return Listing(sorted(entries, key=lambda entry: entry.name == PROGRESS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", worst_first)
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, stopping(name, getattr(os, name)))
        patch.setattr(checkpoint, "save_file", stopping("save_file", checkpoint.save_file))
        patch.setattr(Path, "write_text", half_written)
        yield made


def save_and_delete(directory: Path, step: int) -> None:
    save_checkpoint(directory, state_at(step), IDENTITY)
    delete_old(directory, checkpoint_steps(directory), best_step=1, average=1, keep=1)


@pytest.mark.parametrize("step", [4, 3], ids=["a new step", "a step that is saved again"])
def test_a_kill_at_any_moment_of_saving_and_deleting_leaves_a_run_that_goes_on(tmp_path, monkeypatch, step):
    before = tmp_path / "before"
    for done in (1, 2, 3):
        save_checkpoint(before, state_at(done), IDENTITY)
    finished = tmp_path / "finished"
    shutil.copytree(before, finished)
    save_and_delete(finished, step)

    moment, seen = 0, set()
    while True:
        run = tmp_path / "run"
        shutil.copytree(before, run)
        with killed_at(moment, monkeypatch) as made:
            try:
                save_and_delete(run, step)
                break
            except Killed:
                seen.add(made[-1] if made else "nothing yet")
        assert moment < 100

        clear_leftovers(run)
        assert checkpoint_steps(run)[-1] == checkpoint_steps(run, resumable=True)[-1]
        newest = checkpoint_steps(run)[-1]
        assert newest in (3, step)
        assert {path.name for path in run.iterdir()} == {f"step-{s:08d}" for s in checkpoint_steps(run)}
        for each in checkpoint_steps(run):
            read_weights(run, each)
        found = state_at(0)
        load_checkpoint(run, newest, found)
        assert same(found, state_at(newest))

        save_and_delete(run, step)
        files = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (run, finished)
        ]
        assert files[0] == files[1], "what was interrupted can be done again"
        shutil.rmtree(run)
        moment += 1
    assert {"mkdir", "save_file", "half of write_text", "fsync", "rename", "unlink", "rmdir"} <= seen


def test_what_a_kill_left_is_cleared(tmp_path):
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    shutil.copytree(step_directory(tmp_path, 1), tmp_path / "step-00000002")
    (tmp_path / "step-00000002" / PROGRESS).unlink()
    (tmp_path / ".step-00000003.new").mkdir()
    shutil.copytree(step_directory(tmp_path, 1), tmp_path / ".step-00000001.old")
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(tmp_path, 1, state_at(0))


def test_a_folder_without_checkpoints_has_none(tmp_path):
    clear_leftovers(tmp_path / "nowhere")
    assert checkpoint_steps(tmp_path / "nowhere") == []


def test_progress_says_all_of_itself_in_json(tmp_path):
    state = state_at(2)
    state.progress.changes = [{"step": 1, "pairs": 10, "settings": {"training.clip_norm": [None, 1.0]}}]
    state.progress.plan, state.progress.ending = {"max_steps": 5}, {"start": 2, "steps": 3}
    save_checkpoint(tmp_path, state, IDENTITY)
    content = json.loads((step_directory(tmp_path, 2) / PROGRESS).read_text())
    assert set(content["progress"]) == set(Progress.__dataclass_fields__)
    assert set(content["progress"]["window"]) == set(Window.__dataclass_fields__)


# A disk that is full.


def test_a_checkpoint_that_does_not_fit_leaves_those_before_it(tmp_path):
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    save_checkpoint(tmp_path, state_at(1), IDENTITY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(tmp_path, state_at(2), IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
