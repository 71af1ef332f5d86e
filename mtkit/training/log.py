"""Logs training to log.jsonl and to TensorBoard, and shows the progress of training on stderr."""

import math
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from tqdm import tqdm

from mtkit.bundle.checkpoints import Progress
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.errors import CheckpointError, MtkitError, bar_size, duration, is_shown, on_terminal, say
from mtkit.files import json_text
from mtkit.training.schedule import expected_steps

# For each event in CURVES, TensorBoard draws those values that are numbers, each as a curve called EVENT/NAME. Values
# whose names are in NOT_DRAWN are not drawn.
CURVES = {"train", "validation", "average"}
NOT_DRAWN = {"epoch", "best", "better", "steps", "seconds", "minutes"}


def require_tensorboard() -> None:
    """Raise MtkitError if the package tensorboard is not installed; the message says how to install the package."""
    if find_spec("tensorboard") is None:
        raise MtkitError(
            "training.tensorboard wants the package tensorboard, which is not installed; install it with "
            "pip install 'mtkit[tensorboard]', or leave the setting out"
        )


class Board:
    """Writes the events of a training log for TensorBoard."""

    def __init__(self, directory: Path, step: int) -> None:
        """Open the files for TensorBoard in `directory`.

        If an earlier process drew steps after `step`, those steps are hidden, since training will draw them again.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        self._writer = SummaryWriter(str(directory), purge_step=step + 1)
        self._num_samples: dict[int, int] = {}

    def draw(self, event: str, values: dict[str, object]) -> None:
        """Draw one event: as curves if `event` is in `CURVES`, as text if `event` is "sample", otherwise not at all."""
        step = values.get("step", 0)
        if event == "average":
            assert isinstance(values["steps"], list)
            step = values["steps"][-1]
        assert isinstance(step, int)
        if event == "sample":
            # The samples of each step are numbered 1, 2, 3, in the order of the log.
            number = self._num_samples.get(step, 0) + 1
            self._num_samples = {step: number}
            text = "\n".join(f"    {values[name]}" for name in ("source", "hypothesis", "reference"))
            self._writer.add_text(f"sample/{number}", text, step)
        elif event in CURVES:
            for name, value in values.items():
                if name not in {"step", *NOT_DRAWN} and isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()  # so that a kill loses no event that is in log.jsonl

    def close(self) -> None:
        """Close the files; `draw` must not be called afterwards."""
        with suppress(OSError):  # draw has flushed each event and raised any error
            self._writer.close()


# log.jsonl.


class Log:
    """Writes events to log.jsonl, one JSON object per line, and, if there is a board, to TensorBoard."""

    def __init__(self, path: Path, length: int, board: Board | None = None) -> None:
        """Cut the log file to `length` bytes, then open the file for appending.

        When training resumes, `length` is the length that the log had when the checkpoint was written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._board = board
        self._file = path.open("ab", buffering=0)
        self.length = min(length, self._file.tell())  # of the file, in bytes
        self._file.truncate(self.length)

    def write(self, event: str, **values: object) -> None:
        """Append an event with its values. Raises CheckpointError if the event cannot be written.

        Infinite values and NaN are written as null, since JSON has no such numbers.
        """
        line = json_text({"event": event, **values})
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            written = self._file.write(data)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be written: {error.strerror}; {REMEDY}") from None
        if written != len(data):
            raise CheckpointError(f"{self._path}: cannot be written: the disk is full; {REMEDY}")
        self.length += len(data)
        if self._board:
            try:
                self._board.draw(event, values)
            except OSError as error:
                where = self._board.directory
                raise CheckpointError(f"{where}: cannot be written: {error.strerror}; {REMEDY}") from None

    def close(self) -> None:
        """Close the log and its board; `write` must not be called afterwards."""
        self._file.close()
        if self._board:
            self._board.close()


class NoLog(Log):
    """A log that writes nothing, for a process whose training is logged by another process."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, event: str, **values: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


REMEDY = "the checkpoints are untouched: make room and start again"


# Progress on stderr: a bar if stderr is a terminal, else lines.

LEAST_SECONDS = 5.0  # the minimum time between two lines
MOST_SECONDS = 30.0  # after this time without a line, a line is shown early


class ShownTraining:
    """Shows the progress of training on stderr: loss, learning rate, speed, and the time left.

    On a terminal, a progress bar is shown; elsewhere, a line after every `training.log_every` updates. A line that
    comes less than `LEAST_SECONDS` after another line is left out, unless a validation or the end of training comes
    next. If `training.log_every` updates take longer than `MOST_SECONDS`, an additional line is shown after
    `MOST_SECONDS`.
    """

    def __init__(self, progress: Progress, settings: TrainingConfig) -> None:
        self._progress = progress
        self._settings = settings
        self._told: float | None = None  # the time when the last line was printed; None before the first
        self._begun = monotonic()
        self._left_out: str | None = None  # the newest line, if it was not printed because it came too soon
        self._has_lines = is_shown() and not on_terminal()
        columns, rows = bar_size()
        self._bar = tqdm(
            total=settled(settings.max_steps),
            initial=progress.step,
            unit="step",
            disable=not is_shown() or self._has_lines,
            smoothing=0.05,
            ncols=columns,
            nrows=rows,
        )

    def close(self) -> None:
        """Close the bar; print the newest line if it was left out."""
        self._bar.close()
        self.catch_up()

    def catch_up(self) -> None:
        """Print the newest line if it was left out. To be called before a validation and at the end."""
        if self._left_out is not None:
            say(self._left_out)
            self._left_out = None

    def update(self) -> None:
        """Advance the bar by one update."""
        self._bar.update()

    @property
    def is_overdue(self) -> bool:
        """Whether a line should be shown before `training.log_every` updates are done.

        A line is overdue once `MOST_SECONDS` have passed without a line, a log entry or a validation.
        """
        progress = self._progress
        is_long_ago = monotonic() - (self._told or self._begun) >= MOST_SECONDS
        return self._has_lines and is_long_ago and progress.seconds - progress.window.since >= MOST_SECONDS

    def tell(self, epochs: float, record: dict[str, float]) -> None:
        """Show the number of epochs so far and `record`: means over the latest updates (see `Window.record`)."""
        expected = expected_steps(self._progress, self._settings)
        if not self._has_lines:
            self._bar.set_postfix_str(f"epoch {epochs:.1f}, {_figures(record)}")
            self._bar.total = expected
            return
        line = f"{self._place(expected)}, epoch {epochs:.1f}: {_figures(record)}; {self._time(expected)}"
        now = monotonic()
        if self._told is not None and now - self._told < LEAST_SECONDS:
            self._left_out = line
            return
        self._told, self._left_out = now, None
        say(line)

    def _place(self, expected: int) -> str:
        about = "about " if expected != settled(self._settings.max_steps) else ""
        return f"step {self._progress.step:,} of {about}{expected:,}"

    def _time(self, expected: int) -> str:
        progress, most = self._progress, self._settings.max_minutes
        limit = "" if most is None else f" of {most:g}"
        left = max(0.0, (expected - progress.step) * progress.seconds / progress.step)
        if most is not None:
            left = min(left, max(0.0, 60 * most - progress.seconds))
        return f"{progress.seconds / 60:.1f}{limit} minutes, {duration(left)} left"


def _figures(record: dict[str, float]) -> str:
    return f"loss {record['loss']:.3f}, lr {record['lr']:.2e}, {record['tokens_per_second']:,.0f} tokens/s"
