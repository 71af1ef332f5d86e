"""Measures how fast text is binarized, and how fast training begins with a very large corpus.

    .venv/bin/python scripts/benchmark_data.py text SOURCE TARGET [--pairs 1000000] [--rounds 3]
    .venv/bin/python scripts/benchmark_data.py lengths [--pairs 100000000] [--batching packed]

`text` repeats the pairs of two files until there are enough; from the second time on, each pair begins with a made-up
name. It then runs, in turn, `mtkit binarize` and SentencePiece's own encoding of both files with the same model and
the same number of threads, one for each processor (`taskset -c 0` before the command for one), and prints how many
lines of both files each takes in a second on the clock and in a second of processor time. The time of mtkit includes
the start of Python.

`lengths` makes a corpus of made-up sentences that are as long as those of WMT, opens it, plans an epoch and makes the
first batches. The ids take no room on the disk, the offsets 16 bytes a pair.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import sentencepiece

from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import micro_batches
from mtkit.data.corpus import MANIFEST, OFFSET, Corpus, Manifest, SideManifest, StoredFile, write_manifest

SYLLABLES = ["ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu"]
CHUNK_LINES = 10_000  # that SentencePiece encodes at once, as mtkit does
CHUNK_PAIRS = 10_000_000  # whose lengths are made up at once
MEDIAN, DEVIATION, RATIO, LONGEST = 23.0, 0.6, 0.15, 250  # of lengths, as in `mtkit bench train --random`
VOCABULARY = 32_000
SETTINGS = """
name: text
languages: {source: a, target: b}
data: {train: [{source: train.a, target: train.b}], valid: [{source: valid.a, target: valid.b}]}
tokenizer: {vocab_size: 8000}
"""


def varied(pairs: list[tuple[str, str]], num_pairs: int) -> Iterator[tuple[str, str]]:
    """Yields so many pairs; from the second time on, a pair has a name before both sides."""
    rng = random.Random(1)
    for number in range(num_pairs):
        name = "".join(rng.choices(SYLLABLES, k=3)).capitalize() + ", " if number >= len(pairs) else ""
        source, target = pairs[number % len(pairs)]
        yield name + source, name + target


def write_text(source: Path, target: Path, num_pairs: int, folder: Path) -> None:
    """Writes training text, a little validation text and settings to the folder."""
    sides = [path.read_text(encoding="utf-8").split("\n") for path in (source, target)]
    pairs = [pair for pair in zip(*sides, strict=True) if all(pair)]
    for name, count in (("train", num_pairs), ("valid", 100)):
        with (
            (folder / f"{name}.a").open("w", encoding="utf-8") as a,
            (folder / f"{name}.b").open("w", encoding="utf-8") as b,
        ):
            for one, other in varied(pairs, count):
                a.write(f"{one}\n")
                b.write(f"{other}\n")
    (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Returns the seconds on the clock, and those of processor time, of this process and those that it started."""

    def processor() -> float:
        return sum(time_ for time_ in os.times()[:4])

    begun, before = time.perf_counter(), processor()
    run()
    return time.perf_counter() - begun, processor() - before


def encode(folder: Path, num_threads: int) -> None:
    """Encodes both sides with SentencePiece alone."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "runs/text/tokenizer/tokenizer.model"))
    for side in "ab":
        with (folder / f"train.{side}").open(encoding="utf-8") as lines:
            while chunk := [line.rstrip("\n") for line in islice(lines, CHUNK_LINES)]:
                model.encode(chunk, num_threads=num_threads)


def measure_text(source: Path, target: Path, num_pairs: int, num_rounds: int) -> None:
    """Prints how fast mtkit binarizes, and how fast SentencePiece alone encodes."""
    num_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(source, target, num_pairs, folder)

        def mtkit(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "mtkit", *arguments, "-q"], cwd=folder, check=True)

        mtkit("train-tokenizer", "settings.yaml")
        rates: dict[str, list[tuple[float, float]]] = {"mtkit": [], "SentencePiece": []}
        for _ in range(num_rounds):
            shutil.rmtree(folder / "runs/text/data", ignore_errors=True)
            for program, run in (
                ("mtkit", lambda: mtkit("binarize", "settings.yaml")),
                ("SentencePiece", lambda: encode(folder, num_threads)),
            ):
                clock, processor = timed(run)
                rates[program].append((2 * num_pairs / clock, 2 * num_pairs / processor))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{num_pairs:,} pairs, {num_threads} threads, {num_rounds} rounds; mtkit took {peak / 1e6:,.0f} MB of memory")
    medians = {name: [statistics.median(each) for each in zip(*found, strict=True)] for name, found in rates.items()}
    for number, unit in enumerate(("second on the clock", "second of processor time")):
        mine, theirs = medians["mtkit"][number], medians["SentencePiece"][number]
        print(f"lines a {unit}: mtkit {mine:,.0f}, SentencePiece {theirs:,.0f}, {mine / theirs:.2f} of it")


def write_lengths(num_pairs: int, folder: Path) -> None:
    """Writes a corpus of made-up sentences whose ids are all 0 and take no room on the disk."""
    rng = np.random.default_rng(1)
    names = ("source", "target")
    ends, longest = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for name in names:
        (folder / f"{name}.offsets").write_bytes(np.zeros(1, OFFSET).tobytes())
    for done in range(0, num_pairs, CHUNK_PAIRS):
        count = min(CHUNK_PAIRS, num_pairs - done)
        logs = rng.normal(np.log(MEDIAN), DEVIATION, count)
        for name in names:
            lengths = np.clip(np.rint(np.exp(logs)), 1, LONGEST).astype(np.int64)
            with (folder / f"{name}.offsets").open("ab") as stream:
                stream.write((ends[name] + np.cumsum(lengths)).astype(OFFSET).tobytes())
            ends[name] += int(lengths.sum())
            longest[name] = max(longest[name], int(lengths.max()))
            logs += rng.normal(0, RATIO, count)
    sides = []
    for name in names:
        with (folder / f"{name}.tokens").open("wb") as stream:
            stream.truncate(2 * ends[name])
        offsets = StoredFile(8 * (num_pairs + 1), ())
        sides.append(
            SideManifest(VOCABULARY, "<u2", ends[name], longest[name], StoredFile(2 * ends[name], ()), offsets)
        )
    write_manifest(folder / MANIFEST, Manifest(num_pairs, *sides, "made up", {}, (), {}, corpora=(num_pairs,)))


def measure_lengths(num_pairs: int, batching: str, folder: Path) -> None:
    """Prints how long it takes until the first batches of a corpus are there, and in how much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    corpus = Corpus.open(folder)
    opened = time.perf_counter()
    settings = TrainingConfig.model_validate({"batch_tokens": 4096, "batching": batching})
    stream = micro_batches(corpus, settings, 0)
    next(stream)
    first = time.perf_counter()
    for _ in range(99):
        next(stream)
    after = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{num_pairs:,} pairs, {batching}: opened in {opened - begun:.2f} s, first batch after {first - begun:.1f} s, "
        f"99 more in {after - first:.2f} s; {peak / 1e6:,.2f} GB of memory, in which mapped files count"
    )


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    text = kinds.add_parser("text")
    text.add_argument("source", type=Path)
    text.add_argument("target", type=Path)
    text.add_argument("--pairs", type=int, default=1_000_000)
    text.add_argument("--rounds", type=int, default=3)
    lengths = kinds.add_parser("lengths")
    lengths.add_argument("--pairs", type=int, default=100_000_000)
    lengths.add_argument("--batching", choices=["bucketed", "packed"], default="bucketed")
    arguments = parser.parse_args()
    if arguments.kind == "text":
        measure_text(arguments.source, arguments.target, arguments.pairs, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, whose memory is measured.
        if not (child := os.fork()):
            write_lengths(arguments.pairs, Path(folder))
            os._exit(0)
        os.waitpid(child, 0)
        measure_lengths(arguments.pairs, arguments.batching, Path(folder))


if __name__ == "__main__":
    main()
