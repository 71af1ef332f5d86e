"""Worker processes give the translations of one process, whatever happens to them, and none is left behind."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import mtkit
from mtkit.cli import main
from mtkit.commands.options import worker_count
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.errors import DataError, MtkitError
from mtkit.evaluation import evaluate
from mtkit.translation import workers
from mtkit.translation.translator import TranslatedLine, Translator
from mtkit.translation.workers import (
    MOST_WINDOWS,
    Opening,
    WorkerTranslator,
    free_memory,
    usable_cores,
    with_workers,
    worker_devices,
)
from tests.conftest import NAMES
from tests.forked import MTKIT, Forked
from tests.translation.test_streams import Program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

LONGEST_WAIT = 120  # seconds; a machine may be busy
multiprocessing_by_fork = multiprocessing.get_context("fork")
WINDOW, PIECE = 40, 8  # lines


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes workers translate even a few lines, in small pieces."""
    for name, value in (("FEW_CHARACTERS", 0), ("PIECE_LINES", PIECE), ("LEAST_LINES", 4), ("WINDOW_LINES", WINDOW)):
        monkeypatch.setattr(workers, name, value)
    monkeypatch.setattr(workers, "PIECES_PER_WORKER", 2)


@pytest.fixture(scope="module")
def alone(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run, ["device=cpu"])


@pytest.fixture
def lines() -> list[str]:
    """Lines of different lengths; some are blank, one is too long for the model."""
    generator = random.Random(1)
    found = [" ".join(generator.choices(NAMES, k=generator.randrange(8))) for _ in range(3 * WINDOW + 5)]
    found[50] = " ".join(generator.choices(NAMES, k=60))
    return found


def opening(run: Path, *overrides: str) -> Opening:
    return Opening(run, ("device=cpu", *overrides))


def with_two(translator: Translator, run: Path, devices: tuple[str, ...] = ("cpu", "cpu")) -> WorkerTranslator:
    return WorkerTranslator(translator, opening(run), devices)


def children() -> set[int]:
    """The processes that this process has started and that have not ended."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return set(map(int, path.read_text().split())) if path.exists() else set()


def require_same(found: list[TranslatedLine], wanted: list[TranslatedLine]) -> None:
    """All that a line has is the same, and scores are nearly: the last bits depend on the size of a batch."""
    for one, other in zip(found, wanted, strict=True):
        assert [best.text for best in one.translations] == [best.text for best in other.translations]
        assert (one.num_parts, one.notes) == (other.num_parts, other.notes)
        assert [best.score for best in one.translations] == pytest.approx(
            [best.score for best in other.translations], abs=1e-3
        )


# The same translations.


@pytest.mark.parametrize(
    ("overrides", "num_best", "has_prefixes"),
    [
        (["decoding.beam_size=1"], 1, False),
        (["decoding.beam_size=4"], 3, True),
        (["decoding.method=sample", "decoding.seed=7"], 2, False),
        (["decoding.mbr_samples=4", "decoding.method=sample"], 1, True),
    ],
)
def test_workers_give_what_one_process_gives(
    tiny_run: Path, lines: list[str], overrides: list[str], num_best: int, has_prefixes: bool
) -> None:
    translator = mtkit.load(tiny_run, ["device=cpu", *overrides])
    choices = [random.Random(number).choice(["", "", "7", "3 1"]) for number in range(len(lines))]
    prefixes = choices if has_prefixes else None
    wanted = list(translator.translate_lines(lines, num_best, prefixes=prefixes))
    done: list[int] = []
    with with_two(translator, tiny_run) as several:
        found = list(several.translate_lines(iter(lines), num_best, prefixes=prefixes, done=done.append))
    require_same(found, wanted)
    assert sum(done) == len(lines)
    assert [line.num_parts > 1 for line in found].index(True) == 50


def test_workers_that_load_the_model_give_the_same(alone: Translator, tiny_run: Path, lines: list[str]) -> None:
    # One, since each takes seconds to import PyTorch; several that share the work are forked in the other tests.
    with with_two(alone, tiny_run, devices=("cpu:0",)) as one:
        assert one.translate(lines[:20]) == alone.translate(lines[:20])


def test_a_worker_that_cannot_load_the_model_says_why(
    alone: Translator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By fork, which is quick; the test above starts them as they are started.
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda _: multiprocessing_by_fork)
    with (
        with_two(alone, tmp_path / "gone", devices=("cpu:0", "cpu:1")) as several,
        pytest.raises(MtkitError, match=r"worker on cpu:[01]: .*gone"),
    ):
        several.translate(["one"] * 20)


def test_the_command_writes_what_one_process_writes(
    tiny_run: Path,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines))
    outputs = []
    for number in ("1", "2"):
        command = ["mtkit", "translate", tiny_run, tmp_path / "text", "--workers", number, "--device", "cpu", "-q"]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        outputs.append(capfdbinary.readouterr())
    assert outputs[0] == outputs[1]
    assert b"line 51 was too long for the model" in outputs[0].err


def test_evaluation_with_workers_gives_the_same_scores(tiny_run: Path) -> None:
    scoring = evaluate.Scoring(LanguagesConfig(source="en", target="digits"))
    wanted, found = (
        evaluate.score_models(tiny_run, None, ["device=cpu"], evaluate.TestData(), scoring, num_workers=num_workers)
        for num_workers in (1, 2)
    )
    assert found == wanted


def test_small_groups_are_translated_without_workers(
    alone: Translator, tiny_run: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    with with_two(alone, tiny_run) as several:
        for _ in several.translate_lines(lines[:9], at_once=True):
            assert children() == before
        monkeypatch.setattr(workers, "FEW_CHARACTERS", 10**6)
        for _ in several.translate_lines(lines[:WINDOW]):
            assert children() == before
        monkeypatch.setattr(workers, "FEW_CHARACTERS", 0)
        if before or Path("/proc/self/task").exists():
            assert any(children() > before for _ in several.translate_lines(lines[:WINDOW]))
    assert children() == before


def test_workers_that_load_the_model_wait_for_enough_lines(
    alone: Translator, tiny_run: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LINES_BEFORE_LOADING", len(lines))
    several = WorkerTranslator(alone, opening(tiny_run / "gone"), ["cuda:0", "cuda:1"], is_patient=True)
    assert several.translate(lines) == alone.translate(lines)


# Reading and memory.


def test_no_more_lines_are_read_than_the_windows_hold(alone: Translator, tiny_run: Path, lines: list[str]) -> None:
    num_read = 0

    def counted() -> Iterator[str]:
        nonlocal num_read
        for line in lines * 2:
            num_read += 1
            yield line

    with with_two(alone, tiny_run) as several:
        for number, _ in enumerate(several.translate_lines(counted()), start=1):
            assert num_read <= number + MOST_WINDOWS * WINDOW + 1
    assert number == num_read == 2 * len(lines)


def test_a_pipe_that_pauses_gets_its_answers(alone: Translator, tiny_run: Path) -> None:
    program = Program("translate", tiny_run, "--device", "cpu", "--workers", 2, start=Forked)
    for group in (["one two", "three"] * 9, ["four"], ["five six"] * (2 * WINDOW + 3)):
        program.write("".join(f"{line}\n" for line in group))
        assert [program.answer().rstrip("\n") for _ in group] == alone.translate(group)
    assert program.end() == ("", 0)


# Workers that are killed, and errors.

DEADLY = "nine nine nine"


class Deadly(Translator):
    """A Translator that in a worker does something bad when it meets the line DEADLY."""

    def __init__(self, translator: Translator, flag: Path | None) -> None:
        """Kill the worker: always, or only if `flag`, a file that is then written, does not exist."""
        vars(self).update(vars(translator))
        self.flag = flag
        self.main_process = os.getpid()

    def translate_lines(self, lines: Any, *arguments: Any, **options: Any) -> Iterator[TranslatedLine]:
        is_time = self.flag is None or not self.flag.exists()
        if os.getpid() != self.main_process and DEADLY in lines and is_time:
            if self.flag is not None:
                self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().translate_lines(lines, *arguments, **options)


def test_the_lines_of_a_killed_worker_are_done_again(
    alone: Translator, tiny_run: Path, lines: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines[30] = DEADLY
    wanted = alone.translate(lines)
    with with_two(Deadly(alone, tmp_path / "flag"), tiny_run) as several:
        assert several.translate(lines) == wanted
    [told] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mtkit: warning: a worker")]
    assert "ended by SIGKILL; a new one translates its" in told


def test_a_piece_that_kills_its_workers_ends_the_program_and_is_named(
    alone: Translator, tiny_run: Path, lines: list[str]
) -> None:
    lines[60] = DEADLY
    before = children()
    with with_two(Deadly(alone, None), tiny_run) as several:
        translated = several.translate_lines(lines)
        with pytest.raises(MtkitError, match=r"lines between line .* 2 workers ended by SIGKILL") as raised:
            list(translated)
    numbers = [int(word) for word in str(raised.value).replace(",", " ").split() if word.isdigit()]
    assert numbers[1] <= 61 <= numbers[2]
    assert children() == before


def test_an_idle_worker_may_be_killed_too(alone: Translator, tiny_run: Path, lines: list[str]) -> None:
    before = children()
    found = []
    with with_two(alone, tiny_run) as several:
        for line in several.translate_lines(lines, at_once=iter([*[False] * 50, True, *[False] * 999]).__next__):
            found.append(line.text)
            if len(found) == 45:
                for process in children() - before:
                    os.kill(process, signal.SIGKILL)
    assert found == alone.translate(lines)


def test_an_error_in_a_worker_is_raised_as_without_workers(alone: Translator, tiny_run: Path, lines: list[str]) -> None:
    class Faulty(Translator):
        def __init__(self) -> None:
            vars(self).update(vars(alone))

        def translate_lines(self, lines: Any, *arguments: Any, **options: Any) -> Iterator[TranslatedLine]:
            if DEADLY in lines:
                raise DataError("this line is bad")
            return super().translate_lines(lines, *arguments, **options)

    lines[60] = DEADLY
    before = children()
    with with_two(Faulty(), tiny_run) as several:
        translated = several.translate_lines(lines)
        assert [next(translated).text for _ in range(WINDOW)] == alone.translate(lines[:WINDOW])
        with pytest.raises(DataError, match=r"^this line is bad$"):
            next(translated)
    assert children() == before


def test_an_error_in_reading_comes_after_the_translations_of_the_windows_before(
    alone: Translator, tiny_run: Path, lines: list[str]
) -> None:
    with with_two(alone, tiny_run) as several:
        translated = several.translate_lines(lines, prefixes=[""] * (2 * WINDOW + 5))
        found = [next(translated).text for _ in range(2 * WINDOW)]
        assert found == alone.translate(lines[: 2 * WINDOW])
        with pytest.raises(DataError, match="the prefixes end after 85"):
            next(translated)


# No process is left.


def is_running(process: int) -> bool:
    with suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the children of a process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_program(tiny_run: Path, tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "told").open("wb") as told:
        program = Forked(
            [*MTKIT, "translate", str(tiny_run), "--workers", "2", "--device", "cpu"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
        )
    listing = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    started: list[int] = []
    num_answers = 0
    while len(started) < 2:  # a group may be so small, on a busy machine, that no workers are started for it
        program.stdin.write(b"one two three\n" * WINDOW)
        program.stdin.flush()
        num_answers += len([program.stdout.readline() for _ in range(WINDOW)])
        started = list(map(int, listing.read_text().split()))
        assert num_answers < 10_000
    program.send_signal(number)
    assert program.wait(LONGEST_WAIT) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    message = (tmp_path / "told").read_text("utf-8")
    if number != signal.SIGKILL:
        # The signal may come just before the last line that was written is counted.
        told = [f"stopped by {number.name}; {n:,} lines are translated" for n in (num_answers - 1, num_answers)]
        assert any(text in message for text in told)
    deadline = time.monotonic() + LONGEST_WAIT
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, started))
    assert program.stdout.read() == b""  # which ends once no process has it open
    for stream in (program.stdin, program.stdout):
        stream.close()


def test_lines_that_are_no_longer_wanted_leave_no_worker(alone: Translator, tiny_run: Path, lines: list[str]) -> None:
    before = children()
    with with_two(alone, tiny_run) as several:
        translated = several.translate_lines(lines)
        next(translated)
    assert children() == before


# How many there are.


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert worker_devices(cpu, 3) == ["cpu"] * 3
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    monkeypatch.setattr(workers, "free_memory", lambda: 99 << 30)
    assert worker_devices(cpu, None) == ["cpu"] * 6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert worker_devices(cpu, None) == ["cpu"] * 2
    monkeypatch.setattr(workers, "free_memory", lambda: 1 << 20)
    assert worker_devices(cpu, None) == ["cpu"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worker_devices(cpu, None) == ["cpu"]
    assert worker_devices(torch.device("mps"), None) == ["mps"]
    for num_gpus in (1, 3):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=num_gpus: n)
        assert worker_devices(gpu, None) == [f"cuda:{number}" for number in range(num_gpus)]
    assert worker_devices(gpu, 4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


@pytest.mark.parametrize(
    ("listing", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a", {"a/cpu.max": "50000 100000"}, 1),
        ("0::/a", {"a/cpu.max": "max 100000"}, 16),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/a", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("3:memory:/a\n0::/", {}, 16),
    ],
)
def test_a_cgroup_limits_the_cores(
    listing: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    write_cgroups(tmp_path, monkeypatch, listing, files)
    assert usable_cores() == cores


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux has this file")
def test_a_cgroup_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cgroups(tmp_path, monkeypatch, "0::/a", {"a/memory.max": "max", "a/memory.current": "5"})
    assert free_memory() > 1 << 20
    write_cgroups(tmp_path, monkeypatch, "0::/a", {"a/memory.max": "100", "a/memory.current": "60"})
    assert free_memory() == 40
    version_1 = {"memory/a/memory.limit_in_bytes": "100", "memory/a/memory.usage_in_bytes": "30"}
    write_cgroups(tmp_path, monkeypatch, "9:memory:/a", version_1)
    assert free_memory() == 70


def write_cgroups(root: Path, monkeypatch: pytest.MonkeyPatch, listing: str, files: dict[str, str]) -> None:
    (root / "listing").write_text(f"{listing}\n")
    for name, text in files.items():
        (root / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "fs" / name).write_text(f"{text}\n")
    monkeypatch.setattr(workers, "CGROUPS", (root / "listing", root / "fs"))


def test_the_option_takes_a_number_or_auto() -> None:
    assert worker_count("auto") is None
    assert worker_count("3") == 3
    for wrong in ("0", "-1", "two", ""):
        with pytest.raises(MtkitError, match=f"--workers: found {wrong}, wants a whole number, at least 1, or auto"):
            worker_count(wrong)


def test_one_worker_is_the_process_itself(tiny_run: Path) -> None:
    with with_workers(opening(tiny_run).open(), opening(tiny_run), 1) as translator:
        assert type(translator) is Translator
    with with_workers(opening(tiny_run).open(), opening(tiny_run), 2) as translator:
        assert isinstance(translator, WorkerTranslator)
