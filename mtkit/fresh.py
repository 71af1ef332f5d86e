"""Starting a run anew: the old run goes only when the new one has a checkpoint to put in its place.

Until then the old one stands aside under hidden names, and whatever ends the new one before (an error, Ctrl-C, a kill)
brings it back. The finished model never stands aside: training replaces it at its end.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtkit.ending import undone_when_ended
from mtkit.files import bring_back, drop_aside, put_aside, remove, write_file
from mtkit.training.checkpoint import STEP, checkpoint_steps, step_directories

MARKER = ".fresh.json"  # there while an old run stands aside; tells how far that is

NAMES = (
    "log.jsonl",
    "trained.json",
    "evaluated.json",
    "config.yaml",
    "run.json",
    "tensorboard",
)  # all that training left
PREPARED = ("tokenizer", "data/train", "data/valid")  # what it was prepared from, put aside only to be made anew


class FreshStart:
    """An old run that stands aside for a new one."""

    def __init__(self, run: Path) -> None:
        """Nothing is done yet; begin() does."""
        self.run = run
        self.is_over = False

    def begin(self) -> None:
        """Put the old run aside, but for its model and for what it was prepared from."""
        _write_marker(self.run, "begun")
        for directory in step_directories(self.run / "checkpoints"):
            directory.rename(_hidden(directory))
        for name in NAMES:
            put_aside(self.run / name)
        if (tensorboard := self.run / "tensorboard").is_symlink():
            tensorboard.resolve().mkdir(exist_ok=True)  # TensorBoard cannot write to a link that leads nowhere
        _write_marker(self.run, "aside")

    def put_aside(self, *names: str) -> None:
        """Put aside what is going to be made anew: some of PREPARED."""
        for name in names:
            put_aside(self.run / name)

    def keep_new(self) -> None:
        """The new run has a checkpoint: the old one goes."""
        if not self.is_over:
            _keep_new(self.run)
            self.is_over = True


@contextmanager
def fresh_start(run: Path) -> Iterator[FreshStart]:
    """The old run stands aside within the block; at its end it is back, unless the new one was kept."""
    start = FreshStart(run)
    with undone_when_ended():
        try:
            start.begin()
            yield start
        finally:
            if not start.is_over:
                settle_fresh(run)


def settle_fresh(run: Path) -> None:
    """Bring back the old run, or drop it if the new one has a checkpoint; for the one who may write there.

    Does nothing where no fresh start was interrupted.
    """
    marker = run / MARKER
    if not marker.exists():
        return
    # Before all of it stood aside, the checkpoints there are may be the old ones.
    if _state(marker) == "aside" and checkpoint_steps(run / "checkpoints"):
        _keep_new(run)
    else:
        _bring_back(run)


def _bring_back(run: Path) -> None:
    """Return the old run to its place; a kill on the way is made good by the next call."""
    for hidden in _hidden_steps(run / "checkpoints"):
        directory = hidden.with_name(_visible(hidden))
        remove(directory)
        hidden.rename(directory)
    for name in (*PREPARED, *NAMES):
        bring_back(run / name)
    (run / MARKER).unlink()


def _keep_new(run: Path) -> None:
    """Drop the old run; a kill on the way is made good by the next call."""
    for hidden in _hidden_steps(run / "checkpoints"):
        remove(hidden)
    for name in (*PREPARED, *NAMES):
        drop_aside(run / name)
    (run / MARKER).unlink()


def _hidden_steps(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob(".step-*.before") if STEP.fullmatch(_visible(path))]


def _hidden(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.before")


def _visible(hidden: Path) -> str:
    return hidden.name.removeprefix(".").removesuffix(".before")


def _write_marker(run: Path, state: str) -> None:
    write_file(run / MARKER, (json.dumps({"old_run": state}) + "\n").encode())


def _state(marker: Path) -> str:
    """How far the old run stands aside; "begun" where the marker cannot be read, so that it is brought back."""
    try:
        content = json.loads(marker.read_bytes())
    except ValueError:
        return "begun"
    return str(content.get("old_run")) if isinstance(content, dict) else "begun"
