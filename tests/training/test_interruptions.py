"""What comes from outside costs no work: signals, a stderr that is gone, memory that runs out, data of no use."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from mtkit.bundle.opening import checkpoint_steps, read_progress
from mtkit.cli import main
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, DataError, MtkitError, is_out_of_memory, on_terminal, say
from mtkit.files import only_writer, stopping_by_signal, without_usr1, write_file
from mtkit.preparation.prepare import read_validation
from mtkit.text.tokenizer import Tokenizer
from mtkit.training import optimizers
from mtkit.training.records import Validation
from mtkit.training.update import OBJECTIVES, LossScaler
from tests.forked import MTKIT, Forked
from tests.runs import Trainer, doing, events, outcome, trained, trainer_of

posix = pytest.mark.skipif(os.name != "posix", reason="this system has no such signals")


# Signals.


@posix
def test_sigusr1_saves_the_state_and_training_goes_on_to_the_same_end(make, capsys):
    settings = {"keep_checkpoints": 9, "max_steps": 12}
    wanted = outcome(trained(make("whole", **settings)))
    steps = (3, 4, 8)  # where a checkpoint is due anyway, after one, and where a validation is due
    with doing(
        lambda: signal.raise_signal(signal.SIGUSR1),
        Trainer,
        "_update",
        lambda trainer: trainer.state.progress.step in steps,
    ):
        run = trained(make(**settings))
    said = capsys.readouterr().err
    for step in steps:
        assert f"SIGUSR1: the state of step {step + 1} is saved; going on" in said
        assert step + 1 in checkpoint_steps(run / "checkpoints", resumable=True)
    found = outcome(run)
    assert all(found[name] == content for name, content in wanted.items() if name.endswith(".safetensors"))
    assert events(run, "average") == events(make("whole", **settings).run_path, "average")


@posix
def test_sigusr1_outside_of_training_ends_nothing(capfd):
    with without_usr1():
        signal.raise_signal(signal.SIGUSR1)
    assert "nothing to save" in capfd.readouterr().err


@posix
def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_by_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.signal
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# A stderr that is gone.


@contextmanager
def gone_reader() -> Iterator[int]:
    """The end of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def closed() -> Iterator[None]:
    """No stderr at all."""
    yield None


@pytest.mark.parametrize("stderr", [gone_reader, closed])
def test_training_goes_on_where_its_messages_cannot_be_printed(make, tmp_path, stderr):
    config = make(max_steps=6, validate_every=2)
    (tmp_path / "config.yaml").write_text(config_text(config), "utf-8")
    with stderr() as place:
        process = Forked([*MTKIT, "train", str(tmp_path / "config.yaml")], stderr=place)
        assert process.wait() == 0
    assert checkpoint_steps(config.run_path / "checkpoints")[-1] == 6
    assert len(events(config.run_path, "validation")) == 3


def test_a_line_that_cannot_be_printed_is_dropped(monkeypatch, tmp_path):
    closed_file = (tmp_path / "log").open("w")
    closed_file.close()
    for stderr in (closed_file, None):
        monkeypatch.setattr(sys, "stderr", stderr)
        say("a line")
        assert not on_terminal()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_line_that_no_disk_has_room_for_is_dropped(monkeypatch):
    lines = []
    with suppress(OSError), Path("/dev/full").open("w") as stderr:  # which cannot be closed without an error
        monkeypatch.setattr(sys, "stderr", stderr)
        for line in ("one", "two"):
            say(line)
            lines.append(line)
    assert lines == ["one", "two"]


# Memory.


def out_of_memory() -> None:
    """What a CPU says; that of a GPU has a class of its own."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_on_every_device(error, is_memory):
    assert is_out_of_memory(error) == is_memory


@pytest.mark.parametrize(("place", "step"), [("forward", 0), ("optimizer", 5), ("forward", 8)])
def test_an_update_that_runs_out_of_memory_saves_the_state_before_it(make, finished_toy, step, place):
    config = make()
    owner, name = (LossScaler, "scaled") if place == "forward" else (optimizers.Adam, "step")
    number = iter(range(100))

    def is_time(_: object) -> bool:
        return next(number) >= step  # nor is there memory for smaller batches

    with doing(out_of_memory, owner, name, is_time), pytest.raises(MtkitError) as caught:
        trained(config)
    message = str(caught.value)
    assert f"out of memory in step {step + 1}, " in message
    assert "lower training.batch_tokens, which is 96" in message
    assert "(training.batch_tokens=48 training.accumulate=2)" in message
    assert "\n" not in message
    steps = checkpoint_steps(config.run_path / "checkpoints", resumable=True)
    assert (steps[-1] if steps else 0) == step
    assert (f"the state of step {step} is saved" if step else "nothing is lost") in message
    assert outcome(trained(config)) == outcome(finished_toy)
    assert read_progress(config.run_path / "checkpoints", 24)[0].step == 24


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_a_batch_too_large_for_the_memory_is_divided_and_its_gradient_stays(make, monkeypatch, capsys, batching):
    config = make(batch_tokens=200, accumulate=2, batching=batching, model={"dropout": 0.0})
    whole = OBJECTIVES["none"]

    def limited(model, batch, settings):
        sizes.append(len(batch.labels))
        if sizes[-1] > limit["rows"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(model, batch, settings)

    monkeypatch.setitem(OBJECTIVES, "none", limited)
    found, limit = [], {}
    for limit["rows"] in (1000, 1):
        sizes: list[int] = []
        trainer = trainer_of(config)
        trainer.log.close()
        gradient: list[torch.Tensor] = []
        trainer.state.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, gradient=gradient: gradient.extend(
                p.grad.clone() for p in trainer.model.parameters()
            )
        )
        capsys.readouterr()
        with trainer.feed.batches(0, 0) as stream:
            trainer._update(stream)
        progress = trainer.state.progress
        told = [progress.pairs, progress.target_tokens, progress.window.loss, progress.window.norm]
        found.append((torch.cat([each.flatten() for each in gradient]), told, sizes, capsys.readouterr().err))
    (wanted, numbers, (first, second), said), (halved, others, sizes, warned) = found
    assert "memory" not in said
    assert "mtkit: warning: out of memory in step 1, with " in warned
    assert max(sizes) > 1
    assert sizes[-first - second :] == [1] * (first + second), "each row by itself"
    assert (halved - wanted).norm() < 1e-5 * wanted.norm()
    assert others == pytest.approx(numbers, rel=1e-5)


def test_a_validation_that_runs_out_of_memory_saves_the_state(make, finished_toy):
    config = make()
    with doing(out_of_memory, Validation, "measure", lambda _: True), pytest.raises(MtkitError) as caught:
        trained(config)
    assert "out of memory in the validation of step 8; the state of step 8 is saved" in str(caught.value)
    assert "decoding.batch_tokens" in str(caught.value)
    assert outcome(trained(config)) == outcome(finished_toy)


def test_another_runtime_error_is_not_taken_for_memory(make):
    def fail() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with doing(fail, Trainer, "_rate", lambda _: True), pytest.raises(RuntimeError, match="cannot be multiplied"):
        trained(make())


# Validation.


def validation_of(config: Config, sources: list[str], references: list[str]) -> Validation:
    """The validation over these lines."""
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    return Validation.prepare(config, tokenizer, sources, references)


@pytest.mark.parametrize(
    ("sources", "references", "told"),
    [
        (["", " "], ["1", "2"], "2 blank"),
        (["one", "two"], ["", "\t"], "2 blank"),
        (["one " * 40], ["1"], "1 too long"),
        (["one", ""], ["1 " * 40, "2"], "1 too long, 1 blank"),
        ([], [], "there are none"),
    ],
)
def test_a_validation_without_a_usable_pair_is_refused(make, sources, references, told):
    with pytest.raises(DataError, match=rf"valid\.src, valid\.tgt: none of the validation pairs can be used \({told}"):
        validation_of(make(), sources, references)


def test_validation_pairs_that_are_left_out_are_counted_and_told(make, capsys):
    config = make()
    validation_of(config, ["one", "", "two " * 40, "three"], ["1", "9", "2", "3"])
    assert "validation: 2 of 4 pairs are left out of its loss: 1 blank, 1 too long" in capsys.readouterr().err
    validation_of(config, *read_validation(config))
    assert not capsys.readouterr().err


def test_validation_text_without_spaces_is_told_where_bleu_cannot_cut_it_into_words(make, capsys):
    thai, chinese = "วันนี้อากาศดีมาก เราไปสวนกัน", "今天天气很好。"
    fact = "text has no spaces between words, and BLEU's tokenizer 13a takes whole phrases for words"
    for references, language, select_by, told in (
        ([chinese] * 3, "target", "bleu", "name the language, such as zh"),
        ([chinese] * 3, "zh-CN", "bleu", None),
        ([thai] * 3, "th", "bleu", "let training.select_by: chrf choose the checkpoints"),
        ([thai] * 3, "th", "loss", "for it: go by chrF"),
        (["1 2", "3 4 " + "five " * 12, thai[:9]], "target", "bleu", None),
    ):
        languages = LanguagesConfig(target=language)
        config = make(select_by=select_by).model_copy(update={"languages": languages})
        config = config.model_copy(update={"data": config.data.model_copy(update={"max_length": 400})})
        validation_of(config, ["one", "two", "three"], references)
        error = capsys.readouterr().err
        assert (fact in error) == (told is not None)
        assert told is None or told in error


# A full disk.


@pytest.fixture
def full_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own without any room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk can only be made by one who may mount")
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(1 << 20))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_no_disk_has_room_for_is_named(full_filesystem):
    with pytest.raises(OSError, match="No space left") as caught:
        write_file(full_filesystem / "config.yaml", b"x" * 10_000)
    assert caught.value.filename == str(full_filesystem / "config.yaml")
    assert not list(full_filesystem.glob(".config*"))


def test_a_full_disk_is_locked_all_the_same(full_filesystem):
    with (
        only_writer(full_filesystem),
        pytest.raises(CheckpointError, match="in use by another process"),
        only_writer(full_filesystem),
    ):
        pass


def test_a_full_disk_ends_a_command_in_one_line_that_says_what_to_do(
    make, full_filesystem, tmp_path, capfd, monkeypatch
):
    config = make()
    (tmp_path / "config.yaml").write_text(config_text(config), "utf-8")
    run = f"run_dir={full_filesystem / 'run'}"
    monkeypatch.setattr(sys, "argv", ["mtkit", "train", str(tmp_path / "config.yaml"), run])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()[-1:]
    assert line.startswith("mtkit: error: ")
    assert str(full_filesystem) in line
    assert "No space left" in line
