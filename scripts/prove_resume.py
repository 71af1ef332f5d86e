"""Kills a training run at random moments, resumes it each time, and compares the result with an uninterrupted run.

    .venv/bin/python scripts/prove_resume.py [--seed 1] [--kills 20] [--devices 2] [--changes] [--folder FOLDER]
        [KEY=VALUE]...

`mtkit train` trains a small Transformer on the demo corpus. SIGKILL, which no program can catch, is sent a random time
after a random step, every fourth time while a checkpoint is being written; the same command then resumes the run. At
the end, the weights, the optimizer's state and the log must be the same as those of the uninterrupted run, bit for bit:
prints IDENTICAL and exits with 0, or DIFFERENT and 1. Takes about five minutes on one core. KEY=VALUE overrides a
setting, such as training.ema_decay=0.99. With --devices 2, each training has two ranks, of which the first is killed;
the other then ends by itself. `mtkit verify` does the same for any settings, with two kills.

With --changes, the settings of both runs change every 120 steps (by --change): the learning rate, the batch size, to
a linear schedule, and to a longer one.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

from mtkit.data.batches import batches_from
from mtkit.data.corpus import Corpus
from mtkit.training.checkpoint import Kill, Killed, compare, train_and_kill, train_to_end

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
BATCH_TOKENS, MAX_STEPS, SAVE_EVERY, VALIDATE_EVERY, SEED = 1024, 600, 20, 100, 1

SETTINGS = f"""
device: cpu
data:
  train: [{{source: train.fr, target: train.en}}]
  valid: [{{source: valid.fr, target: valid.en}}]
tokenizer: {{vocab_size: 1000}}
model: {{d_model: 64, num_heads: 4, d_ff: 128, encoder_layers: 1, decoder_layers: 1, dropout: 0.2}}
training:
  batch_tokens: {BATCH_TOKENS}
  max_steps: {MAX_STEPS}
  learning_rate: 0.005
  warmup_steps: 100
  validate_every: {VALIDATE_EVERY}
  validation_sentences: 20
  save_every: {SAVE_EVERY}
  log_every: 1
  average_checkpoints: 3
  seed: {SEED}
"""

# The last step of each phase, and the settings that change at its start.
PHASES: list[tuple[int, list[str]]] = [
    (120, []),
    (240, ["training.learning_rate=0.002"]),
    (360, ["training.batch_tokens=512", "training.accumulate=2"]),
    (480, ["training.schedule=linear"]),
    (600, []),  # a longer schedule, since linear falls until max_steps
]


def main() -> None:
    """Kill and resume one run, train another, compare both."""
    arguments = parsed()
    rng = random.Random(arguments.seed)
    print(f"seed {arguments.seed}: {arguments.kills} kills in {MAX_STEPS} steps, a checkpoint every {SAVE_EVERY}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
        corpus = corpus_folder(folder)
        killed, whole = folder / "killed", folder / "whole"
        train = partial(command, folder, corpus, arguments.devices)
        phases = (
            list(settings_of_phases(arguments.settings)) if arguments.changes else [(MAX_STEPS, arguments.settings)]
        )

        begun = time.monotonic()
        moments = list(kills(arguments.kills, rng, [end for end, _ in phases]))
        for begin, (end, settings) in zip([0, *(end for end, _ in phases)], phases, strict=False):
            for kill in (kill for kill in moments if begin <= kill.step < end):
                moment = train_and_kill(train(settings, killed), killed, kill, folder / "killed.stderr")
                if moment is None:
                    sys.exit("the run ended before it was killed")
                print(f"kill: {described(moment, killed, arguments.changes or arguments.devices > 1)}", flush=True)
            train_to_end(train(settings, killed), folder / "killed.stderr")
        print(f"the killed run ended by itself after {time.monotonic() - begun:.0f} s", flush=True)

        begun = time.monotonic()
        for _, settings in phases:
            train_to_end(train(settings, whole), folder / "whole.stderr")
        print(f"the uninterrupted run took {time.monotonic() - begun:.0f} s")
        same = compare(killed, whole)
        for name, is_same in same.items():
            print(f"{'identical' if is_same else 'different'}: {name}")
        print("IDENTICAL" if all(same.values()) else "DIFFERENT")
        sys.exit(not all(same.values()))


def parsed() -> argparse.Namespace:
    """The command-line arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10_000), help="random seed of the moments"
    )
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--devices", type=int, default=1, help="how many devices, and thus processes, train together")
    parser.add_argument("--changes", action="store_true", help="change settings during the run")
    parser.add_argument("--folder", type=Path, help="keep the runs here; deleted by default")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    return parser.parse_args()


def settings_of_phases(settings: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the last step of each phase and all its settings."""
    for end, changes in PHASES:
        settings = [*settings, *changes]
        yield end, [*settings, f"training.max_steps={end}", "--change"]


def kills(count: int, rng: random.Random, ends: list[int]) -> Iterator[Kill]:
    """Yields random moments of the run in order; every fourth one is while a checkpoint is written."""
    # Not just before the end of a phase: the run may be over before the last checkpoint is seen.
    places = [step for step in range(1, MAX_STEPS) if not any(0 <= end - step <= SAVE_EVERY + 1 for end in ends)]
    steps = sorted(rng.sample(places, count))
    for number, step in enumerate(steps):
        while_saving = number % 4 == 3
        yield Kill(step, while_saving, rng.uniform(0, 0.02 if while_saving else 0.3))


def command(folder: Path, corpus: Path, devices: int, settings: list[str], run: Path) -> list[str]:
    """The mtkit train command of a run."""
    arguments = [
        str(folder / "settings.yaml"),
        *settings,
        f"data.root={json.dumps(str(corpus))}",
        f"run_dir={json.dumps(str(run))}",
        *([f"--devices={devices}"] if devices > 1 else []),
    ]
    return [sys.executable, "-m", "mtkit", "train", *arguments]


def described(killed: Killed, run: Path, has_no_place: bool) -> str:
    """Where a run was killed; with its place in the epoch unless the size of updates changed or is another."""
    between = "between checkpoints" if killed.step % SAVE_EVERY else "at one"
    where = "writing a checkpoint" if killed.while_saving else between
    return f"step {killed.step:3}, {'' if has_no_place else place(run, killed.step) + ', '}{where}"


def place(run: Path, step: int) -> str:
    """The epoch of a step, and how far into it the step is."""
    corpus = Corpus.open(run / "data" / "train")
    sides = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    batches = islice(batches_from(0, *sides, BATCH_TOKENS, SEED), step)
    epoch, pairs = divmod(max(accumulate(len(batch) for _, batch in batches), default=0), len(corpus))
    return f"{pairs / len(corpus):4.0%} of epoch {epoch + 1}"


def corpus_folder(folder: Path) -> Path:
    """The folder of the demo corpus, or of a small corpus of numbers if that is missing."""
    if (DEMO / "train.fr").exists():
        return DEMO
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    names = ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    rng = random.Random(0)
    for name, count in (("train", 10_000), ("valid", 100)):
        numbers = [[rng.randrange(10) for _ in range(rng.randint(2, 9))] for _ in range(count)]
        source = "".join(" ".join(names[digit] for digit in number) + "\n" for number in numbers)
        target = "".join(" ".join(map(str, number)) + "\n" for number in numbers)
        (corpus / f"{name}.fr").write_text(source, encoding="utf-8", newline="\n")
        (corpus / f"{name}.en").write_text(target, encoding="utf-8", newline="\n")
    return corpus


if __name__ == "__main__":
    main()
