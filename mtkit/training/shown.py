"""How far training is: a bar on a terminal, else lines on stderr."""

from time import monotonic

from tqdm import tqdm

from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.messages import on_terminal, say
from mtkit.progress import bar_size, duration, is_shown
from mtkit.training.checkpoint import Progress
from mtkit.training.limits import expected_steps

LEAST_SECONDS = 5.0  # between two lines, however fast updates are
MOST_SECONDS = 30.0  # without a line, however slow they are


class ShownTraining:
    """Shows each line of the log as it is written: loss, learning rate, speed, and the time that is left.

    On a terminal these stand in a bar. Elsewhere they are a line for every training.log_every updates. Lines that would
    come within LEAST_SECONDS of the one before are left out, but the first, the last and the one before a validation
    always come; and where so many updates take longer than MOST_SECONDS, there is a line after as many seconds.
    """

    def __init__(self, progress: Progress, settings: TrainingConfig) -> None:
        self._progress = progress
        self._settings = settings
        self._told: float | None = None  # when the last line was printed
        self._begun = monotonic()
        self._left_out: str | None = None  # the last line, if it came too soon
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
        """No more updates come."""
        self._bar.close()
        self.catch_up()

    def catch_up(self) -> None:
        """Print the last line if it was left out, since something else than an update comes now."""
        if self._left_out is not None:
            say(self._left_out)
            self._left_out = None

    def update(self) -> None:
        """One more step is done."""
        self._bar.update()

    @property
    def is_overdue(self) -> bool:
        """Whether a line is to be shown though the log has none yet; never right after a validation."""
        progress = self._progress
        is_long_ago = monotonic() - (self._told or self._begun) >= MOST_SECONDS
        return self._has_lines and is_long_ago and progress.seconds - progress.window.since >= MOST_SECONDS

    def tell(self, epochs: float, record: dict[str, float]) -> None:
        """Show a line of the log, or what it would be so far, after so many epochs."""
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
