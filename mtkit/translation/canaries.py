"""Canaries: sentences that are stored with a model, each together with the translation that this model gave.

Canaries serve to check that the model gives the same translations on another machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from mtkit.bundle.bundle import CANARIES, WEIGHTS, Bundle, Canary, bundle_of, describe
from mtkit.bundle.info import faults_of_files
from mtkit.bundle.opening import CheckpointStorage, find_model, tell
from mtkit.bundle.storage import all_sums, not_finite
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import DataError
from mtkit.translation.decode import log_probs_of
from mtkit.translation.translator import BREAKS, Translator, load_bundle

# Making canaries and translating them again.

NUM_CANARIES = 8
BATCH_TOKENS = 4096

# The settings for translating canaries. They must never change: other settings may give other translations, and the
# canaries of existing bundles would fail. The length limit is tight because a model early in training may never
# generate the end mark.
GREEDY = DecodingConfig(beam_size=1, length_penalty=0.0, max_length_ratio=1.5, max_length_extra=10)
# The settings for models with method mask_predict. With one iteration, no token depends on another, as `gap` requires.
ONE_PASS = DecodingConfig(
    method="mask_predict", iterations=1, length_candidates=1, max_length_ratio=1.5, max_length_extra=10
)

# If the log-probabilities of two tokens differ by less than this, rounding may decide which of them the search chooses.
TIE = 1e-4


@dataclass(frozen=True)
class CanaryResult:
    """A canary (a stored source with its translation), and the result of translating that source again.

    The new translation is made with the model that is being checked.
    """

    canary: Canary
    source_tokens: list[int]  # the canary's source, as this tokenizer encodes it
    target_tokens: list[int]  # the new translation, without the end mark
    text: str  # the canary's target tokens, as this tokenizer decodes them
    log_prob: float  # of the canary's target tokens (not the new ones), computed with the model that is checked
    gap: float  # log-probability of the new token minus that of the canary's, where the two first differ; 0 if never

    @property
    def same_text(self) -> bool:
        """Whether `source_tokens` and `text` are equal to the source tokens and the text stored in the canary."""
        return self.source_tokens == self.canary.source_tokens and self.text == self.canary.text

    @property
    def same_tokens(self) -> bool:
        """Whether the new translation has the same tokens as the stored translation."""
        return self.target_tokens == self.canary.target_tokens

    @property
    def is_tie(self) -> bool:
        """Whether the new translation differs from the stored one, but only because of a tie.

        Let t be the first position at which the two translations differ. There is a tie if the log-probabilities of
        their tokens at t differ by less than `TIE`.
        """
        return not self.same_tokens and abs(self.gap) < TIE

    @property
    def drift(self) -> float:
        """The absolute difference between `log_prob` and the log-probability stored in the canary."""
        return abs(self.log_prob - self.canary.log_prob)


def make_canaries(translator: Translator, lines: Sequence[str]) -> list[Canary]:
    """Choose up to `NUM_CANARIES` of the lines; return a canary (the line and its translation) for each chosen line.

    The chosen lines cover the range of lengths; the choice does not depend on the order of the lines. Blank lines, and
    lines too long for the model, are not chosen. A translation whose log-probability is infinite or NaN is left out.
    The translator must be on a CPU, in fp32. A language model has one canary, with a blank line as its source.
    """
    encoded = translator.tokenizer.encode_source(lines)
    fitting = sorted(
        {line: len(tokens) for line, tokens in zip(lines, encoded, strict=True) if _fits(translator, tokens)}.items(),
        key=lambda item: (item[1], item[0]),
    )
    last, count = len(fitting) - 1, min(NUM_CANARIES, len(fitting))
    sources = [fitting[round(last * i / max(count - 1, 1))][0] for i in range(count)]
    if not translator.model.reads_source:
        sources = [""]
    source_tokens = translator.tokenizer.encode_source(sources)
    target_tokens = _greedy_search(translator, source_tokens)
    log_probs = map(sum, log_probs_of(translator.model, source_tokens, target_tokens, BATCH_TOKENS))
    texts = _texts(translator, target_tokens)
    canaries = map(Canary, sources, source_tokens, target_tokens, log_probs, texts)
    return [canary for canary in canaries if abs(canary.log_prob) < float("inf")]  # else training failed


def translate_canaries(translator: Translator, canaries: Sequence[Canary]) -> list[CanaryResult]:
    """Translate the sources of the canaries again; return a result for each canary, in order.

    Raises DataError if a source or its stored translation is longer than the model accepts.
    """
    source_tokens = translator.tokenizer.encode_source([canary.source for canary in canaries])
    expected = [canary.target_tokens for canary in canaries]
    limits = translator.model.limits
    for number, sides in enumerate(zip(source_tokens, expected, strict=True), start=1):
        for side, limit in zip(sides, (limits.source, limits.target), strict=True):
            if limit is not None and len(side) >= limit:
                raise DataError(f"canary {number} has {len(side):,} tokens, and the model can take {limit - 1:,}")
    found = _greedy_search(translator, source_tokens)
    texts = _texts(translator, expected)
    log_probs_expected = log_probs_of(translator.model, source_tokens, expected, BATCH_TOKENS)
    log_probs_found = log_probs_of(translator.model, source_tokens, found, BATCH_TOKENS)
    columns = zip(canaries, source_tokens, found, texts, log_probs_expected, log_probs_found, strict=True)
    return [
        CanaryResult(canary, source, target, text, sum(old), _gap(canary.target_tokens, old, target, new))
        for canary, source, target, text, old, new in columns
    ]


def _gap(expected: list[int], old: list[float], found: list[int], new: list[float]) -> float:
    """Compares two translations, `expected` and `found`, at the first position where their tokens differ.

    Returns the log-probability of the token of `found` at this position minus that of the token of `expected`; returns
    0 if all tokens are equal. `old` holds the log-probabilities of the tokens of `expected` and of its end mark; `new`
    holds the log-probabilities of the tokens of `found` and of its end mark.
    """
    for place, (one, other) in enumerate(zip_longest(expected, found)):
        if one != other:
            return new[place] - old[place]
    return 0.0


def _greedy_search(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    decoding = ONE_PASS if translator.config.decoding.method == "mask_predict" else GREEDY
    config = translator.config.model_copy(update={"decoding": decoding})
    greedy = Translator(translator.model, translator.tokenizer, config, engine=translator.engine)
    return [hypotheses[0].tokens for hypotheses in greedy.search(tokens)] if tokens else []


def _texts(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Decodes each row of target tokens to text; line breaks in the text are replaced by spaces."""
    return [BREAKS.sub(" ", text) for text in translator.tokenizer.decode_target(tokens)]


def _fits(translator: Translator, tokens: Sequence[int]) -> bool:
    return 0 < len(tokens) <= translator.max_source_length


# `mtkit check`: whether a bundle's files are unchanged, and whether its model still gives the translations that are
# stored in the canaries.

# The largest drift that is accepted per token, where the end mark counts as a token. In fp32, rounding causes less
# drift than this on any device.
MOST_DRIFT = 0.01


@dataclass(frozen=True)
class Report:
    """The result of checking a model with `check`, as lines of text."""

    lines: list[str]  # what was checked, and the results
    faults: list[str]  # what is wrong; empty if nothing is wrong


def check(model: Path, device: str | None = None) -> Report:
    """Compare the files of a model with their checksums; if all files match, translate the model's canaries again.

    Returns a report of the results and faults. Infinite or NaN weights count as a fault. The canaries are translated on
    `device`, by default the device in the model's settings. Raises MtkitError if the model cannot be read or loaded.
    """
    storage = find_model(model)
    tell(storage)
    description = describe(storage)
    sums = all_sums(storage)
    kind = "a checkpoint" if isinstance(storage, CheckpointStorage) else f"bundle format {description['format']}"
    lines = [f"{storage.path}: {kind}, written by mtkit {description.get('mtkit', '?')}"]
    if faults := faults_of_files(storage, description, sums):
        return Report(lines, faults)
    bundle = bundle_of(storage)
    bundle.require_own_tokenizer()
    if fault := not_finite(bundle.weights()):
        return Report(lines, [f"{bundle.path / WEIGHTS}: {fault}; train the model again"])
    if description["format"] == 1:
        lines.append(
            "format 1 records only the checksum of the tokenizer and the size of the weights, and both are right; it "
            "has no checksums of other files, and no canaries"
        )
        load_bundle(bundle, [f"device={device}"] if device else [])
        return Report(lines, [])
    size = sum(each.size for each in sums.values())
    lines.append(f"files: {len(sums)}, {size:,} bytes, all as they were written")
    canaries = bundle.canaries()
    translator = load_bundle(bundle, [f"device={device}"] if device else [])
    if not canaries:
        return Report([*lines, "canaries: none"], [])
    results = translate_canaries(translator, canaries)
    return Report(
        [*lines, *_canary_lines(results, translator.model.device.type)], list(_canary_faults(bundle, results))
    )


def _canary_lines(results: list[CanaryResult], device: str) -> Iterator[str]:
    drifts = [result.drift for result in results]
    num_same = sum(result.same_tokens for result in results)
    yield f"canaries: {num_same} of {len(results)} give the same tokens on {device}"
    yield f"log-probabilities: the largest difference is {max(drifts):.1e}, the mean {sum(drifts) / len(drifts):.1e}"
    for number, result in enumerate(results, start=1):
        if result.is_tie:
            yield f"canary {number}: a tie: its translation differs, and is as likely to within {abs(result.gap):.1e}"


def _canary_faults(bundle: Bundle, results: list[CanaryResult]) -> Iterator[str]:
    for number, result in enumerate(results, start=1):
        where = f"{bundle.path / CANARIES}: canary {number}"
        if not result.same_text:
            yield f"{where}: the tokenizer encodes or decodes it differently here"
        elif not result.same_tokens and not result.is_tie:
            yield f"{where}: the model's translation differs, and is likelier here by {result.gap:.1e}"
        elif not result.drift <= MOST_DRIFT * (len(result.canary.target_tokens) + 1):
            yield f"{where}: its log-probability is {result.log_prob:.4f}, and was {result.canary.log_prob:.4f}"
