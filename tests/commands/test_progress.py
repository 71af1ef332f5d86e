"""How far long work is: lines where stderr is a file, a bar on a terminal, neither with --quiet."""

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import mtkit.errors
from mtkit.cli import main
from mtkit.config.settings import config_text
from mtkit.errors import Meter, duration, show_progress
from mtkit.training import records as shown
from tests.conftest import CorpusFiles, config_with, toy_settings, write_lines
from tests.exported import write_opus
from tests.runs import events

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals and signals")
if sys.platform != "win32":
    import pty
    import termios


@pytest.fixture(autouse=True)
def _is_shown_again():
    yield
    show_progress(True)


@pytest.fixture
def told(monkeypatch, capfd):
    """The lines that `mtkit ARGUMENTS`, which must go well, writes to stderr."""

    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capfd.readouterr().err.splitlines()

    return run


@pytest.fixture
def on_a_terminal(monkeypatch):
    """What `mtkit ARGUMENTS`, which must go well, shows on a terminal, where something is typed and then Ctrl-D."""

    def run(
        *arguments: object,
        typed: bytes = b"",
        stdout: Path = Path(os.devnull),
        size: tuple[int, int] = (40, 200),  # a bar needs some room
    ) -> str:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, size)
        os.write(master, typed + b"\x04")
        seen = bytearray()
        reader = threading.Thread(target=read_to_the_end, args=(master, seen))
        reader.start()
        with (
            monkeypatch.context() as patch,
            os.fdopen(os.dup(slave)) as stdin,
            stdout.open("w", encoding="utf-8") as out,
            os.fdopen(slave, "w", encoding="utf-8") as stderr,
        ):
            for name, value in (("argv", ["mtkit", *map(str, arguments)]), ("stdin", stdin), ("stderr", stderr)):
                patch.setattr(sys, name, value)
            patch.setattr(sys, "stdout", out)
            with pytest.raises(SystemExit) as ended:
                main()
        reader.join()
        os.close(master)
        assert ended.value.code == 0, seen
        return seen.decode()

    return run


def read_to_the_end(master: int, seen: bytearray) -> None:
    """Collect what a terminal shows until the last program on it has ended."""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux says so at the end
            return
        if not piece:
            return
        seen += piece


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (270, "4 min 30 s"),
        (3599.7, "1 h"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_told_as_people_say_it(seconds, text):
    assert duration(seconds) == text


# Counting.


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The clock of progress, in seconds, which a test moves on by its only item."""
    now = [100.0]
    monkeypatch.setattr(mtkit.errors, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_work_that_is_soon_done_is_told_of_only_where_it_is_announced(capfd):
    for announced in (False, True):
        with Meter("scoring", "lines", 3, announced=announced) as meter:
            assert list(meter.counting("abc")) == ["a", "b", "c"]
    assert capfd.readouterr().err == "scoring 3 lines …\nscoring 3 lines took 0.0 s\n"


def test_long_work_is_told_of_every_so_many_seconds(capfd, clock):
    assert mtkit.errors.EVERY_SECONDS == 10
    for total in (6, None):
        with Meter("scoring", "lines", total) as meter:
            for _ in range(6):
                clock[0] += 4
                meter.add()
    assert capfd.readouterr().err.splitlines() == [
        "scoring 3 of 6 lines, 0.25 a second, 12 s left",
        "scoring 6 of 6 lines, 0.25 a second, 0.0 s left",
        "scoring 6 lines took 24 s",
        "scoring lines: 3 so far, 0.25 a second",
        "scoring lines: 6 so far, 0.25 a second",
        "scoring 6 lines took 24 s",
    ]


def test_quiet_and_hidden_work_is_not_told_of(capfd, monkeypatch):
    monkeypatch.setattr(mtkit.errors, "EVERY_SECONDS", 0.0)
    with Meter("scoring", "lines", 3, hidden=True) as meter:
        meter.add(3)
    show_progress(False)
    with Meter("scoring", "lines", 3, announced=True) as meter, mtkit.errors.working("thinking"):
        meter.add(3)
    assert capfd.readouterr().err == ""


def test_work_that_fails_is_not_told_to_be_done(capfd):
    with pytest.raises(ValueError, match="no"), Meter("scoring", "lines", 3, announced=True):
        raise ValueError("no")
    assert capfd.readouterr().err == "scoring 3 lines …\n"


# Training.

LINE = r"step (\d+) of 24, epoch \d\.\d: loss \d+\.\d{3}, lr \d\.\d\de-\d\d, [\d,]+ tokens/s; 0\.\d minutes, .+ left"


def write_yaml(config: Any, path: Path) -> Path:
    path.write_text(config_text(config), "utf-8")
    return path


def steps(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.fullmatch(LINE, line))]


def test_training_writes_a_line_for_every_log_every_updates(make, tmp_path, told, monkeypatch):
    monkeypatch.setattr(shown, "LEAST_SECONDS", 0.0)
    config = make()
    lines = told("train", write_yaml(config, tmp_path / "config.yaml"))
    assert steps(lines) == [event["step"] for event in events(config.run_path, "train")] == [5, 10, 15, 20]
    assert lines.count("validating 5 sentences …") == 4  # the last one is of the average
    assert len([line for line in lines if re.fullmatch(r"validating 5 sentences took \d+\.\d s", line)]) == 4


def test_of_fast_updates_only_the_first_and_last_line_and_those_before_validations_come(
    make, tmp_path, told, monkeypatch
):
    monkeypatch.setattr(shown, "LEAST_SECONDS", 1e9)
    config = make(log_every=2, validate_every=12)
    lines = told("train", write_yaml(config, tmp_path / "config.yaml"))
    assert steps(lines) == [2, 12, 24]
    assert len(events(config.run_path, "train")) == 12


def test_slow_updates_are_told_of_before_the_log_has_a_line(make, tmp_path, told, monkeypatch):
    monkeypatch.setattr(shown, "MOST_SECONDS", 0.0)
    config = make(log_every=1000, max_steps=24, validate_every=24)
    monkeypatch.setattr(shown, "LEAST_SECONDS", 0.0)
    lines = told("train", write_yaml(config, tmp_path / "config.yaml"))
    assert steps(lines) == list(range(1, 25))
    assert events(config.run_path, "train") == []


def test_the_log_is_the_same_with_and_without_progress(make, tmp_path, told, monkeypatch):
    monkeypatch.setattr(shown, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(shown, "MOST_SECONDS", 0.0)
    few = {"max_steps": 8, "validate_every": 4, "log_every": 3}
    loud, quiet = make("loud", **few), make("quiet", **few)
    told("train", write_yaml(loud, tmp_path / "loud.yaml"))
    lines = told("train", write_yaml(quiet, tmp_path / "quiet.yaml"), "--quiet")
    assert events(loud.run_path) == events(quiet.run_path)
    assert not [line for line in lines if line.startswith("validating ") or re.match(r"step \d+ of", line)]
    assert [line for line in lines if "(best)" in line]
    assert lines[-1].startswith("model: ")


def test_minutes_are_told_of_how_many_where_they_are_limited(make, tmp_path, told):
    config = make(max_minutes=9, max_steps=1_000_000, patience=1, select_by="bleu", validate_every=2, log_every=1)
    lines = told("train", write_yaml(config, tmp_path / "config.yaml"))
    [first, *_] = [line for line in lines if line.startswith("step 1 of ")]
    assert re.fullmatch(r"step 1 of about [\d,]+, epoch .* tokens/s; 0\.\d of 9 minutes, (8|9) min.* left", first)


@posix
def test_training_on_a_terminal_shows_a_bar_and_no_line_for_each_log_every(make, tmp_path, on_a_terminal):
    path = write_yaml(make(validate_every=4, max_steps=4, log_every=1), tmp_path / "config.yaml")
    seen = on_a_terminal("train", path)
    assert re.search(r"/4 \[.*loss \d", seen)
    assert "validating: " in seen
    assert not re.search(r"step \d+ of", seen)
    assert "validating 5 sentences" not in seen
    assert "/4 [" not in on_a_terminal("train", path, "--fresh", "--quiet")


# The other commands.


def test_tokenizer_training_and_binarize_tell_what_they_do(corpus_files: CorpusFiles, tmp_path, told):
    path = write_yaml(config_with(toy_settings(corpus_files, tmp_path / "run")), tmp_path / "config.yaml")
    source = corpus_files.root / "train.src"
    begun, ended, *_ = told("train-tokenizer", path)
    assert begun == "training the bpe tokenizer on 1,500 pairs …"
    assert re.fullmatch(r"training the bpe tokenizer on 1,500 pairs took \d+\.\d s", ended)
    begun, ended, kept, *_ = told("binarize", path)
    assert begun == f"encoding 1,500 pairs of {source} …"
    assert re.fullmatch(rf"encoding 1,500 pairs of {source} took \d+\.\d s", ended)
    assert kept.startswith("kept 1,500 pairs")
    assert [line.split(":")[0] for line in told("binarize", path, "-q")] == ["kept 1,500 pairs"]


def test_evaluate_tells_which_test_set_it_translates_and_how_long_that_took(tiny_run: Path, told):
    begun, ended = told("evaluate", tiny_run, "--device", "cpu")
    assert begun == "translating 24 lines of toy …"
    assert re.fullmatch(r"translating 24 lines of toy took \d+\.\d s", ended)
    assert told("evaluate", tiny_run, "--device", "cpu", "--quiet") == []


def test_a_comparison_is_told_of(tiny_run: Path, told):
    lines = told("evaluate", tiny_run, "--against", tiny_run, "--metrics", "bleu", "--device", "cpu")
    assert f"comparing {tiny_run} with {tiny_run} on toy …" in lines
    assert any(line.startswith(f"comparing {tiny_run} with {tiny_run} on toy took ") for line in lines)


def test_export_and_import_tell_what_they_write(tiny_run: Path, tmp_path, told):
    pytest.importorskip("ctranslate2")
    lines = told("export", tiny_run, "--to", "ctranslate2", "-o", tmp_path / "theirs")
    assert f"writing ctranslate2 files to {tmp_path / 'theirs'} …" in lines
    assert any(line.startswith(f"writing ctranslate2 files to {tmp_path / 'theirs'} took ") for line in lines)
    write_opus(tmp_path / "opus", tiny_run)
    lines = told("import", tmp_path / "opus", "-o", tmp_path / "model")
    assert f"writing {tmp_path / 'model'} …" in lines
    quiet = told("export", tiny_run, "--to", "ctranslate2", "-o", tmp_path / "theirs", "--quiet")
    assert not [line for line in quiet if line.endswith("…") or " took " in line]
    assert f"ctranslate2: {tmp_path / 'theirs'}" in quiet


def test_translating_is_counted_by_batches_of_how_many_where_a_file_is_named(
    tiny_run: Path, tmp_path, told, monkeypatch
):
    write_lines(tmp_path / "text", ["one two", "", "three four five"] * 20)
    options = ["--device", "cpu", "--batch-tokens", "64", "-o", tmp_path / "out"]
    monkeypatch.setattr(mtkit.errors, "EVERY_SECONDS", 1e9)
    assert told("translate", tiny_run, tmp_path / "text", *options) == []
    monkeypatch.setattr(mtkit.errors, "EVERY_SECONDS", 0.0)
    *lines, last = told("translate", tiny_run, tmp_path / "text", *options)
    counts = [int(re.match(r"translating (\d+) of 60 lines, ", line)[1]) for line in lines]  # type: ignore[index]
    assert counts == sorted(counts)
    assert counts[-1] == 60
    assert len(counts) > 5
    assert re.fullmatch(r"translating 60 lines took \d+\.\d s", last)
    assert told("translate", tiny_run, tmp_path / "text", *options, "--quiet") == []


@posix
def test_a_bar_tells_how_many_lines_of_a_file_are_translated(tiny_run: Path, tmp_path, on_a_terminal):
    write_lines(tmp_path / "text", ["one two"] * 10)
    seen = on_a_terminal("translate", tiny_run, tmp_path / "text", "--device", "cpu", "-o", tmp_path / "out")
    assert re.search(r"translating: +0%\|.*/10\.0 ", seen)
    assert "type a line" not in seen


@posix
@pytest.mark.parametrize("size", [(0, 0), (0, 100), (30, 0)])
def test_a_terminal_that_does_not_tell_its_size_shows_the_bars_too(make, tmp_path, tiny_run: Path, on_a_terminal, size):
    path = write_yaml(make(validate_every=4, max_steps=4, log_every=1), tmp_path / "config.yaml")
    assert re.search(r"/4 \[", on_a_terminal("train", path, size=size))
    write_lines(tmp_path / "text", ["one two"] * 10)
    options = ("--device", "cpu", "-o", tmp_path / "out")
    told = on_a_terminal("translate", tiny_run, tmp_path / "text", *options, size=size)
    assert re.search(r"translating: +0%\|", told)


@posix
def test_translate_on_a_terminal_says_that_it_waits_for_lines(tiny_run: Path, tmp_path, on_a_terminal):
    hint = "type a line and press Enter to have it translated; Ctrl-D ends"
    seen = on_a_terminal("translate", tiny_run, "--device", "cpu", typed=b"one two\n", stdout=tmp_path / "out")
    assert hint in seen
    assert len((tmp_path / "out").read_text().splitlines()) == 1
    assert hint not in on_a_terminal("translate", tiny_run, "--device", "cpu", "--quiet", typed=b"one two\n")
    assert "to have it scored" in on_a_terminal("score", tiny_run, "--tsv", "-", typed=b"one\t1\n")
