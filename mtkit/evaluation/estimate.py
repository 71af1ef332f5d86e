"""`mtkit estimate`: what a training will take, before it begins: memory, time, disk, and whether it fits.

Speed is measured in a few updates of a new model on the run's data or, if that is not prepared yet, on a sample of the
text. Memory is the peak over these updates, updates with the largest batches, and a validation. On a CPU, memory may
grow further in later updates. `measure_speed` measures only the speed; `mtkit new` chooses a model by it.
"""

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mtkit.bundle.opening import carried_over
from mtkit.config.data_and_model_settings import CorpusConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError, Meter, MtkitError, counted, duration, inform, is_out_of_memory
from mtkit.evaluation.bench import (
    RATE,
    WARM_UP,
    Record,
    Sums,
    Trial,
    machine_facts,
    machine_text,
    new_trial,
)
from mtkit.files import Stop, standing, undone_when_ended
from mtkit.models.registry import empty_model, pick_device, pick_precision
from mtkit.preparation.prepare import binarize, is_prepared, make_tokenizer, read_validation
from mtkit.preparation.sources import training_corpora
from mtkit.text.lines import count_lines, read_lines
from mtkit.text.parallel import data_file, read_corpus, with_patterns_expanded
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.optimizers import Pace, make_plan, optimizer_tensors
from mtkit.training.records import Validation
from mtkit.training.update import forget_peak, largest_batches, memory_at_hand, peak_memory, resident_memory

NUM_UPDATES = 10  # updates to measure, after the warm-up
MOST_SECONDS = 60.0  # about the longest time to measure; slow models make fewer updates, but at least LEAST_UPDATES
LEAST_UPDATES = 2
SAMPLE_PAIRS = 20_000  # pairs to encode if the data is not prepared
BYTES = 4  # size of a weight in fp32
MOST_ROWS_TIMES_VOCABULARY = 2048  # rows x vocabulary is at most this many times decoding.batch_tokens
LOGIT_COPIES = 3  # logits, log-probabilities, and the memory of top-k


@dataclass(frozen=True)
class Speed:
    """How fast a model trains on this machine: seconds per update, and sentence pairs per update."""

    update_seconds: float
    pairs_per_update: float


def estimate(config: Config) -> Record:
    """Returns the memory, time and disk that training with these settings takes; the run is only read.

    Raises MtkitError if the settings or the text are wrong, or memory runs out while updates are measured.
    """
    config = with_patterns_expanded(carried_over(config))
    device = pick_device(config.device)
    at_start = resident_memory()
    with _data(config) as data:
        measured = _measure(data, device)
    settings, pace = config.training, Pace(measured.speed.update_seconds, measured.validation_seconds)
    planned = make_plan(settings, pace, 0.0).settings(settings) if settings.max_steps == "auto" else settings
    updates, seconds = _length(planned, pace)
    sizes = data.vocab_sizes
    parameters = parameters_by_part(config, *sizes)
    num_parameters = sum(parameters.values())
    disk = _disk(planned, updates, measured, data)
    translation = translation_bytes(config, sizes[1], num_parameters, data.source_length)
    if device.type != "cuda" and at_start is not None:
        translation += at_start
    free = memory_at_hand(device)
    record: Record = {
        **machine_facts(device),
        "precision": measured.precision,
        "data": data.told,
        "is_sampled": data.is_sampled,
        "pairs": data.num_pairs,
        "source_tokens_per_epoch": round(data.num_pairs * data.source_length),
        "target_tokens_per_epoch": round(data.num_pairs * data.target_length),
        "parameters": num_parameters,
        "parameters_by_part": parameters,
        "updates_per_epoch": data.num_pairs / measured.speed.pairs_per_update,
        "seconds_per_update": measured.speed.update_seconds,
        "seconds_per_validation": measured.validation_seconds,
        "updates": updates,
        "epochs": updates * measured.speed.pairs_per_update / data.num_pairs,
        "seconds": seconds,
        "training_bytes": measured.peak_bytes,
        "translation_bytes": translation,
        "free_bytes": free,
        "disk_bytes": disk,
        "free_disk_bytes": _free_disk(config.run_path),
        "config": config.model_dump(mode="json"),
    }
    return {**record, "faults": _faults(record, config)}


def measure_speed(config: Config) -> Speed:
    """Returns how fast these settings train, measured in a few updates; the run is only read.

    Raises MtkitError if the settings or the text are wrong, or memory runs out.
    """
    config = with_patterns_expanded(carried_over(config))
    with _data(config) as data:
        return _measure(data, pick_device(config.device), validates=False).speed


# The data.


@dataclass(frozen=True)
class _Data:
    """The data that the measured updates train on, and the size of all the data of the run."""

    config: Config  # its run directory holds the data
    corpus: Corpus
    tokenizer: Tokenizer
    num_pairs: int  # of all the data; extrapolated if the corpus is a sample
    is_sampled: bool
    told: str

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """The vocabulary sizes of source and target.

        A tokenizer that was trained on a sample may have fewer pieces than one trained on all text. So in that case,
        the larger of two sizes is returned: the tokenizer's, and the one in the settings.
        """
        sizes = self.corpus.manifest.source.vocab_size, self.corpus.manifest.target.vocab_size
        settings = self.config.tokenizer
        if not self.is_sampled or settings.model is not None or self.config.training.start_from is not None:
            return sizes
        return max(sizes[0], settings.size_of("source")[1]), max(sizes[1], settings.size_of("target")[1])

    @property
    def source_length(self) -> float:
        """The mean number of tokens of a source, with its end mark."""
        return 1 + self.corpus.manifest.source.num_tokens / len(self.corpus)

    @property
    def target_length(self) -> float:
        """The mean number of tokens of a target, with its end mark."""
        return 1 + self.corpus.manifest.target.num_tokens / len(self.corpus)

    @property
    def num_bytes(self) -> int:
        """The size of the binarized training data of the run, in bytes.

        If the data is sampled, this is extrapolated from the sample.
        """
        return round(self.corpus.num_bytes * self.num_pairs / len(self.corpus))


@contextmanager
def _data(config: Config) -> Iterator[_Data]:
    """Context manager that gives the data of the run, or a sample if the run has no data of these settings.

    The sample is in a temporary folder; the run itself is only read.
    """
    run = config.run_path
    if is_prepared(config):
        corpus = Corpus.open(standing(run / "data" / "train"))
        tokenizer = Tokenizer.load(standing(run / "tokenizer"))
        yield _Data(config, corpus, tokenizer, len(corpus), False, f"the data of {run}")
        return
    with undone_when_ended(), tempfile.TemporaryDirectory(prefix="mtkit-estimate-") as folder:
        try:
            sampled, step = _sampled(config, Path(folder))
            with redirect_stderr(io.StringIO()):  # reports and warnings about a sample would mislead
                make_tokenizer(sampled)
                binarize(sampled, [])
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or folder}: cannot be written: {error.strerror}; TMPDIR=FOLDER before the command "
                "has its data elsewhere"
            ) from None
        corpus = Corpus.open(sampled.run_path / "data" / "train")
        num_kept = round(len(corpus) * step)  # after cleaning, and after data.join and data.fraction
        told = f"a sample of {counted(len(corpus), 'pair')} of data.train" if step > 1 else "data.train"
        yield _Data(sampled, corpus, Tokenizer.load(sampled.run_path / "tokenizer"), num_kept, step > 1, told)


def _sampled(config: Config, folder: Path) -> tuple[Config, int]:
    """Writes every n-th pair of each training corpus to `folder`; returns settings for the sample, and n.

    The returned settings name the sample as training text, and a run directory in `folder`. If training is guided by a
    file of word alignments, every n-th line of that file is written, too. The sample has at most about SAMPLE_PAIRS
    pairs; n is 1 if all corpora together have no more pairs than that.
    """
    corpora = training_corpora(config)
    counts = [sum(count_lines(part.paths[0]) for part in corpus.parts) for corpus in corpora]
    step = max(1, -(-sum(counts) // SAMPLE_PAIRS))
    sampled: list[CorpusConfig] = []
    guide = config.training.guided_alignment
    alignments = None if guide is None else read_lines(data_file(config, guide))
    with Meter("sampling", "pairs", sum(counts)) as meter, (folder / "alignments").open("wb") as links:
        for number, corpus in enumerate(corpora):
            paths = {side: folder / f"{number}.{side}" for side in ("source", "target")}
            with paths["source"].open("wb") as sources, paths["target"].open("wb") as targets:
                for place, (source, target) in enumerate(meter.counting(read_corpus(corpus))):
                    aligned = "" if alignments is None else next(alignments, "")
                    if place % step == 0:
                        sources.write(f"{source}\n".encode())
                        targets.write(f"{target}\n".encode())
                        links.write(f"{aligned}\n".encode())
            given = {"weight": corpus.weight, "tag": corpus.tag, **{side: str(path) for side, path in paths.items()}}
            sampled.append(CorpusConfig.model_validate(given, strict=False))
    data = config.data.model_copy(update={"train": tuple(sampled), "test": {}})
    tokenizer = config.tokenizer.model_copy(update={"text": ()})
    guided = {} if guide is None else {"guided_alignment": folder / "alignments"}
    training = config.training.model_copy(update=guided)
    update = {"data": data, "tokenizer": tokenizer, "training": training, "run_dir": folder / "run"}
    return config.model_copy(update=update), step


# The measurement.


@dataclass(frozen=True)
class _Measured:
    """The results of measuring a few updates: time, peak memory, and sizes of the weights and the optimizer state."""

    speed: Speed
    validation_seconds: float  # 0 without validation text
    precision: str
    peak_bytes: int | None  # peak memory of the GPU, or of this process on a CPU; None if it is not known
    weight_bytes: int  # size of the weights in a checkpoint, and of their moving average if the settings have one
    optimizer_bytes: int


def _measure(data: _Data, device: torch.device, validates: bool = True) -> _Measured:
    """Measures the time and memory of a few updates.

    With `validates`, also makes updates with the largest batches and times a validation; the peak memory is then taken
    over all of this. Raises MtkitError if memory runs out.
    """
    config = data.config
    precision = pick_precision(config.training.precision, device, config.model.d_model)
    forget_peak(device)
    try:
        trial = new_trial(config, data.corpus, data.tokenizer, device, precision)
        sums = _updates(trial)
        validation = 0.0
        if validates:
            _train_largest(trial)
        if validates and config.data.valid:
            with redirect_stderr(io.StringIO()):
                prepared = Validation.prepare(config, data.tokenizer, *read_validation(config))
                validation = prepared.expected_seconds(trial.updater.state.model, data.tokenizer, Stop())
        peak = peak_memory(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MtkitError(
            f"out of memory; lower training.batch_tokens, which is {config.training.told_batch_tokens}, or the model's "
            "sizes"
        ) from None
    state = trial.updater.state
    weights = sum(parameter.numel() * BYTES for parameter in state.model.parameters())
    optimizer = optimizer_tensors(state.optimizer, state.model)
    return _Measured(
        Speed(sums.seconds / sums.updates, sums.pairs / sums.updates),
        validation,
        precision,
        peak,
        weights * (1 if state.average is None else 2),
        sum(tensor.numel() * tensor.element_size() for tensor in optimizer.values()),
    )


def _updates(trial: Trial) -> Sums:
    inform(f"measuring {WARM_UP + NUM_UPDATES} updates …")
    with trial.feed.batches(0, 0) as stream, Meter("measuring", "updates", hidden=True) as meter:
        begun = time.perf_counter()
        trial.run(stream, meter, num_updates=1)
        each = time.perf_counter() - begun
        trial.run(stream, meter, num_updates=1 if each > MOST_SECONDS / NUM_UPDATES else WARM_UP - 1)
        num_updates = min(NUM_UPDATES, max(LEAST_UPDATES, int(MOST_SECONDS / max(each, 1e-9))))
        return trial.run(stream, meter, num_updates=num_updates)


def _train_largest(trial: Trial) -> None:
    """Make an update of each of the largest batches, since the batches of the measured updates may be smaller."""
    for batch in largest_batches(trial.feed):
        trial.updater.update([batch], trial.step, RATE)


# Figures.

PARTS: dict[str, Callable[[str], bool]] = {
    "embeddings": lambda name: "embedding.weight" in name,
    "encoder": lambda name: name.startswith("encoder."),
    "decoder": lambda name: name.startswith("decoder."),
    "output": lambda name: True,
}


def parameters_by_part(config: Config, source_vocab_size: int, target_vocab_size: int) -> dict[str, int]:
    """Returns the number of parameters of each part: embeddings, encoder, decoder and output.

    A matrix that parts share counts in the first of these parts, so "output" counts only parameters that the output
    layer does not share with the embeddings.
    """
    model: nn.Module = empty_model(config.model, source_vocab_size, target_vocab_size)
    found = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        found[next(part for part, holds in PARTS.items() if holds(name))] += parameter.numel()
    return found


def translation_bytes(config: Config, target_vocab_size: int, num_parameters: int, source_length: float) -> int:
    """Returns about how many bytes translation takes in fp32: weights, decoder state and logits of a full batch.

    The number is computed, not measured, for sources of `source_length` tokens and the longest allowed translations.
    """
    decoding, model = config.decoding, config.model
    width = max(1, decoding.mbr_samples or decoding.beam_size)
    source = max(1, round(source_length))
    rows = min(decoding.batch_tokens // source, MOST_ROWS_TIMES_VOCABULARY * decoding.batch_tokens // target_vocab_size)
    rows = max(rows, width)
    logits = LOGIT_COPIES * rows * target_vocab_size
    cache = rows * model.d_model * 4
    if isinstance(model, TransformerConfig):
        target = decoding.max_length(source)
        cache = 2 * model.d_model * model.decoder_layers * rows * (target + source // width)
    return BYTES * (num_parameters + logits + cache)


def _length(settings: TrainingConfig, pace: Pace) -> tuple[int, float]:
    """Returns the number of updates until `max_steps` or `max_minutes` ends training, and the seconds of training.

    `pace` holds the seconds of an update and of a validation. The seconds of training include regular validations.
    """
    each = pace.update + pace.validation / settled(settings.validate_every)
    updates = settled(settings.max_steps)
    if settings.max_minutes is not None:
        updates = min(updates, max(1, int(60 * settings.max_minutes / each)))
    return updates, updates * each


def _disk(settings: TrainingConfig, updates: int, measured: _Measured, data: _Data) -> int:
    """Returns the most disk space that a run takes, in bytes: binarized data, checkpoints and the bundle.

    `updates` is the number of updates of the run. These checkpoints count, unless the run writes fewer:

    - the newest `keep_checkpoints` and the one that is being written, all with the optimizer state;
    - `average_checkpoints` to be averaged around the best checkpoint so far;
    - the last `average_checkpoints`, to be averaged if a later checkpoint is better.
    """
    every = [settled(settings.save_every), settled(settings.validate_every)]
    written = len({step for gap in every for step in range(gap, min(updates, 1000 * gap) + 1, gap)}) + 1
    resumable = min(settings.keep_checkpoints + 1, written)
    kept = min(settings.keep_checkpoints + 1 + 2 * settings.average_checkpoints, written)
    return data.num_bytes + (kept + 1) * measured.weight_bytes + resumable * measured.optimizer_bytes


def _free_disk(path: Path) -> int:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _faults(record: Record, config: Config) -> list[str]:
    """Returns a sentence for each thing that does not fit this machine; [] if everything fits.

    The memory of training, the memory of translation and the disk space are checked; `record` is the record that
    `estimate` returns.
    """
    faults = []
    free = record["free_bytes"]
    if free is not None and (record["training_bytes"] or 0) > free:
        faults.append(
            f"training takes {_gigabytes(record['training_bytes'])} of memory, and {_gigabytes(free)} are free; lower "
            f"training.batch_tokens, which is {config.training.told_batch_tokens}, or the model's sizes"
        )
    if free is not None and record["translation_bytes"] > free:
        faults.append(
            f"translation takes about {_gigabytes(record['translation_bytes'])} of memory, and {_gigabytes(free)} are "
            f"free; lower decoding.batch_tokens, which is {config.decoding.batch_tokens:,}"
        )
    if record["disk_bytes"] > record["free_disk_bytes"]:
        faults.append(
            f"the run takes {_gigabytes(record['disk_bytes'])} of disk, and {config.run_path} has "
            f"{_gigabytes(record['free_disk_bytes'])}; set run_dir, or lower training.average_checkpoints"
        )
    return faults


def estimate_text(record: Record) -> str:
    """Returns the record of `estimate` as text, in at most 100 columns."""
    parts = ", ".join(f"{name} {count:,}" for name, count in record["parameters_by_part"].items() if count)
    free = "" if record["free_bytes"] is None else f"; {_gigabytes(record['free_bytes'])} free"
    training = "unknown" if record["training_bytes"] is None else _gigabytes(record["training_bytes"])
    rows = {
        "parameters": f"{record['parameters']:,}: {parts}",
        "training memory": f"{training}, measured in large batches and a validation{free}",
        "translation memory": f"about {_gigabytes(record['translation_bytes'])}, with full batches in fp32",
        "an epoch": f"{counted(record['pairs'], 'pair')}, {record['source_tokens_per_epoch']:,} source and "
        f"{record['target_tokens_per_epoch']:,} target tokens, {record['updates_per_epoch']:,.1f} updates",
        "an update": f"{1000 * record['seconds_per_update']:,.0f} ms",
        "a validation": f"{record['seconds_per_validation']:.1f} s",
        "training": f"{counted(record['updates'], 'update')}, {record['epochs']:,.1f} epochs, "
        f"{duration(record['seconds'])}",
        "disk": f"at most {_gigabytes(record['disk_bytes'])}: data, checkpoints, model; "
        f"{_gigabytes(record['free_disk_bytes'])} free",
        "fits": "no" if record["faults"] else "yes",
    }
    width = max(map(len, rows))
    return f"{machine_text(record)}from {record['data']}, in {record['precision']}\n\n" + "".join(
        f"{name:{width}}  {value}\n" for name, value in rows.items()
    )


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
