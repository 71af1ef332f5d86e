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

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.evaluation.plot import check_output, curve_style, new_figure, save, style
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import new_model, pick_device, speed_up
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


Curves = dict[
    str, dict[int, list[tuple[int, float]]]
]  # for each panel and beam, (x, tokens a second); beam 0: x itself


def measured(device: torch.device, precision: str, rounds: int, most_points: int | None) -> Curves:
    """Measure all points, and print each."""
    curves: Curves = {}
    for name, points in PANELS.items():
        beams = BEAMS if not points[0][1][2] else (0,)
        for beam in beams:
            curve = curves.setdefault(name, {}).setdefault(beam, [])
            for x, (sentences, length, own_beam, width) in points[:most_points]:
                model = model_of(width, device, precision)
                speed = tokens_per_second(model, sentences, length, own_beam or beam, rounds)
                print(f"{name} {x}, beam {own_beam or beam}: {speed:,.0f} tokens a second", flush=True)
                curve.append((x, speed))
    return curves


def draw(curves: Curves, output: Path) -> None:
    """Draw a panel for each of the curves."""
    with style():
        figure = new_figure(9, 6)
        for place, (name, by_beam) in enumerate(curves.items(), start=1):
            axes = figure.add_subplot(2, 2, place)
            for number, (beam, curve) in enumerate(by_beam.items()):
                label = f"beam {beam}" if beam > 1 else "greedy" if beam else None
                axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=label, **curve_style(number))
            xs = [x for x, _ in curve]
            speeds = [speed for curve in by_beam.values() for _, speed in curve]
            low, high = min(speeds) / 1.2, max(speeds) * 1.2
            ys = [y for power in range(6) for y in (10**power, 2 * 10**power, 5 * 10**power) if low <= y <= high]
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="target tokens a second", ylim=(low, high))
            axes.set_xticks(xs, list(map(str, xs)))
            axes.set_yticks(ys, [f"{y:,}" for y in ys])
            axes.minorticks_off()
            axes.grid(visible=True)
            if len(by_beam) > 1:
                axes.legend()
        save(figure, output)


def main() -> None:
    """Read the arguments, measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two points of each panel, with one round")
    arguments = parser.parse_args()
    check_output(arguments.output)
    device = pick_device(arguments.device)
    print(f"torch {torch.__version__}, {device.type}, {arguments.precision}, {torch.get_num_threads()} threads")
    rounds, most_points = (1, 2) if arguments.tiny else (arguments.rounds, None)
    draw(measured(device, arguments.precision, rounds, most_points), arguments.output)


if __name__ == "__main__":
    main()
