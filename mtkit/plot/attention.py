"""How the target looks at the source. L layers, H heads, Q target pieces, S source pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import MtkitError
from mtkit.plot.figure import new_figure, save, style
from mtkit.translator import Translator

END_LABEL = "</s>"


@dataclass(frozen=True)
class Attention:
    """Of a sentence pair: row q of weights is how the model looked when it said target piece q."""

    source: list[str]
    target: list[str]
    weights: list[NDArray[np.float32]]  # for each layer (H, Q, S), rows that sum to 1

    def of(self, layer: int | None, head: int | None, mean: bool) -> list[tuple[str, NDArray[np.float32]]]:
        """Titles and (Q, S) pictures of a layer and a head, counted from 1, or of all; mean is over the heads."""
        chosen = []
        for number in _chosen("--layer", layer, len(self.weights)):
            weights = self.weights[number]
            if mean:
                chosen.append((f"layer {number + 1}, mean", weights.mean(0)))
            else:
                heads = _chosen("--head", head, len(weights))
                chosen += [(f"layer {number + 1}, head {h + 1}", weights[h]) for h in heads]
        return chosen


def _chosen(name: str, number: int | None, count: int) -> Sequence[int]:
    if number is None:
        return range(count)
    if number > count:
        raise MtkitError(f"{name}: found {number}, but there are {count}")
    return [number - 1]


@torch.inference_mode()
def attention_of(translator: Translator, source: str, target: str | None = None) -> Attention:
    """The attention over a sentence and a translation of it, the model's own where none is given."""
    if target is None:
        [target] = translator.translate([source])
    tokenizer, model = translator.tokenizer, translator.model
    source_ids, target_ids = tokenizer.encode_source([source])[0], tokenizer.encode_target([target])[0]
    limits = (("source", len(source_ids), model.limits.source), ("target", len(target_ids), model.limits.target))
    for side, length, limit in limits:
        if limit is not None and length >= limit:
            raise MtkitError(f"the {side} has {length} pieces; the model takes at most {limit - 1}")
    batch = padded_batch(ragged([source_ids]), ragged([target_ids]), model.marks).to(model.device)
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
    """Pictures in rows of so many columns, which they fill; pieces stand at the edges of the sheet."""
    rows = -(-len(pictures) // columns)
    # A piece needs some room to be read; a grid of many takes less for each.
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
