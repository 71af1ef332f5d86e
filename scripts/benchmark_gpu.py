"""Measures training on a GPU, part by part, the most telling first; each call takes at most ten minutes.

    .venv/bin/python scripts/benchmark_gpu.py base --folder runs/gpu
    MTKIT_DATA=FOLDER .venv/bin/python scripts/benchmark_gpu.py multi30k --folder runs/gpu

Parts, in this order: base (Transformer base, 32,000 pieces, made-up lengths as in WMT), big, step (batches of 4,096
tokens of the IWSLT model), attention, tests-1 to tests-4 (`pytest -m gpu`), multi30k and tatoeba (whole trainings; the
same call again goes on where the time was up). Each part leaves PART.json in the folder. With --tiny, everything is
small enough for a CPU, and nothing that it prints means anything.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_attention

from mtkit.config.load import load_config
from mtkit.errors import MtkitError
from mtkit.evaluation import bench
from mtkit.evaluation.bench import bench_training, training_text, write_json
from mtkit.models.registry import pick_device

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 570  # of a part that runs another program
SECONDS = 30  # of a measured training, without making data and compiling, which take up to a minute each

PACKED = ["training.batching=packed", "training.accumulate=1"]
BUCKETED = ["training.batching=bucketed", "training.accumulate=1"]
COMPILED, EAGER = ["training.compile=on"], ["training.compile=off"]
TINY = ["model.d_model=16", "model.num_heads=2", "model.d_ff=16", "model.encoder_layers=1", "model.decoder_layers=1"]
TINY += ["tokenizer.vocab_size=400", "data.max_length=60"]
TINY_TOKENS = 200  # of a batch


@dataclass(frozen=True)
class Options:
    """What is given besides the part."""

    folder: Path
    device: str
    is_tiny: bool


# Speed of training, on made-up sentences.

Trial = tuple[str, int, list[str]]  # name, tokens of a batch, settings

TRIALS: dict[str, tuple[str, list[Trial]]] = {
    "base": (
        "wmt14-en-de-base.yaml",
        [
            ("packed, compiled, 32,768", 32_768, PACKED + COMPILED),
            ("packed, eager, 32,768", 32_768, PACKED + EAGER),
            ("bucketed, eager, 32,768", 32_768, BUCKETED + EAGER),
            ("packed, compiled, 16,384", 16_384, PACKED + COMPILED),
            ("packed, compiled, 65,536", 65_536, PACKED + COMPILED),
        ],
    ),
    "big": (
        "wmt14-en-de-big.yaml",
        [
            ("packed, compiled, 16,384", 16_384, PACKED + COMPILED),
            ("packed, eager, 16,384", 16_384, PACKED + EAGER),
            ("bucketed, eager, 16,384", 16_384, BUCKETED + EAGER),
            ("packed, compiled, 32,768", 32_768, PACKED + COMPILED),
        ],
    ),
    "step": (
        "iwslt14-de-en.yaml",
        [
            ("packed, compiled, 4,096", 4096, PACKED + COMPILED),
            ("packed, eager, 4,096", 4096, PACKED + EAGER),
            ("bucketed, compiled, 4,096", 4096, BUCKETED + COMPILED),
            ("bucketed, eager, 4,096", 4096, BUCKETED + EAGER),
        ],
    ),
}
PIECES = {"base": 32_000, "big": 32_000}


def trainings(part: str, options: Options) -> None:
    """Measure trainings with made-up sentences, and print a line for each at the end."""
    recipe, trials = TRIALS[part]
    results = {}
    for name, batch_tokens, settings in trials:
        if options.is_tiny:
            settings, batch_tokens = [*settings, *TINY], TINY_TOKENS
        elif part in PIECES:
            settings = [*settings, f"tokenizer.vocab_size={PIECES[part]}"]
        settings = [*settings, f"training.batch_tokens={batch_tokens}", f"device={options.device}"]
        config = load_config(ROOT / "configs" / recipe, settings)
        try:
            record = bench_training(config, minutes=1e-6 if options.is_tiny else SECONDS / 60, made_up=True)
        except MtkitError as error:  # as if memory ran out
            print(f"{name}: {error}", flush=True)
            continue
        results[name] = record
        print(f"== {part}: {name}\n{training_text(record)}", flush=True)
        write_json(options.folder / f"{part}.json", results)
    print("\n".join(f"{name:28}{summary(record)}" for name, record in results.items()), flush=True)


def summary(record: dict[str, Any]) -> str:
    """The figures of a training that the goals are about."""
    padding = max(record["source_padding"], record["target_padding"])
    return (
        f"{record['target_tokens_per_second']:12,.0f} target tokens/s {record['milliseconds_per_update']:9.2f} ms "
        f"{100 * record['share_of_peak']:4.0f} % of peak {100 * padding:5.1f} % padding "
        f"{(record['peak_bytes'] or 0) / 1e9:6.1f} GB {record['first_update_seconds']:6.1f} s to the first update"
    )


# Attention.


def attention(part: str, options: Options) -> None:
    """Time ways of attention in packed rows."""
    device = pick_device(options.device)
    if options.is_tiny:
        ways = [way for way in benchmark_attention.WAYS if way != "flex"]  # to compile it for a CPU takes a minute
        record = benchmark_attention.benchmark(device, "fp32", 300, 2, 8, 0.0, ways)
    else:
        record = benchmark_attention.benchmark(device, "bf16", 32_768)
    write_json(options.folder / f"{part}.json", record)


# Other programs: tests, and trainings of recipes.


def tests(part: str, options: Options) -> None:
    """Run a quarter of the tests marked gpu, several at a time."""
    command = [sys.executable, "-m", "pytest", "-p", "benchmark_gpu", "--durations=5"]
    command += ["--collect-only", "tests/models/test_devices.py"] if options.is_tiny else ["-n", "6", "tests"]
    share = {SHARE: str(int(part.split("-")[1]) - 1)}
    finish(part, command, options, {**os.environ, **share, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"})


SHARE, NUM_SHARES = "MTKIT_TESTS", 4  # the number of the share is in this variable of the environment


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Where this module is a plugin of pytest: keeps one share of the tests marked gpu."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = marked[int(os.environ[SHARE]) :: NUM_SHARES]


def recipe(part: str, options: Options) -> None:
    """Train a recipe to its end and evaluate it, or go on with that."""
    name = {"multi30k": "multi30k-en-de.yaml", "tatoeba": "tatoeba-fr-en.yaml"}[part]
    data = os.environ.get("MTKIT_DATA")
    if data is None and not options.is_tiny:
        raise SystemExit(f"{part}: MTKIT_DATA must name the folder of the corpora")
    settings = [f"run_dir={options.folder / part}", f"device={options.device}"]
    if options.is_tiny:
        sides = {
            name: {"source": f"data/demo/{name}.fr", "target": f"data/demo/{name}.en"} for name in ("valid", "test")
        }
        test, valid = (json.dumps([sides[name]]) for name in ("test", "valid"))
        settings += [f"data.root={ROOT}", f"data.train={test}", f"data.valid={valid}"]
        settings += [f"data.test={json.dumps({'valid': sides['valid']})}", *TINY]
        settings += ["training.max_steps=2", "training.validate_every=2", "training.save_every=2"]
        settings += ["training.validation_sentences=2", "training.warmup_steps=1"]
    else:
        settings.append(f"data.root={data}")
    finish(part, [sys.executable, "-m", "mtkit", "run", str(ROOT / "configs" / name), *settings], options)


def finish(part: str, command: list[str], options: Options, environment: dict[str, str] | None = None) -> None:
    """Run a program for at most LIMIT_SECONDS; if time is up, tell it to save its state and end."""
    print(" ".join(command), flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            code = process.wait(LIMIT_SECONDS)
            told = f"{part}: ended with exit code {code}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            told = f"{part}: time is up; a training goes on with the same call"
    print(told, flush=True)
    write_json(options.folder / f"{part}.json", {"command": command, "code": code, "told": told})
    if code:
        raise SystemExit(1)


PARTS: dict[str, Callable[[str, Options], None]] = {
    **dict.fromkeys(TRIALS, trainings),
    "attention": attention,
    **dict.fromkeys([f"tests-{number}" for number in range(1, NUM_SHARES + 1)], tests),
    "multi30k": recipe,
    "tatoeba": recipe,
}


def main() -> None:
    """Read the arguments, and measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="for PART.json and the trained runs")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.tiny:
        bench.PEAK_SECONDS = 0.01
    PARTS[given.part](given.part, Options(given.folder, given.device, given.tiny))


if __name__ == "__main__":
    main()
