"""Attacks a run directory with random commands, deletions, links, kills and full disks, and checks three promises.

There is always a finished model, old or new, unless the attack itself deleted it. Nothing ends in a traceback. No start
is refused for good: each message says what to do, and with room on the disk a fresh start works.

python scripts/attack_runs.py --commands 200 --seed 1
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mtkit.cli import main as mtkit_main
from mtkit.errors import MtkitError
from mtkit.files import standing
from mtkit.translation.translator import load

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
NUM_PAIRS = 300
MOST_SECONDS = 120  # for one command

SETTINGS = """
name: attacked
device: cpu
languages: {source: fr, target: en}
data:
  train: [{source: train.fr, target: train.en}]
  valid: [{source: valid.fr, target: valid.en}]
  test: {test: {source: test.fr, target: test.en}}
  max_length: 100
tokenizer: {vocab_size: 400}
model: {d_model: 32, num_heads: 2, d_ff: 64, encoder_layers: 1, decoder_layers: 1}
training:
  batch_tokens: 600
  max_steps: 20
  save_every: 5
  validate_every: 10
  validation_sentences: 4
  learning_rate: 0.005
  warmup_steps: 10
  average_checkpoints: 2
  log_every: 1
"""

# Changes of settings: valid and invalid ones, some of which need --change.
CHANGES = [
    [],
    [],
    [],
    ["training.seed=2"],
    ["training.learning_rate=0.001"],
    ["training.batch_tokens=300", "training.accumulate=2"],
    ["training.schedule=linear", "training.max_steps=30"],
    ["training.max_steps=25"],
    ["training.validate_every=4"],
    ["training.select_by=loss"],
    ["training.average_checkpoints=1"],
    ["training.optimizer=sgd"],
    ["training.ema_decay=0.9"],
    ["model.dropout=0.2"],
    ["model.d_ff=48"],
    ["tokenizer.vocab_size=380"],
    ["tokenizer.vocab_size=270"],  # too small
    ["data.max_length=60"],
    ["data.max_length=1"],  # leaves nothing
    ["data.root=/nowhere"],
    ["training.start_from=/nowhere"],
    ["training.learning_rate=1e30"],  # diverges
    ["data.valid=[{source: blank, target: valid.en}]"],
]

# A message that refuses a start must contain one of these, so that the user knows what to do.
WAYS_OUT = (
    "--fresh",
    "--change",
    "start again",
    "binarize the corpora",
    "make it again",
    "train or copy",
    "train the tokenizer",
    "make room",
    "delete ",
    "set it to",
    "no such file",
    "wants",
    "wait for it",
    "mount its disk",
    "remove the link",
    "move the file away",
    "the same command goes on",
    "see data.",
    "raise data.max_length",
    "it must be",
    "must be more",
    "did you mean",
    "training.learning_rate",
    "no such directory",
    "to go on",
)


@dataclass
class Attacked:
    """A run directory under attack, and its history."""

    folder: Path  # a separate disk if one can be mounted
    elsewhere: Path  # target of links
    rng: random.Random
    faults: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def has_model(self) -> bool:
        """Whether there is a finished model that loads."""
        try:
            load(standing(self.run / "model"), ["device=cpu"])
        except MtkitError:
            return False
        return True

    def fault(self, text: str) -> None:
        """Record and print a broken promise."""
        self.faults.append(f"{text}\n    " + "\n    ".join(self.history[-6:]))
        print(f"FAULT: {self.faults[-1]}", flush=True)


def main() -> None:
    """Attack until enough commands have run, and report the faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, small_disk(Path(temporary) / "disk") as disk:
        write_corpus(Path(temporary))
        os.chdir(temporary)
        attacked = Attacked(disk, Path(temporary) / "elsewhere", random.Random(arguments.seed))
        attacked.elsewhere.mkdir()
        begun = time.monotonic()
        while attacked.seen["commands"] < arguments.commands:
            attack(attacked)
            if not attacked.seen["commands"] % 10:
                faults = len(attacked.faults)
                print(
                    f"{attacked.seen['commands']} commands, {faults} faults, {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    print(f"seed {arguments.seed}, {time.monotonic() - begun:.0f} s:", dict(attacked.seen.most_common()))
    print(f"{len(attacked.faults)} faults")
    sys.exit(1 if attacked.faults else 0)


def attack(attacked: Attacked) -> None:
    """Perhaps disturb the run directory, then run a command, which may be killed or find the disk full."""
    if attacked.rng.random() < 0.45:
        disturb(attacked)
    had_model = attacked.has_model()
    command = [attacked.rng.choice(["run", "run", "train"]), "settings.yaml", f"run_dir={attacked.run}"]
    command += attacked.rng.choice(CHANGES)
    command += attacked.rng.choice([[], [], ["--fresh"], ["--change"]])
    with filled(attacked, attacked.rng.random() < 0.15) as is_full:
        code, stderr = execute(attacked, command, attacked.rng.random() < 0.35)
    judge(attacked, command, code, stderr, had_model)
    if code == 1 and not is_full:
        require_way_out(attacked, stderr)


def judge(attacked: Attacked, command: list[str], code: int, stderr: str, had_model: bool) -> None:
    """Check the promises after a command."""
    attacked.seen["commands"] += 1
    attacked.seen[f"exit {code}"] += 1
    if "Traceback" in stderr or code not in (0, 1, 130, -signal.SIGKILL):
        attacked.fault(f"exit {code}: {stderr[-2000:]}")
    if had_model and not attacked.has_model():
        attacked.fault(f"the finished model is gone: {stderr[-600:]}")
    if code == 0 and not attacked.has_model():
        attacked.fault(f"exit 0 without a model: {stderr[-600:]}")
    errors = [line for line in stderr.splitlines() if line.startswith("mtkit: error: ")]
    if code == 1 and not errors:
        attacked.fault(f"exit 1 without a message: {stderr[-600:]}")
    for line in errors:
        if not any(way in line for way in WAYS_OUT):
            attacked.fault(f"no way out: {line}")


def require_way_out(attacked: Attacked, stderr: str) -> None:
    """After a refused start: delete dangling links, as the message says, and require that a fresh start works."""
    for path in (attacked.run, *attacked.run.rglob("*")):
        if path.is_symlink() and not path.exists():
            path.unlink()
    code, again = execute(attacked, ["run", "settings.yaml", f"run_dir={attacked.run}", "--fresh"], False)
    attacked.seen["ways out tried"] += 1
    if code != 0 or not attacked.has_model():
        attacked.fault(f"refused for good: {stderr[-600:]}\n    then --fresh: {again[-600:]}")


def execute(attacked: Attacked, command: list[str], is_killed: bool) -> tuple[int, str]:
    """Run a command in a child process, perhaps killed at a random moment; returns its exit code and stderr."""
    log = attacked.elsewhere / "stderr"
    log.write_bytes(b"")
    number = attacked.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    delay = attacked.rng.choice([attacked.rng.uniform(0, 0.5), attacked.rng.uniform(0, 4)])
    attacked.history.append(" ".join(command[:1] + command[3:]) + (f" [{number.name} after {delay:.2f} s]" * is_killed))
    child = os.fork()
    if child == 0:
        try:
            become_mtkit(command, log)
        finally:
            os._exit(130)  # killed before mtkit runs; the rest of this script must not run in the child
    limit = time.monotonic() + MOST_SECONDS
    if is_killed:
        time.sleep(delay)
        os.kill(child, number)
        attacked.seen[number.name] += 1
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if is_killed and code in (-signal.SIGTERM, -signal.SIGHUP):
                code = -signal.SIGKILL  # before training, these signals have their default action
            return code, log.read_text("utf-8", "replace")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    attacked.fault(f"still running after {MOST_SECONDS} s")
    return -signal.SIGKILL, log.read_text("utf-8", "replace")


def become_mtkit(command: list[str], log: Path) -> None:
    """Turn this process into the program with these arguments; never returns."""
    with log.open("wb") as stderr, Path(os.devnull).open("wb") as stdout:
        os.dup2(stderr.fileno(), 2)
        os.dup2(stdout.fileno(), 1)
    sys.argv = ["mtkit", *command]
    code = 1
    try:
        mtkit_main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # printed as Python itself would
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stderr.flush()
        os._exit(code)


# Disturbances of the run directory; each returns a line for the history.


def delete(attacked: Attacked) -> str:
    """Delete a random folder or file of the run."""
    names = ["checkpoints", "tokenizer", "data", "data/train", "data/valid", "log.jsonl", "trained.json", "run.json"]
    names += ["evaluated.json", "config.yaml", "model"]
    path = attacked.run / attacked.rng.choice(names)
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    return f"delete {path.name}"


def damage(attacked: Attacked) -> str:
    """Cut off the second half of a random file."""
    files = [path for path in attacked.run.rglob("*") if path.is_file() and "model/" not in path.as_posix()]
    if not files:
        return "damage nothing"
    path = attacked.rng.choice(sorted(files))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"damage {path.relative_to(attacked.run)}"


def link(attacked: Attacked) -> str:
    """Move a random folder elsewhere and put a link in its place."""
    name = attacked.rng.choice(["checkpoints", "model", "tokenizer", "data", "data/train", "translations"])
    path = attacked.run / name
    if path.is_symlink() or not path.is_dir():
        return f"link {name}: is none"
    target = attacked.elsewhere / f"{path.name}-{attacked.seen['links']}"
    attacked.seen["links"] += 1
    shutil.move(path, target)
    path.symlink_to(target)
    return f"link {name}"


def link_step(attacked: Attacked) -> str:
    """Move a random checkpoint elsewhere and put a link in its place."""
    steps = sorted(path for path in (attacked.run / "checkpoints").glob("step-*") if not path.is_symlink())
    if not steps:
        return "link no step"
    path = attacked.rng.choice(steps)
    target = attacked.elsewhere / f"{path.name}-{attacked.seen['links']}"
    attacked.seen["links"] += 1
    shutil.move(path, target)
    path.symlink_to(target)
    return f"link {path.name}"


def link_to_nothing(attacked: Attacked) -> str:
    """Put a dangling link in the place of a missing folder, as if its disk were not mounted."""
    name = attacked.rng.choice(["checkpoints", "tokenizer", "data", "translations"])
    path = attacked.run / name
    if path.exists() or path.is_symlink():
        return f"link {name} to nothing: is there"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/nowhere/at/all")
    return f"link {name} to nothing"


def leave_file(attacked: Attacked) -> str:
    """Put files of a user among the checkpoints."""
    checkpoints = attacked.run / "checkpoints"
    if checkpoints.is_dir():
        (checkpoints / "step-best-of-may").mkdir(exist_ok=True)
        (checkpoints / "step-00000010.tar").write_bytes(b"mine")
    return "leave files among the checkpoints"


DISTURBANCES: list[Callable[[Attacked], str]] = [delete, delete, damage, link, link_step, link_to_nothing, leave_file]


def disturb(attacked: Attacked) -> None:
    """Apply a random disturbance."""
    attacked.history.append(attacked.rng.choice(DISTURBANCES)(attacked))
    attacked.seen["disturbances"] += 1


# The disk and the corpus.


@contextmanager
def filled(attacked: Attacked, is_full: bool) -> Iterator[bool]:
    """Fill the disk almost up, if is_full and it is a separate disk; yields whether it was filled."""
    filler = attacked.folder / "filler"
    is_full = is_full and os.path.ismount(attacked.folder)
    if is_full:
        left = attacked.rng.randrange(0, 600) << 10
        free = shutil.disk_usage(attacked.folder).free
        filler.write_bytes(bytes(max(free - left, 0)))
        attacked.history.append(f"a disk with {left >> 10} KiB left")
        attacked.seen["full disks"] += 1
    try:
        yield is_full
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount a disk of 24 MB in memory; where that is not allowed, just make a folder."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    is_mounted = shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode
    try:
        yield place
    finally:
        if is_mounted:
            os.chdir("/")
            subprocess.run(["umount", str(place)], check=True)


def write_corpus(folder: Path) -> None:
    """Write the first pairs of the demo corpus, a blank text and the settings."""
    for name, count in (("train", NUM_PAIRS), ("valid", 6), ("test", 4)):
        for side in ("fr", "en"):
            lines = (DEMO / f"{name}.{side}").read_text("utf-8").splitlines(keepends=True)[:count]
            (folder / f"{name}.{side}").write_text("".join(lines), encoding="utf-8", newline="\n")
    (folder / "blank").write_text("\n" * 6, encoding="utf-8")
    (folder / "settings.yaml").write_text(SETTINGS, encoding="utf-8")


if __name__ == "__main__":
    main()
