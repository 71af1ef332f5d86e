"""A signal ends every command with one line and leaves nothing half written."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from mtkit.errors import StoppedError
from mtkit.files import counted_when_ended, ended_by_signal, replaced_directory, replaced_file
from mtkit.translation.stream import writing
from tests.conftest import write_lines
from tests.forked import MTKIT, Forked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

NOTHING = "before the end; no file is left half written"


def hear_ctrl_c() -> None:
    """A shell that runs the tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(code: str, number: signal.Signals, folder: Path) -> tuple[int, str]:
    """The exit code and stderr of a Python program that a signal comes to as it says that it is ready."""
    program = f"import sys\nfrom pathlib import Path\nfrom time import sleep\nsys.path[:0] = {sys.path!r}\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error.decode()


COMMANDS = {
    "translate": (["translate", "RUN", "TEXT", "-o", "out"], "mtkit.exchange.engines", "load", NOTHING),
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
    "translate-stdin": (["translate", "RUN"], "mtkit.translation.translator", "decode", "0 lines are translated"),
    "evaluate": (["evaluate", "RUN"], "mtkit.translation.translator", "decode", NOTHING),
    "score": (
        ["score", "RUN", "--source", "TEXT", "--target", "TEXT"],
        "mtkit.translation.translator",
        "log_probs_of",
        "0 lines are scored",
    ),
    "bench": (["bench", "translate", "RUN", "TEXT"], "mtkit.translation.translator", "decode", NOTHING),
    "pack": (["pack", "RUN", "out"], "mtkit.bundle.info", "lay_out", NOTHING),
    "bundle": (["bundle", "RUN", "-o", "out"], "mtkit.bundle.bundle", "all_sums", NOTHING),
    "extend": (["extend", "RUN", "--piece", "Ĝ", "-o", "out"], "mtkit.bundle.bundle", "all_sums", NOTHING),
    "plot": (["plot", "training", "RUN", "-o", "out.png"], "mtkit.evaluation.plot", "write_file", NOTHING),
}


def signal_of(command: str) -> signal.Signals:
    return signal.SIGTERM if command in ("translate-packed", "bundle") else signal.SIGINT


@pytest.fixture(scope="module")
def ended_commands(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, Path]]:
    """The exit code, stderr and folder of each command that a signal came to."""
    root = tmp_path_factory.mktemp("ended")
    write_lines(root / "text", ["one two", "three"])
    given = {"RUN": str(tiny_run), "TEXT": str(root / "text")}
    found = {}
    for command, (arguments, owner, function, _) in COMMANDS.items():
        if command == "plot" and find_spec("matplotlib") is None:
            continue
        folder, errors = root / command, root / f"{command}.errors"
        folder.mkdir()

        def wait(*_: object, command: str = command, **__: object) -> None:
            signal.raise_signal(signal_of(command))
            time.sleep(60)

        with pytest.MonkeyPatch.context() as patch, (root / "text").open("rb") as text, errors.open("wb") as error:
            patch.chdir(folder)
            patch.setattr(import_module(owner), function, wait)
            words = [given.get(word, word) for word in arguments]
            code = Forked([*MTKIT, *words], stdin=text, stderr=error).wait()
        found[command] = code, errors.read_text("utf-8"), folder
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_leaves_nothing_half_written_and_one_line(
    ended_commands: dict[str, tuple[int, str, Path]], command: str
) -> None:
    if command not in ended_commands:
        pytest.skip("matplotlib is not installed")
    code, error, folder = ended_commands[command]
    lines = [line for line in error.splitlines() if line.startswith("mtkit: ")]
    assert (code, len(lines)) == (128 + signal_of(command), 1), error
    assert lines[0].startswith(f"mtkit: error: stopped by {signal_of(command).name}")
    assert COMMANDS[command][3] in lines[0]
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
