"""How training went, from log.jsonl."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.errors import DataError
from mtkit.formats.bundle import is_run, no_model
from mtkit.plot.figure import legend_below, line_of, new_figure, save, style

# Panels of the picture: the event and the key in the log, and the title. Both losses are without label smoothing, so
# that they can be compared.
PANELS = (
    ("train", "nll", "training loss (nats a token)"),
    ("train", "lr", "learning rate"),
    ("validation", "nll", "validation loss (nats a token)"),
    ("validation", "bleu", "validation BLEU"),
)


@dataclass(frozen=True)
class History:
    """The events of a run that have figures."""

    label: str
    events: list[dict[str, Any]]


def read_history(run: Path) -> History:
    """The log of a run directory; of one that is being written, what is whole."""
    path = run / "log.jsonl"
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        if is_run(run):
            raise no_model(run) from None
        raise DataError(f"{path}: no such file; a run directory that was trained in is wanted") from None
    events = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            raise DataError(f"{path}:{number}: not a line of JSON; the log is damaged") from None
        if event.get("event") in ("train", "validation"):
            # In the logs of 0.1.0 the loss of a validation was without label smoothing.
            events.append({"nll": event["loss"], **event} if "loss" in event else event)
    if not events:
        raise DataError(f"{path}: has no figures yet; training logs the first after training.log_every updates")
    return History(run.name, events)


def series(history: History, event: str, key: str, by: str = "step") -> tuple[list[float], list[float]]:
    """Steps or minutes of the events that have a figure of that name, and the figures."""
    points = [(one["step"], one[key]) for one in history.events if one["event"] == event and one.get(key) is not None]
    steps, figures = [step for step, _ in points], [figure for _, figure in points]
    return (_minutes(history, steps) if by == "minutes" else steps), figures


def _minutes(history: History, steps: Iterable[int]) -> list[float]:
    """When the updates were made, in minutes of training; between two lines of the log, in proportion."""
    known = [(one["step"], one["minutes"]) for one in history.events if one["event"] == "train" and "minutes" in one]
    if not known:
        raise DataError(f"{history.label}: its log tells no time, as those of older versions of mtkit; use --by step")
    known.insert(0, (0, 0.0))
    minutes = []
    for step in steps:
        after = min(bisect_left(known, (step, 0.0)), len(known) - 1)
        (step_a, minute_a), (step_b, minute_b) = known[max(after - 1, 0)], known[after]
        share = (step - step_a) / max(step_b - step_a, 1)
        minutes.append(minute_a + share * (minute_b - minute_a))
    return minutes


def plot_training(histories: Sequence[History], by: str, output: Path) -> None:
    """Loss, learning rate, validation loss and BLEU of every run."""
    with style([history.label for history in histories]):
        figure = new_figure(10, 7)
        for axes, (event, key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for number, history in enumerate(histories):
                places, figures = series(history, event, key, by)
                marker = {"marker": "o", "markersize": 3} if event == "validation" else {}
                axes.plot(places, figures, label=history.label, **line_of(number), **marker)
            axes.set_xlabel("update" if by == "step" else "minutes of training")
            axes.set_title(title, loc="left")
            axes.set_xlim(left=0)
            axes.grid(visible=True)
        legend_below(figure, *axes.get_legend_handles_labels())
        save(figure, output)
