"""Programs that write a line to a pipe and wait for its translation get it, and files are read at full speed."""

import gzip
import io
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

import mtkit
from mtkit.text import lines
from mtkit.text.lines import MOST_ITEMS, PAUSE_SECONDS, ReadAhead
from mtkit.translation.stream import ParallelFiles, reading, score, translate
from mtkit.translation.translator import Translator
from tests.forked import MTKIT, Forked

LONGEST_WAIT = 120  # seconds; a machine may be busy


@pytest.fixture(scope="module")
def translator(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run, ["decoding.beam_size=1", "device=cpu"])


class Program:
    """A process of `mtkit ARGUMENTS` to exchange lines with; killed if it does not answer."""

    def __init__(
        self, *arguments: object, start: "type[Forked] | type[subprocess.Popen[bytes]]" = subprocess.Popen
    ) -> None:
        self.process = start([*MTKIT, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.timer = threading.Timer(LONGEST_WAIT, self.process.kill)
        self.timer.start()

    def write(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode()

    def end(self) -> tuple[str, int]:
        """End its input; returns the rest of its output and its exit code."""
        rest, _ = self.process.communicate()
        self.timer.cancel()
        return rest.decode(), self.process.returncode

    def ends_with_its_input_open(self) -> None:
        """It fails, though a thread still waits for more input."""
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.wait(LONGEST_WAIT) == 1
        self.timer.cancel()
        self.process.stdin.close()
        self.process.stdout.close()


def test_a_program_that_waits_for_each_answer_gets_it(translator: Translator, tiny_run: Path) -> None:
    lines = ["one two", "", "three four five", "six", "seven eight"]
    wanted = [f"{line}\n" for line in translator.translate(lines)]
    program = Program("translate", tiny_run, "--beam-size", 1, "--device", "cpu", start=Forked)
    for line, answer in zip(lines[:3], wanted[:3], strict=True):
        program.write(f"{line}\n")
        assert program.answer() == answer
    program.write("si")  # half a line is answered when it is whole
    time.sleep(3 * PAUSE_SECONDS)
    program.write("x\nseven eight")
    assert program.answer() == wanted[3]
    assert program.end() == (wanted[4], 0)  # the last line has no end


def test_a_reader_that_goes_away_ends_a_program_that_has_answered_by_the_line(
    translator: Translator, tiny_run: Path
) -> None:
    command = ("translate", tiny_run, "--beam-size", 1, "--device", "cpu", "--line-buffered", "-o", "-")
    program = Program(*command, start=Forked)
    for line, answer in zip(["one two", ""], translator.translate(["one two", ""]), strict=True):
        program.write(f"{line}\n")
        assert program.answer() == f"{answer}\n"
    assert program.process.stdout
    program.process.stdout.close()
    program.write("one\n")
    program.ends_with_its_input_open()


def test_a_program_that_waits_for_each_score_gets_it(translator: Translator, tiny_run: Path) -> None:
    pairs = [("one two", "1 2"), ("", ""), ("three", "3")]
    program = Program("score", tiny_run, "--tsv", "-", "--device", "cpu", start=Forked)
    for source, target in pairs:
        program.write(f"{source}\t{target}\n")
        [wanted] = translator.score([source], [target])
        answer = program.answer().split("\t")
        assert float(answer[0]) == pytest.approx(wanted.log_prob, abs=1e-3)
        assert int(answer[1]) == wanted.num_tokens
    assert program.end() == ("", 0)


class Conversation:
    """A stage that reads one pipe and writes another, in a thread of this process."""

    def __init__(self, tmp_path: Path, stage: Any) -> None:
        self.path = tmp_path / "pipe"
        os.mkfifo(self.path)
        read, write = os.pipe()
        self.answers = os.fdopen(read, "rb")

        def run() -> None:
            with os.fdopen(write, "wb") as out:
                stage(self.path, out)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        self.source = self.path.open("wb", buffering=0)

    def end(self) -> bytes:
        self.source.close()
        rest = self.answers.read()
        self.thread.join(LONGEST_WAIT)
        self.answers.close()
        return rest


def test_lines_of_a_packed_pipe_are_answered_as_they_come(translator: Translator, tmp_path: Path) -> None:
    def stage(path: Path, out: Any) -> None:
        with reading(path) as source:
            translate(translator, source, out)

    talk = Conversation(tmp_path, stage)
    packed = gzip.GzipFile(fileobj=talk.source, mode="wb")
    for line, answer in zip(["one two", "three"], translator.translate(["one two", "three"]), strict=True):
        packed.write(f"{line}\n".encode())
        packed.flush()
        assert talk.answers.readline().decode() == f"{answer}\n"
    packed.write(b"four")
    packed.close()
    assert talk.end().decode() == f"{translator.translate(['four'])[0]}\n"


def test_prefixes_that_come_one_by_one_are_answered_one_by_one(translator: Translator, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("one two\nthree four\nfive\n")

    def stage(path: Path, out: Any) -> None:
        with reading(tmp_path / "source") as source:
            translate(translator, source, out, prefixes=path)

    talk = Conversation(tmp_path, stage)
    for prefix in ("9", "8"):
        talk.source.write(f"{prefix}\n".encode())
        assert talk.answers.readline().decode().startswith(prefix)
    talk.source.write(b"7\n")
    assert talk.end().startswith(b"7")


def test_translations_that_come_one_by_one_are_scored_one_by_one(translator: Translator, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("one two\nthree\n")
    talk = Conversation(tmp_path, lambda path, out: score(translator, ParallelFiles(tmp_path / "source", path), out))
    talk.source.write(b"1 2\n")
    assert talk.answers.readline().count(b"\t") == 2
    talk.source.write(b"3\n")
    assert talk.end().count(b"\n") == 1


def test_a_pipe_in_bursts_gives_the_lines_that_a_file_gives(translator: Translator, tmp_path: Path) -> None:
    names = ["one", "two", "three", "", "four five", "six seven eight"]
    lines = [f"{first} {second}".strip() for first in names for second in names]
    wanted = io.BytesIO()
    translate(translator, io.BytesIO("".join(f"{line}\n" for line in lines).encode()), wanted)

    def stage(path: Path, out: Any) -> None:
        with reading(path) as source:
            translate(translator, source, out)

    talk = Conversation(tmp_path, stage)
    for begin in range(0, len(lines), 9):
        talk.source.write("".join(f"{line}\n" for line in lines[begin : begin + 9]).encode())
        time.sleep(1.5 * PAUSE_SECONDS)
    assert talk.end() == wanted.getvalue()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, an item that is on its way comes before a stream counts as idle."""
    for name in ("PAUSE_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(lines, name, LONGEST_WAIT)


@pytest.mark.usefixtures("patience")
def test_a_busy_stream_never_pauses_and_its_end_is_no_pause() -> None:
    items = ReadAhead(map(str, range(5000)), len)
    taken = []
    for item in items:
        taken.append(item)
        assert not items.pauses()
    assert taken == [str(number) for number in range(5000)]
    assert list(items) == []


def test_an_idle_stream_pauses() -> None:
    asked = threading.Event()

    def idle() -> Iterator[str]:
        yield "one"
        asked.wait(LONGEST_WAIT)
        yield "two"

    items = ReadAhead(idle(), len)
    assert next(items) == "one"
    assert items.pauses()
    assert not items.is_ready
    asked.set()
    assert next(items) == "two"


@pytest.mark.usefixtures("patience")
def test_a_stream_that_trickles_for_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, threading.Semaphore(0)
    monkeypatch.setattr(lines, "monotonic", lambda: now)

    def trickle() -> Iterator[str]:
        for number in count():
            asked.acquire()
            yield str(number)

    items = ReadAhead(trickle(), len)
    for number in range(4):
        asked.release()
        assert not items.pauses()
        assert next(items) == str(number)
        now += LONGEST_WAIT / 4
    late = threading.Timer(LONGEST_WAIT / 2, asked.release)  # the next item comes in half the time of a pause
    late.start()
    assert items.pauses()
    late.cancel()
    asked.release()
    assert not items.pauses()
    items.close()


@pytest.mark.usefixtures("patience")
def test_no_more_is_read_ahead_than_may_wait_and_closing_ends_the_thread() -> None:
    asked = []

    def numbers() -> Iterator[str]:
        for number in count():
            asked.append(number)
            yield str(number)

    before = set(threading.enumerate())
    items = ReadAhead(numbers(), len)
    assert list(islice(items, 3)) == ["0", "1", "2"]
    assert not items.pauses()
    assert len(asked) <= MOST_ITEMS + 4
    [thread] = set(threading.enumerate()) - before
    items.close()
    thread.join(LONGEST_WAIT)
    assert not thread.is_alive()


@pytest.mark.usefixtures("patience")
def test_an_error_comes_where_the_item_would_have_come() -> None:
    def broken() -> Iterator[str]:
        yield "one"
        raise OSError("the cable")

    items = ReadAhead(broken(), len)
    assert next(items) == "one"
    assert not items.pauses()
    with pytest.raises(OSError, match="the cable"):
        next(items)


def test_a_damaged_pipe_that_stays_open_keeps_no_program_alive(tiny_run: Path) -> None:
    program = Program("translate", tiny_run, "--beam-size", 1, "--device", "cpu")
    assert program.process.stdin
    program.process.stdin.write(gzip.compress(b"one\n")[:-4] + b"0000" + b"\n" * 9)
    program.process.stdin.flush()
    program.ends_with_its_input_open()
