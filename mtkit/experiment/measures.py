"""Measures of trained models, and verdicts: whether a claim about measures holds, despite their noise.

Measures are stored as statistics of single sentences, so that their noise can be estimated by resampling sentences.
Measures that come from one pass over the text form a group.

Shapes: N sentences, K statistics of a sentence (the columns of a group), B resamples of the sentences, S seeds. In a
verdict, a measure, or an expression of measures, has values (S, 1 + B). Each row is a seed. The first column is the
value on the test sentences themselves, the others are the values on the resamples. All variants have the same
resamples, so the noise of a difference comes from a paired bootstrap (Koehn, 2004).
"""

import ast
import hashlib
import json
import math
import operator
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtkit.bundle.bundle import open_bundle
from mtkit.config.settings import Config
from mtkit.data.batches import NO_LABEL, padded_batch, ragged
from mtkit.evaluation.evaluate import read_test_set
from mtkit.evaluation.plot import read_log
from mtkit.models.interface import log_probs_from
from mtkit.models.transformer import MaskedModel
from mtkit.preparation.prepare import read_validation
from mtkit.preparation.sources import SetFiles, test_sets
from mtkit.text.lines import fingerprint
from mtkit.text.parallel import tagged
from mtkit.text.vocabulary import split_tags
from mtkit.translation.alignments import AlignmentSettings, Links, diagonal, read_gold
from mtkit.translation.decode import batches_by_length
from mtkit.translation.scores import bleu_of, bleu_statistics
from mtkit.translation.translator import CUT_OFF, OUT_OF_POSITIONS, Translator, load_bundle

Statistics = NDArray[np.float64]  # (N, K)
Sums = NDArray[np.float64]  # (1 + B, K): over the sentences, and over each resample
Record = dict[str, Any]

# The table of measures.


@dataclass(frozen=True)
class Measure:
    """A measure: which statistics it is computed from, and how."""

    what: str  # what it is, in words, for tables
    group: str  # a key of GROUPS
    value: Callable[[Sums], NDArray[np.float64]]  # from sums (1 + B, K) to the measure (1 + B,)
    # For each way to divide the sentences, such as "length", maps each subset, such as "short", to its (group, set).
    by: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    digits: int = 2
    rows: str = "all"  # key of the statistics in the "sets" of the group's record


def _ratio(over: int, under: int, factor: float = 1.0) -> Callable[[Sums], NDArray[np.float64]]:
    """Returns a function that divides column `over` of sums by column `under`, times `factor`; 0 / 0 gives 0."""

    def value(sums: Sums) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.nan_to_num(factor * sums[:, over] / sums[:, under], nan=0.0, posinf=math.inf)

    return value


def _bleu(sums: Sums) -> NDArray[np.float64]:
    return bleu_of(sums[:, :NUM_BLEU])


def _perplexity(sums: Sums) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return np.exp(_ratio(0, 1)(sums))


def _alignment_error(sums: Sums) -> NDArray[np.float64]:
    """Returns the alignment error rate, in %; as in `alignment_scores`, it is 0 if there are no links at all."""
    right, links = sums[:, 0], sums[:, 1]
    return np.asarray(100 * (links - right) / np.maximum(links, 1))


def _calibration_error(sums: Sums) -> NDArray[np.float64]:
    """Returns the expected calibration error (Guo et al. 2017), in %.

    This is the mean distance between confidence and accuracy over bins of confidence, weighted by the number of tokens
    in each bin. `sums` (1 + B, K) has the columns of `_likelihood_rows`; the result is (1 + B,).
    """
    counts, confidences, right = (sums[:, 6 + part * NUM_BINS : 6 + (part + 1) * NUM_BINS] for part in range(3))
    return np.asarray(100 * np.abs(confidences - right).sum(1) / np.maximum(counts.sum(1), 1))


# The columns of the group "translations", after those of BLEU.
NUM_BLEU = 10
LINES, EXACT, REPEATED, WORDS, REFERENCE_WORDS, EMPTY, CUT, SCORE = range(NUM_BLEU, NUM_BLEU + 8)
NUM_BINS = 15  # bins of confidence
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
    "alignment_error": Measure("alignment error rate, %", "alignments", _alignment_error, {"layer": BY_LAYER}),
    "parameters": Measure("numbers that are trained", "training", _ratio(0, 5), digits=0),
    "minutes": Measure("minutes of training", "training", _ratio(1, 5)),
    "updates": Measure("updates", "training", _ratio(2, 5), digits=0),
    "training_loss": Measure("nats per token of the training text, at the end", "training", _ratio(3, 5), digits=3),
    "trained": Measure("1 if training ended well, 0 if it diverged", "training", _ratio(4, 5), digits=0),
    "tokens_per_second": Measure("target tokens a second in training", "speed", _ratio(0, 1), digits=0),
}
ALWAYS = ("parameters", "minutes")
# Values of measures if training diverged; other measures that need a model are NaN, so that no such run looks good.
IF_DIVERGED = dict.fromkeys(("bleu", "exact", "accuracy"), 0.0)
IF_DIVERGED |= dict.fromkeys(("perplexity", "nll", "bits", "bits_per_character"), math.inf)

# Resampling.

NUM_RESAMPLES = 400


@cache
def resamples(num_sentences: int) -> NDArray[np.float64]:
    """Returns how often each resample contains each sentence, (1 + NUM_RESAMPLES, N).

    The first row contains each sentence once; the other rows are random. All rows depend on N alone, so that all
    variants are measured on the same resamples (paired bootstrap).
    """
    generator = np.random.default_rng(num_sentences)
    drawn = generator.multinomial(num_sentences, [1 / num_sentences] * num_sentences, size=NUM_RESAMPLES)
    return np.concatenate([np.ones((1, num_sentences)), drawn])


def values_of(measure: Measure, rows: Statistics) -> NDArray[np.float64]:
    """Returns a measure on the sentences and on resamples of them, (1 + NUM_RESAMPLES,), from the statistics (N, K).

    The first value is for the sentences themselves. With a single row, or with numbers that are not finite, all values
    equal the first.
    """
    if len(rows) == 1 or not np.isfinite(rows).all():
        return constant(float(measure.value(rows.sum(0, keepdims=True))[0]))
    return measure.value(resamples(len(rows)) @ rows)


def constant(value: float) -> NDArray[np.float64]:
    """Returns `value` repeated, (1 + NUM_RESAMPLES,): the values of a measure that resampling does not change."""
    return np.full(1 + NUM_RESAMPLES, value)


# Measuring.


@dataclass(frozen=True)
class Subject:
    """A run to measure, which is finished or diverged."""

    config: Config  # settings of the variant; their decoding section may differ from that of the run
    run: Path
    check: Callable[[], None]  # raises an error when the time is up
    diverged: bool = False

    @cached_property
    def translator(self) -> Translator:
        """The model of the run, with the decoding settings of the variant."""
        decoding = self.config.decoding.model_dump(mode="json")
        settings = [f"decoding.{name}={json.dumps(value)}" for name, value in decoding.items()]
        return load_bundle(open_bundle(self.run / "model"), [f"device={self.config.device}", *settings])

    @cached_property
    def test_set(self) -> SetFiles | None:
        """The first test set; `None` if there is none."""
        return next(iter(test_sets(self.config).values()), None) if self.config.data.test else None

    @cached_property
    def test_lines(self) -> tuple[list[str], list[list[str]]]:
        """The sources, and the lines of each reference, of the test set or, without one, of the validation text."""
        if self.test_set is not None:
            return read_test_set(self.test_set)
        sources, references = read_validation(self.config.model_copy(update={"run_dir": self.run}))
        return sources, [references]

    @property
    def tag(self) -> str | None:
        """The tag to put before each source of `test_lines`; `None` for no tag, or if the sources have tags."""
        return self.test_set.tag if self.test_set else None

    def done(self, _: int) -> None:
        """Call this after each batch; raises an error when the time is up."""
        self.check()


def _translation_rows(subject: Subject, sources: Sequence[str], references: Sequence[Sequence[str]]) -> Record:
    """Translates `sources`; returns the statistics of each line ("rows"), and the translations ("texts")."""
    given = [tagged(line, subject.tag) for line in sources]
    lines = list(subject.translator.translate_lines(given, done=subject.done))
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
    """Translates the test set; returns a record of the statistics of each line, the time, and the translations.

    The record's "parts" divide the lines into thirds by the number of words in the source. The record of a language
    model has no statistics.
    """
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
    """Translates the test set with one, two and three consecutive lines joined: the same words in longer sentences.

    The record has a set of statistics for each of the three, and none for a language model.
    """
    if subject.config.task == "language_model":
        return {"sets": {}}
    sources, references = subject.test_lines
    sets = {}
    for count, name in enumerate(BY_JOINED, start=1):
        texts = [_joined(lines, count) for lines in (sources, *references)]
        sets[name] = _translation_rows(subject, texts[0], texts[1:])["rows"]
    return {"sets": sets}


def _joined(lines: Sequence[str], count: int) -> list[str]:
    """Joins each group of `count` consecutive lines into one line, with spaces between them.

    Lines after the last multiple of six are left out, so that the text is the same for all counts from 1 to
    MOST_JOINED. If there are fewer than six lines, only the lines after the last full group are left out.
    """
    whole = len(lines) - len(lines) % math.lcm(*range(1, MOST_JOINED + 1)) or len(lines)
    return [" ".join(lines[start : start + count]) for start in range(0, whole - count + 1, count)]


def likelihood(subject: Subject) -> Record:
    """Measures how well the model predicts each validation token from the reference tokens before it.

    A masked model (cmlm) predicts all tokens of a target at once, from the source and the target length alone. The
    record has a row for each validation pair, with sums over its target tokens, such as the negative log-likelihood;
    `_likelihood_rows` lists the columns.
    """
    return {"sets": {"all": _likelihood_rows(subject, 0)}}


def wrong_source(subject: Subject) -> Record:
    """Measures how well the model predicts the validation tokens when each source is replaced by the next pair's.

    The record has the form of the record of `likelihood`.
    """
    return {"sets": {"all": _likelihood_rows(subject, 1)}}


@torch.inference_mode()
def _likelihood_rows(subject: Subject, turned: int) -> list[list[float]]:
    """Returns a row for each validation pair, with sums over its target tokens.

    The row is zero if a side of the pair is empty (in a language model, the target) or longer than data.max_length.
    With `turned` = n, each target gets the source of the pair n places further on; after the last pair comes the first.
    The columns are:

    - the negative log-likelihood, in nats
    - the number of tokens
    - the number of tokens that are predicted correctly
    - the sum of the probabilities of the likeliest tokens
    - the sum of the entropies of the predictions, in nats
    - the number of characters of the target, plus 1
    - for each bin of confidence, the number of tokens; then for each bin, the sum of their confidences; then for each
      bin, the number of its tokens that are predicted correctly
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
    """Returns the statistics of one sentence, (K,), from log-probabilities (T, V) and labels (T,).

    The columns are those of `_likelihood_rows`, except that the number of characters is left at 0.
    """
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
    """Counts, for each sentence, how many shuffles of the source tokens leave the translation unchanged.

    The sentences are the first NUM_SHUFFLED of the test set. Tags stay first and the end mark last, and only shuffles
    that change the order count. The columns are the number of unchanged translations, and the number of shuffles. The
    record of a language model has no statistics.
    """
    if subject.config.task == "language_model":
        return {"sets": {}}
    sources = [tagged(line, subject.tag) for line in subject.test_lines[0][:NUM_SHUFFLED]]
    translator, generator = subject.translator, random.Random(1)
    encode = translator.tokenizer.encode_source
    orders: list[list[int]] = []
    for line, tokens in zip(sources, encode(sources), strict=True):
        num_tags = len(encode([split_tags(line, translator.tags)[0]])[0])
        tags, rest = tokens[:num_tags], tokens[num_tags:]
        orders.append(tokens)
        for _ in range(NUM_SHUFFLES):
            orders.append([*tags, *generator.sample(rest, len(rest))])
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
    """Compares alignments from attention with gold alignments beside the test set, such as test.align for test.fr.

    The record has a set of statistics for the default layer ("all"), for each of the first six layers, and for the
    diagonal alignment. It has none if there is no gold file or no attention. With links A, sure gold links S and
    possible gold links P of a sentence, the columns are |A and S| + |A and P|, and |A| + |S|. The sum of the first
    column divided by that of the second is 1 minus the alignment error rate (Och & Ney 2003).
    """
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
        sets[name] = rows(list(subject.translator.align_lines(pairs, subject.tag)))
    return {"sets": sets}


def training(subject: Subject) -> Record:
    """Returns facts of the training: parameters, minutes, updates, last loss, and 1 if it ended well, else 0.

    The facts are the columns of a single row, which ends with a 1 that the measures divide by.
    """
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
    """Returns a record with a row for each training event in the log: its target tokens per second, and a 1."""
    events = read_log(subject.run)
    rates = [event["tokens_per_second"] for event in events if event["event"] == "train"]
    return {"sets": {"all": [[rate, 1.0] for rate in rates]} if rates else {}}


def measured(group: str, subject: Subject) -> Record:
    """Measures the group `group`, a key of GROUPS, in one pass; returns its record.

    If training diverged, there is no model; the record then has no statistics unless the group needs no model.
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
READ = (*DECODED, "alignments")  # these depend on the test set
FORMAT = 2  # number of the records' format; if it changes, everything is measured again


def record_name(group: str, config: Config) -> str:
    """Returns the name of the file with a group's record, such as likelihood-0123456789.json.

    The file is in the folder `measures` of a run. The name has a checksum of what the record depends on, such as the
    decoding settings and the test set.
    """
    told: list[Any] = [FORMAT]
    if group in DECODED:
        told.append(config.decoding.model_dump(mode="json"))
    if group in READ and config.data.test:
        files = next(iter(test_sets(config).values()))
        gold = files.source.with_suffix(".align")
        paths = [files.source, *files.target, *([gold] if group == "alignments" and gold.exists() else [])]
        told += [*map(known_fingerprint, paths), *([files.tag] if files.tag else [])]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{group.replace(' ', '-')}-{digest[:10]}.json"


@cache
def known_fingerprint(path: Path) -> str:
    """Returns the checksum of a file's text; each file is read once per process."""
    return fingerprint(path)


def parsed_record(text: str) -> Record:
    """Returns the record in this JSON text; raises ValueError if the text does not have the form of a record."""
    try:
        found: Record = json.loads(text)
        sets, parts = found["sets"], found.get("parts", {})
        tables = [np.array(rows, dtype=np.float64) for rows in sets.values()]  # ValueError if rows differ in length
        places = {place for part in parts.values() for place in part}
        sentences = range(len(sets.get("all", [])))
        fits = places <= set(sentences) and all(table.ndim == 2 for table in tables if len(table))
    except (LookupError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError("wants sets of rows, and parts that select rows of the set all")
    return found


def rows_of(record: Record, name: str) -> Statistics | None:
    """Returns the statistics called `name` in a record, (N, K); `None` if the record has none of this name.

    `name` is a key of the record's "sets", such as "all", or of the record's "parts", such as "short". A part is a
    selection of the sentences of "all". A number that is `None` in the record stands for infinity.
    """
    if name in record.get("parts", {}):
        whole = rows_of(record, "all")
        return None if whole is None else whole[record["parts"][name]]
    rows = record["sets"].get(name)
    if not rows:
        return None
    return np.array([[math.inf if value is None else value for value in row] for row in rows], dtype=np.float64)


if TYPE_CHECKING:
    from mtkit.experiment.run import Card

# Verdicts.

Values = NDArray[np.float64]  # (S, 1 + B); a size is 1 if nothing varies along it

# Expressions.

BOARD = "board"  # the name that stands for the results of checks without training


@dataclass(frozen=True)
class Reference:
    """A measure of a variant, such as `bleu["base", "long"]`, or a result of a board (a check without training).

    An example of the latter is `board["leaks", "encoder"]`.
    """

    measure: str  # a key of MEASURES, or BOARD
    variant: str  # the name of the variant, or of the board
    subset: str | None = None  # the name of a subset of the test sentences, or of a result of the board

    def __str__(self) -> str:
        """Returns the reference as it is written in an expression."""
        quoted = [f'"{name}"' for name in (self.variant, self.subset) if name is not None]
        return f"{self.measure}[{', '.join(quoted)}]"


@dataclass(frozen=True)
class Expression:
    """An expression in an experiment file, such as `bleu["base"] - bleu["no mask"] >= 5`."""

    text: str
    tree: ast.expr

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references in the expression, in order, without duplicates."""
        return tuple(dict.fromkeys(_references(self.tree)))


ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": np.abs, "min": np.minimum, "max": np.maximum}
COMPARISONS = (ast.GtE, ast.Gt, ast.LtE, ast.Lt, ast.Eq)
WANTED = (
    'wants numbers, MEASURE["variant"], + - * /, abs, min, max, comparisons (>= > <= < ==), and, or, not, such as '
    'bleu["base"] - bleu["no mask"] >= 5'
)


def parse(text: str) -> Expression:
    """Returns the expression in `text`: one comparison, or several combined; raises ValueError for any other text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"found {text}, {WANTED}") from None
    _check(tree, text, is_truth=True)
    return Expression(text.strip(), tree)


def _check(node: ast.expr, text: str, is_truth: bool) -> None:
    """Raises ValueError unless `node` is an allowed expression: a truth value with `is_truth`, else a number.

    A truth value is a comparison, or several joined by and, or and not. `text`, the whole expression, is quoted in the
    error.
    """
    match node:
        case ast.BoolOp(values=parts) if is_truth:
            for part in parts:
                _check(part, text, True)
        case ast.UnaryOp(op=ast.Not(), operand=part) if is_truth:
            _check(part, text, True)
        case ast.Compare(left=left, ops=ops, comparators=others) if is_truth:
            if wrong := [kind for kind in ops if not isinstance(kind, COMPARISONS)]:
                raise ValueError(f"found {type(wrong[0]).__name__.lower()} in {text}, {WANTED}")
            for part in (left, *others):
                _check(part, text, False)
        case _ if is_truth:
            raise ValueError(f"found {ast.unparse(node)} in {text}, which is no comparison; {WANTED}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            _check(left, text, False)
            _check(right, text, False)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=part):
            _check(part, text, False)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
            if len(parts) < 1 or (name == "abs") != (len(parts) == 1):
                raise ValueError(f"found {ast.unparse(node)} in {text}; abs takes one number, min and max take several")
            for part in parts:
                _check(part, text, False)
        case ast.Subscript(value=ast.Name(), slice=index):
            if not 1 <= len(_names(index)) <= 2:
                raise ValueError(f"found {ast.unparse(node)} in {text}; names stand in quotes, and are one or two")
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            pass
        case _:
            raise ValueError(f"found {ast.unparse(node)} in {text}, {WANTED}")


def _names(index: ast.expr) -> list[str]:
    """Returns the string literals between the brackets of, for example, `x["a", "b"]`; [] if anything else is there."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    names = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return names if len(names) == len(parts) else []


def _reference(node: ast.Subscript) -> Reference:
    assert isinstance(node.value, ast.Name)
    return Reference(node.value.id, *_names(node.slice))


def _references(tree: ast.expr) -> Iterator[Reference]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)):
        yield _reference(node)


# Values, and their noise.

Lookup = Callable[[Reference], Values]

# Quantiles of Student's t distribution for 95 % intervals, by the number of seeds.
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SAME = 1e-12  # numbers that differ by at most this are equal


@dataclass(frozen=True)
class Estimate:
    """A number with its noise."""

    value: float
    noise: float  # half the width of the 95 % interval; 0 if the number is exact
    num_seeds: int = 1


def estimate(values: Values) -> Estimate:
    """Returns the mean over the seeds, with its noise: half the width of a 95 % interval.

    The noise has two parts. The noise from the choice of sentences is half the width of the bootstrap interval. The
    noise from the choice of seeds, if there are several, is half the width of an interval by Student's t distribution.
    The two parts are independent, so the result is the root of the sum of their squares.
    """
    points = values[:, 0]
    noise = 0.0
    if values.shape[1] > 1:
        resampled = values[:, 1:].mean(0)
        low, high = np.percentile(resampled, [2.5, 97.5]) if np.isfinite(resampled).all() else (0.0, 0.0)
        noise = float(high - low) / 2
    if len(points) > 1:
        quantile = T_QUANTILES.get(len(points), 2.0)
        # If some seeds diverged and others did not, nothing is known of the mean.
        unsure = 0.0 if (points == points[0]).all() else math.inf
        spread = float(points.std(ddof=1)) if np.isfinite(points).all() else unsure
        noise = math.hypot(noise, quantile * spread / math.sqrt(len(points)))
    return Estimate(float(points.mean()), noise, len(points))


def value_of(node: ast.expr, lookup: Lookup) -> Values:
    """Returns the values (S, 1 + B) of a numeric expression; `lookup` returns the values of a reference in it.

    All measures in the expression must have the same number of seeds.
    """
    match node:
        case ast.Constant(value=value):
            return np.full((1, 1), float(value))  # type: ignore[arg-type]
        case ast.Subscript():
            return lookup(_reference(node))
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -value_of(part, lookup)
        case ast.UnaryOp(operand=part):
            return value_of(part, lookup)
        case ast.BinOp(left=left, op=op, right=right):
            with np.errstate(all="ignore"):
                return np.asarray(ARITHMETIC[type(op)](value_of(left, lookup), value_of(right, lookup)))
        case ast.Call(func=ast.Name(id="abs"), args=[part]):
            return np.abs(value_of(part, lookup))
        case ast.Call(func=ast.Name(id=name), args=parts):
            first, *others = (value_of(part, lookup) for part in parts)
            for other in others:
                first = FUNCTIONS[name](first, other)
            return first
    raise AssertionError(f"{ast.unparse(node)} was checked")


# Findings: whether an expression is true.

HOLDS, NOISE, FAILS = "holds", "within noise", "does not hold"
NOT_RUN, NOT_HERE = "not run", "not at this size"
_ORDER = {FAILS: -1, NOISE: 0, HOLDS: 1}


@dataclass(frozen=True)
class Finding:
    """The result of testing a prediction or a condition of validity: whether it holds, and by how much."""

    text: str
    state: str  # one of HOLDS, NOISE, FAILS, NOT_RUN, NOT_HERE
    is_true: bool = False  # whether it is true if noise is ignored
    margin: Estimate | None = None  # left side minus right side, if it is a single comparison
    sides: tuple[Estimate, Estimate] | None = None
    condition: str | None = None  # the text after `if` of a prediction that has one


class MissingError(Exception):
    """Raised if a measure has no value; `state` is NOT_RUN, or NOT_HERE if this size does not have the measure."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


def find(expression: Expression, lookup: Lookup, condition: str | None = None) -> Finding:
    """Returns the finding on an expression: whether it holds, and by how much.

    If `lookup` raises MissingError for a measure, the finding gets the state of the error. Only the seeds that all
    measures in the expression have are used; results of boards (checks without training) have no seeds. `condition` is
    stored in the finding.
    """
    states: list[str] = []
    values: dict[Reference, Values] = {}
    for reference in expression.references:
        try:
            values[reference] = lookup(reference)
        except MissingError as missing:
            states.append(missing.state)
    if states:
        return Finding(expression.text, NOT_HERE if NOT_HERE in states else NOT_RUN, condition=condition)
    measured = [len(found) for reference, found in values.items() if reference.measure != BOARD]
    num_seeds = min(measured, default=1)
    found = _found(expression.tree, lambda reference: values[reference][:num_seeds])
    return Finding(expression.text, found.state, found.is_true, found.margin, found.sides, condition)


def _found(node: ast.expr, lookup: Lookup) -> Finding:
    match node:
        case ast.BoolOp(op=op, values=parts):
            findings = [_found(part, lookup) for part in parts]
            choose, together = (min, all) if isinstance(op, ast.And) else (max, any)
            state = choose((finding.state for finding in findings), key=_ORDER.__getitem__)
            return Finding("", state, together(finding.is_true for finding in findings))
        case ast.UnaryOp(op=ast.Not(), operand=part):
            finding = _found(part, lookup)
            opposite = {HOLDS: FAILS, FAILS: HOLDS, NOISE: NOISE}
            return Finding("", opposite[finding.state], not finding.is_true)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [value_of(part, lookup) for part in (left, *others)]
            findings = [_compared(sides[place], op, sides[place + 1]) for place, op in enumerate(ops)]
            if len(findings) == 1:
                return findings[0]
            state = min((finding.state for finding in findings), key=_ORDER.__getitem__)
            return Finding("", state, all(finding.is_true for finding in findings))
    raise AssertionError(f"{ast.unparse(node)} was checked")


def _compared(left: Values, op: ast.cmpop, right: Values) -> Finding:
    """Returns the finding on the comparison `left` `op` `right`, whose text is left empty.

    The comparison is true by more than noise, false by more than noise, or within noise.
    """
    with np.errstate(all="ignore"):
        margin = estimate(np.asarray(left - right))
    sides = estimate(left), estimate(right)
    value = margin.value
    if math.isnan(value):  # infinity minus infinity: nothing is known of the difference
        return Finding("", NOISE, False, margin, sides)
    if isinstance(op, ast.Eq):
        is_true = abs(value) <= SAME
        state = HOLDS if is_true and not margin.noise else FAILS if abs(value) > margin.noise + SAME else NOISE
        return Finding("", state, is_true, margin, sides)
    if isinstance(op, ast.LtE | ast.Lt):
        value = -value
    is_true = value >= -SAME if isinstance(op, ast.GtE | ast.LtE) else value > SAME
    is_exact = margin.noise <= SAME
    state = (HOLDS if is_true else FAILS) if is_exact or abs(value) > margin.noise else NOISE
    return Finding("", state, is_true, margin, sides)


# Verdicts.

CLAIM_HOLDS = "holds"
HOLDS_IF = "holds if …"
CONTRADICTED = "contradicted"
NOT_SHOWN = "not shown on this device or size"
INVALID = "experiment invalid"
NOT_TESTED = "not run"
VERDICTS = (CLAIM_HOLDS, HOLDS_IF, CONTRADICTED, NOT_SHOWN, INVALID, NOT_TESTED)


@dataclass(frozen=True)
class Verdict:
    """The verdict on the claim of an experiment, with the findings from which it follows."""

    kind: str  # one of VERDICTS
    text: str  # `kind`, with the condition if there is one
    predictions: tuple[Finding, ...]
    conditions: tuple[Finding, ...]  # conditions of validity


def judge(card: "Card", lookup: Lookup) -> Verdict:
    """Returns the verdict on an experiment, computed from its predictions and conditions of validity alone.

    `lookup` returns the values of a reference, and raises MissingError if there are none.
    """
    predictions = tuple(find(parse(each.expression), lookup, each.condition) for each in card.predict)
    conditions = tuple(find(parse(text), lookup) for text in card.valid_if)
    kind, text = _verdict(predictions, conditions)
    return Verdict(kind, text, predictions, conditions)


def _verdict(predictions: Sequence[Finding], conditions: Sequence[Finding]) -> tuple[str, str]:
    known = [finding for finding in conditions if finding.state not in (NOT_RUN, NOT_HERE)]
    if any(not finding.is_true for finding in known):
        return INVALID, INVALID
    if any(finding.state == NOT_RUN for finding in (*predictions, *conditions)):
        return NOT_TESTED, NOT_TESTED
    general = [finding for finding in predictions if finding.condition is None]
    special = [finding for finding in predictions if finding.condition is not None and finding.state != NOT_HERE]
    if any(finding.state == NOT_HERE for finding in (*general, *conditions)) or not (general or special):
        return NOT_SHOWN, NOT_SHOWN
    if all(finding.state == HOLDS for finding in (*general, *special)):
        return CLAIM_HOLDS, CLAIM_HOLDS
    if any(finding.state == FAILS for finding in general):
        return CONTRADICTED, CONTRADICTED
    if any(finding.state == NOISE for finding in general):
        return NOT_SHOWN, NOT_SHOWN
    if general:
        words = {FAILS: "not if", NOISE: "not shown if"}
        others = [f"{words[finding.state]} {finding.condition}" for finding in special if finding.state != HOLDS]
        return HOLDS_IF, f"holds, but {', and '.join(others)}"
    if held := [finding.condition for finding in special if finding.state == HOLDS]:
        return HOLDS_IF, f"holds if {' and if '.join(map(str, held))}"
    if any(finding.state == FAILS for finding in special):
        return CONTRADICTED, CONTRADICTED
    return NOT_SHOWN, NOT_SHOWN
