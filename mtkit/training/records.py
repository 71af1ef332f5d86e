"""What a run writes besides checkpoints: its log, validation scores, identity, changes of settings, and its bundle.

The log goes to log.jsonl, TensorBoard and stderr. Validation measures the loss, and the BLEU and chrF of greedy
translations; a language model makes no translations, so it has only the loss. The identity of a run is its settings and
checksums. Before a run resumes from a checkpoint, its identity is compared with the identity in the checkpoint: some
settings may have changed, others only with --change, and the rest must be the same.
"""

import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mtkit import __version__
from mtkit.bundle.bundle import (
    DESCRIPTION,
    add_shortlist,
    bundle_at,
    is_packed,
    no_model,
    open_bundle,
    read_scores,
    save_bundle,
    save_scores,
)
from mtkit.bundle.info import card_text, shortlist_text, weights_text
from mtkit.bundle.opening import (
    RACE,
    TRAINED,
    Change,
    Progress,
    Snapshot,
    averaged_steps,
    best_step,
    has_model,
    is_checkpoint,
    mean_weights,
    read_progress_at,
    read_snapshot,
    readable_steps,
    retried,
    run_config,
    run_tokenizer,
    start_checksum,
    step_directory,
    training_of,
    weights_of,
)
from mtkit.config.section import Section
from mtkit.config.settings import Config, config_text
from mtkit.config.training_settings import ENDING, DecodingConfig, TrainingConfig, settled
from mtkit.data.batches import Batch, EarlierBudget, Ragged, batching_of, padded_batch, plan_batches, ragged
from mtkit.data.corpus import Corpus, is_proportional, read_validation_text, validation_checksum
from mtkit.errors import (
    CheckpointError,
    DataError,
    Meter,
    MtkitError,
    bar_size,
    counted,
    duration,
    is_shown,
    on_terminal,
    say,
    whole_number,
)
from mtkit.files import Stop, json_text, standing, write_file
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import return_freed_memory
from mtkit.text.tokenizer import Tokenizer, bundled_settings
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.optimizers import Ending, decay_start, expected_steps, has_reached_target, saves_at
from mtkit.training.update import cross_entropy
from mtkit.translation.scores import tokenizer_of, unspaced, validation_score
from mtkit.translation.shortlist import Shortlist, count_shortlist
from mtkit.translation.stream import make_canaries
from mtkit.translation.translator import Translator, translator_of

# For each event in CURVES, TensorBoard draws those values that are numbers, each as a curve called EVENT/NAME. Values
# whose names are in NOT_DRAWN are not drawn.
CURVES = {"train", "validation", "average"}
NOT_DRAWN = {"epoch", "best", "better", "steps", "seconds", "minutes"}


def require_tensorboard() -> None:
    """Raise MtkitError if the package tensorboard is not installed; the message says how to install the package."""
    if find_spec("tensorboard") is None:
        raise MtkitError(
            "training.tensorboard wants the package tensorboard, which is not installed; install it with "
            "pip install 'mtkit[tensorboard]', or leave the setting out"
        )


class Board:
    """Writes the events of a training log for TensorBoard."""

    def __init__(self, directory: Path, step: int) -> None:
        """Open the files for TensorBoard in `directory`.

        If an earlier process drew values for steps after `step`, these values are hidden, since training will reach the
        same steps again and draw new values.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        self._writer = SummaryWriter(str(directory), purge_step=step + 1)
        self._num_samples: dict[int, int] = {}

    def draw(self, event: str, values: dict[str, object]) -> None:
        """Draw the values of an event: as curves if `event` is in `CURVES`, as text if it is "sample", else not at all.

        `values` are what the log records of the event, by name: {"step": 100, "loss": 5.2}, for example.
        """
        step = values.get("step", 0)
        if event == "average":
            assert isinstance(values["steps"], list)
            step = values["steps"][-1]
        assert isinstance(step, int)
        if event == "sample":
            # The samples of each step are numbered 1, 2, 3, in the order of the log.
            number = self._num_samples.get(step, 0) + 1
            self._num_samples = {step: number}
            text = "\n".join(f"    {values[name]}" for name in ("source", "hypothesis", "reference"))
            self._writer.add_text(f"sample/{number}", text, step)
        elif event in CURVES:
            for name, value in values.items():
                if name not in {"step", *NOT_DRAWN} and isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(f"{event}/{name}", value, step)
        self._writer.flush()  # so that a kill loses no event that is in log.jsonl

    def close(self) -> None:
        """Close the files; `draw` must not be called afterwards."""
        with suppress(OSError):  # draw has flushed each event and raised any error
            self._writer.close()


# log.jsonl.


class Log:
    """Writes events to log.jsonl, one JSON object per line, and, if there is a board, to TensorBoard."""

    def __init__(self, path: Path, length: int, board: Board | None = None) -> None:
        """Cut the log file to `length` bytes, then open the file for appending.

        When training resumes, `length` is the length that the log had when the checkpoint was written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._board = board
        self._file = path.open("ab", buffering=0)
        self.length = min(length, self._file.tell())  # of the file, in bytes
        self._file.truncate(self.length)

    def write(self, event: str, **values: object) -> None:
        """Append an event with its values. Raises CheckpointError if the event cannot be written.

        Infinite values and NaN are written as null, since JSON has no such numbers.
        """
        line = json_text({"event": event, **values})
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            written = self._file.write(data)
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be written: {error.strerror}; {REMEDY}") from None
        if written != len(data):
            raise CheckpointError(f"{self._path}: cannot be written: the disk is full; {REMEDY}")
        self.length += len(data)
        if self._board:
            try:
                self._board.draw(event, values)
            except OSError as error:
                where = self._board.directory
                raise CheckpointError(f"{where}: cannot be written: {error.strerror}; {REMEDY}") from None

    def close(self) -> None:
        """Close the log and its board; `write` must not be called afterwards."""
        self._file.close()
        if self._board:
            self._board.close()


class NoLog(Log):
    """A log that writes nothing, for a process whose training is logged by another process."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, event: str, **values: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


REMEDY = "the checkpoints are untouched: make room and start again"


# Progress on stderr: a bar if stderr is a terminal, else lines.

LEAST_SECONDS = 5.0  # the minimum time between two lines
MOST_SECONDS = 30.0  # after this time without a line, a line is shown early


class ShownTraining:
    """Shows the progress of training on stderr: loss, learning rate, speed, and the time left.

    On a terminal, a progress bar is shown; elsewhere, a line after every `training.log_every` updates. A line that
    comes less than `LEAST_SECONDS` after another line is left out, unless a validation or the end of training comes
    next. If `training.log_every` updates take longer than `MOST_SECONDS`, an additional line is shown after
    `MOST_SECONDS`.
    """

    def __init__(self, progress: Progress, settings: TrainingConfig) -> None:
        self._progress = progress
        self._settings = settings
        self._told: float | None = None  # the time when the last line was printed; None before the first
        self._begun = monotonic()
        self._left_out: str | None = None  # the newest line, if it was not printed because it came too soon
        self._has_lines = is_shown() and not on_terminal()
        columns, rows = bar_size()
        self._bar = tqdm(
            total=settled(settings.max_steps),
            initial=progress.step,
            unit="step",
            disable=not is_shown() or self._has_lines,
            smoothing=0.05,
            ncols=columns,
            nrows=rows,
        )

    def close(self) -> None:
        """Close the bar; print the newest line if it was left out."""
        self._bar.close()
        self.catch_up()

    def catch_up(self) -> None:
        """Print the newest line if it was left out. To be called before a validation and at the end."""
        if self._left_out is not None:
            say(self._left_out)
            self._left_out = None

    def update(self) -> None:
        """Advance the bar by one update."""
        self._bar.update()

    @property
    def is_overdue(self) -> bool:
        """Whether a line should be shown before `training.log_every` updates are done.

        A line is overdue once `MOST_SECONDS` have passed without a line, a log entry or a validation.
        """
        progress = self._progress
        is_long_ago = monotonic() - (self._told or self._begun) >= MOST_SECONDS
        return self._has_lines and is_long_ago and progress.seconds - progress.window.since >= MOST_SECONDS

    def tell(self, epochs: float, record: dict[str, float]) -> None:
        """Show how far training has come, the time left, and the loss, learning rate and speed in `record`.

        `epochs` is the number of epochs so far; `record` is a result of `Window.record` for the latest updates.
        """
        expected = expected_steps(self._progress, self._settings)
        if not self._has_lines:
            self._bar.set_postfix_str(f"epoch {epochs:.1f}, {_figures(record)}")
            self._bar.total = expected
            return
        line = f"{self._place(expected)}, epoch {epochs:.1f}: {_figures(record)}; {self._time(expected)}"
        now = monotonic()
        if self._told is not None and now - self._told < LEAST_SECONDS:
            self._left_out = line
            return
        self._told, self._left_out = now, None
        say(line)

    def _place(self, expected: int) -> str:
        about = "about " if expected != settled(self._settings.max_steps) else ""
        return f"step {self._progress.step:,} of {about}{expected:,}"

    def _time(self, expected: int) -> str:
        progress, most = self._progress, self._settings.max_minutes
        limit = "" if most is None else f" of {most:g}"
        left = max(0.0, (expected - progress.step) * progress.seconds / progress.step)
        if most is not None:
            left = min(left, max(0.0, 60 * most - progress.seconds))
        return f"{progress.seconds / 60:.1f}{limit} minutes, {duration(left)} left"


def _figures(record: dict[str, float]) -> str:
    return f"loss {record['loss']:.3f}, lr {record['lr']:.2e}, {record['tokens_per_second']:,.0f} tokens/s"


# Validation.

# The settings of decoding in validations, whatever decoding settings the run has.
GREEDY: dict[str, Any] = {"beam_size": 1}
MASK_PREDICT: dict[str, Any] = {"method": "mask_predict", "iterations": 4, "length_candidates": 1}

TIMED_BATCHES, TIMED_LINES = 4, 64  # how many batches and lines are timed, at most, to estimate a validation's time


class Validation:
    """The validation data: batches of sentence pairs for the loss, and lines to translate and score."""

    def __init__(
        self, config: Config, sources: list[str], references: list[str], batches: list[tuple[Ragged, Ragged]]
    ) -> None:
        self.config = config
        self.sources = sources
        self.references = references
        self.batches = batches

    @staticmethod
    def prepare(config: Config, tokenizer: Tokenizer, sources: list[str], references: list[str]) -> "Validation":
        """Returns the validation data: encodes all pairs for the loss, and takes the first lines to translate.

        Pairs that are blank or longer than `data.max_length` are left out of the loss, as in training, and their number
        is reported. Raises DataError if no pair remains. The lines are the first `training.validation_sentences` of
        `sources`. For a language model, a pair needs only a reference, and there are no lines to translate.
        """
        has_source = config.task == "translation"
        encoded = zip(tokenizer.encode_source(sources), tokenizer.encode_target(references), strict=True)
        is_blank = [
            not ((source.strip() or not has_source) and reference.strip())
            for source, reference in zip(sources, references, strict=True)
        ]
        most = config.data.max_length
        pairs: list[tuple[list[int], list[int]]] = []
        left_out: Counter[str] = Counter()
        for (source, target), blank in zip(encoded, is_blank, strict=True):
            if blank or (not source and has_source) or not target:
                left_out["blank"] += 1
            elif max(len(source), len(target)) > most:
                left_out["too long"] += 1
            else:
                pairs.append((source, target))
        _report_left_out(config, len(pairs), left_out)
        if has_source:
            _warn_of_unspaced(config, references)
        batches: list[tuple[Ragged, Ragged]] = []
        lengths = [np.array([len(side) + 1 for side in sides]) for sides in zip(*pairs, strict=True)]
        tokens = max(config.known_batch_tokens, most + 1)
        plan = plan_batches(lengths[0], lengths[1], tokens, np.random.default_rng(0))
        for b in range(len(plan)):
            chosen = [pairs[i] for i in plan.batch(b).pairs]
            batches.append((ragged([s for s, _ in chosen]), ragged([t for _, t in chosen])))
        most_lines = config.training.validation_sentences if has_source else 0
        # Greedy search, or a few iterations of mask-predict for the likeliest length. Translations may not be much
        # longer than the source, since early in training a model may fail to end its translations.
        search = MASK_PREDICT if config.decoding.method == "mask_predict" else GREEDY
        decoding = DecodingConfig(
            **search, max_length_ratio=1.5, max_length_extra=10, batch_tokens=config.decoding.batch_tokens
        )
        greedy = config.model_copy(update={"decoding": decoding})
        return Validation(greedy, sources[:most_lines], references[:most_lines], batches)

    def measure(
        self, model: TranslationModel, tokenizer: Tokenizer, stop: Stop, ranks: Ranks = ALONE
    ) -> tuple[dict[str, float], list[str]]:
        """Validate the model; returns the results by name, and the model's translations of the sources.

        The result "loss" includes label smoothing, as in training; "nll" does not. Both are in nats per token. The
        result "perplexity" is exp(nll); "bleu" and "chrf" are the scores of the translations; for a language model,
        these two are missing. The ranks divide the work among themselves, and all ranks return the same results. Raises
        StoppedError if `stop` says that training must stop.
        """
        model.eval()
        return_freed_memory()  # otherwise the searches would take more memory instead of what the updates have freed
        try:
            with Meter("validating", "sentences", len(self.sources), announced=model.reads_source) as meter:
                own = slice(ranks.rank, None, ranks.count)
                batches = [padded_batch(source, target, model.boundaries) for source, target in self.batches[own]]
                of_batches = [self._sums(model, batch, stop).tolist() for batch in batches]
                of_lines = self._translate(model, tokenizer, self.sources[own], stop, meter)
                losses, lines = map(_in_turn, zip(*ranks.gather([of_batches, of_lines]), strict=True))
                meter.add(len(lines) - meter.done)
        finally:
            model.train()
            return_freed_memory()
        translations = [text for text, _ in lines]
        notes = Counter(note for _, notes in lines for note in notes)
        for note, number in notes.items():
            say(f"mtkit: warning: validation: {number:,} of {counted(len(translations), 'line')}, each of which {note}")
        sums = sum((torch.tensor(each, dtype=torch.float64) for each in losses), torch.zeros(2, dtype=torch.float64))
        loss, nll = sums / sum(int(target.lengths.sum()) + len(target.lengths) for _, target in self.batches)
        measured = {"loss": float(loss), "nll": float(nll), "perplexity": float(nll.exp())}
        if ranks.is_first:
            for metric in ("bleu", "chrf") if model.reads_source else ():
                language = self.config.languages.target
                measured[metric] = validation_score(translations, self.references, metric, language)
        return ranks.of_first(measured), translations

    def expected_seconds(self, model: TranslationModel, tokenizer: Tokenizer, stop: Stop) -> float:
        """Returns an estimate of how many seconds a validation takes.

        A few batches and lines, spread over the text, are timed. Translations by an untrained model are as long as the
        length limit allows, so the time for translating is scaled down to the length of the references.
        """
        model.eval()
        try:
            begun = time.monotonic()
            batches = self.batches[:: -(-len(self.batches) // TIMED_BATCHES)]
            for source, target in batches:
                self._sums(model, padded_batch(source, target, model.boundaries), stop)
            losses = (time.monotonic() - begun) * len(self.batches) / len(batches)
            if not self.sources:  # a language model translates nothing
                return losses
            begun, stride = time.monotonic(), -(-len(self.sources) // TIMED_LINES)
            lines, references = self.sources[::stride], self.references[::stride]
            length = 0
            for line in Translator(model, tokenizer, self.config).translate_lines(lines):
                stop.check()
                length += len(line.text)
            searching = (time.monotonic() - begun) * len(self.sources) / len(lines)
        finally:
            model.train()
        return losses + searching * min(1.0, sum(map(len, references)) / max(length, 1))

    def _translate(
        self, model: TranslationModel, tokenizer: Tokenizer, sources: list[str], stop: Stop, meter: Meter
    ) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the translation of each source, with notes on problems; [] for a language model.

        `meter` counts the sentences that are done. Raises StoppedError if `stop` says that training must stop.
        """
        if not model.reads_source:
            return []

        def done(count: int) -> None:
            stop.check()
            meter.add(count)

        lines = Translator(model, tokenizer, self.config).translate_lines(sources, done=done)
        return [(line.text, line.notes) for line in lines]

    @torch.no_grad()
    def _sums(self, model: TranslationModel, batch: Batch, stop: Stop) -> Tensor:
        """Returns the loss and the negative log-likelihood, summed over the target tokens of a batch: (2,) in fp64."""
        stop.check()
        batch = batch.to(model.device)
        return cross_entropy(model, batch, self.config.training).sums.cpu().double()


def _in_turn(shares: Sequence[list[Any]]) -> list[Any]:
    """Returns the items of several lists in turn: the first item of each list, then the second, and so on."""
    return [item for items in zip_longest(*shares) for item in items if item is not None]


def _report_left_out(config: Config, num_kept: int, left_out: Counter[str]) -> None:
    """Report how many pairs are left out of the loss, and why. Raises DataError if no pair is kept.

    `left_out` has the number of pairs for each reason, such as "too long".
    """
    num_pairs = num_kept + left_out.total()
    counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    limit = f"data.max_length is {counted(config.data.max_length, 'token')}"
    if not num_kept:
        files = ", ".join(str(path) for corpus in config.data.valid for path in corpus.paths) or "data.valid"
        raise DataError(
            f"{files}: none of the validation pairs can be used ({counts or 'there are none'}; "
            f"{limit}); checkpoints could not be told apart. Give data.valid other text, or raise data.max_length"
        )
    if left_out:
        say(f"validation: {left_out.total():,} of {num_pairs:,} pairs are left out of its loss: {counts} ({limit})")


def _warn_of_unspaced(config: Config, references: list[str]) -> None:
    """Warn if the references have no spaces between words although the tokenizer of BLEU needs such spaces."""
    tokenizer = tokenizer_of(config.languages.target)
    if found := unspaced(references, tokenizer):
        by_bleu = config.training.select_by == "bleu"
        advice = found.advice("let training.select_by: chrf choose the checkpoints" if by_bleu else "go by chrF")
        say(
            f"mtkit: warning: validation: {found.script} text has no spaces between words, and BLEU's tokenizer "
            f"{tokenizer} takes whole phrases for words, so BLEU tells little; {advice}"
        )


def best_logged(
    path: Path, progress: Progress, settings: TrainingConfig, steps: Container[int]
) -> tuple[int, float, int] | None:
    """Returns the step in `steps` with the best logged score, that score, and the number of later validations.

    `path` is the log file, of which the first `progress.log_bytes` bytes count. The scores are results of
    `selection_score`: BLEU, chrF or the negative loss of a validation, as the settings say; higher is better. Returns
    `None` if the log is damaged or missing, lacks such scores, or has no validation at any of `steps`.
    """
    try:
        data = path.read_bytes()[: progress.log_bytes]
        # Bytes are split, not str, since samples may have U+2028 or other characters at which str.splitlines splits.
        events = [event for event in map(json.loads, data.splitlines()) if event["event"] == "validation"]
        scores = {
            event["step"]: selection_score({name: math.nan if v is None else v for name, v in event.items()}, settings)
            for event in events
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    known = [step for step in scores if step in steps]
    if not known:
        return None
    best = max(known, key=lambda step: (scores[step], -step))
    return best, scores[best], sum(step > best for step in scores)


def selection_score(measured: dict[str, float], settings: TrainingConfig) -> float:
    """Returns the score by which checkpoints are compared; higher is better.

    The score is the result in `measured` that the setting `select_by` names, "bleu" or "chrf". If the setting is
    "loss", the score is the result "nll" with its sign changed. Returns -inf if the score is not finite.
    """
    value = -measured["nll"] if settings.select_by == "loss" else measured[settings.select_by]
    return value if math.isfinite(value) else float("-inf")


def measures_text(measured: dict[str, float]) -> str:
    """Returns the results of a validation as one line of text."""
    names = {"bleu": "BLEU", "chrf": "chrF"}
    scores = "".join(f", {shown} {measured[name]:.2f}" for name, shown in names.items() if name in measured)
    return f"loss {measured['loss']:.4f}, nll {measured['nll']:.4f} (perplexity {measured['perplexity']:.2f}){scores}"


# Identity, changes, facts, and the bundle of a run.

# Training settings that are not part of the identity, since neither the weights nor the choice of a checkpoint depends
# on them. Compiled layers only round matrix products differently and draw other random numbers for dropout, as another
# device does.
UNNOTED = {"start_from", "max_minutes", "patience", "target_score", "max_skipped"}
UNNOTED |= {"log_every", "tensorboard", "keep_checkpoints", "recompute", "compile"}
UNNOTED |= {"guided_alignment"}  # a path; the file may be moved, and its content is in the checksum of the data

# If a setting in MEASURES changes, the scores of earlier and later checkpoints cannot be compared. If a setting in
# VALIDATES changes, validations have other results or come at other times. Settings in FREE may change without
# --change, since the weights do not depend on them. With the schedule "plateau", however, validations lower the
# learning rate, so that the settings in VALIDATES are not free.
MEASURES = {"validation", "training.validation_sentences", "training.select_by"}
VALIDATES = {*MEASURES, "training.validate_every"}
FREE = {*VALIDATES, "training.save_every", "training.average_checkpoints"}


@dataclass(frozen=True)
class Difference:
    """A setting or a checksum that has changed, with the old and the new value."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Returns text for messages: a setting with both values, or the name of the data whose checksum changed."""
        if "." in self.name:
            return f"{self.name} was {self.before}, is {self.after}"
        named = {
            "validation": "the validation text (data.valid)",
            "data": "the training text (data.train) or its alignments (training.guided_alignment)",
        }
        return named.get(self.name, f"the {self.name}")


@dataclass(frozen=True)
class Changes:
    """All that has changed since a checkpoint was written, grouped by whether training may resume nevertheless."""

    free: list[Difference]  # always allowed, since the weights do not depend on them
    asked: list[Difference]  # allowed only with --change, since later weights depend on them
    fixed: list[Difference]  # never allowed

    @property
    def all(self) -> list[Difference]:
        """All differences: `fixed` (never allowed), then `asked` (allowed with --change), then `free` (allowed)."""
        return [*self.fixed, *self.asked, *self.free]


def identity_of(config: Config, data: str, tokenizer: str, validation: str, started_from: str | None) -> dict[str, Any]:
    """Returns the identity of a run: settings and checksums to compare with a checkpoint before the run resumes.

    `data`, `tokenizer` and `validation` are checksums. `started_from` is the checksum of the weights that training
    started from; `None` if the weights were random.
    """
    schedule = config.training.schedule
    without_effect = {"max_steps": schedule not in ENDING, "decay_steps": schedule != "wsd"}
    free = UNNOTED | {name for name, has_none in without_effect.items() if has_none}
    return {
        "data": data,
        "tokenizer": tokenizer,
        "validation": validation,
        "model": config.model.model_dump(mode="json"),
        "training": {
            # A checksum instead of the path, since the model may be moved.
            "start_from": started_from,
            **{k: v for k, v in config.training.model_dump(mode="json").items() if k not in free},
        },
        **_mixing(config),
    }


# Training settings that the finished model does not depend on. The setting guided_alignment is only a path; the content
# of the file is in the checksum of the data.
WITHOUT_EFFECT = {"start_from", "log_every", "tensorboard", "keep_checkpoints", "recompute", "compile"}
WITHOUT_EFFECT |= {"guided_alignment"}


def completion_of(config: Config, data: str, validation: str, started_from: str | None) -> dict[str, Any]:
    """Returns the settings and checksums that a finished model depends on.

    As long as none of them changes, training again would give the same model. `data` and `validation` are checksums.
    `started_from` is the checksum of the weights that training started from; `None` if the weights were random.
    """
    return {
        **({"start_from": started_from} if started_from else {}),
        "model": config.model.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "data": data,
        "validation": validation,
        **_mixing(config),
    }


def with_defaults(saved: dict[str, Any], now: dict[str, Any], config: Config) -> dict[str, Any]:
    """Returns `saved`, a stored result of `identity_of` or `completion_of`, with defaults for missing settings.

    If an earlier version of mtkit wrote `saved`, it may lack newer settings of the model or of training. `now` is the
    result of the same function for `config`. Settings that are in `now`, but not in `saved`, get their default values.
    """
    return _filled(saved, now, {"model": _defaults(config.model), "training": _defaults(config.training)})


def changes_since(found: dict[str, Any], now: dict[str, Any], config: Config, step: int) -> Changes:
    """Returns the differences between `found`, the identity in a checkpoint, and `now`, the present identity.

    `step` is the step of the checkpoint. The differences are grouped by whether training may resume. If an earlier
    version of mtkit wrote the checkpoint, `found` may lack some entries: a missing setting counts as having had its
    default, and a missing checksum of the validation text counts as unchanged.
    """
    had_max_steps = "max_steps" in found["training"]
    found = {"validation": now["validation"], **with_defaults(found, now, config)}
    # Unless both the earlier and the current schedule end at max_steps, max_steps may change freely.
    if not had_max_steps or "max_steps" not in now["training"]:
        found["training"] = {**found["training"], "max_steps": now["training"].get("max_steps")}
    if "decay_steps" not in now["training"]:
        found["training"].pop("decay_steps", None)
    free = FREE - (VALIDATES if "plateau" in (found["training"]["schedule"], config.training.schedule) else set())
    if all(_is_stable(step, each) for each in (config.training, config.training.model_copy(update=found["training"]))):
        free |= {"training.max_steps", "training.decay_steps"}
    changes = Changes([], [], [])
    for difference in differences(found, now):
        if difference.name in free:
            changes.free.append(difference)
        elif difference.name in VALIDATES or _may_be_asked_for(difference.name):
            changes.asked.append(difference)
        else:
            changes.fixed.append(difference)
    return changes


def _is_stable(step: int, settings: TrainingConfig) -> bool:
    """Whether the schedule is wsd and its decay has not begun at `step`.

    If so, no learning rate up to `step` depended on when the decay begins or ends.
    """
    return settings.schedule == "wsd" and step <= decay_start(settings)


def _may_be_asked_for(name: str) -> bool:
    """Whether the option --change allows a setting to change when training resumes.

    --change allows all training settings except `start_from` and `seed`, and all dropout rates of the model. Other
    settings must not change, since the weights must still fit and the order of the sentence pairs must stay the same.
    """
    if name.startswith("training."):
        return name not in ("training.start_from", "training.seed")
    return name.startswith("model.") and name.endswith("dropout")


def _filled(saved: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns `saved` with an entry from `defaults` for each key that is in `now`, but not in `saved`.

    Missing keys of nested dicts are added in the same way.
    """
    filled = {key: default for key, default in defaults.items() if key in now} | saved
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled.get(key), dict):
            filled[key] = _filled(filled[key], now[key], default)
    return filled


def _defaults(section: Section) -> dict[str, Any]:
    """Returns the defaults of the settings of a section; a nested section gets the defaults of its own class."""
    inside = {name: _defaults(value) for name, value in section if isinstance(value, Section)}
    return type(section)().model_dump(mode="json") | inside


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Yields a Difference for each setting or checksum whose values in `old` and `new` differ, also in nested dicts.

    A missing value counts as `None`. The name of a value in a nested dict is like "training.seed"; every name begins
    with `prefix`.
    """
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield Difference(f"{prefix}{key}", before, after)


def _mixing(config: Config) -> dict[str, Any]:
    """Returns a dict whose key "mixing" holds the weights of the corpora and the sampling temperature.

    The dict is empty if every sentence pair occurs exactly once in an epoch.
    """
    weights = [text.weight for text in config.data.train]
    if is_proportional(weights, config.data.temperature):
        return {}
    return {"mixing": {"weights": weights, "temperature": config.data.temperature}}


# Changes of settings during a run, in the order of their steps.


def require_allowed(changes: Changes, run: Path, step: int, are_asked_for: bool) -> None:
    """Raise CheckpointError if one of the changes is not allowed.

    Changes that need the option --change are allowed only if `are_asked_for` is true. The message names `run`, and
    `step`, the step of the checkpoint.
    """
    told = "; ".join(map(str, changes.all))
    if changes.fixed:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,}, since these changed: {told}. Change them back, give the run "
            f"another name (training.start_from={run} starts it from these weights), or start anew with --fresh"
        )
    if changes.asked and not are_asked_for:
        raise CheckpointError(
            f"{run}: cannot go on from step {step:,} with other settings unless that is asked for; these changed: "
            f"{told}. Change them back, add --change to go on with them, give the run another name, or start anew with "
            "--fresh"
        )


def with_changes(chain: Sequence[Change], step: int, pairs: int, differences: Sequence[Difference]) -> list[Change]:
    """Returns `chain`, the list of changes of a run, extended by the `differences` found at `step`.

    `pairs` is the number of sentence pairs trained on up to `step`. If a setting changed twice at `step`, its first and
    its last value are recorded; if the first and the last value are equal, nothing is recorded.
    """
    chain = list(chain)
    settings: dict[str, list[Any]] = {}
    if chain and chain[-1]["step"] == step:
        settings = dict(chain.pop()["settings"])
    for difference in differences:
        before = settings.get(difference.name, [difference.before])[0]
        settings[difference.name] = [before, difference.after]
    settings = {name: sides for name, sides in settings.items() if sides[0] != sides[1]}
    return [*chain, {"step": step, "pairs": pairs, "settings": settings}] if settings else chain


def earlier_budgets(progress: Progress, settings: TrainingConfig) -> list[EarlierBudget]:
    """Returns the earlier values of `batch_tokens` and `batching`, oldest first; `settings` has the current values.

    Each item holds one value of each of the two settings. Its field `until` is the number of sentence pairs that the
    run had trained on when one or both values were replaced.
    """
    values = {"training.batch_tokens": settled(settings.batch_tokens), "training.batching": settings.batching}
    budgets = []
    for change in reversed(progress.changes):
        changed = {name: sides[0] for name, sides in change["settings"].items() if name in values}
        if changed:
            values |= changed
            tokens, batching = values.values()
            budgets.append(EarlierBudget(change["pairs"], int(tokens), batching_of(str(batching), progress.order)))
    return budgets[::-1]


# What training writes besides checkpoints and log: config.yaml, run.json, the bundle, and trained.json at the end.


def write_facts(
    config: Config,
    corpus: Corpus,
    model: TranslationModel,
    progress: Progress,
    started_from: str | None,
    num_devices: int = 1,
    batch_tokens: int = 0,
) -> dict[str, Any]:
    """Write config.yaml, and run.json with versions, device, command, data and more; returns the content of run.json.

    `started_from` is the checksum of the weights that training started from; `None` if the weights were random.
    `batch_tokens` is the number that replaces "auto" if `config` has "auto" for `batch_tokens`.
    """
    facts = {
        "mtkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        **({"devices": num_devices} if num_devices > 1 else {}),
        "threads": torch.get_num_threads(),
        "precision": progress.precision,
        "start_from": started_from,
        **({"batch_tokens": batch_tokens} if config.training.batch_tokens == "auto" else {}),
        **({"changes": progress.changes} if progress.changes else {}),
        **({"plan": progress.plan} if progress.plan else {}),
        **({"ending": progress.ending} if progress.ending else {}),
        "parameters": model.num_parameters,
        "command": sys.argv,
        "data": facts_of(corpus, started_from),
    }
    write_file(config.run_path / "config.yaml", config_text(config).encode())
    _write_json(config.run_path / "run.json", facts)
    return facts


def facts_of(corpus: Corpus, started_from: str | None) -> dict[str, Any]:
    """Returns the description of the training data that is stored in run.json and in the bundle.

    `started_from` is the checksum of the weights that training started from; `None` if the weights were random. If
    training started from the weights of another model, "length_limit", the limit for the length of translations, is
    left out. That model may have learnt from longer sentences than the training data has, and the new model inherits
    this.
    """
    facts = corpus.facts()
    if started_from is not None:
        del facts["length_limit"]
    return facts


def write_model(
    path: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    lines: Sequence[str],
    references: Sequence[str],
    training: dict[str, Any],
    corpus: Callable[[], Corpus],
) -> None:
    """Write a bundle to `path`.

    `training` holds facts for the description of the bundle. `lines` are source sentences. Some of these sentences are
    stored in the bundle, with the model's translations of them, so that the model can be checked on other machines. If
    the settings ask for a shortlist, it is learnt from the training pairs that `corpus()` returns, and its cost in BLEU
    is measured on all `lines` with their `references`.
    """
    translator = translator_of(config, tokenizer, weights)
    shortlist = make_shortlist(translator, corpus()) if config.decoding.shortlist is not None else None
    about = {
        "mtkit": __version__,
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        "training": training,
        **({} if shortlist is None else {"shortlist": shortlist_cost(translator, shortlist, lines, references)}),
    }
    config = config.model_copy(update={"tokenizer": bundled_settings(config.tokenizer, tokenizer)})
    canaries = make_canaries(translator, lines)
    tensors = None if shortlist is None else shortlist.tensors
    save_bundle(path, weights, config, tokenizer.save, about, canaries, tensors)


def make_shortlist(translator: Translator, corpus: Corpus) -> Shortlist:
    """Returns a shortlist that is learnt from the pairs in `corpus`; raises DataError if they have no tokens."""
    say("shortlist: counting translations in the training pairs …")
    found = count_shortlist(corpus, translator.tokenizer)
    if found is None:
        raise DataError(f"{corpus.directory}: has no tokens to make a shortlist of; set decoding.shortlist to null")
    return found


def shortlist_cost(
    translator: Translator, shortlist: Shortlist, sources: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Returns figures that show what a shortlist costs in BLEU, with greedy search; {} if there are no sentences.

    The figures are the BLEU with and without the shortlist, the mean number of tokens in a sentence's shortlist, the
    setting `shortlist_size`, and the number of sentences.
    """
    if not sources:
        return {}
    config, size = translator.config, translator.config.decoding.shortlist
    greedy = DecodingConfig(beam_size=1, max_length_ratio=1.5, max_length_extra=10)
    bleu = []
    for wanted in (None, size):
        decoding = greedy.model_copy(update={"shortlist": wanted})
        searching = Translator(
            translator.model,
            translator.tokenizer,
            config.model_copy(update={"decoding": decoding}),
            shortlist=shortlist,
        )
        texts = [line.text for line in searching.translate_lines(sources)]
        bleu.append(round(validation_score(texts, references, "bleu", config.languages.target), 2))
    of_lines = translator.tokenizer.encode_source(sources)
    lists = shortlist.lists(translator.model, of_lines, (), config.decoding.shortlist_size, ())
    return {
        "bleu": bleu[1],
        "bleu_without": bleu[0],
        "tokens": round(float(lists.real.sum(1).double().mean()), 1),
        "size": config.decoding.shortlist_size,
        "sentences": len(sources),
    }


def complete_shortlist(config: Config, sources: Sequence[str], references: Sequence[str]) -> None:
    """Add the shortlist that `config` asks for to the model of a finished run, unless the model has it already.

    The shortlist is the one that training would have made; its cost in BLEU is measured on `sources` and `references`.
    The setting decoding.shortlist of the model is set to that of `config`, and the model card is written anew. Nothing
    happens if `config` asks for no shortlist.
    """
    bundle = open_bundle(config.run_path)
    size = config.decoding.shortlist
    if size is None or (bundle.config.decoding.shortlist == size and bundle.shortlist() is not None):
        return
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    decoding = bundle.config.decoding.model_copy(update={"shortlist": size})
    settings = bundle.config.model_copy(update={"decoding": decoding})
    translator = translator_of(settings, tokenizer, bundle.weights(), bundle.untrained)
    shortlist = make_shortlist(translator, Corpus.open(config.run_path / "data" / "train"))
    told = shortlist_cost(translator, shortlist, sources, references)
    add_shortlist(bundle, settings, shortlist.tensors, told)
    written = open_bundle(config.run_path)
    scores = read_scores(written)
    rows = [(each["test_set"], each["metric"], each["score"], each["signature"]) for each in scores]
    save_scores(written, scores, card_text(written, rows))
    say(f"shortlist: {bundle.path}: {shortlist_text(told)}")


def write_trained(config: Config, started_from: str | None, ending: dict[str, Any] | None = None) -> None:
    """Write trained.json, which records that training with these settings is finished.

    `started_from` is the checksum of the weights that training started from, even if the file of these weights has been
    deleted since; `None` if the weights were random. `ending` is `Progress.ending`: it describes the decay of the
    learning rate if --end-in ended the run.
    """
    noted = {"ending": ending} if ending else {}
    _write_json(config.run_path / TRAINED, {**_completion(config, started_from), **noted})


def ending_of(run: Path) -> Ending | None:
    """Returns how --end-in lowered the learning rate to end a run; `None` if it ended otherwise or has not ended."""
    ending = _trained(run).get("ending")
    return Ending(**ending) if ending else None


def nothing_to_end(run: Path) -> CheckpointError:
    """Returns the error to raise if --end-in is given for a run that has no checkpoint."""
    return CheckpointError(
        f"{run}: --end-in ends a run from its newest checkpoint, but there is none; train without it"
    )


def is_trained(config: Config) -> bool:
    """Whether training with these settings is finished and the bundle exists."""
    return has_model(config.run_path) and not changed_since_trained(config)


def changed_since_trained(config: Config) -> list[str]:
    """Returns the changes since training finished, in words; [] if training again would give the same model.

    If the model that training started from was replaced by another model, that counts as a change; if the model was
    only moved or deleted, that does not count.
    """
    found = _trained(config.run_path)
    training = found.get("training")
    if not isinstance(training, dict):
        return [f"{config.run_path / TRAINED} does not tell what it was trained with"]
    found.pop("ending", None)
    # Earlier versions recorded more settings, and the path of the model to start from, sometimes without its checksum.
    path = training.pop("start_from", None)
    found["training"] = {name: value for name, value in training.items() if name not in WITHOUT_EFFECT}
    started_from = None
    if config.training.start_from is not None:
        noted = found.get("start_from")
        started_from = start_checksum(config, noted) or noted or (None if path else "a model that is not there")
    now = _completion(config, started_from)
    found.setdefault("validation", now["validation"])
    return list(map(str, differences(with_defaults(found, now, config), now)))


def _trained(run: Path) -> dict[str, Any]:
    """Returns the content of trained.json; {} if the file is missing or damaged."""
    try:
        found = json.loads((run / TRAINED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _completion(config: Config, started_from: str | None) -> dict[str, Any]:
    data = Corpus.open(config.run_path / "data" / "train").digest
    return completion_of(config, data, validation_digest(config), started_from)


def validation_digest(config: Config) -> str:
    """Returns the checksum of the validation text, from the manifest in data/valid of the run directory.

    Returns "" if the manifest cannot be read.
    """
    try:
        manifest = json.loads((config.run_path / "data" / "valid" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return validation_checksum(manifest)


def _write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically. Raises CheckpointError if the file cannot be written."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None


# `mtkit race`: records how long training took to reach a score.

MEASURED = ("bleu", "chrf", "nll")  # measures of each validation in race.json


def write_race(config: Config, command_seconds: float) -> dict[str, Any]:
    """Write race.json, the record of a race whose training has ended; returns the record.

    A race (`mtkit race`) measures how long training takes to reach a target score. `command_seconds` is the time since
    the command started. The recorded times of training and of validation are those of the whole run up to its last
    validation, even if the run was interrupted and resumed.
    """
    run = config.run_path
    checkpoints = run / "checkpoints"
    progress = read_progress_at(step_directory(checkpoints, readable_steps(checkpoints)[-1]))
    lines = (run / "log.jsonl").read_bytes().splitlines()
    validations = [event for event in map(json.loads, lines) if event["event"] == "validation"]
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    curve, validating = [], 0.0
    for event in validations:
        seconds = round(60 * event["minutes"] - validating, 3)
        curve.append(
            {
                "step": event["step"],
                "training_seconds": seconds,
                **{name: event[name] for name in MEASURED if name in event},
            }
        )
        validating += event["seconds"]
    record = {
        "target": config.training.target_score,
        "select_by": config.training.select_by,
        "reached": has_reached_target(progress, config.training),
        "best_score": abs(progress.best_score) if progress.has_best else None,
        "best_step": progress.best_step,
        "training_seconds": curve[-1]["training_seconds"],
        "validation_seconds": round(validating, 3),
        "command_seconds": round(command_seconds, 1),
        "updates": progress.step,
        "target_tokens": progress.target_tokens,
        "processor": processor(),
        "cores": available_cores(),
        "devices": facts.get("devices", 1),
        **{name: facts[name] for name in ("device", "threads", "precision", "parameters", "machine")},
        **{name: facts[name] for name in ("mtkit", "torch", "python", "command")},
        "date": datetime.now(UTC).date().isoformat(),
        "curve": curve,
        "test": [],
        "config": config.model_dump(mode="json"),
    }
    _write_json(run / RACE, record)
    return record


def read_race(run: Path) -> dict[str, Any]:
    """Returns the record that `write_race` wrote; raises CheckpointError if race.json is damaged or missing."""
    try:
        record = json.loads((run / RACE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{run / RACE}: damaged or missing; start the race anew with --fresh") from None
    assert isinstance(record, dict)
    return record


def note_scores(run: Path, record: dict[str, Any], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Add `scores`, the scores on the test sets, to the record of a race and to race.json; returns the new record."""
    record = {**record, "test": scores}
    _write_json(run / RACE, record)
    return record


def processor() -> str:
    """Returns the model name of the CPU or, if the system does not tell the name, the kind of CPU."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = ""
    names = (line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def race_text(record: dict[str, Any], run: Path) -> str:
    """Returns one line on a race: its best score, whether that reached the target, and how long training took.

    `record` is a result of `write_race`; the line also gives the path of race.json in `run`.
    """
    score = "no score" if record["best_score"] is None else f"{record['select_by']} {record['best_score']:.2f}"
    verdict = "reached" if record["reached"] else "did not reach"
    return (
        f"{score} at step {record['best_step']:,} {verdict} the target {record['target']:g}: "
        f"{record['updates']:,} updates and {record['target_tokens']:,} target tokens in "
        f"{duration(record['training_seconds'])} of training, besides {duration(record['validation_seconds'])} of "
        f"validation; {duration(record['command_seconds'])} since the command started; {run / RACE}"
    )


# `mtkit bundle`: makes a bundle from the checkpoints of a run, which may still be training.

BEST, AVERAGE = "best", "average"  # the values of --step that are not numbers


@dataclass(frozen=True)
class Chosen:
    """The weights of one checkpoint, or the mean weights of several, and everything else that a bundle is made from."""

    steps: list[int]  # the steps of the checkpoints
    choice: str | None  # why these steps were chosen, in words; None if the user named the step
    newest: Snapshot  # the checkpoint of the last step
    weights: dict[str, Tensor]
    config: Config
    tokenizer: Tokenizer


def bundle(run: Path, wanted: str = BEST, output: Path | None = None) -> str:
    """Write a bundle from the checkpoints of a run; returns a line that says where the bundle is and what it holds.

    `wanted` is "best", "average" or a step, such as "1000". `output` is the path of the bundle, by default in the
    folder `bundles` of the run directory; all other files of the run stay unchanged. If training deletes a checkpoint
    while this function reads it, the checkpoints are chosen and read again. Raises MtkitError if the wanted checkpoint
    does not exist, or if a bundle must not be written to `output`.
    """
    _require_run(run)
    if wanted not in (BEST, AVERAGE) and whole_number(wanted) is None:
        raise MtkitError(f"--step: found {wanted}, wants a step such as 1000, best or average")
    chosen = retried(partial(_read, run, wanted))
    name = AVERAGE if wanted == AVERAGE else step_directory(Path(), chosen.steps[-1]).name
    target = output or run / "bundles" / name
    _require_free(target, run)
    config = chosen.config
    sources, references = read_validation_text(standing(run / "data" / "valid"))
    training = training_of(run, chosen.newest, chosen.steps, chosen.choice)
    most = config.training.validation_sentences
    corpus = partial(Corpus.open, standing(run / "data" / "train"))
    pairs = (sources[:most], references[:most])
    write_model(target, config, chosen.tokenizer, chosen.weights, *pairs, training, corpus)
    written = open_bundle(target)
    save_scores(written, [], card_text(written, []))
    why = f", {chosen.choice}" if chosen.choice else ""
    return f"model: {target}: {weights_text(chosen.steps, config.training)}{why}"


def _require_run(run: Path) -> None:
    if is_packed(run) or (standing(run) / DESCRIPTION).is_file():
        raise CheckpointError(f"{run}: is a bundle already; mtkit bundle wants a run directory")
    if is_checkpoint(run):
        raise CheckpointError(f"{run}: is a checkpoint; name its run directory, and the step by --step")
    if not readable_steps(run / "checkpoints"):
        if model := bundle_at(run):
            raise CheckpointError(f"{run}: has no checkpoints any more, only its finished model, {model}")
        raise no_model(run)


def _require_free(target: Path, run: Path) -> None:
    """Raise MtkitError if `target` is in a folder that training writes to, or exists already and is not a bundle."""
    if any(target.resolve().is_relative_to((run / name).resolve()) for name in ("model", "checkpoints")):
        raise MtkitError(f"{target}: is where training writes; name a folder elsewhere")
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise MtkitError(f"{target}: is there already and is no bundle; name a new folder")


def _read(run: Path, wanted: str) -> Chosen:
    """Choose the checkpoints that `wanted` asks for, and read from them what a bundle needs.

    `wanted` is "best", "average" or a step, such as "1000". Raises FileNotFoundError if training deletes a chosen
    checkpoint before it is read.
    """
    steps, choice = _choose(run, wanted)
    directories = [step_directory(run / "checkpoints", step) for step in steps]
    newest = read_snapshot(directories[-1])
    if len(steps) == 1:
        weights = weights_of(newest, directories[-1])
    else:
        weights = mean_weights(weights_of(read_snapshot(directory), directory) for directory in directories)
    tokenizer = run_tokenizer(run, directories[-1], newest.identity)
    return Chosen(steps, choice, newest, weights, run_config(run, newest.identity), tokenizer)


def _choose(run: Path, wanted: str) -> tuple[list[int], str | None]:
    """Returns the steps of the checkpoints to read, in ascending order, and the reason for this choice, in words.

    `wanted` is "best", "average" or a step, such as "1000". For a step, the reason is `None`, and CheckpointError is
    raised if there is no checkpoint of this step.
    """
    steps = readable_steps(run / "checkpoints")
    if wanted not in (BEST, AVERAGE):
        if int(wanted) not in steps:
            there = ", ".join(f"{step:,}" for step in steps)
            raise CheckpointError(f"{run}: has no checkpoint of step {int(wanted):,}; there are those of steps {there}")
        return [int(wanted)], None
    best, choice = best_step(run)
    if wanted == BEST:
        return [best], choice
    settings = run_config(run).training
    changes = read_progress_at(step_directory(run / "checkpoints", steps[-1])).changes
    scheduled = [step for step in steps if saves_at(step, settings, changes)]
    averaged = averaged_steps(scheduled, best, settings.average_checkpoints)
    return averaged, choice if len(averaged) == 1 else f"which ends at {choice}"
