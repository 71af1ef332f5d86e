"""Measures how fast models translate, by batch, length, beam and width, and draws it.

    .venv/bin/python scripts/plot_decoding_speed.py -o speed.png [--precision int8] [--rounds 3] [--tiny]

The models are Transformers of 3 + 3 layers with 4 heads, 8,000 pieces and random weights, so each translation is made
as long as its source. Unless a panel varies it, the width is 256, a batch has 64 sentences, and a sentence 20 tokens;
over lengths, a batch has at most 1,280 source tokens. Each point is the median of the rounds, after a first one as
warm-up: target tokens a second, from ids to ids. A table of the points is printed. Leave the machine otherwise idle.
"""

import argparse
import statistics
import time
from functools import cache
from pathlib import Path

import torch

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.evaluation.plot import curve_style, new_figure, save, style
from mtkit.models.interface import TranslationModel
from mtkit.models.quantized import speed_up
from mtkit.models.registry import new_model, pick_device
from mtkit.text.vocabulary import NUM_SPECIAL
from mtkit.translation.decode import decode

VOCABULARY = 8_000
WIDTH, SENTENCES, LENGTH = 256, 64, 20
BEAMS = (1, 5)

Point = tuple[int, int, int, int]  # sentences, length, beam, width
PANELS: dict[str, list[tuple[int, Point]]] = {
    "sentences in a batch": [(n, (n, LENGTH, 0, WIDTH)) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
    "source tokens of a sentence": [
        (n, (max(1, SENTENCES * LENGTH // n), n, 0, WIDTH)) for n in (5, 10, 20, 50, 100, 200)
    ],
    "beam": [(n, (SENTENCES, LENGTH, n, WIDTH)) for n in (1, 2, 3, 5, 8, 12, 20)],
    "width of the model": [(n, (SENTENCES, LENGTH, 0, n)) for n in (64, 128, 192, 256, 384, 512)],
}


@cache
def model_of(width: int, device: torch.device, precision: str) -> TranslationModel:
    """A model with random weights."""
    config = TransformerConfig(d_model=width, num_heads=4, d_ff=4 * width, encoder_layers=3, decoder_layers=3)
    model = new_model(config, VOCABULARY, VOCABULARY, seed=1).to(device).eval()
    speed_up(model, precision)
    return model


def tokens_per_second(model: TranslationModel, sentences: int, length: int, beam: int, rounds: int) -> float:
    """The median speed of translating a batch."""
    ids = torch.randint(NUM_SPECIAL, VOCABULARY, (sentences, length), generator=torch.Generator().manual_seed(1))
    decoding = DecodingConfig(beam_size=beam, min_length=length, max_length_ratio=1.0, max_length_extra=0)
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        found = decode(model, decoding, ids.tolist())  # ids on the CPU, so the device has finished
        seconds.append(time.perf_counter() - begun)
    assert all(best[0].tokens and len(best[0].tokens) == length for best in found)
    return sentences * length / statistics.median(seconds[1:])


def main() -> None:
    """Read the arguments, measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two points of each panel, with one round")
    arguments = parser.parse_args()
    device, rounds = pick_device(arguments.device), 1 if arguments.tiny else arguments.rounds

    print(f"torch {torch.__version__}, {device.type}, {arguments.precision}, {torch.get_num_threads()} threads")
    with style():
        figure = new_figure(9, 6)
        for place, (name, points) in enumerate(PANELS.items(), start=1):
            axes = figure.add_subplot(2, 2, place)
            for number, beam in enumerate(BEAMS if points[0][1][2] == 0 else (0,)):
                xs, ys = [], []
                for x, (sentences, length, own_beam, width) in points[:2] if arguments.tiny else points:
                    model = model_of(width, device, arguments.precision)
                    speed = tokens_per_second(model, sentences, length, own_beam or beam, rounds)
                    print(f"{name} {x}, beam {own_beam or beam}: {speed:,.0f} tokens a second", flush=True)
                    xs.append(x)
                    ys.append(speed)
                label = f"beam {beam}" if beam > 1 else "greedy" if beam else None
                axes.plot(xs, ys, marker="o", markersize=3, label=label, **curve_style(number))
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="target tokens a second")
            axes.set_xticks(xs, list(map(str, xs)))
            axes.minorticks_off()
            if points[0][1][2] == 0:
                axes.legend()
        save(figure, arguments.output)


if __name__ == "__main__":
    main()
