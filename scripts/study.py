"""Compares training choices: trains each variant with each budget and each seed, and prints a table of the scores.

    .venv/bin/python scripts/study.py STUDY.yaml --folder runs/study [--jobs N] [--test] [KEY=VALUE]...
    .venv/bin/python scripts/study.py STUDY.yaml --folder runs/study --table

STUDY.yaml (paths are relative to the current folder; settings are key=value, as in mtkit's command line):

    recipe: configs/multi30k-en-de-transformer.yaml
    settings: [training.validation_sentences=500]             # of every run
    budgets:                                                  # names with settings, smallest first
      1: [training.max_steps=183, training.warmup_steps=60]
      3: [training.max_steps=550, training.warmup_steps=150]
    seeds: [1, 2, 3]                                          # training.seed
    variants:                                                 # names with settings; the first one is the baseline
      adam: []
      muon: [training.optimizer=muon, training.learning_rate=0.002]
      muon, dropout 0.2: {settings: [training.optimizer=muon, model.dropout=0.2], budgets: [3], seeds: [1]}
      rnn: {recipe: configs/multi30k-en-de-rnn.yaml}

If several give the same setting, the last of these wins: recipe, settings of every run, budget, variant, the command
line. Every run is a run directory of its own in the folder and a process of its own, which has one thread and, on
Linux, one core. Tokenizer and data are made once for all runs that agree in them.

The study may be stopped (Ctrl-C) and started again: finished runs are kept, an interrupted run resumes, and a run whose
settings have changed is deleted and trained again. A run that diverges is a row of the table; a run that failed for
another reason is tried again at the next start. With --test, the models are also scored on the test sets.

The table has the mean over the seeds and half the width of its 95 % confidence interval (Student's t), for the last
validation of each run. Differences are to the baseline, in pairs of equal seed, with the interval of their mean.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mtkit.config.load import load_config
from mtkit.config.section import read_yaml
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, MtkitError, duration, whole_number
from mtkit.files import json_text, link_or_copy, write_file

# The file of the study.

Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
Settings = list[str]


class Section(BaseModel):
    """A part of the file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(Section):
    """The settings of a variant, and the budgets, seeds and recipe that differ from those of the study."""

    settings: Settings = []
    budgets: list[Name] | None = None
    seeds: list[int] | None = None
    recipe: Path | None = None


class Study(Section):
    """The content of STUDY.yaml."""

    recipe: Path
    settings: Settings = []
    budgets: dict[Name, Settings]
    seeds: list[int]
    variants: dict[Name, Annotated[Variant, BeforeValidator(lambda v: {"settings": v} if isinstance(v, list) else v)]]


@dataclass(frozen=True)
class Run:
    """One training: a variant with a budget and a seed."""

    variant: str
    budget: str
    seed: int
    recipe: Path
    settings: tuple[str, ...]
    path: Path  # its run directory

    def __str__(self) -> str:
        return f"{self.variant}, budget {self.budget}, seed {self.seed}"

    @cached_property
    def config(self) -> Config:
        """The settings, checked; raises ConfigError."""
        return load_config(self.recipe, self.settings)


def read_study(path: Path) -> Study:
    """Read a study; raises ConfigError if a key is missing, unknown or wrong, or if a name is used but not defined."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        study = Study.model_validate(read_yaml(text, str(path)).data)
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from None
    for part in ("budgets", "seeds", "variants"):
        if not getattr(study, part):
            raise ConfigError(f"{path}: {part} is empty, wants at least one")
    for name, variant in study.variants.items():
        if unknown := set(variant.budgets or ()) - study.budgets.keys():
            raise ConfigError(f"{path}: variants.{name}: found budget {', '.join(unknown)}, which budgets has not")
    return study


def runs_of(study: Study, folder: Path, more: Sequence[str]) -> list[Run]:
    """The runs of a study in the order of training: seed by seed, within a seed budget by budget.

    more are settings of the command line, which override all others. Raises ConfigError if settings are wrong, or if
    two runs would have the same directory.
    """
    runs = []
    seeds = dict.fromkeys([*study.seeds, *(seed for v in study.variants.values() for seed in v.seeds or ())])
    for seed in seeds:
        for budget, limits in study.budgets.items():
            for name, variant in study.variants.items():
                if seed in (variant.seeds or study.seeds) and budget in (variant.budgets or study.budgets):
                    path = folder / f"{_in_file_name(name)}.{_in_file_name(budget)}.seed{seed}"
                    settings = (*study.settings, *limits, *variant.settings, *more)
                    settings += (f"training.seed={seed}", f"run_dir={json.dumps(str(path))}")
                    runs.append(Run(name, budget, seed, variant.recipe or study.recipe, settings, path))
    for run in runs:
        try:
            run.config  # noqa: B018
        except ConfigError as error:
            raise ConfigError("\n".join(f"{run}: {line}" for line in str(error).splitlines())) from None
    if len({run.path for run in runs}) < len(runs):
        raise ConfigError("two variants or budgets have the same name but for punctuation; rename one of them")
    return runs


def _in_file_name(name: str) -> str:
    return re.sub(r"[^\w=+-]+", "-", name).strip("-")


# What is known of a run: study.json in its directory.

RECORD = "study.json"
TRAINED, DIVERGED, FAILED, BEGUN = "trained", "diverged", "failed", "begun"
# Settings that the trained model does not depend on, and the folder of the data, which may be moved.
NOT_COMPARED: dict[str, Any] = {
    **dict.fromkeys(("name", "run_dir", "device", "decoding"), True),
    "data": {"root", "test"},
    "training": {"log_every", "tensorboard", "keep_checkpoints"},
}


def read_record(run: Run) -> dict[str, Any]:
    """What is known of a run: its state, its settings, and the error if it failed; empty if it has not begun."""
    try:
        record = json.loads((run.path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(run: Run, state: str, error: str = "") -> None:
    """Note the state of a run, with its settings."""
    run.path.mkdir(parents=True, exist_ok=True)
    record = {"state": state, "error": error, "config": run.config.model_dump(mode="json")}
    write_file(run.path / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def is_changed(run: Run, record: dict[str, Any]) -> bool:
    """Whether the run was trained with other settings than it has now; settings that did not exist then have defaults.

    Those in NOT_COMPARED may differ.
    """
    try:
        before = Config.model_validate_json(json.dumps(record["config"]))
    except (ValueError, KeyError):
        return True
    return before.model_dump(exclude=NOT_COMPARED) != run.config.model_dump(exclude=NOT_COMPARED)


def current_record(run: Run) -> dict[str, Any]:
    """What is known of a run with its present settings; empty if it has not begun with them."""
    record = read_record(run)
    return record if record and not is_changed(run, record) else {}


# Results, from log.jsonl.


@dataclass(frozen=True)
class Result:
    """The scores and the speed of a run, as far as it has come."""

    updates: int
    seconds: float  # of training, without validations
    tokens_per_second: float | None  # target tokens, median over the lines of the log
    curve: list[dict[str, float]]  # step, bleu, chrf and nll of each validation
    average: dict[str, float] | None  # of averaged checkpoints, if the run has averaged some
    test: dict[str, float] = field(default_factory=dict)  # "TESTSET METRIC": score

    @property
    def last(self) -> dict[str, float]:
        """The last validation."""
        return self.curve[-1]

    @property
    def best(self) -> dict[str, float]:
        """The validation with the best BLEU."""
        return max(self.curve, key=lambda point: point["bleu"])

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            **vars(self),
            "last": self.last,
            "best": self.best,
            "best_nll": min(point["nll"] for point in self.curve),
        }


MEASURES = ("bleu", "chrf", "nll")


def read_result(run: Run) -> Result | None:
    """The result of a run from its log; None if it has no validation yet."""
    try:
        lines = (run.path / "log.jsonl").read_bytes().splitlines(keepends=True)
    except OSError:
        return None
    events = [json.loads(line) for line in lines if line.endswith(b"\n")]
    curve = [_measures(event, step=event["step"]) for event in events if event["event"] == "validation"]
    if not curve:
        return None
    training = [event for event in events if event["event"] == "train"]
    rates = [event["tokens_per_second"] for event in training]
    averages = [_measures(event, taken=event["better"]) for event in events if event["event"] == "average"]
    return Result(
        updates=max(event.get("step", 0) for event in events),
        seconds=round(_training_seconds(events), 1),
        tokens_per_second=statistics.median(rates) if rates else None,
        curve=curve,
        average=averages[-1] if averages else None,
        test=_test_scores(run),
    )


def _measures(event: dict[str, Any], **more: float) -> dict[str, float]:
    """The measures of an event; what was not finite is null in the log, and NaN here."""
    return {**more, **{name: math.nan if event[name] is None else event[name] for name in MEASURES}}


def _training_seconds(events: Sequence[dict[str, Any]]) -> float:
    """Seconds of training until its last line in the log, without those of validations before it."""
    minutes = validating = between = 0.0
    for event in events:
        if event["event"] == "validation":
            between += event["seconds"]
        elif event["event"] == "train":
            minutes, validating = event["minutes"], validating + between
            between = 0.0
    return max(60 * minutes - validating, 0.0)


def _test_scores(run: Run) -> dict[str, float]:
    try:
        scores = json.loads((run.path / "model" / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {f"{score['test_set']} {score['metric']}": score["score"] for score in scores}


# Training.


class Trainings:
    """Trains runs in processes, several at a time, and stops them when asked to."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self._cores = allowed_cores()
        self._jobs = jobs
        self._lock = threading.Lock()
        self._prepared: dict[str, threading.Lock] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        self._begun = 0

    def each(self, task: Callable[["Trainings", Run, int], None], runs: Sequence[Run]) -> None:
        """Do the task for each run, on that many cores at a time; on Ctrl-C or SIGTERM, stop all and exit."""
        cores = [self._cores[i % len(self._cores)] for i in range(self._jobs)]
        waiting = iter(runs)

        def work(core: int) -> None:
            while not self._is_stopped:
                with self._lock:
                    run = next(waiting, None)
                if run is None:
                    return
                task(self, run, core)

        with ThreadPoolExecutor(self._jobs) as pool:
            workers = [pool.submit(work, core) for core in cores]
            try:
                for worker in as_completed(workers):
                    worker.result()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ask all processes to save their state and end, and let none begin."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.terminate()

    def number(self) -> int:
        """The number of the next run that begins, from 1."""
        with self._lock:
            self._begun += 1
            return self._begun

    def mtkit(self, command: str, run: Run, core: int, messages: Path, settings: Sequence[str]) -> str | None:
        """Run a command of mtkit with the recipe of a run; returns its error message, "" if it ended well.

        Returns None if it was stopped. Its output is appended to the file messages.
        """
        arguments = [sys.executable, "-m", "mtkit", command, str(run.recipe), *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        messages.parent.mkdir(parents=True, exist_ok=True)
        with messages.open("ab") as output:
            begun = output.tell()
            with self._lock:
                if self._is_stopped:
                    return None
                # In a group of its own, so that Ctrl-C on the terminal reaches it once only, from stop().
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    process_group=None if sys.platform == "win32" else 0,
                )
                if hasattr(os, "sched_setaffinity"):
                    with suppress(ProcessLookupError):  # it has ended already
                        os.sched_setaffinity(process.pid, {core})
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
        if code == 0:
            return ""
        return None if self._is_stopped else error_in(messages.read_bytes()[begun:], code)

    def prepare(self, run: Run, core: int) -> str | None:
        """Give a new run the tokenizer and data that it shares with others, made if need be; returns as mtkit()."""
        config = run.config
        if (run.path / "tokenizer").exists() or config.training.start_from is not None:
            return ""
        shared = config.model_dump(mode="json", include={"languages", "data", "tokenizer"})
        text = json.dumps([str(run.recipe.resolve()), shared, config.training.samples_subwords], sort_keys=True)
        name = f"{run.recipe.stem}-{sha256(text.encode()).hexdigest()[:8]}"
        path = self.folder / "prepared" / name
        with self._lock:
            lock = self._prepared.setdefault(name, threading.Lock())
        with lock:
            if not (path / "prepared").exists():
                tell(f"preparing {path}")
                settings = [*run.settings[:-1], f"run_dir={json.dumps(str(path))}"]
                error = self.mtkit("binarize", run, core, path.with_suffix(".log"), settings)
                if error != "":
                    return error
                (path / "prepared").touch()
        shutil.rmtree(run.path / "data", ignore_errors=True)  # of a copy that was interrupted
        shutil.copytree(path / "data", run.path / "data", copy_function=_link)
        shutil.copytree(path / "tokenizer", run.path / "tokenizer")
        return ""


def _link(path: str, copy: str) -> None:
    link_or_copy(Path(path), Path(copy))


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def error_in(output: bytes, code: int) -> str:
    """The error message in the output of a process that failed; its last line, or its exit code, if there is none."""
    lines = output.decode("utf-8", "replace").splitlines()
    prefix = "mtkit: error: "
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return "; ".join(errors) or f"{how}: {lines[-1] if lines else 'it said nothing'}"


def has_diverged(error: str) -> bool:
    """Whether a message of mtkit says that training diverged: it would do so again."""
    return "were not finite" in error or "overflows fp16 at any loss scale" in error


def is_done(run: Run) -> bool:
    """Whether the run has ended with these settings: finished or diverged."""
    return current_record(run).get("state") in (TRAINED, DIVERGED)


def train(trainings: Trainings, run: Run, core: int, total: int) -> None:
    """Train a run, or go on with it, and note how it ended."""
    record = read_record(run)
    number = f"[{trainings.number()}/{total}]"
    if record and is_changed(run, record):
        tell(f"{number} other settings than before: {run}; {run.path} is deleted")
        shutil.rmtree(run.path)
    begun = time.monotonic()
    tell(f"{number} started: {run}")
    write_record(run, BEGUN)
    error = trainings.prepare(run, core)
    if error == "":
        error = trainings.mtkit("train", run, core, messages_of(run), run.settings)
    if error is None:
        tell(f"{number} stopped: {run}")
        return
    if error:
        state = DIVERGED if has_diverged(error) else FAILED
        write_record(run, state, error)
        tell(f"{number} {state}: {run}: {error}")
        return
    write_record(run, TRAINED)
    took = duration(time.monotonic() - begun)
    result = read_result(run)
    scores = f"BLEU {result.last['bleu']:.2f}, nll {result.last['nll']:.4f}" if result else "no validation"
    tell(f"{number} finished: {run}: {scores}, {took}")


def evaluate(trainings: Trainings, run: Run, core: int) -> None:
    """Score the model of a run on its test sets; mtkit keeps the scores and repeats only what has changed."""
    error = trainings.mtkit("run", run, core, messages_of(run), run.settings)
    if error is not None:
        tell(f"not tested: {run}: {error}" if error else f"tested: {run}")


def messages_of(run: Run) -> Path:
    """The file for what mtkit says of a run, beside its directory."""
    return run.path.with_name(f"{run.path.name}.log")


def tell(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


# The table.

# 97.5 % quantiles of Student's t distribution with 1 to 9 degrees of freedom.
T_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution.

    Beyond the table, the expansion about the normal quantile (Abramowitz & Stegun, 26.7.5), to 0.001 and better.
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % confidence interval; None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def rows_of(study: Study, runs: Sequence[Run], budget: str) -> list[dict[str, Any]]:
    """The rows of the table of a budget: each variant with means, intervals and differences to the baseline.

    Only finished runs with the present settings count. A variant without any has a row only if a run of it failed.
    """
    results: dict[str, dict[int, Result]] = {name: {} for name in study.variants}
    wanted: dict[str, list[int]] = {name: [] for name in study.variants}
    failed: dict[str, dict[int, str]] = {name: {} for name in study.variants}
    for run in runs:
        if run.budget != budget:
            continue
        wanted[run.variant].append(run.seed)
        record = current_record(run)
        if record.get("state") in (DIVERGED, FAILED):
            error = record["error"].removeprefix(f"{run.path}: ")
            failed[run.variant][run.seed] = f"{record['state']}: {error}"
        elif record.get("state") == TRAINED and (result := read_result(run)):
            results[run.variant][run.seed] = result
    baseline = results[next(iter(study.variants))]
    rows = []
    for name in study.variants:
        done = results[name]
        if done or failed[name]:
            row: dict[str, Any] = {"variant": name, "seeds": sorted(done), "wanted": len(wanted[name])}
            rows.append({**row, **_statistics(done, baseline), "failed": failed[name]})
    return rows


def _statistics(done: dict[int, Result], baseline: dict[int, Result]) -> dict[str, Any]:
    """The statistics of a variant, each of them None if no run has it."""
    shared = [seed for seed in done if seed in baseline]
    is_baseline = done is baseline
    measures: dict[str, Callable[[Result], float | None]] = {
        "bleu": lambda result: result.last["bleu"],
        "best_bleu": lambda result: result.best["bleu"],
        "nll": lambda result: result.last["nll"],
        **{name: _test_score(name) for name in sorted({name for result in done.values() for name in result.test})},
    }
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        values = [value for result in done.values() if (value := measure(result)) is not None]
        mean, interval = mean_and_interval(values) if values else (None, None)
        pairs = [(measure(done[seed]), measure(baseline[seed])) for seed in shared]
        differences = [one - other for one, other in pairs if one is not None and other is not None]
        difference, its = mean_and_interval(differences) if differences and not is_baseline else (None, None)
        found[name] = {"mean": mean, "interval": interval, "difference": difference, "difference_interval": its}
    rates = [(done[seed].tokens_per_second, baseline[seed].tokens_per_second) for seed in shared]
    ratios = [one / other for one, other in rates if one and other]
    found["relative_speed"] = statistics.fmean(ratios) if ratios else None
    return found


def _test_score(name: str) -> Callable[[Result], float | None]:
    return lambda result: result.test.get(name)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of a budget as a Markdown table."""
    tests = sorted({name for row in rows for name in row if name.endswith(" BLEU")})
    header = ["variant", "seeds", "BLEU", "±", "difference", "±", "nll", "difference", "tokens/s"]
    for name in tests:
        header += [name, "±", "difference", "±"]
    lines = [header, ["---"] + ["--:"] * (len(header) - 1)]
    for row in rows:
        done, wanted = len(row["seeds"]), row["wanted"]
        if done:
            cells = [row["variant"], str(done) if done == wanted else f"{done} of {wanted}", *_cells(row["bleu"], 2)]
            cells += [_number(row["nll"]["mean"], 4), _number(row["nll"]["difference"], 4, "+")]
            cells.append(_number(row["relative_speed"], 2))
            for name in tests:
                cells += _cells(row[name], 2) if name in row else ["-"] * 4
            lines.append(cells)
        for seed, error in row["failed"].items():
            told = f"{row['variant']}, seed {seed}: {error.split(';')[0]}".replace("|", "\\|")
            lines.append([told, *["-"] * (len(header) - 1)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(found: dict[str, float | None], digits: int) -> Iterator[str]:
    """The cells of a measure: mean, its interval, difference, its interval."""
    yield _number(found["mean"], digits)
    yield _number(found["interval"], digits)
    yield _number(found["difference"], digits, "+")
    yield _number(found["difference_interval"], digits)


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def report(study: Study, runs: Sequence[Run], file: Path | None) -> None:
    """Print the tables of all budgets; with file, write them and the results of all runs there as JSON."""
    changed = [run for run in runs if read_record(run) and not current_record(run)]
    if changed:
        tell(f"not in the table, since trained with other settings: {'; '.join(map(str, changed))}")
    budgets = {}
    for budget in study.budgets:
        rows = budgets[budget] = rows_of(study, runs, budget)
        if rows:
            print(f"Budget {budget}:\n\n{table(rows)}")
    if file is None:
        return
    known = []
    for run in runs:
        if record := current_record(run):
            about = {"variant": run.variant, "budget": run.budget, "seed": run.seed, "settings": run.settings[:-1]}
            result = read_result(run)
            state = {"state": record["state"], "error": record["error"]}
            known.append({**about, **state, "result": result.as_json() if result else None})
    write_file(file, (json_text({"budgets": budgets, "runs": known}, indent=1) + "\n").encode())


# The command line.


def main() -> None:
    """Train what is missing, then print the tables."""
    arguments = parsed()
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    try:
        study = read_study(arguments.study)
        runs = runs_of(study, arguments.folder, arguments.settings)
        if not arguments.table:
            conduct(arguments, [run for run in runs if _is_chosen(run, arguments)])
        report(study, runs, arguments.json)
    except MtkitError as error:
        sys.exit("\n".join(f"study: error: {line}" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        tell("stopped; the same command goes on from here")
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def conduct(arguments: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Train the runs that are not done, then, with --test, score them on the test sets."""
    missing = [run for run in runs if not is_done(run)]
    tell(f"{len(runs)} runs, {len(runs) - len(missing)} of them done; {arguments.jobs} at a time")
    trainings = Trainings(arguments.folder, arguments.jobs)
    trainings.each(lambda trainings, run, core: train(trainings, run, core, len(missing)), missing)
    if arguments.test:
        trained = [run for run in runs if current_record(run).get("state") == TRAINED and run.config.data.test]
        trainings.each(evaluate, trained)


def _is_chosen(run: Run, arguments: argparse.Namespace) -> bool:
    is_named = not arguments.only or any(fnmatchcase(run.variant, pattern) for pattern in arguments.only)
    return is_named and (not arguments.budget or run.budget in arguments.budget)


def _count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not (number := whole_number(text)):
        raise argparse.ArgumentTypeError(f"found {text}, wants a whole number, at least 1")
    return number


def parsed() -> argparse.Namespace:
    """The command-line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of all runs")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the run directories")
    parser.add_argument(
        "--jobs", type=_count, metavar="N", default=len(allowed_cores()), help="trainings at a time; default: cores"
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="train only these variants, such as 'muon*'")
    parser.add_argument("--budget", action="append", metavar="NAME", help="train only with this budget")
    parser.add_argument("--test", action="store_true", help="also score the models on the test sets")
    parser.add_argument("--table", action="store_true", help="train nothing; print the tables of what is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results there")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
