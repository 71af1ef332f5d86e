"""Measures the speed of translation, by search, precision and batch size.

    .venv/bin/python scripts/benchmark_decoding.py MODEL FILE [--device cuda] [--precision bf16]
        [--beam-size 1 --beam-size 5] [--batch-tokens 16384 --batch-tokens 131072] [--rounds 3] [--repeat 1]

MODEL is a run directory or a model bundle, FILE its source text, repeated --repeat times. Each line of the table is the
median of the rounds, without a first one as warm-up: lines and target tokens (without end tokens) per second, from text
to text. Leave the machine otherwise idle.
"""

import argparse
import statistics
import time
from itertools import product
from pathlib import Path

import torch

from mtkit.models.registry import PRECISIONS
from mtkit.translation.translator import Translator, load


def seconds(translator: Translator, lines: list[str]) -> tuple[float, list[str]]:
    """Translate the lines; returns the seconds it took and the translations."""
    begun = time.perf_counter()
    translations = translator.translate(lines)  # text, so the device has finished
    return time.perf_counter() - begun, translations


def main() -> None:
    """Read the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: fp32")
    parser.add_argument("--beam-size", type=int, action="append", help="default: 1 and 5; 1 is greedy")
    parser.add_argument("--batch-tokens", type=int, action="append", help="default: 16,384")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()

    lines = arguments.file.read_text("utf-8").splitlines() * arguments.repeat
    choices = product(
        arguments.precision or ["fp32"], arguments.beam_size or [1, 5], arguments.batch_tokens or [16_384]
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(lines):,} lines")
    print("device  precision  beam  batch_tokens  seconds  lines/s  tokens/s", flush=True)
    for precision, beam_size, batch_tokens in choices:
        settings = [f"decoding.beam_size={beam_size}", f"decoding.batch_tokens={batch_tokens}"]
        translator = load(arguments.model, [*settings, f"device={arguments.device}"], precision)
        found = [seconds(translator, lines) for _ in range(arguments.rounds + 1)]
        took = statistics.median(one for one, _ in found[1:])
        tokens = sum(map(len, translator.tokenizer.encode_target(found[0][1])))
        print(
            f"{translator.model.device.type:6}  {precision:9}  {beam_size:4}  {batch_tokens:12,}  {took:7.2f}  "
            f"{len(lines) / took:7,.0f}  {tokens / took:8,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
