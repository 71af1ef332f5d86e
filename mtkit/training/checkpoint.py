"""Writes, loads and deletes checkpoints, replaces an old run by a new one (--fresh), and verifies runs.

`mtkit verify` checks that the files of a run are intact, and that killing and resuming a run changes no result.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mtkit.bundle.bundle import DESCRIPTION, is_run, no_model
from mtkit.bundle.opening import (
    AVERAGE,
    CHECKPOINT_WEIGHTS,
    FORMAT,
    OPTIMIZER,
    PROGRESS,
    RACE,
    STEP,
    TRAINED,
    Progress,
    averaged_steps,
    carried_over,
    checkpoint_steps,
    content_checksum,
    file_checksum,
    read_progress,
    read_tensors_of,
    read_weights,
    start_tokenizer,
    step_directories,
    step_directory,
)
from mtkit.config.load import config_from_text, load_config, with_sections
from mtkit.config.settings import Config, config_text
from mtkit.config.training_settings import ENDING, settled
from mtkit.data.corpus import MANIFEST, Corpus, check_content, check_size, read_manifest, read_validation_text
from mtkit.errors import CheckpointError, ConfigError, DataError, MtkitError, counted, inform
from mtkit.files import (
    bring_back,
    drop_aside,
    put_aside,
    remove,
    replaced_directory,
    settle,
    standing,
    undone_when_ended,
    write_file,
)
from mtkit.models.registry import pick_device
from mtkit.preparation.prepare import adopt, is_prepared
from mtkit.preparation.sources import first_pairs
from mtkit.text.parallel import with_patterns_expanded
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.optimizers import ScheduleFree, optimizer_tensors, remembers_alike, restore_optimizer, with_shares
from mtkit.training.update import TrainState
from mtkit.translation.stream import Report, check

LEFTOVER = re.compile(r"\.(step-\d{8,})\.(new|old)")


def clear_leftovers(checkpoints: Path) -> None:
    """Restore or remove checkpoints that a killed process left half written or half deleted.

    Only the process that holds the lock of the run may call this function.
    """
    for leftover in list(checkpoints.glob(".step-*")):
        if name := LEFTOVER.fullmatch(leftover.name):
            settle(leftover.with_name(name[1]))
            remove(leftover)
    for directory in step_directories(checkpoints):
        if not (directory / PROGRESS).exists():  # written last and deleted first
            remove(directory)


def save_checkpoint(checkpoints: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write the checkpoint of the current step. Raises CheckpointError if a file cannot be written.

    `identity` holds the settings of the run and the checksums of its data (see `identity_of`). When the run resumes
    from the checkpoint, its settings and checksums at that later time are compared with the stored `identity`.
    """
    path = step_directory(checkpoints, state.progress.step)
    weights = {name: parameter.detach() for name, parameter in state.model.named_parameters()}
    tensors = {CHECKPOINT_WEIGHTS: weights, OPTIMIZER: optimizer_tensors(state.optimizer, state.model)}
    if state.average is not None:
        tensors[AVERAGE] = state.average.weights
    try:
        with replaced_directory(path) as new:
            for name in tensors:
                save_file(tensors[name], new / name)
            files = {name: file_checksum(new / name) for name in tensors}
            content = {"format": FORMAT, "progress": _as_json(state.progress), "identity": identity, "files": files}
            text = json.dumps({**content, "sha256": content_checksum(content)}, indent=1)
            (new / PROGRESS).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; the checkpoints before it are untouched: make room and start again"
        ) from None


def _as_json(progress: Progress) -> dict[str, Any]:
    """Returns `progress` as a dict for JSON.

    A field that earlier versions of mtkit do not know is left out if it is empty.
    """
    recent = ("changes", "plan", "ending")
    return {name: value for name, value in asdict(progress).items() if value or name not in recent}


def load_checkpoint(checkpoints: Path, step: int, state: TrainState) -> None:
    """Load the checkpoint of `step` into `state`: the weights, their average, the state of the optimizer, and progress.

    The state of the optimizer is loaded only if it suits the optimizer in `state` (see `remembers_alike`). For example,
    the state of sgd is not loaded into Adam. If the checkpoint has no average, the average in `state` is set to the
    weights. The same is done if the optimizer is schedule_free and starts without a state, since its average must then
    start anew. Raises CheckpointError if a file is damaged or missing.
    """
    progress, _, files = read_progress(checkpoints, step)
    weights = read_weights(checkpoints, step)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(weights[name])
    memory = read_tensors_of(checkpoints, step, OPTIMIZER)
    if remembers_alike(state.optimizer, memory):
        restore_optimizer(state.optimizer, state.model, memory)
    if state.average is not None:
        begins_anew = isinstance(state.optimizer, ScheduleFree) and not state.optimizer.state
        is_kept = AVERAGE in files and not begins_anew
        state.average.restore(read_tensors_of(checkpoints, step, AVERAGE) if is_kept else weights)
    state.progress = progress


def delete_old(checkpoints: Path, scheduled: list[int], best_step: int, average: int, keep: int) -> None:
    """Delete checkpoints that are no longer needed, and the optimizer state of all but the newest `keep` checkpoints.

    These checkpoints are needed:

    - the newest `keep` checkpoints from which training can resume;
    - the best checkpoint and the checkpoints to be averaged with it, up to `average` in all (see `averaged_steps`);
    - the last `average` checkpoints in `scheduled`, since a later best checkpoint may be averaged with them.

    `scheduled` has the steps of the checkpoints that were due, in ascending order. Checkpoints that were written only
    because the run was stopped are not in `scheduled`. Call this function after the newest checkpoint is written.
    """
    steps = checkpoint_steps(checkpoints)
    newest = set(checkpoint_steps(checkpoints, resumable=True)[-keep:])
    needed = newest | set(averaged_steps(scheduled, best_step, average)) | set(scheduled[-average:])
    for step in steps:
        directory = step_directory(checkpoints, step)
        if step not in needed:
            if not directory.is_symlink():
                (directory / PROGRESS).unlink()  # first, so that what a kill leaves is not taken for a checkpoint
            remove(directory)
        elif step not in newest:
            (directory / OPTIMIZER).unlink(missing_ok=True)


# Fresh starts: the old run is deleted only when the new one has a checkpoint.

MARKER = ".fresh.json"  # exists while an old run is set aside; says "begun", then "aside" when all is renamed

NAMES = (
    "log.jsonl",
    TRAINED,
    RACE,
    "evaluated.json",
    "config.yaml",
    "run.json",
    "tensorboard",
)  # what training wrote, besides checkpoints and model
PREPARED = ("tokenizer", "data/train", "data/valid")  # what training read; set aside only if it is made again


class FreshStart:
    """The replacement of an old run by a new one in the same directory."""

    def __init__(self, run: Path) -> None:
        """Remember the run directory; no file is changed until `begin` is called."""
        self.run = run
        self.is_over = False

    def begin(self) -> None:
        """Rename the checkpoints and records of the old run to hidden names; the old model, tokenizer and data stay."""
        _write_marker(self.run, "begun")
        for directory in step_directories(self.run / "checkpoints"):
            directory.rename(_hidden(directory))
        for name in NAMES:
            put_aside(self.run / name)
        if (tensorboard := self.run / "tensorboard").is_symlink():
            tensorboard.resolve().mkdir(exist_ok=True)  # TensorBoard cannot write to a dangling link
        _write_marker(self.run, "aside")

    def put_aside(self, *names: str) -> None:
        """Set aside the old tokenizer or data before they are made again; `names` are like "data/train"."""
        for name in names:
            put_aside(self.run / name)

    def keep_new(self) -> None:
        """Delete the old run, unless it is deleted already. To be called as soon as the new run has a checkpoint."""
        if not self.is_over:
            _keep_new(self.run)
            self.is_over = True


@contextmanager
def fresh_start(run: Path) -> Iterator[FreshStart]:
    """Context manager that sets the old run aside at the beginning, so that a new run can start in the same directory.

    At the end, the old run is brought back, unless `keep_new` was called.
    """
    start = FreshStart(run)
    with undone_when_ended():
        try:
            start.begin()
            yield start
        finally:
            if not start.is_over:
                settle_fresh(run)


def settle_fresh(run: Path) -> None:
    """Finish an interrupted fresh start: delete the old run if the new one has a checkpoint, else restore the old run.

    Does nothing if no fresh start was interrupted. Only the process that holds the lock of the run may call this
    function.
    """
    marker = run / MARKER
    if not marker.exists():
        return
    # If the old run was not set aside completely, the checkpoints may still be those of the old run.
    if _state(marker) == "aside" and checkpoint_steps(run / "checkpoints"):
        _keep_new(run)
    else:
        _bring_back(run)


def _bring_back(run: Path) -> None:
    """Give the files of the old run their names back, then delete the file `MARKER`.

    If a call is interrupted, another call does the rest.
    """
    for hidden in _hidden_steps(run / "checkpoints"):
        directory = hidden.with_name(_visible(hidden))
        remove(directory)
        hidden.rename(directory)
    for name in (*PREPARED, *NAMES):
        bring_back(run / name)
    (run / MARKER).unlink()


def _keep_new(run: Path) -> None:
    """Delete the hidden files of the old run, then the file `MARKER`.

    If a call is interrupted, another call does the rest.
    """
    for hidden in _hidden_steps(run / "checkpoints"):
        remove(hidden)
    for name in (*PREPARED, *NAMES):
        drop_aside(run / name)
    (run / MARKER).unlink()


def _hidden_steps(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob(".step-*.before") if STEP.fullmatch(_visible(path))]


def _hidden(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.before")


def _visible(hidden: Path) -> str:
    return hidden.name.removeprefix(".").removesuffix(".before")


def _write_marker(run: Path, state: str) -> None:
    write_file(run / MARKER, (json.dumps({"old_run": state}) + "\n").encode())


def _state(marker: Path) -> str:
    """Returns "aside" if the old run is set aside completely, else "begun"; reads this from the file `marker`.

    If the file is damaged, returns "begun", so that the old run is brought back.
    """
    try:
        content = json.loads(marker.read_bytes())
    except ValueError:
        return "begun"
    return str(content.get("old_run")) if isinstance(content, dict) else "begun"


# Verifying runs.

WHOLE = "as written"


def check_data(run: Path) -> Report:
    """Returns a report on the files that training reads: the tokenizer, the binarized corpora, the validation text."""
    return _joined(
        _part(run / "tokenizer", _tokenizer),
        _part(run / "data" / "train", lambda path: _corpus(path, standing(run / "tokenizer"))),
        _part(run / "data" / "valid", _validation),
    )


def check_results(run: Path, device: str | None = None) -> Report:
    """Returns a report on the files that training wrote: the checkpoints and the model.

    The model is checked in the same way as by `mtkit check`, on `device`. The default is the device in the settings of
    the model.
    """
    checkpoints = _part(run / "checkpoints", _checkpoints)
    model = _part(run / "model", lambda path: check(path, device))
    if model.faults and checkpoints.lines and not checkpoints.faults:
        model.lines.append(f"{run / 'model'}: delete it, and mtkit train writes it again from the checkpoints")
    return _joined(checkpoints, model)


def _part(path: Path, look: Callable[[Path], Report]) -> Report:
    """Returns `look(path)`, the report on a folder; if the folder is missing, the report says only that.

    If `look` raises MtkitError, the lines of the error message become the faults in the report.
    """
    place = standing(path)
    if not place.exists():
        return Report([f"{path}: not there yet"], [])
    try:
        return look(place)
    except MtkitError as error:
        return Report([], str(error).splitlines())


def _joined(*reports: Report) -> Report:
    return Report(
        [line for report in reports for line in report.lines], [fault for report in reports for fault in report.faults]
    )


def _tokenizer(path: Path) -> Report:
    return Report([f"{path}: {WHOLE}, checksum {Tokenizer.load(path).hash[:12]}"], [])


def _validation(path: Path) -> Report:
    sources, _ = read_validation_text(path)
    return Report([f"{path}: {len(sources):,} pairs, {WHOLE}"], [])


def _corpus(path: Path, tokenizer: Path) -> Report:
    manifest = read_manifest(path / MANIFEST)
    files = manifest.files()
    faults = []
    for name, stored in files.items():
        try:
            check_size(path / name, stored)
            check_content(path / name, stored, lambda: False)
        except DataError as error:
            faults.append(str(error))
    if faults:
        return Report([], faults)
    corpus = Corpus(path, manifest)
    if tokenizer.exists():
        corpus.require_tokenizer(Tokenizer.load(tokenizer).hash)
    return Report([f"{path}: {len(files)} files, {corpus.num_bytes:,} bytes, {WHOLE}"], [])


def _checkpoints(path: Path) -> Report:
    reports = [_checkpoint(path, step) for step in checkpoint_steps(path)]
    return _joined(*reports) if reports else Report([f"{path}: no checkpoint"], [])


def _checkpoint(checkpoints: Path, step: int) -> Report:
    path = step_directory(checkpoints, step)
    try:
        _, _, checksums = read_progress(checkpoints, step)
        faults = [fault for name, checksum in checksums.items() for fault in _faults(path / name, checksum)]
    except CheckpointError as error:
        faults = [str(error)]
    if not (path / PROGRESS).exists():
        return Report([], [])  # a run that is still training has just deleted the checkpoint
    if faults:
        return Report([], faults)
    return Report([f"{path}: {sum(1 for _ in path.iterdir())} files, {WHOLE}"], [])


def _faults(path: Path, checksum: str) -> Iterator[str]:
    """Yields a message if `path`, a file of a checkpoint, is missing, unreadable or damaged.

    The file is damaged if its checksum is not `checksum`. The state of the optimizer may be missing in all checkpoints
    but the newest, since training deletes old states.
    """
    remedy = f"delete {path.parent} to go on from another checkpoint, or copy it again"
    try:
        found = file_checksum(path)
    except FileNotFoundError:
        newest = step_directory(path.parent.parent, checkpoint_steps(path.parent.parent)[-1])
        if path.name != OPTIMIZER or path.parent == newest:  # training deletes optimizer states of older checkpoints
            yield f"{path}: missing; {remedy}"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}; {remedy}"
    else:
        if found != checksum:
            yield f"{path}: damaged, its checksum is not the one it was saved with; {remedy}"


# Trains in processes that can be killed, and compares two runs.

PAUSE_SECONDS = 0.002  # the pause between two checks whether to kill the training process

# The fields of the log that depend on the clock, so that they differ between any two training runs.
CLOCKS = ("seconds", "minutes", "tokens_per_second")


@dataclass(frozen=True)
class Kill:
    """The moment at which to kill a training process."""

    step: int  # the process is killed only after this step is in the log
    while_saving: bool = False  # whether it is killed only while it writes a checkpoint
    delay: float = 0.0  # seconds to wait after both conditions are met


@dataclass(frozen=True)
class Killed:
    """The state of training when its process was killed."""

    step: int  # the last step in the log
    while_saving: bool  # whether a checkpoint was being written


def train_and_kill(command: Sequence[str], run: Path, kill: Kill, messages: Path) -> Killed | None:
    """Start a process that starts or resumes a training run; kill the process at the moment that `kill` describes.

    Returns the state of training when the process was killed, or `None` if training ended before that moment. The
    process is killed by SIGKILL, or by the equivalent on Windows. The stderr of the process is written to the file
    `messages`. Raises MtkitError if training fails.
    """
    began, ended = _began_at(run), True
    with _process(command, messages) as process:
        while process.poll() is None:
            # Once run.json is newer, this process has already removed what an earlier process left half written.
            if _began_at(run) > began and last_step(run) >= kill.step and (not kill.while_saving or is_saving(run)):
                time.sleep(kill.delay)
                ended = process.poll() is not None
                break
            time.sleep(PAUSE_SECONDS)
    if not ended:
        return Killed(last_step(run), is_saving(run))
    _require_success(process.returncode, messages)
    return None


def train_to_end(command: Sequence[str], messages: Path) -> None:
    """Start a process that starts or resumes a training run, and wait until training ends.

    The stderr of the process is written to the file `messages`. Raises MtkitError if training fails.
    """
    with _process(command, messages) as process:
        process.wait()
    _require_success(process.returncode, messages)


@contextmanager
def _process(command: Sequence[str], messages: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Context manager that starts a process, and kills the process at the end if it is still running.

    The stderr of the process is written to the file `messages`.
    """
    with messages.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _require_success(code: int, messages: Path) -> None:
    """Raise MtkitError if `code`, the exit code of a training process, is not 0.

    MtkitError repeats the error messages of the process, which are in the file `messages`. If the file has no error
    message, MtkitError gives the exit code and the last line of the file.
    """
    if code:
        lines = messages.read_text(encoding="utf-8", errors="replace").splitlines()
        prefix = "mtkit: error: "
        errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        last = lines[-1] if lines else "it said nothing"
        raise MtkitError("\n".join(errors) or f"the training ended with exit code {code}: {last}")


def _began_at(run: Path) -> int:
    """Returns the time, in ns, when training last began or resumed; 0 if it never began.

    The time is that of the file run.json, which training writes whenever it begins or resumes.
    """
    try:
        return (run / "run.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def last_step(run: Path) -> int:
    """Returns the last step in the log of a run; 0 if the log has no step."""
    steps = (event["step"] for event in reversed(_events(run)) if "step" in event)
    return next(steps, 0)


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written, or was being written when the training process was killed."""
    return any((run / "checkpoints").glob(".step-*"))


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Compare two runs; returns, for each file of tensors and for log.jsonl, whether both runs have the same content.

    The keys are paths relative to the run directory: first the files of tensors, sorted by name and compared by their
    checksums, then log.jsonl. A file that only one run has counts as different. If neither run has any file of tensors,
    model/weights.safetensors counts as different.
    """
    found, wanted = _tensor_files(one), _tensor_files(other)
    same = {name: found.get(name) == wanted.get(name) for name in sorted({**found, **wanted})}
    return {**(same or {"model/weights.safetensors": False}), "log.jsonl": _logged(one) == _logged(other)}


def _tensor_files(run: Path) -> dict[str, str]:
    """Returns the checksum of each .safetensors file in the checkpoints and the model of a run.

    The keys are paths relative to the run directory.
    """
    found = {}
    for folder in ("checkpoints", "model"):
        for path in (run / folder).rglob("*.safetensors"):
            found[path.relative_to(run).as_posix()] = file_checksum(path)
    return found


def _logged(run: Path) -> list[dict[str, Any]]:
    """Returns the events of the log, without the parts that differ between any two runs.

    These parts are the event that each process writes at its start, and the fields in `CLOCKS`.
    """
    return [
        {name: value for name, value in event.items() if name not in CLOCKS}
        for event in _events(run)
        if event.get("event") != "start"
    ]


def _events(run: Path) -> list[dict[str, Any]]:
    """Returns the events of the log of a run; if the last line is half written, it is left out."""
    try:
        text = (run / "log.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


# The command: checks the files, then trains twice, with and without kills, and compares the results.

# Numbers of updates to train, tried in turn: if training ends before it can be killed, the next number is tried.
STEPS = (12, 96, 768)

MOST_PAIRS = 2000  # the number of training pairs to use if the run has no data yet
MOST_VALIDATION = 20  # the number of validation pairs to use
SEARCHED_VALIDATION = 200  # the shortest pairs are chosen from this many validation pairs of a run

Pairs = list[tuple[str, str]]
Texts = dict[str, list[tuple[dict[str, Any], Pairs]]]  # for "train" and "valid": settings and pairs of each corpus


def verify_settings(target: Path, overrides: Sequence[str]) -> Config:
    """Returns the settings in `target`, a run directory or a YAML file, with the overrides applied.

    An override is like "training.max_steps=100". Raises MtkitError if the settings cannot be read.
    """
    if not target.is_dir():
        return with_patterns_expanded(carried_over(load_config(target, overrides)))
    path = target / "config.yaml"
    if (target / DESCRIPTION).exists():
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
    """Yields reports on the files that training reads, on the files that training wrote, and on resuming after a kill.

    If the run does not exist yet, only resuming is tested. If files that training reads are damaged, resuming is not
    tested, and the last report says so. With `files_only`, resuming is not tested at all, and CheckpointError is raised
    if the run does not exist.
    """
    run = config.run_path
    pick_device(config.device)  # so that a device that does not exist is reported at once
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
    """Train a few updates twice in a temporary folder, once with kills and once without, and compare the results.

    The report says whether the results are the same. Raises MtkitError if training ends before it can be killed, even
    with the largest number of updates in `STEPS`.
    """
    config, from_run = _with_data(config)
    with _interrupted_by_signals(), _temporary_folder() as temporary:
        for steps in STEPS:
            folder = temporary / str(steps)
            folder.mkdir()
            short = _short(config, steps, folder, from_run)
            kills = _train_with_kills(short, config.run_path if from_run else None, folder / "killed")
            if kills:
                inform(f"training {steps} updates again, to be left alone")
                train_to_end(
                    _command(short, config.run_path if from_run else None, folder / "whole"), folder / "messages"
                )
                return _compared(folder, steps, kills)
        raise MtkitError(f"a training of {STEPS[-1]} updates was over before it could be killed: nothing is proved")


def _train_with_kills(config: Config, data: Path | None, run: Path) -> list[Killed]:
    """Train to the end, with a kill between checkpoints and, if possible, a kill while a checkpoint is written.

    Returns the state of training at each kill; an empty list if training ended before the first kill. `data` is the run
    directory whose tokenizer and data are used; if `data` is `None`, a new tokenizer and new data are made.
    """
    training = config.training
    command, messages = _command(config, data, run), run.with_name("messages")
    every = settled(training.save_every)
    inform(f"training {training.max_steps} updates, to be killed after the first checkpoint")
    first = train_and_kill(command, run, Kill(every + 1), messages)
    if first is None:
        return []
    inform(f"killed at step {first.step}; the same command again, to be killed while it writes a checkpoint")
    second = train_and_kill(command, run, Kill(every, while_saving=True), messages)
    if second is None:
        inform("no checkpoint was written slowly enough for that")
        return [first]
    inform(f"killed at step {second.step}; the same command again, to be left alone")
    train_to_end(command, messages)
    return [first, second]


def _command(config: Config, data: Path | None, run: Path) -> list[str]:
    """Write the settings to a file beside the run directory `run`, and return the command that trains in `run`.

    `data`, if given, is another run directory: its tokenizer and data are linked or copied into `run`.
    """
    settings = run.with_name("settings.yaml")
    settings.write_text(config_text(config), encoding="utf-8")
    if data is not None:
        adopt(config.model_copy(update={"run_dir": run}), data)
    return [sys.executable, "-m", "mtkit", "train", str(settings), f"run_dir={json.dumps(str(run))}"]


def _compared(folder: Path, steps: int, kills: list[Killed]) -> Report:
    """Compare the runs "killed" and "whole" in a folder; returns a report, which has a fault if the runs differ.

    The report also tells `steps`, the number of updates, and `kills`, the updates at which the run "killed" was killed.
    """
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


# Settings and texts for the two training runs that are compared.


def _with_data(config: Config) -> tuple[Config, bool]:
    """Returns the settings to train with, and whether training uses the tokenizer and data of the verified run.

    The run's tokenizer and data are used if they exist and were made with the settings in `config`. In that case, the
    model that `training.start_from` names is not needed: if that model no longer exists, the setting is reset to
    `None`, and training starts from random weights.
    """
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
    """Write a few sentence pairs to `folder`, and return the settings of a run that trains on them for `steps` updates.

    With `from_run=True`, training uses the binarized training corpora of the verified run. For each of them, text files
    with one pair are still written, since the settings must name text files.
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
        "batch_tokens": config.known_batch_tokens,
        "max_steps": steps,
        "max_minutes": None,
        "patience": None,
        "target_score": None,
        "warmup_steps": warmup_steps,
        "decay_steps": "auto",
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
    """Returns the settings and pairs of small corpora for training and validation, made from the run's validation text.

    Every training corpus has the same single pair, the shortest one; the validation corpus has several short pairs.
    The settings of a training corpus hold its weight, but no tag: the stored text already contains the tags.
    """
    sources, targets = read_validation_text(standing(config.run_path / "data" / "valid"))
    pairs = list(zip(sources, targets, strict=True))[:SEARCHED_VALIDATION]
    pairs = [pair for pair in pairs if all(side.strip() for side in pair)] or pairs
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    train = [({"weight": corpus.weight}, pairs[:1]) for corpus in config.data.train]
    return {"train": train, "valid": [({}, pairs[:MOST_VALIDATION])]}


def _texts_of_settings(config: Config) -> Texts:
    """Returns the first pairs of each corpus of `data.train` and `data.valid`, with the weight and tag of the corpus.

    Raises ConfigError if `data.train` or `data.valid` is empty.
    """
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
    """Write the sources and the targets to two files beside `path`; returns {"source": FILE, "target": FILE}."""
    files = {}
    for place, side in enumerate(("source", "target")):
        file = path.with_name(f"{path.name}.{side}")
        file.write_text("".join(f"{pair[place]}\n" for pair in pairs), encoding="utf-8", newline="\n")
        files[side] = str(file.resolve())
    return files


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Context manager that gives a temporary folder, which is removed at the end.

    Errors that concern the folder become a CheckpointError, whose message says how to choose another place for the
    folder.
    """
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
    """Context manager in which SIGTERM and SIGHUP raise KeyboardInterrupt, so that temporary folders are removed."""

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
