"""`mtkit verify` finds a flipped byte in every file of a run, and a training that does not go on exactly."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtkit.bundle.opening import PROGRESS, checkpoint_steps, step_directory
from mtkit.cli import _run
from mtkit.config.load import load_config
from mtkit.config.settings import Config, config_text
from mtkit.config.training_settings import ENDING
from mtkit.errors import CheckpointError, ConfigError, MtkitError
from mtkit.files import link_or_copy
from mtkit.pipeline import run_train
from mtkit.preparation.prepare import adopt, binarized_is_current, is_prepared, read_validation, tokenizer_is_current
from mtkit.training.checkpoint import (
    MOST_PAIRS,
    MOST_VALIDATION,
    Kill,
    Killed,
    _command,
    _compared,
    _interrupted_by_signals,
    _process,
    _short,
    _temporary_folder,
    _train_with_kills,
    _with_data,
    check_data,
    check_results,
    compare,
    train_and_kill,
    train_to_end,
    verify,
    verify_resuming,
    verify_settings,
)
from mtkit.training.optimizers import SCHEDULES
from mtkit.training.train import Trainer
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.forked import Forked
from tests.runs import Killed as EndOfProcess
from tests.runs import at_step, doing, kill

Make = Callable[..., Config]

SHORT = {"max_steps": 12, "validate_every": 6, "save_every": 3, "validation_sentences": 4, "log_every": 1}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def short_done(corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of twelve updates; not to be changed."""
    run = tmp_path_factory.mktemp("short") / "run"
    run_train(config_with(toy_settings(corpus_files, run), training=SHORT))
    return run


@pytest.fixture
def short_run(short_done: Path, make_config: Make, tmp_path: Path) -> Config:
    """A copy of it, which may be changed."""
    return make_config(Path(shutil.copytree(short_done, tmp_path / "whole")), training=SHORT)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flipped(path: Path, place: int) -> bytes:
    """The file before one of its bits was turned."""
    before = path.read_bytes()
    after = bytearray(before)
    after[place] ^= 1
    path.write_bytes(after)
    return before


# Files.


def test_a_whole_run_is_told_part_by_part_and_only_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert _run(["verify", str(run), "--files-only"]) == 0
    told = capsys.readouterr().out.splitlines()
    checkpoints = [f"checkpoints/step-{step:08d}" for step in checkpoint_steps(run / "checkpoints")]
    parts = ["tokenizer", "data/train", "data/valid", *checkpoints]
    assert [line.split(": ")[0] for line in told[:-4]] == [str(run / part) for part in parts]
    assert all("as written" in line for line in told[:-4])
    assert told[-4].startswith(f"{run / 'model'}: bundle format 2")
    assert contents(run) == before


def with_checksums(run: Path) -> list[Path]:
    """All files of a run that something tells the checksum of."""
    parts = ("tokenizer", "data/train", "data/valid", "checkpoints", "model")
    files = {path for part in parts for path in (run / part).rglob("*") if path.is_file()}
    return sorted(files - {run / "tokenizer" / "provenance.json", run / "data" / "valid" / "manifest.json"})


def test_a_flipped_bit_in_any_file_is_told_with_the_file_and_what_to_do(run: Path) -> None:
    chance = random.Random(1)
    files = with_checksums(run)
    names = {path.name for path in files}
    assert {
        "tokenizer.model",
        "source.tokens",
        "target.offsets",
        "source.txt",
        PROGRESS,
        "optimizer.safetensors",
    } <= names
    for path in files:
        before = flipped(path, chance.randrange(path.stat().st_size))
        is_data = path.is_relative_to(run / "data") or path.is_relative_to(run / "tokenizer")
        faults = (check_data(run) if is_data else check_results(run, "cpu")).faults
        assert faults, path
        assert any(fault.startswith(str(path)) for fault in faults), (path, faults)
        assert all("again" in fault or "delete" in fault for fault in faults), faults
        path.write_bytes(before)
    assert not check_data(run).faults
    assert not check_results(run, "cpu").faults


def test_several_faults_are_a_line_each_and_stop_the_trainings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped(run / "data" / "train" / "source.tokens", 7)
    (run / "data" / "train" / "target.tokens").unlink()
    flipped(step_directory(run / "checkpoints", 240) / "weights.safetensors", 900)
    assert _run(["verify", str(run)]) == 1
    told = capsys.readouterr()
    assert told.out.endswith("no training is tried, since what it reads is damaged\n")
    errors = [line for line in told.err.splitlines() if line.startswith("mtkit: error: ")]
    weights = step_directory(run / "checkpoints", 240) / "weights.safetensors"
    train = run / "data" / "train"
    assert [error.removeprefix("mtkit: error: ") for error in errors] == [
        f"{train}/source.tokens: damaged in piece 1 of 1 (64 MiB each); binarize the corpora again",
        f"{train}/target.tokens: missing; binarize the corpora again",
        f"{weights}: damaged, its checksum is not the one it was saved with; delete {weights.parent} to go on from "
        "another checkpoint, or copy it again",
    ]


def test_the_memory_of_an_older_checkpoint_may_be_missing_and_of_the_newest_not(run: Path) -> None:
    checkpoints = run / "checkpoints"
    (step_directory(checkpoints, 160) / "optimizer.safetensors").unlink()
    assert not check_results(run, "cpu").faults
    (step_directory(checkpoints, 240) / "optimizer.safetensors").unlink()
    [fault] = check_results(run, "cpu").faults
    assert fault.startswith(f"{step_directory(checkpoints, 240)}/optimizer.safetensors: missing; delete ")
    assert f"{step_directory(checkpoints, 160)}: 2 files, as written" in check_results(run, "cpu").lines


def test_ids_of_another_tokenizer_are_told(run: Path, make_config: Make, tmp_path: Path) -> None:
    other = make_config(tmp_path / "other", tokenizer={"vocab_size": 300}, training=SHORT)
    run_train(other)
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(other.run_path / "tokenizer", run / "tokenizer")
    [fault] = check_data(run).faults
    assert fault.startswith(f"{run}/data/train: was encoded by another tokenizer")


def test_what_is_not_there_yet_is_no_fault_and_what_a_kill_left_is_read_where_it_stands(run: Path) -> None:
    shutil.rmtree(run / "model")
    (run / "data" / "valid").rename(run / "data" / ".valid.old")  # as a kill between two renames leaves it
    before = contents(run)
    report = check_data(run)
    assert not report.faults
    assert report.lines[-1] == f"{run}/data/.valid.old: 24 pairs, as written"
    assert check_results(run).lines[-1] == f"{run}/model: not there yet"
    assert contents(run) == before


def test_a_damaged_model_is_written_again_from_the_checkpoints_as_the_message_says(short_run: Config) -> None:
    run = short_run.run_path
    before = contents(run / "model")
    flipped(run / "model" / "weights.safetensors", 500)
    report = check_results(run, "cpu")
    assert report.lines[-1] == f"{run}/model: delete it, and mtkit train writes it again from the checkpoints"
    shutil.rmtree(run / "model")
    run_train(short_run)
    assert contents(run / "model")["weights.safetensors"] == before["weights.safetensors"]


# What is compared.


def test_a_run_and_its_copy_are_the_same_but_for_clocks_and_starts(short_run: Config, tmp_path: Path) -> None:
    one, other = short_run.run_path, tmp_path / "copy"
    shutil.copytree(one, other)
    events = [json.loads(line) for line in (other / "log.jsonl").read_text().splitlines()]
    for event in events:
        event.update({name: 7.5 for name in ("seconds", "minutes", "tokens_per_second") if name in event})
    lines = [json.dumps(event) for event in (events[0], *events)]
    (other / "log.jsonl").write_text("".join(f"{line}\n" for line in lines) + '{"event": "tr')
    same = compare(one, other)
    assert all(same.values())
    assert {"model/weights.safetensors", "checkpoints/step-00000012/optimizer.safetensors", "log.jsonl"} <= set(same)


@pytest.mark.parametrize("name", ["model/weights.safetensors", "checkpoints/step-00000009/weights.safetensors"])
def test_one_bit_of_a_tensor_and_a_missing_file_are_a_difference(short_run: Config, tmp_path: Path, name: str) -> None:
    one, other = short_run.run_path, tmp_path / "copy"
    shutil.copytree(one, other)
    flipped(other / name, -1)
    assert [found for found, same in compare(one, other).items() if not same] == [name]
    (other / name).unlink()
    for pair in ((one, other), (other, one)):
        assert [found for found, same in compare(*pair).items() if not same] == [name]


def test_another_event_in_the_log_is_a_difference(short_run: Config, tmp_path: Path) -> None:
    one, other = short_run.run_path, tmp_path / "copy"
    shutil.copytree(one, other)
    text = (other / "log.jsonl").read_text()
    (other / "log.jsonl").write_text(text.replace('"step": 5', '"step": 4', 1))
    assert [found for found, same in compare(one, other).items() if not same] == ["log.jsonl"]
    assert not all(compare(tmp_path / "nothing", tmp_path / "nowhere").values())


def test_a_training_that_goes_on_with_another_memory_is_found(
    short_run: Config, make_config: Make, tmp_path: Path
) -> None:
    with doing(kill, Trainer, "_update", at_step(7)), pytest.raises(EndOfProcess):
        run_train(make_config(tmp_path / "killed", training=SHORT))
    exact, changed = make_config(tmp_path / "exact", training=SHORT), make_config(tmp_path / "changed", training=SHORT)
    for config in (exact, changed):
        shutil.copytree(tmp_path / "killed", config.run_path)
    forget(step_directory(changed.run_path / "checkpoints", 6))
    for config in (exact, changed):
        run_train(config)
    assert all(compare(exact.run_path, short_run.run_path).values())
    same = compare(changed.run_path, short_run.run_path)
    assert not same["checkpoints/step-00000012/weights.safetensors"]
    assert not same["log.jsonl"]


def test_a_difference_is_told_with_what_to_do(short_run: Config, tmp_path: Path) -> None:
    for name in ("killed", "whole"):
        shutil.copytree(short_run.run_path, tmp_path / "both" / name)
    kills = [Killed(4, while_saving=False), Killed(6, while_saving=True)]
    report = _compared(tmp_path / "both", 12, kills)
    assert report.lines[0].endswith("one training was killed at step 4 and at step 6 while it wrote a checkpoint")
    assert not report.faults
    flipped(tmp_path / "both" / "killed" / "model" / "weights.safetensors", -1)
    report = _compared(tmp_path / "both", 12, kills)
    assert "different: model/weights.safetensors" in report.lines
    assert "identical: log.jsonl" in report.lines
    assert report.faults == [
        f"a killed training does not end here as one that is left alone: 1 of {len(report.lines) - 1} files differ, "
        "first model/weights.safetensors; try device=cpu or training.precision=fp32; runs of these settings do not go "
        "on exactly"
    ]


def forget(checkpoint: Path) -> None:
    """Set what the optimizer remembers to zero, as if it had been so from the start."""
    path = checkpoint / "optimizer.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path)
    content = json.loads((checkpoint / PROGRESS).read_text())
    del content["sha256"]
    content["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / PROGRESS).write_text(json.dumps(content))


# Processes.


TRAINING = """
import json, sys, time
from pathlib import Path
run = Path(sys.argv[1])
is_first = not run.exists()
run.mkdir(exist_ok=True)
(run / "run.json").write_text("{}")
for step in range(1, 2000):
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "train", "step": step}) + "\\n")
    if step == int(sys.argv[2]):
        print(sys.argv[3], file=sys.stderr)
        sys.exit(int(sys.argv[4]))
    if step == int(sys.argv[5]) and is_first:
        time.sleep(600)
"""


def training(run: Path, last: int, says: str = "", code: int = 0, waits_at: int = 0) -> list[str]:
    """A process that leaves what a training leaves; the first in its folder waits at a step until it is killed."""
    return [sys.executable, "-c", TRAINING, str(run), str(last), says, str(code), str(waits_at)]


def test_a_process_is_killed_after_its_step_unless_it_has_ended(tmp_path: Path) -> None:
    killed = train_and_kill(training(tmp_path / "run", 9, waits_at=8), tmp_path / "run", Kill(5), tmp_path / "told")
    assert isinstance(killed, Killed)
    assert 5 <= killed.step <= 8
    assert not killed.while_saving
    length = (tmp_path / "run" / "log.jsonl").stat().st_size
    assert train_and_kill(training(tmp_path / "other", 3), tmp_path / "other", Kill(5), tmp_path / "told") is None
    assert (tmp_path / "run" / "log.jsonl").stat().st_size == length, "it is dead"


def test_the_error_of_a_training_is_passed_on(tmp_path: Path) -> None:
    says = "x\nmtkit: error: device cuda: none found\nmtkit: error: and more"
    with pytest.raises(MtkitError) as told:
        train_to_end(training(tmp_path / "run", 2, says, 1), tmp_path / "told")
    assert str(told.value) == "device cuda: none found\nand more"
    with pytest.raises(MtkitError) as told:
        train_and_kill(
            training(tmp_path / "run", 2, "ValueError: odd", 3), tmp_path / "run", Kill(9), tmp_path / "told"
        )
    assert str(told.value) == "the training ended with exit code 3: ValueError: odd"


def test_a_file_that_is_linked_stays_when_the_link_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")

    def refuse(*_: object) -> None:
        raise OSError

    for refused in ((), ("link",), ("link", "symlink")):
        with monkeypatch.context() as patch:
            for name in refused:
                patch.setattr(os, name, refuse)
            link_or_copy(tmp_path / "file", tmp_path / "copy")
        assert (tmp_path / "copy").read_text() == "x"
        (tmp_path / "copy").unlink()
        assert (tmp_path / "file").read_text() == "x"


def test_a_training_that_is_over_before_it_can_be_killed_proves_nothing(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = verify_settings(tiny_run, [])
    monkeypatch.setattr("mtkit.training.checkpoint._command", lambda config, data, run: training(run, 2))
    with pytest.raises(MtkitError, match=r"^a training of 768 updates was over before it could be killed: nothing is"):
        verify_resuming(config)
    assert capsys.readouterr().err.count("to be killed after the first checkpoint") == 3


def test_a_checkpoint_that_is_never_caught_being_written_is_told(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mtkit.training.checkpoint._command", lambda config, data, run: training(run, 60, waits_at=9))
    short = _short(verify_settings(tiny_run, []), 12, tmp_path, from_run=True)
    [kill] = _train_with_kills(short, tiny_run, tmp_path / "run")
    assert 4 <= kill.step <= 9
    assert capsys.readouterr().err.endswith("no checkpoint was written slowly enough for that\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_training_and_removes_the_folder(name: str, tmp_path: Path) -> None:
    if not hasattr(signal, name):
        pytest.skip("there is no such signal")
    before = signal.getsignal(getattr(signal, name))
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(KeyboardInterrupt),
        _interrupted_by_signals(),
        _temporary_folder() as folder,
        _process(sleeping, tmp_path / "told") as process,
    ):
        signal.raise_signal(getattr(signal, name))
    assert process.returncode not in (None, 0)
    assert not folder.exists()
    assert signal.getsignal(getattr(signal, name)) == before


def test_where_the_folder_is_full_another_one_is_proposed_and_it_is_removed() -> None:
    full = "No space left on device"
    for error in (
        lambda path: CheckpointError(f"{path}: cannot be written: {full}"),
        lambda path: OSError(28, full, path),
        lambda path: OSError(28, full, "from", None, path),
    ):
        with pytest.raises(CheckpointError) as told, _temporary_folder() as folder:
            raise error(f"{folder}/12/killed")
        assert str(told.value) == (
            f"{folder}/12/killed: cannot be written: {full}; TMPDIR=FOLDER before the command has its trainings "
            "elsewhere"
        )
        assert not folder.exists()
    with pytest.raises(MtkitError, match=r"^elsewhere$"), _temporary_folder():
        raise MtkitError("elsewhere")


# What the trainings are.


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_settings_stay_valid_and_the_users_own_but_for_the_length(
    tiny_run: Path, corpus_files: CorpusFiles, tmp_path: Path, schedule: str
) -> None:
    own = {"schedule": schedule, "warmup_steps": 4000, "max_steps": 90_000, "max_minutes": 5.0, "accumulate": 2}
    own |= {"decay_steps": 1000} if schedule == "wsd" else {}
    config = config_with(toy_settings(corpus_files, tiny_run), training=own)
    short = _short(config, 12, tmp_path, from_run=True)
    changed = {
        "max_steps",
        "max_minutes",
        "patience",
        "target_score",
        "save_every",
        "validate_every",
        "validation_sentences",
        "log_every",
    }
    changed |= {"warmup_steps", "decay_steps"} if schedule in ENDING else set()
    kept = short.training.model_dump(exclude=changed)
    assert kept == config.training.model_dump(exclude=changed)
    assert (short.model, short.tokenizer, short.device) == (config.model, config.tokenizer, config.device)
    (tmp_path / "printed.yaml").write_text(config_text(short))
    assert load_config(tmp_path / "printed.yaml") == short


def trained_in_place(config: Config, folder: Path) -> Path:
    """The run that the command for these settings leaves, without a process of its own."""
    config, from_run = _with_data(config)
    short = _short(config, 12, folder, from_run)
    command = _command(short, config.run_path if from_run else None, folder / "short")
    assert command[:4] == [sys.executable, "-m", "mtkit", "train"]
    assert _run(command[3:]) == 0
    assert checkpoint_steps(folder / "short" / "checkpoints")[-1] == 12
    return folder / "short"


def test_a_runs_own_tokenizer_and_data_are_taken_though_its_text_is_gone(
    tmp_path: Path, tiny_run: Path, corpus_files: CorpusFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = toy_settings(corpus_files, tiny_run)
    config = config_with(settings, data={"root": str(tmp_path / "nowhere")})
    before = contents(tiny_run)
    run = trained_in_place(config, tmp_path)
    assert f"the tokenizer and the data are those of {tiny_run}" in capsys.readouterr().err
    after = contents(run)
    for name in ("tokenizer/tokenizer.model", "data/train/source.tokens", "data/train/target.offsets"):
        assert after[name] == before[name]
    assert (
        len(read_validation(config_with(settings, data={}).model_copy(update={"run_dir": run}))[0]) == MOST_VALIDATION
    )
    assert contents(tiny_run) == before


def test_adopted_data_is_up_to_date_and_data_of_other_settings_is_not_taken(
    make_config: Make, tiny_run: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "heir")
    adopt(config, tiny_run)
    assert tokenizer_is_current(config)
    assert binarized_is_current(config)
    assert is_prepared(make_config(tiny_run))
    assert not is_prepared(make_config(tmp_path / "nothing"))
    assert not is_prepared(make_config(tiny_run, tokenizer={"vocab_size": 300}))
    assert not is_prepared(make_config(tiny_run, data={"max_length": 30}))
    assert not is_prepared(make_config(tiny_run, training={"bpe_dropout": 0.1}))


def test_without_data_the_first_pairs_of_each_corpus_are_taken(
    make_config: Make, corpus_files: CorpusFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        {**corpus_files.pair("train"), "tag": tag, "weight": weight} for tag, weight in (("<a>", 1.0), ("<b>", 3.0))
    ]
    config = make_config(
        tmp_path / "none", data={"train": train, "valid": [{**corpus_files.pair("valid"), "tag": "<b>"}]}
    )
    run = trained_in_place(config, tmp_path)
    assert (
        "has no tokenizer and data of these settings: the first pairs of data.train are taken"
        in capsys.readouterr().err
    )
    [first, second] = load_config(run / "config.yaml").data.train
    assert (first.tag, second.tag, second.weight) == ("<a>", "<b>", 3.0)
    assert second.source is not None
    lines = second.source.read_text().splitlines()
    assert lines == corpus_files.lines("train")[0][: MOST_PAIRS // 2]
    assert not (tmp_path / "none").exists()


def test_trainings_start_from_the_model_of_the_settings_or_from_random_weights_where_it_is_gone(
    make_config: Make, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Path(shutil.copytree(tiny_run / "model", tmp_path / "start"))
    config = make_config(tmp_path / "none", training={"start_from": str(start)})
    trained_in_place(config, tmp_path)
    assert f"starting from the weights of {start}" in capsys.readouterr().err
    run_train(make_config(tmp_path / "child", training={**SHORT, "start_from": str(start)}))
    child = verify_settings(tmp_path / "child", [])
    for name in ("there", "gone"):
        capsys.readouterr()
        (tmp_path / name).mkdir()
        trained_in_place(child, tmp_path / name)
        told = capsys.readouterr().err
        assert (f"starting from the weights of {start}" in told) == (name == "there")
        assert (f"{start}, which training started from, is gone: random weights are taken" in told) == (name == "gone")
        shutil.rmtree(start, ignore_errors=True)


# The command.


@pytest.fixture
def trainings_wait_to_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training waits in its sixth update, and the second as it writes a checkpoint; further ones do not."""
    numbers = count()

    def start(*arguments: Any, **options: Any) -> Forked:
        number = next(numbers)

        def wait(*_: object) -> None:
            time.sleep(600)

        def sync(descriptor: int) -> None:
            if number == 1 and any(tmp_path.rglob(".step-*")):
                wait()

        with (
            doing(wait, Trainer, "_update", lambda trainer: number == 0 and trainer.state.progress.step == 5),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(os, "fsync", sync)
            return Forked(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.mark.usefixtures("trainings_wait_to_be_killed")
def test_a_killed_training_of_a_run_is_proved_to_end_as_one_that_was_left_alone(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tiny_run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _run(["verify", str(tiny_run), "training.ema_decay=0.9", "training.schedule=linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [first] = [number for number, line in enumerate(lines) if line.startswith("trained 12 updates twice: ")]
    assert "on cpu in fp32, " in lines[first]
    assert re.search("killed at step [45] and at step 6 while it wrote a checkpoint$", lines[first])
    assert lines[-1] == "a killed training ends here as one that is left alone, to the bit"
    assert all(line.startswith("identical: ") for line in lines[first + 1 : -1])
    names = {line.removeprefix("identical: ") for line in lines[first + 1 : -1]}
    assert {"model/weights.safetensors", "checkpoints/step-00000012/average.safetensors", "log.jsonl"} <= names
    assert list(tmp_path.iterdir()) == []
    assert contents(tiny_run) == before


def test_what_is_no_run_is_told_in_one_line(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (
            [tiny_run / "model"],
            f"{tiny_run}/model: is a model, not a run directory; mtkit check tells whether it is whole",
        ),
        (
            [tmp_path],
            f"{tmp_path}: no config.yaml to read in it; wants the directory of a run, or a YAML file of settings",
        ),
        ([tiny_run, "training.sedd=1"], "training.sedd=1: unknown key 'training.sedd'; did you mean 'seed'?"),
        ([tmp_path / "x.yaml"], f"{tmp_path}/x.yaml: no such file; wants a YAML file of settings"),
    ):
        assert _run(["verify", *map(str, arguments)]) == 1
        assert capsys.readouterr().err == f"mtkit: error: {message}\n"
    with pytest.raises(CheckpointError, match=r"nowhere: no such run; without --files-only its settings are tried"):
        list(verify(Config(run_dir=tmp_path / "nowhere"), files_only=True))
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        list(verify(Config(run_dir=tmp_path / "nowhere")))
