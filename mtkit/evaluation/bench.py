"""`mtkit bench`: measures how fast a model translates, and how fast a configuration trains, on this machine.

`bench_translation`, `bench_latency` and `bench_training` return records, which `--json` writes; `translation_text`,
`latency_text` and `training_text` show the records as tables. Rates count tokens without padding.
"""

import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from mtkit import __version__
from mtkit.bundle.opening import FIRST_SCALE, Progress, carried_over, open_model
from mtkit.config.data_and_model_settings import MaskedConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.data.batches import Batch, Feed, Stream
from mtkit.data.corpus import Corpus, CorpusWriter
from mtkit.errors import CheckpointError, ConfigError, DataError, Meter, MtkitError, counted, is_out_of_memory, say
from mtkit.evaluation.evaluate import read_test_set
from mtkit.exchange.engines import load
from mtkit.files import Stop, json_text, standing, undone_when_ended, write_file
from mtkit.models.interface import Ensemble
from mtkit.models.registry import (
    DTYPES,
    empty_model,
    keep_few_kernels,
    new_model,
    pick_device,
    pick_precision,
)
from mtkit.preparation.prepare import binarize, is_prepared, make_tokenizer
from mtkit.preparation.sources import SetFiles
from mtkit.text.lines import named, read_lines
from mtkit.text.parallel import with_patterns_expanded
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import NUM_SPECIAL, Specials
from mtkit.training.optimizers import make_average, make_optimizer
from mtkit.training.records import available_cores, processor
from mtkit.training.update import (
    LossScaler,
    TrainState,
    Updater,
    find_batch_tokens,
    forget_peak,
    peak_memory,
    with_batch_tokens,
)
from mtkit.translation.scores import corpus_scores
from mtkit.translation.translator import Translator
from mtkit.translation.workers import Opening, WorkerTranslator, with_workers, worker_devices

Record = dict[str, Any]  # what --json writes

# What `mtkit bench` and `mtkit estimate` report of the machine, and helpers for their output.


def machine_facts(device: torch.device) -> Record:
    """Returns what a measurement depends on (versions, processor, cores, threads, device), the date and the command."""
    return {
        "command": sys.argv,
        "date": datetime.now(UTC).date().isoformat(),
        "mtkit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
    }


def machine_text(record: Record) -> str:
    """Returns two lines of text on versions and machine; `record` contains the entries of `machine_facts`."""
    threads = f"{counted(record['threads'], 'thread')} on {counted(record['cores'], 'core')}"
    return (
        f"mtkit {record['mtkit']}, torch {record['torch']}, Python {record['python']}\n"
        f"{record['processor']}, {threads}; device {record['device']}\n"
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work; a CPU works synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_text(num_bytes: int | None) -> str:
    """Returns a number of bytes in megabytes, as text; "-" for `None`."""
    return "-" if num_bytes is None else f"{num_bytes / 1e6:,.0f}"


TABLE_WIDTH = 100  # columns, at most


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text in right-aligned columns.

    In a row with fewer cells than the first row, the last cell spans all remaining columns and is wrapped at
    TABLE_WIDTH.
    """
    num_columns = len(rows[0])
    whole = [row if len(row) == num_columns else [*row[:-1], *[""] * (num_columns - len(row) + 1)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = []
    for row, cells in zip(rows, whole, strict=True):
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        if len(row) < num_columns:
            indent = " " * (len(line) + 2)
            line = textwrap.fill(row[-1], TABLE_WIDTH, initial_indent=f"{line}  ", subsequent_indent=indent)
        lines.append(f"{line}\n")
    return "".join(lines)


def check_json(path: Path | None) -> None:
    """Raise MtkitError if `path`, the value of --json, does not name a file in an existing folder.

    `None` is accepted. Called before a long measurement, which would otherwise be lost.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise MtkitError(f"--json: {path}: {what}; name a file in a folder that is there")


def write_json(path: Path | None, record: Record) -> None:
    """Write a record to the file `path`, unless `path` is `None`."""
    if path is not None:
        write_file(path, f"{json_text(record, indent=1)}\n".encode())


# Translating.


@dataclass(frozen=True)
class Variant:
    """One way to translate, such as with beam size 5 in bf16.

    To compare models by another setting, add a field here, use it in `load_arguments`, and add an option to `mtkit
    bench translate`. Tables and JSON show all fields.
    """

    beam_size: int | None  # None for a model without beams
    precision: str = "fp32"
    engine: str = "torch"
    workers: int | Literal["auto"] = 1

    @property
    def num_workers(self) -> int | None:
        """The number of worker processes; `None` stands for "auto", a number that suits this machine."""
        return None if self.workers == "auto" else self.workers


def variants(*values: Sequence[Any]) -> list[Variant]:
    """Returns a Variant for each combination of values; `values` holds the values of each field, in field order."""
    return [Variant(*combination) for combination in product(*values)]


def default_beam_sizes(model: Path) -> list[int | None]:
    """Returns the beam sizes to measure if the user names none: [1, 5], or [None] for a model that has no beams."""
    is_masked = isinstance(open_model(model).config.model, MaskedConfig)
    return [None] if is_masked else [1, 5]


def load_arguments(model: Path, variant: Variant, overrides: Sequence[str]) -> Record:
    """Returns keyword arguments for `load`, to open the model for translation as `variant` says.

    `overrides` are further settings, such as decoding.length_penalty=0.6.
    """
    return {
        "path": str(model),
        "overrides": _all_settings(variant, overrides),
        "precision": variant.precision,
        "engine": variant.engine,
    }


def _all_settings(variant: Variant, overrides: Sequence[str]) -> Sequence[str]:
    return overrides if variant.beam_size is None else [*overrides, f"decoding.beam_size={variant.beam_size}"]


class Ids:
    """A tokenizer that wraps another one, and stores the ids of all text that it encodes and decodes.

    If the attribute `replays` is true, `encode_source` looks up the stored ids, and `decode_target` returns empty
    texts, so a translator with this tokenizer spends no time on tokenization. If `replays` is false, which is the
    default, text is encoded and decoded by the wrapped tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sources: dict[str, list[int]] = {}  # the ids of each text
        self.outputs: list[Sequence[int]] = []  # the ids of each translation
        self.replays = False

    def encode_source(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Returns the token ids of each source line, and stores them.

        If the attribute `replays` is true, the stored ids of the lines are returned without encoding anything; all
        lines must have been encoded before.
        """
        if not self.replays:
            self.sources.update(zip(lines, self.tokenizer.encode_source(lines, num_threads), strict=True))
        return [self.sources[line] for line in lines]

    def decode_target(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """Returns the text of each translation; empty texts if the attribute `replays` is true."""
        if self.replays:
            return [""] * len(tokens)
        self.outputs += tokens
        return self.tokenizer.decode_target(tokens, unknown_texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@contextmanager
def with_ids(translator: Translator, ids: Ids) -> Iterator[None]:
    """Context manager that makes the translator use `ids` as its tokenizer in the block."""
    vars(translator)["tokenizer"] = ids
    try:
        yield
    finally:
        translator.tokenizer = ids.tokenizer


@dataclass
class Rows:
    """A count of decoder rows: sentences times hypotheses in the batch, summed over all decoding steps."""

    number: int = 0


@contextmanager
def counting_rows(translator: Translator) -> Iterator[Rows]:
    """Context manager that counts the rows, one per hypothesis and step, that the decoder computes in the block.

    In an ensemble, only the rows of the first model are counted.
    """
    rows = Rows()
    model = translator.model.members[0] if isinstance(translator.model, Ensemble) else translator.model
    decoder = model.decoder
    assert isinstance(decoder, nn.Module)

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows.number += arguments[0].ids.numel()

    with decoder.register_forward_pre_hook(count):
        yield rows


def useful_rows(lengths: Sequence[int], num_hypotheses: int) -> int:
    """Returns the smallest number of decoder rows in which a search can find translations of these lengths.

    A row is one hypothesis in one decoding step. `lengths` holds the number of tokens of each translation, without the
    end mark. For each translation, the first step needs one row. Each later step, up to the one that predicts the end
    mark, needs `num_hypotheses` rows.
    """
    return sum(1 + num_hypotheses * length for length in lengths)


@dataclass
class _Opened:
    """A Translator without workers, with the results of its warm-up; shared by variants that differ only in workers."""

    translator: Translator
    ids: Ids
    rows: int | None  # the number that the decoder computed for all lines; None if it is not known
    texts: list[str]


@dataclass
class _Measured:
    """A variant that is being measured: its translator, its translations of the lines, and its times so far."""

    variant: Variant
    opened: _Opened
    translator: Translator  # may have workers
    texts: list[str]
    tokens: int  # their number in all translations, by the model's own tokenizer, without end marks
    text_seconds: list[float] = field(default_factory=list)  # time of each round, from lines of text to lines of text
    ids_seconds: list[float] = field(default_factory=list)  # time of each round, from ids to ids

    @property
    def has_workers(self) -> bool:
        """Whether worker processes translate; this process then does not see the token ids."""
        return isinstance(self.translator, WorkerTranslator)


def bench_translation(
    model: Path,
    source: Path,
    wanted: Sequence[Variant],
    overrides: Sequence[str] = (),
    reference: Path | None = None,
    num_lines: int = 1000,
    rounds: int = 5,
    minutes: float = 10.0,
) -> Record:
    """Measure how fast a model translates the first `num_lines` lines of `source`; returns the record.

    The measurement has three parts:

    - Warm-up: each variant translates all lines once, untimed. The rows that the decoder computes are counted. For a
      variant with workers, the rows are those of the same model when it translates in one process.
    - Up to `rounds` rounds, in which the variants take turns: each translates all lines from text to text and then, if
      it has no workers, from token ids to token ids. After `minutes` minutes, no further round begins, but there is at
      least one.
    - A fresh process for each variant, with its workers: this gives the load time, start-up time and peak memory.

    With `reference`, the record has the BLEU of each variant. If a variant is impossible, such as a precision that the
    engine lacks, its record holds only the fields of the variant and the reason, `fault`. Raises MtkitError if all
    variants are impossible, or if the model, a setting or a file is wrong.
    """
    begun = time.monotonic()
    lines, references = _read(source, reference, num_lines)
    translators, faults = _open(model, wanted, overrides)
    with ExitStack() as stack:
        working = {}  # with their workers
        for variant, translator in translators.items():
            opening = Opening(model, tuple(_all_settings(variant, overrides)), variant.precision)
            working[variant] = stack.enter_context(with_workers(translator, opening, variant.num_workers))
        alone = {_alone(variant): translator for variant, translator in translators.items()}
        num_with_workers = sum(isinstance(translator, WorkerTranslator) for translator in working.values())
        num_passes = len(alone) + (2 * rounds + 1) * len(working) + (1 - rounds) * num_with_workers
        with Meter("translating", "lines", len(lines) * num_passes) as meter:
            opened = {variant: _opened(translator, lines, meter) for variant, translator in alone.items()}
            measured = [
                _warmed_up(variant, opened[_alone(variant)], translator, lines, meter)
                for variant, translator in working.items()
            ]
            for number in range(rounds):
                if number and time.monotonic() - begun >= 60 * minutes:
                    break
                for one in measured:
                    _time(one, lines, meter)
            results = {}
            for one in measured:
                results[one.variant] = _result(one, lines, references, _fresh(model, one, overrides, lines))
                meter.add(len(lines))
    return {
        **_facts(model, measured[0].translator, source, lines),
        "rounds": len(measured[0].text_seconds),
        "variants": _in_order(wanted, results, faults),
    }


def _facts(model: Path, translator: Translator, source: Path, lines: Sequence[str]) -> Record:
    """Returns the part of a record that describes the model, the machine and the text."""
    return {
        **machine_facts(translator.model.device),
        "model": str(model),
        "architecture": translator.config.model.architecture,
        "parameters": _num_parameters(translator),
        "decoding": translator.config.decoding.model_dump(mode="json", exclude={"beam_size"}),
        "file": named(source),
        "lines": len(lines),
    }


def _in_order(
    wanted: Sequence[Variant], results: Mapping[Variant, Record], faults: Mapping[Variant, str]
) -> list[Record]:
    """Returns one record for each variant of `wanted`, in the same order.

    `results` has the records of the variants that were measured, `faults` the reasons why other variants are
    impossible. The record of an impossible variant holds the fields of the variant and, as `fault`, the reason.
    """
    return [results.get(variant) or {**asdict(variant), "fault": faults[variant]} for variant in wanted]


def _alone(variant: Variant) -> Variant:
    """Returns a copy of the variant that translates in one process (`workers=1`), with the same model and search."""
    return replace(variant, workers=1)


def _open(
    model: Path, wanted: Sequence[Variant], overrides: Sequence[str]
) -> tuple[dict[Variant, Translator], dict[Variant, str]]:
    """Returns a Translator without workers for each possible variant and, for each impossible variant, the reason.

    Variants that differ only in workers share a Translator. Raises MtkitError if all variants are impossible, or if the
    model or a setting is wrong.
    """
    loaded: dict[Variant, Translator | str] = {}  # by variant without workers; a str is why the variant is impossible
    translators, faults = {}, {}
    for variant in wanted:
        alone = _alone(variant)
        if alone not in loaded:
            try:
                loaded[alone] = load(**load_arguments(model, variant, overrides))
            except (CheckpointError, ConfigError, DataError):  # wrong with every variant
                raise
            except MtkitError as error:
                loaded[alone] = str(error)
        found = loaded[alone]
        if isinstance(found, str):
            faults[variant] = found
        elif found.engine is not None and variant.workers not in (1, "auto"):
            faults[variant] = f"workers {variant.workers}: CTranslate2 has workers of its own; take workers 1 or auto"
        else:
            translators[variant] = found
    if not translators:
        raise MtkitError(faults[wanted[0]])
    return translators, faults


def _read(source: Path, reference: Path | None, num_lines: int) -> tuple[list[str], list[str] | None]:
    """Returns the first `num_lines` lines of the source and those of the reference.

    Without a reference, its lines are `None`. Raises DataError if all these lines of the source are blank, or if the
    two files have different numbers of lines.
    """
    if reference is None:
        lines, references = list(islice(read_lines(source), num_lines)), None
    else:
        lines, [references] = read_test_set(SetFiles(source, (reference,)))
        references = references[:num_lines]
    if not any(line.strip() for line in lines[:num_lines]):
        raise DataError(f"{named(source)}: has no text to translate; name a file with some lines")
    return lines[:num_lines], references


def _opened(translator: Translator, lines: list[str], meter: Meter) -> _Opened:
    """Translates all lines once, untimed; returns the translations, the token ids and the number of decoder rows.

    The number of rows is `None` for CTranslate2, which does not report it. Warns of the first line with a wrong tag.
    """
    faults = ((number, translator.tag_fault(line)) for number, line in enumerate(lines, start=1))
    if fault := next(((number, fault) for number, fault in faults if fault), None):
        say(f"mtkit: warning: line {fault[0]:,} {fault[1]}; further lines are not reported")
    ids = Ids(translator.tokenizer)
    with with_ids(translator, ids), counting_rows(translator) as rows:
        texts = _translated(translator, lines, meter)
    # With CTranslate2, the decoder whose rows were counted translates only a few sentences, if any.
    return _Opened(translator, ids, rows.number if translator.engine is None else None, texts)


def _warmed_up(variant: Variant, opened: _Opened, translator: Translator, lines: list[str], meter: Meter) -> _Measured:
    """Returns a variant with its translations of the lines and no times yet, ready to be measured.

    If `translator` has workers, they translate all lines once now, untimed. Otherwise, the translations are those in
    `opened`.
    """
    texts = opened.texts if translator is opened.translator else _translated(translator, lines, meter)
    tokens = sum(map(len, translator.tokenizer.encode_target(texts)))
    return _Measured(variant, opened, translator, texts, tokens)


def _translated(translator: Translator, lines: list[str], meter: Meter) -> list[str]:
    return [line.text for line in translator.translate_lines(lines, done=meter.add)]


def _time(measured: _Measured, lines: list[str], meter: Meter) -> None:
    """Time one round of a variant: all lines from text to text and then, if it has no workers, from ids to ids.

    The seconds are appended to the lists in `measured`.
    """
    begun = time.perf_counter()
    _translated(measured.translator, lines, meter)
    measured.text_seconds.append(time.perf_counter() - begun)
    if measured.has_workers:
        return
    ids = measured.opened.ids
    ids.replays = True
    with with_ids(measured.translator, ids):
        begun = time.perf_counter()
        _translated(measured.translator, lines, meter)
        measured.ids_seconds.append(time.perf_counter() - begun)


def _result(measured: _Measured, lines: list[str], references: list[str] | None, fresh: Record) -> Record:
    """Returns the record of one variant; `fresh` holds the times and the peak memory of a fresh process.

    BLEU is computed if there are `references`, one for each line.
    """
    translator, opened, tokens = measured.translator, measured.opened, measured.tokens
    rows, decoding, variant = opened.rows, translator.config.decoding, measured.variant
    num_hypotheses = 1 if decoding.draws else decoding.num_hypotheses
    lengths = [len(output) for output in opened.ids.outputs if output]  # without blank lines
    bleu = None
    if references is not None:
        [score] = corpus_scores(measured.texts, [references], translator.config.languages.target, ("bleu",))
        bleu = {"score": score.score, "signature": score.signature}
    return {
        **asdict(variant),
        "chosen": _chosen(
            translator,
            len(worker_devices(translator.model.device, variant.num_workers)) if measured.has_workers else 1,
        ),
        "fault": None,
        "output_tokens": tokens,
        "text_to_text": _rates(measured.text_seconds, tokens, len(lines)),
        "ids_to_ids": _rates(measured.ids_seconds, tokens, len(lines)) if measured.ids_seconds else None,
        "rows_per_token": rows / tokens if rows and tokens else None,
        # Not known for minimum Bayes risk decoding: it may return a short sample, though longer ones took more rows.
        "useful_rows": useful_rows(lengths, num_hypotheses) / rows if rows and not decoding.mbr_samples else None,
        **fresh,
        "bleu": bleu,
    }


def _chosen(translator: Translator, num_workers: int) -> Record:
    """Returns the precision, engine and number of workers that were used, with "auto" resolved."""
    engine = "torch" if translator.engine is None else "ctranslate2"
    return {"precision": translator.precision, "engine": engine, "workers": num_workers}


def _rates(seconds: Sequence[float], tokens: int, num_lines: int) -> Record:
    """Returns tokens and lines per second (median, smallest and largest over the rounds), and the seconds per round.

    `seconds` holds the time of each round. In every round, `num_lines` lines were translated, and their translations
    have `tokens` tokens.
    """
    spread = (statistics.median(seconds), max(seconds), min(seconds))
    names = ("median", "smallest", "largest")
    return {
        "tokens_per_second": {name: tokens / one for name, one in zip(names, spread, strict=True)},
        "lines_per_second": {name: num_lines / one for name, one in zip(names, spread, strict=True)},
        "seconds": list(seconds),
    }


# One line at a time, as a chat or a server translates.

WARM_UP_LINES = 20


def bench_latency(
    model: Path,
    source: Path,
    wanted: Sequence[Variant],
    overrides: Sequence[str] = (),
    num_lines: int = 1000,
    rounds: int = 5,
    minutes: float = 10.0,
) -> Record:
    """Measure how long a model takes for a single line; returns the record.

    In each round, the variants take turns: each translates the lines one after the other, with one call
    `translator.translate([line])` per line. The lines are the first `num_lines` of `source` that are not blank, in a
    random order that differs from round to round but is the same for all variants. Before the first round, each variant
    translates some lines untimed. No round begins after `minutes` minutes, but there is at least one. The median and
    the 99th percentile are taken over the calls of all rounds.

    If a variant is impossible, its record holds only the fields of the variant and the reason, `fault`. Raises
    MtkitError if all variants are impossible, or if the model, a setting or the file is wrong.
    """
    begun = time.monotonic()
    lines = [line for line in _read(source, None, num_lines)[0] if line.strip()]
    translators, faults = _open(model, wanted, overrides)
    calls: dict[Variant, list[tuple[float, int]]] = {variant: [] for variant in translators}
    orders = [random.Random(number).sample(lines, len(lines)) for number in range(rounds)]
    with warnings.catch_warnings(), Meter("translating", "lines", len(lines) * rounds * len(translators)) as meter:
        warnings.simplefilter("ignore")  # of lines with problems; `mtkit translate` tells them
        for translator in translators.values():
            _one_by_one(translator, orders[0][:WARM_UP_LINES])
        for number, order in enumerate(orders):
            if number and time.monotonic() - begun >= 60 * minutes:
                break
            for variant, translator in translators.items():
                calls[variant] += _one_by_one(translator, order)
                meter.add(len(lines))
    results = {
        variant: {
            **asdict(variant),
            "chosen": _chosen(translator, 1),
            "fault": None,
            "latency": {"median": _percentile(calls[variant], 50), "percentile_99": _percentile(calls[variant], 99)},
        }
        for variant, translator in translators.items()
    }
    first = next(iter(translators))
    return {
        **_facts(model, translators[first], source, lines),
        "rounds": len(calls[first]) // len(lines),
        "variants": _in_order(wanted, results, faults),
    }


def _one_by_one(translator: Translator, lines: Sequence[str]) -> list[tuple[float, int]]:
    """Translates the lines one call at a time; returns (seconds, number of output tokens) for each line."""
    seconds, texts = [], []
    for line in lines:
        begun = time.perf_counter()
        texts += translator.translate([line])
        seconds.append(time.perf_counter() - begun)
    return list(zip(seconds, map(len, translator.tokenizer.encode_target(texts)), strict=True))


def _percentile(calls: Sequence[tuple[float, int]], percent: int) -> Record:
    """Returns a percentile of the times, in milliseconds, and the number of output tokens of the call with that time.

    `calls` holds (seconds, number of output tokens) for each call.
    """
    seconds, tokens = sorted(calls)[math.ceil(len(calls) * percent / 100) - 1]
    return {"milliseconds": 1000 * seconds, "output_tokens": tokens}


def _num_parameters(translator: Translator) -> int:
    tokenizer = translator.tokenizer  # not from translator.model, whose layers have no parameters in bf16 and int8
    sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
    return empty_model(translator.config.model, *sizes).num_parameters


# Start-up time and peak memory, measured in a fresh process for each variant, as users experience them.

FRESH = """
import json, sys, time
from pathlib import Path
from mtkit.exchange.engines import load
from mtkit.translation.workers import Opening, with_workers

task = json.load(sys.stdin)
arguments = task["load"]
begun = time.perf_counter()
translator = load(**arguments)
told = {"load_seconds": time.perf_counter() - begun}
opening = Opening(Path(arguments["path"]), tuple(arguments["overrides"]), arguments["precision"])
with with_workers(translator, opening, task["workers"]) as working:
    list(working.translate_lines([next(line for line in task["lines"] if line.strip())]))
    told["translated_at"] = time.time()
    list(working.translate_lines(task["lines"]))

from mtkit.evaluation.bench import own_peak

print(json.dumps({**told, "peak_bytes": own_peak(translator, working)}))
"""
SAMPLE_SECONDS = 0.05  # interval between two samples of the memory of all processes


def own_peak(translator: Translator, working: Translator) -> int | None:
    """Returns the peak memory of this process, in bytes; `None` if it is not known.

    `working` is the Translator that translated. Without workers, it is the same object as `translator`; with workers,
    it is the one that gives the lines to worker processes. The peak is not known in three cases: there are workers,
    CTranslate2 translated on a GPU (PyTorch does not see that memory), or the operating system does not report it.
    """
    device = translator.model.device
    if working is not translator or (translator.engine is not None and device.type != "cpu"):
        return None
    return peak_memory(device)


def memory_of_all(process: int) -> int | None:
    """Returns the total memory of a process and its descendants, in bytes; `None` if the system does not report it.

    Memory that these processes share counts once. The total is the sum of two numbers:

    - Anonymous memory: the sum of the proportional set sizes (PSS) of the processes. In a PSS, a page that n processes
      share counts 1/n.
    - Memory-mapped files, such as libraries and weights: the largest resident size of all processes, since forked
      processes map the same files. The sum of PSS would be too low here. The measuring process maps these files, too,
      so each page is also shared with this process, which is not counted.
    """
    waiting, anonymous, of_files = [process], 0, 0
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            words = (folder / "smaps_rollup").read_text("ascii").split()
            children = [(task / "children").read_text("ascii").split() for task in (folder / "task").iterdir()]
        except OSError:  # it has ended, or the system does not tell
            continue
        if "Pss_Anon:" not in words:  # before Linux 5.4
            continue
        kilobytes = {name: int(words[words.index(name) + 1]) for name in ("Rss:", "Anonymous:", "Pss_Anon:")}
        anonymous += kilobytes["Pss_Anon:"]
        of_files = max(of_files, kilobytes["Rss:"] - kilobytes["Anonymous:"])
        waiting += [int(child) for of_task in children for child in of_task]
    return 1024 * (anonymous + of_files) or None


def _fresh(model: Path, measured: _Measured, overrides: Sequence[str], lines: list[str]) -> Record:
    """Have a fresh process load the model and translate the lines; returns times and peak memory of that process.

    `start_seconds` is the time from the start of the process to its first translation; `load_seconds` is the part of
    that time in which the model is loaded. With workers on a CPU, `peak_bytes` is the largest of samples taken every
    SAMPLE_SECONDS. Raises MtkitError if the process fails.
    """
    variant = measured.variant
    begun = time.time()
    task: str | None = json.dumps(
        {"load": load_arguments(model, variant, overrides), "workers": variant.num_workers, "lines": lines}
    )
    samples = [0]
    has_samples = measured.has_workers and measured.translator.model.device.type == "cpu"
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # With -P and the paths of this process, no file in the current folder is taken for a module.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-c", FRESH]
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            while True:
                try:
                    out, error = process.communicate(task, timeout=SAMPLE_SECONDS if has_samples else None)
                    break
                except subprocess.TimeoutExpired:
                    task = None
                    samples.append(memory_of_all(process.pid) or 0)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = next(reversed(error.splitlines()), f"exit code {process.returncode}")
        raise MtkitError(f"the process that measures start-up and memory failed: {last}")
    told = json.loads(out.splitlines()[-1])
    return {
        "start_seconds": told["translated_at"] - begun,
        "load_seconds": told["load_seconds"],
        "peak_bytes": told["peak_bytes"] or max(samples) or None,
    }


# Showing what was measured.

EXPLANATION = """\
tokens: pieces of the output in the model's tokenizer, without end marks and padding
rows/token: rows (sentences x hypotheses) that the decoder computed for each of these tokens
useful: share of the rows that a full beam has computed when the translation that it returns ends
start-up: from the start of a fresh process to its first translation; load and peak: of that process
several workers: nothing from ids to ids; rows of one process; peak of all, on a CPU under Linux
ct2: CTranslate2, which does not tell its rows
"""
HEADINGS = {"beam_size": "beam"}
SHORT = {"ctranslate2": "ct2"}  # in tables


def translation_text(record: Record) -> str:
    """Returns the record of `bench_translation` as text: two tables and what they measure, in at most 100 columns."""
    names = [item.name for item in fields(Variant)]
    headings = [HEADINGS.get(name, name) for name in names]
    speeds = [[*headings, "tokens/s, text to text", "lines/s", "tokens/s, ids to ids"]]
    costs = [[*headings, "rows/token", "useful", "start-up s", "load s", "peak MB", "BLEU"]]
    for found in record["variants"]:
        values = [_value(found, name) for name in names]
        if found["fault"] is not None:
            speeds.append([*values, found["fault"]])
            continue
        text, bleu = found["text_to_text"], found["bleu"]
        lines = f"{text['lines_per_second']['median']:,.1f}"
        speeds.append([*values, _rates_text(text), lines, _rates_text(found["ids_to_ids"])])
        costs.append(
            [
                *values,
                "-" if found["rows_per_token"] is None else f"{found['rows_per_token']:.2f}",
                "-" if found["useful_rows"] is None else f"{100 * found['useful_rows']:.0f} %",
                f"{found['start_seconds']:.2f}",
                f"{found['load_seconds']:.2f}",
                memory_text(found["peak_bytes"]),
                "-" if bleu is None else f"{bleu['score']:.2f}",
            ]
        )
    signatures = {found["bleu"]["signature"] for found in record["variants"] if found.get("bleu")}
    return (
        f"{_facts_text(record)}, after one of each as warm-up: median (least-most)\n\n"
        f"{aligned(speeds)}\n{aligned(costs)}\n{EXPLANATION}"
        + "".join(f"BLEU: {signature}\n" for signature in sorted(signatures))
    )


def _facts_text(record: Record) -> str:
    """Returns lines on the machine, the model, the text and the number of rounds; no newline follows the last line."""
    return (
        f"{machine_text(record)}{record['model']}: {record['architecture']}, {record['parameters']:,} parameters\n"
        f"{record['file']}: {counted(record['lines'], 'line')}; {counted(record['rounds'], 'round')} in turn"
    )


LATENCY_EXPLANATION = """\
ms: milliseconds for a line, from text to text; half of the calls, or 99 %, took no longer
tokens: pieces in the translation that took so long, without the end mark
ct2: CTranslate2
"""


def latency_text(record: Record) -> str:
    """Returns the record of `bench_latency` as text: a table and what it measures, in at most 100 columns."""
    names = [item.name for item in fields(Variant) if item.name != "workers"]
    rows = [[*(HEADINGS.get(name, name) for name in names), "median ms", "tokens", "99 % ms", "tokens"]]
    for found in record["variants"]:
        row = [_value(found, name) for name in names]
        if found["fault"] is not None:
            rows.append([*row, found["fault"]])
            continue
        for part in found["latency"].values():
            row += [f"{part['milliseconds']:,.1f}", f"{part['output_tokens']:,}"]
        rows.append(row)
    return f"{_facts_text(record)}, one line at a time, in random order\n\n{aligned(rows)}\n{LATENCY_EXPLANATION}"


def _value(found: Record, name: str) -> str:
    """Returns the field `name` of `found`, the record of a variant, as text for a table; "-" for `None`.

    "auto" is followed by the value that was chosen, as in "auto:bf16".
    """
    values = [found[name]]
    if found[name] == "auto" and found["fault"] is None:
        values.append(found["chosen"][name])
    return ":".join("-" if value is None else SHORT.get(str(value), str(value)) for value in values)


def _rates_text(rates: Record | None) -> str:
    if rates is None:
        return "-"
    tokens = rates["tokens_per_second"]
    return f"{tokens['median']:,.0f} ({tokens['smallest']:,.0f}-{tokens['largest']:,.0f})"


# Training.


def transformer_flops(
    config: TransformerConfig, target_vocab_size: int, source_tokens: int, target_tokens: int, num_pairs: int
) -> float:
    """Returns the floating-point operations of a forward and backward pass over these tokens.

    A product with a matrix of n weights takes 2n operations for each token. Let d be the model width, f the
    feed-forward width, N and M the numbers of layers in encoder and decoder, V the size of the target vocabulary,
    and S and T the mean lengths of source and target in tokens. Then the forward pass takes:

    - for each source token, 2 N (4 d^2 + 2 d f) + 2 M (2 d^2); the second term is for keys and values of attention to
      the source;
    - for each target token, 2 M (6 d^2 + 2 d f) + 2 V d; the second term is for the logits;
    - for attention itself, 4 S d N for each source token and (2 T d + 4 S d) M for each target token.

    With a gate, 2 d f becomes 3 d f. The backward pass takes twice as many operations as the forward pass (Kaplan
    et al. 2020, section 2.1, count in the same way). Embeddings, norms, activations, softmax, dropout, padding and
    the optimizer do not count; with `layer_dropout`, layers count by the fraction of batches in which they take
    part. A language model has no source: S is 0, and 6 d^2 becomes 4 d^2.
    """
    source_tokens = source_tokens if config.reads_source else 0
    d, encoder_layers, decoder_layers = config.d_model, config.encoder_layers, config.decoder_layers
    kept = 1 - config.layer_dropout  # the mean fraction of layers that take part
    matrices = 3 if config.activation in ("reglu", "geglu", "swiglu") else 2
    source_attention = decoder_layers if config.attends_to_source else 0  # number of layers that attend to the source
    encoder_d_ff, decoder_d_ff = config.width_of("encoder"), config.width_of("decoder")
    source_length, target_length = source_tokens / num_pairs, target_tokens / num_pairs
    of_source: float = 2 * encoder_layers * (4 * d * d + matrices * d * encoder_d_ff)
    of_source += 2 * source_attention * 2 * d * d
    of_source += 4 * source_length * d * encoder_layers
    of_target: float = 2 * decoder_layers * (4 * d * d + matrices * d * decoder_d_ff) + 2 * source_attention * 2 * d * d
    of_target += 2 * target_length * d * decoder_layers + 4 * source_length * d * source_attention
    logits = 2 * target_vocab_size * d
    return 3 * (kept * (source_tokens * of_source + target_tokens * of_target) + target_tokens * logits)


# The sizes of the square matrices whose products are timed, and how many products are timed together.
PEAK_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}
PEAK_REPEATS = {"cpu": 1, "cuda": 10, "mps": 10}
PEAK_SECONDS = 0.5  # time for each size


def matrix_peak(device: torch.device, precision: str) -> float:
    """Returns the most floating-point operations per second that products of square matrices reach on the device."""
    best, repeats = 0.0, PEAK_REPEATS[device.type]
    for size in PEAK_SIZES[device.type]:
        one, other = torch.randn(2, size, size, device=device).to(DTYPES[precision])
        torch.mm(one, other)
        synchronize(device)
        ends = time.perf_counter() + PEAK_SECONDS
        while (begun := time.perf_counter()) < ends:
            for _ in range(repeats):
                torch.mm(one, other)
            synchronize(device)
            best = max(best, repeats * 2 * size**3 / (time.perf_counter() - begun))
    return best


# Made-up sentence pairs (--random): the logarithms of the lengths are normally distributed. The median of 23 tokens and
# the standard deviation of 0.6 give a mean of about 28 tokens, as in the training data of WMT.
RANDOM_PAIRS = 50_000
RANDOM_MEDIAN, RANDOM_DEVIATION = 23.0, 0.6
RANDOM_RATIO = 0.15  # the standard deviation of the logarithm of target length / source length


def random_lengths(num_pairs: int, longest: int, seed: int) -> tuple[list[int], list[int]]:
    """Returns random lengths of `num_pairs` sources, and of as many targets, in tokens without end marks.

    All lengths are from 1 to `longest`; a target has about the same length as its source.
    """
    rng = np.random.default_rng(seed)
    logs = rng.normal(math.log(RANDOM_MEDIAN), RANDOM_DEVIATION, num_pairs)
    sides = [np.exp(logs), np.exp(logs + rng.normal(0, RANDOM_RATIO, num_pairs))]
    source, target = (np.clip(np.rint(side), 1, longest).astype(int).tolist() for side in sides)
    return source, target


def write_random_corpus(config: Config, directory: Path) -> None:
    """Write a binarized corpus of made-up pairs, with the vocabulary sizes and the length limit of the settings."""
    sizes = config.tokenizer.size_of("source")[1], config.tokenizer.size_of("target")[1]
    longest = min(
        config.data.longest_training_side, config.known_batch_tokens - 1, *config.model.position_limits.values()
    )
    lengths = random_lengths(RANDOM_PAIRS, longest, config.training.seed)
    rng = np.random.default_rng(config.training.seed)
    sides = []
    for size, of_side in zip(sizes, lengths, strict=True):
        tokens = rng.integers(NUM_SPECIAL, size, sum(of_side))
        sides.append([row.tolist() for row in np.split(tokens, np.cumsum(of_side)[:-1])])
    with CorpusWriter(directory, *sizes, "made up") as writer:
        writer.add(sides[0], sides[1])
        writer.commit({}, (), {}, (RANDOM_PAIRS,))


@dataclass(frozen=True)
class _Data:
    """What a measured training reads: settings, the folder of a binarized corpus, and the tokenizer that encoded it."""

    config: Config
    corpus: Path
    tokenizer: Tokenizer | None  # None: the corpus is made up
    told: str  # what the data is, in words, for the record


@contextmanager
def _data(config: Config, made_up: bool) -> Iterator[_Data]:
    """Context manager that gives training data for `config`, from the run directory or from a temporary folder.

    The data in the run directory is used if it was made with these settings. Otherwise, a tokenizer and data are made
    from the text of the run, in the temporary folder. With `made_up`, random data is made there in any case. Nothing is
    written to the run directory.
    """
    run = config.run_path
    if not made_up and is_prepared(config):
        tokenizer = Tokenizer.load(standing(run / "tokenizer"))
        yield _Data(config, standing(run / "data" / "train"), tokenizer, f"the data of {run}")
        return
    with undone_when_ended(), tempfile.TemporaryDirectory(prefix="mtkit-bench-") as folder:
        try:
            data = _made(config.model_copy(update={"run_dir": Path(folder)}), made_up)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or folder}: cannot be written: {error.strerror}; TMPDIR=FOLDER before the command "
                "has its data elsewhere"
            ) from None
        yield data


def _made(config: Config, made_up: bool) -> _Data:
    """Make training data in the run directory of `config`; returns the data.

    A tokenizer is made, and the training text is binarized. With `made_up`, random data is made, without a tokenizer.
    """
    place = config.run_path
    if made_up:
        write_random_corpus(config, place / "data")
        return _Data(config, place / "data", None, "made-up sentences")
    make_tokenizer(config)
    binarize(config)
    tokenizer = Tokenizer.load(place / "tokenizer")
    return _Data(config, place / "data" / "train", tokenizer, "data.train, binarized for this measurement")


DATA, PASSES, OPTIMIZER = "data", "forward_and_backward", "optimizer"  # the parts of an update
WARM_UP = 3  # updates that are not measured
LEAST = 3  # updates that are measured, whatever the time limit
# A learning rate at which no training diverges. At rate 0, weights that are zero at first (`residual_init: zero`) would
# stay so, and a GPU multiplies zeros faster than other numbers, since that takes less power.
RATE = 1e-4
SPLIT_SHARE = 0.2  # on a GPU, the share of the time in which the parts of updates are measured


@dataclass
class Sums:
    """Totals over the measured updates: time, pairs, tokens and floating-point operations."""

    updates: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys((DATA, PASSES, OPTIMIZER), 0.0))  # seconds
    pairs: int = 0
    source_tokens: int = 0
    target_tokens: int = 0
    source_positions: int = 0  # tokens and padding
    target_positions: int = 0
    flops: float = 0.0

    def add(self, batch: Batch, flops: Callable[[int, int, int], float]) -> None:
        """Add a batch to the totals.

        `flops` takes numbers of source tokens, target tokens and pairs, and returns the floating-point operations.
        """
        self.pairs += batch.num_pairs
        self.source_tokens += batch.source_tokens
        self.target_tokens += batch.target_tokens
        self.source_positions += batch.source.ids.numel()
        self.target_positions += batch.target.ids.numel()
        self.flops += flops(batch.source_tokens, batch.target_tokens, batch.num_pairs)


def bench_training(config: Config, minutes: float = 0.5, made_up: bool = False, profiles: bool = False) -> Record:
    """Measure how fast these settings train; returns the record.

    A new model is trained, with the learning rate RATE, on the data of the run; if the run has no data of these
    settings, the tokenizer and the data are made in a temporary folder. With `made_up`, random sentences of random
    lengths are used instead. The run itself is only read. After WARM_UP untimed updates, updates are measured for
    `minutes` minutes. With `profiles`, PROFILED more updates show which operators take the time. Raises MtkitError if
    the settings or the data are wrong, or memory runs out.
    """
    config = with_patterns_expanded(carried_over(config))
    if made_up and config.training.samples_subwords:
        raise ConfigError(
            "--random: found training.bpe_dropout or unigram_alpha, which segment text, and wants neither; "
            "set them to null, or leave out --random"
        )
    device = pick_device(config.device)
    with _data(config, made_up) as data:
        try:
            return _bench_training(data, device, minutes, profiles)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    raise MtkitError(f"out of memory; lower training.batch_tokens, which is {config.training.told_batch_tokens}")


def _bench_training(data: _Data, device: torch.device, minutes: float, profiles: bool) -> Record:
    config = data.config
    precision = pick_precision(config.training.precision, device, config.model.d_model)
    peak = matrix_peak(device, precision)
    forget_peak(device)

    begun = time.perf_counter()
    corpus = Corpus.open(data.corpus)
    trial = new_trial(config, corpus, data.tokenizer, device, precision)
    model, settings = trial.updater.state.model, trial.config.training
    with trial.feed.batches(0, 0) as stream, Meter("training", "updates") as meter:
        trial.run(stream, meter, num_updates=1)
        first = time.perf_counter() - begun
        trial.run(stream, meter, num_updates=WARM_UP - 1)
        split_seconds = 60 * minutes * SPLIT_SHARE if device.type != "cpu" else 0.0
        sums = trial.run(stream, meter, seconds=60 * minutes - split_seconds)
        split = trial.run(stream, meter, seconds=split_seconds, waiting=True) if split_seconds else sums
        memory = peak_memory(device)
        operators = profiled(lambda: trial.run(stream, meter, PROFILED), device) if profiles else []
    peak = max(peak, matrix_peak(device, precision))
    return {
        **machine_facts(device),
        "precision": precision,
        "architecture": config.model.architecture,
        "parameters": model.num_parameters,
        "data": data.told,
        "pairs": len(corpus),
        "batch_tokens": settings.batch_tokens,
        "accumulate": settings.batches_per_update(),
        "updates": sums.updates,
        "seconds": sums.seconds,
        "target_tokens_per_second": sums.target_tokens / sums.seconds,
        "source_tokens_per_second": sums.source_tokens / sums.seconds,
        "target_tokens_per_update": sums.target_tokens / sums.updates,
        "source_padding": 1 - sums.source_tokens / sums.source_positions,
        "target_padding": 1 - sums.target_tokens / sums.target_positions,
        "milliseconds_per_update": 1000 * sums.seconds / sums.updates,
        "parts": {name: 1000 * seconds / split.updates for name, seconds in split.parts.items()},
        "first_update_seconds": first,
        "peak_bytes": memory,
        "matrix_peak_flops_per_second": peak,
        "operators": [
            {"name": name, "milliseconds": 1000 * seconds / PROFILED, "calls": calls / PROFILED}
            for name, seconds, calls in operators
        ],
        "model_flops_per_update": sums.flops / sums.updates or None,
        "model_flops_per_second": sums.flops / sums.seconds or None,
        "share_of_peak": sums.flops / sums.seconds / peak or None,
        "config": config.model_dump(mode="json"),
    }


def new_trial(
    config: Config, corpus: Corpus, tokenizer: Tokenizer | None, device: torch.device, precision: str
) -> "Trial":
    """Returns a trial that trains a new model on `corpus`.

    `tokenizer` is the one that encoded the corpus; `None` means that the corpus is made up.
    """
    settings = config.training
    sizes = (corpus.manifest.source.vocab_size, corpus.manifest.target.vocab_size)
    specials = Specials() if tokenizer is None else tokenizer.specials
    model = new_model(config.model, *sizes, settings.seed, specials).to(device).train()
    keep_few_kernels(model, device, precision)
    if tokenizer is None:
        feed = Feed(config, corpus, None, None, model.boundaries, device)
    else:
        corpus.require_tokenizer(tokenizer.hash)
        feed = Feed.prepare(config, tokenizer, corpus, model.boundaries, device)
    if settings.batch_tokens == "auto":
        found = find_batch_tokens(model, feed, precision, Stop())
        say(found.told())
        feed = with_batch_tokens(feed, found.tokens)
    optimizer = make_optimizer(model, settings, device)
    state = TrainState(model, optimizer, Progress(precision=precision), make_average(model, optimizer, settings))
    return Trial(Updater(state, settings, LossScaler(device, precision, FIRST_SCALE, 0)), sizes[1], feed)


PROFILED = 5  # updates whose operators are timed; this slows them down, so they do not count as measured updates
PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_"})
SHOWN, LONGEST_NAME = 15, 60  # operators in the table, and characters of their names


def profiled(work: Callable[[], object], device: torch.device) -> list[tuple[str, float, int]]:
    """Returns (name, seconds, number of calls) for each operator that `work` calls, the slowest operator first.

    The seconds are GPU time if `device` is a CUDA device, else CPU time. They are summed over all threads, and leave
    out the time of other operators that the operator calls.
    """
    activity = torch.profiler.ProfilerActivity
    on_gpu = device.type == "cuda"
    all_threads = torch.profiler._ExperimentalConfig(profile_all_threads=True)  # type: ignore[attr-defined]
    activities = [activity.CPU, *([activity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, experimental_config=all_threads) as profile:
        work()
        synchronize(device)
    found = [
        (event.key, 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total), event.count)
        for event in profile.key_averages()
        if event.device_type.name == "CPU"  # GPU kernels are left out: the operators that launch them have their times
    ]
    return sorted((each for each in found if each[1] > 0), key=lambda each: -each[1])


class Trial:
    """Trains a model on batches of a corpus, and measures the time of its updates."""

    def __init__(self, updater: Updater, target_vocab_size: int, feed: Feed) -> None:
        config = feed.config
        self.feed = feed
        self.updater = updater
        self.config = config
        self.target_vocab_size = target_vocab_size
        self.device = updater.state.model.device
        self.step = 0
        # Called just before the optimizer's step, when the gradient has been computed.
        updater.state.optimizer.register_step_pre_hook(lambda *_: self._end_part(PASSES))

    def run(
        self, stream: Stream, meter: Meter, num_updates: int = LEAST, seconds: float = 0.0, waiting: bool = False
    ) -> Sums:
        """Make updates until there are at least `num_updates` and `seconds` seconds have passed; returns their totals.

        On a GPU, the times of the parts of an update (`Sums.parts`) are right only with `waiting`, which waits for
        the GPU after each part.
        """
        self.sums, self.waiting = Sums(), waiting
        synchronize(self.device)
        begun = self.since = time.perf_counter()
        while self.sums.updates < num_updates or time.perf_counter() - begun < seconds:
            taken = islice(stream, self.config.training.batches_per_update())
            batches = [batch for _, parts in taken for batch in parts]
            self._end_part(DATA)
            self.step += 1
            self.updater.update(batches, self.step, RATE)
            self._end_part(OPTIMIZER)
            self.sums.updates += 1
            for batch in batches:
                self.sums.add(batch, self._flops)
            meter.add()
        synchronize(self.device)
        self.sums.seconds = time.perf_counter() - begun
        return self.sums

    def _end_part(self, name: str) -> None:
        if self.waiting:
            synchronize(self.device)
        now = time.perf_counter()
        self.sums.parts[name] += now - self.since
        self.since = now

    def _flops(self, source_tokens: int, target_tokens: int, num_pairs: int) -> float:
        """Returns the floating-point operations for a batch; 0 unless the model is a Transformer."""
        model, passes = self.config.model, 1 if self.config.training.consistency == "none" else 2
        if not isinstance(model, TransformerConfig):
            return 0.0
        return passes * transformer_flops(model, self.target_vocab_size, source_tokens, target_tokens, num_pairs)


def training_text(record: Record) -> str:
    """Returns the record of `bench_training` as text, in at most 100 columns."""
    parts, num_batches = record["parts"], record["accumulate"]
    batches = "1 batch" if num_batches == 1 else f"{num_batches:,} batches"
    peak = f"{record['matrix_peak_flops_per_second'] / 1e9:,.0f} GFLOP/s in {record['precision']}"
    flops = "no formula for this architecture"
    if record["model_flops_per_update"]:
        flops = (
            f"{record['model_flops_per_update'] / 1e9:,.1f} GFLOP an update, "
            f"{record['model_flops_per_second'] / 1e9:,.0f} GFLOP/s, {100 * record['share_of_peak']:.0f} % of the peak"
        )
    rows = {
        "target tokens/s": f"{record['target_tokens_per_second']:,.0f}",
        "source tokens/s": f"{record['source_tokens_per_second']:,.0f}",
        "padding": f"{100 * record['source_padding']:.1f} % of the source, "
        f"{100 * record['target_padding']:.1f} % of the target",
        "update": f"{record['milliseconds_per_update']:,.1f} ms, {record['target_tokens_per_update']:,.0f} target "
        f"tokens; {counted(record['updates'], 'update')} in {record['seconds']:.1f} s",
        "  waiting for data": f"{parts[DATA]:,.1f} ms",
        "  forward, backward": f"{parts[PASSES]:,.1f} ms, with the norm of the gradient",
        "  optimizer": f"{parts[OPTIMIZER]:,.1f} ms",
        "first update": f"{record['first_update_seconds']:.2f} s after the data was opened",
        "peak memory": f"{memory_text(record['peak_bytes'])} MB",
        "matrix products": f"{peak}: the peak, measured here",
        "model FLOPs": flops,
    }
    width = max(map(len, rows))
    operators = f"\n{_operators_text(record['operators'])}" if record["operators"] else ""
    return (
        f"{machine_text(record)}{record['architecture']}, {record['parameters']:,} parameters, "
        f"{record['precision']}; {batches} of {record['batch_tokens']:,} tokens an update\n"
        f"{record['data']}: {counted(record['pairs'], 'pair')}\n\n"
        + "".join(f"{name:{width}}  {value}\n" for name, value in rows.items())
        + f"{operators}\nTokens include end marks, and no padding. The first {WARM_UP} updates warmed up.\n"
    )


def _operators_text(operators: Sequence[Record]) -> str:
    """Returns a table of the operators that take most of an update's time, and of all matrix products together.

    `operators` is the entry "operators" of the record that `bench_training` returns.
    """
    total = sum(each["milliseconds"] for each in operators)
    products = [each for each in operators if each["name"] in PRODUCTS]
    table = [["operator", "ms an update", "share", "calls"]]
    for name, those in (
        ("matrix products", products),
        *((each["name"][:LONGEST_NAME], [each]) for each in operators[:SHOWN]),
        ("other", operators[SHOWN:]),
    ):
        milliseconds, calls = (sum(each[key] for each in those) for key in ("milliseconds", "calls"))
        table.append([name, f"{milliseconds:,.1f}", f"{100 * milliseconds / total:.1f} %", f"{calls:,.0f}"])
    return aligned(table)
