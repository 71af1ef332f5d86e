"""`mtkit verify`: whether a run's files are whole, and a killed training ends here as one that was left alone."""

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mtkit.check import Report
from mtkit.config.load import config_from_text, load_config, with_sections
from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.config.training_settings import settled
from mtkit.ending import undone_when_ended
from mtkit.errors import CheckpointError, ConfigError, MtkitError
from mtkit.files import standing
from mtkit.formats.bundle import is_run, no_model
from mtkit.intact import check_data, check_results
from mtkit.messages import counted
from mtkit.models.device import pick_device
from mtkit.prepare import adopt, first_pairs, is_prepared, kept_validation
from mtkit.progress import inform
from mtkit.proof import Kill, Killed, compare, train_and_kill, train_to_end
from mtkit.start import carried_over, start_tokenizer
from mtkit.text.parts import with_plain_files
from mtkit.training.budget import with_shares
from mtkit.training.schedule import ENDING

# Updates of each training: a model so small that these are over before they can be killed is tried with the next.
STEPS = (12, 96, 768)

MOST_PAIRS = 2000  # of the training text, where the run has no data yet
MOST_VALIDATION = 20  # pairs
SEARCHED_VALIDATION = 200  # of which the shortest are taken

Pairs = list[tuple[str, str]]
Texts = dict[str, list[tuple[dict[str, Any], Pairs]]]  # train and valid: settings of each corpus, and its pairs


def verify_settings(target: Path, overrides: Sequence[str]) -> Config:
    """The settings of a run directory, or of a YAML file, with overrides put over them."""
    if not target.is_dir():
        return with_plain_files(carried_over(load_config(target, overrides)))
    path = target / "config.yaml"
    if (target / "bundle.json").exists():
        raise CheckpointError(f"{target}: is a model, not a run directory; mtkit check tells whether it is whole")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        if is_run(target) and not path.exists():
            raise no_model(target) from None
        raise ConfigError(
            f"{target}: no config.yaml to read in it; wants the directory of a run, or a YAML file of settings"
        ) from None
    return config_from_text(text, str(path), overrides).model_copy(update={"run_dir": target})


def verify(config: Config, files_only: bool = False) -> Iterator[Report]:
    """What is found, part by part: files that training reads, files that it made, and whether it can be killed."""
    run = config.run_path
    pick_device(config.device)  # if there is none of that name, better told at once
    data = Report([], [])
    if run.is_dir():
        inform(f"reading the files of {run}")
        data = check_data(run)
        yield data
        yield check_results(run, config.device)
    elif files_only:
        raise CheckpointError(f"{run}: no such run; without --files-only its settings are tried all the same")
    if data.faults:
        yield Report(["no training is tried, since what it reads is damaged"], [])
    elif not files_only:
        yield verify_resuming(config)


def verify_resuming(config: Config) -> Report:
    """Train a few updates twice, once with kills, in a folder that is removed, and compare what both left."""
    config, from_run = _with_data(config)
    with _interrupted_by_signals(), _temporary_folder() as temporary:
        for steps in STEPS:
            folder = temporary / str(steps)
            folder.mkdir()
            short = _short(config, steps, folder, from_run)
            kills = _train_with_kills(short, config.run_path if from_run else None, folder / "killed")
            if kills:
                inform(f"training {steps} updates again, to be left alone")
                train_to_end(_command(short, config.run_path if from_run else None, folder / "whole"), folder / "told")
                return _compared(folder, steps, kills)
        raise MtkitError(f"a training of {STEPS[-1]} updates was over before it could be killed: nothing is proved")


def _train_with_kills(config: Config, data: Path | None, run: Path) -> list[Killed]:
    """Train to the end, killed once between checkpoints, and once while one is written if that can be caught."""
    training = config.training
    command, told = _command(config, data, run), run.with_name("told")
    every = settled(training.save_every)
    inform(f"training {training.max_steps} updates, to be killed after the first checkpoint")
    first = train_and_kill(command, run, Kill(every + 1), told)
    if first is None:
        return []
    inform(f"killed at step {first.step}; the same command again, to be killed while it writes a checkpoint")
    second = train_and_kill(command, run, Kill(every, while_saving=True), told)
    if second is None:
        inform("no checkpoint was written slowly enough for that")
        return [first]
    inform(f"killed at step {second.step}; the same command again, to be left alone")
    train_to_end(command, told)
    return [first, second]


def _command(config: Config, data: Path | None, run: Path) -> list[str]:
    """What trains in the directory run, with the tokenizer and the data of another run if one is given."""
    settings = run.with_name("settings.yaml")
    settings.write_text(config_text(config), encoding="utf-8")
    if data is not None:
        adopt(config.model_copy(update={"run_dir": run}), data)
    return [sys.executable, "-m", "mtkit", "train", str(settings), f"run_dir={json.dumps(str(run))}"]


def _compared(folder: Path, steps: int, kills: list[Killed]) -> Report:
    facts = json.loads((folder / "whole" / "run.json").read_text(encoding="utf-8"))
    moments = [f"at step {kill.step}{' while it wrote a checkpoint' if kill.while_saving else ''}" for kill in kills]
    lines = [
        f"trained {steps} updates twice: {facts['parameters']:,} parameters on {facts['device']} in "
        f"{facts['precision']}, {counted(facts['threads'], 'thread')}; one training was killed {' and '.join(moments)}"
    ]
    same = compare(folder / "killed", folder / "whole")
    lines += [f"{'identical' if is_same else 'different'}: {name}" for name, is_same in same.items()]
    different = [name for name, is_same in same.items() if not is_same]
    if not different:
        return Report([*lines, "a killed training ends here as one that is left alone, to the bit"], [])
    fault = (
        f"a killed training does not end here as one that is left alone: {len(different)} of {len(same)} files differ, "
        f"first {different[0]}; try device=cpu or training.precision=fp32; runs of these settings do not go on exactly"
    )
    return Report(lines, [fault])


# What the trainings read, and their settings.


def _with_data(config: Config) -> tuple[Config, bool]:
    """The settings, and whether the tokenizer and the data of the run fit them."""
    if not is_prepared(config):
        inform(
            f"{config.run_path} has no tokenizer and data of these settings: the first pairs of data.train are taken"
        )
        return config, False
    inform(f"the tokenizer and the data are those of {config.run_path}")
    start = config.training.start_from
    if start is not None and start_tokenizer(config) is None:
        inform(f"{start}, which training started from, is gone: random weights are taken")
        training = config.training.model_copy(update={"start_from": None})
        return config.model_copy(update={"training": training}), True
    return config, True


def _short(config: Config, steps: int, folder: Path, from_run: bool) -> Config:
    """The settings for so few updates, with little text that lies in a folder.

    With the data of a run, the training text has but one pair: it is there to be named.
    """
    texts = _texts_of_run(config) if from_run else _texts_of_settings(config)
    corpora = {
        name: [
            {**settings, **_written(folder / f"{name}.{number}", pairs)}
            for number, (settings, pairs) in enumerate(text)
        ]
        for name, text in texts.items()
    }
    training = config.training
    warmup_steps = with_shares(training.model_copy(update={"max_steps": steps})).warmup_steps
    if training.schedule in ENDING:
        warmup_steps = min(settled(warmup_steps), steps // 4)
    changed = {
        "max_steps": steps,
        "max_minutes": None,
        "patience": None,
        "warmup_steps": warmup_steps,
        "save_every": steps // 4,
        "validate_every": steps // 2,
        "validation_sentences": min(training.validation_sentences, 4),
        "log_every": 1,
        "tensorboard": False,
    }
    sections = {
        "data": {**config.data.model_dump(mode="json"), "root": None, **corpora, "test": {}},
        "training": {**training.model_dump(mode="json"), **changed},
    }
    return with_sections(config, sections, "mtkit verify")


def _texts_of_run(config: Config) -> Texts:
    """A pair for each training corpus, and short ones of the validation text, which has its tags already."""
    sources, targets = kept_validation(standing(config.run_path / "data" / "valid"))
    pairs = list(zip(sources, targets, strict=True))[:SEARCHED_VALIDATION]
    pairs = [pair for pair in pairs if all(side.strip() for side in pair)] or pairs
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    train = [({"weight": corpus.weight}, pairs[:1]) for corpus in config.data.train]
    return {"train": train, "valid": [({}, pairs[:MOST_VALIDATION])]}


def _texts_of_settings(config: Config) -> Texts:
    """The first pairs of each corpus."""
    texts = {}
    for name, corpora, most in (
        ("train", config.data.train, MOST_PAIRS),
        ("valid", config.data.valid, MOST_VALIDATION),
    ):
        if not corpora:
            raise ConfigError(f"data.{name} is empty; list at least one {{source: FILE, target: FILE}}")
        pairs = first_pairs(config, corpora, -(-most // len(corpora)))
        settings = [corpus.model_dump(mode="json", include={"weight", "tag"}) for corpus in corpora]
        texts[name] = list(zip(settings, pairs, strict=True))
    return texts


def _written(path: Path, pairs: Pairs) -> dict[str, str]:
    """The two files that hold the pairs, as the settings name them."""
    files = {}
    for place, side in enumerate(("source", "target")):
        file = path.with_name(f"{path.name}.{side}")
        file.write_text("".join(f"{pair[place]}\n" for pair in pairs), encoding="utf-8", newline="\n")
        files[side] = str(file.resolve())
    return files


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is removed after the block; an error in writing to it tells how to have it elsewhere."""
    with undone_when_ended(), tempfile.TemporaryDirectory(prefix="mtkit-verify-") as temporary:
        try:
            yield Path(temporary)
        except (MtkitError, OSError) as error:
            if temporary not in str(error):
                raise
            told = str(error)
            if isinstance(error, OSError):
                told = f"{error.filename2 or error.filename}: cannot be written: {error.strerror}"
            raise CheckpointError(f"{told}; TMPDIR=FOLDER before the command has its trainings elsewhere") from None


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that the folder is removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may handle signals
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
