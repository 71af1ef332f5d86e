"""A signal ends every command with one line and leaves nothing half written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtkit.errors import StoppedError
from mtkit.files import counted_when_ended, ended_by_signal, replaced_directory, replaced_file
from mtkit.translation.stream import writing
from tests.conftest import write_lines

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

NOTHING = "before the end; no file is left half written"


def ended(code: str, number: signal.Signals, folder: Path) -> tuple[int, str]:
    """The exit code and stderr of a Python program that a signal comes to as it says that it is ready."""
    program = f"import sys\nfrom pathlib import Path\nfrom time import sleep\nsys.path[:0] = {sys.path!r}\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error.decode()


def at_work(arguments: list[object], owner: str, name: str) -> str:
    """A program that runs `mtkit ARGUMENTS`, and waits for a signal where that calls a function of mtkit."""
    return f"""
from mtkit.cli import main
import {owner} as owner
def wait(*_, **__):
    print("ready", flush=True)
    sleep(60)
owner.{name} = wait
sys.argv = {["mtkit", *map(str, arguments)]!r}
main()
"""


COMMANDS = {
    "translate": (["translate", "RUN", "TEXT", "-o", "out"], "mtkit.translation.translator", "load", NOTHING),
    "translate-at-work": (
        ["translate", "RUN", "TEXT", "-o", "out"],
        "mtkit.translation.translator",
        "decode",
        "0 lines are translated",
    ),
    "translate-packed": (
        ["translate", "RUN", "TEXT", "-o", "out.gz"],
        "mtkit.translation.translator",
        "decode",
        "0 lines are translated",
    ),
    "evaluate": (["evaluate", "RUN"], "mtkit.translation.translator", "decode", NOTHING),
    "score": (
        ["score", "RUN", "--source", "TEXT", "--target", "TEXT"],
        "mtkit.translation.translator",
        "log_probs_of",
        "0 lines are scored",
    ),
    "pack": (["pack", "RUN", "out"], "mtkit.bundle.info", "lay_out", NOTHING),
    "bundle": (["bundle", "RUN", "-o", "out"], "mtkit.bundle.bundle", "all_sums", NOTHING),
    "extend": (["extend", "RUN", "--piece", "Ĝ", "-o", "out"], "mtkit.bundle.bundle", "all_sums", NOTHING),
    "plot": (["plot", "training", "RUN", "-o", "out.png"], "mtkit.evaluation.plot", "write_file", NOTHING),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_leaves_nothing_half_written_and_one_line(tiny_run: Path, tmp_path: Path, command: str) -> None:
    arguments, owner, name, told = COMMANDS[command]
    if command == "plot":
        pytest.importorskip("matplotlib")
    folder = tmp_path / "here"
    folder.mkdir()
    write_lines(tmp_path / "text", ["one two", "three"])
    given: list[object] = [{"RUN": tiny_run, "TEXT": tmp_path / "text"}.get(part, part) for part in arguments]
    number = signal.SIGTERM if command in ("translate-packed", "bundle") else signal.SIGINT
    code, error = ended(at_work(given, owner, name), number, folder)
    lines = [line for line in error.splitlines() if line.startswith("mtkit: ")]
    assert (code, len(lines)) == (128 + number, 1), error
    assert lines[0].startswith(f"mtkit: error: stopped by {number.name}")
    assert told in lines[0]
    assert "Traceback" not in error
    assert list(folder.iterdir()) == []


def test_lines_that_were_translated_are_kept_and_told_of(tmp_path: Path) -> None:
    def be_ended(path: Path) -> None:
        with ended_by_signal(), writing(path) as out, counted_when_ended("translated") as written:
            for written.number in range(1, 1001):
                out.write(b"text\n")
            signal.raise_signal(signal.SIGTERM)

    for name in ("out", "out.gz"):
        path = tmp_path / name
        with pytest.raises(StoppedError) as error:
            be_ended(path)
        part = f"{path}.part"
        assert str(error.value) == f"stopped by SIGTERM; 1,000 lines are translated, and kept in {part}"
        assert error.value.code == 143
        assert not path.exists()
        assert Path(part).stat().st_size


def test_what_is_half_written_is_removed_when_a_signal_comes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for block, name in (("replaced_directory", "folder"), ("replaced_file", "file")):
        assert {replaced_directory.__name__, replaced_file.__name__} >= {block}
        code = f"""

from mtkit.errors import SignalError
from mtkit.files import ended_by_signal, {block}
try:
    with ended_by_signal(), {block}(Path("{name}")):
        print("ready", flush=True)
        sleep(60)
except SignalError as error:
    sys.exit(error.code)
"""
        assert ended(code, signal.SIGTERM, tmp_path) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_signal_that_is_swallowed_does_not_make_the_program_deaf(tmp_path: Path) -> None:
    code = """
from mtkit.files import ended_by_signal, undone_when_ended
import os, signal
with ended_by_signal(), undone_when_ended():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        sleep(60)
    except BaseException:
        pass
    print("ready", flush=True)
    sleep(60)
"""
    assert ended(code, signal.SIGINT, tmp_path) == (130, "mtkit: error: stopped by SIGINT at once\n")


def test_handlers_are_as_before_after_the_block() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with ended_by_signal():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
