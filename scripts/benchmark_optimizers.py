"""Measures what an update costs with each optimizer, by the width of the model.

    .venv/bin/python scripts/benchmark_optimizers.py [--width 128 256 512] [--optimizer adam muon] [--rounds 7]

The model is a Transformer of 3 + 3 layers with 4 heads, a feed-forward width of four times its width and 8,000 pieces;
the rows are random, of 5 to 60 tokens. The optimizers take turns in one process, each with a model of its own, over the
same batches. On a CPU the time is the process's CPU time, which other programs disturb less than the time on the clock.
The result is the median of the ratios of the rounds to the first optimizer.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from benchmark_training import random_batches

from mtkit.bundle.opening import Progress
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Batch
from mtkit.models.registry import new_model, pick_device, pick_precision
from mtkit.training.optimizers import make_optimizer
from mtkit.training.update import LossScaler, TrainState, Updater

VOCABULARY = 8_000


def updates_of(
    optimizer: str, width: int, precision: str, device: torch.device, batches: list[Batch]
) -> Callable[[], float]:
    """A function that makes an update with each batch and returns the seconds of one."""
    config = TransformerConfig(d_model=width, num_heads=4, d_ff=4 * width, encoder_layers=3, decoder_layers=3)
    settings = TrainingConfig.model_validate({"optimizer": optimizer, "learning_rate": 1e-3, "schedule": "constant"})
    model = new_model(config, VOCABULARY, VOCABULARY, seed=1).to(device).train()
    precision = pick_precision(precision, device, width)  # type: ignore[arg-type]
    state = TrainState(model, make_optimizer(model, settings, device), Progress(precision=precision))
    updater = Updater(state, settings, LossScaler(device, precision, 1.0, 0))
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = clock()
        for step, batch in enumerate(batches, start=1):
            updater.update([batch], step, 1e-4)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (clock() - begun) / len(batches)

    return run


def main() -> None:
    """Read the arguments, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--optimizer", nargs="+", default=["adam", "muon"])
    parser.add_argument("--batch-tokens", type=int, default=4096, help="per side, padding included")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=4, help="of each optimizer in a round")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    batches = random_batches(arguments.batch_tokens, arguments.updates, VOCABULARY)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads\n")
    print("| width | optimizer | ms per update | ratio | range |\n|---:|---|---:|---:|---|", flush=True)
    for width in arguments.width:
        runs = {each: updates_of(each, width, arguments.precision, device, batches) for each in arguments.optimizer}
        for run in runs.values():
            run()  # allocates memory
        times = [{each: run() for each, run in runs.items()} for _ in range(arguments.rounds)]
        for each in runs:
            ratios = sorted(seconds[each] / seconds[arguments.optimizer[0]] for seconds in times)
            middle = 1000 * statistics.median(seconds[each] for seconds in times)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(f"| {width} | {each} | {middle:.1f} | {statistics.median(ratios):.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
