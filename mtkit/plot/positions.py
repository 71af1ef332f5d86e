"""How a model tells places in a sentence. P positions, D model width."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import MtkitError
from mtkit.models.positions import SinusoidalPositions
from mtkit.plot.figure import line_of, new_figure, save, style

# How often the waves that are drawn as curves cross zero, from the quickest to the slowest.
CROSSINGS = (16, 8, 4, 2)


def position_table(config: Config, num_positions: int) -> NDArray[np.float32]:
    """(P, D): what is added to the embeddings; only what is fixed has one before training."""
    model = config.model
    if not isinstance(model, TransformerConfig):
        raise MtkitError(f"model.architecture is {model.architecture}: only a transformer has positions to draw")
    if model.positions != "sinusoidal":
        raise MtkitError(
            f"model.positions is {model.positions}: there is no table of waves to draw; sinusoidal has one"
        )
    table: NDArray[np.float32] = SinusoidalPositions(model).waves(num_positions).numpy()
    return table


def waves_to_draw(table: NDArray[np.float32]) -> list[int]:
    """Dimensions whose waves can be told apart by eye: for each number of crossings the one that comes nearest."""
    crossings = (np.diff(np.signbit(table), axis=0) != 0).sum(axis=0)
    return sorted({int(np.abs(crossings - wanted).argmin()) for wanted in CROSSINGS})


def plot_positions(table: NDArray[np.float32], output: Path) -> None:
    """The table as a heat map, and a few of its columns as curves."""
    with style():
        figure = new_figure(9, 7)
        above, below = figure.subplots(2, 1, height_ratios=(3, 2))
        image = above.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        above.set_xlabel("dimension")
        above.set_ylabel("position")
        figure.colorbar(image, ax=above, pad=0.01)
        for number, dimension in enumerate(waves_to_draw(table)):
            below.plot(table[:, dimension], label=f"dimension {dimension}", **line_of(number))
        below.set_xlabel("position")
        below.set_ylabel("value")
        below.set_xlim(0, len(table) - 1)
        below.grid(visible=True)
        below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(CROSSINGS))
        save(figure, output)
