"""What is measured of a trained model, kept as statistics of single sentences so that its noise can be computed.

Measures that come from one pass over the text form a group. Shapes: N sentences, K statistics of a sentence (the
columns of a group), B sums over resampled sentences.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.bundle.bundle import open_bundle
from mtkit.config.settings import Config
from mtkit.data.batches import NO_LABEL, padded_batch, ragged
from mtkit.evaluation.evaluate import read_test_set
from mtkit.evaluation.plot import read_log
from mtkit.models.interface import log_probs_from
from mtkit.models.masked import MaskedModel
from mtkit.preparation.prepare import read_validation
from mtkit.preparation.sources import SetFiles, test_sets
from mtkit.text.lines import fingerprint
from mtkit.text.parallel import tagged
from mtkit.translation.alignments import AlignmentSettings, Links, diagonal, read_gold
from mtkit.translation.decode import batches_by_length
from mtkit.translation.scores import bleu_of, bleu_statistics
from mtkit.translation.translator import CUT_OFF, OUT_OF_POSITIONS, Translator, load_bundle

Statistics = NDArray[np.float64]  # (N, K)
Sums = NDArray[np.float64]  # (B, K)
Record = dict[str, Any]

# The table of measures.


@dataclass(frozen=True)
class Measure:
    """A measure: which statistics it is computed from, and how."""

    what: str  # for tables
    group: str  # a key of GROUPS
    value: Callable[[Sums], NDArray[np.float64]]  # of sums (B, K): (B,)
    by: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)  # subsets: name to group and set in it
    digits: int = 2
    rows: str = "all"  # the set of the group that the measure is taken of


def _ratio(over: int, under: int, factor: float = 1.0) -> Callable[[Sums], NDArray[np.float64]]:
    """A function that divides one column of sums by another."""

    def value(sums: Sums) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.nan_to_num(factor * sums[:, over] / sums[:, under], nan=0.0, posinf=math.inf)

    return value


def _bleu(sums: Sums) -> NDArray[np.float64]:
    return bleu_of(sums[:, :NUM_BLEU])


def _perplexity(sums: Sums) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return np.exp(_ratio(0, 1)(sums))


def _calibration_error(sums: Sums) -> NDArray[np.float64]:
    """The mean distance between confidence and accuracy over bins of confidence (Guo et al. 2017), in %."""
    counts, confidences, right = (sums[:, 6 + part * NUM_BINS : 6 + (part + 1) * NUM_BINS] for part in range(3))
    return np.asarray(100 * np.abs(confidences - right).sum(1) / np.maximum(counts.sum(1), 1))


# The columns of translations, after those of BLEU.
NUM_BLEU = 10
LINES, EXACT, REPEATED, WORDS, REFERENCE_WORDS, EMPTY, CUT, SCORE = range(NUM_BLEU, NUM_BLEU + 8)
NUM_BINS = 15  # of confidence
MOST_JOINED = 3

BY_LENGTH = {name: ("translations", name) for name in ("short", "medium", "long")}
BY_JOINED = {f"joined {count}": ("joined", f"joined {count}") for count in range(1, MOST_JOINED + 1)}
BY_SOURCE = {"right source": ("likelihood", "all"), "wrong source": ("wrong source", "all")}
BY_LAYER = {name: ("alignments", name) for name in ("diagonal", *(f"layer {number}" for number in range(1, 7)))}
LENGTHS = {"length": BY_LENGTH, "joined": BY_JOINED}
SOURCES = {"source": BY_SOURCE}

MEASURES: dict[str, Measure] = {
    "bleu": Measure("BLEU of the test set", "translations", _bleu, LENGTHS),
    "exact": Measure("translations equal to the reference, %", "translations", _ratio(EXACT, LINES, 100), LENGTHS),
    "repeats": Measure("words equal to the word before, %", "translations", _ratio(REPEATED, WORDS, 100), LENGTHS),
    "length_ratio": Measure("words per word of the reference", "translations", _ratio(WORDS, REFERENCE_WORDS), LENGTHS),
    "empty": Measure("empty translations, %", "translations", _ratio(EMPTY, LINES, 100), LENGTHS),
    "cut_off": Measure("translations that reach the length limit, %", "translations", _ratio(CUT, LINES, 100), LENGTHS),
    "score": Measure(
        "mean score of a translation; its log-probability if length_penalty is 0", "translations", _ratio(SCORE, LINES)
    ),
    "words_per_second": Measure("words translated a second", "translations", _ratio(0, 1), digits=0, rows="time"),
    "perplexity": Measure("perplexity of the validation text, without smoothing", "likelihood", _perplexity, SOURCES),
    "nll": Measure("nats per token of the validation text", "likelihood", _ratio(0, 1), SOURCES, 3),
    "bits": Measure("bits per token of the validation text", "likelihood", _ratio(0, 1, 1 / math.log(2)), SOURCES, 3),
    "bits_per_character": Measure(
        "bits per character of the validation text", "likelihood", _ratio(0, 5, 1 / math.log(2)), SOURCES, 3
    ),
    "accuracy": Measure(
        "validation tokens that are the likeliest after the right tokens before, %",
        "likelihood",
        _ratio(2, 1, 100),
        SOURCES,
    ),
    "confidence": Measure("mean probability of the likeliest token, %", "likelihood", _ratio(3, 1, 100), SOURCES),
    "entropy": Measure("mean entropy of the predictions, nats", "likelihood", _ratio(4, 1), SOURCES, 3),
    "calibration_error": Measure("distance of confidence from accuracy, %", "likelihood", _calibration_error, SOURCES),
    "order_invariance": Measure(
        "translations that stay the same when the source tokens are shuffled, %", "shuffled", _ratio(0, 1, 100)
    ),
    "alignment_error": Measure(
        "alignment error rate, %", "alignments", lambda sums: 100 - _ratio(0, 1, 100)(sums), {"layer": BY_LAYER}
    ),
    "parameters": Measure("numbers that are trained", "training", _ratio(0, 5), digits=0),
    "minutes": Measure("minutes of training", "training", _ratio(1, 5)),
    "updates": Measure("updates", "training", _ratio(2, 5), digits=0),
    "training_loss": Measure("nats per token of the training text, at the end", "training", _ratio(3, 5), digits=3),
    "trained": Measure("1 if training ended well, 0 if it diverged", "training", _ratio(4, 5), digits=0),
    "tokens_per_second": Measure("target tokens a second in training", "speed", _ratio(0, 1), digits=0),
}
ALWAYS = ("parameters", "minutes")
# Measures of a training that diverged; others that need a model are not a number, so that no such run looks good.
IF_DIVERGED = dict.fromkeys(("bleu", "exact", "accuracy"), 0.0)
IF_DIVERGED |= dict.fromkeys(("perplexity", "nll", "bits", "bits_per_character"), math.inf)

# Resampling.

NUM_RESAMPLES = 400


@cache
def resamples(num_sentences: int) -> NDArray[np.float64]:
    """Returns how often each resample contains each sentence, (1 + NUM_RESAMPLES, N).

    The first row contains each sentence once; the others are drawn. They depend on N alone, so that all variants are
    measured on the same resamples (paired bootstrap).
    """
    generator = np.random.default_rng(num_sentences)
    drawn = generator.multinomial(num_sentences, [1 / num_sentences] * num_sentences, size=NUM_RESAMPLES)
    return np.concatenate([np.ones((1, num_sentences)), drawn])


def values_of(measure: Measure, rows: Statistics) -> NDArray[np.float64]:
    """Returns a measure on the sentences and on resamples of them, (1 + NUM_RESAMPLES,)."""
    if len(rows) == 1 or not np.isfinite(rows).all():
        return constant(float(measure.value(rows.sum(0, keepdims=True))[0]))
    return measure.value(resamples(len(rows)) @ rows)


def constant(value: float) -> NDArray[np.float64]:
    """Returns a value that no resampling changes, (1 + NUM_RESAMPLES,)."""
    return np.full(1 + NUM_RESAMPLES, value)


# Measuring.


@dataclass(frozen=True)
class Subject:
    """A finished run, or one that diverged, of which something is measured."""

    config: Config  # of the variant; its decoding may differ from that of the run
    run: Path
    check: Callable[[], None]  # raises an error when the time is up
    diverged: bool = False

    @cached_property
    def translator(self) -> Translator:
        """The model, with the decoding of the variant."""
        decoding = self.config.decoding.model_dump(mode="json")
        settings = [f"decoding.{name}={json.dumps(value)}" for name, value in decoding.items()]
        return load_bundle(open_bundle(self.run / "model"), [f"device={self.config.device}", *settings])

    @cached_property
    def test_set(self) -> SetFiles | None:
        """The first test set; `None` if there is none."""
        return next(iter(test_sets(self.config).values()), None) if self.config.data.test else None

    @cached_property
    def test_lines(self) -> tuple[list[str], list[list[str]]]:
        """The sources and the references of the test set, or else of the validation text."""
        if self.test_set is not None:
            return read_test_set(self.test_set)
        sources, references = read_validation(self.config.model_copy(update={"run_dir": self.run}))
        return sources, [references]

    def done(self, _: int) -> None:
        """Called after each batch."""
        self.check()


def _translation_rows(subject: Subject, sources: Sequence[str], references: Sequence[Sequence[str]]) -> Record:
    """Translates; returns the statistics of each line, and the translations."""
    tag = subject.test_set.tag if subject.test_set else None
    lines = list(subject.translator.translate_lines([tagged(line, tag) for line in sources], done=subject.done))
    texts, notes = [line.text for line in lines], [line.notes for line in lines]
    scores = [line.translations[0].score for line in lines]
    rows = np.zeros((len(sources), NUM_BLEU + 8))
    rows[:, :NUM_BLEU] = bleu_statistics(texts, references, subject.config.languages.target)
    rows[:, LINES] = 1
    for row, text, noted, score, *right in zip(rows, texts, notes, scores, *references, strict=True):
        words = text.split()
        row[EXACT] = text.strip() in [line.strip() for line in right]
        row[REPEATED] = sum(one == other for one, other in pairwise(words))
        row[WORDS], row[REFERENCE_WORDS] = len(words), len(right[0].split())
        row[EMPTY], row[CUT], row[SCORE] = not words, not {CUT_OFF, OUT_OF_POSITIONS}.isdisjoint(noted), score
    return {"rows": rows.tolist(), "texts": texts}


def translations(subject: Subject) -> Record:
    """Translates the test set; sentences are also divided into thirds by the words of their source."""
    if subject.config.task == "language_model":
        return {"sets": {}}
    sources, references = subject.test_lines
    begun = time.monotonic()
    found = _translation_rows(subject, sources, references)
    clock = [float(sum(len(text.split()) for text in found["texts"])), time.monotonic() - begun]
    order = sorted(range(len(sources)), key=lambda place: (len(sources[place].split()), place))
    third = len(order) / 3
    parts = {
        name: sorted(order[round(number * third) : round((number + 1) * third)])
        for number, name in enumerate(BY_LENGTH)
    }
    return {"sets": {"all": found["rows"], "time": [clock]}, "parts": parts, "texts": found["texts"]}


def joined(subject: Subject) -> Record:
    """Translates the test set with one, two and three consecutive lines joined: the same words in longer sentences."""
    if subject.config.task == "language_model":
        return {"sets": {}}
    sources, references = subject.test_lines
    sets = {}
    for count, name in enumerate(BY_JOINED, start=1):
        texts = [_joined(lines, count) for lines in (sources, *references)]
        sets[name] = _translation_rows(subject, texts[0], texts[1:])["rows"]
    return {"sets": sets}


def _joined(lines: Sequence[str], count: int) -> list[str]:
    """Joins each `count` consecutive lines to one, with spaces between them.

    Only a multiple of six lines is used, whatever `count` is, so that the text is the same for all counts from 1 to
    MOST_JOINED; the lines after it are left out. If there are fewer than six lines, only those that are too few for
    another group are left out.
    """
    whole = len(lines) - len(lines) % math.lcm(*range(1, MOST_JOINED + 1)) or len(lines)
    return [" ".join(lines[start : start + count]) for start in range(0, whole - count + 1, count)]


def likelihood(subject: Subject) -> Record:
    """Measures how the model predicts the validation tokens, given the right tokens before each.

    A masked model (cmlm) predicts all tokens of a target at once, from the source and the target length alone. The
    columns are those of `_likelihood_rows`.
    """
    return {"sets": {"all": _likelihood_rows(subject, 0)}}


def wrong_source(subject: Subject) -> Record:
    """The same as `likelihood`, where each target has the source of the next pair."""
    return {"sets": {"all": _likelihood_rows(subject, 1)}}


@torch.inference_mode()
def _likelihood_rows(subject: Subject, turned: int) -> list[list[float]]:
    """Returns a row of sums over the tokens of each validation pair.

    The row of a pair that has an empty side (in a language model, an empty target), or a side longer than
    data.max_length, is zero. With `turned` = n, each target gets the source of the pair n places further on; after the
    last pair comes the first. The columns are:

    - the negative log-likelihood, in nats
    - the number of tokens
    - the number of tokens that are predicted rightly
    - the probability of the likeliest token
    - the entropy of the prediction, in nats
    - the number of characters of the target, plus 1
    - for each bin of confidence, the number of tokens; then for each bin, their confidence; then for each bin, the
      number of them that are predicted rightly
    """
    sources, targets = read_validation(subject.config.model_copy(update={"run_dir": subject.run}))
    sources = sources[turned:] + sources[:turned]
    rows = np.zeros((len(sources), 6 + 3 * NUM_BINS))
    translator = subject.translator
    model, tokenizer = translator.model, translator.tokenizer
    has_source = subject.config.task == "translation"
    encoded = tokenizer.encode_source(sources) if has_source else [[] for _ in sources]
    labels = tokenizer.encode_target(targets)
    most = subject.config.data.max_length
    fit = [
        place
        for place, (source, target) in enumerate(zip(encoded, labels, strict=True))
        if target and (source or not has_source) and max(len(source), len(target)) <= most
    ]
    lengths = [max(len(encoded[place]), len(labels[place])) + 1 for place in fit]
    for chosen in batches_by_length(lengths, subject.config.known_batch_tokens):
        subject.check()
        places = [fit[i] for i in chosen]
        batch = padded_batch(
            ragged([encoded[p] for p in places]), ragged([labels[p] for p in places]), model.boundaries
        ).to(model.device)
        state = model.encode(batch.source)
        target, wanted = batch.target, batch.labels
        if isinstance(model, MaskedModel):
            hidden = model.hide(batch, everything=True)
            target, wanted = hidden.target, hidden.labels
        features, _ = model.decode(target, state)  # (R, T, D)
        for place, of_row, right in zip(places, features, wanted, strict=True):
            real = right != NO_LABEL
            rows[place] = _token_statistics(log_probs_from(model.output(of_row[real])), right[real])
            rows[place, 5] = len(targets[place]) + 1
    return rows.round(6).tolist()  # so that the record is not longer than need be


def _token_statistics(log_probs: torch.Tensor, labels: torch.Tensor) -> Statistics:
    """The columns of `_likelihood_rows` for the tokens of one sentence, from (T, V) log-probabilities."""
    best, likeliest = log_probs.max(1)
    confidence, right = best.exp().double().cpu(), (likeliest == labels).double().cpu()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    found = torch.zeros(3, NUM_BINS, dtype=torch.float64)
    for row, amounts in enumerate((torch.ones_like(confidence), confidence, right)):
        found[row].index_add_(0, bins, amounts)
    entropy = -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(1)
    nll = -log_probs.gather(1, labels[:, None]).sum()
    sums = [float(nll), float(len(labels)), float(right.sum()), float(confidence.sum()), float(entropy.sum()), 0.0]
    return np.array([*sums, *found.flatten().tolist()])


NUM_SHUFFLED, NUM_SHUFFLES = 200, 3


def shuffled(subject: Subject) -> Record:
    """How often a translation stays the same when the source tokens are shuffled, the end mark staying last."""
    if subject.config.task == "language_model":
        return {"sets": {}}
    sources = subject.test_lines[0][:NUM_SHUFFLED]
    translator, generator = subject.translator, random.Random(1)
    orders: list[list[int]] = []
    for tokens in translator.tokenizer.encode_source(sources):
        orders.append(tokens)
        for _ in range(NUM_SHUFFLES):
            orders.append(generator.sample(tokens, len(tokens)))
    found: list[list[int]] = [[] for _ in orders]
    for chosen in batches_by_length([len(tokens) + 1 for tokens in orders], 4096):
        subject.check()
        for place, hypotheses in zip(chosen, translator.search([orders[i] for i in chosen]), strict=True):
            found[place] = hypotheses[0].tokens if hypotheses else []
    width = 1 + NUM_SHUFFLES
    rows = []
    for start in range(0, len(found), width):
        changed = [i for i in range(start + 1, start + width) if orders[i] != orders[start]]
        rows.append([float(sum(found[i] == found[start] for i in changed)), float(len(changed))])
    return {"sets": {"all": rows}}


def alignments(subject: Subject) -> Record:
    """Links read off attention to the source, against gold links beside the test set: test.align for test.fr."""
    files, model = subject.test_set, subject.config.model
    gold_path = None if files is None else files.source.with_suffix(".align")
    if gold_path is None or not gold_path.exists() or not model.has_attention:
        return {"sets": {}}
    sources, references = subject.test_lines
    pairs = list(zip(sources, references[0], strict=True))
    gold = read_gold(gold_path, pairs)

    def rows(links: Sequence[Links]) -> list[list[float]]:
        return [
            [
                float(len(right.sure.intersection(found)) + len(right.possible.intersection(found))),
                float(len(found) + len(right.sure)),
            ]
            for found, right in zip(links, gold, strict=True)
        ]

    sets = {"diagonal": rows([diagonal(len(source.split()), len(target.split())) for source, target in pairs])}
    layers = model.source_attention[0]
    for name, layer in [("all", None), *((f"layer {number}", number) for number in range(1, min(layers, 6) + 1))]:
        subject.check()
        subject.translator.align_with(AlignmentSettings(layer=layer))
        sets[name] = rows(list(subject.translator.align_lines(pairs)))
    return {"sets": sets}


def training(subject: Subject) -> Record:
    """Facts of the training: parameters, minutes, updates, the last loss, whether it ended well."""
    events = read_log(subject.run)
    trained = [event for event in events if event["event"] == "train"]
    last = trained[-1] if trained else {}
    starts = [event for event in events if event["event"] == "start"]
    parameters = starts[-1].get("num_parameters", 0) if starts else 0
    if not subject.diverged:
        parameters = open_bundle(subject.run / "model").description["num_parameters"]
    minutes = max((event["minutes"] for event in events if "minutes" in event), default=0.0)
    updates = max((event.get("step", 0) for event in events), default=0)
    loss = last.get("nll")
    row = [parameters, minutes, updates, loss, 0.0 if subject.diverged else 1.0, 1.0]
    return {"sets": {"all": [row]}}


def speed(subject: Subject) -> Record:
    """Target tokens a second, one for each line of the training log."""
    events = read_log(subject.run)
    rates = [event["tokens_per_second"] for event in events if event["event"] == "train"]
    return {"sets": {"all": [[rate, 1.0] for rate in rates]} if rates else {}}


def measured(group: str, subject: Subject) -> Record:
    """Returns the record of all measures of `group`, a key of GROUPS, which are taken in one pass.

    If training diverged, there is no model, so that the record has no statistics unless the group needs no model.
    """
    return {"sets": {}} if subject.diverged and group not in UNMODELLED else GROUPS[group](subject)


GROUPS: dict[str, Callable[[Subject], Record]] = {
    "translations": translations,
    "joined": joined,
    "likelihood": likelihood,
    "wrong source": wrong_source,
    "shuffled": shuffled,
    "alignments": alignments,
    "training": training,
    "speed": speed,
}
UNMODELLED = ("training", "speed")  # these read the log, so a run that diverged has them, too
DECODED = ("translations", "joined", "shuffled")  # these depend on the settings of decoding
READ = (*DECODED, "alignments")  # and these on the test set
FORMAT = 2  # of the records; a new one has everything measured again


def record_name(group: str, config: Config) -> str:
    """Returns the name of the file, in the folder `measures` of a run, for a group measured with these settings."""
    told: list[Any] = [FORMAT]
    if group in DECODED:
        told.append(config.decoding.model_dump(mode="json"))
    if group in READ and config.data.test:
        files = next(iter(test_sets(config).values()))
        gold = files.source.with_suffix(".align")
        paths = [files.source, *files.target, *([gold] if group == "alignments" and gold.exists() else [])]
        told += [known_fingerprint(path) for path in paths]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{group.replace(' ', '-')}-{digest[:10]}.json"


@cache
def known_fingerprint(path: Path) -> str:
    """The checksum of a file's text, read once in a process."""
    return fingerprint(path)


def rows_of(record: Record, name: str) -> Statistics | None:
    """Returns the statistics called `name` in a record, (N, K); `None` if it has none.

    `name` is a key of the record's "sets", or of its "parts", each of which selects sentences of the set "all". Null in
    a record stands for infinity.
    """
    if name in record.get("parts", {}):
        whole = rows_of(record, "all")
        return None if whole is None else whole[record["parts"][name]]
    rows = record["sets"].get(name)
    if not rows:
        return None
    return np.array([[math.inf if value is None else value for value in row] for row in rows], dtype=np.float64)
