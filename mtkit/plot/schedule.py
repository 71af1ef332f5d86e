"""The learning rate, update by update."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkit.arguments import whole_number
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.errors import MtkitError
from mtkit.plot.figure import line_of, new_figure, save, style
from mtkit.training.budget import with_shares
from mtkit.training.schedule import learning_rate

MOST_POINTS = 2000  # more than a picture can show


@dataclass(frozen=True)
class Schedule:
    """What decides a learning rate, and its name in the legend."""

    label: str
    training: TrainingConfig
    d_model: int


def schedule_of(label: str, config: Config, num_steps: int | None) -> Schedule:
    """The schedule of a run, with what is auto as it would be in a run of num_steps updates.

    Raises MtkitError if the number of updates is auto and num_steps is None.
    """
    training = config.training
    if training.max_steps == "auto":
        if num_steps is None:
            raise MtkitError(f"{label}: training.max_steps is auto, a number that training fixes; give --steps")
        training = training.model_copy(update={"max_steps": num_steps})
    return Schedule(label, with_shares(training), config.model.d_model)


def paper_schedule(text: str) -> Schedule:
    """From "512:4000", d_model and warmup_steps of noam with the paper's factor (Vaswani et al. 2017, equation 3)."""
    d_model, colon, warmup = text.partition(":")
    if not colon or not whole_number(d_model) or not whole_number(warmup):
        raise MtkitError(f"--setting: found {text}, wants d_model:warmup_steps such as 512:4000")
    return Schedule(f"d_model {d_model}, warmup {warmup}", TrainingConfig(warmup_steps=int(warmup)), int(d_model))


def schedule_points(schedule: Schedule, num_steps: int) -> tuple[list[int], list[float]]:
    """Steps from 1 to num_steps, the peak among them, and the rate of each."""
    stride = -(-num_steps // MOST_POINTS)
    steps = sorted(
        {
            1,
            *range(stride, num_steps, stride),
            min(max(settled(schedule.training.warmup_steps), 1), num_steps),
            num_steps,
        }
    )
    return steps, [learning_rate(step, schedule.training, schedule.d_model) for step in steps]


def plot_schedules(schedules: Sequence[Schedule], num_steps: int, output: Path) -> None:
    """All of them in one picture."""
    with style():
        figure = new_figure(7, 4)
        axes = figure.subplots()
        for number, schedule in enumerate(schedules):
            axes.plot(*schedule_points(schedule, num_steps), label=schedule.label, **line_of(number))
        axes.set_xlabel("update")
        axes.set_ylabel("learning rate")
        axes.set_xlim(0, num_steps)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        axes.legend()
        save(figure, output)
