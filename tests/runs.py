"""Small training runs on the toy corpus: training, interrupting at a chosen place, and comparing them."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.bundle.opening import checkpoint_steps, read_progress
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.data.corpus import Corpus
from mtkit.preparation.prepare import read_validation
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.records import Validation
from mtkit.training.train import Trainer, train

# An epoch has about eight updates, so that most kills come in the middle of an epoch, between two lines of the log, and
# between two checkpoints.
MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 16, "dropout": 0.3}
RECURRENT = {"architecture": "rnn", "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.3}
MIXED = {"architecture": "mixed", "encoder": {**MODEL, "encoder_layers": 1}, "decoder": RECURRENT}
MASKED = {"architecture": "cmlm", **MODEL, "encoder_layers": 1, "decoder_layers": 1}
TRAINING = {
    "batch_tokens": 96,
    "max_steps": 24,
    "warmup_steps": 8,
    "validate_every": 8,
    "validation_sentences": 5,
    "save_every": 4,
    "log_every": 5,
    "label_smoothing": 0.1,
    "average_checkpoints": 3,
}

# On a machine without a GPU no test is made that could only be skipped.
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]

Make = Callable[..., Config]


def trained(config: Config, change: bool = False) -> Path:
    """Train to the end and return the run directory; change allows settings that differ from the run's."""
    train(config, read_validation(config), change)
    return config.run_path


_DONE: dict[tuple[str, Path], tuple[Path, Any]] = {}


def done_once(stage: Callable[[Config], Any], config: Config) -> Any:
    """Do a stage in a run directory that is not there yet, or copy there what it left the first time.

    For tests of one module that begin with the same run in the same place, from the same settings and text.
    """
    key = (stage.__name__, config.run_path)
    assert not config.run_path.exists()
    if key in _DONE:
        shutil.copytree(_DONE[key][0], config.run_path)
    else:
        result = stage(config)
        copy = config.run_path.parent / f"{config.run_path.name}-{stage.__name__}"
        _DONE[key] = Path(shutil.copytree(config.run_path, copy)), result
    return _DONE[key][1]


def trainer_of(config: Config, ranks: Ranks = ALONE) -> Trainer:
    """A trainer at the last checkpoint of a run."""
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    corpus = Corpus.open(config.run_path / "data" / "train")
    validation = Validation.prepare(config, tokenizer, *read_validation(config))
    return Trainer(config, tokenizer, corpus, validation, ranks=ranks)


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events in the log, of these kinds or all but start, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    clocks = ("seconds", "minutes", "tokens_per_second")
    return [
        {key: value for key, value in line.items() if key not in clocks}
        for line in lines
        if (line["event"] in kinds if kinds else line["event"] != "start")
    ]


def outcome(run: Path) -> dict[str, Any]:
    """All that a run has written, without times: equal if two runs are the same."""
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("checkpoints", "model")
        for path in (run / folder).rglob("*.safetensors")
    }
    for step in checkpoint_steps(run / "checkpoints"):
        progress, identity, _ = read_progress(run / "checkpoints", step)
        progress.seconds = progress.log_bytes = progress.window.since = 0
        found[f"progress {step}"] = (progress, identity)
    found["folders"] = sorted(path.name for path in (run / "checkpoints").iterdir())
    found["log"] = events(run)
    return found


class Killed(BaseException):
    """Simulates the end of the process: mtkit handles it nowhere."""


def kill() -> None:
    """Ends the run as a kill would."""
    raise Killed


def interrupt() -> None:
    """Sends SIGINT, as Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def at_step(step: int) -> Callable[[Trainer], bool]:
    """A condition for doing(): so many updates are done."""
    return lambda trainer: trainer.state.progress.step == step


def always(_: object) -> bool:
    """A condition for doing() that is always true."""
    return True


@contextmanager
def doing(action: Callable[[], None], owner: Any, name: str, is_time: Callable[[Any], bool]) -> Iterator[None]:
    """Perform action before those calls of owner.name whose first argument meets the condition is_time."""
    function = getattr(owner, name)

    def disturbed(*arguments: Any, **options: Any) -> Any:
        if is_time(arguments[0]):
            action()
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, disturbed)
        yield


@contextmanager
def as_if_killed(step: int, config: Config, killed: Config) -> Iterator[None]:
    """Within the block, a training of one run leaves another one as a kill after so many updates would leave it.

    A kill leaves a run directory as it is at that moment, so it is copied then, and the training goes on.
    """
    with doing(lambda: shutil.copytree(config.run_path, killed.run_path), Trainer, "_update", at_step(step)):
        yield
    assert killed.run_path.is_dir()
    assert max(checkpoint_steps(killed.run_path / "checkpoints"), default=0) <= step < config.training.max_steps


def whole_and_killed(make: Make, step: int, change: bool = False, **options: Any) -> tuple[Path, Path]:
    """Two finished runs of the same settings: one that nothing interrupted, and one that was killed and resumed.

    With change, the first one allows settings that differ from those of its run, and the second need not be asked.
    """
    config = make("uninterrupted", **options)
    killed = config.model_copy(update={"run_dir": config.run_path.with_name("run")})
    with as_if_killed(step, config, killed):
        whole = trained(config, change)
    assert checkpoint_steps(killed.run_path / "checkpoints")
    return whole, trained(make("run", **options))


def with_settings(config: Config, *overrides: str) -> Config:
    """Other settings for the same run directory."""
    return load_config(config.run_path / "config.yaml", [f"run_dir={config.run_path}", *overrides])
