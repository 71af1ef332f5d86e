"""Kills trainings that run in processes of their own, and compares what two trainings left."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.errors import MtkitError

PAUSE_SECONDS = 0.002  # between two looks at a run

# What a line of the log tells of the clock; no two trainings share it.
CLOCKS = ("seconds", "minutes", "tokens_per_second")


@dataclass(frozen=True)
class Kill:
    """When a training is killed."""

    step: int  # once the log tells of this step
    while_saving: bool = False  # and a checkpoint is being written
    delay: float = 0.0  # seconds after that


@dataclass(frozen=True)
class Killed:
    """Where a training was when it was killed."""

    step: int  # the last one in the log
    while_saving: bool


def train_and_kill(command: Sequence[str], run: Path, kill: Kill, told: Path) -> Killed | None:
    """Start a training, or go on with it, and kill it by SIGKILL, or by what Windows has for it.

    None if it ended by itself before that moment. Its stderr is written to the file told. An error of the training is
    an MtkitError.
    """
    began, ended = _began_at(run), True
    with _process(command, told) as process:
        while process.poll() is None:
            # What an earlier process left half written is gone once this one trains.
            if _began_at(run) > began and last_step(run) >= kill.step and (not kill.while_saving or is_saving(run)):
                time.sleep(kill.delay)
                ended = process.poll() is not None
                break
            time.sleep(PAUSE_SECONDS)
    if not ended:
        return Killed(last_step(run), is_saving(run))
    _require_success(process.returncode, told)
    return None


def train_to_end(command: Sequence[str], told: Path) -> None:
    """Start a training, or go on with it, until it ends by itself; its error is an MtkitError."""
    with _process(command, told) as process:
        process.wait()
    _require_success(process.returncode, told)


@contextmanager
def _process(command: Sequence[str], told: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    with told.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _require_success(code: int, told: Path) -> None:
    """An MtkitError with what the training told if it failed."""
    if code:
        lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
        prefix = "mtkit: error: "
        errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        last = lines[-1] if lines else "it said nothing"
        raise MtkitError("\n".join(errors) or f"the training ended with exit code {code}: {last}")


def _began_at(run: Path) -> int:
    """When a process last began to train, told by the file that it writes then; 0 before the first."""
    try:
        return (run / "run.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def last_step(run: Path) -> int:
    """The last step that the log tells of; 0 before the first."""
    steps = (event["step"] for event in reversed(_events(run)) if "step" in event)
    return next(steps, 0)


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when the run was killed."""
    return any((run / "checkpoints").glob(".step-*"))


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Whether two runs left the same, by what is compared, sorted: all tensors byte by byte, then the log.

    What only one of them has is not the same, and neither are runs that have no tensors.
    """
    found, wanted = _tensor_files(one), _tensor_files(other)
    same = {name: found.get(name) == wanted.get(name) for name in sorted({**found, **wanted})}
    return {**(same or {"model/weights.safetensors": False}), "log.jsonl": _logged(one) == _logged(other)}


def _tensor_files(run: Path) -> dict[str, str]:
    """Checksums of all weights and of all that optimizers remember below a run directory."""
    found = {}
    for folder in ("checkpoints", "model"):
        for path in (run / folder).rglob("*.safetensors"):
            with path.open("rb") as file:
                found[path.relative_to(run).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _logged(run: Path) -> list[dict[str, Any]]:
    """The events of the log but for starts of processes, without clocks."""
    return [
        {name: value for name, value in event.items() if name not in CLOCKS}
        for event in _events(run)
        if event.get("event") != "start"
    ]


def _events(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the log; the last one may be half written."""
    try:
        text = (run / "log.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
