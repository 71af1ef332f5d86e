"""What the log tells, drawn by TensorBoard: the home of tensorboard, which mtkit does without unless asked.

tensorboard/events.out.tfevents.…
"""

import math
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mtkit.errors import MtkitError

# What of an event is drawn, and under which name; TensorBoard folds what stands before the slash.
CURVES = {"train", "validation", "average"}
NOT_DRAWN = {"epoch", "best", "better", "steps", "seconds", "minutes"}


def require_tensorboard() -> None:
    """Tell in one line how to install what is missing, before any work."""
    if find_spec("tensorboard") is None:
        raise MtkitError(
            "training.tensorboard wants the package tensorboard, which is not installed; install it with "
            "pip install 'mtkit[tensorboard]', or leave the setting out"
        )


class Board:
    """Draws the events of a log as they come."""

    def __init__(self, directory: Path, step: int) -> None:
        """What an earlier process drew of steps after this one is no longer shown: it will be drawn again."""
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        self._writer = SummaryWriter(str(directory), purge_step=step + 1)
        self._num_samples: dict[int, int] = {}

    def draw(self, event: str, values: dict[str, object]) -> None:
        """One event of the log: figures as curves, samples as text, the rest not at all."""
        step = values.get("step", 0)
        if event == "average":
            assert isinstance(values["steps"], list)
            step = values["steps"][-1]
        assert isinstance(step, int)
        if event == "sample":
            # In the order of the log, so that a step has the samples 1, 2, 3.
            number = self._num_samples.get(step, 0) + 1
            self._num_samples = {step: number}
            text = "\n".join(f"    {values[name]}" for name in ("source", "hypothesis", "reference"))
            self._writer.add_text(f"sample/{number}", text, step)
        elif event in CURVES:
            for name, value in values.items():
                if name not in {"step", *NOT_DRAWN} and isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()  # so that a kill loses no more than of the log

    def close(self) -> None:
        """No more events."""
        with suppress(OSError):  # all there is to write was written, or is told of already
            self._writer.close()
