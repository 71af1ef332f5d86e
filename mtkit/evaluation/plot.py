"""Plots of attention, position encodings, learning rates and training curves; only this module uses matplotlib."""

import json
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.bundle.bundle import is_run, no_model
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import DataError, MtkitError, say, shown, whole_number
from mtkit.files import write_file
from mtkit.models.layers import SinusoidalPositions
from mtkit.training.optimizers import decay_start, learning_rate, with_shares
from mtkit.translation.translator import Translator

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Figures and their style.

FORMATS = (".png", ".svg")

# Eight colours that people with any kind of colour blindness can tell apart (Okabe & Ito, 2008), the palest last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", ":", "-.")  # dashes tell curves apart in greyscale, or where they overlap

MAIN_FONT = "DejaVu Sans"  # part of matplotlib

STYLE: dict[Any, Any] = {
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the viewer's fonts show every script
    "svg.hashsalt": "mtkit",  # makes the files of equal plots identical
    "text.parse_math": False,  # a dollar sign does not begin a formula
}


def check_output(path: Path) -> None:
    """Raises MtkitError if a plot cannot be written to `path`; called before any work is done.

    The suffix must be that of PNG or SVG, the folder must exist, and matplotlib must be installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise MtkitError(f"--output: found {path}, wants a file that ends in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise MtkitError(f"--output: {path.parent}: no such directory")
    _matplotlib()


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of the given width and height in inches; its parts will not overlap."""
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(texts: Iterable[str] = ()) -> Any:
    """Returns a context manager that sets the style of figures, with fonts that can show `texts`.

    Figures must be both drawn and saved in the block of the context manager.
    """
    import matplotlib as mpl

    return mpl.rc_context({**STYLE, "font.family": [MAIN_FONT, *fonts_for(set().union(*texts))]})


def curve_style(number: int) -> dict[str, Any]:
    """Returns the colour and dashes of a curve as keyword arguments of matplotlib; `number` counts curves from 0."""
    round_, place = divmod(number, len(COLOURS))  # when colours repeat, the dashes differ
    return {"color": COLOURS[place], "linestyle": LINES[(place + round_) % len(LINES)]}


def legend_below(figure: "Figure", handles: Sequence["Artist"], labels: Sequence[str]) -> "Legend":
    """Add a legend below all parts of a figure, with as many columns as fit, up to four; return the legend."""
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    return legend


def save(figure: "Figure", path: Path) -> None:
    """Write a figure to the file `path`, as PNG or SVG depending on the suffix."""
    kind = path.suffix.lower().removeprefix(".")
    stream = BytesIO()
    with warnings.catch_warnings():
        # fonts_for has already warned of characters without a glyph, which are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_file(path, stream.getvalue())


def fonts_for(characters: set[str]) -> list[str]:
    """Returns the names of installed fonts that cover the characters missing from `MAIN_FONT`.

    Warns of characters that no installed font has.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    def lacking(path: str, wanted: set[str]) -> set[str]:
        font = get_font(path)
        return {character for character in wanted if not font.get_char_index(ord(character))}

    missing = lacking(findfont(FontProperties(family=MAIN_FONT)), {c for c in characters if c.isprintable()})
    families: list[str] = []
    for entry in fontManager.ttflist:
        if not missing:
            break
        # Last Resort fonts show a box for every character, so they do not help.
        if "Last Resort" in entry.name or entry.style != "normal":
            continue
        left = lacking(entry.fname, missing)
        if left < missing and lacking(findfont(FontProperties(family=entry.name)), missing) <= left:
            families.append(entry.name)
            missing = left
    if missing:
        shown = "".join(sorted(missing)[:20])
        say(
            f"mtkit: warning: no installed font has {shown}, drawn as boxes; install one, such as Noto Sans, or write "
            "an .svg, which is shown in the fonts of its viewer"
        )
    return families


def _matplotlib() -> None:
    """Silences the log of matplotlib; raises MtkitError if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise MtkitError("pictures need matplotlib; install it with: pip install 'mtkit[plot]'") from None
    mpl.set_loglevel("ERROR")


# Attention of the target to the source. Shapes: H heads, Q target pieces, S source pieces.

END_LABEL = "</s>"


@dataclass(frozen=True)
class Attention:
    """Attention weights of a sentence pair.

    Row q of the matrix (Q, S) of an attention head holds the weights that the head gives to the S source pieces when
    the model predicts target piece q.
    """

    source: list[str]  # pieces; the last one is the end mark
    target: list[str]  # pieces; the last one is the end mark
    weights: list[NDArray[np.float32]]  # (H, Q, S) for each layer; rows sum to 1

    def of(self, layer: int | None, head: int | None, mean: bool) -> list[tuple[str, NDArray[np.float32]]]:
        """Returns (title, weights (Q, S)) for each head of one layer, or of all layers if `layer` is `None`.

        If `head` is a number, only that head of each layer is returned. With `mean`, the mean over the heads of each
        layer is returned instead. Layers and heads are numbered from 1. Raises MtkitError if there is no such layer or
        head.
        """
        chosen = []
        for number in _indices("--layer", layer, len(self.weights)):
            weights = self.weights[number]
            if mean:
                chosen.append((f"layer {number + 1}, mean", weights.mean(0)))
            else:
                heads = _indices("--head", head, len(weights))
                chosen += [(f"layer {number + 1}, head {h + 1}", weights[h]) for h in heads]
        return chosen


def _indices(name: str, number: int | None, count: int) -> Sequence[int]:
    """Returns the indices, from 0, of the layers or heads that the option `name` selects.

    `number` is the value of the option, counted from 1. `None` selects all `count` layers or heads. Raises MtkitError
    if `number` is greater than `count`; the error message names the option.
    """
    if number is None:
        return range(count)
    if number > count:
        raise MtkitError(f"{name}: found {number}, but there are {count}")
    return [number - 1]


@torch.inference_mode()
def attention_of(translator: Translator, source: str, target: str | None = None) -> Attention:
    """Return the attention weights for a sentence and its translation, which is by default the model's own.

    Raises MtkitError if the sentence or its translation is too long for the model, or if the model has no attention.
    """
    if target is None:
        [target] = translator.translate([source])
    tokenizer, model = translator.tokenizer, translator.model
    source_ids, target_ids = tokenizer.encode_source([source])[0], tokenizer.encode_target([target])[0]
    limits = (("source", len(source_ids), model.limits.source), ("target", len(target_ids), model.limits.target))
    for side, length, limit in limits:
        if limit is not None and length >= limit:
            raise MtkitError(f"the {side} has {length} pieces; the model takes at most {limit - 1}")
    batch = padded_batch(ragged([source_ids]), ragged([target_ids]), model.boundaries).to(model.device)
    _, state = model.decode(batch.target, model.encode(batch.source, watch=True))
    if not state.attention:
        raise MtkitError(f"a model of architecture {translator.config.model.architecture} has no attention to draw")
    return Attention(
        [*tokenizer.source_pieces(source_ids), END_LABEL],
        [*tokenizer.target_pieces(target_ids), END_LABEL],
        [layer[0].float().cpu().numpy() for layer in state.attention],
    )


def plot_attention(
    attention: Attention, pictures: Sequence[tuple[str, NDArray[np.float32]]], columns: int, output: Path
) -> None:
    """Write a plot of heat maps to the file `output`.

    `pictures` holds a title and a matrix of weights (target pieces, source pieces) for each heat map, as `Attention.of`
    returns them. The heat maps are drawn in a grid of `columns` columns, and must fill all rows of the grid.
    """
    rows = -(-len(pictures) // columns)
    # Inches per piece: enough to read the labels if there is a single map, less in a grid.
    piece = 0.3 if len(pictures) == 1 else 0.16
    width, height = (max(1.5, piece * len(side)) for side in (attention.source, attention.target))
    with style([*attention.source, *attention.target]):
        figure = new_figure(2 + columns * (width + 0.3), 1.5 + rows * (height + 0.5))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        size = 10 if len(pictures) == 1 else 7
        for axes, (title, weights) in zip(grid.flat, pictures, strict=True):
            image = axes.imshow(weights, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(title, fontsize=size + 1)
            axes.set_xticks(range(len(attention.source)), attention.source, rotation=90, fontsize=size)
            axes.set_yticks(range(len(attention.target)), attention.target, fontsize=size)
            axes.tick_params(length=0)
        figure.colorbar(image, ax=grid, shrink=0.6, aspect=30, pad=0.01)
        save(figure, output)


# Position encodings. Shapes: P positions, D model width.

# Only some dimensions of the encodings are drawn as curves: for each number here, the one that crosses zero about that
# many times. The first number gives the fastest wave, the last number the slowest.
CROSSINGS = (16, 8, 4, 2)


def position_table(config: Config, num_positions: int) -> NDArray[np.float32]:
    """Returns a table of the sinusoidal encodings of a Transformer: a row for each of `num_positions` positions.

    Raises MtkitError if the model has other position encodings, or none.
    """
    model = config.model
    if not isinstance(model, TransformerConfig):
        raise MtkitError(f"model.architecture is {model.architecture}: only a transformer has positions to draw")
    if (found := model.positions_of("encoder")) != "sinusoidal":
        raise MtkitError(f"model.positions is {found}: only sinusoidal positions can be drawn")
    table: NDArray[np.float32] = SinusoidalPositions(model).make_table(num_positions).numpy()
    return table


def waves_to_draw(table: NDArray[np.float32]) -> list[int]:
    """Returns the indices of the dimensions, columns of `table`, to draw as curves.

    For each number n in `CROSSINGS`, the dimension whose number of zero crossings is nearest to n is chosen.
    """
    crossings = (np.diff(np.signbit(table), axis=0) != 0).sum(axis=0)
    return sorted({int(np.abs(crossings - wanted).argmin()) for wanted in CROSSINGS})


def plot_positions(table: NDArray[np.float32], output: Path) -> None:
    """Write a plot of position encodings to the file `output`: a heat map, and a few dimensions as curves.

    `table` has a row for each position and a column for each dimension.
    """
    with style():
        figure = new_figure(9, 7)
        above, below = figure.subplots(2, 1, height_ratios=(3, 2))
        image = above.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        above.set_xlabel("dimension")
        above.set_ylabel("position")
        figure.colorbar(image, ax=above, pad=0.01)
        for number, dimension in enumerate(waves_to_draw(table)):
            below.plot(table[:, dimension], label=f"dimension {dimension}", **curve_style(number))
        below.set_xlabel("position")
        below.set_ylabel("value")
        below.set_xlim(0, len(table) - 1)
        below.grid(visible=True)
        below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(CROSSINGS))
        save(figure, output)


# Learning rates.

MOST_POINTS = 2000  # the maximum number of points of a curve, about; more could not be seen


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule and its label; the rates depend on the settings of training and on the model width."""

    label: str
    training: TrainingConfig
    d_model: int


def schedule_of(label: str, config: Config, num_steps: int | None) -> Schedule:
    """Returns the learning-rate schedule that the settings of a run describe; `label` names it in the picture.

    If `training.max_steps` is "auto", `num_steps` is used in its place. Other settings that are "auto" become fractions
    of the number of steps. Raises MtkitError if `training.max_steps` is "auto" and `num_steps` is `None`.
    """
    training = config.training
    if training.max_steps == "auto":
        if num_steps is None:
            raise MtkitError(f"{label}: training.max_steps is auto, a number that training fixes; give --steps")
        training = training.model_copy(update={"max_steps": num_steps})
    return Schedule(label, with_shares(training), config.model.d_model)


def paper_schedule(text: str) -> Schedule:
    """Returns the noam schedule (Vaswani et al. 2017, equation 3) that a text like "512:4000" describes.

    The numbers in the text are `d_model` and `warmup_steps`. Raises MtkitError if the text has another form.
    """
    d_model, colon, warmup = text.partition(":")
    if not colon or not whole_number(d_model) or not whole_number(warmup):
        raise MtkitError(f"--setting: found {text}, wants d_model:warmup_steps such as 512:4000")
    return Schedule(f"d_model {d_model}, warmup {warmup}", TrainingConfig(warmup_steps=int(warmup)), int(d_model))


def schedule_points(schedule: Schedule, num_steps: int) -> tuple[list[int], list[float]]:
    """Returns steps from 1 to `num_steps`, and the learning rate at each of these steps.

    There are not many more than `MOST_POINTS` steps. To keep the corners of the curve sharp, they always include the
    last step of warm-up. With the schedule "wsd", they also include the last step before the decay.
    """
    stride = -(-num_steps // MOST_POINTS)
    corners = [settled(schedule.training.warmup_steps)]
    if schedule.training.schedule == "wsd":
        corners.append(decay_start(schedule.training))
    steps = sorted(
        {
            1,
            *range(stride, num_steps, stride),
            *(min(max(corner, 1), num_steps) for corner in corners),
            num_steps,
        }
    )
    return steps, [learning_rate(step, schedule.training, schedule.d_model) for step in steps]


def plot_schedules(schedules: Sequence[Schedule], num_steps: int, output: Path) -> None:
    """Write a plot of the learning rates of all schedules, from step 1 to `num_steps`, to the file `output`."""
    with style():
        figure = new_figure(7, 4)
        axes = figure.subplots()
        for number, schedule in enumerate(schedules):
            axes.plot(*schedule_points(schedule, num_steps), label=schedule.label, **curve_style(number))
        axes.set_xlabel("update")
        axes.set_ylabel("learning rate")
        axes.set_xlim(0, num_steps)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        axes.legend()
        save(figure, output)


# Training curves, from log.jsonl.

# The panels of the figure. Each is given by three texts: the kind of event in the log, the key of the value in that
# event, and the title of the panel. Training loss and validation loss can be compared, since both are without label
# smoothing.
PANELS = (
    ("train", "nll", "training loss (nats a token)"),
    ("train", "lr", "learning rate"),
    ("validation", "nll", "validation loss (nats a token)"),
    ("validation", "bleu", "validation BLEU"),
)


@dataclass(frozen=True)
class History:
    """The training and validation events in the log of a run."""

    label: str
    events: list[dict[str, Any]]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read all events in the log.jsonl of a run directory, in order; an incomplete last line is ignored.

    Raises CheckpointError if the run directory has no log yet, since training has only just begun. Raises DataError if
    `run` is not a run directory, or if the log is damaged. The values of events are checked against WANTED.
    """
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
        except (ValueError, RecursionError):  # RecursionError: nested too deeply
            raise DataError(f"{path}:{number}: not a line of JSON; the log is damaged") from None
        if not isinstance(event, dict):
            raise DataError(f"{path}:{number}: not an object of JSON; the log is damaged")
        if fault := _fault_of_event(event):
            raise DataError(f"{path}:{number}: {fault}; the log is damaged")
        # Version 0.1.0 logged the validation loss without label smoothing as `loss`.
        is_old = event.get("event") in ("train", "validation") and "loss" in event
        events.append({"nll": event["loss"], **event} if is_old else event)
    return events


LARGEST = 1e100  # the largest number allowed in a log; the largest fp32 number is 3e38


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST  # false for NaN


def _is_figure(value: Any) -> bool:
    return value is None or _is_number(value)  # Log writes null for infinities and NaN


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(check: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(check, value))


# For each key of an event that is drawn or shown: the wanted kind of value, in words, and a function that checks it.
FIGURES = ("loss", "nll", "bleu", "chrf", "lr", "gradient_norm", "tokens_per_second")
WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "event": ("text", _is_text),
    "step": ("a whole number", _is_step),
    "steps": ("a list of whole numbers", lambda value: value != [] and _is_list_of(_is_step, value)),
    "minutes": (f"a number up to {LARGEST:g}", _is_number),
    "settings": ("an object", lambda value: isinstance(value, dict)),
    "command": ("a list of words", lambda value: _is_list_of(_is_text, value)),
    **dict.fromkeys(("source", "hypothesis", "reference"), ("text", _is_text)),
    **dict.fromkeys(FIGURES, (f"a number up to {LARGEST:g}, or null", _is_figure)),
}
# For each kind of event, the keys that it must have besides `event`; events of other kinds may have any keys.
NEEDED = {
    "train": ("step",),
    "validation": ("step",),
    "sample": ("step", "source", "hypothesis", "reference"),
    "change": ("step", "settings"),
    "average": ("steps",),
}


def _fault_of_event(event: dict[str, Any]) -> str | None:
    """Returns text on the first value of an event that is missing or not as WANTED says; `None` if all is well."""
    kind = event.get("event")
    for key in ("event", *(NEEDED.get(kind, ()) if isinstance(kind, str) else ())):
        if key not in event:
            return f"found no {key}, wants {WANTED[key][0]}"
    for key, value in event.items():
        if key in WANTED and not WANTED[key][1](value):
            return f"{key}: found {shown(value)}, wants {WANTED[key][0]}"
    return None


def read_history(run: Path) -> History:
    """Read the training and validation events in the log.jsonl of a run directory.

    Raises CheckpointError if there is no log yet, since training has only just begun; DataError if `run` is not a run
    directory, or if the log is damaged or has no training or validation events.
    """
    events = [event for event in read_log(run) if event.get("event") in ("train", "validation")]
    if not events:
        path = run / "log.jsonl"
        raise DataError(f"{path}: has no figures yet; training logs the first after training.log_every updates")
    return History(run.name, events)


def series(history: History, event: str, key: str, by: str = "step") -> tuple[list[float], list[float]]:
    """Returns the x and y values of a curve: steps, and the values of `key` in the events of the kind `event`.

    An example is the key "nll" of the events "validation". Events without `key` are left out. If `by` is "minutes", the
    x values are minutes of training instead of steps; then raises DataError if the log has no minutes.
    """
    points = [(one["step"], one[key]) for one in history.events if one["event"] == event and one.get(key) is not None]
    steps, figures = [step for step, _ in points], [figure for _, figure in points]
    return (_minutes(history, steps) if by == "minutes" else steps), figures


def _minutes(history: History, steps: Iterable[int]) -> list[float]:
    """Returns how many minutes training took to reach each step, interpolated between the training events in the log.

    Raises DataError if the training events have no minutes.
    """
    known = [(one["step"], one["minutes"]) for one in history.events if one["event"] == "train" and "minutes" in one]
    if not known:
        raise DataError(f"{history.label}: its log has no times, since an older mtkit wrote it; use --by step")
    known.insert(0, (0, 0.0))
    minutes = []
    for step in steps:
        after = min(bisect_left(known, (step, 0.0)), len(known) - 1)
        (step_a, minute_a), (step_b, minute_b) = known[max(after - 1, 0)], known[after]
        share = (step - step_a) / max(step_b - step_a, 1)
        minutes.append(minute_a + share * (minute_b - minute_a))
    return minutes


def plot_training(histories: Sequence[History], by: str, output: Path) -> None:
    """Write a plot of training loss, learning rate, validation loss and validation BLEU of several runs.

    The plot is written to the file `output`. The horizontal axes show the quantity `by`: "step" or "minutes".
    """
    with style([history.label for history in histories]):
        figure = new_figure(10, 7)
        for axes, (event, key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for number, history in enumerate(histories):
                places, figures = series(history, event, key, by)
                marker = {"marker": "o", "markersize": 3} if event == "validation" else {}
                axes.plot(places, figures, label=history.label, **curve_style(number), **marker)
            axes.set_xlabel("update" if by == "step" else "minutes of training")
            axes.set_title(title, loc="left")
            axes.set_xlim(left=0)
            axes.grid(visible=True)
        legend_below(figure, *axes.get_legend_handles_labels())
        save(figure, output)
