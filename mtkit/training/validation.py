"""Validation during training: the loss, and the BLEU and chrF of greedy translations.

A language model makes no translations, so it has only the loss.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Container, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkit.bundle.checkpoints import Progress
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.data.batches import Batch, Ragged, padded_batch, plan_batches, ragged
from mtkit.errors import DataError, Meter, counted, say
from mtkit.files import Stop
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import return_freed_memory
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.loss import cross_entropy
from mtkit.translation.scores import tokenizer_of, unspaced, validation_score
from mtkit.translation.translator import Translator

# The settings of decoding in validations, whatever decoding settings the run has.
GREEDY: dict[str, Any] = {"beam_size": 1}
MASK_PREDICT: dict[str, Any] = {"method": "mask_predict", "iterations": 4, "length_candidates": 1}

TIMED_BATCHES, TIMED_LINES = 4, 64  # at most this many are timed to estimate how long a validation takes


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
        """Encode the validation pairs. Pairs that are blank or too long are left out of the loss, as in training.

        Of a language model's pairs, only the references count. Reports how many pairs are left out. Raises DataError if
        no pair remains.
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
        """Validate the model; returns the results by name, and the model's greedy translations of the sources.

        The ranks share the work, and all return the same.
        The result "loss" includes label smoothing, as in training; "nll" does not. Both are in nats per token. The
        result "perplexity" is exp(nll); "bleu" and "chrf" are the scores of the translations, which a language model
        does not have. Raises StoppedError if a signal asks training to stop.
        """
        model.eval()
        return_freed_memory()  # else the searches take further memory, in which what updates have freed does not fit
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
        """Returns the translation of each source, and the kinds of problems with it."""
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
    """Report how many pairs are left out of the loss. Raises DataError if no pair is kept."""
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

    `path` is the log file. Returns `None` if the log is damaged or missing, or has no validation at any of `steps`.
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
    """Returns the score by which checkpoints are compared, as set by `training.select_by`; higher is better.

    Returns -inf if the score is not finite.
    """
    value = -measured["nll"] if settings.select_by == "loss" else measured[settings.select_by]
    return value if math.isfinite(value) else float("-inf")


def measures_text(measured: dict[str, float]) -> str:
    """Returns the results of a validation as one line of text."""
    names = {"bleu": "BLEU", "chrf": "chrF"}
    scores = "".join(f", {shown} {measured[name]:.2f}" for name, shown in names.items() if name in measured)
    return f"loss {measured['loss']:.4f}, nll {measured['nll']:.4f} (perplexity {measured['perplexity']:.2f}){scores}"
