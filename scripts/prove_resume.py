"""Kills a training run at random moments until it ends by itself, and compares it with one that was left alone.

    .venv/bin/python scripts/prove_resume.py [--seed 1] [--kills 20] [--folder FOLDER] [KEY=VALUE]...

A small Transformer is trained on the demo corpus by `mtkit train`. SIGKILL, which no program can notice, comes a random
moment after a random step; every fourth time it waits for a checkpoint that is just being written. The same command
then goes on. At the end all weights and the optimizer's memory must equal those of an uninterrupted run, bit for bit:
prints IDENTICAL and exits with 0, or DIFFERENT and 1. It takes about five minutes on one core. KEY=VALUE is a setting
over those below, such as training.ema_decay=0.99.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

from mtkit.data.corpus import Corpus
from mtkit.data.plan import batches_from

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
PAUSE_SECONDS = 0.002  # between looks at what a run does
MOST_SECONDS = 600  # that any one process may take
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


@dataclass(frozen=True)
class Kill:
    """When a run is to be killed."""

    step: int
    delay: float  # seconds after that step, or after a checkpoint began to be written
    while_saving: bool


def main() -> None:
    """Kill, resume, compare."""
    arguments = parsed()
    chance = random.Random(arguments.seed)
    print(f"seed {arguments.seed}: {arguments.kills} kills in {MAX_STEPS} steps, a checkpoint every {SAVE_EVERY}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
        corpus = corpus_folder(folder)
        killed, whole = folder / "killed", folder / "whole"
        train = partial(command, folder, corpus, arguments.settings)

        begun = time.monotonic()
        for number, kill in enumerate(kills(arguments.kills, chance), 1):
            print(f"kill {number:2}: {run_until(kill, train(killed), killed)}", flush=True)
        if subprocess.run(train(killed), stderr=subprocess.DEVNULL).returncode:
            sys.exit("the killed run did not end by itself")
        print(f"the killed run ended by itself after {time.monotonic() - begun:.0f} s", flush=True)

        begun = time.monotonic()
        if subprocess.run(train(whole), stderr=subprocess.DEVNULL).returncode:
            sys.exit("the uninterrupted run failed")
        print(f"the uninterrupted run took {time.monotonic() - begun:.0f} s")
        sys.exit(compare(killed, whole))


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the moments")
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; else they are deleted")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    return parser.parse_args()


def kills(count: int, chance: random.Random) -> Iterator[Kill]:
    """Random moments, spread over the run; every fourth one is while a checkpoint is written."""
    # The last checkpoint is not waited for: the run may be over before it is seen.
    steps = sorted(chance.sample(range(1, MAX_STEPS - SAVE_EVERY - 1), count))
    for number, step in enumerate(steps):
        while_saving = number % 4 == 3
        yield Kill(step, chance.uniform(0, 0.02 if while_saving else 0.3), while_saving)


def command(folder: Path, corpus: Path, settings: list[str], run: Path) -> list[str]:
    """What a user types."""
    arguments = [
        str(folder / "settings.yaml"),
        *settings,
        f"data.root={json.dumps(str(corpus))}",
        f"run_dir={json.dumps(str(run))}",
    ]
    return [sys.executable, "-m", "mtkit", "train", *arguments]


def run_until(kill: Kill, arguments: list[str], run: Path) -> str:
    """Start, or go on, and kill; where that was."""
    told = run.with_suffix(".stderr")
    with told.open("wb") as stderr:
        process = subprocess.Popen(arguments, stderr=stderr)
    limit = time.monotonic() + MOST_SECONDS
    began = began_at(run)
    resumed = None
    while process.poll() is None and time.monotonic() < limit:
        if began_at(run) > began:
            resumed = last_step(run) if resumed is None else resumed
            if last_step(run) >= kill.step and (not kill.while_saving or is_saving(run)):
                time.sleep(kill.delay)
                break
        time.sleep(PAUSE_SECONDS)
    process.kill()
    process.wait()
    if process.returncode >= 0:
        sys.exit(f"the run ended before it was killed:\n{told.read_text(encoding='utf-8')}")
    step = last_step(run)
    where = "writing a checkpoint" if is_saving(run) else "between checkpoints" if step % SAVE_EVERY else "at one"
    return f"step {step:3}, {place(run, step)}, {where}"


def began_at(run: Path) -> int:
    """When a process last began to train, by what it then wrote."""
    path = run / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def last_step(run: Path) -> int:
    """The step of the newest whole line of the log; 0 before the first."""
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith("\n")), 0)


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when the run was killed."""
    return any((run / "checkpoints").glob(".step-*"))


def place(run: Path, step: int) -> str:
    """How far into which epoch a step is."""
    corpus = Corpus.open(run / "data" / "train")
    sides = (corpus.source_lengths + 1, corpus.target_lengths + 1)
    batches = islice(batches_from(0, *sides, BATCH_TOKENS, SEED), step)
    epoch, pairs = divmod(max(accumulate(len(batch) for _, batch in batches), default=0), len(corpus))
    return f"{pairs / len(corpus):4.0%} of epoch {epoch + 1}"


def compare(killed: Path, whole: Path) -> int:
    """Whether the two runs left the same; 0 if so."""
    found, wanted = tensor_files(killed), tensor_files(whole)
    different = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
    for name in sorted({**found, **wanted}):
        print(f"{'different' if name in different else 'identical'}: {name}")
    print("DIFFERENT" if different or not wanted else "IDENTICAL")
    return 1 if different or not wanted else 0


def tensor_files(run: Path) -> dict[str, bytes]:
    """All weights and all memory of optimizers below a run directory."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for folder in ("checkpoints", "model")
        for path in (run / folder).rglob("*.safetensors")
    }


def corpus_folder(folder: Path) -> Path:
    """The demo corpus, or, where it is missing, a small one of numbers."""
    if (DEMO / "train.fr").exists():
        return DEMO
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    names = ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    chance = random.Random(0)
    for name, count in (("train", 10_000), ("valid", 100)):
        numbers = [[chance.randrange(10) for _ in range(chance.randint(2, 9))] for _ in range(count)]
        source = "".join(" ".join(names[digit] for digit in number) + "\n" for number in numbers)
        target = "".join(" ".join(map(str, number)) + "\n" for number in numbers)
        (corpus / f"{name}.fr").write_text(source, encoding="utf-8", newline="\n")
        (corpus / f"{name}.en").write_text(target, encoding="utf-8", newline="\n")
    return corpus


if __name__ == "__main__":
    main()
